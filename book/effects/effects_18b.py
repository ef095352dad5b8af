"""The effects of chapter 18b: when to stop, and what 16 bits do to weights.

The model is a small T5 that fills in hidden words of captions. Captions cost nothing to
make, so that a run overfits, or doesn't, within seconds. A seed changes captions,
weights and batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache

import torch
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import folders
from minilib.cli import shipped_weights
from minilib.soundworld import SoundWorld
from minilib.text import T5, T5Config, noise_spans
from minilib.tokenizer import Tokenizer
from minilib.training import Loop, Recipe

FEW, MANY, APART = 256, 3000, 256  # captions to learn from; in each of two other parts
STEPS, EVERY, PATIENCE = 400, 20, 3  # PATIENCE in points of the curve
BATCH, RATE = 32, 3e-3
SIZES = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 1,
    "num_heads": 4,
}  # fmt: skip


@cache
def tokenizer() -> Tokenizer:
    """The words of the weights that ship."""
    return folders.load_tokenizer(shipped_weights(), "text")


def made(seed: int) -> T5:
    """The untrained model."""
    torch.manual_seed(seed)
    return T5(T5Config(vocab_size=tokenizer().vocab_size, **SIZES))


def captions(seed: int) -> list[str]:
    """Different captions of a world."""
    world = SoundWorld("train", 1800 + seed)
    return list(dict.fromkeys(world.caption(i) for i in range(6000)))


def masked(some: list[str], generator: torch.Generator) -> dict[str, Tensor]:
    """A batch of captions with hidden words."""
    ids, mask = tokenizer().encode(some)
    return {"ids": ids, "mask": mask, "noise": noise_spans(mask, generator, rate=0.3)}


def drawer(some: list[str]) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """What draws a batch of these captions."""

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        which = torch.randint(len(some), (BATCH,), generator=generator)
        return masked([some[i] for i in which.tolist()], generator)

    return draw


@torch.no_grad()
def loss(model: T5, batch: dict[str, Tensor]) -> float:
    """The loss of a batch, without learning from it."""
    model.eval()
    value = float(model.loss(batch))
    model.train()
    return value


def stopped(curve: list[float], patience: int) -> int:
    """The point at which a curve was lowest when `patience` points had passed without a
    new minimum; that of the whole curve if that never happens.
    """
    best = 0
    for i, value in enumerate(curve):
        if value < curve[best]:
            best = i
        if i - best >= patience:
            break
    return best


def trained(seed: int, few: bool) -> Measured:
    """Train to the end, and keep the weights at each point of the curve."""
    every = captions(seed)
    known, told, tested = every[2 * APART :], every[:APART], every[APART : 2 * APART]
    known = known[: FEW if few else MANY]
    held_out, test = (
        masked(some, torch.Generator().manual_seed(1)) for some in (told, tested)
    )
    recipe = Recipe(STEPS, BATCH, lr=RATE, warmup=20, final_lr=1.0, ema=0.98)
    loop = Loop(made(seed), drawer(known), recipe, seed, "t5")
    curves = {"training": [], "held out": []}
    tests, average = [loss(loop.model, test)], copy.deepcopy(loop.model)
    smooth = 0.0
    while loop.done < STEPS:
        smooth = 0.95 * smooth + 0.05 * loop.step()["loss"]
        if loop.done % EVERY == 0:
            curves["training"].append(smooth / (1 - 0.95**loop.done))
            curves["held out"].append(loss(loop.model, held_out))
            tests.append(loss(loop.model, test))
    average.load_state_dict(loop.finish().state_dict())
    return {"curves": curves, "tests": tests, "average": loss(average, test)}


@experiment(
    Claim(
        "stop",
        "stopped when the held-out loss rises, a run on few captions does better on "
        "new ones, by at least 0.05 nats, than at its end",
        "nats per hidden token, 256 captions that neither training nor rule has seen",
        lambda m: (
            m["the rule"] < m["the end"] - 0.05
            and m["the rule"] < m["by the training loss"] - 0.05
        ),
        control="by the training loss",
        chance=round(math.log(1000), 2),
    ),
    Claim(
        "more",
        "a run on twelve times the captions needs no rule: its end is as good as the "
        "point that the rule chooses, and better than that of the run on few",
        "nats per hidden token, 256 captions that neither training nor rule has seen",
        lambda m: (
            m["many, the end"] < m["many, the rule"] + 0.02
            and m["many, the end"] < m["few, the rule"] - 0.5
        ),
        control="few, the rule",
        chance=round(math.log(1000), 2),
    ),
)
def when_to_stop(seed: int) -> Measured:
    """A run on few captions and one on many, at the points that a rule chooses."""
    few, many = trained(seed, few=True), trained(seed, few=False)
    at = lambda run, name: run["tests"][1 + stopped(run["curves"][name], PATIENCE)]
    return {
        "stop": {
            "untrained": few["tests"][0],
            "the rule": at(few, "held out"),
            "the end": few["tests"][-1],
            "average at the end": few["average"],
            "by the training loss": at(few, "training"),
        },
        "more": {
            "few, the rule": at(few, "held out"),
            "many, the rule": at(many, "held out"),
            "many, the end": many["tests"][-1],
            "many, average": many["average"],
        },
    }


BITS = {  # how weights are kept, and in which type products are computed
    "float32": (torch.float32, None),
    "mixed: float32 weights": (torch.float32, torch.bfloat16),
    "all in bfloat16": (torch.bfloat16, None),
}


def last_losses(seed: int, kept: torch.dtype, computed: torch.dtype | None) -> float:
    """The mean loss of the last steps of a run with a small learning rate."""
    model, draw = made(seed).to(kept), drawer(captions(seed)[:MANY])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999))
    generator, last = torch.Generator().manual_seed(seed), []
    for step in range(STEPS):
        with torch.autocast("cpu", computed or torch.bfloat16, enabled=bool(computed)):
            value = model.loss(draw(generator))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step >= STEPS - 50:
            last.append(float(value.detach()))
    return sum(last) / len(last)


@experiment(
    Claim(
        "bits",
        "products in bfloat16 cost less than 0.05 nats where the weights stay in "
        "float32; weights in bfloat16 cost more than that",
        "nats per hidden token, mean of the last 50 of 400 steps",
        lambda m: (
            m["mixed: float32 weights"] - m["float32"]
            < 0.05
            < m["all in bfloat16"] - m["float32"]
        ),
        control="all in bfloat16",
        chance=round(math.log(1000), 2),
    )
)
def what_bits_cost(seed: int) -> Measured:
    """The same run with three kinds of numbers."""
    return {"bits": {name: last_losses(seed, *how) for name, how in BITS.items()}}
