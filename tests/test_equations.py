"""Every identity that Part II of the book (chapters 03 to 06) derives, kept true in
minilib/diffusion.py.

All is computed in float64, so that what is compared are formulas and not roundings.
Most claims are about expectations of what is linear or quadratic in the noises, and
these need no random numbers: see `balanced_noise`.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from minilib import diffusion
from minilib.diffusion import (
    Schedule,
    cosine_schedule,
    ddim_sample,
    ddim_step,
    ddpm_sample,
    ddpm_step,
    dpm_solver_sample,
    dpm_solver_step,
    elbo_weight,
    eps_from_mean,
    eps_from_velocity,
    eps_from_x0,
    eps_loss,
    gaussian_kl,
    linear_schedule,
    mean_loss,
    min_snr_weight,
    posterior,
    predict_x0,
    q_sample,
    q_step,
    sqrt_linear_schedule,
    time_steps,
    v_loss,
    velocity,
    weighted_mse,
    x0_error,
    x0_loss,
)


def exact(schedule):
    return Schedule(schedule.beta.double())


SCHEDULES = {
    "linear": exact(linear_schedule()),
    "sqrt_linear": exact(sqrt_linear_schedule()),
    "cosine": exact(cosine_schedule()),
    "uneven": Schedule(
        torch.tensor(
            [0.0, 0.3, 0.1, 0.45, 0.2, 0.05, 0.4, 0.15, 0.25, 0.5, 0.35]
        ).double()
    ),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
UNEVEN = SCHEDULES["uneven"]
TARGETS = ("mean", "x0", "eps", "v")
every_target = pytest.mark.parametrize("target", TARGETS)


def randn(*shape, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def balanced_noise(n):
    """2n draws of n noises, (2n, n), of mean 0 and covariance 1 exactly.

    So the average over these draws of anything linear or quadratic in the noises is its
    expectation under the standard normal.
    """
    return n**0.5 * torch.cat([torch.eye(n), -torch.eye(n)]).double()


@pytest.fixture
def draw_from(monkeypatch):
    """Lets the samplers draw the columns of a tensor (B, n), one after the other, in
    place of random numbers.
    """

    def draw_from(noise):
        columns = iter(noise.T[:, :, None])
        monkeypatch.setattr(diffusion, "randn_like", lambda x, generator: next(columns))

    return draw_from


def mean_and_variance(x):
    return float(x.mean()), float(x.var(correction=0))


def log_normal(x, mean, variance):
    return Normal(torch.as_tensor(mean), torch.as_tensor(variance).sqrt()).log_prob(x)


def some_levels(schedule, lowest=1):
    """Six levels from `lowest` to T: the ends and the middle."""
    return sorted(
        {lowest, lowest + 1, lowest + 2, schedule.T // 2, schedule.T - 1, schedule.T}
    )


# --------------------------------------------------------------------------------------
# Chapter 03. Schedules, and the forward process


def test_a_schedule_follows_from_beta():
    schedule = Schedule(torch.tensor([0.0, 0.1, 0.2, 0.5], dtype=torch.float64))
    assert schedule.T == 3
    assert_close(
        schedule.alpha, torch.tensor([1.0, 0.9, 0.8, 0.5], dtype=torch.float64)
    )
    assert_close(
        schedule.alpha_bar, torch.tensor([1.0, 0.9, 0.72, 0.36], dtype=torch.float64)
    )
    expected = torch.tensor(
        [math.inf, 0.9 / 0.1, 0.72 / 0.28, 0.36 / 0.64], dtype=torch.float64
    )
    assert_close(schedule.snr, expected)


@pytest.mark.parametrize(
    ("T", "settings", "beta_1", "beta_T"),
    [(1000, {}, 1e-4, 0.02), (7, {"beta_1": 0.1, "beta_T": 0.4}, 0.1, 0.4)],
)
def test_linear_schedule_draws_a_line_through_beta(T, settings, beta_1, beta_T):
    schedule, t = exact(linear_schedule(T, **settings)), torch.arange(1, T + 1).double()
    assert schedule.T == T and schedule.beta[0] == 0
    assert_close(
        schedule.beta[1:],
        beta_1 + (beta_T - beta_1) * (t - 1) / (T - 1),
        rtol=1e-5,
        atol=0,
    )
    assert linear_schedule().T == 1000


@pytest.mark.parametrize(
    ("T", "settings", "beta_1", "beta_T"),
    [(1000, {}, 0.0015, 0.0195), (7, {"beta_1": 0.1, "beta_T": 0.4}, 0.1, 0.4)],
)
def test_sqrt_linear_schedule_draws_a_line_through_the_root_of_beta(
    T, settings, beta_1, beta_T
):
    schedule, t = (
        exact(sqrt_linear_schedule(T, **settings)),
        torch.arange(1, T + 1).double(),
    )
    assert schedule.T == T and schedule.beta[0] == 0
    line = beta_1**0.5 + (beta_T**0.5 - beta_1**0.5) * (t - 1) / (T - 1)
    assert_close(schedule.beta[1:], line**2, rtol=1e-5, atol=0)
    assert sqrt_linear_schedule().T == 1000


@pytest.mark.parametrize(
    ("T", "settings", "s"), [(1000, {}, 0.008), (20, {"s": 0.2}, 0.2)]
)
def test_cosine_schedule_lets_alpha_bar_fall_like_a_squared_cosine(T, settings, s):
    """Nichol and Dhariwal, Eq. 17, and beta clipped at 0.999: where f is 0, at T."""
    schedule, t = exact(cosine_schedule(T, **settings)), torch.arange(T + 1).double()
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2
    assert schedule.T == T and schedule.beta[0] == 0
    assert_close(schedule.alpha_bar[:-1], (f / f[0])[:-1], rtol=1e-4, atol=0)
    assert float(schedule.beta[-1]) == pytest.approx(0.999)
    assert cosine_schedule().T == 1000


def test_cosine_schedule_adds_no_more_noise_in_a_step_than_asked():
    free, clipped = (
        exact(cosine_schedule(20)).beta,
        exact(cosine_schedule(20, most=0.3)).beta,
    )
    assert 0.2 < float((free > 0.3).double().mean()) < 0.8  # both cases occur
    assert_close(
        clipped, free.minimum(torch.tensor(0.3, dtype=torch.float64)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("T", [1000, 50])
def test_the_lectures_schedule_is_a_linear_one(T):
    """alpha_t = 1 - 0.02 t / T."""
    t = torch.arange(T + 1).double()
    assert_close(
        exact(linear_schedule(T, 0.02 / T, 0.02)).alpha,
        1 - 0.02 * t / T,
        rtol=1e-7,
        atol=0,
    )


@every_schedule
def test_q_step_is_eq_2_and_keeps_variance_1(schedule):
    x, eps, t = randn(6, 2), randn(6, 2, seed=1), torch.tensor(some_levels(schedule))
    beta = schedule.beta[t][:, None]
    assert_close(q_step(schedule, x, t, eps), (1 - beta).sqrt() * x + beta.sqrt() * eps)
    noise = balanced_noise(2)
    for level in t.tolist():
        after = q_step(schedule, noise[:, :1], level, noise[:, 1:])
        assert mean_and_variance(after) == pytest.approx((0, 1))


@every_schedule
def test_q_sample_is_eq_4(schedule):
    x0, eps, t = randn(6, 2), randn(6, 2, seed=1), torch.tensor(some_levels(schedule))
    kept = torch.stack([(1 - schedule.beta[1 : level + 1]).prod() for level in t])[
        :, None
    ]
    assert_close(
        q_sample(schedule, x0, t, eps), kept.sqrt() * x0 + (1 - kept).sqrt() * eps
    )
    assert_close(q_sample(schedule, x0, 0, eps), x0)


@pytest.mark.parametrize(
    "schedule",
    [exact(linear_schedule(60, beta_T=0.2)), exact(cosine_schedule(60)), UNEVEN],
)
def test_q_sample_is_t_single_steps(schedule):
    """The mean and the variance of x0 sent through the steps one by one are those of
    one jump, at every level.
    """
    noise = balanced_noise(schedule.T)
    at_once = balanced_noise(1)
    x = torch.full((2 * schedule.T, 1), 1.7, dtype=torch.float64)
    for t in range(1, schedule.T + 1):
        x = q_step(schedule, x, t, noise[:, t - 1 : t])
        jump = q_sample(
            schedule, torch.full((2, 1), 1.7, dtype=torch.float64), t, at_once
        )
        assert mean_and_variance(x) == pytest.approx(mean_and_variance(jump), rel=1e-9)


def test_single_steps_and_one_jump_give_the_same_distribution():
    """Monte Carlo, and the whole distribution: as many lie below any value."""
    schedule, n = exact(linear_schedule(20, beta_T=0.3)), 50_000
    x = x0 = torch.cat(
        [torch.full((n // 2, 1), 1.5), torch.full((n // 2, 1), -0.5)]
    ).double()
    for t in range(1, 11):
        x = q_step(schedule, x, t, randn(n, 1, seed=t))
    at_once = q_sample(schedule, x0, 10, randn(n, 1))
    grid = torch.linspace(-3, 3, 61).double()
    below, below_at_once, below_before = (
        (values < grid).double().mean(dim=0) for values in (x, at_once, x0)
    )
    assert float((below - below_at_once).abs().max()) < 0.01
    # which x0 itself would not pass
    assert float((below - below_before).abs().max()) > 0.1


@every_schedule
def test_snr_is_the_variance_of_the_signal_over_that_of_the_noise(schedule):
    one, none = torch.ones(6, 1).double(), torch.zeros(6, 1).double()
    t = torch.tensor(some_levels(schedule))
    signal, noise = q_sample(schedule, one, t, none), q_sample(schedule, none, t, one)
    assert_close(schedule.snr[t], (signal / noise).square().flatten())
    assert (schedule.snr.diff() < 0).all() and schedule.snr[0] == math.inf


# --------------------------------------------------------------------------------------
# Chapter 04. The posterior, the divergence of Gaussians, the two forms of the ELBO


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_sum_of_beta_bounds_what_is_left_of_x0_on_both_sides(schedule):
    """exp(-2 sum) <= alpha_bar_T <= exp(-sum), the left side where no beta is above a
    half.
    """
    total, left = float(schedule.beta.sum()), float(schedule.alpha_bar[-1])
    assert left <= math.exp(-total)
    low = Schedule(schedule.beta.clamp_max(0.5))
    assert math.exp(-2 * float(low.beta.sum())) <= float(low.alpha_bar[-1])


@pytest.mark.parametrize("T", [1, 10, 1000])
def test_betas_of_a_finite_sum_leave_half_of_the_variance(T):
    """With beta_t = 1 / (t + 1)^2 the product telescopes to (T + 2) / (2 T + 2)."""
    t = torch.arange(1, T + 1, dtype=torch.float64)
    left = Schedule(torch.cat([torch.zeros(1).double(), 1 / (t + 1) ** 2])).alpha_bar
    assert_close(left[1:], (t + 2) / (2 * (t + 1)))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_variance_exploding_is_the_same_process_in_other_units(schedule):
    """x_t = sqrt(alpha_bar) (x_0 + sigma_t eps), and SNR_t = 1 / sigma_t^2."""
    sigma = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()
    x0, eps = randn(schedule.T + 1, 3), randn(schedule.T + 1, 3, seed=1)
    t = torch.arange(schedule.T + 1)
    exploding = x0 + sigma[:, None] * eps
    assert_close(
        schedule.alpha_bar.sqrt()[:, None] * exploding, q_sample(schedule, x0, t, eps)
    )
    assert_close(schedule.snr[1:], 1 / sigma[1:] ** 2)


@every_schedule
def test_posterior_is_bayes_rule_for_gaussians(schedule):
    """q(x_{t-1} | xt, x0) ~ q(xt | x_{t-1}) q(x_{t-1} | x0): precisions add, means
    weigh by precision.
    """
    x0, xt, t = (
        randn(6, 2),
        randn(6, 2, seed=1),
        torch.tensor(some_levels(schedule, lowest=2)),
    )
    kept, gain = schedule.alpha_bar[t - 1][:, None], schedule.alpha[t][:, None].sqrt()
    precision = 1 / (1 - kept) + gain**2 / schedule.beta[t][:, None]
    mean = (
        kept.sqrt() * x0 / (1 - kept) + gain * xt / schedule.beta[t][:, None]
    ) / precision
    ours_mean, ours_variance = posterior(schedule, x0, xt, t)
    assert_close(ours_mean, mean)
    assert_close(ours_variance, 1 / precision)


@every_schedule
def test_posterior_times_evidence_is_likelihood_times_prior(schedule):
    """Bayes' rule itself, in logarithms: any x_{t-1} between x0 and xt gives the same
    q(xt | x0).
    """
    x0, before, xt = (
        0.6,
        torch.linspace(-1, 1, 5).double()[:, None],
        torch.full((5, 1), -0.4).double(),
    )
    for t in some_levels(schedule, lowest=2):
        mean, variance = posterior(schedule, torch.full_like(xt, x0), xt, t)
        kept, kept_before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        joint = log_normal(xt, schedule.alpha[t].sqrt() * before, schedule.beta[t])
        joint = joint + log_normal(before, kept_before.sqrt() * x0, 1 - kept_before)
        other_way = log_normal(before, mean, variance) + log_normal(
            xt, kept.sqrt() * x0, 1 - kept
        )
        assert_close(other_way, joint, rtol=1e-6, atol=1e-6)


@every_schedule
def test_posterior_is_the_best_linear_guess_and_its_variance_that_of_what_is_left(
    schedule,
):
    """x_{t-1} less the posterior's mean has mean 0 and the posterior's variance, and xt
    says nothing of it.
    """
    noise, x0 = balanced_noise(2), torch.full((4, 1), 0.7, dtype=torch.float64)
    for t in some_levels(schedule, lowest=2):
        before = q_sample(schedule, x0, t - 1, noise[:, :1])
        xt = q_step(schedule, before, t, noise[:, 1:])
        mean, variance = posterior(schedule, x0, xt, t)
        left = before - mean
        assert mean_and_variance(left) == pytest.approx(
            (0, float(variance)), rel=1e-6, abs=1e-12
        )
        assert float((left * xt).mean()) == pytest.approx(0, abs=1e-12)


def test_posterior_is_what_monte_carlo_finds():
    """Draw x_{t-1} and xt from the forward process, and look at the x_{t-1} whose xt
    fell near a value.
    """
    schedule, t, n = exact(linear_schedule(T=10, beta_1=0.05, beta_T=0.3)), 6, 400_000
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    before = q_sample(schedule, x0, t - 1, randn(n, 1))
    after = q_step(schedule, before, t, randn(n, 1, seed=1))
    chosen = before[(after - 0.4).abs() < 0.03]
    mean, variance = posterior(
        schedule, torch.tensor([[0.7]]), torch.tensor([[0.4]]), t
    )
    assert len(chosen) > 5_000
    assert float(chosen.mean()) == pytest.approx(float(mean), abs=0.03)
    assert float(chosen.var()) == pytest.approx(float(variance), rel=0.06)


@every_schedule
def test_the_variance_of_the_posterior_depends_on_the_schedule_alone(schedule):
    t = torch.tensor(some_levels(schedule))
    _, variance = posterior(schedule, randn(6, 2, 3), randn(6, 2, 3, seed=1), t)
    _, other = posterior(
        schedule, 100 * randn(6, 2, 3, seed=2), randn(6, 2, 3, seed=3) - 7, t
    )
    assert variance.shape == (6, 1, 1) and torch.equal(variance, other)
    # Eq. 7
    beta_tilde = (
        (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]
    )
    assert_close(variance.flatten(), beta_tilde)
    assert (variance.flatten() < schedule.beta[t]).all()


def test_posterior_of_the_first_step_is_x0_itself():
    x0, xt = randn(3, 2), randn(3, 2, seed=1)
    for schedule in SCHEDULES.values():
        mean, variance = posterior(schedule, x0, xt, torch.tensor([1, 1, 1]))
        assert_close(mean, x0)
        assert variance.shape == (3, 1) and (variance == 0).all()


def test_gaussian_kl_is_that_of_torch_summed_over_the_dimensions():
    mean_a, mean_b = randn(5, 2, 3), randn(5, 2, 3, seed=1)
    std_a, std_b = randn(5, 2, 3, seed=2).exp(), randn(5, 2, 3, seed=3).exp()
    expected = kl_divergence(Normal(mean_a, std_a), Normal(mean_b, std_b)).sum(
        dim=(1, 2)
    )
    assert_close(gaussian_kl(mean_a, std_a**2, mean_b, std_b**2), expected)
    assert_close(
        gaussian_kl(mean_a, std_a**2, mean_a, std_a**2), torch.zeros(5).double()
    )
    shared = std_b[:, :1, :1]  # one variance for an item, as `posterior` returns it
    expected = kl_divergence(Normal(mean_a, std_a), Normal(mean_b, shared)).sum(
        dim=(1, 2)
    )
    assert_close(gaussian_kl(mean_a, std_a**2, mean_b, shared**2), expected)
    same_variances = gaussian_kl(mean_a, shared**2, mean_b, shared**2)
    assert_close(
        same_variances,
        (mean_a - mean_b).square().sum(dim=(1, 2)) / (2 * shared.flatten() ** 2),
    )


def test_gaussian_kl_is_the_mean_of_the_log_ratio():
    """Monte Carlo: draw from a, and average log a - log b."""
    mean_a, var_a, mean_b, var_b = (
        torch.tensor([[value]]).double() for value in (0.3, 0.5, -0.4, 1.4)
    )
    x = mean_a + var_a.sqrt() * randn(100_000, 1)
    ratio = log_normal(x, mean_a, var_a) - log_normal(x, mean_b, var_b)
    assert float(ratio.mean()) == pytest.approx(
        float(gaussian_kl(mean_a, var_a, mean_b, var_b)), rel=0.01
    )
    backwards = float(gaussian_kl(mean_b, var_b, mean_a, var_a))
    assert abs(backwards / float(ratio.mean()) - 1) > 0.5  # the direction matters here


def reverse_of_gaussian(schedule, mean, variance):
    """The exact reverse process of data N(mean, variance): x_{t-1} | xt ~ N(gain xt +
    shift, spread), (T + 1,) each.
    """
    means = schedule.alpha_bar.sqrt() * mean
    variances = schedule.alpha_bar * variance + 1 - schedule.alpha_bar
    gain, shift, spread = torch.zeros(3, schedule.T + 1, dtype=torch.float64)
    gain[1:] = schedule.alpha[1:].sqrt() * variances[:-1] / variances[1:]
    shift[1:] = means[:-1] - gain[1:] * means[1:]
    spread[1:] = variances[:-1] * schedule.beta[1:] / variances[1:]
    return gain, shift, spread, (means[-1], variances[-1])  # the last: of x_T


def likelihood_of_chain(gain, shift, spread, end):
    """Mean and variance of the x0 that a chain of linear Gaussian steps makes."""
    mean, variance = end
    for t in range(len(gain) - 1, 0, -1):
        mean, variance = gain[t] * mean + shift[t], gain[t] ** 2 * variance + spread[t]
    return mean, variance


def elbo_of_neighbours(schedule, x0, gain, shift, spread, end):
    """First form: E[log p(x0 | x1) + sum over t of log p(xt | x_{t+1}) - log q(xt |
    x_{t-1}) ... + log p(xT)].
    """
    noise = balanced_noise(schedule.T)
    x = [torch.full((2 * schedule.T, 1), x0, dtype=torch.float64)]
    for t in range(1, schedule.T + 1):
        x.append(q_step(schedule, x[-1], t, noise[:, t - 1 : t]))
    bound = log_normal(x[0], gain[1] * x[1] + shift[1], spread[1])
    for t in range(1, schedule.T):
        bound = bound + log_normal(
            x[t], gain[t + 1] * x[t + 1] + shift[t + 1], spread[t + 1]
        )
        bound = bound - log_normal(
            x[t], schedule.alpha[t].sqrt() * x[t - 1], schedule.beta[t]
        )
    T = schedule.T
    last = log_normal(x[T], *end) - log_normal(
        x[T], schedule.alpha[T].sqrt() * x[T - 1], schedule.beta[T]
    )
    return (bound + last).mean()


def elbo_of_posteriors(schedule, x0, gain, shift, spread, end):
    """Second form: E[log p(x0 | x1)] - KL(q(xT | x0) || p(xT)) - sum over t of
    E[KL(posterior || p(x_{t-1} | xt))].
    """
    noise, x0 = balanced_noise(1), torch.full((2, 1), x0, dtype=torch.float64)
    x1 = q_sample(schedule, x0, 1, noise)
    bound = log_normal(x0, gain[1] * x1 + shift[1], spread[1]).mean()
    for t in range(2, schedule.T + 1):
        xt = q_sample(schedule, x0, t, noise)
        mean, variance = posterior(schedule, x0, xt, t)
        bound = (
            bound
            - gaussian_kl(mean, variance, gain[t] * xt + shift[t], spread[t]).mean()
        )
    kept = schedule.alpha_bar[schedule.T]
    return bound - gaussian_kl(kept.sqrt() * x0, 1 - kept, *end).mean()


@pytest.mark.parametrize("schedule", [exact(linear_schedule(30, beta_T=0.2)), UNEVEN])
@pytest.mark.parametrize("x0", [-1.0, 0.2, 2.5])
def test_both_elbos_of_the_exact_reverse_process_are_the_log_likelihood(schedule, x0):
    chain = reverse_of_gaussian(schedule, 0.5, 0.3)
    likelihood = log_normal(torch.tensor(x0).double(), 0.5, torch.tensor(0.3).double())
    assert likelihood_of_chain(*chain) == pytest.approx((0.5, 0.3))
    assert_close(elbo_of_posteriors(schedule, x0, *chain), likelihood)
    assert_close(elbo_of_neighbours(schedule, x0, *chain), likelihood)


@pytest.mark.parametrize("schedule", [exact(linear_schedule(30, beta_T=0.2)), UNEVEN])
@pytest.mark.parametrize("x0", [-1.0, 0.2, 2.5])
def test_both_elbos_of_any_reverse_process_are_equal_and_below_the_log_likelihood(
    schedule, x0
):
    gain, shift, spread, _ = reverse_of_gaussian(schedule, 0.5, 0.3)
    t = torch.arange(schedule.T + 1).double()
    end = torch.tensor([0.0, 1.0]).double()  # x_T is standard normal, as in Ho et al.
    chain = 0.95 * gain, shift + 0.1 * t.cos(), (1.3 + 0.2 * t.sin()) * spread, end
    elbo = elbo_of_posteriors(schedule, x0, *chain)
    assert_close(elbo_of_neighbours(schedule, x0, *chain), elbo)
    assert (
        float(
            log_normal(torch.tensor(x0).double(), *likelihood_of_chain(*chain)) - elbo
        )
        > 0.01
    )


# --------------------------------------------------------------------------------------
# Chapter 05. Four targets and their losses


def as_x0(schedule, target, xt, t, prediction):
    """The x0 that a prediction of `target` means."""
    if target == "x0":
        return prediction
    to_eps = {
        "mean": eps_from_mean,
        "v": eps_from_velocity,
        "eps": lambda schedule, xt, t, eps: eps,
    }[target]
    return predict_x0(schedule, xt, t, to_eps(schedule, xt, t, prediction))


def from_x0(schedule, target, xt, t, x0):
    """What a network that predicts `target` has to say to mean x0."""
    eps = eps_from_x0(schedule, xt, t, x0)
    mean = posterior(schedule, x0, xt, t)[0]
    return {"mean": mean, "x0": x0, "eps": eps, "v": velocity(schedule, x0, t, eps)}[
        target
    ]


@every_schedule
@every_target
def test_each_target_gives_back_x0_and_eps(schedule, target):
    x0, eps, t = (
        randn(6, 2, 3),
        randn(6, 2, 3, seed=1),
        torch.tensor(some_levels(schedule)),
    )
    xt = q_sample(schedule, x0, t, eps)
    assert_close(eps_from_x0(schedule, xt, t, x0), eps)
    truth = from_x0(schedule, target, xt, t, x0)
    assert_close(as_x0(schedule, target, xt, t, truth), x0, rtol=1e-6, atol=1e-6)
    i = 2  # one level for all items does as well
    level, xt = int(t[i]), q_sample(schedule, x0, int(t[i]), eps)
    truth = from_x0(schedule, target, xt, level, x0)
    assert_close(as_x0(schedule, target, xt, level, truth), x0)
    assert_close(
        truth[i : i + 1],
        from_x0(schedule, target, xt[i : i + 1], t[i : i + 1], x0[i : i + 1]),
    )


@every_schedule
def test_the_mean_of_the_posterior_in_terms_of_the_noise_is_eq_11(schedule):
    x0, eps, t = randn(6, 2), randn(6, 2, seed=1), torch.tensor(some_levels(schedule))
    xt = q_sample(schedule, x0, t, eps)
    alpha, alpha_bar = schedule.alpha[t][:, None], schedule.alpha_bar[t][:, None]
    mean = (xt - (1 - alpha) / (1 - alpha_bar).sqrt() * eps) / alpha.sqrt()
    assert_close(posterior(schedule, x0, xt, t)[0], mean)
    assert_close(eps_from_mean(schedule, xt, t, mean), eps, rtol=1e-6, atol=1e-6)


@every_schedule
def test_velocity_is_xt_a_quarter_turn_further(schedule):
    """With signal = cos(angle) and noise = sin(angle), xt turns in the plane of x0 and
    eps, and v is its derivative.
    """
    x0, eps, t = randn(6, 2), randn(6, 2, seed=1), torch.tensor(some_levels(schedule))
    angle = schedule.alpha_bar[t].sqrt().arccos()[:, None]
    xt, v = q_sample(schedule, x0, t, eps), velocity(schedule, x0, t, eps)
    assert_close(
        v, (angle + math.pi / 2).cos() * x0 + (angle + math.pi / 2).sin() * eps
    )
    assert_close(
        eps_from_velocity(schedule, xt, t, v), angle.sin() * xt + angle.cos() * v
    )
    assert_close(as_x0(schedule, "v", xt, t, v), angle.cos() * xt - angle.sin() * v)
    assert_close(velocity(schedule, x0, 0, eps), eps)


def test_weighted_mse_is_the_mean_over_items_of_the_weighted_mean_over_dimensions():
    prediction, target = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    errors = [float(((prediction[i] - target[i]) ** 2).sum()) / 8 for i in range(3)]
    assert float(weighted_mse(prediction, target)) == pytest.approx(sum(errors) / 3)
    weighted = (0.5 * errors[0] + 2 * errors[1] + 3 * errors[2]) / 3
    weight = torch.tensor([0.5, 2.0, 3.0]).double()
    assert float(weighted_mse(prediction, target, weight)) == pytest.approx(weighted)


@every_schedule
@every_target
def test_the_weighted_losses_are_all_the_kl_of_the_posteriors(schedule, target):
    """Of the posterior under the true x0 from that under the predicted one: a term of
    the ELBO.
    """
    losses = {"mean": mean_loss, "x0": x0_loss, "eps": eps_loss, "v": v_loss}

    def guess(xt, t):  # of x0, wrong but definite
        return torch.tanh(xt) + 0.1 * t.view(-1, 1, 1).double().cos()

    def model(xt, t):
        return from_x0(schedule, target, xt, t, guess(xt, t))

    for level in some_levels(schedule, lowest=2):
        x0, eps, t = randn(4, 2, 3), randn(4, 2, 3, seed=1), torch.full((4,), level)
        xt = q_sample(schedule, x0, t, eps)
        mean, variance = posterior(schedule, x0, xt, t)
        kl = gaussian_kl(
            mean, variance, posterior(schedule, guess(xt, t), xt, t)[0], variance
        )
        # 6 dimensions, over which the loss takes the mean
        weight = 6 * elbo_weight(schedule, t, target)
        assert_close(
            losses[target](model, schedule, x0, t, eps, weight),
            kl.mean(),
            rtol=1e-6,
            atol=0,
        )
        item = torch.tensor([0.0, 0.0, 4.0, 0.0]).double()
        assert_close(
            losses[target](model, schedule, x0, t, eps, item * weight),
            kl[2],
            rtol=1e-6,
            atol=0,
        )
        plain = losses[target](model, schedule, x0, t, eps) * weight[0]
        assert_close(plain, kl.mean(), rtol=1e-6, atol=0)


@every_schedule
@every_target
def test_x0_error_is_what_an_error_in_the_target_is_for_x0(schedule, target):
    x0, eps, t = (
        randn(6, 2),
        randn(6, 2, seed=1),
        torch.tensor(some_levels(schedule, lowest=2)),
    )
    xt = q_sample(schedule, x0, t, eps)
    truth = from_x0(schedule, target, xt, t, x0)
    error = as_x0(schedule, target, xt, t, truth + 1.0) - as_x0(
        schedule, target, xt, t, truth
    )
    assert_close(
        error.square(),
        x0_error(schedule, t, target)[:, None].expand(6, 2),
        rtol=1e-5,
        atol=0,
    )


@every_schedule
def test_elbo_weight_is_eq_12_for_eps_and_half_the_snr_lost_for_x0(schedule):
    t = torch.arange(2, schedule.T + 1)
    alpha, alpha_bar, before = (
        schedule.alpha[t],
        schedule.alpha_bar[t],
        schedule.alpha_bar[t - 1],
    )
    beta = 1 - alpha
    beta_tilde = (1 - before) / (1 - alpha_bar) * beta
    expected = beta**2 / (2 * beta_tilde * alpha * (1 - alpha_bar))
    assert_close(elbo_weight(schedule, t), expected)
    assert_close(elbo_weight(schedule, t, "eps"), expected)
    assert_close(elbo_weight(schedule, t, "mean"), 1 / (2 * beta_tilde))
    assert_close(
        elbo_weight(schedule, t, "x0"),
        0.5 * (before / (1 - before) - alpha_bar / (1 - alpha_bar)),
    )


@every_schedule
@pytest.mark.parametrize("gamma", [5.0, 0.7])
def test_min_snr_weight_is_as_published_for_x0_eps_and_v(schedule, gamma):
    """Hang et al.: min(SNR, gamma) for x0, the same over SNR for eps, over SNR + 1 for
    v.
    """
    t = torch.arange(1, schedule.T + 1)
    snr = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    least = torch.where(snr < gamma, snr, gamma)
    settings = {} if gamma == 5 else {"gamma": gamma}  # 5 is the default
    assert_close(min_snr_weight(schedule, t, "x0", **settings), least)
    assert_close(min_snr_weight(schedule, t, "eps", **settings), least / snr)
    assert_close(min_snr_weight(schedule, t, **settings), least / snr)
    assert_close(min_snr_weight(schedule, t, "v", **settings), least / (snr + 1))


# --------------------------------------------------------------------------------------
# Chapter 06. Samplers. If the data are Gaussian, or one point, the best possible
# prediction of the noise is known.


def gaussian_model(schedule, mean, variance):
    """E[eps | xt] for x0 ~ N(mean, variance): what a perfect network would say."""

    def model(xt, t):
        kept = schedule.alpha_bar[t][:, None]
        return (
            (1 - kept).sqrt() * (xt - kept.sqrt() * mean) / (kept * variance + 1 - kept)
        )

    return model


def marginal(schedule, t, mean, variance):
    """Mean and variance of level t if x0 ~ N(mean, variance)."""
    kept = float(schedule.alpha_bar[t])
    return pytest.approx(
        (kept**0.5 * mean, kept * variance + 1 - kept), rel=1e-6, abs=1e-9
    )


def record(path):
    """A callback that keeps (t, x) of every step."""
    return lambda i, t, x, eps: path.append((t, x))


def test_randn_like_draws_from_the_generator_in_the_shape_of_x():
    drawn = diffusion.randn_like(
        torch.zeros(3, 2).double(), torch.Generator().manual_seed(5)
    )
    assert torch.equal(
        drawn, torch.randn(3, 2, generator=torch.Generator().manual_seed(5)).double()
    )


@every_schedule
@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ddpm_step_has_the_mean_of_eq_11_and_the_variance_asked_for(schedule, variance):
    xt, eps = randn(2, 3), randn(2, 3, seed=1)
    for t in some_levels(schedule):
        mean = (
            xt - schedule.beta[t] / (1 - schedule.alpha_bar[t]).sqrt() * eps
        ) / schedule.alpha[t].sqrt()
        spread = schedule.beta[t]
        if variance == "beta_tilde":
            spread = (
                spread * (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t])
            )
        noise = (
            torch.randn(2, 3, generator=torch.Generator().manual_seed(2)).double()
            if t > 1
            else 0
        )
        step = ddpm_step(
            schedule, xt, t, eps, torch.Generator().manual_seed(2), variance
        )
        assert_close(step, mean + spread.sqrt() * noise, rtol=1e-6, atol=1e-6)
        if variance == "beta_tilde":
            assert torch.equal(
                step, ddpm_step(schedule, xt, t, eps, torch.Generator().manual_seed(2))
            )


def test_ddpm_with_beta_tilde_is_right_at_every_level_if_x0_is_one_point(draw_from):
    schedule, noise, path = UNEVEN, balanced_noise(UNEVEN.T), []
    draw_from(noise[:, 1:])
    xT = q_sample(
        schedule,
        torch.full((2 * schedule.T, 1), 0.7).double(),
        schedule.T,
        noise[:, :1],
    )
    end = ddpm_sample(
        gaussian_model(schedule, 0.7, 0.0), schedule, xT, callback=record(path)
    )
    assert [t for t, _ in path] == list(range(schedule.T, 0, -1))
    for t, x in [*path, (0, end)]:
        assert mean_and_variance(x) == marginal(schedule, t, 0.7, 0.0)


def test_ddpm_with_beta_is_right_at_every_level_if_x0_is_standard_normal(draw_from):
    schedule, noise, path = UNEVEN, balanced_noise(UNEVEN.T), []
    draw_from(noise[:, 1:])
    model = gaussian_model(schedule, 0.0, 1.0)
    end = ddpm_sample(
        model, schedule, noise[:, :1], variance="beta", callback=record(path)
    )
    for t, x in path:
        assert mean_and_variance(x) == marginal(schedule, t, 0.0, 1.0)
    # no noise in the last step
    assert mean_and_variance(end) == pytest.approx((0, float(schedule.alpha[1])))


@every_schedule
def test_ddim_step_of_one_level_with_eta_1_is_the_ddpm_step(schedule):
    xt, eps = randn(2, 3), randn(2, 3, seed=1)
    for t in some_levels(schedule, lowest=2):
        ddim = ddim_step(
            schedule, xt, t, t - 1, eps, 1.0, torch.Generator().manual_seed(2)
        )
        ddpm = ddpm_step(schedule, xt, t, eps, torch.Generator().manual_seed(2))
        assert_close(ddim, ddpm, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    ("t", "s"), [(6, 5), (6, 2), (5, 1), (3, 2), (2, 1), (4, 0), (1, 0), (3, 3)]
)
def test_ddim_step_adds_eta_times_the_deviation_of_the_posterior(draw_from, t, s, eta):
    """q(xs | xt, x0) by Bayes' rule, precisions of xs from x0 and of xt from xs; that
    is Eq. 16 for eta 1.
    """
    kept_t, kept_s = float(UNEVEN.alpha_bar[t]), float(UNEVEN.alpha_bar[s])
    kept = kept_t / kept_s  # from s to t
    variance = 1 / (1 / (1 - kept_s) + kept / (1 - kept)) if 0 < s < t else 0.0
    draw_from(torch.tensor([[1.0], [1.0]]).double())
    xt = torch.tensor([[0.3], [0.3]]).double()
    with_noise = ddim_step(UNEVEN, xt, t, s, torch.zeros(2, 1).double(), eta)
    # x0 is xt / root of kept_t
    assert_close(with_noise, (kept_s / kept_t) ** 0.5 * xt + eta * variance**0.5)


def test_ddim_step_without_eta_draws_no_noise(draw_from):
    draw_from(torch.zeros(1, 0))
    x = randn(1, 2)
    assert ddim_step(UNEVEN, x, 4, 2, x).isfinite().all()
    with pytest.raises(StopIteration):
        ddim_step(UNEVEN, x, 4, 2, x, eta=0.1)


@every_schedule
def test_ddim_step_keeps_a_true_trajectory(schedule):
    """With the true noise, a step from t lands where q_sample puts level s."""
    x0, eps, T = randn(2, 3), randn(2, 3, seed=1), schedule.T
    for t, s in (
        (T, T // 2),
        (T // 2, 1),
        (T // 2, T // 3),
        (1, 0),
        (T, T - 1),
        (2, 2),
    ):
        step = ddim_step(schedule, q_sample(schedule, x0, t, eps), t, s, eps)
        assert_close(step, q_sample(schedule, x0, s, eps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "schedule", [exact(linear_schedule()), UNEVEN], ids=["linear", "uneven"]
)
def test_ddim_is_right_at_every_level_for_any_eta_if_x0_is_one_point(
    draw_from, schedule, eta
):
    """The marginals of q are kept, though not the joint: Song et al., lemma 1."""
    steps, path = min(10, schedule.T), []
    for spacing, last in (("leading", 1), ("trailing", 0)):
        noise = balanced_noise(steps + 1)
        draw_from(noise[:, 1:])
        x0 = torch.full((len(noise), 1), 0.7).double()
        xT = q_sample(
            schedule, x0, time_steps(schedule.T, steps, spacing)[0], noise[:, :1]
        )
        path.clear()
        model = gaussian_model(schedule, 0.7, 0.0)
        settings = {"spacing": spacing, "last": last, "callback": record(path)}
        end = ddim_sample(model, schedule, xT, steps, eta, **settings)
        assert [t for t, _ in path] == time_steps(schedule.T, steps, spacing)
        for t, x in [*path, (last, end)]:
            assert mean_and_variance(x) == marginal(schedule, t, 0.7, 0.0)


def test_ddim_in_float32_never_takes_the_root_of_a_negative():
    """From level 883 on to level 2, 1 - alpha_bar_s - sigma^2 rounds to -1e-11."""
    x = randn(1, 2).float()
    for schedule in (linear_schedule(), sqrt_linear_schedule()):
        for t in range(700, 1001, 10):
            for s in (0, 1, 2, 3):
                assert ddim_step(schedule, x, t, s, x, eta=1.0).isfinite().all()


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ddpm_sample_is_its_steps_one_after_the_other(variance):
    x, model, reports = randn(2, 3), gaussian_model(UNEVEN, 0.7, 0.1), []
    callback = lambda *report: reports.append(report)
    end = ddpm_sample(
        model, UNEVEN, x, torch.Generator().manual_seed(3), variance, callback
    )
    generator = torch.Generator().manual_seed(3)
    for i, (t, report) in enumerate(zip(range(10, 0, -1), reports, strict=True)):
        eps = model(x, torch.tensor([t, t]))
        assert_close(report, (i, t, x, eps))
        x = ddpm_step(UNEVEN, x, t, eps, generator, variance)
    assert_close(end, x)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_sample_is_its_steps_one_after_the_other(eta):
    x, model, reports = randn(2, 3), gaussian_model(UNEVEN, 0.7, 0.1), []
    callback = lambda *report: reports.append(report)
    end = ddim_sample(
        model, UNEVEN, x, 3, eta, torch.Generator().manual_seed(3), callback=callback
    )
    generator = torch.Generator().manual_seed(3)
    # by default leading, offset 1, last 1
    for i, (t, s) in enumerate([(8, 5), (5, 2), (2, 1)]):
        eps = model(x, torch.tensor([t, t]))
        assert_close(reports[i], (i, t, x, eps))
        x = ddim_step(UNEVEN, x, t, s, eps, eta, generator)
    assert len(reports) == 3
    assert_close(end, x)


SAMPLERS = {
    "ddpm beta_tilde": lambda model, schedule, x: ddpm_sample(model, schedule, x),
    "ddpm beta": lambda model, schedule, x: ddpm_sample(
        model, schedule, x, variance="beta"
    ),
    "ddim": lambda model, schedule, x: ddim_sample(model, schedule, x, 300, last=0),
    "ddim eta 0.5": lambda model, schedule, x: ddim_sample(
        model, schedule, x, 300, 0.5, last=0
    ),
    "ddim eta 1": lambda model, schedule, x: ddim_sample(
        model, schedule, x, 300, 1.0, last=0
    ),
    "dpm solver": lambda model, schedule, x: dpm_solver_sample(model, schedule, x, 30),
}


@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler_with_the_exact_noise_of_a_gaussian_gives_the_gaussian(
    draw_from, sample
):
    schedule = exact(linear_schedule(300, beta_T=0.07))
    noise = balanced_noise(301)
    draw_from(noise[:, 1:])
    samples = sample(gaussian_model(schedule, 1.5, 0.25), schedule, noise[:, :1])
    assert samples.shape == (602, 1)
    assert mean_and_variance(samples) == pytest.approx((1.5, 0.25), rel=0.06)


def test_between_their_cases_the_two_variances_of_ddpm_are_too_small_and_too_large(
    draw_from,
):
    """Ho et al., section 3.2.

    What remains is the size of a step: with four times as many it is a fourth.
    """
    errors = {}
    for T in (100, 400):
        schedule, noise = (
            exact(linear_schedule(T, beta_1=0.1 / T, beta_T=20 / T)),
            balanced_noise(T + 1),
        )
        for variance in ("beta_tilde", "beta"):
            draw_from(noise[:, 1:])
            model = gaussian_model(schedule, 1.5, 0.25)
            samples = ddpm_sample(model, schedule, noise[:, :1], variance=variance)
            errors[variance, T] = mean_and_variance(samples)[1] - 0.25
    assert errors["beta_tilde", 400] < 0 < errors["beta", 400]
    for variance in ("beta_tilde", "beta"):
        assert errors[variance, 100] / errors[variance, 400] == pytest.approx(
            4, rel=0.2
        )


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 7, 10, 25, 30, 333, 999, 1000])
def test_time_steps_are_evenly_spaced(steps):
    stride = 1000 // steps
    for offset in (7, 0, 1):
        # From 1 + offset up, but all of them one lower where that would go beyond T.
        lift = min(offset, 999 - stride * (steps - 1))
        expected = [1 + lift + stride * i for i in range(steps)][::-1]
        assert time_steps(1000, steps, "leading", offset) == expected
    assert time_steps(1000, steps) == expected
    trailing = [1000 - 1000 * i / steps for i in range(steps)]
    ours = time_steps(1000, steps, "trailing")
    assert ours[0] == 1000 and all(
        abs(t - even) <= 0.5 for t, even in zip(ours, trailing, strict=True)
    )


@every_schedule
def test_the_first_order_step_of_dpm_solver_is_ddims(schedule):
    xt, eps, T = randn(2, 3), randn(2, 3, seed=1), schedule.T
    for t, s in (
        (T, T // 2),
        (T // 2, 1),
        (T // 2, T // 3),
        (1, 0),
        (T, 0),
        (T, T - 1),
        (2, 2),
    ):
        step = dpm_solver_step(schedule, xt, t, s, predict_x0(schedule, xt, t, eps))
        assert_close(step, ddim_step(schedule, xt, t, s, eps), rtol=1e-6, atol=1e-6)


@every_schedule
def test_the_second_order_step_of_dpm_solver_takes_x0_from_halfway_along_the_line(
    schedule,
):
    """The line in lambda = log(signal / noise) through the last two predictions of x0,
    halfway to level s.
    """
    xt, x0, x0_before, T = (
        randn(2, 3),
        randn(2, 3, seed=1),
        randn(2, 3, seed=2),
        schedule.T,
    )
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    lam = signal.log() - noise.log()
    for level, t, s in ((T, T // 2, 1), (T, T - 1, T // 3), (T - 1, 3, 2)):
        halfway = (lam[t] + lam[s]) / 2
        share = (halfway - lam[t]) / (lam[t] - lam[level])
        on_the_line = x0 + share * (x0 - x0_before)
        expected = dpm_solver_step(schedule, xt, t, s, on_the_line)
        assert_close(
            dpm_solver_step(schedule, xt, t, s, x0, (level, x0_before)), expected
        )
    # lambda is infinite at 0: first order
    clean = dpm_solver_step(schedule, xt, 2, 0, x0, (T, x0_before))
    assert_close(clean, x0)


def dpm_solver_reference(model, schedule, x, levels, straight_end):
    """Lu et al., Algorithm 2, written from the paper: all x along the levels, the last
    level included.
    """
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    lam = (signal / noise).log()
    path, x0_before = [x], None
    for i, (t, s) in enumerate(pairwise(levels)):
        x0 = (x - noise[t] * model(x, torch.full((len(x),), t))) / signal[t]
        guide = x0
        if i > 0 and s > 0 and not (straight_end and i == len(levels) - 2):
            r = (lam[t] - lam[levels[i - 1]]) / (lam[s] - lam[t])
            guide = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        x = (
            noise[s] / noise[t] * x
            - signal[s] * ((-(lam[s] - lam[t])).exp() - 1) * guide
        )
        path.append(x)
        x0_before = x0
    return path


@pytest.mark.parametrize("steps", [1, 2, 5, 14, 15, 20])
@pytest.mark.parametrize(
    "settings", [{}, {"offset": 0, "last": 1}, {"spacing": "trailing", "last": 1}]
)
def test_dpm_solver_sample_is_the_papers_algorithm(steps, settings):
    schedule, path = exact(linear_schedule(100, beta_T=0.2)), []
    if "spacing" in settings:
        levels = [round(100 - i * 100 / steps) for i in range(steps)]
    else:  # one more than asked for, and the lowest left out
        levels = [
            1 + settings.get("offset", 1) + i * (100 // (steps + 1))
            for i in range(steps, 0, -1)
        ]

    def model(xt, t):
        return torch.tanh(1.3 * xt + (t / 15).sin()[:, None])

    xT = randn(2, 3)
    callback = lambda *report: path.append(report)
    end = dpm_solver_sample(model, schedule, xT, steps, callback=callback, **settings)
    assert [(i, t) for i, t, _, _ in path] == list(enumerate(levels))
    for _, t, x, eps in path:
        assert_close(eps, model(x, torch.tensor([t, t])))
    levels.append(settings.get("last", 0))
    expected = dpm_solver_reference(
        model, schedule, xT, levels, straight_end=steps < 15
    )
    for ours, reference in zip(
        [x for _, _, x, _ in path] + [end], expected, strict=True
    ):
        assert_close(ours, reference)


def test_dpm_solver_in_as_many_steps_as_levels_visits_each():
    for spacing in ("leading", "trailing"):
        path = []
        dpm_solver_sample(
            lambda xt, t: xt,
            UNEVEN,
            randn(1, 1),
            UNEVEN.T,
            spacing,
            callback=record(path),
        )
        assert [t for t, _ in path] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]


def error_on_the_way_of_a_quantile(sample, T):
    """How far from its true end at level 1 a sampler takes one x from level T, in T
    steps even in lambda.

    The differential equation that DDIM and DPM-Solver++ follow keeps quantiles: for
    Gaussian data its solution is mean + z deviation at every level.
    """
    lam = torch.linspace(3, -3, T).double()
    alpha_bar = torch.cat([torch.ones(1), torch.sigmoid(2 * lam)])
    schedule = Schedule(torch.cat([torch.zeros(1), 1 - alpha_bar[1:] / alpha_bar[:-1]]))
    mean, variance, z = 0.8, 0.09, 1.3

    def solution(t):
        kept = schedule.alpha_bar[t]
        return kept.sqrt() * mean + z * (kept * variance + 1 - kept).sqrt()

    end = sample(
        gaussian_model(schedule, mean, variance),
        schedule,
        solution(T).view(1, 1),
        T,
        last=1,
    )
    return abs(float(end - solution(1)))


@pytest.mark.parametrize(
    ("sample", "order"), [(ddim_sample, 1), (dpm_solver_sample, 2)]
)
def test_twice_the_steps_make_the_error_of_ddim_half_and_of_dpm_solver_a_quarter(
    sample, order
):
    errors = [error_on_the_way_of_a_quantile(sample, T) for T in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
