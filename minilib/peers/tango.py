"""TANGO in small: an instructed T5 reads the captions, and sounds are mixed at equal
pressure level (Ghosal et al., 2304.13731).

TANGO is latent diffusion whose only reader is a frozen FLAN-T5; VAE and vocoder are
AudioLDM's. It enlarges its corpus by adding two clips so that both are equally loud,
as Between-Class learning does (Tokozume et al., 1711.10282). Here the denoiser is that
of `text_ldm`, whose weights it starts from. Chapter 21 builds it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.arguments import MAX_SEED, check_path, check_whole
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.peers import text_ldm
from minilib.peers.text_ldm import BORROWED, SECONDS, JoinedClips, TextLDM
from minilib.soundworld import Scene, SoundWorld, describe, held_out_pairs
from minilib.training import Recipe, fit

FRAME = 2048  # samples in one frame of the level
FLOOR = -80.0  # dB
PEAK = 0.5  # largest |sample| of a mixture
N_CAPTIONS = 1500  # by which one reader is translated into another
N_SOUNDS = 1500  # of each kind: single sounds, short ones to be joined, mixtures
JOINED = 0.4  # share of a batch that consists of two joined sounds
RECIPE = Recipe(
    steps=1500, batch_size=32, lr=1e-3, warmup=20, ema=0.99, muon=("linear", "conv")
)


def a_weighting(hz: Tensor) -> Tensor:
    """How much louder or softer than 1 kHz people hear soft tones of equal pressure:
    the A-weighting of IEC 61672, in decibels.

    Args:
        hz: frequencies >= 0 in hertz, of any shape.
    Returns:
        decibels, at least -80; 0 at 1000 Hz. Chapter 21.
    """
    f2 = hz.double().square()
    poles = (f2 + 107.7**2) * (f2 + 737.9**2)
    ratio = 12194**2 * f2**2 / ((f2 + 20.6**2) * poles.sqrt() * (f2 + 12194**2))
    return (2 + 20 * ratio.clamp_min(1e-9).log10()).clamp_min(FLOOR).float()


def pressure_level(waves: Tensor) -> Tensor:
    """The level G of sounds: their A-weighted power in the loudest frame, in decibels
    (1711.10282 §3.2). Frames are 128 ms long, with a Hann window, and overlap by half.

    Args:
        waves: (B, N) at 16 kHz, N >= 2048.
    Returns:
        (B,), at least -80.
    Raises:
        ValueError: waves has another shape. Chapter 21.
    """
    if waves.ndim != 2 or waves.shape[1] < FRAME:
        said = f"(B, N) with N at least {FRAME}, not {tuple(waves.shape)}"
        raise ValueError(f"waves must have shape {said}")
    frames = waves.double().unfold(1, FRAME, FRAME // 2)  # (B, M, 2048)
    window = torch.hann_window(FRAME, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft(frames * window).abs().square()  # (B, M, 1025)
    hz = torch.linspace(0, audio.SAMPLE_RATE / 2, FRAME // 2 + 1)
    heard = power @ (10 ** (a_weighting(hz) / 10)).double()  # (B, M)
    return 10 * heard.amax(dim=1).clamp_min(10 ** (FLOOR / 10)).log10()


def equal_share(level_1: Tensor, level_2: Tensor) -> Tensor:
    """The share p with which p x1 and (1 - p) x2 have the same pressure level, for
    levels in decibels (2304.13731 §2.4). Chapter 21.
    """
    return 1 / (1 + 10 ** ((level_1 - level_2) / 20))


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Add two sounds, the first with a share p, the second with 1 - p, over
    sqrt(p^2 + (1 - p)^2): the power of a sum of two equally strong, unlike sounds is
    then theirs (1711.10282 §3.2).

    Args:
        first, second: (B, N); share: (B,), 0 to 1.
    Returns:
        (B, N). Chapter 21.
    """
    p = share[:, None].to(first.dtype)
    return (p * first + (1 - p) * second) / (p**2 + (1 - p) ** 2).sqrt()


def to_peak(waves: Tensor, peak: float = PEAK) -> Tensor:
    """Remove the mean of sounds (B, N) and scale their largest |sample| to `peak`; a
    silent one stays silent. Chapter 21.
    """
    waves = waves - waves.mean(dim=1, keepdim=True)
    return waves * (peak / waves.abs().amax(dim=1, keepdim=True).clamp_min(1e-8))


def joined_caption(first: str, second: str) -> str:
    """The caption of a mixture: "first and second", the second's first letter small.

    "And" says that both sound at once; an order needs "then". Chapter 21.
    """
    return f"{first} and {second[:1].lower()}{second[1:]}"


class MixedClips(JoinedClips):
    """Training batches: single sounds, pairs in order, and two sounds at once.

    The mixtures join the single sounds, and so are drawn as often. Two classes of which
    the test split holds out either order are never mixed. No caption of a mixture
    speaks of loudness: mixing has made such words untrue.

    Args:
        text, vae: the frozen text encoder and VAE.
        n: how many sounds of each kind are encoded, 2 or more.
        seed: of the sounds.
        joined: the share of ordered pairs in a batch, 0 to 1.

    Chapter 21.
    """

    def __init__(
        self,
        text: nn.Module,
        vae: nn.Module,
        n: int = N_SOUNDS,
        seed: int = 0,
        joined: float = JOINED,
        batch_size: int = RECIPE.batch_size,
    ):
        super().__init__(text, vae, n, seed, joined, batch_size)
        world = SoundWorld("train", seed, SECONDS, pairs=0.0)
        scenes = [world.scene(i) for i in range(n)]
        rng = np.random.default_rng([seed, 21])
        self.mixed = partners(scenes, n, rng)  # the clips of each mixture
        told = [quiet_about_loudness(scene, rng) for scene in scenes]
        self.captions += [joined_caption(told[i], told[j]) for i, j in self.mixed]
        with torch.no_grad():
            made = [
                vae.encode(audio.log_mel(mixture(world, self.mixed[at : at + 16])))
                for at in range(0, n, 16)
            ]
        self.singles = torch.cat([self.singles, *made])


def partners(
    scenes: list[Scene], n: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw n pairs of scenes with single events that may be mixed: their classes differ
    and no split holds them out. Chapter 21.
    """
    held = held_out_pairs() | {(b, a) for a, b in held_out_pairs()}
    names = [scene.events[0].name for scene in scenes]
    found: list[tuple[int, int]] = []
    while len(found) < n:
        i, j = rng.integers(len(scenes), size=2).tolist()
        if names[i] != names[j] and (names[i], names[j]) not in held:
            found.append((i, j))
    return found


def mixture(world: SoundWorld, pairs: list[tuple[int, int]]) -> Tensor:
    """Clips of a world, mixed in pairs at equal pressure level: (B, N), peak 0.5.

    Chapter 21.
    """
    first, second = (
        torch.stack([world[i].wave for i in side]) for side in zip(*pairs, strict=True)
    )
    p = equal_share(pressure_level(first), pressure_level(second))
    return to_peak(mix(first, second, p))


def quiet_about_loudness(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of a scene that does not mention loudness. Chapter 21."""
    events = tuple(replace(event, loudness="normal") for event in scene.events)
    return describe(replace(scene, events=events), rng)


@torch.no_grad()
def read_by(
    model: TextLDM, old: nn.Module, new: nn.Module, captions: list[str]
) -> TextLDM:
    """Let a denoiser that learned to read one text encoder read another one.

    Ridge regression finds the affine map from the new state of a token to its old one,
    and the denoiser's first layer takes it in. TANGO has no such step.

    Args:
        model: its projection is changed.
        old, new: text encoders of one width; captions: those that they split into
            unequally many tokens are left out.
    Returns:
        the model. Chapter 21.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for some in (captions[at : at + 50] for at in range(0, len(captions), 50)):
        (x, x_mask), (y, y_mask) = new.encode(some), old.encode(some)
        for k in (x_mask.sum(dim=1) == y_mask.sum(dim=1)).nonzero()[:, 0]:
            pairs.append((x[k, x_mask[k].bool()], y[k, y_mask[k].bool()]))
    x, y = (F.rms_norm(torch.cat(z), z[0].shape[1:]) for z in zip(*pairs))  # (n, D)
    x = F.pad(x, (0, 1), value=1.0)
    ridge = x.T @ x + 10 * torch.eye(x.shape[1])
    slope, offset = torch.linalg.solve(ridge, x.T @ y).split([x.shape[1] - 1, 1])
    model.projection.bias += model.projection.weight @ offset[0]
    model.projection.weight.copy_(model.projection.weight @ slope.T)
    return model


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
        seed: of sounds and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose VAE and vocoder it uses. Beside it lies `peers`, with
            the text encoder of `instructed_t5` and the denoiser of `text_ldm`, from
            which it starts, and which has read the encoder in `weights`.

    Raises:
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    peers = weights.parent / "peers"
    text = load_part(peers / "instructed_t5", "text", torch.float32)
    old, vae = (load_part(weights, x, torch.float32) for x in ("text", "vae"))
    model = TextLDM.from_pretrained(peers / "text_ldm" / "unet", dtype=torch.float32)
    world = SoundWorld("train", seed)
    read_by(model, old, text, [world.caption(i) for i in range(N_CAPTIONS)])
    batches = MixedClips(text, vae, seed=seed)
    fit(model, batches, replace(RECIPE, steps=steps), seed, "tango", progress)
    parts = {x: weights / x for x in BORROWED} | {"text": peers / "instructed_t5/text"}
    with replacing_folder(out) as new:
        model.save_pretrained(new / "unet", dtype=torch.float16)
        text_ldm.save_description(new, out, parts, "tango")
    return out


TextToAudio = text_ldm.TextToAudio  # the pipeline that reads such a folder
