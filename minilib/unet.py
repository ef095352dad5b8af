"""The noise predictor: a U-Net over the latent, conditioned on the noise level and
attending to LOA and text.

It has the structure of latent diffusion (Rombach et al., 2112.10752) as AudioLDM 2 uses
it (2308.05734 §3.3): each residual block is followed by one transformer for each entry
of `cross_attention`. Names and layout are those of diffusers'
AudioLDM2UNet2DConditionModel, which holds the released weights. Chapter 14 builds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minilib import diffusion
from minilib.conditions import Conditions, from_batch
from minilib.layers import Downsample, ResBlock, Upsample, attention
from minilib.model import Model


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the noise predictor; the defaults are the released base model's."""

    in_channels: int = 8  # channels of the latent
    block_out_channels: tuple[int, ...] = (128, 256, 384, 640)
    # which resolutions attend to the conditions; the middle block always does
    attention: tuple[bool, ...] = (False, True, True, True)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    # what each transformer reads: a condition by name, None for the feature map itself
    cross_attention: tuple[str | None, ...] = (None, "loa", "text")
    cross_attention_dim: tuple[int | None, ...] = (None, 768, 1024)  # its width
    transformer_layers: int = 1
    # one number for all resolutions, as diffusers runs the released weights, or one for
    # each: the weights were trained with (4, 8, 12, 20), that is heads of width 32
    n_head: int | tuple[int, ...] = 8
    n_steps: int = 1000  # T
    beta_1: float = 0.0015
    beta_T: float = 0.0195
    prediction: str = "eps"  # what the output means: the noise, or "v", the velocity
    patch: int = 1  # patch x patch neighbours of the latent form one position
    # channels beside the latent that hold the LOA (LOAMap); released models have none
    loa_channels: int = 0
    # vectors of the LOA along time and frequency ...
    loa_grid: tuple[int, int] = (8, 2)
    # ... and the positions of the feature map that each covers, one number or (T, F)
    loa_patch: int | tuple[int, int] = 4

    def heads(self, i: int) -> int:
        """Attention heads at resolution i, from 0, the finest, to -1, the coarsest."""
        return self.n_head if isinstance(self.n_head, int) else self.n_head[i]


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of the time: cosines, then sines, at dim/2 frequencies from
    1 down to nearly 1/10000 (1706.03762 §3.5), in the released model's order.

    t (B,), counted from 0 -> (B, dim). Chapter 14.
    """
    exponent = torch.arange(dim // 2, device=t.device) / (dim // 2)
    angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)  # (B, dim/2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """The sinusoidal embedding and a small MLP: (B,) -> (B, 4 * channels).

    Chapter 14.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t: Tensor) -> Tensor:
        sinusoid = timestep_embedding(t, self.channels).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class Attention(nn.Module):
    """Multi-head attention to the input itself or to a context (1706.03762 §3.2.2).

    Chapter 14.
    """

    def __init__(self, dim: int, context_dim: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        context = x if context is None else context  # (B, S, context_dim)
        keep = None if mask is None else mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out[0](attention(q, k, v, self.n_head, keep))  # (B, N, dim)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (2002.05202 §2). Chapter 14."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Position-wise network, four times as wide inside. Chapter 14."""

    def __init__(self, dim: int):
        super().__init__()
        layers = GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)
        self.net = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, and an MLP, each with a skip
    connection. Without a context it attends to itself twice. Chapter 14.
    """

    def __init__(self, dim: int, context_dim: int | None, n_head: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, dim, n_head)
        self.attn2 = Attention(dim, context_dim or dim, n_head)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map (2112.10752 §3.3).

    Chapter 14.
    """

    def __init__(self, config: UNetConfig, channels: int, dim: int | None, n_head: int):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, dim, n_head)
            for _ in range(config.transformer_layers)
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, T * F, C)
        for block in self.transformer_blocks:
            h = block(h, context, mask)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))  # (B, C, T, F)


class LOAMap(nn.Module):
    """The LOA as channels beside the latent: each vector unfolds into the patch of
    positions that it describes.

    Latent diffusion concatenates conditions that share the latent's plane (2112.10752
    §3.3), and the LOA does: it is pooled from patches of the mel. In the released model
    cross-attention has to find the place by itself, which takes far longer to learn.
    Chapter 14.
    """

    def __init__(self, config: UNetConfig, loa_dim: int):
        super().__init__()
        patch, self.n_frequency = config.loa_patch, config.loa_grid[1]
        self.patch = (patch, patch) if isinstance(patch, int) else patch
        self.proj = nn.Conv2d(loa_dim, config.loa_channels * math.prod(self.patch), 1)

    def forward(self, loa: Tensor, n_time: int) -> Tensor:
        """loa (B, L, D) -> (B, channels, n_time, n_frequency): repeated along a longer
        latent, cut for a shorter one.
        """
        plane = loa.transpose(1, 2).unflatten(2, (-1, self.n_frequency))  # (B, D, T, F)
        plane = self.proj(plane).unflatten(1, (-1, *self.patch))  # (B, C, pT, pF, T, F)
        plane = plane.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
        return plane.repeat(1, 1, -(-n_time // plane.shape[2]), 1)[:, :, :n_time]


class UNetBlock(nn.Module):
    """Residual blocks at one resolution, the first `attended` of them each followed by
    its transformers, one for each entry of `cross_attention`. Chapter 14.
    """

    recompute = False  # whether to recompute activations in the backward pass

    def __init__(
        self,
        config: UNetConfig,
        widths: Sequence[tuple[int, int]],
        attended: int,
        n_head: int,
    ):
        super().__init__()
        groups, time_dim = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.names = config.cross_attention
        self.resnets = nn.ModuleList(
            ResBlock(n_in, n_out, groups, 1e-5, time_dim) for n_in, n_out in widths
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(config, n_out, dim, n_head)
            for _, n_out in widths[:attended]
            for dim in config.cross_attention_dim
        )

    def layer(self, i: int, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """Block i and its transformers: (B, n_in, T, F) -> (B, n_out, T, F)."""
        x, n = self.resnets[i](x, time), len(self.names)
        for name, transformer in zip(self.names, self.attentions[i * n : (i + 1) * n]):
            x = transformer(x, *(conditions[name] if name else ()))
        return x

    def forward(self, i: int, *given: Tensor | Conditions) -> Tensor:
        """As `layer`."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.layer, i, *given, use_reentrant=False)
        return self.layer(i, *given)


def down_blocks(config: UNetConfig) -> nn.ModuleList:
    """The contracting half: every block except the last halves the resolution.

    Chapter 14.
    """
    widths, n, blocks = config.block_out_channels, config.layers_per_block, []
    for i, width in enumerate(widths):
        pairs = [(widths[max(i - 1, 0)], width)] + [(width, width)] * (n - 1)
        block = UNetBlock(config, pairs, n * config.attention[i], config.heads(i))
        last = i == len(widths) - 1
        block.downsamplers = nn.ModuleList([] if last else [Downsample(width, 1)])
        blocks.append(block)
    return nn.ModuleList(blocks)


def up_blocks(config: UNetConfig) -> nn.ModuleList:
    """The expanding half: each residual block also reads a feature map from the way
    down. Chapter 14.
    """
    widths, n, blocks = config.block_out_channels, config.layers_per_block + 1, []
    below = widths[-1]
    for i, width in reversed(list(enumerate(widths))):
        skips = [width] * (n - 1) + [widths[max(i - 1, 0)]]
        ins = [below] + [width] * (n - 1)
        pairs = [(a + skip, width) for a, skip in zip(ins, skips, strict=True)]
        block = UNetBlock(config, pairs, n * config.attention[i], config.heads(i))
        block.upsamplers = nn.ModuleList([Upsample(width)] if i > 0 else [])
        blocks.append(block)
        below = width
    return nn.ModuleList(blocks)


class UNet(Model):
    """The noise predictor of AudioLDM 2 (2308.05734 Eq. 8). Chapter 14."""

    config_class = UNetConfig

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        check(config)
        widths, C = config.block_out_channels, config.in_channels * config.patch**2
        self.conv_in = nn.Conv2d(C + config.loa_channels, widths[0], 3, padding=1)
        if config.loa_channels:
            loa = config.cross_attention.index("loa")
            self.loa_map = LOAMap(config, config.cross_attention_dim[loa])
        self.time_embedding = TimeEmbedding(widths[0])
        self.down_blocks = down_blocks(config)
        middle = [(widths[-1], widths[-1])] * 2
        self.mid_block = UNetBlock(config, middle, 1, config.heads(-1))
        self.up_blocks = up_blocks(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], C, 3, padding=1)

    @property
    def schedule(self) -> diffusion.Schedule:
        """The noise levels that this network is trained for."""
        c = self.config
        return diffusion.sqrt_linear_schedule(c.n_steps, c.beta_1, c.beta_T)

    def forward(self, zt: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Predict the noise in zt.

        Args:
            zt: noisy latent (B, C, T/r, F/r); both sides any multiples of `patch`,
                since the way up takes its sizes from the way down.
            t: noise level (B,), 1 to T.
            conditions: by name, including all that `config.cross_attention` names;
                others are ignored.

        Returns:
            eps_hat, or v_hat where `config.prediction` is "v", (B, C, T/r, F/r).
        """
        time = self.time_embedding(t - 1)  # the released weights count levels from 0
        x = F.pixel_unshuffle(zt, self.config.patch)
        if self.config.loa_channels:
            plane = self.loa_map(conditions["loa"].sequence, x.shape[2])
            x = torch.cat([x, plane], dim=1)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for i in range(len(block.resnets)):
                x = block(i, x, time, conditions)
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)
        for i in range(2):
            x = self.mid_block(i, x, time, conditions)
        for block in self.up_blocks:
            for i in range(len(block.resnets)):
                x = torch.cat([x, skips.pop()], dim=1)
                x = block(i, x, time, conditions)
            for upsample in block.upsamplers:
                x = upsample(x, skips[-1].shape[2:])
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return F.pixel_shuffle(x, self.config.patch)

    def as_eps(self, zt: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """The noise in zt at level t that an output of `forward` implies."""
        if self.config.prediction == "eps":
            return out
        return diffusion.eps_from_velocity(self.schedule, zt, t, out)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the predicted noise (2006.11239 Eq. 14), or velocity.

        Args:
            batch: `z0` and `eps` (B, C, T/r, F/r), `t` (B,), and the conditions
                (`conditions.from_batch`).
        """
        z0, t, eps = batch["z0"], batch["t"], batch["eps"]
        conditions = from_batch(batch, filter(None, self.config.cross_attention))
        loss = diffusion.v_loss if self.config.prediction == "v" else diffusion.eps_loss
        return loss(lambda zt, t: self(zt, t, conditions), self.schedule, z0, t, eps)

    def recompute_activations(self, on: bool = True) -> None:
        """Keep no activations inside the blocks: training takes less memory but a third
        more time (gradient checkpointing; Chen et al., 1604.06174).
        """
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.recompute = on


def check(config: UNetConfig) -> None:
    """Raise ValueError if fields of a config do not fit together."""
    if config.prediction not in ("eps", "v"):
        raise ValueError(f'prediction must be "eps" or "v", not {config.prediction!r}')
    n, given = len(config.block_out_channels), config.n_head
    if not isinstance(given, int) and len(given) != n:
        said = f"n_head must be one number or one for each of {n}, not {given}"
        raise ValueError(said)
    if len(config.attention) != n:
        raise ValueError(f"attention must have {n} entries, not {config.attention}")
    names, dims = config.cross_attention, config.cross_attention_dim
    if [name is None for name in names] != [dim is None for dim in dims]:
        raise ValueError(f"cross_attention {names} needs one width each, not {dims}")
    if config.loa_channels and "loa" not in names:
        raise ValueError(f'with loa_channels, "loa" must be in cross_attention {names}')


UNet.presets = {
    # in a few minutes a network does not learn to copy the noise well enough, hence
    # "v"; nor does cross-attention find the place of an LOA vector, hence the map
    "tiny": UNetConfig(
        in_channels=4, patch=2, block_out_channels=(64, 112, 160),
        attention=(False, False, False), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=(None, 192, 128), n_head=4, prediction="v", loa_channels=32,
    ),
    "colab": UNetConfig(
        block_out_channels=(96, 192, 288, 384), layers_per_block=1,
        cross_attention_dim=(None, 384, 256), n_head=6,
    ),
    "full": UNetConfig(),
    "large": UNetConfig(
        cross_attention=(None, "loa", "text", None),
        cross_attention_dim=(None, 768, 1024, None), transformer_layers=2,
    ),
    "speech": UNetConfig(
        cross_attention=(None, "loa"), cross_attention_dim=(None, 768),
    ),
}  # fmt: skip
