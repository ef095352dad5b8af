"""The phoneme encoder: padding that is silent, distances that count, and ids that are
not there.
"""

import pytest
import torch

from minilib.phonemes import PhonemeConfig, PhonemeEncoder, RelativeAttention

SMALL = PhonemeConfig(20, 16, num_layers=2, ffn_dim=24, window_size=2, flow_size=4)


@pytest.fixture
def encoder() -> PhonemeEncoder:
    torch.manual_seed(0)
    return PhonemeEncoder(SMALL).eval()


def phonemes(S: int) -> torch.Tensor:
    return torch.randint(1, 20, (2, S), generator=torch.Generator().manual_seed(1))


def padded(ids: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids, and n of padding after them, with the mask."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    return torch.nn.functional.pad(ids, (0, n)), torch.nn.functional.pad(mask, (0, n))


@torch.no_grad()
def test_states_do_not_hang_on_the_padding_behind_them(encoder):
    short, long = (encoder(*padded(phonemes(7), n)) for n in (0, 5))
    torch.testing.assert_close(long[:, :7], short)
    assert (long[:, 7:] == 0).all()


@torch.no_grad()
def test_distances_count_within_the_window_and_no_further():
    """Attention by its formula, one pair of positions after the other (1803.02155 Eqs.
    3 and 4).
    """
    torch.manual_seed(0)
    S, w, d = 6, SMALL.window_size, 8
    attention, x = RelativeAttention(SMALL), torch.randn(1, 6, 16)
    q, k, v = (
        p(x)[0].view(S, 2, d)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    near = lambda table, i, j: (
        table[0, j - i + w] if abs(j - i) <= w else torch.zeros(d)
    )
    out = torch.zeros(S, 2, d)
    for h in range(2):
        for i in range(S):
            keys = torch.stack(
                [k[j, h] + near(attention.emb_rel_k, i, j) for j in range(S)]
            )
            values = torch.stack(
                [v[j, h] + near(attention.emb_rel_v, i, j) for j in range(S)]
            )
            out[i, h] = (keys @ q[i, h] / d**0.5).softmax(0) @ values
    torch.testing.assert_close(
        attention(x, torch.ones(1, 1, 1, S, dtype=torch.bool)),
        attention.out_proj(out.flatten(1))[None],
    )


def test_distances_begin_with_vectors_of_about_unit_length():
    torch.manual_seed(0)
    attention = RelativeAttention(PhonemeConfig())
    for table in (attention.emb_rel_k, attention.emb_rel_v):
        assert table.norm(dim=2).mean().item() == pytest.approx(1.0, rel=0.1)


class Letters:
    """A tokenizer that takes letters for phonemes, 5 at least."""

    pad_to = 5

    def encode(
        self, inputs: list[str], pad_to: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.zeros(len(inputs), pad_to, dtype=torch.long)
        for row, word in zip(ids, inputs, strict=True):
            row[: len(word)] = torch.tensor([ord(c) - ord("a") + 1 for c in word])
        return ids, ids > 0


@torch.no_grad()
def test_what_is_spoken_is_a_condition_and_silence_is_zeros_that_nobody_reads(encoder):
    assert encoder.reads == "transcription" and encoder.dim == 16
    for call in (lambda: encoder.encode(["ab"]), lambda: encoder.empty(2)):
        with pytest.raises(ValueError, match="this PhonemeEncoder has no tokenizer"):
            call()
    encoder.tokenizer = Letters()
    ids, mask = encoder.tokenizer.encode(["ab", "c"], pad_to=5)
    context = encoder.encode(["ab", "c"])
    assert torch.equal(context.sequence, encoder(ids, mask))
    assert torch.equal(context.mask, mask)
    for asked, S in ((0, 5), (3, 3), (9, 9)):
        empty = encoder.empty(2, pad_to=asked)
        assert empty.sequence.shape == (2, S, 16) and not empty.sequence.any()
        assert empty.mask.shape == (2, S) and not empty.mask.any()
        assert empty.mask.dtype == torch.bool
    assert encoder.half().empty(1).sequence.dtype == torch.float16


def test_without_a_mask_all_phonemes_are_read(encoder):
    ids = phonemes(7)
    assert torch.equal(encoder(ids), encoder(ids, torch.ones_like(ids)))


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        (
            [[1, 20]],
            [[True, True]],
            "ids must lie between 0 and 19, the model's vocabulary, not 1 to 20",
        ),
        (
            [[-1, 2]],
            [[True, True]],
            "ids must lie between 0 and 19, the model's vocabulary, not -1 to 2",
        ),
        (
            [[1, 2]],
            [[True]],
            r"mask must have the shape of ids, \(1, 2\), not \(1, 1\)",
        ),
    ],
)
def test_what_cannot_be_encoded_is_named(encoder, ids, mask, said):
    with pytest.raises(ValueError, match=said):
        encoder(torch.tensor(ids), torch.tensor(mask))


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(
        ValueError, match="hidden_size must be a multiple of num_heads, not 16 of 3"
    ):
        PhonemeEncoder(PhonemeConfig(20, 16, num_heads=3))
