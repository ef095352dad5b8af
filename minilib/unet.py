"""The noise predictor: a U-Net over the latent, told the time and attending to LOA and
text.

The structure of latent diffusion (Rombach et al., 2112.10752) as AudioLDM 2 uses it
(2308.05734 §3.3): after each residual block stands one transformer per entry of
`cross_attention_dim`. Names and layout are those of diffusers'
AudioLDM2UNet2DConditionModel, which holds the released weights. Chapter 14 builds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minilib.diffusion import (
    Schedule,
    eps_from_velocity,
    eps_loss,
    sqrt_linear_schedule,
    v_loss,
)
from minilib.layers import Downsample, ResBlock, Upsample
from minilib.model import Model


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the noise predictor; the defaults are the released base model's.

    Chapter 14.
    """

    in_channels: int = 8  # channels of the latent
    block_out_channels: tuple[int, ...] = (128, 256, 384, 640)
    # which levels attend to the conditions
    attention: tuple[bool, ...] = (False, True, True, True)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    # entries 0, 1: LOA; from 2: text; None: itself
    cross_attention_dim: tuple[int | None, ...] = (None, 768, 1024)
    transformer_layers: int = 1
    # At every level, as diffusers runs the released weights, or level by level: trained
    # they were with (4, 8, 12, 20), heads of width 32.
    n_head: int | tuple[int, ...] = 8
    n_steps: int = 1000  # T
    beta_1: float = 0.0015
    beta_T: float = 0.0195
    prediction: str = "eps"  # what the output means: the noise, or "v", the velocity
    # channels beside the latent that hold the LOA (LOAMap); none when released
    loa_channels: int = 0
    # vectors of the LOA along time and along frequency ...
    loa_grid: tuple[int, int] = (8, 2)
    # ... each standing for so many positions of the latent, both ways
    loa_patch: int = 4

    def heads(self, level: int) -> int:
        """Attention heads at a level, 0 being the finest and -1 the coarsest.

        Chapter 14.
        """
        return self.n_head if isinstance(self.n_head, int) else self.n_head[level]


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of the time: cosines, then sines, at dim/2 frequencies from
    1 to 1/10000.

    Vaswani et al. (1706.03762 §3.5), in the order of the released model. t (B,),
    counted from 0 -> (B, dim). Chapter 14.
    """
    frequency = torch.exp(
        -math.log(10000.0) * torch.arange(dim // 2, device=t.device) / (dim // 2)
    )
    angle = t.float()[:, None] * frequency  # (B, dim/2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """A sinusoid of the time through a small network: (B,) -> (B, 4 * channels).

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


def spread(x: Tensor, n: int) -> Tensor:
    """A batch (B, ...) repeated until it has n rows, n a multiple of B. Chapter 14."""
    # which keeps its channels last
    return x if len(x) == n else torch.cat([x] * (n // len(x)))


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V, to itself or to a context
    (1706.03762 Eq. 1).

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
        q, k, v = (
            # (B, n_head, positions, d)
            h.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for h in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        keep = None if mask is None else mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.to_out[0](h.transpose(1, 2).flatten(2))  # (B, N, dim)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer, 2002.05202 Eq. 6).

    Chapter 14.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Position-wise network of a transformer block, four times as wide inside.

    Chapter 14.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList(
            [GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward, each beside a skip
    connection.

    Chapter 14.
    """

    def __init__(self, dim: int, context_dim: int | None, n_head: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = Attention(dim, dim, n_head)
        self.attn2 = Attention(dim, context_dim or dim, n_head)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x if context is None else spread(x, len(context))
        # without a context: itself once more
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map (2112.10752 §3.3).

    Chapter 14.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int | None,
        n_layers: int,
        n_head: int,
        groups: int,
    ):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim, n_head) for _ in range(n_layers)
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        B, C, T, F_ = x.shape
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, T*F, C)
        for block in self.transformer_blocks:
            h = block(h, context, mask)
        h = self.proj_out(h.transpose(1, 2).reshape(-1, C, T, F_))
        return spread(x, len(h)) + h


Context = tuple[Tensor, Tensor | None]  # sequence (B, S, D) and mask (B, S) or None


def attend(
    transformers: nn.ModuleList,
    x: Tensor,
    dims: tuple[int | None, ...],
    loa: Context,
    text: Context,
) -> Tensor:
    """Apply one transformer per entry of `cross_attention_dim`: 0 and 1 see the LOA,
    later ones the text.

    The route goes by position, as in the released model; None sees the feature map
    itself. Chapter 14.
    """
    for i, (transformer, dim) in enumerate(zip(transformers, dims, strict=True)):
        context, mask = (None, None) if dim is None else loa if i <= 1 else text
        x = transformer(x, context, mask)
    return x


class LOAMap(nn.Module):
    """The LOA as channels beside the latent: each vector unfolds into the patch of
    positions that it speaks of.

    Concatenation is how latent diffusion takes conditions that lie on the same plane as
    the latent (2112.10752 §3.3, §4.3.2), and LOA does: it is pooled from patches of the
    mel. The released model leaves finding the place to cross-attention, which takes far
    longer to learn. Chapter 14.
    """

    def __init__(self, loa_dim: int, channels: int, grid: tuple[int, int], patch: int):
        super().__init__()
        self.grid, self.patch = grid, patch
        self.proj = nn.Conv2d(loa_dim, channels * patch**2, 1)

    def forward(self, loa: Tensor, n_time: int) -> Tensor:
        """loa (B, L, D) -> (B, channels, n_time, F/r): a longer latent has it again and
        again, a shorter one a part.
        """
        plane = loa.transpose(1, 2).unflatten(2, self.grid)  # (B, D, L_time, L_freq)
        plane = F.pixel_shuffle(self.proj(plane), self.patch)
        return plane.repeat(1, 1, -(-n_time // plane.shape[2]), 1)[:, :, :n_time]


class Level(nn.Module):
    """Residual blocks at one resolution, the first `attended` of them each followed by
    its transformers.

    Chapter 14.
    """

    recompute = False  # activations for the gradient, instead of keeping them

    def __init__(
        self,
        config: UNetConfig,
        widths: list[tuple[int, int]],
        attended: int,
        n_head: int,
    ):
        super().__init__()
        groups, time_dim = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.dims = config.cross_attention_dim
        self.resnets = nn.ModuleList(
            ResBlock(n_in, n_out, groups, 1e-5, time_dim) for n_in, n_out in widths
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(n_out, dim, config.transformer_layers, n_head, groups)
            for _, n_out in widths[:attended]
            for dim in self.dims
        )

    def layer(
        self, i: int, x: Tensor, time: Tensor, loa: Context, text: Context
    ) -> Tensor:
        """Residual block i and its transformers: (B, n_in, T, F) -> (B, n_out, T, F)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, i, x, time, loa, text, use_reentrant=False)
        return self.compute(i, x, time, loa, text)

    def compute(
        self, i: int, x: Tensor, time: Tensor, loa: Context, text: Context
    ) -> Tensor:
        """What `layer` says, its activations kept for the gradient."""
        x = self.resnets[i](x, spread(time, len(x)))
        transformers = self.attentions[i * len(self.dims) : (i + 1) * len(self.dims)]
        return attend(transformers, x, self.dims, loa, text) if len(transformers) else x


def down_levels(config: UNetConfig) -> nn.ModuleList:
    """The contracting half: every level but the last halves the resolution.

    Chapter 14.
    """
    widths, n = config.block_out_channels, config.layers_per_block
    levels = nn.ModuleList()
    for i, width in enumerate(widths):
        n_in = widths[max(i - 1, 0)]
        pairs = [(n_in if j == 0 else width, width) for j in range(n)]
        level = Level(
            config, pairs, attended=n * config.attention[i], n_head=config.heads(i)
        )
        level.downsamplers = nn.ModuleList(
            [Downsample(width, padding=1)] if i < len(widths) - 1 else []
        )
        levels.append(level)
    return levels


def up_levels(config: UNetConfig) -> nn.ModuleList:
    """The expanding half: each residual block also takes the feature map that the way
    down left.

    Chapter 14.
    """
    widths, n = config.block_out_channels, config.layers_per_block
    levels = nn.ModuleList()
    below = widths[-1]
    for i in reversed(range(len(widths))):
        width, skips = widths[i], [widths[i]] * n + [widths[max(i - 1, 0)]]
        ins = [(below if j == 0 else width) + skip for j, skip in enumerate(skips)]
        pairs = [(n_in, width) for n_in in ins]
        level = Level(
            config,
            pairs,
            attended=(n + 1) * config.attention[i],
            n_head=config.heads(i),
        )
        level.upsamplers = nn.ModuleList([Upsample(width)] if i > 0 else [])
        levels.append(level)
        below = width
    return levels


class UNet(Model):
    """The noise predictor eps_theta(z_t, t, LOA, text) of AudioLDM 2 (2308.05734 Eq.
    8).

    Chapter 14.
    """

    config_class = UNetConfig

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        if config.prediction not in ("eps", "v"):
            raise ValueError(
                f'prediction must be "eps" or "v", not {config.prediction!r}'
            )
        widths = config.block_out_channels
        if not isinstance(config.n_head, int) and len(config.n_head) != len(widths):
            raise ValueError(
                f"n_head must be one number or one for each of {len(widths)} levels, "
                f"not {config.n_head}"
            )
        self.conv_in = nn.Conv2d(
            config.in_channels + config.loa_channels, widths[0], 3, padding=1
        )
        if config.loa_channels:
            loa_dim = next(
                dim for dim in config.cross_attention_dim[:2] if dim is not None
            )
            self.loa_map = LOAMap(
                loa_dim, config.loa_channels, config.loa_grid, config.loa_patch
            )
        self.time_embedding = TimeEmbedding(widths[0])
        self.down_blocks = down_levels(config)
        self.mid_block = Level(
            config, [(widths[-1], widths[-1])] * 2, attended=1, n_head=config.heads(-1)
        )
        self.up_blocks = up_levels(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def recompute_activations(self, on: bool = True) -> None:
        """Keep no activations inside the levels: training takes less memory, and a
        third more time.

        Known as gradient checkpointing (Chen et al., 1604.06174).
        """
        for module in self.modules():
            if isinstance(module, Level):
                module.recompute = on

    @property
    def schedule(self) -> Schedule:
        """The noise levels this network is trained for. Chapter 14."""
        return sqrt_linear_schedule(
            self.config.n_steps, self.config.beta_1, self.config.beta_T
        )

    def forward(self, zt: Tensor, t: Tensor, loa: Context, text: Context) -> Tensor:
        """Predict the noise in zt.

        Args:
            zt: noisy latent (B, C, T/r, F/r); T/r and F/r multiples of 2 ** (levels -
                1).
            t: noise level (B,), 1 to T.
            loa, text: conditions, each a sequence (B, S, D) and its mask (B, S) or
                None. With k B rows they are k conditions of every latent, and what none
                of them has reached yet is computed once.

        Returns:
            eps_hat, or v_hat where `config.prediction` is "v", (k B, C, T/r, F/r).
            Chapter 14.
        """
        # the released weights count noise levels from 0
        time = self.time_embedding(t - 1)
        if self.config.loa_channels:
            plane = self.loa_map(loa[0], zt.shape[2])
            zt = torch.cat([spread(zt, len(plane)), plane], dim=1)
        x = self.conv_in(zt)
        skips = [x]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                x = level.layer(i, x, time, loa, text)
                skips.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skips.append(x)
        for i in range(2):
            x = self.mid_block.layer(i, x, time, loa, text)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                x = torch.cat([x, spread(skips.pop(), len(x))], dim=1)
                x = level.layer(i, x, time, loa, text)
            for upsample in level.upsamplers:
                x = upsample(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def predict_eps(self, zt: Tensor, t: Tensor, loa: Context, text: Context) -> Tensor:
        """The predicted noise, whatever the output means: what the samplers ask for.

        As `forward`. Chapter 14.
        """
        return self.as_eps(zt, t, self(zt, t, loa, text))

    def as_eps(self, zt: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """The noise in zt (B, C, T/r, F/r) at level t (B,) that an output of `forward`
        means.

        Chapter 14.
        """
        return (
            out
            if self.config.prediction == "eps"
            else eps_from_velocity(self.schedule, zt, t, out)
        )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of the predicted noise (Ho et al., 2006.11239 Eq. 14), or
        of the velocity.

        Args:
            batch: `z0` and `eps` (B, C, T/r, F/r), `t` (B,), `loa` (B, L, D), `text`
                (B, S, D), `text_mask` (B, S).

        Chapter 14.
        """
        z0, t, eps = batch["z0"], batch["t"], batch["eps"]
        contexts = (batch["loa"], None), (batch["text"], batch["text_mask"])
        loss = {"eps": eps_loss, "v": v_loss}[self.config.prediction]
        return loss(lambda zt, t: self(zt, t, *contexts), self.schedule, z0, t, eps)


UNet.presets = {
    "tiny": UNetConfig(
        in_channels=16,  # 4 latent channels, packed 2 x 2
        block_out_channels=(64, 112, 160),
        attention=(False, False, False),  # the middle block always attends
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=(None, 192, 128),
        n_head=4,
        prediction="v",  # minutes do not teach a network to copy the noise well enough,
        # nor cross-attention to find the place that an LOA vector speaks of
        loa_channels=32,
    ),
    "colab": UNetConfig(
        block_out_channels=(96, 192, 288, 384),
        layers_per_block=1,
        cross_attention_dim=(None, 384, 256),
        n_head=6,
    ),
    "full": UNetConfig(),
    "large": UNetConfig(
        cross_attention_dim=(None, 768, 1024, None), transformer_layers=2
    ),
    "speech": UNetConfig(cross_attention_dim=(None, 768)),
}
