"""AudioMAE: a representation learned by filling in what was hidden, and the Language of
Audio pooled from it.

Huang et al. (2207.06405): 80 % of the spectrogram's patches are masked, the encoder
sees the others, a small decoder restores all, and only the masked ones count in the
loss. AudioLDM 2 (2308.05734 §3.1) pools the encoder's features to the Language of
Audio, LOA. The encoder has the structure and names of transformers' ViTMAE. Chapter 09
builds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.audio import HOP, LOG_FLOOR, N_MELS, SAMPLE_RATE, log_mel
from minilib.layers import attention
from minilib.model import Model

FBANK = {  # settings of AudioMAE's code (2207.06405)
    "htk_compat": True, "sample_frequency": SAMPLE_RATE, "use_energy": False,
    "window_type": "hanning", "dither": 0.0, "frame_shift": 10,
}  # fmt: skip


@dataclass(frozen=True)
class AudioMAEConfig:
    """Sizes of the masked autoencoder; the defaults are those of AudioMAE's encoder
    (ViT-B/16) and, for the decoder, of the original MAE (2111.06377). Chapter 09.
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
    pools: tuple[int, ...] = (1, 2, 4, 8)  # the lambdas whose LOA can be standardised
    mel_mean: float = -4.2677393
    mel_std: float = 9.1379948  # inputs are (log-mel - mean) / std

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along time and along frequency."""
        return self.n_frames // self.patch_size, self.n_mels // self.patch_size

    def pool_for(self, n_loa: int) -> int:
        """The lambda, of those with statistics, at which a clip has `n_loa` vectors."""
        found = {self.n_loa(pool): pool for pool in self.pools}
        if n_loa not in found:
            known = ", ".join(map(str, found))
            raise ValueError(f"a clip has {known} LOA vectors, never {n_loa}")
        return found[n_loa]

    def n_loa(self, pool: int | None = None) -> int:
        """How many LOA vectors a clip has at this lambda; the config's own if None."""
        pool = self.pool if pool is None else pool
        return (self.grid[0] // pool) * (self.grid[1] // min(pool, self.grid[1]))


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed two-dimensional positions: sines and cosines of the frequency in the first
    half, of the time in the second, as in the released weights of MAE.

    Returns (1 + n_time * n_frequency, dim): zeros for [CLS], then the patches, time
    before frequency. Chapter 09.
    """
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 4) / (dim // 4))  # (dim/4,)
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid))  # (P, 2)
    angles = places.flip(1)[:, :, None] * omega  # (P, 2, dim/4)
    table = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)  # (P, dim)
    return torch.cat([torch.zeros(1, dim), table])


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
        q, k, v = self.query(x), self.key(x), self.value(x)
        return self.out(attention(q, k, v, self.n_head))  # (B, S, dim)


class ViTBlock(nn.Module):
    """Transformer block of ViT: attention, then a small network, each normalised before
    and beside a skip connection (2010.11929 Eq. 2, 3). Chapter 09.
    """

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
    §3).

    Args:
        noise: one random number for each patch, (B, P).
        ratio: share of the patches to hide, in [0, 1).

    Returns:
        indices of the visible patches (B, V), and the mask (B, P), 1 where a patch is
        hidden.

    Chapter 09.
    """
    n_visible = max(1, round(noise.shape[1] * (1.0 - ratio)))
    visible = noise.argsort(dim=1)[:, :n_visible]
    return visible, torch.ones_like(noise).scatter(1, visible, 0.0)


class MAEEncoder(nn.Module):
    """Vision transformer over the patches of a spectrogram, all of them or the visible
    ones (2207.06405 §3). Chapter 09.
    """

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        D, n_head = config.hidden_size, config.num_attention_heads
        self.patch_embed = nn.Conv2d(1, D, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, D) * 0.02)
        positions = sincos_positions(D, config.grid)
        self.register_buffer("position_embeddings", positions, persistent=False)
        n_layer = config.num_hidden_layers
        self.layer = nn.Sequential(*(ViTBlock(D, n_head) for _ in range(n_layer)))
        self.layernorm = nn.LayerNorm(D, eps=1e-6)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Outputs of every layer, each (B, 1 + V, D), [CLS] first.

        Args:
            x: normalised mel (B, 1, T, F).
            visible: indices (B, V) of the patches to look at; None for all.
        """
        position = self.position_embeddings.to(x.dtype)
        # (B, P, D), time before frequency
        h = self.patch_embed(x).flatten(2).transpose(1, 2) + position[1:]
        if visible is not None:
            h = h.gather(1, visible[:, :, None].expand(-1, -1, h.shape[-1]))
        cls = (self.cls_token + position[0]).expand(len(h), -1, -1)
        outputs = [torch.cat([cls, h], dim=1)]  # (B, 1 + V, D)
        for layer in self.layer:
            outputs.append(layer(outputs[-1]))
        return outputs[1:]


class MAEDecoder(nn.Module):
    """Small transformer that restores all patches from the visible ones and a mask
    token (2207.06405 §3). Chapter 09.
    """

    def __init__(self, config: AudioMAEConfig):
        super().__init__()
        D, n_head = config.decoder_hidden_size, config.decoder_num_attention_heads
        self.decoder_embed = nn.Linear(config.hidden_size, D)
        self.mask_token = nn.Parameter(torch.randn(1, 1, D) * 0.02)
        positions = sincos_positions(D, config.grid)
        self.register_buffer("position_embeddings", positions, persistent=False)
        n_layer = config.decoder_num_hidden_layers
        self.layer = nn.Sequential(*(ViTBlock(D, n_head) for _ in range(n_layer)))
        self.decoder_norm = nn.LayerNorm(D, eps=1e-6)
        self.decoder_pred = nn.Linear(D, config.patch_size**2)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """From encoder features (B, 1 + V, D) and the visible indices (B, V) to all
        patches (B, P, patch^2).
        """
        h = self.decoder_embed(features)
        position = self.position_embeddings.to(h.dtype)
        places = visible[:, :, None].expand(-1, -1, h.shape[-1])
        hidden = self.mask_token.to(h.dtype).expand(len(h), len(position) - 1, -1)
        patches = hidden.scatter(1, places, h[:, 1:])  # (B, P, D)
        h = torch.cat([h[:, :1], patches], dim=1) + position
        return self.decoder_pred(self.decoder_norm(self.layer(h)))[:, 1:]


def pool_patches(features: Tensor, pool: int) -> Tensor:
    """(AvgPool + MaxPool) / 2 over blocks of lambda x lambda patches; frequency by at
    most its height (2308.05734 §3.1): (B, D, T', F') -> (B, D, T'/l, F'/l).

    Raises ValueError if lambda does not divide T'. Chapter 09.
    """
    T, F_ = features.shape[2:]
    if pool < 1 or T % pool:
        raise ValueError(f"pool must divide the {T} patches along time, not {pool}")
    kernel = (pool, min(pool, F_))
    return (F.avg_pool2d(features, kernel) + F.max_pool2d(features, kernel)) / 2


class AudioMAE(Model):
    """Masked autoencoder over log-mels, and the Language of Audio pooled from its
    features. Chapter 09.
    """

    config_class = AudioMAEConfig

    def __init__(self, config: AudioMAEConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)
        self.decoder = MAEDecoder(config)
        # of the LOA at each of the pools, so that it has zero mean and unit variance
        shape = (len(config.pools), config.hidden_size)
        self.register_buffer("loa_mean", torch.zeros(shape))
        self.register_buffer("loa_std", torch.ones(shape))

    def normalise(self, mel: Tensor) -> Tensor:
        """Bring a log-mel (B, 1, T, F) of the config's size to about zero mean and unit
        variance.
        """
        T, M = self.config.n_frames, self.config.n_mels
        if mel.shape[1:] != (1, T, M):
            raise ValueError(f"mel must be (B, 1, {T}, {M}), not {tuple(mel.shape)}")
        return ((mel - self.config.mel_mean) / self.config.mel_std).to(self.dtype)

    def patchify(self, x: Tensor) -> Tensor:
        """Cut (B, 1, T, F) into patches (B, P, patch^2), time before frequency."""
        p = self.config.patch_size
        return F.unfold(x, p, stride=p).transpose(1, 2)

    def forward(self, mel: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mask, encode, restore: predicted and true patches (B, P, patch^2) and the
        mask (B, P).
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
        """
        predicted, patches, mask = self(batch["mel"], batch["noise"])
        return ((predicted - patches).square().mean(dim=-1) * mask).sum() / mask.sum()

    def features(self, mel: Tensor) -> Tensor:
        """Features of all patches, nothing masked: (B, D, T/patch, F/patch).

        The mean over the last `n_feature_layers` layers, each after the final norm, as
        the released code takes it (the paper's text speaks of the last 16).
        """
        layers = self.vit(self.normalise(mel))[-self.config.n_feature_layers :]
        mean = sum(self.vit.layernorm(h[:, 1:]) for h in layers) / len(layers)
        return mean.transpose(1, 2).unflatten(2, self.config.grid)  # (B, P, D) before

    def loa(self, mel: Tensor, pool: int | None = None) -> Tensor:
        """The Language of Audio Y of a log-mel (B, 1, T, F): (B, L, D) (2308.05734
        §3.1), time before frequency.

        Features pooled by `pool` (lambda; the config's own if None), then every
        dimension brought to zero mean and unit variance. Raises ValueError for a lambda
        without statistics.
        """
        pool, pools = self.config.pool if pool is None else pool, self.config.pools
        if pool not in pools:
            raise ValueError(
                f"pool must be in {pools}, which have statistics, not {pool}"
            )
        row = pools.index(pool)
        y = pool_patches(self.features(mel), pool).flatten(2).transpose(1, 2)
        return (y - self.loa_mean[row]) / self.loa_std[row]

    @torch.no_grad()
    def fit_statistics(self, mel: Tensor) -> None:
        """Measure mean and deviation of every LOA dimension over log-mels (B, 1, T, F),
        for every lambda of `pools`.
        """
        pieces = mel.to(self.device).split(32)  # a piece's layers are held at a time
        features = torch.cat([self.features(piece) for piece in pieces])
        for row, pool in enumerate(self.config.pools):
            y = pool_patches(features, pool)  # (B, D, T'/l, F'/l)
            self.loa_std[row], self.loa_mean[row] = torch.std_mean(y, dim=(0, 2, 3))


def heard(audiomae: AudioMAE, waves: Tensor) -> Tensor:
    """What an AudioMAE reads of waveforms (B, N): (B, 1, N // 160, F), the log-mel of
    this package, or Kaldi's filterbank where it has other bands.
    """
    n_mels = audiomae.config.n_mels
    return log_mel(waves) if n_mels == N_MELS else fbank(waves, n_mels)


def fbank(waves: Tensor, n_mels: int = 128) -> Tensor:
    """Kaldi's logarithmic mel filterbank of waveforms (B, N) at 16 kHz, as AudioMAE's
    code takes it: (B, 1, N // 160, n_mels), the last frames, for which samples are
    missing, zero.

    Raises:
        ModuleNotFoundError: torchaudio is not installed.
    """
    try:
        from torchaudio.compliance import kaldi
    except ModuleNotFoundError as error:
        said = "the AudioMAE of this size hears with torchaudio, which is missing"
        raise ModuleNotFoundError(f"{said}: pip install torchaudio") from error
    waves = waves - waves.mean(dim=1, keepdim=True)
    made = [kaldi.fbank(x[None], num_mel_bins=n_mels, **FBANK) for x in waves]
    found = torch.stack(made)[:, None]  # (B, 1, T, n_mels)
    missing = waves.shape[1] // HOP - found.shape[2]
    return F.pad(found, (0, 0, 0, missing))


AudioMAE.presets = {
    "tiny": AudioMAEConfig(
        n_frames=256, n_mels=64, mel_mean=-7.0, mel_std=3.0, pool=2, hidden_size=192,
        num_hidden_layers=4, num_attention_heads=6, decoder_hidden_size=128,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=4, n_feature_layers=1,
    ),
    "colab": AudioMAEConfig(
        n_mels=64, mel_mean=-7.0, mel_std=3.0, hidden_size=384,
        num_hidden_layers=8, num_attention_heads=6, decoder_hidden_size=256,
        decoder_num_hidden_layers=4, decoder_num_attention_heads=8, n_feature_layers=2,
    ),
    "full": AudioMAEConfig(),
}  # fmt: skip


@dataclass(frozen=True)
class ColumnsConfig:
    """Sizes of an LOA with one vector for each column of patches."""

    n_frames: int = 128  # length of the clips, in frames
    patch_size: int = 16  # of the AudioMAE
    n_features: int = 768  # in a column: the patches' widths together
    dim: int = 192  # of the LOA

    @property
    def n_tokens(self) -> int:
        """LOA vectors of a clip."""
        return self.n_frames // self.patch_size


class Columns(Model):
    """An LOA fine enough for speech: one vector for every 160 ms, in which nothing is
    pooled.

    Lambda = 1 keeps every patch but makes four vectors of each moment. Here the patches
    of a moment are joined instead, and principal components make the result narrow
    enough for GPT-2 (Pearson, Philosophical Magazine 2, 1901). The components are
    turned so that all dimensions have about the same variance: distances stay what they
    were, and no small component counts as much as a large one. There are no parameters
    to train: `fit` finds the map in closed form. It is not in the paper, whose speech
    model writes 512 vectors.
    """

    config_class = ColumnsConfig

    def __init__(self, config: ColumnsConfig):
        super().__init__(config)
        if not 1 <= config.dim <= config.n_features:
            said = f"from 1 to n_features, {config.n_features}, not {config.dim}"
            raise ValueError(f"dim must be {said}")
        self.register_buffer("mean", torch.zeros(config.n_features))
        self.register_buffer("weight", torch.eye(config.n_features, config.dim))

    @property
    def device(self) -> torch.device:
        """Where the map lives: it has no parameters."""
        return self.weight.device

    def joined(self, audiomae: AudioMAE, mel: Tensor) -> Tensor:
        """The features of every column of patches: log-mel (B, 1, T, F) with T at most
        `n_frames` and the AudioMAE's own length -> (B, n_tokens, n_features).

        A shorter clip is padded with silence.
        """
        T, most = mel.shape[2], min(audiomae.config.n_frames, self.config.n_frames)
        if T > most:
            raise ValueError(f"mel must have at most {most} frames, not {T}")
        missing = audiomae.config.n_frames - T
        padded = F.pad(mel, (0, 0, 0, missing), value=math.log(LOG_FLOOR))
        features = audiomae.features(padded)[:, :, : self.config.n_tokens]
        return features.permute(0, 2, 3, 1).flatten(2)  # (B, D, T', F') before

    def loa(self, audiomae: AudioMAE, mel: Tensor) -> Tensor:
        """The Language of Audio of a log-mel (B, 1, T, F): (B, n_tokens, dim)."""
        return (self.joined(audiomae, mel) - self.mean) @ self.weight

    @torch.no_grad()
    def fit(self, audiomae: AudioMAE, mel: Tensor) -> float:
        """Find the principal components of the columns of log-mels (B, 1, T, F), and
        return the share of the variance that they keep.
        """
        pieces = (self.joined(audiomae, piece) for piece in mel.split(32))
        x = torch.cat([piece.flatten(0, 1).cpu() for piece in pieces]).double()
        mean = x.mean(dim=0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        D = self.config.dim
        kept, largest = values[-D:].sum(), vectors[:, -D:]  # ascending
        turn = torch.randn(D, D, generator=torch.Generator().manual_seed(0))
        turn = torch.linalg.qr(turn.double()).Q
        self.mean.copy_(mean)
        self.weight.copy_(largest @ turn * (kept / D).rsqrt())
        return float(kept / values.sum())
