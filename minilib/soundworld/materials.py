"""The building blocks of SoundWorld's sounds: noise, curves, resonances, partials and
voices (chapter 01).

Effects and instruments are built from them. Waves and curves are arrays (n,), times are
in seconds and frequencies in hertz.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import signal


def times(n: int, sample_rate: int) -> np.ndarray:
    """The time of every sample (n,)."""
    return np.arange(n) / sample_rate


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """White noise of unit power."""
    return rng.standard_normal(n, dtype=np.float32)


def wander(
    rng: np.random.Generator, n: int, rate: float, sample_rate: int
) -> np.ndarray:
    """A smooth random curve of about unit size that turns `rate` times a second."""
    knots = rng.standard_normal(int(n * rate / sample_rate) + 3)
    grid = np.arange(n) * (rate / sample_rate)
    below = grid.astype(int)
    mix = 0.5 - 0.5 * np.cos(np.pi * (grid - below))
    return knots[below] * (1 - mix) + knots[below + 1] * mix


@functools.lru_cache(maxsize=256)
def _butterworth(low: float, high: float, sample_rate: int) -> np.ndarray:
    if high >= sample_rate / 2:
        return signal.butter(2, low, "highpass", fs=sample_rate, output="sos").astype(
            np.float32
        )
    if low <= 0:
        return signal.butter(2, high, "lowpass", fs=sample_rate, output="sos").astype(
            np.float32
        )
    return signal.butter(
        2, [low, high], "bandpass", fs=sample_rate, output="sos"
    ).astype(np.float32)


def band(wave: np.ndarray, low: float, high: float, sample_rate: int) -> np.ndarray:
    """Keep the band from `low` to `high` Hz (0, or half the sample rate, leaves that
    side open).
    """
    return signal.sosfilt(
        _butterworth(round(low), round(high), sample_rate), wave.astype(np.float32)
    )


def resonate(
    wave: np.ndarray, frequency: float, bandwidth: float, sample_rate: int
) -> np.ndarray:
    """A two-pole resonance with unit gain at its peak; its arguments are in Hz."""
    radius = np.exp(-np.pi * bandwidth / sample_rate)
    angle = 2 * np.pi * frequency / sample_rate
    gain = (1 - radius) * np.sqrt(1 - 2 * radius * np.cos(2 * angle) + radius**2)
    return signal.lfilter([gain], [1, -2 * radius * np.cos(angle), radius**2], wave)


def running_phase(
    frequency: np.ndarray | float, n: int, sample_rate: int
) -> np.ndarray:
    """The running phase in radians, kept within one turn so that float32 sines stay
    exact.
    """
    if np.ndim(frequency) == 0:
        turns = np.arange(n) * (float(frequency) / sample_rate)
    else:
        turns = np.cumsum(frequency) / sample_rate
    return (2 * np.pi * (turns % 1.0)).astype(np.float32)


def tone(frequency: np.ndarray | float, n: int, sample_rate: int) -> np.ndarray:
    """A sine of constant or varying frequency (n,)."""
    return np.sin(running_phase(frequency, n, sample_rate))


def partials(
    n: int,
    frequencies: np.ndarray,
    levels: np.ndarray,
    decays: np.ndarray,
    sample_rate: int,
) -> np.ndarray:
    """Modal synthesis: a sum of sines, each of which decays with its own time constant
    in seconds.
    """
    t = times(n, sample_rate).astype(np.float32)
    wave = np.zeros(n, dtype=np.float32)
    for frequency, level, decay in zip(frequencies, levels, decays):
        if frequency < 0.47 * sample_rate:
            # after nine time constants, -78 dB
            m = min(n, round(9 * decay * sample_rate))
            wave[:m] += (
                np.float32(level)
                * np.exp(t[:m] / np.float32(-decay))
                * tone(frequency, m, sample_rate)
            )
    return wave


def harmonics(phase: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """A sum of sines at 1, 2, … K times the phase (n,) of a tone, with levels (K,)."""
    wave = np.zeros_like(phase)
    previous, current, twice_cos = (
        np.zeros_like(phase),
        np.sin(phase),
        2 * np.cos(phase),
    )
    for level in levels.astype(np.float32):
        wave += level * current
        # sin((k+1)x) from the two before
        previous, current = current, twice_cos * current - previous
    return wave


def voice(
    f0: np.ndarray,
    formants: list[tuple[np.ndarray | float, float, float]],
    sample_rate: int,
    top: float = 5000.0,
) -> np.ndarray:
    """The source-filter model of a voice: the harmonics of `f0` (n,) weighted by
    resonances.

    Each formant is (frequency (n,) or constant in Hz, bandwidth in Hz, level).
    """
    n = len(f0)
    phase = running_phase(f0, n, sample_rate)
    previous, current, twice_cos = (
        np.zeros_like(phase),
        np.sin(phase),
        2 * np.cos(phase),
    )
    wave = np.zeros(n, dtype=np.float32)
    # formants move slowly: compute the weights every 80 samples
    coarse = np.append(np.arange(0, n, 80), n - 1)
    f0, shapes = (
        f0[coarse],
        [(np.broadcast_to(f, n)[coarse], b, level) for f, b, level in formants],
    )
    for k in range(1, int(top / f0.max()) + 2):
        weight = sum(level / (1 + ((k * f0 - f) / b) ** 2) for f, b, level in shapes)
        wave += (
            np.interp(np.arange(n), coarse, weight / k**0.5).astype(np.float32)
            * current
        )
        # sin((k+1)x) from the two before
        previous, current = current, twice_cos * current - previous
    return wave


def swell(n: int, attack: float, release: float, sample_rate: int) -> np.ndarray:
    """An envelope (n,) that rises for `attack` and falls for `release` seconds, each as
    half a cosine.
    """
    rise, fall = (
        min(n, round(attack * sample_rate)),
        min(n, round(release * sample_rate)),
    )
    envelope = np.ones(n, dtype=np.float32)
    envelope[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / max(rise, 1))
    envelope[n - fall :] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fall) / max(fall, 1))
    return envelope


def strike(n: int, attack: float, decay: float, sample_rate: int) -> np.ndarray:
    """An envelope (n,) that rises within `attack` seconds and decays with a time
    constant of `decay` seconds.
    """
    t = times(n, sample_rate).astype(np.float32)
    return (1 - np.exp(t / np.float32(-attack))) * np.exp(t / np.float32(-decay))


def glide(n: int, *values: float) -> np.ndarray:
    """A curve (n,) through equally spaced `values`."""
    return np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(values)), values)
