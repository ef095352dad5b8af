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
        chapters = ", ".join(task.chapters)
        print(f"{task.name:{width}}  {facts}  chapter {chapters}: {task.title}")


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
        for row in rows:
            by_hand = [cell for cell, score in row.scores.items() if score is None]
            score = f"{row.score:g} of {row.points:g}" if row.scores else "no score"
            print(f"{name}  {row.student}: {score}", end="")
            print(f" (by hand: {', '.join(by_hand)})" if by_hand else "", end="")
            print(f"  {row.seconds:.1f} s  {row.note}".rstrip())
        print(out / f"{name}.csv")


def feedback_(name: str, out: Path | None) -> None:
    """Write a page of feedback for each student."""
    for page in course.feedback(name, out or GRADED):
        print(page)
