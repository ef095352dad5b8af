"""Classifier-free guidance: away from the unconditional prediction, past the
conditional one.

Ho and Salimans (arXiv 2207.12598). Conditions are contexts `(sequence (B, S, D), mask
(B, S) or None)`; in training some are emptied, so that one network learns both
predictions. A prediction may be of the noise, of the velocity or of x0: each is a line
in the others, so that guidance is the same in all three. Chapter 15 builds this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# sequence (B, S, D); mask (B, S), true where it counts, None for everywhere
Context = tuple[Tensor, Tensor | None]


def guide(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """The guided prediction: uncond + guidance (cond - uncond) (Ho and Salimans, Eq.
    6).

    `guidance` 0 forgets the condition, 1 is the conditional prediction, more goes past
    it. Ho and Salimans count from the conditional prediction: their w is `guidance -
    1`.

    Args:
        uncond, cond: (B, ...) predictions without and with the condition.
    Returns:
        (B, ...).

    Chapter 15.
    """
    return uncond + guidance * (cond - uncond)


def rescale_guided(prediction: Tensor, cond: Tensor, rescale: float) -> Tensor:
    """Take a guided prediction back to the spread that the conditional one has (Lin et
    al., 2305.08891, Eqs. 15, 16).

    What goes past the conditional prediction also grows: a guided sound comes out too
    loud, its contrasts too strong. Only where the network predicts the velocity does
    this tell of x0 at the high noise levels; a predicted noise is of the same spread
    with guidance and without, and its rescaling does little.

    Args:
        prediction, cond: (B, ...) guided, conditional; rescale: the share of it that is
            rescaled, 0 to 1.
    Returns:
        (B, ...).

    Chapter 15.
    """
    # (B, 1, ...)
    spread = (cond.flatten(1).std(dim=1) / prediction.flatten(1).std(dim=1)).view(
        -1, *[1] * (cond.ndim - 1)
    )
    return (rescale * spread + 1 - rescale) * prediction


def join(first: Context, second: Context) -> Context:
    """Two contexts as one batch: the shorter one is padded with zeros, and its padding
    masked.

    Args:
        first, second: contexts (B1, S1, D) and (B2, S2, D), each with its mask or None.
    Returns:
        the context (B1 + B2, max(S1, S2), D); its mask is None where both were and
        nothing is padded.

    Chapter 15.
    """
    sequences = [first[0], second[0]]
    masks = [
        x.new_ones(x.shape[:2]) if mask is None else mask for x, mask in (first, second)
    ]
    S = max(x.shape[1] for x in sequences)
    if (
        first[1] is None
        and second[1] is None
        and all(x.shape[1] == S for x in sequences)
    ):
        return torch.cat(sequences), None
    return (
        # (B1 + B2, S, D)
        torch.cat([F.pad(x, (0, 0, 0, S - x.shape[1])) for x in sequences]),
        # (B1 + B2, S)
        torch.cat([F.pad(mask.bool(), (0, S - mask.shape[1])) for mask in masks]),
    )


def guided(
    model: Callable[..., Tensor],
    conditional: Sequence[Context],
    unconditional: Sequence[Context] | None,
    guidance: float,
    rescale: float = 0.0,
    interval: tuple[int, int] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The model, guided: both predictions in one call of it, and `guide` between them.

    Args:
        model: called as `model(xt, t, *contexts)`.
        conditional, unconditional: contexts of B items, in the model's order;
            unconditional ones may be shorter.
        guidance: the scale; at 1 the unconditional prediction is not made, and its
            contexts may be None.
        rescale: for `rescale_guided`; 0 leaves the guided prediction as it is.
        interval: guide at noise levels above the first number, up to the second; None
            for all. Outside, the conditional prediction stands alone, and costs half:
            where little noise is left guidance exaggerates details, where all is noise
            it takes variety (Kynkäänniemi et al., 2404.07724).
    Returns:
        a callable (xt (B, ...), t (B,)) -> the guided prediction (B, ...), of what the
        model predicts; t is one level, B times, as the samplers ask.
    Raises:
        ValueError: `guidance` is not 1, but `unconditional` is None.

    Chapter 15.
    """
    if guidance == 1:
        return lambda xt, t: model(xt, t, *conditional)
    if unconditional is None:
        raise ValueError(
            f"unconditional must hold contexts when guidance is not 1; given None and "
            f"{guidance}"
        )
    # (2 B, S, D) each
    both = [join(*pair) for pair in zip(unconditional, conditional, strict=True)]

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        if interval is not None and not interval[0] < t[0] <= interval[1]:
            return model(xt, t, *conditional)
        uncond, cond = model(torch.cat([xt, xt]), torch.cat([t, t]), *both).chunk(2)
        prediction = guide(uncond, cond, guidance)
        return rescale_guided(prediction, cond, rescale) if rescale else prediction

    return predict


def drop(
    contexts: Sequence[Context], empty: Sequence[Context], dropped: Tensor
) -> list[Context]:
    """Contexts for training, those of some items emptied: what the unconditional
    prediction learns from.

    All conditions of an item go together, as in AudioLDM 2's training (probability 0.1;
    2308.05734).

    Args:
        contexts: of B items; empty: of one item, what stands for no condition; dropped:
            (B,) bool.
    Returns:
        the contexts of B items, padded to the longer of both.

    Chapter 15.
    """
    B = len(dropped)
    # row B will be the empty one
    rows = torch.arange(B, device=dropped.device).masked_fill(dropped, B)
    # (B + 1, S, D) each
    joined = [join(*pair) for pair in zip(contexts, empty, strict=True)]
    return [
        (sequence[rows], None if mask is None else mask[rows])
        for sequence, mask in joined
    ]
