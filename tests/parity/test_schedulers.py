"""Our schedules and samplers against diffusers' DDPM, DDIM and DPMSolverMultistep,
along whole trajectories.
"""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from minilib.diffusion import (
    cosine_schedule,
    ddim_sample,
    ddpm_sample,
    dpm_solver_sample,
    linear_schedule,
    q_sample,
    sqrt_linear_schedule,
    time_steps,
    velocity,
)

SCHEDULES = {
    "linear": (
        linear_schedule(),
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    ),
    "scaled_linear": (
        sqrt_linear_schedule(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    ),
}
both_schedules = pytest.mark.parametrize(
    ("schedule", "theirs"), SCHEDULES.values(), ids=SCHEDULES
)
xT = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(0))


def model(xt, t):
    """A predictor that is nonlinear in xt and depends on t, so that a wrong level or
    coefficient shows.
    """
    t = t.view(-1, 1, 1, 1) / 1000
    return torch.tanh(1.3 * xt + torch.sin(7 * t)) * (0.2 + t) + 0.1 * xt.roll(
        1, dims=2
    )


def close(ours, theirs, limit=1e-5):
    """Relative error over the whole tensor."""
    assert theirs.norm() > 1  # zeros would agree with anything
    assert float((ours - theirs).norm() / theirs.norm()) < limit


def their_trajectory(scheduler, steps, **settings):
    """All x, before every step and at the end; diffusers counts the levels from 0."""
    scheduler.set_timesteps(steps)
    x, trajectory = xT, [xT]
    for t in scheduler.timesteps:
        eps = model(x, torch.full((2,), int(t) + 1))
        x = scheduler.step(eps, t, x, **settings).prev_sample
        trajectory.append(x)
    return trajectory


def our_trajectory(sample, *arguments, **settings):
    """The same of ours."""
    trajectory = []
    end = sample(
        model,
        *arguments,
        callback=lambda i, t, x, eps: trajectory.append(x),
        **settings,
    )
    return [*trajectory, end]


def same(ours, theirs):
    """Close at every step."""
    assert len(ours) == len(theirs)
    for our_x, their_x in zip(ours, theirs, strict=True):
        close(our_x, their_x)


@both_schedules
def test_schedules_are_theirs(schedule, theirs):
    assert torch.equal(schedule.alpha_bar[1:], DDPMScheduler(**theirs).alphas_cumprod)


def test_the_cosine_schedule_is_theirs():
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(
        cosine_schedule().beta[1:], theirs.betas, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        cosine_schedule().alpha_bar[1:], theirs.alphas_cumprod, rtol=1e-5, atol=0
    )


@both_schedules
def test_q_sample_is_add_noise(schedule, theirs):
    eps = torch.randn(xT.shape, generator=torch.Generator().manual_seed(1))
    for t in (1, 2, 500, 1000):
        added = DDPMScheduler(**theirs).add_noise(xT, eps, torch.tensor([t - 1, t - 1]))
        close(q_sample(schedule, xT, torch.tensor([t, t]), eps), added)


@both_schedules
def test_velocity_is_get_velocity(schedule, theirs):
    eps = torch.randn(xT.shape, generator=torch.Generator().manual_seed(1))
    for t in (1, 2, 500, 1000):
        expected = DDPMScheduler(**theirs).get_velocity(
            xT, eps, torch.tensor([t - 1, t - 1])
        )
        close(velocity(schedule, xT, torch.tensor([t, t]), eps), expected)


@both_schedules
@pytest.mark.parametrize(
    ("variance", "variance_type"),
    [("beta_tilde", "fixed_small"), ("beta", "fixed_large")],
)
def test_ddpm_sample_is_theirs_through_all_levels(
    schedule, theirs, variance, variance_type
):
    scheduler = DDPMScheduler(clip_sample=False, variance_type=variance_type, **theirs)
    expected = their_trajectory(
        scheduler, 1000, generator=torch.Generator().manual_seed(1)
    )
    ours = our_trajectory(
        ddpm_sample, schedule, xT, torch.Generator().manual_seed(1), variance
    )
    assert len(ours) == 1001
    same(ours, expected)


@both_schedules
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize(
    ("spacing", "offset", "steps"),
    [
        ("leading", 1, 200),
        ("leading", 1, 25),
        ("leading", 1, 7),
        ("leading", 0, 50),
        ("trailing", 0, 25),
    ],
)
def test_ddim_sample_is_theirs_at_every_step(
    schedule, theirs, eta, set_alpha_to_one, spacing, offset, steps
):
    scheduler = DDIMScheduler(
        clip_sample=False,
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=offset,
        timestep_spacing=spacing,
        **theirs,
    )
    generator = torch.Generator().manual_seed(1)
    expected = their_trajectory(scheduler, steps, eta=eta, generator=generator)
    settings = {
        "spacing": spacing,
        "offset": offset,
        "last": 0 if set_alpha_to_one else 1,
    }
    same(
        our_trajectory(
            ddim_sample, schedule, xT, steps, eta, generator.manual_seed(1), **settings
        ),
        expected,
    )


@both_schedules
@pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)]
)
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 14, 15, 20, 50])
def test_dpm_solver_sample_is_theirs_at_every_step(
    schedule, theirs, final_sigmas_type, spacing, offset, steps
):
    """DPM-Solver++ (2M): their defaults, but for the spacing; "sigma_min" ends at the
    lowest noise, our level 1.
    """
    settings = {
        "timestep_spacing": spacing,
        "steps_offset": offset,
        "final_sigmas_type": final_sigmas_type,
    }
    scheduler = DPMSolverMultistepScheduler(**settings, **theirs)
    assert (
        scheduler.config.algorithm_type == "dpmsolver++"
        and scheduler.config.solver_type == "midpoint"
    )
    assert scheduler.config.solver_order == 2 and scheduler.config.lower_order_final
    settings = {
        "spacing": spacing,
        "offset": offset,
        "last": 0 if final_sigmas_type == "zero" else 1,
    }
    ours = our_trajectory(dpm_solver_sample, schedule, xT, steps, **settings)
    same(ours, their_trajectory(scheduler, steps))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_parity_of_dpm_solver_is_sharp(spacing):
    """Neither their first order, nor a last step of second order where theirs is of
    first, passes for the same.
    """
    schedule, theirs = SCHEDULES["scaled_linear"]
    settings = {"timestep_spacing": spacing, "final_sigmas_type": "sigma_min", **theirs}
    ours = our_trajectory(
        dpm_solver_sample, schedule, xT, 10, spacing=spacing, offset=0, last=1
    )
    for change in (
        {"solver_order": 1},
        {"lower_order_final": False},
        {"solver_type": "heun"},
    ):
        other = their_trajectory(DPMSolverMultistepScheduler(**settings, **change), 10)
        assert float((ours[-1] - other[-1]).norm() / other[-1].norm()) > 1e-3


def test_the_defaults_are_the_released_models():
    """cvssp/audioldm2: scaled_linear .0015 to .0195, set_alpha_to_one false,
    steps_offset 1, leading.
    """
    released = DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        timestep_spacing="leading", beta_schedule="scaled_linear", beta_start=0.0015,
        beta_end=0.0195,
    )  # fmt: skip
    close(
        ddim_sample(model, sqrt_linear_schedule(), xT, 200),
        their_trajectory(released, 200)[-1],
    )


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25, 30, 200, 333, 500, 501, 999])
def test_time_steps_are_theirs_counted_from_one(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    assert time_steps(1000, steps, spacing) == (scheduler.timesteps + 1).tolist()
