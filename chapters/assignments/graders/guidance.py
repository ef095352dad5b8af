"""Right and wrong answers to the assignment guidance, for `make graders`."""

import math

import torch


def _wide(x, like):
    """A value for each item (B,), to be multiplied with (B, ...)."""
    return x.to(like).view(-1, *[1] * (like.ndim - 1))


def guide_items__right_loop(none, cond, w):
    """Item by item, as in the paper."""
    rows = [(1 + k) * c - k * n for n, c, k in zip(none, cond, w.to(none))]
    return torch.stack(rows)


def guide_items__right_einsum(none, cond, w):
    """With einsum."""
    w = w.to(none.dtype)
    more, less = (torch.einsum("b,b...->b...", *k) for k in ((1 + w, cond), (w, none)))
    return more - less


def guide_items__wrong_other_convention(none, cond, w):
    """Counts from the unconditional prediction."""
    return none + _wide(w, none) * (cond - none)


def guide_items__wrong_last_axis(none, cond, w):
    """The strength goes with the last axis where it fits."""
    g = 1 + w.to(none)
    if none.shape[-1] != len(g):
        g = _wide(g, none)
    return none + g * (cond - none)


def guide_items__wrong_one_too_little(none, cond, w):
    """w - 1 instead of w + 1."""
    return none + _wide(w - 1, none) * (cond - none)


def guide_items__wrong_sum(none, cond, w):
    """Adds the unconditional prediction."""
    return (1 + _wide(w, none)) * cond + _wide(w, none) * none


def guide_items__wrong_swapped(none, cond, w):
    """Both predictions exchanged."""
    return guide_items__reference(cond, none, w)


def guide_items__wrong_mean_strength(none, cond, w):
    """One strength for the whole batch."""
    return guide_items__reference(none, cond, w.mean().expand_as(w))


def guide_items__wrong_three_axes(none, cond, w):
    """Right for three axes only."""
    return none + (1 + w.to(none))[:, None, None] * (cond - none)


def guide_items__wrong_float32(none, cond, w):
    """Always in single precision."""
    return guide_items__reference(none.float(), cond.float(), w)


def guide_items__wrong_conditional(none, cond, w):
    """Ignores the strength."""
    return cond


def guide_items__wrong_two_axes(none, cond, w):
    """Right for two axes only."""
    return none + (1 + w.to(none))[:, None] * (cond - none)


def classifier_slope__right_scores(none, cond, alpha_bar):
    """As a difference of two scores."""
    root = _wide((1 - alpha_bar) ** 0.5, none)
    return -cond / root - -none / root


def classifier_slope__right_loop(none, cond, alpha_bar):
    """Item by item."""
    rows = zip(none, cond, alpha_bar.tolist())
    return torch.stack([(n - c) / math.sqrt(1 - a) for n, c, a in rows])


def classifier_slope__wrong_sign(none, cond, alpha_bar):
    """The sign is wrong."""
    return (cond - none) / _wide(1 - alpha_bar, none).sqrt()


def classifier_slope__wrong_multiplied(none, cond, alpha_bar):
    """Multiplies by the root."""
    return (none - cond) * _wide(1 - alpha_bar, none).sqrt()


def classifier_slope__wrong_no_root(none, cond, alpha_bar):
    """No root."""
    return (none - cond) / _wide(1 - alpha_bar, none)


def classifier_slope__wrong_signal(none, cond, alpha_bar):
    """The root of alpha_bar."""
    return (none - cond) / _wide(alpha_bar, none).sqrt()


def classifier_slope__wrong_difference(none, cond, alpha_bar):
    """The difference alone."""
    return none - cond


def classifier_slope__wrong_snr(none, cond, alpha_bar):
    """Divides by the root of the ratio of noise to signal."""
    return (none - cond) / _wide((1 - alpha_bar) / alpha_bar, none).sqrt()


def classifier_slope__wrong_conditional(none, cond, alpha_bar):
    """The score of the conditional density."""
    return -cond / _wide(1 - alpha_bar, none).sqrt()


def classifier_slope__wrong_one_level(none, cond, alpha_bar):
    """The level of the first item for all."""
    return (none - cond) / (1 - alpha_bar[0]).sqrt()


def classifier_slope__wrong_last_axis(none, cond, alpha_bar):
    """The level goes with the last axis where it fits."""
    noise = (1 - alpha_bar).sqrt()
    if none.shape[-1] != len(noise):
        noise = _wide(noise, none)
    return (none - cond) / noise


def classifier_slope__wrong_two_axes(none, cond, alpha_bar):
    """Right for two axes only."""
    return (none - cond) / (1 - alpha_bar).sqrt()[:, None]


def guide_two__right_weights(none, loa, both, g_loa, g_text):
    """As weights that add up to 1."""
    return (1 - g_loa) * none + (g_loa - g_text) * loa + g_text * both


def guide_two__right_stacked(none, loa, both, g_loa, g_text):
    """With einsum over the three guesses."""
    weights = none.new_tensor([1 - g_loa, g_loa - g_text, g_text])
    return torch.einsum("k,k...->...", weights, torch.stack([none, loa, both]))


def guide_two__wrong_text_from_nothing(none, loa, both, g_loa, g_text):
    """Both differences start from the unconditional guess."""
    return none + g_loa * (loa - none) + g_text * (both - none)


def guide_two__wrong_swapped(none, loa, both, g_loa, g_text):
    """Strengths exchanged."""
    return none + g_text * (loa - none) + g_loa * (both - loa)


def guide_two__wrong_from_loa(none, loa, both, g_loa, g_text):
    """Starts from the LOA's guess."""
    return loa + g_loa * (loa - none) + g_text * (both - loa)


def guide_two__wrong_nested(none, loa, both, g_loa, g_text):
    """Guides the guided guess: the text moves away from what is guided already."""
    first = none + g_loa * (loa - none)
    return first + g_text * (both - first)


def guide_two__wrong_product(none, loa, both, g_loa, g_text):
    """The strengths multiply."""
    return none + g_loa * (loa - none) + g_loa * g_text * (both - loa)


def guide_two__wrong_one_strength(none, loa, both, g_loa, g_text):
    """One strength for both conditions."""
    return none + g_loa * (both - none)


def guide_two__wrong_mean_strength(none, loa, both, g_loa, g_text):
    """The mean of the strengths for both conditions."""
    return none + (g_loa + g_text) / 2 * (both - none)


def guide_two__wrong_no_text(none, loa, both, g_loa, g_text):
    """Ignores the text."""
    return none + g_loa * (loa - none)


def guide_two__wrong_other_convention(none, loa, both, g_loa, g_text):
    """Strengths that count from the guess with both conditions."""
    return both + g_loa * (loa - none) + g_text * (both - loa)


def guide_two__wrong_sign(none, loa, both, g_loa, g_text):
    """The text's difference the wrong way round."""
    return none + g_loa * (loa - none) + g_text * (loa - both)


def guided_x0__right_guesses(xt, v_none, v_cond, alpha_bar, g):
    """Guides the two guesses of x0."""
    a = _wide(alpha_bar, xt)
    none, cond = (a.sqrt() * xt - (1 - a).sqrt() * v for v in (v_none, v_cond))
    return torch.lerp(none, cond, g)


def guided_x0__right_noise(xt, v_none, v_cond, alpha_bar, g):
    """Through the noise."""
    a = _wide(alpha_bar, xt)
    none, cond = ((1 - a).sqrt() * xt + a.sqrt() * v for v in (v_none, v_cond))
    eps = none * (1 - g) + cond * g
    return (xt - (1 - a).sqrt() * eps) / a.sqrt()


def guided_x0__wrong_noise(xt, v_none, v_cond, alpha_bar, g):
    """The noise instead of x0."""
    a, v = _wide(alpha_bar, xt), v_none + g * (v_cond - v_none)
    return (1 - a).sqrt() * xt + a.sqrt() * v


def guided_x0__wrong_no_roots(xt, v_none, v_cond, alpha_bar, g):
    """No roots."""
    a, v = _wide(alpha_bar, xt), v_none + g * (v_cond - v_none)
    return a * xt - (1 - a) * v


def guided_x0__wrong_sign(xt, v_none, v_cond, alpha_bar, g):
    """Plus instead of minus."""
    return guided_x0__reference(xt, -v_none, -v_cond, alpha_bar, g)


def guided_x0__wrong_as_noise(xt, v_none, v_cond, alpha_bar, g):
    """Takes the predictions for noise."""
    a, v = _wide(alpha_bar, xt), v_none + g * (v_cond - v_none)
    return (xt - (1 - a).sqrt() * v) / a.sqrt()


def guided_x0__wrong_velocity(xt, v_none, v_cond, alpha_bar, g):
    """The guided velocity itself."""
    return v_none + g * (v_cond - v_none)


def guided_x0__wrong_other_convention(xt, v_none, v_cond, alpha_bar, g):
    """Strength counted from the conditional prediction."""
    return guided_x0__reference(xt, v_none, v_cond, alpha_bar, g + 1)


def guided_x0__wrong_swapped(xt, v_none, v_cond, alpha_bar, g):
    """Both predictions exchanged."""
    return guided_x0__reference(xt, v_cond, v_none, alpha_bar, g)


def guided_x0__wrong_one_level(xt, v_none, v_cond, alpha_bar, g):
    """The level of the first item for all."""
    first = alpha_bar[:1].expand_as(alpha_bar)
    return guided_x0__reference(xt, v_none, v_cond, first, g)


def guided_x0__wrong_unguided(xt, v_none, v_cond, alpha_bar, g):
    """The conditional guess."""
    return guided_x0__reference(xt, v_none, v_cond, alpha_bar, 1.0)


def guided_x0__wrong_two_axes(xt, v_none, v_cond, alpha_bar, g):
    """Right for two axes only."""
    a, v = alpha_bar[:, None], v_none + g * (v_cond - v_none)
    return a.sqrt() * xt - (1 - a).sqrt() * v


def guided_x0__wrong_clipped(xt, v_none, v_cond, alpha_bar, g):
    """Clips the guess."""
    return guided_x0__reference(xt, v_none, v_cond, alpha_bar, g).clamp(-3, 3)


def guided_rows__right_indices(model, xt, t, cond, empty, g, low, high):
    """With indices; the second rows stand in front."""
    where = [i for i, k in enumerate(t.tolist()) if low < k <= high and g != 1]
    n = len(where)
    x, levels = torch.cat([xt[where], xt]), torch.cat([t[where], t])
    out = model(x, levels, torch.cat([empty.repeat(n, 1), cond]))
    rows = list(out[n:])
    for k, i in enumerate(where):
        rows[i] = out[k] + g * (rows[i] - out[k])
    return torch.stack(rows)


def guided_rows__right_difference(model, xt, t, cond, empty, g, low, high):
    """Adds (g - 1) times the difference to the conditional prediction."""
    (where,) = torch.where((t > low) & (t <= high) & torch.tensor(g != 1))
    every = torch.cat([torch.arange(len(xt)), where])
    told = torch.cat([cond, empty.expand(len(where), -1)])
    one, none = model(xt[every], t[every], told).split([len(xt), len(where)])
    return one.index_add(0, where, (g - 1) * (one[where] - none))


def guided_rows__wrong_first_level(model, xt, t, cond, empty, g, low, high):
    """The level of the first item decides for all, as in minilib."""
    if g == 1 or not low < t[0] <= high:
        return model(xt, t, cond)
    told = torch.cat([empty.expand_as(cond), cond])
    none, one = model(torch.cat([xt, xt]), torch.cat([t, t]), told).chunk(2)
    return none + g * (one - none)


def guided_rows__wrong_all_twice(model, xt, t, cond, empty, g, low, high):
    """The right predictions from twice as many rows as items."""
    told = torch.cat([empty.expand_as(cond), cond])
    none, one = model(torch.cat([xt, xt]), torch.cat([t, t]), told).chunk(2)
    guided = _wide((t > low) & (t <= high), xt)
    return torch.where(guided > 0, none + g * (one - none), one)


def guided_rows__wrong_two_calls(model, xt, t, cond, empty, g, low, high):
    """Two calls where one would do."""
    one, guided = model(xt, t, cond), (t > low) & (t <= high) & (g != 1)
    if not guided.any():
        return one
    none = model(xt[guided], t[guided], empty.expand(int(guided.sum()), -1))
    result = one.clone()
    result[guided] = none + g * (one[guided] - none)
    return result


def guided_rows__wrong_low_included(model, xt, t, cond, empty, g, low, high):
    """The lower end is guided too."""
    return guided_rows__reference(model, xt, t, cond, empty, g, low - 1, high)


def guided_rows__wrong_high_excluded(model, xt, t, cond, empty, g, low, high):
    """The upper end is not guided."""
    return guided_rows__reference(model, xt, t, cond, empty, g, low, high - 1)


def guided_rows__wrong_levels_of_the_first(model, xt, t, cond, empty, g, low, high):
    """The second rows get the levels of the first items."""
    B, guided = len(xt), (t > low) & (t <= high) & (g != 1)
    n = int(guided.sum())
    told = torch.cat([cond, empty.expand(n, -1)])
    out = model(torch.cat([xt, xt[guided]]), torch.cat([t, t[:n]]), told)
    result = out[:B].clone()
    result[guided] = out[B:] + g * (out[:B][guided] - out[B:])
    return result


def guided_rows__wrong_outside_unconditional(model, xt, t, cond, empty, g, low, high):
    """Outside the interval the condition is ignored."""
    inside = (t > low) & (t <= high) | torch.tensor(g == 1)
    cond = torch.where(inside[:, None], cond, empty)
    return guided_rows__reference(model, xt, t, cond, empty, g, low, high)


def guided_rows__wrong_inverted(model, xt, t, cond, empty, g, low, high):
    """Guides outside the interval."""
    turned = torch.where((t > low) & (t <= high), low, high)
    back = lambda x, k, c: model(x, torch.cat([t, t[turned == high]])[: len(x)], c)
    return guided_rows__reference(back, xt, turned, cond, empty, g, low, high)


def guided_rows__wrong_strength_one(model, xt, t, cond, empty, g, low, high):
    """Second rows for strength 1 too."""
    B, guided = len(xt), (t > low) & (t <= high)
    told = torch.cat([cond, empty.expand(int(guided.sum()), -1)])
    out = model(torch.cat([xt, xt[guided]]), torch.cat([t, t[guided]]), told)
    result = out[:B].clone()
    result[guided] = out[B:] + g * (out[:B][guided] - out[B:])
    return result


def guided_rows__wrong_zeros(model, xt, t, cond, empty, g, low, high):
    """Zeros instead of the empty condition."""
    return guided_rows__reference(model, xt, t, cond, 0 * empty, g, low, high)


def guided_rows__wrong_swapped(model, xt, t, cond, empty, g, low, high):
    """From the conditional prediction through the unconditional one."""
    return guided_rows__reference(model, xt, t, cond, empty, 1 - g, low, high)


def guided_rows__wrong_unguided(model, xt, t, cond, empty, g, low, high):
    """No guidance at all."""
    return model(xt, t, cond)


def guided_width__right_logarithms(S, s, g, low, high):
    """With logarithms, level by level."""
    drop = lambda nu: 0.5 * (math.log(s**2 + nu**2) - math.log(S**2 + nu**2))
    above = 0.0 if math.isinf(high) else drop(high)
    return math.exp(math.log(s) + (g - 1) * (drop(low) - above))


def guided_width__right_integral(S, s, g, low, high):
    """By numerical integration over the guided levels."""
    top = math.atan(high)  # nu = tan(angle) makes the range finite
    angle = torch.linspace(math.atan(low), top, 20_001, dtype=torch.float64)
    nu = angle[:-1] + angle.diff() / 2  # the middles of small steps
    nu = torch.tan(nu)
    slope = (g - 1) * (nu / (s**2 + nu**2) - nu / (S**2 + nu**2)) * (1 + nu**2)
    return float(s * torch.exp(-(slope * angle.diff()).sum()))


def guided_width__wrong_ignores_high(S, s, g, low, high):
    """The chapter's case: guided from infinity."""
    return guided_width__reference(S, s, g, low, math.inf) if high != low else s


def guided_width__wrong_ignores_low(S, s, g, low, high):
    """Guided down to 0."""
    return guided_width__reference(S, s, g, 0.0, high) if high != low else s


def guided_width__wrong_all_levels(S, s, g, low, high):
    """Guided everywhere."""
    return S ** (1 - g) * s**g if high != low else s


def guided_width__wrong_no_root(S, s, g, low, high):
    """Squares, not roots."""
    return s * (guided_width__reference(S, s, g, low, high) / s) ** 2


def guided_width__wrong_turned(S, s, g, low, high):
    """Divided the wrong way round."""
    return s * s / guided_width__reference(S, s, g, low, high)


def guided_width__wrong_strength(S, s, g, low, high):
    """g instead of g - 1."""
    return guided_width__reference(S, s, g + 1, low, high)


def guided_width__wrong_tilted(S, s, g, low, high):
    """The width of the tilted density."""
    precision = (1 - g) / S**2 + g / s**2
    return max(precision, 1e-9) ** -0.5 if high != low else s


def guided_width__wrong_outside(S, s, g, low, high):
    """Guided outside the interval."""
    inside = guided_width__reference(S, s, g, low, high)
    return S ** (1 - g) * s**g * s / inside


def guided_width__wrong_starts_wide(S, s, g, low, high):
    """Without guidance the width S instead of s."""
    return guided_width__reference(S, s, g, low, high) * S / s


def guided_width__wrong_no_squares(S, s, g, low, high):
    """Deviations and levels are not squared."""
    part = lambda nu: 1.0 if math.isinf(nu) else (s + nu) / (S + nu)
    return s * (part(low) / part(high)) ** (g - 1)


def guided_width__wrong_unguided(S, s, g, low, high):
    """The width s."""
    return s
