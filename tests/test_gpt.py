"""GPT-2 as a regressor of the Language of Audio (chapter 13), and the loudness that is
read from what it wrote.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from minilib.conditions import Conditions, Context, to_batch
from minilib.gpt import GPTConfig, LOARegressor, Loudness, LoudnessConfig, Projection

CONFIG = GPTConfig(
    condition_dims=(12, 20), n_embd=32, n_layer=2, n_head=4, n_positions=40, n_tokens=5,
    vocab_size=1,
)  # fmt: skip


def of_order_one(config: GPTConfig = CONFIG) -> LOARegressor:
    """Weights so large that every layer and position shows in the output."""
    torch.manual_seed(0)
    model = LOARegressor(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
        model.gpt2.wpe.weight.normal_(std=0.5)
    return model


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_conditions() -> Conditions:
    """Three items, of whose texts 7, 4 and 1 vectors are to be read."""
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    text = Context(randn(3, 7, 20, seed=1), mask)
    return {"clap": Context(randn(3, 1, 12)), "text": text}


def some_batch() -> dict[str, torch.Tensor]:
    return {**to_batch(some_conditions()), "loa": randn(3, 6, 32, seed=2)}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def written_without_a_cache(model: LOARegressor, n: int = 5) -> torch.Tensor:
    x, mask = model.projection(some_conditions())
    for _ in range(n):
        y = model.gpt2(x, mask)[:, -1:]
        x, mask = torch.cat([x, y], dim=1), F.pad(mask, (0, 1), value=True)
    return x[:, -n:]


# ---- The projection


def test_projection_puts_every_condition_between_its_marks():
    projection = of_order_one().projection
    conditions = some_conditions()
    clap, text = conditions["clap"], conditions["text"]
    # the order is the config's, not the dictionary's
    x, mask = projection({"text": text, "clap": clap})
    marks = {
        0: projection.sos_embed,
        2: projection.eos_embed,
        3: projection.sos_embed_1,
        11: projection.eos_embed_1,
    }
    assert x.shape == (3, 12, 32)
    assert all((x[:, i] == mark).all() for i, mark in marks.items())
    torch.testing.assert_close(x[:, 1:2], projection.projection(clap.sequence))
    torch.testing.assert_close(x[:, 4:-1], projection.projection_1(text.sequence))
    # what is no padding is read: marks, CLAP's vector and the text's own
    assert mask[:, :4].all() and mask[:, -1].all() and mask.dtype == torch.bool
    assert torch.equal(mask[:, 4:-1], text.mask)


def test_masks_of_numbers_are_read_as_those_of_truths():
    projection = of_order_one().projection
    conditions = some_conditions()
    text = conditions["text"]
    numbers = {**conditions, "text": text._replace(mask=text.mask.long())}
    assert torch.equal(projection(numbers)[1], projection(conditions)[1])


def test_marks_are_as_large_as_what_stands_between_them():
    marks = [
        p for name, p in of_order_one().projection.named_parameters() if "os_" in name
    ]
    assert len(marks) == 4 and all(0.6 < mark.std() < 1.5 for mark in marks)


@torch.no_grad()
def test_learned_positions_join_the_last_condition_before_its_projection():
    torch.manual_seed(0)
    names = ("clap", "text", "phonemes")
    sizes = GPTConfig(
        conditions=names, condition_dims=(4, 5, 6), n_embd=8, learned_positions=5
    )
    projection = Projection(sizes)
    positions = projection.learnable_positional_embedding
    assert positions.shape == (1, 6, 5) and (positions == 0).all()
    positions.normal_()
    given = randn(2, 7, 4), randn(2, 7, 5), randn(2, 3, 6)
    sequence, _ = projection(dict(zip(names, map(Context, given), strict=True)))
    moved = given[2] + positions[0, :, :3].T
    torch.testing.assert_close(sequence[:, 1:8], projection.projection(given[0]))
    torch.testing.assert_close(sequence[:, 10:17], projection.projection_1(given[1]))
    torch.testing.assert_close(sequence[:, 19:22], projection.projection_2(moved))


@pytest.mark.parametrize("n", [1, 5])
def test_the_last_condition_is_no_longer_than_there_are_learned_positions(n):
    sizes = GPTConfig(condition_dims=(4, 6), n_embd=8, learned_positions=n)
    projection, clap = Projection(sizes), Context(randn(2, 8, 4))
    longest = {"clap": clap, "text": Context(randn(2, n, 6))}
    assert projection(longest)[0].shape == (2, 12 + n, 8)
    said = f"^condition text must have at most {n} positions, not {n + 1}$"
    with pytest.raises(ValueError, match=said):
        projection({"clap": clap, "text": Context(randn(2, n + 1, 6))})


@pytest.mark.parametrize("dims", [(12,), (12, 20, 8)])
def test_one_condition_or_three_are_as_good_as_two(dims):
    names = ("clap", "text", "phonemes")[: len(dims)]
    config = dataclasses.replace(CONFIG, conditions=names, condition_dims=dims)
    model = of_order_one(config)
    given = {name: Context(randn(2, 3, dim)) for name, dim in zip(names, dims)}
    assert model.generate(given).shape == (2, 5, 32)
    layers = ["projection", "projection_1", "projection_2"][: len(dims)]
    assert [name for name, _ in model.projection.named_children()] == layers
    x, _ = model.projection(given)
    for i, name in enumerate(names):
        wanted = getattr(model.projection, layers[i])(given[name].sequence)
        torch.testing.assert_close(x[:, 5 * i + 1 : 5 * i + 4], wanted)


# ---- Forward and generate


@torch.no_grad()
def test_generation_with_a_cache_equals_the_loop_without():
    model = of_order_one()
    loa = model.generate(some_conditions())
    assert loa.shape == (3, 5, 32) and loa.std() > 0.3
    assert_close(loa, written_without_a_cache(model))


@torch.no_grad()
def test_teacher_forcing_with_the_generated_truth_predicts_it():
    """Reads at the position before each target: then forward on generated LOA returns
    that LOA.
    """
    model, conditions = of_order_one(), some_conditions()
    for n in (1, 6):
        loa = model.generate(conditions, n_tokens=n)
        assert_close(model(conditions, loa), loa)


@torch.no_grad()
def test_a_prediction_sees_the_truth_before_it_and_none_after():
    model, conditions = of_order_one(), some_conditions()
    loa, changed = randn(3, 6, 32), randn(3, 6, 32)
    changed[:, 3] = randn(3, 32, seed=1)  # a constant would vanish in the layer norm
    a, b = model(conditions, loa), model(conditions, changed)
    # the prediction of vector 3 does not see vector 3
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert ((a - b)[:, 4:].abs().amax(dim=(0, 2)) > 1e-3).all()


@pytest.mark.parametrize("name", ["clap", "text"])
def test_every_prediction_sees_every_condition_but_no_padding(name):
    model, conditions = of_order_one(), some_conditions()
    x, mask = conditions[name]
    conditions[name] = Context(x.requires_grad_(), mask)
    for prediction in model(conditions, randn(3, 6, 32)).unbind(1):
        # the sum over channels is constant after a layer norm
        first = prediction[..., 0].sum()
        (gradient,) = torch.autograd.grad(first, x, retain_graph=True)
        is_read = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        assert (gradient.abs().sum(-1) > 0).eq(is_read).all()


@torch.no_grad()
def test_what_stands_under_the_padding_changes_nothing():
    model, conditions = of_order_one(), some_conditions()
    text, mask = conditions["text"]
    rubbish = Context(text.masked_fill(~mask[..., None], 1e3), mask)
    rubbish = {**conditions, "text": rubbish}
    loa = randn(3, 6, 32)
    torch.testing.assert_close(model(rubbish, loa), model(conditions, loa))
    torch.testing.assert_close(model.generate(rubbish), model.generate(conditions))


@torch.no_grad()
def test_padding_is_counted_as_positions_like_in_the_released_model():
    """The one way in which padding matters; with equal position vectors it does not."""
    model, conditions = of_order_one(), some_conditions()
    text, mask = conditions["text"]
    longer = Context(F.pad(text, (0, 0, 0, 4)), F.pad(mask, (0, 4)))
    longer = {**conditions, "text": longer}
    difference = lambda: (model.generate(longer) - model.generate(conditions)).abs()
    assert difference().max() > 1e-2
    model.gpt2.wpe.weight.copy_(model.gpt2.wpe.weight[:1].clone())
    assert difference().max() < 1e-4


@torch.no_grad()
def test_one_row_of_a_batch_equals_the_row_alone():
    model, conditions = of_order_one(), some_conditions()
    row = {
        name: Context(x[1:2], None if mask is None else mask[1:2])
        for name, (x, mask) in conditions.items()
    }
    assert_close(model.generate(row), model.generate(conditions)[1:2])


@torch.no_grad()
def test_as_many_vectors_are_written_as_asked_for_and_as_there_are_positions_for():
    model, conditions = of_order_one(), some_conditions()
    assert model.generate(conditions).shape == (3, 5, 32)
    whole = model.generate(conditions, n_tokens=29)
    assert whole.shape == (3, 29, 32)
    assert_close(model.generate(conditions, n_tokens=1), whole[:, :1])
    for n in (0, 30):
        said = (
            f"^n_tokens must be at least 1, and at most 29 after 12 positions, not {n}$"
        )
        with pytest.raises(ValueError, match=said):
            model.generate(conditions, n_tokens=n)


# ---- Gradients and losses


def test_gradients_flow_through_generation_to_every_weight_but_the_unread_table():
    model = of_order_one()
    model.generate(some_conditions())[..., 0].sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    idle = [name for name, g in grads.items() if g is None or g.abs().sum() == 0]
    assert idle == ["gpt2.wte.weight"] and not model.gpt2.wte.weight.requires_grad
    with torch.no_grad():
        assert not model.generate(some_conditions()).requires_grad


def test_gradient_of_generation_is_that_of_the_loop_without_a_cache():
    model = of_order_one()
    weight = model.gpt2.h[0].attn.c_attn.weight
    mine, other = (
        torch.autograd.grad(loa[..., 0].sum(), weight)[0]
        for loa in (model.generate(some_conditions()), written_without_a_cache(model))
    )
    assert (mine - other).norm() < 1e-4 * other.norm()


def test_the_loss_is_the_mean_square_of_what_is_missed():
    model, batch = of_order_one(), some_batch()
    missed = (model(some_conditions(), batch["loa"]) - batch["loa"]).flatten()
    torch.testing.assert_close(model.loss(batch), missed @ missed / (3 * 6 * 32))


def test_a_few_steps_down_the_gradient_lower_the_loss():
    torch.manual_seed(0)
    model, batch, losses = LOARegressor(CONFIG), some_batch(), []
    learning = [p for p in model.parameters() if p.requires_grad]
    for _ in range(10):
        losses.append(model.loss(batch))
        slopes = torch.autograd.grad(losses[-1], learning)
        for p, slope in zip(learning, slopes, strict=True):
            p.data -= 0.5 * slope
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_where_the_teacher_is_silent_the_regression_goes_on_from_what_it_wrote():
    model, batch, conditions = of_order_one(), some_batch(), some_conditions()
    loa, own = batch["loa"], model.generate(some_conditions(), 6)
    half = randn(3, 6) > 0
    losses = []
    for keep in (half, torch.ones_like(half), torch.zeros_like(half)):
        given = torch.where(keep[:, :, None], loa, own)
        losses.append(model.loss({**batch, "keep": keep}))
        torch.testing.assert_close(
            losses[-1], F.mse_loss(model(conditions, given), loa)
        )
    torch.testing.assert_close(losses[1], model.loss(batch))
    torch.testing.assert_close(losses[2], F.mse_loss(own, loa))
    assert (losses[2] - losses[1]).abs() > 1e-3


def test_no_gradient_flows_through_what_was_written():
    model, batch = of_order_one(), some_batch()
    with torch.no_grad():
        own = model.generate(some_conditions(), 6)
    given_own = F.mse_loss(model(some_conditions(), own), batch["loa"])
    silent = model.loss({**batch, "keep": torch.zeros(3, 6, dtype=torch.bool)})
    learning = [p for p in model.parameters() if p.requires_grad]
    for mine, other in zip(
        *(torch.autograd.grad(loss, learning) for loss in (silent, given_own)),
        strict=True,
    ):
        assert_close(mine, other)


# ---- Weights as they are drawn


def layers(model: LOARegressor) -> Iterator[torch.nn.Linear]:
    for block in model.gpt2.h:
        yield from (
            block.attn.c_attn,
            block.attn.c_proj,
            block.mlp.c_fc,
            block.mlp.c_proj,
        )


def test_weights_are_drawn_so_that_variance_is_kept_and_branches_begin_small():
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, n_embd=64, n_positions=64, vocab_size=64)
    model = LOARegressor(config)
    branch = 0.02 / 2  # 4 branches: 0.02 / sqrt(4)
    wanted = [64**-0.5, branch, 64**-0.5, branch] * 2
    for layer, std in zip(layers(model), wanted, strict=True):
        assert abs(layer.weight.std() / std - 1) < 0.05
        assert (layer.bias == 0).all()
    for table, std in ((model.gpt2.wpe, 0.5), (model.gpt2.wte, 0.02)):
        assert abs(table.weight.std() / std - 1) < 0.05


@pytest.mark.parametrize("widths", [(512, 1024), (32, 16)])
def test_conditions_of_any_width_arrive_with_the_variance_of_the_loa(widths):
    torch.manual_seed(0)
    model = LOARegressor(dataclasses.replace(CONFIG, condition_dims=widths))
    # CLAP's have length 1
    clap = F.normalize(randn(64, 1, widths[0]), dim=-1)
    text = randn(64, 4, widths[1])
    with torch.no_grad():
        x, _ = model.projection({"clap": Context(clap), "text": Context(text)})
    assert abs(x[:, 1:2].std() - 1) < 0.2 and abs(x[:, 4:8].std() - 1) < 0.2


def test_full_size_is_gpt2_base_and_the_released_projection():
    with torch.device("meta"):
        model = LOARegressor.preset("full")
    assert sum(p.numel() for p in model.gpt2.parameters()) == 124_439_808
    assert sum(p.numel() for p in model.projection.parameters()) == 1_184_256


def test_a_saved_regressor_loads_equal(tmp_path):
    model = of_order_one()
    model.save_pretrained(tmp_path)
    loaded = LOARegressor.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    written = loaded.generate(some_conditions())
    assert torch.equal(written, model.generate(some_conditions()))


# ---- What is refused

CLAP, (TEXT, MASK) = some_conditions().values()
REFUSED = {
    "conditions must be clap, text, not clap": {"clap": CLAP},
    "conditions must be clap, text, not none": {},
    "conditions must be clap, text, not clap, text, bind": {
        **some_conditions(), "bind": CLAP,
    },
    r"condition text must have shape \(3, S, 20\), not \(3, 1, 12\)": {
        "clap": CLAP, "text": CLAP,
    },
    r"condition text must have shape \(3, S, 20\), not \(2, 7, 20\)": {
        "clap": CLAP, "text": Context(TEXT[:2]),
    },
    r"condition clap must have shape \(3, S, 12\), not \(3, 12\)": {
        "clap": Context(CLAP.sequence[:, 0]), "text": Context(TEXT),
    },
    r"the mask of condition text must be \(3, 7\), not \(3, 6\)": {
        "clap": CLAP, "text": Context(TEXT, MASK[:, 1:]),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "conditions"), REFUSED.items(), ids=range(len(REFUSED))
)
def test_conditions_of_other_names_or_shapes_get_one_sentence(said, conditions):
    model = LOARegressor(CONFIG)
    with pytest.raises(ValueError, match=f"^{said}$"):
        model.generate(conditions)
    with pytest.raises(ValueError, match=f"^{said}$"):
        model(conditions, randn(3, 6, 32))


def test_a_truth_of_another_shape_gets_one_sentence():
    model, conditions = LOARegressor(CONFIG), some_conditions()
    for shape in ((3, 4, 31), (2, 4, 32), (3, 32)):
        said = (
            rf"^loa must have shape \(3, L, 32\), not \({', '.join(map(str, shape))}\)$"
        )
        with pytest.raises(ValueError, match=said):
            model(conditions, randn(*shape))
    assert model(conditions, randn(3, 29, 32)).shape == (3, 29, 32)
    with pytest.raises(ValueError, match="at most 40 positions, not 41"):
        model(conditions, randn(3, 30, 32))


def test_names_and_widths_of_conditions_must_pair_up():
    said = r"^conditions \('clap', 'text'\) need one width each, not \(12,\)$"
    with pytest.raises(ValueError, match=said):
        LOARegressor(dataclasses.replace(CONFIG, condition_dims=(12,)))


# ---- Loudness


def fitted(n: int = 400) -> tuple[Loudness, torch.Tensor, torch.Tensor]:
    """A map fitted to loudnesses that are linear in the LOA, on which they stand."""
    loa = randn(n, 5, 16)
    decibels = 12 * loa[:, 2, 7] - 3 * loa[:, 4, 1] - 25
    model = Loudness(LoudnessConfig(5, 16))
    model.fit(loa, decibels)
    return model, loa, decibels


def test_loudness_is_a_linear_map_within_what_was_heard():
    model = Loudness(LoudnessConfig(2, 3))
    model.weight.copy_(torch.arange(6.0).view(2, 3))
    model.bias.fill_(-10.0)
    model.range.copy_(torch.tensor([-40.0, -5.0]))
    loa = torch.tensor([1.0, -1.0, 20.0, -20.0]).view(4, 1, 1) * torch.ones(2, 3) / 5
    assert model(loa).tolist() == [-7.0, -13.0, -5.0, -40.0]
    assert model(loa.half()).dtype == torch.float32


def test_fit_finds_a_linear_map_and_clamps_to_the_range_of_the_clips():
    model, loa, decibels = fitted()
    other = randn(100, 5, 16, seed=1)
    wanted = 12 * other[:, 2, 7] - 3 * other[:, 4, 1] - 25
    least, most = decibels.min(), decibels.max()
    torch.testing.assert_close(
        model(other), wanted.clamp(least, most), rtol=0, atol=0.5
    )
    assert torch.equal(model.range, torch.stack([least, most]))
    extreme = torch.zeros(2, 5, 16)
    extreme[:, 2, 7] = torch.tensor([-50.0, 50.0])
    assert torch.equal(model(extreme), torch.stack([least, most]))


def test_fit_is_ridge_regression_on_what_departs_from_the_mean():
    """Its weights make the gradient of the penalised squared error zero."""
    model, loa, decibels = fitted()
    loa = loa + 3.0  # whose mean the penalty does not see
    model.fit(loa, decibels)
    x = (loa - loa.mean(dim=0)).flatten(1).double()
    missed = x @ model.weight.double().flatten() - (decibels - decibels.mean()).double()
    gradient = x.T @ missed / len(x) + 2e-3 * model.weight.double().flatten()
    assert gradient.abs().max() < 1e-4
    centre = loa.mean(dim=0)[None]
    torch.testing.assert_close(model(centre)[0], decibels.mean(), rtol=1e-4, atol=1e-4)


def test_fit_stands_fewer_clips_than_an_loa_has_numbers():
    model, loa, decibels = fitted(30)
    torch.testing.assert_close(model(loa), decibels, rtol=0, atol=0.5)


def test_fit_changes_neither_the_clips_nor_anything_that_learns():
    model = Loudness(LoudnessConfig(5, 16))
    for dtype in (torch.float32, torch.float64):
        given = randn(20, 5, 16).to(dtype), randn(20, seed=1).to(dtype)
        before = [x.clone() for x in given]
        model.fit(*given)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert not list(model.parameters())


def test_a_saved_map_loads_equal(tmp_path):
    model, loa, _ = fitted()
    model.save_pretrained(tmp_path)
    assert torch.equal(Loudness.from_pretrained(tmp_path)(loa), model(loa))
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.n_tokens = 6
