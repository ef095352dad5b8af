"""Conditions by name: joined, repeated, emptied, and put into a batch and back."""

import pytest
import torch

from minilib.conditions import Context, drop, from_batch, join, to_batch


def context(B, S, D=4, seed=0, read=None):
    """Random vectors, of which each item's first `read` are to be read."""
    generator = torch.Generator().manual_seed(seed)
    mask = None if read is None else torch.arange(S) < torch.tensor(read)[:, None]
    return Context(torch.randn(B, S, D, generator=generator), mask)


def readable(item: Context) -> list[torch.Tensor]:
    """Of each item of a context the vectors that are to be read."""
    masks = [None] * len(item.sequence) if item.mask is None else item.mask.bool()
    return [x if m is None else x[m] for x, m in zip(item.sequence, masks, strict=True)]


def assert_reads_the_same(ours: list[torch.Tensor], wanted: list[torch.Tensor]):
    assert len(ours) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_a_context_without_a_mask_is_read_everywhere():
    assert Context(torch.zeros(2, 3, 4)).mask is None


def test_repeat_puts_the_copies_of_an_item_side_by_side():
    x, mask = context(2, 3, read=[3, 1])
    thrice = Context(x, mask).repeat(3)
    assert torch.equal(thrice.sequence, torch.stack([x[i] for i in (0, 0, 0, 1, 1, 1)]))
    assert thrice.mask.sum(dim=1).tolist() == [3, 3, 3, 1, 1, 1]
    assert Context(x).repeat(3).mask is None


@pytest.mark.parametrize(("S1", "S2"), [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("read1", [None, [2, 1]], ids=["all", "part"])
@pytest.mark.parametrize("read2", [None, [3]], ids=["all", "part"])
def test_joined_contexts_have_each_item_read_as_before(S1, S2, read1, read2):
    first, second = context(2, S1, read=read1), context(1, S2, seed=1, read=read2)
    joined = join(first, second)
    assert joined.sequence.shape == (3, max(S1, S2), 4)
    assert_reads_the_same(readable(joined), readable(first) + readable(second))
    assert joined.mask is None or joined.mask.dtype == torch.bool
    for i, (x, _) in enumerate((first, second)):
        padding = joined.sequence[2 * i : 2 + i, x.shape[1] :]
        assert (padding == 0).all()


def test_join_needs_no_mask_where_all_is_read_and_nothing_is_padded():
    assert join(context(2, 3), context(1, 3, seed=1)).mask is None
    assert join(context(2, 3), context(1, 3, seed=1, read=[3])).mask is not None


def test_join_takes_masks_of_numbers_as_tokenizers_write_them():
    x, mask = context(2, 3, read=[3, 1])
    joined = join(Context(x, mask.long()), Context(x))
    assert joined.mask.dtype == torch.bool
    assert joined.mask.sum(dim=1).tolist() == [3, 1, 3, 3]


@pytest.mark.parametrize("S", [1, 5, 9])
def test_drop_empties_the_chosen_items_in_every_condition_and_no_others(S):
    full = {
        "clap": context(4, 1, D=3),
        "text": context(4, 5, seed=1, read=[5, 5, 2, 3]),
    }
    empty = {
        "clap": context(1, 1, D=3, seed=2),
        "text": context(1, S, seed=3, read=[1]),
    }
    dropped = torch.tensor([False, True, False, True])
    left = drop(full, empty, dropped)
    assert list(left) == ["clap", "text"]
    for name, ours in left.items():
        said, nothing = readable(full[name]), readable(empty[name])[0]
        wanted = [nothing if gone else x for x, gone in zip(said, dropped, strict=True)]
        assert_reads_the_same(readable(ours), wanted)
        assert ours.sequence.shape[1] == max(
            full[name].sequence.shape[1], empty[name].sequence.shape[1]
        )


def test_drop_of_nothing_changes_nothing():
    full, nothing = {"text": context(3, 5)}, torch.zeros(3, dtype=torch.bool)
    left = drop(full, {"text": context(1, 5, seed=1)}, nothing)["text"]
    assert torch.equal(left.sequence, full["text"].sequence) and left.mask is None


def test_conditions_come_back_from_a_batch_as_they_went_in():
    conditions = {"clap": context(2, 1), "text": context(2, 5, seed=1, read=[5, 2])}
    batch = to_batch(conditions)
    assert sorted(batch) == ["clap", "text", "text_mask"]
    back = from_batch({**batch, "z0": torch.zeros(2)}, ["text", "clap"])
    assert list(back) == ["text", "clap"]
    for name, (x, mask) in conditions.items():
        assert back[name].sequence is x and back[name].mask is mask


def test_from_batch_reads_only_what_is_named():
    batch = to_batch({"clap": context(2, 1), "text": context(2, 5)})
    assert list(from_batch(batch, ["text"])) == ["text"]
    with pytest.raises(KeyError, match="loa"):
        from_batch(batch, ["loa"])
