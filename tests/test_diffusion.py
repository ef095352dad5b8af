"""How minilib/diffusion.py behaves: shapes, levels, arguments, callbacks, float32.

Its formulas: test_equations.py.
"""

import math

import pytest
import torch

from minilib.diffusion import (
    Schedule,
    at,
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
    inpaint,
    linear_schedule,
    mean_loss,
    min_snr_weight,
    posterior,
    predict_x0,
    q_sample,
    q_step,
    sdedit,
    sqrt_linear_schedule,
    time_steps,
    v_loss,
    velocity,
    x0_error,
    x0_loss,
)


def exact(schedule):
    """The schedule in float64, so that formulas are compared, and not roundings."""
    return Schedule(schedule.beta.double())


SCHEDULES = {
    "linear": exact(linear_schedule()),
    "sqrt_linear": exact(sqrt_linear_schedule()),
    "cosine": exact(cosine_schedule()),
}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


# --------------------------------------------------------------------------------------
# Schedules


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_goes_from_the_clean_signal_to_noise(schedule):
    assert schedule.T == 1000
    for table in (schedule.alpha_bar, schedule.alpha, schedule.beta, schedule.snr):
        assert table.shape == (1001,)
    assert schedule.alpha_bar[0] == 1 and schedule.beta[0] == 0
    assert 0 < schedule.alpha_bar[-1] < 0.01
    assert (schedule.alpha_bar.diff() < 0).all() and (
        schedule.beta[1:].diff() > 0
    ).all()


def test_schedules_are_in_float32_as_models_are():
    for schedule in (
        linear_schedule(10),
        sqrt_linear_schedule(10),
        cosine_schedule(10),
    ):
        assert (
            schedule.T == 10
            and schedule.beta.dtype == schedule.alpha_bar.dtype == torch.float32
        )


def test_at_gives_each_item_its_own_value():
    values, x = torch.arange(5.0, dtype=torch.float64), torch.zeros(3, 2, 4)
    picked = at(values, torch.tensor([4, 0, 2]), x)
    assert picked.shape == (3, 1, 1) and picked.dtype == torch.float32
    assert picked.flatten().tolist() == [4, 0, 2]
    assert at(values, 3, x).shape == (1, 1, 1)


# --------------------------------------------------------------------------------------
# Forward process, posterior, targets, losses

# all that take (schedule, a, t, b) or (schedule, a, b, t), with a and b of one shape
OF_A_LEVEL = {
    "q_step": q_step,
    "q_sample": q_sample,
    "predict_x0": predict_x0,
    "velocity": velocity,
    "eps_from_x0": eps_from_x0,
    "eps_from_mean": eps_from_mean,
    "eps_from_velocity": eps_from_velocity,
    "posterior": lambda schedule, x0, t, xt: posterior(schedule, x0, xt, t)[0],
}


@pytest.mark.parametrize("function", OF_A_LEVEL.values(), ids=OF_A_LEVEL)
def test_a_level_for_each_item_or_one_for_all(function):
    schedule, levels = exact(linear_schedule()), torch.tensor([1, 500, 1000])
    a, b = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    together = function(schedule, a, levels, b)
    assert together.shape == (3, 2, 4)
    for i, t in enumerate(levels):
        alone = function(schedule, a[i : i + 1], int(t), b[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    assert function(schedule, a.float(), levels, b.float()).dtype == torch.float32


def test_q_sample_at_level_0_is_x0():
    x0, eps = randn(3, 2, 4), randn(3, 2, 4, seed=1)
    torch.testing.assert_close(q_sample(exact(linear_schedule()), x0, 0, eps), x0)


def test_posterior_in_float32_is_the_exact_one_within_its_rounding():
    """1 - alpha_bar is 1e-4 at t = 1, and float32 keeps four digits of it."""
    x0, xt, t = randn(1000, 2), randn(1000, 2, seed=1), torch.arange(1, 1001)
    mean, variance = posterior(linear_schedule(), x0.float(), xt.float(), t)
    exact_mean, exact_variance = posterior(exact(linear_schedule()), x0, xt, t)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(variance.double(), exact_variance, rtol=2e-3, atol=0)


def test_gaussian_kl_is_one_number_an_item_and_knows_its_direction():
    zeros, ones, mean = (
        torch.zeros(4, 2, 3),
        torch.ones(4, 1, 1),
        randn(4, 2, 3).float(),
    )
    wide = gaussian_kl(mean, 9 * ones, zeros, ones)
    assert wide.shape == (4,) and (wide > 0).all()
    assert not torch.allclose(wide, gaussian_kl(zeros, ones, mean, 9 * ones))


LOSSES = {"mean": mean_loss, "x0": x0_loss, "eps": eps_loss, "v": v_loss}


def truth(target, schedule, x0, t, eps):
    """What the best model would predict."""
    mean = posterior(schedule, x0, q_sample(schedule, x0, t, eps), t)[0]
    return {"mean": mean, "x0": x0, "eps": eps, "v": velocity(schedule, x0, t, eps)}[
        target
    ]


@pytest.mark.parametrize("target", LOSSES)
def test_a_loss_is_zero_for_the_truth_and_the_square_of_the_truth_for_silence(target):
    schedule, x0, eps, t = (
        exact(linear_schedule()),
        randn(8, 3, 4),
        randn(8, 3, 4, seed=1),
        torch.arange(1, 9),
    )
    right = truth(target, schedule, x0, t, eps)
    assert float(LOSSES[target](lambda xt, t: right, schedule, x0, t, eps)) == 0
    silent = LOSSES[target](lambda xt, t: torch.zeros_like(xt), schedule, x0, t, eps)
    assert silent.shape == ()
    torch.testing.assert_close(silent, right.square().mean())


@pytest.mark.parametrize("target", LOSSES)
def test_a_loss_shows_the_model_xt_and_t_once_and_weighs_items(target):
    schedule, x0, eps, t = (
        exact(linear_schedule()),
        randn(2, 3),
        randn(2, 3, seed=1),
        torch.tensor([5, 900]),
    )
    seen = []

    def model(xt, t):
        seen.append((xt, t))
        return torch.zeros_like(xt)

    loss = LOSSES[target](model, schedule, x0, t, eps, weight=torch.tensor([0.0, 2.0]))
    ((xt, shown),) = seen
    torch.testing.assert_close(xt, q_sample(schedule, x0, t, eps))
    assert shown is t
    torch.testing.assert_close(
        loss, truth(target, schedule, x0, t, eps)[1].square().mean()
    )


@pytest.mark.parametrize("weight", [x0_error, elbo_weight, min_snr_weight])
def test_weights_are_one_for_each_item_and_name_a_target_that_is_none(weight):
    schedule, t = linear_schedule(), torch.tensor([2, 1000])
    for target in LOSSES:
        weights = weight(schedule, t, target)
        assert (
            weights.shape == (2,) and weights.isfinite().all() and (weights > 0).all()
        )
    with pytest.raises(
        ValueError, match="target must be one of mean, x0, eps, v; given 'noise'"
    ):
        weight(schedule, t, "noise")


def test_weights_that_a_loss_has_at_level_1_are_finite():
    for target in ("x0", "eps", "v"):
        assert (
            min_snr_weight(linear_schedule(), torch.tensor([1]), target)
            .isfinite()
            .all()
        )


# --------------------------------------------------------------------------------------
# Samplers

SAMPLERS = {  # of one signature, (model, schedule, xT, ...)
    "ddpm": ddpm_sample,
    "ddim": lambda *arguments, **settings: ddim_sample(*arguments, 5, **settings),
    "dpm solver": lambda *arguments, **settings: dpm_solver_sample(
        *arguments, 5, **settings
    ),
}
every_sampler = pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
in_few_steps = pytest.mark.parametrize("sample", [ddim_sample, dpm_solver_sample])


def test_time_steps_fall_through_the_levels():
    assert time_steps(1000, 4) == [752, 502, 252, 2]
    assert time_steps(1000, 4, offset=0) == [751, 501, 251, 1]
    assert time_steps(1000, 4, "trailing") == [1000, 750, 500, 250]
    assert (
        time_steps(10, 10) == time_steps(10, 10, "trailing") == list(range(10, 0, -1))
    )
    assert time_steps(1000, 1, "trailing") == [1000] and time_steps(1, 1) == [1]


@every_sampler
def test_samplers_call_the_model_once_a_step_without_gradients_and_report_every_step(
    sample,
):
    calls, reports = [], []

    def model(xt, t):
        assert t.shape == (2,) and t.dtype == torch.long and not torch.is_grad_enabled()
        assert len(reports) == len(calls)  # the last step has been reported
        calls.append(t.tolist())
        return 0.1 * xt

    xT = randn(2, 3, dtype=torch.float32)
    end = sample(
        model,
        exact(linear_schedule(T=10)),
        xT,
        callback=lambda *report: reports.append(report),
    )
    assert calls == [[t, t] for _, t, _, _ in reports]
    assert [i for i, *_ in reports] == list(range(len(calls)))
    assert reports[0][2] is xT and not torch.equal(reports[-1][2], end)
    torch.testing.assert_close(reports[3][3], 0.1 * reports[3][2])
    assert end.shape == (2, 3) and end.dtype == torch.float32


def test_samplers_visit_the_levels_that_they_say():
    calls = []

    def model(xt, t):
        calls.append(int(t[0]))
        return 0.1 * xt

    def visited(sample, *settings, **more):
        calls.clear()
        sample(model, exact(linear_schedule(T=100)), randn(1, 3), *settings, **more)
        return calls.copy()

    assert visited(ddpm_sample) == list(range(100, 0, -1))
    assert visited(ddim_sample, 4) == [77, 52, 27, 2] and visited(
        dpm_solver_sample, 4
    ) == [82, 62, 42, 22]
    assert visited(ddim_sample, 4, offset=0) == [76, 51, 26, 1]
    assert visited(dpm_solver_sample, 4, offset=0) == [81, 61, 41, 21]
    for sample in (ddim_sample, dpm_solver_sample):
        assert visited(sample, 4, spacing="trailing") == [100, 75, 50, 25]
        assert (
            visited(sample, 100)
            == visited(sample, 100, spacing="trailing")
            == list(range(100, 0, -1))
        )


@in_few_steps
def test_samplers_end_at_the_level_asked_for(sample):
    """With the exact noise of a single x0, level 0 is x0, and level 1 has what q_sample
    leaves of the noise there.
    """
    schedule, x0, eps = exact(linear_schedule()), randn(2, 3), randn(2, 3, seed=1)
    xT = q_sample(schedule, x0, 1000, eps)
    for last in (0, 1):
        arguments = (lambda xt, t: eps_from_x0(schedule, xt, t, x0), schedule, xT, 20)
        end = sample(*arguments, spacing="trailing", last=last)
        torch.testing.assert_close(end, q_sample(schedule, x0, last, eps))


@pytest.mark.parametrize(
    "sample",
    [
        lambda *arguments: ddpm_sample(*arguments),
        lambda *arguments: ddpm_sample(*arguments, "beta"),
        lambda model, schedule, xT, generator: ddim_sample(
            model, schedule, xT, 10, 1.0, generator
        ),
    ],
    ids=["ddpm", "ddpm beta", "ddim eta 1"],
)
def test_samplers_are_the_same_for_the_same_seed_and_touch_no_global_one(sample):
    before = torch.get_rng_state()

    def end(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample(
            lambda xt, t: 0.1 * xt, exact(linear_schedule(T=50)), randn(2, 3), generator
        )

    assert torch.equal(end(0), end(0)) and not torch.equal(end(0), end(1))
    assert torch.equal(before, torch.get_rng_state())


@in_few_steps
def test_deterministic_samplers_draw_nothing(sample):
    before, arguments = (
        torch.get_rng_state(),
        (lambda xt, t: 0.1 * xt, linear_schedule(), randn(2, 3).float(), 10),
    )
    assert torch.equal(sample(*arguments), sample(*arguments))
    assert torch.equal(before, torch.get_rng_state())


@every_sampler
def test_samplers_show_a_bar_only_when_asked(sample, capsys):
    arguments = (lambda xt, t: xt, exact(linear_schedule(T=5)), randn(1, 1))
    sample(*arguments)
    assert capsys.readouterr().err == ""
    sample(*arguments, progress=True)
    assert "5/5" in capsys.readouterr().err


@in_few_steps
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"steps": 0},
            "steps must be from 1 to 1000, the number of noise levels; given 0",
        ),
        (
            {"steps": 1001},
            "steps must be from 1 to 1000, the number of noise levels; given 1001",
        ),
        ({"steps": -1, "spacing": "trailing"}, "steps must be from 1 to 1000"),
        (
            {"steps": 5, "spacing": "even"},
            "spacing must be 'leading' or 'trailing'; given 'even'",
        ),
    ],
)
def test_samplers_name_the_steps_that_they_cannot_take(sample, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(lambda xt, t: xt, exact(linear_schedule()), randn(1, 1), **settings)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_ddim_names_an_eta_that_is_none(eta):
    with pytest.raises(ValueError, match=f"eta must be from 0 to 1; given {eta}"):
        ddim_sample(lambda xt, t: xt, exact(linear_schedule()), randn(1, 1), 5, eta)


@pytest.mark.parametrize("t", [1, 500])
def test_ddpm_names_a_variance_that_is_none(t):
    sentence = "variance must be 'beta_tilde' or 'beta'; given 'learned'"
    with pytest.raises(ValueError, match=sentence):
        ddpm_step(linear_schedule(), randn(1, 1), t, randn(1, 1), variance="learned")
    with pytest.raises(ValueError, match=sentence):
        ddpm_sample(
            lambda xt, t: xt, linear_schedule(10), randn(1, 1), variance="learned"
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_steps_keep_the_type_of_x_whatever_that_of_the_schedule(dtype):
    x = randn(2, 3).to(dtype)
    for schedule in (linear_schedule(), exact(linear_schedule())):
        assert ddpm_step(schedule, x, 500, x).dtype == dtype
        assert ddim_step(schedule, x, 500, 400, x, eta=1.0).dtype == dtype
        assert dpm_solver_step(schedule, x, 500, 400, x, (600, x)).dtype == dtype


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 199, 200])
def test_samplers_end_well_in_float32_for_any_number_of_steps(steps, spacing, last):
    """So too in as many steps as there are levels with last = 1, where the last step
    goes nowhere.
    """
    xT = randn(1, 2).float()
    for schedule in (linear_schedule(200), cosine_schedule(200)):
        arguments = (lambda xt, t: 0.1 * xt, schedule, xT, steps)
        for eta in (0.0, 1.0):
            assert (
                ddim_sample(*arguments, eta, spacing=spacing, last=last)
                .isfinite()
                .all()
            )
        assert (
            dpm_solver_sample(*arguments, spacing=spacing, last=last).isfinite().all()
        )


# --------------------------------------------------------------------------------------
# Samplers that start from something known


def pair_model(schedule, rho):
    """The exact noise of pairs (B, 2), standard normal with correlation rho."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]]).double()

    def model(xt, t):
        kept = schedule.alpha_bar[t[0]]
        noisy = kept * covariance + (1 - kept) * torch.eye(2)
        return (1 - kept).sqrt() * xt @ torch.linalg.inv(noisy)

    return model


def filled(schedule, known=1.5, rho=0.9, seed=0, **settings):
    """Pairs (4000, 2) of which the first half is known."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.full((4000, 2), known).double()
    given[:, 1] = 99.0  # is not known, and must not be read
    mask = torch.tensor([True, False])
    arguments = pair_model(schedule, rho), schedule, randn(4000, 2, seed=seed), 50
    return inpaint(*arguments, given, mask, generator=generator, **settings)


def test_what_is_known_stays_and_the_rest_follows_from_it_the_more_it_is_resampled():
    """The truth: given 1.5, the other half has mean 0.9 * 1.5 and deviation 0.436."""
    schedule = exact(sqrt_linear_schedule())
    once, often = filled(schedule), filled(schedule, resample=10)
    assert (once[:, 0] == 1.5).all() and (often[:, 0] == 1.5).all()
    wrong = [abs(float(x[:, 1].mean()) - 0.9 * 1.5) for x in (once, often)]
    assert wrong[0] > 0.3 and wrong[1] < 0.1
    assert abs(float(often[:, 1].std()) - (1 - 0.9**2) ** 0.5) < 0.12
    apart = filled(schedule, rho=0.0)  # of what tells nothing, nothing follows
    assert abs(float(apart[:, 1].mean())) < 0.06 and 0.9 < apart[:, 1].std() < 1.05


def test_inpainting_is_the_same_for_the_same_seed_and_touches_no_global_one():
    schedule, before = exact(sqrt_linear_schedule()), torch.get_rng_state()
    assert torch.equal(filled(schedule), filled(schedule))
    assert not torch.equal(filled(schedule), filled(schedule, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_inpainting_goes_back_up_before_each_repetition_of_a_step():
    seen = []

    def model(xt, t):
        seen.append(int(t[0]))
        return 0.1 * xt

    schedule, x = exact(linear_schedule(T=100)), randn(1, 2)
    mask = torch.tensor([True, False])
    inpaint(model, schedule, x, 4, x, mask, resample=2)
    assert seen == [77, 77, 52, 52, 27, 27, 2, 2]


def test_repetitions_of_a_step_keep_the_variance_of_its_level():
    """A model that sees all as noise leaves values of variance 1 at each level."""
    schedule, variances = exact(linear_schedule(T=100, beta_T=0.05)), []

    def model(xt, t):
        variances.append(float(xt.var()))
        return (1 - schedule.alpha_bar[t[0]]).sqrt() * xt

    x, mask = randn(4000, 2), torch.tensor([False, False])
    generator = torch.Generator().manual_seed(0)
    inpaint(model, schedule, x, 100, x, mask, resample=3, generator=generator)
    assert len(variances) == 300 and all(0.94 < v < 1.06 for v in variances)


def test_an_edit_visits_the_last_levels_and_none_without_strength():
    seen, schedule, x0 = [], exact(linear_schedule(T=100)), randn(2, 3)

    def model(xt, t):
        seen.append(int(t[0]))
        return randn(2, 3, seed=1)

    def edited(strength):
        seen.clear()
        return sdedit(model, schedule, x0, 4, strength, randn(2, 3, seed=1))

    assert torch.equal(edited(0.0), x0) and seen == []
    edited(0.5)
    assert seen == [27, 2]
    edited(1.0)
    assert seen == [77, 52, 27, 2]


def test_an_edit_with_the_noise_that_was_added_gives_back_what_it_started_from():
    schedule, x0, eps = exact(linear_schedule()), randn(2, 3), randn(2, 3, seed=1)
    x = sdedit(lambda xt, t: eps, schedule, x0, 20, 0.7, eps)
    torch.testing.assert_close(x, q_sample(schedule, x0, 1, eps))


def test_the_stronger_an_edit_the_less_is_left_of_what_it_started_from():
    """Pairs far from all that the model knows come back to it."""
    schedule, x0 = exact(sqrt_linear_schedule()), torch.full((4000, 2), 3.0).double()
    model, eps = pair_model(schedule, 0.9), randn(4000, 2)
    means = [
        float(sdedit(model, schedule, x0, 20, strength, eps).mean())
        for strength in (0.0, 0.3, 0.6, 1.0)
    ]
    assert means[0] == 3.0 and means == sorted(means, reverse=True) and means[-1] < 0.3


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_an_edit_names_a_strength_that_is_none(strength):
    x = randn(1, 1)
    with pytest.raises(ValueError, match=f"from 0 to 1; given {strength}"):
        sdedit(lambda xt, t: xt, exact(linear_schedule()), x, 5, strength, x)


def test_inpainting_names_repetitions_that_are_none():
    x, mask = randn(1, 2), torch.tensor([True, False])
    with pytest.raises(ValueError, match="resample must be 1 or more; given 0"):
        inpaint(lambda xt, t: xt, exact(linear_schedule()), x, 5, x, mask, resample=0)
