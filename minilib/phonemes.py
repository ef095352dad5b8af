"""Phonemes to vectors: the encoder from which GPT-2 reads the words to be spoken.

This is the text encoder of VITS (Kim et al., 2106.06103 §2.5) as AudioLDM 2 uses it
(2308.05734 §3.2), without the rest of VITS: no durations, no flow. Its attention
depends on the distance between neighbours (Shaw et al., 1803.02155). Names and layout
are those of transformers' VitsTextEncoder, which holds the released weights. There is
no dropout. Chapter 11b builds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.conditions import Context
from minilib.model import Model
from minilib.tokenizer import PAD, Reader, check_ids


@dataclass(frozen=True)
class PhonemeConfig:
    """Sizes of the phoneme encoder; the defaults are the released speech model's.

    Chapter 11b.
    """

    vocab_size: int = 183  # symbols of espeak, punctuation, and the end token
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 2
    ffn_dim: int = 768
    ffn_kernel_size: int = 3
    window_size: int = 4  # positions on either side within which distance counts
    flow_size: int = 192  # size of a projection in the released file, never read
    layer_norm_eps: float = 1e-5


class RelativeAttention(nn.Module):
    """Self-attention with a key and a value for each distance up to `window_size`
    (1803.02155 Eqs. 3 and 4).

    Chapter 11b.
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
        """x (B, S, D) and keep (B, 1, 1, S), True for positions to read
        -> (B, S, D).
        """
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = (h.unflatten(-1, (self.n_head, -1)) for h in projected)
        q, k, v = (h.transpose(1, 2) for h in heads)  # (B, n_head, S, d)
        q = q * q.shape[-1] ** -0.5
        # a row for each distance, and one of zeros beyond the window: (2 window + 2, d)
        near_k, near_v = (
            F.pad(table[0], (0, 0, 0, 1)) for table in (self.emb_rel_k, self.emb_rel_v)
        )
        # (B, n_head, S, S): the row of each pair of positions
        row = self.rows(x.shape[1], x.device).expand(*q.shape[:3], -1)
        scores = q @ k.transpose(2, 3) + (q @ near_k.T).gather(3, row)
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=3)  # (B, n_head, S, S)
        by_row = weights.new_zeros(*q.shape[:3], len(near_v))
        h = weights @ v + by_row.scatter_add(3, row, weights) @ near_v
        return self.out_proj(h.transpose(1, 2).flatten(2))

    def rows(self, S: int, device: torch.device) -> Tensor:
        """The row of the tables for the distance from i to j: (S, S)."""
        position = torch.arange(S, device=device)
        distance, w = position - position[:, None], self.window
        return torch.where(distance.abs() <= w, distance + w, 2 * w + 1)


class PhonemeFeedForward(nn.Module):
    """Two convolutions along the phonemes; padding is zeroed before and after each.

    Chapter 11b.
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

    Chapter 11b.
    """

    def __init__(self, config: PhonemeConfig):
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.attention = RelativeAttention(config)
        self.layer_norm = nn.LayerNorm(D, eps)
        self.feed_forward = PhonemeFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(D, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, S, D) and mask (B, S, 1), True for phonemes -> (B, S, D)."""
        x = self.layer_norm(x + self.attention(x, mask[:, None, None, :, 0]))
        return self.final_layer_norm(x + self.feed_forward(x, mask))


class PhonemeEncoder(Reader, Model):
    """Phonemes to states that GPT-2 can read (2106.06103 §2.5; 2308.05734 §3.2).

    Chapter 11b.
    """

    config_class = PhonemeConfig
    reads = "transcription"

    def __init__(self, config: PhonemeConfig):
        super().__init__(config)
        self.dim = D = config.hidden_size
        if D % config.num_heads:
            said = f"a multiple of num_heads, not {D} of {config.num_heads}"
            raise ValueError(f"hidden_size must be {said}")
        # id 0, the padding, ends every sequence
        self.embed_tokens = nn.Embedding(config.vocab_size, D, PAD)
        layers = nn.ModuleList(PhonemeLayer(config) for _ in range(config.num_layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.project = nn.Conv1d(D, 2 * config.flow_size, 1)  # kept, never read

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode phonemes: ids (B, S) long, mask (B, S), True for phonemes (None: all)
        -> states (B, S, D), zero at padding.
        """
        mask = check_ids(ids, mask, self.config.vocab_size)[:, :, None]  # (B, S, 1)
        x = self.embed_tokens(ids) * math.sqrt(self.dim) * mask  # (B, S, D)
        for layer in self.encoder["layers"]:
            x = layer(x, mask)
        return x * mask

    def empty(self, n: int, pad_to: int = 0) -> Context:
        """The empty condition for n items: nothing is spoken, nothing is read."""
        S = pad_to or self.padded_to()
        states = self.embed_tokens.weight.new_zeros(n, S, self.dim)
        return Context(states, states.new_zeros(n, S, dtype=torch.bool))


PhonemeEncoder.presets = {
    "tiny": PhonemeConfig(hidden_size=96, num_layers=3, ffn_dim=192, flow_size=1),
    "colab": PhonemeConfig(flow_size=1),
    "full": PhonemeConfig(),
}
