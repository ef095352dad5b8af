"""The chapters as files: which there are, and how they are read and written, the same
way by every tool.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"


def chapters(named: list[str] | None = None) -> list[Path]:
    """The chapters in reading order: all, or those whose file names begin with one of
    `named` ("01", "01_sound").
    """
    files = sorted(CHAPTERS.glob("[0-9][0-9]_*.ipynb"))
    if not named:
        return files
    names = [Path(name).name for name in named]
    for name in names:
        if not any(file.name.startswith(name) for file in files):
            raise SystemExit(
                f"No chapter begins with {name!r}; there are: "
                f"{', '.join(f.name for f in files)}."
            )
    return [file for file in files if file.name.startswith(tuple(names))]


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
