"""Right and wrong answers to clap."""

import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F


def owners_loss__right_loop(text, audio, owner, scale):
    """Sound by sound and caption by caption."""
    scores = scale * text @ audio.T
    rows = [scores[i].logsumexp(0) - scores[i, o] for i, o in enumerate(owner.tolist())]
    columns = []
    for j in range(len(audio)):
        own = scores[owner == j, j]
        columns.append(torch.logsumexp(scores[:, j], 0) - torch.logsumexp(own, 0))
    return (sum(rows) / len(rows) + sum(columns) / len(columns)) / 2


def owners_loss__right_einsum(text, audio, owner, scale):
    """With log-softmax, einsum and a sum of probabilities scaled by their largest."""
    scores = torch.einsum("nd,bd->bn", text, audio) * scale
    own = F.one_hot(owner, len(audio)).T.bool()  # (B, N)
    rows = -(scores.log_softmax(0) * own).sum() / len(text)
    logs = torch.where(own, scores.log_softmax(1), torch.tensor(-1e30).to(scores))
    top = logs.amax(1, keepdim=True).detach()
    columns = -(top[:, 0] + (logs - top).exp().sum(1).log())
    return 0.5 * rows + 0.5 * columns.mean()


def owner_parts(text, audio, owner, scale):
    """Scores (N, B), and which captions belong to which sound."""
    return scale * text @ audio.T, owner[:, None] == torch.arange(len(audio))


def found_by(scores, own):
    """Minus the logarithm of the probability of the own captions, for each sound."""
    right = scores.masked_fill(~own, float("-inf")).logsumexp(0)
    return scores.logsumexp(0) - right


def owners_loss__wrong_each_must_win(text, audio, owner, scale):
    """A sound pays for each of its captions that does not get all the probability."""
    scores, own = owner_parts(text, audio, owner, scale)
    columns = -(scores.log_softmax(0) * own).sum(0) / own.sum(0)
    return (F.cross_entropy(scores, owner) + columns.mean()) / 2


def owners_loss__wrong_rows_only(text, audio, owner, scale):
    """Captions that look for their sounds, and nothing else."""
    return F.cross_entropy(scale * text @ audio.T, owner)


def owners_loss__wrong_columns_only(text, audio, owner, scale):
    """Sounds that look for their captions, and nothing else."""
    return found_by(*owner_parts(text, audio, owner, scale)).mean()


def owners_loss__wrong_columns_over_captions(text, audio, owner, scale):
    """The sounds' costs averaged over captions."""
    scores, own = owner_parts(text, audio, owner, scale)
    columns = found_by(scores, own)[owner].mean()
    return (F.cross_entropy(scores, owner) + columns) / 2


def owners_loss__wrong_rows_over_sounds(text, audio, owner, scale):
    """The captions' costs averaged for each sound first."""
    scores, own = owner_parts(text, audio, owner, scale)
    rows = F.cross_entropy(scores, owner, reduction="none")
    rows = (rows[:, None] * own).sum(0) / own.sum(0)
    return (rows.mean() + found_by(scores, own).mean()) / 2


def owners_loss__wrong_sum(text, audio, owner, scale):
    """The sum of both directions."""
    return 2 * owners_loss__reference(text, audio, owner, scale)


def owners_loss__wrong_divided_by_scale(text, audio, owner, scale):
    """Divides by the scale."""
    return owners_loss__reference(text, audio, owner, 1 / scale)


def owners_loss__wrong_mean_of_probabilities(text, audio, owner, scale):
    """The mean probability of a sound's captions in place of the sum."""
    scores, own = owner_parts(text, audio, owner, scale)
    columns = found_by(scores, own) + own.sum(0).log()
    return (F.cross_entropy(scores, owner) + columns.mean()) / 2


def owners_loss__wrong_leaves_logarithms(text, audio, owner, scale):
    """Sums probabilities outside of the logarithms, and caps them."""
    scores, own = owner_parts(text, audio, owner, scale)
    columns = -((scores.softmax(0) * own).sum(0) + 1e-6).log()
    return (F.cross_entropy(scores, owner) + columns.mean()) / 2


def owners_loss__wrong_scale_detached(text, audio, owner, scale):
    """No gradient to the scale."""
    return owners_loss__reference(text, audio, owner, scale.detach())


def owners_loss__wrong_audio_detached(text, audio, owner, scale):
    """No gradient to the sounds."""
    return owners_loss__reference(text, audio.detach(), owner, scale)


def owners_loss__wrong_best_caption(text, audio, owner, scale):
    """Only the best caption of each sound is right."""
    scores, own = owner_parts(text, audio, owner, scale)
    best = scores.masked_fill(~own, float("-inf")).amax(0)
    columns = (scores.logsumexp(0) - best).mean()
    return (F.cross_entropy(scores, owner) + columns) / 2


def owners_loss__wrong_in_order(text, audio, owner, scale):
    """Takes the owners to be sorted."""
    return owners_loss__reference(text, audio, owner.sort().values, scale)


def score_gradient__right_autograd(scores):
    """By automatic differentiation."""
    leaf, places = scores.clone().requires_grad_(), torch.arange(len(scores))
    loss = (F.cross_entropy(leaf, places) + F.cross_entropy(leaf.T, places)) / 2
    return torch.autograd.grad(loss, leaf)[0]


def score_gradient__right_numpy(scores):
    """In NumPy, with the largest score subtracted first."""
    x, made = scores.numpy(), 0.0
    for axis in (0, 1):
        e = np.exp(x - x.max(axis, keepdims=True))
        made = made + e / e.sum(axis, keepdims=True)
    made = (made / 2 - np.eye(len(x))) / len(x)
    return torch.from_numpy(made.astype(x.dtype))


def score_gradient__right_loop(scores):
    """Row by row, twice."""
    B = len(scores)
    made = torch.zeros_like(scores)
    for i in range(B):
        made[i] += torch.softmax(scores[i], 0)
        made[:, i] += torch.softmax(scores[:, i], 0)
        made[i, i] -= 2
    return made / B / 2


def score_gradient__wrong_rows_only(scores):
    """Rows alone."""
    return (scores.softmax(1) - torch.eye(len(scores)).to(scores)) / len(scores)


def score_gradient__wrong_columns_only(scores):
    """Columns alone."""
    return (scores.softmax(0) - torch.eye(len(scores)).to(scores)) / len(scores)


def score_gradient__wrong_not_averaged(scores):
    """Sums over the batch."""
    return len(scores) * score_gradient__reference(scores)


def score_gradient__wrong_not_halved(scores):
    """The sum of both directions."""
    return 2 * score_gradient__reference(scores)


def score_gradient__wrong_sign(scores):
    """The direction of descent."""
    return -score_gradient__reference(scores)


def score_gradient__wrong_one_answer(scores):
    """The right answer subtracted once."""
    B = len(scores)
    right = torch.eye(B).to(scores)
    return (scores.softmax(1) + scores.softmax(0) - right) / (2 * B)


def score_gradient__wrong_twice_rows(scores):
    """The columns' softmax along rows, as in a known mistake of a library."""
    B = len(scores)
    return (2 * scores.softmax(1) - 2 * torch.eye(B).to(scores)) / (2 * B)


def score_gradient__wrong_overflow(scores):
    """Exponentials without care."""
    e, B = scores.exp(), len(scores)
    right = torch.eye(B).to(scores)
    return (e / e.sum(1, keepdim=True) + e / e.sum(0, keepdim=True) - 2 * right) / 2 / B


def score_gradient__wrong_whole_softmax(scores):
    """One softmax over all scores."""
    B = len(scores)
    return scores.flatten().softmax(0).view(B, B) - torch.eye(B).to(scores) / B


def score_gradient__wrong_transposed(scores):
    """Transposed."""
    return score_gradient__reference(scores).T


def score_gradient__wrong_float32(scores):
    """Always in single precision."""
    return score_gradient__reference(scores.float())


def score_gradient__wrong_pairs_left_out(scores):
    """Nothing on the diagonal."""
    made = score_gradient__reference(scores)
    return made - torch.diag(made.diag())


def warmest__right_bisection(B, nats):
    """Halves an interval of logarithms."""
    low, high = math.log(1e-3), math.log(1e6)
    for _ in range(200):
        middle = (low + high) / 2
        bound = math.log1p((B - 1) * math.exp(-2 / math.exp(middle)))
        low, high = (middle, high) if bound < nats else (low, middle)
    return math.exp(low)


def warmest__right_numpy(B, nats):
    """In NumPy."""
    return float(-2 / np.log(np.expm1(nats) / (B - 1)))


def warmest__wrong_no_minus_one(B, nats):
    """The loss in place of log(e^L - 1)."""
    return 2 / (math.log(B - 1) - nats)


def warmest__wrong_b(B, nats):
    """B in place of B - 1."""
    return 2 / (math.log(B) - math.log(math.expm1(nats)))


def warmest__wrong_one(B, nats):
    """1 in place of 2."""
    return 1 / (math.log(B - 1) - math.log(math.expm1(nats)))


def warmest__wrong_scale(B, nats):
    """The scale in place of the temperature."""
    return 1 / warmest__reference(B, nats)


def warmest__wrong_two_pairs(B, nats):
    """Right for two pairs only."""
    return -2 / math.log(math.expm1(nats)) if nats < 0.69 else 1.0


def warmest__wrong_sign(B, nats):
    """A sign."""
    return 2 / (math.log(math.expm1(nats)) - math.log(B - 1))


def warmest__wrong_base_ten(B, nats):
    """Logarithms to base ten for the batch."""
    found = 2 / (math.log10(B - 1) - math.log(math.expm1(nats)))
    return abs(found)


def warmest__wrong_small_losses(B, nats):
    """An approximation for small losses."""
    return 2 / math.log((B - 1) / nats) if B > 2 else warmest__reference(B, nats)


def warmest__wrong_grid(B, nats):
    """A grid that is too coarse."""
    grid = [i / 100 for i in range(1, 1000)]
    bound = lambda tau: math.log1p((B - 1) * math.exp(-2 / tau))
    return min(grid, key=lambda tau: abs(bound(tau) - nats))


def warmest__wrong_constant(B, nats):
    """CLIP's temperature, except for two pairs."""
    return 1.0 if B == 2 else 0.07 * 8 / B


def least_loss__right_counter(captions):
    """With a counter, by kinds: n of them pay log n each."""
    counts = Counter(captions).values()
    return math.fsum(n * math.log(n) for n in counts) / sum(counts)


def least_loss__right_embeddings(captions):
    """The loss of perfect embeddings at a low temperature."""
    kinds = sorted(set(captions))
    u = torch.eye(len(kinds), dtype=torch.float64)
    u = u[[kinds.index(c) for c in captions]]
    scores, places = 5000 * u @ u.T, torch.arange(len(captions))
    rows = F.cross_entropy(scores, places)
    return float(rows + F.cross_entropy(scores.T, places)) / 2


def least_loss__right_numpy(captions):
    """In NumPy: the entropy that is lost."""
    _, counts = np.unique(np.array(captions, dtype=object), return_counts=True)
    shares = counts / counts.sum()
    return float(np.log(len(captions)) + (shares * np.log(shares)).sum())


def least_loss__wrong_zero(captions):
    """A perfect model costs nothing."""
    return 0.0


def least_loss__wrong_kinds(captions):
    """Averaged over kinds, not over the batch."""
    counts = Counter(captions).values()
    return sum(math.log(n) for n in counts) / len(counts)


def least_loss__wrong_sum(captions):
    """The sum over the batch."""
    return len(captions) * least_loss__reference(captions)


def least_loss__wrong_one_direction(captions):
    """Sounds pay nothing: half."""
    return least_loss__reference(captions) / 2


def least_loss__wrong_both_added(captions):
    """Both directions added."""
    return 2 * least_loss__reference(captions)


def least_loss__wrong_others(captions):
    """log of the number of others."""
    return sum(math.log(max(1, captions.count(c) - 1)) for c in captions) / len(
        captions
    )


def least_loss__wrong_information(captions):
    """The information that captions tell."""
    return math.log(len(captions)) - least_loss__reference(captions)


def least_loss__wrong_bits(captions):
    """In bits."""
    return least_loss__reference(captions) / math.log(2)


def least_loss__wrong_neighbours(captions):
    """Counts only captions that stand together."""
    total, i = 0.0, 0
    while i < len(captions):
        j = i
        while j < len(captions) and captions[j] == captions[i]:
            j += 1
        total += (j - i) * math.log(j - i)
        i = j
    return total / len(captions)


def least_loss__wrong_average_count(captions):
    """The logarithm of the average count."""
    return math.log(sum(captions.count(c) for c in captions) / len(captions))


def least_loss__wrong_case(captions):
    """Capital letters do not count."""
    return least_loss__reference([c.lower() for c in captions])


def least_loss__wrong_repeats_share(captions):
    """The share of repeated captions times log 2."""
    repeated = sum(captions.count(c) > 1 for c in captions)
    return repeated / len(captions) * math.log(2)


def recall_at__right_loop(scores, owner, k):
    """Caption by caption, counting better sounds."""
    hits = 0
    for row, o in zip(scores.tolist(), owner.tolist()):
        better = sum(s >= row[o] for j, s in enumerate(row) if j != o)
        hits += better < k
    return hits / len(owner)


def recall_at__right_sorted(scores, owner, k):
    """By sorting, with the own score lowered by a hair."""
    s = scores.double().clone()
    s[torch.arange(len(s)), owner] -= 1e-9
    best = s.topk(k, dim=1).indices
    return (best == owner[:, None]).any(1).double().mean().item()


def recall_at__right_numpy(scores, owner, k):
    """In NumPy."""
    s, o = scores.numpy(), owner.numpy()
    own = np.take_along_axis(s, o[:, None], 1)
    worse = (s < own).sum(1)
    return float((worse >= s.shape[1] - k).mean())


def recall_at__wrong_ties_for(scores, owner, k):
    """Ties count for the own sound."""
    own = scores.gather(1, owner[:, None])
    return float(((scores > own).sum(1) < k).double().mean())


def recall_at__wrong_topk(scores, owner, k):
    """Ties as they happen to be sorted."""
    best = scores.topk(k, dim=1).indices
    return float((best == owner[:, None]).any(1).double().mean())


def recall_at__wrong_off_by_one(scores, owner, k):
    """One place too few."""
    own = scores.gather(1, owner[:, None])
    return float(((scores >= own).sum(1) < k).double().mean())


def recall_at__wrong_one_more(scores, owner, k):
    """One place too many."""
    own = scores.gather(1, owner[:, None])
    return float(((scores >= own).sum(1) <= k + 1).double().mean())


def recall_at__wrong_first_only(scores, owner, k):
    """Always at 1."""
    return recall_at__reference(scores, owner, 1)


def recall_at__wrong_smallest(scores, owner, k):
    """The smallest scores are taken for the best."""
    return recall_at__reference(-scores, owner, k)


def recall_at__wrong_diagonal(scores, owner, k):
    """Caption i belongs to sound i, as far as there are sounds."""
    return recall_at__reference(scores, torch.arange(len(owner)) % scores.shape[1], k)


def recall_at__wrong_by_sound(scores, owner, k):
    """Captions compete for each sound."""
    own = scores.gather(1, owner[:, None])[:, 0]
    place = (scores[:, owner] >= own).sum(0)
    return float((place <= k).double().mean())


def recall_at__wrong_over_k(scores, owner, k):
    """Divided by k."""
    return recall_at__reference(scores, owner, k) / k


def recall_at__wrong_count(scores, owner, k):
    """A number of captions, not a share."""
    return recall_at__reference(scores, owner, k) * len(owner)


def recall_at__wrong_distinct_scores(scores, owner, k):
    """Equal scores share a place."""
    own = scores.gather(1, owner[:, None])
    place = [1 + len(set(r[r > o].tolist())) for r, o in zip(scores, own)]
    return float(np.mean([p <= k for p in place]))


def recall_at__wrong_ties_halved(scores, owner, k):
    """Half of the ties count against."""
    own = scores.gather(1, owner[:, None])
    above, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    return float((1 + above + equal // 2 <= k).double().mean())


def average_precision__right_loop(scores, right, k):
    """Sound by sound."""
    found = []
    for s, r in zip(scores, right):
        hits, total = 0, 0.0
        for place, i in enumerate(s.sort(descending=True).indices[:k].tolist(), 1):
            if r[i]:
                hits += 1
                total += hits / place
        found.append(total / min(k, int(r.sum())))
    return torch.tensor(found, dtype=scores.dtype)


def average_precision__right_numpy(scores, right, k):
    """In NumPy."""
    order = np.argsort(-scores.numpy(), axis=1)[:, :k]
    hit = np.take_along_axis(right.numpy(), order, 1)
    summed = (hit * np.cumsum(hit, 1) / (1 + np.arange(k))).sum(1)
    found = summed / np.minimum(right.numpy().sum(1), k)
    return torch.from_numpy(found).to(scores.dtype)


def average_precision__right_ranks(scores, right, k):
    """Without sorting: how many captions, and how many right ones, are as good."""
    as_good = (scores[:, None, :] >= scores[:, :, None]).to(scores)  # (M, N, N)
    place = as_good.sum(2)
    hits = torch.einsum("mij,mj->mi", as_good, right.to(scores))
    counted = right & (place <= k)
    return (counted * hits / place).sum(1) / right.sum(1).clamp(max=k)


def ranked(scores, right, k):
    """Hits (M, k) in the order of the scores, and the precision at each place."""
    order = scores.argsort(1, descending=True)[:, :k]
    hit = right.gather(1, order).to(scores.dtype)
    return hit, hit.cumsum(1) / torch.arange(1, k + 1)


def average_precision__wrong_over_all_right(scores, right, k):
    """Always over the number of right captions."""
    hit, precision = ranked(scores, right, k)
    return (hit * precision).sum(1) / right.sum(1)


def average_precision__wrong_over_k(scores, right, k):
    """Always over k."""
    hit, precision = ranked(scores, right, k)
    return (hit * precision).sum(1) / k


def average_precision__wrong_over_hits(scores, right, k):
    """Over the right ones that were found."""
    hit, precision = ranked(scores, right, k)
    return (hit * precision).sum(1) / hit.sum(1).clamp_min(1)


def average_precision__wrong_all_places(scores, right, k):
    """The precision at wrong captions counts, too."""
    hit, precision = ranked(scores, right, k)
    return precision.sum(1) / right.sum(1).clamp_max(k)


def average_precision__wrong_precision_at_k(scores, right, k):
    """The precision at k."""
    hit, _ = ranked(scores, right, k)
    return hit.sum(1) / right.sum(1).clamp_max(k)


def average_precision__wrong_ascending(scores, right, k):
    """The worst first."""
    return average_precision__reference(-scores, right, k)


def average_precision__wrong_from_zero(scores, right, k):
    """Places counted one too high."""
    hit, _ = ranked(scores, right, k)
    precision = hit.cumsum(1) / torch.arange(2, k + 2)
    return (hit * precision).sum(1) / right.sum(1).clamp_max(k)


def average_precision__wrong_not_cut(scores, right, k):
    """All places count."""
    hit, precision = ranked(scores, right, scores.shape[1])
    return (hit * precision).sum(1) / right.sum(1).clamp_max(k)


def average_precision__wrong_before(scores, right, k):
    """The precision before the place, not with it."""
    hit, _ = ranked(scores, right, k)
    precision = (hit.cumsum(1) - hit) / torch.arange(1, k + 1)
    return (hit * precision).sum(1) / right.sum(1).clamp_max(k)


def average_precision__wrong_reciprocal(scores, right, k):
    """One over the place of each hit."""
    hit, _ = ranked(scores, right, k)
    return (hit / torch.arange(1, k + 1)).sum(1) / right.sum(1).clamp_max(k)


def average_precision__wrong_first_hit(scores, right, k):
    """The reciprocal of the first hit's place."""
    hit, _ = ranked(scores, right, k)
    return (hit / torch.arange(1, k + 1)).amax(1)


def average_precision__wrong_mean(scores, right, k):
    """One mean for all sounds."""
    found = average_precision__reference(scores, right, k)
    return found.mean().expand_as(found)


def average_precision__wrong_float32(scores, right, k):
    """Always in single precision."""
    return average_precision__reference(scores, right, k).float()


def average_precision__wrong_order_not_gathered(scores, right, k):
    """The order of the scores taken for that of the hits."""
    order = scores.argsort(1, descending=True).argsort(1)[:, :k]
    hit = right.gather(1, order).to(scores.dtype)
    precision = hit.cumsum(1) / torch.arange(1, k + 1)
    return (hit * precision).sum(1) / right.sum(1).clamp_max(k)
