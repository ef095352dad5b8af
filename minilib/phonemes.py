"""Phonemes to vectors: the encoder from which GPT-2 reads what is to be spoken.

The text encoder of VITS (Kim et al., 2106.06103 §2.5) as AudioLDM 2 uses it (2308.05734
§3.2), without the rest of VITS: no durations, no flow. Its attention knows neighbours
by their distance (Shaw et al., 1803.02155). Names and layout are those of transformers'
VitsTextEncoder, which holds the released weights. Nothing drops out. Chapter 11 builds
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.model import Model

PAD = 0  # id of the padding, which closes every sequence


@dataclass(frozen=True)
class PhonemeConfig:
    """Sizes of the phoneme encoder; the defaults are the released speech model's.

    Chapter 11.
    """

    vocab_size: int = 183  # symbols of espeak, punctuation, and the sign of the end
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 2
    ffn_dim: int = 768
    ffn_kernel_size: int = 3
    # neighbours whose distance the attention knows, to either side
    window_size: int = 4
    # of a projection that the released file holds and nothing reads
    flow_size: int = 192
    layer_norm_eps: float = 1e-5


class RelativeAttention(nn.Module):
    """Self-attention with a key and a value for each distance up to `window_size`
    (1803.02155 §3).

    Chapter 11.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        D, d = config.hidden_size, config.hidden_size // config.num_heads
        self.n_head, self.window = config.num_heads, config.window_size
        self.k_proj, self.v_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.q_proj, self.out_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.emb_rel_k = nn.Parameter(torch.randn(1, 2 * self.window + 1, d) * d**-0.5)
        self.emb_rel_v = nn.Parameter(torch.randn(1, 2 * self.window + 1, d) * d**-0.5)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """x (B, S, D) and keep (B, 1, 1, S), True for positions to be read -> (B, S,
        D).
        """
        q, k, v = (
            # (B, n_head, S, d)
            projection(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q * q.shape[-1] ** -0.5
        # (B, n_head, S, S)
        slot = self.slots(x.shape[1], x.device).expand(*q.shape[:3], -1)
        scores = q @ k.transpose(2, 3) + (q @ self.table(self.emb_rel_k).T).gather(
            3, slot
        )
        # (B, n_head, S, S)
        weights = scores.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(
            dim=3
        )
        by_slot = weights.new_zeros(*q.shape[:3], 2 * self.window + 2).scatter_add(
            3, slot, weights
        )
        h = weights @ v + by_slot @ self.table(self.emb_rel_v)
        return self.out_proj(h.transpose(1, 2).flatten(2))

    def slots(self, S: int, device: torch.device) -> Tensor:
        """Which row of the table stands for the distance from i to j: (S, S), the last
        one beyond the window.
        """
        position = torch.arange(S, device=device)
        distance = position - position[:, None]
        return torch.where(
            distance.abs() <= self.window, distance + self.window, 2 * self.window + 1
        )

    def table(self, embedding: Tensor) -> Tensor:
        """The vectors (2 window + 2, d) of the distances, that of the far ones being
        zero.
        """
        return F.pad(embedding[0], (0, 0, 0, 1))


class PhonemeFeedForward(nn.Module):
    """Two convolutions along the phonemes, padding silenced before each and after.

    Chapter 11.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        kernel = config.ffn_kernel_size
        self.conv_1 = nn.Conv1d(config.hidden_size, config.ffn_dim, kernel)
        self.conv_2 = nn.Conv1d(config.ffn_dim, config.hidden_size, kernel)
        self.around = ((kernel - 1) // 2, kernel // 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D) and mask (B, S, 1) -> (B, S, D)."""
        mask = mask.transpose(1, 2)  # (B, 1, S)
        h = self.conv_1(F.pad(x.transpose(1, 2) * mask, self.around)).relu()
        return (self.conv_2(F.pad(h * mask, self.around)) * mask).transpose(1, 2)


class PhonemeLayer(nn.Module):
    """Attention and convolutions, each normalised after its skip connection.

    Chapter 11.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        self.attention = RelativeAttention(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = PhonemeFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(
            config.hidden_size, eps=config.layer_norm_eps
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D) and mask (B, S, 1), True for phonemes -> (B, S, D)."""
        x = self.layer_norm(x + self.attention(x, mask[:, None, None, :, 0]))
        return self.final_layer_norm(x + self.feed_forward(x, mask))


class PhonemeEncoder(Model):
    """Phonemes to states that GPT-2 can read (2106.06103 §2.5; 2308.05734 §3.2).

    Chapter 11.
    """

    config_class = PhonemeConfig

    def __init__(self, config: PhonemeConfig):
        super().__init__(config)
        if config.hidden_size % config.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, not "
                f"{config.hidden_size} of {config.num_heads}"
            )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, PAD)
        self.encoder = nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    PhonemeLayer(config) for _ in range(config.num_layers)
                )
            }
        )
        # kept, never read
        self.project = nn.Conv1d(config.hidden_size, 2 * config.flow_size, 1)

    @property
    def dim(self) -> int:
        """Width of the states."""
        return self.config.hidden_size

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode phonemes.

        Args:
            ids: (B, S) long; mask: (B, S), True for phonemes, False for padding.

        Returns:
            states (B, S, D), zero where padding is.

        Raises:
            ValueError: ids or mask of another shape, or an id that is not in the
                vocabulary.
        """
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise ValueError(
                f"ids and mask must both be (B, S), not {tuple(ids.shape)} and "
                f"{tuple(mask.shape)}"
            )
        on_cpu = ids.device.type == "cpu"  # a GPU would have to wait
        if (
            on_cpu
            and ids.numel()
            and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size
        ):
            raise ValueError(
                f"ids must lie between 0 and {self.config.vocab_size - 1}, not "
                f"{ids.min()} and {ids.max()}"
            )
        x = self.embed_tokens(ids) * math.sqrt(self.config.hidden_size)  # (B, S, D)
        mask = mask.bool()[:, :, None]  # (B, S, 1)
        x = x * mask
        for layer in self.encoder["layers"]:
            x = layer(x, mask)
        return x * mask


PhonemeEncoder.presets = {
    "tiny": PhonemeConfig(hidden_size=96, num_layers=3, ffn_dim=192, flow_size=1),
    "colab": PhonemeConfig(flow_size=1),
    "full": PhonemeConfig(),
}
