"""Scenes: the events of a clip, their times and attributes, and how scenes are drawn
(chapter 01).

A Scene is the truth behind a clip: rendering, caption and every label follow from it.
Splits hold out combinations of attributes ("four loud high bells") and ordered pairs of
classes ("a cow, then rain"), so that a test asks for combinations that training never
heard, although it heard every single word.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .effects import CLASSES

SPLITS = ("train", "valid", "test")
PITCHES = ("low", "medium", "high")
SPEEDS = ("slow", "normal", "fast")
LOUDNESSES = ("quiet", "normal", "loud")
# the words of captions
MARKED = {"low", "high", "slow", "fast", "quiet", "loud", "rising", "falling"}
# Peaks of an event's waveform: 10 dB apart, so that each sounds twice as loud as the
# one before (Stevens, JASA 27, 1955).
PEAKS = {"quiet": 0.09, "normal": 0.285, "loud": 0.9}
ONSET = (0.05, 0.12)  # the least and most seconds of silence before a single event
# octaves up or down by which f0, rate and interval vary, which no caption mentions
LEEWAY = 0.03
HELD_OUT = 0.12  # the share of combinations and of pairs that only the test split has
DEFAULT_SECONDS = 2.56
# How often each value is drawn; pairs have fewer attributes per event, or their
# captions would become lists.
SINGLE_WEIGHTS = {
    "low": 1,
    "medium": 1,
    "high": 1,
    "slow": 1,
    "normal": 2,
    "fast": 1,
    "quiet": 1,
    "loud": 1,
}
PAIR_WEIGHTS = {
    "low": 1,
    "medium": 3,
    "high": 1,
    "slow": 1,
    "normal": 4,
    "fast": 1,
    "quiet": 1,
    "loud": 1,
}
COUNT_WEIGHTS = {None: 1.0, 1: 4.0, 2: 3.0, 3: 2.0, 4: 2.0}


class Combination(NamedTuple):
    """A class with a value for each attribute that it has, and None for the others."""

    name: str
    pitch: str | None
    speed: str | None
    loudness: str
    count: int | None


@dataclass(frozen=True)
class Event:
    """One sound in a scene.

    Times are seconds from the start of the clip.
    """

    name: str  # the class, a key of CLASSES
    pitch: str | None  # "low", "medium", "high"; None if the class has no pitch
    speed: str | None  # "slow", "normal", "fast"; None if the class has no speed
    loudness: str  # "quiet", "normal", "loud"
    count: int | None  # number of strokes; None if the class isn't counted
    onset: float  # seconds
    duration: float  # seconds
    seed: int  # of the differences between two sounds with one description
    peak: float  # largest |sample|
    f0: float | None = None  # Hz
    # strokes, sweeps or grains per second, if the class has a speed
    rate: float | None = None
    # onsets in seconds of all strokes, counted or regular
    strokes: tuple[float, ...] = ()

    @property
    def combination(self) -> Combination:
        """The class and attributes by which the splits are made."""
        return Combination(self.name, self.pitch, self.speed, self.loudness, self.count)

    @property
    def end(self) -> float:
        """The time in seconds at which the event ends."""
        return self.onset + self.duration

    @property
    def transcription(self) -> str:
        """The words that the event says; "" unless it is speech."""
        return ""


@dataclass(frozen=True)
class Scene:
    """The contents of a clip: one event, two in order, a tune, or an utterance."""

    events: tuple[Event, ...]
    seconds: float
    seed: int  # of the noise floor and of the caption's wording

    @property
    def transcription(self) -> str:
        """The words that are spoken: "seven rivers"; "" if there are none."""
        return " ".join(event.transcription for event in self.events).strip()


@dataclass(frozen=True)
class Clip:
    """A rendered scene: `wave` (N,) float32 in (-1, 1) at 16 kHz, caption and scene."""

    wave: torch.Tensor
    caption: str
    scene: Scene


# --------------------------------------------------------------------------------------
# Splits


@functools.cache
def combinations(name: str) -> tuple[Combination, ...]:
    """All combinations of attribute values that class `name` has."""
    sound = CLASSES[name]
    pitches = PITCHES if sound.pitch else (None,)
    speeds = SPEEDS if sound.speed else (None,)
    return tuple(
        Combination(name, *v)
        for v in itertools.product(pitches, speeds, LOUDNESSES, sound.counts or (None,))
    )


def _rank(key: str) -> bytes:
    # Python's own hash differs between processes
    return hashlib.sha256(key.encode()).digest()


def hold_out(combinations: Iterable[tuple]) -> set[tuple]:
    """Choose about 12 % of the combinations (name, value, …) of one class or
    instrument, at least one.

    A plain one ("a dog barks") is never chosen, and training keeps every single value
    of every attribute.
    """
    left = sorted(combinations, key=lambda c: _rank("/".join(map(str, c))))
    held, wanted = set(), max(1, round(HELD_OUT * len(left)))
    for combination in list(left):
        plain = MARKED.isdisjoint(combination)
        rest = [c for c in left if c != combination]
        still_heard = all(
            any(c[k] == combination[k] for c in rest)
            for k in range(1, len(combination))
        )
        if wanted and still_heard and not plain:
            held.add(combination)
            left, wanted = rest, wanted - 1
    return held


@functools.cache
def held_out_combinations() -> frozenset[Combination]:
    """The combinations of a class and its attributes that only the test split has."""
    return frozenset().union(*(hold_out(combinations(name)) for name in CLASSES))


@functools.cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The ordered pairs of classes that only the test split has, about 12 % of all.

    The classes are shuffled into a ring, and the pairs of each class with the next few
    are held out. So every class is held out equally often in either position, and never
    both orders of a pair.
    """
    ring = sorted(CLASSES, key=_rank)
    steps = range(1, 1 + round(HELD_OUT * (len(ring) - 1)))
    return frozenset(
        (ring[k], ring[(k + step) % len(ring)])
        for k in range(len(ring))
        for step in steps
    )


# --------------------------------------------------------------------------------------
# Drawing


@functools.lru_cache(maxsize=1024)
def _choices(
    name: str, held_out: bool, room: float, paired: bool
) -> tuple[list[Combination], np.ndarray]:
    """The combinations of a class that fit into `room` seconds, with their
    probabilities.
    """
    fits = [
        c
        for c in combinations(name)
        if (c.count or 0) <= 1 or c.count * CLASSES[name].shortest <= room
    ]
    fits = [c for c in fits if (c in held_out_combinations()) == held_out]
    weigh = PAIR_WEIGHTS if paired else SINGLE_WEIGHTS
    weights = [
        COUNT_WEIGHTS[c.count] * np.prod([weigh.get(value, 1) for value in c[1:4]])
        for c in fits
    ]
    return fits, np.array(weights, dtype=float) / max(sum(weights), 1e-9)


@functools.lru_cache(maxsize=64)
def _names(held_out: bool, room: float) -> list[str]:
    return [name for name in CLASSES if _choices(name, held_out, room, False)[0]]


@functools.cache
def _pairs(held_out: bool) -> list[tuple[str, str]]:
    return [
        p
        for p in itertools.permutations(CLASSES, 2)
        if (p in held_out_pairs()) == held_out
    ]


def vary(rng: np.random.Generator) -> float:
    """A factor near 1 by which sounds with one description may differ."""
    return 2 ** rng.uniform(-LEEWAY, LEEWAY)


def _strokes(
    combination: Combination, rate: float | None, room: float, rng: np.random.Generator
) -> list[float]:
    """The onsets of an event's strokes, in seconds from its own onset; none for a
    continuous sound.
    """
    sound = CLASSES[combination.name]
    if sound.regular:
        return [k / rate for k in range(max(1, int((room - 0.05) * rate) + 1))]
    if sound.length == 0:
        return []
    count = combination.count or 1
    interval = sound.interval * vary(rng)
    if count > 1:
        interval = min(interval, (room - sound.shortest) / (count - 1))
    sway = 0.03 * interval * rng.uniform(-1, 1, count)
    return [0.0] + [k * interval + sway[k] for k in range(1, count)]


def draw_event(
    combination: Combination, onset: float, room: float, rng: np.random.Generator
) -> Event:
    """Draw the details that a combination leaves open: exact f0, rate, level, stroke
    times, length (at most `room` s).
    """
    sound = CLASSES[combination.name]
    f0 = rate = None
    if sound.pitch:
        f0 = sound.pitch[PITCHES.index(combination.pitch)] * vary(rng)
    if sound.speed:
        rate = sound.speed[SPEEDS.index(combination.speed)] * vary(rng)
    strokes = _strokes(combination, rate, room, rng)
    duration = room if sound.length == 0 else min(room, strokes[-1] + sound.length)
    return Event(
        *combination,
        onset=onset,
        duration=duration,
        seed=int(rng.integers(2**32)),
        peak=PEAKS[combination.loudness] * rng.uniform(0.95, 1.04),
        f0=f0,
        rate=rate,
        strokes=tuple(onset + time for time in strokes),
    )


def _draw_single(
    split: str, seconds: float, rng: np.random.Generator
) -> tuple[Event, ...]:
    scale = min(1.0, seconds / DEFAULT_SECONDS)
    onset = rng.uniform(*ONSET) * scale
    # the least time that any onset leaves, so that the choice doesn't depend on it
    room = seconds - (ONSET[1] + 0.02) * scale
    names = _names(split == "test", room)
    name = names[rng.integers(len(names))]
    fits, chances = _choices(name, split == "test", room, False)
    combination = fits[rng.choice(len(fits), p=chances)]
    return (draw_event(combination, onset, seconds - 0.02 * scale - onset, rng),)


def _draw_pair(
    split: str, seconds: float, rng: np.random.Generator
) -> tuple[Event, ...]:
    scale = seconds / DEFAULT_SECONDS
    near = min(1.0, scale)
    first, second = (
        rng.uniform(0.02, 0.08) * near,
        1.3 * scale + rng.uniform(-0.05, 0.05) * near,
    )
    ends = (1.25 * scale - 0.05 * near, seconds - 0.02 * near)
    every = _pairs(split == "test")
    names, events = every[rng.integers(len(every))], []
    for name, onset, end in zip(names, (first, second), ends):
        # Even in the test split the combinations are known: only the pair is new.
        fits, chances = _choices(name, False, 1.1 * scale, True)
        events.append(
            draw_event(fits[rng.choice(len(fits), p=chances)], onset, end - onset, rng)
        )
    return tuple(events)


def draw_scene(
    split: str, seconds: float, pairs: float, rng: np.random.Generator
) -> Scene:
    """Draw a scene of `seconds` seconds; with probability `pairs` it has two events."""
    draw = _draw_pair if rng.random() < pairs else _draw_single
    return Scene(draw(split, seconds, rng), seconds, seed=int(rng.integers(2**32)))
