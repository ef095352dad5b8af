"""Chapters and library are one, and chapters come with their outputs."""

import ast
import re
from pathlib import Path

import colab_cell
import course_map
import execute
import notebooks
import pytest
import sync_cells
import yaml

ROOT = Path(__file__).parents[1]
CHAPTERS = notebooks.chapters()
MAX_BYTES = 1_200_000  # of a notebook with its outputs
MAX_LINES = 300  # of the library that one chapter builds
COLUMNS = 88  # as many as the page shows
USE_ONLY = {"02", "16b", "18", "18b"}  # chapters that build nothing of the library

# The modules that teach: what is tagged "Chapter 07." stands in them alone.
TEACH = {
    "audio", "diffusion", "guidance", "layers", "conditions", "quantise", "vae",
    "vocoder", "discriminators", "audiomae", "clap", "tokenizer", "text", "phonemes",
    "bind", "frechet", "transformer", "gpt", "codec", "codec_lm", "unet",
    "codec_diffusion", "classifier", "audioldm2",
    "training", "metrics", "chain", "peers",
}  # fmt: skip
FILES = sorted((ROOT / "minilib").rglob("*.py"))

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


def built() -> dict[tuple[str, str], set[str]]:
    """(module, name) -> the chapters in whose cells it is defined."""
    where = {}
    for path in CHAPTERS:
        for file, text in library_cells(path):
            for name in definitions(text):
                where.setdefault((file, name), set()).add(notebooks.number(path))
    return where


def tagged() -> dict[tuple[str, str], str]:
    """(module, name) -> the chapter that its docstring names."""
    return {
        (path.relative_to(ROOT).as_posix(), name): chapter
        for path in FILES
        for name, (chapter, _) in sync_cells.tags(
            path.read_text(encoding="utf-8")
        ).items()
    }


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
    assert path.stat().st_size <= MAX_BYTES == execute.MAX_BYTES


@each_chapter
def test_the_first_code_cell_is_the_one_for_colab(path):
    first = notebooks.code_cells(notebooks.read(path))[0]
    assert first.source == colab_cell.text(), (
        "run book/tools/colab_cell.py and book/tools/execute.py"
    )
    assert first.outputs == []


# ---- chapter and library are one


@each_chapter
def test_each_definition_in_a_library_cell_is_the_librarys_own(path):
    for file, text in library_cells(path):
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


@each_chapter
def test_a_chapter_builds_something_of_the_library_or_is_one_that_only_uses_it(path):
    builds_nothing = not library_cells(path)
    assert builds_nothing == (notebooks.number(path) in USE_ONLY)


def test_what_is_tagged_is_built_in_its_chapter_and_nothing_else_is_built_anywhere():
    written = {notebooks.number(path) for path in CHAPTERS}
    due = {what: {chapter} for what, chapter in tagged().items() if chapter in written}
    assert built() == due


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_tag_names_a_chapter_of_the_course_in_a_module_that_teaches(path):
    chapters = {n for part in course_map.PARTS.values() for n in part} - USE_ONLY
    module = path.relative_to(ROOT / "minilib").parts[0].removesuffix(".py")
    tags = sync_cells.tags(path.read_text(encoding="utf-8"))
    assert {chapter for chapter, _ in tags.values()} <= chapters
    assert not tags or module in TEACH, f"{path.name} has tags: {', '.join(tags)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_tag_stands_unbroken_and_belongs_to_a_definition_at_the_top_level(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bChapters?\s*$", text, re.MULTILINE)
    assert len(sync_cells.TAG.findall(text)) == len(sync_cells.tags(text))


def test_no_chapter_has_more_of_the_library_to_show_than_a_reader_can_take_in():
    lines = {n: sum(x.values()) for n, x in sync_cells.lines_of_library().items()}
    assert {"01", "06", "07", "11", "11b", "13", "14"} <= set(lines)
    too_long = {chapter: n for chapter, n in lines.items() if n > MAX_LINES}
    assert not too_long, "see book/tools/sync_cells.py --lines"


def test_the_modules_that_teach_are_there():
    there = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert {
        "audio", "diffusion", "guidance", "vae", "gpt", "unet", "audioldm2", "training"
    } <= there & TEACH  # fmt: skip


# ---- the page shows 88 columns


def test_no_line_of_code_is_wider_than_the_page():
    sources = {
        f"{path.relative_to(ROOT)}": path.read_text(encoding="utf-8")
        for folder in ("minilib", "tests", "book/tools", "book/effects")
        for path in (ROOT / folder).rglob("*.py")
    }
    for path in CHAPTERS:
        for i, cell in enumerate(notebooks.code_cells(notebooks.read(path)), 1):
            sources[f"{path.name}, code cell {i}"] = cell.source
    assert len(sources) > 300
    wide = [
        f"{where}, line {i}: {len(line)}"
        for where, text in sources.items()
        for i, line in enumerate(text.split("\n"), 1)
        if len(line) > COLUMNS
    ]
    assert not wide, "\n".join(wide)


# ---- these tests see what they should


def test_a_definition_that_differs_in_a_docstring_is_seen():
    module = 'def f(x):\n    """One."""\n    return x\n'
    cell = '# minilib/m.py\ndef f(x):\n    """Two."""\n    return x'
    assert ast.dump(definitions(cell)["f"]) != ast.dump(definitions(module)["f"])
    assert (
        sync_cells.sync(cell, module, "minilib/m.py")
        == "# minilib/m.py\n" + module.rstrip()
    )


def test_tags_are_counted_with_decorators_and_docstring_and_without_blank_lines():
    module = (
        '"""Chapter 03 builds this."""\n\n'
        '@cache\ndef f(x):\n    """One.\n\n    Chapter 11b.\n    """\n\n'
        "    return x\n\n\n"
        'class A:\n    """Two. Chapter 07."""\n\n    def g(self):\n'
        '        """Of chapter 08."""\n\n\n'
        'def h():\n    """Of chapter 09, and of Chapter 12.5, but untagged."""\n'
    )
    assert sync_cells.tags(module) == {"f": ("11b", 6), "A": ("07", 4)}
