"""Classifier-free guidance: from the unconditional prediction through the conditional
one and beyond (Ho and Salimans, 2207.12598).

In training some conditions are replaced by empty ones, so that one network learns both
predictions. It may predict the noise, the velocity or x0: each is an affine function of
any other, so guidance is the same for all three. Chapter 15 builds this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from minilib.arguments import check_number, check_whole, check_word, shown
from minilib.conditions import Conditions, join

MAX_STEPS = 1000
SAMPLERS = ("ddim", "dpm")
UNCONDITIONAL = ("gpt", "zeros")


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling. Weights come with their own; `changed` makes others.

    Raises:
        ValueError, TypeError: a field is not as described; the sentence names it.
    """

    steps: int = 25  # steps of the sampler, 1 to 1000; more are finer and slower
    guidance: float = 3.5  # strength w of guidance, 0 or more (2308.05734); 1: none
    # guide at noise levels above the first, up to the second (2404.07724)
    guidance_interval: tuple[int, int] = (0, MAX_STEPS)
    # deviation of the noise that sampling starts from, above 0 and at most 1: less
    # noise gives cleaner sounds that vary less (as in Grad-TTS, 2105.06337)
    temperature: float = 1.0
    sampler: str = "ddim"  # or "dpm" for DPM-Solver++, which needs fewer steps
    eta: float = 0.0  # share of new noise in each step of DDIM, 0 to 1
    # the LOA to guide away from: "gpt", GPT-2's for the negative caption, or "zeros"
    unconditional_loa: str = "gpt"

    def __post_init__(self) -> None:
        vars(self).update(  # plain numbers, even if NumPy's or PyTorch's were given
            steps=check_whole("steps", self.steps, 1, MAX_STEPS),
            guidance=check_number("guidance", self.guidance, 0.0),
            guidance_interval=check_interval(self.guidance_interval),
            temperature=check_number("temperature", self.temperature, 0.0, 1.0),
            eta=check_number("eta", self.eta, 0.0, 1.0),
        )
        if self.temperature == 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        check_word("sampler", self.sampler, SAMPLERS)
        check_word("unconditional_loa", self.unconditional_loa, UNCONDITIONAL)
        if self.sampler == "dpm" and self.eta:
            still = 'with the sampler "dpm", which adds no noise, eta must be 0'
            raise ValueError(f"{still}, not {self.eta}")

    def changed(self, **changes: Any) -> Sampling:
        """A copy with other values for some fields; None keeps a field's value."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                wanted = f"which has {', '.join(known)}"
                raise TypeError(f"{name} is not a field of sampling, {wanted}")
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)

    def guides(self, t: Tensor | int) -> bool:
        """Whether noise level t is guided."""
        low, high = self.guidance_interval
        # reading a level from a GPU takes time
        everywhere = (low, high) == (0, MAX_STEPS)
        return self.guidance != 1 and (everywhere or bool(low < t <= high))


def check_sampling(sampling: Any, own: Sampling) -> Sampling:
    """The sampling that is given, or the weights' own for None."""
    if not isinstance(sampling, Sampling | None):
        given = f"not {shown(sampling)}: name a field, as in steps=50"
        raise TypeError(f"sampling must be a Sampling or None, {given}")
    return own if sampling is None else sampling


def check_interval(interval: Any) -> tuple[int, int]:
    """The two ends as ints; an error unless they are noise levels, lower first."""
    name = "guidance_interval"
    try:
        low, high = (check_whole(name, level, 0, MAX_STEPS) for level in interval)
    except (TypeError, ValueError):
        low, high = 0, 0
    if low >= high:
        wanted = f"two noise levels from 0 to {MAX_STEPS}, the lower first"
        raise ValueError(f"{name} must be {wanted}, not {shown(interval)}")
    return low, high


def guide(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """The guided prediction: uncond + guidance (cond - uncond) (Ho and Salimans, Eq.
    6).

    `guidance` 0 ignores the condition, 1 gives the conditional prediction, and more
    goes beyond it. Ho and Salimans count from there: their w is `guidance - 1`.

    Args:
        uncond, cond: (B, ...) predictions without and with the condition.
    Returns:
        (B, ...).

    Chapter 15.
    """
    return uncond + guidance * (cond - uncond)


def guided(
    model: Callable[[Tensor, Tensor, Conditions], Tensor],
    conditional: Conditions,
    unconditional: Conditions | None,
    sampling: Sampling,
) -> Callable[[Tensor, Tensor], Tensor]:
    """A guided model: one call makes both predictions, and `guide` combines them.

    Outside the guidance interval only the conditional prediction is made, at half the
    cost: for pictures, guidance is hardly needed at low noise levels, and harmful at
    high ones (Kynkäänniemi et al., 2404.07724).

    Args:
        model: called as `model(xt, t, conditions)`.
        conditional, unconditional: for B items each; unconditional ones may be shorter,
            or None if `sampling.guidance` is 1.
        sampling: the strength of guidance, and the noise levels at which it works.
    Returns:
        a callable (xt (B, ...), t (B,)) -> the guided prediction (B, ...), in the
        model's own target; t holds one level B times, as the samplers give it.
    Raises:
        ValueError: `guidance` is not 1, but `unconditional` is None.

    Chapter 15.
    """
    if sampling.guidance == 1:
        return lambda xt, t: model(xt, t, conditional)
    if unconditional is None:
        needed = "unconditional must not be None unless guidance is 1"
        raise ValueError(f"{needed}; guidance is {sampling.guidance}")
    both = {name: join(unconditional[name], conditional[name]) for name in conditional}

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        if not sampling.guides(t[0]):
            return model(xt, t, conditional)
        twice = model(torch.cat([xt, xt]), torch.cat([t, t]), both)  # (2 B, ...)
        return guide(*twice.chunk(2), sampling.guidance)

    return predict
