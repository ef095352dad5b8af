"""The whole of AudioLDM 2: from captions or pictures to waveforms, through the Language
of Audio (Liu et al., 2308.05734).

    captions -> encode -> loa -> sample -> decode -> waveforms

The stages are methods, so that a chapter can look between any two of them. Chapter 16
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
from minilib.arguments import (
    MAX_CANDIDATES,
    MAX_SECONDS,
    check_asked,
    check_latents,
    check_number,
    check_seconds,
    check_whole,
    one_each,
    seeded,
    shown,
)
from minilib.conditions import Conditions, Context
from minilib.diffusion import (
    ddim_sample,
    dpm_solver_sample,
    inpaint,
    randn_like,
    sdedit,
)
from minilib.folders import Parts, Stored
from minilib.guidance import Sampling, check_sampling, guided
from minilib.pictures import check_pictures
from minilib.tokenizer import split_words
from minilib.vocoder import vocode

LEAST_VOICE = 4000  # samples, a quarter of a second, from which a voice is heard
FADE = 80  # samples, 5 ms: half of the slopes at the ends of a gap
LOUDER = 20.0  # the most decibels by which a sound is made louder or softer

Generators = torch.Generator | list[torch.Generator] | None
Captions = str | Sequence[str]


@dataclass
class Profile:
    """The seconds spent in each stage of a call, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        yield
        taken = time.perf_counter() - began
        self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


class Pipeline(Stored):
    """The groundwork of the stages: lengths, shapes, loudness, the best of several."""

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.profile = Profile()

    @property
    def speaks(self) -> bool:
        """Whether an encoder of this pipeline reads a transcription."""
        return any(x.reads == "transcription" for x in self.encoders.values())

    @property
    def sees(self) -> bool:
        """Whether an encoder of this pipeline reads pictures."""
        return any(x.reads == "picture" for x in self.encoders.values())

    def n_samples(self, seconds: float | None = None) -> int:
        """Samples in a sound of this length; None for the training clips' length."""
        seconds = self.seconds if seconds is None else seconds
        return round(check_seconds(seconds) * audio.SAMPLE_RATE)

    def latent_shape(self, n: int, n_samples: int) -> tuple[int, int, int, int]:
        """The shape of the latents of n sounds: the fewest steps in time that hold all
        samples and that the U-Net's patches divide (10 s take 250, 3 s take 75).

        diffusers' pipelines take equally many unless the length is not a whole number
        of frames: they then cut off the last frame, and may end 10 ms early.
        """
        r, patch = self.vae.config.reduction, self.unet.config.patch
        T = -(-n_samples // (audio.HOP * r * patch)) * patch
        return n, self.unet.config.in_channels, T, audio.N_MELS // r

    def reconstruct(self, mel: Tensor) -> Tensor:
        """Send a log-mel (B, 1, T, F) of any length T through the VAE and back."""
        silent = math.log(audio.LOG_FLOOR)
        T, missing = mel.shape[2], -mel.shape[2] % self.vae.config.reduction
        return self.vae(F.pad(mel, (0, 0, 0, missing), value=silent))[:, :, :T]

    def noise(
        self,
        n: int,
        n_samples: int,
        given: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """The noise (n, C, T/r, F/r) that sounds start from. If none is given, it is
        drawn by one generator, or by several, each for n / len(generator) sounds.
        """
        shape = self.latent_shape(n, n_samples)
        if isinstance(generator, list) and (not generator or n % len(generator)):
            share = f"one for all, or a number that divides {n}"
            raise ValueError(f"generator must be {share}, not {len(generator)}")
        if given is None:
            return randn_like(torch.empty(shape), generator)
        return check_latents(given, shape)

    def written(self, conditions: Conditions) -> Tensor:
        """The LOA (B, L, D) that GPT-2 writes, the same for each item as if it were
        alone.

        GPT-2 counts padding as positions, so items whose padded lengths would differ if
        they were alone are written separately. Only tokenizers without a length of
        their own, such as T5's of the released models, pad all items to the longest, as
        in diffusers.
        """
        lengths = {
            k: self.padded_alone(k, context) for k, context in conditions.items()
        }
        rows: dict[tuple[int, ...], list[int]] = {}
        for i, own in enumerate(zip(*lengths.values())):
            rows.setdefault(own, []).append(i)
        loa = {}
        for own, some in rows.items():
            cut = {
                name: Context(*(None if x is None else x[some, :S] for x in context))
                for S, (name, context) in zip(own, conditions.items())
            }
            loa |= dict(zip(some, self.gpt.generate(cut)))
        return torch.stack([loa[i] for i in sorted(loa)])

    def padded_alone(self, name: str, context: Context) -> list[int]:
        """The length to which each item of a condition would be padded alone."""
        B, S = context.sequence.shape[:2]
        least = getattr(getattr(self, name).tokenizer, "pad_to", 0)
        if context.mask is None or not least:
            return [S] * B
        return [min(S, max(least, n)) for n in context.mask.sum(dim=1).tolist()]

    def checked(
        self,
        captions: str | Sequence[str] | None,
        negative: str | Sequence[str] | None,
        transcription: str | Sequence[str] | None,
        picture: Tensor | None,
        candidates: int,
    ) -> tuple[list[str], list[str], list[str] | None, Tensor | None, int]:
        """What was asked for, checked and in equal numbers, as `check_asked` returns
        it, with the pictures before the candidates. Where pictures are seen, captions
        are empty.
        """
        if not self.sees:
            if picture is not None:
                raise ValueError("these weights see no pictures: picture must be None")
            words = transcription, self.speaks, candidates
            *texts, k = check_asked(captions, negative, *words)
            return *texts, None, k
        told = {"captions": captions, "negative": negative}
        for name, given in {**told, "transcription": transcription}.items():
            if given is not None:
                said = f"{name} must be None, not {shown(given)}"
                raise ValueError(f"these weights read pictures alone: {said}")
        if check_whole("candidates", candidates, 1, MAX_CANDIDATES) > 1:
            said = "CLAP, which picks one, reads captions"
            raise ValueError(f"candidates must be 1 with a picture: {said}")
        seen = check_pictures(picture, self.bind.config.image.shape[1:])
        nothing = [""] * len(seen)
        return nothing, nothing, None, seen, 1

    def heard(self, voice: Tensor, n: int, candidates: int = 1) -> Context:
        """What CLAP hears in the recordings of a voice, one for all of n sounds or one
        for each of n / candidates: its condition, (n, 1, dim).
        """
        if not self.speaks:
            raise ValueError("these weights do not speak: voice must be None")
        waves, each = check_voice(voice, n // candidates), candidates
        alike = self.clap.embed_waves(waves.to(self.device))[:, None]
        return Context(alike).repeat(n if len(alike) == 1 else each)

    def best(self, waves: Tensor, conditions: Conditions, candidates: int) -> Tensor:
        """The candidate (of B * candidates, N) that CLAP finds most like its caption,
        for each caption.
        """
        told = conditions["clap"].sequence[:, 0]
        alike = (self.clap.embed_waves(waves) * told).sum(dim=-1)  # (B * candidates,)
        choice = alike.view(-1, candidates).argmax(dim=1)
        return waves.view(len(choice), candidates, -1)[
            torch.arange(len(choice)), choice
        ]

    def as_loud_as_told(self, waves: Tensor, loa: Tensor) -> Tensor:
        """Scale waveforms (B, N) to the loudness that the LOA (B, L, D) of GPT-2 asks
        for, or as near to it as [-1, 1] allows.

        Without the part `loudness`, as in the released models, they stay unchanged.
        """
        if self.loudness is None:
            return waves
        found = audio.loudness(audio.log_mel(waves.float()))[:, 0]
        gain = (self.loudness(loa) - found).clamp(-LOUDER, LOUDER)
        waves = waves * 10 ** (gain / 20)[:, None]
        return waves / waves.abs().amax(dim=1, keepdim=True).clamp_min(1.0)

    def asked(
        self,
        wave: Any,
        caption: Any,
        sampling: Any = None,
        seed: Any = None,
        progress: bool = True,
        **changes: Any,
    ) -> tuple[Tensor, Callable, Sampling, list[torch.Generator], bool]:
        """What an edit starts from: the waveforms (B, N), the U-Net under the caption,
        the settings, a generator for each waveform, and whether to show a bar. A wrong
        argument raises a sentence.
        """
        if self.sees or self.speaks:
            read = "pictures" if self.sees else "transcriptions"
            raise ValueError(f"an edit follows captions: these weights read {read}")
        how = check_sampling(sampling, self.sampling).changed(**changes)
        if how.sampler != "ddim":
            raise ValueError(f'an edit needs the sampler "ddim", not "{how.sampler}"')
        waves = check_waves(wave)
        captions = one_each("caption", caption, len(waves))
        if not all(told.strip() for told in captions):
            raise ValueError("caption is empty: describe the sound in a few words")
        generators = seeded(seed, len(waves))
        conditions = self.encode(captions)
        predict = self.noise_predictor(self.loa(conditions), conditions, how)
        return waves, predict, how, generators, progress

    def compressed(self, waves: Tensor) -> Tensor:
        """The latents z0 (B, C, T/r, F/r) of waveforms (B, N), with silence after them
        as far as the last one reaches.
        """
        T = self.latent_shape(len(waves), waves.shape[1])[2]
        n_samples = T * self.vae.config.reduction * audio.HOP
        padded = F.pad(waves, (0, n_samples - waves.shape[1]))
        return self.vae.encode(audio.log_mel(padded.to(self.device))).float()

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that these weights were not trained on."""
        known = {"", *self.vocabulary.get("words", ())}
        return sorted(set(split_words(caption)) - known) if len(known) > 1 else []


class Editing(Pipeline):
    """What the pipeline can make from a recording without training for it, as AudioLDM
    does (2301.12503). Chapter 17.
    """

    @torch.no_grad()
    def edit(
        self, wave: Tensor, caption: Captions, strength: float = 0.6, **options: Any
    ) -> Tensor:
        """Change a recording to what a caption says: noise its latent, then remove the
        noise under the caption.

        Args:
            wave: (N,) at 16 kHz in [-1, 1], or several, (B, N); caption: one for all or
                one for each.
            strength: the share of the steps that are made, from 0 (the recording, after
                VAE and vocoder) to 1 (hardly anything is left of it).
            options: `sampling`, `seed`, `progress` and changes of single settings, as
                for a call; the sampler is DDIM.
        Returns:
            (B, N), float32 in [-1, 1], on the CPU.
        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        strength = check_number("strength", strength, 0.0, 1.0)
        waves, predict, how, generators, bar = self.asked(wave, caption, **options)
        z0, N = self.compressed(waves), waves.shape[1]
        eps = how.temperature * self.noise(len(waves), N, None, generators).to(z0)
        given = predict, self.unet.schedule, z0, how.steps, strength, eps
        z0 = sdedit(*given, how.eta, generators, bar)
        return self.decode(z0, N).float().cpu()

    @torch.no_grad()
    def inpaint(
        self, wave: Tensor, caption: Captions, start: float, end: float,
        resample: int = 1, **options: Any,
    ) -> Tensor:  # fmt: skip
        """Replace what a recording holds from start to end, in seconds, by what fits
        the caption and the rest, which stays as it is.

        Args:
            resample: how often each step is made, see `diffusion.inpaint`; all others
                as for `edit`, but that eta is 1.
        Returns:
            (B, N), float32 in [-1, 1], on the CPU.
        """
        resample = check_whole("resample", resample, 1)
        waves, predict, how, generators, bar = self.asked(wave, caption, **options)
        begin, stop = check_gap(start, end, waves.shape[1])
        gap = torch.zeros_like(waves[0])
        gap[begin:stop] = 1.0
        z0 = self.compressed(waves * (1 - gap))  # nothing of the gap is read
        step = audio.HOP * self.vae.config.reduction
        at = step * torch.arange(z0.shape[2])
        known = ((at + step <= begin) | (at >= stop))[:, None].to(z0.device)
        zT = how.temperature * self.noise(len(waves), len(gap), None, generators)
        given = predict, self.unet.schedule, zT.to(z0), how.steps, z0, known
        z0 = inpaint(*given, resample, 1.0, generators, bar)
        made = self.decode(z0, len(gap)).float().cpu()
        return (1 - faded(gap)) * waves + faded(gap) * made

    def extend(
        self, wave: Tensor, caption: Captions, seconds: float, **options: Any
    ) -> Tensor:
        """Continue a recording for some more seconds: `inpaint` beyond its end, with
        the same options.
        """
        waves = check_waves(wave)
        n, more = waves.shape[1], self.n_samples(seconds)
        start, end = n / audio.SAMPLE_RATE, (n + more) / audio.SAMPLE_RATE
        return self.inpaint(F.pad(waves, (0, more)), caption, start, end, **options)


class AudioLDM2(Editing):
    """The pipeline: encoders, LOA regressor, latent diffusion, VAE and vocoder
    (2308.05734 Fig. 1). Chapter 16.
    """

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        negative: str | Sequence[str] | None = None,
        candidates: int = 1,
        progress: bool = True,
        transcription: str | Sequence[str] | None = None,
        voice: Tensor | None = None,
        picture: Tensor | None = None,
        **changes: Any,
    ) -> Tensor:
        """Generate one sound for each caption, or for each picture.

        Args:
            captions: B sentences (or one); None for weights that see pictures.
            sampling: settings for sampling; None for the weights' own. `changes` set
                single fields, as in `pipe("a dog barks", steps=50)`.
            seconds: length of the sounds; None for that of the training clips.
            seed: the same seed gives the same sounds on the same machine. Caption i has
                seed + i, or the i-th of a list, with which it can be made alone. None
                draws random seeds.
            latents: noise to start from (B * candidates, C, T/r, F/r); None draws it.
            negative: captions to guide away from, one for all or one each; None for the
                empty caption. They are read whole; diffusers cuts them to the length of
                the captions.
            candidates: sounds made for each caption, of which CLAP picks one.
            progress: show a bar over the steps.
            transcription: words to be spoken, one for all or one each; only for
                weights that speak.
            voice: a recording of the voice that shall speak, (N,) at 16 kHz, or one
                for each caption, (B, N). CLAP hears it in place of the captions.
            picture: what shall sound, (3, H, W) or several, (B, 3, H, W), from 0 to 1,
                in place of captions; only for weights that see. Pictures of other
                sizes are scaled to the one that ImageBind sees.

        Returns:
            waveforms (B, N), float32 in [-1, 1], N = 16000 * seconds, on the CPU.

        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        how = check_sampling(sampling, self.sampling).changed(**changes)
        n_samples = self.n_samples(seconds)
        asked = self.checked(captions, negative, transcription, picture, candidates)
        captions, negatives, words, pictures, k = asked  # each caption k times
        generators = seeded(seed, len(captions) // k)
        latents = self.noise(len(captions), n_samples, latents, generators)
        heard = None if voice is None else self.heard(voice, len(captions), k)
        self.profile = Profile()
        with self.profile.measure("encode"):
            conditions = self.encode(captions, words, pictures=pictures)
            if heard is not None:
                conditions["clap"] = heard
            empty = (
                self.encode(negatives, like=conditions) if how.guidance != 1 else None
            )
        with self.profile.measure("loa"):
            loa = self.loa(conditions)
            if empty:
                empty["loa"] = self.loa_of_negative(empty, how)
        with self.profile.measure("sample"):
            given = loa, conditions, how, empty, latents, generators
            z0 = self.sample(*given, progress)
        with self.profile.measure("decode"):
            waves = self.as_loud_as_told(self.decode(z0, n_samples), loa)
        if k > 1:
            with self.profile.measure("rank"):
                waves = self.best(waves, conditions, k)
        return waves.float().cpu()

    def encode(
        self,
        captions: Sequence[str],
        transcriptions: Sequence[str] | None = None,
        like: Conditions | None = None,
        pictures: Tensor | None = None,
    ) -> Conditions:
        """Encode captions, the words to be spoken, and pictures (B, 3, H, W):
        conditions by name. An encoder that has nothing to read gives its empty
        condition.

        `like`: conditions to whose lengths these are padded, as GPT-2 counts padding.
        """
        given = {"caption": captions, "transcription": transcriptions}
        given["picture"] = None if pictures is None else {"image": pictures}
        conditions = {}
        for name, encoder in self.encoders.items():
            S = like[name].sequence.shape[1] if like else 0
            inputs = given[encoder.reads]
            nothing = inputs is None
            read = encoder.empty if nothing else encoder.encode
            conditions[name] = read(len(captions) if nothing else inputs, S)
        if pictures is not None and self.memory is not None:
            conditions["bind"] = self.memory(conditions["bind"])
        return conditions

    def loa(self, conditions: Conditions) -> Tensor:
        """M: C -> Y', predict the Language of Audio (B, L, D) (2308.05734 §3.2)."""
        read = self.gpt.config.conditions
        return self.written({name: conditions[name] for name in read})

    def loa_of_negative(self, empty: Conditions, sampling: Sampling) -> Context:
        """The LOA to guide away from: GPT-2's for the negative caption, or zeros."""
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
        generator: Generators = None,
        progress: bool = False,
    ) -> Tensor:
        """G: Y' -> z0, latent diffusion with classifier-free guidance (2308.05734
        §3.3).

        Args:
            loa: (B, L, D), predicted by `loa` or true, from `AudioMAE.loa`.
            conditions: of the captions; empty: those to guide away from, None for the
                empty caption's.
            sampling: settings for sampling; None for the weights' own.
            latents: noise to start from (B, C, T/r, F/r), of deviation 1; None draws
                it.
            generator: of the noise; one or several, as for `noise`.

        Returns:
            z0 (B, C, T/r, F/r).
        """
        how = check_sampling(sampling, self.sampling)
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
        """The guided U-Net as a sampler calls it, with arguments as for `sample`: a
        callable (zt (B, C, T/r, F/r), t (B,)) -> eps_hat.
        """
        how = check_sampling(sampling, self.sampling)
        given = {**conditions, "loa": Context(loa)}
        if how.guidance != 1:
            empty = empty or self.encode([""] * len(loa), like=conditions)
            if "loa" not in empty:
                empty = {**empty, "loa": self.loa_of_negative(empty, how)}
        read = {name: given[name] for name in self.unet.config.cross_attention if name}
        predict = guided(self.unet, read, empty, how)
        unet, dtype = self.unet, self.unet.dtype
        return lambda zt, t: unet.as_eps(zt, t, predict(zt.to(dtype), t).to(zt.dtype))

    def decode(self, z0: Tensor, n_samples: int) -> Tensor:
        """Decode latents (B, C, T/r, F/r) to mels with the VAE, and these to waveforms
        (B, N) with the vocoder.
        """
        mel = lean.decode(self.vae, z0.to(self.vae.dtype))
        return vocode(self.vocoder, mel)[:, :n_samples]


def faded(gap: Tensor) -> Tensor:
    """A gap (N,) of 0 and 1, with slopes of 10 ms before and after it."""
    n = 2 * FADE + 1
    wide = F.max_pool1d(F.pad(gap, (FADE, FADE))[None], n, 1)  # 10 ms more each side
    return F.avg_pool1d(F.pad(wide, (FADE, FADE), "replicate"), n, 1)[0]


def check_waves(given: Any) -> Tensor:
    """Recordings as a tensor (B, N); another shape or length, or numbers that are not
    finite or beyond [-1, 1], raise a sentence.
    """
    low, high = round(0.1 * audio.SAMPLE_RATE), round(MAX_SECONDS * audio.SAMPLE_RATE)
    wanted = f"(N,) or (B, N) with N from {low} to {high}"
    fits = lambda B, N: B > 0 and low <= N <= high
    waves = as_waves("wave", given, wanted, fits)
    if waves.abs().max() > 1:
        raise ValueError("wave must hold finite real numbers from -1 to 1")
    return waves


def check_gap(start: Any, end: Any, n_samples: int) -> tuple[int, int]:
    """The first sample of a gap and the one after its last; a gap that is not within
    the recording, or holds nothing, raises a sentence.
    """
    seconds = n_samples / audio.SAMPLE_RATE
    start = check_number("start", start, 0.0, seconds)
    end = check_number("end", end, 0.0, seconds)
    begin, stop = (round(x * audio.SAMPLE_RATE) for x in (start, end))
    if begin >= stop:
        raise ValueError(f"end must be after start, {start:g} s, not {end:g} s")
    return begin, stop


def check_voice(given: Any, n: int) -> Tensor:
    """Recordings of a voice as a tensor (1, N) or (n, N); another shape, too few
    samples, or numbers that are not finite raise a sentence.
    """
    wanted = f"(N,) or ({n}, N), N at least {LEAST_VOICE}"
    fits = lambda B, N: B in (1, n) and N >= LEAST_VOICE
    return as_waves("voice", given, wanted, fits)


def as_waves(
    name: str, given: Any, wanted: str, fits: Callable[[int, int], bool]
) -> Tensor:
    """One or more waveforms as a tensor (B, N), float32 on the CPU; what does not fit,
    or holds numbers that are not finite, raises a sentence with the shape wanted.
    """
    try:
        waves = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        said = f"{name} must be a waveform, a tensor (N,), not {shown(given)}"
        raise TypeError(said) from None
    shape = tuple(waves.shape)
    waves = waves[None] if waves.ndim == 1 else waves
    if waves.ndim != 2 or not fits(*waves.shape):
        raise ValueError(f"{name} must have shape {wanted}, not {shape}")
    real = not waves.is_complex() and waves.dtype != torch.bool
    if not real or not waves.isfinite().all():
        raise ValueError(f"{name} must hold finite real numbers")
    return waves.float().cpu()
