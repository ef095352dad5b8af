"""Conditions by name: the information that guides a model, as sequences with masks.

A caption's tokens, CLAP's single vector, phonemes, the Language of Audio: each is a
`Context`, and a model receives several of them in a dictionary. A task's conditions are
data, so no code here or above asks for an encoder's class. Chapter 15 builds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Context(NamedTuple):
    """One condition: a sequence, and a mask of the positions to read.

    Chapter 15.
    """

    sequence: Tensor  # (B, S, D)
    mask: Tensor | None = None  # (B, S), true at positions to read; None for all

    def repeat(self, n: int) -> Context:
        """Each item n times in a row: (n B, S, D)."""
        return Context(
            *(None if x is None else x.repeat_interleave(n, dim=0) for x in self)
        )


Conditions = dict[str, Context]


def join(first: Context, second: Context) -> Context:
    """Join two contexts into one batch: the shorter is padded with zeros, which the
    mask hides.

    Args:
        first, second: (B1, S1, D) and (B2, S2, D), each with its mask or None.
    Returns:
        (B1 + B2, max(S1, S2), D), without a mask if neither has one or needs padding.

    Chapter 15.
    """
    pair = [first, second]
    S = max(x.shape[1] for x, _ in pair)
    if all(mask is None and x.shape[1] == S for x, mask in pair):
        return Context(torch.cat([x for x, _ in pair]))
    masks = [x.new_ones(x.shape[:2]) if mask is None else mask for x, mask in pair]
    return Context(
        torch.cat([F.pad(x, (0, 0, 0, S - x.shape[1])) for x, _ in pair]),
        torch.cat([F.pad(mask.bool(), (0, S - mask.shape[1])) for mask in masks]),
    )


def drop(conditions: Conditions, empty: Conditions, dropped: Tensor) -> Conditions:
    """Replace the conditions of some items by empty ones in training: from these items
    the model learns the unconditional prediction.

    All conditions of an item are dropped together, as in AudioLDM 2's training
    (probability 0.1; 2308.05734).

    Args:
        conditions: of B items; empty: of one item, the empty conditions.
        dropped: (B,) bool.
    Returns:
        the conditions of B items, padded to the longer of both.

    Chapter 15.
    """
    B = len(dropped)
    rows = torch.arange(B, device=dropped.device).masked_fill(dropped, B)
    joined = {name: join(conditions[name], empty[name]) for name in conditions}
    return {  # row B is the empty one
        name: Context(x[rows], None if mask is None else mask[rows])
        for name, (x, mask) in joined.items()
    }


def from_batch(batch: Mapping[str, Tensor], names: Iterable[str]) -> Conditions:
    """The conditions in a training batch, which holds each under its name and its mask,
    if it has one, under `NAME_mask`.
    """
    return {name: Context(batch[name], batch.get(f"{name}_mask")) for name in names}


def to_batch(conditions: Conditions) -> dict[str, Tensor]:
    """The entries of a batch from which `from_batch` reads these conditions."""
    batch = {name: context.sequence for name, context in conditions.items()}
    masks = {f"{name}_mask": mask for name, (_, mask) in conditions.items()}
    return batch | {name: mask for name, mask in masks.items() if mask is not None}
