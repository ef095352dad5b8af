"""The equations of diffusion against closed forms and Monte Carlo."""

import math

import pytest
import torch

from minilib.diffusion import (
    Schedule,
    at,
    ddim_sample,
    ddim_step,
    ddpm_sample,
    ddpm_step,
    eps_from_velocity,
    eps_loss,
    linear_schedule,
    posterior,
    predict_x0,
    q_sample,
    sqrt_linear_schedule,
    time_steps,
    velocity,
)


def exact(schedule):
    """The schedule in float64, so that what is compared are formulas and not roundings."""
    return Schedule(schedule.beta.double())


SCHEDULES = {"linear": exact(linear_schedule()), "sqrt_linear": exact(sqrt_linear_schedule())}
both_schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------------------------------------------------
# Schedules


@both_schedules
def test_a_schedule_goes_from_the_clean_signal_to_noise(schedule):
    assert schedule.T == 1000
    assert schedule.alpha_bar.shape == schedule.alpha.shape == schedule.beta.shape == (1001,)
    assert schedule.alpha_bar[0] == 1 and schedule.beta[0] == 0
    assert 0 < schedule.alpha_bar[-1] < 0.01
    assert (schedule.alpha_bar.diff() < 0).all() and (schedule.beta[1:].diff() > 0).all()


def test_schedules_have_the_published_ends():
    for schedule, beta_1, beta_T in (
        (exact(linear_schedule()), 1e-4, 0.02),
        (exact(sqrt_linear_schedule()), 0.0015, 0.0195),
    ):
        assert float(schedule.beta[1]) == pytest.approx(beta_1) and float(schedule.beta[-1]) == pytest.approx(
            beta_T
        )
    assert float(exact(linear_schedule(10)).beta[4]) == pytest.approx(1e-4 + (0.02 - 1e-4) / 3)
    middle = exact(sqrt_linear_schedule(11)).beta[6]
    assert float(middle) == pytest.approx(((0.0015**0.5 + 0.0195**0.5) / 2) ** 2)


def test_alpha_bar_is_the_product_of_alpha():
    schedule = Schedule(torch.tensor([0.0, 0.1, 0.2, 0.5], dtype=torch.float64))
    expected = torch.tensor([1.0, 0.9, 0.72, 0.36], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha_bar, expected)


def test_at_gives_each_item_its_own_value():
    values, x = torch.arange(5.0, dtype=torch.float64), torch.zeros(3, 2, 4)
    picked = at(values, torch.tensor([4, 0, 2]), x)
    assert (
        picked.shape == (3, 1, 1) and picked.dtype == torch.float32 and picked.flatten().tolist() == [4, 0, 2]
    )
    assert at(values, 3, x).shape == (1, 1, 1)


# ---------------------------------------------------------------------------------------------------------
# Forward process, posterior, loss


@both_schedules
@pytest.mark.parametrize("t", [1, 100, 1000])
def test_q_sample_has_the_mean_and_variance_of_eq_4(schedule, t):
    x0 = torch.full((200_000, 1), 2.0, dtype=torch.float64)
    xt = q_sample(schedule, x0, t, randn(200_000, 1))
    variance = 1 - schedule.alpha_bar[t]
    assert float(xt.mean()) == pytest.approx(
        float(2 * schedule.alpha_bar[t].sqrt()), abs=0.01 * float(variance.sqrt())
    )
    assert float(xt.var()) == pytest.approx(float(variance), rel=0.01)


def test_q_sample_is_t_single_steps():
    schedule, n = exact(linear_schedule(T=20, beta_T=0.3)), 400_000
    x = x0 = torch.full((n, 1), 1.5, dtype=torch.float64)
    for t in range(1, 21):
        x = schedule.alpha[t].sqrt() * x + schedule.beta[t].sqrt() * randn(n, 1, seed=t)  # Eq. 2
    at_once = q_sample(schedule, x0, 20, randn(n, 1))
    assert float(x.mean()) == pytest.approx(float(at_once.mean()), abs=0.01)
    assert float(x.std()) == pytest.approx(float(at_once.std()), rel=0.01)


def test_q_sample_at_level_0_is_x0_and_takes_a_level_for_each_item():
    x0, eps = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    torch.testing.assert_close(q_sample(exact(linear_schedule()), x0, 0, eps), x0)
    levels = torch.tensor([1, 500, 1000])
    together = q_sample(exact(linear_schedule()), x0, levels, eps)
    for i, t in enumerate(levels):
        torch.testing.assert_close(
            together[i : i + 1], q_sample(exact(linear_schedule()), x0[i : i + 1], int(t), eps[i : i + 1])
        )


def test_predict_x0_inverts_q_sample():
    schedule, x0, eps = exact(sqrt_linear_schedule()), randn(4, 3), randn(4, 3, seed=1)
    t = torch.tensor([1, 10, 500, 1000])
    torch.testing.assert_close(predict_x0(schedule, q_sample(schedule, x0, t, eps), t, eps), x0)


@both_schedules
@pytest.mark.parametrize("t", [2, 3, 100, 1000])
def test_posterior_is_bayes_rule_for_gaussians(schedule, t):
    """q(x_{t-1} | xt, x0) ~ q(xt | x_{t-1}) q(x_{t-1} | x0): precisions add, means weigh by precision."""
    x0, xt = randn(5, 2), randn(5, 2, seed=1)
    prior_mean, prior_variance = schedule.alpha_bar[t - 1].sqrt() * x0, 1 - schedule.alpha_bar[t - 1]
    gain, noise_variance = schedule.alpha[t].sqrt(), schedule.beta[t]  # xt = gain x_{t-1} + noise
    variance = 1 / (1 / prior_variance + gain**2 / noise_variance)
    mean = variance * (prior_mean / prior_variance + gain * xt / noise_variance)
    ours_mean, ours_variance = posterior(schedule, x0, xt, t)
    torch.testing.assert_close(ours_mean, mean)
    torch.testing.assert_close(ours_variance, variance.expand(1, 1))


def test_posterior_is_what_monte_carlo_finds():
    """Draw x_{t-1} and xt from the forward process, and look at the x_{t-1} whose xt fell near a value."""
    schedule, t, n = exact(linear_schedule(T=10, beta_1=0.05, beta_T=0.3)), 6, 2_000_000
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    before = q_sample(schedule, x0, t - 1, randn(n, 1))
    after = schedule.alpha[t].sqrt() * before + schedule.beta[t].sqrt() * randn(n, 1, seed=1)
    chosen = before[(after - 0.4).abs() < 0.02]
    mean, variance = posterior(schedule, torch.tensor([[0.7]]), torch.tensor([[0.4]]), t)
    assert len(chosen) > 10_000
    assert float(chosen.mean()) == pytest.approx(float(mean), abs=0.02)
    assert float(chosen.var()) == pytest.approx(float(variance), rel=0.03)


def test_posterior_of_the_first_step_is_x0_itself():
    x0, xt = randn(3, 2), randn(3, 2, seed=1)
    mean, variance = posterior(exact(linear_schedule()), x0, xt, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(mean, x0)
    assert variance.shape == (3, 1) and (variance == 0).all()


def test_posterior_in_float32_is_the_exact_one_within_its_rounding():
    """1 - alpha_bar is 1e-4 at t = 1, and float32 keeps four digits of it."""
    x0, xt, t = randn(1000, 2), randn(1000, 2, seed=1), torch.arange(1, 1001)
    mean, variance = posterior(linear_schedule(), x0.float(), xt.float(), t)
    exact_mean, exact_variance = posterior(exact(linear_schedule()), x0, xt, t)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(variance.double(), exact_variance, rtol=2e-3, atol=0)


def test_eps_loss_is_zero_for_the_true_noise_and_one_for_silence():
    x0, eps, t = randn(8, 3, 16), randn(8, 3, 16, seed=1), torch.arange(1, 9)
    assert float(eps_loss(lambda xt, t: eps, exact(linear_schedule()), x0, t, eps)) == 0
    silent = eps_loss(lambda xt, t: torch.zeros_like(xt), exact(linear_schedule()), x0, t, eps)
    torch.testing.assert_close(silent, eps.square().mean())


def test_eps_loss_shows_the_model_xt_and_t_and_weighs_items():
    x0, eps, t = randn(2, 3), randn(2, 3, seed=1), torch.tensor([5, 900])
    seen = []

    def model(xt, t):
        seen.append((xt, t))
        return torch.zeros_like(xt)

    loss = eps_loss(model, exact(linear_schedule()), x0, t, eps, weight=torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(seen[0][0], q_sample(exact(linear_schedule()), x0, t, eps))
    assert seen[0][1] is t
    torch.testing.assert_close(loss, eps[1].square().mean())


# ---------------------------------------------------------------------------------------------------------
# Samplers: for data that are Gaussian, the best possible prediction of the noise is known.


def gaussian_model(schedule, mean, std):
    """E[eps | xt] for x0 ~ N(mean, std^2): what a perfect network would say."""

    def model(xt, t):
        signal, noise = at(schedule.alpha_bar.sqrt(), t, xt), at((1 - schedule.alpha_bar).sqrt(), t, xt)
        return noise * (xt - signal * mean) / (signal**2 * std**2 + noise**2)

    return model


@both_schedules
def test_ddim_with_the_exact_noise_of_a_gaussian_recovers_the_gaussian(schedule):
    samples = ddim_sample(gaussian_model(schedule, 3.0, 0.5), schedule, randn(20_000, 1), 500, last=0)
    assert float(samples.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)


def test_ddim_without_noise_maps_quantiles_to_quantiles():
    schedule = exact(linear_schedule())
    xT = torch.tensor([[-2.0], [0.0], [1.0]], dtype=torch.float64)
    ends = ddim_sample(gaussian_model(schedule, 3.0, 0.5), schedule, xT, 1000, offset=0, last=0)
    torch.testing.assert_close(ends, 3.0 + 0.5 * xT, atol=0.03, rtol=0)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_new_noise_recovers_the_gaussian_too(eta):
    schedule = exact(linear_schedule())
    generator = torch.Generator().manual_seed(0)
    samples = ddim_sample(
        gaussian_model(schedule, 3.0, 0.5),
        schedule,
        randn(20_000, 1),
        200,
        eta,
        generator,
        "trailing",
        last=0,
    )
    assert float(samples.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.05)


def test_ddpm_with_the_exact_noise_of_a_gaussian_recovers_the_gaussian():
    schedule = exact(linear_schedule())
    generator = torch.Generator().manual_seed(0)
    samples = ddpm_sample(gaussian_model(schedule, 3.0, 0.5), schedule, randn(20_000, 1), generator)
    assert float(samples.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_ddpm_step_has_the_mean_of_eq_11(t):
    schedule, xt, eps = exact(linear_schedule()), randn(2, 3), randn(2, 3, seed=1)
    mean = (xt - schedule.beta[t] / (1 - schedule.alpha_bar[t]).sqrt() * eps) / schedule.alpha[t].sqrt()
    _, variance = posterior(schedule, xt, xt, t)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(2)).double()
    step = ddpm_step(schedule, xt, t, eps, torch.Generator().manual_seed(2))
    torch.testing.assert_close(step, mean + variance.sqrt() * noise)


@pytest.mark.parametrize("t", [2, 500, 1000])
def test_ddim_step_of_one_level_with_eta_1_is_the_ddpm_step(t):
    schedule, xt, eps = exact(linear_schedule()), randn(2, 3), randn(2, 3, seed=1)
    ddim = ddim_step(schedule, xt, t, t - 1, eps, 1.0, torch.Generator().manual_seed(2))
    torch.testing.assert_close(ddim, ddpm_step(schedule, xt, t, eps, torch.Generator().manual_seed(2)))


def test_ddim_step_keeps_a_true_trajectory():
    """With the true noise, a step from t lands where q_sample puts level s."""
    schedule, x0, eps = exact(sqrt_linear_schedule()), randn(2, 3), randn(2, 3, seed=1)
    for t, s in ((1000, 700), (700, 1), (1, 0)):
        step = ddim_step(schedule, q_sample(schedule, x0, t, eps), t, s, eps)
        torch.testing.assert_close(step, q_sample(schedule, x0, s, eps))


def test_time_steps_fall_through_the_levels():
    assert time_steps(1000, 4) == [752, 502, 252, 2]
    assert time_steps(1000, 4, offset=0) == [751, 501, 251, 1]
    assert time_steps(1000, 4, "trailing") == [1000, 750, 500, 250]
    assert time_steps(10, 10) == time_steps(10, 10, "trailing") == list(range(10, 0, -1))
    assert time_steps(1000, 1, "trailing") == [1000] and time_steps(1, 1) == [1]


def test_samplers_call_the_model_once_a_step_without_gradients_and_report_every_step():
    calls, reports = [], []

    def model(xt, t):
        assert t.shape == (2,) and t.dtype == torch.long and not torch.is_grad_enabled()
        calls.append(int(t[0]))
        return 0.1 * xt

    xT = randn(2, 3, dtype=torch.float32)
    ddim_sample(
        model, exact(linear_schedule()), xT, 5, callback=lambda i, t, x, eps: reports.append((i, t, x, eps))
    )
    assert calls == [t for _, t, _, _ in reports] == time_steps(1000, 5)
    assert [i for i, *_ in reports] == list(range(5)) and reports[0][2] is xT
    torch.testing.assert_close(reports[3][3], 0.1 * reports[3][2])
    calls.clear()
    ddpm_sample(model, exact(linear_schedule(T=10)), xT)
    assert calls == list(range(10, 0, -1))


def test_samplers_are_the_same_for_the_same_seed_and_touch_no_global_one():
    model, schedule, xT = (lambda xt, t: 0.1 * xt), exact(linear_schedule(T=50)), randn(2, 3)
    before = torch.get_rng_state()
    for sample in (
        lambda seed: ddpm_sample(model, schedule, xT, torch.Generator().manual_seed(seed)),
        lambda seed: ddim_sample(model, schedule, xT, 10, 1.0, torch.Generator().manual_seed(seed)),
    ):
        assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))
    assert torch.equal(before, torch.get_rng_state())


def test_ddim_shows_a_bar_only_when_asked(capsys):
    arguments = (lambda xt, t: xt, exact(linear_schedule(T=10)), randn(1, 1), 5)
    ddim_sample(*arguments)
    assert capsys.readouterr().err == ""
    ddim_sample(*arguments, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be from 1 to 1000, the number of noise levels; given 0"),
        ({"steps": 1001}, "steps must be from 1 to 1000"),
        ({"steps": 5, "eta": -0.1}, "eta must be from 0 to 1; given -0.1"),
        ({"steps": 5, "eta": math.nan}, "eta must be from 0 to 1; given nan"),
        ({"steps": 5, "spacing": "even"}, "spacing must be 'leading' or 'trailing'; given 'even'"),
    ],
)
def test_ddim_names_what_it_cannot_do(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ddim_sample(lambda xt, t: xt, exact(linear_schedule()), randn(1, 1), **settings)


def test_ddim_in_float32_never_takes_the_root_of_a_negative():
    """From level 883 on to level 2, 1 - alpha_bar_s - sigma^2 rounds to -1e-11."""
    x = randn(1, 2).float()
    for schedule in (linear_schedule(), sqrt_linear_schedule()):
        for t in range(700, 1001, 10):
            for s in (0, 1, 2, 3):
                assert ddim_step(schedule, x, t, s, x, eta=1.0).isfinite().all()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_ddim_ends_well_for_any_number_of_steps(steps, spacing):
    for eta, last in ((0.0, 1), (1.0, 0)):
        end = ddim_sample(
            lambda xt, t: 0.1 * xt,
            linear_schedule(),
            randn(1, 2).float(),
            steps,
            eta,
            spacing=spacing,
            last=last,
        )
        assert end.isfinite().all()


def test_velocity_gives_back_the_noise_and_the_clean_signal():
    schedule = sqrt_linear_schedule()
    schedule = Schedule(schedule.beta.double())
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(6, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.tensor([1, 10, 300, 600, 990, 1000])
    xt, v = q_sample(schedule, x0, t, eps), velocity(schedule, x0, t, eps)
    assert torch.allclose(eps_from_velocity(schedule, xt, t, v), eps)
    assert torch.allclose(predict_x0(schedule, xt, t, eps_from_velocity(schedule, xt, t, v)), x0, atol=1e-9)
