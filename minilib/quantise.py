"""Vector quantisation: each vector becomes the nearest of a few learned ones, and so a
whole number (van den Oord et al., 1711.00937).

Straight-through gradients, code vectors that follow the mean of what they stand for,
and codes that start again where nothing uses them. Chapter 07 builds it.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.layers import gathered


class Quantised(NamedTuple):
    """What a quantiser makes of vectors (..., D)."""

    vectors: Tensor  # (..., D), with the gradient passed straight through
    codes: Tensor  # (...,), whole numbers from 0
    loss: Tensor  # to be added to that of the model


class VectorQuantiser(nn.Module):
    """Replace each vector by the nearest of K code vectors (1711.00937 Eq. 1-3).

    Args:
        n_codes, dim: K, and the width D of a vector.
        beta: weight of the commitment term.
        decay: of the running means that the codes follow (1711.00937, appendix A.1);
            0 lets them learn by gradient.
        restart: a code used less than this share of its fair share starts again at a
            vector of the batch, as every code does in the first batch; 0 for never.
        seed: of the vectors drawn; the levels of one stack need different ones.

    Chapter 07.
    """

    def __init__(
        self, n_codes: int, dim: int, beta: float = 0.25, decay: float = 0.99,
        restart: float = 0.1, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if restart and not decay:
            raise ValueError(f"restart must be 0 where decay is 0, not {restart}")
        self.beta, self.decay, self.restart, self.seed = beta, decay, restart, seed
        self.embedding = nn.Embedding(n_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_codes, 1 / n_codes)
        if decay:
            self.embedding.requires_grad_(False)
            self.register_buffer("hits", torch.zeros(n_codes))  # running means a batch
            self.register_buffer("sums", torch.zeros(n_codes, dim))
            self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def encode(self, x: Tensor) -> Tensor:
        """The numbers (...,) of the codes nearest to vectors x (..., D)."""
        rows = x.flatten(0, -2).to(self.embedding.weight)
        return torch.cdist(rows, self.embedding.weight).argmin(1).view(x.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors (..., D) of codes (...,)."""
        return self.embedding(codes)

    def forward(self, x: Tensor) -> Quantised:
        """Quantise vectors x (..., D); in training the codes follow them first."""
        if self.training and self.decay:
            self.follow(gathered(x.detach().flatten(0, -2)))
        codes = self.encode(x)
        nearest = self.decode(codes).to(x)
        loss = self.beta * F.mse_loss(x, nearest.detach())
        if not self.decay:
            loss = loss + F.mse_loss(nearest, x.detach())
        return Quantised(x + (nearest - x).detach(), codes, loss)

    @torch.no_grad()
    def follow(self, rows: Tensor) -> None:
        """Move each code that rows (N, D) hit to the running mean of its vectors."""
        if self.restart:
            self.revive(rows)
        chosen = F.one_hot(self.encode(rows), len(self.hits)).to(self.sums)  # (N, K)
        with torch.autocast(rows.device.type, enabled=False):
            sums = chosen.T @ rows.to(self.sums)  # (K, D)
        self.sums.lerp_(sums, 1.0 - self.decay)
        self.hits.lerp_(chosen.sum(dim=0), 1.0 - self.decay)
        hit = chosen.any(dim=0)
        self.embedding.weight[hit] = self.sums[hit] / self.hits[hit, None]
        self.updates += 1

    @torch.no_grad()
    def revive(self, rows: Tensor) -> None:
        """Let codes that are hardly used start again at some of rows (N, D)."""
        n, K = len(rows), len(self.hits)
        least = self.restart * n / K  # n / K is what each would have if all were alike
        dead = self.hits < least
        seed = zlib.crc32(f"{self.seed}/{int(self.updates)}".encode())
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(max(n, K), generator=generator)[:K].to(rows.device) % n
        self.embedding.weight[dead] = rows[drawn[dead]].to(self.sums)
        self.hits[dead], self.sums[dead] = least, least * self.embedding.weight[dead]


def perplexity(codes: Tensor, n_codes: int) -> Tensor:
    """How many codes are in use, in effect: exp of the entropy of their shares; from 1
    to `n_codes`.
    """
    share = torch.bincount(codes.flatten(), minlength=n_codes) / codes.numel()
    return torch.special.entr(share).sum().exp()
