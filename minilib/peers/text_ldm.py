"""Latent diffusion that reads the caption directly, with no Language of Audio between.

This is the direct route C -> x to which chapters 15, 16b and 21 to 23 compare AudioLDM
2: a diffusion transformer along time whose tokens are the noise level, the states of a
frozen text encoder and the frames of the latent, all in one sequence, as in
Make-An-Audio 2 (Huang et al., 2305.18474 §3.4). VAE and vocoder are AudioLDM 2's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio, diffusion, lean
from minilib.arguments import (
    MAX_SEED,
    check_asked,
    check_path,
    check_seconds,
    check_whole,
    seeded,
)
from minilib.audioldm2 import Profile
from minilib.conditions import Conditions, Context, drop, from_batch, to_batch
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling, check_sampling, guided
from minilib.layers import attention
from minilib.model import Model, read_json
from minilib.soundworld import (
    Event,
    Scene,
    SoundWorld,
    describe,
    held_out_pairs,
    vocabulary,
)
from minilib.tokenizer import split_words
from minilib.training import Recipe, fit
from minilib.unet import TimeEmbedding, timestep_embedding
from minilib.vocoder import vocode

SECONDS = 2.56
N_SOUNDS = 3000  # of each kind: single sounds, and short ones to be joined
RECIPE = Recipe(
    steps=2600, batch_size=32, lr=2e-3, warmup=20, ema=0.995, muon=("linear", "conv")
)
SAMPLING = Sampling(steps=12, guidance=1.5, temperature=0.7)
P_EMPTY = 0.1  # share of the captions that are emptied (2207.12598)
JOINED = 0.6  # share of a batch that consists of two joined sounds
CURVE = 0.7  # levels are T u^0.7 for u in [0, 1): more of them are noisy
BORROWED = ("text", "vae", "vocoder")


@dataclass(frozen=True)
class TextLDMConfig:
    """Sizes of the transformer; the defaults are those that ship."""

    in_channels: int = 4  # of the latent
    bins: int = 16  # its bins of frequency, F/r
    patch: int = 2  # steps of the latent in one token
    condition: str = "text"  # the name of the condition that it reads
    context_dim: int = 128  # the width of that condition
    context_length: int = 64  # its most positions
    width: int = 192
    n_layer: int = 4
    n_head: int = 4
    n_steps: int = 1000  # T
    beta_1: float = 0.0015
    beta_T: float = 0.0195


class TextBlock(nn.Module):
    """Self-attention, and an MLP whose input the noise level scales and shifts."""

    def __init__(self, width: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.norm_1 = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, time: Tensor, keep: Tensor) -> Tensor:
        """x (B, S, width), time (B, width), keep (B, 1, 1, S) -> (B, S, width)."""
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        x = x + self.out(attention(q, k, v, self.n_head, keep))
        scale, shift = self.modulation(time)[:, None].chunk(2, dim=-1)
        h = self.norm_2(x) * (1 + scale) + shift
        return x + self.down(F.gelu(self.up(h)))


class TextLDM(Model):
    """The velocity predictor; its levels, loss and conditions are those of `UNet`."""

    config_class = TextLDMConfig

    def __init__(self, config: TextLDMConfig):
        super().__init__(config)
        D, self.n_values = config.width, config.patch * config.in_channels * config.bins
        self.conv_in = nn.Conv1d(self.n_values, D, 5, padding=2)
        self.frame_position = nn.Linear(D, D)
        self.time_embedding = TimeEmbedding(D // 4)
        self.projection = nn.Linear(config.context_dim, D)
        self.context_position = nn.Embedding(config.context_length, D)
        self.blocks = nn.ModuleList(
            TextBlock(D, config.n_head) for _ in range(config.n_layer)
        )
        self.norm_out = nn.LayerNorm(D)
        self.out = nn.Linear(D, self.n_values)
        nn.init.normal_(self.context_position.weight, std=0.02)
        for module in (*(block.modulation for block in self.blocks), self.out):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    @property
    def schedule(self) -> diffusion.Schedule:
        """The noise levels that this network is trained for."""
        c = self.config
        return diffusion.sqrt_linear_schedule(c.n_steps, c.beta_1, c.beta_T)

    def forward(self, zt: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Predict the velocity of zt (B, C, T/r, F/r) at levels t (B,), 1 to T."""
        C, F_r, patch = zt.shape[1], zt.shape[3], self.config.patch
        frames = zt.transpose(1, 2).flatten(2).unflatten(1, (-1, patch)).flatten(2)
        x = self.conv_in(frames.transpose(1, 2)).transpose(1, 2)  # (B, M, width)
        place = torch.arange(x.shape[1], device=x.device)
        x = x + self.frame_position(timestep_embedding(place, x.shape[2]).to(x.dtype))
        time = self.level(t, conditions)  # (B, width)
        told, mask = self.told(conditions[self.config.condition])
        x = torch.cat([time[:, None], told, x], dim=1)
        keep = F.pad(mask, (1, frames.shape[1]), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, time, keep)
        v = self.out(self.norm_out(x[:, -frames.shape[1] :]))  # (B, M, patch C F/r)
        return v.unflatten(2, (patch, C, F_r)).flatten(1, 2).transpose(1, 2)

    def level(self, t: Tensor, conditions: Conditions) -> Tensor:
        """What scales and shifts the blocks: the noise level t (B,), as (B, width)."""
        return self.time_embedding(t - 1)

    def told(self, context: Context) -> tuple[Tensor, Tensor]:
        """The condition as tokens (B, S, width), and its mask (B, S)."""
        states, mask = context
        S, most = states.shape[1], self.config.context_length
        if S > most:
            said = f"must have at most {most} positions, not {S}"
            raise ValueError(f"the condition {self.config.condition!r} {said}")
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        states = F.rms_norm(states, states.shape[-1:])
        place = torch.arange(S, device=states.device)
        return self.projection(states) + self.context_position(place), mask.bool()

    def as_eps(self, zt: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """The noise in zt at level t that a velocity implies."""
        return diffusion.eps_from_velocity(self.schedule, zt, t, out)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the velocity; the batch is that of `UNet.loss`."""
        z0, t, eps = batch["z0"], batch["t"], batch["eps"]
        told = from_batch(batch, (self.config.condition,))
        return diffusion.v_loss(
            lambda zt, t: self(zt, t, told), self.schedule, z0, t, eps
        )


TextLDM.presets = {"tiny": TextLDMConfig()}


class JoinedClips:
    """Training batches: single sounds, and pairs that are new in every batch.

    A pair is made from the latents of two short sounds, one after the other, and its
    caption from both events: "A then B", "B after A". Such dynamic pairs are Make-An-
    Audio's idea (Huang et al., 2301.12661). Ordered pairs of classes that the test
    split holds out are never joined.

    Args:
        text, vae: the frozen text encoder and VAE.
        n: how many sounds of each kind are encoded.
        seed: of the sounds.
        joined: the share of pairs in a batch, 0 to 1.
    """

    n_steps = TextLDMConfig.n_steps  # T

    def __init__(
        self,
        text: nn.Module,
        vae: nn.Module,
        n: int = N_SOUNDS,
        seed: int = 0,
        joined: float = JOINED,
        batch_size: int = RECIPE.batch_size,
    ):
        self.text, self.batch_size = text, batch_size
        self.n_pairs = round(joined * batch_size)
        whole = SoundWorld("train", seed, SECONDS, pairs=0.0)
        short = SoundWorld("train", seed, SECONDS / 2, pairs=0.0)
        self.singles, self.halves = latents(vae, whole, n), latents(vae, short, n)
        self.captions = [whole.caption(i) for i in range(n)]
        self.events = [short.scene(i).events[0] for i in range(n)]
        self.empty = {"text": self.encode([""])}

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Context:
        """The states (B, S, D) of captions."""
        return self.text.encode(captions)

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `TextLDM.loss`."""
        n, n_single = self.batch_size, self.batch_size - self.n_pairs
        single = torch.randint(len(self.captions), (n_single,), generator=generator)
        pairs = [self.pair(generator) for _ in range(self.n_pairs)]
        z0 = torch.cat([self.singles[single], *(z for z, _ in pairs)])
        captions = [self.captions[i] for i in single] + [told for _, told in pairs]
        u = (torch.rand((), generator=generator) + torch.arange(n) / n) % 1
        u = u[torch.randperm(n, generator=generator)] ** CURVE
        t = 1 + (u * self.n_steps).long().clamp_max(self.n_steps - 1)
        dropped = torch.rand(n, generator=generator) < P_EMPTY
        read = self.read(captions, dropped, generator)
        eps = torch.randn(z0.shape, generator=generator)
        return {"z0": z0, "t": t, "eps": eps, **to_batch(read)}

    def read(
        self, captions: list[str], dropped: Tensor, generator: torch.Generator
    ) -> Conditions:
        """The captions of a batch as conditions, and nothing for the dropped ones."""
        return drop({"text": self.encode(captions)}, self.empty, dropped)

    def pair(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """Two sounds of different classes, joined: z0 (1, C, T/r, F/r), caption."""
        while True:
            i, j = torch.randint(len(self.events), (2,), generator=generator).tolist()
            names = self.events[i].name, self.events[j].name
            if names[0] != names[1] and names not in held_out_pairs():
                break
        rng = np.random.default_rng(int(torch.randint(2**32, (), generator=generator)))
        told = describe(one_after_other(self.events[i], self.events[j]), rng)
        return torch.cat([self.halves[[i]], self.halves[[j]]], dim=2), told


def one_after_other(first: Event, second: Event) -> Scene:
    """The scene in which a short event follows another."""
    second = replace(
        second,
        onset=second.onset + SECONDS / 2,
        strokes=tuple(time + SECONDS / 2 for time in second.strokes),
    )
    return Scene((first, second), SECONDS, seed=0)


@torch.no_grad()
def latents(vae: nn.Module, world: SoundWorld, n: int) -> Tensor:
    """The latents (n, C, T/r, F/r) of the first n clips of a world."""
    pieces = torch.arange(n).split(16)
    waves = (torch.stack([world[i].wave for i in piece.tolist()]) for piece in pieces)
    return torch.cat([vae.encode(audio.log_mel(wave)) for wave in waves])


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/unet` in float16, and `out/pipeline.json`, which names the
    parts that it borrows.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose text encoder, VAE and vocoder it uses.

    Raises:
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    text, vae = (load_part(weights, x, torch.float32) for x in ("text", "vae"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextLDM.preset("tiny")
    batches = JoinedClips(text, vae, seed=seed)
    fit(model, batches, replace(RECIPE, steps=steps), seed, "text_ldm", progress)
    with replacing_folder(out) as new:
        model.save_pretrained(new / "unet", dtype=torch.float16)
        save_description(new, out, {x: weights / x for x in BORROWED})
    return out


def save_description(
    folder: Path,
    final: Path,
    parts: dict[str, Path],
    peer: str = "text_ldm",
    sampling: Sampling = SAMPLING,
    seconds: float = SECONDS,
) -> None:
    """Write `pipeline.json`: the peer, its sampling, and where its other parts lie as
    seen from `final`, the place of the finished folder.
    """
    how = {field.name: getattr(sampling, field.name) for field in fields(Sampling)}
    there = {name: os.path.relpath(path, final) for name, path in parts.items()}
    told = {"peer": peer, "seconds": seconds, **how, **there}
    (folder / "pipeline.json").write_text(json.dumps(told, indent=1) + "\n")


class TextToAudio:
    """The pipeline: caption -> text encoder -> diffusion -> VAE -> vocoder.

    It is called as `AudioLDM2` is. Its folder holds the transformer, in `unet`, and a
    `pipeline.json` that names the folders of the other parts.
    """

    borrowed, denoiser = BORROWED, TextLDM

    def __init__(
        self,
        unet: TextLDM,
        text: nn.Module,
        vae: nn.Module,
        vocoder: nn.Module,
        sampling: Sampling = SAMPLING,
        seconds: float = SECONDS,
    ):
        self.unet, self.text, self.vae, self.vocoder = unet, text, vae, vocoder
        self.sampling, self.seconds = sampling, seconds
        self.profile = Profile()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        told = read_json(folder / "pipeline.json")
        parts = [load_part(folder, name, torch.float32) for name in cls.borrowed]
        unet = cls.denoiser.from_pretrained(folder / "unet", dtype=torch.float32)
        known = {field.name for field in fields(Sampling)} & set(told)
        sampling = Sampling().changed(**{name: told[name] for name in known})
        return cls(unet, *parts, sampling, told.get("seconds", SECONDS))

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str],
        sampling: Sampling | None = None,
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        negative: str | Sequence[str] | None = None,
        candidates: int = 1,
        transcription: str | None = None,
        progress: bool = True,
        **changes: Any,
    ) -> Tensor:
        """Generate one sound for each of B captions: (B, N), with the arguments of
        `AudioLDM2`. It has no CLAP to choose from several `candidates`, and does not
        speak a `transcription`: both must keep their default.
        """
        how = check_sampling(sampling, self.sampling).changed(**changes)
        seconds = check_seconds(self.seconds if seconds is None else seconds)
        n_samples = round(seconds * audio.SAMPLE_RATE)
        given = captions, negative, transcription, False, candidates
        captions, negatives, _, k = check_asked(*given)
        if k != 1:
            raise ValueError(f"candidates must be 1 without a CLAP to choose, not {k}")
        generators, self.profile = seeded(seed, len(captions)), Profile()
        with self.profile.measure("encode"):
            told, empty = (
                {"text": self.text.encode(texts)} for texts in (captions, negatives)
            )
        with self.profile.measure("sample"):
            z0 = self.sample(told, empty, n_samples, how, generators, progress)
        with self.profile.measure("decode"):
            return self.decode(z0, n_samples)

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that SoundWorld's captions never hold."""
        return sorted(set(split_words(caption)) - {"", *vocabulary()})

    @torch.no_grad()
    def sample(
        self,
        told: Conditions,
        empty: Conditions,
        n_samples: int,
        sampling: Sampling,
        generators: list[torch.Generator],
        progress: bool = False,
    ) -> Tensor:
        """Latents (B, C, T/r, F/r) for B conditions, guided away from `empty`."""
        config, r = self.unet.config, self.vae.config.reduction
        tokens = -(-n_samples // (audio.HOP * r * config.patch))
        shape = config.in_channels, tokens * config.patch, config.bins
        zT = diffusion.randn_like(torch.empty(len(generators), *shape), generators)
        zT = sampling.temperature * zT
        velocity = guided(self.unet, told, empty, sampling)
        predict = lambda zt, t: self.unet.as_eps(zt, t, velocity(zt, t))
        given = predict, self.unet.schedule, zT, sampling.steps
        if sampling.sampler == "dpm":
            return diffusion.dpm_solver_sample(*given, progress=progress)
        return diffusion.ddim_sample(
            *given, sampling.eta, generators, progress=progress
        )

    @torch.no_grad()
    def decode(self, z0: Tensor, n_samples: int) -> Tensor:
        """Latents (B, C, T/r, F/r) to waveforms (B, N)."""
        return vocode(self.vocoder, lean.decode(self.vae, z0))[:, :n_samples]
