"""Detectors in closed form: the pitch, speed and loudness of a sound, and the moments
when its strokes begin.

Nothing here is trained. On a log-frequency axis a change of pitch is a shift: the known
spectrum of a kind of sound slides until it fits (Brown 1992), which finds the pitch of
bells, sirens and wind, too. The modulation spectrum gives the speed in the same way.
Strokes begin where the spectrum rises (Bello et al. 2005). If a sound resembles its
kind nowhere, it has no pitch; if it is a smear, it has no strokes. Chapter 17 judges
sounds by it.
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
REACH = 0.4  # octaves by which a pattern slides away from its level
# the least correlation with a pattern at which a sound has a pitch or a speed
LIKENESS = 0.5
# an onset counts as a stroke if it rises by at least this share of known strokes' rise
RISE = 0.4

# --------------------------------------------------------------------------------------
# Measurements of any sound


def unit(spectra: np.ndarray) -> np.ndarray:
    """Spectra (…, N) scaled to mean 0 and norm 1: their products are correlations."""
    x = spectra - spectra.mean(axis=-1, keepdims=True)
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)


def log_spectrum(
    power: np.ndarray, spacing: float, low: float, high: float, exponent: float
) -> np.ndarray:
    """Gather a power spectrum into bands evenly spaced in octaves, as a pattern that
    can slide.

    Args:
        power: (…, K) at frequencies `spacing` Hz apart; low, high: the first and last
            centre of the bands, in Hz.
        exponent: applied to the power; the lower, the more weak bands count. Bands more
            than 50 dB below the strongest do not count.
    Returns:
        (…, N), with mean 0 and norm 1.
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
    """The spectra of sounds: (n, samples) -> (n, N), in bands from 30 to 7800 Hz."""
    # (n, T, N_FFT)
    frames = F.pad(waves, (N_FFT // 2, N_FFT // 2)).unfold(1, N_FFT, N_FFT // 4)
    # (n, K)
    power = torch.fft.rfft(frames * torch.hann_window(N_FFT)).abs().square().mean(dim=1)
    return log_spectrum(
        power.double().numpy(), audio.SAMPLE_RATE / N_FFT, 30, 7800, exponent=0.15
    )


def audible(mel: Tensor) -> np.ndarray:
    """Log-mels (…, T, F) rescaled from 0, 60 dB below the loudest moment, to 7."""
    return torch.log1p(
        1000 * (mel - mel.amax(dim=(-2, -1), keepdim=True)).double().exp()
    ).numpy()


def modulation(mel: Tensor) -> np.ndarray:
    """The modulation spectrum, how often per second a sound comes and goes: log-mel
    (T, F) -> (N,), in bands from 0.3 to 45 Hz.
    """
    loudness = audible(mel)
    swing = (loudness - loudness.mean(axis=0)) * np.hanning(len(mel))[:, None]
    n_fft = max(1024, len(mel))
    # (n_fft // 2 + 1,)
    power = np.square(np.abs(np.fft.rfft(swing, n_fft, axis=0))).sum(axis=1)
    return log_spectrum(power, FRAME_RATE / n_fft, 0.3, 45, exponent=0.8)


def burstiness(wave: Tensor) -> float:
    """Natural logarithm of the variance of the power in 25 ms over its squared mean.

    For grains scattered at random the ratio falls as 1 / rate, since mean and variance
    both grow with the rate (Campbell's theorem).
    """
    # grains are brighter than the roar under them
    bright = (wave[1:] - 0.95 * wave[:-1]).double()
    # without the fades
    power = F.avg_pool1d(bright.square()[None], audio.SAMPLE_RATE // 40)[0, 4:-4]
    return math.log(max(1e-9, power.var() / power.mean().square().clamp_min(1e-20)))


def onset_strength(mel: Tensor, interval: float) -> np.ndarray:
    """The mean rise in the level of the bands (spectral flux; Bello et al. 2005,
    section III.B).

    Args:
        mel: log-mel (T, F); interval: approximate seconds between strokes; a tenth of
            it counts as one moment.
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
    """The times in seconds when strokes begin, or shortly after: peaks of the onset
    strength.

    Args:
        mel: log-mel (T, F); interval: approximate seconds between strokes; peaks closer
            than 0.6 of it count as one.
        rise: the least onset strength of a peak, which must rise above the valleys
            beside it by 0.7 of this.
    """
    strength = np.pad(onset_strength(mel, interval), 1)
    apart = max(1, round(0.6 * interval * FRAME_RATE))
    peaks, _ = signal.find_peaks(
        strength, height=rise, distance=apart, prominence=0.7 * rise
    )
    return (peaks - 1) / FRAME_RATE


def tempo(times: np.ndarray) -> float:
    """Beats per second, by the median, of notes that begin at `times`, most of them one
    beat apart; NaN for fewer than two notes.
    """
    return float(1 / np.median(np.diff(times))) if len(times) > 1 else math.nan


# --------------------------------------------------------------------------------------
# Patterns of known kinds of sound


def nearest(value: float, levels: Sequence[float]) -> int:
    """The index of the level that is nearest in octaves; -1 for NaN, when nothing was
    heard.
    """
    return (
        -1
        if math.isnan(value)
        else int(np.abs(np.log2(np.asarray(levels) / value)).argmin())
    )


@dataclass(frozen=True)
class Pattern:
    """The mean spectrum of a class at each of its levels, shifted up and down."""

    levels: tuple[float, ...]  # Hz
    slid: np.ndarray  # (L, S, N): levels, steps of one band, bands

    @classmethod
    def of(
        cls, spectra: np.ndarray, hz: Sequence[float], levels: Sequence[float]
    ) -> Pattern:
        """Make a pattern from spectra (n, N) whose pitches or rates (n,) vary a little
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
        """The frequency in Hz at which the pattern fits a spectrum (N,) best,
        interpolated by a parabola; NaN if it fits nowhere.
        """
        fits = self.slid @ spectrum  # (L, S)
        k, s = np.unravel_index(fits.argmax(), fits.shape)
        # at the edge, the best fit would lie beyond the range of the slide
        beyond = s in (0, fits.shape[1] - 1)
        if fits[k, s] < LIKENESS or beyond:
            return math.nan
        left, top, right = fits[k, s - 1 : s + 2]
        step = s - fits.shape[1] // 2 + (left - right) / (2 * (left - 2 * top + right))
        return self.levels[k] * 2 ** (step / PER_OCTAVE)


@dataclass(frozen=True)
class Strokes:
    """The onsets of the strokes of a class."""

    interval: float  # approximate seconds from one to the next
    rise: float  # the median onset strength of a stroke
    delay: float  # seconds from a stroke's beginning to its peak of onset strength

    @classmethod
    def of(
        cls, mels: Tensor, times: Sequence[Sequence[float]], interval: float
    ) -> Strokes:
        """Measure strokes at known times in log-mels (n, T, F)."""
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
        """The times in seconds when such strokes begin in a log-mel (T, F)."""
        return onsets(mel, self.interval, RISE * self.rise) - self.delay
