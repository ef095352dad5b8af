"""Captions to tokens: byte-pair encoding over bytes, open to any word.

Sennrich et al. (1508.07909) merge the most frequent pairs of symbols; Radford et al.
(2019) begin with bytes, so that no word is unknown. CLAP and T5 read the same tokens.
Chapter 11 builds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib.files import replacing

PAD, EOS, CLS = 0, 1, 2  # ids of <pad>, </s>, <cls>
SENTINEL = 3  # id of <extra_id_0>; the other sentinels follow it
N_SENTINELS = 16
SPECIAL_TOKENS = (
    "<pad>",
    "</s>",
    "<cls>",
    *(f"<extra_id_{i}>" for i in range(N_SENTINELS)),
)
# every byte has a token, so no word is unknown
MIN_VOCABULARY = len(SPECIAL_TOKENS) + 256


class Tokenizer:
    """Byte-pair encoding over bytes (Sennrich et al., 1508.07909; Radford et al.,
    2019): open to any word.

    Letters are lower-cased, runs of spaces become one, and marks at the end of the
    sentence are dropped. The ids 0 to 18 are special (`SPECIAL_TOKENS`) and never come
    from a caption, even one that spells them. Chapter 11.
    """

    max_tokens = 64  # of a caption that the encoders read, </s> included
    # GPT-2 counts padding, so that a caption's LOA would depend on the longest beside
    # it
    pad_to = 24

    def __init__(self, backend: Any):
        self.backend = backend  # a tokenizers.Tokenizer
        # "<pad>" in a caption is five letters, not padding
        self.backend.encode_special_tokens = True

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 1000) -> Tokenizer:
        """Merge the most frequent pairs of tokens until there are `vocab_size` (or none
        repeats). Chapter 11.

        Raises:
            ValueError: `vocab_size` has no room for the special tokens and all bytes,
                or there is no caption.
        """
        if vocab_size < MIN_VOCABULARY:
            raise ValueError(
                f"vocab_size must be at least {MIN_VOCABULARY}, not {vocab_size}"
            )
        captions = list(captions)
        if not captions:
            raise ValueError(
                "captions is empty: a tokenizer needs at least one caption to be "
                "trained on"
            )
        from tokenizers import pre_tokenizers, trainers

        backend = untrained_backend()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as one JSON file, whole or not at all. Chapter 11."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.backend.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer that `save` wrote. Chapter 11.

        Raises:
            FileNotFoundError: there is no file at `path`.
            ValueError: the file is damaged, or holds a tokenizer with other special
                tokens.
        """
        return cls(read_backend(Path(path)))

    @property
    def vocab_size(self) -> int:
        """How many ids there are; fewer than asked for where the captions held fewer
        repeated pairs.
        """
        return self.backend.get_vocab_size()

    def encode(
        self,
        captions: list[str],
        max_length: int | None = None,
        truncate: bool = False,
        pad_to: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Turn captions into ids, each closed by </s>, the shorter ones padded. Chapter
        11.

        Args:
            captions: B sentences; an empty one becomes </s> alone.
            max_length: how many tokens are read, </s> included; None for `max_tokens`.
            truncate: cut a longer caption instead of refusing it.
            pad_to: tokens to pad to, where the longest caption has fewer.

        Returns:
            ids (B, S) long and mask (B, S) bool, True for tokens, False for padding.

        Raises:
            TypeError: `captions` is not a list of str.
            ValueError: `captions` is empty, or a caption is longer than `max_length`
                tokens.
        """
        rows = [
            row.ids + [EOS]
            for row in self.backend.encode_batch(check_captions(captions))
        ]
        max_length = self.max_tokens if max_length is None else max_length
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        if not truncate:
            check_lengths(captions, rows, max_length)
        rows = [
            row if len(row) <= max_length else row[: max_length - 1] + [EOS]
            for row in rows
        ]
        S = max(pad_to, *(len(row) for row in rows))
        ids = torch.tensor([row + [PAD] * (S - len(row)) for row in rows])  # (B, S)
        return ids, ids != PAD

    def decode(self, ids: Tensor) -> list[str]:
        """Turn ids (B, S) back into text; padding and </s> are left out, sentinels are
        shown.

        Chapter 11.
        """
        rows = [[i for i in row if i not in (PAD, EOS, CLS)] for row in ids.tolist()]
        return [
            self.backend.decode(row, skip_special_tokens=False).strip() for row in rows
        ]


def check_lengths(captions: list[str], rows: list[list[int]], max_length: int) -> None:
    """Raise ValueError for a caption of more tokens than are read. Chapter 11."""
    for caption, row in zip(captions, rows, strict=True):
        if len(row) > max_length:
            text = caption if len(caption) <= 40 else caption[:37] + "..."
            raise ValueError(
                f"the caption {text!r} has {len(row)} tokens, but at most "
                f"{max_length} are read"
            )


def untrained_backend() -> Any:
    """Build what a tokenizer does (normalise, split into words, merge bytes), no merges
    yet.

    Chapter 11.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("\u2019", "'"),  # the typographic apostrophe
            normalizers.Replace(Regex(r"\s+"), " "),
            # "a dog barks." is "a dog barks"
            normalizers.Replace(Regex(r"[\s.!?\u2026]+$"), ""),
            normalizers.Strip(),
        ]
    )
    # "dog" is one word wherever it stands
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def read_backend(path: Path) -> Any:
    """Read a `tokenizers.Tokenizer`; raise a sentence where it is missing, damaged or
    foreign.

    Chapter 11.
    """
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer file {path} does not exist")
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(
            f"tokenizer file {path} is damaged: it holds no tokenizer"
        ) from error
    for i, token in enumerate(SPECIAL_TOKENS):
        if backend.id_to_token(i) != token:
            raise ValueError(
                f"tokenizer file {path} is not one of minilib's: id {i} is not {token}"
            )
    return backend


def split_words(caption: str) -> list[str]:
    """The words of a caption, in small letters and without punctuation. Chapter 11."""
    return [word.strip(".,;:!?\"'()").lower() for word in caption.split()]


def check_captions(captions: list[str]) -> list[str]:
    """Return `captions` as a list; raise a sentence unless it is a non-empty list of
    str.

    Chapter 11.
    """
    if isinstance(captions, str):
        raise TypeError(
            f"captions must be a list of str, not one str: write [{captions[:40]!r}]"
        )
    captions = list(captions)
    wrong = next((c for c in captions if not isinstance(c, str)), None)
    if wrong is not None:
        raise TypeError(
            f"captions must be a list of str, but one of them is {type(wrong).__name__}"
        )
    if not captions:
        raise ValueError("captions is empty: at least one caption is needed")
    return captions
