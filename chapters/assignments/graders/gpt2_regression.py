"""Right and wrong answers to the assignment gpt2_regression, for `make graders`."""

import numpy as np
import torch
import torch.nn.functional as F

from minilib.layers import attention


def sequence_nll__right_distribution(loa, guess, sigma, mask):
    """With torch.distributions."""
    logs = torch.distributions.Normal(guess, sigma.expand_as(guess)).log_prob(loa)
    return -torch.where(mask[..., None], logs, 0).sum(dim=(1, 2))


def sequence_nll__right_numpy(loa, guess, sigma, mask):
    """In NumPy, sequence by sequence."""
    found = []
    for y, centre, real in zip(loa.numpy(), guess.numpy(), mask.numpy()):
        z = (y[real] - centre[real]) / sigma.numpy()
        logs = np.log(2 * np.pi) + 2 * np.log(sigma.numpy())
        found.append(0.5 * np.sum(z**2 + logs))
    return torch.from_numpy(np.array(found, dtype=loa.numpy().dtype))


def sequence_nll__wrong_unmasked(loa, guess, sigma, mask):
    """Padding counts."""
    return sequence_nll__reference(loa, guess, sigma, torch.ones_like(mask))


def sequence_nll__wrong_mean(loa, guess, sigma, mask):
    """The mean over the vectors instead of the sum."""
    return sequence_nll__reference(loa, guess, sigma, mask) / mask.sum(1)


def sequence_nll__wrong_constant_of_padding(loa, guess, sigma, mask):
    """The constant of padding counts, its error does not."""
    guess = torch.where(mask[..., None], guess, loa)
    return sequence_nll__reference(loa, guess, sigma, torch.ones_like(mask))


def sequence_nll__wrong_variance(loa, guess, sigma, mask):
    """sigma taken for the variance."""
    return sequence_nll__reference(loa, guess, sigma.sqrt(), mask)


def sequence_nll__wrong_not_halved(loa, guess, sigma, mask):
    """The squares are not halved."""
    logs = sigma.log() + 0.9189385
    nats = ((loa - guess) / sigma) ** 2 + logs
    return (nats.sum(-1) * mask).sum(-1)


def sequence_nll__wrong_squares_only(loa, guess, sigma, mask):
    """Without the constant."""
    nats = 0.5 * ((loa - guess) / sigma) ** 2
    return (nats.sum(-1) * mask).sum(-1)


def sequence_nll__wrong_one_constant(loa, guess, sigma, mask):
    """The constant once for each vector, not for each of its numbers."""
    nats = (0.5 * ((loa - guess) / sigma) ** 2 + sigma.log()).sum(-1) + 0.9189385
    return (nats * mask).sum(-1)


def sequence_nll__wrong_sign(loa, guess, sigma, mask):
    """The log-likelihood."""
    return -sequence_nll__reference(loa, guess, sigma, mask)


def sequence_nll__wrong_mean_sigma(loa, guess, sigma, mask):
    """One sigma for all numbers."""
    return sequence_nll__reference(loa, guess, sigma.mean().expand_as(sigma), mask)


def sequence_nll__wrong_batch(loa, guess, sigma, mask):
    """All sequences together, for each."""
    total = sequence_nll__reference(loa, guess, sigma, mask)
    return total.sum().expand_as(total)


def left_open__right_loop(caption, loa):
    """Caption by caption in plain Python."""
    y, names = loa.double(), caption.tolist()
    mean, lengths, error = y.mean(0), 0.0, 0.0
    for name in set(names):
        group = y[[n == name for n in names]]
        centre = group.sum(0) / len(group)
        lengths += len(group) * float(((centre - mean) ** 2).sum())
        error += float(((group - centre) ** 2).sum())
    return lengths / (lengths + error), error / (lengths + error)


def left_open__right_numpy(caption, loa):
    """In NumPy with bincount; the error as what is left of 1."""
    names, k, n = np.unique(caption.numpy(), return_inverse=True, return_counts=True)
    y = loa.numpy() - loa.numpy().mean(axis=0)
    sums = np.zeros((len(names), y.shape[1]))
    np.add.at(sums, k, y)
    lengths = (sums**2 / n[:, None]).sum() / (y**2).sum()
    return float(lengths), float(1 - lengths)


def left_open__wrong_root(caption, loa):
    """The ratio of lengths instead of its square."""
    lengths, error = left_open__reference(caption, loa)
    return lengths**0.5, error


def left_open__wrong_captions_equal(caption, loa):
    """Each caption counts once, however many clips it has."""
    y, names = loa.double(), caption.unique()
    means = torch.stack([y[caption == c].mean(0) for c in names])
    total = (y - y.mean(0)).square().sum(1).mean()
    lengths = (means - means.mean(0)).square().sum(1).mean()
    return float(lengths / total), float(1 - lengths / total)


def left_open__wrong_not_centred(caption, loa):
    """Lengths from 0, not from the mean."""
    guess = torch.stack([loa[caption == c].mean(0) for c in caption])
    lengths = float(guess.square().sum() / loa.square().sum())
    return lengths, 1 - lengths


def left_open__wrong_swapped(caption, loa):
    """Both parts exchanged."""
    return left_open__reference(caption, loa)[::-1]


def left_open__wrong_mean_of_ratios(caption, loa):
    """Divides for each number, then averages."""
    guess = torch.stack([loa[caption == c].mean(0) for c in caption])
    lengths = ((guess - loa.mean(0)) ** 2).sum(0) / ((loa - loa.mean(0)) ** 2).sum(0)
    return float(lengths.mean()), float(1 - lengths.mean())


def left_open__wrong_median(caption, loa):
    """The median, as with L1."""
    guess = torch.stack([loa[caption == c].median(0).values for c in caption])
    mean = loa.mean(0)
    total = (loa - mean).square().sum()
    lengths = (guess - mean).square().sum() / total
    return float(lengths), float((loa - guess).square().sum() / total)


def left_open__wrong_overall_mean(caption, loa):
    """Ignores the captions."""
    return 0.0, 1.0


def left_open__wrong_copies(caption, loa):
    """Guesses each clip itself."""
    return 1.0, 0.0


def left_open__wrong_unbiased(caption, loa):
    """Divides the squares in each group by n - 1."""
    y, error = loa.double(), 0.0
    for c in caption.unique():
        group = y[caption == c]
        if len(group) > 1:
            error += float(group.var(0).sum()) * len(group)
    error /= float((y - y.mean(0)).square().sum())
    return 1 - error, error


def left_open__wrong_one_group(caption, loa):
    """The guess of the first caption for all."""
    guess, mean = loa[caption == caption[0]].mean(0), loa.mean(0)
    total = (loa - mean).square().sum()
    lengths = (guess - mean).square().sum() * len(loa) / total
    return float(lengths), float((loa - guess).square().sum() / total)


def prefix_mask__right_positions(condition_mask, n_vectors):
    """By comparing positions."""
    S = condition_mask.shape[1]
    i = torch.arange(S + n_vectors)
    reads = (i[None, :] < S) | (i[None, :] <= i[:, None])
    return reads & F.pad(condition_mask, (0, n_vectors), value=True)[:, None]


def prefix_mask__right_loop(condition_mask, n_vectors):
    """Row by row, in NumPy."""
    B, S = condition_mask.shape
    found = np.zeros((B, S + n_vectors, S + n_vectors), dtype=bool)
    for b in range(B):
        for row in range(S + n_vectors):
            found[b, row, :S] = condition_mask[b].numpy()
            if row >= S:
                found[b, row, S : row + 1] = True
    return torch.from_numpy(found)


def prefix_mask__wrong_causal(condition_mask, n_vectors):
    """Conditions read causally."""
    return prefix_mask__reference(condition_mask, n_vectors).tril()


def prefix_mask__wrong_padding_read(condition_mask, n_vectors):
    """Padding is read."""
    return prefix_mask__reference(torch.ones_like(condition_mask), n_vectors)


def prefix_mask__wrong_padding_rows(condition_mask, n_vectors):
    """Masks the rows of padding instead of its columns."""
    S = condition_mask.shape[1]
    found = prefix_mask__reference(torch.ones_like(condition_mask), n_vectors)
    found[:, :S] &= condition_mask[:, :, None]
    return found


def prefix_mask__wrong_both(condition_mask, n_vectors):
    """Masks the rows of padding as well."""
    S = condition_mask.shape[1]
    found = prefix_mask__reference(condition_mask, n_vectors)
    found[:, :S] &= condition_mask[:, :, None]
    return found


def prefix_mask__wrong_all(condition_mask, n_vectors):
    """All read all."""
    found = prefix_mask__reference(condition_mask, n_vectors)
    return found | found.mT | True


def prefix_mask__wrong_inverted(condition_mask, n_vectors):
    """True where nothing is read, as in some libraries."""
    return ~prefix_mask__reference(condition_mask, n_vectors)


def prefix_mask__wrong_transposed(condition_mask, n_vectors):
    """Rows and columns exchanged."""
    return prefix_mask__reference(condition_mask, n_vectors).mT


def prefix_mask__wrong_not_itself(condition_mask, n_vectors):
    """LOA vectors do not read themselves."""
    S = condition_mask.shape[1]
    found = prefix_mask__reference(condition_mask, n_vectors)
    i = torch.arange(S, S + n_vectors)
    found[:, i, i] = False
    return found


def prefix_mask__wrong_conditions_read_vectors(condition_mask, n_vectors):
    """Conditions read the LOA."""
    S = condition_mask.shape[1]
    found = prefix_mask__reference(condition_mask, n_vectors)
    found[:, :S, S:] = True
    return found


def prefix_mask__wrong_one_item(condition_mask, n_vectors):
    """The first item's padding for all."""
    first = condition_mask[:1].expand_as(condition_mask)
    return prefix_mask__reference(first, n_vectors)


def prefix_mask__wrong_numbers(condition_mask, n_vectors):
    """Numbers instead of bool."""
    return prefix_mask__reference(condition_mask, n_vectors).float()


def forced_loss__right_loop(network, conditions, loa, lengths):
    """Item by item, without padding."""
    total, S = 0.0, conditions.shape[1]
    for c, y, n in zip(conditions, loa, lengths.tolist()):
        out = network(torch.cat([c, y[: n - 1]])[None])[0]
        total = total + (out[S - 1 :] - y[:n]).pow(2).sum()
    return total / (lengths.sum() * loa.shape[2])


def forced_loss__right_whole(network, conditions, loa, lengths):
    """The whole LOA goes in; the last output is not used."""
    B, L, D = loa.shape
    out = network(torch.cat([conditions, loa], dim=1))[:, -L - 1 : -1]
    real = (torch.arange(L)[None] < lengths[:, None]).to(loa)
    return torch.einsum("bld,bl->", (out - loa) ** 2, real) / (real.sum() * D)


def _outputs(network, conditions, loa, shift):
    """Outputs that stand this many positions after the condition's last."""
    S, L = conditions.shape[1], loa.shape[1]
    x = torch.cat([conditions, loa, loa[:, -1:]], dim=1)
    return network(x)[:, S - 1 + shift : S - 1 + shift + L]


def _masked(errors, lengths):
    """The mean over real vectors."""
    return errors[torch.arange(errors.shape[1]) < lengths[:, None]].mean()


def forced_loss__wrong_no_shift(network, conditions, loa, lengths):
    """The outputs at the vectors themselves."""
    return _masked((_outputs(network, conditions, loa, 1) - loa) ** 2, lengths)


def forced_loss__wrong_unmasked(network, conditions, loa, lengths):
    """Padding counts."""
    return F.mse_loss(_outputs(network, conditions, loa, 0), loa)


def forced_loss__wrong_mean_of_means(network, conditions, loa, lengths):
    """Each item counts once, however long."""
    errors = (_outputs(network, conditions, loa, 0) - loa).square().mean(-1)
    real = torch.arange(loa.shape[1]) < lengths[:, None]
    return ((errors * real).sum(1) / lengths).mean()


def forced_loss__wrong_divided_by_all(network, conditions, loa, lengths):
    """Errors of padding are set to zero, but its numbers are counted."""
    real = torch.arange(loa.shape[1]) < lengths[:, None]
    errors = (_outputs(network, conditions, loa, 0) - loa).square()
    return (errors * real[..., None]).mean()


def forced_loss__wrong_sum(network, conditions, loa, lengths):
    """Summed over the numbers of a vector."""
    return forced_loss__reference(network, conditions, loa, lengths) * loa.shape[2]


def forced_loss__wrong_absolute(network, conditions, loa, lengths):
    """The absolute error, as in the released code."""
    return _masked((_outputs(network, conditions, loa, 0) - loa).abs(), lengths)


def forced_loss__wrong_first_missing(network, conditions, loa, lengths):
    """Does not count the first vector where there are others."""
    errors = (_outputs(network, conditions, loa, 0) - loa).square()
    real = torch.arange(loa.shape[1]) < lengths[:, None]
    if real[:, 1:].any():
        real[:, 0] = False
    return errors[real].mean()


def forced_loss__wrong_detached(network, conditions, loa, lengths):
    """No gradient reaches the weights."""
    return forced_loss__reference(network, conditions, loa, lengths).detach()


def forced_loss__wrong_without_conditions(network, conditions, loa, lengths):
    """Zeros stand in front instead of the conditions."""
    return forced_loss__reference(network, 0 * conditions, loa, lengths)


def forced_loss__wrong_one_condition(network, conditions, loa, lengths):
    """Right for one condition only: the last is read alone."""
    return forced_loss__reference(network, conditions[:, -1:], loa, lengths)


def forced_loss__wrong_free(network, conditions, loa, lengths):
    """Free running instead of teacher forcing."""
    x, S = conditions, conditions.shape[1]
    for _ in range(loa.shape[1]):
        x = torch.cat([x, network(x)[:, -1:]], dim=1)
    return _masked((x[:, S:] - loa) ** 2, lengths)


def forced_loss__wrong_root(network, conditions, loa, lengths):
    """The root of the mean square."""
    return forced_loss__reference(network, conditions, loa, lengths) ** 0.5


def forced_loss__wrong_one_too_many(network, conditions, loa, lengths):
    """One vector beyond the length counts."""
    most = torch.full_like(lengths, loa.shape[1])
    longer = torch.minimum(lengths + 1, most)
    return forced_loss__reference(network, conditions, loa, longer)


def scheduled__right_in_place(network, conditions, loa, keep):
    """Into tensors that are there beforehand."""
    S, L = conditions.shape[1], loa.shape[1]
    x, guesses = torch.cat([conditions, loa], dim=1).clone(), []
    for step in range(L):
        guesses.append(network(x[:, : S + step].clone())[:, S + step - 1])
        own = ~keep[:, step]
        x[own, S + step] = guesses[-1].detach()[own]
    return torch.stack(guesses, dim=1)


def scheduled__right_two_passes(network, conditions, loa, keep):
    """First the mixed inputs without gradients, then one pass over all of them."""
    S, weight = conditions.shape[1], keep[..., None].to(loa)
    with torch.no_grad():
        x = conditions
        for step in range(loa.shape[1]):
            w, own = weight[:, step], network(x)[:, -1]
            x = torch.cat([x, (w * loa[:, step] + (1 - w) * own)[:, None]], dim=1)
    return network(x)[:, S - 1 : -1]


def scheduled__wrong_one_free_run(network, conditions, loa, keep):
    """All own vectors come from one free run, as in minilib's loss."""
    S, x = conditions.shape[1], conditions
    with torch.no_grad():
        for _ in range(loa.shape[1]):
            x = torch.cat([x, network(x)[:, -1:]], dim=1)
    mixed = torch.where(keep[..., None], loa, x[:, S:])
    return network(torch.cat([conditions, mixed], dim=1))[:, S - 1 : -1]


def scheduled__wrong_not_detached(network, conditions, loa, keep):
    """Gradients flow through the inputs."""
    x, guesses = conditions, []
    for step in range(loa.shape[1]):
        guesses.append(network(x)[:, -1:])
        new = torch.where(keep[:, step, None, None], loa[:, [step]], guesses[-1])
        x = torch.cat([x, new], dim=1)
    return torch.cat(guesses, dim=1)


def scheduled__wrong_inverted(network, conditions, loa, keep):
    """keep taken the other way round."""
    return scheduled__reference(network, conditions, loa, ~keep)


def scheduled__wrong_always_taught(network, conditions, loa, keep):
    """Teacher forcing."""
    return scheduled__reference(network, conditions, loa, keep | True)


def scheduled__wrong_always_free(network, conditions, loa, keep):
    """Free running."""
    return scheduled__reference(network, conditions, loa, keep & False)


def scheduled__wrong_off_by_one(network, conditions, loa, keep):
    """keep of the vector that comes next."""
    return scheduled__reference(network, conditions, loa, keep.roll(-1, dims=1))


def scheduled__wrong_first_item(network, conditions, loa, keep):
    """The first item's keep for all."""
    return scheduled__reference(network, conditions, loa, keep[:1].expand_as(keep))


def scheduled__wrong_inputs(network, conditions, loa, keep):
    """Returns the mixed inputs instead of the predictions."""
    guesses = scheduled__reference(network, conditions, loa, keep)
    return torch.where(keep[..., None], loa, guesses)


def scheduled__wrong_detached(network, conditions, loa, keep):
    """The predictions pass no gradient either."""
    return scheduled__reference(network, conditions, loa, keep).detach()


def scheduled__wrong_forgets(network, conditions, loa, keep):
    """Reads only the last input."""
    x, guesses = conditions[:, -1:], []
    for step in range(loa.shape[1]):
        guesses.append(network(x))
        own = guesses[-1].detach()
        x = torch.where(keep[:, step, None, None], loa[:, [step]], own)
    return torch.cat(guesses, dim=1)


def scheduled__wrong_previous_true(network, conditions, loa, keep):
    """Is shown the true vector before the one that was predicted."""
    return scheduled__reference(network, conditions, loa.roll(1, dims=1), keep)


def attend_on__right_library(q, k, v, past_k, past_v):
    """With minilib's attention."""
    S, P = q.shape[1], past_k.shape[1]
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    keep = torch.ones(P + S, P + S).tril()[P:].bool()
    return attention(q, k, v, 1, keep), k, v


def attend_on__right_loop(q, k, v, past_k, past_v):
    """Query by query."""
    P, out = past_k.shape[1], []
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    for i in range(q.shape[1]):
        n = P + i + 1
        scores = torch.einsum("bd,bsd->bs", q[:, i], k[:, :n]) / q.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum(1, keepdim=True)
        out.append(torch.einsum("bs,bsd->bd", weights, v[:, :n]))
    return torch.stack(out, 1), k, v


def _attend(q, k, v, past_k, past_v, diagonal, scale=None):
    """The answer with another mask or scale."""
    S, P = q.shape[1], past_k.shape[1]
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    keep = torch.ones(S, P + S, dtype=torch.bool).tril(diagonal)
    return attention(q, k, v, 1, keep, scale), k, v


def attend_on__wrong_no_offset(q, k, v, past_k, past_v):
    """The triangle starts at the first old position."""
    return _attend(q, k, v, past_k, past_v, 0)


def attend_on__wrong_unmasked(q, k, v, past_k, past_v):
    """New positions read later ones."""
    return _attend(q, k, v, past_k, past_v, past_k.shape[1] + q.shape[1])


def attend_on__wrong_looks_one_ahead(q, k, v, past_k, past_v):
    """Each position reads the one after it."""
    return _attend(q, k, v, past_k, past_v, past_k.shape[1] + 1)


def attend_on__wrong_not_scaled(q, k, v, past_k, past_v):
    """Scores are not divided."""
    return _attend(q, k, v, past_k, past_v, past_k.shape[1], 1.0)


def attend_on__wrong_scaled_twice(q, k, v, past_k, past_v):
    """Divided by d instead of its root."""
    return _attend(q, k, v, past_k, past_v, past_k.shape[1], 1 / q.shape[-1])


def attend_on__wrong_no_past(q, k, v, past_k, past_v):
    """Does not read the old positions."""
    out, _, _ = attend_on__reference(q, k, v, past_k[:, :0], past_v[:, :0])
    return out, torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)


def attend_on__wrong_past_behind(q, k, v, past_k, past_v):
    """Old keys and values are appended behind the new ones."""
    out, _, _ = attend_on__reference(q, k, v, past_k, past_v)
    return out, torch.cat([k, past_k], 1), torch.cat([v, past_v], 1)


def attend_on__wrong_new_only(q, k, v, past_k, past_v):
    """Hands on the new keys and values only."""
    return attend_on__reference(q, k, v, past_k, past_v)[0], k, v


def attend_on__wrong_zero_scores(q, k, v, past_k, past_v):
    """Scores of later positions become 0 instead of minus infinity."""
    P = past_k.shape[1]
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).tril(P)
    return scores.softmax(-1) @ v, k, v


def attend_on__wrong_masked_afterwards(q, k, v, past_k, past_v):
    """Sets weights to 0 after the softmax, so they do not add up to 1."""
    P = past_k.shape[1]
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).tril(P)
    return weights @ v, k, v


def attend_on__wrong_softmax_of_queries(q, k, v, past_k, past_v):
    """The softmax runs over the queries."""
    S, P = q.shape[1], past_k.shape[1]
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    keep = torch.ones(S, P + S, dtype=torch.bool).tril(P)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, -1e9)
    return scores.softmax(1) @ v, k, v


def attend_on__wrong_one_at_a_time(q, k, v, past_k, past_v):
    """Right for one new position only: all of them read all of the last one's."""
    k, v = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    return F.scaled_dot_product_attention(q, k, v), k, v
