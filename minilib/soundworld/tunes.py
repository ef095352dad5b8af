"""Tunes: a melody on one instrument, in a scale and on a beat grid; and how tunes are
drawn (chapter 01).

A Tune is an Event whose strokes are its notes, so a scene, its labels and its rendering
work for music as for effects. The melody is drawn here, note by note; `music` only
plays it. Train never hears some combinations of instrument, register, tempo and
contour.
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

# beats a minute; most notes last one beat
TEMPI = {"slow": 96, "normal": 186, "fast": 360}
CONTOURS = ("rising", "falling", "wandering")
SCALES = {  # semitones above the tonic
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "pentatonic": (0, 2, 4, 7, 9),
}
# The notes by which a scale is told from the others: third and sixth, or all five.
TELLING = {"major": {4, 9}, "minor": {3, 8}, "pentatonic": {0, 2, 4, 7, 9}}
# semitones from an instrument's middle key to the lowest and the highest one
KEYS = (-2, 2)
FEWEST = 3  # notes that show a contour
LAST = 0.6  # beats that the last note lasts at least
# how often a beat has no note of its own, and how often two, where it may
HALF, EIGHTHS = 0.2, 0.2


class Melody(NamedTuple):
    """An instrument with register, tempo and contour: what the splits see of a tune.

    Loudness and scale aren't in it: else the test's tunes would have been heard, only
    louder.
    """

    name: str
    pitch: str
    speed: str
    contour: str


@dataclass(frozen=True, kw_only=True)
class Tune(Event):
    """A melody. Its `name` is the instrument, `pitch` the register, `speed` the tempo.

    `f0` is the tonic in Hz, `rate` beats a second, `strokes` the onsets of the notes.
    """

    scale: str  # a key of SCALES
    contour: str  # one of CONTOURS
    notes: tuple[float, ...]  # Hz, of each note
    lengths: tuple[float, ...]  # seconds for which each note is held; a rest may follow

    @property
    def combination(self) -> Melody:
        """The instrument and attributes, as the splits see them."""
        return Melody(self.name, self.pitch, self.speed, self.contour)

    @property
    def semitones(self) -> tuple[int, ...]:
        """Each note, in semitones above the tonic."""
        return tuple(round(12 * np.log2(note / self.f0)) for note in self.notes)

    @property
    def tells_scale(self) -> bool:
        """Whether the notes that tell the scale sound; if not, no caption names it."""
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
    """The combinations that only the test split hears: about 12 % of each kind."""
    return frozenset().union(*(hold_out(melodies(name)) for name in INSTRUMENTS))


# --------------------------------------------------------------------------------------
# Drawing


def n_beats(rate: float, room: float) -> int:
    """How many beats at `rate` a second begin in `room` seconds and leave the last note
    time to sound.
    """
    return max(1, 1 + int(room * rate - LAST))


def draw_rhythm(beats: int, eighths: bool, rng: np.random.Generator) -> list[float]:
    """Draw the onsets of notes, in beats: one a beat, but for some halves and (if
    wanted) pairs of eighths.

    Three beats or more with one note each lie between two others, so that a short clip
    shows its tempo.
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
    """Draw for how long each note is held, in beats: to the next one, but for rests;
    the last to `end`.
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
    line[1:-1] += rng.uniform(-1, 1, n - 2) * min(1.0, n / 8)  # few notes keep to it
    degrees = np.clip(np.round(line), 0, octave).astype(int)
    return degrees if contour == "rising" else degrees[::-1]


def _wander(n: int, octave: int, rng: np.random.Generator) -> np.ndarray:
    """Steps up and down between two tonics, from one and back to it, that hardly rise
    or fall on the whole.
    """
    home = octave * rng.integers(2)
    while True:
        walk = octave // 2 + np.cumsum(rng.choice([-2, -1, 1, 2], size=n - 2))
        # where it would leave the octave, it turns
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
    """Draw what a description leaves open: key, exact tempo, rhythm, notes, level.

    Args:
        melody: instrument, register, tempo and contour.
        loudness, scale: one of LOUDNESSES, a key of SCALES.
        onset, room: seconds before the tune, and the most that it may last.

    Raises:
        ValueError: too little room for three beats.
    """
    rate = TEMPI[melody.speed] / 60 * vary(rng)
    beats = n_beats(rate, room)
    if beats < FEWEST:
        raise ValueError(
            f"room must hold {FEWEST} beats of a {melody.speed} tune, not {beats}: "
            f"{room} s"
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
    """The melodies of an instrument that have time for enough notes, with their
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
    # the least that any onset leaves, so that the choice doesn't hang on it
    room = seconds - (ONSET[1] + 0.02) * near
    names = [name for name in INSTRUMENTS if _choices(name, split == "test", room)[0]]
    fits, chances = _choices(names[rng.integers(len(names))], split == "test", room)
    melody = fits[rng.choice(len(fits), p=chances)]
    loudness = LOUDNESSES[rng.choice(3, p=(0.25, 0.5, 0.25))]
    scale = list(SCALES)[rng.choice(3, p=(0.4, 0.4, 0.2))]
    tune = draw_tune(melody, loudness, scale, onset, seconds - 0.02 * near - onset, rng)
    return Scene((tune,), seconds, seed=int(rng.integers(2**32)))
