"""Fingerprints: short texts that tell one data set, or set of weights, from another.

They say whether what was made before, a checkpoint or a file of features, still fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from minilib.data import Corpus
from minilib.streams import Stream

READ_WHOLE = 256  # clips of a corpus that are read whole; of the others, the middle
MIDDLE = 64  # samples in the middle


def samples(corpus: Corpus | Stream) -> Iterator[bytes]:
    """The captions of a corpus, some whole clips, and the middle of all clips; of a
    stream, some rows.
    """
    if isinstance(corpus, Stream):
        yield from corpus.identity()
        return
    waves, n = corpus.waves, len(corpus)
    yield json.dumps([waves.shape, corpus.captions]).encode()
    start = max(0, (waves.shape[1] - MIDDLE) // 2)
    yield waves[:, start : start + MIDDLE].tobytes()
    for i in np.unique(np.linspace(0, n - 1, min(n, READ_WHOLE)).round().astype(int)):
        yield waves[i].tobytes()


def weights(model: nn.Module) -> Iterator[bytes]:
    """All tensors of a model."""
    for name, x in sorted(model.state_dict().items()):
        yield name.encode()
        yield x.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def fingerprint(pieces: Iterable[bytes]) -> str:
    """A short text that almost surely differs for other pieces."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(len(piece).to_bytes(8, "big"))
        found.update(piece)
    return found.hexdigest()[:16]
