"""Run chapters from top to bottom and store their outputs.

    python book/tools/execute.py [01 ...]     these chapters, or all

A chapter runs in its own folder, with the Python that runs this. Nothing is written
when a cell fails or when the result would be too heavy. What differs from run to run
without meaning anything (times of execution, versions, the state of live widgets) is
left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import nbformat
import notebooks
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

MAX_BYTES = 1_200_000  # of a notebook with its outputs


def run(notebook: nbformat.NotebookNode) -> None:
    """Execute `notebook` in place, in this environment, as from the folder of the
    chapters.
    """
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        resources={"metadata": {"path": str(notebooks.CHAPTERS)}},
        coalesce_streams=True,
        store_widget_state=False,
        record_timing=False,
    ).execute(env={**os.environ, "MINILIB_DEVICE": "cpu"})  # as the tests do


def strip(notebook: nbformat.NotebookNode) -> None:
    """Leave out what changes from run to run or from machine to machine."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in ("tags", "mystnb")}
        )
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if output.get("data", True)
            ]


def main() -> int:
    """Run the chapters named on the command line, and say how long each took and what
    it weighs.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "chapters",
        nargs="*",
        help="chapters by the beginning of their file name; default: all",
    )
    for path in notebooks.chapters(parser.parse_args().chapters):
        notebook, start = notebooks.read(path), time.monotonic()
        try:
            run(notebook)
        except CellExecutionError as error:
            print(
                f"{error}\n{path.name}: a cell failed (its traceback stands above); "
                f"nothing was stored.",
                file=sys.stderr,
            )
            return 1
        strip(notebook)
        size = len(nbformat.writes(notebook).encode())
        if size > MAX_BYTES:
            print(
                f"{path.name}: {size:,} bytes with outputs, {MAX_BYTES:,} allowed; "
                f"nothing was stored.",
                file=sys.stderr,
            )
            return 1
        notebooks.write(path, notebook)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
