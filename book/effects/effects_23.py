"""The effects of chapter 23: copies, and what mixing loops on their beats changes.

All denoisers take equally many steps on the same 24 loops; the mixtures of all arms are
drawn from the same seed. They are judged by the log-mels that the VAE decodes.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import audio, diffusion, lean
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.folders import load_part
from minilib.guidance import guided
from minilib.peers.musicldm import (
    BAR,
    CONFIG,
    FRAMES,
    N_LOOPS,
    PERIODS,
    PLAYED,
    RECIPE,
    SAMPLING,
    STEP,
    Beats,
    Loop,
    MixedLoops,
    MusicLDM,
    beat_partners,
    beat_vectors,
    clarity,
    copy_threshold,
    cut,
    draw_loops,
    mix_latents,
    mix_sounds,
    mixup,
    nearest,
    strengths,
    tracked,
)
from minilib.training import fit

N_NEW, N_MADE = 100, 4  # new loops for each purpose; sounds for each caption
HALF = "no mixup, half the steps"  # meets each loop as often as the arms with mixtures
ARMS = {
    "no mixup": {"mix": None},
    HALF: {"mix": None},
    "audio mixup": {"mix": mix_sounds},
    "latent mixup": {"mix": mix_latents},
    "latent mixup, unaligned": {"mix": mix_latents, "aligned": False},
}


@functools.cache
def part(name: str) -> torch.nn.Module:
    """CLAP or VAE of `tiny`."""
    return load_part(shipped_weights(), name, torch.float32)


def clips(loops: list[Loop], starts: list[int] | None = None) -> Tensor:
    """A clip (n, N) of each loop, from its downbeat or from another frame on."""
    waves = torch.stack([loop.wave for loop in loops])
    return cut(waves, starts or [loop.downbeat for loop in loops])


@torch.no_grad()
def decode(z0: Tensor) -> Tensor:
    """The log-mels of latents."""
    return torch.cat([lean.decode(part("vae"), z) for z in z0.split(16)])


@torch.no_grad()
def round_trip(waves: Tensor) -> Tensor:
    """The log-mels of clips, through the VAE."""
    mels = (audio.log_mel(some) for some in waves.split(16))
    return torch.cat([lean.decode(part("vae"), part("vae").encode(x)) for x in mels])


def trained(loops: list[Loop], arm: str, seed: int, steps: int) -> MusicLDM:
    """A denoiser of one arm."""
    torch.manual_seed(seed)
    model = MusicLDM(CONFIG)
    batches = MixedLoops(part("clap"), part("vae"), loops, seed=seed, **ARMS[arm])
    recipe = replace(RECIPE, steps=steps // 2 if arm == HALF else steps)
    fit(model, batches, recipe, seed, "musicldm", progress=False)
    return model.eval()


@torch.no_grad()
def made_by(model: MusicLDM, captions: list[str], seed: int) -> Tensor:
    """The log-mels that a denoiser makes for captions."""
    clap, g = part("clap"), torch.Generator().manual_seed(seed)
    told, empty = ({"text": clap.encode(x)} for x in (captions, [""]))
    zT = torch.randn(len(captions), CONFIG.in_channels, FRAMES // STEP, 16, generator=g)
    empty = {"text": empty["text"].repeat(len(captions))}
    velocity = guided(model, told, empty, SAMPLING)
    as_eps = lambda zt, t: model.as_eps(zt, t, velocity(zt, t))
    zT = SAMPLING.temperature * zT
    z0 = diffusion.ddim_sample(as_eps, model.schedule, zT, SAMPLING.steps)
    return decode(z0)


@functools.cache
def judge() -> Classifier:
    """The judge that ships."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()


@torch.no_grad()
def hears(mels: Tensor, loops: list[Loop]) -> float:
    """The share of sounds in which the judge hears the instrument of their loop."""
    known = [judge().config.classes.index(name) for name in PLAYED]
    heard = torch.cat([judge()(x)[:, known] for x in mels.split(32)]).argmax(dim=1)
    asked = torch.tensor([PLAYED.index(loop.scene.events[0].name) for loop in loops])
    return float((heard == asked).float().mean())


@experiment(
    Claim(
        "copies",
        "mixup at least halves the copies of over-trained loops",
        "share of sounds, told captions of the loops, that are copies",
        lambda m: max(m["audio mixup"], m["latent mixup"]) <= 0.5 * m["no mixup"],
        control="new loops, never trained on",
        chance=0.05,
        ceiling=1.0,
    ),
    Claim(
        "new_captions",
        "mixup at least halves the copies if the captions are new",
        "share of sounds, told captions of new loops, that are copies",
        lambda m: max(m["audio mixup"], m["latent mixup"]) <= 0.5 * m["no mixup"],
        control="new loops, never trained on",
        chance=0.05,
        ceiling=1.0,
    ),
    Claim(
        "beats",
        "models that met aligned mixtures keep the beat; others lose some of it",
        "clarity of the beat",
        lambda m: (
            m["latent mixup"] > m["no mixup"] - 0.05
            and m["latent mixup, unaligned"] < m["latent mixup"] - 0.05
        ),
        control="onsets shuffled",
    ),
    Claim(
        "instrument",
        "novelty costs validity: with mixup the instrument is wrong more often",
        "share of sounds in which the judge hears the instrument that was asked for",
        lambda m: max(m["audio mixup"], m["latent mixup"]) < m["no mixup"] - 0.05,
        control="instrument of another caption",
        chance=1 / len(PLAYED),
        ceiling=1.0,
    ),
)
def copying(
    seed: int, arms: tuple[str, ...] = tuple(ARMS), steps: int = RECIPE.steps,
    made: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> Measured:  # fmt: skip
    """Denoisers trained on a few loops for too long, with and without mixtures."""
    loops, new_loops = draw_loops(N_LOOPS, seed), draw_loops(2 * N_NEW, 2000 + seed)
    known, new = round_trip(clips(loops)), round_trip(clips(new_loops))
    limit = copy_threshold(new[:N_NEW], known)
    asked = loops * N_MADE
    made = {} if made is None else made
    for arm in arms:
        if arm not in made:
            made[arm] = sounds_of(trained(loops, arm, seed, steps), seed)
    copied = lambda mels: float((nearest(mels, known)[0] >= limit).float().mean())
    real = {
        "new loops, never trained on": copied(new[N_NEW:]),
        "the loops themselves, decoded": copied(known),
    }
    sounds, unseen = ({arm: made[arm][k] for arm in arms} for k in range(2))
    found = {
        "copies": {arm: copied(mels) for arm, mels in sounds.items()} | real,
        "new_captions": {arm: copied(mels) for arm, mels in unseen.items()} | real,
        "beats": {arm: float(clarity(mels).mean()) for arm, mels in sounds.items()},
        "instrument": {arm: hears(mels, asked) for arm, mels in sounds.items()},
    }
    found["beats"]["new loops, never trained on"] = float(clarity(new).mean())
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(seed))
    shuffled = beat_vectors(strengths(new)[:, order]).abs().amax(dim=1)
    found["beats"]["onsets shuffled"] = float(shuffled.mean())
    found["instrument"]["the loops themselves, decoded"] = hears(known, loops)
    other = asked[5:] + asked[:5]  # of another instrument as often as chance has it
    found["instrument"]["instrument of another caption"] = hears(sounds[arms[0]], other)
    return found


def sounds_of(model: MusicLDM, seed: int) -> tuple[Tensor, Tensor]:
    """What a denoiser makes, told the captions of its loops, and of new ones."""
    loops, new = draw_loops(N_LOOPS, seed), draw_loops(2 * N_NEW, 2000 + seed)
    told = loops * N_MADE, new[: N_LOOPS * N_MADE]
    return tuple(made_by(model, [x.caption for x in some], 70 + seed) for some in told)


N_PAIRS = 100


def by_grid(loop: Loop) -> Beats:
    """The truth."""
    return Beats(loop.period, loop.downbeat)


@experiment(
    Claim(
        "mixtures",
        "mixtures on one grid keep the beat, others lose part of it",
        "clarity of the beat",
        lambda m: (
            m["on the grid"] > m["single loops"] - 0.03
            and m["by librosa's beats"] > m["single loops"] - 0.1
            and m["unaligned"] < m["single loops"] - 0.15
            and m["two tempi"] < m["single loops"] - 0.15
        ),
        control="onsets shuffled",
    ),
    Claim(
        "tracker",
        "librosa finds tempo and beats of loops, but no bars",
        "share of loops",
        lambda m: (
            m["and beats within 70 ms"] > 0.8
            and m["and the first beat is a downbeat"] < 0.5
        ),
        control="tempo of another loop",
        chance=1 / len(PERIODS),
        ceiling=1.0,
    ),
    Claim(
        "quieter",
        "a mixture of latents is quieter than one of sounds",
        "dB, mean over the spectrogram, of the mixture above the mean of its parts",
        lambda m: m["latents"] < m["sounds"] - 1,
    ),
)
def mixing(seed: int) -> Measured:
    """Mixtures of loops, before any training."""
    loops, rng = draw_loops(2 * N_PAIRS, 3000 + seed), np.random.default_rng(seed)
    heard = [tracked(loop.wave) for loop in loops]
    periods = [loop.period for loop in loops]
    half = torch.full((N_PAIRS,), 0.5)

    def mixed(pairs: list[tuple[int, int]], starts: list[tuple[int, int]]) -> Tensor:
        sides = (
            clips([loops[k] for k in some], list(at))
            for some, at in zip(zip(*pairs), zip(*starts))
        )
        return audio.log_mel(mixup(*sides, half))

    same = beat_partners(periods, N_PAIRS, rng)
    apart = beat_partners(periods, N_PAIRS, rng, same=False)
    ear = beat_partners([x.period for x in heard], N_PAIRS, rng)
    down = lambda pairs: [tuple(loops[k].downbeat for k in pair) for pair in pairs]
    anywhere = [
        (loops[i].downbeat, STEP * int(rng.integers(BAR * periods[j] // STEP)))
        for i, j in same
    ]
    mels = {
        "single loops": audio.log_mel(clips(loops)),
        "on the grid": mixed(same, down(same)),
        "by librosa's beats": mixed(
            ear, [tuple(heard[k].first for k in pair) for pair in ear]
        ),
        "unaligned": mixed(same, anywhere),
        "two tempi": mixed(apart, down(apart)),
    }
    beats = {name: float(clarity(x).mean()) for name, x in mels.items()}
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(seed))
    shuffled = beat_vectors(strengths(mels["single loops"])[:, order]).abs()
    beats["onsets shuffled"] = float(shuffled.amax(dim=1).mean())

    right = [a.period == b for a, b in zip(heard, periods)]
    off = [
        abs((a.first - x.downbeat + x.period // 2) % x.period - x.period // 2)
        for a, x in zip(heard, loops)
    ]
    other = [periods[k] for k in rng.permutation(len(periods))]
    wrong = [a.period == b for a, b in zip(heard, other)]
    bar = [
        r and (a.first - x.downbeat + 7) % (BAR * x.period) <= 14
        for r, a, x in zip(right, heard, loops)
    ]
    found = {
        "right tempo, up to octaves": np.mean(right),
        "and beats within 70 ms": np.mean([r and d <= 7 for r, d in zip(right, off)]),
        "and the first beat is a downbeat": np.mean(bar),
        "tempo of another loop": np.mean(wrong),
    }
    one, two = (clips([loops[pair[s]] for pair in same[:32]]) for s in range(2))
    z = [part("vae").encode(audio.log_mel(x)).detach() for x in (one, two)]
    parts = [decode(x) for x in z]
    level = lambda mels: float((mels - (parts[0] + parts[1]) / 2).mean()) * 8.686
    return {
        "mixtures": beats,
        "tracker": {name: float(x) for name, x in found.items()},
        "quieter": {
            "sounds": level(round_trip(mixup(one, two, half[:32]))),
            "latents": level(decode(mixup(*z, half[:32]))),
        },
    }
