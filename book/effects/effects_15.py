"""The effects of chapter 15: classifier-free guidance.

Small networks of the kind of `peers/text_ldm` learn eight classes from captions that
leave pitch, speed and loudness open, with none, a tenth or half of the captions
emptied.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from effects import Claim, experiment
from torch import Tensor

import minilib
from minilib import audio, diffusion, lean
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.conditions import Conditions, Context, drop, to_batch
from minilib.frechet import frechet_distance
from minilib.guidance import Sampling, guided
from minilib.peers import text_ldm
from minilib.peers.text_ldm import TextLDM, TextLDMConfig, TextToAudio
from minilib.soundworld import CLASSES, SoundWorld, plain
from minilib.training import Recipe, fit

KINDS = ("bell", "bird", "cat", "dog", "drum", "horn", "siren", "whistle")
N_CLIPS, STEPS, BATCH = 40, 250, 32  # clips of each class; steps of training
N_TEST = 6  # sounds of each class
SMALL = TextLDMConfig(width=96, n_layer=2)
LEARNED = "share of sounds whose class is right"


@functools.cache
def judge() -> Classifier:
    """The judge that ships."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()


@functools.cache
def tiny() -> minilib.AudioLDM2:
    """The pipeline that ships."""
    return minilib.AudioLDM2.from_pretrained(shipped_weights(), device="cpu")


@functools.cache
def direct() -> TextToAudio:
    """The peer that reads the caption with no LOA between."""
    return TextToAudio.from_pretrained(shipped_weights().parent / "peers/text_ldm")


@functools.cache
def clips() -> tuple[Tensor, Tensor]:
    """Latents (n, C, T/r, F/r) of the classes, `N_CLIPS` of each, and the features of
    as many other clips.
    """
    world, waves, i = SoundWorld("train", 1500, pairs=0.0), {x: [] for x in KINDS}, 0
    while min(map(len, waves.values())) < 2 * N_CLIPS:
        (event,) = world.scene(i).events
        if len(waves.get(event.name, [0] * 2 * N_CLIPS)) < 2 * N_CLIPS:
            waves[event.name].append(world[i].wave)
        i += 1
    train, others = (
        torch.stack([w for x in KINDS for w in waves[x][k::2]]) for k in (0, 1)
    )
    with torch.no_grad():
        encoded = [tiny().vae.encode(audio.log_mel(w)) for w in train.split(16)]
    return torch.cat(encoded), judge().embed(others)


@functools.cache
@torch.no_grad()
def told() -> Context:
    """The T5 states of the classes' captions, in the order of `KINDS`."""
    return direct().text.encode([plain(name) for name in KINDS])


@functools.cache
@torch.no_grad()
def empty(kind: str) -> Conditions:
    """An empty condition: T5's states of "", or a single vector of zeros."""
    states = direct().text.encode([""])
    zeros = Context(torch.zeros(1, 1, states.sequence.shape[2]))
    return {"text": zeros if kind == "zeros" else states}


def rows(context: Context, i: Tensor) -> Context:
    """Some items of a context."""
    return Context(*(None if x is None else x[i] for x in context))


def train(seed: int, share: float, kind: str = "caption") -> TextLDM:
    """A small network whose conditions are emptied with a probability."""
    torch.manual_seed(seed)
    model, z0 = (
        TextLDM(replace(SMALL, context_dim=told().sequence.shape[2])),
        clips()[0],
    )

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        i = torch.randint(len(z0), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < share
        read = drop({"text": rows(told(), i // N_CLIPS)}, empty(kind), dropped)
        u = torch.rand(BATCH, generator=generator) ** text_ldm.CURVE
        t = 1 + (u * SMALL.n_steps).long().clamp_max(SMALL.n_steps - 1)
        eps = torch.randn(z0[i].shape, generator=generator)
        return {"z0": z0[i], "t": t, "eps": eps, **to_batch(read)}

    recipe = Recipe(STEPS, BATCH, 2e-3, warmup=20, ema=0.98, muon=("linear", "conv"))
    fit(model, batch, recipe, seed, progress=False)
    return model.eval()


@torch.no_grad()
def heard(model: TextLDM, g: float, kind: str = "caption") -> tuple[float, float]:
    """The share of right classes, and the Fréchet distance, at strength g."""
    labels = torch.arange(len(KINDS)).repeat_interleave(N_TEST)
    generator = torch.Generator().manual_seed(77)
    zT = torch.randn(len(labels), *clips()[0].shape[1:], generator=generator)
    one = empty(kind)["text"]
    nothing = {"text": rows(one, torch.zeros(len(labels), dtype=torch.long))}
    full = {"text": rows(told(), labels)}
    predict = guided(model, full, nothing, Sampling(guidance=g))
    as_eps = lambda zt, t: model.as_eps(zt, t, predict(zt, t))
    z0 = diffusion.ddim_sample(as_eps, model.schedule, zT, 12)
    mels = torch.cat([lean.decode(tiny().vae, z) for z in z0.split(16)])
    features = torch.cat([judge().features(mel) for mel in mels.split(16)])
    found = [judge().config.classes[k] for k in judge().head(features).argmax(dim=1)]
    right = [name == KINDS[k] for name, k in zip(found, labels)]
    return float(np.mean(right)), frechet_distance(features, clips()[1])


@experiment(
    Claim(
        "dropped",
        "guidance helps a network that learned the empty condition, and more than one "
        "that never met it",
        LEARNED,
        lambda m: (
            m["10 %, g 3"] > m["10 %, g 1"] + 0.02
            and m["10 %, g 3"] - m["10 %, g 1"] > m["none, g 3"] - m["none, g 1"] + 0.02
        ),
        control="none, g 3",
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
    Claim(
        "dropped_frechet",
        "with an empty condition that it never met, guidance leads away from clean "
        "sounds",
        "squared Fréchet distance from clean sounds",
        lambda m: m["10 %, g 3"] < m["none, g 3"] - 5,
        control="none, g 3",
    ),
    Claim(
        "half",
        "half the conditions emptied cost the conditional prediction",
        LEARNED,
        lambda m: m["50 %, g 1"] < m["10 %, g 1"] - 0.02,
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
    Claim(
        "empty",
        "guidance needs the empty condition of training",
        "squared Fréchet distance from clean sounds",
        lambda m: (
            m['trained "", sampled ""'] < m['trained "", sampled zeros'] - 5
            and m["trained zeros, sampled zeros"] < m['trained zeros, sampled ""'] - 5
        ),
        control='trained "", sampled zeros',
    ),
    Claim(
        "empty_class",
        "with another empty condition than training's, fewer captions are followed",
        LEARNED,
        lambda m: (
            m['trained "", sampled ""'] > m['trained "", sampled zeros'] + 0.02
            and m["trained zeros, sampled zeros"]
            > m['trained zeros, sampled ""'] + 0.02
        ),
        control='trained "", sampled zeros',
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
)
def dropping(seed: int) -> dict[str, dict[str, float]]:
    """Small networks, trained with no, a tenth or half of the conditions emptied."""
    right, far, shares = {}, {}, {"none": 0.0, "10 %": 0.1, "50 %": 0.5}
    made = {name: train(seed, share) for name, share in shares.items()}
    for name, model in made.items():
        for g in (1.0, 3.0):
            arm = f"{name}, g {g:g}"
            right[arm], far[arm] = heard(model, g)
    same = right["10 %, g 3"], far["10 %, g 3"]
    other = train(seed, 0.1, "zeros")
    pairs = {
        'trained "", sampled ""': same,
        'trained "", sampled zeros': heard(made["10 %"], 3.0, "zeros"),
        "trained zeros, sampled zeros": heard(other, 3.0, "zeros"),
        'trained zeros, sampled ""': heard(other, 3.0),
    }
    half = ("10 %, g 1", "50 %, g 1", "10 %, g 3", "50 %, g 3")
    return {
        "dropped": right,
        "dropped_frechet": far,
        "half": {arm: right[arm] for arm in half},
        "empty": {arm: x for arm, (_, x) in pairs.items()},
        "empty_class": {arm: x for arm, (x, _) in pairs.items()},
    }
