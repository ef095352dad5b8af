"""The front matter and the tools of the book: links, maps, notation, glossary, the
address, the cell for Colab.
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path

import colab_cell
import course_map
import execute
import gallery
import nbformat
import notebooks
import opening
import page
import pytest
import sync_cells
import torch
import yaml

from minilib import cli, peers
from minilib.classifier import Classifier
from minilib.soundworld import SoundWorld

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PAGES = sorted(ROOT.glob("book/*.md"))
SOURCES = [
    *PAGES,
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data/README.md",
    *notebooks.chapters(),
]


def names_in_the_library() -> set[str]:
    """Every name that minilib's code uses: of functions, classes, arguments, variables,
    attributes.
    """
    names = set()
    for path in (ROOT / "minilib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {
                getattr(node, field, None) for field in ("id", "arg", "attr", "name")
            }
    return names


# ---- pages


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_of_the_repository_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(
            c.source for c in notebooks.read(path).cells if c.cell_type == "markdown"
        )
    targets = re.findall(r"\]\(([^)\s#]+)", text) + re.findall(
        r'<a href="([^"#]+)"', text
    )
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        # the map is HTML and links to built pages
        source = re.sub(r"\.html$", ".ipynb", target)
        assert (path.parent / source).exists(), (
            f"{path.name} links to {target}, which is not there"
        )


def test_the_readme_has_a_row_for_each_peer_and_says_what_ships():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = r"^\| `(\w+)` \|(?: [^|]+ \|){2} ([^|]+) \| [^|]+ \|$"
    rows = re.findall(row, readme, re.M)
    assert sorted(name for name, _ in rows) == sorted(peers.PEERS)
    for name, ship in rows:
        folder = cli.place_of(f"peers/{name}")
        assert folder.is_dir() == (ship != "none"), name
        has = (folder / "pipeline.json").is_file()
        assert has == (ship.startswith(("a pipeline", "a codec"))), name


def test_nobody_is_told_to_install_the_other_minilib_that_pypi_has():
    for path in [*SOURCES, *ROOT.glob("minilib/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install [\\\"']*minilib\b", text), path


def test_the_maps_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["course_map.py", "--check"])
    assert course_map.main() == 0, (
        f"run book/tools/course_map.py: {capsys.readouterr()}"
    )


def test_the_map_links_written_chapters_and_marks_the_others():
    svg = course_map.draw({"07": "07.html"})
    assert svg.count('href="07.html"') == 2  # the encoder and the decoder of the VAE
    assert svg.count('class="box written"') == 2 and 'fill="none"' in svg
    later = re.findall(r'<g class="box later">.*?</g>', svg)
    assert len(later) == len(course_map.BOXES) - 2 and ">08<" in "".join(later)
    drawn = {number for box in course_map.BOXES for number in box.chapters}
    assert drawn <= {number for part in course_map.PARTS.values() for number in part}
    numbers = [number for part in course_map.PARTS.values() for number in part]
    assert numbers == sorted(numbers) and len(numbers) == 29
    assert [n for n in numbers if len(n) > 2] == ["11b", "16b", "18b", "20b"]
    assert [n for n in numbers if len(n) == 2] == [f"{n:02}" for n in range(1, 26)]


def test_a_map_shows_its_own_chapter_in_colour_and_phonemes_have_one():
    svg = course_map.draw({"11": "11.html"}, "11b")
    assert "lit: Phonemes" in svg and '<g class="box lit">' in svg
    assert svg.count("#fec287") == 1 and 'aria-label="T5: chapter 11, Words' in svg
    assert "lit: the whole map" in course_map.draw({}, "16b")


def test_the_lists_of_chapters_link_what_the_table_of_contents_names(
    monkeypatch, tmp_path
):
    (tmp_path / "_toc.yml").write_text(
        "parts: [{chapters: [{file: book/map}, {file: chapters/11b_phonemes}, "
        "{file: chapters/12_binding_spaces.ipynb}]}]"
    )
    written = course_map.written(tmp_path)
    assert written == {
        "11b": "chapters/11b_phonemes", "12": "chapters/12_binding_spaces",
    }  # fmt: skip
    monkeypatch.setattr(course_map, "written", lambda: written)
    name = "11b Phonemes: espeak and VITS's encoder"
    assert f"- **[{name}](../chapters/11b_phonemes.ipynb)**" in course_map.chapters(
        "../"
    )
    assert f"11 Words: tokens and T5 · [{name}](" in course_map.contents("")
    assert "- [16b What regeneration buys, and when" in course_map.chapters("")


def test_each_written_chapter_has_the_title_of_the_map():
    for number, file in course_map.written().items():
        first = notebooks.read(ROOT / f"{file}.ipynb").cells[0].source.splitlines()[0]
        assert first == f"# {number} {course_map.title(number)}"


def test_every_name_in_the_notations_code_column_is_in_the_library():
    rows = re.findall(
        r"^\| \$.*\|$",
        (ROOT / "book/notation.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows
    ]
    assert len(cells) > 20 and {len(row) for row in cells} == {4}
    unknown = {
        name for row in cells for name in re.findall(r"`(\w+)`", row[2])
    } - names_in_the_library()
    assert not unknown, (
        f"the notation page names what minilib does not: {sorted(unknown)}"
    )
    assert all(re.fullmatch(r"\d\d[a-z]?", row[3]) for row in cells)


def test_every_glossary_entry_has_an_english_and_a_chinese_name_and_an_explanation():
    text = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
    entries = [
        e
        for block in re.findall(r"```\{glossary\}\n(.*?)```", text, re.DOTALL)
        for e in block.split("\n\n")
    ]
    assert len(entries) > 30
    for entry in entries:
        english, chinese, *explanation = entry.strip("\n").splitlines()
        assert english.isascii() and re.search(r"[\u4e00-\u9fff]", chinese), entry
        assert explanation and all(line.startswith("  ") for line in explanation), entry


def test_the_bibliographys_keys_are_unique_and_arxiv_numbers_well_formed():
    text = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)
    assert len(keys) == len(set(keys)) > 20
    assert all(
        re.fullmatch(r"\d{4}\.\d{4,5}", n)
        for n in re.findall(r"eprint = \{(.*?)\}", text)
    )


# ---- the address


def test_the_address_of_the_repository_stands_in_the_config_alone():
    url = CONFIG["repository"]["url"]
    assert bool(url) == bool(CONFIG["launch_buttons"]["colab_url"]), (
        "both or neither: the theme fails otherwise"
    )
    if url:
        name = url.split("//")[-1].strip("/")
        for path in [p for p in SOURCES if p.suffix == ".md"] + sorted(
            ROOT.glob("minilib/**/*.py")
        ):
            assert name not in path.read_text(encoding="utf-8"), (
                f"{path} holds the repository's address"
            )


@pytest.mark.parametrize(
    "module, does", [({}, []), ({"google.colab": None}, ["git clone", "pip install"])]
)
def test_the_colab_cell_installs_on_colab_and_does_nothing_elsewhere(
    monkeypatch, tmp_path, module, does
):
    ran = []
    monkeypatch.setattr(colab_cell, "address", lambda: "https://example.org/course")
    monkeypatch.setattr(
        "subprocess.run", lambda command, check: ran.append(" ".join(command))
    )
    monkeypatch.setattr("os.chdir", lambda folder: None)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in module:
        monkeypatch.setitem(sys.modules, name, None)
    exec(colab_cell.text().replace("/content/course", str(tmp_path / "course")), {})
    assert len(ran) == len(does) and all(
        part in line.replace("-m pip", "pip") for part, line in zip(does, ran)
    )


def test_the_page_leaves_the_colab_cell_out_and_tags_are_brought_up_to_date(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# 01"),
        nbformat.v4.new_code_cell(colab_cell.text(), metadata={"tags": ["hide-cell"]}),
        nbformat.v4.new_code_cell("x = 1"),
    ]
    notebooks.write(tmp_path / "01_a.ipynb", notebook)
    del notebook.cells[1]
    notebooks.write(tmp_path / "02_b.ipynb", notebook)
    colab_cell.main()
    for path in notebooks.chapters():
        cells = notebooks.code_cells(notebooks.read(path))
        assert [cell.source for cell in cells] == [colab_cell.text(), "x = 1"]
        assert cells[0].metadata["tags"] == ["remove-cell"]


# ---- the gallery


def test_the_gallery_was_made_with_the_weights_that_ship(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--check"])
    assert gallery.main() == 0, capsys.readouterr().out


def test_the_gallery_has_a_player_a_picture_a_verdict_and_a_seed_for_each_caption():
    page = gallery.PAGE.read_text(encoding="utf-8")
    clips = list(gallery.chosen())
    assert len(clips) == 24 and len({clip.caption for _, clip in clips}) == 24
    cards = re.findall(r'<div class="sound-card".*?</p></div>', page)
    assert len(cards) == 24
    for number, ((heading, clip), card) in enumerate(zip(clips, cards, strict=True)):
        assert (
            f"## {heading}" in page
            and clip.caption in card
            and f"Seed {number}." in card
        )
        assert (
            card.count("<audio") == card.count("<img") == 1
            and 'alt="Mel spectrogram of' in card
        )
        assert ("Wrong:" in card) == ('data-verdict="wrong"' in card)
    n_right = sum('data-verdict="right"' in card for card in cards)
    assert f"**{n_right} of 24 are right in every respect.**" in page
    assert len(page) < 1_500_000


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return Classifier.from_pretrained(
        ROOT / "data/weights/judges/judge", dtype=torch.float32
    )


def test_the_gallery_finds_nothing_wrong_with_clean_renders(judge):
    for _, clip in gallery.chosen():
        right, wrong = gallery.verdict(judge, clip.wave, clip.scene.events)
        assert right and not wrong, f"{clip.caption}: {wrong}"


def test_the_gallery_says_what_is_wrong(judge):
    world = SoundWorld("test", pairs=0.0)
    bell = next(
        clip for i in range(200) if (clip := world[i]).scene.events[0].name == "bell"
    )
    event = bell.scene.events[0]
    loud = dataclasses.replace(event, loudness="loud")
    _, wrong = gallery.verdict(judge, 0.15 / event.peak * bell.wave, (loud,))
    assert wrong == ["loudness quiet, asked for loud"]
    other = next(
        clip for i in range(200) if (clip := world[i]).scene.events[0].name == "rain"
    )
    _, wrong = gallery.verdict(judge, other.wave, (event,))
    assert "rain, asked for bell" in wrong


# ---- the page


CHAPTER = """\
# {number} A chapter

$$a = {number}$$ (eq-{number}-a)

$$b = 2$$ (eq-{number}-b)

```{{exercise}} A task
:label: ex-{number}-task
Read {{eq}}`eq-11b-b` and {{eq}}`eq-{number}-b`, of {{term}}`noise`.
```

See {{ref}}`ex-11b-task`.

```{{figure}} mark.svg
:name: fig-{number}-mark
A mark, 标记.
```

And {{numref}}`fig-06-mark`.
"""


@pytest.fixture(scope="module")
def small_book(tmp_path_factory) -> Path:
    """A book of two chapters and a glossary, built with the extension; its pages."""
    from sphinx.application import Sphinx

    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for folder in ("chapters", "book"):
        (source / folder).mkdir()
    for number in ("06", "11b"):
        notebook = nbformat.v4.new_notebook()
        text = CHAPTER.format(number=number)
        notebook.cells = [nbformat.v4.new_markdown_cell(text)]
        notebooks.write(source / f"chapters/{number}_a.ipynb", notebook)
    (source / "chapters/mark.svg").write_text(opening.mark())
    glossary = "# Glossary\n\n```{glossary}\nnoise\n噪声\n  Draws.\n```\n"
    (source / "book/glossary.md").write_text(glossary)
    (source / "book/welcome.md").write_text(
        "# Two\n\n<!-- opening -->\n\n```{toctree}\n../chapters/06_a\n"
        "../chapters/11b_a\nglossary\n```\n"
    )
    config = {
        "project": "Two",
        "html_title": "Two",
        "html_theme": "sphinx_book_theme",
        "root_doc": "book/welcome",
        "extensions": ["myst_nb", "sphinx_exercise", "page"],
        "myst_enable_extensions": ["dollarmath"],
        "numfig": True,
        "numfig_format": {"figure": "Figure %s"},
        "suppress_warnings": ["myst.header"],
        "exclude_patterns": [],
    }
    arguments = {"confdir": None, "status": None, "warningiserror": True}
    Sphinx(
        source, outdir=out, doctreedir=out / ".doctrees", buildername="html",
        confoverrides=config, **arguments,
    ).build()  # fmt: skip
    return out


def test_everything_is_numbered_by_the_files_name_wherever_it_stands(small_book):
    first = (small_book / "chapters/06_a.html").read_text(encoding="utf-8")
    second = (small_book / "chapters/11b_a.html").read_text(encoding="utf-8")
    for text, file, number in ((first, "06", "6"), (second, "11b", "11b")):
        assert re.findall(r'class="eqno">\(([^<]*)\)<', text) == [
            f"{number}.1", f"{number}.2",
        ]  # fmt: skip
        assert f'"caption-number">Exercise {number}.1 <' in text
        assert f'"caption-number">Figure {number}.1 <' in text
        # links show the same numbers, also from elsewhere
        assert re.search(r'href="[^"]*#equation-eq-11b-b">\(11b\.2\)<', text)
        assert f'href="#equation-eq-{file}-b">({number}.2)<' in text
        assert re.search(r'href="[^"]*#ex-11b-task">[^.]*Exercise 11b\.1', text)
        assert re.search(r'href="[^"]*#fig-06-mark"><span[^>]*>Figure 6\.1<', text)


def test_a_page_brings_what_its_links_to_terms_and_far_equations_lead_to(small_book):
    text = (small_book / "chapters/06_a.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<template id="previews">(.*?)</template>', text)
    notes = dict(re.findall(r'<div data-for="([^"]*)">(.*?)</div>', found))
    assert "<strong>noise" in notes["../book/glossary.html#term-noise"]
    assert "Draws." in notes["../book/glossary.html#term-noise"]
    far = notes["11b_a.html#equation-eq-11b-b"]
    assert "(11b.2), 11b A chapter" in far and "b = 2" in found
    assert not [link for link in notes if link.startswith("#")]


def test_a_page_has_a_description_one_title_and_its_chinese_marked(small_book):
    text = (small_book / "chapters/06_a.html").read_text(encoding="utf-8")
    assert '<meta name="description" content="Sampling. How does noise' in text
    assert 'A mark, <span lang="zh">标记</span>.' in text
    welcome = (small_book / "book/welcome.html").read_text(encoding="utf-8")
    assert "<title>Two</title>" in welcome and page.DESCRIPTION in welcome
    assert welcome.count('<svg class="opening"') == 1 and "thebe" not in welcome


def test_chinese_is_marked_in_text_alone():
    text = '<p title="噪声">噪声 a 方差、均值</p><pre>噪声</pre>'
    text += "<svg><text>噪</text></svg>噪"
    marked = page.in_chinese(text)
    assert marked.count('<span lang="zh">') == 3 and '<p title="噪声">' in marked
    assert '<span lang="zh">方差、均值</span>' in marked and "<pre>噪声</pre>" in marked


def test_a_chapter_before_a_gap_says_which_chapters_are_missing(monkeypatch):
    there = {"01": "a", "03": "b", "04": "c", "18": "d"}
    monkeypatch.setattr(course_map, "written", lambda: there)
    assert page.unwritten_after("chapters/01_a") == "Chapter 02 is not written yet."
    assert page.unwritten_after("chapters/03_b") == ""
    gap = page.unwritten_after("chapters/04_c")
    assert gap == "Chapters 05 to 17 are not written yet."
    assert page.unwritten_after("book/map") == ""


def test_a_chapters_map_becomes_a_drawing_with_links():
    path = notebooks.chapters()[0]
    text = page.with_map(path.read_text(encoding="utf-8"), "01")
    (found,) = page.MAP.findall(text.replace('\\"', '"'))
    assert found == "01" and "data:image/svg+xml" not in text
    drawn = course_map.pipeline("../", "01")
    assert drawn.count("<a class=") == drawn.count('href="../chapters/')
    assert 'class="box lit" href="../chapters/01_sound_as_tensors.html"' in drawn


def test_the_welcome_page_sounds_within_one_click_and_begins_with_two_buttons():
    text = (ROOT / "book/welcome.md").read_text(encoding="utf-8")
    whole = page.with_sounds(text)
    assert whole.count("<audio controls") == 1 == whole.count('class="opening"')
    assert text.count('class="begin"') == 2 and "to come" not in text
    with pytest.raises(IndexError):
        page.with_sounds("<!-- gallery: 99 -->")


def test_plots_tell_the_page_where_their_axes_stand(tmp_path):
    from types import SimpleNamespace

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("axes", "1.00,2.00,3.00,4.00,picture,0,2.56")
    Image.new("P", (70, 30)).save(tmp_path / "a.png", pnginfo=notes)
    Image.new("P", (70, 30)).save(tmp_path / "b.png")
    images = {f"{name}.png": ({"x"}, f"{name}.png") for name in "ab"}
    app = SimpleNamespace(env=SimpleNamespace(images=images), srcdir=tmp_path)
    tag = '<img alt="x" src="../_images/a.png" />'
    assert page.with_axes(app, tag) == (
        '<img loading="lazy" width="70" height="30" '
        'data-axes="1.00,2.00,3.00,4.00,picture,0,2.56" alt="x" '
        'src="../_images/a.png" />'
    )
    assert "data-axes" not in page.with_axes(app, tag.replace("a.png", "b.png"))
    assert page.with_axes(app, tag.replace("a.png", "c.png")).count("=") == 2


def test_links_to_edit_and_report_are_there_once_there_is_an_address():
    from types import SimpleNamespace

    for url in ("", "https://example.org/course"):
        config = SimpleNamespace(html_theme_options={"repository_url": url})
        page.address(None, config)
        buttons = {k: v for k, v in config.html_theme_options.items() if "use_" in k}
        assert set(buttons.values()) == {bool(url)} and len(buttons) == 3
    workflow = (ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"sed -n 's/(.*?)/url=", workflow)
    pattern = pattern.replace("\\(", "(").replace("\\)", ")")
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    found = re.findall(pattern, config, re.MULTILINE)
    assert found == [CONFIG["repository"]["url"]]
    assert "if: needs.address.outputs.url != ''" in workflow


def test_script_and_style_are_ours_small_and_load_nothing():
    config = CONFIG["sphinx"]["config"]
    assert config["html_js_files"] == [["player.js", {"defer": "defer"}]]
    static = ROOT / "book/_static"
    assert sorted(path.name for path in static.iterdir()) == [
        "book.css", "mark.svg", "player.js",
    ]  # fmt: skip
    sizes = {path.name: path.stat().st_size for path in static.iterdir()}
    assert sizes["player.js"] <= 14_000 and sizes["book.css"] <= 20_000
    for name in ("book.css", "player.js"):
        text = (static / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|@import|url\(|fetch\(|import\(", text)
    assert (static / "mark.svg").read_text(encoding="utf-8") == opening.mark()


def test_the_book_says_how_to_cite_it():
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cite["title"].startswith(CONFIG["title"]) and cite["cff-version"] == "1.2.0"
    assert cite["authors"] == [{"name": CONFIG["author"]}]
    assert cite["license"] == ["Apache-2.0", "CC-BY-4.0"]
    assert ("repository-code" in cite) == bool(CONFIG["repository"]["url"])


# ---- the tools


def test_sync_replaces_each_definition_by_name_and_keeps_the_rest():
    function = "@cache\ndef f(x: int) -> int:\n    # why\n    return x"
    parts = ["HOP = 160  # samples", function, "class A:\n    pass", "A.presets = {}"]
    module = "import math\n\n" + "\n\n\n".join(parts) + "\n"
    cell = "HOP = ...\n\n\ndef f(): ...\n\n\nA.presets = ...\nprint(f(HOP))"
    cell = f"# minilib/m.py\n{cell}"
    expected = f"HOP = 160  # samples\n\n\n{function}\n\n\nA.presets = {{}}"
    expected = f"# minilib/m.py\n{expected}\nprint(f(HOP))"
    assert sync_cells.sync(cell, module, "minilib/m.py") == expected
    assert sync_cells.sync(expected, module, "minilib/m.py") == expected


def test_sync_refuses_a_definition_that_the_library_does_not_have():
    with pytest.raises(SystemExit, match="defines g, which minilib/m.py does not"):
        sync_cells.sync(
            "# minilib/m.py\ndef g(): ...", "def f():\n    pass\n", "minilib/m.py"
        )


def test_execute_stores_outputs_and_nothing_that_changes_from_run_to_run():
    notebook = nbformat.v4.new_notebook(metadata={"signed": "yesterday"})
    codes = "x = 20", "print(x + 1)\nx + 2", "import ipywidgets\nipywidgets.Label('a')"
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in codes]
    notebook.cells[0].metadata = {"tags": ["hide-cell"], "collapsed": True}
    execute.run(notebook)
    execute.strip(notebook)
    first, second, third = notebook.cells
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert [o.get("text") or o.data["text/plain"] for o in second.outputs] == [
        "21\n", "22",
    ]  # fmt: skip
    assert (first.outputs, first.metadata) == ([], {"tags": ["hide-cell"]})
    assert second.metadata == {} and [*third.outputs[0].data] == ["text/plain"]
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_chapters_are_chosen_by_number_or_name_in_reading_order(tmp_path, monkeypatch):
    names = [
        "12_binding",
        "11b_phonemes",
        "02_map",
        "11_words",
        "notes",
        "assignment_1",
    ]
    for name in names:
        (tmp_path / f"{name}.ipynb").touch()
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path)
    chosen = lambda *named: [path.stem for path in notebooks.chapters(list(named))]
    assert chosen() == ["02_map", "11_words", "11b_phonemes", "12_binding"]
    assert chosen("11") == ["11_words"] and chosen("11b") == ["11b_phonemes"]
    assert chosen("12", "chapters/11b_phonemes.ipynb") == ["11b_phonemes", "12_binding"]
    assert chosen("1") == ["11_words", "11b_phonemes", "12_binding"]
    with pytest.raises(
        SystemExit, match="No chapter begins with '13'; there are: 02_m"
    ):
        chosen("13")
    assert notebooks.number("chapters/20b_uniaudio.ipynb") == "20b"
    assert notebooks.number("book/map") is None


def test_lines_of_the_library_are_printed_by_chapter(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sync_cells.py", "--lines"])
    assert sync_cells.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[: line.index(":")] for line in lines] == sorted(
        sync_cells.lines_of_library()
    )
    (fourth,) = (line for line in lines if line.startswith("04:"))
    n, posterior, kl = map(int, re.findall(r"\b(\d+)\b", fourth.partition(":")[2]))
    assert n == posterior + kl and "diffusion.posterior" in fourth


@pytest.mark.parametrize(
    "one, other",
    [
        (
            '<audio src="data:audio/mpeg;base64,T2dnUw==">',
            '<audio src="data:audio/mpeg;base64,AAAA">',
        ),
        ('<figure id="sound-0123456789ab">', '<figure id="sound-ba9876543210">'),
        (
            " 50%|#####     | 5/10 [00:01<00:01,  4.90it/s]",
            "100%|##########| 10/10 [00:02<00:00,  4.90it/s]",
        ),
        ("trained in 61.2 s", "trained in 7.9 s"),
        ("<Model at 0x7f3a2b1c9d40>", "<Model at 0x7f0000000000>"),
        ("IntSlider(value=3)", "IntSlider(value=3, layout=Layout())"),
    ],
)
def test_what_differs_from_run_to_run_is_left_out_of_the_comparison(one, other):
    assert sanitise(one) == sanitise(other)


@pytest.mark.parametrize(
    "one, other", [("loss 0.52", "loss 0.53"), ("2.56 s of sound", "2.57 s of sound")]
)
def test_what_means_something_is_compared(one, other):
    assert sanitise(one) != sanitise(other)


def sanitise(text: str) -> str:
    """What nbval makes of an output before it compares."""
    from nbval.plugin import get_sanitize_patterns

    for regex, replace in get_sanitize_patterns(
        (ROOT / "book/tools/sanitize.cfg").read_text(encoding="utf-8")
    ):
        text = re.sub(regex, replace, text)
    return text
