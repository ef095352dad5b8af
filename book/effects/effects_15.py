"""The effects of chapter 15: classifier-free guidance.

Small networks of the kind of `peers/text_ldm` learn eight classes from captions that
leave pitch, speed and loudness open, with none, a tenth or half of the captions
emptied. The strength is swept, and negative captions are tried, on the `text_ldm` that
ships.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch
from effects import Claim, experiment
from torch import Tensor

import minilib
from minilib import audio, diffusion, judges, lean
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.conditions import Conditions, Context, drop, to_batch
from minilib.frechet import frechet_distance
from minilib.guidance import Sampling, guided
from minilib.peers import text_ldm
from minilib.peers.text_ldm import TextLDM, TextLDMConfig, TextToAudio
from minilib.soundworld import CLASSES, Event, Scene, SoundWorld, plain
from minilib.soundworld.scene import draw_event
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
        "guidance comes closer to clean sounds with a network that learned the empty "
        "condition than with one that never met it",
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


HALF = 20_480  # samples in half a sound


@torch.no_grad()
def made(captions: list[str], negatives: list[str], g: float, first: int) -> Tensor:
    """Sounds of the direct route, guided away from negative captions; sound i starts
    from the noise of the seed first + i.
    """
    told, away = ({"text": direct().text.encode(x)} for x in (captions, negatives))
    noises = [torch.Generator().manual_seed(first + i) for i in range(len(captions))]
    z0 = direct().sample(told, away, 2 * HALF, Sampling(steps=12, guidance=g), noises)
    return torch.cat([direct().decode(z, 2 * HALF) for z in z0.split(16)])


STRENGTHS = (1.0, 2.0, 3.5, 5.0, 8.0)
N_CAPTIONS = 32  # captions of held-out combinations, two sounds of each


@functools.cache
def held_out() -> tuple[list[str], list[Event]]:
    """Captions of the test split, and their events."""
    world = SoundWorld("test", pairs=0.0)
    captions = [world.caption(i) for i in range(N_CAPTIONS)]
    return captions, [world.scene(i).events[0] for i in range(N_CAPTIONS)]


@functools.cache
def clean(n: int, first: int) -> Tensor:
    """n other clean renders of what each caption of `held_out` asks for."""
    world, waves = SoundWorld("test", pairs=0.0), []
    for event in held_out()[1]:
        for k in range(first, first + n):
            rng = np.random.default_rng([k, event.seed])
            other = draw_event(event.combination, 0.08, world.seconds - 0.1, rng)
            waves.append(world.render(Scene((other,), world.seconds, k)))
    return torch.stack(waves)


@torch.no_grad()
def judged(waves: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Share followed, variety and Fréchet distance of two sounds of each caption."""
    features, right = torch.cat([judge().embed(w) for w in waves.split(16)]), []
    found = [k for w in waves.split(16) for k in judge().hear(w).tolist()]
    for i, (wave, k) in enumerate(zip(waves, found)):
        event = held_out()[1][i // 2]
        answers = judges.answers(wave, event)
        answers.pop("cents", None)
        named = judge().config.classes[k] == event.name
        right.append(fmean([named, *answers.values()]))
    apart = (features[::2] - features[1::2]).norm(dim=1).mean()
    return fmean(right), float(apart), frechet_distance(features, reference)


@experiment(
    Claim(
        "followed",
        "guidance makes a well-trained network follow its captions better",
        "share of what the caption asks for",
        lambda m: max(m["g 2"], m["g 3.5"]) > m["g 1"] + 0.02,
        control="g 1",
    ),
    Claim(
        "variety",
        "guidance lowers the variety among sounds of one caption",
        "distance of two sounds of one caption",
        lambda m: m["g 2"] < m["g 1"] - 0.3 and m["g 3.5"] < m["g 1"] - 0.3,
        control="g 1",
    ),
    Claim(
        "distance",
        "the distance from clean sounds is least at a moderate strength",
        "squared Fréchet distance from clean sounds",
        lambda m: min(m["g 2"], m["g 3.5"], m["g 5"]) < min(m["g 1"], m["g 8"]) - 2,
        control="g 1",
    ),
)
def strengths(seed: int) -> dict[str, dict[str, float]]:
    """The strength swept, from the same noises."""
    captions = [caption for caption in held_out()[0] for _ in range(2)]
    reference = torch.cat([judge().embed(w) for w in clean(6, 0).split(16)]).detach()
    rows, first = {}, 10_000 * (seed + 1)
    for g in STRENGTHS:
        waves = made(captions, [""] * len(captions), g, first)
        rows[f"g {g:g}"] = judged(waves, reference)
    rows["clean renders"] = judged(clean(2, 100 + 2 * seed), reference)
    return {
        name: {arm: row[k] for arm, row in rows.items()}
        for k, name in enumerate(("followed", "variety", "distance"))
    }


N_FREE, N_PAIRS = 48, 32  # sounds


def half_heard(waves: Tensor, part: int) -> list[str]:
    """The classes that the judge hears in the first (0) or second (1) halves."""
    half = waves[:, HALF * part : HALF * (part + 1)]
    return [judge().config.classes[k] for k in judge().hear(half).tolist()]


def same(found: list[str], wanted: list[str]) -> float:
    """The share of classes that are as wanted."""
    return float(np.mean([a == b for a, b in zip(found, wanted)]))


@experiment(
    Claim(
        "negative",
        "a negative caption removes the class that it names from sounds of the empty "
        "caption",
        "share of uncaptioned sounds that keep their class",
        lambda m: m["its own class named"] < m["another class named"] - 0.1,
        control="another class named",
        ceiling=1.0,
    ),
    Claim(
        "negative_asked",
        "a negative caption removes an event that the caption itself asks for",
        "share of sounds with the second event of their caption",
        lambda m: m["second event named"] < m["another class named"] - 0.1,
        control="another class named",
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
)
def negatives(seed: int) -> dict[str, dict[str, float]]:
    """What a negative caption removes: of what is not asked for, and of what is."""
    rng, first, names = np.random.default_rng(seed), 1000 * (seed + 1), list(CLASSES)
    free = [""] * N_FREE
    was = half_heard(made(free, free, 1.5, first), 0)
    # the judge also knows instruments, which no plain caption names: not counted
    counted = [i for i, kind in enumerate(was) if kind in CLASSES]
    others = [rng.choice([x for x in names if x != kind]) for kind in was]
    kept = {}
    for arm, kinds in {"its own": was, "another": others}.items():
        away = [plain(kind) if kind in CLASSES else "" for kind in kinds]
        now = half_heard(made(free, away, 1.5, first), 0)
        kept[f"{arm} class named"] = same(
            [now[i] for i in counted], [was[i] for i in counted]
        )
    three = [rng.choice(names, 3, replace=False) for _ in range(N_PAIRS)]
    captions = [f"{plain(a)}, then {plain(b)}" for a, b, _ in three]
    second, third = ([str(x[k]) for x in three] for k in (1, 2))
    there = {}
    for arm, away in {
        "no negative caption": [""] * N_PAIRS,
        "second event named": [plain(kind) for kind in second],
        "another class named": [plain(kind) for kind in third],
    }.items():
        there[arm] = same(half_heard(made(captions, away, 3.5, first), 1), second)
    return {"negative": kept, "negative_asked": there}
