"""MusicLDM in small: latent diffusion of music that is trained on mixtures of pieces,
one over the other, so that it copies less (Chen et al., 2308.01546).

Pieces of one tempo are shifted until their bars agree, and mixed as sounds or as
latents. The condition is CLAP's vector, in training that of the sound or of the
caption, in sampling that of the caption; it scales and shifts the layers. The pieces
here are loops of SoundWorld's instruments, with a known grid of beats; VAE and vocoder
are AudioLDM 2's. Chapter 23 builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio, lean
from minilib.arguments import MAX_SEED, check_path, check_whole
from minilib.clap import CLAP
from minilib.conditions import Conditions, Context, drop, to_batch
from minilib.detectors import FRAME_RATE, onset_strength
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling
from minilib.peers import text_ldm
from minilib.peers.text_ldm import CURVE, P_EMPTY, TextLDM, TextLDMConfig
from minilib.soundworld import INSTRUMENTS, Scene, Tune
from minilib.soundworld.captions import describe, vocabulary
from minilib.soundworld.corpus import SAMPLE_RATE, render, to_float
from minilib.soundworld.scene import PEAKS, PITCHES
from minilib.soundworld.tunes import CONTOURS, SCALES, draw_degrees, draw_rhythm
from minilib.tokenizer import split_words
from minilib.training import Recipe, fit

PERIODS = (32, 40, 48, 56)  # frames of 10 ms from beat to beat: 188 to 107 a minute
BAR = 4  # beats
LOOP = 2 * BAR  # beats after which a loop begins again
STEP = 4  # frames in one step of the latent; loops are shifted by whole steps
RECORDED, FRAMES = 512, 256  # frames of a recording, and of a clip that is cut from it
SECONDS = FRAMES / FRAME_RATE
SLOWEST_NORMAL = 48  # the longest period, in frames, that captions do not call slow
BETA = 5.0  # both parameters of the share's distribution
N_LOOPS = 24  # few, so that copying shows
N_MIXED = 480  # mixtures, made once
MIXED = 0.5  # share of a batch
READ = 0.5  # share of the loops in a batch that are told by their caption
PLAYED = ("banjo", "marimba", "music box", "piano")  # notes that begin at once
BORROWED = ("clap", "vae", "vocoder")
CONFIG = TextLDMConfig(width=96, n_layer=3, context_length=1)
RECIPE = Recipe(
    steps=800, batch_size=32, lr=2e-2, warmup=20, ema=0.98, muon=("linear", "conv")
)
SAMPLING = Sampling(steps=12, guidance=1.5)


# ---- Loops


@dataclass(frozen=True)
class Loop:
    """A recording of a short tune that is repeated, and its grid of beats."""

    scene: Scene  # of RECORDED frames, from any moment of the tune
    period: int  # frames from beat to beat, one of PERIODS
    downbeat: int  # the frame at which the first whole bar begins

    @property
    def wave(self) -> Tensor:
        """The recording: (N,)."""
        return torch.from_numpy(to_float(render(self.scene)))

    @property
    def caption(self) -> str:
        """What SoundWorld says of it."""
        return describe(self.scene, np.random.default_rng([self.scene.seed, 1]))


def draw_loop(period: int, rng: np.random.Generator) -> Loop:
    """Draw a loop of two bars with a beat every `period` frames: instrument, register,
    scale, rhythm and notes; and the moment at which its recording begins.
    """
    name = PLAYED[rng.integers(len(PLAYED))]
    scale = list(SCALES)[rng.integers(len(SCALES))]
    contour, register = CONTOURS[rng.integers(3)], int(rng.integers(3))
    beats = draw_rhythm(LOOP, False, rng)
    steps = SCALES[scale]
    degrees = draw_degrees(contour, len(beats), len(steps), rng)
    key = INSTRUMENTS[name].tonics[register] + int(rng.integers(-2, 3))
    midi = [key + steps[d % len(steps)] + 12 * (d // len(steps)) for d in degrees]
    downbeat = STEP * int(rng.integers(BAR * period // STEP))
    rate, total = FRAME_RATE / period, RECORDED / FRAME_RATE
    notes = []  # (onset, Hz, length)
    lengths = np.diff(beats, append=float(LOOP))
    for turn in range(-1, 1 + RECORDED // (LOOP * period)):
        for beat, number, length in zip(beats, midi, lengths, strict=True):
            onset = downbeat / FRAME_RATE + (turn * LOOP + beat) / rate
            if 0 <= onset < total - 0.05:
                held = min(float(length) / rate, total - onset)
                notes.append((onset, 440 * 2 ** ((number - 69) / 12), held))
    strokes, hertz, lengths = zip(*notes)
    speed = "normal" if period < SLOWEST_NORMAL else "slow"
    tune = Tune(
        name, PITCHES[register], speed, "normal", None, 0.0, total,
        int(rng.integers(2**32)), PEAKS["normal"], f0=440 * 2 ** ((key - 69) / 12),
        rate=rate, strokes=strokes, scale=scale, contour=contour, notes=hertz,
        lengths=lengths,
    )  # fmt: skip
    return Loop(Scene((tune,), total, int(rng.integers(2**32))), period, downbeat)


def draw_loops(n: int, seed: int) -> list[Loop]:
    """n loops, whose tempi take turns."""
    rng = np.random.default_rng([seed, 23])
    return [draw_loop(PERIODS[i % len(PERIODS)], rng) for i in range(n)]


def cut(recordings: Tensor, starts: Sequence[int]) -> Tensor:
    """Cut a clip of FRAMES frames from each recording (n, N), from a frame on."""
    places = [slice(at * audio.HOP, (at + FRAMES) * audio.HOP) for at in starts]
    return torch.stack([wave[at] for wave, at in zip(recordings, places, strict=True)])


# ---- Beats


class Beats(NamedTuple):
    """Where the beats of a recording are."""

    period: int  # frames from one to the next
    first: int  # the frame of the first


def beat_vectors(strength: Tensor, periods: Sequence[int] = PERIODS) -> Tensor:
    """The onsets of sounds, weighted by their strength, as hands of a clock that turns
    once in a beat: the mean hand for each period.

    Args:
        strength: of onsets, frame by frame, (n, T), at least 0.
        periods: K periods in frames.
    Returns:
        complex (n, K): its modulus is 1 if all onsets stand on one grid, its angle
        tells where the grid stands. Chapter 23.
    """
    frames = torch.arange(strength.shape[1], dtype=torch.float64)
    turns = frames[:, None] / torch.tensor(periods, dtype=torch.float64)  # (T, K)
    hands = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
    s = strength.double()
    return (s.to(hands.dtype) @ hands) / s.sum(dim=1, keepdim=True).clamp_min(1e-9)


def strengths(mels: Tensor) -> Tensor:
    """The onset strength of sounds, frame by frame: (n, 1, T, F) -> (n, T).

    Chapter 23.
    """
    found = [onset_strength(mel[0], PERIODS[0] / FRAME_RATE) for mel in mels]
    return torch.from_numpy(np.stack(found))


def clarity(mels: Tensor) -> Tensor:
    """How clear the beat of sounds is, at the tempo at which it is clearest: log-mels
    (n, 1, T, F) -> (n,), from 0 to 1. Chapter 23.
    """
    return beat_vectors(strengths(mels)).abs().amax(dim=1)


def tracked(wave: Tensor) -> Beats:
    """The beats of a recording (N,) as librosa's tracker hears them (Ellis 2007).

    It knows no bars: `first` is a beat, perhaps not a downbeat. Its tempo becomes the
    nearest of PERIODS, double and half tempo counted as the same, and its beats vote
    for the place of the grid. Chapter 23.
    """
    import librosa

    given = {"sr": SAMPLE_RATE, "hop_length": audio.HOP}
    tempo, beats = librosa.beat.beat_track(y=wave.numpy(), trim=False, **given)
    heard = 60 * FRAME_RATE / float(np.atleast_1d(tempo)[0] or 120)  # frames
    octaves = lambda p: (np.log2(p / heard) + 0.5) % 1 - 0.5  # from the nearest one
    period = min(PERIODS, key=lambda p: abs(octaves(p)))
    hand = np.exp(2j * np.pi * beats / period).sum()
    return Beats(period, round(np.angle(hand) / (2 * np.pi) * period) % period)


# ---- Mixing


def beat_partners(
    periods: Sequence[int], n: int, rng: np.random.Generator, same: bool = True
) -> list[tuple[int, int]]:
    """Draw n pairs of different loops, of one tempo or (as a control) of two.

    Raises:
        ValueError: no loop has a partner. Chapter 23.
    """
    fits = lambda i, j: i != j and (periods[i] == periods[j]) == same
    every = [(i, j) for i in range(len(periods)) for j in range(len(periods))]
    pairs = [pair for pair in every if fits(*pair)]
    if not pairs:
        wanted = "two of one tempo" if same else "two of different tempi"
        raise ValueError(f"periods must hold {wanted}, not {list(periods)}")
    return [pairs[k] for k in rng.integers(len(pairs), size=n)]


def mixup(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Mix sounds or latents: share times the first plus 1 - share times the second
    (1710.09412).

    Args:
        first, second: (n, …); share: (n,), from 0 to 1.
    Returns:
        (n, …). Chapter 23.
    """
    share = share.view(-1, *[1] * (first.ndim - 1)).to(first.dtype)
    return share * first + (1 - share) * second


class Heard(NamedTuple):
    """Clips as the denoiser learns from them."""

    z0: Tensor  # (n, C, T/r, F/r)
    told: Tensor  # CLAP's vectors of the sounds, (n, D)


@torch.no_grad()
def hear(clap: CLAP, vae: nn.Module, waves: Tensor) -> Heard:
    """The latents of sounds (n, N), and CLAP's vectors of the same sounds.

    Chapter 23.
    """
    mels = [audio.log_mel(some) for some in waves.split(16)]
    encoded = torch.cat([vae.encode(mel) for mel in mels])
    return Heard(encoded, torch.cat([clap.embed_audio(mel) for mel in mels]))


def mix_sounds(
    clap: CLAP, vae: nn.Module, first: Tensor, second: Tensor, share: Tensor
) -> Heard:
    """Beat-synchronous audio mixup of clips (n, N) that begin on a downbeat: mix the
    sounds, then encode (2308.01546). Chapter 23.
    """
    return hear(clap, vae, mixup(first, second, share))


@torch.no_grad()
def mix_latents(
    clap: CLAP, vae: nn.Module, first: Tensor, second: Tensor, share: Tensor
) -> Heard:
    """Beat-synchronous latent mixup of such clips: encode, then mix; CLAP hears the
    decoded mixture (2308.01546). Chapter 23.
    """
    one, two = (hear(clap, vae, waves).z0 for waves in (first, second))
    z0 = mixup(one, two, share)
    told = [clap.embed_audio(lean.decode(vae, z)) for z in z0.split(16)]
    return Heard(z0, torch.cat(told))


class MixedLoops:
    """Training batches: loops as they are, told by their sound or by their caption, and
    mixtures of two, told by their sound.

    Args:
        clap, vae: frozen.
        loops: the corpus.
        mix: `mix_sounds`, `mix_latents`, or None for no mixtures.
        aligned: whether both loops of a mixture begin on a downbeat; if not, the second
            begins at a random moment. (A control.)
        same: whether they have one tempo. (A control.)
        n: how many mixtures are made; seed: of these.
        mixed: the share of mixtures in a batch, 0 to 1.

    Chapter 23.
    """

    n_steps = CONFIG.n_steps  # T

    def __init__(
        self, clap: CLAP, vae: nn.Module, loops: Sequence[Loop],
        mix: Callable[..., Heard] | None = mix_latents, aligned: bool = True,
        same: bool = True, n: int = N_MIXED, seed: int = 0, mixed: float = MIXED,
        batch_size: int = RECIPE.batch_size,
    ):  # fmt: skip
        self.batch_size = batch_size
        self.n_mixed = round(mixed * batch_size) if mix else 0
        recordings = torch.stack([loop.wave for loop in loops])
        downbeats = [loop.downbeat for loop in loops]
        self.plain = hear(clap, vae, cut(recordings, downbeats))
        with torch.no_grad():
            self.empty = {"text": clap.encode([""])}
            self.captions = clap.encode([x.caption for x in loops]).sequence[:, 0]
        if mix is None:
            return
        rng, periods = np.random.default_rng([seed, 24]), [x.period for x in loops]
        self.pairs = beat_partners(periods, n, rng, same)
        i, j = (list(side) for side in zip(*self.pairs))
        begin = [downbeats[k] for k in j]
        if not aligned:
            begin = [STEP * int(rng.integers(BAR * periods[k] // STEP)) for k in j]
        first = cut(recordings[i], [downbeats[k] for k in i])
        second = cut(recordings[j], begin)
        share = torch.from_numpy(rng.beta(BETA, BETA, n)).float()
        self.mixtures = mix(clap, vae, first, second, share)

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `MusicLDM.loss`."""
        n, kinds = self.batch_size, [(self.plain, self.batch_size - self.n_mixed)]
        if self.n_mixed:
            kinds.append((self.mixtures, self.n_mixed))
        some = [
            (kind, torch.randint(len(kind.z0), (k,), generator=generator))
            for kind, k in kinds
        ]
        z0 = torch.cat([kind.z0[i] for kind, i in some])
        told, (_, i) = torch.cat([kind.told[i] for kind, i in some]), some[0]
        read = torch.rand(len(i), generator=generator) < READ
        told[: len(i)][read] = self.captions[i][read]
        u = (torch.rand((), generator=generator) + torch.arange(n) / n) % 1
        u = u[torch.randperm(n, generator=generator)] ** CURVE
        t = 1 + (u * self.n_steps).long().clamp_max(self.n_steps - 1)
        dropped = torch.rand(n, generator=generator) < P_EMPTY
        given = drop({"text": Context(told[:, None])}, self.empty, dropped)
        eps = torch.randn(z0.shape, generator=generator)
        return {"z0": z0, "t": t, "eps": eps, **to_batch(given)}


# ---- The denoiser


class MusicLDM(TextLDM):
    """The denoiser of `text_ldm` that reads one vector of CLAP's: together with the
    noise level it scales and shifts the layers (FiLM, 1709.07871), and no token tells
    anything. Chapter 23.
    """

    def __init__(self, config: TextLDMConfig):
        super().__init__(config)
        del self.projection, self.context_position
        self.film = nn.Linear(config.context_dim, config.width)

    def level(self, t: Tensor, conditions: Conditions) -> Tensor:
        """The noise level and CLAP's vector (B, 1, D), as (B, width)."""
        vector = conditions[self.config.condition].sequence[:, 0]
        return super().level(t, conditions) + self.film(
            F.rms_norm(vector, vector.shape[-1:])
        )

    def told(self, context: Context) -> tuple[Tensor, Tensor]:
        """No tokens: (B, 0, width)."""
        none = context.sequence.new_zeros(len(context.sequence), 0, self.config.width)
        return none, none[..., 0].bool()


MusicLDM.presets = {"tiny": CONFIG}


# ---- Copies


def features(mels: Tensor, mean: Tensor | None = None) -> Tensor:
    """What copies are recognised by: the pooled log-mel less its mean over a corpus, of
    unit length.

    It is fixed, so that no training can fool it.

    Args:
        mels: (n, 1, T, F); mean: of the corpus, (T/4 F/2); None for that of `mels`.
    Returns:
        (n, T/4 F/2). Chapter 23.
    """
    x = pooled(mels)
    return F.normalize(x - (x.mean(dim=0) if mean is None else mean), dim=1)


def pooled(mels: Tensor) -> Tensor:
    """Log-mels (n, 1, T, F) below their peaks, 50 dB at most, so that the level does
    not count, in cells of 40 ms and two bands: (n, T/4 F/2). Chapter 23.
    """
    below = mels - mels.amax(dim=(1, 2, 3), keepdim=True)
    return F.avg_pool2d(below.clamp_min(-50 / 8.686), (4, 2)).flatten(1)


def nearest(made: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine of each sound with the known one that is most like it, and which that
    is: log-mels (n, 1, T, F), (m, 1, T, F) -> (n,), (n,). Chapter 23.
    """
    mean = pooled(known).mean(dim=0)
    return tuple((features(made, mean) @ features(known, mean).T).max(dim=1))


def copy_threshold(new: Tensor, known: Tensor, share: float = 0.05) -> float:
    """The cosine that only this share of real, independent sounds reaches. A sound that
    reaches it is called a copy. Chapter 23.
    """
    return float(nearest(new, known)[0].quantile(1 - share))


# ---- The peer


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights, with latent mixup: `out/unet` in float16, and
    `out/pipeline.json`, which names the parts that it borrows.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of loops, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose CLAP, VAE and vocoder it uses.

    Raises:
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    clap, vae, _ = (load_part(weights, x, torch.float32) for x in BORROWED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MusicLDM.preset("tiny")
    batches = MixedLoops(clap, vae, draw_loops(N_LOOPS, seed), seed=seed)
    fit(model, batches, replace(RECIPE, steps=steps), seed, "musicldm", progress)
    parts = {x: weights / x for x in BORROWED}
    with replacing_folder(out) as new:
        model.save_pretrained(new / "unet", dtype=torch.float16)
        text_ldm.save_description(new, out, parts, "musicldm", SAMPLING, SECONDS)
    return out


class TextToAudio(text_ldm.TextToAudio):
    """The pipeline: caption -> CLAP -> diffusion -> VAE -> vocoder."""

    borrowed, denoiser = BORROWED, MusicLDM

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that SoundWorld's captions never hold."""
        return sorted(set(split_words(caption)) - {"", *vocabulary(music=True)})
