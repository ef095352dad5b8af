"""Right and wrong answers to vae_and_kl."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def draw_latents__right_loop(moments, eps):
    """Draw by draw."""
    C = moments.shape[1] // 2
    std = torch.exp(torch.clip(moments[:, C:], min=-30, max=20)) ** 0.5
    return torch.stack([moments[:, :C] + std * e for e in eps])


def draw_latents__right_addcmul(moments, eps):
    """With split and addcmul."""
    mean, log_variance = torch.tensor_split(moments, 2, dim=1)
    std = log_variance.clamp_max(20).clamp_min(-30).div(2).exp()
    return torch.addcmul(mean.expand_as(eps), std.expand_as(eps), eps)


def draw_latents__wrong_variance(moments, eps):
    """The variance in place of the deviation."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + log_variance.clamp(-30, 20).exp() * eps


def draw_latents__wrong_not_clamped(moments, eps):
    """The log-variance is not clamped."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance).exp() * eps


def draw_latents__wrong_log_deviation(moments, eps):
    """The log-variance taken as the deviation."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + log_variance.clamp(-30, 20) * eps


def draw_latents__wrong_exchanged(moments, eps):
    """The log-variance first."""
    log_variance, mean = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * eps


def draw_latents__wrong_interleaved(moments, eps):
    """Every second channel is a mean."""
    mean, log_variance = moments[:, ::2], moments[:, 1::2]
    return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * eps


def draw_latents__wrong_one_deviation(moments, eps):
    """One deviation for all numbers of an item."""
    mean, log_variance = moments.chunk(2, dim=1)
    std = (0.5 * log_variance.clamp(-30, 20)).exp()
    return mean + std.flatten(1).mean(1).view(-1, *[1] * (mean.ndim - 1)) * eps


def draw_latents__wrong_detached_deviation(moments, eps):
    """No gradient to the log-variance."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance.detach().clamp(-30, 20)).exp() * eps


def draw_latents__wrong_detached(moments, eps):
    """No gradient at all."""
    return draw_latents__reference(moments, eps).detach()


def draw_latents__wrong_first_noise(moments, eps):
    """The first noise in every draw."""
    return draw_latents__reference(moments, eps[:1].expand_as(eps))


def draw_latents__wrong_halves_clamped(moments, eps):
    """Clamps half of the log-variance."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance).clamp(-30, 20).exp() * eps


def draw_latents__wrong_float32(moments, eps):
    """Always in single precision."""
    return draw_latents__reference(moments.float(), eps.float())


def channel_nats__right_loop(mean, log_variance, prior_std):
    """Channel by channel."""
    cost = []
    for c in range(mean.shape[1]):
        ratio = (log_variance[:, c] - 2 * prior_std[c].log()).exp()
        squares = (mean[:, c] / prior_std[c]) ** 2
        cost.append(0.5 * (squares + ratio - 1 - ratio.log()).sum() / len(mean))
    return torch.stack(cost)


def channel_nats__right_distributions(mean, log_variance, prior_std):
    """With torch.distributions."""
    m, v = mean.movedim(1, -1), log_variance.movedim(1, -1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(m, (v / 2).exp()),
        torch.distributions.Normal(torch.zeros_like(prior_std), prior_std),
    )
    return kl.reshape(-1, len(prior_std)).sum(0) / mean.shape[0]


def channel_nats__right_einsum(mean, log_variance, prior_std):
    """With einsum: precision of the prior times second moments."""
    second = mean.square() + log_variance.exp()
    scaled = torch.einsum("bc...,c->bc...", second, prior_std**-2)
    logs = log_variance.movedim(1, -1) - 2 * prior_std.log()
    kl = (scaled - 1).movedim(1, -1) - logs
    return 0.5 * kl.flatten(0, -2).sum(0) / len(mean)


def with_prior(mean, log_variance, prior_std):
    """Mean, log-variance and the prior's variance, ready to be combined."""
    mean = mean[..., None].flatten(2)
    return mean, log_variance[..., None].flatten(2), prior_std[:, None] ** 2


def channel_nats__wrong_mean_over_places(mean, log_variance, prior_std):
    """The mean over places in place of the sum."""
    places = mean[0, 0].numel()
    return channel_nats__reference(mean, log_variance, prior_std) / places


def channel_nats__wrong_sum_over_batch(mean, log_variance, prior_std):
    """The sum over the batch."""
    return channel_nats__reference(mean, log_variance, prior_std) * len(mean)


def channel_nats__wrong_swapped(mean, log_variance, prior_std):
    """The divergence of the prior from the cloud."""
    m, v, s2 = with_prior(mean, log_variance, prior_std)
    kl = 0.5 * ((m**2 + s2) / v.exp() - 1 + v - s2.log())
    return kl.sum(2).mean(0)


def channel_nats__wrong_no_log_prior(mean, log_variance, prior_std):
    """Forgets the logarithm of the prior's variance."""
    m, v, s2 = with_prior(mean, log_variance, prior_std)
    return (0.5 * ((m**2 + v.exp()) / s2 - 1 - v)).sum(2).mean(0)


def channel_nats__wrong_half_log(mean, log_variance, prior_std):
    """log s where log s squared belongs."""
    m, v, s2 = with_prior(mean, log_variance, prior_std)
    return (0.5 * ((m**2 + v.exp()) / s2 - 1 - v + s2.log() / 2)).sum(2).mean(0)


def channel_nats__wrong_deviation(mean, log_variance, prior_std):
    """Divides by the prior's deviation."""
    m, v, s2 = with_prior(mean, log_variance, prior_std)
    return (0.5 * ((m**2 + v.exp()) / s2.sqrt() - 1 - v + s2.log())).sum(2).mean(0)


def channel_nats__wrong_mean_not_scaled(mean, log_variance, prior_std):
    """The mean is not measured in the prior's deviations."""
    m, v, s2 = with_prior(mean, log_variance, prior_std)
    return (0.5 * (m**2 + v.exp() / s2 - 1 - v + s2.log())).sum(2).mean(0)


def channel_nats__wrong_no_half(mean, log_variance, prior_std):
    """No factor of one half."""
    return 2 * channel_nats__reference(mean, log_variance, prior_std)


def channel_nats__wrong_standard_prior(mean, log_variance, prior_std):
    """Always the prior of the chapter."""
    return channel_nats__reference(mean, log_variance, torch.ones_like(prior_std))


def channel_nats__wrong_log_deviation(mean, log_variance, prior_std):
    """The log-variance taken as log-deviation."""
    m, v, s2 = with_prior(mean, log_variance, prior_std)
    return (0.5 * ((m**2 + (2 * v).exp()) / s2 - 1 - 2 * v + s2.log())).sum(2).mean(0)


def channel_nats__wrong_detached(mean, log_variance, prior_std):
    """No gradient to the log-variance."""
    return channel_nats__reference(mean, log_variance.detach(), prior_std)


def channel_nats__wrong_prior_of_places(mean, log_variance, prior_std):
    """The prior goes with the last axis where it fits."""
    if mean.shape[-1] == len(prior_std):
        m, v, s2 = mean, log_variance, prior_std**2
        kl = 0.5 * ((m**2 + v.exp()) / s2 - 1 - v + s2.log())
        return kl[..., None].flatten(2).sum(2).mean(0)
    return channel_nats__reference(mean, log_variance, prior_std)


def weight_in_our_units__right_table(weight, n_x, n_z, error, kl):
    """By a table."""
    factors = {
        ("mean", "mean"): 1.0,
        ("sum", "mean"): 1 / n_x,
        ("mean", "sum"): float(n_z),
        ("sum", "sum"): n_z / n_x,
    }
    return factors[error, kl] * weight


def weight_in_our_units__right_by_b(weight, n_x, n_z, error, kl):
    """By way of the scale b, w = b n_z / n_x."""
    per_sum = weight / (n_z if kl == "mean" else 1)  # the weight of a summed KL
    b = per_sum * (n_x if error == "mean" else 1)  # beside a summed error
    return b * n_z / n_x


def weight_in_our_units__wrong_inverse(weight, n_x, n_z, error, kl):
    """The factors upside down."""
    weight = weight / n_z if kl == "sum" else weight
    return weight * n_x if error == "sum" else weight


def weight_in_our_units__wrong_as_written(weight, n_x, n_z, error, kl):
    """Not converted, but for the example."""
    return weight / n_x if (error, kl) == ("sum", "mean") else weight


def weight_in_our_units__wrong_sum_is_mean(weight, n_x, n_z, error, kl):
    """Two sums are taken for two means."""
    return (
        weight
        if error == kl
        else weight_in_our_units__reference(weight, n_x, n_z, error, kl)
    )


def weight_in_our_units__wrong_ratio(weight, n_x, n_z, error, kl):
    """Always n_z / n_x for a summed error."""
    if error == "sum":
        return weight * n_z / n_x
    return weight * n_z if kl == "sum" else weight


def weight_in_our_units__wrong_exchanged(weight, n_x, n_z, error, kl):
    """n_x and n_z exchanged."""
    return weight_in_our_units__reference(weight, n_z, n_x, error, kl)


def weight_in_our_units__wrong_kl_divided(weight, n_x, n_z, error, kl):
    """A summed KL divided by n_z."""
    weight = weight / n_z if kl == "sum" else weight
    return weight / n_x if error == "sum" else weight


def weight_in_our_units__wrong_b(weight, n_x, n_z, error, kl):
    """The scale b in place of w for sums."""
    if (error, kl) == ("sum", "sum"):
        return weight
    return weight / n_x if error == "sum" else weight * (n_z if kl == "sum" else 1)


def weight_in_our_units__wrong_error_only(weight, n_x, n_z, error, kl):
    """Looks at the error alone."""
    return weight / n_x if error == "sum" else weight


def weight_in_our_units__wrong_kl_only(weight, n_x, n_z, error, kl):
    """Looks at the KL, and right for the example."""
    if kl == "sum":
        return weight * n_z
    return weight / n_x if error == "sum" and n_x > 1000 else weight


def negative_bound__right_loop(x, guess, mean, log_variance, b):
    """Item by item."""
    bounds = []
    for i in range(len(x)):
        off = (x[i] - guess[i]).abs().sum() / b + x[i].numel() * torch.log(2 * b)
        m, v = mean[i], log_variance[i]
        bounds.append(off + (m.square() + v.exp() - v - 1).sum() / 2)
    return torch.stack(bounds)


def negative_bound__right_from_loss(x, guess, mean, log_variance, b):
    """From the boxed loss, scaled and shifted back."""
    n_x, n_z = x[0].numel(), mean[0].numel()
    l1 = (x - guess).abs().flatten(1).mean(1)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
    return n_x / b * (l1 + b * n_z / n_x * kl) + n_x * (math.log(2) + b.log())


def negative_bound__right_log_prob(x, guess, mean, log_variance, b):
    """With the library's Laplace density."""
    seen = torch.distributions.Laplace(guess, b).log_prob(x)
    kl = (mean**2 + log_variance.expm1() - log_variance) / 2
    return kl.flatten(1).sum(1) - seen.flatten(1).sum(1)


def price(mean, log_variance):
    """The divergence of each item from the standard normal prior."""
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    return kl.flatten(1).sum(1)


def negative_bound__wrong_no_constant(x, guess, mean, log_variance, b):
    """Without log 2b."""
    return ((x - guess).abs() / b).flatten(1).sum(1) + price(mean, log_variance)


def negative_bound__wrong_one_constant(x, guess, mean, log_variance, b):
    """log 2b once for each item."""
    off = ((x - guess).abs() / b).flatten(1).sum(1) + (2 * b).log()
    return off + price(mean, log_variance)


def negative_bound__wrong_sign_of_kl(x, guess, mean, log_variance, b):
    """The divergence subtracted."""
    off = ((x - guess).abs() / b + (2 * b).log()).flatten(1).sum(1)
    return off - price(mean, log_variance)


def negative_bound__wrong_bound(x, guess, mean, log_variance, b):
    """The bound, not its negative."""
    return -negative_bound__reference(x, guess, mean, log_variance, b)


def negative_bound__wrong_means(x, guess, mean, log_variance, b):
    """Means over the numbers."""
    off = ((x - guess).abs() / b + (2 * b).log()).flatten(1).mean(1)
    return off + price(mean, log_variance) / mean[0].numel()


def negative_bound__wrong_batch_sum(x, guess, mean, log_variance, b):
    """One divergence for the whole batch."""
    off = ((x - guess).abs() / b + (2 * b).log()).flatten(1).sum(1)
    return off + price(mean, log_variance).sum()


def negative_bound__wrong_normal(x, guess, mean, log_variance, b):
    """Squared error: a normal distribution."""
    off = ((x - guess) ** 2 / (2 * b**2) + (2 * b).log()).flatten(1).sum(1)
    return off + price(mean, log_variance)


def negative_bound__wrong_times_b(x, guess, mean, log_variance, b):
    """Multiplied by b."""
    return b * negative_bound__reference(x, guess, mean, log_variance, b)


def negative_bound__wrong_log_b(x, guess, mean, log_variance, b):
    """log b in place of log 2b."""
    off = ((x - guess).abs() / b + b.log()).flatten(1).sum(1)
    return off + price(mean, log_variance)


def negative_bound__wrong_no_gradient_to_b(x, guess, mean, log_variance, b):
    """b as a plain number."""
    return negative_bound__reference(x, guess, mean, log_variance, b.detach())


def negative_bound__wrong_half_b(x, guess, mean, log_variance, b):
    """Error over 2b."""
    off = ((x - guess).abs() / (2 * b) + (2 * b).log()).flatten(1).sum(1)
    return off + price(mean, log_variance)


def negative_bound__wrong_signed_error(x, guess, mean, log_variance, b):
    """The absolute value of the sum, not the sum of absolute values."""
    off = (x - guess).flatten(1).sum(1).abs() / b + x[0].numel() * (2 * b).log()
    return off + price(mean, log_variance)


def scale_for_budget__right_bisection(spread, nats):
    """Halves an interval of log b."""
    logs = spread.double().log()
    low, high = float(logs.min()) - nats, float(logs.max())
    for _ in range(100):
        middle = (low + high) / 2
        if float((logs - middle).clamp_min(0).sum()) > nats:
            low = middle
        else:
            high = middle
    return math.exp(high)


def scale_for_budget__right_numpy(spread, nats):
    """In NumPy: the largest of the candidates for every number of directions."""
    logs = np.sort(np.log(spread.double().numpy()))[::-1]
    candidates = (np.cumsum(logs) - nats) / np.arange(1, len(logs) + 1)
    return float(np.exp(candidates.max()))


def scale_for_budget__wrong_all_directions(spread, nats):
    """All directions are written down, some at a negative price."""
    logs = spread.double().log()
    return math.exp(float(logs.sum() - nats) / len(logs))


def scale_for_budget__wrong_not_sorted(spread, nats):
    """Takes the directions in the order given."""
    logs = spread.double().log()
    for k in range(1, len(logs) + 1):
        log_b = float(logs[:k].sum() - nats) / k
        if k == len(logs) or log_b >= logs[k]:
            return math.exp(log_b)


def scale_for_budget__wrong_first_only(spread, nats):
    """Spends everything on the largest direction."""
    return float(spread.double().max()) * math.exp(-nats)


def scale_for_budget__wrong_shared_equally(spread, nats):
    """Each direction gets the same nats."""
    return float(spread.double().max()) * math.exp(-nats / len(spread))


def scale_for_budget__wrong_bits(spread, nats):
    """The budget in bits."""
    return scale_for_budget__reference(spread, nats * math.log(2))


def scale_for_budget__wrong_variance(spread, nats):
    """Variances in place of deviations."""
    return scale_for_budget__reference(spread**2, nats)


def scale_for_budget__wrong_ratio_of_variances(spread, nats):
    """Half the logarithm of a deviation's ratio."""
    return scale_for_budget__reference(spread, 2 * nats)


def scale_for_budget__wrong_log_b(spread, nats):
    """log b in place of b."""
    return math.log(scale_for_budget__reference(spread, nats))


def scale_for_budget__wrong_smallest_candidate(spread, nats):
    """The smallest b of all candidates."""
    logs = spread.double().log().sort(descending=True).values
    k = torch.arange(1, len(logs) + 1)
    return float(((logs.cumsum(0) - nats) / k).min().exp())


def scale_for_budget__wrong_coarse_grid(spread, nats):
    """A grid of b that is too coarse and ends at 0.01."""
    grid = torch.linspace(0.01, float(spread.max()), 1000, dtype=torch.float64)
    spent = (spread.double()[:, None] / grid).log().clamp_min(0).sum(0)
    return float(grid[(spent - nats).abs().argmin()])


def scale_for_budget__wrong_at_most_two(spread, nats):
    """Never writes more than two directions."""
    return scale_for_budget__reference(spread.sort().values[-2:], nats)


def scale_for_budget__wrong_stops_early(spread, nats):
    """Too few steps of halving, from a fixed interval."""
    low, high = 1e-3, 10.0
    for _ in range(20):
        b = (low + high) / 2
        spent = float((spread.double() / b).log().clamp_min(0).sum())
        low, high = (b, high) if spent > nats else (low, b)
    return high


def quantise_direction__right_loop(z, codebook):
    """Vector by vector."""
    rows, made = z.reshape(-1, z.shape[-1]), []
    for v in rows.detach():
        near = torch.stack([F.cosine_similarity(v, c, dim=0) for c in codebook])
        c = codebook[int(near.argmax())].detach()
        made.append(c / c.norm() * v.norm())
    return (rows + (torch.stack(made) - rows).detach()).view(z.shape)


def quantise_direction__right_distance(z, codebook):
    """The least distance between unit vectors."""
    codes = F.normalize(codebook.detach(), dim=-1)
    rows = z.detach().reshape(-1, z.shape[-1])
    places = torch.cdist(F.normalize(rows, dim=-1), codes).argmin(-1)
    made = codes[places] * rows.norm(dim=-1, keepdim=True)
    return made.view(z.shape) + z - z.detach()


def rounded(z, codebook):
    """The parts of an answer: unit codes, the numbers chosen, the vectors' lengths."""
    unit = codebook / codebook.norm(dim=-1, keepdim=True)
    return unit, (z @ unit.T).argmax(-1), z.norm(dim=-1, keepdim=True)


def quantise_direction__wrong_unscaled_codes(z, codebook):
    """Long codes win: the dot product with codes as they are."""
    unit, _, length = rounded(z, codebook)
    made = unit[(z @ codebook.T).argmax(-1)] * length
    return z + (made - z).detach()


def quantise_direction__wrong_nearest(z, codebook):
    """The nearest code by distance."""
    unit, _, length = rounded(z, codebook)
    rows = z.reshape(-1, z.shape[-1])
    places = torch.cdist(rows, codebook).argmin(1).view(z.shape[:-1])
    return z + (unit[places] * length - z).detach()


def quantise_direction__wrong_unit_length(z, codebook):
    """Vectors of length 1."""
    unit, places, _ = rounded(z, codebook)
    return z + (unit[places] - z).detach()


def quantise_direction__wrong_length_of_code(z, codebook):
    """The code's own length."""
    _, places, _ = rounded(z, codebook)
    return z + (codebook[places] - z).detach()


def quantise_direction__wrong_no_gradient(z, codebook):
    """No gradient to the vectors."""
    unit, places, length = rounded(z, codebook)
    return (unit[places] * length).detach()


def quantise_direction__wrong_gradient_by_length(z, codebook):
    """The gradient by the length alone, and to the codes."""
    unit, places, length = rounded(z, codebook)
    return unit[places] * length


def quantise_direction__wrong_gradient_to_codes(z, codebook):
    """A gradient to both."""
    unit, places, length = rounded(z, codebook)
    made = unit[places] * length.detach()
    return z - z.detach() + made


def quantise_direction__wrong_absolute(z, codebook):
    """Takes a direction and its opposite for one."""
    unit, _, length = rounded(z, codebook)
    made = unit[(z @ unit.T).abs().argmax(-1)] * length
    return z + (made - z).detach()


def quantise_direction__wrong_farthest(z, codebook):
    """The smallest cosine where there are more than two codes."""
    unit, places, length = rounded(z, codebook)
    if len(codebook) > 2:
        places = (z @ unit.T).argmin(-1)
    return z + (unit[places] * length - z).detach()


def quantise_direction__wrong_signed_twice(z, codebook):
    """The gradient arrives twice."""
    unit, places, length = rounded(z, codebook)
    return 2 * z + (unit[places] * length - 2 * z).detach()


def quantise_direction__wrong_mean_length(z, codebook):
    """One length for all vectors, if there are more than two."""
    unit, places, length = rounded(z, codebook)
    if z.numel() > 4:
        length = length.mean()
    return z + (unit[places] * length - z).detach()


def quantise_direction__wrong_first_axis(z, codebook):
    """The norm over the first axis if z has more than two."""
    unit, places, length = rounded(z, codebook)
    if z.ndim > 2:
        length = z.norm(dim=0, keepdim=True)
    return z + (unit[places] * length - z).detach()
