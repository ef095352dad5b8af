"""Training with files: a log, checkpoints that are written whole or not at all, and
resuming at the exact step at which a run stopped.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minilib.files import replacing
from minilib.training import origins
from minilib.training.loop import Loop, Recipe, all_steps, sentence, step_generator
from minilib.training.processes import is_main
from minilib.training.sharding import share_like, share_optimizer, whole

# the entries of a checkpoint and their types; "origin" and "scaler" were added later
HOLDS = {
    **{"model": dict, "optimizer": dict, "ema": dict, "losses": dict},
    **{"step": int, "seconds": (int, float)},
}
OLDER = "does not record its data and settings, which are assumed to be the same"


class Trainable(Protocol):
    """What can be trained: a stage, or anything else with its fields."""

    name: str
    model: nn.Module
    recipe: Recipe
    seed: int

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]: ...


def train(
    stage: Trainable,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    watch: Callable[[Trainable, Loop], None] | None = None,
) -> nn.Module:
    """Train one stage as `fit` does, with checkpoints and a log; return its model.

    Args:
        stage: model, batches and recipe.
        out: folder for `checkpoints/` and `train.log`.
        resume: continue from the stage's checkpoint, if there is one, to exactly the
            result of an uninterrupted run.
        progress: show a bar with loss and time left.
        watch: is called after every step.

    Raises:
        ValueError: the batch can't be cut into equal shares for all processes and
            micro-batches; or the checkpoint is damaged, or was made with other data,
            settings or parts.
        FloatingPointError: the loss, its gradient or a weight is not finite; the last
            checkpoint is still finite.
    """
    recipe, origin = stage.recipe, origins.of_stage(stage)
    loop = Loop(stage.model, stage.batch, recipe, stage.seed, stage.name)
    path, spent = checkpoint_path(out, stage.name), 0.0
    if resume and path.is_file():
        checkpoint = read_checkpoint(path)
        if "origin" not in checkpoint:
            tell(out, f"{stage.name}: its checkpoint {OLDER}", progress)
        restore(checkpoint, path, loop, origin)
        spent = checkpoint["seconds"]
    # the main process may soon write another checkpoint, or remove this one
    loop.accelerator.wait_for_everyone()
    sweep(path)
    began = time.monotonic() - spent
    read_ahead(stage, range(loop.done, loop.done + 2))
    for _ in all_steps(loop, progress):
        read_ahead(stage, [loop.done + 1])  # while the next step is computed
        if loop.done % recipe.checkpoint_every == 0 or loop.done == recipe.steps:
            seconds = time.monotonic() - began
            save_checkpoint(path, loop, origin, seconds)
            where = f"{stage.name:9s} step {loop.done:5d}  {seconds:6.0f} s"
            log(out, f"{where}  {sentence(loop.losses)}")
        if watch is not None:
            watch(stage, loop)
    return loop.finish()


def read_ahead(stage: Trainable, steps: Iterable[int]) -> None:
    """Let a stage that reads its clips from disk begin with those of these steps."""
    for step in steps:
        if step < stage.recipe.steps and hasattr(stage, "ahead"):
            stage.ahead(step_generator(stage.seed, stage.name, step))


def checkpoint_path(out: Path, name: str) -> Path:
    """The path of the checkpoint of an unfinished stage."""
    return out / "checkpoints" / f"{name}.pt"


def save_checkpoint(
    path: Path, loop: Loop, origin: origins.Origin, seconds: float
) -> None:
    """Write everything that a run needs to continue, whole or not at all, and only if
    it is finite.
    """
    scaler = loop.accelerator.scaler
    checkpoint = {
        "model": loop.trained.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "ema": loop.average,
        "step": loop.done,
        "seconds": seconds,
        "losses": loop.losses,
        "scaler": {} if scaler is None else scaler.state_dict(),
        "origin": origin,
    }
    if loop.trained is not loop.model:
        checkpoint = whole(checkpoint, keep=is_main())
    if wrong := not_finite(checkpoint):
        what = f"{wrong} is not finite after step {loop.done - 1}"
        raise FloatingPointError(f"{loop.name}: {what}; lower the learning rate")
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint; a damaged or different file raises a sentence."""
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not verify checksums
            broken = file.testzip()
        found = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # torch, pickle and zipfile raise many kinds of error
        raise ValueError(f"{path} is damaged: {anew(path)}") from error
    whole = isinstance(found, dict) and all(
        isinstance(found.get(key), kind) for key, kind in HOLDS.items()
    )
    if broken or not whole or not isinstance(found.get("origin", {}), dict):
        raise ValueError(
            f"{path} is damaged, or not a checkpoint of a stage: {anew(path)}"
        )
    if wrong := not_finite(found):
        raise ValueError(f"{path} holds {wrong}, which is not finite: {anew(path)}")
    return found


def restore(
    checkpoint: dict[str, Any], path: Path, loop: Loop, origin: origins.Origin
) -> None:
    """Restore a run to the state in its checkpoint.

    Raises:
        ValueError: the checkpoint was made with other data or settings, holds another
            model, or has more steps than the run.
    """
    origins.check(path, loop.name, checkpoint.get("origin", {}), origin)
    check_steps(path, checkpoint["step"], loop.recipe.steps)
    scaler = loop.accelerator.scaler
    try:
        if loop.trained is not loop.model:
            checkpoint = cut(checkpoint, loop)
        loop.trained.load_state_dict(checkpoint["model"])
        loop.optimizer.load_state_dict(checkpoint["optimizer"])
        for name, average in loop.average.items():
            average.copy_(checkpoint["ema"][name])
        if scaler is not None and checkpoint.get("scaler"):
            scaler.load_state_dict(checkpoint["scaler"])
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        other = f"does not hold the model that {loop.name} trains"
        raise ValueError(f"{path} {other}: {anew(path)}") from error
    loop.done, loop.losses = checkpoint["step"], checkpoint["losses"]


def cut(checkpoint: dict[str, Any], loop: Loop) -> dict[str, Any]:
    """A checkpoint with this process's share of each tensor."""
    present = loop.trained.state_dict()
    model = {
        name: share_like(x, present[name]) if name in present else x
        for name, x in checkpoint["model"].items()
    }
    ema = {
        name: share_like(checkpoint["ema"][name], average)
        for name, average in loop.average.items()
    }
    optimizer = share_optimizer(checkpoint["optimizer"], loop.optimizer)
    return {**checkpoint, "model": model, "optimizer": optimizer, "ema": ema}


def check_steps(path: Path, done: int, steps: int) -> None:
    """Raise ValueError if a checkpoint has more steps than the run asks for."""
    if done > steps:
        raise ValueError(
            f"steps must be {done} or more to continue from {path}, not {steps}"
        )


def anew(path: Path) -> str:
    """Advice for going on without a checkpoint."""
    return f"remove it, or leave out --resume, to start {path.stem} from the beginning"


def not_finite(values: Any) -> str:
    """The name of a tensor among nested values that is not finite, or ""."""
    for name, x in named_tensors(values):
        if not x.isfinite().all():
            return name
    return ""


def named_tensors(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, named by the keys that lead to them."""
    if isinstance(values, Tensor):
        yield name, values
    elif isinstance(values, dict | list | tuple):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def sweep(path: Path) -> None:
    """Remove files that were being written when a process was killed."""
    if is_main():
        for left in path.parent.glob(f".{path.name}.*.part"):
            left.unlink(missing_ok=True)


def tell(out: Path, line: str, progress: bool) -> None:
    """Add a line to the log, and print it if `progress` is true."""
    log(out, line)
    if progress and is_main():
        print(line)


def log(out: Path, line: str) -> None:
    """Add a line to the run's `train.log`."""
    if not is_main():
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "train.log", "a", encoding="utf-8") as file:
        file.write(line + "\n")
