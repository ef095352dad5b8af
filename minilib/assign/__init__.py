"""Assignments that grade themselves: notebooks for students, and graders that run their
answers out of reach of the tests.

The notebooks lie in chapters/assignments/source, in nbgrader's form for instructors.
nbgrader (the extra `teach`) makes the students' version, keeps the gradebook and writes
feedback. It would run answers and tests in one process; here they run in two. `answers`
is the program in the closed process, `sandbox` starts it, `wire` lets the two call
each other's functions, `checker` runs the tests, `course` stands over nbgrader,
`tables` keeps what a person types into a table of grades, `pages` makes a page of
feedback, and `graders` tries right and wrong answers on the tests.
"""
