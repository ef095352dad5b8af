"""Classifier-free guidance: the formula, one batched call that equals two, the spread,
and emptied conditions.
"""

import pytest
import torch

from minilib.guidance import drop, guide, guided, join, rescale_guided


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def context(B, S, D=4, seed=0, mask=None):
    return randn(B, S, D, seed=seed), mask


def model(xt, t, loa, text):
    """Masked means of both contexts, the time and xt, mixed so that every mix-up shows."""
    total = xt * t.view(-1, 1).float()
    for weight, (sequence, mask) in zip((1.0, 3.0), (loa, text), strict=True):
        mask = torch.ones(sequence.shape[:2]) if mask is None else mask.float()
        total = total + weight * torch.tanh(
            (sequence * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        )
    return total


def test_guide_is_the_unconditional_the_conditional_and_the_line_through_both():
    u, c = randn(2, 3), randn(2, 3, seed=1)
    assert torch.equal(guide(u, c, 0.0), u)
    torch.testing.assert_close(guide(u, c, 1.0), c)
    torch.testing.assert_close(guide(u, c, 3.5), 3.5 * c - 2.5 * u)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.5])
def test_one_batched_call_equals_two(guidance):
    B = 3
    conditional = (
        context(B, 5, seed=1),
        context(
            B,
            7,
            seed=2,
            mask=torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5]),
        ),
    )
    # the empty caption is shorter
    unconditional = (context(B, 5, seed=3), context(B, 1, seed=4))
    xt, t = randn(B, 4, seed=5), torch.tensor([3, 500, 1000])
    eps = guided(model, conditional, unconditional, guidance)(xt, t)
    torch.testing.assert_close(
        eps, guide(model(xt, t, *unconditional), model(xt, t, *conditional), guidance)
    )


def test_rescaled_predictions_have_the_spread_of_the_conditional_one_item_by_item():
    cond, guided_ = (
        randn(3, 4, 5),
        4 * randn(3, 4, 5, seed=1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1),
    )
    whole, half = rescale_guided(guided_, cond, 1.0), rescale_guided(guided_, cond, 0.5)
    torch.testing.assert_close(whole.flatten(1).std(dim=1), cond.flatten(1).std(dim=1))
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(whole, guided_, dim=2), torch.ones(3, 4)
    )
    torch.testing.assert_close(half, (whole + guided_) / 2)  # Eq. 16
    assert torch.equal(rescale_guided(guided_, cond, 0.0), guided_)


def test_guided_rescales_against_the_conditional_prediction():
    conditional, unconditional = (
        (context(2, 5), context(2, 7)),
        (context(2, 5, seed=3), context(2, 7, seed=4)),
    )
    xt, t = randn(2, 4, seed=5), torch.tensor([3, 500])
    cond, uncond = model(xt, t, *conditional), model(xt, t, *unconditional)
    wanted = rescale_guided(guide(uncond, cond, 3.5), cond, 0.7)
    torch.testing.assert_close(
        guided(model, conditional, unconditional, 3.5, rescale=0.7)(xt, t), wanted
    )
    torch.testing.assert_close(
        guided(model, conditional, None, 1.0, rescale=0.7)(xt, t), cond
    )


def test_guided_calls_the_model_once_and_at_guidance_1_with_half_the_batch():
    sizes = []

    def counting(xt, t, *contexts):
        sizes.append((len(xt), len(t), *(len(sequence) for sequence, _ in contexts)))
        return xt

    contexts, xt, t = (context(2, 5), context(2, 7)), randn(2, 4), torch.tensor([1, 1])
    guided(counting, contexts, contexts, 3.5)(xt, t)
    guided(counting, contexts, None, 1.0)(xt, t)
    assert sizes == [(4, 4, 4, 4), (2, 2, 2, 2)]


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(299, False), (300, False), (301, True), (700, True), (701, False)],
)
def test_guided_guides_within_its_interval_of_levels_and_calls_for_half_the_batch_outside(
    level, wanted
):
    sizes = []

    def counting(xt, t, *contexts):
        sizes.append(len(xt))
        return model(xt, t, *contexts)

    conditional, unconditional = (
        (context(2, 5), context(2, 7)),
        (context(2, 5, seed=3), context(2, 7, seed=4)),
    )
    xt, t = randn(2, 4, seed=5), torch.tensor([level, level])
    predict = guided(counting, conditional, unconditional, 3.5, interval=(300, 700))
    cond, both = (
        model(xt, t, *conditional),
        guided(model, conditional, unconditional, 3.5),
    )
    torch.testing.assert_close(predict(xt, t), both(xt, t) if wanted else cond)
    assert sizes == [4 if wanted else 2]


def test_guided_names_missing_unconditional_contexts():
    with pytest.raises(
        ValueError,
        match="unconditional must hold contexts when guidance is not 1; given None "
        "and 3.5",
    ):
        guided(model, (context(1, 2),), None, 3.5)


def test_join_pads_the_shorter_context_and_masks_the_padding():
    sequence, mask = join(context(2, 3), context(1, 5, seed=1))
    assert sequence.shape == (3, 5, 4) and mask.dtype == torch.bool
    assert mask.tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5]
    assert (sequence[:2, 3:] == 0).all()
    torch.testing.assert_close(sequence[2:], context(1, 5, seed=1)[0])


def test_join_needs_no_mask_where_nothing_is_padded():
    assert join(context(2, 3), context(2, 3, seed=1))[1] is None


@pytest.mark.parametrize("S", [5, 1, 9])
def test_drop_empties_the_chosen_items_and_no_other(S):
    B, dropped = 4, torch.tensor([False, True, False, True])
    full = [
        context(B, 5, seed=1),
        context(
            B,
            5,
            seed=2,
            mask=torch.tensor([[True] * 5] * 2 + [[True] * 2 + [False] * 3] * 2),
        ),
    ]
    empty = [context(1, S, seed=3), context(1, S, seed=4)]
    xt, t = randn(B, 4, seed=5), torch.tensor([1, 2, 3, 4])
    eps = model(xt, t, *drop(full, empty, dropped))
    nothing = [(sequence.expand(B, -1, -1), mask) for sequence, mask in empty]
    expected = torch.where(
        dropped[:, None], model(xt, t, *nothing), model(xt, t, *full)
    )
    torch.testing.assert_close(eps, expected)


def test_drop_of_nothing_changes_nothing():
    full = [context(3, 5)]
    ((sequence, mask),) = drop(
        full, [context(1, 5, seed=1)], torch.zeros(3, dtype=torch.bool)
    )
    assert torch.equal(sequence, full[0][0]) and mask is None
