"""AudioMAE: a representation learned by filling in what was hidden, and the Language of
Audio pooled from it.

Huang et al. (2207.06405): 80 % of the spectrogram's patches are masked, the encoder
sees the others, a small decoder restores all, and only the masked ones count in the
loss. AudioLDM 2 (2308.05734 §3.1) pools the encoder's features to the Language of
Audio, LOA. The encoder has the structure and names of transformers' ViTMAE. Chapter 09
builds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.model import Model


@dataclass(frozen=True)
class AudioMAEConfig:
    """Sizes of the masked autoencoder; the defaults are AudioMAE's (ViT-B/16).

    Chapter 09.
    """

    n_frames: int = 1024  # length of the log-mel it is made for
    n_mels: int = 128
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    mask_ratio: float = 0.8
    n_feature_layers: int = 3  # LOA averages the outputs of this many last layers
    pool: int = 8  # lambda: kernel and stride of the pooling over patches
    mel_mean: float = -4.2677393
    mel_std: float = 9.1379948  # inputs are (log-mel - mean) / std

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along time and along frequency."""
        return self.n_frames // self.patch_size, self.n_mels // self.patch_size

    def n_loa(self, pool: int | None = None) -> int:
        """How many LOA vectors a clip has at this lambda (frequency is pooled by at
        most its own height).
        """
        pool = pool or self.pool
        return (self.grid[0] // pool) * (self.grid[1] // min(pool, self.grid[1]))


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed two-dimensional positions: sines and cosines of time in one half, of
    frequency in the other. Chapter 09.

    Returns (1 + n_time * n_frequency, dim): zeros for [CLS], then the patches in the
    order time, frequency.
    """
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 4) / (dim // 4))  # (dim/4,)
    time, frequency = torch.meshgrid(
        torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"
    )
    halves = []
    for place in (frequency, time):
        angle = place.flatten()[:, None] * omega  # (patches, dim/4)
        halves += [angle.sin(), angle.cos()]
    return torch.cat([torch.zeros(1, dim), torch.cat(halves, dim=1)])


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases, as in ViT (2010.11929 Eq. 2).

    Chapter 09.
    """

    def __init__(self, dim: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            # (B, n_head, S, d)
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        # (B, S, dim)
        return self.out(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )


class ViTBlock(nn.Module):
    """Pre-norm transformer block of ViT (2010.11929 Eq. 2, 3). Chapter 09."""

    def __init__(self, dim: int, n_head: int):
        super().__init__()
        self.norm_before = nn.LayerNorm(dim, eps=1e-6)
        self.attention = SelfAttention(dim, n_head)
        self.norm_after = nn.LayerNorm(dim, eps=1e-6)
        self.intermediate = nn.Linear(dim, 4 * dim)
        self.output = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_before(x))
        return x + self.output(F.gelu(self.intermediate(self.norm_after(x))))


def random_mask(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Choose the patches that stay visible: those with the smallest noise (2111.06377
    §3). Chapter 09.

    Args:
        noise: one random number for each patch, (B, P).
        ratio: share of the patches to hide, in [0, 1).

    Returns:
        indices of the visible patches (B, V), and the mask (B, P), 1 where a patch is
        hidden.
    """
    n_visible = max(1, round(noise.shape[1] * (1.0 - ratio)))
    visible = noise.argsort(dim=1)[:, :n_visible]
    return visible, torch.ones_like(noise).scatter(1, visible, 0.0)


class MAEEncoder(nn.Module):
    """Vision transformer over spectrogram patches, all of them or the visible ones
    (2207.06405 §3).

    Chapter 09.
    """

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        D = config.hidden_size
        self.patch_embed = nn.Conv2d(1, D, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, D) * 0.02)
        self.register_buffer(
            "position_embeddings", sincos_positions(D, config.grid), persistent=False
        )
        self.layer = nn.ModuleList(
            ViTBlock(D, config.num_attention_heads)
            for _ in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(D, eps=1e-6)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Outputs of every layer, each (B, 1 + V, D), for a normalised mel (B, 1, T,
        F).

        Chapter 09.
        """
        position = self.position_embeddings.to(x.dtype)
        # (B, P, D), time before frequency
        h = self.patch_embed(x).flatten(2).transpose(1, 2) + position[1:]
        if visible is not None:
            # (B, V, D)
            h = h.gather(1, visible[:, :, None].expand(-1, -1, h.shape[-1]))
        h = torch.cat([(self.cls_token + position[0]).expand(len(h), -1, -1), h], dim=1)
        outputs = []
        for layer in self.layer:
            h = layer(h)
            outputs.append(h)
        return outputs


class MAEDecoder(nn.Module):
    """Small transformer that restores all patches from the visible ones and a mask
    token (2207.06405).

    Chapter 09.
    """

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        D = config.decoder_hidden_size
        self.decoder_embed = nn.Linear(config.hidden_size, D)
        self.mask_token = nn.Parameter(torch.randn(1, 1, D) * 0.02)
        self.register_buffer(
            "position_embeddings", sincos_positions(D, config.grid), persistent=False
        )
        self.layer = nn.ModuleList(
            ViTBlock(D, config.decoder_num_attention_heads)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(D, eps=1e-6)
        self.decoder_pred = nn.Linear(D, config.patch_size**2)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """From encoder features (B, 1 + V, D) and the visible indices (B, V) to all
        patches (B, P, patch^2).
        """
        h = self.decoder_embed(features)
        B, _, D = h.shape
        n_patches = len(self.position_embeddings) - 1
        hidden = self.mask_token.to(h.dtype).expand(B, n_patches, D)
        full = hidden.scatter(1, visible[:, :, None].expand(-1, -1, D), h[:, 1:])
        h = torch.cat([h[:, :1], full], dim=1) + self.position_embeddings.to(h.dtype)
        for layer in self.layer:
            h = layer(h)
        return self.decoder_pred(self.decoder_norm(h))[:, 1:]


class AudioMAE(Model):
    """Masked autoencoder over log-mels, and the Language of Audio pooled from its
    features.

    Chapter 09.
    """

    config_class = AudioMAEConfig

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)
        self.decoder = MAEDecoder(config)
        # of the true LOA over the training data,
        self.register_buffer("loa_mean", torch.zeros(config.hidden_size))
        # so that the regression sees unit variance
        self.register_buffer("loa_std", torch.ones(config.hidden_size))

    def normalise(self, mel: Tensor) -> Tensor:
        """Bring a log-mel (B, 1, T, F) of the config's size to about zero mean and unit
        variance.

        Chapter 09.
        """
        size = (1, self.config.n_frames, self.config.n_mels)
        if mel.dim() != 4 or tuple(mel.shape[1:]) != size:
            raise ValueError(
                f"mel must be (B, {', '.join(map(str, size))}) for this AudioMAE, not "
                f"{tuple(mel.shape)}"
            )
        return (mel - self.config.mel_mean) / self.config.mel_std

    def patchify(self, x: Tensor) -> Tensor:
        """Cut (B, 1, T, F) into patches (B, P, patch^2), time before frequency.

        Chapter 09.
        """
        p = self.config.patch_size
        return F.unfold(x, p, stride=p).transpose(1, 2)

    def forward(self, mel: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mask, encode, restore: predicted and true patches (B, P, patch^2) and the
        mask (B, P).

        Chapter 09.
        """
        x = self.normalise(mel)
        visible, mask = random_mask(noise, self.config.mask_ratio)
        features = self.vit.layernorm(self.vit(x, visible)[-1])
        return self.decoder(features, visible), self.patchify(x), mask

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error on the masked patches alone (2207.06405 §3).

        Args:
            batch: `mel` (B, 1, T, F) and `noise` (B, P), uniform: the patches with the
                smallest stay visible.

        Chapter 09.
        """
        predicted, patches, mask = self(batch["mel"], batch["noise"])
        return (((predicted - patches) ** 2).mean(dim=-1) * mask).sum() / mask.sum()

    def features(self, mel: Tensor) -> Tensor:
        """Features of all patches, nothing masked: (B, D, T/patch, F/patch).

        The mean over the last `n_feature_layers` layers, each after the final norm, as
        the released code takes it (the paper's text speaks of the last 16). Chapter 09.
        """
        layers = self.vit(self.normalise(mel))[-self.config.n_feature_layers :]
        # (B, P, D)
        mean = torch.stack([self.vit.layernorm(h[:, 1:]) for h in layers]).mean(dim=0)
        return mean.transpose(1, 2).unflatten(2, self.config.grid)

    def loa(self, mel: Tensor, pool: int | None = None) -> Tensor:
        """The Language of Audio Y of a log-mel (B, 1, T, F): (B, L, D) (2308.05734
        §3.1). Chapter 09.

        Average and maximum over blocks of `pool` x `pool` patches (lambda; the config's
        own if None; frequency by at most its height), halved and added; then each
        dimension is brought to zero mean and unit variance.
        """
        features = pool_patches(self.features(mel), pool or self.config.pool)
        return (features.flatten(2).transpose(1, 2) - self.loa_mean) / self.loa_std


def pool_patches(features: Tensor, pool: int) -> Tensor:
    """(AvgPool + MaxPool) / 2 with kernel and stride lambda: (B, D, T', F') -> (B, D,
    T'/l, F'/l).

    Chapter 09.
    """
    if pool < 1 or features.shape[2] % pool:
        raise ValueError(
            f"pool must divide the {features.shape[2]} patches along time, not {pool}"
        )
    kernel = (pool, min(pool, features.shape[3]))
    return (F.avg_pool2d(features, kernel) + F.max_pool2d(features, kernel)) / 2


AudioMAE.presets = {
    "tiny": AudioMAEConfig(
        n_frames=256,
        n_mels=64,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        decoder_hidden_size=128,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        n_feature_layers=1,
        pool=2,
        mel_mean=-7.0,
        mel_std=3.0,
    ),
    "colab": AudioMAEConfig(
        n_mels=64,
        hidden_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        decoder_hidden_size=256,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=8,
        n_feature_layers=2,
        mel_mean=-7.0,
        mel_std=3.0,
    ),
    "full": AudioMAEConfig(),
}
