"""A process of codes whose likelihood is known, against sums over everything."""

import itertools
from dataclasses import replace

import pytest
import torch

from minilib.soundworld.tokens import TokenProcess

M = 3
TOLD = TokenProcess.draw(0, n_states=2, n_q=2, n_codes=3)
HIDDEN = TokenProcess.draw(1, n_states=3, n_q=2, n_codes=3, told=False)
both = pytest.mark.parametrize("process", [TOLD, HIDDEN], ids=["told", "hidden"])


def all_clips(process: TokenProcess) -> torch.Tensor:
    """Every clip of M frames: (K^(M Q), M, Q)."""
    Q, _, K = process.emit.shape
    rows = list(itertools.product(range(K), repeat=M * Q))
    return torch.tensor(rows).view(-1, M, Q)


def by_all_paths(process: TokenProcess, codes: torch.Tensor) -> torch.Tensor:
    """The probability of clips, (N,), summed over all paths of states."""
    total = torch.zeros(len(codes), dtype=torch.float64)
    for path in itertools.product(range(len(process.move)), repeat=codes.shape[1]):
        p = process.start[path[0]] * torch.ones(len(codes), dtype=torch.float64)
        for m, state in enumerate(path):
            if m:
                p = p * process.move[path[m - 1], state]
            for q, emit in enumerate(process.emit):
                p = p * emit[state, codes[:, m, q]]
        total += p
    return total


@both
def test_the_forward_algorithm_is_a_sum_over_all_paths_of_states(process):
    codes = all_clips(process)
    p = by_all_paths(process, codes)
    frames, _ = process.log_prob(codes)
    torch.testing.assert_close(frames.sum(dim=1).exp(), p)
    assert float(p.sum()) == pytest.approx(1.0)


@both
def test_a_code_by_itself_is_what_its_frames_add_up_to(process):
    """p(code q of the last frame | frames before), from the joint of all clips."""
    codes = all_clips(process)
    p = by_all_paths(process, codes)
    _, each = process.log_prob(codes)
    for i in range(0, len(codes), 37):
        same_past = (codes[:, :-1] == codes[i, :-1]).all(dim=2).all(dim=1)
        for q in range(2):
            same = same_past & (codes[:, -1, q] == codes[i, -1, q])
            wanted = p[same].sum() / p[same_past].sum()
            assert each[i, -1, q].exp() == pytest.approx(float(wanted))


def test_exact_is_the_expectation_over_all_clips():
    codes = all_clips(TOLD)
    p = by_all_paths(TOLD, codes)
    frames, each = TOLD.log_prob(codes)
    floor = -(p @ frames).sum() / M
    lost = (p @ (frames - each.sum(dim=2))).sum() / M
    assert TOLD.exact(M) == pytest.approx((float(floor), float(lost)))
    assert lost > 0.1


def test_no_other_heads_in_parallel_lose_less_than_the_total_correlation():
    """Cross-entropy of any product of distributions, in place of the marginals."""
    codes = torch.tensor(list(itertools.product(range(3), repeat=2)))  # one frame
    joint = torch.stack(
        [
            (TOLD.start * TOLD.emit[0][:, a] * TOLD.emit[1][:, b]).sum()
            for a, b in codes.tolist()
        ]
    )
    entropy, lost = (float(x) for x in TOLD.entropies(TOLD.start[None]))
    free = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)

    def cross_entropy() -> torch.Tensor:
        logs = free.log_softmax(dim=1)
        return -(joint * (logs[0][codes[:, 0]] + logs[1][codes[:, 1]])).sum()

    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy()
        loss.backward()
        return loss

    assert cross_entropy() > entropy + lost + 0.01  # uniform heads
    optimizer.step(step)
    least = float(cross_entropy().detach())
    assert least == pytest.approx(entropy + lost, abs=1e-5)


def test_samples_are_as_frequent_as_they_are_probable():
    generator = torch.Generator().manual_seed(0)
    codes = HIDDEN.sample(20000, 2, generator)
    assert codes.shape == (20000, 2, 2)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    wanted = by_all_paths(HIDDEN, every)
    number = (codes.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    share = torch.bincount(number, minlength=81) / 20000
    error = (wanted * (1 - wanted) / 20000).sqrt()
    assert ((share - wanted).abs() < 4.5 * error + 1e-9).all()
    again = HIDDEN.sample(20000, 2, torch.Generator().manual_seed(0))
    assert torch.equal(codes, again)


def test_the_state_is_told_and_stationary():
    for process in (TOLD, HIDDEN):
        torch.testing.assert_close(process.start @ process.move, process.start)
    said = "^the first code must tell the state: draw the process with told=True$"
    with pytest.raises(ValueError, match=said):
        HIDDEN.exact(M)
    told_by_the_second = replace(TOLD, emit=TOLD.emit.flip(0))
    with pytest.raises(ValueError, match=said):
        told_by_the_second.exact(M)
    said = "^n_states must be at most 3, as many as codes, if these tell it, not 4$"
    with pytest.raises(ValueError, match=said):
        TokenProcess.draw(0, n_states=4, n_codes=3)
