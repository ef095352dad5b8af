"""What SoundWorld looks like: a picture of a scene, and the other senses that ImageBind
binds (chapter 12).

A picture shows the class, the place and the count of every event, but never its pitch,
its speed or its loudness, and not which event came first. Video, depth, heat and motion
render the same hidden scene: the video shows the order of two events, the trace of
motion shows when something is struck. All are drawn from the scene's seed, so the same
scene always looks the same, and a held-out scene has a held-out picture.
"""

from __future__ import annotations

import functools
import hashlib
import numbers
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .scene import Event, Scene

SIZE = 32  # pixels of a side
SHARP = 4  # icons are drawn this many times larger, then averaged
MOTION_RATE = 50  # samples of motion in a second
LOOKS = 2  # tells the draws of a picture from those of the noise (0) and caption (1)
SEEN, MOVED = (LOOKS, 0), (LOOKS, 1)

# --------------------------------------------------------------------------------------
# Icons: shapes on a square of 10 by 10, x to the right, y downwards

Shape = tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]

COLOURS = {
    "black": "202028", "white": "f8f8f4", "grey": "8a9099", "silver": "c4ccd4",
    "red": "d8322e", "orange": "ee8322", "gold": "f2b632", "yellow": "fbe14e",
    "brown": "8a5530", "tan": "d8a66a", "green": "46a046", "lime": "9ad04a",
    "teal": "2a9d9a", "blue": "3470c8", "sky": "7cc4f0", "navy": "24386e",
    "purple": "7a48a8", "pink": "f09ab4", "skin": "f0c09a", "wood": "b87840",
}  # fmt: skip


def disc(colour: str, x: float, y: float, rx: float, ry: float = 0.0) -> Shape:
    """A disc, or an ellipse if its radii differ."""
    ry = ry or rx
    return colour, lambda u, v: ((u - x) / rx) ** 2 + ((v - y) / ry) ** 2 <= 1


def solid(colour: str, *corners: tuple[float, float]) -> Shape:
    """A polygon."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        odd = np.zeros(u.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
            if y0 != y1:  # the ray to the right crosses this side
                at = x0 + (v - y0) * (x1 - x0) / (y1 - y0)
                odd ^= ((v < y0) != (v < y1)) & (u < at)
        return odd

    return colour, inside


def box(colour: str, x0: float, y0: float, x1: float, y1: float) -> Shape:
    """A rectangle."""
    return solid(colour, (x0, y0), (x1, y0), (x1, y1), (x0, y1))


def line(colour: str, width: float, *points: tuple[float, float]) -> Shape:
    """A line through points, with round ends."""

    def near(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        found = np.zeros(u.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            dx, dy = x1 - x0, y1 - y0
            t = ((u - x0) * dx + (v - y0) * dy) / max(dx * dx + dy * dy, 1e-9)
            t = t.clip(0, 1)
            found |= np.hypot(u - x0 - t * dx, v - y0 - t * dy) <= width / 2
        return found

    return colour, near


def arc(
    colour: str, width: float, x: float, y: float, r: float, start: float, end: float
) -> Shape:
    """An arc of a circle between two angles in turns, clockwise from the right."""
    turns = 2 * np.pi * np.linspace(start, end, 13)
    points = zip(x + r * np.cos(turns), y + r * np.sin(turns))
    return line(colour, width, *((float(u), float(v)) for u, v in points))


def both(make: Callable[..., Shape], colour: str, *given: float) -> tuple[Shape, Shape]:
    """A disc or box twice, the second mirrored at the middle of the square."""
    mirrored = list(given)
    if make is box:
        mirrored[0], mirrored[2] = 10 - given[2], 10 - given[0]
    else:
        mirrored[0] = 10 - given[0]
    return make(colour, *given), make(colour, *mirrored)


def face(fur: str, ears: tuple[Shape, ...], *features: Shape) -> tuple[Shape, ...]:
    """An animal from the front: ears, head, eyes, and what else it has."""
    eyes = (*both(disc, "white", 3.5, 4.6, 0.9), *both(disc, "black", 3.6, 4.7, 0.5))
    return (*ears, disc(fur, 5, 5.4, 3.9, 3.7), *eyes, *features)


def wave(colour: str, y: float) -> Shape:
    """A line of water."""
    x = np.linspace(0.5, 9.5, 19)
    points = zip(x, y + 0.7 * np.sin(2 * np.pi * x / 4.5))
    return line(colour, 1.1, *((float(u), float(v)) for u, v in points))


CLOUD = (
    disc("silver", 3, 3.6, 2.3), disc("silver", 5.6, 2.8, 2.4),
    disc("silver", 7.6, 3.9, 1.9), box("silver", 2.8, 3.6, 7.8, 5.8),
)  # fmt: skip

ICONS: dict[str, tuple[Shape, ...]] = {
    "alarm": (
        *both(disc, "gold", 2.6, 2.4, 1.6), disc("red", 5, 5.6, 3.7),
        disc("white", 5, 5.6, 2.8), line("black", 0.7, (5, 3.6), (5, 5.6), (6.6, 6.4)),
        line("red", 0.9, (2.6, 8.4), (1.8, 9.5)),
        line("red", 0.9, (7.4, 8.4), (8.2, 9.5)),
    ),
    "applause": (
        line("skin", 1.7, (1.4, 8.6), (3.4, 5.4), (4.6, 3)),
        disc("skin", 3.3, 6, 1.9, 2.3),
        line("skin", 1.7, (8.6, 8.6), (6.6, 5.4), (5.4, 3)),
        disc("skin", 6.7, 6, 1.9, 2.3),
        line("yellow", 0.6, (5, 0.4), (5, 1.6)),
        line("yellow", 0.6, (2.4, 0.8), (3, 2)),
        line("yellow", 0.6, (7.6, 0.8), (7, 2)),
    ),
    "bell": (
        disc("gold", 5, 3.4, 2.6),
        solid("gold", (2.4, 3.4), (7.6, 3.4), (8.9, 8), (1.1, 8)),
        box("orange", 0.9, 7.4, 9.1, 8.4), disc("brown", 5, 9, 0.9),
        disc("orange", 5, 0.9, 0.7),
    ),
    "bird": (
        disc("sky", 4.6, 5.8, 3.4, 2.8), disc("sky", 7, 3.4, 2),
        solid("orange", (8.6, 2.8), (9.9, 3.6), (8.6, 4.2)),
        disc("black", 7.4, 3, 0.45),
        solid("blue", (0.2, 4.2), (4.6, 4.6), (3.4, 7.4)),
        line("orange", 0.5, (4, 8.4), (4, 9.8)),
        line("orange", 0.5, (5.6, 8.4), (5.6, 9.8)),
    ),
    "cat": face(
        "orange",
        (
            solid("orange", (1, 0.4), (4.4, 2.6), (1.6, 5)),
            solid("orange", (9, 0.4), (5.6, 2.6), (8.4, 5)),
        ),
        solid("pink", (4.4, 6), (5.6, 6), (5, 6.8)),
        line("white", 0.35, (0.4, 6), (3.6, 6.8)),
        line("white", 0.35, (0.4, 7.6), (3.6, 7.2)),
        line("white", 0.35, (9.6, 6), (6.4, 6.8)),
        line("white", 0.35, (9.6, 7.6), (6.4, 7.2)),
    ),
    "clock": (
        disc("wood", 5, 5, 4.6), disc("white", 5, 5, 3.7),
        line("black", 0.7, (5, 2.2), (5, 5)), line("black", 0.7, (5, 5), (7.2, 5)),
        *(disc("grey", x, y, 0.3) for x, y in ((5, 2), (8, 5), (5, 8), (2, 5))),
    ),
    "cow": face(
        "white",
        (
            line("tan", 0.9, (2.2, 3), (1.2, 0.8)),
            line("tan", 0.9, (7.8, 3), (8.8, 0.8)),
            *both(disc, "black", 1.2, 4, 1.2, 0.8),
        ),
        disc("black", 3, 3.4, 1.7, 1.2), *both(disc, "white", 3.5, 4.6, 0.5),
        disc("pink", 5, 7.4, 2.6, 1.6), *both(disc, "red", 4.1, 7.3, 0.45),
    ),
    "cricket": (
        disc("green", 5, 6, 3.8, 1.5), disc("green", 8.2, 5, 1.3),
        disc("black", 8.5, 4.7, 0.4),
        line("green", 0.6, (3, 6), (1, 2.6), (0.4, 9)),
        line("green", 0.5, (5, 7), (4.4, 9.4)),
        line("green", 0.5, (7, 7), (7.4, 9.4)),
        line("lime", 0.35, (8.6, 4), (9.6, 0.8)),
    ),
    "dog": face(
        "brown",
        (*both(disc, "black", 1.5, 4.6, 1.2, 2.8),),
        disc("tan", 5, 7.1, 1.9, 1.6), disc("black", 5, 6.3, 0.8, 0.6),
        disc("red", 5, 8.6, 0.7, 0.9),
    ),
    "door": (
        box("wood", 2.2, 0.6, 7.8, 9.6), box("brown", 3.2, 1.6, 6.8, 4.4),
        box("brown", 3.2, 5.4, 6.8, 8.8), disc("gold", 7, 5, 0.5),
    ),
    "drip": (
        disc("blue", 5, 6.4, 3.1), solid("blue", (5, 0.4), (7.6, 4.8), (2.4, 4.8)),
        disc("white", 3.8, 6, 0.7, 1.1),
    ),
    "drum": (
        box("red", 1.2, 3.6, 8.8, 8), disc("red", 5, 8, 3.8, 1.4),
        disc("white", 5, 3.6, 3.8, 1.5),
        line("gold", 0.4, (1.6, 4.8), (3.4, 8.8), (5, 5.2), (6.6, 8.8), (8.4, 4.8)),
        line("wood", 0.6, (0.6, 0.4), (4, 3.2)),
        line("wood", 0.6, (9.4, 0.4), (6, 3.2)),
    ),
    "engine": (
        box("grey", 1.6, 3.4, 8, 8.4), box("silver", 2.6, 1.4, 4.2, 3.6),
        box("silver", 5.4, 1.4, 7, 3.6), disc("black", 3.4, 6, 1.7),
        disc("silver", 3.4, 6, 0.7),
        disc("black", 6.8, 6.6, 1.1), box("red", 8, 4.4, 9.6, 6.2),
    ),
    "fire": (
        solid(
            "red", (5, 0.2), (8.2, 4.4), (8.8, 7), (7, 9.6), (3, 9.6), (1.2, 7),
            (2.2, 4.2), (3.6, 5),
        ),
        solid("orange", (5.2, 3), (7.4, 6.6), (6.4, 9.6), (3.6, 9.6), (2.6, 7)),
        solid("yellow", (5, 5.6), (6.4, 8), (5.8, 9.6), (4.2, 9.6), (3.6, 8)),
    ),
    "footsteps": (
        disc("brown", 3, 6.4, 1.5, 2.2), disc("brown", 3, 9, 1.1, 0.9),
        disc("brown", 7, 2.4, 1.5, 2.2), disc("brown", 7, 5.2, 1.1, 0.9),
    ),
    "frog": (
        *both(disc, "lime", 2.6, 2.6, 1.8), disc("lime", 5, 6, 4.4, 3.4),
        *both(disc, "white", 2.6, 2.4, 1.1), *both(disc, "black", 2.7, 2.4, 0.6),
        arc("green", 0.5, 5, 4.6, 3, 0.08, 0.42),
    ),
    "glass": (
        solid("sky", (1.8, 0.8), (8.2, 0.8), (5.6, 5.4), (4.4, 5.4)),
        box("sky", 4.6, 5, 5.4, 8.6),
        box("sky", 2.6, 8.4, 7.4, 9.4),
        line("white", 0.5, (3, 0.8), (5, 2.4), (4.4, 3.4), (6.2, 4)),
    ),
    "guitar": (
        line("brown", 0.9, (5, 5.6), (9, 0.8)), disc("orange", 3.2, 7, 2.7),
        disc("orange", 5, 5, 1.9), disc("black", 4, 6, 0.9),
        box("black", 8.4, 0.2, 9.8, 1.4),
    ),
    "helicopter": (
        disc("teal", 4, 5.6, 3.2, 2.2), line("teal", 0.9, (6, 5.2), (9.4, 4.2)),
        disc("sky", 2.8, 5.2, 1.4, 1.2), line("grey", 0.5, (0.4, 2), (8, 2)),
        line("grey", 0.5, (4.2, 2), (4.2, 3.6)),
        line("black", 0.5, (1.4, 8.8), (7, 8.8)),
        line("grey", 0.5, (9.4, 2.8), (9.4, 5.6)),
    ),
    "horn": (
        box("blue", 0.4, 4.8, 9.6, 7.4),
        solid("blue", (2, 4.8), (3.2, 2.4), (7, 2.4), (8.4, 4.8)),
        solid("white", (2.8, 4.6), (3.6, 3), (4.8, 3), (4.8, 4.6)),
        solid("white", (5.4, 4.6), (5.4, 3), (6.6, 3), (7.4, 4.6)),
        *both(disc, "black", 2.6, 7.6, 1.4), *both(disc, "silver", 2.6, 7.6, 0.6),
    ),
    "knock": (
        box("skin", 2.6, 3, 8.2, 7), line("brown", 0.3, (4, 3.2), (4, 5.6)),
        line("brown", 0.3, (5.4, 3.2), (5.4, 5.6)),
        line("brown", 0.3, (6.8, 3.2), (6.8, 5.6)),
        box("navy", 3.4, 7, 7.4, 9.8), line("skin", 1.2, (2.8, 5.8), (5.2, 6.4)),
        line("yellow", 0.5, (0.4, 1.6), (1.6, 2.8)),
        line("yellow", 0.5, (2.6, 0.4), (3, 1.8)),
    ),
    "laser": (
        box("purple", 0.6, 3, 6, 5.4),
        solid("purple", (1, 5), (3.2, 5), (2.4, 8.8), (0.4, 8.8)),
        box("silver", 6, 3.6, 7, 4.8), line("red", 0.8, (7.4, 4.2), (9.8, 4.2)),
        disc("lime", 3.4, 4.2, 0.8),
    ),
    "owl": (
        disc("brown", 5, 5.8, 3.8, 4), solid("brown", (1.4, 0.8), (4, 3), (1.6, 4.6)),
        solid("brown", (8.6, 0.8), (6, 3), (8.4, 4.6)),
        *both(disc, "yellow", 3.3, 4.4, 1.6),
        *both(disc, "black", 3.4, 4.4, 0.8),
        solid("orange", (4.4, 5.2), (5.6, 5.2), (5, 6.6)),
        disc("tan", 5, 8, 2.2, 1.6),
    ),
    "rain": (
        *CLOUD,
        *(line("blue", 0.7, (x, 6.6), (x - 0.8, 9.4)) for x in (2.6, 4.6, 6.6, 8.4)),
    ),
    "siren": (
        box("white", 0.6, 4.4, 9.4, 7.8), box("red", 0.6, 6, 9.4, 6.8),
        box("sky", 6.6, 4.8, 8.8, 5.9),
        box("blue", 3.6, 2.8, 6.2, 4.4), line("sky", 0.5, (2.4, 1.4), (3, 2.4)),
        line("sky", 0.5, (7.4, 1.4), (6.8, 2.4)), *both(disc, "black", 2.6, 8, 1.3),
    ),
    "thunder": (
        *CLOUD,
        solid(
            "yellow", (5.4, 5), (3.2, 8), (4.8, 8), (3.8, 9.9), (7.4, 7), (5.6, 7),
            (6.8, 5),
        ),
    ),
    "waves": (wave("blue", 2.6), wave("teal", 5), wave("navy", 7.4)),
    "whistle": (
        disc("red", 3.6, 6, 3), box("red", 3.6, 3, 9.4, 5.2),
        disc("black", 3.6, 6, 1.2),
        box("white", 5.6, 2.4, 7, 3.6), line("gold", 0.4, (0.8, 4.8), (0.4, 1)),
    ),
    "wind": (
        line("white", 0.8, (0.6, 3.6), (6.4, 3.6)),
        arc("white", 0.8, 6.4, 2.2, 1.4, -0.5, 0.25),
        line("silver", 0.8, (0.6, 5.6), (8, 5.6)),
        line("white", 0.8, (0.6, 7.6), (5.4, 7.6)),
        arc("white", 0.8, 5.4, 8.6, 1, -0.25, 0.4),
    ),
    "banjo": (
        line("brown", 0.8, (5, 5), (9.2, 0.8)), disc("silver", 3.4, 6.6, 3),
        disc("white", 3.4, 6.6, 2.4),
        line("grey", 0.3, (2.6, 7.4), (9, 1)), box("brown", 8.6, 0.2, 9.8, 1.2),
    ),
    "clarinet": (
        line("black", 1.3, (1.6, 1), (7.6, 7.6)),
        solid("black", (6.4, 7.8), (7.8, 6.4), (9.6, 9.6)),
        *(disc("silver", x, 1.1 * x - 0.8, 0.4) for x in (3, 4.2, 5.4, 6.6)),
    ),
    "flute": (
        line("silver", 1.2, (0.8, 7), (9.2, 3)),
        *(disc("navy", x, 7.4 - 0.48 * x, 0.35) for x in (2, 4.4, 5.6, 6.8, 8)),
    ),
    "marimba": (
        *(
            box("wood", 0.8 + 1.75 * k, 2 + 0.45 * k, 2.1 + 1.75 * k, 8.4 - 0.45 * k)
            for k in range(5)
        ),
        line("red", 0.5, (1, 0.6), (4.4, 3.6)), disc("red", 4.6, 3.8, 0.7),
    ),
    "music box": (
        box("purple", 1.4, 5, 8.6, 9),
        solid("pink", (1.4, 5), (2.4, 1.6), (9.4, 1.6), (8.6, 5)),
        disc("gold", 5, 7, 0.9), line("grey", 0.5, (8.6, 7), (9.7, 7), (9.7, 5.8)),
    ),
    "organ": (
        *(
            box("silver", 0.8 + 1.75 * k, top, 2.1 + 1.75 * k, 7)
            for k, top in enumerate((1.9, 0.9, 0.6, 0.9, 1.9))
        ),
        box("brown", 0.4, 6.8, 9.6, 9.4), box("white", 1.4, 7.4, 8.6, 8.4),
    ),
    "piano": (
        box("white", 0.6, 2, 9.4, 8.6),
        *(line("grey", 0.25, (x, 2), (x, 8.6)) for x in (2.8, 5, 7.2)),
        *(box("black", x - 0.6, 2, x + 0.6, 6) for x in (2.8, 5, 7.2)),
        box("black", 0.4, 1, 9.6, 2.2),
    ),
    "trumpet": (
        line("gold", 0.9, (0.8, 4.6), (7, 4.6)),
        solid("gold", (6.6, 4.2), (9.6, 1.8), (9.6, 7.4), (6.6, 5)),
        arc("gold", 0.7, 3.4, 6, 1.4, -0.25, 0.75),
        arc("gold", 0.7, 5, 6, 1.4, -0.25, 0.75),
        *(line("silver", 0.6, (x, 2.6), (x, 4.4)) for x in (3, 4.2, 5.4)),
    ),
    "violin": (
        line("black", 0.8, (5, 5), (5, 0.6)), disc("brown", 5, 4.8, 1.9, 1.6),
        disc("brown", 5, 7.6, 2.5, 2.1),
        line("white", 0.3, (5, 1), (5, 8.6)), line("tan", 0.5, (1, 9.4), (9.2, 3.2)),
    ),
}  # fmt: skip

# Warmth from 0 (ice) to 1 (fire); what isn't named is as warm as the room.
ROOM = 0.3
WARMTH = {
    **dict.fromkeys(("dog", "cat", "cow", "bird", "owl"), 0.75),
    **dict.fromkeys(("applause", "footsteps", "knock"), 0.65),
    **dict.fromkeys(("engine", "helicopter", "horn", "siren"), 0.9),
    **dict.fromkeys(("rain", "drip", "waves", "wind", "glass"), 0.1),
    **dict.fromkeys(("frog", "cricket"), 0.45), "fire": 1.0, "thunder": 0.8,
}  # fmt: skip
SKIES = ((0.80, 0.90, 0.97), (0.96, 0.86, 0.76), (0.72, 0.78, 0.92), (0.88, 0.93, 0.85))
GROUNDS = (
    (0.55, 0.68, 0.45), (0.72, 0.63, 0.50), (0.50, 0.56, 0.60), (0.68, 0.72, 0.56)
)  # fmt: skip


@functools.lru_cache(maxsize=1024)
def icon(name: str, side: int) -> np.ndarray:
    """The icon of a class or instrument: (4, side, side), colours times opacity, and
    opacity.
    """
    n = SHARP * side
    v, u = (np.mgrid[:n, :n] + 0.5) * (10 / n)
    drawn = np.zeros((4, n, n), dtype=np.float32)
    for colour, covers in ICONS[name]:
        rgb = [int(COLOURS[colour][k : k + 2], 16) / 255 for k in (0, 2, 4)]
        drawn[:, covers(u, v)] = np.array([*rgb, 1.0], dtype=np.float32)[:, None]
    return drawn.reshape(4, side, SHARP, side, SHARP).mean(axis=(2, 4))


# --------------------------------------------------------------------------------------
# The hidden scene: where things stand

Spot = tuple[int, int, int, int]  # number of the event; left, top, side in pixels
# centres of 1 to 4 copies in the square that an event is given, and their side
LAYOUTS: dict[int, tuple[float, tuple[tuple[float, float], ...]]] = {
    1: (1.0, ((0.5, 0.5),)),
    2: (0.58, ((0.27, 0.36), (0.73, 0.64))),
    3: (0.5, ((0.5, 0.26), (0.26, 0.74), (0.74, 0.74))),
    4: (0.5, ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))),
}


def spots(scene: Scene, size: int) -> list[Spot]:
    """Where the icons of a scene stand: as many of an event as it has strokes, two
    events side by side.

    The place is drawn from the scene's seed. Which of two events is on the left is
    drawn, too, so that it does not tell which comes first.
    """
    rng = np.random.default_rng([scene.seed, *SEEN])
    n, found = len(scene.events), []
    order = rng.permutation(n)
    for k, event in enumerate(scene.events):
        room = size * (0.75 if n == 1 else 0.5) * rng.uniform(0.85, 1.0)
        share, centres = LAYOUTS[event.count or 1]
        side = max(4, round(share * room))
        left = order[k] * size / n + rng.random() * (size / n - room)
        top = rng.uniform(0.1, 0.9) * (size - room)
        for x, y in centres:
            x, y = round(left + x * room - side / 2), round(top + y * room - side / 2)
            found.append((k, *np.clip((x, y), 0, size - side).tolist(), side))
    return found


def painted(scene: Scene, size: int, moving: int | None = None) -> np.ndarray:
    """Paint a scene (3, size, size); the event with number `moving` has left its place
    by a seventh of its side.
    """
    rng = np.random.default_rng([scene.seed, *MOVED])
    look, height = rng.integers(len(SKIES)), rng.uniform(0.55, 0.75)
    y = (np.arange(size) + 0.5) / size
    ground = np.clip((y - height) * size + 0.5, 0, 1)[:, None]  # (size, 1)
    sky, soil = (np.array(x[look])[:, None, None] for x in (SKIES, GROUNDS))
    picture = np.ones((3, size, size)) * (sky + (soil - sky) * ground)
    for k, left, top, side in spots(scene, size):
        if k == moving:  # to the right and up, where there is room
            shift = max(1, side // 7)
            left += shift if left + shift + side <= size else -shift
            top += -shift if top >= shift else shift
        drawn = icon(scene.events[k].name, side)
        place = picture[:, top : top + side, left : left + side]
        place *= 1 - drawn[3]
        place += drawn[:3]
    return picture


# --------------------------------------------------------------------------------------
# Senses


def picture(scene: Scene, size: int = SIZE) -> Tensor:
    """Draw a scene: (3, size, size) in [0, 1].

    It shows the class and count of each event, and a place; pitch, speed, loudness and
    order are not in it.

    Raises:
        ValueError, TypeError: `size` is not a whole number from 16 to 512, or `scene`
            is no scene of SoundWorld.
    """
    check(scene, size)
    return as_tensor(painted(scene, size))


def video(scene: Scene, size: int = SIZE) -> Tensor:
    """Two frames of a scene: (2, 3, size, size) in [0, 1]. What sounds moves: a single
    event in the second frame; of two events one in each, in their order.
    """
    check(scene, size)
    moving = (None, 0) if len(scene.events) == 1 else (0, 1)
    return as_tensor(np.stack([painted(scene, size, k) for k in moving]))


def depth(scene: Scene, size: int = SIZE) -> Tensor:
    """How near everything is: (1, size, size), from 0 (the sky) to 1. What stands lower
    is nearer.
    """
    check(scene, size)
    y = (np.arange(size) + 0.5) / size
    near = np.ones((size, size)) * (0.6 * np.clip(y - 0.5, 0, 1))[:, None]
    for k, left, top, side in spots(scene, size):
        opacity = icon(scene.events[k].name, side)[3]
        place = near[top : top + side, left : left + side]
        place += opacity * (0.4 + 0.5 * (top + side) / size - place)
    return as_tensor(near[None])


def thermal(scene: Scene, size: int = SIZE) -> Tensor:
    """How warm everything is: (1, size, size), from 0 to 1, blurred as heat is."""
    check(scene, size)
    warm = np.full((size, size), ROOM)
    for k, left, top, side in spots(scene, size):
        name = scene.events[k].name
        opacity = icon(name, side)[3]
        place = warm[top : top + side, left : left + side]
        place += opacity * (WARMTH.get(name, ROOM + 0.15) - place)
    # a mean over 3 by 3 pixels of a picture of the usual size
    reach = max(1, round(size / SIZE))
    for axis in (0, 1):
        moved = (np.roll(warm, k * reach, axis) for k in (-1, 0, 1))
        warm = sum(moved) / 3
    return as_tensor(warm[None])


def motion(scene: Scene) -> Tensor:
    """A trace of motion, as from a sensor on what sounds: (6, 50 * seconds), three axes
    of acceleration and three of rotation.

    Each stroke shakes it, in the direction and at the rate of its class. This shows how
    often something is struck and when, but not how high it sounds.
    """
    check(scene, SIZE)
    rng = np.random.default_rng([scene.seed, *MOVED])
    t = np.arange(round(scene.seconds * MOTION_RATE)) / MOTION_RATE
    trace = 0.03 * rng.standard_normal((6, len(t)))
    for event in scene.events:
        axes, hertz, decay = shaking(event.name)
        for start in shakes(event):
            since = np.clip(t - start, 0, None)
            ring = np.sin(2 * np.pi * hertz * since) * np.exp(-since / decay)
            trace += rng.uniform(0.8, 1.0) * axes[:, None] * ring
    return as_tensor(trace)


def shakes(event: Event) -> list[float]:
    """The moments at which an event moves, in seconds: its strokes, or one at each turn
    of its rate.
    """
    if event.strokes:
        return list(event.strokes)
    rate = min(event.rate or 2.0, 10.0)
    return np.arange(event.onset, event.end, 1 / rate).tolist()


@functools.cache
def shaking(name: str) -> tuple[np.ndarray, float, float]:
    """How a class moves: a direction (6,), hertz, and the seconds in which it dies
    away.
    """
    seed = hashlib.sha256(name.encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(seed, "big"))
    axes = rng.standard_normal(6)
    return axes / np.linalg.norm(axes), rng.uniform(3, 16), rng.uniform(0.04, 0.16)


# the senses that are drawn, by their names; the others are the sound and the caption
SENSES: dict[str, Callable[[Scene], Tensor]] = {
    "image": picture, "video": video, "depth": depth, "thermal": thermal,
    "motion": motion,
}  # fmt: skip


def as_tensor(drawn: np.ndarray) -> Tensor:
    """An array as float32."""
    return torch.from_numpy(drawn.astype(np.float32))


def check(scene: Scene, size: int) -> None:
    """Raise a sentence unless a scene can be drawn at this size."""
    if not isinstance(scene, Scene):
        given = type(scene).__name__
        raise TypeError(f"scene must be a Scene of SoundWorld, not {given}")
    if isinstance(size, bool) or not isinstance(size, numbers.Integral):
        raise TypeError(f"size must be a whole number of pixels, not {size!r}")
    if not 16 <= size <= 512:
        raise ValueError(f"size must be from 16 to 512 pixels, not {size}")
    for event in scene.events:
        if event.name not in ICONS:
            known = f"a class or an instrument of SoundWorld, {len(ICONS)} in all"
            raise ValueError(f"an event must be {known}, not {event.name!r}")
