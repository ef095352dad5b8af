"""Sounds that are remembered, so that a picture finds its place among them.

In ImageBind's space a picture lies near its sound, but all pictures lie a little apart
from all sounds (the modality gap of Liang et al., 2203.02053). A GPT-2 that has only
read sounds writes badly from there. DeCap (Li et al., 2303.03032) brings what is seen
back among what was heard, with no training and no pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minilib.conditions import Context
from minilib.model import Model


@dataclass(frozen=True)
class MemoryConfig:
    """How many embeddings are remembered, how long they are, and the temperature at
    which they are compared.
    """

    n: int
    dim: int
    temperature: float = 0.05  # of ImageBind's own loss


class Memory(Model):
    """Embeddings of sounds; there is nothing to train."""

    config_class = MemoryConfig

    def __init__(self, config: MemoryConfig):
        super().__init__(config)
        self.register_buffer("sounds", torch.zeros(config.n, config.dim))

    def forward(self, seen: Context) -> Context:
        """What is seen, (B, 1, dim), as a mean of the remembered sounds, of length 1:
        the nearer a sound, the more it counts (2303.03032, projection-based decoding).
        """
        sounds = self.sounds.to(seen.sequence)  # (n, dim)
        near = seen.sequence @ sounds.T / self.config.temperature  # (B, 1, n)
        return Context(F.normalize(near.softmax(dim=-1) @ sounds, dim=-1))

    @torch.no_grad()
    def fit(self, heard: Tensor) -> None:
        """Remember the embeddings of sounds (n, dim)."""
        self.sounds.copy_(heard)
