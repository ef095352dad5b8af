"""The only training loop: `fit` trains any model that has a loss, without using files.

It builds on accelerate for devices, mixed precision, several processes and
micro-batches. Everything random in a batch is drawn on the CPU from a generator seeded
by (seed, name, step). So a resumed run continues as if it had never stopped, and the
noise is the same for any device and number of processes. Chapter 16 explains it.
"""

from __future__ import annotations

import copy
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
from minilib.training.sharding import asks_for_shards, can_be_cut, gather, shard, whole

Batches = Callable[[torch.Generator], dict[str, Tensor]]

# scale of the loss in fp16: below this, an overflow is not due to the scale
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """Settings for training a model; 0 or 1 in a field switches its feature off."""

    steps: int
    batch_size: int
    lr: float
    warmup: int = 50  # steps of linear rise
    # share of `lr` that remains at the end of the cosine; 1 keeps it constant
    final_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    # layers that Muon trains instead of AdamW: "linear", "conv"
    muon: tuple[str, ...] = ()
    clip: float = 1.0  # the largest norm of the gradient
    ema: float = 0.0  # decay of the moving average of the weights
    accumulate: int = 1  # micro-batches per step
    precision: str = "no"  # or "bf16" if the hardware has it, or "fp16" on GPUs
    checkpoint_every: int = 100  # steps between checkpoints
    # recompute the activations of blocks instead of keeping them: the U-Net's, and at
    # the released scale those of VAE and AudioMAE
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            number = check_whole(name, getattr(self, name), 1)
            object.__setattr__(self, name, number)


def budget(cpu: int, gpu: int) -> int:
    """The number of training steps for this machine: `gpu` with a GPU, else `cpu`."""
    return gpu if has_gpu() else cpu


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate at a step, counted from 0: linear warm-up, then a cosine down
    to `final_lr` times the peak.
    """
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    fall = 0.5 * (1.0 + math.cos(math.pi * step / recipe.steps))
    return recipe.lr * rise * (recipe.final_lr + (1.0 - recipe.final_lr) * fall)


def step_generator(seed: int, name: str, step: int) -> torch.Generator:
    """The source of all randomness in one training step."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{step}".encode()))


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    seed: int = 0,
    name: str = "fit",
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train a model and return its loss curves. No files are read or written.

    The model ends in evaluation mode, with averaged weights if `recipe.ema` asks for
    them, on a GPU if there is one. Several processes that call it train one model.

        curves = fit(vae, draw, Recipe(steps=300, batch_size=16, lr=1e-3))
        plt.plot(curves["loss"])

    Args:
        model: has `loss(batch)`: a number, or several by name, including "loss".
        batches: draws a batch: tensors of `recipe.batch_size` rows by name, on the CPU.
            All randomness in it comes from the generator that it is given.
        recipe: number of steps, learning rate, and further settings.
        seed, name: equal ones give equal batches, and on one machine equal weights. The
            progress bar, which shows losses and time left, is labelled with the name.

    Returns:
        a curve (steps,) for each loss; a single number is called "loss".

    Raises:
        ValueError: a batch has too many or too few rows, or can't be shared equally.
        FloatingPointError: the loss or its gradient is not finite; the weights are then
            those after the previous step.
    """
    loop = Loop(model, batches, recipe, seed, name)
    losses = list(all_steps(loop, progress))
    loop.finish()
    return {key: torch.tensor([at[key] for at in losses]) for key in losses[0]}


class Loop:
    """The state of a training run and its steps, for `fit` and `train`."""

    def __init__(
        self, model: nn.Module, batches: Batches, recipe: Recipe, seed: int, name: str
    ):
        check_shares(name, recipe.batch_size, recipe.accumulate)
        self.model, self.batches, self.recipe = model, batches, recipe
        self.seed, self.name, self.done = seed, name, 0  # steps done
        self.losses: dict[str, float] = {}  # running means
        model.train().to(memory_format=torch.channels_last)  # fastest for convolutions
        share_batch_norm(model)
        self.accelerator = make_accelerator(recipe)
        self.trained = model
        if asks_for_shards() and can_be_cut(model):
            # of a copy; `model` itself is whole, and gets its weights at the end
            self.trained = copy.deepcopy(model)
            self.wrapped = shard(LossModule(self.trained), self.accelerator)
            optimizer = make_optimizer(self.trained, recipe)
            self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        else:
            trained = LossModule(model), make_optimizer(model, recipe)
            self.wrapped, self.optimizer = self.accelerator.prepare(*trained)
        learned = {k: p for k, p in self.trained.named_parameters() if p.requires_grad}
        self.learned = learned
        kept = learned if recipe.ema else {}
        self.average = {k: p.detach().clone() for k, p in kept.items()}

    def step(self) -> dict[str, float]:
        """Draw a batch, take one gradient step, and return the losses by name."""
        recipe, accelerator, total = self.recipe, self.accelerator, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.done)
        batch = self.batches(step_generator(self.seed, self.name, self.done))
        for share in shares(batch, recipe, accelerator):
            losses = self.wrapped(share)
            # also averages over all processes
            accelerator.backward(losses["loss"] / recipe.accumulate)
            values = torch.stack([x.detach() for x in losses.values()])
            total = total + values / recipe.accumulate
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), recipe.clip)
        # if the loss of one process is not finite, all see it and stop
        total = accelerator.reduce(total, reduction="mean")
        losses = dict(zip(losses, total.tolist()))
        check_finite(self, losses["loss"], float(gather(norm)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        # the average moves faster at the beginning, as in TensorFlow
        decay = min(recipe.ema, self.done / (9 + self.done))
        for name, average in self.average.items():
            average.lerp_(self.learned[name].detach(), 1.0 - decay)
        return losses

    def finish(self) -> nn.Module:
        """The model in evaluation mode, with averaged weights if asked for."""
        for name, average in self.average.items():
            self.learned[name].data.copy_(average)
        if self.trained is not self.model:
            self.model.load_state_dict(whole(self.trained.state_dict()))
            self.model.to(self.accelerator.device)
        return self.model.eval()


def all_steps(loop: Loop, progress: bool = True) -> Iterator[dict[str, float]]:
    """Take the remaining steps, with a progress bar, and yield the losses of each.

    Raises:
        FloatingPointError: the loss or its gradient is not finite.
    """
    shown = {"desc": loop.name, "disable": not (progress and is_main()), "unit": "step"}
    with tqdm(total=loop.recipe.steps, initial=loop.done, **shown) as bar:
        while loop.done < loop.recipe.steps:
            losses = loop.step()
            for name, x in losses.items():  # means over about 20 steps
                loop.losses[name] = 0.95 * loop.losses.get(name, x) + 0.05 * x
            bar.update()
            bar.set_postfix_str(sentence(loop.losses), refresh=False)
            yield losses


def check_finite(loop: Loop, loss: float, norm: float) -> None:
    """Raise FloatingPointError, before the step is taken, if the loss or the norm of
    its gradient is not finite.

    In fp16 a gradient overflows now and then. The scaler then skips the step and
    reduces the scale of the loss, until the scale can no longer be the cause.
    """
    scaler = loop.accelerator.scaler
    if scaler is not None and scaler.get_scale() > LEAST_SCALE:
        norm = 0.0
    for what, value in (("loss", loss), ("norm of the gradient", norm)):
        if not math.isfinite(value):
            where = f"the {what} is {value} at step {loop.done}"
            raise FloatingPointError(f"{loop.name}: {where}; lower the learning rate")


def sentence(losses: dict[str, float]) -> str:
    """Losses as one line of text."""
    return "  ".join(f"{name} {value:.4f}" for name, value in losses.items())


def shares(
    batch: dict[str, Tensor], recipe: Recipe, accelerator: Any
) -> Iterator[dict[str, Tensor]]:
    """This process's share of a batch, in micro-batches, on its device."""
    for name, x in batch.items():
        if len(x) != recipe.batch_size:
            size = f"{recipe.batch_size} rows, the recipe's batch_size"
            raise ValueError(f"batches must draw {size}, not {len(x)} of {name}")
    n = recipe.accumulate * accelerator.num_processes
    for i in range(recipe.accumulate):
        k = i * accelerator.num_processes + accelerator.process_index
        own = {name: x.tensor_split(n)[k] for name, x in batch.items()}
        yield {name: x.to(accelerator.device) for name, x in own.items()}


class LossModule(nn.Module):
    """A model whose forward pass is its loss, so that wrappers for several devices see
    the call.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = self.model.loss(batch)
        return losses if isinstance(losses, dict) else {"loss": losses}


def make_accelerator(recipe: Recipe) -> Any:
    """An accelerator with the devices of this run and the precision of this recipe."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    cpu = meet().device.type == "cpu"
    # otherwise a process would keep its first precision, but stages differ in theirs
    AcceleratorState._reset_state()
    exact = cpu and not (recipe.precision == "bf16" and has_bf16())
    return Accelerator(cpu=cpu, mixed_precision="no" if exact else recipe.precision)


def has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16; a CPU that only emulates it is slower
    than in float32.
    """
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return any(ask().get(name) for name in ("avx512_bf16", "amx_bf16"))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (1711.05101), without weight decay on biases, norms and other vectors, or
    Muon with AdamW for the rest.
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
