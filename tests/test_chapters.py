"""Chapters and library are one, and chapters come with their outputs."""

import ast
import re
from pathlib import Path

import colab_cell
import notebooks
import pytest
import sync_cells
import yaml

ROOT = Path(__file__).parents[1]
CHAPTERS = notebooks.chapters()
MAX_BYTES = 1_500_000  # of a notebook with its outputs

# What the chapters build: the modules that teach. Each public definition in them names
# its chapter.
TAUGHT = [
    "audio", "diffusion", "guidance", "layers", "model", "vae", "vocoder", "audiomae", "clap", "text", "phonemes",
    "bind", "gpt", "unet", "audioldm2", "training",
]  # fmt: skip
FREE = {"audio"}  # on the ground floor a definition may go without a chapter
FILES = sorted((ROOT / "minilib").rglob("*.py"))
MODULES = [
    path
    for path in FILES
    if path.relative_to(ROOT / "minilib").parts[0].removesuffix(".py") in TAUGHT
]

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def definitions(text: str) -> dict[str, ast.stmt]:
    """Name -> node of each top-level function and class."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: node for node in ast.parse(text).body if isinstance(node, kinds)}


def library_cells(path: Path) -> list[tuple[str, str]]:
    """(file of the library, text) of each cell of a chapter that begins `#
    minilib/...`.
    """
    cells = [cell.source for cell in notebooks.code_cells(notebooks.read(path))]
    return [
        (found[1], cell)
        for cell in cells
        if (found := sync_cells.MODULE_LINE.match(cell))
    ]


def chapter_of(node: ast.stmt) -> int | None:
    """The chapter that a definition names first in its docstring."""
    found = re.search(r"\bChapter (\d\d)\b", ast.get_docstring(node) or "")
    return int(found[1]) if found else None


def built() -> dict[tuple[str, str], set[int]]:
    """(module, name) -> the chapters in whose cells it is defined."""
    where = {}
    for path in CHAPTERS:
        for file, text in library_cells(path):
            for name in definitions(text):
                where.setdefault((file, name), set()).add(int(path.name[:2]))
    return where


def test_the_first_chapter_is_there_and_the_table_of_contents_names_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    named = [
        entry["file"].removesuffix(".ipynb")
        for part in toc["parts"]
        for entry in part["chapters"]
    ]
    assert [f"chapters/{path.stem}" for path in CHAPTERS] == [
        file for file in named if file.startswith("chapters/")
    ]
    assert CHAPTERS and CHAPTERS[0].name.startswith("01_")


@each_chapter
def test_every_code_cell_was_run_in_order_and_none_failed(path):
    cells = notebooks.code_cells(notebooks.read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output
        for cell in cells
        for output in cell.outputs
        if output.output_type == "error"
    ]


@each_chapter
def test_a_chapter_with_its_outputs_is_light(path):
    assert path.stat().st_size <= MAX_BYTES


@each_chapter
def test_the_first_code_cell_is_the_one_for_colab(path):
    first = notebooks.code_cells(notebooks.read(path))[0]
    assert first.source == colab_cell.text(), (
        "run book/tools/colab_cell.py and book/tools/execute.py"
    )
    assert first.outputs == []


@each_chapter
def test_each_definition_in_a_library_cell_is_the_librarys_own(path):
    cells = library_cells(path)
    assert cells, "a chapter builds something of the library"
    for file, text in cells:
        library = definitions((ROOT / file).read_text(encoding="utf-8"))
        for name, node in definitions(text).items():
            assert name in library, f"{file} does not define {name}"
            assert ast.dump(node) == ast.dump(library[name]), (
                f"{name} differs: run book/tools/sync_cells.py"
            )


@each_chapter
def test_library_cells_hold_the_librarys_text_and_no_imports(path):
    for file, text in library_cells(path):
        assert (
            sync_cells.sync(text, (ROOT / file).read_text(encoding="utf-8"), file)
            == text.rstrip()
        )
        assert not [
            node
            for node in ast.parse(text).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "minilib"))
)
def test_public_definitions_name_their_chapter_and_are_built_there_and_nowhere_else(
    path,
):
    written = {int(chapter.name[:2]) for chapter in CHAPTERS}
    file, where = path.relative_to(ROOT).as_posix(), built()
    public = {
        n: node
        for n, node in definitions(path.read_text(encoding="utf-8")).items()
        if not n.startswith("_")
    }
    chapters = {name: chapter_of(node) for name, node in public.items()}
    nameless = [
        name
        for name, chapter in chapters.items()
        if chapter is None and path.stem not in FREE
    ]
    assert not nameless, (
        f"{file}: no chapter ('Chapter 07.') in the docstrings of {', '.join(nameless)}"
    )
    for name, chapter in chapters.items():
        assert where.get((file, name), set()) == {chapter} & written, (
            f"{name} is of chapter {chapter} only"
        )


def test_the_modules_that_teach_are_there():
    assert {
        "audio",
        "diffusion",
        "guidance",
        "vae",
        "gpt",
        "unet",
        "audioldm2",
        "loop",
        "stages",
        "runs",
    } <= {p.stem for p in MODULES}


def test_a_definition_that_differs_in_a_docstring_is_seen():
    module = 'def f(x):\n    """One."""\n    return x\n'
    cell = '# minilib/m.py\ndef f(x):\n    """Two."""\n    return x'
    assert ast.dump(definitions(cell)["f"]) != ast.dump(definitions(module)["f"])
    assert (
        sync_cells.sync(cell, module, "minilib/m.py")
        == "# minilib/m.py\n" + module.rstrip()
    )
