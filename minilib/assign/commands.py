"""What `minilib assign` prints: list, release, grade, feedback."""

from __future__ import annotations

import sys
from pathlib import Path

from minilib.assign import course
from minilib.assign.sandbox import missing_guard

RELEASE, GRADED = Path("release"), Path("graded")  # the folders by default


def list_(name: None, out: Path | None) -> None:
    """Print a line for each assignment."""
    found = [course.assignment(name) for name in course.assignments()]
    width = max((len(task.name) for task in found), default=0)
    for task in found:
        facts = f"{task.points:3.0f} points  {task.minutes:3} min"
        chapters = f"chapter{'s' * (len(task.chapters) > 1)} "
        chapters += " and ".join(task.chapters)
        print(f"{task.name:{width}}  {facts}  {chapters}: {task.title}")


def release_(name: str, out: Path | None) -> None:
    """Write the students' notebook."""
    print(course.release(name, out or RELEASE))


def grade_(folder: str, out: Path | None) -> None:
    """Grade a folder of submissions, with a bar, and print where the tables are."""
    from tqdm import tqdm

    guard = missing_guard()
    if guard:
        print(f"minilib: {guard}", file=sys.stderr)
    out = out or GRADED
    bar = lambda found: tqdm(found, desc="grading", unit="submission")
    for name, rows in course.grade(Path(folder), out, bar).items():
        waiting: set[str] = set()
        for row in rows:
            by_hand = [cell for cell, score in row.scores.items() if score is None]
            waiting.update(by_hand)
            score = f"{row.score:g} of {row.points:g}" if row.scores else "no score"
            score += f" (by hand: {', '.join(by_hand)})" if by_hand else ""
            seconds = f"  {row.seconds:.1f} s" if row.seconds else ""
            who = f"{name or 'file'}  {row.student}"
            print(f"{who}: {score}{seconds}  {row.note}".rstrip())
        if name:
            print(out / f"{name}.csv")
        if waiting:
            answers, cells = course.by_hand_path(out, name), ", ".join(sorted(waiting))
            print(BY_HAND.format(answers, cells, name))


BY_HAND = """{}: the answers to {} beside a model answer and its points.
  Type points into that column of the table, or into nbgrader's form grader (start
  jupyter lab in the folder of grades, open /formgrader; don't press Autograde there: it
  runs students' code unguarded). Then: minilib assign feedback {}"""


def feedback_(name: str, out: Path | None) -> None:
    """Write a page of feedback for each student."""
    found = course.feedback(name, out or GRADED)
    for page in found.pages:
        print(page)
    if found.without:
        print(f"no page, since there is no score: {', '.join(found.without)}")
    for cell, n in found.waiting.items():
        answers = "1 answer" if n == 1 else f"{n} answers"
        print(f"{answers} to {cell} not graded yet: the pages say so")
