"""The one training loop, written on accelerate: learning rate, average of the weights,
checkpoints, resuming.

Everything random in a batch is drawn on the CPU from a generator seeded by (seed,
stage, step): a resumed run goes on as if it had never stopped, and another device or
number of processes sees the same noise. Chapter 16 builds it.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from minilib.files import replacing
from minilib.training.muon import Muon
from minilib.training.processes import check_shares, is_main, meet, share_batch_norm


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained; a field of 0 or 1 switches its feature off."""

    steps: int
    batch_size: int
    lr: float
    warmup: int = 50  # steps of linear rise
    # share of `lr` that is left at the end of the cosine; 1 keeps it constant
    final_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    # layers that Muon trains in place of AdamW: "linear", "conv"
    muon: tuple[str, ...] = ()
    clip: float = 1.0  # norm of the gradient at most
    ema: float = 0.0  # decay of the moving average of the weights that is saved
    accumulate: int = 1  # micro-batches per step
    precision: str = "no"  # or "bf16" where the hardware has it, or "fp16" on GPUs
    checkpoint_every: int = 100  # steps between checkpoints
    crop: int = 0  # frames of each clip that a batch takes; 0 takes all
    recorded: float = 0.0  # share of recordings in a batch, where there are recordings
    levels: int = 1  # noise levels at which joint shows each latent to the U-Net
    # noise levels are T u^level_power: below 1 more high ones, above 1 low ones
    level_power: float = 1.0
    # share of the recordings that are heard without their high frequencies
    narrow: float = 0.0


def budget(cpu: int, gpu: int) -> int:
    """Number of training steps for the machine at hand: `cpu` without a GPU, `gpu` with
    one.
    """
    return gpu if torch.cuda.is_available() else cpu


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_lr` times the peak (step counts from
    0).
    """
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    fall = 0.5 * (1.0 + math.cos(math.pi * step / max(1, recipe.steps)))
    return recipe.lr * rise * (recipe.final_lr + (1.0 - recipe.final_lr) * fall)


def step_generator(seed: int, name: str, step: int) -> torch.Generator:
    """The source of all randomness of one training step."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{step}".encode()))


class Trainable(Protocol):
    """What the loop needs of a stage: a name, a recipe, a model with a `loss`, and
    batches.
    """

    name: str
    recipe: Recipe
    model: nn.Module
    seed: int

    def batch(self, generator: torch.Generator) -> dict[str, Tensor]: ...


class LossModule(nn.Module):
    """A model whose forward is its loss, so that wrappers for several devices see the
    call.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = self.model.loss(batch)
        return losses if isinstance(losses, dict) else {"loss": losses}


class EMA:
    """Exponential moving average of the weights, with a warm-up of its decay (1412.6980
    §7.2).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.average = {
            name: p.detach().clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after this step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.average:
                self.average[name].lerp_(parameter.detach(), 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average in place of the weights."""
        for name, parameter in model.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds beside weights, and what its log
    says.
    """

    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] | None = None  # running means

    def note(self, losses: dict[str, Tensor]) -> None:
        """Take the losses of one step into the running means (window of about 20
        steps).
        """
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {self.step}: lower the "
                f"learning rate"
            )
        old = self.losses or values
        self.losses = {
            name: 0.95 * old.get(name, value) + 0.05 * value
            for name, value in values.items()
        }

    def sentence(self) -> str:
        """The losses as one line of text."""
        return "  ".join(
            f"{name} {value:.4f}" for name, value in (self.losses or {}).items()
        )


def train(
    stage: Trainable,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    row: int = 0,
) -> nn.Module:
    """Train one stage to its last step and return its model, weights averaged, in
    evaluation mode.

    Args:
        stage: model, batches and recipe.
        out: folder for `checkpoints/` and `train.log`.
        resume: go on from the stage's checkpoint, if there is one, to the very result
            of an unbroken run.
        progress: show a bar with loss and time left, in this `row` of those on the
            screen.

    Raises:
        ValueError: the batch can't be cut into equal shares for all processes and
            micro-batches.
        FloatingPointError: the loss is not finite.
    """
    recipe = stage.recipe
    accelerator = make_accelerator(recipe)
    check_shares(stage.name, recipe.batch_size, recipe.accumulate)
    model = stage.model.to(memory_format=torch.channels_last).train()
    if accelerator.num_processes > 1:
        share_batch_norm(model)
    wrapped, optimizer = accelerator.prepare(
        LossModule(model), make_optimizer(model, recipe)
    )
    ema, state = EMA(model, recipe.ema), Progress()
    path = out / "checkpoints" / f"{stage.name}.pt"
    if resume and path.is_file():
        load_checkpoint(path, model, optimizer, ema, state)
    # the main process may soon write another checkpoint, or remove this one
    accelerator.wait_for_everyone()
    began, before = time.monotonic(), state.seconds
    with tqdm(
        total=recipe.steps,
        initial=state.step,
        desc=stage.name,
        disable=not (progress and is_main()),
        unit="step",
        position=row,
    ) as bar:
        while state.step < recipe.steps:
            losses = training_step(stage, state.step, accelerator, wrapped, optimizer)
            state.note(losses)
            ema.update(model, state.step)
            state.step, state.seconds = (
                state.step + 1,
                before + time.monotonic() - began,
            )
            bar.update()
            bar.set_postfix_str(state.sentence(), refresh=False)
            if state.step % recipe.checkpoint_every == 0 or state.step == recipe.steps:
                save_checkpoint(path, model, optimizer, ema, state)
                log(
                    out,
                    f"{stage.name:9s} step {state.step:5d}  {state.seconds:6.0f} s  "
                    f"{state.sentence()}",
                )
    if recipe.ema:
        ema.copy_to(model)
    return model.eval()


def training_step(
    stage: Trainable, step: int, accelerator: Any, wrapped: nn.Module, optimizer: Any
) -> dict[str, Tensor]:
    """Draw the batch of this step, go down its gradient once, and return the losses."""
    recipe = stage.recipe
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    batch = stage.batch(step_generator(stage.seed, stage.name, step))
    losses: dict[str, Tensor] = {}
    for part in split(batch, recipe.accumulate, accelerator):
        losses = wrapped(part)
        # and takes the mean over all processes
        accelerator.backward(losses["loss"] / recipe.accumulate)
    accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return over_processes(losses, accelerator)


def over_processes(losses: dict[str, Tensor], accelerator: Any) -> dict[str, Tensor]:
    """The means of losses over all processes: where one of them is not finite, all see
    it and stop.
    """
    means = accelerator.reduce(
        torch.stack([loss.detach() for loss in losses.values()]), reduction="mean"
    )
    return dict(zip(losses, means.unbind(), strict=True))


def split(
    batch: dict[str, Tensor], n_parts: int, accelerator: Any
) -> Iterator[dict[str, Tensor]]:
    """This process's share of the global batch, in `n_parts` micro-batches, on its
    device.
    """
    n = n_parts * accelerator.num_processes
    for i in range(n_parts):
        k = i * accelerator.num_processes + accelerator.process_index
        yield {
            name: tensor.tensor_split(n)[k].to(accelerator.device)
            for name, tensor in batch.items()
        }


def make_accelerator(recipe: Recipe) -> Any:
    """The devices of this run and the precision of this recipe."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    cpu = meet().device.type == "cpu"
    # else a process keeps its first precision for good, but stages differ in theirs
    AcceleratorState._reset_state()
    exact = cpu and not (recipe.precision == "bf16" and has_bf16())
    return Accelerator(cpu=cpu, mixed_precision="no" if exact else recipe.precision)


def has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16; one that only imitates it is slower than
    in float32.
    """
    known = (
        torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    )
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (1711.05101), with no decay on biases, norms and other vectors, or Muon
    beside it.
    """
    if recipe.muon:
        return Muon(model, recipe.muon, recipe.lr, recipe.betas, recipe.weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.dim() > 1],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: Any, ema: EMA, state: Progress
) -> None:
    """Write all that a run needs to go on, whole or not at all."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.average,
        "step": state.step,
        "seconds": state.seconds,
        "losses": state.losses,
    }
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Any, ema: EMA, state: Progress
) -> None:
    """Put a run back where its checkpoint left it."""
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    for name, average in checkpoint["ema"].items():
        ema.average[name].copy_(average)
    state.step, state.seconds, state.losses = (
        checkpoint[key] for key in ("step", "seconds", "losses")
    )


def log(out: Path, line: str) -> None:
    """Add a line to the run's `train.log`."""
    if not is_main():
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "train.log", "a", encoding="utf-8") as file:
        file.write(line + "\n")
