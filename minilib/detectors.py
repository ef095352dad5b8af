"""Detectors in closed form: how high a sound is, how fast, how loud, and when its
strokes begin.

Nothing here is trained. Along log frequency a change of pitch is a shift: the known
spectrum of a kind of sound slides until it fits (Brown 1992), and tells the pitch also
of bells, sirens and wind. The spectrum of the modulations tells the speed in the same
way. Strokes begin where the spectrum rises (Bello et al. 2005). A sound that is nowhere
like its kind has no pitch, and a smear has no strokes. Chapter 17 builds this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, signal
from torch import Tensor

from minilib import audio

FRAME_RATE = audio.SAMPLE_RATE / audio.HOP  # frames of the log-mel a second
N_FFT = 4096  # 256 ms: the harmonics of 40 Hz stay apart
PER_OCTAVE = 24  # bands of a spectrum
REACH = 0.4  # octaves that a pattern slides from its level
# the correlation with a pattern from which on a sound has a pitch or a speed
LIKENESS = 0.5
# an onset is no stroke if it rises by less than this share of what the known strokes do
RISE = 0.4

# --------------------------------------------------------------------------------------
# What is measured of any sound


def unit(spectra: np.ndarray) -> np.ndarray:
    """Spectra (…, N) at mean 0 and norm 1: their products are correlations."""
    x = spectra - spectra.mean(axis=-1, keepdims=True)
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)


def log_spectrum(
    power: np.ndarray, spacing: float, low: float, high: float, exponent: float
) -> np.ndarray:
    """Gather a power spectrum in bands evenly spaced in octaves, as a pattern that can
    slide.

    Args:
        power: (…, K) at frequencies `spacing` Hz apart; low, high: the band's centres,
            in Hz.
        exponent: of the power; the lower, the more the weak bands count. They do from
            50 dB below the strongest on.
    Returns:
        (…, N), at mean 0 and norm 1.
    """
    centres = low * 2 ** (
        np.arange(int(PER_OCTAVE * math.log2(high / low))) / PER_OCTAVE
    )
    centres = centres[:, None]  # (N, 1)
    widths = np.maximum(centres * (2 ** (1 / PER_OCTAVE) - 1), spacing)
    triangles = np.clip(
        1 - np.abs(np.arange(power.shape[-1]) * spacing - centres) / widths, 0, None
    )
    # power in an equal part of an octave
    bands = power @ (triangles * centres / widths).T
    return unit(
        (bands / bands.max(axis=-1, keepdims=True).clip(1e-20) + 1e-5) ** exponent
    )


def spectrum(waves: Tensor) -> np.ndarray:
    """What sounds how high: (n, samples) -> (n, N), in bands from 30 to 7800 Hz."""
    # (n, T, N_FFT)
    frames = F.pad(waves, (N_FFT // 2, N_FFT // 2)).unfold(1, N_FFT, N_FFT // 4)
    # (n, K)
    power = torch.fft.rfft(frames * torch.hann_window(N_FFT)).abs().square().mean(dim=1)
    return log_spectrum(
        power.double().numpy(), audio.SAMPLE_RATE / N_FFT, 30, 7800, exponent=0.15
    )


def audible(mel: Tensor) -> np.ndarray:
    """Log-mels (…, T, F) on a scale from 0, at 60 dB below the loudest moment, to 7."""
    return torch.log1p(
        1000 * (mel - mel.amax(dim=(-2, -1), keepdim=True)).double().exp()
    ).numpy()


def modulation(mel: Tensor) -> np.ndarray:
    """How often a second the sound comes and goes: log-mel (T, F) -> (N,), in bands
    from 0.3 to 45 Hz.
    """
    loudness = audible(mel)
    swing = (loudness - loudness.mean(axis=0)) * np.hanning(len(mel))[:, None]
    n_fft = max(1024, len(mel))
    # (n_fft // 2 + 1,)
    power = np.square(np.abs(np.fft.rfft(swing, n_fft, axis=0))).sum(axis=1)
    return log_spectrum(power, FRAME_RATE / n_fft, 0.3, 45, exponent=0.8)


def burstiness(wave: Tensor) -> float:
    """Variance of the power in 25 ms over its squared mean, as a natural logarithm.

    For grains strewn at random it falls as 1 / rate, as mean and variance both grow
    with it (Campbell's theorem).
    """
    # grains are brighter than the roar under them
    bright = (wave[1:] - 0.95 * wave[:-1]).double()
    # without the fades
    power = F.avg_pool1d(bright.square()[None], audio.SAMPLE_RATE // 40)[0, 4:-4]
    return math.log(max(1e-9, power.var() / power.mean().square().clamp_min(1e-20)))


def onset_strength(mel: Tensor, interval: float) -> np.ndarray:
    """By how much the bands get louder, in the mean (spectral flux; Bello et al. 2005,
    section III.B).

    Args:
        mel: log-mel (T, F); interval: seconds from stroke to stroke, about: a tenth of
            it is seen as one moment.
    Returns:
        (T,), in units of `audible`.
    """
    smooth = ndimage.gaussian_filter1d(
        audible(mel), 0.08 * interval * FRAME_RATE, axis=0, mode="nearest"
    )
    lag = max(1, round(0.1 * interval * FRAME_RATE))
    before = np.concatenate([np.repeat(smooth[:1], lag, axis=0), smooth[:-lag]])
    return np.clip(smooth - before, 0, None).mean(axis=1)


def onsets(mel: Tensor, interval: float, rise: float) -> np.ndarray:
    """When strokes begin, in seconds, or a little later: peaks of the onset strength.

    Args:
        mel: log-mel (T, F); interval: seconds from stroke to stroke, about: peaks
            nearer than 0.6 of it are one.
        rise: the least onset strength of a peak; 0.7 of it must stand above the valleys
            beside it.
    """
    strength = np.pad(onset_strength(mel, interval), 1)
    apart = max(1, round(0.6 * interval * FRAME_RATE))
    peaks, _ = signal.find_peaks(
        strength, height=rise, distance=apart, prominence=0.7 * rise
    )
    return (peaks - 1) / FRAME_RATE


def tempo(times: np.ndarray) -> float:
    """Beats a second of notes that begin at `times`, most of them one a beat: the
    median. NaN below two notes.
    """
    return float(1 / np.median(np.diff(times))) if len(times) > 1 else math.nan


# --------------------------------------------------------------------------------------
# Patterns of a kind of sound that is known


def nearest(value: float, levels: Sequence[float]) -> int:
    """The number of the level that is nearest in octaves; -1 for NaN, where nothing was
    heard.
    """
    return (
        -1
        if math.isnan(value)
        else int(np.abs(np.log2(np.asarray(levels) / value)).argmin())
    )


@dataclass(frozen=True)
class Pattern:
    """The mean spectrum of a class at each of its levels, slid up and down."""

    levels: tuple[float, ...]  # Hz
    slid: np.ndarray  # (L, S, N): levels, steps of one band, bands

    @classmethod
    def of(
        cls, spectra: np.ndarray, hz: Sequence[float], levels: Sequence[float]
    ) -> Pattern:
        """Make the pattern of spectra (n, N) whose pitches or rates (n,) vary a little
        around the levels.
        """
        slide = partial(ndimage.shift, order=1, mode="nearest")
        reach = round(REACH * PER_OCTAVE) if len(levels) > 1 else 0
        slid = []
        for k, at in enumerate(levels):
            here = [i for i, value in enumerate(hz) if nearest(value, levels) == k]
            mean = np.mean(
                [slide(spectra[i], PER_OCTAVE * math.log2(at / hz[i])) for i in here],
                axis=0,
            )
            slid.append([slide(mean, step) for step in range(-reach, reach + 1)])
        return cls(tuple(levels), unit(np.array(slid)))

    def likeness(self, spectrum: np.ndarray) -> float:
        """The highest correlation with a spectrum (N,), -1 to 1."""
        return float((self.slid @ spectrum).max())

    def find(self, spectrum: np.ndarray) -> float:
        """Where in Hz the pattern fits a spectrum (N,) best, between steps by a
        parabola; NaN: it fits nowhere.
        """
        fits = self.slid @ spectrum  # (L, S)
        k, s = np.unravel_index(fits.argmax(), fits.shape)
        # at the edge it would fit better still where it can't slide
        beyond = s in (0, fits.shape[1] - 1)
        if fits[k, s] < LIKENESS or beyond:
            return math.nan
        left, top, right = fits[k, s - 1 : s + 2]
        step = s - fits.shape[1] // 2 + (left - right) / (2 * (left - 2 * top + right))
        return self.levels[k] * 2 ** (step / PER_OCTAVE)


@dataclass(frozen=True)
class Strokes:
    """How the strokes of a class begin."""

    interval: float  # seconds from one to the next, about
    rise: float  # the median onset strength of a stroke
    delay: float  # seconds from its beginning to that peak

    @classmethod
    def of(
        cls, mels: Tensor, times: Sequence[Sequence[float]], interval: float
    ) -> Strokes:
        """Look at strokes of known times in log-mels (n, T, F)."""
        peaks = []
        for mel, strokes in zip(mels, times):
            strength = onset_strength(mel, interval)
            for time in strokes:
                start = max(0, round((time - 0.1 * interval) * FRAME_RATE))
                near = strength[
                    start : start + max(5, round(0.3 * interval * FRAME_RATE))
                ]
                peaks.append((near.max(), (start + near.argmax()) / FRAME_RATE - time))
        rise, delay = np.median(peaks, axis=0)
        return cls(interval, float(rise), float(delay))

    def find(self, mel: Tensor) -> np.ndarray:
        """When such strokes begin in a log-mel (T, F), in seconds."""
        return onsets(mel, self.interval, RISE * self.rise) - self.delay
