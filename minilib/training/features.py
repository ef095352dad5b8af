"""Features: what frozen parts make of clips and texts, in memory, computed whenever
they are asked for, or kept as shards on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib.conditions import Context
from minilib.data import Corpus
from minilib.streams import Stream
from minilib.training.processes import meet
from minilib.training.shards import Made, Shards

TOGETHER = 8  # clips that are heard together: small enough for the CPU's cache
AHEAD = 4 * TOGETHER  # clips of a stream that are read while others are heard
BATCH = 64  # captions that are encoded together


class Computed:
    """The values (N, ...) of a function of clips' waves; only those that are asked for
    are computed.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], corpus: Corpus | Stream):
        self.function, self.corpus = function, corpus

    @torch.no_grad()
    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        waves = self.corpus.wave(numbered(indices, self.corpus)).split(TOGETHER)
        return concatenated(sum(map(len, waves)), map(self.function, waves))

    @property
    def shape(self) -> torch.Size:
        """(N, ...)."""
        return torch.Size((len(self.corpus), *self[:1].shape[1:]))


class Kept:
    """The values (N, ...) of a function of clips' waves, in shards; only those that are
    asked for are read.
    """

    def __init__(self, shards: Shards, corpus: Corpus | Stream):
        self.shards, self.corpus = shards, corpus

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        clips = numbered(indices, self.corpus)
        if isinstance(self.corpus, Stream):
            return torch.cat(self.shards.rows(self.corpus.numbers(clips)))
        return torch.cat(self.shards.rows(clips.tolist()))

    @property
    def shape(self) -> torch.Size:
        """(N, ...)."""
        return torch.Size((len(self.corpus), *self[:1].shape[1:]))


class Encoded:
    """The outputs of a frozen encoder for texts, each encoded once and stored without
    padding. A call returns some of them as one context; other texts are encoded for it.
    """

    @torch.no_grad()
    def __init__(self, encoder: Any, texts: Sequence[str]):
        self.encoder = encoder
        self.empty: Context = on_cpu(encoder.empty(1))
        self.rows = self.encode(texts)

    def encode(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """What the encoder returns for each text."""
        found: dict[str, Tensor] = {}
        different = in_order(texts)
        for start in range(0, len(different), BATCH):
            some = different[start : start + BATCH]
            x, mask = on_cpu(self.encoder.encode(some))
            rows = x if mask is None else x[mask].split(mask.sum(dim=1).tolist())
            found |= zip(some, rows)
        return found

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Context:
        """The context (B, S, D), padded as the encoder pads."""
        others = self.encode(text for text in texts if text not in self.rows)
        rows = [others[x] if x in others else self.rows[x] for x in texts]
        return padded(rows, self.empty)


class KeptTexts:
    """The outputs of a frozen encoder for the texts of all clips, in shards, without
    padding. A call returns those of some clips as one context.
    """

    @torch.no_grad()
    def __init__(self, encoder: Any, shards: Shards, place: Callable[[int], int]):
        self.empty: Context = on_cpu(encoder.empty(1))
        self.shards, self.place = shards, place  # of a clip's text

    def __call__(self, indices: Tensor) -> Context:
        """The context (B, S, D) of clips (B,), padded as the encoder pads."""
        rows = self.shards.rows([self.place(i) for i in indices.tolist()])
        return padded(rows, self.empty)


def in_order(texts: Iterable[str]) -> list[str]:
    """The different ones among some texts, the shortest first."""
    return sorted(set(texts), key=lambda text: (len(text), text))


def padded(rows: Sequence[Tensor], empty: Context) -> Context:
    """Sequences (S, D) as one context, padded as that of no text, `empty`, is."""
    if empty.mask is None:
        return Context(torch.stack(list(rows)))
    lengths = torch.tensor([len(row) for row in rows])
    S = max(empty.sequence.shape[1], int(lengths.max()))
    whole = [F.pad(row, (0, 0, 0, S - len(row))) for row in rows]
    return Context(torch.stack(whole), torch.arange(S) < lengths[:, None])


def numbered(indices: Tensor | slice, corpus: Corpus | Stream) -> Tensor:
    """Indices of clips (n,), which may be given as a slice of all."""
    if isinstance(indices, slice):
        return torch.arange(len(corpus))[indices]
    return indices


# --------------------------------------------------------------------------------------
# What shards are made from


@torch.no_grad()
def of_sounds(
    corpus: Corpus | Stream,
    function: Callable[[Tensor], Tensor],
    hear: Callable[[Tensor], Tensor],
    numbers: range,
) -> Made:
    """The values of a function of what `hear` makes of some clips' waves. Clips of a
    stream are counted on its grid; a usable one takes the place of another.
    """
    streamed, device, n = isinstance(corpus, Stream), meet().device, len(numbers)
    clips = torch.tensor(corpus.clips(numbers) if streamed else list(numbers))
    heard = []

    def pieces() -> Iterator[Tensor]:
        for start in range(0, n, TOGETHER):
            some = clips[start : start + TOGETHER]
            if streamed:
                corpus.ahead(clips[start : start + AHEAD])
                some = corpus.settled(some)
            heard.append(some)
            yield function(hear(corpus.wave(some)).to(device)).cpu()

    with corpus.unprejudiced() if streamed else nullcontext({}) as skipped:
        values = concatenated(n, pieces())
    start = torch.arange(n)
    return Made(values, start, start + 1, torch.cat(heard), skipped)


@torch.no_grad()
def of_texts(encoder: Any, read: Callable[[int], str], numbers: range) -> Made:
    """What an encoder makes of the texts with some numbers, each different text once;
    nothing of a text that is "".
    """
    texts = [read(i) for i in numbers]
    found = Encoded(encoder, list(filter(None, texts))).rows
    lengths = torch.tensor([0, *map(len, found.values())])
    ends = lengths.cumsum(dim=0)
    at = {text: i for i, text in enumerate(found)}
    bounds = [(ends[at[x]], ends[at[x] + 1]) if x else (0, 0) for x in texts]
    start, stop = torch.tensor(bounds).unbind(dim=1)
    none = on_cpu(encoder.empty(1)).sequence[0, :0]
    values = torch.cat([none, *found.values()])
    return Made(values, start, stop, torch.tensor(list(numbers)))


@contextmanager
def on_device(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Let parts work on this process's device for a while."""
    before = [part.device for part in parts]
    for part in parts:
        part.to(meet().device)
    try:
        yield
    finally:
        for part, device in zip(parts, before):
            part.to(device)


def on_cpu(context: Context) -> Context:
    """A context with its tensors on the CPU."""
    return Context(*(x if x is None else x.cpu() for x in context))


def concatenated(n: int, pieces: Iterable[Tensor]) -> Tensor:
    """Join pieces (k, ...) into one tensor (n, ...), copying each to its final place at
    once.

    Kept separately, they would be scattered in memory among values that were computed
    and freed between them, and the process would grow by several times their size.
    """
    whole, end = torch.empty(0), 0
    for piece in pieces:
        whole = whole if len(whole) else piece.new_empty(n, *piece.shape[1:])
        whole[end : end + len(piece)] = piece
        end += len(piece)
    return whole
