"""A codec of 50 frames a second with 8 codebooks, for speech and for sounds.

It is the codec that the language models of chapters 20 and 20b write for: 64 entries in
each codebook, 300 bit/s for each. It learns from espeak's words in 40 voices, which are
drawn for every clip, and from SoundWorld's events. The words of SoundWorld's speech,
and two of espeak's variants, stay out of its training. The vocoder is AudioLDM 2's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.arguments import MAX_SEED, check_path, check_whole, one_each
from minilib.codec import Codec
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling, check_sampling
from minilib.model import read_json
from minilib.soundworld import SoundWorld
from minilib.soundworld.speech import OTHERS
from minilib.soundworld.talkers import FRAMES, TALKERS, say
from minilib.training import Recipe, fit

N_WORDS, N_EVENTS = 2400, 1400  # clips
RECIPE = Recipe(steps=1800, batch_size=32, lr=2e-3, warmup=30, muon=("linear", "conv"))
KEPT = (1, 2, 4, 8)  # codebooks that a row may use (2309.07405: structured dropout)
BORROWED = ("vocoder",)
PEAKS = (0.4, 0.9)  # the quietest and the loudest of a word


class CodecClips:
    """Training batches: half of the rows are words, half pieces of SoundWorld's clips.

    Args:
        seed: of the clips.
        n_words, n_events: how many clips of each kind there are.
        kept: numbers of codebooks, one of which each row draws; None for no dropout.
    """

    def __init__(
        self, seed: int = 0, n_words: int = N_WORDS, n_events: int = N_EVENTS,
        batch_size: int = RECIPE.batch_size, kept: tuple[int, ...] | None = KEPT,
    ):  # fmt: skip
        self.batch_size, self.kept = batch_size, kept
        rng, world = np.random.default_rng(seed), SoundWorld("train", seed, 2.56)
        draw = lambda among: among[rng.integers(len(among))]
        words = (say(draw(OTHERS), draw(TALKERS), rng) for _ in range(n_words))
        self.words = log_mels(list(words))
        self.events = log_mels([world[i].wave for i in range(n_events)])

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `Codec.loss`."""
        draw = lambda n, shape: torch.randint(n, shape, generator=generator)
        n = self.batch_size // 2
        words = self.words[draw(len(self.words), (self.batch_size - n,))]
        starts = draw(self.events.shape[2] - FRAMES + 1, (n,)).tolist()
        chosen = zip(draw(len(self.events), (n,)).tolist(), starts)
        events = [self.events[i, :, at : at + FRAMES] for i, at in chosen]
        batch = {"mel": torch.stack([*words, *events])}
        if self.kept:
            drawn = draw(len(self.kept), (self.batch_size,))
            batch["keep"] = torch.tensor(self.kept)[drawn]
        return batch


@torch.no_grad()
def log_mels(waves: list[Tensor]) -> Tensor:
    """The log-mels (B, 1, T, F) of waves (N,)."""
    return torch.cat([audio.log_mel(some) for some in torch.stack(waves).split(64)])


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/codec` in float16, and `out/pipeline.json`, which names
    the vocoder that it borrows.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose vocoder it uses.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    load_part(weights, "vocoder")  # a missing one shall not cost the training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Codec.preset("tiny")
    recipe = replace(RECIPE, steps=steps)
    fit(model, CodecClips(seed), recipe, seed, "codec", progress)
    there = {x: os.path.relpath(weights / x, out) for x in BORROWED}
    with replacing_folder(out) as new:
        model.save_pretrained(new / "codec", dtype=torch.float16)
        told = json.dumps({"peer": "codec", **there}, indent=1) + "\n"
        (new / "pipeline.json").write_text(told)
    return out


class CodecAndVocoder:
    """The codec and the vocoder that sounds it: what `metrics.reconstruction` needs.

    Args:
        codec, vocoder: the parts.
        codebooks: how many of the codec's are used; None for all.

    Raises:
        ValueError: the codec does not have as many codebooks.
    """

    def __init__(self, codec: Codec, vocoder: nn.Module, codebooks: int | None = None):
        self.codec, self.vocoder = codec, vocoder
        self.codebooks = codec.first(codebooks)
        self.device = codec.device

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, codebooks: int | None = None
    ) -> CodecAndVocoder:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        codec = Codec.from_pretrained(folder / "codec", dtype=torch.float32)
        vocoder = load_part(folder, "vocoder", torch.float32)
        return cls(codec, vocoder, codebooks)

    @classmethod
    def borrowed(cls, folder: Path) -> CodecAndVocoder:
        """The codec and the vocoder that the `pipeline.json` of a language model names;
        the errors are those of `from_pretrained`.
        """
        codec = read_json(folder / "pipeline.json").get("codec", "codec")
        pipe = cls.from_pretrained(folder / str(codec))
        pipe.vocoder = load_part(folder, "vocoder", torch.float32)
        return pipe

    @property
    def kbit_per_second(self) -> float:
        """Thousands of bits a second of the codebooks that are used."""
        config = self.codec.config
        return config.kbit_per_second * self.codebooks / config.n_codebooks

    @torch.no_grad()
    def encode(self, mel: Tensor) -> Tensor:
        """The codes (B, M, n) of a log-mel (B, 1, T, F) of any length T."""
        silent, missing = math.log(audio.LOG_FLOOR), -mel.shape[2]
        missing %= self.codec.config.stride
        codes = self.codec.encode(F.pad(mel, (0, 0, 0, missing), value=silent))
        return codes[..., : self.codebooks]

    @torch.no_grad()
    def reconstruct(self, mel: Tensor) -> Tensor:
        """Send a log-mel (B, 1, T, F) of any length T through codes and back."""
        return self.codec.decode(self.encode(mel))[:, :, : mel.shape[2]]


# ---- What peers that write codes, or their vectors, are given


def check_used(
    given: Sampling | None,
    own: Sampling,
    changes: dict[str, Any],
    used: Sequence[str],
    said: str,
) -> Sampling:
    """The sampling, a peer's own if none is given; a changed field that is not among
    those `used` raises the sentence `said`.
    """
    how = check_sampling(given, own).changed(**changes)
    for field in fields(Sampling):
        unused = field.name not in used
        if unused and getattr(how, field.name) != getattr(own, field.name):
            raise ValueError(f"{said}: leave out {field.name}")
    return how


def check_temperature(
    given: Sampling | None, own: Sampling, changes: dict[str, Any]
) -> float:
    """The temperature of a language model, which uses nothing else of a sampling."""
    said = "these weights write codes and have a temperature alone"
    return check_used(given, own, changes, ("temperature",), said).temperature


def check_spoken(
    captions: str | Sequence[str] | None,
    transcription: str | Sequence[str] | None,
    voice: Any,
    candidates: int,
) -> list[str]:
    """The words of each sound, for peers that speak and read no captions; there are as
    many sounds as captions, or one. What they have no use for raises a sentence.
    """
    if candidates != 1:
        said = f"must be 1 without a CLAP to choose, not {candidates}"
        raise ValueError(f"candidates {said}")
    n = 1 if captions is None or isinstance(captions, str) else len(captions)
    if transcription is None:
        raise ValueError("these weights speak: transcription must give the words")
    if captions is not None and voice is None:
        said = "leave captions out, or give a recording as voice"
        raise ValueError(f"these weights read no captions: {said}")
    texts = one_each("transcription", transcription, n)
    if not all(text.strip() for text in texts):
        raise ValueError("a transcription is empty: write the words to speak")
    return texts


def check_recorded(voice: Any, least: float) -> Tensor:
    """A recording of a voice (N,), at the mean level of words in training; one that is
    silent, or shorter than `least` seconds, raises a sentence.
    """
    if not isinstance(voice, Tensor) or voice.ndim != 1 or not voice.any():
        raise ValueError("voice must be a recording (N,) that is not silent")
    seconds = len(voice) / audio.SAMPLE_RATE
    if len(voice) < round(least * audio.SAMPLE_RATE):
        raise ValueError(f"voice must last {least:g} s or longer, not {seconds:.2f} s")
    return voice.float() * (np.mean(PEAKS) / float(voice.abs().max()))
