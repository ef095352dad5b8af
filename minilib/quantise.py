"""Vector quantisation: each vector becomes the nearest of a few learned ones, and so a
whole number (van den Oord et al., 1711.00937).

Straight-through gradients, code vectors that follow the mean of what they stand for,
and codes that start again where nothing uses them: chapter 07 builds this. Chapter 19
builds what codecs make from it: several quantisers, each of which refines what those
before it left (RVQ), for the whole vector or for each part of it (GRVQ).
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


@torch.no_grad()
def k_means(rows: Tensor, n_codes: int, rounds: int, seed: int = 0) -> Tensor:
    """Lloyd's algorithm: n_codes centres (K, D) of rows (N, D).

    Each round assigns every row to its nearest centre, and moves every centre to the
    mean of its rows. The first centres are rows drawn at random; a centre without rows
    stays where it is. Chapter 19.
    """
    N = len(rows)
    generator = torch.Generator().manual_seed(zlib.crc32(f"k-means/{seed}".encode()))
    drawn = torch.randperm(max(N, n_codes), generator=generator)[:n_codes] % N
    centres = rows[drawn.to(rows.device)].clone()
    for _ in range(rounds):
        nearest = torch.cdist(rows, centres).argmin(dim=1)
        own = F.one_hot(nearest, n_codes).to(rows)  # (N, K)
        sizes = own.sum(dim=0)[:, None]
        centres = torch.where(sizes > 0, own.T @ rows / sizes.clamp_min(1), centres)
    return centres


class RVQ(nn.Module):
    """Residual vector quantisation (SoundStream, 2107.03312, Algorithm 1): each level
    quantises what the levels before it left over, and their code vectors add up.

    Args:
        n_levels: Q, one codebook each.
        n_codes, dim, beta, decay, restart, seed: of each level's `VectorQuantiser`;
            decay must be above 0.
        rounds: of k-means on the first batch, from which the codes start; 0 to start as
            `VectorQuantiser` does.

    Chapter 19.
    """

    def __init__(
        self, n_levels: int, n_codes: int, dim: int, beta: float = 0.25,
        decay: float = 0.99, restart: float = 0.1, rounds: int = 10, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {decay}")
        self.beta, self.rounds, self.n_codebooks = beta, rounds, n_levels
        own = n_codes, dim, beta, decay, restart
        self.levels = nn.ModuleList(
            VectorQuantiser(*own, seed=seed * n_levels + q) for q in range(n_levels)
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes (..., Q) of vectors x (..., D), one from each level."""
        codes, rest = [], x
        for level in self.levels:
            codes.append(level.encode(rest))
            rest = rest - level.decode(codes[-1]).to(rest)
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors (..., D) of the first n codes (..., n), n from 0 to Q."""
        first = zip(self.levels, codes.unbind(-1))
        shape = *codes.shape[:-1], self.levels[0].embedding.embedding_dim
        nothing = self.levels[0].embedding.weight.new_zeros(shape)
        return sum((level.decode(code) for level, code in first), nothing)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Quantised:
        """Quantise vectors x (B, ..., D); in training the codes follow them first.

        keep (B,) says how many levels each row uses; None for all (2107.03312 §III-C:
        quantiser dropout). The codebooks follow all rows. The codes are (B, ..., Q).
        """
        if self.training and self.rounds and not self.levels[0].updates:
            self.start(gathered(x.detach().flatten(0, -2)))
        keep = x.new_full(x.shape[:1], self.n_codebooks) if keep is None else keep
        rest, total, codes, loss = x, torch.zeros_like(x), [], x.new_zeros(())
        for q, level in enumerate(self.levels):
            code = level(rest.detach()).codes
            nearest = level.decode(code).to(x)
            used = (q < keep).view(-1, *(1,) * (x.dim() - 1)).to(x)  # (B, 1, ..., 1)
            loss = loss + self.beta * (used * (rest - nearest) ** 2).mean()
            rest, total = rest - nearest, total + used * nearest
            codes.append(code)
        vectors = x + (total - x).detach()
        return Quantised(vectors, torch.stack(codes, dim=-1), loss / len(self.levels))

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Let all codebooks start from the clusters of rows (N, D) and their rests."""
        rest = rows.to(self.levels[0].sums)
        for level in self.levels:
            centres = k_means(rest, len(level.hits), self.rounds, level.seed)
            level.embedding.weight.copy_(centres)
            codes = level.encode(rest)
            level.hits.copy_(torch.bincount(codes, minlength=len(level.hits)))
            level.sums.copy_(level.hits[:, None] * centres)
            rest = rest - centres[codes]


class GRVQ(nn.Module):
    """Group-residual vector quantisation (HiFi-Codec, 2305.02765 §3): the vector is cut
    into G parts of equal width, and each has an `RVQ` of its own.

    Codebooks are numbered level by level: the first G are the first levels of all
    groups. So the first n codes are as good a beginning as n codebooks allow.

    Args:
        n_groups: G, which must divide dim.
        n_levels: of each group; there are Q = G n_levels codebooks.
        n_codes, dim, seed, options: as for `RVQ`; dim is that of the whole vector.

    Chapter 19.
    """

    def __init__(
        self, n_groups: int, n_levels: int, n_codes: int, dim: int, seed: int = 0,
        **options: float,
    ):  # fmt: skip
        super().__init__()
        if dim % n_groups:
            raise ValueError(f"n_groups must divide dim, {dim}, not be {n_groups}")
        own = n_levels, n_codes, dim // n_groups
        self.n_codebooks = n_groups * n_levels
        self.groups = nn.ModuleList(
            RVQ(*own, **options, seed=seed * n_groups + g) for g in range(n_groups)
        )

    def encode(self, x: Tensor) -> Tensor:
        """The codes (..., Q) of vectors x (..., D)."""
        parts = zip(self.groups, x.chunk(len(self.groups), dim=-1))
        return torch.stack([rvq.encode(part) for rvq, part in parts], -1).flatten(-2)

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors (..., D) of the first n codes (..., n); a group that has none of
        them yields 0.
        """
        G = len(self.groups)
        parts = (rvq.decode(codes[..., g::G]) for g, rvq in enumerate(self.groups))
        return torch.cat(list(parts), dim=-1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Quantised:
        """Quantise vectors x (B, ..., D); keep (B,) is the number of codebooks that a
        row uses, None for all.
        """
        G, made = len(self.groups), []
        for g, part in enumerate(x.chunk(G, dim=-1)):
            own = None if keep is None else (keep - g + G - 1) // G
            made.append(self.groups[g](part, own))
        vectors, codes, losses = zip(*made)
        codes = torch.stack(codes, dim=-1).flatten(-2)
        return Quantised(torch.cat(vectors, dim=-1), codes, sum(losses) / G)
