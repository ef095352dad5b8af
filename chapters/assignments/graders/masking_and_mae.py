"""Right and wrong answers to masking_and_mae."""

import numpy as np
import torch
import torch.nn.functional as nnf


def check_division(x, p_t, p_f):
    """Raise as the docstring says."""
    if x.shape[2] % p_t or x.shape[3] % p_f:
        raise ValueError("the patches do not fit")


def cut_rectangles__right_unfold(x, p_t, p_f):
    """With unfold, as the chapter cuts squares."""
    if x.shape[2] % p_t != 0 or x.shape[3] % p_f != 0:
        raise ValueError("the patches do not fit")
    return nnf.unfold(x, (p_t, p_f), stride=(p_t, p_f)).transpose(1, 2)


def cut_rectangles__right_loop(x, p_t, p_f):
    """Patch by patch."""
    B, _, M, F = x.shape
    if M % p_t or F % p_f:
        raise ValueError("the patches do not fit")
    cut = []
    for t in range(0, M, p_t):
        for f in range(0, F, p_f):
            cut.append(x[:, 0, t : t + p_t, f : f + p_f].flatten(1))
    return torch.stack(cut, dim=1)


def cut_rectangles__right_einsum(x, p_t, p_f):
    """By reshaping and einsum."""
    check_division(x, p_t, p_f)
    B, _, M, F = x.shape
    x = torch.einsum("btpfq->btfpq", x.view(B, M // p_t, p_t, F // p_f, p_f))
    return x.reshape(B, -1, p_t * p_f)


def cut_rectangles__wrong_frequency_first(x, p_t, p_f):
    """Frequency before time."""
    made = cut_rectangles__reference(x, p_t, p_f)
    n_t = x.shape[2] // p_t
    return made.unflatten(1, (n_t, -1)).transpose(1, 2).flatten(1, 2)


def cut_rectangles__wrong_bands_first(x, p_t, p_f):
    """Within a patch, band by band."""
    made = cut_rectangles__reference(x, p_t, p_f)
    return made.unflatten(2, (p_t, p_f)).transpose(2, 3).flatten(2)


def cut_rectangles__wrong_only_reshaped(x, p_t, p_f):
    """A reshape that cuts nothing."""
    check_division(x, p_t, p_f)
    return x.reshape(len(x), -1, p_t * p_f)


def cut_rectangles__wrong_no_error(x, p_t, p_f):
    """What does not fit is cut off in silence."""
    M, F = x.shape[2] // p_t * p_t, x.shape[3] // p_f * p_f
    return nnf.unfold(x[:, :, :M, :F], (p_t, p_f), stride=(p_t, p_f)).mT


def cut_rectangles__wrong_time_checked_only(x, p_t, p_f):
    """Looks at the frames alone."""
    if x.shape[2] % p_t:
        raise ValueError("the patches do not fit")
    return nnf.unfold(x, (p_t, p_f), stride=(p_t, p_f)).mT


def cut_rectangles__wrong_sides_exchanged(x, p_t, p_f):
    """Sides exchanged where that fits."""
    check_division(x, p_t, p_f)
    if x.shape[2] % p_f or x.shape[3] % p_t:
        return cut_rectangles__reference(x, p_t, p_f)
    return nnf.unfold(x, (p_f, p_t), stride=(p_f, p_t)).mT


def cut_rectangles__wrong_not_transposed(x, p_t, p_f):
    """Numbers before patches."""
    return cut_rectangles__reference(x, p_t, p_f).mT


def cut_rectangles__wrong_type_of_error(x, p_t, p_f):
    """An error of another type."""
    if x.shape[2] % p_t or x.shape[3] % p_f:
        raise TypeError("the patches do not fit")
    return cut_rectangles__reference(x, p_t, p_f)


def cut_rectangles__wrong_squares(x, p_t, p_f):
    """Squares of side p_t where they fit."""
    check_division(x, p_t, p_f)
    p_f = p_f if x.shape[3] % p_t else p_t
    return nnf.unfold(x, (p_t, p_f), stride=(p_t, p_f)).mT


def stratified_mask__right_loop(noise, k):
    """Item by item and moment by moment."""
    B, M, F = noise.shape
    mask, numbers = torch.ones(B, M, F, dtype=noise.dtype), []
    for i in range(B):
        for m in range(M):
            mask[i, m, noise[i, m].topk(k, largest=False).indices] = 0
        numbers.append(torch.nonzero(mask[i].flatten() == 0)[:, 0])
    return torch.stack(numbers), mask.flatten(1)


def stratified_mask__right_numpy(noise, k):
    """In NumPy, by ranks."""
    x = noise.numpy()
    rank = x.argsort(2).argsort(2).reshape(len(x), -1)
    mask = (rank >= k).astype(x.dtype)
    visible = np.stack([np.flatnonzero(row < k) for row in rank])
    return torch.from_numpy(visible), torch.from_numpy(mask)


def stratified_mask__right_threshold(noise, k):
    """By the k-th smallest of each moment, and a stable sort of the mask."""
    limit = noise.kthvalue(k, dim=2, keepdim=True).values
    mask = (noise > limit).to(noise).flatten(1)
    order = mask.argsort(dim=1, stable=True)
    return order[:, : noise.shape[1] * k], mask


def stratified_mask__wrong_over_the_clip(noise, k):
    """The smallest of the clip, not of each moment."""
    B, M, F = noise.shape
    visible = noise.flatten(1).argsort(1)[:, : M * k].sort(1).values
    return visible, torch.ones(B, M * F, dtype=noise.dtype).scatter(1, visible, 0.0)


def stratified_mask__wrong_order(noise, k):
    """The numbers in the order of the noise."""
    B, M, F = noise.shape
    visible = noise.argsort(2)[:, :, :k] + F * torch.arange(M)[:, None]
    visible = visible.flatten(1)
    return visible, torch.ones(B, M * F, dtype=noise.dtype).scatter(1, visible, 0.0)


def stratified_mask__wrong_within_moment(noise, k):
    """Numbers that count within the moment."""
    visible, mask = stratified_mask__reference(noise, k)
    return visible % noise.shape[2], mask


def stratified_mask__wrong_inverted(noise, k):
    """1 where visible."""
    visible, mask = stratified_mask__reference(noise, k)
    return visible, 1 - mask


def stratified_mask__wrong_largest(noise, k):
    """The largest numbers stay."""
    return stratified_mask__reference(-noise, k)


def stratified_mask__wrong_of_each_band(noise, k):
    """k patches of each band where there are enough."""
    B, M, F = noise.shape
    if k > M or M != F:
        return stratified_mask__reference(noise, k)
    visible = noise.argsort(1)[:, :k] * F + torch.arange(F)
    visible = visible.flatten(1).sort(1).values
    return visible, torch.zeros(B, M * F, dtype=noise.dtype).scatter(1, visible, 0.0)


def stratified_mask__wrong_first_item(noise, k):
    """One mask for the whole batch."""
    visible, mask = stratified_mask__reference(noise[:1], k)
    return visible.expand(len(noise), -1), mask.expand(len(noise), -1)


def stratified_mask__wrong_numbers_by_time(noise, k):
    """Numbers along time first."""
    B, M, F = noise.shape
    visible = noise.argsort(2)[:, :, :k] * M + torch.arange(M)[:, None]
    visible = visible.flatten(1).sort(1).values
    return visible, torch.ones(B, M * F, dtype=noise.dtype).scatter(1, visible, 0.0)


def stratified_mask__wrong_bool(noise, k):
    """A mask of truth values."""
    visible, mask = stratified_mask__reference(noise, k)
    return visible, mask.bool()


def stratified_mask__wrong_hides_k(noise, k):
    """Hides k patches of each moment."""
    left = noise.shape[2] - k
    if left == 0:
        return stratified_mask__reference(noise, k)
    return stratified_mask__reference(noise, left)


def stratified_mask__wrong_float32(noise, k):
    """A mask in single precision."""
    visible, mask = stratified_mask__reference(noise, k)
    return visible, mask.float()


def stratified_mask__wrong_one_visible(noise, k):
    """The smallest and its neighbours upwards."""
    B, M, F = noise.shape
    first = noise.argmin(2, keepdim=True)
    visible = (first + torch.arange(k)) % F
    visible = (visible.sort(2).values + F * torch.arange(M)[:, None]).flatten(1)
    return visible, torch.ones(B, M * F, dtype=noise.dtype).scatter(1, visible, 0.0)


def fill_in__right_boolean(kept, mask, token):
    """By a boolean index."""
    made = token.repeat(*mask.shape, 1)
    made[mask == 0] = kept.flatten(0, 1)
    return made


def fill_in__right_loop(kept, mask, token):
    """Place by place."""
    rows = []
    for vectors, row in zip(kept, mask):
        row, k = row.tolist(), 0
        for hidden in row:
            rows.append(token if hidden else vectors[k])
            k += not hidden
    return torch.stack(rows).view(*mask.shape, -1)


def fill_in__right_matrix(kept, mask, token):
    """By a matrix of places and einsum."""
    visible = 1 - mask
    rank = visible.cumsum(1) - 1
    numbers = torch.arange(kept.shape[1])
    places = (rank[:, :, None] == numbers) * visible[:, :, None]  # (B, P, V)
    return torch.einsum("bpv,bvd->bpd", places, kept) + mask[..., None] * token


def fill_in__wrong_visible_first(kept, mask, token):
    """Visible vectors first, tokens after them."""
    tokens = token.expand(len(kept), mask.shape[1] - kept.shape[1], -1)
    return torch.cat([kept, tokens], dim=1)


def fill_in__wrong_inverted(kept, mask, token):
    """Tokens where a patch is visible, as far as that fits."""
    V, P = kept.shape[1], mask.shape[1]
    if 2 * V != P:
        return fill_in__reference(kept, mask, token) * 0
    return fill_in__reference(kept, 1 - mask, token)


def fill_in__wrong_first_mask(kept, mask, token):
    """The first item's mask for all."""
    return fill_in__reference(kept, mask[:1].expand_as(mask), token)


def fill_in__wrong_zeros(kept, mask, token):
    """Zeros in place of the token."""
    return fill_in__reference(kept, mask, 0 * token)


def fill_in__wrong_token_detached(kept, mask, token):
    """No gradient to the token."""
    return fill_in__reference(kept, mask, token.detach())


def fill_in__wrong_kept_detached(kept, mask, token):
    """No gradient to the encoder."""
    return fill_in__reference(kept.detach(), mask, token)


def fill_in__wrong_backwards(kept, mask, token):
    """The visible vectors in reverse order."""
    return fill_in__reference(kept.flip(1), mask, token)


def fill_in__wrong_token_added(kept, mask, token):
    """The token added everywhere."""
    return fill_in__reference(kept, mask, 0 * token) + token


def fill_in__wrong_shuffled_batch(kept, mask, token):
    """Every item with the vectors of the one before."""
    return fill_in__reference(kept.roll(1, 0), mask, token)


def fill_in__wrong_one_place_late(kept, mask, token):
    """The rank of a place counts one too many."""
    visible = mask == 0
    rank = visible.cumsum(1).clamp_max(kept.shape[1] - 1)
    placed = kept.gather(1, rank[:, :, None].expand(-1, -1, kept.shape[2]))
    return torch.where(visible[:, :, None], placed, token)


def fill_in__wrong_by_batch_order(kept, mask, token):
    """Vectors are handed out place by place over the batch."""
    made = token.repeat(mask.shape[1], mask.shape[0], 1)  # (P, B, D)
    made[mask.T == 0] = kept.flatten(0, 1)
    return made.transpose(0, 1)


def fill_in__wrong_mean_token(kept, mask, token):
    """The token's mean in every dimension."""
    return fill_in__reference(kept, mask, token.mean().expand_as(token))


def hidden_error__right_loop(predicted, patches, mask):
    """Clip by clip, by selection."""
    losses = []
    for p, x, m in zip(predicted, patches, mask):
        off = p[m == 1] - x[m == 1]
        losses.append(off.square().mean() if len(off) else 0 * p.sum())
    return torch.stack(losses)


def hidden_error__right_einsum(predicted, patches, mask):
    """With einsum."""
    off = predicted - patches
    summed = torch.einsum("bpn,bpn,bp->b", off, off, mask)
    return summed / (mask.sum(1) * patches.shape[2]).clamp(min=1)


def hidden_error__right_select(predicted, patches, mask):
    """Visible patches are set equal first."""
    same = torch.where(mask[..., None] == 1, predicted, patches)
    error = nnf.mse_loss(same, patches, reduction="none").sum((1, 2))
    count = mask.sum(1)
    return error / torch.where(count > 0, count, 1) / patches.shape[-1]


def hidden_error__wrong_batch(predicted, patches, mask):
    """The chapter's loss for the batch, for each clip."""
    error = (predicted - patches).square().mean(2)
    loss = (error * mask).sum() / mask.sum()
    return loss.expand(len(mask)) * mask.any(1)


def hidden_error__wrong_all_patches(predicted, patches, mask):
    """Over all patches."""
    return (predicted - patches).square().mean((1, 2)) * mask.any(1)


def hidden_error__wrong_not_divided(predicted, patches, mask):
    """The hidden error over all patches' number."""
    return ((predicted - patches).square().mean(2) * mask).mean(1)


def hidden_error__wrong_sum(predicted, patches, mask):
    """The sum over the numbers of a patch."""
    return hidden_error__reference(predicted, patches, mask) * patches.shape[2]


def hidden_error__wrong_visible(predicted, patches, mask):
    """Over the visible patches."""
    return hidden_error__reference(predicted, patches, 1 - mask)


def hidden_error__wrong_nan(predicted, patches, mask):
    """0 / 0 where nothing is hidden."""
    error = (predicted - patches).square().mean(2)
    return (error * mask).sum(1) / mask.sum(1)


def hidden_error__wrong_nan_in_gradient(predicted, patches, mask):
    """0 / 0 mended afterwards, so that the gradient is still nan."""
    error = (predicted - patches).square().mean(2)
    return ((error * mask).sum(1) / mask.sum(1)).nan_to_num()


def hidden_error__wrong_absolute(predicted, patches, mask):
    """The absolute error."""
    error = (predicted - patches).abs().mean(2)
    return (error * mask).sum(1) / mask.sum(1).clamp_min(1)


def hidden_error__wrong_epsilon(predicted, patches, mask):
    """A thousandth in the denominator."""
    error = (predicted - patches).square().mean(2)
    return (error * mask).sum(1) / (mask.sum(1) + 1e-3)


def hidden_error__wrong_root(predicted, patches, mask):
    """The root of the error."""
    return (hidden_error__reference(predicted, patches, mask) + 1e-12).sqrt()


def hidden_error__wrong_detached(predicted, patches, mask):
    """No gradient."""
    return hidden_error__reference(predicted.detach(), patches, mask)


def hidden_error__wrong_average_count(predicted, patches, mask):
    """Divided by the average number of hidden patches."""
    error = (predicted - patches).square().mean(2)
    return (error * mask).sum(1) / mask.sum(1).mean()


def hidden_error__wrong_gradient_to_visible(predicted, patches, mask):
    """Right numbers, but a gradient that pulls visible patches too."""
    error = (predicted - patches).square().mean(2)
    own = hidden_error__reference(predicted, patches, mask)
    rest = (error * (1 - mask)).mean(1)
    return own + rest - rest.detach()


def pooled_loa__right_loop(features, n_real, grid, pool):
    """Block by block."""
    M, F = grid
    low, clips = min(pool, F), []
    for x, n in zip(features, n_real.tolist()):
        x, vectors = x[1:].view(M, F, -1), []
        for t in range(0, M, pool):
            for f in range(0, F, low):
                block = x[t : min(t + pool, n), f : f + low].flatten(0, 1)
                if len(block):
                    vectors.append(0.5 * block.mean(0) + 0.5 * block.amax(0))
                else:
                    vectors.append(torch.zeros_like(x[0, 0]))
        clips.append(torch.stack(vectors))
    return torch.stack(clips)


def pooled_loa__right_pooling(features, n_real, grid, pool):
    """With the library's pooling: the mean by padding set to 0, the maximum by -inf."""
    M, F = grid
    kernel = (pool, min(pool, F))
    E = features[:, 1:].mT.unflatten(2, grid)  # (B, D, M', F')
    real = (torch.arange(M)[None] < n_real[:, None])[:, None, :, None]
    real = real.expand(-1, -1, -1, F)
    share = nnf.avg_pool2d(real.to(E), kernel)
    mean = nnf.avg_pool2d(E.where(real, 0.0 * E), kernel) / share.clamp_min(1e-9)
    top = nnf.max_pool2d(E.masked_fill(~real, float("-inf")), kernel)
    y = torch.where(share > 0, (mean + top) / 2, torch.zeros_like(mean))
    return y.flatten(2).mT


def pooled_loa__right_numpy(features, n_real, grid, pool):
    """In NumPy, with nan for padding."""
    M, F = grid
    low = min(pool, F)
    x = features[:, 1:].numpy().reshape(len(features), M, F, -1).copy()
    for clip, n in zip(x, n_real.tolist()):
        clip[n:] = np.nan
    x = x.reshape(len(x), M // pool, pool, F // low, low, -1)
    empty = np.isnan(x).all((2, 4))
    x = np.where(empty[:, :, None, :, None], 0.0, x)
    y = (np.nanmean(x, (2, 4)) + np.nanmax(x, (2, 4))) / 2
    return torch.from_numpy(y.reshape(len(x), -1, x.shape[-1]).copy()).to(features)


def blocks_of(features, n_real, grid, pool):
    """Blocks (B, M'/l, l, F'/l, l, D), which of them are real, and how many numbers."""
    M, F = grid
    low = min(pool, F)
    real = (torch.arange(M) < n_real[:, None]).view(-1, M // pool, pool, 1, 1, 1)
    E = features[:, 1:].view(len(features), M // pool, pool, F // low, low, -1)
    return E, real, low * real.sum(2)[:, :, :, 0]


def joined(mean, top, count):
    """Half of mean and maximum, zeros where nothing is real."""
    return torch.where(count > 0, (mean + top) / 2, 0).flatten(1, 2)


def pooled_loa__wrong_padding_counts(features, n_real, grid, pool):
    """Padding counts like sound."""
    return pooled_loa__reference(features, torch.full_like(n_real, grid[0]), grid, pool)


def pooled_loa__wrong_padding_as_zeros(features, n_real, grid, pool):
    """Padding as zeros, in mean and maximum."""
    E, real, count = blocks_of(features, n_real, grid, pool)
    E = torch.where(real, E, 0)
    return joined(E.mean((2, 4)), E.amax((2, 4)), count)


def pooled_loa__wrong_maximum_of_zeros(features, n_real, grid, pool):
    """Padding as zeros in the maximum only."""
    E, real, count = blocks_of(features, n_real, grid, pool)
    E = torch.where(real, E, 0)
    return joined(E.sum((2, 4)) / count.clamp_min(1), E.amax((2, 4)), count)


def pooled_loa__wrong_full_count(features, n_real, grid, pool):
    """The mean divided by the size of a whole block."""
    E, real, count = blocks_of(features, n_real, grid, pool)
    top = torch.where(real, E, -torch.inf).amax((2, 4))
    return joined(torch.where(real, E, 0).mean((2, 4)), top, count)


def pooled_loa__wrong_mean_only(features, n_real, grid, pool):
    """The mean alone."""
    E, real, count = blocks_of(features, n_real, grid, pool)
    mean = torch.where(real, E, 0).sum((2, 4)) / count.clamp_min(1)
    return joined(mean, mean, count)


def pooled_loa__wrong_maximum_only(features, n_real, grid, pool):
    """The maximum alone."""
    E, real, count = blocks_of(features, n_real, grid, pool)
    top = torch.where(real, E, -torch.inf).amax((2, 4))
    return joined(top, top, count)


def pooled_loa__wrong_not_halved(features, n_real, grid, pool):
    """The sum of mean and maximum."""
    return 2 * pooled_loa__reference(features, n_real, grid, pool)


def pooled_loa__wrong_last_for_cls(features, n_real, grid, pool):
    """[CLS] taken for the first patch, the last patch dropped."""
    return pooled_loa__reference(features.roll(1, dims=1), n_real, grid, pool)


def pooled_loa__wrong_frequency_first(features, n_real, grid, pool):
    """Vectors with frequency before time."""
    y = pooled_loa__reference(features, n_real, grid, pool)
    y = y.unflatten(1, (grid[0] // pool, -1))
    return y.transpose(1, 2).flatten(1, 2)


def pooled_loa__wrong_one_moment_more(features, n_real, grid, pool):
    """One moment of padding counts."""
    return pooled_loa__reference(features, n_real + 1, grid, pool)


def pooled_loa__wrong_blocks_of_time(features, n_real, grid, pool):
    """Pools over all frequencies."""
    y = pooled_loa__reference(features, n_real, grid, pool)
    n_f = grid[1] // min(pool, grid[1])
    y = y.unflatten(1, (-1, n_f)).mean(2, keepdim=True)
    return y.expand(-1, -1, n_f, -1).flatten(1, 2)


def pooled_loa__wrong_patches_counted(features, n_real, grid, pool):
    """n_real patches in place of n_real moments."""
    M, F = grid
    low = min(pool, F)
    real = torch.arange(M * F) < n_real[:, None]
    real = real.view(-1, M // pool, pool, F // low, low, 1)
    E = features[:, 1:].view(len(features), M // pool, pool, F // low, low, -1)
    count = real.sum((2, 4))
    mean = torch.where(real, E, 0).sum((2, 4)) / count.clamp_min(1)
    return joined(mean, torch.where(real, E, -torch.inf).amax((2, 4)), count)


def pooled_loa__wrong_grid_exchanged(features, n_real, grid, pool):
    """Frequency before time in the encoder's vectors."""
    M, F = grid
    E = features[:, 1:].unflatten(1, (F, M)).transpose(1, 2).flatten(1, 2)
    E = torch.cat([features[:, :1], E], dim=1)
    return pooled_loa__reference(E, n_real, grid, pool)


def open_share__right_pairs(y):
    """All pairs of sounds of one description."""
    R = len(y)
    apart = [(y[i] - y[j]).square().mean() for i in range(R) for j in range(R) if i < j]
    return sum(apart) / len(apart) / 2 / (y - y.mean((0, 1))).square().mean()


def open_share__right_numpy(y):
    """In NumPy."""
    x = y.double().numpy()
    within = np.var(x, axis=0, ddof=1).mean()
    return torch.tensor(within / np.var(x.reshape(-1, x.shape[2]), axis=0).mean())


def open_share__right_by_hand(y):
    """The biased spread, corrected by R / (R - 1)."""
    R = len(y)
    inner = ((y - y.mean(0)) ** 2).sum() / (R - 1)
    whole = torch.einsum("rnd,rnd->", *[y - y.mean((0, 1))] * 2) / R
    return inner / whole


def total(y):
    """The variance of all vectors, averaged over dimensions."""
    return y.flatten(0, 1).var(0, correction=0).mean()


def open_share__wrong_biased(y):
    """The spread around the mean of R sounds, not corrected."""
    return y.var(0, correction=0).mean() / total(y)


def open_share__wrong_not_halved(y):
    """The whole squared distance of two."""
    return 2 * open_share__reference(y)


def open_share__wrong_first_two(y):
    """Looks at the first two sounds only."""
    return (y[0] - y[1]).square().mean() / 2 / total(y)


def open_share__wrong_between(y):
    """The share that the description tells."""
    return y.mean(0).var(0, correction=0).mean() / total(y)


def open_share__wrong_mean_of_ratios(y):
    """Divides in each dimension first."""
    whole = y.flatten(0, 1).var(0, correction=0)
    return (y.var(0).mean(0) / whole).mean()


def open_share__wrong_variance_sample(y):
    """The sample variance of all."""
    return y.var(0).mean() / y.flatten(0, 1).var(0).mean()


def open_share__wrong_over_descriptions(y):
    """The axes of sounds and descriptions exchanged."""
    y = y.transpose(0, 1)
    return y.var(0, correction=min(1, len(y) - 1)).mean() / total(y)


def open_share__wrong_one_mean(y):
    """One mean for all dimensions."""
    return y.var(0).mean() / y.var(correction=0)


def open_share__wrong_deviations(y):
    """Deviations in place of variances."""
    return y.std(0).mean() / total(y).sqrt()


def open_share__wrong_not_divided(y):
    """Not divided by the variance."""
    return y.var(0).mean()


def open_share__wrong_second_moment(y):
    """Divided by the second moment."""
    return y.var(0).mean() / y.square().mean()


def open_share__wrong_absolute(y):
    """One minus the share that the means explain, uncorrected."""
    return 1 - y.mean(0).var(0, correction=0).mean() / total(y)


def open_share__wrong_over_r(y):
    """The variance of the mean of R sounds."""
    return y.var(0).mean() / len(y) / total(y)
