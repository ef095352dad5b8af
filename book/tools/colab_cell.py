"""Write the first code cell of each chapter: on Colab it fetches the course, elsewhere
it does nothing, and the page of the book leaves it out.

python book/tools/colab_cell.py     to be run when the address in _config.yml has
changed, or a chapter is new
"""

from __future__ import annotations

import sys

import nbformat
import notebooks
import yaml

FIRST_LINE = (
    "# On Colab this cell fetches the course and its libraries; elsewhere nothing."
)
TAGS = ["remove-cell"]  # not on the page
CELL = """
import os
import subprocess
import sys

ADDRESS = ""
COURSE = "/content/course"

if "google.colab" in sys.modules:
    if not os.path.isdir(COURSE) and not ADDRESS:
        message = "This copy of the course has no address: upload its folder to "
        raise FileNotFoundError(message + COURSE + " and run again.")
    if not os.path.isdir(COURSE):
        clone = ["git", "clone", "--quiet", "--depth", "1", ADDRESS, COURSE]
        subprocess.run(clone, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--editable", COURSE + "[peers,speech]"], check=True)
    # what was installed as editable is otherwise found by the next kernel only
    sys.path.insert(0, COURSE)
    os.chdir(COURSE + "/chapters")"""


def address() -> str:
    """The repository's address, from the one place where it stands; empty if the course
    is not published.
    """
    config = yaml.safe_load(
        (notebooks.ROOT / "_config.yml").read_text(encoding="utf-8")
    )
    return config["repository"]["url"] or ""


def text() -> str:
    """The cell, with the address of today."""
    return FIRST_LINE + CELL.replace('ADDRESS = ""', f'ADDRESS = "{address()}"')


def main() -> int:
    """Bring the cell of every chapter and assignment up to date; where there is none,
    put one.
    """
    for path in [*notebooks.chapters(), *notebooks.assignments()]:
        notebook = notebooks.read(path)
        cells = notebooks.code_cells(notebook)
        there = cells and cells[0].source.startswith(FIRST_LINE)
        if there and (cells[0].source, cells[0].metadata.get("tags")) == (text(), TAGS):
            continue
        if there:
            cells[0].source, cells[0].metadata["tags"] = text(), TAGS
        else:
            cell = nbformat.v4.new_code_cell(text(), metadata={"tags": TAGS})
            # below the title; execute.py gives it its execution count
            notebook.cells.insert(1, cell)
        notebooks.write(path, notebook)
        print(f"{path.name}: its first code cell was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
