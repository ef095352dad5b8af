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


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        ([[1, 20]], [[True, True]], "ids must lie between 0 and 19, not 1 and 20"),
        ([[-1, 2]], [[True, True]], "ids must lie between 0 and 19, not -1 and 2"),
        (
            [[1, 2]],
            [[True]],
            r"ids and mask must both be \(B, S\), not \(1, 2\) and \(1, 1\)",
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
