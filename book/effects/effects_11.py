"""The effects of chapter 11: what the states of a text encoder know.

A probe is little more than one head of attention: it looks where the states are like
those of a sound's name, and reads there whether this sound comes first. The encoder
stays as it is.

Captions come in pairs, with the events in either order, so that knowing the words alone
scores one half. Probes learn on pairs of classes of `train` and are tested on those of
`test`. The T5s of the second experiment are small, so that many are trained in minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, experiment
from torch import Tensor, nn

from minilib.cli import shipped, shipped_weights
from minilib.conditions import Context
from minilib.folders import load_part
from minilib.peers import instructed_t5
from minilib.soundworld import CLASSES, Scene, SoundWorld, describe, plain
from minilib.soundworld.instructions import UNSEEN_PAIRS, instruct, rephrase
from minilib.text import T5, T5Config, T5Encoder
from minilib.training import Recipe, TrainingData, fit
from minilib.training.stages import InstructStage, TextStage

NAMES = list(CLASSES)
SMALL = T5Config(
    vocab_size=1000, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_decoder_layers=2,
    num_heads=4,
)  # fmt: skip
FILLING = Recipe(steps=400, batch_size=32, lr=5e-3, muon=("linear",))
LONGER = dataclasses.replace(FILLING, steps=2400)
ASKED = Recipe(steps=2000, batch_size=16, lr=5e-3, muon=("linear",))
BRIEFLY = dataclasses.replace(ASKED, steps=1000)
N_TRAIN, N_TEST = 1000, 250  # scenes, each told in both orders
PROBE = Recipe(steps=250, batch_size=256, lr=0.003, weight_decay=0.1)
Telling = Callable[[Scene, np.random.Generator], str]


@functools.cache
def told(split: str, n: int, seed: int, telling: Telling) -> tuple[list[str], Tensor]:
    """Captions of n scenes with two events in either order (2 n), and the classes of
    the events in the order in which they are heard (2 n, 2).
    """
    world, captions, classes = SoundWorld(split, seed, pairs=1.0), [], []
    for i in range(n):
        scene = world.scene(i)
        for events in (scene.events, scene.events[::-1]):
            ordered = dataclasses.replace(scene, events=events)
            captions.append(telling(ordered, np.random.default_rng([scene.seed, 3])))
            classes.append([NAMES.index(event.name) for event in events])
    return captions, torch.tensor(classes)


class Probe(nn.Module):
    """Asks a sequence (B, S, D) whether an event of a class (B,) comes first.

    It looks where the states are like those of the class's name, and reads there.
    """

    def __init__(self, states: Tensor, names: Tensor):
        super().__init__()
        D = states.shape[1]
        self.mean, self.std = states.mean(dim=0), states.std(dim=0) + 1e-6
        self.names = (names - self.mean) / self.std  # (classes, D)
        self.look = nn.Parameter(torch.eye(D) / D**0.5)
        self.by_name = nn.Parameter(torch.zeros(D, D))
        self.read, self.bias = (
            nn.Parameter(torch.zeros(D)),
            nn.Parameter(torch.zeros(1)),
        )

    def forward(self, x: Tensor, mask: Tensor, name: Tensor) -> Tensor:
        x, name = (x - self.mean) / self.std, self.names[name]
        scores = (x @ (name @ self.look)[:, :, None])[:, :, 0]  # (B, S)
        share = scores.masked_fill(~mask, -1e9).softmax(dim=1)
        seen = (share[:, None] @ x)[:, 0]  # (B, D)
        return (seen * (self.read + name @ self.by_name)).sum(dim=1) + self.bias

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self(batch["x"], batch["mask"], batch["name"])
        return F.binary_cross_entropy_with_logits(logits, batch["first"])


Reading = Callable[[list[str]], Context]


def questions(reading: Reading, captions: list[str], classes: Tensor) -> dict:
    """A question about each event of each caption, and whether it is the first."""
    x, mask = reading(captions)
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    first = torch.tensor([1.0, 0.0]).repeat(len(classes))
    twice = torch.arange(len(classes)).repeat_interleave(2)
    return {
        "x": x,
        "mask": mask,
        "of": twice,
        "name": classes.flatten(),
        "first": first,
    }


def some(asked: dict, i: Tensor) -> dict[str, Tensor]:
    """Questions i as a batch."""
    of = asked["of"][i]
    batch = {"x": asked["x"][of], "mask": asked["mask"][of]}
    return batch | {"name": asked["name"][i], "first": asked["first"][i]}


def probed(
    reading: Reading, seed: int, tellings: tuple[Telling, ...], shuffled: bool = False
) -> list[float]:
    """How often a probe that learned on captions by `describe` is right about unseen
    pairs of classes, told in each of some ways.
    """
    asked = questions(reading, *told("train", N_TRAIN, 20 + seed, describe))
    if shuffled:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(asked["first"]), generator=generator)
        asked["first"] = asked["first"][order]
    names = pooled(reading)([plain(name) for name in NAMES]).sequence[:, 0]
    probe = Probe(asked["x"][asked["mask"]], names)
    n = len(asked["name"])
    draw = lambda g: some(asked, torch.randint(n, (PROBE.batch_size,), generator=g))
    fit(probe, draw, PROBE, seed, progress=False)
    right = []
    for telling in tellings:
        test = questions(reading, *told("test", N_TEST, 30 + seed, telling))
        hits = []
        for i in torch.arange(len(test["name"])).split(256):
            batch = some(test, i)
            with torch.no_grad():
                yes = probe(batch["x"], batch["mask"], batch["name"]) > 0
            hits.append((yes == batch["first"].bool()).float())
        right.append(float(torch.cat(hits).mean()))
    return right


def states(encoder: T5Encoder) -> Reading:
    """The states of an encoder, a few captions at a time."""

    @torch.no_grad()
    def read(captions: list[str]) -> Context:
        ids, mask = encoder.tokenizer.encode(captions)
        pieces = zip(ids.split(128), mask.split(128))
        return Context(torch.cat([encoder(*piece) for piece in pieces]), mask)

    return read


def pooled(reading: Reading) -> Reading:
    """The mean over the tokens: one vector (B, 1, D)."""

    def read(captions: list[str]) -> Context:
        x, mask = reading(captions)
        if mask is None:
            return Context(x)
        mean = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1)[:, None]
        return Context(mean[:, None])

    return read


def embedded(encoder: T5Encoder) -> Reading:
    """The embeddings of the tokens, before any layer."""

    @torch.no_grad()
    def read(captions: list[str]) -> Context:
        ids, mask = encoder.tokenizer.encode(captions)
        return Context(encoder.shared(ids), mask)

    return read


def summed_up(clap: nn.Module) -> Reading:
    """CLAP's vector of each caption."""

    @torch.no_grad()
    def read(captions: list[str]) -> Context:
        parts = [captions[i : i + 128] for i in range(0, len(captions), 128)]
        return Context(torch.cat([clap.encode(part).sequence for part in parts]))

    return read


@functools.cache
def instructed() -> T5Encoder:
    """The instructed encoder that ships."""
    folder = shipped("peers/instructed_t5", "minilib train-peer instructed_t5")
    return load_part(folder, "text", torch.float32)


@experiment(
    Claim(
        "order",
        "a probe of the sequence tells which event is first; one of a bag of words or "
        "of CLAP's vector cannot",
        "share of right answers, test captions",
        lambda m: (
            m["T5: the sequence"] >= 0.95
            and abs(m["the bag of its words"] - 0.5) < 0.05
            and abs(m["CLAP: one vector"] - 0.5) < 0.1
        ),
        control="the sequence, shuffled labels",
        chance=0.5,
        ceiling=1.0,
    )
)
def order(seed: int) -> dict[str, dict[str, float]]:
    """What the shipped encoders know of the order of two events."""
    t5, clap = instructed(), load_part(shipped_weights(), "clap", torch.float32)
    ask = lambda reading, **options: probed(reading, seed, (describe,), **options)[0]
    return {
        "order": {
            "T5: the sequence": ask(states(t5)),
            "T5: the mean of its states": ask(pooled(states(t5))),
            "the bag of its words": ask(pooled(embedded(t5))),
            "CLAP: one vector": ask(summed_up(clap)),
            "the sequence, shuffled labels": ask(states(t5), shuffled=True),
        }
    }


@functools.cache
def reading() -> TrainingData:
    """Captions, and a tokenizer of captions and instructions."""
    return instructed_t5.reading()


def drawn(seed: int, both_ways: bool = True) -> T5:
    """A small T5 with random weights; its heads begin by reading to either side."""
    torch.manual_seed(seed)
    model = T5(SMALL)
    return instructed_t5.look_both_ways(model) if both_ways else model


def filled(seed: int, recipe: Recipe, model: T5, scaled: bool = True) -> T5:
    """The same after span corruption, with query weights scaled in training."""
    stage = TextStage("tiny", recipe, reading(), {}, seed)
    with instructed_t5.queries_scaled(model) if scaled else nullcontext():
        fit(model, stage.batch, recipe, seed, progress=False)
    return model


def taught(seed: int, recipe: Recipe, model: T5, scaled: bool = True) -> T5:
    """The same after instructions."""
    stage = InstructStage("tiny", recipe, reading(), {"text": model}, seed)
    with instructed_t5.queries_scaled(model) if scaled else nullcontext():
        fit(model, stage.batch, recipe, seed, progress=False)
    return model


def reader(model: T5) -> Reading:
    """The states of the encoder of a T5."""
    encoder = model.eval().text_encoder()
    encoder.tokenizer = reading().tokenizer
    return states(encoder)


def answered(model: T5, seed: int, unseen: bool, asks: bool = True) -> float:
    """How often a T5 answers rightly which sound is first or last; without being asked,
    if `asks` is false: it then reads the caption alone.
    """
    world, texts, answers = SoundWorld("test", 40 + seed, pairs=1.0), [], []
    for i in range(N_TEST):
        scene, rng = world.scene(i), np.random.default_rng(i)
        told = describe(scene, rng)
        asked = instruct(scene, rng, ("first", "last")[i % 2], unseen, told)
        texts.append(asked.text if asks else told)
        answers.append(asked.answer)
    tokenizer = reading().tokenizer
    written = tokenizer.decode(model.generate(*tokenizer.encode(texts), most=12))
    return sum(a == b for a, b in zip(written, answers)) / N_TEST


@experiment(
    Claim(
        "phrasings",
        "each lesson adds to what a probe can tell of captions in phrasings that "
        "neither training nor the probe ever had",
        "share of right answers, test captions, unseen phrasings",
        lambda m: (
            m["random"] < m["span corruption"] < m["and instructions"]
            and m["span corruption, as long"] < m["and instructions"]
            and abs(m["and instructions, shuffled labels"] - 0.5) < 0.1
        ),
        control="and instructions, shuffled labels",
        chance=0.5,
        ceiling=1.0,
    ),
    Claim(
        "known",
        "the same on phrasings that training and the probe had",
        "share of right answers, test captions",
        lambda m: m["random"] < m["span corruption"] < m["and instructions"],
        chance=0.5,
        ceiling=1.0,
    ),
    Claim(
        "answers",
        "T5 says which of two sounds is first or last, also when it is asked in new "
        "words",
        "share of right answers",
        lambda m: (
            m["unseen phrasings"] > 0.6 and m["the caption alone, no question"] < 0.5
        ),
        control="the caption alone, no question",
        chance=0.5,
        ceiling=1.0,
    ),
)
def lessons(seed: int) -> dict[str, dict[str, float]]:
    """What the encoder of a small T5 knows after each lesson."""
    gaps = filled(seed, FILLING, drawn(seed))
    known, new = {}, {}

    def probe(name: str, model: T5, **options: bool) -> None:
        both = probed(reader(model), seed, (describe, rephrase), **options)
        known[name], new[name] = both

    probe("random, T5's own start", drawn(seed, both_ways=False))
    probe("random", drawn(seed))
    probe("span corruption", gaps)
    probe("span corruption, as long", filled(seed, LONGER, drawn(seed)))
    model = taught(seed, ASKED, gaps)
    probe("and instructions", model)
    probe("and instructions, shuffled labels", model, shuffled=True)
    return {
        "phrasings": new,
        "known": known,
        "answers": {
            "known phrasings": answered(model, seed, unseen=False),
            "unseen phrasings": answered(model, seed, unseen=True),
            "the caption alone, no question": answered(model, seed, True, asks=False),
        },
    }


@experiment(
    Claim(
        "start",
        "heads that begin by reading to one side, and query weights that are scaled in "
        "training, both help to learn order, at equal steps",
        "share of right answers to known phrasings",
        lambda m: (
            m["with both"] > m["heads that read all around"] + 0.05
            and m["with both"] > m["query weights unscaled"] + 0.05
        ),
        control="query weights unscaled",
        chance=0.5,
        ceiling=1.0,
    )
)
def start(seed: int) -> dict[str, dict[str, float]]:
    """Answers of small T5s that start or are trained in other ways."""

    def right(both_ways: bool, scaled: bool) -> float:
        model = filled(seed, FILLING, drawn(seed, both_ways), scaled)
        model = taught(seed, BRIEFLY, model, scaled)
        return answered(model, seed, unseen=False)

    return {
        "start": {
            "with both": right(both_ways=True, scaled=True),
            "heads that read all around": right(both_ways=False, scaled=True),
            "query weights unscaled": right(both_ways=True, scaled=False),
        }
    }


@experiment(
    Claim(
        "templates",
        "the instructed encoder reads new phrasings in the order of their words, also "
        "where this is wrong",
        "share of right answers, test captions, one new phrasing each",
        lambda m: (
            m["after A, B"] > 0.8
            and m["first A and then B"] > 0.8
            and m["before B, A"] < 0.2
        ),
        chance=0.5,
        ceiling=1.0,
    )
)
def templates(seed: int) -> dict[str, dict[str, float]]:
    """What the shipped encoder makes of each new phrasing."""
    names = {}
    for template in UNSEEN_PAIRS:
        told = re.sub(r"{\w+1}", "A", re.sub(r"{\w+2}", "B", template))
        names.setdefault(told, functools.partial(rephrase, phrasing=template))
    right = probed(states(instructed()), seed, tuple(names.values()))
    return {"templates": dict(zip(names, right))}
