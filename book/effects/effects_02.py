"""What chapter 02 measures: what each form of a sound tells a small probe and gives
back, why a regression from captions blurs, and what the second half of the way does
without a caption.

All weights are those that ship; all that is fitted here are linear maps, in closed
form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, Measured, experiment
from torch import Tensor

import minilib
from minilib import AudioLDM2, audio
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.soundworld import CLASSES, Combination, Scene, SoundWorld, describe
from minilib.soundworld.scene import ONSET, PITCHES, draw_event
from minilib.vocoder import vocode

LABELS = 4  # of each class, that a probe learns from
SINGLES = 400  # clips of one event, as the world draws them, for the class
TESTED = 6  # clips of each pitch or order, that it is asked about
WIDTH = 16  # numbers that a probe reads of a clip
RIDGE = 0.1  # of regressions, in units of the variance of what they read
POOL = 400  # clips without labels: they choose the numbers that a probe reads
PITCHED = ("bell", "bird", "dog", "guitar", "horn", "owl")
ORDERED = (
    ("dog", "bell"), ("rain", "owl"), ("knock", "whistle"), ("cat", "drum"),
    ("siren", "frog"), ("bird", "door"),
)  # fmt: skip
FORMS = ("wave", "log-mel", "latent z0", "LOA", "CLAP")
SIBLINGS = 16  # sounds of one description, whose mean is the best regression
SECONDS = 2.56


@cache
def shipped() -> AudioLDM2:
    """The pipeline that ships."""
    return minilib.AudioLDM2.from_pretrained(shipped_weights(), device="cpu")


@cache
def judge() -> Classifier:
    """The classifier that ships; it was trained apart from the pipeline."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32)


@dataclass(frozen=True)
class Clips:
    """Clips of SoundWorld: waves (n, N), captions and scenes."""

    wave: Tensor
    captions: list[str]
    scenes: list[Scene]

    @property
    def mel(self) -> Tensor:
        """Their log-mels (n, 1, M, F), made a few at a time."""
        return torch.cat([audio.log_mel(piece) for piece in self.wave.split(64)])


@cache
def clips(split: str, seed: int, n: int, pairs: float = 0.0) -> Clips:
    """The first n clips of a world that no shipped part has heard."""
    world = SoundWorld(split, seed=700 + seed, pairs=pairs)
    some = [world[i] for i in range(n)]
    waves = torch.stack([clip.wave for clip in some])
    return Clips(waves, [clip.caption for clip in some], [clip.scene for clip in some])


@torch.no_grad()
def form(name: str, wave: Tensor) -> Tensor:
    """One form of waves (n, N), flat: (n, D)."""
    pipe, mel = shipped(), audio.log_mel
    make = {
        "wave": lambda w: w,
        "log-mel": mel,
        "latent z0": lambda w: pipe.vae.encode(mel(w)),
        "LOA": lambda w: pipe.audiomae.loa(mel(w)),
        "CLAP": pipe.clap.embed_waves,
    }[name]
    return torch.cat([make(piece).flatten(1) for piece in wave.split(32)])


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights (D, K) of the linear regression of y (n, K) on x (n, D), both of mean 0;
    by way of the n x n matrix where that is the smaller.
    """
    n, D = x.shape
    strength = RIDGE * n * float(x.square().mean())
    if n < D:
        return x.T @ torch.linalg.solve(x @ x.T + strength * torch.eye(n), y)
    return torch.linalg.solve(x.T @ x + strength * torch.eye(D), x.T @ y)


# --------------------------------------------------------------------------------------
# What a probe reads, and what can be restored


@dataclass(frozen=True)
class Basis:
    """The principal components by which every form is cut to the same width."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    components: Tensor  # (D, WIDTH)

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std) @ self.components


def basis(x: Tensor) -> Basis:
    """The WIDTH principal components of clips (n, D), each dimension at variance 1."""
    mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    z = (x - mean) / std
    values, vectors = torch.linalg.eigh(z @ z.T)  # (n,), (n, n): n is the smaller
    largest = values[-WIDTH:].clamp_min(1e-6).sqrt()
    return Basis(mean, std, z.T @ (vectors[:, -WIDTH:] / largest))


def probed(x: Tensor, labels: Tensor) -> float:
    """Share of clips whose label a linear probe reads from x (n, WIDTH), after LABELS
    labels of each class; labels (n,) from 0.
    """
    of_class = [torch.nonzero(labels == k)[:, 0] for k in labels.unique()]
    train = torch.cat([rows[:LABELS] for rows in of_class])
    test = torch.cat([rows[LABELS:] for rows in of_class])
    wanted = F.one_hot(labels[train]).float()
    middle, share = x[train].mean(dim=0), wanted.mean(dim=0)
    scores = (x[test] - middle) @ ridge(x[train] - middle, wanted - share)
    return float(((scores + share).argmax(dim=1) == labels[test]).float().mean())


def single(name: str, pitch: str | None, rng: np.random.Generator) -> Scene:
    """One event of a class; what is not given is drawn evenly."""
    sound = CLASSES[name]
    pitch = pitch or (rng.choice(PITCHES) if sound.pitch else None)
    speed = rng.choice(("slow", "normal", "fast")) if sound.speed else None
    count = int(rng.choice(sound.counts[:2])) if sound.counts else None
    loudness = rng.choice(("quiet", "normal", "loud"))
    onset = rng.uniform(*ONSET)
    made = Combination(name, pitch, speed, loudness, count)
    event = draw_event(made, onset, SECONDS - 0.02 - onset, rng)
    return Scene((event,), SECONDS, int(rng.integers(2**32)))


def pair(first: str, second: str, rng: np.random.Generator) -> Scene:
    """Two events, one in each half of the clip."""
    halves = ((rng.uniform(0.02, 0.08), 1.2), (rng.uniform(1.25, 1.35), 2.54))
    drawn = [single(name, None, rng).events[0] for name in (first, second)]
    events = tuple(
        draw_event(
            event.combination._replace(count=event.count and 1), on, off - on, rng
        )
        for event, (on, off) in zip(drawn, halves)
    )
    return Scene(events, SECONDS, int(rng.integers(2**32)))


def siblings(scene: Scene, n: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes with the same description: all that it leaves open is drawn anew."""
    made, scenes = scene.events[0].combination, []
    for _ in range(n):
        onset = rng.uniform(*ONSET)
        event = draw_event(made, onset, scene.seconds - 0.02 - onset, rng)
        number = int(rng.integers(2**32))
        scenes.append(replace(scene, events=(event,), seed=number))
    return scenes


def rendered(scenes: list[Scene]) -> Tensor:
    """Waves (n, N) of scenes."""
    return torch.stack([SoundWorld().render(scene) for scene in scenes])


def asked(seed: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What probes are asked: for each question the tasks, waves and labels each."""
    rng, n = np.random.default_rng([seed, 2]), LABELS + TESTED
    every, names = clips("valid", seed, SINGLES), list(CLASSES)
    numbers = torch.tensor([names.index(s.events[0].name) for s in every.scenes])
    heights = [[single(c, p, rng) for p in PITCHES for _ in range(n)] for c in PITCHED]
    orders = [
        [pair(*names, rng) for names in ((a, b), (b, a)) for _ in range(n)]
        for a, b in ORDERED
    ]
    three, two = (
        torch.arange(3).repeat_interleave(n),
        torch.arange(2).repeat_interleave(n),
    )
    return {
        "class": [(every.wave, numbers)],
        "pitch": [(rendered(scenes), three) for scenes in heights],
        "order": [(rendered(scenes), two) for scenes in orders],
    }


def shuffled(labels: Tensor, seed: int) -> Tensor:
    """The labels in another order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return labels[order]


READS = "a linear probe of 16 numbers, with four labels of each class, reads the "
RIGHT = "share of clips read right"
CONTROL = "LOA, labels shuffled"


@experiment(
    Claim(
        "class",
        READS + "class better from the LOA than from the latent, and from either than "
        "from the wave",
        RIGHT,
        lambda m: m["LOA"] > m["latent z0"] + 0.05 > m["wave"] + 0.1,
        control=CONTROL,
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
    Claim(
        "pitch",
        READS + "pitch of a known class from the LOA, and next to nothing of it from "
        "the wave",
        RIGHT,
        lambda m: m["LOA"] > 0.7 and m["wave"] < 0.5,
        control=CONTROL,
        chance=1 / len(PITCHES),
        ceiling=1.0,
    ),
    Claim(
        "order",
        READS + "order of two events from the LOA, and from CLAP's one vector worse",
        RIGHT,
        lambda m: m["LOA"] > 0.8 and m["CLAP"] < m["LOA"],
        control=CONTROL,
        chance=0.5,
        ceiling=1.0,
    ),
)
def read(seed: int) -> Measured:
    """Probes of equal width on every form of the same clips."""
    pool = clips("train", seed, POOL, 0.4).wave
    tasks = asked(seed)
    found: Measured = {question: {} for question in tasks}
    for name in FORMS:
        cut = basis(form(name, pool))
        for question, some in tasks.items():
            rows = [(cut(form(name, wave)), labels) for wave, labels in some]
            share = [probed(x, labels) for x, labels in rows]
            found[question][name] = sum(share) / len(share)
            if name == "LOA":
                mixed = [probed(x, shuffled(labels, seed)) for x, labels in rows]
                found[question][CONTROL] = sum(mixed) / len(mixed)
    return found


@experiment(
    Claim(
        "open",
        "a description leaves less of the LOA open than of the latent, and nearly all "
        "of the wave",
        "variance among sounds of one description over the variance",
        lambda m: m["LOA"] < 0.8 * m["latent z0"] and m["wave"] > 0.9,
        control="LOA, descriptions shuffled",
        chance=1.0,
        ceiling=0.0,
    )
)
def left_open(seed: int) -> Measured:
    """How much of each form the description of a sound decides: two descriptions of
    every class, six sounds of each.
    """
    rng = np.random.default_rng([seed, 5])
    scenes = [single(name, None, rng) for name in CLASSES for _ in range(2)]
    wave = rendered([other for scene in scenes for other in siblings(scene, 6, rng)])

    def share(x: Tensor) -> float:
        within = x.unflatten(0, (len(scenes), 6)).var(dim=1).mean(dim=0).sum()
        return float(within / x.var(dim=0).sum())

    order = torch.randperm(len(wave), generator=torch.Generator().manual_seed(seed))
    found = {}
    for name in FORMS:
        found[name] = share(form(name, wave))
        if name == "LOA":
            found["LOA, descriptions shuffled"] = share(form(name, wave[order]))
    return {"open": found}


def off(restored: Tensor, mel: Tensor) -> float:
    """Mean distance of log-mels in decibels."""
    return float(audio.decibels((restored - mel).abs()).mean())


@torch.no_grad()
def drawn(loa: Tensor, seed: int) -> Tensor:
    """Latents that diffusion draws from the LOA (n, L, D) with the empty caption, and
    without guidance, for which GPT-2 would write another LOA.
    """
    pipe, n = shipped(), len(loa)
    how, rng = pipe.sampling.changed(guidance=1.0), torch.Generator().manual_seed(seed)
    return pipe.sample(loa, pipe.encode([""] * n), how, generator=rng)


@experiment(
    Claim(
        "restored",
        "the VAE's decoder gives the log-mel back from the latent to within 3 dB; the "
        "LOA gives it less exactly, also by way of diffusion, and CLAP's vector least",
        "dB, mean error of the log-mel",
        lambda m: (
            m["latent z0, VAE decoder"] < 3
            and m["latent z0, VAE decoder"] < m["LOA, diffusion and VAE decoder"] / 1.5
            and m["latent z0, linear map"] < m["LOA, linear map"]
            and m["LOA, linear map"] < m["CLAP, linear map"] / 1.3
        ),
        control="LOA of another clip, linear map",
        ceiling=0.0,
    )
)
def restore(seed: int) -> Measured:
    """The log-mel of unheard clips from each of their forms."""
    pipe = shipped()
    heard, new = clips("train", seed, POOL, 0.4), clips("test", seed, 64, 0.4)
    middle = heard.mel.flatten(1).mean(dim=0)

    forms = {name: (form(name, heard.wave), form(name, new.wave)) for name in FORMS[2:]}

    def linear(name: str, roll: int = 0) -> float:
        x, y = forms[name]
        mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        w = ridge((x - mean) / std, heard.mel.flatten(1) - middle)
        guess = ((y - mean) / std).roll(roll, dims=0) @ w + middle
        return off(guess, new.mel.flatten(1))

    with torch.no_grad():
        kept = torch.cat([pipe.reconstruct(piece) for piece in new.mel.split(32)])
        loa = torch.cat([pipe.audiomae.loa(piece) for piece in new.mel.split(32)])
        made = torch.cat([pipe.vae.decode(drawn(some, seed)) for some in loa.split(32)])
    return {
        "restored": {
            "wave, chapter 01": off(audio.log_mel(new.wave), new.mel),
            "latent z0, VAE decoder": off(kept, new.mel),
            "latent z0, linear map": linear("latent z0"),
            "LOA, diffusion and VAE decoder": off(made, new.mel),
            "LOA, linear map": linear("LOA"),
            "LOA of another clip, linear map": linear("LOA", roll=1),
            "CLAP, linear map": linear("CLAP"),
            "nothing: the mean of all clips": off(
                middle.expand(len(new.mel), -1), new.mel.flatten(1)
            ),
        }
    }


# --------------------------------------------------------------------------------------
# Why a regression blurs


@torch.no_grad()
def told(captions: list[str]) -> Tensor:
    """What the frozen encoders say of captions: CLAP's vector, the mean and the maximum
    of T5's states, (n, D).
    """
    rows = []
    for start in range(0, len(captions), 64):
        said = shipped().encode(captions[start : start + 64])
        states, mask = said["text"].sequence, said["text"].mask[:, :, None]
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        highest = states.masked_fill(mask == 0, -1e4).amax(dim=1)
        rows.append(torch.cat([said["clap"].sequence[:, 0], mean, highest], dim=1))
    return torch.cat(rows)


@cache
def regression(seed: int) -> Callable[[list[str]], Tensor]:
    """The linear regression of the log-mel on what the encoders say of its caption: a
    function of captions, fitted on clips; it gives log-mels (n, 1, M, F).
    """
    heard = clips("train", seed, 900)
    x, y = told(heard.captions), heard.mel
    mean, std, middle = x.mean(dim=0), x.std(dim=0).clamp_min(1e-3), y.mean(dim=0)
    w = ridge((x - mean) / std, (y - middle).flatten(1))
    return lambda captions: (
        ((told(captions) - mean) / std @ w).unflatten(1, y.shape[1:]) + middle
    )


def again(scene: Scene, n: int, rng: np.random.Generator) -> Tensor:
    """Log-mels (n, 1, M, F) of n sounds with the same description."""
    return audio.log_mel(rendered(siblings(scene, n, rng)))


def edge(mel: Tensor) -> float:
    """How steep the edges of log-mels (n, 1, M, F) are: the largest rise from one frame
    to the next, in dB, over eight groups of bands. Grain hardly counts.
    """
    groups = audio.decibels(mel).unflatten(-1, (8, -1)).mean(dim=-1)  # (n, 1, M, 8)
    return float(groups.diff(dim=2).amax(dim=2).mean())


def apart(a: Tensor, b: Tensor) -> float:
    """Root of the mean squared distance of log-mels, in dB: what a squared error
    minimises.
    """
    return float(audio.decibels((a - b).square().mean().sqrt()))


@experiment(
    Claim(
        "near",
        "under a squared error a blurred mean is nearer to a clip than another clip of "
        "the same description",
        "dB, root mean squared distance from the clip",
        lambda m: (
            m["mean of 16 clips of its description"]
            < 0.85 * m["another clip of its description"]
        ),
        control="another clip of its description",
    ),
    Claim(
        "sharp",
        "the edges in a regression of a caption are at most two thirds as steep as "
        "those of a clip, and so are those of the best regression there is",
        "dB, steepest rise from a frame to the next",
        lambda m: (
            m["regression on the caption"] < 0.67 * m["the clip"]
            and m["mean of 16 clips of its description"] < 0.67 * m["the clip"]
            and m["another clip of its description"] > 0.9 * m["the clip"]
        ),
        control="another clip of its description",
    ),
)
def blur(seed: int) -> Measured:
    """A regression of the log-mel on the caption, the best that there can be, and
    another clip of the same description.
    """
    new, rng = clips("valid", seed, 32), np.random.default_rng([seed, 3])
    families = torch.stack([again(s, SIBLINGS + 1, rng) for s in new.scenes])
    everything = clips("train", seed, 900).mel.mean(dim=0, keepdim=True)
    sounds = {
        "the clip": new.mel,
        "another clip of its description": families[:, 0],
        "mean of 16 clips of its description": families[:, 1:].mean(dim=1),
        "regression on the caption": regression(seed)(new.captions),
        "mean of all clips": everything.expand_as(new.mel),
    }
    return {
        "near": {k: apart(v, new.mel) for k, v in sounds.items() if k != "the clip"},
        "sharp": {k: edge(v) for k, v in sounds.items()},
    }


# --------------------------------------------------------------------------------------
# G alone


@torch.no_grad()
def alone(loa: Tensor, seed: int) -> Tensor:
    """G with no caption: waves from the LOA (n, L, D)."""
    pipe = shipped()
    return pipe.as_loud_as_told(pipe.decode(drawn(loa, seed), pipe.n_samples()), loa)


@experiment(
    Claim(
        "alone",
        "from the true LOA and no caption G makes a sound of the same class",
        "share of sounds in which the judge hears the clip's class",
        lambda m: m["G: true LOA, no caption"] > 0.5 > 5 * m["G: LOA of another clip"],
        control="G: LOA of another clip",
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
    Claim(
        "alive",
        "the edges of what G makes are as steep as VAE and vocoder can make them, "
        "those of a regression are not",
        "dB, steepest rise from a frame to the next",
        lambda m: (
            min(m["G: true LOA, no caption"], m["G after M: from the caption"])
            > 0.9 * m["the clip, through VAE and vocoder"]
            > 1.1 * m["regression on the caption, through the vocoder"]
        ),
        control="regression on the caption, through the vocoder",
    ),
)
def sounds_again(seed: int) -> Measured:
    """A clip of every class, its LOA, and sounds from it; and from its caption."""
    pipe, rng = shipped(), np.random.default_rng([seed, 4])
    scenes = [single(name, None, rng) for name in CLASSES]
    captions = [describe(scene, rng) for scene in scenes]
    wave, classes = rendered(scenes), torch.arange(len(scenes))
    with torch.no_grad():
        mel = audio.log_mel(wave)
        loa = pipe.audiomae.loa(mel)
        kept = pipe.decode(pipe.vae.encode(mel), wave.shape[1])
        flat = vocode(pipe.vocoder, regression(seed)(captions))[:, : wave.shape[1]]
    made, asked_for = alone(loa, seed), pipe(captions, seed=seed, progress=False)
    right = lambda w, k: float((judge().hear(w) == k).float().mean())
    steep = lambda w: edge(audio.log_mel(w))
    return {
        "alone": {
            "the clip": right(wave, classes),
            "the clip, through VAE and vocoder": right(kept, classes),
            "G: true LOA, no caption": right(made, classes),
            "G: LOA of another clip": right(made, classes.roll(1)),
            "G after M: from the caption": right(asked_for, classes),
        },
        "alive": {
            "the clip": steep(wave),
            "the clip, through VAE and vocoder": steep(kept),
            "G: true LOA, no caption": steep(made),
            "G after M: from the caption": steep(asked_for),
            "regression on the caption, through the vocoder": steep(flat),
        },
    }
