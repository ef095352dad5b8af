"""Arguments at the door: what a caption, a number, a seed may be. What is none gets one
sentence that names the argument, what was given and what is allowed.
"""

from __future__ import annotations

import math
import operator
import os
import random
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_SECONDS = 60.0
MAX_CANDIDATES = 64
MAX_SEED = 2**32 - 1


def check_asked(
    captions: str | Sequence[str],
    negative: str | Sequence[str] | None,
    transcription: str | Sequence[str] | None,
    speaks: bool,
    candidates: int,
) -> tuple[list[str], list[str], list[str] | None, int]:
    """Captions, what to be guided away from, and what is spoken, as lists of one
    length: each caption as often as it has candidates, the last that is returned. A
    sentence for what is none of them.
    """
    k = check_whole("candidates", candidates, 1, MAX_CANDIDATES)
    captions = check_captions(captions)
    negatives = one_each(
        "negative", "" if negative is None else negative, len(captions)
    )
    if transcription is None and speaks:
        raise ValueError("these weights speak: give the words as transcription")
    if transcription is not None and not speaks:
        raise ValueError("these weights do not speak: transcription must be None")
    words = None
    if speaks:
        words = one_each("transcription", transcription, len(captions))
        if not all(said.strip() for said in words):
            raise ValueError("a transcription is empty: write the words to be spoken")
    often = lambda given: [x for x in given for _ in range(k)]
    return often(captions), often(negatives), often(words) if words else None, k


def check_captions(captions: str | Sequence[str]) -> list[str]:
    """Captions as a list; a sentence where there is none, or one is empty."""
    given = as_list("captions", captions)
    if not given:
        raise ValueError("captions is empty: at least one caption is needed")
    if not all(caption.strip() for caption in given):
        raise ValueError("a caption is empty: describe the sound in a few words")
    return given


def one_each(name: str, given: str | Sequence[str], n: int) -> list[str]:
    """Strings as a list of n: one for all, or one each."""
    given = as_list(name, given)
    given = given * n if len(given) == 1 else given
    if len(given) != n:
        raise ValueError(
            f"{name} must be one for all or one for each of {n}, not {len(given)}"
        )
    return given


def as_list(name: str, given: Any) -> list[str]:
    """One string, or some, as a list of plain ones; a sentence for anything else."""
    wanted = f"{name} must be a string or a list of strings, not {shown(given)}"
    if isinstance(given, Set | Mapping):  # has no order, or more than strings
        raise TypeError(wanted)
    try:
        given = [given] if isinstance(given, str | bytes) else list(given)
    except TypeError:
        raise TypeError(wanted) from None
    for x in given:
        if not isinstance(x, str):
            raise TypeError(f"{name} must be strings, not {type(x).__name__}")
        if not x.isascii() and any("\ud800" <= c <= "\udfff" for c in x):
            raise ValueError(f"{name} must be text in UTF-8, not {shown(x)}")
    return [str(x) for x in given]  # NumPy's, too


def check_seconds(seconds: float) -> float:
    """The length as a float; a sentence for one that no sound can have."""
    return check_number("seconds", seconds, 0.1, MAX_SECONDS)


def check_seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """The seeds of n sounds: of one whole number it and those that follow, of a list
    its own, of None such as nobody has asked for.
    """
    last = MAX_SEED - n + 1  # so that the last sound's is one, too
    if seed is None:
        seed = random.randrange(last + 1)
    several = isinstance(seed, Sequence) or getattr(seed, "ndim", 0) > 0
    if several and not isinstance(seed, str | bytes):
        if len(seed) == n:
            return [check_whole("seed", x, 0, MAX_SEED) for x in seed]
        raise ValueError(
            f"seed must be one number, or one each of {n}, not {len(seed)}"
        )
    first = check_whole("seed", seed, 0, last)
    return [first + i for i in range(n)]


def seeded(seed: int | Sequence[int] | None, n: int) -> list[torch.Generator]:
    """The sources of the noise of n sounds, as `check_seeds`."""
    return [torch.Generator().manual_seed(x) for x in check_seeds(seed, n)]


def check_latents(given: Any, shape: tuple[int, ...]) -> Tensor:
    """Noise to start from as a tensor; a sentence where it has another shape or is no
    finite numbers.
    """
    try:
        given = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        said = f"latents must be a tensor of shape {shape}, not {shown(given)}"
        raise TypeError(said) from None
    if given.shape != shape:
        raise ValueError(f"latents must be of shape {shape}, not {tuple(given.shape)}")
    if given.is_complex() or not given.isfinite().all():
        raise ValueError("latents must hold finite real numbers")
    return given.float()


def check_path(name: str, given: Any) -> Path:
    """The path of a file or a folder; a sentence for what names none."""
    wanted = f"{name} must be a path: a string or a pathlib.Path, not {shown(given)}"
    if not isinstance(given, str | os.PathLike):
        raise TypeError(wanted)
    if not os.fspath(given):
        raise ValueError(wanted)
    return Path(given)


def check_dtype(dtype: Any) -> None:
    """Raise TypeError unless it is a floating-point type of torch, or None."""
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype is not None and not known:
        wanted = "dtype must be a floating-point type of torch, as torch.float16"
        raise TypeError(f"{wanted}, or None, not {shown(dtype)}")


def check_device(device: Any) -> torch.device:
    """A device that torch can use here; a sentence for any other."""
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    # torch has as many kinds of errors as of devices
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        wanted = 'device must be one that torch can use here, as "cpu", or None'
        raise ValueError(f"{wanted}, not {shown(device)}") from error


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int; an error unless it is a whole number from low to high."""
    span = f", {low} or more" if high is None else f" from {low} to {high}"
    wanted = f"{name} must be a whole number{span}, not {shown(value)}"
    try:
        number = operator.index(value)  # NumPy's and PyTorch's are welcome
    except TypeError:
        raise TypeError(wanted) from None
    if is_truth(value):
        raise TypeError(wanted)
    if number < low or (high is not None and number > high):
        raise ValueError(wanted)
    return number


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """The value as a float; an error unless it is a finite number from low to high."""
    span = f"lie between {low:g} and {high:g}"
    span = span if high < math.inf else f"be {low:g} or more"
    no_number = TypeError(f"{name} must be a number, not {shown(value)}")
    try:
        if is_truth(value) or isinstance(value, str | bytes):
            raise no_number
        number = float(value)
    except (TypeError, ValueError):  # of PyTorch's and NumPy's with many values
        raise no_number from None
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):  # as for NaN
        said = f"{name} must be a finite number and {span}"
        raise ValueError(f"{said}, not {shown(value)}")
    return number


def check_word(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the known words."""
    if not isinstance(value, str) or value not in known:
        words = " or ".join(f'"{word}"' for word in known)
        raise ValueError(f"{name} must be {words}, not {shown(value)}")


def is_truth(value: Any) -> bool:
    """Whether a value is True or False, Python's, NumPy's or PyTorch's."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def shown(value: Any) -> str:
    """A value as an error tells it: on one line, and not at length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
