"""Classifier-free guidance: away from the unconditional prediction, past the
conditional one (Ho and Salimans, 2207.12598).

In training some conditions are emptied, so that one network learns both predictions. A
prediction may be of the noise, of the velocity or of x0: each is a line in the others,
so that guidance is the same in all three. Chapter 15 builds this module.
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
    """How a pipeline samples. Weights bring their own, `changed` makes another.

    Raises:
        ValueError, TypeError: a field is not as described; the sentence names it.
    """

    steps: int = 25  # of the sampler, 1 to 1000; more are finer and slower
    guidance: float = 3.5  # strength w of guidance, 0 or more (2308.05734); 1: none
    # guide at noise levels above the first, up to the second (2404.07724)
    guidance_interval: tuple[int, int] = (0, MAX_STEPS)
    # deviation of the noise that sampling starts from, above 0 to 1: less gives sounds
    # that vary less and are cleaner (as in Grad-TTS, 2105.06337)
    temperature: float = 1.0
    sampler: str = "ddim"  # or "dpm" for DPM-Solver++, which needs fewer steps
    eta: float = 0.0  # share of new noise in each step of DDIM, 0 to 1
    # the LOA to be guided away from: GPT-2's for the negative caption, or "zeros"
    unconditional_loa: str = "gpt"

    def __post_init__(self) -> None:
        vars(self).update(  # plain numbers, whatever was given
            steps=check_whole("steps", self.steps, 1, MAX_STEPS),
            guidance=check_number("guidance", self.guidance, 0.0),
            guidance_interval=check_interval(self.guidance_interval),
            temperature=check_number("temperature", self.temperature, 0.0, 1.0),
            eta=check_number("eta", self.eta, 0.0, 1.0),
        )
        if self.temperature == 0:
            raise ValueError(f"temperature must lie above 0, not {self.temperature}")
        check_word("sampler", self.sampler, SAMPLERS)
        check_word("unconditional_loa", self.unconditional_loa, UNCONDITIONAL)
        if self.sampler == "dpm" and self.eta:
            still = 'eta must be 0 with the sampler "dpm", which adds no noise'
            raise ValueError(f"{still}, not {self.eta}")

    def changed(self, **changes: Any) -> Sampling:
        """This one with other values for some fields; None leaves a field as it is."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"{name} is unknown; sampling has {', '.join(known)}")
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(self, **given)

    def guides(self, t: Tensor | int) -> bool:
        """Whether there is guidance at a noise level."""
        low, high = self.guidance_interval
        # reading a level from a GPU takes time
        everywhere = (low, high) == (0, MAX_STEPS)
        return self.guidance != 1 and (everywhere or bool(low < t <= high))


def check_sampling(sampling: Any, own: Sampling) -> Sampling:
    """How to sample: what is given, or for None what the weights want."""
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

    `guidance` 0 forgets the condition, 1 is the conditional prediction, more goes past
    it. Ho and Salimans count from the conditional one: their w is `guidance - 1`.

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
    """The model, guided: both predictions in one call of it, and `guide` between them.

    Outside the interval of guidance the conditional prediction stands alone, and costs
    half: where little noise is left guidance exaggerates details, where all is noise it
    takes variety (Kynkäänniemi et al., 2404.07724).

    Args:
        model: called as `model(xt, t, conditions)`.
        conditional, unconditional: of B items each; unconditional ones may be shorter,
            or None where `sampling.guidance` is 1.
        sampling: how strong guidance is, and at which noise levels.
    Returns:
        a callable (xt (B, ...), t (B,)) -> the guided prediction (B, ...), of what the
        model predicts; t is one level, B times, as the samplers ask.
    Raises:
        ValueError: `guidance` is not 1, but `unconditional` is None.

    Chapter 15.
    """
    if sampling.guidance == 1:
        return lambda xt, t: model(xt, t, conditional)
    if unconditional is None:
        needed = "unconditional must hold conditions when guidance is not 1"
        raise ValueError(f"{needed}; given None and {sampling.guidance}")
    both = {name: join(unconditional[name], conditional[name]) for name in conditional}

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        if not sampling.guides(t[0]):
            return model(xt, t, conditional)
        twice = model(torch.cat([xt, xt]), torch.cat([t, t]), both)  # (2 B, ...)
        return guide(*twice.chunk(2), sampling.guidance)

    return predict
