"""Right and wrong answers to the assignment cross_attention, for `make graders`."""

import numpy as np
import torch
import torch.nn.functional as F


def pad_captions__right_loop(states):
    """Into tensors that are there beforehand."""
    S = max(len(x) for x in states)
    padded = torch.zeros(len(states), S, states[0].shape[1], dtype=states[0].dtype)
    mask = torch.zeros(len(states), S, dtype=torch.bool)
    for i, x in enumerate(states):
        padded[i, : len(x)], mask[i, : len(x)] = x, True
    return padded, mask


def pad_captions__right_concatenated(states):
    """Each with its own ones and zeros behind."""
    S = max(map(len, states))
    x = [torch.cat([s, s.new_zeros(S - len(s), s.shape[1])]) for s in states]
    mask = [F.pad(torch.ones(len(s)), (0, S - len(s))).bool() for s in states]
    return torch.stack(x), torch.stack(mask)


def pad_captions__wrong_mask_from_numbers(states):
    """Takes vectors of zeros for padding."""
    padded, _ = pad_captions__reference(states)
    return padded, (padded != 0).any(dim=-1)


def pad_captions__wrong_inverted(states):
    """True at padding."""
    padded, mask = pad_captions__reference(states)
    return padded, ~mask


def pad_captions__wrong_in_front(states):
    """Padding stands in front."""
    flipped, mask = pad_captions__reference([x.flip(0) for x in states])
    return flipped.flip(1), mask.flip(1)


def pad_captions__wrong_all_real(states):
    """Everything counts as real."""
    padded, mask = pad_captions__reference(states)
    return padded, torch.ones_like(mask)


def pad_captions__wrong_cut(states):
    """Cut to the shortest."""
    S = min(len(x) for x in states)
    return pad_captions__reference([x[:S] for x in states])


def pad_captions__wrong_repeated(states):
    """The last vector again, not zeros."""
    padded, mask = pad_captions__reference(states)
    for i, x in enumerate(states):
        padded[i, len(x) :] = x[-1]
    return padded, mask


def pad_captions__wrong_one_too_long(states):
    """One position more than needed."""
    padded, mask = pad_captions__reference(states)
    return F.pad(padded, (0, 0, 0, 1)), F.pad(mask, (0, 1))


def pad_captions__wrong_float32(states):
    """Always in single precision."""
    padded, mask = pad_captions__reference(states)
    return padded.float(), mask


def pad_captions__wrong_off_by_one(states):
    """The mask calls one padding real."""
    padded, mask = pad_captions__reference(states)
    mask[:, 1:] = mask[:, :-1].clone()
    return padded, mask


def pad_captions__wrong_numbers(states):
    """A mask of numbers."""
    padded, mask = pad_captions__reference(states)
    return padded, mask.to(padded)


def cross_attend__right_loop(q, k, v, n_head, mask):
    """Item by item and head by head, over the real vectors only."""
    (B, P, C), S = q.shape, k.shape[1]
    d, out, weights = C // n_head, [], []
    for i in range(B):
        real, heads, maps = mask[i], [], []
        for h in range(n_head):
            part = slice(h * d, (h + 1) * d)
            share = (q[i, :, part] @ k[i, real][:, part].T / d**0.5).softmax(dim=1)
            heads.append(share @ v[i, real][:, part])
            maps.append(torch.zeros(P, S, dtype=q.dtype))
            maps[-1][:, real] = share
        out.append(torch.cat(heads, dim=1))
        weights.append(torch.stack(maps))
    return torch.stack(out), torch.stack(weights)


def cross_attend__right_einsum(q, k, v, n_head, mask):
    """With einsum and a sum that is never zero."""
    B, P, C = q.shape
    q, k, v = (x.reshape(B, -1, n_head, C // n_head) for x in (q, k, v))
    scores = torch.einsum("bphd,bshd->bhps", q, k) / (C // n_head) ** 0.5
    high = scores.amax(dim=-1, keepdim=True).detach()
    weights = (scores - high).exp() * mask.to(scores)[:, None, None]
    total = weights.sum(dim=-1, keepdim=True)
    A = weights / torch.where(total > 0, total, 1)
    return torch.einsum("bhps,bshd->bphd", A, v).reshape(B, P, C), A


def _attend(q, k, v, n_head, mask, scale=None, fill=-1e9):
    """The answer with another scale, or another number at padding."""
    q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
    keep = mask[:, None, None, :]
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    A = scores.masked_fill(~keep, fill).softmax(dim=-1)
    if fill != 0:
        A = torch.where(keep.any(-1, keepdim=True), A, 0)
    return (A @ v).transpose(1, 2).flatten(2), A


def cross_attend__right_infinite(q, k, v, n_head, mask):
    """Minus infinity; masked_fill stops the NaN of an empty row on the way back."""
    return _attend(q, k, v, n_head, mask, fill=-torch.inf)


def cross_attend__wrong_gradient(q, k, v, n_head, mask):
    """Adds minus infinity: results are mended, but gradients are NaN."""
    q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
    M = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None, None]
    A = (q @ k.mT / q.shape[-1] ** 0.5 + M).softmax(dim=-1).nan_to_num()
    return (A @ v).transpose(1, 2).flatten(2), A


def cross_attend__wrong_scale_of_all_heads(q, k, v, n_head, mask):
    """Divides by the root of C instead of d."""
    return _attend(q, k, v, n_head, mask, scale=q.shape[-1] ** -0.5)


def cross_attend__wrong_unmasked(q, k, v, n_head, mask):
    """Reads padding wherever something is real."""
    whole = mask.any(dim=1, keepdim=True).expand_as(mask)
    return cross_attend__reference(q, k, v, n_head, whole)


def cross_attend__wrong_zero_scores(q, k, v, n_head, mask):
    """Padding gets the score 0."""
    return _attend(q, k, v, n_head, mask, fill=0)


def cross_attend__wrong_masked_afterwards(q, k, v, n_head, mask):
    """Sets shares to 0 after the softmax, so they do not add up to 1."""
    A = cross_attend__reference(q, k, v, n_head, torch.ones_like(mask))[1]
    A = A * mask[:, None, None]
    values = v.unflatten(-1, (n_head, -1)).transpose(1, 2)
    return (A @ values).transpose(1, 2).flatten(2), A


def cross_attend__wrong_not_scaled(q, k, v, n_head, mask):
    """Scores are not divided."""
    return _attend(q, k, v, n_head, mask, scale=1.0)


def cross_attend__wrong_uniform(q, k, v, n_head, mask):
    """With nothing to read, reads everything alike."""
    whole = mask | ~mask.any(dim=1, keepdim=True)
    return cross_attend__reference(q, k, v, n_head, whole)


def cross_attend__wrong_one_head(q, k, v, n_head, mask):
    """One head, copied."""
    out, A = cross_attend__reference(q, k, v, 1, mask)
    return out, A.expand(-1, n_head, -1, -1)


def cross_attend__wrong_interleaved(q, k, v, n_head, mask):
    """Cuts heads by every n-th number."""
    turn = lambda x: x.unflatten(-1, (-1, n_head)).mT.flatten(2)
    out, A = cross_attend__reference(*map(turn, (q, k, v)), n_head, mask)
    return out.unflatten(-1, (n_head, -1)).mT.flatten(2), A


def cross_attend__wrong_heads_joined(q, k, v, n_head, mask):
    """Joins the heads without bringing positions to the front."""
    out, A = cross_attend__reference(q, k, v, n_head, mask)
    return out.unflatten(-1, (n_head, -1)).transpose(1, 2).reshape(out.shape), A


def cross_attend__wrong_over_positions(q, k, v, n_head, mask):
    """The softmax runs over the positions."""
    q, k, v = (x.unflatten(-1, (n_head, -1)).transpose(1, 2) for x in (q, k, v))
    A = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-2) * mask[:, None, None]
    return (A @ v).transpose(1, 2).flatten(2), A


def cross_attend__wrong_detached(q, k, v, n_head, mask):
    """The weights pass no gradient."""
    A = cross_attend__reference(q, k, v, n_head, mask)[1].detach()
    values = v.unflatten(-1, (n_head, -1)).transpose(1, 2)
    return (A @ values).transpose(1, 2).flatten(2), A


def cross_attend__wrong_scores(q, k, v, n_head, mask):
    """Returns scores instead of weights."""
    out, A = cross_attend__reference(q, k, v, n_head, mask)
    return out, A.clamp_min(1e-9).log() * mask[:, None, None]


def mend__right_logarithm(A, mask):
    """Scores back from logarithms, up to a constant of each row."""
    scores = A.log().masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(dim=-1)


def mend__right_numpy(A, mask):
    """In NumPy, item by item."""
    found = np.zeros(A.shape, dtype=A.numpy().dtype)
    for i, (a, real) in enumerate(zip(A.numpy(), mask.numpy())):
        found[i][..., real] = a[..., real] / a[..., real].sum(axis=-1, keepdims=True)
    return torch.from_numpy(found)


def mend__wrong_not_divided(A, mask):
    """Sets padding to 0 only."""
    return A * mask[:, None, None]


def mend__wrong_softmax_again(A, mask):
    """A softmax of shares."""
    return A.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)


def mend__wrong_spread_evenly(A, mask):
    """Spreads the lost share evenly over the real vectors."""
    kept = A * mask[:, None, None]
    lost = 1 - kept.sum(dim=-1, keepdim=True)
    return kept + lost * mask[:, None, None] / mask.sum(1)[:, None, None, None]


def mend__wrong_counted(A, mask):
    """Scales by the numbers of vectors, not by their shares."""
    ratio = mask.shape[1] / mask.sum(1)
    return A * mask[:, None, None] * ratio[:, None, None, None]


def mend__wrong_padding(A, mask):
    """Keeps the padding instead."""
    kept = A * ~mask[:, None, None]
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(1e-9)


def mend__wrong_heads_together(A, mask):
    """One divisor for all heads and positions of an item."""
    kept = A * mask[:, None, None]
    return kept / kept.sum(dim=-1, keepdim=True).mean(dim=(1, 2), keepdim=True)


def mend__wrong_first_item(A, mask):
    """The first item's mask for all."""
    return mend__reference(A, mask[:1].expand_as(mask))


def mend__wrong_unchanged(A, mask):
    """Mends nothing."""
    return A


def mend__wrong_squares(A, mask):
    """Divides by the length instead of the sum."""
    return F.normalize(A * mask[:, None, None], dim=-1)


def mend__wrong_over_positions(A, mask):
    """Adds up over positions."""
    kept = A * mask[:, None, None]
    return kept / kept.sum(dim=-2, keepdim=True).clamp_min(1e-9)


def _projected(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """What is read, (B, T * F, C), before W_o."""
    x = h.flatten(2).transpose(1, 2)
    keep = mask[:, None, None, :]
    return attention(x @ w_q, y @ w_k, y @ w_v, n_head, keep)


def add_condition__right_einsum(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """With einsum, without flattening."""
    d = h.shape[1] // n_head
    q = torch.einsum("bctf,ce->betf", h, w_q).unflatten(1, (n_head, d))
    k, v = ((y @ w).unflatten(-1, (n_head, d)) for w in (w_k, w_v))
    scores = torch.einsum("bhdtf,bshd->bhtfs", q, k) / d**0.5
    A = scores.masked_fill(~mask[:, None, None, None], -torch.inf).softmax(-1)
    read = torch.einsum("bhtfs,bshd->bhdtf", A, v).flatten(1, 2)
    return h + torch.einsum("bctf,ce->betf", read, w_o)


def add_condition__right_items(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Item by item, over the real vectors."""
    found = []
    for x, told, real in zip(h, y, mask):
        x = x.permute(1, 2, 0)  # (T, F, C)
        k, v = told[real] @ w_k, told[real] @ w_v
        flat = x.reshape(-1, x.shape[-1])
        read = attention((flat @ w_q)[None], k[None], v[None], n_head)[0] @ w_o
        found.append((x + read.reshape(x.shape)).permute(2, 0, 1))
    return torch.stack(found)


def add_condition__wrong_reshaped(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Reshapes instead of exchanging axes."""
    B, C, T, F_ = h.shape
    x, keep = h.reshape(B, T * F_, C), mask[:, None, None]
    read = attention(x @ w_q, y @ w_k, y @ w_v, n_head, keep) @ w_o
    return h + read.reshape(h.shape)


def add_condition__wrong_unmasked(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Reads padding."""
    return add_condition__reference(
        h, y, torch.ones_like(mask), w_q, w_k, w_v, w_o, n_head
    )


def add_condition__wrong_back(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Reshapes on the way back without exchanging axes."""
    read = _projected(h, y, mask, w_q, w_k, w_v, w_o, n_head) @ w_o
    return h + read.reshape(h.shape)


def add_condition__wrong_frequency_first(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Lays frequencies out first, and reads them back as time first."""
    x, keep = h.permute(0, 3, 2, 1).flatten(1, 2), mask[:, None, None]
    read = attention(x @ w_q, y @ w_k, y @ w_v, n_head, keep) @ w_o
    return h + read.mT.reshape(h.shape)


def add_condition__wrong_no_skip(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Without the skip connection."""
    return add_condition__reference(h, y, mask, w_q, w_k, w_v, w_o, n_head) - h


def add_condition__wrong_no_output_weights(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Without W_o."""
    eye = torch.eye(len(w_o), dtype=w_o.dtype)
    return add_condition__reference(h, y, mask, w_q, w_k, w_v, eye, n_head)


def add_condition__wrong_transposed(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Weights as in nn.Linear, where they can be confused."""
    return add_condition__reference(h, y, mask, w_q.T, w_k, w_v, w_o.T, n_head)


def add_condition__wrong_keys_values(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Keys and values exchanged."""
    return add_condition__reference(h, y, mask, w_q, w_v, w_k, w_o, n_head)


def add_condition__wrong_one_head(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """One head."""
    return add_condition__reference(h, y, mask, w_q, w_k, w_v, w_o, 1)


def add_condition__wrong_mean(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Every position reads the mean of the values."""
    v = y @ w_v * mask[..., None]
    mean = v.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return h + (mean @ w_o)[:, :, None, None]


def add_condition__wrong_inverted(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """Reads what is padding, if there is any."""
    other = ~mask | mask.all(dim=1, keepdim=True)
    return add_condition__reference(h, y, other, w_q, w_k, w_v, w_o, n_head)


def add_condition__wrong_skip_in_weights(h, y, mask, w_q, w_k, w_v, w_o, n_head):
    """W_o multiplies the feature map too."""
    x = h.flatten(2).mT
    read = _projected(h, y, mask, w_q, w_k, w_v, w_o, n_head)
    return ((x + read) @ w_o).mT.reshape(h.shape)


def preference__right_loop(A, T, words, start, end):
    """Item by item."""
    found = []
    for a, real, i, j in zip(A, words, start.tolist(), end.tolist()):
        mass = a[..., real].sum(-1).mean(0)
        n = len(mass) // T
        found.append(mass[i * n : j * n].mean() / mass.mean())
    return torch.stack(found)


def preference__right_einsum(A, T, words, start, end):
    """With einsum and weights of the frames."""
    n = A.shape[2] // T
    mass = torch.einsum("bhps,bs->bp", A, words.to(A))
    t = torch.arange(T).repeat_interleave(n)
    own = ((t >= start[:, None]) & (t < end[:, None])).to(A)
    return torch.einsum("bp,bp->b", mass, own) / own.sum(1) / mass.mean(1)


def preference__wrong_end_included(A, T, words, start, end):
    """One frame too many."""
    return preference__reference(A, T, words, start, end + 1)


def preference__wrong_frequency_first(A, T, words, start, end):
    """Positions laid out frequency first."""
    A = A.unflatten(2, (-1, T)).transpose(2, 3).flatten(2, 3)
    return preference__reference(A, T, words, start, end)


def preference__wrong_against_rest(A, T, words, start, end):
    """Divided by the mean over the other frames (or 1, if there are none)."""
    mean = preference__reference(A, T, words, start, end)
    share = (end - start) / T
    rest = (1 - share * mean) / (1 - share).clamp_min(1e-9)
    return torch.where(share < 1, mean / rest, 1.0)


def preference__wrong_not_divided(A, T, words, start, end):
    """The attention itself."""
    mass = (A * words[:, None, None]).sum(-1).mean(1).unflatten(1, (T, -1)).mean(2)
    t = torch.arange(T)
    own = (t >= start[:, None]) & (t < end[:, None])
    return (mass * own).sum(1) / own.sum(1)


def preference__wrong_sum(A, T, words, start, end):
    """The share that own frames have of the whole."""
    ratio = preference__reference(A, T, words, start, end)
    return ratio * (end - start) / T


def preference__wrong_all_words(A, T, words, start, end):
    """All vectors count."""
    return preference__reference(A, T, torch.ones_like(words), start, end)


def preference__wrong_other_words(A, T, words, start, end):
    """The words that are not the event's."""
    other = ~words | words.all(dim=1, keepdim=True)
    return preference__reference(A, T, other, start, end)


def preference__wrong_ratio_of_heads(A, T, words, start, end):
    """Divides in each head, then averages."""
    heads = [preference__reference(a, T, words, start, end) for a in A.split(1, dim=1)]
    return torch.stack(heads).mean(0)


def preference__wrong_ratio_of_words(A, T, words, start, end):
    """Divides for each word, then averages."""
    found = torch.zeros(len(A), dtype=A.dtype)
    for s in range(A.shape[3]):
        only = torch.zeros_like(words)
        only[:, s] = True
        found += preference__reference(A, T, only, start, end) * words[:, s]
    return found / words.sum(1)


def preference__wrong_first_item(A, T, words, start, end):
    """The first item's frames for all."""
    first = (x[:1].expand_as(x) for x in (start, end))
    return preference__reference(A, T, words, *first)


def preference__wrong_positions(A, T, words, start, end):
    """Takes frames for positions."""
    return preference__reference(A, A.shape[2], words, start, end)


def preference__wrong_first_head(A, T, words, start, end):
    """The first head only."""
    return preference__reference(A[:, :1], T, words, start, end)


def time_mask__right_loop(T, F, S, reach):
    """Position by position, in plain Python."""
    rows = []
    for t in range(T):
        middle = (t + 0.5) / T
        row = [abs(middle - (2 * (s // 2) + 1) / S) <= reach for s in range(S)]
        rows += [row] * F
    return torch.tensor(rows)


def time_mask__right_numpy(T, F, S, reach):
    """In NumPy, with whole numbers divided."""
    t, s = np.arange(T * F) // F, np.arange(S) // 2
    near = np.abs(np.subtract.outer((t + 0.5) / T, (s + 0.5) * 2 / S)) <= reach
    return torch.from_numpy(near)


def _near(frames, moments, reach):
    """The mask of positions and vectors at these times."""
    return (frames[:, None] - moments[None, :]).abs() <= reach


def _frames(T, F):
    return ((torch.arange(T) + 0.5) / T).repeat_interleave(F)


def time_mask__wrong_one_band(T, F, S, reach):
    """Every vector has its own moment."""
    return _near(_frames(T, F), (torch.arange(S) + 0.5) / S, reach)


def time_mask__wrong_starts(T, F, S, reach):
    """Beginnings instead of middles."""
    moments = (torch.arange(S // 2) / (S // 2)).repeat_interleave(2)
    return _near((torch.arange(T) / T).repeat_interleave(F), moments, reach)


def time_mask__wrong_bands_first(T, F, S, reach):
    """All vectors of one band, then all of the other."""
    moments = ((torch.arange(S // 2) + 0.5) / (S // 2)).repeat(2)
    return _near(_frames(T, F), moments, reach)


def time_mask__wrong_frequency_first(T, F, S, reach):
    """Positions laid out frequency first."""
    moments = ((torch.arange(S // 2) + 0.5) / (S // 2)).repeat_interleave(2)
    return _near(((torch.arange(T) + 0.5) / T).repeat(F), moments, reach)


def time_mask__wrong_whole_width(T, F, S, reach):
    """`reach` taken for the whole width of the window."""
    return time_mask__reference(T, F, S, reach / 2)


def time_mask__wrong_inverted(T, F, S, reach):
    """True where nothing may be read."""
    return ~time_mask__reference(T, F, S, reach)


def time_mask__wrong_causal(T, F, S, reach):
    """Reads the past only."""
    moments = ((torch.arange(S // 2) + 0.5) / (S // 2)).repeat_interleave(2)
    after = _frames(T, F)[:, None] - moments
    return (after >= 0) & (after <= reach)


def time_mask__wrong_ends(T, F, S, reach):
    """From 0 to 1 instead of middles."""
    moments = torch.linspace(0, 1, S // 2).repeat_interleave(2)
    return _near(torch.linspace(0, 1, T).repeat_interleave(F), moments, reach)


def time_mask__wrong_transposed(T, F, S, reach):
    """Vectors are rows."""
    return time_mask__reference(T, F, S, reach).T


def time_mask__wrong_frames_only(T, F, S, reach):
    """One row for each frame."""
    return time_mask__reference(T, 1, S, reach)


def time_mask__wrong_in_frames(T, F, S, reach):
    """`reach` counted in frames."""
    return time_mask__reference(T, F, S, reach / T)


def time_mask__wrong_numbers(T, F, S, reach):
    """Numbers instead of bool."""
    return time_mask__reference(T, F, S, reach).float()
