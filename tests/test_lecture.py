"""Every point of the lecture that the course grew from is explained and shown.

The lecture is *Unified Model for Voice and Audio Generation (Part 2)*. Point 17 has the
anchor `(lecture-17)=` in the chapter that owns it, above the heading of a section with
prose and with a cell that asserts something.
"""

import re

import notebooks
import pytest

# What the point says, in short, and the chapter that owns it.
POINTS = {
    1: ("sound made discrete, or kept continuous", "19"),
    2: ("one language model for all tasks", "20"),
    3: ("long sequences: AR and NAR, fewer tokens, other transformers", "20"),
    4: ("a language model and diffusion, joined by the LOA", "02"),
    5: ("regeneration learning: H = G∘M, and H′ = A∘G", "02"),
    6: ("AudioMAE makes the LOA", "09"),
    7: ("FLAN-T5", "11"),
    8: ("CLAP: two towers, symmetric cross-entropy", "10"),
    9: ("the phoneme encoder, and espeak", "11b"),
    10: ("ImageBind: seven senses, the image at the centre", "12"),
    11: ("image to audio with no pairs of both", "12"),
    12: ("LanguageBind: language at the centre", "12"),
    13: ("GPT-2 and its conditions, projected to one width", "13"),
    14: ("what goes in, task by task", "17"),
    15: ("regression, MSE, teacher forcing", "13"),
    16: ("the latent diffusion model as a module", "14"),
    17: ("the VAE: perceptual compression, KL and VQ", "07"),
    18: ("why both the AudioMAE and the VAE features", "02"),
    19: ("DDPM in outline", "03"),
    20: ("the forward process", "03"),
    21: ("the backward process", "04"),
    22: ("both forms of the ELBO", "04"),
    23: ("are the weights negligible over noise levels?", "05"),
    24: ("the lemma: the posterior is Gaussian", "04"),
    25: ("four assumptions, three forms", "05"),
    26: ("diffusion, latent, conditional; time; cross-attention", "14"),
    27: ("classifier-free guidance", "15"),
    28: ("the stages of training, and the switch", "16"),
    29: ("inference, stage by stage", "16"),
    30: ("what others do: TANGO and its rivals", "21"),
    31: ("any to any", "25"),
}
MIN_WORDS = 40
CHAPTERS = {notebooks.number(path): path for path in notebooks.chapters()}


def section(cells: list, anchor: str) -> tuple[str, str] | None:
    """The prose and the code of the section under an anchor, to the next heading of
    the same or a higher level; None if the anchor is not there.
    """
    prose, code, level = [], [], None
    for cell in cells:
        if cell.cell_type == "code":
            if level:
                code.append(cell.source)
            continue
        lines = cell.source.split("\n")
        for i, line in enumerate(lines):
            heading = re.match(r"(#+) ", line)
            if anchor in lines[max(0, i - 3) : i] and heading and not level:
                level = len(heading[1])
            elif level and heading and len(heading[1]) <= level:
                return "\n".join(prose), "\n".join(code)
            elif level:
                prose.append(line)
    return ("\n".join(prose), "\n".join(code)) if level else None


@pytest.mark.parametrize("point", POINTS)
def test_a_point_of_the_lecture_is_explained_and_shown_where_it_belongs(point):
    says, chapter = POINTS[point]
    if chapter not in CHAPTERS:
        pytest.skip(f"still missing: point {point}, {says}: chapter {chapter}")
    cells = notebooks.read(CHAPTERS[chapter]).cells
    found = section(cells, f"(lecture-{point:02d})=")
    assert found, f"chapter {chapter} has no section (lecture-{point:02d})=: {says}"
    prose, code = found
    assert len(prose.split()) >= MIN_WORDS, f"hardly any prose on: {says}"
    assert re.search(r"^\s*assert ", code, re.MULTILINE), f"nothing checks: {says}"


def test_every_anchor_is_one_of_a_point_and_stands_in_the_chapter_that_owns_it():
    for chapter, path in CHAPTERS.items():
        text = "\n".join(cell.source for cell in notebooks.read(path).cells)
        for point in re.findall(r"^\(lecture-(\d\d)\)=$", text, re.MULTILINE):
            assert POINTS[int(point)][1] == chapter


def test_a_section_ends_where_the_next_of_its_level_begins():
    def cell(kind, source):
        return notebooks.nbformat.from_dict({"cell_type": kind, "source": source})

    cells = [
        cell("markdown", "## One\nno"),
        cell("markdown", "(lecture-01)=\n## Two\nyes"),
        cell("code", "a"),
        cell("markdown", "### Within\nyes too\n## Three\nno"),
        cell("code", "b"),
    ]
    assert section(cells, "(lecture-01)=") == ("yes\n### Within\nyes too", "a")
    assert section(cells, "(lecture-02)=") is None
