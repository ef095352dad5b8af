"""The VAE's decoder in half the memory and less time, for the long sounds of the
pipeline; its output is the same.

`vae.Decoder` holds three whole feature maps at once: the input of a residual block, its
normalised copy and the output of SiLU; the output of the convolution then replaces the
copy. But a convolution needs only neighbouring values, and a group normalisation only
two numbers per group from the whole map. So here these numbers are computed first; then
normalisation, SiLU and convolution process the map piece by piece, the second
convolution of a block in place. Chapter 18 builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers import ResBlock
from minilib.vae import VAE, Decoder

PIECE = 2**19  # approximate number of values of a feature map processed at a time


@torch.no_grad()
def decode(vae: VAE, z0: Tensor) -> Tensor:
    """`vae.decode`, piece by piece: scaled latent z0 (B, C, T/r, F/r)
    -> log-mel (B, 1, T, F).
    """
    z = (z0 / vae.config.scaling_factor).to(vae.dtype)
    return run_decoder(vae.decoder, vae.post_quant_conv(z))


def run_decoder(decoder: Decoder, z: Tensor) -> Tensor:
    """The decoder's output, without gradients: z (B, C, T/r, F/r)
    -> log-mel (B, 1, T, F).
    """
    h = decoder.mid_block(decoder.conv_in(z)).contiguous(
        memory_format=torch.channels_last
    )
    for block in decoder.up_blocks:
        for layer in block.resnets:
            h = res_block(layer, h)
        for layer in block.upsamplers:
            h = doubled(layer.conv, h)
    return convolved(decoder.conv_out, h, decoder.conv_norm_out)


def res_block(block: ResBlock, x: Tensor) -> Tensor:
    """A residual block without time embedding: (B, n_in, T, F) -> (B, n_out, T, F)."""
    h = convolved(block.conv1, x, block.norm1)
    beside = getattr(block, "conv_shortcut", nn.Identity())
    return convolved(
        block.conv2, h, block.norm2, out=h, add=lambda rows: beside(x[:, :, rows])
    )


def convolved(
    conv: nn.Conv2d,
    x: Tensor,
    norm: nn.Module,
    out: Tensor | None = None,
    add: Callable[[slice], Tensor] | None = None,
) -> Tensor:
    """conv(silu(norm(x))) without ever holding the whole normalised map.

    Args:
        conv: 3x3, padded by 1; x: (B, n_in, T, F).
        out: where to write; may be x itself if the widths agree; None for a new tensor.
        add: maps a slice of the time to values added to its rows.
    Returns:
        (B, n_out, T, F).
    """
    scale, shift = scale_and_shift(norm, x)
    out = empty_map(x, conv.out_channels, *x.shape[2:]) if out is None else out
    before = None  # the original row before a piece
    for rows in pieces(x):
        piece = x[:, :, rows.start : rows.stop + 1]  # with the row after it
        piece = piece if before is None else torch.cat([before, piece], dim=2)
        before = x[:, :, rows.stop - 1 : rows.stop].clone()
        # the sides on which zeros are padded, after SiLU
        ends = int(rows.start == 0), int(rows.stop == x.shape[2])
        active = F.pad(
            F.silu(torch.addcmul(shift, piece, scale), inplace=True), (0, 0, *ends)
        )
        y = F.conv2d(active, conv.weight, conv.bias, padding=(0, 1))
        out[:, :, rows] = y if add is None else y.add_(add(rows))
    return out


def doubled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x with every value repeated 2x2), computed without repeating: 4 products
    instead of 9.

    Of three neighbours along time or frequency, two have the same value, so their
    weights can be added beforehand: (w0, w1 + w2) at an even position, (w0 + w1, w2) at
    an odd one. So each position in a 2x2 block is a 2x2 convolution of x itself.

    Args:
        conv: 3x3, padded by 1; x: (B, C, T, F).
    Returns:
        (B, O, 2T, 2F).
    """
    (T, F_), folds = (
        x.shape[2:],
        conv.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]),
    )
    # (2, 2, O, C, 2, 2)
    weights = torch.einsum("aiu,bjv,ocuv->abocij", folds, folds, conv.weight)
    out = empty_map(x, conv.out_channels, 2 * T, 2 * F_)
    for rows in pieces(x):
        ends = int(rows.start == 0), int(rows.stop == T)
        piece = F.pad(x[:, :, max(rows.start - 1, 0) : rows.stop + 1], (1, 1, *ends))
        n = rows.stop - rows.start
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            part = piece[:, :, a : a + n + 1, b : b + F_ + 1]
            y = F.conv2d(
                part,
                weights[a, b].contiguous(memory_format=torch.channels_last),
                conv.bias,
            )
            out[:, :, 2 * rows.start + a : 2 * rows.stop : 2, b::2] = y
    return out


def scale_and_shift(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Group normalisation of x (B, C, T, F), or the identity, as a scale and a shift
    for each channel, both (B, C, 1, 1).
    """
    if isinstance(norm, nn.Identity):
        return x.new_ones(1, 1, 1, 1), x.new_zeros(1, 1, 1, 1)
    (B, C, T, F_), G = x.shape, norm.num_groups
    mean = square = torch.zeros(B, G, dtype=torch.float64, device=x.device)
    for rows in pieces(x):
        part = x[:, :, rows].float().contiguous(memory_format=torch.channels_last)
        n = part.shape[2]
        found = torch.native_group_norm(part, None, None, B, C, n * F_, G, norm.eps)
        m, r = (v.double() for v in found[1:])  # mean, and 1 / deviation
        mean, square = mean + n / T * m, square + n / T * (r**-2 + m**2)
    rate = (square - mean**2).rsqrt()
    # (B, C)
    mean, rate = (v.float().repeat_interleave(C // G, dim=1) for v in (mean, rate))
    scale = norm.weight * rate
    shift = norm.bias - mean * scale
    return scale[:, :, None, None].to(x.dtype), shift[:, :, None, None].to(x.dtype)


def pieces(x: Tensor) -> Iterator[slice]:
    """Slices of x (B, C, T, F) along time, of about `PIECE` values each."""
    T = x.shape[2]
    n = max(1, PIECE * T // x.numel())
    return (slice(start, min(start + n, T)) for start in range(0, T, n))


def empty_map(x: Tensor, *shape: int) -> Tensor:
    """An empty feature map of this shape, with x's type and device, channels last for
    the convolutions.
    """
    return torch.empty(
        len(x),
        *shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
