"""Write the library's text into the chapters' cells, so that chapter and library stay
one.

    python book/tools/sync_cells.py [01 ...]      rewrite the cells of these chapters,
    or of all python book/tools/sync_cells.py --check       only say which cells differ,
    and exit with 1 if any does

A cell whose first line is `# minilib/<module>.py` holds definitions of that module.
Each definition in it, found by name, is replaced by the module's own text, whole. So to
bring a definition into a chapter, write its first line and `...` below it (`def
stft(wave): ...`, `HOP = ...`, `VAE.presets = ...`) and run this tool.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys

import notebooks

MODULE_LINE = re.compile(r"# (minilib/[\w/]+\.py)\s*\n")


def name_of(node: ast.stmt) -> str | None:
    """What a top-level statement defines: a function, a class, a constant, or an
    attribute of a class.
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return ast.unparse(target)
    return None


def definitions(text: str) -> dict[str, tuple[int, int]]:
    """Name -> (first line, last line) of each top-level definition in `text`,
    decorators included, counted from 1.
    """
    spans = {}
    for node in ast.parse(text).body:
        if name := name_of(node):
            first = min(
                [node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]
            )
            spans[name] = (first, node.end_lineno)
    return spans


def sync(cell: str, module: str, path: str) -> str:
    """The text of `cell` with each definition replaced by that of `module`, the text of
    the file `path`.
    """
    cell_lines, module_lines = cell.splitlines(), module.splitlines()
    wanted, library = definitions(cell), definitions(module)
    # from the bottom up
    for name, (first, last) in sorted(wanted.items(), key=lambda item: -item[1][0]):
        if name not in library:
            raise SystemExit(
                f"A cell that begins '# {path}' defines {name}, which {path} does not."
            )
        start, end = library[name]
        cell_lines[first - 1 : last] = module_lines[start - 1 : end]
    return "\n".join(cell_lines)


def main() -> int:
    """Rewrite the cells, or with --check only name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "chapters",
        nargs="*",
        help="chapters by the beginning of their file name; default: all",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit with 1 if a cell differs",
    )
    args = parser.parse_args()
    stale = 0
    for path in notebooks.chapters(args.chapters):
        notebook, changed = notebooks.read(path), 0
        for cell in notebooks.code_cells(notebook):
            if found := MODULE_LINE.match(cell.source):
                text = sync(
                    cell.source,
                    (notebooks.ROOT / found[1]).read_text(encoding="utf-8"),
                    found[1],
                )
                changed += text != cell.source
                cell.source = text
        if changed and not args.check:
            notebooks.write(path, notebook)
        if changed:
            print(
                f"{path.name}: {changed} cells "
                f"{'differ from' if args.check else 'brought to'} the library's text"
            )
        stale += changed
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
