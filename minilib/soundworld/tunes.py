"""Tunes: a melody on one instrument, in a scale and on a beat grid; and how tunes are
drawn (chapter 01).

A Tune is an Event whose strokes are its notes, so a scene, its labels and its rendering
work for music as they do for effects. The melody is drawn here, note by note; `music`
only plays it. The train split lacks some combinations of instrument, register, tempo
and contour.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .music import INSTRUMENTS
from .scene import (
    DEFAULT_SECONDS,
    LEEWAY,
    LOUDNESSES,
    ONSET,
    PEAKS,
    PITCHES,
    SINGLE_WEIGHTS,
    SPEEDS,
    Event,
    Scene,
    hold_out,
    vary,
)

# beats per minute; most notes last one beat
TEMPI = {"slow": 96, "normal": 186, "fast": 360}
CONTOURS = ("rising", "falling", "wandering")
SCALES = {  # semitones above the tonic
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
}
# The notes that distinguish a scale from the others: third and sixth, or all five.
TELLING = {"major": {4, 9}, "minor": {3, 8}, "pentatonic": {0, 2, 4, 7, 9}}
# semitones from an instrument's middle key to the lowest and the highest one
KEYS = (-2, 2)
FEWEST = 3  # the fewest notes that show a contour
LAST = 0.6  # the fewest beats that the last note lasts
# how often a beat has no note of its own, and how often two, if it may
HALF, EIGHTHS = 0.2, 0.2


class Melody(NamedTuple):
    """An instrument with register, tempo and contour, by which tunes are split.

    Loudness and scale are not part of it: otherwise training would have heard the test
    split's tunes, only louder or softer.
    """

    name: str
    pitch: str
    speed: str
    contour: str


@dataclass(frozen=True, kw_only=True)
class Tune(Event):
    """A melody. Its `name` is the instrument, `pitch` the register, `speed` the tempo.

    `f0` is the tonic in Hz, `rate` is in beats per second, and `strokes` are the onsets
    of the notes.
    """

    scale: str  # a key of SCALES
    contour: str  # one of CONTOURS
    notes: tuple[float, ...]  # frequency of each note in Hz
    lengths: tuple[float, ...]  # seconds for which each note is held; a rest may follow

    @property
    def combination(self) -> Melody:
        """The instrument and attributes by which the splits are made."""
        return Melody(self.name, self.pitch, self.speed, self.contour)

    @property
    def semitones(self) -> tuple[int, ...]:
        """The notes in semitones above the tonic."""
        return tuple(round(12 * np.log2(note / self.f0)) for note in self.notes)

    @property
    def tells_scale(self) -> bool:
        """Whether the notes that show the scale occur; if not, no caption names it."""
        return TELLING[self.scale] <= {semitone % 12 for semitone in self.semitones}


# --------------------------------------------------------------------------------------
# Splits


@functools.cache
def melodies(name: str) -> tuple[Melody, ...]:
    """All combinations of register, tempo and contour, on instrument `name`."""
    return tuple(
        Melody(name, *values) for values in itertools.product(PITCHES, SPEEDS, CONTOURS)
    )


@functools.cache
def held_out_melodies() -> frozenset[Melody]:
    """The combinations that only the test split has: about 12 % for each instrument."""
    return frozenset().union(*(hold_out(melodies(name)) for name in INSTRUMENTS))


# --------------------------------------------------------------------------------------
# Drawing


def n_beats(rate: float, room: float) -> int:
    """The number of beats, at `rate` per second, that begin within `room` seconds and
    leave the last note time to sound.
    """
    return max(1, 1 + int(room * rate - LAST))


def draw_rhythm(beats: int, eighths: bool, rng: np.random.Generator) -> list[float]:
    """Draw the onsets of notes in beats: one per beat, except for some half notes and
    (if wanted) pairs of eighths.

    At least three beats with one note each lie between two such exceptions, so that
    even a short clip shows its tempo.
    """
    onsets, uneven = [0.0], -2
    for beat in range(1, beats):
        chance = rng.random() if beat - uneven > 3 else 1.0
        if chance < HALF and beat >= FEWEST:
            uneven = beat
            continue
        onsets.append(float(beat))
        if eighths and HALF <= chance < HALF + EIGHTHS and beat < beats - 1:
            onsets.append(beat + 0.5)
            uneven = beat
    return onsets


def draw_lengths(
    onsets: list[float], end: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw how long each note is held, in beats: up to the next note except for rests,
    the last up to `end`.
    """
    gaps = np.diff(onsets, append=min(end, onsets[-1] + 2))
    rests = (gaps > 1) & (rng.random(len(gaps)) < 0.5)
    rests[-1] = False
    return np.where(rests, 1, gaps)


def draw_degrees(
    contour: str, n: int, octave: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw n degrees of a scale (0 the tonic, `octave` the one above) that rise, fall
    or wander.
    """
    if contour == "wandering":
        return _wander(n, octave, rng)
    line = np.linspace(0, octave, n)
    line[1:-1] += rng.uniform(-1, 1, n - 2) * min(1.0, n / 8)  # less for few notes
    degrees = np.clip(np.round(line), 0, octave).astype(int)
    return degrees if contour == "rising" else degrees[::-1]


def _wander(n: int, octave: int, rng: np.random.Generator) -> np.ndarray:
    """Steps up and down between two tonics, from one and back to it, that hardly rise
    or fall overall.
    """
    home = octave * rng.integers(2)
    while True:
        walk = octave // 2 + np.cumsum(rng.choice([-2, -1, 1, 2], size=n - 2))
        # if a step would leave the octave, turn round
        folded = octave - abs(walk % (2 * octave) - octave)
        degrees = np.array([home, *folded, home])
        if np.ptp(degrees) > 0 and abs(np.corrcoef(np.arange(n), degrees)[0, 1]) < 0.4:
            return degrees


def draw_tune(
    melody: Melody,
    loudness: str,
    scale: str,
    onset: float,
    room: float,
    rng: np.random.Generator,
) -> Tune:
    """Draw the details that a description leaves open: key, exact tempo, rhythm, notes,
    level.

    Args:
        melody: instrument, register, tempo and contour.
        loudness, scale: one of LOUDNESSES, a key of SCALES.
        onset, room: seconds before the tune, and the most seconds that it may last.

    Raises:
        ValueError: `room` is too short for three beats.
    """
    rate = TEMPI[melody.speed] / 60 * vary(rng)
    beats = n_beats(rate, room)
    if beats < FEWEST:
        raise ValueError(
            f"room must be long enough for {FEWEST} beats of a {melody.speed} tune; "
            f"{room} s is enough for {beats}"
        )
    onsets = draw_rhythm(beats, melody.speed != "fast", rng)
    lengths = draw_lengths(onsets, room * rate, rng)
    steps, instrument = SCALES[scale], INSTRUMENTS[melody.name]
    degrees = draw_degrees(melody.contour, len(onsets), len(steps), rng)
    key = instrument.tonics[PITCHES.index(melody.pitch)]
    key += rng.integers(KEYS[0], KEYS[1] + 1)
    notes = [
        _hertz(key + steps[d % len(steps)] + 12 * (d // len(steps))) for d in degrees
    ]
    return Tune(
        *melody[:3],
        loudness,
        count=None,
        onset=onset,
        duration=min(room, float(onsets[-1] + lengths[-1]) / rate + instrument.ring),
        seed=int(rng.integers(2**32)),
        peak=PEAKS[loudness] * rng.uniform(0.95, 1.04),
        f0=_hertz(key),
        rate=rate,
        strokes=tuple(onset + beat / rate for beat in onsets),
        scale=scale,
        contour=melody.contour,
        notes=tuple(notes),
        lengths=tuple((lengths / rate).tolist()),
    )


def _hertz(midi: int) -> float:
    return float(440 * 2 ** ((midi - 69) / 12))


@functools.lru_cache(maxsize=256)
def _choices(name: str, held_out: bool, room: float) -> tuple[list[Melody], np.ndarray]:
    """The melodies of an instrument with time for enough notes, and their
    probabilities.
    """
    fits = [
        m
        for m in melodies(name)
        if n_beats(TEMPI[m.speed] / 60 * 2**-LEEWAY, room) >= FEWEST
    ]
    fits = [m for m in fits if (m in held_out_melodies()) == held_out]
    weights = np.array(
        [np.prod([SINGLE_WEIGHTS.get(value, 1) for value in m[1:]]) for m in fits],
        dtype=float,
    )
    return fits, weights / max(weights.sum(), 1e-9)


def draw_music(split: str, seconds: float, rng: np.random.Generator) -> Scene:
    """Draw a scene of `seconds` seconds that is one tune."""
    near = min(1.0, seconds / DEFAULT_SECONDS)
    onset = rng.uniform(*ONSET) * near
    # the least time that any onset leaves, so that the choice doesn't depend on it
    room = seconds - (ONSET[1] + 0.02) * near
    names = [name for name in INSTRUMENTS if _choices(name, split == "test", room)[0]]
    fits, chances = _choices(names[rng.integers(len(names))], split == "test", room)
    melody = fits[rng.choice(len(fits), p=chances)]
    loudness = LOUDNESSES[rng.choice(3, p=(0.25, 0.5, 0.25))]
    scale = list(SCALES)[rng.choice(3, p=(0.4, 0.4, 0.2))]
    tune = draw_tune(melody, loudness, scale, onset, seconds - 0.02 * near - onset, rng)
    return Scene((tune,), seconds, seed=int(rng.integers(2**32)))
