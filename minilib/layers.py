"""Layers that models share: attention, the residual block, the two ways to change
resolution, and how the rows of several processes come together.

Names and layout are those of diffusers, so that weights carry over key by key.
Chapter 07 builds the blocks, chapter 09 attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n_head: int,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Multi-head attention: softmax(scale Q K^T) V in each head (1706.03762 Eq. 1).

    Args:
        q: (B, N, D) queries; k: (B, S, D) keys; v: (B, S, D) values.
        n_head: heads, each of width d = D / n_head.
        mask: broadcasts to (B, n_head, N, S); bool, true where a query reads a key, or
            numbers that are added to the scores.
        scale: of the scores; None for 1 / sqrt(d).
    Returns:
        (B, N, D).

    Chapter 09.
    """
    heads = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
    h = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale)
    return h.transpose(1, 2).flatten(2)  # (B, n_head, N, d) -> (B, N, D)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a skip connection (He et al., 1512.03385),
    optionally conditioned on time.

    Args:
        n_in, n_out: channels.
        groups, eps: of the group normalisation; groups divides both. The VAE's eps is
            1e-6, that of the released model's U-Net 1e-5.
        time_dim: width of the time embedding that is added between the convolutions;
            None for none.

    Chapter 07.
    """

    def __init__(
        self, n_in: int, n_out: int, groups: int, eps: float = 1e-6,
        time_dim: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, n_in, eps)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        if time_dim is not None:
            self.time_emb_proj = nn.Linear(time_dim, n_out)
        self.norm2 = nn.GroupNorm(groups, n_out, eps)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out:
            self.conv_shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, n_in, T, F) -> (B, n_out, T, F)
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Downsample(nn.Module):
    """Halve time and frequency by a convolution of stride 2.

    `padding=0` pads one row and column at the end only, as the released VAE does;
    `padding=1`, on every side, as its U-Net does. Chapter 07.
    """

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)  # (B, C, T, F) -> (B, C, T/2, F/2)


class Upsample(nn.Module):
    """Double time and frequency: repeat each value, then smooth with a convolution.

    `size` is (2T, 2F), or one less where `Downsample` halved an odd number.
    Chapter 07.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size, mode="nearest"))  # (B, C, 2T, 2F)


def recompute(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], on: bool = True
) -> None:
    """Keep no activations inside a model's blocks of these classes: they are computed
    again in the backward pass (gradient checkpointing; Chen et al., 1604.06174).
    Gradients stay the same. With `on` False, keep them again.
    """
    for block in model.modules():
        if isinstance(block, kinds):
            block.__dict__.pop("forward", None)
            if on:
                block.forward = partial(recomputed, block.forward)


def recomputed(forward: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
    """The output of a block, whose activations are not kept."""
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)


class Gather(torch.autograd.Function):
    """Rows of all processes, each with the gradient that the losses of all of them send
    to it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x (B, ...) -> (processes * B, ...), the same in every process."""
        x = x.contiguous()
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """gradient (processes * B, ...) -> (B, ...), of this process's rows."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(x: Tensor) -> Tensor:
    """Put the rows of all processes one below the other, in their order: (B, ...) ->
    (processes * B, ...).

    Where several processes train one model, each sees a share of the batch; what
    compares the rows of a batch must have them all. Gradients come back to the row's
    own process, summed over the losses of all, of which the training takes the mean. A
    process alone has all the rows already.
    """
    together = dist.is_available() and dist.is_initialized()
    return Gather.apply(x) if together and dist.get_world_size() > 1 else x
