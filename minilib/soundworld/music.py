"""The instruments of SoundWorld: each is a short synthesiser of one note (chapter 01).

An instrument is a function `(rng, sample_rate) -> note`; `rng` sets the differences
between two pianos, and `note(f0, n)` is n samples of a tone of `f0` Hz at any level.
`play` puts the notes of a tune on its beat grid. INSTRUMENTS, at the end, is the table
of all instruments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import signal

from .materials import (
    band,
    harmonics,
    noise,
    partials,
    running_phase,
    strike,
    swell,
    times,
)

if TYPE_CHECKING:
    from .tunes import Tune

Note = Callable[[float, int], np.ndarray]
FADE = 0.03  # seconds within which a note ends


@dataclass(frozen=True)
class Instrument:
    """The synthesiser of an instrument, and its range."""

    build: Callable[[np.random.Generator, int], Note]
    # MIDI numbers of the middle key's tonic for low, medium and high
    tonics: tuple[int, int, int]
    ring: float = 0.0  # seconds for which a note rings on into the next


def play(tune: Tune, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Play a tune with every note at its onset: (n,) at any level."""
    instrument = INSTRUMENTS[tune.name]
    note = instrument.build(rng, sample_rate)
    wave = np.zeros(round(tune.duration * sample_rate), dtype=np.float32)
    for onset, f0, length in zip(tune.strokes, tune.notes, tune.lengths):
        start = round((onset - tune.onset) * sample_rate)
        n = min(round((length + instrument.ring) * sample_rate), len(wave) - start)
        sound = note(f0, n) * swell(n, 0.0, FADE, sample_rate)
        wave[start : start + n] += sound * (rng.uniform(0.85, 1) / np.abs(sound).max())
    return wave


def _up_to(f0: float, top: float, sample_rate: int) -> np.ndarray:
    """The numbers 1, 2, … K of the harmonics of `f0` that lie below `top` Hz and don't
    alias.
    """
    return np.arange(1, max(1, int(min(top, 0.47 * sample_rate) / f0)) + 1)


# --------------------------------------------------------------------------------------
# Struck and plucked: a note dies away


def piano(rng: np.random.Generator, sample_rate: int) -> Note:
    """A hammer on stiff strings: many partials, slightly sharp; the higher they are,
    the faster they die away.
    """
    softness = rng.uniform(0.28, 0.36)

    def note(f0: float, n: int) -> np.ndarray:
        k = _up_to(f0, 3800, sample_rate)
        # the hammer strikes at 1/7.5 of the string
        levels = np.exp(-softness * (k - 1)) * np.abs(np.sin(np.pi * k / 7.5))
        decays = 0.4 * (330 / f0) ** 0.4 / (1 + 0.25 * (k - 1))
        strings = partials(
            n, f0 * k * np.sqrt(1 + 0.0003 * k**2), levels, decays, sample_rate
        )
        m = min(n, round(0.06 * sample_rate))
        strings[:m] += (
            0.3
            * band(noise(rng, m), 80, 700, sample_rate)
            * strike(m, 0.001, 0.012, sample_rate)
        )
        return strings * (1 - np.exp(times(n, sample_rate) / -0.002))

    return note


def banjo(rng: np.random.Generator, sample_rate: int) -> Note:
    """Plucked strings over a skin: noise in a loop that dulls it on each pass (Karplus
    and Strong 1983).
    """
    plucked_at = rng.uniform(0.1, 0.14)  # fraction of the string's length

    def note(f0: float, n: int) -> np.ndarray:
        turn = sample_rate / f0
        burst, m = np.zeros(n), min(n, round(turn))
        # noise with a flat spectrum
        burst[:m] = np.fft.irfft(np.exp(2j * np.pi * rng.random(m // 2 + 1)), m)
        behind = max(1, round(plucked_at * turn))
        # plucking does not excite harmonics with a node at that point
        burst[behind:] -= burst[:-behind].copy()
        string = signal.lfilter([1.0], _string(turn, 0.24), burst)
        return string * np.exp(times(n, sample_rate) / -0.3)

    return note


def _string(turn: float, dulling: float) -> np.ndarray:
    """The feedback of Karplus and Strong's string: a delay of `turn` samples and a
    smoothing filter.

    The fractional delay is a cubic interpolation, as in Jaffe and Smith 1983, so that
    the string is in tune.
    """
    whole = int(turn) - 2
    x, taps = turn - 1 - whole, np.arange(4)  # the filter delays by one more sample
    cubic = [np.prod([(x - j) / (i - j) for j in taps if j != i]) for i in taps]
    loop = np.convolve(cubic, [dulling / 2, 1 - dulling, dulling / 2])
    return np.concatenate([[1.0], np.zeros(whole - 1), -0.999 * loop])


def marimba(rng: np.random.Generator, sample_rate: int) -> Note:
    """Wooden bars, tuned so that the second mode is two octaves up; short and round."""
    mallet = rng.uniform(0.4, 0.6)

    def note(f0: float, n: int) -> np.ndarray:
        decays = np.array([0.16, 0.05, 0.02]) * (330 / f0) ** 0.3
        bar = partials(
            n,
            f0 * np.array([1, 3.95, 9.3]),
            np.array([1, mallet, 0.25]),
            decays,
            sample_rate,
        )
        return bar * (1 - np.exp(times(n, sample_rate) / -0.001))

    return note


def music_box(rng: np.random.Generator, sample_rate: int) -> Note:
    """Steel tines clamped at one end, with modes at 1 : 6.27; bright, and ringing over
    the notes that follow.
    """
    bright = rng.uniform(0.25, 0.35)

    def note(f0: float, n: int) -> np.ndarray:
        tine = partials(
            n,
            f0 * np.array([1, 6.27]),
            np.array([1, bright]),
            np.array([0.15, 0.05]),
            sample_rate,
        )
        m = min(n, round(0.03 * sample_rate))
        tine[:m] += (
            0.8
            * band(noise(rng, m), 4500, 7500, sample_rate)
            * strike(m, 0.0003, 0.005, sample_rate)
        )
        return tine

    return note


# --------------------------------------------------------------------------------------
# Blown and bowed: a note is held


def _attack(seconds: float, n: int, sample_rate: int) -> float:
    """The time of an attack, shorter for a short note."""
    return min(seconds, 0.35 * n / sample_rate)


def organ(rng: np.random.Generator, sample_rate: int) -> Note:
    """Drawbars: pipes at 1, 2, 3, 4, 6 and 8 times f0, all nearly equally strong, with
    an instant onset and a steady tone.
    """
    levels = np.array([1, 0.8, 0.7, 0.7, 0, 0.55, 0, 0.5]) * rng.uniform(0.8, 1, 8)

    def note(f0: float, n: int) -> np.ndarray:
        drawn = levels[: len(_up_to(f0, 7500, sample_rate))]
        return harmonics(running_phase(f0, n, sample_rate), drawn) * swell(
            n, 0.006, FADE, sample_rate
        )

    return note


def flute(rng: np.random.Generator, sample_rate: int) -> Note:
    """Nearly a pure tone that begins softly under the noise of breath."""
    rate = rng.uniform(4.5, 5.5)  # of the vibrato, which in a flute varies the loudness

    def note(f0: float, n: int) -> np.ndarray:
        sway = np.sin(2 * np.pi * rate * times(n, sample_rate))
        tube = harmonics(
            running_phase(f0, n, sample_rate), np.array([1, 0.25, 0.06])
        ) * (1 + 0.15 * sway)
        breath = band(noise(rng, n), 1200, 5000, sample_rate)
        return (tube + 0.13 * breath) * swell(
            n, _attack(0.06, n, sample_rate), 0.05, sample_rate
        )

    return note


def clarinet(rng: np.random.Generator, sample_rate: int) -> Note:
    """A reed on a tube closed at one end, which lacks the even harmonics."""
    slope = rng.uniform(0.6, 0.8)

    def note(f0: float, n: int) -> np.ndarray:
        k = _up_to(f0, 4500, sample_rate)
        levels = np.where(k % 2 == 1, 1.0, 0.03) / k**slope
        attack = _attack(0.03, n, sample_rate)
        return harmonics(running_phase(f0, n, sample_rate), levels) * swell(
            n, attack, 0.04, sample_rate
        )

    return note


def violin(rng: np.random.Generator, sample_rate: int) -> Note:
    """A bowed string with vibrato: the harmonics of a sawtooth weighted by the
    resonances of the body.
    """
    rate, depth = rng.uniform(5.3, 6.3), rng.uniform(0.006, 0.008)
    body = [
        (280, 60, 1.0),
        (480, 120, 1.2),
        (1100, 400, 0.7),
        (2700, 900, 1.3),
        (4200, 900, 0.6),
    ]

    def note(f0: float, n: int) -> np.ndarray:
        t = times(n, sample_rate)
        bend = 1 + depth * np.sin(2 * np.pi * rate * t) * np.minimum(t / 0.15, 1)
        k = _up_to(1.02 * f0, 7000, sample_rate)
        levels = (
            0.15 + sum(level / (1 + ((k * f0 - f) / b) ** 2) for f, b, level in body)
        ) / k**0.7
        string = harmonics(running_phase(f0 * bend, n, sample_rate), levels)
        hair = band(noise(rng, n), 2000, 7000, sample_rate)  # the rubbing of the bow
        return (string + 0.02 * hair) * swell(
            n, _attack(0.04, n, sample_rate), 0.05, sample_rate
        )

    return note


def trumpet(rng: np.random.Generator, sample_rate: int) -> Note:
    """Brass by frequency modulation; the louder it is at a moment, the brighter
    (Chowning 1973).
    """
    blare = rng.uniform(2.4, 3.0)

    def note(f0: float, n: int) -> np.ndarray:
        phase = running_phase(f0, n, sample_rate)
        lips = swell(n, _attack(0.03, n, sample_rate), 0.05, sample_rate)
        # the sidebands extend index + 2 times f0 further
        index = min(blare, 0.4 * sample_rate / f0 - 2)
        return lips * np.sin(phase + index * lips * np.sin(phase))

    return note


INSTRUMENTS: dict[str, Instrument] = {
    "banjo": Instrument(banjo, (57, 69, 81), ring=0.05),
    "clarinet": Instrument(clarinet, (55, 67, 79)),
    "flute": Instrument(flute, (60, 72, 84)),
    "marimba": Instrument(marimba, (53, 65, 77), ring=0.3),
    "music box": Instrument(music_box, (65, 77, 89), ring=0.5),
    "organ": Instrument(organ, (53, 65, 77)),
    "piano": Instrument(piano, (53, 65, 77), ring=0.05),
    "trumpet": Instrument(trumpet, (53, 65, 77)),
    "violin": Instrument(violin, (57, 69, 81)),
}
