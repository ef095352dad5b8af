"""The one training loop: `fit` trains any model that has a loss, and touches no file.

It is written on accelerate: devices, mixed precision, several processes, micro-batches.
Everything random in a batch is drawn on the CPU from a generator seeded by (seed, name,
step): a resumed run goes on as if it had never stopped, and another device or number of
processes sees the same noise. Chapter 16 builds it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minilib.arguments import check_whole
from minilib.model import has_gpu
from minilib.training.muon import Muon
from minilib.training.processes import check_shares, is_main, meet, share_batch_norm

Batches = Callable[[torch.Generator], dict[str, Tensor]]

# of fp16's loss: a smaller one would say that it isn't the scale that overflows
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; a field of 0 or 1 switches its feature off."""

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
    ema: float = 0.0  # decay of the moving average of the weights that is kept
    accumulate: int = 1  # micro-batches per step
    precision: str = "no"  # or "bf16" where the hardware has it, or "fp16" on GPUs
    checkpoint_every: int = 100  # steps between checkpoints
    recompute: bool = False  # the U-Net's activations, in place of keeping them

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            number = check_whole(name, getattr(self, name), 1)
            object.__setattr__(self, name, number)


def budget(cpu: int, gpu: int) -> int:
    """Number of training steps for the machine at hand: `cpu` without a GPU, `gpu` with
    one.
    """
    return gpu if has_gpu() else cpu


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_lr` times the peak (step counts from
    0).
    """
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    fall = 0.5 * (1.0 + math.cos(math.pi * step / recipe.steps))
    return recipe.lr * rise * (recipe.final_lr + (1.0 - recipe.final_lr) * fall)


def step_generator(seed: int, name: str, step: int) -> torch.Generator:
    """The source of all randomness of one training step."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{step}".encode()))


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    seed: int = 0,
    name: str = "fit",
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train a model and return the curves of its losses. No file is touched.

    The model ends in evaluation mode, with averaged weights where `recipe.ema` asks for
    them, on a GPU if there is one. Several processes that call it train one model.

        curves = fit(vae, draw, Recipe(steps=300, batch_size=16, lr=1e-3))
        plt.plot(curves["loss"])

    Args:
        model: has `loss(batch)`: a number, or several by name, "loss" among them.
        batches: draws a batch: tensors of `recipe.batch_size` rows by name, on the CPU.
            All that is random in it comes from the generator that it is given.
        recipe: how many steps, how fast, and what else can be asked for.
        seed, name: the same give the same batches, and on one machine the same weights.
            The bar, which shows losses and time left, bears the name.

    Returns:
        a curve (steps,) for each loss; a single number is called "loss".

    Raises:
        ValueError: a batch has other rows, or can't be cut into equal shares.
        FloatingPointError: the loss or its gradient is not finite; the weights are then
            those of the step before.

    Chapter 16.
    """
    loop = Loop(model, batches, recipe, seed, name)
    losses = list(all_steps(loop, progress))
    loop.finish()
    return {key: torch.tensor([at[key] for at in losses]) for key in losses[0]}


class Loop:
    """A training under way: what `fit` and `train` go through. Chapter 16."""

    def __init__(
        self, model: nn.Module, batches: Batches, recipe: Recipe, seed: int, name: str
    ):
        check_shares(name, recipe.batch_size, recipe.accumulate)
        self.model, self.batches, self.recipe = model, batches, recipe
        self.seed, self.name, self.done = seed, name, 0  # steps done
        self.losses: dict[str, float] = {}  # running means
        model.train().to(memory_format=torch.channels_last)  # as convolutions like it
        share_batch_norm(model)
        self.accelerator = make_accelerator(recipe)
        trained = LossModule(model), make_optimizer(model, recipe)
        self.wrapped, self.optimizer = self.accelerator.prepare(*trained)
        learned = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.learned = learned
        kept = learned if recipe.ema else {}
        self.average = {k: p.detach().clone() for k, p in kept.items()}

    def step(self) -> dict[str, float]:
        """Draw a batch and go down its gradient once; the losses, by name."""
        recipe, accelerator, total = self.recipe, self.accelerator, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.done)
        batch = self.batches(step_generator(self.seed, self.name, self.done))
        for share in shares(batch, recipe, accelerator):
            losses = self.wrapped(share)
            # and takes the mean over all processes
            accelerator.backward(losses["loss"] / recipe.accumulate)
            values = torch.stack([x.detach() for x in losses.values()])
            total = total + values / recipe.accumulate
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), recipe.clip)
        # where the loss of one process is not finite, all see it and stop
        total = accelerator.reduce(total, reduction="mean")
        losses = dict(zip(losses, total.tolist()))
        check_finite(self, losses["loss"], float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        # the average moves faster in the beginning (1412.6980 §7.2)
        decay = min(recipe.ema, self.done / (9 + self.done))
        for name, average in self.average.items():
            average.lerp_(self.learned[name].detach(), 1.0 - decay)
        return losses

    def finish(self) -> nn.Module:
        """The model with its averaged weights, if asked for, in evaluation mode."""
        for name, average in self.average.items():
            self.learned[name].data.copy_(average)
        return self.model.eval()


def all_steps(loop: Loop, progress: bool = True) -> Iterator[dict[str, float]]:
    """Take the steps that are left, with a bar, and yield the losses of each.

    Raises:
        FloatingPointError: the loss or its gradient is not finite.
    """
    shown = {"desc": loop.name, "disable": not (progress and is_main()), "unit": "step"}
    with tqdm(total=loop.recipe.steps, initial=loop.done, **shown) as bar:
        while loop.done < loop.recipe.steps:
            losses = loop.step()
            for name, x in losses.items():  # means of some 20 steps
                loop.losses[name] = 0.95 * loop.losses.get(name, x) + 0.05 * x
            bar.update()
            bar.set_postfix_str(sentence(loop.losses), refresh=False)
            yield losses


def check_finite(loop: Loop, loss: float, norm: float) -> None:
    """Raise FloatingPointError, before the step is taken, where the loss or the norm of
    its gradient is not finite.

    In fp16 a gradient overflows now and then: the scaler then skips the step and scales
    the loss less, until that can't be what is wrong.
    """
    scaler = loop.accelerator.scaler
    if scaler is not None and scaler.get_scale() > LEAST_SCALE:
        norm = 0.0
    for what, value in (("loss", loss), ("norm of the gradient", norm)):
        if not math.isfinite(value):
            where = f"the {what} is {value} at step {loop.done}"
            raise FloatingPointError(f"{loop.name}: {where}: lower the learning rate")


def sentence(losses: dict[str, float]) -> str:
    """Losses as one line of text."""
    return "  ".join(f"{name} {value:.4f}" for name, value in losses.items())


def shares(
    batch: dict[str, Tensor], recipe: Recipe, accelerator: Any
) -> Iterator[dict[str, Tensor]]:
    """This process's share of a batch, in micro-batches, on its device."""
    for name, x in batch.items():
        if len(x) != recipe.batch_size:
            size = f"batch_size {recipe.batch_size}, not {len(x)} of {name}"
            raise ValueError(f"batches must draw as many rows as the recipe's {size}")
    n = recipe.accumulate * accelerator.num_processes
    for i in range(recipe.accumulate):
        k = i * accelerator.num_processes + accelerator.process_index
        own = {name: x.tensor_split(n)[k] for name, x in batch.items()}
        yield {name: x.to(accelerator.device) for name, x in own.items()}


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
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return any(ask().get(name) for name in ("avx512_bf16", "amx_bf16"))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (1711.05101), with no decay on biases, norms and other vectors, or Muon
    beside it.
    """
    lr, betas, decay = recipe.lr, recipe.betas, recipe.weight_decay
    if recipe.muon:
        return Muon(model, recipe.muon, lr, betas, decay)
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = (
        {"params": [p for p in learned if (p.dim() > 1) == matrix]}
        for matrix in (True, False)
    )
    groups = [{**matrices, "weight_decay": decay}, {**vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
