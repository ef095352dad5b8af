"""Right and wrong answers to the assignment pipeline, for `make graders`."""

import torch.nn.functional as F
from scipy.linalg import sqrtm


def caption_to_wave__right_path(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """In the coordinates z / sqrt(alpha_bar), with one call for both guesses."""
    loa = write(torch.cat([captions, empty.expand_as(captions)]))
    nu, stops = ((1 - alpha_bar) / alpha_bar) ** 0.5, list(levels) + [0]
    z = zT / alpha_bar[levels[0]] ** 0.5
    for t, s in zip(stops[:-1], stops[1:]):
        zt = z * alpha_bar[t] ** 0.5
        both = guess(torch.cat([zt, zt]), torch.full((2 * len(zt),), t), loa)
        cond, none = both.chunk(2)
        z = z + (nu[s] - nu[t]) * (g * cond + (1 - g) * none)
    return decode(z)


def caption_to_wave__right_guided_z0(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Guides the guesses of z0, and finds the noise from them."""
    loas, zt = (write(empty[None].expand_as(captions)), write(captions)), zT
    for i, t in enumerate(levels):
        a = float(alpha_bar[t])
        s = float(alpha_bar[levels[i + 1]]) if i + 1 < len(levels) else 1.0
        level = torch.full((len(zT),), t)
        z0s = [(zt - (1 - a) ** 0.5 * guess(zt, level, y)) / a**0.5 for y in loas]
        z0 = torch.lerp(*z0s, g)
        eps = (zt - a**0.5 * z0) / (1 - a) ** 0.5
        zt = s**0.5 * z0 + (1 - s) ** 0.5 * eps
    return decode(zt)


def _sample(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g, step, told=0
):
    """The answer with another step (zt, eps, kept, later) -> zt, or another level."""
    loa = write(captions)
    nothing, zt = write(empty[None]).expand_as(loa), zT
    for t, after in zip(levels, [*levels[1:], 0]):
        level = torch.full((len(zT),), after if told else t)
        none, cond = (guess(zt, level, y) for y in (nothing, loa))
        eps = none + g * (cond - none)
        zt = step(zt, eps, alpha_bar[t], alpha_bar[after])
    return decode(zt)


def _step(zt, eps, kept, later):
    """A step of DDIM."""
    z0 = (zt - (1 - kept).sqrt() * eps) / kept.sqrt()
    return later.sqrt() * z0 + (1 - later).sqrt() * eps


def caption_to_wave__wrong_zeros(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Guides away from an LOA of zeros."""
    loa, zt = write(captions), zT
    for t, after in zip(levels, [*levels[1:], 0]):
        level = torch.full((len(zT),), t)
        none, cond = (guess(zt, level, y) for y in (0 * loa, loa))
        zt = _step(zt, none + g * (cond - none), alpha_bar[t], alpha_bar[after])
    return decode(zt)


def caption_to_wave__wrong_last_step_missing(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Stops at the last level instead of 0, where there are several."""
    args = (write, guess, decode, captions, empty, zT)
    if len(levels) == 1:
        return caption_to_wave__reference(*args, levels, alpha_bar, g)
    only = alpha_bar.clone()
    only[0] = alpha_bar[levels[-1]]
    return caption_to_wave__reference(*args, levels[:-1], only, g)


def caption_to_wave__wrong_ho_and_salimans(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """The strength of the other convention."""
    return caption_to_wave__reference(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, g + 1
    )


def caption_to_wave__wrong_guided_loa(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Guides the LOA instead of the guess."""
    loa, nothing = write(captions), write(empty[None])
    mixed = nothing + g * (loa - nothing)
    return caption_to_wave__reference(
        lambda c: mixed[: len(c)],
        guess, decode, captions, empty, zT, levels, alpha_bar, 1.0,
    )  # fmt: skip


def caption_to_wave__wrong_level_after(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Tells the U-Net the level that it goes to."""
    return _sample(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, g, _step, 1
    )


def caption_to_wave__wrong_no_roots(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """No roots on the way to the next level."""

    def step(zt, eps, kept, later):
        z0 = (zt - (1 - kept).sqrt() * eps) / kept.sqrt()
        return later * z0 + (1 - later) * eps

    return _sample(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, g, step
    )


def caption_to_wave__wrong_new_noise(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """New noise at every level."""

    def step(zt, eps, kept, later):
        z0 = (zt - (1 - kept).sqrt() * eps) / kept.sqrt()
        return later.sqrt() * z0 + (1 - later).sqrt() * torch.randn_like(zt)

    return _sample(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, g, step
    )


def caption_to_wave__wrong_clipped(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Clips the guess of z0."""

    def step(zt, eps, kept, later):
        z0 = ((zt - (1 - kept).sqrt() * eps) / kept.sqrt()).clamp(-2, 2)
        return later.sqrt() * z0 + (1 - later).sqrt() * eps

    return _sample(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, g, step
    )


def caption_to_wave__wrong_not_decoded(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Returns the latent."""
    return caption_to_wave__reference(
        write, guess, lambda z: z, captions, empty, zT, levels, alpha_bar, g
    )


def caption_to_wave__wrong_one_step(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Jumps from the first level to 0."""
    return caption_to_wave__reference(
        write, guess, decode, captions, empty, zT, levels[:1], alpha_bar, g
    )


def caption_to_wave__wrong_unguided(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Without guidance."""
    return caption_to_wave__reference(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, 1.0
    )


def caption_to_wave__wrong_swapped(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Both guesses exchanged."""
    return caption_to_wave__reference(
        write, guess, decode, captions, empty, zT, levels, alpha_bar, 1 - g
    )


def caption_to_wave__wrong_rising(
    write, guess, decode, captions, empty, zT, levels, alpha_bar, g
):
    """Visits the levels in reverse order."""
    return caption_to_wave__reference(
        write, guess, decode, captions, empty, zT, levels[::-1], alpha_bar, g
    )


def joint_loss__right_loop(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """Item by item, but for the U-Net."""
    own = write(captions)
    rows = zip(coin.tolist(), emptied.tolist(), loa, own)
    read = torch.stack([y if s and not e else x for s, e, y, x in rows])
    return F.mse_loss(guess(zt, t, read), eps) + F.mse_loss(own, loa)


def joint_loss__right_formula(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """With the formula of the switch, s Y + (1 - s) Y'."""
    s = (coin.to(loa) * (1 - emptied.to(loa)))[:, None, None]
    own = write(captions)
    noise = guess(zt, t, s * loa + (1 - s) * own) - eps
    error = torch.einsum("ble,ble->", own - loa, own - loa) / loa.numel()
    return (noise**2).flatten().mean() + error


def joint_loss__wrong_cut(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """The noise loss does not reach GPT-2."""
    own = write(captions)
    read = torch.where((coin & ~emptied)[:, None, None], loa, own.detach())
    return F.mse_loss(guess(zt, t, read), eps) + F.mse_loss(own, loa)


def joint_loss__wrong_emptied(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """The coin counts where the caption was emptied, too."""
    return joint_loss__reference(
        write, guess, captions, emptied & False, loa, coin, zt, t, eps
    )


def joint_loss__wrong_inverted(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """The coin the other way round."""
    return joint_loss__reference(
        write, guess, captions, emptied, loa, ~coin, zt, t, eps
    )


def joint_loss__wrong_emptied_true(
    write, guess, captions, emptied, loa, coin, zt, t, eps
):
    """The true LOA where the caption was emptied."""
    return joint_loss__reference(
        write, guess, captions, emptied & False, loa, coin | emptied, zt, t, eps
    )


def joint_loss__wrong_regression_by_coin(
    write, guess, captions, emptied, loa, coin, zt, t, eps
):
    """The error of the LOA that is read: nothing where that is the true one."""
    own = write(captions)
    read = torch.where((coin & ~emptied)[:, None, None], loa, own)
    return F.mse_loss(guess(zt, t, read), eps) + F.mse_loss(read, loa)


def joint_loss__wrong_noise_only(
    write, guess, captions, emptied, loa, coin, zt, t, eps
):
    """Without the regression."""
    read = torch.where((coin & ~emptied)[:, None, None], loa, write(captions))
    return F.mse_loss(guess(zt, t, read), eps)


def joint_loss__wrong_always_written(
    write, guess, captions, emptied, loa, coin, zt, t, eps
):
    """Always GPT-2's LOA."""
    return joint_loss__reference(
        write, guess, captions, emptied, loa, coin & False, zt, t, eps
    )


def joint_loss__wrong_always_true(
    write, guess, captions, emptied, loa, coin, zt, t, eps
):
    """Always the true LOA."""
    return joint_loss__reference(
        write, guess, captions, emptied & False, loa, coin | True, zt, t, eps
    )


def joint_loss__wrong_one_coin(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """One coin for the batch."""
    return joint_loss__reference(
        write, guess, captions, emptied, loa, coin[:1].expand_as(coin), zt, t, eps
    )


def joint_loss__wrong_mixture(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """A mixture of both LOAs by the share of coins."""
    own, share = write(captions), (coin & ~emptied).to(loa).mean()
    noise = guess(zt, t, share * loa + (1 - share) * own)
    return F.mse_loss(noise, eps) + F.mse_loss(own, loa)


def joint_loss__wrong_detached(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """Only the regression teaches, not the noise."""
    own = write(captions)
    read = torch.where((coin & ~emptied)[:, None, None], loa, own)
    return F.mse_loss(guess(zt, t, read), eps).detach() + F.mse_loss(own, loa)


def joint_loss__wrong_sums(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """Sums over the numbers of a vector."""
    own = write(captions)
    read = torch.where((coin & ~emptied)[:, None, None], loa, own)
    error = (own - loa).square().sum(-1).mean()
    return F.mse_loss(guess(zt, t, read), eps) + error


def joint_loss__wrong_absolute(write, guess, captions, emptied, loa, coin, zt, t, eps):
    """L1 for the LOA, as in the released code."""
    own = write(captions)
    read = torch.where((coin & ~emptied)[:, None, None], loa, own)
    return F.mse_loss(guess(zt, t, read), eps) + F.l1_loss(own, loa)


def chance__right_counts(asked, heard):
    """By counting both."""
    kinds = torch.cat([asked, heard]).unique()
    shares = ((x[:, None] == kinds).double().mean(0) for x in (asked, heard))
    return float(torch.dot(*shares))


def chance__right_turned(asked, heard):
    """The mean over all rotations, which treats all pairs alike."""
    a, h = asked.numpy(), heard.numpy()
    return float(np.mean([np.mean(a == np.roll(h, k)) for k in range(len(a))]))


def chance__wrong_uniform(asked, heard):
    """One over the number of classes."""
    return 1 / len(asked.unique())


def chance__wrong_right_share(asked, heard):
    """The share of right answers."""
    return float((asked == heard).double().mean())


def chance__wrong_asked_twice(asked, heard):
    """As if classes were named as often as they are asked for."""
    return chance__reference(asked, asked)


def chance__wrong_heard_twice(asked, heard):
    """As if classes were asked for as often as they are named."""
    return chance__reference(heard, heard)


def chance__wrong_most_frequent(asked, heard):
    """The share of the most frequent class."""
    return float(torch.bincount(asked).max() / len(asked))


def chance__wrong_without_itself(asked, heard):
    """No answer stays where it is."""
    n = len(asked)
    same = (asked[:, None] == heard).double()
    return float((same.sum() - same.diag().sum()) / max(n * (n - 1), 1))


def chance__wrong_one_order(asked, heard):
    """One random order."""
    order = torch.randperm(len(heard), generator=seeded(0))
    return float((asked == heard[order]).double().mean())


def chance__wrong_uniform_answers(asked, heard):
    """As if each class that was named were named equally often."""
    return float((asked[:, None] == heard.unique()).double().mean())


def chance__wrong_sum(asked, heard):
    """Divides by n once only."""
    return min(chance__reference(asked, heard) * len(asked), 1.0)


def mean_and_error__right_numpy(right, caption):
    """In NumPy, caption by caption."""
    x, c = right.numpy().astype(float), caption.numpy()
    kept = ~np.isnan(x)
    means = np.array([x[kept & (c == k)].mean() for k in np.unique(c[kept])])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def mean_and_error__right_bincount(right, caption):
    """With bincount and plain Python."""
    kept = ~right.isnan()
    n = torch.bincount(caption[kept])
    sums = torch.bincount(caption[kept], weights=right[kept].double())
    means = (sums[n > 0] / n[n > 0]).tolist()
    mean = sum(means) / len(means)
    squares = sum((x - mean) ** 2 for x in means)
    return mean, (squares / (len(means) - 1) / len(means)) ** 0.5


def _answers(right, caption):
    """Answers without NaN, their captions, and the captions' averages."""
    kept = ~right.isnan()
    x, c = right[kept].double(), caption[kept]
    return x, c, torch.stack([x[c == k].mean() for k in c.unique()])


def mean_and_error__wrong_by_sound(right, caption):
    """The error counts sounds."""
    x, _, means = _answers(right, caption)
    return float(means.mean()), float(x.std() / len(x) ** 0.5)


def mean_and_error__wrong_mean_of_sounds(right, caption):
    """The mean counts sounds."""
    x, _, means = _answers(right, caption)
    return float(x.mean()), float(means.std() / len(means) ** 0.5)


def mean_and_error__wrong_population(right, caption):
    """The variance with n."""
    _, _, means = _answers(right, caption)
    return float(means.mean()), float(means.std(correction=0) / len(means) ** 0.5)


def mean_and_error__wrong_no_root(right, caption):
    """Divides by n instead of its root."""
    _, _, means = _answers(right, caption)
    return float(means.mean()), float(means.std() / len(means))


def mean_and_error__wrong_deviation(right, caption):
    """The deviation of the averages."""
    _, _, means = _answers(right, caption)
    return float(means.mean()), float(means.std())


def mean_and_error__wrong_nan_is_wrong(right, caption):
    """NaN counts as a wrong answer."""
    return mean_and_error__reference(right.nan_to_num(0.0), caption)


def mean_and_error__wrong_nan_captions(right, caption):
    """Captions with a NaN are left out altogether, where two are left without."""
    bad = caption[right.isnan()]
    good = ~torch.isin(caption, bad)
    if len(caption[good].unique()) < 2:
        good = ~right.isnan()
    return mean_and_error__reference(right[good], caption[good])


def mean_and_error__wrong_all_captions(right, caption):
    """The error counts captions without an answer too."""
    _, _, means = _answers(right, caption)
    return float(means.mean()), float(means.std() / len(caption.unique()) ** 0.5)


def mean_and_error__wrong_binomial(right, caption):
    """The binomial error, as if each caption had one answer of 0 or 1."""
    _, _, means = _answers(right, caption)
    p = float(means.mean())
    return p, max(p * (1 - p), 0.0) ** 0.5 / (len(means) - 1) ** 0.5


def mean_and_error__wrong_blocks(right, caption):
    """Takes neighbours for sounds of one caption."""
    return mean_and_error__reference(right, caption.sort().values)


def worth__right_analysis_of_variance(right):
    """From the two sums of squares."""
    x = right.double().numpy()
    n, k = x.shape
    outer = k * x.mean(axis=1).var(ddof=1)
    inner = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum() / (n * (k - 1))
    r = max(0.0, (outer - inner) / (outer + (k - 1) * inner))
    return float(n * k / (1 + (k - 1) * r))


def worth__right_pairs(right):
    """The variance within from the differences of all pairs of sounds."""
    x = right.double()
    n, k = x.shape
    pairs = (x[:, :, None] - x[:, None, :]).square().sum() / (2 * n * k * (k - 1))
    between = (x.mean(1).var() - pairs / k).clamp_min(0)
    return float(n * k * (between + pairs) / (k * between + pairs))


def _worth(n, k, between, within):
    """n k over the design effect."""
    r = between / (between + within)
    return float(n * k / (1 + (k - 1) * r))


def worth__wrong_between_not_corrected(right):
    """The variance of the averages taken for that between captions."""
    return _worth(*right.shape, right.mean(1).var(), right.var(dim=1).mean())


def worth__wrong_negative(right):
    """Lets the variance between captions be negative."""
    within = right.var(dim=1).mean()
    between = right.mean(1).var() - within / right.shape[1]
    return _worth(*right.shape, between, within)


def worth__wrong_total_within(right):
    """The variance of all sounds taken for that within captions."""
    within = right.var()
    between = (right.mean(1).var() - within / right.shape[1]).clamp_min(0)
    return _worth(*right.shape, between, within)


def worth__wrong_population(right):
    """Both variances with n instead of n - 1."""
    within = right.var(dim=1, correction=0).mean()
    between = right.mean(1).var(correction=0) - within / right.shape[1]
    return _worth(*right.shape, between.clamp_min(0), within)


def worth__wrong_k(right):
    """The design effect with k instead of k - 1."""
    n, k = right.shape
    design = (n * k / worth__reference(right) - 1) / (k - 1)
    return n * k / (1 + k * design)


def worth__wrong_captions(right):
    """The number of captions."""
    return float(len(right))


def worth__wrong_sounds(right):
    """The number of sounds."""
    return float(right.numel())


def worth__wrong_multiplied(right):
    """Multiplies by the design effect."""
    return right.numel() ** 2 / worth__reference(right)


def worth__wrong_root(right):
    """Divides by the root of the design effect."""
    return (right.numel() * worth__reference(right)) ** 0.5


def worth__wrong_ratio(right):
    """r as the ratio of both variances."""
    n, k = right.shape
    within = right.var(dim=1).mean()
    between = (right.mean(1).var() - within / k).clamp_min(0)
    return float(n * k / (1 + (k - 1) * between / within.clamp_min(1e-9)))


def worth__wrong_transposed(right):
    """Captions and sounds exchanged."""
    return worth__reference(right.T)


def frechet_of_statistics__right_product(mean_a, cov_a, mean_b, cov_b):
    """From the eigenvalues of the product, which is not symmetric."""
    a, b = cov_a.double(), cov_b.double()
    values = torch.linalg.eigvals(a @ b).real.clamp_min(0)
    means = (mean_a.double() - mean_b.double()).pow(2).sum()
    return max(float(means + torch.trace(a + b) - 2 * values.sqrt().sum()), 0.0)


def frechet_of_statistics__right_singular_values(mean_a, cov_a, mean_b, cov_b):
    """In NumPy: singular values of the product of both roots."""

    def root(cov):
        values, vectors = np.linalg.eigh(cov.double().numpy())
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    a, b = root(cov_a), root(cov_b)
    shared = np.linalg.svd(a @ b, compute_uv=False).sum()
    means = np.sum((mean_a.double() - mean_b.double()).numpy() ** 2)
    return max(float(means + (a**2).sum() + (b**2).sum() - 2 * shared), 0.0)


def _frechet(mean_a, cov_a, mean_b, cov_b, shared):
    """The distance with another trace of the root."""
    means = (mean_a - mean_b).double().square().sum()
    traces = cov_a.double().trace() + cov_b.double().trace()
    return max(float(means + traces - 2 * shared), 0.0)


def frechet_of_statistics__wrong_roots_multiplied(mean_a, cov_a, mean_b, cov_b):
    """The trace of the product of both roots: right if the covariances commute."""

    def root(cov):
        values, vectors = torch.linalg.eigh(cov.double())
        return vectors * values.clamp_min(0).sqrt() @ vectors.T

    shared = (root(cov_a) @ root(cov_b)).trace()
    return _frechet(mean_a, cov_a, mean_b, cov_b, shared)


def frechet_of_statistics__wrong_elementwise(mean_a, cov_a, mean_b, cov_b):
    """The root of each number of the product."""
    product = cov_a.double() @ cov_b.double()
    shared = product.clamp_min(0).sqrt().trace()
    return _frechet(mean_a, cov_a, mean_b, cov_b, shared)


def frechet_of_statistics__wrong_diagonal(mean_a, cov_a, mean_b, cov_b):
    """The diagonals only."""
    shared = (cov_a.diag() * cov_b.diag()).double().sqrt().sum()
    return _frechet(mean_a, cov_a, mean_b, cov_b, shared)


def frechet_of_statistics__wrong_symmetric_part(mean_a, cov_a, mean_b, cov_b):
    """Treats the product as symmetric."""
    product = cov_a.double() @ cov_b.double()
    values = torch.linalg.eigvalsh(product).clamp_min(0)
    return _frechet(mean_a, cov_a, mean_b, cov_b, values.sqrt().sum())


def frechet_of_statistics__wrong_no_root(mean_a, cov_a, mean_b, cov_b):
    """The trace of the product, without a root."""
    shared = (cov_a.double() @ cov_b.double()).trace()
    return _frechet(mean_a, cov_a, mean_b, cov_b, shared)


def frechet_of_statistics__wrong_once(mean_a, cov_a, mean_b, cov_b):
    """Without the factor 2."""
    d2 = frechet_of_statistics__reference(mean_a, cov_a, mean_b, cov_b)
    traces = float(cov_a.trace() + cov_b.trace())
    return d2 + (traces + float((mean_a - mean_b).square().sum()) - d2) / 2


def frechet_of_statistics__wrong_not_squared(mean_a, cov_a, mean_b, cov_b):
    """The length between the means, not squared."""
    d2 = frechet_of_statistics__reference(mean_a, cov_a, mean_a, cov_b)
    return d2 + float((mean_a - mean_b).norm())


def frechet_of_statistics__wrong_distance(mean_a, cov_a, mean_b, cov_b):
    """The distance, not squared."""
    return frechet_of_statistics__reference(mean_a, cov_a, mean_b, cov_b) ** 0.5


def frechet_of_statistics__wrong_means_only(mean_a, cov_a, mean_b, cov_b):
    """The means only."""
    return float((mean_a - mean_b).square().sum())


def frechet_of_statistics__wrong_mean_of_squares(mean_a, cov_a, mean_b, cov_b):
    """The mean of the squares instead of their sum."""
    d2 = frechet_of_statistics__reference(mean_a, cov_a, mean_a, cov_b)
    return d2 + float((mean_a - mean_b).square().mean())


def frechet_of_statistics__wrong_singular(mean_a, cov_a, mean_b, cov_b):
    """Negative eigenvalues are not caught: NaN where a covariance is singular."""
    values, vectors = torch.linalg.eigh(cov_a.double())
    root = vectors * values.sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh((root @ cov_b.double() @ root).nan_to_num(-1.0))
    return _frechet(mean_a, cov_a, mean_b, cov_b, shared.sqrt().sum())


def frechet_of_statistics__wrong_scipy(mean_a, cov_a, mean_b, cov_b):
    """SciPy's root of the sum of both covariances."""
    root = sqrtm((cov_a + cov_b).double().numpy() / 2).real
    return _frechet(mean_a, cov_a, mean_b, cov_b, np.trace(root))
