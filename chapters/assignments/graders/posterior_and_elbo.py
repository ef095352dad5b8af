"""Right and wrong answers to the assignment posterior_and_elbo, for `make graders`."""

import math

import numpy as np
import torch
from torch.distributions import Normal

from minilib.diffusion import Schedule, gaussian_kl, posterior


def schedule_of(beta):
    """The library's schedule with these betas."""
    return Schedule(torch.cat([torch.zeros_like(beta[:1]), beta]))


def product_of_bells__right_two_by_two(means, variances):
    """One bell after the other."""
    mean, var = means[0], variances[0]
    for m, v in zip(means[1:], variances[1:]):
        mean, var = (mean * v + m * var) / (var + v), var * v / (var + v)
    return mean, var


def product_of_bells__right_numpy(means, variances):
    """In NumPy, with einsum."""
    precisions = 1 / variances.numpy()
    var = 1 / precisions.sum(axis=0)
    mean = np.einsum("k...,k...->...", means.numpy(), precisions) * var
    return torch.from_numpy(np.asarray(mean)), torch.from_numpy(np.asarray(var))


def product_of_bells__wrong_plain_mean(means, variances):
    """Every bell counts the same."""
    return means.mean(0), 1 / (1 / variances).sum(0)


def product_of_bells__wrong_variances_add(means, variances):
    """Adds variances, as for sums of numbers."""
    precisions = 1 / variances
    return (means * precisions).sum(0) / precisions.sum(0), variances.sum(0)


def product_of_bells__wrong_mean_precision(means, variances):
    """The mean of the precisions instead of the sum."""
    precisions = 1 / variances
    return (means * precisions).sum(0) / precisions.sum(0), 1 / precisions.mean(0)


def product_of_bells__wrong_weights_variance(means, variances):
    """Wide bells count more."""
    return (means * variances).sum(0) / variances.sum(0), 1 / (1 / variances).sum(0)


def product_of_bells__wrong_deviation(means, variances):
    """The deviation instead of the variance."""
    precision = (1 / variances).sum(0)
    return (means / variances).sum(0) / precision, precision.rsqrt()


def product_of_bells__wrong_only_two(means, variances):
    """Two bells only."""
    m, v = means[:2], variances[:2]
    precision = (1 / v).sum(0)
    return (m / v).sum(0) / precision, 1 / precision


def product_of_bells__wrong_precision(means, variances):
    """Returns the precision."""
    precision = (1 / variances).sum(0)
    return (means / variances).sum(0) / precision, precision


def product_of_bells__wrong_last_axis(means, variances):
    """Over the last axis."""
    precision = (1 / variances).sum(-1)
    return (means / variances).sum(-1) / precision, 1 / precision


def product_of_bells__wrong_not_normalised(means, variances):
    """Forgets to divide by the sum of the precisions."""
    return (means / variances).sum(0), 1 / (1 / variances).sum(0)


def step_back__right_library(beta, x0, xt, t, eps):
    """With the library's posterior."""
    mean, var = posterior(schedule_of(beta), x0, xt, t)
    return mean + var.sqrt() * eps


def step_back__right_loop(beta, x0, xt, t, eps):
    """Item by item, by adding precisions."""
    found = []
    for x, y, level, e in zip(x0, xt, t.tolist(), eps):
        b, before = beta[level - 1], (1 - beta[: level - 1]).prod()
        if level == 1:
            found.append(x)
            continue
        a = (1 - b) / b + 1 / (1 - before)
        mean = ((1 - b).sqrt() * y / b + before.sqrt() * x / (1 - before)) / a
        found.append(mean + e / a.sqrt())
    return torch.stack(found)


def step_back__wrong_forward_variance(beta, x0, xt, t, eps):
    """beta instead of beta_tilde."""
    mean, _ = posterior(schedule_of(beta), x0, xt, t)
    b = beta[t - 1].view(-1, *[1] * (x0.ndim - 1))
    return mean + b.sqrt() * eps


def step_back__wrong_variance(beta, x0, xt, t, eps):
    """The variance instead of the deviation."""
    mean, var = posterior(schedule_of(beta), x0, xt, t)
    return mean + var * eps


def step_back__wrong_swapped(beta, x0, xt, t, eps):
    """x0 and xt exchanged."""
    mean, var = posterior(schedule_of(beta), xt, x0, t)
    return mean + var.sqrt() * eps


def step_back__wrong_level_below(beta, x0, xt, t, eps):
    """One level too low, where there is one."""
    mean, var = posterior(schedule_of(beta), x0, xt, (t - 1).clamp_min(1))
    return mean + var.sqrt() * eps


def step_back__wrong_level_above(beta, x0, xt, t, eps):
    """One level too high, where there is one."""
    mean, var = posterior(schedule_of(beta), x0, xt, (t + 1).clamp_max(len(beta)))
    return mean + var.sqrt() * eps


def step_back__wrong_mean(beta, x0, xt, t, eps):
    """The mean, not a draw."""
    return posterior(schedule_of(beta), x0, xt, t)[0]


def step_back__wrong_one_level(beta, x0, xt, t, eps):
    """The level of the first item for all."""
    mean, var = posterior(schedule_of(beta), x0, xt, t[:1].expand(len(t)))
    return mean + var.sqrt() * eps


def step_back__wrong_jump(beta, x0, xt, t, eps):
    """A jump from x0 that does not look at xt."""
    left = torch.cat([torch.ones_like(beta[:1]), (1 - beta).cumprod(0)])[t - 1]
    left = left.view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt() * x0 + (1 - left).sqrt() * eps


def step_back__wrong_solved(beta, x0, xt, t, eps):
    """Subtracts another noise."""
    b = beta[t - 1].view(-1, *[1] * (x0.ndim - 1))
    return (xt - b.sqrt() * eps) / (1 - b).sqrt()


def step_back__wrong_noise_at_one(beta, x0, xt, t, eps):
    """Adds noise in the last step too."""
    mean, var = posterior(schedule_of(beta), x0, xt, t)
    return mean + var.clamp_min(float(beta[0])).sqrt() * eps


def step_back__wrong_no_root_of_alpha(beta, x0, xt, t, eps):
    """alpha_bar instead of its root in the share of x0."""
    left = torch.cat([torch.ones_like(beta[:1]), (1 - beta).cumprod(0)])[t - 1]
    left = left.view(-1, *[1] * (x0.ndim - 1))
    mean, var = posterior(schedule_of(beta), x0 * left.sqrt(), xt, t)
    return mean + var.sqrt() * eps


def kl_by_drawing__right_distributions(mean_a, var_a, mean_b, var_b, eps):
    """With torch.distributions."""
    a, b = Normal(mean_a, var_a.sqrt()), Normal(mean_b, var_b.sqrt())
    z = a.loc + a.scale * eps
    return (a.log_prob(z) - b.log_prob(z)).mean(0).sum(1)


def kl_by_drawing__right_written_out(mean_a, var_a, mean_b, var_b, eps):
    """Without densities; (z - mean_a)^2 / var_a is eps squared."""
    distance = mean_a - mean_b + var_a**0.5 * eps
    terms = distance**2 / var_b - eps**2 + torch.log(var_b / var_a)
    return torch.einsum("nbd->b", terms) / (2 * len(eps))


def kl_by_drawing__wrong_swapped(mean_a, var_a, mean_b, var_b, eps):
    """KL(b || a)."""
    z = mean_b + var_b.sqrt() * eps
    ratio = log_normal(z, mean_b, var_b) - log_normal(z, mean_a, var_a)
    return ratio.sum(-1).mean(0)


def kl_by_drawing__wrong_draws_from_b(mean_a, var_a, mean_b, var_b, eps):
    """Draws from b."""
    z = mean_b + var_b.sqrt() * eps
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).mean(0)


def kl_by_drawing__wrong_sign(mean_a, var_a, mean_b, var_b, eps):
    """The negative."""
    z = mean_a + var_a.sqrt() * eps
    ratio = log_normal(z, mean_b, var_b) - log_normal(z, mean_a, var_a)
    return ratio.sum(-1).mean(0)


def kl_by_drawing__wrong_no_root(mean_a, var_a, mean_b, var_b, eps):
    """The variance as deviation."""
    z = mean_a + var_a * eps
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).mean(0)


def kl_by_drawing__wrong_mean_of_dimensions(mean_a, var_a, mean_b, var_b, eps):
    """The mean over dimensions."""
    z = mean_a + var_a.sqrt() * eps
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.mean(-1).mean(0)


def kl_by_drawing__wrong_sum_of_draws(mean_a, var_a, mean_b, var_b, eps):
    """The sum over draws."""
    z = mean_a + var_a.sqrt() * eps
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).sum(0)


def kl_by_drawing__wrong_exact(mean_a, var_a, mean_b, var_b, eps):
    """The closed form, not an estimate from these draws."""
    return gaussian_kl(mean_a, var_a, mean_b, var_b)


def kl_by_drawing__wrong_detached_draws(mean_a, var_a, mean_b, var_b, eps):
    """No gradient passes through the draws."""
    z = (mean_a + var_a.sqrt() * eps).detach()
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).mean(0)


def kl_by_drawing__wrong_detached(mean_a, var_a, mean_b, var_b, eps):
    """No gradient passes."""
    z = mean_a + var_a.sqrt() * eps
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).mean(0).detach()


def kl_by_drawing__wrong_own_noise(mean_a, var_a, mean_b, var_b, eps):
    """Draws its own noise."""
    z = mean_a + var_a.sqrt() * torch.randn(eps.shape, dtype=eps.dtype)
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).mean(0)


def kl_by_drawing__wrong_batch(mean_a, var_a, mean_b, var_b, eps):
    """The mean over the batch."""
    z = mean_a + var_a.sqrt() * eps
    ratio = log_normal(z, mean_a, var_a) - log_normal(z, mean_b, var_b)
    return ratio.sum(-1).mean().expand(len(mean_a))


def table_elbo__right_loop(joint, q):
    """Value by value."""
    found = []
    for row, weights in zip(joint.tolist(), q.tolist()):
        found.append(sum(w * math.log(p / w) for p, w in zip(row, weights) if w > 0))
    return torch.tensor(found, dtype=joint.dtype)


def table_elbo__right_evidence_minus_gap(joint, q):
    """As log p(x) minus a divergence."""
    evidence = joint.sum(1)
    kept = torch.where(q > 0, q, 1.0)
    gap = (q * (kept * evidence[:, None] / joint).log()).sum(1)
    return evidence.log() - gap


def table_elbo__wrong_nan(joint, q):
    """nan where q is 0."""
    return (q * (joint / q).log()).sum(1)


def table_elbo__wrong_swapped(joint, q):
    """The ratio turned over."""
    return (torch.xlogy(q, q) - torch.xlogy(q, joint)).sum(1)


def table_elbo__wrong_no_entropy(joint, q):
    """Forgets -q log q."""
    return torch.xlogy(q, joint).sum(1)


def table_elbo__wrong_evidence(joint, q):
    """log p(x), whatever q is."""
    return joint.sum(1).log()


def table_elbo__wrong_mean(joint, q):
    """The mean over values."""
    return (torch.xlogy(q, joint) - torch.xlogy(q, q)).mean(1)


def table_elbo__wrong_log_of_average(joint, q):
    """The logarithm of the average."""
    return (q * joint).sum(1).log()


def table_elbo__wrong_normalised(joint, q):
    """With the posterior instead of the joint: minus the gap."""
    p = joint / joint.sum(1, keepdim=True)
    return (torch.xlogy(q, p) - torch.xlogy(q, q)).sum(1)


def table_elbo__wrong_weights(joint, q):
    """Averages over the joint instead of q."""
    return (joint * (joint / q.clamp_min(1e-9)).log()).sum(1)


def table_elbo__wrong_axis(joint, q):
    """Sums over the rows."""
    return (torch.xlogy(q, joint) - torch.xlogy(q, q)).sum(0)


def table_elbo__wrong_bits(joint, q):
    """In bits."""
    return (torch.xlogy(q, joint) - torch.xlogy(q, q)).sum(1) / math.log(2)


def log_evidence__right_largest_first(log_joint, log_q):
    """The largest ratio is taken out first."""
    ratio = log_joint - log_q
    largest = ratio.max(dim=0).values
    return largest + torch.log(torch.exp(ratio - largest).mean(0))


def log_evidence__right_numpy(log_joint, log_q):
    """In NumPy, pair by pair."""
    ratio = (log_joint - log_q).numpy()
    total = np.logaddexp.reduce(ratio, axis=0)
    return torch.from_numpy(np.asarray(total - np.log(len(ratio))))


def log_evidence__wrong_elbo(log_joint, log_q):
    """The average of the logarithms."""
    return (log_joint - log_q).mean(0)


def log_evidence__wrong_underflow(log_joint, log_q):
    """Leaves the logarithms."""
    return (log_joint - log_q).exp().mean(0).log()


def log_evidence__wrong_sum(log_joint, log_q):
    """The sum instead of the average."""
    return torch.logsumexp(log_joint - log_q, dim=0)


def log_evidence__wrong_no_q(log_joint, log_q):
    """Forgets q."""
    return torch.logsumexp(log_joint, dim=0) - math.log(len(log_q))


def log_evidence__wrong_sign(log_joint, log_q):
    """Adds log q."""
    return torch.logsumexp(log_joint + log_q, dim=0) - math.log(len(log_q))


def log_evidence__wrong_axis(log_joint, log_q):
    """Averages over the batch."""
    ratio = log_joint - log_q
    return torch.logsumexp(ratio, dim=1) - math.log(ratio.shape[1])


def log_evidence__wrong_largest(log_joint, log_q):
    """The largest ratio only."""
    ratio = log_joint - log_q
    return ratio.max(dim=0).values - math.log(len(ratio))


def log_evidence__wrong_ratio_of_averages(log_joint, log_q):
    """The ratio of two averages."""
    return torch.logsumexp(log_joint, dim=0) - torch.logsumexp(log_q, dim=0)


def log_evidence__wrong_constant_shift(log_joint, log_q):
    """Shifts by a constant: right near it only."""
    return ((log_joint - log_q + 2000).exp().mean(0)).log() - 2000


def cost_of_guess__right_library(beta, x0, guess, t):
    """With the library's posterior and divergence."""
    schedule = schedule_of(beta)
    mean, var = posterior(schedule, x0, torch.zeros_like(x0), t)
    other, _ = posterior(schedule, guess, torch.zeros_like(x0), t)
    return gaussian_kl(mean, var, other, var)


def cost_of_guess__right_loop(beta, x0, guess, t):
    """Item by item."""
    costs = []
    for x, g, level in zip(x0, guess, t.tolist()):
        left, before = 1.0, 1.0
        for b in beta[:level].tolist():
            before, left = left, left * (1 - b)
        b = float(beta[level - 1])
        share = before**0.5 * b / (1 - left)
        var = b * (1 - before) / (1 - left)
        costs.append(share**2 * float(((x - g) ** 2).sum()) / (2 * var))
    return torch.tensor(costs, dtype=x0.dtype)


def cost_of_guess__wrong_no_half(beta, x0, guess, t):
    """No factor 1/2."""
    return 2 * cost_of_guess__reference(beta, x0, guess, t)


def cost_of_guess__wrong_mean(beta, x0, guess, t):
    """The mean over dimensions instead of the sum."""
    return cost_of_guess__reference(beta, x0, guess, t) / x0[0].numel()


def cost_of_guess__wrong_forward_variance(beta, x0, guess, t):
    """beta instead of the posterior variance."""
    schedule = schedule_of(beta)
    mean, _ = posterior(schedule, x0, 0 * x0, t)
    other, _ = posterior(schedule, guess, 0 * x0, t)
    b = beta[t - 1].view(-1, *[1] * (x0.ndim - 1))
    return gaussian_kl(mean, b, other, b)


def cost_of_guess__wrong_plain(beta, x0, guess, t):
    """The squared error, not weighted."""
    return 0.5 * ((x0 - guess) ** 2).flatten(1).sum(1)


def cost_of_guess__wrong_not_squared(beta, x0, guess, t):
    """The absolute error."""
    left = (1 - beta).cumprod(0)
    snr = left / (1 - left)
    return 0.5 * (snr[t - 2] - snr[t - 1]) * (x0 - guess).abs().flatten(1).sum(1)


def cost_of_guess__wrong_level(beta, x0, guess, t):
    """One level too high, where there is one."""
    later = (t + 1).clamp_max(len(beta))
    return cost_of_guess__reference(beta, x0, guess, later)


def cost_of_guess__wrong_snr(beta, x0, guess, t):
    """The SNR of the level, not the difference of two."""
    left = (1 - beta).cumprod(0)
    squares = ((x0 - guess) ** 2).flatten(1).sum(1)
    return 0.5 * left[t - 1] / (1 - left[t - 1]) * squares


def cost_of_guess__wrong_share(beta, x0, guess, t):
    """The share of x0 not squared."""
    schedule = schedule_of(beta)
    share, var = posterior(schedule, torch.ones_like(x0), 0 * x0, t)
    return (share * (x0 - guess) ** 2 / (2 * var)).flatten(1).sum(1)


def cost_of_guess__wrong_sign(beta, x0, guess, t):
    """Minus the cost: the term of the bound."""
    return -cost_of_guess__reference(beta, x0, guess, t)


def cost_of_guess__wrong_last_axis(beta, x0, guess, t):
    """Sums over the last axis alone and averages the others."""
    squares = ((x0 - guess) ** 2).sum(-1).reshape(len(x0), -1)
    whole = ((x0 - guess) ** 2).flatten(1).sum(1)
    return cost_of_guess__reference(beta, x0, guess, t) / whole * squares.mean(1)


def cost_of_guess__wrong_batch_sum(beta, x0, guess, t):
    """One number for the batch."""
    return cost_of_guess__reference(beta, x0, guess, t).sum()
