"""GPT-2's transformer (Radford et al., 2019): vectors in, vectors out, with any mask.

It has no vocabulary at either end: its user, the LOA regressor or a codec language
model, decides what the vectors mean. Names are those of transformers' GPT2Model, whose
linear layers are stored transposed; there is no dropout. Chapter 13 builds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers import attention

Cache = list[tuple[Tensor, Tensor] | None]  # keys and values (B, P, D) of each block


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; the defaults are those of GPT-2. Chapter 13."""

    n_embd: int = 768  # width
    n_layer: int = 12
    n_head: int = 12
    n_positions: int = 1024
    vocab_size: int = 50257  # rows of a table that is stored, but never read
    layer_norm_epsilon: float = 1e-5


def causal_mask(S: int, device: torch.device | None = None) -> Tensor:
    """The mask (S, S) bool by which each position (row) reads itself and earlier ones.

    Chapter 13.
    """
    return torch.ones(S, S, dtype=torch.bool, device=device).tril()


def prefix_mask(S: int, n_prefix: int, device: torch.device | None = None) -> Tensor:
    """A `causal_mask` (S, S) in which all read the first `n_prefix` positions, too."""
    return causal_mask(S, device) | (torch.arange(S, device=device) < n_prefix)


class GPT2Attention(nn.Module):
    """Multi-head self-attention whose past can be cached. Chapter 13."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, x: Tensor, keep: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, S, D), keep (S, P + S) or (B, 1, S, P + S), for P cached positions
        -> (B, S, D) and all keys and values, each (B, P + S, D).
        """
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        return self.c_proj(attention(q, k, v, self.n_head, keep)), (k, v)


class GPT2MLP(nn.Module):
    """Position-wise network, four times as wide inside. Chapter 13."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # (B, S, n_embd)


class GPT2Block(nn.Module):
    """Attention and an MLP, each after a layer norm and beside a skip connection.

    Chapter 13.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self, x: Tensor, keep: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `GPT2Attention.forward`."""
        h, present = self.attn(self.ln_1(x), keep, past)
        x = x + h
        return x + self.mlp(self.ln_2(x)), present


class GPT2(nn.Module):
    """The stack of blocks with its learned positions. Chapter 13."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wte.requires_grad_(False)  # kept, never read
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def empty_cache(self) -> Cache:
        """An empty cache; `forward` fills it without in-place writes, so that gradients
        flow through it.
        """
        return [None] * self.config.n_layer

    def forward(
        self,
        inputs_embeds: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        pattern: Tensor | None = None,
    ) -> Tensor:
        """Map vectors to vectors. Positions are counted one by one, padding included,
        as in the released model.

        Args:
            inputs_embeds: (B, S, n_embd), the positions that are not in the cache.
            mask: (B, P + S), true for positions to read, including the P cached ones;
                None: all.
            cache: from `empty_cache` and earlier calls; this call's keys and values are
                added to it.
            pattern: (P + S, P + S) bool, which position (row) reads which (column);
                None for `causal_mask`.

        Returns:
            the last hidden states (B, S, n_embd).

        Raises:
            ValueError: there are more than `n_positions`, or the mask does not fit.
        """
        B, S, _ = inputs_embeds.shape
        P = cache[0][0].shape[1] if cache and cache[0] is not None else 0
        most, device = self.config.n_positions, inputs_embeds.device
        if P + S > most:
            raise ValueError(
                f"the sequence must have at most {most} positions, not {P + S}"
            )
        if mask is not None and mask.shape != (B, P + S):
            raise ValueError(
                f"mask must have shape {(B, P + S)}, not {tuple(mask.shape)}"
            )
        keep = (causal_mask(P + S, device) if pattern is None else pattern)[P:]
        if mask is not None:
            keep = keep & mask.bool()[:, None, None, :]  # (B, 1, S, P + S)
        x = inputs_embeds + self.wpe(torch.arange(P, P + S, device=device))
        for i, block in enumerate(self.h):
            x, present = block(x, keep, cache[i] if cache else None)
            if cache:
                cache[i] = present
        return self.ln_f(x)
