"""The effects of chapter 10: CLAP.

The networks are small, so that many of them are trained in minutes: sounds are log-
mels averaged over 4 frames by 2 bands, both have a fifth of the weights of the
`tiny` model. All learn from the same clips; a seed changes weights and batches.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, experiment
from torch import Tensor

import minilib
from minilib import audio, judges
from minilib.clap import (
    CLAP,
    MAX_LOGIT_SCALE,
    CLAPConfig,
    contrastive_loss,
    same_captions,
)
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_listener, shipped_weights
from minilib.soundworld import CLASSES, Scene, SoundWorld, describe, plain
from minilib.tokenizer import Tokenizer
from minilib.training import Recipe, fit

N_TRAIN, N_TEST = 3000, 256
STEPS, BATCH, LR = 80, 256, 4e-3
# what the search for a caption's sound is measured by
FOUND = {
    "unit": f"share of {N_TEST} captions whose own sound comes first",
    "chance": 1 / N_TEST,
    "ceiling": 1.0,
}
SMALL = CLAPConfig(
    dim=64, dropout=0.0, vocab_size=1000, n_embd=64, n_layer=2, n_head=4,
    n_positions=80, channels=(16, 32, 64), stride=2,
)  # fmt: skip


def small(log_mel: Tensor) -> Tensor:
    """Log-mels (B, 1, T, F) averaged over 4 frames by 2 bands."""
    return F.avg_pool2d(log_mel, (4, 2))


def mels(world: SoundWorld, indices: list[int]) -> Tensor:
    """Small log-mels (n, 1, 64, 32) of some clips."""
    some = [indices[i : i + 8] for i in range(0, len(indices), 8)]
    waves = (torch.stack([world[i].wave for i in few]) for few in some)
    return torch.cat([small(audio.log_mel(wave)) for wave in waves])


def swapped(scene: Scene) -> str:
    """The caption of a scene with its events in the other order, in the same words."""
    other = dataclasses.replace(scene, events=scene.events[::-1])
    return describe(other, np.random.default_rng([scene.seed, 1]))


@functools.cache
def training_clips() -> dict[str, Tensor]:
    """Clips of `train`: `mel`, `ids`, `mask`, those of the swapped captions, and
    `pair`, whether there are two events.
    """
    world = SoundWorld("train")
    scenes = [world.scene(i) for i in range(N_TRAIN)]
    every = [world.caption(i) for i in range(N_TRAIN)] + list(map(swapped, scenes))
    ids, mask = tokenizer().encode(every)
    pair = torch.tensor([len(scene.events) == 2 for scene in scenes])
    return {
        "log_mel": mels(world, list(range(N_TRAIN))), "pair": pair,
        "ids": ids[:N_TRAIN], "mask": mask[:N_TRAIN],
        "other_ids": ids[N_TRAIN:], "other_mask": mask[N_TRAIN:],
    }  # fmt: skip


@functools.cache
def tokenizer() -> Tokenizer:
    """A tokenizer of the training captions."""
    world = SoundWorld("train")
    return Tokenizer.train(world.caption(i) for i in range(N_TRAIN))


def unseen_clips(n: int = N_TEST) -> list[int]:
    """n clips of `test`, no two with the same combinations of attributes."""
    world, met, chosen, i = SoundWorld("test"), set(), [], 0
    while len(chosen) < n:
        told = tuple(event.combination for event in world.scene(i).events)
        if told not in met:
            met.add(told)
            chosen.append(i)
        i += 1
    return chosen


@functools.cache
def unseen() -> dict:
    """The clips on which all are tested: `mel`, `captions`, `scenes`."""
    world, chosen = SoundWorld("test"), unseen_clips()
    return {
        "log_mel": mels(world, chosen), "scenes": [world.scene(i) for i in chosen],
        "captions": [world.caption(i) for i in chosen],
    }  # fmt: skip


class Grouped(CLAP):
    """A CLAP that looks for a caption's sound among `group` of the batch's sounds."""

    group = BATCH

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        rows = (*self(batch["ids"], batch["mask"], batch["log_mel"]), batch["ids"])
        groups = list(zip(*(x.split(self.group) for x in rows)))
        scale = self.logit_scale.exp()
        losses = [contrastive_loss(t, a, scale, same_captions(i)) for t, a, i in groups]
        return torch.stack(losses).mean()


class Warned(CLAP):
    """A CLAP that must also tell a pair's caption from the same one swapped."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        text, sound = self(batch["ids"], batch["mask"], batch["log_mel"])
        other = self.embed_text(batch["other_ids"], batch["other_mask"])
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        scale = self.logit_scale.exp()
        loss = contrastive_loss(text, sound, scale, same_captions(batch["ids"]))
        ahead = scale * ((text - other) * sound).sum(dim=1)  # (B,)
        return loss + F.softplus(-ahead)[batch["pair"]].mean()


def train(
    seed: int, steps: int = STEPS, batch: int = BATCH, kind: type = CLAP,
    shuffled: bool = False, group: int = BATCH, clips: dict | None = None,
) -> CLAP:  # fmt: skip
    """A small CLAP, trained."""
    torch.manual_seed(seed)
    model = kind(SMALL)
    model.group, clips = group, clips or training_clips()
    every = len(clips["ids"])

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        i = torch.randperm(every, generator=generator)[:batch]
        drawn = {name: x[i] for name, x in clips.items()}
        if shuffled:
            drawn["log_mel"] = drawn["log_mel"].roll(1, dims=0)
        return drawn

    recipe = Recipe(steps=steps, batch_size=batch, lr=LR, warmup=20)
    curves = fit(model, draw, recipe, seed=seed, progress=False)
    model.curve = curves["loss"]
    model.tokenizer = tokenizer()
    return model


@torch.no_grad()
def recall(model: CLAP) -> float:
    """How often a caption's own sound comes first among all unseen ones."""
    text = model.encode(unseen()["captions"]).sequence[:, 0]
    best = CLAP.similarity(text, model.embed_audio(unseen()["log_mel"])).argmax(dim=1)
    return float((best == torch.arange(len(text))).float().mean())


@torch.no_grad()
def order(model: CLAP) -> dict[str, float]:
    """How often a pair's caption fits its sound better than another does: that of
    another pair, or its own with the events swapped.
    """
    scenes, captions = unseen()["scenes"], unseen()["captions"]
    pairs = [i for i, scene in enumerate(scenes) if len(scene.events) == 2]
    sound = model.embed_audio(unseen()["log_mel"][pairs])
    told = lambda captions: model.encode(captions).sequence[:, 0]
    right = told([captions[i] for i in pairs])
    wrong = {"other": right.roll(1, dims=0)}
    wrong["swapped"] = told([swapped(scenes[i]) for i in pairs])
    better = lambda x: ((right - x) * sound).sum(dim=1) > 0
    return {name: float(better(x).float().mean()) for name, x in wrong.items()}


@experiment(
    Claim(
        "unseen",
        "captions of combinations that training never had find their sounds",
        holds=lambda m: (
            m["320 steps"] > m["80 steps"] > 10 / N_TEST
            and m["80 steps on shuffled pairs"] < 3 / N_TEST
        ),
        control="80 steps on shuffled pairs",
        **FOUND,
    ),
    Claim(
        "negatives",
        "the more sounds a caption is told from in a step, the more of them are found, "
        "at equal pairs and steps",
        holds=lambda m: m["8 of the batch"] < m["64 of the batch"] < m["all 256"],
        **FOUND,
    ),
    Claim(
        "batch",
        "the larger the batch, the more are found, at equal steps",
        holds=lambda m: m["8"] < m["64"] < m["256"],
        **FOUND,
    ),
    Claim(
        "pairs",
        "at equal pairs seen, more and smaller batches find more",
        holds=lambda m: m["320 steps of 64"] > m["80 steps of 256"],
        **FOUND,
    ),
    Claim(
        "order",
        "a caption is told from that of another pair, not from its own with the events "
        "swapped",
        "share of pairs whose caption fits better than the wrong one",
        lambda m: m["another pair's"] > 0.9 and abs(m["swapped"] - 0.5) < 0.1,
        control="swapped",
        chance=0.5,
        ceiling=1.0,
    ),
    Claim(
        "asked",
        "a swapped caption is told from the right one if training asks for it",
        "share of pairs whose caption fits better than the swapped one",
        lambda m: m["asked to"] > m["not asked to"] + 0.1,
        control="not asked to",
        chance=0.5,
        ceiling=1.0,
    ),
)
def batches(seed: int) -> dict[str, dict[str, float]]:
    """How many are found after training in batches of several sizes, and order."""
    grouped = {n: recall(train(seed, kind=Grouped, group=n)) for n in (8, 64, BATCH)}
    steps = STEPS * BATCH // 64
    longer, warned = train(seed, steps, 64), train(seed, steps, 64, Warned)
    shorter, kinds = recall(train(seed, STEPS, 64)), order(longer)
    return {
        "unseen": {
            "320 steps": recall(longer),
            "80 steps": shorter,
            "80 steps on shuffled pairs": recall(
                train(seed, STEPS, 64, shuffled=True)
            ),
        },
        "negatives": {
            "8 of the batch": grouped[8],
            "64 of the batch": grouped[64],
            "all 256": grouped[BATCH],
        },
        "batch": {
            "8": recall(train(seed, STEPS, 8)),
            "64": shorter,
            "256": grouped[BATCH],
        },
        "pairs": {"80 steps of 256": grouped[BATCH], "320 steps of 64": recall(longer)},
        "order": {"another pair's": kinds["other"], "swapped": kinds["swapped"]},
        "asked": {
            "not asked to": kinds["swapped"], "asked to": order(warned)["swapped"],
        },
    }  # fmt: skip


@functools.cache
def plain_clips() -> dict[str, Tensor]:
    """Clips of one event, told by their class alone."""
    whole, world = training_clips(), SoundWorld("train")
    single = torch.arange(N_TRAIN)[~whole["pair"]]
    names = [world.scene(i).events[0].name for i in single.tolist()]
    ids, mask = tokenizer().encode([plain(name) for name in names])
    return {"log_mel": whole["log_mel"][single], "ids": ids, "mask": mask}


@torch.no_grad()
def classes_right(model: CLAP) -> float:
    """How often the nearest plain caption names the class of an unseen sound."""
    names, scenes = list(CLASSES), unseen()["scenes"]
    single = [i for i, scene in enumerate(scenes) if len(scene.events) == 1]
    text = model.encode([plain(name) for name in names]).sequence[:, 0]
    sound = model.embed_audio(unseen()["log_mel"][single])
    found = [names[i] for i in CLAP.similarity(sound, text).argmax(dim=1).tolist()]
    right = [name == scenes[i].events[0].name for name, i in zip(found, single)]
    return sum(right) / len(right)


class Blind(CLAP):
    """A CLAP that takes every other sound of the batch for a wrong answer."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        n = len(batch["ids"])
        return super().loss({**batch, "same": torch.eye(n, dtype=torch.bool)})


@experiment(
    Claim(
        "alike",
        "like captions taken for wrong answers keep the loss high",
        "loss in nats at the end",
        lambda m: m["wrong answers"] > m["left out"] + 0.5,
        control="wrong answers",
    ),
    Claim(
        "alike_classes",
        "like captions taken for wrong answers cost classes",
        "share of unseen sounds whose class is right",
        lambda m: m["wrong answers"] < m["left out"] - 0.05,
        control="wrong answers",
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
)
def alike(seed: int) -> dict[str, dict[str, float]]:
    """Training on plain captions, of which a batch of 64 holds two of each class."""
    made = {
        name: train(seed, 100, 64, kind, clips=plain_clips())
        for name, kind in (("left out", CLAP), ("wrong answers", Blind))
    }
    return {
        "alike": {name: float(x.curve[-20:].mean()) for name, x in made.items()},
        "alike_classes": {name: classes_right(x) for name, x in made.items()},
    }


def right(judge: Classifier, waves: Tensor, scene: Scene) -> Tensor:
    """The share of what a caption asks for that is in each sound (n, N): class, and
    what else can be told in closed form.
    """
    (event,), shares = scene.events, []
    for wave, heard in zip(waves, judge.hear(waves).tolist(), strict=True):
        answers = judges.answers(wave, event)
        answers.pop("cents", None)
        found = [judge.config.classes[heard] == event.name, *answers.values()]
        shares.append(sum(found) / len(found))
    return torch.tensor(shares)


def listener(folder) -> CLAP:
    """A CLAP that ships, with its tokenizer."""
    model = CLAP.from_pretrained(folder / "clap", dtype=torch.float32)
    model.tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return model.eval()


@experiment(
    Claim(
        "ranking",
        "of four sounds that AudioLDM 2 made, CLAP's choice has more of what was asked "
        "for than its last choice",
        "share of what a caption asks for",
        lambda m: m["CLAP's last choice"] < m["any of four"] < m["CLAP's choice"],
        control="CLAP's last choice",
        ceiling=1.0,
    ),
    Claim(
        "heard",
        "CLAP's choice is nearer to the caption for another CLAP, too",
        "cosine by a CLAP that was trained apart",
        lambda m: m["CLAP's last choice"] < m["any of four"] < m["CLAP's choice"],
        control="CLAP's last choice",
        ceiling=1.0,
    ),
)
@torch.no_grad()
def ranking(seed: int) -> dict[str, dict[str, float]]:
    """Four sounds for each of 16 captions, and one of them chosen."""
    pipe = minilib.AudioLDM2.from_pretrained(shipped_weights(), device="cpu")
    judge = Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()
    apart, world = listener(shipped_listener()), SoundWorld("test", seed, pairs=0.0)
    found, heard = [], []
    for i in range(16):
        told, scene = world.caption(i), world.scene(i)
        seeds = [1000 * seed + 10 * i + k for k in range(4)]
        waves = pipe([told] * 4, seed=seeds, progress=False)
        text, other = (x.encode([told]).sequence[0, 0] for x in (pipe.clap, apart))
        ranked = (pipe.clap.embed_waves(waves) @ text).argsort(descending=True)
        found.append(right(judge, waves, scene)[ranked])
        heard.append((apart.embed_waves(waves) @ other)[ranked])
    shown = {}
    for name, x in (("ranking", torch.stack(found)), ("heard", torch.stack(heard))):
        shown[name] = {
            "CLAP's last choice": float(x[:, -1].mean()),
            "any of four": float(x.mean()),
            "CLAP's choice": float(x[:, 0].mean()),
            "the best of four": float(x.amax(dim=1).mean()),
        }
    return shown
