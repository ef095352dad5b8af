"""A speech recogniser that nobody here trained: pocketsphinx with its English model
(chapter 11b).

It judges which words a sound says. Its grammar is closed: one or two of a list of
words, and nothing else. It errs too, so it is scored on clean speech before anything
else, and results are printed between chance and that score. The model and the CMU
pronouncing dictionary lie inside the package `pocketsphinx` (BSD licence).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from minilib.audio import SAMPLE_RATE

MARGIN = 0.2  # seconds of near silence on both sides
HISS = 1e-4  # deviation of the faint noise under a sound and in the margins
PEAK = 0.5  # a sound is made this loud
FRAME = 400  # samples
QUIET = 35  # decibels below the loudest frame: fainter ones at both ends are cut off
ABSENT = (
    "the recogniser, pocketsphinx, is not installed: pip install pocketsphinx==5.1.1"
)


class Recogniser:
    """A recogniser of one to `longest` words of a closed list.

    Args:
        words: the words that can be heard; each must be in the CMU dictionary.
        longest: the most words in one sound.

    Raises:
        ModuleNotFoundError: pocketsphinx is not installed.
        ValueError: there are no words, or the dictionary lacks some.
    """

    def __init__(self, words: Iterable[str], longest: int = 1) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ModuleNotFoundError(ABSENT) from error
        self.words, self.longest = tuple(dict.fromkeys(words)), longest
        if not self.words or longest < 1:
            wanted = "words must hold at least one word, and longest be 1 or more"
            raise ValueError(f"{wanted}, not {len(self.words)} words and {longest}")
        how = {"samprate": SAMPLE_RATE, "loglevel": "FATAL"}
        self._decoder = Decoder(lm=None, **how)
        unknown = [w for w in self.words if not self._decoder.lookup_word(w)]
        if unknown:
            said = f"the CMU dictionary lacks {', '.join(unknown)}"
            raise ValueError(f"words must be in the recogniser's dictionary: {said}")
        one = f"({' | '.join(self.words)})"
        more = f" [{one}" * (longest - 1) + "]" * (longest - 1)
        grammar = f"#JSGF V1.0; grammar closed; public <said> = {one}{more};"
        self._decoder.add_jsgf_string("closed", grammar)
        self._decoder.activate_search("closed")

    def __call__(self, wave: Tensor | np.ndarray) -> str:
        """The words heard in a wave (N,) at 16 kHz, as text; "" for none."""
        x = np.asarray(wave, dtype=np.float32)
        if x.ndim != 1 or not np.isfinite(x).all():
            raise ValueError(f"wave must be (N,) of finite numbers, not {x.shape}")
        if not x.any():
            return ""
        x = np.pad(audible(x), round(MARGIN * SAMPLE_RATE))
        x = x + HISS * np.random.default_rng(0).standard_normal(len(x))
        samples = np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)
        # forget the noise of the sounds before
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""

    def accuracy(self, waves: Iterable[Tensor], texts: Sequence[str]) -> float:
        """The share of sounds in which exactly these words are heard."""
        heard = [self(wave) == text for wave, text in zip(waves, texts, strict=True)]
        return float(np.mean(heard))


def audible(wave: np.ndarray) -> np.ndarray:
    """The part of a wave (N,) from the first loud frame to the last, at a peak of PEAK.

    pocketsphinx subtracts the mean spectrum of all that it is given, which long silence
    would distort.
    """
    x = np.pad(wave, (0, max(0, FRAME - len(wave)))) * (PEAK / np.abs(wave).max())
    frames = np.lib.stride_tricks.sliding_window_view(x, FRAME)[:: FRAME // 2]
    power = np.mean(frames**2, axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-QUIET / 10)) * (FRAME // 2)
    return x[loud[0] : loud[-1] + FRAME]
