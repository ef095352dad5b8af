"""Captions to tokens: byte-pair encoding over bytes, open to any word.

Sennrich et al. (1508.07909) merge the most frequent pairs of symbols; Radford et al.
(2019) start from bytes, so that no word is unknown. CLAP and T5 read the same tokens.
Chapter 11 builds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib.conditions import Context
from minilib.files import replacing

PAD, EOS, CLS = 0, 1, 2  # ids of <pad>, </s>, <cls>
SENTINEL = 3  # id of <extra_id_0>; the other sentinels follow it
N_SENTINELS = 16
SENTINELS = [f"<extra_id_{i}>" for i in range(N_SENTINELS)]
SPECIAL_TOKENS = ("<pad>", "</s>", "<cls>", *SENTINELS)
# every byte has a token, so no word is unknown
MIN_VOCABULARY = len(SPECIAL_TOKENS) + 256


class TokenizerFile:
    """A wrapper around a tokenizer of the `tokenizers` library, and its file."""

    def __init__(self, backend: Any):
        self.backend = backend  # a tokenizers.Tokenizer
        # "<pad>" in a caption is five characters, not padding
        self.backend.encode_special_tokens = True

    def __deepcopy__(self, memo: dict) -> TokenizerFile:
        return self  # it never changes, and the library's copy would parse "<pad>"

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, whole or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.backend.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> TokenizerFile:
        """Read a tokenizer that `save` wrote.

        Raises:
            FileNotFoundError: there is no file at `path`.
            ValueError: the file is damaged, or holds a tokenizer with other special
                tokens.
        """
        if not (path := Path(path)).is_file():
            raise FileNotFoundError(f"tokenizer file {path} does not exist")
        from tokenizers import Tokenizer

        try:
            backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            said = f"tokenizer file {path} is damaged: no tokenizer can be read from it"
            raise ValueError(said) from error
        for i, token in enumerate(SPECIAL_TOKENS):
            if backend.id_to_token(i) != token:
                said = f"is not minilib's: its id {i} is not {token}"
                raise ValueError(f"tokenizer file {path} {said}")
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """The number of ids; fewer than requested if the captions held too few repeated
        pairs.
        """
        return self.backend.get_vocab_size()


class Tokenizer(TokenizerFile):
    """Byte-pair encoding over bytes, open to any word (Sennrich et al., 1508.07909).

    Letters are lower-cased, each run of spaces becomes one, final punctuation is
    dropped. A caption that spells a special token never gets its id. Chapter 11.
    """

    max_tokens = 64  # the most tokens of a caption, </s> included
    # pad to a fixed length: GPT-2 counts padding, so a caption's LOA depends on it
    pad_to = 24

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 1000) -> Tokenizer:
        """Merge the most frequent pairs up to `vocab_size`, or until none repeats."""
        backend, trainer = untrained_backend(vocab_size)
        backend.train_from_iterator(check_captions(captions), trainer)
        return cls(backend)

    def encode(
        self,
        captions: list[str],
        max_length: int | None = None,
        truncate: bool = False,
        pad_to: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """B captions -> ids (B, S) long, each ended by </s>, and mask (B, S), True for
        tokens, padded to the longest and at least to `pad_to`.

        A caption of more than `max_length` tokens (None: `max_tokens`), </s> included,
        is cut if `truncate` is true; otherwise it raises ValueError.
        """
        most = self.max_tokens if max_length is None else max_length
        kept = slice(most - 1 if truncate else None)
        captions = check_captions(captions)
        rows = [row.ids[kept] + [EOS] for row in self.backend.encode_batch(captions)]
        check_lengths(captions, rows, most)
        S = max(pad_to, *map(len, rows))
        ids = torch.tensor([row + [PAD] * (S - len(row)) for row in rows])  # (B, S)
        return ids, ids != PAD

    def decode(self, ids: Tensor) -> list[str]:
        """Turn ids (B, S) into text, with sentinels but without padding and </s>."""
        rows = ([i for i in row if i not in (PAD, EOS, CLS)] for row in ids.tolist())
        text = (self.backend.decode(row, skip_special_tokens=False) for row in rows)
        return [caption.strip() for caption in text]


class Reader:
    """A base of encoders that read words: `encode`, `empty`, and a tokenizer.

    The tokenizer is set when the encoder is loaded; on disk, its file lies beside the
    encoder. A subclass is a network that maps ids and mask, both (B, S), to states
    (B, S, dim).
    """

    tokenizer: Any = None
    reads = "caption"  # which of a pipeline's inputs

    def padded_to(self, pad_to: int = 0) -> int:
        """The length to pad to: `pad_to`, but at least the tokenizer's own length."""
        if self.tokenizer is None:
            name = type(self).__name__
            raise ValueError(f"this {name} has no tokenizer: set its `tokenizer` first")
        return max(pad_to, self.tokenizer.pad_to)

    def read(self, inputs: list[str], pad_to: int = 0) -> tuple[Tensor, Tensor]:
        """Tokenise B sentences for this encoder: ids and mask (B, S), on its device."""
        pad_to, device = self.padded_to(pad_to), next(self.parameters()).device
        ids, mask = self.tokenizer.encode(inputs, pad_to=pad_to)
        return ids.to(device), mask.to(device)

    def encode(self, inputs: list[str], pad_to: int = 0) -> Context:
        """Encode B sentences, each padded to at least `pad_to` tokens: (B, S, dim)."""
        ids, mask = self.read(inputs, pad_to)
        return Context(self(ids, mask), mask)

    def empty(self, n: int, pad_to: int = 0) -> Context:
        """The empty condition for n items: the empty sentence."""
        return self.encode([""] * n, pad_to)


def untrained_backend(vocab_size: int) -> tuple[Any, Any]:
    """A tokenizer without merges (it normalises and splits into words and bytes), and
    the trainer that finds the merges; ValueError if `vocab_size` is too small for the
    special tokens and all bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, trainers
    from tokenizers.normalizers import NFKC, Lowercase, Replace, Sequence, Strip
    from tokenizers.pre_tokenizers import ByteLevel

    if vocab_size < MIN_VOCABULARY:
        least = f"at least {MIN_VOCABULARY}"
        raise ValueError(f"vocab_size must be {least}, not {vocab_size}")
    backend = Tokenizer(models.BPE())
    apostrophe = Replace("\u2019", "'")  # the typographic one
    spaces = Replace(Regex(r"\s+"), " ")
    closing = Replace(Regex(r"[\s.!?\u2026]+$"), "")  # "a dog barks." is "a dog barks"
    backend.normalizer = Sequence(
        [NFKC(), Lowercase(), apostrophe, spaces, closing, Strip()]
    )
    # "dog" gives the same tokens at the start and inside a caption
    backend.pre_tokenizer = ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    return backend, trainer


def split_words(caption: str) -> list[str]:
    """The words of a caption, in lower case and without punctuation."""
    return [word.strip(".,;:!?\"'()").lower() for word in caption.split()]


def check_captions(captions: Iterable[str]) -> list[str]:
    """Return `captions` as a list; raise a sentence unless all are str."""
    if isinstance(captions, str):
        said = f"not one str: write [{captions[:40]!r}]"
        raise TypeError(f"captions must be a list of str, {said}")
    captions = list(captions)
    for caption in captions:
        if not isinstance(caption, str):
            said = f"but one of them is {type(caption).__name__}"
            raise TypeError(f"captions must be a list of str, {said}")
    if not captions:
        raise ValueError("captions is empty: at least one caption is needed")
    return captions


def check_lengths(captions: list[str], rows: list[list[int]], most: int) -> None:
    """Raise ValueError for a caption of more than `most` tokens, or `most` below 1."""
    if most < 1:
        raise ValueError(f"max_length must be at least 1, not {most}")
    for caption, row in zip(captions, rows):
        if len(row) > most:
            text = caption if len(caption) <= 40 else caption[:37] + "..."
            said = f"has {len(row)} tokens, but at most {most} can be read"
            raise ValueError(f"the caption {text!r} {said}")


def check_ids(
    ids: Tensor, mask: Tensor | None, vocab_size: int, most: int | None = None
) -> Tensor:
    """Return the mask (all True for None); raise a sentence if ids or mask do not fit:
    a wrong shape, an id outside the vocabulary, or more than `most` tokens.
    """
    shape = tuple(ids.shape)
    if ids.ndim != 2 or ids.is_floating_point() or ids.numel() == 0:
        said = f"not {ids.dtype} of shape {shape}"
        raise ValueError(f"ids must be long of shape (B, S), {said}")
    if most is not None and shape[1] > most:
        raise ValueError(f"ids must have at most {most} tokens, not {shape[1]}")
    if mask is not None and mask.shape != shape:
        said = f"{shape}, not {tuple(mask.shape)}"
        raise ValueError(f"mask must have the shape of ids, {said}")
    # not on a GPU, which would have to wait
    if ids.device.type == "cpu" and not 0 <= ids.min() <= ids.max() < vocab_size:
        said = f"the model's vocabulary, not {int(ids.min())} to {int(ids.max())}"
        raise ValueError(f"ids must lie between 0 and {vocab_size - 1}, {said}")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
