"""The VAE's decoder in half the memory and less time, for the long sounds of the
pipeline; what it gives is the same.

`vae.Decoder` holds three whole feature maps: the input of a residual block, its
normalised copy and what SiLU makes of that; then, in the place of the copy, what the
convolution writes. But a convolution needs its neighbours only, and a group
normalisation only two numbers of the whole map for each group. So here the numbers come
first, and then normalisation, SiLU and convolution go over the map piece by piece, the
second convolution of a block in place. Chapter 18 builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers import ResBlock
from minilib.vae import VAE, Decoder

PIECE = 2**19  # values of a feature map that are worked on at a time, about


@torch.no_grad()
def decode(vae: VAE, z0: Tensor) -> Tensor:
    """`vae.decode`, piece by piece: scaled latent z0 (B, C, T/r, F/r) -> log-mel (B, 1,
    T, F).
    """
    z = (z0 / vae.config.scaling_factor).to(vae.dtype)
    return run_decoder(vae.decoder, vae.post_quant_conv(z))


def run_decoder(decoder: Decoder, z: Tensor) -> Tensor:
    """What the decoder makes of z (B, C, T/r, F/r), its gradients aside: a log-mel (B,
    1, T, F).
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
    """A residual block without a time: (B, n_in, T, F) -> (B, n_out, T, F)."""
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
    """conv(silu(norm(x))), with the normalised map never held as a whole.

    Args:
        conv: 3x3, padded by 1; x: (B, n_in, T, F).
        out: where to write; x itself, where the widths allow; None for a new tensor.
        add: gives what is added to the rows of a slice of the time.
    Returns:
        (B, n_out, T, F).
    """
    scale, shift = scale_and_shift(norm, x)
    out = empty_map(x, conv.out_channels, *x.shape[2:]) if out is None else out
    before = None  # the row before a piece, as it was
    for rows in pieces(x):
        piece = x[:, :, rows.start : rows.stop + 1]  # and the row after it
        piece = piece if before is None else torch.cat([before, piece], dim=2)
        before = x[:, :, rows.stop - 1 : rows.stop].clone()
        # where zeros go on, after SiLU
        ends = int(rows.start == 0), int(rows.stop == x.shape[2])
        active = F.pad(
            F.silu(torch.addcmul(shift, piece, scale), inplace=True), (0, 0, *ends)
        )
        y = F.conv2d(active, conv.weight, conv.bias, padding=(0, 1))
        out[:, :, rows] = y if add is None else y.add_(add(rows))
    return out


def doubled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x with every value repeated 2x2), with none repeated: 4 products in place of
    9.

    Of three neighbours along time or frequency two are the same value, and their
    weights can be added beforehand: (w0, w1 + w2) are those of an even place, (w0 + w1,
    w2) those of an odd one. So each place of a 2x2 block has a 2x2 convolution of x
    itself.

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
    """Group normalisation of x (B, C, T, F), or none, as scale and shift of each
    channel, both (B, C, 1, 1).
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
    """Slices of the time of x (B, C, T, F), of about `PIECE` values each."""
    T = x.shape[2]
    n = max(1, PIECE * T // x.numel())
    return (slice(start, min(start + n, T)) for start in range(0, T, n))


def empty_map(x: Tensor, *shape: int) -> Tensor:
    """An empty feature map (B, C, T, F) beside x, channels last, as convolutions want
    it.
    """
    return torch.empty(
        len(x),
        *shape,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
