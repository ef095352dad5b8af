"""AudioLDM 2, whole: from captions to waveforms through the Language of Audio (Liu et
al., 2308.05734).

    captions -> encode -> loa -> sample -> decode -> waveforms

The stages are methods, so that a chapter can stop between any two of them. Chapter 16
builds the pipeline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib import audio, lean
from minilib.conditions import Conditions, Context
from minilib.diffusion import ddim_sample, dpm_solver_sample
from minilib.folders import Parts, Stored
from minilib.guidance import Sampling, check_number, check_whole, guided
from minilib.tokenizer import split_words
from minilib.vocoder import vocode

LOUDER = 20.0  # decibels by which a sound is made louder or softer at most
MAX_SECONDS = 60.0
MAX_CANDIDATES = 64


@dataclass
class Profile:
    """Seconds spent in each stage of a call, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        yield
        taken = time.perf_counter() - began
        self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


class Pipeline(Stored):
    """What the stages stand on: lengths and shapes, loudness, the best of several."""

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.profile = Profile()

    @property
    def speaks(self) -> bool:
        """Whether an encoder of this pipeline reads a transcription."""
        return any(x.reads == "transcription" for x in self.encoders.values())

    def n_samples(self, seconds: float | None = None) -> int:
        """Samples of a sound of this length, None for that of the training clips."""
        seconds = self.seconds if seconds is None else seconds
        return round(check_seconds(seconds) * audio.SAMPLE_RATE)

    def latent_shape(self, n: int, n_samples: int) -> tuple[int, int, int, int]:
        """Shape of the latents of n sounds: frames rounded up to what VAE and U-Net can
        halve.
        """
        r, unet = self.vae.config.reduction, self.unet.config
        multiple = unet.patch * 2 ** (len(unet.block_out_channels) - 1)
        T = math.ceil(n_samples / audio.HOP / r / multiple) * multiple
        return n, unet.in_channels, T, audio.N_MELS // r

    def reconstruct(self, mel: Tensor) -> Tensor:
        """A log-mel (B, 1, T, F) through the VAE and back, T any length."""
        silent = math.log(audio.LOG_FLOOR)
        T, missing = mel.shape[2], -mel.shape[2] % self.vae.config.reduction
        return self.vae(F.pad(mel, (0, 0, 0, missing), value=silent))[:, :, :T]

    def noise(
        self,
        n: int,
        n_samples: int,
        given: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The noise (n, C, T/r, F/r) that sounds start from, drawn if none is given."""
        shape = self.latent_shape(n, n_samples)
        noise = torch.randn(shape, generator=generator) if given is None else given
        if noise.shape != shape:
            raise ValueError(
                f"latents must be of shape {shape}, not {tuple(noise.shape)}"
            )
        return noise

    def best(self, waves: Tensor, conditions: Conditions, candidates: int) -> Tensor:
        """Of each caption's candidates (B * candidates, N), the one that CLAP finds
        most like it.
        """
        told = conditions["clap"].sequence[:, 0]
        alike = (self.clap.embed_waves(waves) * told).sum(dim=-1)  # (B * candidates,)
        choice = alike.view(-1, candidates).argmax(dim=1)
        return waves.view(len(choice), candidates, -1)[
            torch.arange(len(choice)), choice
        ]

    def as_loud_as_told(self, waves: Tensor, loa: Tensor) -> Tensor:
        """Waveforms (B, N), each as loud as the LOA (B, L, D) says that GPT-2 wrote for
        it, or as loud as it can be within [-1, 1].

        Without the part `loudness`, as in the released models, they stay as they are.
        """
        if self.loudness is None:
            return waves
        found = audio.loudness(audio.log_mel(waves.float()))[:, 0]
        gain = (self.loudness(loa) - found).clamp(-LOUDER, LOUDER)
        waves = waves * 10 ** (gain / 20)[:, None]
        return waves / waves.abs().amax(dim=1, keepdim=True).clamp_min(1.0)

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that these weights have not been trained on."""
        known = {"", *self.vocabulary.get("words", ())}
        return sorted(set(split_words(caption)) - known) if len(known) > 1 else []


class AudioLDM2(Pipeline):
    """The pipeline: encoders, LOA regressor, latent diffusion, VAE and vocoder
    (2308.05734 Fig. 1). Chapter 16.
    """

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str],
        sampling: Sampling | None = None,
        *,
        seconds: float | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        negative: str | Sequence[str] | None = None,
        candidates: int = 1,
        progress: bool = True,
        transcription: str | Sequence[str] | None = None,
        **changes: Any,
    ) -> Tensor:
        """Generate one sound for each caption.

        Args:
            captions: B sentences (or one).
            sampling: how to sample; None for what these weights want. `changes` name
                single fields of it, as in `pipe("a dog barks", steps=50)`.
            seconds: length of the sounds; None for that of the training clips.
            seed: same seed, same machine: same sounds. None draws one.
            latents: noise to start from (B * candidates, C, T/r, F/r); None draws it.
            negative: what to be guided away from, one for all or one each; None for the
                empty caption.
            candidates: sounds made for each caption, of which CLAP picks one.
            progress: show a bar over the steps.
            transcription: what is spoken, one for all or one each, by weights that
                speak.

        Returns:
            waveforms (B, N), float32 in [-1, 1], N = 16000 * seconds, on the CPU.

        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        how = (sampling or self.sampling).changed(**changes)
        n_samples = self.n_samples(seconds)
        asked = check_asked(captions, negative, transcription, self.speaks, candidates)
        captions, negatives, words = asked  # each caption as often as it has candidates
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        latents = self.noise(len(captions), n_samples, latents, generator)
        self.profile = Profile()
        with self.profile.measure("encode"):
            conditions = self.encode(captions, words)
            empty = (
                self.encode(negatives, like=conditions) if how.guidance != 1 else None
            )
        with self.profile.measure("loa"):
            loa = self.loa(conditions)
            if empty:
                empty["loa"] = self.loa_of_negative(empty, how)
        with self.profile.measure("sample"):
            given = loa, conditions, how, empty, latents, generator
            z0 = self.sample(*given, progress)
        with self.profile.measure("decode"):
            waves = self.as_loud_as_told(self.decode(z0, n_samples), loa)
        if candidates > 1:
            with self.profile.measure("rank"):
                waves = self.best(waves, conditions, candidates)
        return waves.float().cpu()

    def encode(
        self,
        captions: Sequence[str],
        transcriptions: Sequence[str] | None = None,
        like: Conditions | None = None,
    ) -> Conditions:
        """What the encoders make of captions and of the words to be spoken, by name;
        where there is nothing to read, an encoder's empty condition.

        `like`: conditions that these are padded to, for GPT-2 counts padding.
        """
        given, conditions = {"caption": captions, "transcription": transcriptions}, {}
        for name, encoder in self.encoders.items():
            inputs, S = (
                given[encoder.reads],
                like[name].sequence.shape[1] if like else 0,
            )
            nothing = inputs is None
            read = encoder.empty if nothing else encoder.encode
            conditions[name] = read(len(captions) if nothing else inputs, S)
        return conditions

    def loa(self, conditions: Conditions) -> Tensor:
        """M: C -> Y', predict the Language of Audio (B, L, D) (2308.05734 §3.2)."""
        return self.gpt.generate({name: conditions[name] for name in self.encoders})

    def loa_of_negative(self, empty: Conditions, sampling: Sampling) -> Context:
        """The LOA to be guided away from: GPT-2's own, or zeros."""
        loa = self.loa(empty)
        zeros = sampling.unconditional_loa == "zeros"
        return Context(torch.zeros_like(loa) if zeros else loa)

    def sample(
        self,
        loa: Tensor,
        conditions: Conditions,
        sampling: Sampling | None = None,
        empty: Conditions | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """G: Y' -> z0, latent diffusion with classifier-free guidance (2308.05734
        §3.3).

        Args:
            loa: (B, L, D), predicted by `loa` or true, from `AudioMAE.loa`.
            conditions: of the captions; empty: those to be guided away from, None for
                the empty caption's.
            sampling: how; None for what these weights want.
            latents: noise to start from (B, C, T/r, F/r), of deviation 1; None draws
                it.

        Returns:
            z0 (B, C, T/r, F/r).
        """
        how = sampling or self.sampling
        if latents is None:
            latents = self.noise(len(loa), self.n_samples(), generator=generator)
        zT = how.temperature * latents.to(self.device, torch.float32)
        predict = self.noise_predictor(loa, conditions, how, empty)
        given = predict, self.unet.schedule, zT, how.steps
        if how.sampler == "dpm":
            return dpm_solver_sample(*given, progress=progress)
        return ddim_sample(*given, how.eta, generator, progress=progress)

    def noise_predictor(
        self,
        loa: Tensor,
        conditions: Conditions,
        sampling: Sampling | None = None,
        empty: Conditions | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """All that a sampler asks of the U-Net, as `sample`: a callable (zt
        (B, C, T/r, F/r), t (B,)) -> eps_hat, guided.
        """
        how, given = sampling or self.sampling, {**conditions, "loa": Context(loa)}
        if how.guidance != 1:
            empty = empty or self.encode([""] * len(loa), like=conditions)
            empty = {"loa": self.loa_of_negative(empty, how), **empty}
        read = {name: given[name] for name in self.unet.config.cross_attention if name}
        predict = guided(self.unet, read, empty, how)
        unet, dtype = self.unet, self.unet.dtype
        return lambda zt, t: unet.as_eps(zt, t, predict(zt.to(dtype), t).to(zt.dtype))

    def decode(self, z0: Tensor, n_samples: int) -> Tensor:
        """Latents (B, C, T/r, F/r) to mels by the VAE, to waveforms (B, N) by the
        vocoder.
        """
        mel = lean.decode(self.vae, z0.to(self.vae.dtype))
        return vocode(self.vocoder, mel)[:, :n_samples]


def check_asked(
    captions: str | Sequence[str],
    negative: str | Sequence[str] | None,
    transcription: str | Sequence[str] | None,
    speaks: bool,
    candidates: int,
) -> tuple[list[str], list[str], list[str] | None]:
    """Captions, what to be guided away from, and what is spoken, as lists of one
    length: each caption as often as it has candidates. A sentence for what is none of
    them.
    """
    k = check_whole("candidates", candidates, 1, MAX_CANDIDATES)
    captions = check_captions(captions)
    negatives = one_each("negative", negative or "", len(captions))
    if transcription is None and speaks:
        raise ValueError("these weights speak: give the words as transcription")
    if transcription is not None and not speaks:
        raise ValueError("these weights do not speak: transcription must be None")
    words = None
    if speaks:
        words = one_each("transcription", transcription, len(captions))
        if not all(said.strip() for said in words):
            raise ValueError("a transcription is empty: write the words to be spoken")
    often = lambda given: [x for x in given for _ in range(k)]
    return often(captions), often(negatives), often(words) if words else None


def check_captions(captions: str | Sequence[str]) -> list[str]:
    """Captions as a list; a sentence where there is none, or one is empty."""
    given = [captions] if isinstance(captions, str) else list(captions)
    if not given:
        raise ValueError("captions is empty: at least one caption is needed")
    given = one_each("captions", given, len(given))
    if not all(caption.strip() for caption in given):
        raise ValueError("a caption is empty: describe the sound in a few words")
    return given


def one_each(name: str, given: str | Sequence[str], n: int) -> list[str]:
    """Strings as a list of n: one for all, or one each."""
    given = [given] if isinstance(given, str) else list(given)
    for x in given:
        if not isinstance(x, str):
            raise TypeError(f"{name} must be strings, not {type(x).__name__}")
    given = given * n if len(given) == 1 else given
    if len(given) != n:
        raise ValueError(
            f"{name} must be one for all or one for each of {n}, not {len(given)}"
        )
    return given


def check_seconds(seconds: float) -> float:
    """The length itself; a sentence for one that no sound can have."""
    check_number("seconds", seconds, 0.1, MAX_SECONDS)
    return seconds
