"""NaturalSpeech 2 (Shen et al., 2304.09116) on the course's codec: phrases in the voice
of a recording.

All 8 codebooks count, though the language models of chapter 20 write but 4: diffusion
makes the sum of their vectors. espeak-ng says how long each phoneme of a training
phrase lasts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.arguments import MAX_SEED, check_path, check_seconds, check_whole, seeded
from minilib.audioldm2 import Profile
from minilib.codec_diffusion import NaturalSpeech2, NaturalSpeech2Config, Read
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling
from minilib.peers.codec import (
    PEAKS,
    CodecAndVocoder,
    check_recorded,
    check_spoken,
    check_used,
    log_mels,
)
from minilib.phonemes import PhonemeTokenizer
from minilib.soundworld.phrases import HOP, M_CLIP, pieces_of, say
from minilib.soundworld.speech import OTHERS
from minilib.soundworld.talkers import NOISE, TALKERS, Talker
from minilib.training import Recipe, fit
from minilib.vocoder import vocode

PROMPT = 48  # frames of the prompt: 0.96 s
SIGNS = 6  # characters of a phoneme with its marks, at most
N_TAKES = 2000  # each of two phrases
RATES = (90, 200)  # words per minute, the slowest and the fastest
P_NO_PROMPT = 0.15
RECIPE = Recipe(1000, 24, 4e-3, warmup=40, ema=0.99, muon=("linear", "conv"))
SAMPLING = Sampling(steps=20, guidance=1.0, temperature=0.8)
BORROWED = ("codec", "vocoder")
IDS = PhonemeTokenizer.ids
KNOWN = ("ids", "durations", "log_f0", "voiced", "codes", "vectors")  # of a phrase


# ---- What is said


def numbers(pieces: Sequence[tuple[str, ...]]) -> Tensor:
    """Pieces of B phrases as ids (B, S, SIGNS) of their characters, 0 for none."""
    rows = [[[IDS[c] for c in piece][:SIGNS] for piece in row] for row in pieces]
    out = torch.zeros(len(rows), max(map(len, rows)), SIGNS, dtype=torch.long)
    for b, row in enumerate(rows):
        for s, some in enumerate(row):
            out[b, s, : len(some)] = torch.tensor(some)
    return out


class Takes:
    """n takes: two phrases in one voice, at one rate and level. Each is the prompt of
    the other, where the paper cuts its prompt out of the sound itself.

    Args:
        pipe: the codec.
        n: how many.
        seed: of words, voices, rates and levels.
        words, talkers: to be drawn from; the talkers in turn.
        n_words: the fewest and the most of a phrase.
    """

    def __init__(
        self, pipe: CodecAndVocoder, n: int, seed: int, words: Sequence[str] = OTHERS,
        talkers: Sequence[Talker] = TALKERS, n_words: tuple[int, int] = (1, 3),
    ):  # fmt: skip
        rng = np.random.default_rng([seed, 24])
        self.texts, self.talkers, self.phrases, waves = [], [], [], []
        while len(self.texts) < 2 * n:
            talker = talkers[len(self.texts) // 2 % len(talkers)]
            rate, peak = int(rng.integers(*RATES)), rng.uniform(*PEAKS)
            some = rng.integers(*n_words, size=2, endpoint=True)
            drawn = [rng.choice(words, k, replace=False) for k in some]
            texts = [" ".join(few) for few in drawn]
            try:
                both = [
                    say(text, talker, rate, rng.uniform(0.02, 0.06)) for text in texts
                ]
            except ValueError:
                continue  # too long
            self.texts, self.phrases = self.texts + texts, self.phrases + both
            self.talkers += [talker, talker]
            hiss = NOISE * rng.standard_normal((2, M_CLIP * HOP))
            waves += [peak * phrase.wave + noise for phrase, noise in zip(both, hiss)]
        self.waves = torch.from_numpy(np.stack(waves)).float()  # (2n, N)
        mels = log_mels(list(self.waves))
        self.codes = torch.cat([pipe.encode(some) for some in mels.split(64)])
        with torch.no_grad():
            self.vectors = pipe.codec.quantiser.decode(self.codes)  # (2n, M, dim)
        self.ids = numbers([phrase.pieces for phrase in self.phrases])
        durations = [phrase.durations for phrase in self.phrases]
        self.durations = nn.utils.rnn.pad_sequence(durations, batch_first=True)
        self.log_f0 = torch.stack([phrase.log_f0 for phrase in self.phrases])
        self.voiced = torch.stack([phrase.voiced for phrase in self.phrases])

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What is known of phrases (B,), and their prompts."""
        told = {name: getattr(self, name)[rows] for name in KNOWN}
        return told | {"prompt": self.vectors[rows ^ 1, :PROMPT]}

    def batches(self, batch_size: int, config: NaturalSpeech2Config) -> Any:
        """Batches for `NaturalSpeech2.loss`, some rows without a prompt."""

        def drawn(generator: torch.Generator) -> dict[str, Tensor]:
            uniform = lambda *shape: torch.rand(shape, generator=generator)
            rows = (uniform(batch_size) * len(self.texts)).long()
            batch = self.batch(rows)
            u = (uniform(1) + torch.arange(batch_size) / batch_size) % 1
            batch["t"] = 1 + (u * config.n_steps).long().clamp(max=config.n_steps - 1)
            shape = batch["vectors"].shape
            batch["eps"] = torch.randn(shape, generator=generator)
            return batch | {"prompted": uniform(batch_size) >= P_NO_PROMPT}

        return drawn


# ---- Training


def untrained(
    pipe: CodecAndVocoder, takes: Takes, seed: int = 0, **changes: Any
) -> NaturalSpeech2:
    """Fresh weights for a codec; `changes` replace fields of the config."""
    codec, scale = pipe.codec, 1 / float(takes.vectors.std())
    config = replace(NaturalSpeech2Config(), scale=scale, codec=codec.fingerprint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NaturalSpeech2(replace(config, **changes))
    levels = [level.embedding.weight.detach() for level in codec.quantiser.levels]
    model.codebooks.copy_(torch.stack(levels))
    return model


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/naturalspeech2` in float16, and `out/pipeline.json`, which
    names codec and vocoder.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose vocoder it uses; the codec's lies beside it, in
            `../peers/codec`.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    load_part(weights, "vocoder")  # a missing one shall not cost the training
    codec = weights.parent / "peers" / "codec"
    pipe = CodecAndVocoder.from_pretrained(codec)
    takes = Takes(pipe, N_TAKES, seed)
    model = untrained(pipe, takes, seed)
    batches = takes.batches(RECIPE.batch_size, model.config)
    fit(model, batches, replace(RECIPE, steps=steps), seed, "naturalspeech2", progress)
    there = {"codec": codec, "vocoder": weights / "vocoder"}
    told = {name: os.path.relpath(path, out) for name, path in there.items()}
    with replacing_folder(out) as new:
        model.save_pretrained(new / "naturalspeech2", dtype=torch.float16)
        told = json.dumps({"peer": "naturalspeech2", **told}, indent=1) + "\n"
        (new / "pipeline.json").write_text(told)
    return out


# ---- The pipeline


class TextToAudio:
    """A transcription and a voice -> durations and pitch -> the codec's vectors ->
    log-mel -> wave; called as `AudioLDM2` is with a voice.

    Raises:
        ValueError: the network writes the vectors of another codec.
    """

    speaks, sees = True, False
    text = SimpleNamespace(tokenizer=PhonemeTokenizer())
    seconds = None  # as long as the phrase needs

    def __init__(
        self,
        model: NaturalSpeech2,
        pipe: CodecAndVocoder,
        sampling: Sampling = SAMPLING,
    ):
        pipe.codec.check_fingerprint(model.config.codec)
        self.model, self.pipe, self.sampling = model.eval(), pipe, sampling
        self.profile = Profile()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        model = NaturalSpeech2.from_pretrained(
            folder / "naturalspeech2", dtype=torch.float32
        )
        return cls(model, CodecAndVocoder.borrowed(folder))

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        *,
        transcription: str | Sequence[str] | None = None,
        voice: Tensor | None = None,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        candidates: int = 1,
        progress: bool = False,
        **changes: Any,
    ) -> Tensor:
        """Say phrases in a voice.

        Args:
            captions: not read, and refused without a voice; as many sounds are made as
                there are captions, or one.
            sampling: only steps and temperature are used.
            transcription: the words, one text for all or one for each.
            voice: a recording (N,) at 16 kHz of whom to copy; None for any voice.
            seconds: length of the sounds; None for as long as the phrases need.
            seed, candidates: as for `AudioLDM2`; there is nothing to choose among
                candidates, so they must be 1.
        Returns:
            (B, N).
        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        used, said = (
            ("steps", "temperature"),
            "these weights have steps and a temperature",
        )
        how = check_used(sampling, self.sampling, changes, used, f"{said} alone")
        texts = check_spoken(captions, transcription, voice, candidates)
        frames = 0
        if seconds is not None:
            frames = round(check_seconds(seconds) * audio.SAMPLE_RATE / HOP)
        generators, self.profile = seeded(seed, len(texts)), Profile()
        with self.profile.measure("encode"):
            ids = numbers([pieces_of(text) for text in texts])
            read = self.enrol(voice, len(texts))
            durations, log_f0 = self.model.plan(ids, read, frames)
            if 0 < frames < durations.shape[1] or 0 < frames < log_f0.shape[1]:
                least = log_f0.shape[1] * HOP / audio.SAMPLE_RATE
                raise ValueError(f"seconds must be {least:g} or more for these words")
        with self.profile.measure("sample"):
            how = {"steps": how.steps, "temperature": how.temperature}
            how["progress"] = progress
            z = self.model.generate(ids, durations, log_f0, read, generators, **how)
        with self.profile.measure("decode"):
            return self.decode(z)

    def unknown_words(self, caption: str) -> list[str]:
        """None: captions are not read."""
        return []

    @torch.no_grad()
    def enrol(self, voice: Tensor | None, n: int = 1) -> Read:
        """Read a recording (N,) as the prompt of n phrases; None for no prompt."""
        config = self.model.config
        if voice is None:
            nothing = torch.zeros(n, PROMPT, config.dim)
            return self.model.read(nothing, torch.zeros(n, dtype=torch.bool))
        x = check_recorded(voice, 0.1)
        loud = int((x.abs() > 0.05).int().argmax())
        x = F.pad(x[max(0, loud - 2 * HOP) :], (0, PROMPT * HOP))[: PROMPT * HOP]
        noise = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
        codes = self.pipe.encode(log_mels([x + NOISE * noise]))
        vectors = self.pipe.codec.quantiser.decode(codes)  # (1, PROMPT, dim)
        return self.model.read(vectors.expand(n, -1, -1), torch.ones(n).bool())

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The codec's vectors (B, M, dim) to waves (B, N)."""
        return vocode(self.pipe.vocoder, self.pipe.codec.restore(z))
