"""Checks of arguments: captions, numbers, seeds and so on. A wrong one raises one
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
    """Captions, negative captions and transcriptions as lists of equal length, in which
    each caption appears once for each of its candidates. The candidates per caption are
    returned last. A wrong argument raises a sentence.
    """
    k = check_whole("candidates", candidates, 1, MAX_CANDIDATES)
    captions = check_captions(captions)
    negatives = one_each(
        "negative", "" if negative is None else negative, len(captions)
    )
    if transcription is None and speaks:
        raise ValueError("these weights speak: transcription must give the words")
    if transcription is not None and not speaks:
        raise ValueError("these weights do not speak: transcription must be None")
    words = None
    if speaks:
        words = one_each("transcription", transcription, len(captions))
        if not all(said.strip() for said in words):
            raise ValueError("a transcription is empty: write the words to speak")
    often = lambda given: [x for x in given for _ in range(k)]
    return often(captions), often(negatives), often(words) if words else None, k


def check_captions(captions: str | Sequence[str]) -> list[str]:
    """Captions as a list; raises a sentence if there is none or one is empty."""
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
    """One or more strings as a list of plain ones; anything else raises a sentence."""
    wanted = f"{name} must be a string or a list of strings, not {shown(given)}"
    if isinstance(given, Set | Mapping):  # a set has no order, a mapping has values
        raise TypeError(wanted)
    try:
        given = [given] if isinstance(given, str | bytes) else list(given)
    except TypeError:
        raise TypeError(wanted) from None
    for x in given:
        if not isinstance(x, str):
            raise TypeError(f"{name} must hold strings, not {type(x).__name__}")
        if not x.isascii() and any("\ud800" <= c <= "\udfff" for c in x):
            raise ValueError(f"{name} must be text in UTF-8, not {shown(x)}")
    return [str(x) for x in given]  # also NumPy's strings


def check_seconds(seconds: float) -> float:
    """The length as a float; an impossible one raises a sentence."""
    return check_number("seconds", seconds, 0.1, MAX_SECONDS)


def check_seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """The seeds of n sounds: a whole number and those that follow it, a list's own, or
    random ones for None.
    """
    last = MAX_SEED - n + 1  # the last sound's seed must be valid, too
    if seed is None:
        seed = random.randrange(last + 1)
    several = isinstance(seed, Sequence) or getattr(seed, "ndim", 0) > 0
    if several and not isinstance(seed, str | bytes):
        if len(seed) == n:
            return [check_whole("seed", x, 0, MAX_SEED) for x in seed]
        raise ValueError(
            f"seed must be one number or a list of {n}, not a list of {len(seed)}"
        )
    first = check_whole("seed", seed, 0, last)
    return [first + i for i in range(n)]


def seeded(seed: int | Sequence[int] | None, n: int) -> list[torch.Generator]:
    """The random generators of n sounds; `seed` as in `check_seeds`."""
    return [torch.Generator().manual_seed(x) for x in check_seeds(seed, n)]


def check_latents(given: Any, shape: tuple[int, ...]) -> Tensor:
    """The initial noise as a tensor; another shape, or numbers that are not finite,
    raise a sentence.
    """
    try:
        given = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        said = f"latents must be a tensor of shape {shape}, not {shown(given)}"
        raise TypeError(said) from None
    if given.shape != shape:
        raise ValueError(f"latents must have shape {shape}, not {tuple(given.shape)}")
    if given.is_complex() or not given.isfinite().all():
        raise ValueError("latents must hold finite real numbers")
    return given.float()


def check_path(name: str, given: Any) -> Path:
    """The path of a file or a folder; anything else raises a sentence."""
    wanted = f"{name} must be a path: a string or a pathlib.Path, not {shown(given)}"
    if not isinstance(given, str | os.PathLike):
        raise TypeError(wanted)
    if not os.fspath(given):
        raise ValueError(wanted)
    return Path(given)


def check_dtype(dtype: Any) -> None:
    """Raise TypeError unless the argument is a floating-point type of torch or None."""
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype is not None and not known:
        wanted = "dtype must be None or a floating-point type such as torch.float16"
        raise TypeError(f"{wanted}, not {shown(dtype)}")


def check_device(device: Any) -> torch.device:
    """A device that torch can use here; any other raises a sentence."""
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    # torch raises a different kind of error for each kind of device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        wanted = 'device must be None or one that torch can use here, such as "cpu"'
        raise ValueError(f"{wanted}, not {shown(device)}") from error


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int; an error unless it is a whole number from low to high."""
    span = f", {low} or more" if high is None else f" from {low} to {high}"
    wanted = f"{name} must be a whole number{span}, not {shown(value)}"
    try:
        number = operator.index(value)  # accepts NumPy's and PyTorch's integers
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
    except (TypeError, ValueError):  # tensors and arrays with several values
        raise no_number from None
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):  # catches NaN as well
        said = f"{name} must be a finite number and {span}"
        raise ValueError(f"{said}, not {shown(value)}")
    return number


def check_word(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the known words."""
    if not isinstance(value, str) or value not in known:
        words = " or ".join(f'"{word}"' for word in known)
        raise ValueError(f"{name} must be {words}, not {shown(value)}")


def is_truth(value: Any) -> bool:
    """Whether a value is a boolean of Python, NumPy or PyTorch."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line, shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
