"""Training with files: a log, checkpoints that are whole or not there, and going on
from the very step at which a run was broken off.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from minilib.files import replacing
from minilib.training.loop import Loop, Recipe, all_steps, sentence
from minilib.training.processes import is_main


class Trainable(Protocol):
    """What is trained: a stage, or what else has its fields."""

    name: str
    model: nn.Module
    recipe: Recipe
    seed: int

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]: ...


def train(
    stage: Trainable, out: Path, resume: bool = False, progress: bool = True
) -> nn.Module:
    """Train one stage as `fit` does, with checkpoints and a log; its model is returned.

    Args:
        stage: model, batches and recipe.
        out: folder for `checkpoints/` and `train.log`.
        resume: go on from the stage's checkpoint, if there is one, to the very result
            of an unbroken run.
        progress: show a bar with loss and time left.

    Raises:
        ValueError: the batch can't be cut into equal shares for all processes and
            micro-batches.
        FloatingPointError: the loss is not finite.
    """
    recipe = stage.recipe
    loop = Loop(stage.model, stage.batch, recipe, stage.seed, stage.name)
    path, spent = out / "checkpoints" / f"{stage.name}.pt", 0.0
    if resume and path.is_file():
        spent = load_checkpoint(path, loop)
    # the main process may soon write another checkpoint, or remove this one
    loop.accelerator.wait_for_everyone()
    began = time.monotonic() - spent
    for _ in all_steps(loop, progress):
        if loop.done % recipe.checkpoint_every == 0 or loop.done == recipe.steps:
            seconds = time.monotonic() - began
            save_checkpoint(path, loop, seconds)
            where = f"{stage.name:9s} step {loop.done:5d}  {seconds:6.0f} s"
            log(out, f"{where}  {sentence(loop.losses)}")
    return loop.finish()


def save_checkpoint(path: Path, loop: Loop, seconds: float) -> None:
    """Write all that a run needs to go on, whole or not at all."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "model": loop.model.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "ema": loop.average,
        "step": loop.done,
        "seconds": seconds,
        "losses": loop.losses,
    }
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(path: Path, loop: Loop) -> float:
    """Put a run back where its checkpoint left it; the seconds it had taken."""
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    loop.model.load_state_dict(checkpoint["model"])
    loop.optimizer.load_state_dict(checkpoint["optimizer"])
    for name, average in checkpoint["ema"].items():
        loop.average[name].copy_(average)
    loop.done, loop.losses = checkpoint["step"], checkpoint["losses"]
    return checkpoint["seconds"]


def log(out: Path, line: str) -> None:
    """Add a line to the run's `train.log`."""
    if not is_main():
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "train.log", "a", encoding="utf-8") as file:
        file.write(line + "\n")
