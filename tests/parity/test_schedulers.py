"""Our schedules and samplers against diffusers' DDPMScheduler and DDIMScheduler, along whole trajectories."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from minilib.diffusion import (
    ddim_sample,
    ddpm_sample,
    linear_schedule,
    q_sample,
    sqrt_linear_schedule,
    time_steps,
)

SCHEDULES = {
    "linear": (linear_schedule(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (
        sqrt_linear_schedule(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    ),
}
both_schedules = pytest.mark.parametrize(("schedule", "theirs"), SCHEDULES.values(), ids=SCHEDULES)
xT = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(0))


def model(xt, t):
    """A predictor that is nonlinear in xt and depends on t, so that a wrong level or coefficient shows."""
    t = t.view(-1, 1, 1, 1) / 1000
    return torch.tanh(1.3 * xt + torch.sin(7 * t)) * (0.2 + t) + 0.1 * xt.roll(1, dims=2)


def close(ours, theirs, limit=1e-5):
    """Relative error over the whole tensor."""
    assert theirs.norm() > 1  # zeros would agree with anything
    assert float((ours - theirs).norm() / theirs.norm()) < limit


def their_trajectory(scheduler, steps, **settings):
    """x before every step and at the end; diffusers counts the levels from 0."""
    scheduler.set_timesteps(steps)
    x, trajectory = xT, [xT]
    for t in scheduler.timesteps:
        eps = model(x, torch.full((2,), int(t) + 1))
        x = scheduler.step(eps, t, x, **settings).prev_sample
        trajectory.append(x)
    return trajectory


def record(trajectory):
    return lambda i, t, x, eps: trajectory.append(x)


@both_schedules
def test_schedules_are_theirs(schedule, theirs):
    assert torch.equal(schedule.alpha_bar[1:], DDPMScheduler(**theirs).alphas_cumprod)


@both_schedules
def test_q_sample_is_add_noise(schedule, theirs):
    eps = torch.randn(xT.shape, generator=torch.Generator().manual_seed(1))
    for t in (1, 2, 500, 1000):
        added = DDPMScheduler(**theirs).add_noise(xT, eps, torch.tensor([t - 1, t - 1]))
        close(q_sample(schedule, xT, torch.tensor([t, t]), eps), added)


@both_schedules
def test_ddpm_sample_is_theirs_through_all_levels(schedule, theirs):
    scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_small", **theirs)
    expected = their_trajectory(scheduler, 1000, generator=torch.Generator().manual_seed(1))
    trajectory = []
    trajectory.append(
        ddpm_sample(model, schedule, xT, torch.Generator().manual_seed(1), callback=record(trajectory))
    )
    assert len(trajectory) == len(expected) == 1001
    for ours, reference in zip(trajectory, expected, strict=True):
        close(ours, reference)


@both_schedules
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize(
    ("spacing", "offset", "steps"),
    [("leading", 1, 200), ("leading", 1, 25), ("leading", 1, 7), ("leading", 0, 50), ("trailing", 0, 25)],
)
def test_ddim_sample_is_theirs_at_every_step(schedule, theirs, eta, set_alpha_to_one, spacing, offset, steps):
    scheduler = DDIMScheduler(
        clip_sample=False,
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=offset,
        timestep_spacing=spacing,
        **theirs,
    )
    generator = torch.Generator().manual_seed(1)
    expected = their_trajectory(scheduler, steps, eta=eta, generator=generator)
    trajectory = []
    end = ddim_sample(
        model,
        schedule,
        xT,
        steps,
        eta=eta,
        generator=torch.Generator().manual_seed(1),
        spacing=spacing,
        offset=offset,
        last=0 if set_alpha_to_one else 1,
        callback=record(trajectory),
    )
    assert len(trajectory) == steps
    for ours, reference in zip([*trajectory, end], expected, strict=True):
        close(ours, reference)


def test_the_defaults_are_the_released_models():
    """cvssp/audioldm2: scaled_linear .0015 to .0195, set_alpha_to_one false, steps_offset 1, leading."""
    released = DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading",
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195,
    )  # fmt: skip
    close(ddim_sample(model, sqrt_linear_schedule(), xT, 200), their_trajectory(released, 200)[-1])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25, 30, 200, 333, 500, 501, 999])
def test_time_steps_are_theirs_counted_from_one(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    assert time_steps(1000, steps, spacing) == (scheduler.timesteps + 1).tolist()
