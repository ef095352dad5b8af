"""Make the gallery: captions that training never had, what the shipped weights make of
them, and a judge's verdict.

    python book/tools/gallery.py             write book/gallery.md
    python book/tools/gallery.py --check     only say if it was made with other weights,
                                             and exit with 1 then

Captions are the first of the test split, one of each class as long as there are new
ones, and sound number i has seed i: nothing is chosen by ear.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import math
import re
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minilib import judges, show
from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.detectors import nearest
from minilib.soundworld import CLASSES, INSTRUMENTS, Clip, Event, SoundWorld
from minilib.soundworld.scene import LOUDNESSES, PEAKS, PITCHES, SPEEDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "book" / "gallery.md"
WEIGHTS = ROOT / "data" / "weights" / "tiny"
JUDGE = ROOT / "data" / "weights" / "judges" / "judge"
KINDS = {  # heading: how many, and the world they come from
    "One event": (10, {"pairs": 0.0}),
    "Two events in order": (7, {"pairs": 1.0}),
    "Tunes": (7, {"music": 1.0}),
}
INTRODUCTION = """\
# Gallery

This is what the small weights that come with this book make of {n} captions that they
never saw in training. No caption and no sound was chosen by ear: the captions are the
first in SoundWorld's `test` split that bring in a new kind of sound, and sound number
*i* has seed *i*. So some are failures. To make one of them again, or any other:

```
minilib generate "{caption}" --seed 0
```

Under each sound is the verdict of the judges of chapter 17: a small classifier of kinds
of sound, trained separately from everything it judges, and closed-form detectors of
pitch, number of strokes, speed and loudness. When a caption names two events, each half
of the sound is judged on its own. **{right} of {n} are right in every respect.** The
same judges, over hundreds of captions, give the numbers in the data card
(`data/README.md`).

The page is written by `python book/tools/gallery.py`.
"""


def chosen() -> Iterator[tuple[str, Clip]]:
    """The clips of the gallery, each under its heading."""
    for heading, (n, world) in KINDS.items():
        clips, seen = SoundWorld("test", **world), set()
        new = (
            i
            for i in count()
            if seen.isdisjoint(event.name for event in clips.scene(i).events)
        )
        for i in islice(new, n):
            seen |= {event.name for event in clips.scene(i).events}
            yield heading, clips[i]


def verdict(
    judge: Classifier, wave: Tensor, events: tuple[Event, ...]
) -> tuple[list[str], list[str]]:
    """What is right and what is wrong with a sound (N,) of these events, in words."""
    if len(events) == 2:
        halves = wave[: len(wave) // 2 * 2].unflatten(0, (2, -1))
        answers = [kind(judge, half, event.name) for half, event in zip(halves, events)]
        answers = [
            (good, f"{place} {said}")
            for place, (good, said) in zip(("first", "then"), answers)
        ]
    else:
        answers = [kind(judge, wave, events[0].name), *attributes(wave, events[0])]
    return [said for good, said in answers if good], [
        said for good, said in answers if not good
    ]


def kind(judge: Classifier, wave: Tensor, name: str) -> tuple[bool, str]:
    """Whether the classifier hears the class in a sound (N,), and what it hears."""
    found = judge.config.classes[int(judge.hear(wave[None]))]
    return found == name, found if found == name else f"{found}, asked for {name}"


def attributes(wave: Tensor, event: Event) -> Iterator[tuple[bool, str]]:
    """What the detectors find in a sound (N,), and whether it is what the event has."""
    heard, right = judges.heard(wave, event), judges.answers(wave, event)
    words = {"loudness": LOUDNESSES[nearest(heard["peak"], list(PEAKS.values()))]}
    if "pitch" in right:
        words["pitch"] = word(
            heard["f0"], CLASSES[event.name].pitch, PITCHES, "{:.0f} Hz"
        )
    if "count" in right:
        words["count"] = str(heard["count"])
    for name in ("speed", "tempo"):
        if name in right:
            unit = (
                "{:.1f} beats a second"
                if event.name in INSTRUMENTS
                else "{:.1f} a second"
            )
            words[name] = word(
                heard["rate"], judges.speed_levels(event.name), SPEEDS, unit
            )
    for name, said in words.items():
        wanted = getattr(event, {"tempo": "speed"}.get(name, name))
        found = f"{'strokes' if name == 'count' else name} {said}"
        yield (True, found) if right[name] else (False, f"{found}, asked for {wanted}")


def word(
    value: float, levels: tuple[float, ...], names: tuple[str, ...], unit: str
) -> str:
    """The name of the nearest level, with the measured value."""
    return (
        "not heard"
        if math.isnan(value)
        else f"{names[nearest(value, levels)]} ({unit.format(value)})"
    )


def item(
    number: int, clip: Clip, wave: Tensor, right: list[str], wrong: list[str]
) -> str:
    """One sound of the page: caption, player, spectrogram and verdict, in one line of
    HTML.
    """
    said = (
        f"<strong>Wrong:</strong> {'; '.join(map(html.escape, wrong))}."
        if wrong
        else ""
    )
    said += f" Right: {'; '.join(map(html.escape, right))}." if right else ""
    mark = "wrong" if wrong else "right"
    return (
        f'<div class="sound-card" '
        f'data-verdict="{mark}">{show.sound(wave, clip.caption).html}'
        f"<p>{said.strip()} <small>Seed {number}.</small></p></div>"
    )


def fingerprint() -> str:
    """The first digits of a checksum over the weights."""
    digest = hashlib.sha256()
    for path in sorted(WEIGHTS.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def page() -> str:
    """Generate and judge all sounds, and lay them out."""
    pipe, judge = (
        AudioLDM2.from_pretrained(WEIGHTS),
        Classifier.from_pretrained(JUDGE, dtype=torch.float32),
    )
    clips, sections, n_right = list(chosen()), {}, 0
    for number, (heading, clip) in enumerate(tqdm(clips, desc="gallery", unit="sound")):
        wave = pipe(clip.caption, seed=number, progress=False)[0]
        right, wrong = verdict(judge, wave, clip.scene.events)
        sections.setdefault(heading, []).append(item(number, clip, wave, right, wrong))
        n_right += not wrong
    head = INTRODUCTION.format(n=len(clips), caption=clips[0][1].caption, right=n_right)
    parts = [head, f"<!-- weights {fingerprint()} -->\n"]
    for heading, items in sections.items():
        parts += [f"## {heading}\n", '<div class="gallery">', *items, "</div>\n"]
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check that it belongs to the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if the page is stale",
    )
    if parser.parse_args().check:
        made = re.search(r"<!-- weights (\w+) -->", PAGE.read_text(encoding="utf-8"))
        if made is None or made[1] != fingerprint():
            print(
                "book/gallery.md was made with other weights: run python "
                "book/tools/gallery.py"
            )
            return 1
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
