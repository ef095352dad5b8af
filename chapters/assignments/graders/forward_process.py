"""Right and wrong answers to the assignment forward_process, for `make graders`."""

import math

import numpy as np
import torch


def constant_beta__right_logarithm(T, left):
    """Through the logarithm, which is exact for tiny shares too."""
    return -math.expm1(math.log(left) / T)


def constant_beta__right_bisection(T, left):
    """By bisection."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if (1 - middle) ** T > left:
            low = middle
        else:
            high = middle
    return torch.tensor((low + high) / 2, dtype=torch.float64)


def constant_beta__wrong_alpha(T, left):
    """What is kept, not what is added."""
    return left ** (1 / T)


def constant_beta__wrong_share(T, left):
    """As if shares were subtracted, not multiplied."""
    return (1 - left) / T


def constant_beta__wrong_exponential(T, left):
    """The approximation for small beta."""
    return -math.log(left) / T


def constant_beta__wrong_no_root(T, left):
    """One step instead of T."""
    return 1 - left


def constant_beta__wrong_off_by_one(T, left):
    """One step too few."""
    return 1 - left ** (1 / max(T - 1, 1))


def constant_beta__wrong_deviation(T, left):
    """The share of the deviation."""
    return 1 - left ** (1 / (2 * T))


def constant_beta__wrong_constant(T, left):
    """The answer to the example."""
    return 0.5 if T > 1 else 0.7


def constant_beta__wrong_one_too_many(T, left):
    """One step too many."""
    return 1 - left ** (1 / (T + 1))


def level_std__right_loop(beta, data_std):
    """Step by step."""
    variance, found = data_std**2, [data_std]
    for b in beta:
        variance = float((1 - b) * variance + b)
        found.append(variance**0.5)
    return torch.tensor(found, dtype=beta.dtype)


def level_std__right_numpy(beta, data_std):
    """In NumPy."""
    left = np.concatenate([[1.0], np.cumprod(1 - beta.numpy())])
    return torch.from_numpy(np.sqrt(left * data_std**2 + 1 - left))


def level_std__wrong_variance(beta, data_std):
    """No root at the end."""
    left = torch.cat([torch.ones_like(beta[:1]), (1 - beta).cumprod(0)])
    return left * data_std**2 + 1 - left


def level_std__wrong_not_squared(beta, data_std):
    """The deviation of the data instead of its variance."""
    left = torch.cat([torch.ones_like(beta[:1]), (1 - beta).cumprod(0)])
    return (left * data_std + 1 - left).sqrt()


def level_std__wrong_no_level_0(beta, data_std):
    """Level 0 is missing."""
    left = (1 - beta).cumprod(0)
    return (left * data_std**2 + 1 - left).sqrt()


def level_std__wrong_deviations_add(beta, data_std):
    """Adds deviations instead of variances."""
    left = torch.cat([torch.ones_like(beta[:1]), (1 - beta).cumprod(0)])
    return left.sqrt() * data_std + (1 - left).sqrt()


def level_std__wrong_one_step(beta, data_std):
    """alpha instead of alpha_bar."""
    left = torch.cat([torch.ones_like(beta[:1]), 1 - beta])
    return (left * data_std**2 + 1 - left).sqrt()


def level_std__wrong_sum(beta, data_std):
    """A sum of betas instead of a product of alphas."""
    left = torch.cat([torch.ones_like(beta[:1]), 1 - beta.cumsum(0)])
    return (left * data_std**2 + 1 - left).clamp_min(0).sqrt()


def level_std__wrong_shifted(beta, data_std):
    """Level t has the value of level t - 1."""
    left = (1 - beta).cumprod(0)
    left = torch.cat([torch.ones_like(beta[:2]), left[:-1]])
    return (left * data_std**2 + 1 - left).sqrt()


def level_std__wrong_signal_only(beta, data_std):
    """Forgets the noise."""
    left = torch.cat([torch.ones_like(beta[:1]), (1 - beta).cumprod(0)])
    return left.sqrt() * data_std


def level_std__wrong_ones(beta, data_std):
    """Always variance preserving."""
    return torch.ones(len(beta) + 1, dtype=beta.dtype)


def mix_at__right_loop(x0, snr_db, eps):
    """Item by item."""
    mixed = []
    for x, db, e in zip(x0, snr_db, eps):
        power = float(10 ** (db / 10))
        mixed.append(math.sqrt(power / (1 + power)) * x + (1 / (1 + power)) ** 0.5 * e)
    return torch.stack(mixed)


def mix_at__right_einsum(x0, snr_db, eps):
    """With a sigmoid and einsum."""
    left = torch.sigmoid(snr_db.to(x0.dtype) * math.log(10) / 10)
    signal = torch.einsum("b,b...->b...", left.sqrt(), x0)
    return signal + torch.einsum("b,b...->b...", (1 - left).sqrt(), eps)


def mix_at__wrong_amplitude_decibels(x0, snr_db, eps):
    """20 log10 instead of 10 log10."""
    snr = 10 ** (snr_db.to(x0) / 20)
    left = (snr / (1 + snr)).view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt() * x0 + (1 - left).sqrt() * eps


def mix_at__wrong_no_roots(x0, snr_db, eps):
    """Shares without roots."""
    snr = 10 ** (snr_db.to(x0) / 10)
    left = (snr / (1 + snr)).view(-1, *[1] * (x0.ndim - 1))
    return left * x0 + (1 - left) * eps


def mix_at__wrong_noise_root(x0, snr_db, eps):
    """1 - sqrt(alpha_bar) instead of sqrt(1 - alpha_bar)."""
    snr = 10 ** (snr_db.to(x0) / 10)
    left = (snr / (1 + snr)).view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt() * x0 + (1 - left.sqrt()) * eps


def mix_at__wrong_swapped(x0, snr_db, eps):
    """Signal and noise exchanged."""
    snr = 10 ** (snr_db.to(x0) / 10)
    left = (snr / (1 + snr)).view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt() * eps + (1 - left).sqrt() * x0


def mix_at__wrong_last_axis(x0, snr_db, eps):
    """The ratio goes with the last axis where it fits."""
    snr = 10 ** (snr_db.to(x0) / 10)
    left = snr / (1 + snr)
    if x0.shape[-1] != len(left):
        left = left.view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt() * x0 + (1 - left).sqrt() * eps


def mix_at__wrong_three_axes(x0, snr_db, eps):
    """Right for three axes only."""
    left = torch.sigmoid(snr_db.to(x0) * math.log(10) / 10)[:, None, None]
    return left.sqrt() * x0 + (1 - left).sqrt() * eps


def mix_at__wrong_mean_ratio(x0, snr_db, eps):
    """One ratio for the whole batch."""
    left = torch.sigmoid(snr_db.to(x0) * math.log(10) / 10).mean()
    return left.sqrt() * x0 + (1 - left).sqrt() * eps


def mix_at__wrong_detached(x0, snr_db, eps):
    """No gradient passes."""
    left = torch.sigmoid(snr_db.to(x0) * math.log(10) / 10)
    left = left.view(-1, *[1] * (x0.ndim - 1))
    return (left.sqrt() * x0 + (1 - left).sqrt() * eps).detach()


def mix_at__wrong_noise_scaled(x0, snr_db, eps):
    """Scales the noise only, so that the mixture changes its size."""
    snr = (10 ** (snr_db.to(x0) / 10)).view(-1, *[1] * (x0.ndim - 1))
    return x0 + eps / snr.sqrt()


def mix_at__wrong_float32(x0, snr_db, eps):
    """Always in single precision."""
    left = torch.sigmoid(snr_db.float() * math.log(10) / 10)
    left = left.view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt() * x0.float() + (1 - left).sqrt() * eps.float()


def walk__right_in_place(beta, x0, eps):
    """Into a tensor that is there beforehand."""
    x = torch.empty(len(beta) + 1, *x0.shape, dtype=x0.dtype)
    x[0] = x0
    for t in range(1, len(beta) + 1):
        x[t] = (1 - beta[t - 1]) ** 0.5 * x[t - 1] + beta[t - 1] ** 0.5 * eps[t - 1]
    return x


def walk__right_closed_form(beta, x0, eps):
    """Without a loop over levels: weights of all noises at once."""
    left = (1 - beta).cumprod(0)
    kept = left[:, None] / left[None]  # (t, i): what steps after i keep up to t
    weights = (kept * beta).sqrt().tril()
    noise = torch.tensordot(weights, eps, dims=1)
    signal = torch.einsum("t,b...->tb...", left.sqrt(), x0)
    return torch.cat([x0[None], signal + noise])


def walk__wrong_no_level_0(beta, x0, eps):
    """Level 0 is missing."""
    x, levels = x0, []
    for b, e in zip(beta, eps):
        x = (1 - b).sqrt() * x + b.sqrt() * e
        levels.append(x)
    return torch.stack(levels)


def walk__wrong_no_roots(beta, x0, eps):
    """No roots."""
    x = [x0]
    for b, e in zip(beta, eps):
        x.append((1 - b) * x[-1] + b * e)
    return torch.stack(x)


def walk__wrong_noise_root(beta, x0, eps):
    """No root on the noise."""
    x = [x0]
    for b, e in zip(beta, eps):
        x.append((1 - b).sqrt() * x[-1] + b * e)
    return torch.stack(x)


def walk__wrong_same_noise(beta, x0, eps):
    """The first noise in every step."""
    x = [x0]
    for b in beta:
        x.append((1 - b).sqrt() * x[-1] + b.sqrt() * eps[0])
    return torch.stack(x)


def walk__wrong_swelling(beta, x0, eps):
    """Adds noise without shrinking what is there."""
    x = [x0]
    for b, e in zip(beta, eps):
        x.append(x[-1] + b.sqrt() * e)
    return torch.stack(x)


def walk__wrong_from_x0(beta, x0, eps):
    """Each level is one step from x0."""
    x = [x0]
    for b, e in zip(beta, eps):
        x.append((1 - b).sqrt() * x0 + b.sqrt() * e)
    return torch.stack(x)


def walk__wrong_jumps(beta, x0, eps):
    """Jumps, each with its own noise: right alone, but no chain."""
    left = (1 - beta).cumprod(0)
    x = [x0] + [a.sqrt() * x0 + (1 - a).sqrt() * e for a, e in zip(left, eps)]
    return torch.stack(x)


def walk__wrong_only_the_end(beta, x0, eps):
    """x_T alone."""
    x = x0
    for b, e in zip(beta, eps):
        x = (1 - b).sqrt() * x + b.sqrt() * e
    return x


def walk__wrong_backwards(beta, x0, eps):
    """The steps in reverse order."""
    x = [x0]
    for b, e in zip(beta.flip(0), eps.flip(0)):
        x.append((1 - b).sqrt() * x[-1] + b.sqrt() * e)
    return torch.stack(x)


def walk__wrong_batch_second(beta, x0, eps):
    """Levels in the second axis."""
    x = [x0]
    for b, e in zip(beta, eps):
        x.append((1 - b).sqrt() * x[-1] + b.sqrt() * e)
    return torch.stack(x, dim=1)


def merged_noise__right_walk(beta, eps):
    """A walk from silence, scaled to variance 1."""
    x, left = torch.zeros_like(eps[0]), 1.0
    for b, e in zip(beta, eps):
        x, left = (1 - b).sqrt() * x + b.sqrt() * e, left * (1 - b)
    return x / (1 - left).sqrt()


def merged_noise__right_numpy(beta, eps):
    """In NumPy, weight by weight."""
    b = beta.numpy().astype(float)
    weights = [np.sqrt(b[i] * np.prod(1 - b[i + 1 :])) for i in range(len(b))]
    total = sum(w * e for w, e in zip(weights, eps.numpy()))
    return torch.from_numpy(total / np.sqrt(1 - np.prod(1 - b)))


def merged_noise__wrong_not_scaled(beta, eps):
    """The chain's noise, not scaled to variance 1."""
    x = torch.zeros_like(eps[0])
    for b, e in zip(beta, eps):
        x = (1 - b).sqrt() * x + b.sqrt() * e
    return x


def merged_noise__wrong_sum(beta, eps):
    """The plain sum, scaled."""
    return eps.sum(0) / len(eps) ** 0.5


def merged_noise__wrong_mean(beta, eps):
    """The mean."""
    return eps.mean(0)


def merged_noise__wrong_last(beta, eps):
    """The last noise."""
    return eps[-1]


def merged_noise__wrong_no_decay(beta, eps):
    """Forgets that later steps shrink earlier noise."""
    weights = beta.sqrt() / beta.sum().sqrt()
    return torch.tensordot(weights, eps, dims=1)


def merged_noise__wrong_decay_one_more(beta, eps):
    """Shrinks each noise by its own step too."""
    left = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones_like(left[:1]), left[:-1]])
    weights = (beta * left[-1] / before).sqrt()
    return torch.tensordot(weights / weights.norm(), eps, dims=1)


def merged_noise__wrong_earlier_steps(beta, eps):
    """Shrinks by the steps before instead of after."""
    left = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones_like(left[:1]), left[:-1]])
    weights = (beta * before).sqrt()
    return torch.tensordot(weights / (1 - left[-1]).sqrt(), eps, dims=1)


def merged_noise__wrong_no_root(beta, eps):
    """Weights without roots."""
    left = (1 - beta).cumprod(0)
    weights = beta * left[-1] / left / (1 - left[-1])
    return torch.tensordot(weights, eps, dims=1)


def merged_noise__wrong_equal_betas(beta, eps):
    """Right if all betas are equal."""
    b = beta.mean()
    powers = torch.arange(len(beta) - 1, -1, -1, dtype=beta.dtype)
    weights = (b * (1 - b) ** powers).sqrt() / (1 - (1 - b) ** len(beta)).sqrt()
    return torch.tensordot(weights, eps, dims=1)


def merged_noise__wrong_normalised_by_data(beta, eps):
    """Scaled to variance 1 over the draws instead of by the formula."""
    x = torch.zeros_like(eps[0])
    for b, e in zip(beta, eps):
        x = (1 - b).sqrt() * x + b.sqrt() * e
    return x / x.std() if x.numel() > 1 else x / x.abs()


def first_below__right_loop(beta, snr_db):
    """A loop that stops."""
    left = 1.0
    for t, b in enumerate(beta.double().tolist(), 1):
        left *= 1 - b
        if 10 * math.log10(left / (1 - left)) < snr_db:
            return t
    return len(beta) + 1


def first_below__right_numpy(beta, snr_db):
    """In NumPy, with a threshold for alpha_bar."""
    left = np.cumprod(1 - beta.numpy().astype(float))
    snr = 10 ** (snr_db / 10)
    below = np.flatnonzero(left < snr / (1 + snr))
    return int(below[0]) + 1 if len(below) else len(left) + 1


def first_below__wrong_at_or_below(beta, snr_db):
    """A level that lies exactly at the number counts as below."""
    alpha_bar = (1 - beta).cumprod(0)
    db = 10 * torch.log10(alpha_bar / (1 - alpha_bar))
    return 1 + int((db > snr_db).sum())


def first_below__wrong_from_zero(beta, snr_db):
    """Counts levels from 0."""
    left = (1 - beta).cumprod(0)
    return int((10 * torch.log10(left / (1 - left)) >= snr_db).sum())


def first_below__wrong_last_above(beta, snr_db):
    """One level too far."""
    left = (1 - beta).cumprod(0)
    return 2 + int((10 * torch.log10(left / (1 - left)) >= snr_db).sum())


def first_below__wrong_amplitude(beta, snr_db):
    """20 log10."""
    left = (1 - beta).cumprod(0)
    return 1 + int((20 * torch.log10(left / (1 - left)) >= snr_db).sum())


def first_below__wrong_natural(beta, snr_db):
    """The natural logarithm."""
    left = (1 - beta).cumprod(0)
    return 1 + int((10 * (left / (1 - left)).log() >= snr_db).sum())


def first_below__wrong_alpha(beta, snr_db):
    """alpha instead of alpha_bar."""
    left = 1 - beta
    return 1 + int((10 * torch.log10(left / (1 - left)) >= snr_db).sum())


def first_below__wrong_share(beta, snr_db):
    """Decibels of alpha_bar instead of the ratio."""
    left = (1 - beta).cumprod(0)
    return 1 + int((10 * torch.log10(left) >= snr_db).sum())


def first_below__wrong_capped(beta, snr_db):
    """T where no level is below."""
    left = (1 - beta).cumprod(0)
    level = 1 + int((10 * torch.log10(left / (1 - left)) >= snr_db).sum())
    return min(level, len(beta))


def first_below__wrong_sign(beta, snr_db):
    """The first level above."""
    left = (1 - beta).cumprod(0)
    return 1 + int((10 * torch.log10(left / (1 - left)) < snr_db).sum())


def first_below__wrong_argmax(beta, snr_db):
    """argmax of nothing is 0: wrong where no level is below."""
    left = (1 - beta).cumprod(0)
    below = 10 * torch.log10(left / (1 - left)) < snr_db
    return 1 + int(below.int().argmax())
