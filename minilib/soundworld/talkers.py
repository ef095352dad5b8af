"""Forty voices for the models that write codes, and eight that they never hear.

SoundWorld's speech has eight voices, too few to say anything of unseen ones. These
are espeak-ng's variants at several pitches; a word is said at a rate, a level and a
moment that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..audio import HOP
from ..voices import KnownVoices
from . import espeak
from .speech import OTHERS

FRAMES = 128  # of the log-mel of a word: 1.28 s
VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m7", "m8", "f1", "f2", "f5")
UNSEEN_VARIANTS = ("m6", "f3")
HEIGHTS = (15, 35, 55, 75)  # pitch for espeak-ng
RATES = (100, 150)  # words per minute, the slowest and the fastest
NOISE = 1e-4  # as under SoundWorld's clips
ENROLLED = 24  # words by which the judge knows a talker


class Talker(NamedTuple):
    """A voice that espeak-ng makes: formants by a variant, and a pitch."""

    variant: str
    height: int

    @property
    def name(self) -> str:
        """As the judge calls it: "m1 15"."""
        return f"{self.variant} {self.height}"


TALKERS = tuple(Talker(v, h) for v in VARIANTS for h in HEIGHTS)
UNSEEN_TALKERS = tuple(Talker(v, h) for v in UNSEEN_VARIANTS for h in HEIGHTS)


def say(word: str, talker: Talker, rng: np.random.Generator) -> Tensor:
    """A word as a wave (N,) of 1.28 s, at a rate, a level and an onset that rng draws;
    the end of a longer word is cut off.
    """
    voice, rate = f"en-us+{talker.variant}", int(rng.integers(*RATES, endpoint=True))
    said = espeak.speak(word, voice, talker.height, rate)
    N = FRAMES * HOP
    onset = int(rng.integers(1 + max(0, min(N - len(said), N // 8))))
    wave = NOISE * rng.standard_normal(N)
    part = said[: N - onset]
    wave[onset : onset + len(part)] += part * (rng.uniform(0.4, 0.9) / abs(said).max())
    return torch.from_numpy(wave.astype(np.float32))


def known_talkers(
    resounded: Callable[[Tensor], Tensor] | None = None,
    talkers: tuple[Talker, ...] = TALKERS,
    seed: int = 1000,
) -> KnownVoices:
    """A judge of talkers, who knows ENROLLED words of OTHERS in each voice.

    Args:
        resounded: sends waves (n, N) through the vocoder that sounds what is judged;
            the judge then knows every second word as it sounds behind it, too.
        talkers: whose voices it tells apart, by `Talker.name`.
        seed: of rates, levels and onsets; another one than that of what is judged.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
    """
    rng = np.random.default_rng(seed)
    long = [word for word in OTHERS if len(word) > 4]
    words = long[:: len(long) // ENROLLED][:ENROLLED]
    said_by = [talker.name for talker in talkers for _ in words]
    waves = torch.stack([say(word, t, rng) for t in talkers for word in words])
    if resounded is not None:
        more = [resounded(some) for some in waves[::2].split(64)]
        waves, said_by = torch.cat([waves, *more]), said_by + said_by[::2]
    return KnownVoices.enrolled(waves, said_by)
