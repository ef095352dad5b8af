"""The chapters as files: which there are, how they are numbered, and how they are read
and written, the same way by every tool.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"
NAME = re.compile(r"(\d\d[a-z]?)_\w+$")  # 11_words, 11b_phonemes


def number(path: Path | str) -> str | None:
    """The number of a chapter, "11" or "11b", from its file's name; None for any other
    file.
    """
    found = NAME.match(Path(path).name.removesuffix(".ipynb"))
    return found and found[1]


def assignments() -> list[Path]:
    """The assignments, as instructors have them, with solutions and hidden tests."""
    return sorted(CHAPTERS.glob("assignments/source/*/*.ipynb"))


def chapters(named: list[str] | None = None) -> list[Path]:
    """The chapters in reading order, 11b after 11 and before 12: all, or those that
    `named` gives by number ("11") or by the beginning of the file's name ("11_words").
    """
    files = sorted(filter(number, CHAPTERS.glob("*.ipynb")), key=number)
    if not named:
        return files
    chosen = set()
    for name in (Path(name).name for name in named):
        found = [file for file in files if number(file) == name] or [
            file for file in files if file.name.startswith(name)
        ]
        if not found:
            raise SystemExit(
                f"No chapter begins with {name!r}; there are: "
                f"{', '.join(file.name for file in files)}."
            )
        chosen.update(found)
    return [file for file in files if file in chosen]


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`."""
    return nbformat.read(path, as_version=4)


def write(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Write `notebook` to `path`, valid, and with a newline at its end."""
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells that hold anything."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip()
    ]
