"""Write the library's text into the chapters' cells, so that chapter and library stay
one.

    python book/tools/sync_cells.py [01 ...]      rewrite the cells of these chapters,
                                                  or of all
    python book/tools/sync_cells.py --check       only say which cells differ, and exit
                                                  with 1 if any does
    python book/tools/sync_cells.py --lines       how many lines of the library each
                                                  chapter has to show

A cell whose first line is `# minilib/<module>.py` holds definitions of that module.
Each definition in it, found by name, is replaced by the module's own text, whole. So to
bring a definition into a chapter, write its first line and `...` below it (`def
stft(wave): ...`, `HOP = ...`, `VAE.presets = ...`) and run this tool.

What a chapter builds is tagged: the docstring of the function or class says "Chapter
07." The lines that --lines counts are those of the tagged definitions, docstrings
included, blank lines not.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys

import notebooks

MODULE_LINE = re.compile(r"# (minilib/[\w/]+\.py)\s*\n")
TAG = re.compile(r"\bChapter (\d\d[a-z]?)\.(?!\w)")


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


def span(node: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, decorators included, counted from 1."""
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    return min([node.lineno, *decorators]), node.end_lineno


def definitions(text: str) -> dict[str, tuple[int, int]]:
    """Name -> (first line, last line) of each top-level definition in `text`."""
    nodes = ast.parse(text).body
    return {name: span(node) for node in nodes if (name := name_of(node))}


def tags(text: str) -> dict[str, tuple[str, int]]:
    """Name -> (chapter, non-blank lines) of each function and class at the top level of
    `text` whose docstring says "Chapter 07."
    """
    found, lines = {}, text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if tag := TAG.search(ast.get_docstring(node) or ""):
                first, last = span(node)
                count = sum(bool(line.strip()) for line in lines[first - 1 : last])
                found[node.name] = tag[1], count
    return found


def lines_of_library() -> dict[str, dict[str, int]]:
    """Chapter -> {module and name: lines} of all that is tagged with it."""
    chapters = {}
    for path in sorted((notebooks.ROOT / "minilib").rglob("*.py")):
        module = ".".join(path.relative_to(notebooks.ROOT).with_suffix("").parts[1:])
        for name, (chapter, n) in tags(path.read_text(encoding="utf-8")).items():
            chapters.setdefault(chapter, {})[f"{module}.{name}"] = n
    return dict(sorted(chapters.items()))


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


def bring(named: list[str], check: bool) -> int:
    """Rewrite the cells of chapters, or with `check` only name those that differ; how
    many those are.
    """
    stale = 0
    for path in notebooks.chapters(named):
        notebook, changed = notebooks.read(path), 0
        for cell in notebooks.code_cells(notebook):
            if found := MODULE_LINE.match(cell.source):
                module = (notebooks.ROOT / found[1]).read_text(encoding="utf-8")
                text = sync(cell.source, module, found[1])
                changed += text != cell.source
                cell.source = text
        if changed and not check:
            notebooks.write(path, notebook)
        if changed:
            what = "differ from" if check else "brought to"
            print(f"{path.name}: {changed} cells {what} the library's text")
        stale += changed
    return stale


def main() -> int:
    """Rewrite the cells, name those that differ, or count the library's lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "chapters", nargs="*", help="by number or beginning of file name; default: all"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit with 1 if any differs",
    )
    parser.add_argument(
        "--lines", action="store_true", help="only count the library's lines by chapter"
    )
    args = parser.parse_args()
    if args.lines:
        for chapter, parts in lines_of_library().items():
            listed = ", ".join(f"{name} {n}" for name, n in parts.items())
            print(f"{chapter}: {sum(parts.values())} lines: {listed}")
        return 0
    return 1 if bring(args.chapters, args.check) and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
