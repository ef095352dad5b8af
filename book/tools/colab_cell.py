"""Write the first code cell of each chapter: on Colab it fetches the course, from its
address or, while it has none, from course.zip (`make colab`), and says whether there is
a GPU; elsewhere it does nothing, and the page of the book leaves it out.

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
import zipfile

ADDRESS = ""
COURSE = "/content/course"
ZIPS = ("course.zip", "course-peers.zip")  # `make colab` writes both
PLACES = ("/content", "/content/drive/MyDrive")


def fetch_course():
    if ADDRESS:
        clone = ["git", "clone", "--quiet", "--depth", "1", ADDRESS, COURSE]
        subprocess.run(clone, check=True)
        return
    paths = [os.path.join(place, name) for place in PLACES for name in ZIPS]
    found = [path for path in paths if os.path.isfile(path)]
    if not any(path.endswith(ZIPS[0]) for path in found):
        from google.colab import files

        print("Choose course.zip, which `make colab` writes:")
        found += files.upload()  # into the folder in which this runs
    for path in [path for path in found if path.endswith(".zip")]:
        zipfile.ZipFile(path).extractall(os.path.dirname(COURSE))
    if not os.path.isdir(COURSE):
        wanted = "course.zip was not given: upload it, or put it into your Drive, "
        raise FileNotFoundError(wanted + "mount that, and run this cell again.")


if "google.colab" in sys.modules:
    if not os.path.isdir(COURSE):
        fetch_course()
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--editable", COURSE + "[peers,speech]"], check=True)
    # what was installed as editable is otherwise found by the next kernel only
    sys.path.insert(0, COURSE)
    os.chdir(COURSE + "/chapters")
    import torch

    if torch.cuda.is_available():
        print(f"This runtime has a GPU, {torch.cuda.get_device_name()}: cells that")
        print("train take more steps, so their numbers differ from the book's.")
    else:
        print("This runtime has no GPU, and no chapter needs one. With one, training")
        print("takes more steps in less time: Runtime, Change runtime type, T4 GPU.")"""


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
