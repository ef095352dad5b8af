"""Diffusion: noise schedules, the forward process, its posterior, the losses, and three
samplers.

Notation and equations are those of Ho et al. (DDPM, arXiv 2006.11239), for DDIM of Song
et al. (2010.02502), for DPM-Solver++ of Lu et al. (2211.01095). Noise levels count from
1 to T, and level 0 is the clean x0: `alpha_bar[0] == 1`. A model is any callable
`model(xt, t) -> eps_hat` with xt (B, ...) and t (B,), so nothing here knows of sound,
latents or conditions.

Chapters 03 (forward process), 04 (posterior), 05 (losses), 06 (samplers) and 17 (what
starts from something known) build this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

Model = Callable[[Tensor, Tensor], Tensor]  # (xt (B, ...), t (B,)) -> eps_hat (B, ...)

# --------------------------------------------------------------------------------------
# Schedules


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much noise each step of the forward process adds (Ho et al., section 2).

    All tensors are (T + 1,), indexed by the noise level t; index 0 is the clean x0.

    Chapter 03.
    """

    beta: Tensor  # variance of the noise that step t adds; beta[0] = 0

    @property
    def T(self) -> int:
        """The number of steps, and the highest noise level."""
        return len(self.beta) - 1

    @cached_property
    def alpha(self) -> Tensor:
        """Share of the variance that step t keeps: 1 - beta."""
        return 1 - self.beta

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Share of the variance of x0 left at level t: alpha[1] ... alpha[t]."""
        return self.alpha.cumprod(dim=0)

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of level t: the variance left of x0 over that of the
        noise; infinite at level 0.
        """
        return self.alpha_bar / (1 - self.alpha_bar)


def linear_schedule(
    T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02
) -> Schedule:
    """The schedule of Ho et al., section 4: beta grows linearly from step 1 to step T.

    Args:
        T: number of steps; beta_1, beta_T: variance of the noise of the first and the
            last step.

    Chapter 03.
    """
    beta = torch.linspace(beta_1, beta_T, T)
    return Schedule(torch.cat([torch.zeros(1), beta]))


def sqrt_linear_schedule(
    T: int = 1000, beta_1: float = 0.0015, beta_T: float = 0.0195
) -> Schedule:
    """The schedule of latent diffusion (Rombach et al., 2112.10752) and AudioLDM 2:
    sqrt(beta) grows linearly from step 1 to step T.

    Args:
        T: number of steps; beta_1, beta_T: variance of the noise of the first and the
            last step.

    Chapter 03.
    """
    beta = torch.linspace(beta_1**0.5, beta_T**0.5, T) ** 2
    return Schedule(torch.cat([torch.zeros(1), beta]))


def cosine_schedule(T: int = 1000, s: float = 0.008, most: float = 0.999) -> Schedule:
    """The schedule of Nichol and Dhariwal (2102.09672, Eq. 17): alpha_bar falls like a
    squared cosine.

    Args:
        T: number of steps; s: shift that keeps the first steps from being too small;
            most: the upper limit of beta.

    Chapter 03.
    """
    share = torch.arange(T + 1, dtype=torch.float64) / T  # of the way
    f = torch.cos((share + s) / (1 + s) * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp_max(most).float()
    return Schedule(torch.cat([torch.zeros(1), beta]))


# --------------------------------------------------------------------------------------
# The forward process and what follows from it


def at(values: Tensor, t: Tensor | int, x: Tensor) -> Tensor:
    """The values of a table at the noise levels t, shaped to multiply x.

    Args:
        values: (T + 1,) table; t: (B,) levels, or one for all; x: (B, ...).
    Returns:
        (B, 1, ...) or (1, 1, ...), as many axes as x, of its dtype and on its device.

    Chapter 03.
    """
    return values.to(x)[t].view(-1, *[1] * (x.ndim - 1))


def q_step(
    schedule: Schedule, x_before: Tensor, t: Tensor | int, eps: Tensor
) -> Tensor:
    """One step of the forward process, from level t - 1 to t: xt = sqrt(alpha) x_{t-1}
    + sqrt(beta) eps (Ho et al., Eq. 2).

    Args:
        schedule: the noise levels; x_before: (B, ...) at level t - 1; t: (B,) levels 1
            to T.
        eps: (B, ...) standard normal.
    Returns:
        xt, (B, ...).

    Chapter 03.
    """
    signal, noise = schedule.alpha.sqrt(), schedule.beta.sqrt()
    return at(signal, t, x_before) * x_before + at(noise, t, eps) * eps


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
    """Jump from x0 to noise level t in one step: xt = sqrt(alpha_bar) x0 + sqrt(1 -
    alpha_bar) eps (Ho et al., Eq. 4).

    Args:
        schedule: the noise levels; x0: (B, ...) clean; t: (B,) levels 0 to T; eps: (B,
            ...) standard normal.
    Returns:
        xt, (B, ...).

    Chapter 03.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return at(signal, t, x0) * x0 + at(noise, t, x0) * eps


def posterior(
    schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_{t-1} | xt, x0), the forward process turned round (Ho et
    al., Eqs. 6 and 7).

    Args:
        schedule: the noise levels; x0: (B, ...) clean; xt: (B, ...) noisy; t: (B,)
            levels 1 to T.
    Returns:
        mean (B, ...), a weighted sum of x0 and xt; variance (B, 1, ...), which depends
        on t only, and is 0 at t = 1.

    Chapter 04.
    """
    # at t: those of t and t - 1; entry 0, to which the end wraps round, is never read
    alpha_bar, alpha_bar_before = schedule.alpha_bar, schedule.alpha_bar.roll(1)
    # schedule.alpha, computed as diffusers does
    alpha = alpha_bar / alpha_bar_before
    share_of_x0 = alpha_bar_before.sqrt() * (1 - alpha) / (1 - alpha_bar)
    share_of_xt = alpha.sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar)
    beta_tilde = (1 - alpha) * (1 - alpha_bar_before) / (1 - alpha_bar)
    mean = at(share_of_x0, t, x0) * x0 + at(share_of_xt, t, xt) * xt
    return mean, at(beta_tilde, t, xt)


def gaussian_kl(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(a || b) of two Gaussians with independent
    dimensions, in nats.

    0.5 * sum(log(var_b / var_a) + (var_a + (mean_a - mean_b)^2) / var_b - 1), the sum
    over the dimensions.

    Args:
        mean_a, var_a, mean_b, var_b: (B, ...), or shapes that broadcast to it;
            variances above 0.
    Returns:
        (B,).

    Chapter 04.
    """
    terms = (var_b / var_a).log() + (var_a + (mean_a - mean_b) ** 2) / var_b - 1
    return 0.5 * terms.flatten(1).sum(dim=1)


def predict_x0(schedule: Schedule, xt: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
    """The x0 that xt comes from if its noise is eps: Eq. 4 of Ho et al. solved for x0
    (their Eq. 15).

    Args:
        schedule: the noise levels; xt: (B, ...) noisy; t: (B,) levels 1 to T; eps: (B,
            ...) its noise, or a guess.
    Returns:
        x0, (B, ...); a guess if eps is one.

    Chapter 05.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return (xt - at(noise, t, xt) * eps) / at(signal, t, xt)


def velocity(schedule: Schedule, x0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
    """The velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans and Ho,
    2202.00512, section 4).

    A network that predicts v predicts nearly the noise where there is little of it, and
    nearly -x0 where all is noise: there the noise alone says nothing about x0, and a
    small error in it would become a large one in x0.

    Args:
        schedule: the noise levels; x0: (B, ...) clean; t: (B,) levels 0 to T; eps: (B,
            ...) standard normal.
    Returns:
        v, (B, ...).

    Chapter 05.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return at(signal, t, eps) * eps - at(noise, t, x0) * x0


def eps_from_x0(schedule: Schedule, xt: Tensor, t: Tensor | int, x0: Tensor) -> Tensor:
    """The noise in xt if it comes from x0: Eq. 4 of Ho et al. solved for eps.

    Args:
        schedule: the noise levels; xt: (B, ...) noisy; t: (B,) levels 1 to T; x0: (B,
            ...), true or predicted.
    Returns:
        eps, (B, ...).

    Chapter 05.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return (xt - at(signal, t, xt) * x0) / at(noise, t, xt)


def eps_from_mean(
    schedule: Schedule, xt: Tensor, t: Tensor | int, mean: Tensor
) -> Tensor:
    """The noise in xt if `mean` is that of x_{t-1}: mean = (xt - beta / sqrt(1 -
    alpha_bar) eps) / sqrt(alpha) (Ho et al., Eq. 11).

    Args:
        schedule: the noise levels; xt: (B, ...) noisy; t: (B,) levels 1 to T; mean: (B,
            ...), true or predicted.
    Returns:
        eps, (B, ...).

    Chapter 05.
    """
    gain = (1 - schedule.alpha_bar).sqrt() / schedule.beta
    return at(gain, t, xt) * (xt - at(schedule.alpha.sqrt(), t, xt) * mean)


def eps_from_velocity(
    schedule: Schedule, xt: Tensor, t: Tensor | int, v: Tensor
) -> Tensor:
    """The noise that belongs to a velocity: eps = sqrt(alpha_bar) v + sqrt(1 -
    alpha_bar) xt (2202.00512, section 4).

    Args:
        schedule: the noise levels; xt: (B, ...) noisy; t: (B,) levels 1 to T; v: (B,
            ...), true or predicted.
    Returns:
        eps, (B, ...).

    Chapter 05.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return at(signal, t, v) * v + at(noise, t, xt) * xt


def weighted_mse(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of predictions (B, ...), each item times its weight (B,); no
    weight means 1.

    Chapter 05.
    """
    error = (prediction - target).square().flatten(1).mean(dim=1)  # (B,)
    return error.mean() if weight is None else (weight * error).mean()


def mean_loss(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted mean of x_{t-1} (Ho et al., Eq. 8).

    The four losses take the same arguments and differ in what `model` predicts: here
    the mean of the posterior.

    Args:
        model: predicts from (xt, t); schedule: the noise levels; x0: (B, ...) clean.
        t: (B,) levels 1 to T; eps: (B, ...) standard normal.
        weight: (B,) one for each item; None for 1.
    Returns:
        the loss, a scalar.

    Chapter 05.
    """
    xt = q_sample(schedule, x0, t, eps)
    return weighted_mse(model(xt, t), posterior(schedule, x0, xt, t)[0], weight)


def x0_loss(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted x0. Arguments as for `mean_loss`.

    Chapter 05.
    """
    return weighted_mse(model(q_sample(schedule, x0, t, eps), t), x0, weight)


def eps_loss(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise: L_simple (Ho et al., Eq. 14), or
    weighted (Eq. 12).

    Arguments as for `mean_loss`. Chapter 05.
    """
    return weighted_mse(model(q_sample(schedule, x0, t, eps), t), eps, weight)


def v_loss(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted velocity (2202.00512, section 4).

    As `mean_loss` otherwise. Chapter 05.
    """
    v = velocity(schedule, x0, t, eps)
    return weighted_mse(model(q_sample(schedule, x0, t, eps), t), v, weight)


def x0_error(schedule: Schedule, t: Tensor, target: str) -> Tensor:
    """Squared error of x0 that a squared error of 1 in the target amounts to at level
    t: the targets' common currency.

    Args:
        schedule: the noise levels; t: (B,) levels, 1 to T ("mean": 2 to T).
        target: "mean", "x0", "eps" or "v".
    Returns:
        (B,).
    Raises:
        ValueError: `target` is not one of the four.

    Chapter 05.
    """
    alpha_bar, before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    rates = {
        # 1 / (share of x0 in it)^2
        "mean": (1 - alpha_bar) ** 2 / (before * schedule.beta[t] ** 2),
        "x0": torch.ones_like(alpha_bar),
        "eps": (1 - alpha_bar) / alpha_bar,
        "v": 1 - alpha_bar,
    }
    if target not in rates:
        raise ValueError(f"target must be one of {', '.join(rates)}; given {target!r}")
    return rates[target]


def elbo_weight(schedule: Schedule, t: Tensor, target: str = "eps") -> Tensor:
    """Weight of the squared error, summed over the dimensions, in nats: it makes it the
    KL term of the ELBO at level t (Ho et al., Eq. 12).

    For "eps" it is beta^2 / (2 beta_tilde alpha (1 - alpha_bar)); for "x0" half of what
    the signal-to-noise ratio loses in step t (Kingma et al., 2107.00630, Eq. 13).

    Args:
        schedule: the noise levels; t: (B,) levels 2 to T: at 1 the posterior's variance
            is 0.
        target: "mean", "x0", "eps" or "v", see `x0_error`.
    Returns:
        (B,).

    Chapter 05.
    """
    return 0.5 * (schedule.snr[t - 1] - schedule.snr[t]) * x0_error(schedule, t, target)


def min_snr_weight(
    schedule: Schedule, t: Tensor, target: str = "eps", gamma: float = 5.0
) -> Tensor:
    """Min-SNR weighting (Hang et al., 2303.09556, section 3.4): the weight of the
    target that gives x0 the weight min(SNR, gamma).

    Args:
        schedule: the noise levels; t: (B,) levels 1 to T; gamma: no level weighs more
            than this.
        target: "mean", "x0", "eps" or "v", see `x0_error`.
    Returns:
        (B,).

    Chapter 05.
    """
    return schedule.snr[t].clamp_max(gamma) * x0_error(schedule, t, target)


# --------------------------------------------------------------------------------------
# Samplers. Each goes down a row of noise levels; a step from level t is one call of the
# model.


def levels(t: int, x: Tensor) -> Tensor:
    """The noise level t once for each item of x: (B,), as a model wants it.

    Chapter 06.
    """
    return torch.full((x.shape[0],), t, device=x.device)


def randn_like(
    x: Tensor, generator: torch.Generator | list[torch.Generator] | None
) -> Tensor:
    """Standard normal noise in the shape of x, drawn on the CPU: the same on every
    device. Each generator of a list draws for its share of the items, in order.

    Chapter 06.
    """
    generators = generator if isinstance(generator, list) else [generator]
    shape = len(x) // len(generators), *x.shape[1:]
    drawn = torch.cat([torch.randn(shape, generator=g) for g in generators])
    return drawn.view_as(x).to(x)


def ddpm_step(
    schedule: Schedule,
    xt: Tensor,
    t: int,
    eps: Tensor,
    generator: torch.Generator | None = None,
    variance: str = "beta_tilde",
) -> Tensor:
    """One step of ancestral sampling, from level t to t - 1 (Ho et al., Algorithm 2,
    lines 3 and 4).

    Predicts x0 and draws x_{t-1} around the mean of the posterior, given x0 and xt; at
    t = 1 it returns the mean.

    Args:
        schedule: the noise levels; xt: (B, ...); t: 1 to T; eps: (B, ...), the
            predicted noise.
        generator: for the noise, on the CPU.
        variance: "beta_tilde", the posterior's (Ho et al., Eq. 7), right if x0 is one
            point; or "beta", right if x0 is standard normal (their section 3.2).
    Returns:
        x_{t-1}, (B, ...).
    Raises:
        ValueError: `variance` is neither of the two.

    Chapter 06.
    """
    if variance not in ("beta_tilde", "beta"):
        raise ValueError(f"variance must be 'beta_tilde' or 'beta'; given {variance!r}")
    mean, beta_tilde = posterior(schedule, predict_x0(schedule, xt, t, eps), xt, t)
    if t == 1:
        return mean
    spread = beta_tilde if variance == "beta_tilde" else at(schedule.beta, t, xt)
    return mean + spread.sqrt() * randn_like(xt, generator)


@torch.no_grad()
def ddpm_sample(
    model: Model,
    schedule: Schedule,
    xT: Tensor,
    generator: torch.Generator | None = None,
    variance: str = "beta_tilde",
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Ancestral sampling through all T levels (Ho et al., Algorithm 2). For fewer
    steps: `ddim_sample`, eta 1.

    Args:
        model: predicts the noise; schedule: the noise levels; xT: (B, ...) standard
            normal.
        generator: for the noise of the steps, on the CPU; variance: of that noise, see
            `ddpm_step`.
        callback: called before each step with its number i, level t, xt and the
            predicted noise.
        progress: whether to show a bar.
    Returns:
        x0, (B, ...).

    Chapter 06.
    """
    x = xT
    for i, t in enumerate(tqdm(range(schedule.T, 0, -1), "DDPM", disable=not progress)):
        eps = model(x, levels(t, x))
        if callback is not None:
            callback(i, t, x, eps)
        x = ddpm_step(schedule, x, t, eps, generator, variance)
    return x


def time_steps(
    T: int, steps: int, spacing: str = "leading", offset: int = 1
) -> list[int]:
    """The noise levels that a sampler visits, evenly spaced, from high to low (Lin et
    al., 2305.08891, table 2).

    "leading" counts strides up from level 1 + offset and stops short of T, as the
    released models do; "trailing" counts down from T, where all is noise.

    Args:
        T: the highest level; steps: how many to visit, 1 to T.
        spacing: "leading" or "trailing"; offset: how many levels to lift "leading", as
            far as T allows.
    Returns:
        `steps` levels from 1 to T, falling.
    Raises:
        ValueError: `steps` or `spacing` is not allowed.

    Chapter 06.
    """
    if not 1 <= steps <= T:
        raise ValueError(
            f"steps must be from 1 to {T}, the number of noise levels; given {steps}"
        )
    if spacing == "leading":
        stride = T // steps
        lowest = min(1 + offset, T - (steps - 1) * stride)
        return [lowest + i * stride for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(T - i * T / steps) for i in range(steps)]
    raise ValueError(f"spacing must be 'leading' or 'trailing'; given {spacing!r}")


def ddim_step(
    schedule: Schedule,
    xt: Tensor,
    t: int,
    s: int,
    eps: Tensor,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step of DDIM, from level t to any lower level s (Song et al., Eqs. 12 and 16;
    their alpha is alpha_bar).

    Predicts x0 and noises it again to level s: partly with the same noise, partly with
    new noise of deviation sigma.

    Args:
        schedule: the noise levels; xt: (B, ...); t, s: levels, s <= t; eps: (B, ...),
            the predicted noise.
        eta: share of new noise; 0 for none (DDIM), 1 for as much as DDPM adds;
            generator: for the new noise, on the CPU.
    Returns:
        xs, (B, ...).

    Chapter 06.
    """
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    # Eq. 16 for eta 1
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    sigma = eta * variance.sqrt()
    x0 = predict_x0(schedule, xt, t, eps)
    # rounding may take it below 0
    same_noise = (1 - alpha_bar_s - sigma**2).clamp_min(0).sqrt()
    xs = alpha_bar_s.sqrt() * x0 + same_noise * eps  # Eq. 12
    return xs + sigma * randn_like(xt, generator) if eta > 0 else xs


@torch.no_grad()
def ddim_sample(
    model: Model,
    schedule: Schedule,
    xT: Tensor,
    steps: int,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    spacing: str = "leading",
    offset: int = 1,
    last: int = 1,
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Sampling by DDIM (Song et al., section 4) in any number of steps; without new
    noise unless eta > 0.

    Args:
        model: predicts the noise; schedule: the noise levels; xT: (B, ...) standard
            normal.
        steps, spacing, offset: which levels to visit, see `time_steps`.
        eta: share of new noise in each step, 0 to 1; generator: for it, on the CPU.
        last: the level to end at: 1, as the released models do, or 0, the clean end.
        callback: called before each step with its number i, level t, xt and the
            predicted noise.
        progress: whether to show a bar.
    Returns:
        x at level `last`, (B, ...).
    Raises:
        ValueError: `steps`, `eta` or `spacing` is not allowed.

    Chapter 06.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1; given {eta}")
    times = time_steps(schedule.T, steps, spacing, offset)
    pairs = zip(times, [*times[1:], last])
    x = xT
    for i, (t, s) in enumerate(tqdm(pairs, "DDIM", total=steps, disable=not progress)):
        eps = model(x, levels(t, x))
        if callback is not None:
            callback(i, t, x, eps)
        x = ddim_step(schedule, x, t, s, eps, eta, generator)
    return x


def dpm_solver_step(
    schedule: Schedule,
    xt: Tensor,
    t: int,
    s: int,
    x0: Tensor,
    before: tuple[int, Tensor] | None = None,
) -> Tensor:
    """One step of DPM-Solver++ (2M), from level t to any lower level s (Lu et al.,
    2211.01095, Algorithm 2).

    In lambda = log(signal / noise) the path to x0 is nearly straight, and x0 is
    followed along the line through its last two predictions. Without the one before, or
    to the clean end (lambda is infinite there), the step is of first order: DDIM's.

    Args:
        schedule: the noise levels; xt: (B, ...); t, s: levels, s < t; x0: (B, ...),
            predicted at level t.
        before: the level above t that the last step came from, and the x0 (B, ...)
            predicted there.
    Returns:
        xs, (B, ...).

    Chapter 06.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    lam = 0.5 * schedule.snr.log()
    h = lam[s] - lam[t]
    if before is not None and s > 0:
        level, x0_before = before
        x0 = x0 + 0.5 * h / (lam[t] - lam[level]) * (x0 - x0_before)
    return noise[s] / noise[t] * xt - signal[s] * torch.expm1(-h) * x0


@torch.no_grad()
def dpm_solver_sample(
    model: Model,
    schedule: Schedule,
    xT: Tensor,
    steps: int,
    spacing: str = "leading",
    offset: int = 1,
    last: int = 0,
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Sampling by DPM-Solver++ (2M), deterministic and of second order (Lu et al.,
    2211.01095, Algorithm 2).

    The authors report good samples in 15 to 20 guided steps (abstract); chapter 06
    measures the error where the truth is known. The first step is of first order. With
    fewer than 15 steps so is the last, which keeps it stable (as in the authors' code).

    Args:
        model: predicts the noise; schedule: the noise levels; xT: (B, ...) standard
            normal.
        steps, spacing, offset: which levels to visit, see `time_steps`; "leading" takes
            the levels of one step more, without the lowest.
        last: the level to end at: 0, the clean end, or 1, the lowest noise.
        callback: called before each step with its number i, level t, xt and the
            predicted noise.
        progress: whether to show a bar.
    Returns:
        x at level `last`, (B, ...).
    Raises:
        ValueError: `steps` or `spacing` is not allowed.

    Chapter 06.
    """
    leading = spacing == "leading" and 0 < steps < schedule.T
    times = time_steps(schedule.T, steps + leading, spacing, offset)[:steps]
    pairs = zip(times, [*times[1:], last])
    x, before = xT, None
    for i, (t, s) in enumerate(
        tqdm(pairs, "DPM-Solver++", total=steps, disable=not progress)
    ):
        eps = model(x, levels(t, x))
        if callback is not None:
            callback(i, t, x, eps)
        x0 = predict_x0(schedule, x, t, eps)
        straight = i == steps - 1 and steps < 15
        x = dpm_solver_step(schedule, x, t, s, x0, None if straight else before)
        before = (t, x0)
    return x


# --------------------------------------------------------------------------------------
# Samplers that start from something known


@torch.no_grad()
def sdedit(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    steps: int,
    strength: float,
    eps: Tensor,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: bool = False,
) -> Tensor:
    """Noise x0 to a level and remove the noise again, here by DDIM (SDEdit, Meng et
    al., 2108.01073).

    Args:
        model, schedule, steps, eta, generator, progress: as for `ddim_sample`.
        x0: (B, ...) clean; eps: (B, ...) standard normal.
        strength: share of the steps that are made, the last ones, 0 to 1.
    Returns:
        another x0, (B, ...); for strength 0 the same.
    Raises:
        ValueError: `steps` or `strength` is not allowed.

    Chapter 17.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1; given {strength}")
    times = time_steps(schedule.T, steps)[steps - round(strength * steps) :]
    x = q_sample(schedule, x0, times[0], eps) if times else x0
    pairs = zip(times, [*times[1:], 1])
    for t, s in tqdm(pairs, "SDEdit", total=len(times), disable=not progress):
        x = ddim_step(schedule, x, t, s, model(x, levels(t, x)), eta, generator)
    return x


@torch.no_grad()
def inpaint(
    model: Model,
    schedule: Schedule,
    xT: Tensor,
    steps: int,
    known: Tensor,
    mask: Tensor,
    resample: int = 1,
    eta: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: bool = False,
) -> Tensor:
    """Fill in what is not known (RePaint, Lugmayr et al., 2201.09865, Algorithm 1): at
    every level the known part is noised to that level, and only the rest comes from the
    model.

    Args:
        model, schedule, xT, steps, eta, generator, progress: as for `ddim_sample`; eta
            1 is RePaint's.
        known: (B, ...) clean; mask: True where it is known, a shape that broadcasts.
        resample: how often each step is made; before a repetition its result is noised
            back to the level that it came from, and the two parts grow together.
    Returns:
        x0, (B, ...), equal to `known` under the mask.
    Raises:
        ValueError: `steps` or `resample` is not allowed.

    Chapter 17.
    """
    if resample < 1:
        raise ValueError(f"resample must be 1 or more; given {resample}")
    times = time_steps(schedule.T, steps)
    rounds = [pair for pair in zip(times, [*times[1:], 0]) for _ in range(resample)]
    x, level = xT, times[0]
    for t, s in tqdm(rounds, "RePaint", disable=not progress):
        if level < t:  # a repetition: back to where the step came from
            share = schedule.alpha_bar[t] / schedule.alpha_bar[level]
            noise = randn_like(x, generator)
            x = share.sqrt() * x + (1 - share).sqrt() * noise
        x = ddim_step(schedule, x, t, s, model(x, levels(t, x)), eta, generator)
        noised = q_sample(schedule, known, s, randn_like(x, generator))
        x, level = torch.where(mask, noised, x), s
    return x
