"""A T5 encoder that has followed instructions, FLAN-T5 in small (2210.11416).

AudioLDM 2 (2308.05734) reads captions with the encoder of FLAN-T5: a T5 that learned to
fill in words, and then tasks in plain words. This one does the same in SoundWorld: span
corruption on captions, then instructions about scenes. Chapter 11 measures what the
second part is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minilib.arguments import MAX_SEED, check_path, check_whole
from minilib.data import Corpus
from minilib.files import replacing_folder
from minilib.soundworld import SoundWorld
from minilib.soundworld.instructions import SHARE_OF_PAIRS, instructions
from minilib.text import T5, T5Attention
from minilib.tokenizer import Tokenizer
from minilib.training import Recipe, TrainingData, fit
from minilib.training.stages import InstructStage, TextStage

N_SCENES = 30000
CORRUPTED = Recipe(steps=400, batch_size=32, lr=4e-3, muon=("linear",))
INSTRUCTED = Recipe(steps=3000, batch_size=16, lr=3e-3, muon=("linear",))


def train(
    out: str | Path, seed: int = 0, steps: int | None = None, progress: bool = True
) -> Path:
    """Make the weights: `out/text`, the encoder in float16, and `out/tokenizer.json`.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of scenes, weights and batches; a whole number >= 0.
        steps: of each of the two stages; None for those of the recipes.
        progress: show a bar for each stage.

    Raises:
        ValueError: out, seed or steps are not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    changes = {} if steps is None else {"steps": check_whole("steps", steps, 1)}
    with replacing_folder(check_path("out", out)) as new:
        recipes = (replace(x, **changes) for x in (CORRUPTED, INSTRUCTED))
        model, tokenizer = trained(*recipes, seed, progress)
        model.text_encoder().save_pretrained(new / "text", dtype=torch.float16)
        tokenizer.save(new / "tokenizer.json")
    return Path(out)


def trained(
    corrupted: Recipe, instructed: Recipe, seed: int = 0, progress: bool = True
) -> tuple[T5, Tokenizer]:
    """T5 after span corruption and then instructions, and its tokenizer."""
    data = reading(seed)
    stage = TextStage("tiny", corrupted, data, {}, seed)
    parts = {"text": look_both_ways(stage.model)}
    with queries_scaled(stage.model):
        fit(stage.model, stage.batch, corrupted, seed, stage.name, progress)
        stage = InstructStage("tiny", instructed, data, parts, seed)
        fit(stage.model, stage.batch, instructed, seed, stage.name, progress)
    return stage.model, data.tokenizer


class Scaled(nn.Module):
    """A weight that is `factor` times the one that is trained."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, trained: Tensor) -> Tensor:
        return self.factor * trained

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor


@contextmanager
def queries_scaled(model: T5) -> Iterator[None]:
    """Train the query weights as if scores were divided by sqrt(d).

    T5 draws them smaller instead, and Adafactor takes smaller steps where weights are
    small. Adam and Muon do not: attention would soon read single tokens only.
    """
    queries = [x.q for x in model.modules() if isinstance(x, T5Attention)]
    for q in queries:
        scaled = Scaled(model.config.d_kv**-0.5)
        parametrize.register_parametrization(q, "weight", scaled)
    yield
    for q in queries:
        parametrize.remove_parametrizations(q, "weight")


@torch.no_grad()
def look_both_ways(model: T5, farther: float = 5.0, far: float = 0.5) -> T5:
    """Let heads of the encoder begin by reading to one side: the even ones what stands
    before a token, the odd ones what follows, and the second half what is near.

    T5 draws its table of distances near zero, as if a sentence had no order.
    """
    attention = model.encoder.block[0].layer[0].SelfAttention
    table = attention.relative_attention_bias.weight  # (entries, heads)
    entries, heads = table.shape
    entry = torch.arange(entries)
    table[entry >= entries // 2, 0::2] -= farther  # distances to the right
    table[1 : entries // 2, 1::2] -= farther  # to the left; 0 is the token itself
    table[:, heads // 2 :] -= far * (entry % (entries // 2))[:, None]
    return model


def reading(seed: int = 0) -> TrainingData:
    """Captions without sounds, and a tokenizer that knows the words of instructions."""
    n = N_SCENES
    world = SoundWorld("train", seed, pairs=SHARE_OF_PAIRS)
    captions = [world.caption(i) for i in range(n)]
    asked = instructions(n, seed=seed)
    words = [text for x in asked for text in (x.text, x.answer)]
    silence = np.zeros((n, 0), dtype=np.int16)  # no sound is rendered
    return TrainingData(Corpus(silence, captions), Tokenizer.train(captions + words))
