"""GPT-2's transformer: written out once more, with any mask, and with a cache."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from minilib.transformer import (
    GPT2,
    GPT2Attention,
    TransformerConfig,
    causal_mask,
    prefix_mask,
)

CONFIG = TransformerConfig(
    n_embd=16, n_layer=2, n_head=4, n_positions=12, vocab_size=3, layer_norm_epsilon=0.2
)
S = 7


def of_order_one(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights so large that every layer, bias and position shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        scale = p.shape[1] ** -0.5 if p.ndim == 2 else 0.5
        p.data.copy_(scale * torch.randn(p.shape, generator=generator) + (p.ndim == 1))
    return module.eval()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn_pattern(seed: int = 0) -> torch.Tensor:
    """Some read some others, and everyone itself."""
    return (randn(S, S, seed=seed) > 0.3) | torch.eye(S, dtype=torch.bool)


PATTERNS = {
    "causal": causal_mask(S),
    "prefix": prefix_mask(S, 3),
    "full": prefix_mask(S, S),
    "drawn": drawn_pattern(),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


# ---- Masks


def test_masks_say_who_reads_whom():
    assert causal_mask(3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert prefix_mask(4, 2).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
    assert torch.equal(prefix_mask(4, 0), causal_mask(4))
    assert prefix_mask(3, 3).all()
    for mask in (causal_mask(5), prefix_mask(5, 1)):
        assert mask.shape == (5, 5) and mask.dtype == torch.bool


def reached(model: GPT2, pattern: torch.Tensor | None, mask=None) -> torch.Tensor:
    """(S, S) bool: whose output, in rows, changes with whose input."""
    x, mask = randn(1, S, 16), None if mask is None else mask.expand(S, S)
    # in item j of the batch the input of position j is another; a constant added to it
    # would vanish in the layer norm
    others = torch.where(torch.eye(S, dtype=torch.bool)[..., None], -x.flip(1), x)
    difference = model(others, mask, pattern=pattern) - model(
        x.expand(S, -1, -1), mask, pattern=pattern
    )
    return (difference.abs().amax(dim=2) > 1e-5).T


@torch.no_grad()
@pytest.mark.parametrize("name", ["causal", "prefix", "full"])
def test_a_position_depends_on_those_that_it_reads_and_on_no_others(name):
    """In these three what is read by what is read is read itself, however deep."""
    assert torch.equal(
        reached(of_order_one(GPT2(CONFIG)), PATTERNS[name]), PATTERNS[name]
    )


@torch.no_grad()
def test_in_one_layer_any_pattern_is_who_depends_on_whom():
    config = TransformerConfig(16, 1, 4, n_positions=S, vocab_size=1)
    model = of_order_one(GPT2(config))
    for seed in range(3):
        pattern = drawn_pattern(seed)
        assert torch.equal(reached(model, pattern), pattern)


@torch.no_grad()
def test_without_a_pattern_attention_is_causal():
    assert torch.equal(reached(of_order_one(GPT2(CONFIG)), None), causal_mask(S))


@torch.no_grad()
@pytest.mark.parametrize("name", ["causal", "full"])
def test_a_masked_position_is_read_by_nobody_else(name):
    mask = torch.ones(1, S)  # numbers, as tokenizers write them
    mask[0, 3] = 0
    there = reached(of_order_one(GPT2(CONFIG)), PATTERNS[name], mask)
    wanted = PATTERNS[name].clone()
    wanted[:, 3] = torch.arange(S) == 3  # what is computed there hangs on it
    assert torch.equal(there, wanted)


@torch.no_grad()
def test_each_item_of_a_batch_has_its_own_mask():
    model, x = of_order_one(GPT2(CONFIG)), randn(3, S, 16)
    mask = torch.arange(S) < torch.tensor([S, 4, 1])[:, None]
    together = model(x, mask)
    for i, n in enumerate((S, 4, 1)):
        torch.testing.assert_close(together[i, :n], model(x[i : i + 1, :n])[0])


# ---- The layers, written out


def normalised(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    scaled = (x - mean) / (variance + CONFIG.layer_norm_epsilon).sqrt()
    return scaled * norm.weight + norm.bias


def dense(x, linear):
    return x @ linear.weight.T + linear.bias


def attended(x, attn, pattern):
    """Each head of each reader by itself: a softmax over those that it reads."""
    q, k, v = dense(x, attn.c_attn).split(16, dim=-1)
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for head in range(CONFIG.n_head):
            d = slice(4 * head, 4 * head + 4)
            for reader, read in enumerate(pattern):
                scores = (k[b, read, d] @ q[b, reader, d]) / math.sqrt(4)
                out[b, reader, d] = scores.softmax(dim=0) @ v[b, read, d]
    return dense(out, attn.c_proj)


def gelu(x):
    """As GPT-2 computes it (Hendrycks and Gimpel, 1606.08415)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def written_out(model, x, pattern):
    x = x + model.wpe.weight[: x.shape[1]]
    for block in model.h:
        x = x + attended(normalised(x, block.ln_1), block.attn, pattern)
        hidden = gelu(dense(normalised(x, block.ln_2), block.mlp.c_fc))
        x = x + dense(hidden, block.mlp.c_proj)
    return normalised(x, model.ln_f)


@torch.no_grad()
@every_pattern
def test_gpt2_is_what_its_formulas_say(pattern):
    model, x = of_order_one(GPT2(CONFIG)), randn(2, S, 16)
    wanted = written_out(model, x, pattern)
    assert wanted.std() > 0.3
    torch.testing.assert_close(model(x, pattern=pattern), wanted, rtol=1e-4, atol=1e-5)


def test_the_layers_are_four_times_as_wide_inside_and_named_as_in_transformers():
    state = GPT2(CONFIG).state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items() if "h.1." not in name}
    assert shapes == {
        "wte.weight": (3, 16),
        "wpe.weight": (12, 16),
        "h.0.ln_1.weight": (16,),
        "h.0.ln_1.bias": (16,),
        "h.0.attn.c_attn.weight": (48, 16),
        "h.0.attn.c_attn.bias": (48,),
        "h.0.attn.c_proj.weight": (16, 16),
        "h.0.attn.c_proj.bias": (16,),
        "h.0.ln_2.weight": (16,),
        "h.0.ln_2.bias": (16,),
        "h.0.mlp.c_fc.weight": (64, 16),
        "h.0.mlp.c_fc.bias": (64,),
        "h.0.mlp.c_proj.weight": (16, 64),
        "h.0.mlp.c_proj.bias": (16,),
        "ln_f.weight": (16,),
        "ln_f.bias": (16,),
    }


def test_every_weight_learns_but_the_table_of_words_that_nobody_reads():
    model = of_order_one(GPT2(CONFIG))
    model(randn(2, 12, 16))[..., 0].sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == ["wte.weight"] and not model.wte.weight.requires_grad
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)


# ---- The cache


def in_pieces(model, x, cuts, mask=None, pattern=None):
    """One pass over x, in pieces that end at the cuts, with a cache between them."""
    cache, out, began = model.empty_cache(), [], 0
    for end in cuts:
        known = None if mask is None else mask[:, :end]
        who = None if pattern is None else pattern[:end, :end]
        out.append(model(x[:, began:end], known, cache, who))
        began = end
    return torch.cat(out, dim=1), cache


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(4, 6, 7), (1, 2, 3, 4, 5, 6, 7), (7,)])
@pytest.mark.parametrize(("n_layer", "masked"), [(1, False), (2, False), (2, True)])
def test_pieces_with_a_cache_equal_one_pass(cuts, n_layer, masked):
    config = replace(CONFIG, n_layer=n_layer)
    model, x, mask = of_order_one(GPT2(config)), randn(2, S, 16), None
    if masked:
        mask = torch.ones(2, S, dtype=torch.bool)
        mask[1, 2:5] = False
    pieces, cache = in_pieces(model, x, cuts, mask)
    torch.testing.assert_close(pieces, model(x, mask), rtol=1e-4, atol=1e-5)
    shapes = [tuple(x.shape) for present in cache for x in present]
    assert shapes == [(2, S, 16)] * 2 * n_layer


@torch.no_grad()
def test_a_cached_prefix_is_read_as_in_one_pass():
    """The prefix in one piece, for it reads itself whole; then what follows."""
    model, x = of_order_one(GPT2(CONFIG)), randn(2, S, 16)
    pieces, _ = in_pieces(model, x, (3, 5, 7), pattern=PATTERNS["prefix"])
    whole = model(x, pattern=PATTERNS["prefix"])
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
    assert (whole - model(x)).abs().max() > 1e-2  # a causal prefix is another one


@torch.no_grad()
def test_attention_returns_all_keys_and_values_the_past_ones_first():
    attn = of_order_one(GPT2Attention(CONFIG))
    x, past = randn(1, 2, 16), (randn(1, 3, 16, seed=1), randn(1, 3, 16, seed=2))
    _, present = attn(x, prefix_mask(5, 5)[3:], past)
    _, k, v = dense(x, attn.c_attn).split(16, dim=-1)
    for whole, before, new in zip(present, past, (k, v), strict=True):
        torch.testing.assert_close(whole, torch.cat([before, new], dim=1))


def test_gradients_flow_through_the_cache_to_the_past():
    model, x = of_order_one(GPT2(CONFIG)), randn(1, S, 16).requires_grad_()
    pieces, _ = in_pieces(model, x, (4, 7))
    mine = torch.autograd.grad(pieces[0, -1, 0], x)[0]
    other = torch.autograd.grad(model(x)[0, -1, 0], x)[0]
    assert (other.abs().sum(dim=2) > 1e-5).all()
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


# ---- Positions and sizes


def test_sizes_cannot_be_altered():
    with pytest.raises(FrozenInstanceError):
        CONFIG.n_embd = 8


@torch.no_grad()
def test_only_its_learned_positions_tell_gpt2_the_order_where_all_is_read():
    model, x = of_order_one(GPT2(CONFIG)), randn(1, S, 16)
    order = [3, 1, 0, 6, 2, 5, 4]
    turned = lambda: model(x[:, order], pattern=prefix_mask(S, S))
    straight = lambda: model(x, pattern=prefix_mask(S, S))[:, order]
    assert (turned() - straight()).abs().max() > 0.1
    model.wpe.weight.zero_()
    torch.testing.assert_close(turned(), straight(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_as_many_positions_as_there_are_and_no_more():
    model, x = of_order_one(GPT2(CONFIG)), randn(1, 13, 16)
    said = "^the sequence must have at most 12 positions, not 13$"
    assert model(x[:, :12]).shape == (1, 12, 16)
    with pytest.raises(ValueError, match=said):
        model(x)
    cache = model.empty_cache()
    model(x[:, :9], cache=cache)
    with pytest.raises(ValueError, match=said):
        model(x[:, 9:], cache=cache)


@torch.no_grad()
def test_a_mask_tells_of_every_position_the_cached_ones_included():
    model, cache = GPT2(CONFIG), None
    for B, n, read in ((1, 4, 3), (2, 4, 4), (1, 4, 5)):
        said = rf"^mask must have shape \({B}, {n}\), not \(1, {read}\)$"
        with pytest.raises(ValueError, match=said):
            model(randn(B, n, 16), torch.ones(1, read), cache)
    cache = model.empty_cache()
    model(randn(1, 4, 16), torch.ones(1, 4), cache)
    with pytest.raises(
        ValueError, match=r"^mask must have shape \(1, 6\), not \(1, 2\)$"
    ):
        model(randn(1, 2, 16), torch.ones(1, 2), cache)
