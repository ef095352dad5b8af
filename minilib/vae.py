"""The variational autoencoder that compresses a log-mel into a latent and back (Kingma
and Welling, 1312.6114).

KL-regularised with a very small weight, as in latent diffusion (Rombach et al.,
2112.10752): the latent is a space for the diffusion to work in, not a code to sample
from. Structure and names are those of diffusers' AutoencoderKL, which holds the
released weights. Beside it the autoencoder with a quantiser in place of the KL term,
diffusers' VQModel. Chapter 07 builds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers import Downsample, ResBlock, Upsample, attention
from minilib.model import Model
from minilib.quantise import Quantised, VectorQuantiser


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are the released model's, but kl_weight is
    smaller: its authors' training code uses about 0.015 in these units.
    """

    in_channels: int = 1  # a log-mel is a picture of one channel
    latent_channels: int = 8  # C
    # each level after the first halves time and frequency
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    # brings the latent to unit variance for the diffusion
    scaling_factor: float = 0.4110932946205139
    # nats of KL per latent value against nats of reconstruction per mel value
    kl_weight: float = 1e-6
    # of encoder and decoder, before the last convolution: it forgets how loud
    final_norm: bool = True

    @property
    def reduction(self) -> int:
        """How many mel frames (and mel bands) one step of the latent covers: r."""
        return 2 ** (len(self.block_out_channels) - 1)


def res_blocks(n_in: int, n_out: int, n: int, groups: int) -> nn.ModuleList:
    """Residual blocks in a row, the first from n_in to n_out channels."""
    widths = pairwise([n_in] + n * [n_out])
    return nn.ModuleList(ResBlock(a, b, groups) for a, b in widths)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map, beside a skip
    connection.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(channels, channels) for _ in range(3)
        )
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, T*F, C)
        h = attention(self.to_q(h), self.to_k(h), self.to_v(h), n_head=1)
        return x + self.to_out[0](h).transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the last level."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)])
        self.resnets = res_blocks(channels, channels, 2, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, then half the resolution (not at the
    last level). Chapter 07.
    """

    def __init__(self, n_in: int, n_out: int, n_layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = res_blocks(n_in, n_out, n_layers, groups)
        halve = [] if last else [Downsample(n_out, padding=0)]
        self.downsamplers = nn.ModuleList(halve)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks, then twice the resolution (not at the
    last level).
    """

    def __init__(self, n_in: int, n_out: int, n_layers: int, groups: int, last: bool):
        super().__init__()
        self.resnets = res_blocks(n_in, n_out, n_layers, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(n_out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


def final_norm(config: VAEConfig, channels: int) -> nn.Module:
    """The group normalisation before a last convolution, where the config wants one."""
    norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
    return norm if config.final_norm else nn.Identity()


class Encoder(nn.Module):
    """From log-mel (B, 1, T, F) to n_out channels (B, n_out, T/r, F/r): the mean and
    the log-variance, stacked. Chapter 07.
    """

    def __init__(self, config: VAEConfig, n_out: int):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        n, last = config.layers_per_block, len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(n_in, n_out, n, groups, last=i == last)
            for i, (n_in, n_out) in enumerate(pairwise(widths[:1] + widths))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = final_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], n_out, 3, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        h = self.conv_in(mel)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """From latent (B, C, T/r, F/r) to log-mel (B, 1, T, F). Chapter 07."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        n, last = config.layers_per_block + 1, len(widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(n_in, n_out, n, groups, last=i == last)
            for i, (n_in, n_out) in enumerate(pairwise(widths[:1] + widths))
        )
        self.conv_norm_out = final_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class VAE(Model):
    """The KL-regularised autoencoder of the log-mel (2308.05734 §3.3). Chapter 07."""

    config_class = VAEConfig
    n_moments = 2  # numbers that the encoder writes for each of the latent's

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        C, n_out = config.latent_channels, self.n_moments * config.latent_channels
        self.encoder = Encoder(config, n_out)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(n_out, n_out, 1)
        self.post_quant_conv = nn.Conv2d(C, C, 1)

    def moments(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (in [-30, 20]) of q(z | mel), each (B, C, T/r, F/r)."""
        moments = self.quant_conv(self.encoder(mel.to(self.dtype)))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def restore(self, z: Tensor) -> Tensor:
        """The log-mel (B, 1, T, F) from a latent z (B, C, T/r, F/r), not scaled."""
        return self.decoder(self.post_quant_conv(z.to(self.dtype)))

    def encode(self, mel: Tensor, eps: Tensor | None = None) -> Tensor:
        """Compress a log-mel (B, 1, T, F) to the scaled latent z0 (B, C, T/r, F/r) that
        the diffusion sees.

        The posterior's mean, or a draw from it where `eps` (standard normal, the
        latent's shape) is given. Raises ValueError unless T and F are multiples of r.
        """
        r = self.config.reduction
        if mel.dim() != 4 or mel.shape[2] % r or mel.shape[3] % r:
            raise ValueError(
                f"mel must be (B, 1, T, F) with T and F multiples of {r}, not "
                f"{tuple(mel.shape)}"
            )
        mean, log_variance = self.moments(mel)
        z = mean if eps is None else mean + (0.5 * log_variance).exp() * eps
        return z * self.config.scaling_factor

    def decode(self, z0: Tensor) -> Tensor:
        """The log-mel (B, 1, T, F) from the scaled latent z0 (B, C, T/r, F/r)."""
        return self.restore(z0 / self.config.scaling_factor)

    def forward(self, mel: Tensor) -> Tensor:
        return self.decode(self.encode(mel))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Negative evidence lower bound with a small KL weight (2112.10752 §3.1): L1 +
        kl_weight * KL, in nats, means per mel value and per latent value.

        Args:
            batch: `mel` (B, 1, T, F) and `eps` (B, C, T/r, F/r), standard normal.
        """
        mean, log_variance = self.moments(batch["mel"])
        z = mean + (0.5 * log_variance).exp() * batch["eps"]
        l1 = (self.restore(z) - batch["mel"]).abs().mean()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).mean()
        loss = l1 + self.config.kl_weight * kl
        return {"loss": loss, "l1": l1.detach(), "kl": kl.detach()}


@dataclass(frozen=True)
class VQVAEConfig(VAEConfig):
    """Sizes of the autoencoder with a quantiser, and what the quantiser is given."""

    n_codes: int = 512  # K
    beta: float = 0.25  # weight of the commitment term
    decay: float = 0.99  # of the running means that the codes follow
    restart: float = 0.1  # share of its fair share below which a code starts again


class VQVAE(VAE):
    """The autoencoder whose decoder begins with a quantiser (2112.10752 §3.1): the
    latent is the vector before it. Chapter 07.
    """

    config_class = VQVAEConfig
    n_moments = 1  # the latent itself

    def __init__(self, config: VQVAEConfig):
        super().__init__(config)
        own = config.n_codes, config.latent_channels, config.beta
        self.quantize = VectorQuantiser(*own, config.decay, config.restart)

    def moments(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """The latent before the quantiser, (B, C, T/r, F/r), and the least
        log-variance: it is certain.
        """
        z = self.quant_conv(self.encoder(mel.to(self.dtype)))
        return z, torch.full_like(z, -30.0)

    def quantise(self, z: Tensor) -> Quantised:
        """The C numbers at each place of a latent (B, C, T/r, F/r) as one vector."""
        made = self.quantize(z.movedim(1, -1))
        return made._replace(vectors=made.vectors.movedim(-1, 1))

    def restore(self, z: Tensor) -> Tensor:
        """The log-mel (B, 1, T, F) from a latent that is still to be quantised."""
        return super().restore(self.quantise(z).vectors)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """L1 + the quantiser's loss, of a batch of `mel` (B, 1, T, F)."""
        made = self.quantise(self.moments(batch["mel"])[0])
        l1 = (super().restore(made.vectors) - batch["mel"]).abs().mean()
        return {"loss": l1 + made.loss, "l1": l1.detach(), "vq": made.loss.detach()}


@torch.no_grad()
def centre(vae: VAE, mean: float, std: float) -> None:
    """Set first and last convolution of an untrained VAE for inputs of this mean and
    deviation.

    Log-mels lie around -7 with a deviation near 3; the released weights take them as
    they are. Starting from convolutions that undo and redo the scale spares the
    training from learning two constants.
    """
    conv_in, conv_out = vae.encoder.conv_in, vae.decoder.conv_out
    conv_in.weight /= std
    conv_in.bias -= mean * conv_in.weight.sum(dim=(1, 2, 3))
    conv_out.weight *= std
    conv_out.bias.fill_(mean)


@torch.no_grad()
def standardise(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Fold a change of the latent's scale into the two 1x1 convolutions: z becomes (z -
    mean) / std, exactly.

    One scaling factor leaves some channels wide and others narrow; the diffusion wants
    every channel at mean 0 and variance 1. What is decoded does not change. Args: mean
    and std of each latent channel, (latent_channels,).
    """
    C = vae.config.latent_channels
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:C] /= std[:, None, None, None]
    quant.bias[:C] = (quant.bias[:C] - mean) / std
    quant.bias[C:] -= 2.0 * std.log()


VAE.presets = {
    # its KL term makes latents that suit a diffusion of few steps, for about half a
    # decibel of the mel; with a final norm, minutes of training leave a quiet sound
    # 2 dB too loud
    "tiny": VAEConfig(
        latent_channels=4, block_out_channels=(16, 32, 64), layers_per_block=1,
        norm_num_groups=4, scaling_factor=1.0, kl_weight=1e-1, final_norm=False,
    ),
    "colab": VAEConfig(
        block_out_channels=(64, 128, 256), norm_num_groups=16, scaling_factor=1.0
    ),
    "full": VAEConfig(),
}  # fmt: skip
VQVAE.presets = {
    "tiny": VQVAEConfig(
        latent_channels=4, block_out_channels=(16, 32, 64), layers_per_block=1,
        norm_num_groups=4, scaling_factor=1.0, final_norm=False,
    ),
    # the sizes of VAE's, and of Stable Diffusion's VQ with 4 times fewer values
    "colab": VQVAEConfig(
        block_out_channels=(64, 128, 256), norm_num_groups=16, scaling_factor=1.0
    ),
    "full": VQVAEConfig(n_codes=8192, decay=0.0, restart=0.0),
}  # fmt: skip
