"""Phrases whose every phoneme is known, with its place and its pitch: what a system
needs that says phonemes one after the other and skips none (chapter 24).

espeak-ng says when each phoneme begins. The pitch is not asked for but heard, so that
the same measure serves for what a model says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..audio import SAMPLE_RATE
from . import espeak
from .talkers import Talker

HOP = 320  # samples of a frame, 20 ms, as in the codec
M_CLIP = 96  # frames of a phrase: 1.92 s
SILENCE = " "  # the piece before the first phoneme and after the last
WINDOW = 1024  # samples in which a period is looked for
LAGS = np.arange(32, 321)  # samples: 50 to 500 Hz
VOICED = 0.5  # of a perfect period: less is taken for noise


class Phrase(NamedTuple):
    """A phrase that was really said: M frames, S pieces."""

    wave: np.ndarray  # (N,) of peak 1, silence at both ends
    pieces: tuple[str, ...]  # S phonemes in IPA, silence first and last
    durations: Tensor  # (S,) frames, sum M
    log_f0: Tensor  # (M,) nepers of hertz, a line where no voice is
    voiced: Tensor  # (M,) bool


def pieces_of(text: str) -> tuple[str, ...]:
    """The phonemes of a text, with the silence at both ends."""
    return SILENCE, *(piece.symbol for piece in espeak.say(text).phonemes), SILENCE


def say(text: str, talker: Talker, rate: int, onset: float, M: int = M_CLIP) -> Phrase:
    """A phrase of M frames that begins after `onset` seconds, with what espeak-ng knows
    of its phonemes. ValueError if it is longer.
    """
    said = espeak.say(text, f"en-us+{talker.variant}", talker.height, rate)
    first, end = round(onset * SAMPLE_RATE), said.phonemes[-1].end + onset
    starts = [onset + piece.start for piece in said.phonemes] + [end]
    bounds = [0, *(round(x * SAMPLE_RATE / HOP) for x in starts), M]
    if end * SAMPLE_RATE > M * HOP:
        raise ValueError(f"{text!r} lasts longer than {M} frames")
    wave = np.zeros(M * HOP, dtype=np.float32)
    part = said.wave[: M * HOP - first]
    wave[first : first + len(part)] = part / abs(part).max()
    pieces = SILENCE, *(piece.symbol for piece in said.phonemes), SILENCE
    return Phrase(wave, pieces, torch.tensor(np.diff(bounds)), *track(wave))


def track(wave: np.ndarray) -> tuple[Tensor, Tensor]:
    """The pitch of a wave (N,): log f0 (M,) and where a voice is (M,), by the lag at
    which the autocorrelation, divided by the window's own, is highest; an octave up
    costs nothing, an octave down 0.05 (after Boersma 1993).
    """
    x = np.pad(wave, (WINDOW - HOP) // 2)
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP]  # (M, WINDOW)
    window = np.hanning(WINDOW)
    likeness = lambda y: np.fft.irfft(abs(np.fft.rfft(y, 2 * WINDOW)) ** 2)
    own, r = likeness(window), likeness((frames - frames.mean(1)[:, None]) * window)
    power = r[:, :1]
    r = r[:, LAGS] / np.maximum(power, 1e-9) * (own[0] / own[LAGS])
    best = (r - 0.05 * np.log2(LAGS / LAGS[0])).argmax(axis=1)
    loud = power[:, 0] > 1e-3 * power.max()
    voiced = loud & (r[np.arange(len(r)), best] > VOICED)
    log_f0 = np.log(SAMPLE_RATE / LAGS[best])
    if voiced.any():
        there = np.arange(len(r))
        log_f0 = np.interp(there, there[voiced], log_f0[voiced])
    return torch.from_numpy(log_f0).float(), torch.from_numpy(voiced)
