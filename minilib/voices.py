"""Which of a list of known voices speaks: a judge without weights, which any list of
voices enrols in seconds.

It compares what a voice keeps from word to word: the shape of its spectrum, as cepstra
(Davis & Mermelstein 1980), and its period, as an autocorrelation. Fisher's linear
discriminant then weighs the directions in which voices differ against those in which
the words of one voice do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor

from minilib import audio

CEPSTRA = 31  # numbers of the spectrum's shape
FRAME, HOP = 1024, 320  # samples of a frame in which a period is looked for
LAGS = np.unique(np.geomspace(32, 330, 48).round().astype(int))  # samples: 48 to 500 Hz
FAINT = 4.0  # nepers below the loudest frame: frames that do not count
RIDGE = 0.05  # of the variance within voices: it steadies directions seen too rarely


@dataclass(frozen=True)
class KnownVoices:
    """Voices that are known by some of their words.

    `KnownVoices.enrolled` makes one. Enrol each voice by clean words and by the same
    words through the vocoder: both are then heard as the same voice.
    """

    names: tuple[str, ...]
    mean: Tensor  # (D,) of the traits of all that was enrolled
    scale: Tensor  # (D,)
    centres: Tensor  # (K, D), one for each voice
    precision: Tensor  # (D, D), the inverse of the covariance within voices

    @classmethod
    def enrolled(cls, waves: Tensor, said_by: Sequence[str]) -> KnownVoices:
        """Let it hear waves (n, N) at 16 kHz, each said by the voice of that name.

        Raises:
            ValueError: the names are not as many as the waves, there is one voice only,
                or a voice says fewer than two words.
        """
        names = tuple(dict.fromkeys(said_by))
        if len(said_by) != len(waves):
            told = f"{len(waves)} waves and {len(said_by)} names"
            raise ValueError(f"said_by must name the voice of each wave, not {told}")
        if len(names) < 2 or min(map(list(said_by).count, names)) < 2:
            wanted = "two voices or more, and two waves or more of each"
            raise ValueError(f"said_by must name {wanted}")
        own = torch.tensor([names.index(name) for name in said_by])
        x = traits(waves)
        mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x = (x - mean) / scale
        centres = torch.stack([x[own == k].mean(dim=0) for k in range(len(names))])
        rest = x - centres[own]
        covariance = rest.T @ rest / len(rest) + RIDGE * torch.eye(x.shape[1]).to(x)
        return cls(names, mean, scale, centres, torch.linalg.inv(covariance))

    def distances(self, waves: Tensor) -> Tensor:
        """Squared Mahalanobis distances (n, K) of waves (n, N) to the voices."""
        x = (traits(waves) - self.mean) / self.scale
        off = x[:, None] - self.centres  # (n, K, D)
        return torch.einsum("nkd,de,nke->nk", off, self.precision, off)

    def hear(self, waves: Tensor) -> list[str]:
        """The name of the nearest voice, for each of waves (n, N)."""
        return [self.names[k] for k in self.distances(waves).argmin(dim=1)]


def traits(waves: Tensor) -> Tensor:
    """What tells voices apart in waves (n, N), as numbers (n, D) in double precision.

    Raises ValueError unless the waves are finite and have a frame or more.
    """
    least = f"(n, N) of finite numbers, N at least {FRAME}"
    if waves.dim() != 2 or waves.shape[1] < FRAME or not waves.isfinite().all():
        raise ValueError(f"waves must be {least}, not {tuple(waves.shape)}")
    found = [torch.cat([shape(x), period(x)]) for x in waves.float().cpu()]
    return torch.stack(found) if found else torch.zeros(0, 2 * (CEPSTRA + len(LAGS)))


def shape(wave: Tensor) -> Tensor:
    """Mean and deviation of the cepstra of a wave's audible frames."""
    mel = audio.log_mel(wave[None])[0, 0]  # (T, F)
    level = mel.logsumexp(dim=1)
    heard = mel[level > level.max() - FAINT].double().numpy()
    cepstra = dct(heard, norm="ortho", axis=1)[:, 1 : CEPSTRA + 1]
    return torch.from_numpy(np.concatenate([cepstra.mean(0), cepstra.std(0)]))


def period(wave: Tensor) -> Tensor:
    """Mean and 90th percentile, over a wave's audible frames, of the autocorrelation
    at LAGS, computed from the root of the magnitudes so that no formant rules.
    """
    frames = wave.double().unfold(0, FRAME, HOP)  # (T, FRAME)
    power = frames.square().mean(dim=1)
    frames = frames[power >= math.exp(-FAINT + 1) * power.max()]
    window = torch.hann_window(FRAME, dtype=frames.dtype)
    root = torch.fft.rfft(F.pad(frames * window, (0, FRAME))).abs().sqrt()
    like = torch.fft.irfft(root)
    like = (like / like[:, :1].clamp_min(1e-12))[:, LAGS]
    return torch.cat([like.mean(dim=0), like.quantile(0.9, dim=0)])
