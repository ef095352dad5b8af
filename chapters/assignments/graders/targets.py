"""Right and wrong answers to the assignment targets, for `make graders`."""

import numpy as np
import torch

from minilib.diffusion import Schedule, eps_from_velocity, posterior, predict_x0


def at(table, t, x):
    """The rows of a table at the levels t, shaped to multiply x."""
    return table.to(x)[t].view(-1, *[1] * (x.ndim - 1))


def roots(alpha_bar, t, x):
    """The shares of signal and noise, shaped to multiply x."""
    return at(alpha_bar.sqrt(), t, x), at((1 - alpha_bar).sqrt(), t, x)


def solved(signal, noise, a, b, xt, output):
    """The x0 of the two equations."""
    return (b * xt - noise * output) / (b * signal - a * noise)


def schedule_of(alpha_bar):
    """The library's schedule with these shares."""
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return Schedule(torch.cat([torch.zeros_like(beta[:1]), beta]))


def errors(model, alpha_bar, a, b, x0, t, eps):
    """The model's errors, like x0."""
    signal, noise = roots(alpha_bar, t, x0)
    return model(signal * x0 + noise * eps, t) - (
        at(a, t, x0) * x0 + at(b, t, x0) * eps
    )


def mean_of(alpha_bar, xt, t, x0):
    """The posterior's mean, by the library."""
    return posterior(schedule_of(alpha_bar), x0, xt, t)[0]


def likely(points, alpha_bar, xt, t):
    """How likely it is that xt came from each point, (B, N)."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square().sum(-1)
    return torch.softmax(-away / (2 * (1 - kept[..., 0])), dim=1)


def x0_from__right_elimination(alpha_bar, a, b, xt, t, output):
    """First the noise, then x0."""
    signal, noise = roots(alpha_bar, t, xt)
    a, b = at(a, t, xt), at(b, t, xt)
    eps = (output - a / signal * xt) / (b - a * noise / signal)
    return (xt - noise * eps) / signal


def x0_from__right_solve(alpha_bar, a, b, xt, t, output):
    """Two equations for each item, by the library's solver."""
    kept = alpha_bar[t]
    rows = [torch.stack([kept.sqrt(), (1 - kept).sqrt()], -1)]
    rows.append(torch.stack([a[t], b[t]], -1))
    both = (
        torch.stack([xt.flatten(1), output.flatten(1)], 1)
        if xt.ndim > 1
        else (torch.stack([xt, output], 1)[..., None])
    )
    x0 = torch.linalg.solve(torch.stack(rows, 1).to(xt), both)[:, 0]
    return x0.reshape(xt.shape)


def x0_from__wrong_as_noise(alpha_bar, a, b, xt, t, output):
    """As if the output were always the noise."""
    signal, noise = roots(alpha_bar, t, xt)
    return (xt - noise * output) / signal


def x0_from__wrong_no_roots(alpha_bar, a, b, xt, t, output):
    """No roots."""
    signal, noise = at(alpha_bar, t, xt), at(1 - alpha_bar, t, xt)
    return solved(signal, noise, at(a, t, xt), at(b, t, xt), xt, output)


def x0_from__wrong_sign(alpha_bar, a, b, xt, t, output):
    """A wrong sign in the determinant."""
    signal, noise = roots(alpha_bar, t, xt)
    a, b = at(a, t, xt), at(b, t, xt)
    return (b * xt - noise * output) / (b * signal + a * noise)


def x0_from__wrong_swapped(alpha_bar, a, b, xt, t, output):
    """a and b exchanged."""
    signal, noise = roots(alpha_bar, t, xt)
    return solved(signal, noise, at(b, t, xt), at(a, t, xt), xt, output)


def x0_from__wrong_noise(alpha_bar, a, b, xt, t, output):
    """The noise instead of the sound."""
    signal, noise = roots(alpha_bar, t, xt)
    a, b = at(a, t, xt), at(b, t, xt)
    return (signal * output - a * xt) / (b * signal - a * noise)


def x0_from__wrong_level_below(alpha_bar, a, b, xt, t, output):
    """Tables that are read one level too low."""
    signal, noise = roots(alpha_bar, t - 1, xt)
    return solved(signal, noise, at(a, t - 1, xt), at(b, t - 1, xt), xt, output)


def x0_from__wrong_first_level(alpha_bar, a, b, xt, t, output):
    """The level of the first item for all."""
    return x0_from__reference(alpha_bar, a, b, xt, t[:1].expand_as(t), output)


def x0_from__wrong_not_divided(alpha_bar, a, b, xt, t, output):
    """As the velocity's: right where a turn is undone."""
    signal, noise = roots(alpha_bar, t, xt)
    return at(b, t, xt) * xt - noise * output


def x0_from__wrong_constant_tables(alpha_bar, a, b, xt, t, output):
    """a and b of the last level everywhere."""
    last = torch.full_like(t, len(a) - 1)
    signal, noise = roots(alpha_bar, t, xt)
    return solved(signal, noise, at(a, last, xt), at(b, last, xt), xt, output)


def x0_from__wrong_two_axes(alpha_bar, a, b, xt, t, output):
    """Right for two axes only."""
    kept, a, b = (table.to(xt)[t][:, None] for table in (alpha_bar, a, b))
    return solved(kept.sqrt(), (1 - kept).sqrt(), a, b, xt, output)


def x0_from__wrong_float64(alpha_bar, a, b, xt, t, output):
    """Always in double precision."""
    return x0_from__reference(alpha_bar, a, b, xt.double(), t, output)


def simple_weight__right_two_rates(alpha_bar, a, b, t):
    """Through the rates of both targets to x0."""
    kept = alpha_bar[t]
    share = b[t] * kept.sqrt() - a[t] * (1 - kept).sqrt()
    return (1 - kept) / share**2 / ((1 - kept) / kept)


def simple_weight__right_numpy_loop(alpha_bar, a, b, t):
    """Item by item, from one guess, in NumPy."""
    found = []
    for level in t.tolist():
        s, n = np.sqrt(float(alpha_bar[level])), np.sqrt(1 - float(alpha_bar[level]))
        move = float(a[level]) + float(b[level]) * (-s / n)  # x0 is off by 1
        found.append((s / n / move) ** 2)
    return torch.tensor(found, dtype=alpha_bar.dtype)


def simple_weight__wrong_ones(alpha_bar, a, b, t):
    """No weight."""
    return torch.ones_like(alpha_bar[t])


def simple_weight__wrong_b_alone(alpha_bar, a, b, t):
    """Forgets the x0 in the target."""
    return 1 / b[t].square().clamp_min(1e-9)


def simple_weight__wrong_sign(alpha_bar, a, b, t):
    """As if the errors of x0 and of the noise had one sign."""
    kept = alpha_bar[t]
    return 1 / (b[t] + a[t] * ((1 - kept) / kept).sqrt()) ** 2


def simple_weight__wrong_not_squared(alpha_bar, a, b, t):
    """Not squared."""
    kept = alpha_bar[t]
    return 1 / (b[t] - a[t] * ((1 - kept) / kept).sqrt()).abs()


def simple_weight__wrong_inverse(alpha_bar, a, b, t):
    """The inverse."""
    return 1 / simple_weight__reference(alpha_bar, a, b, t)


def simple_weight__wrong_of_x0(alpha_bar, a, b, t):
    """The rate to x0, not to the noise."""
    kept = alpha_bar[t]
    return simple_weight__reference(alpha_bar, a, b, t) * (1 - kept) / kept


def simple_weight__wrong_independent(alpha_bar, a, b, t):
    """Adds variances, as if the two errors were independent."""
    kept = alpha_bar[t]
    return 1 / (b[t] ** 2 + a[t] ** 2 * (1 - kept) / kept)


def simple_weight__wrong_ratio_inverted(alpha_bar, a, b, t):
    """Signal over noise instead of noise over signal."""
    kept = alpha_bar[t]
    return 1 / (b[t] - a[t] * (kept / (1 - kept)).sqrt()) ** 2


def simple_weight__wrong_snr(alpha_bar, a, b, t):
    """The signal-to-noise ratio: right for the sound only."""
    return alpha_bar[t] / (1 - alpha_bar[t]) + 0 * a[t]


def simple_weight__wrong_level_below(alpha_bar, a, b, t):
    """Tables that are read one level too low."""
    return simple_weight__reference(alpha_bar, a, b, (t - 1).clamp_min(1))


def simple_weight__wrong_velocity(alpha_bar, a, b, t):
    """Right for the velocity only."""
    return alpha_bar[t]


def target_loss__right_loop(model, alpha_bar, a, b, x0, t, eps, weight):
    """Item by item after the call."""
    kept = at(alpha_bar, t, x0)
    says = model(kept**0.5 * x0 + (1 - kept) ** 0.5 * eps, t)
    total = 0
    for i, level in enumerate(t):
        wanted = a[level] * x0[i] + b[level] * eps[i]
        total = total + weight[i] * torch.nn.functional.mse_loss(says[i], wanted)
    return total / len(t)


def target_loss__right_einsum(model, alpha_bar, a, b, x0, t, eps, weight):
    """With einsum over all dimensions at once."""
    off = errors(model, alpha_bar, a, b, x0, t, eps).flatten(1)
    return torch.einsum("b,bd,bd->", weight, off, off) / off.numel()


def target_loss__wrong_unweighted(model, alpha_bar, a, b, x0, t, eps, weight):
    """No weights."""
    return errors(model, alpha_bar, a, b, x0, t, eps).square().mean()


def target_loss__wrong_normalised(model, alpha_bar, a, b, x0, t, eps, weight):
    """Divides by the sum of the weights."""
    loss = target_loss__reference(model, alpha_bar, a, b, x0, t, eps, weight)
    return loss / weight.mean()


def target_loss__wrong_sum(model, alpha_bar, a, b, x0, t, eps, weight):
    """A sum over dimensions."""
    off = errors(model, alpha_bar, a, b, x0, t, eps)
    return (weight * off.square().flatten(1).sum(1)).mean()


def target_loss__wrong_sum_of_items(model, alpha_bar, a, b, x0, t, eps, weight):
    """A sum over items."""
    off = errors(model, alpha_bar, a, b, x0, t, eps)
    return (weight * off.square().flatten(1).mean(1)).sum()


def target_loss__wrong_weight_inside(model, alpha_bar, a, b, x0, t, eps, weight):
    """The weight is squared with the error."""
    return target_loss__reference(model, alpha_bar, a, b, x0, t, eps, weight**2)


def target_loss__wrong_absolute(model, alpha_bar, a, b, x0, t, eps, weight):
    """Absolute instead of squared errors."""
    off = errors(model, alpha_bar, a, b, x0, t, eps)
    return (weight * off.abs().flatten(1).mean(1)).mean()


def target_loss__wrong_root(model, alpha_bar, a, b, x0, t, eps, weight):
    """The root of the loss."""
    loss = target_loss__reference(model, alpha_bar, a, b, x0, t, eps, weight)
    return loss.sqrt()


def target_loss__wrong_clean_input(model, alpha_bar, a, b, x0, t, eps, weight):
    """The model sees x0."""
    return target_loss__reference(
        lambda xt, t: model(x0, t), alpha_bar, a, b, x0, t, eps, weight
    )


def target_loss__wrong_level_below(model, alpha_bar, a, b, x0, t, eps, weight):
    """The model is told a level too low."""
    return target_loss__reference(
        lambda xt, t: model(xt, t - 1), alpha_bar, a, b, x0, t, eps, weight
    )


def target_loss__wrong_no_roots(model, alpha_bar, a, b, x0, t, eps, weight):
    """No roots in xt."""
    kept = at(alpha_bar, t, x0)
    xt = kept * x0 + (1 - kept) * eps
    return target_loss__reference(
        lambda _, t: model(xt, t), alpha_bar, a, b, x0, t, eps, weight
    )


def target_loss__wrong_always_noise(model, alpha_bar, a, b, x0, t, eps, weight):
    """Compares with the noise."""
    zero, one = torch.zeros_like(a), torch.ones_like(b)
    return target_loss__reference(model, alpha_bar, zero, one, x0, t, eps, weight)


def target_loss__wrong_swapped(model, alpha_bar, a, b, x0, t, eps, weight):
    """a and b exchanged."""
    return target_loss__reference(model, alpha_bar, b, a, x0, t, eps, weight)


def target_loss__wrong_detached(model, alpha_bar, a, b, x0, t, eps, weight):
    """No gradient passes."""
    loss = target_loss__reference(model, alpha_bar, a, b, x0, t, eps, weight)
    return loss.detach()


def target_loss__wrong_twice(model, alpha_bar, a, b, x0, t, eps, weight):
    """Calls the model twice: what training would pay for."""
    again = lambda xt, t: (model(xt, t) + model(xt, t)) / 2
    return target_loss__reference(again, alpha_bar, a, b, x0, t, eps, weight)


def mean_from_v__right_library(alpha_bar, xt, t, v):
    """By the library, through the noise."""
    own = schedule_of(alpha_bar)
    x0 = predict_x0(own, xt, t, eps_from_velocity(own, xt, t, v))
    return posterior(own, x0, xt, t)[0]


def mean_from_v__right_angles(alpha_bar, xt, t, v):
    """With angles: the noise is turned back, then the mean of Ho et al., Eq. 11."""
    phi = at(torch.acos(alpha_bar.sqrt()), t, xt)
    alpha = at(alpha_bar / alpha_bar.roll(1), t, xt)
    eps = phi.sin() * xt + phi.cos() * v
    return (xt - (1 - alpha) / phi.sin() * eps) / alpha.sqrt()


def mean_from_v__wrong_as_noise(alpha_bar, xt, t, v):
    """Takes the velocity for the noise."""
    signal, noise = roots(alpha_bar, t, xt)
    return mean_of(alpha_bar, xt, t, (xt - noise * v) / signal)


def mean_from_v__wrong_sign(alpha_bar, xt, t, v):
    """The velocity with the wrong sign."""
    return mean_from_v__reference(alpha_bar, xt, t, -v)


def mean_from_v__wrong_roots_swapped(alpha_bar, xt, t, v):
    """Signal and noise exchanged on the way to x0."""
    signal, noise = roots(alpha_bar, t, xt)
    return mean_of(alpha_bar, xt, t, noise * xt - signal * v)


def mean_from_v__wrong_only_x0(alpha_bar, xt, t, v):
    """x0 itself: right at level 1 only."""
    signal, noise = roots(alpha_bar, t, xt)
    return signal * xt - noise * v


def mean_from_v__wrong_renoised(alpha_bar, xt, t, v):
    """DDIM's step instead of the posterior's mean."""
    signal, noise = roots(alpha_bar, t, xt)
    before, its_noise = roots(alpha_bar, t - 1, xt)
    x0, eps = signal * xt - noise * v, noise * xt + signal * v
    return before * x0 + its_noise * eps


def mean_from_v__wrong_shares_swapped(alpha_bar, xt, t, v):
    """The shares of x0 and xt exchanged."""
    signal, noise = roots(alpha_bar, t, xt)
    x0 = signal * xt - noise * v
    zero = torch.zeros_like(xt)
    of_x0 = mean_of(alpha_bar, zero, t, torch.ones_like(xt))
    of_xt = mean_of(alpha_bar, torch.ones_like(xt), t, zero)
    return of_xt * x0 + of_x0 * xt


def mean_from_v__wrong_no_root(alpha_bar, xt, t, v):
    """No root on the share of x0."""
    signal, noise = roots(alpha_bar, t, xt)
    before = at(alpha_bar.sqrt(), t - 1, xt)
    x0 = signal * xt - noise * v
    return mean_of(alpha_bar, xt, t, before * x0)


def mean_from_v__wrong_same_level(alpha_bar, xt, t, v):
    """alpha_bar of t where that of t - 1 belongs, in the share of x0."""
    signal, noise = roots(alpha_bar, t, xt)
    before = at(alpha_bar.sqrt(), t - 1, xt)
    x0 = signal * xt - noise * v
    return mean_of(alpha_bar, xt, t, signal / before * x0)


def mean_from_v__wrong_step_alpha(alpha_bar, xt, t, v):
    """alpha_bar where the alpha of the step belongs."""
    signal, noise = roots(alpha_bar, t, xt)
    before = at(alpha_bar, t - 1, xt)
    x0 = signal * xt - noise * v
    mean = before.sqrt() * noise**2 * x0 + signal * (1 - before) * xt
    return mean / noise**2


def mean_from_v__wrong_first_level(alpha_bar, xt, t, v):
    """The level of the last item for all."""
    return mean_from_v__reference(alpha_bar, xt, t[-1:].expand_as(t), v)


def mean_from_v__wrong_two_axes(alpha_bar, xt, t, v):
    """Right for two axes only."""
    left, before = alpha_bar.to(xt)[t][:, None], alpha_bar.to(xt)[t - 1][:, None]
    alpha, x0 = left / before, left.sqrt() * xt - (1 - left).sqrt() * v
    mean = before.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - before) * xt
    return mean / (1 - left)


def best_x0__right_logarithms(points, alpha_bar, xt, t):
    """By logsumexp, item by item."""
    found = []
    for x, level in zip(xt, t):
        kept = alpha_bar[level].to(x)
        away = (x - kept.sqrt() * points).square().sum(1) / (2 * (1 - kept))
        found.append((-away - torch.logsumexp(-away, 0)).exp() @ points)
    return torch.stack(found)


def best_x0__right_numpy(points, alpha_bar, xt, t):
    """In NumPy: products instead of distances, the largest taken out first."""
    p, x, kept = points.numpy(), xt.numpy(), alpha_bar.numpy()[t.numpy()][:, None]
    logs = np.sqrt(kept) * (x @ p.T) - kept * (p**2).sum(1) / 2
    logs = logs / (1 - kept)
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    found = weights @ p / weights.sum(axis=1, keepdims=True)
    return torch.from_numpy(found).to(xt.dtype)


def best_x0__wrong_underflow(points, alpha_bar, xt, t):
    """Likelihoods without logarithms: 0 / 0 at low noise."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square().sum(-1)
    weights = (-away / (2 * (1 - kept[..., 0]))).exp()
    return weights @ points / weights.sum(1, keepdim=True)


def best_x0__wrong_guarded(points, alpha_bar, xt, t):
    """Without logarithms, guarded by a small number: 0 at low noise."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square().sum(-1)
    weights = (-away / (2 * (1 - kept[..., 0]))).exp()
    return weights @ points / (weights.sum(1, keepdim=True) + 1e-12)


def best_x0__wrong_nearest(points, alpha_bar, xt, t):
    """The likeliest point instead of the average."""
    return points[likely(points, alpha_bar, xt, t).argmax(1)]


def best_x0__wrong_mean(points, alpha_bar, xt, t):
    """The mean of all points."""
    return points.mean(0).expand_as(xt)


def best_x0__wrong_not_shrunk(points, alpha_bar, xt, t):
    """Bells around the points themselves."""
    kept = alpha_bar.to(xt)[t][:, None]
    away = (xt[:, None] - points).square().sum(-1)
    return torch.softmax(-away / (2 * (1 - kept)), 1) @ points


def best_x0__wrong_no_half(points, alpha_bar, xt, t):
    """Forgets the 2 of the bell."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square().sum(-1)
    return torch.softmax(-away / (1 - kept[..., 0]), 1) @ points


def best_x0__wrong_deviation(points, alpha_bar, xt, t):
    """The deviation where the variance belongs."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square().sum(-1)
    return torch.softmax(-away / (2 * (1 - kept[..., 0]).sqrt()), 1) @ points


def best_x0__wrong_no_root(points, alpha_bar, xt, t):
    """Centres at alpha_bar times the points."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept * points).square().sum(-1)
    return torch.softmax(-away / (2 * (1 - kept[..., 0])), 1) @ points


def best_x0__wrong_dimensions_apart(points, alpha_bar, xt, t):
    """Each dimension by itself."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square()  # (B, N, D)
    return (torch.softmax(-away / (2 * (1 - kept)), 1) * points).sum(1)


def best_x0__wrong_mean_distance(points, alpha_bar, xt, t):
    """The mean over dimensions instead of the sum."""
    kept = alpha_bar.to(xt)[t][:, None, None]
    away = (xt[:, None] - kept.sqrt() * points).square().mean(-1)
    return torch.softmax(-away / (2 * (1 - kept[..., 0])), 1) @ points


def best_x0__wrong_scaled(points, alpha_bar, xt, t):
    """The signal in xt instead of x0."""
    kept = alpha_bar.to(xt)[t][:, None]
    return kept.sqrt() * best_x0__reference(points, alpha_bar, xt, t)


def best_x0__wrong_level_below(points, alpha_bar, xt, t):
    """One level too low, from level 2 on."""
    return best_x0__reference(points, alpha_bar, xt, (t - 1).clamp_min(1))


def loss_by_level__right_loop(error, t, T, groups):
    """In plain Python."""
    found = [[] for _ in range(groups)]
    for e, level in zip(error, t.tolist()):
        found[(level - 1) // (T // groups)].append(float(e.mean()))
    means = [sum(x) / len(x) if x else float("nan") for x in found]
    return torch.tensor(means, dtype=error.dtype)


def loss_by_level__right_one_hot(error, t, T, groups):
    """By a matrix of ones and zeros."""
    member = torch.nn.functional.one_hot((t - 1) // (T // groups), groups).to(error)
    item = error.reshape(len(t), -1).mean(1)
    return member.T @ item / member.sum(0)


def loss_by_level__right_bincount(error, t, T, groups):
    """By counting, in NumPy."""
    group = (t.numpy() - 1) // (T // groups)
    item = error.numpy().reshape(len(group), -1).mean(axis=1)
    with np.errstate(invalid="ignore"):
        total = np.bincount(group, item, groups) / np.bincount(group, minlength=groups)
    return torch.from_numpy(total)


def loss_by_level__wrong_from_zero(error, t, T, groups):
    """As if levels began at 0."""
    return loss_by_level__reference(error, (t + 1).clamp_max(T), T, groups)


def loss_by_level__wrong_zero(error, t, T, groups):
    """0 for empty groups."""
    return loss_by_level__reference(error, t, T, groups).nan_to_num(0.0)


def loss_by_level__wrong_sum(error, t, T, groups):
    """Sums."""
    item = error.reshape(len(t), -1).mean(1)
    group = (t - 1) * groups // T
    found = [item[group == g].sum() for g in range(groups)]
    return torch.stack(found)


def loss_by_level__wrong_share(error, t, T, groups):
    """Divides by all items."""
    item = error.reshape(len(t), -1).mean(1)
    group = (t - 1) * groups // T
    found = [item[group == g].sum() for g in range(groups)]
    return torch.stack(found) / len(t)


def loss_by_level__wrong_by_count(error, t, T, groups):
    """Groups of equal numbers of items instead of levels."""
    item = error.reshape(len(t), -1).mean(1)[t.argsort()]
    return torch.stack([part.mean() for part in item.tensor_split(groups)])


def loss_by_level__wrong_modulo(error, t, T, groups):
    """Every G-th level in one group."""
    return loss_by_level__reference(error, (t - 1) % groups + 1, groups, groups)


def loss_by_level__wrong_swapped(error, t, T, groups):
    """The noisiest group first."""
    return loss_by_level__reference(error, t, T, groups).flip(0)


def loss_by_level__wrong_last_only(error, t, T, groups):
    """The last item of each group."""
    found = torch.full((groups,), float("nan"), dtype=error.dtype)
    for e, level in zip(error, t.tolist()):
        found[(level - 1) * groups // T] = e.mean()
    return found


def loss_by_level__wrong_median(error, t, T, groups):
    """Medians."""
    item, group = error.reshape(len(t), -1).mean(1), (t - 1) * groups // T
    found = [item[group == g] for g in range(groups)]
    nan = error.new_tensor(float("nan"))
    return torch.stack([x.median() if len(x) else nan for x in found])


def loss_by_level__wrong_first_dimension(error, t, T, groups):
    """The first number of each item."""
    return loss_by_level__reference(error.reshape(len(t), -1)[:, 0], t, T, groups)


def loss_by_level__wrong_mean_of_all(error, t, T, groups):
    """The mean of all items, whatever their level."""
    return error.mean().expand(groups)
