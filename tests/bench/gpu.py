"""The U-Net at the released size on a GPU, ours and diffusers' under the same settings:
calls and training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Work, heading, row, take_turns
from peers import training_step
from torch.utils.flop_counter import FlopCounterMode

from minilib.conditions import Context
from minilib.convert.pretrained import unet_out
from minilib.unet import UNet, UNetConfig

SETTINGS = {  # dtype, channels last, compiled
    "float32": (torch.float32, False, False),
    "bfloat16": (torch.bfloat16, False, False),
    "bfloat16, channels last": (torch.bfloat16, True, False),
    "bfloat16, channels last, compiled with CUDA graphs": (torch.bfloat16, True, True),
}


def report(
    folder: Path, seconds: float, device: str = "cuda", config: UNetConfig | None = None
) -> Iterator[str]:
    """Two tables: calls on two latents of 10.24 s, and training steps on eight."""
    rate = product_rate(device)
    speed = f"{rate / 1e12:.3g} TFLOP/s"
    yield f"A product of two large bfloat16 matrices runs at {speed}.\n"
    for kind, batch in (("calls", 2), ("training steps", 8)):
        yield from heading(
            f"{kind} a second, batch of {batch}",
            "minilib",
            "diffusers",
            "times as fast",
            "share of that rate",
        )
        for name, (dtype, last, compiled) in SETTINGS.items():
            ours = UNet(config or UNetConfig()).to(device, dtype)
            theirs = unet_out(ours).to(device, dtype)
            for unet in (ours, theirs):
                unet.to(
                    memory_format=torch.channels_last
                    if last
                    else torch.contiguous_format
                )
            inputs = conditions(ours, batch, dtype, device)
            count = operations(prepared(ours, our_call(inputs), kind, compiled=False))
            works = [
                prepared(unet, call(inputs), kind, compiled)
                for unet, call in ((ours, our_call), (theirs, their_call))
            ]
            own, other = take_turns(*works, seconds=seconds)
            share = count / own / rate
            yield row(name, 1 / own, 1 / other, other / own, f"{100 * share:.0f} %")
            del ours, theirs, works
        yield ""


def conditions(
    unet: UNet, batch: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, ...]:
    """Noisy latents of 10.24 s, times, eight LOA vectors and sixteen states of T5."""
    dims = [dim for dim in unet.config.cross_attention_dim if dim is not None]
    shapes = ((unet.config.in_channels, 256, 16), (8, dims[0]), (16, dims[1]))
    z, loa, text = (
        torch.randn(batch, *shape, device=device, dtype=dtype) for shape in shapes
    )
    return z, torch.full((batch,), 500, device=device), loa, text


def our_call(inputs: tuple[torch.Tensor, ...]) -> Callable[[Any], torch.Tensor]:
    """How our U-Net is called."""
    z, t, loa, text = inputs
    return lambda unet: unet(z, t, {"loa": Context(loa), "text": Context(text)})


def their_call(inputs: tuple[torch.Tensor, ...]) -> Callable[[Any], torch.Tensor]:
    """How diffusers' is."""
    z, t, loa, text = inputs
    given = dict(
        encoder_hidden_states=loa, encoder_hidden_states_1=text, return_dict=False
    )
    return lambda unet: unet(z, t - 1, **given)[0]


def prepared(
    unet: Any, call: Callable[[Any], torch.Tensor], kind: str, compiled: bool
) -> Work:
    """A call without gradient, or a training step; compiled on request, for training
    without CUDA graphs.
    """
    graphs = "reduce-overhead" if kind == "calls" else "default"
    run = torch.compile(unet, mode=graphs) if compiled else unet
    return (
        torch.no_grad()(lambda: call(run))
        if kind == "calls"
        else training_step(unet, lambda: call(run))
    )


def operations(work: Work) -> int:
    """Floating-point operations of a work that is not compiled: it is run once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def product_rate(device: str, n: int = 8192) -> float:
    """Operations a second of a product of two n x n bfloat16 matrices, the best that
    the chip does.
    """
    n = n if device == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    (taken,) = take_turns(lambda: a @ a, seconds=0.5)
    return 2 * n**3 / taken
