"""The table of an assignment's grades, NAME.csv, which a person may write into.

A copy of what was last written lies beside it, as .NAME.csv, so that what a person has
typed since then can be told from it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

Table = dict[str, dict[str, str]]  # student -> column -> text


def read(path: Path) -> Table:
    """The table at a path, perhaps saved by a spreadsheet; empty if it is missing."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    return {row["student"]: row for row in rows if row.get("student")}


def kept(path: Path) -> Path:
    """Where the copy of a table lies."""
    return path.with_name(f".{path.name}")


def write(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Write a table and its copy.

    Returns:
        a sentence, if something that was typed into the table is not in the new one:
        the typed one is kept under another name. Otherwise nothing.
    """
    typed, before = changes(path), path.read_bytes() if path.is_file() else b""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])
    for each in (path, kept(path)):
        each.write_text(text.getvalue(), encoding="utf-8", newline="")
    new = read(path)
    lost = [
        f"{student}, {column}: {value}"
        for (student, column), value in typed.items()
        if not same(new.get(student, {}).get(column) or "", value)
    ]
    if not lost:
        return ""
    numbers = (f"_{i}" if i > 1 else "" for i in range(1, 1000))
    names = (path.with_name(f"{path.stem}_typed{n}.csv") for n in numbers)
    beside = next(name for name in names if not name.exists())
    beside.write_bytes(before)
    what = f"{path.name} was changed in cells that can't be taken over"
    return f"{what} ({'; '.join(lost):.300}): your version is kept as {beside.name}"


def changes(path: Path) -> dict[tuple[str, str], str]:
    """(student, column) -> what a person has typed since a table was written."""
    now, before = read(path), read(kept(path))
    if not before:
        return {}
    return {
        (student, str(column)): f"{value}"
        for student, row in now.items()
        for column, value in row.items()
        if value and not same(value, before.get(student, {}).get(column) or "")
    }


def same(a: str, b: str) -> bool:
    """Whether two cells say the same, if as numbers in another form."""
    if number(a) is not None and number(b) is not None:
        return number(a) == number(b)
    return f"{a}".split() == f"{b}".split()


def number(text: str) -> float | None:
    """The number in a cell, with a point or a comma; None if it is not one."""
    text = f"{text}".strip().replace(",", ".")
    return float(text) if re.fullmatch(r"\d+(\.\d*)?", text) else None
