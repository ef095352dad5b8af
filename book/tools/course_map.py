"""Draw the map of the course, and write it wherever it stands: welcome page, map page,
README, chapters.

    python book/tools/course_map.py             rewrite every map
    python book/tools/course_map.py --check     only say which are out of date, and exit
                                                with 1 if any is

A map stands between the lines `<!-- map: KIND -->` and `<!-- end of map -->`, where
KIND is `pipeline` (the boxes of AudioLDM 2, each a link), `chapters` (the list, part by
part) or `contents` (the table in the README). In a chapter it is a Markdown cell that
begins with `<!-- map: lit -->`: the same boxes as a picture, those of this chapter in
colour. Whether a chapter is written is read from _toc.yml.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat
import notebooks
import yaml

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "book/welcome.md", "book/map.md")

PARTS = {
    "I Sound": {
        "01": (
            "Sound as tensors",
            "What is a sound to a network: waveform, spectrogram, mel, and the phase "
            "it drops?",
        ),
        "02": (
            "Regeneration learning: the map of AudioLDM 2",
            "Why go from a caption to a waveform by way of a language?",
        ),
    },
    "II Diffusion": {
        "03": (
            "The forward process",
            "How does noise take a sound apart, so that any step can be jumped to?",
        ),
        "04": (
            "The objective: two ELBOs, one posterior",
            "What is maximised, and why does conditioning on x₀ help?",
        ),
        "05": (
            "Three targets, one loss",
            "Predict the mean, the sound or the noise: why are they one loss?",
        ),
        "06": (
            "Sampling",
            "How does noise become a sound, in a thousand steps or in ten?",
        ),
    },
    "III Representations": {
        "07": (
            "VAE, KL and VQ",
            "How small can a spectrogram be made and still come back?",
        ),
        "08": ("The vocoder", "How does a spectrogram become a waveform again?"),
        "09": (
            "AudioMAE and the Language of Audio",
            "What does a network learn by filling in 80 % of a spectrogram?",
        ),
        "10": ("CLAP", "How do a sentence and a sound come to lie in one space?"),
        "11": (
            "Words: tokens and T5",
            "What does one vector for a sentence lose, and what keeps it?",
        ),
        "11b": (
            "Phonemes: espeak and VITS's encoder",
            "What does spelling hide from a network that has to speak?",
        ),
        "12": (
            "Binding spaces: ImageBind, LanguageBind",
            "How can a picture find a sound it was never paired with?",
        ),
    },
    "IV AudioLDM 2": {
        "13": (
            "GPT-2 that regresses",
            "What becomes of a language model whose next token is a vector?",
        ),
        "14": (
            "Latent diffusion: U-Net, time, cross-attention",
            "How does the denoiser read the time and the conditions?",
        ),
        "15": (
            "Classifier-free guidance",
            "How is a condition made stronger, and what does it cost?",
        ),
        "16": (
            "Training it all: stages and joint fine-tuning",
            "In what order are the parts trained, and what is frozen?",
        ),
        "16b": (
            "What regeneration buys, and when training fails",
            "Is the way by the Language of Audio worth its price, and what goes wrong?",
        ),
        "17": (
            "One set of classes, many tasks, and how to measure them",
            "Effects, music, speech: how good is it, and who says so?",
        ),
        "18": (
            "Full scale: the released weights",
            "What changes when the small becomes the large?",
        ),
        "18b": (
            "Full scale: training beyond one machine",
            "How do many devices train one model, and still the same one?",
        ),
    },
    "V Before and beside": {
        "19": (
            "Codecs: RVQ, HiFi-Codec, FunCodec",
            "How is audio made discrete, and at what price?",
        ),
        "20": (
            "Codec language models: patterns, VALL-E, SpeechX",
            "How do language models speak in codes?",
        ),
        "20b": (
            "Make-A-Voice, MVoice, UniAudio",
            "How do a few language models, or one, learn many voices and tasks?",
        ),
        "21": ("TANGO", "What does an instruction-tuned text encoder bring?"),
        "22": (
            "Make-An-Audio 1 and 2",
            "How are captions made when there are too few?",
        ),
        "23": ("MusicLDM", "How does a model of music learn without copying?"),
        "24": (
            "NaturalSpeech 2",
            "How does diffusion speak, in latents that are almost codes?",
        ),
        "25": (
            "NExT-GPT: any to any",
            "How does a language model come to hear, see and answer in sound?",
        ),
    },
}


@dataclass(frozen=True)
class Box:
    """A box of the pipeline: where it stands in the drawing, and the chapters that
    build it.
    """

    label: str
    chapters: tuple[str, ...]
    x: int
    y: int
    width: int = 108


HEIGHT = 42  # of a box
GREY = "#7b7786"  # seen on white and on black
# Ground, edge and ink of a box. The page's style gives others in the dark.
COLOURS = {
    "written": ("#f3e2f1", "#8c2981", "#37103a"),
    "lit": ("#fec287", "#b5367a", "#2b0a20"),
    "later": ("none", GREY, GREY),
}
SIZE = (480, 568)  # of the drawing: its text is readable on a page 500 pixels wide
BOXES = (
    Box("T5", ("11",), 4, 52),
    Box("CLAP", ("10",), 124, 52),
    Box("Phonemes", ("11b",), 244, 52),
    Box("ImageBind", ("12",), 364, 52),
    Box("GPT-2 regresses the LOA", ("13",), 46, 140, 200),
    Box("AudioMAE", ("09",), 330, 196, 146),
    Box("U-Net", ("14",), 7, 284, 84),
    Box("Diffusion", ("03", "04", "05", "06"), 95, 284, 108),
    Box("Guidance", ("15",), 207, 284, 84),
    Box("VAE, encoder", ("07",), 330, 284),
    Box("VAE, decoder", ("07",), 46, 386, 200),
    Box("Vocoder", ("08",), 46, 476, 200),
    Box("Sound to log-mel", ("01",), 330, 476, 146),
)
FRAME = (1, 278, 296, 54)  # x, y, width, height around what denoises together
PILLS = (  # what flows between the boxes: text, centre, baseline
    ("caption", 120, 18),
    ("phonemes", 300, 18),
    ("picture", 420, 18),
    ("LOA: the Language of Audio", 146, 238),
    ("z₀: a small latent", 146, 364),
    ("log-mel spectrogram", 146, 454),
    ("waveform", 146, 560),
    ("any recording", 403, 560),
)
ARROWS = (  # path, and whether it is walked in training only
    ("M104 24 L76 48", False),
    ("M136 24 L164 48", False),
    ("M300 24 V48", False),
    ("M420 24 V48", False),
    ("M60 94 L100 136", False),
    ("M180 94 L160 136", False),
    ("M300 94 L206 136", False),
    ("M420 94 L244 138", False),
    ("M146 182 V222", False),
    ("M146 244 V274", False),
    ("M20 94 V274", False),  # the U-Net reads T5 too
    ("M146 332 V348", False),
    ("M146 370 V382", False),
    ("M146 428 V438", False),
    ("M146 460 V472", False),
    ("M146 518 V544", False),
    ("M403 544 V522", True),
    ("M386 476 V330", True),
    ("M460 476 V242", True),
    ("M330 217 H250", True),
    ("M330 305 H312 V359 H216", True),
)


def written(root: Path = ROOT) -> dict[str, str]:
    """Chapter number -> file, without its ending, of each chapter in _toc.yml."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [
        entry["file"].removesuffix(".ipynb")
        for part in toc["parts"]
        for entry in part["chapters"]
    ]
    return {
        notebooks.number(file): file
        for file in files
        if file.startswith("chapters/") and notebooks.number(file)
    }


def title(number: str) -> str:
    """The chapter's title."""
    return next(
        chapters[number][0] for chapters in PARTS.values() if number in chapters
    )


def question(number: str) -> str:
    """The question that the chapter answers."""
    return next(
        chapters[number][1] for chapters in PARTS.values() if number in chapters
    )


def every_chapter() -> Iterator[str]:
    """The number of each chapter, written or not, in reading order."""
    for chapters in PARTS.values():
        yield from chapters


def draw(
    pages: dict[str, str], lit: str | None = None, ink: str = "currentColor"
) -> str:
    """The pipeline as one SVG element, one line an element; boxes of chapters in
    `pages` are links to them.

    `ink` colours what stands outside the boxes; the boxes bring their own ground, for
    light pages and dark.
    """
    width, height = SIZE
    x, y, w, h = FRAME
    what = "AudioLDM 2 from a caption to a waveform, box by box"
    if lit:
        boxes = ", ".join(box.label for box in BOXES if lit in box.chapters)
        what += f"; lit: {boxes or 'the whole map'}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="group" aria-label="{what}" '
        'font-family="system-ui, sans-serif" font-size="13" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" '
        'markerHeight="6" orient="auto">'
        f'<path d="M0 0 L6 3 L0 6 z" fill="{GREY}"/></marker></defs>',
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="9" fill="none" '
        f'stroke="{GREY}"/>',
    ]
    for path, training in ARROWS:
        dash = ' stroke-dasharray="4 4"' if training else ""
        lines.append(
            f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.5" '
            f'marker-end="url(#tip)"{dash}/>'
        )
    lines += [
        f'<text x="{x}" y="{y}" fill="{ink}" font-style="italic">{text}</text>'
        for text, x, y in PILLS
    ]
    for box in BOXES:
        lines.append(_draw_box(box, pages, lit))
    return "\n".join([*lines, "</svg>"])


def _draw_box(box: Box, pages: dict[str, str], lit: str | None) -> str:
    """One box, its label, and below it its chapter; a link where that chapter is
    written.
    """
    here = [number for number in box.chapters if number in pages]
    first, last = box.chapters[0], box.chapters[-1]
    where = first if first == last else f"{first}–{last}"
    kind = "lit" if lit in box.chapters else "written" if here else "later"
    fill, stroke, ink = COLOURS[kind]
    dash = ' stroke-dasharray="3 3"' if kind == "later" else ""
    x, y = box.x + box.width // 2, box.y
    shapes = (
        f'<rect x="{box.x}" y="{y}" width="{box.width}" height="{HEIGHT}" rx="7" '
        f'fill="{fill}" stroke="{stroke}"{dash}/>'
        f'<text x="{x}" y="{y + 18}" fill="{ink}" font-weight="600">{box.label}</text>'
        f'<text x="{x}" y="{y + 34}" fill="{ink}" '
        f'font-size="11.5">{where}</text>'
    )
    if not here:
        return f'<g class="box {kind}">{shapes}</g>'
    label = f"{box.label}: chapter {here[0]}, {title(here[0])}"
    return (
        f'<a class="box {kind}" href="{pages[here[0]]}" '
        f'aria-label="{escape(label)}">{shapes}</a>'
    )


def pipeline(base: str, lit: str | None = None) -> str:
    """The drawing as a figure for a page of the book that stands `base` away from the
    root; the boxes of chapter `lit` in colour.
    """
    pages = {number: f"{base}{file}.html" for number, file in written().items()}
    return f'<figure class="pipeline">\n{draw(pages, lit)}\n</figure>'


def chapters(base: str) -> str:
    """Every chapter with its question, part by part; links to those there are."""
    pages, lines = written(), []
    for part, titles in PARTS.items():
        lines += [f"## {part}", ""]
        for number, (name, question) in titles.items():
            name = f"{number} {name}"
            if number in pages:
                name = f"**[{name}]({base}{pages[number]}.ipynb)**"
                lines.append(f"- {name}  \n  {question}")
            else:
                lines.append(f"- [{name}]{{.later}}  \n  [{question}]{{.later}}")
        lines.append("")
    return "\n".join(lines).strip()


def contents(base: str) -> str:
    """The chapters as a table of parts, for the README."""
    pages, lines = written(), ["| part | chapters |", "|---|---|"]
    for part, titles in PARTS.items():
        row = [
            f"[{number} {name}]({base}{pages[number]}.ipynb)"
            if number in pages
            else f"{number} {name}"
            for number, (name, _) in titles.items()
        ]
        lines.append(f"| {part} | {' · '.join(row)} |")
    if any(number not in pages for titles in PARTS.values() for number in titles):
        lines += ["", "Chapters without a link are still to come."]
    return "\n".join(lines)


def picture(lit: str) -> str:
    """The drawing with the boxes of chapter `lit` in colour, as a picture that any
    notebook viewer shows.
    """
    svg = draw({number: "" for number in written()} | {lit: ""}, lit, ink=GREY)
    svg = re.sub(r"</?a\b[^>]*>", "", svg)  # links are dead inside a picture
    alt = re.search(r'aria-label="([^"]*)"', svg)[1]
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<!-- map: lit -->\n<img alt="The map of {alt}" width="480" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def renew_page(text: str, base: str) -> str:
    """The page `text` with each of its maps drawn anew."""
    kinds = {"pipeline": pipeline, "chapters": chapters, "contents": contents}
    return re.sub(
        r"<!-- map: (\w+) -->\n.*?<!-- end of map -->",
        lambda found: (
            f"<!-- map: {found[1]} -->\n{kinds[found[1]](base)}\n<!-- end of map -->"
        ),
        text,
        flags=re.DOTALL,
    )


def renew_chapter(text: str, number: str) -> str:
    """The notebook `text` with its map drawn anew, and every other cell as it was."""
    notebook = nbformat.reads(text, as_version=4)
    found = [
        c
        for c in notebook.cells
        if c.cell_type == "markdown" and c.source.startswith("<!-- map: lit -->")
    ]
    for cell in found:
        cell.source = picture(number)
    return nbformat.writes(notebook) + "\n" if found else text


def main() -> int:
    """Rewrite the maps, or with --check only name those that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit with 1 if a map is out of date",
    )
    check = parser.parse_args().check
    new = {
        ROOT / page: lambda text, page=page: renew_page(text, "../" * page.count("/"))
        for page in PAGES
    }
    for number, file in written().items():
        new[ROOT / f"{file}.ipynb"] = lambda text, number=number: renew_chapter(
            text, number
        )
    stale = []
    for path, renew in new.items():
        if not path.exists():
            continue
        old = path.read_text(encoding="utf-8")
        if renew(old) != old:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(renew(old), encoding="utf-8")
    for path in stale:
        print(
            f"{path}: {'its map is out of date' if check else 'its map was drawn anew'}"
        )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
