"""Right and wrong answers to the assignment samplers, for `make graders`."""

import math

import numpy as np
import torch

from minilib.diffusion import Schedule, ddim_step, eps_from_velocity, posterior


def schedule_of(alpha_bar):
    """The library's schedule with these shares."""
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return Schedule(torch.cat([torch.zeros_like(beta[:1]), beta]))


def two_levels(alpha_bar, t, s):
    """The library's schedule of the levels s and t alone: the step is its second."""
    beta = [alpha_bar[0] * 0, 1 - alpha_bar[s], 1 - alpha_bar[t] / alpha_bar[s]]
    return Schedule(torch.stack(beta))


def back(alpha_bar, xt, t, s, x0, z, alpha=None, variance=None):
    """The mean of the posterior, and the noise with this variance."""
    left, before = alpha_bar[t], alpha_bar[s]
    alpha = left / before if alpha is None else alpha
    mean = before.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - before) * xt
    if variance is None:
        variance = (1 - alpha) * (1 - before) / (1 - left)
    return mean / (1 - left) + variance.sqrt() * z


def guess(alpha_bar, xt, t, eps):
    """The x0 that follows from the noise."""
    return (xt - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()


def turned_back(alpha_bar, xt, t, v):
    """The x0 that follows from the velocity."""
    return alpha_bar[t].sqrt() * xt - (1 - alpha_bar[t]).sqrt() * v


def mixed(alpha_bar, s, x0, eps):
    """x0 and noise at level s."""
    return alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * eps


def ratio(alpha_bar):
    """nu, the ratio of noise to signal."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def euler(alpha_bar, xt, t, s, eps):
    """A step with one direction for the whole step."""
    nu = ratio(alpha_bar)
    return alpha_bar[s].sqrt() * (xt / alpha_bar[t].sqrt() + (nu[s] - nu[t]) * eps)


def walk(model, alpha_bar, xT, visited, noises, step):
    """A sampler whose step is step(x, t, s, eps, z)."""
    x = xT
    for t, s, z in zip(visited, visited[1:], noises):
        x = step(x, t, s, model(x, torch.full((len(x),), t)), z)
    return x


def sigma_of(alpha_bar, t, s, eta):
    """The deviation of the new noise."""
    now, then = alpha_bar[t], alpha_bar[s]
    return eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()


def draw_back__right_library(alpha_bar, xt, t, s, x0, z):
    """The library's posterior on a schedule of two levels."""
    if s == 0:
        return x0
    mean, variance = posterior(two_levels(alpha_bar, t, s), x0, xt, 2)
    return mean + variance.sqrt() * z


def draw_back__right_ddim(alpha_bar, xt, t, s, x0, z):
    """As DDIM with eta 1: signal, old noise and new noise."""
    now, then = float(alpha_bar[t]), float(alpha_bar[s])
    eps = (xt - math.sqrt(now) * x0) / math.sqrt(1 - now)
    new = (1 - then) / (1 - now) * (1 - now / then)
    old = max(1 - then - new, 0)
    return math.sqrt(then) * x0 + math.sqrt(old) * eps + math.sqrt(new) * z


def draw_back__wrong_one_level(alpha_bar, xt, t, s, x0, z):
    """The alpha of one level instead of the whole step."""
    return back(alpha_bar, xt, t, s, x0, z, alpha=alpha_bar[t] / alpha_bar[t - 1])


def draw_back__wrong_step_below(alpha_bar, xt, t, s, x0, z):
    """Goes to level t - 1, whatever s."""
    return back(alpha_bar, xt, t, t - 1, x0, z)


def draw_back__wrong_beta(alpha_bar, xt, t, s, x0, z):
    """The variance of the forward step."""
    variance = 1 - alpha_bar[t] / alpha_bar[s]
    return back(alpha_bar, xt, t, s, x0, z, variance=variance)


def draw_back__wrong_deviation(alpha_bar, xt, t, s, x0, z):
    """The variance where the deviation belongs."""
    alpha = alpha_bar[t] / alpha_bar[s]
    variance = (1 - alpha) * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
    return back(alpha_bar, xt, t, s, x0, variance * z, variance=torch.ones(()))


def draw_back__wrong_mean(alpha_bar, xt, t, s, x0, z):
    """No draw."""
    return back(alpha_bar, xt, t, s, x0, 0 * z)


def draw_back__wrong_shares_swapped(alpha_bar, xt, t, s, x0, z):
    """The shares of x0 and xt exchanged."""
    return back(alpha_bar, x0, t, s, xt, z)


def draw_back__wrong_no_root(alpha_bar, xt, t, s, x0, z):
    """No root on the share of x0."""
    return back(alpha_bar, xt, t, s, alpha_bar[s].sqrt() * x0, z)


def draw_back__wrong_jump(alpha_bar, xt, t, s, x0, z):
    """Noises x0 to level s, and forgets xt."""
    return mixed(alpha_bar, s, x0, z)


def draw_back__wrong_ddim_and_noise(alpha_bar, xt, t, s, x0, z):
    """All of the old noise and the new one on top."""
    eps = (xt - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, eps) + sigma_of(alpha_bar, t, s, 1) * z


def draw_back__wrong_noise_at_the_end(alpha_bar, xt, t, s, x0, z):
    """Adds noise in the last step too."""
    found = back(alpha_bar, xt, t, s, x0, z)
    return found + (1 - alpha_bar[t]).sqrt() * z if s == 0 else found


def draw_back__wrong_float64(alpha_bar, xt, t, s, x0, z):
    """Always in double precision."""
    return back(alpha_bar, xt.double(), t, s, x0, z)


def velocity_step__right_angles(alpha_bar, xt, t, s, v):
    """A turn by the difference of two angles."""
    turn = torch.acos(alpha_bar[t].sqrt()) - torch.acos(alpha_bar[s].sqrt())
    return turn.cos() * xt - turn.sin() * v


def velocity_step__right_library(alpha_bar, xt, t, s, v):
    """By the library, through the noise."""
    own = schedule_of(alpha_bar)
    return ddim_step(own, xt, t, s, eps_from_velocity(own, xt, t, v)).to(xt)


def velocity_step__wrong_as_noise(alpha_bar, xt, t, s, v):
    """Takes the velocity for the noise."""
    return euler(alpha_bar, xt, t, s, v)


def velocity_step__wrong_sign(alpha_bar, xt, t, s, v):
    """The velocity with the wrong sign."""
    return velocity_step__reference(alpha_bar, xt, t, s, -v)


def velocity_step__wrong_only_x0(alpha_bar, xt, t, s, v):
    """x0: right for level 0 only."""
    return turned_back(alpha_bar, xt, t, v)


def velocity_step__wrong_no_noise(alpha_bar, xt, t, s, v):
    """x0 shrunk to level s, without its noise."""
    return alpha_bar[s].sqrt() * turned_back(alpha_bar, xt, t, v)


def velocity_step__wrong_velocity_as_old_noise(alpha_bar, xt, t, s, v):
    """x0 is right, but the velocity takes the noise's place."""
    x0 = turned_back(alpha_bar, xt, t, v)
    return mixed(alpha_bar, s, x0, v)


def velocity_step__wrong_no_roots(alpha_bar, xt, t, s, v):
    """Shares without roots."""
    return velocity_step__reference(alpha_bar**2, xt, t, s, v)


def velocity_step__wrong_swapped(alpha_bar, xt, t, s, v):
    """Signal and noise exchanged."""
    return velocity_step__reference(1 - alpha_bar, xt, t, s, v)


def velocity_step__wrong_derivative(alpha_bar, xt, t, s, v):
    """A straight line along the velocity instead of a turn."""
    turn = torch.acos(alpha_bar[t].sqrt()) - torch.acos(alpha_bar[s].sqrt())
    return xt - turn * v


def velocity_step__wrong_one_level(alpha_bar, xt, t, s, v):
    """Always one level down."""
    return velocity_step__reference(alpha_bar, xt, t, t - 1, v)


def velocity_step__wrong_upwards(alpha_bar, xt, t, s, v):
    """Turns the wrong way."""
    turn = torch.acos(alpha_bar[s].sqrt()) - torch.acos(alpha_bar[t].sqrt())
    return turn.cos() * xt - turn.sin() * v


def velocity_step__wrong_float64(alpha_bar, xt, t, s, v):
    """Always in double precision."""
    return velocity_step__reference(alpha_bar, xt.double(), t, s, v)


def clipped_step__right_one_formula(alpha_bar, xt, t, s, eps, limit):
    """xt and the guess weighed, without the noise."""
    now, then = alpha_bar[t], alpha_bar[s]
    x0 = guess(alpha_bar, xt, t, eps).clamp(-limit, limit)
    shrink = ((1 - then) / (1 - now)).sqrt()
    return shrink * xt + (then.sqrt() - shrink * now.sqrt()) * x0


def clipped_step__right_numpy(alpha_bar, xt, t, s, eps, limit):
    """In NumPy."""
    a, x, e = alpha_bar.numpy(), xt.numpy(), eps.numpy()
    x0 = np.clip((x - np.sqrt(1 - a[t]) * e) / np.sqrt(a[t]), -limit, limit)
    noise = (x - np.sqrt(a[t]) * x0) / np.sqrt(1 - a[t])
    xs = np.sqrt(a[s]) * x0 + np.sqrt(1 - a[s]) * noise
    return torch.from_numpy(xs).to(xt.dtype)


def clipped_step__wrong_not_clipped(alpha_bar, xt, t, s, eps, limit):
    """DDIM as it is."""
    return euler(alpha_bar, xt, t, s, eps)


def clipped_step__wrong_old_noise(alpha_bar, xt, t, s, eps, limit):
    """The noise that no longer fits."""
    x0 = guess(alpha_bar, xt, t, eps).clamp(-limit, limit)
    return mixed(alpha_bar, s, x0, eps)


def clipped_step__wrong_result(alpha_bar, xt, t, s, eps, limit):
    """Clips the result."""
    return euler(alpha_bar, xt, t, s, eps).clamp(-limit, limit)


def clipped_step__wrong_noise(alpha_bar, xt, t, s, eps, limit):
    """Clips the noise."""
    return euler(alpha_bar, xt, t, s, eps.clamp(-limit, limit))


def clipped_step__wrong_input(alpha_bar, xt, t, s, eps, limit):
    """Clips xt."""
    return euler(alpha_bar, xt.clamp(-limit, limit), t, s, eps)


def clipped_step__wrong_above(alpha_bar, xt, t, s, eps, limit):
    """Clips on one side."""
    x0 = guess(alpha_bar, xt, t, eps).clamp_max(limit)
    noise = (xt - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, noise)


def clipped_step__wrong_way_round(alpha_bar, xt, t, s, eps, limit):
    """Clips the wrong way: nothing stays within the bounds."""
    x0 = guess(alpha_bar, xt, t, eps)
    x0 = torch.where(x0.abs() < limit, limit * x0.sign(), x0)
    noise = (xt - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, noise)


def clipped_step__wrong_one(alpha_bar, xt, t, s, eps, limit):
    """Clips at 1, whatever the limit."""
    return clipped_step__reference(alpha_bar, xt, t, s, eps, min(limit, 1.0))


def clipped_step__wrong_rescaled(alpha_bar, xt, t, s, eps, limit):
    """Scales the whole guess down instead of clipping it."""
    x0 = guess(alpha_bar, xt, t, eps)
    x0 = x0 * (limit / x0.abs().max()).clamp_max(1)
    noise = (xt - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, noise)


def clipped_step__wrong_tanh(alpha_bar, xt, t, s, eps, limit):
    """A soft limit."""
    x0 = limit * torch.tanh(guess(alpha_bar, xt, t, eps) / limit)
    noise = (xt - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, noise)


def clipped_step__wrong_own_level(alpha_bar, xt, t, s, eps, limit):
    """Takes the new noise at level s instead of t."""
    x0 = guess(alpha_bar, xt, t, eps).clamp(-limit, limit)
    noise = (xt - alpha_bar[s].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, noise)


def clipped_step__wrong_no_roots(alpha_bar, xt, t, s, eps, limit):
    """Shares without roots in the guess."""
    x0 = (xt - (1 - alpha_bar[t]) * eps) / alpha_bar[t]
    x0 = x0.clamp(-limit, limit)
    noise = (xt - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
    return mixed(alpha_bar, s, x0, noise)


def sample__right_library(model, alpha_bar, xT, visited, eta, noises):
    """The library's step without noise, and what eta changes."""
    own = schedule_of(alpha_bar)

    def step(x, t, s, eps, z):
        sigma = sigma_of(alpha_bar, t, s, eta)
        then = 1 - alpha_bar[s]
        less = then.sqrt() - (then - sigma**2).clamp_min(0).sqrt()
        return ddim_step(own, x, t, s, eps) - less * eps + sigma * z

    return walk(model, alpha_bar, xT, visited, noises, step)


def sample__right_floats(model, alpha_bar, xT, visited, eta, noises):
    """With plain numbers, by index."""
    kept, x = alpha_bar.tolist(), xT
    for i in range(len(visited) - 1):
        t, s = visited[i], visited[i + 1]
        eps = model(x, torch.tensor([t] * x.shape[0]))
        x0 = (x - math.sqrt(1 - kept[t]) * eps) / math.sqrt(kept[t])
        new = eta**2 * (1 - kept[s]) / (1 - kept[t]) * (1 - kept[t] / kept[s])
        old = max(0.0, 1 - kept[s] - new)
        x = math.sqrt(kept[s]) * x0 + math.sqrt(old) * eps + math.sqrt(new) * noises[i]
    return x


def sample__wrong_all_old_noise(model, alpha_bar, xT, visited, eta, noises):
    """The old noise at full strength, and the new one on top."""

    def step(x, t, s, eps, z):
        return euler(alpha_bar, x, t, s, eps) + sigma_of(alpha_bar, t, s, eta) * z

    return walk(model, alpha_bar, xT, visited, noises, step)


def sample__wrong_eta_ignored(model, alpha_bar, xT, visited, eta, noises):
    """DDIM without noise, whatever eta."""
    return sample__reference(model, alpha_bar, xT, visited, 0.0, noises)


def sample__wrong_always_ancestral(model, alpha_bar, xT, visited, eta, noises):
    """Ancestral sampling, whatever eta."""
    return sample__reference(model, alpha_bar, xT, visited, 1.0, noises)


def sample__wrong_no_draw(model, alpha_bar, xT, visited, eta, noises):
    """Less of the old noise, but no new one."""
    return sample__reference(model, alpha_bar, xT, visited, eta, 0 * noises)


def sample__wrong_eta_variance(model, alpha_bar, xT, visited, eta, noises):
    """eta as a share of the variance."""
    return sample__reference(model, alpha_bar, xT, visited, math.sqrt(eta), noises)


def sample__wrong_first_noise(model, alpha_bar, xT, visited, eta, noises):
    """The first noise in every step."""
    same = noises[:1].expand_as(noises)
    return sample__reference(model, alpha_bar, xT, visited, eta, same)


def sample__wrong_noises_backwards(model, alpha_bar, xT, visited, eta, noises):
    """The last noise first."""
    return sample__reference(model, alpha_bar, xT, visited, eta, noises.flip(0))


def sample__wrong_every_level(model, alpha_bar, xT, visited, eta, noises):
    """The sigma of one level instead of the whole step."""

    def step(x, t, s, eps, z):
        sigma = sigma_of(alpha_bar, t, t - 1, eta) if s else 0
        old = (1 - alpha_bar[s] - sigma**2).clamp_min(0).sqrt()
        x0 = guess(alpha_bar, x, t, eps)
        return alpha_bar[s].sqrt() * x0 + old * eps + sigma * z

    return walk(model, alpha_bar, xT, visited, noises, step)


def sample__wrong_told_arrival(model, alpha_bar, xT, visited, eta, noises):
    """The model is told the level of arrival."""
    down = dict(zip(visited, visited[1:]))
    told = lambda x, t: model(x, torch.tensor([down[int(i)] for i in t]))
    return sample__reference(told, alpha_bar, xT, visited, eta, noises)


def sample__wrong_stops_early(model, alpha_bar, xT, visited, eta, noises):
    """Leaves out the last step where there are several."""
    short = visited[:-1] if len(visited) > 2 else visited
    return sample__reference(model, alpha_bar, xT, short, eta, noises)


def sample__wrong_one_guess(model, alpha_bar, xT, visited, eta, noises):
    """Guesses once, at the top."""
    eps = model(xT, torch.full((len(xT),), visited[0]))
    return sample__reference(lambda x, t: eps, alpha_bar, xT, visited, eta, noises)


def sample__wrong_to_zero(model, alpha_bar, xT, visited, eta, noises):
    """Ends at level 0, whatever the list says."""
    return sample__reference(model, alpha_bar, xT, [*visited[:-1], 0], eta, noises)


def sample__wrong_single_level(model, alpha_bar, xT, visited, eta, noises):
    """The level once, not for each item."""
    told = lambda x, t: model(x, t[:1])
    return sample__reference(told, alpha_bar, xT, visited, eta, noises)


def variance_back__right_line(alpha_bar, t, s, x0_variance):
    """What remains of both parts over one denominator."""
    now, then = float(alpha_bar[t]), float(alpha_bar[s])
    step = 1 - now / then
    top = step * (1 - then) * (1 - now) + then * step**2 * x0_variance
    return top / (1 - now) ** 2


def variance_back__right_library(alpha_bar, t, s, x0_variance):
    """The library's posterior on two levels; its share of x0 by putting in ones."""
    if s == 0:
        return x0_variance
    one = torch.ones(1, 1, dtype=torch.float64)
    of_x0, known = posterior(two_levels(alpha_bar, t, s), one, 0 * one, 2)
    return (known[0, 0] + of_x0[0, 0] ** 2 * x0_variance).to(x0_variance.dtype)


def variance_back__wrong_known(alpha_bar, t, s, x0_variance):
    """The posterior's variance alone."""
    return variance_back__reference(alpha_bar, t, s, 0 * x0_variance)


def variance_back__wrong_beta(alpha_bar, t, s, x0_variance):
    """The variance of the forward step."""
    return 0 * x0_variance + 1 - alpha_bar[t] / alpha_bar[s]


def variance_back__wrong_share_not_squared(alpha_bar, t, s, x0_variance):
    """The share of x0 without a square."""
    share = alpha_bar[s].sqrt() * (1 - alpha_bar[t] / alpha_bar[s])
    known = variance_back__reference(alpha_bar, t, s, 0 * x0_variance)
    return known + share / (1 - alpha_bar[t]) * x0_variance


def variance_back__wrong_signal(alpha_bar, t, s, x0_variance):
    """As if x_s held all of its x0 for sure: the share of the signal."""
    known = variance_back__reference(alpha_bar, t, s, 0 * x0_variance)
    return known + alpha_bar[s] * x0_variance


def variance_back__wrong_one_level(alpha_bar, t, s, x0_variance):
    """One level, whatever s."""
    return variance_back__reference(alpha_bar, t, t - 1, x0_variance)


def variance_back__wrong_step_alpha(alpha_bar, t, s, x0_variance):
    """The alpha of one level in a long step."""
    left, before = alpha_bar[t], alpha_bar[s]
    alpha = left / alpha_bar[t - 1]
    known = (1 - alpha) * (1 - before) / (1 - left)
    return known + before * ((1 - alpha) / (1 - left)) ** 2 * x0_variance


def variance_back__wrong_no_share(alpha_bar, t, s, x0_variance):
    """Adds the variance of x0 as it is."""
    return variance_back__reference(alpha_bar, t, s, 0 * x0_variance) + x0_variance


def variance_back__wrong_deviations_add(alpha_bar, t, s, x0_variance):
    """Adds deviations instead of variances."""
    known = variance_back__reference(alpha_bar, t, s, 0 * x0_variance)
    doubt = variance_back__reference(alpha_bar, t, s, x0_variance) - known
    return (known.sqrt() + doubt.clamp_min(0).sqrt()) ** 2


def variance_back__wrong_deviation(alpha_bar, t, s, x0_variance):
    """The deviation."""
    return variance_back__reference(alpha_bar, t, s, x0_variance).sqrt()


def variance_back__wrong_share_of_xt(alpha_bar, t, s, x0_variance):
    """The share of xt in the place of that of x0."""
    share = (alpha_bar[t] / alpha_bar[s]).sqrt() * (1 - alpha_bar[s])
    known = variance_back__reference(alpha_bar, t, s, 0 * x0_variance)
    return known + (share / (1 - alpha_bar[t])) ** 2 * x0_variance


def variance_back__wrong_squared_doubt(alpha_bar, t, s, x0_variance):
    """Takes the variance of x0 for a deviation."""
    return variance_back__reference(alpha_bar, t, s, x0_variance**2)


def line_step__right_heun_of_the_line(alpha_bar, xt, t, s, eps, r, eps_r):
    """The line read at both ends of the step, and the mean of both."""
    nu = ratio(alpha_bar).tolist()
    way = (nu[s] - nu[t]) / (nu[t] - nu[r])
    at_s = eps + way * (eps - eps_r)
    return euler(alpha_bar, xt, t, s, (eps + at_s) / 2)


def line_step__right_antiderivative(alpha_bar, xt, t, s, eps, r, eps_r):
    """With the line's coefficients and its integral."""
    n, kept = ratio(alpha_bar.double()), alpha_bar.double()
    q = (eps - eps_r).double() / (n[t] - n[r])
    p = eps.double() - q * n[t]
    integral = lambda nu: p * nu + q * nu**2 / 2
    straight = xt.double() / kept[t].sqrt() + integral(n[s]) - integral(n[t])
    return (kept[s].sqrt() * straight).to(xt.dtype)


def line_step__wrong_euler(alpha_bar, xt, t, s, eps, r, eps_r):
    """One guess: DDIM."""
    return euler(alpha_bar, xt, t, s, eps)


def line_step__wrong_mean(alpha_bar, xt, t, s, eps, r, eps_r):
    """The mean of both guesses: back instead of on."""
    return euler(alpha_bar, xt, t, s, (eps + eps_r) / 2)


def line_step__wrong_end(alpha_bar, xt, t, s, eps, r, eps_r):
    """The line at the end of the step instead of its middle."""
    nu = ratio(alpha_bar)
    way = (nu[s] - nu[t]) / (nu[t] - nu[r])
    return euler(alpha_bar, xt, t, s, eps + way * (eps - eps_r))


def line_step__wrong_equal_steps(alpha_bar, xt, t, s, eps, r, eps_r):
    """As if this step were as long as the one before."""
    return euler(alpha_bar, xt, t, s, 1.5 * eps - 0.5 * eps_r)


def line_step__wrong_ratio_inverted(alpha_bar, xt, t, s, eps, r, eps_r):
    """The lengths of the two steps exchanged."""
    nu = ratio(alpha_bar)
    way = (nu[t] - nu[r]) / (nu[s] - nu[t]) if s else (nu[t] - nu[r]) / nu[t]
    return euler(alpha_bar, xt, t, s, eps + way / 2 * (eps - eps_r))


def line_step__wrong_line_in_levels(alpha_bar, xt, t, s, eps, r, eps_r):
    """A straight line in t."""
    way = (s - t) / (t - r)
    return euler(alpha_bar, xt, t, s, eps + way / 2 * (eps - eps_r))


def line_step__wrong_line_in_lambda(alpha_bar, xt, t, s, eps, r, eps_r):
    """A straight line in the logarithm of nu."""
    lam = ratio(alpha_bar).clamp_min(1e-3).log()
    way = (lam[s] - lam[t]) / (lam[t] - lam[r])
    return euler(alpha_bar, xt, t, s, eps + way / 2 * (eps - eps_r))


def line_step__wrong_sign(alpha_bar, xt, t, s, eps, r, eps_r):
    """The slope with the wrong sign."""
    nu = ratio(alpha_bar)
    way = (nu[s] - nu[t]) / (nu[t] - nu[r])
    return euler(alpha_bar, xt, t, s, eps - way / 2 * (eps - eps_r))


def line_step__wrong_guesses_swapped(alpha_bar, xt, t, s, eps, r, eps_r):
    """The guesses exchanged."""
    return line_step__reference(alpha_bar, xt, t, s, eps_r, r, eps)


def line_step__wrong_not_scaled_back(alpha_bar, xt, t, s, eps, r, eps_r):
    """x / signal instead of x."""
    found = line_step__reference(alpha_bar, xt, t, s, eps, r, eps_r)
    return found / alpha_bar[s].sqrt()


def line_step__wrong_not_scaled(alpha_bar, xt, t, s, eps, r, eps_r):
    """Forgets to divide xt by its signal."""
    scaled = alpha_bar[t].sqrt() * xt
    return line_step__reference(alpha_bar, scaled, t, s, eps, r, eps_r)


def line_step__wrong_of_x0(alpha_bar, xt, t, s, eps, r, eps_r):
    """A line through guesses of x0 from one xt, as DPM-Solver++ might be misread."""
    nu = ratio(alpha_bar)
    x0, x0_r = guess(alpha_bar, xt, t, eps), guess(alpha_bar, xt, r, eps_r)
    way = (nu[s] - nu[t]) / (nu[t] - nu[r])
    x0 = x0 + way / 2 * (x0 - x0_r)
    return mixed(alpha_bar, s, x0, eps)


def line_step__wrong_float64(alpha_bar, xt, t, s, eps, r, eps_r):
    """Always in double precision."""
    return line_step__reference(alpha_bar, xt.double(), t, s, eps, r, eps_r)
