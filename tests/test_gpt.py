"""GPT-2 as a regressor of the Language of Audio (chapter 13)."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from minilib.gpt import GPTConfig, LOARegressor, Projection

CONFIG = GPTConfig(
    condition_dims=(12, 20),
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=40,
    n_tokens=5,
    vocab_size=1,
)


def model_of_order_one(config: GPTConfig = CONFIG, seed: int = 0) -> LOARegressor:
    """Weights so large that every layer and position shows in the output."""
    torch.manual_seed(seed)
    model = LOARegressor(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
        model.gpt2.wpe.weight.normal_(std=0.5)
    return model


def some_conditions(B: int = 3, S: int = 7, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(S) < torch.tensor([S, 4, 1, 2])[:B, None]
    clap = torch.randn(B, 1, 12, generator=generator)
    return {
        "clap": (clap, None),
        "text": (torch.randn(B, S, 20, generator=generator), mask),
    }


def test_projection_puts_every_condition_between_its_marks():
    model = model_of_order_one()
    projection = model.projection
    clap, text = some_conditions()["clap"], some_conditions()["text"]
    # the order is the config's, not the dictionary's
    x, mask = projection({"text": text, "clap": clap})
    assert x.shape == (3, 3 + 9, 32)
    assert torch.equal(x[1, 0], projection.sos_embed) and torch.equal(
        x[1, 2], projection.eos_embed
    )
    assert torch.equal(x[1, 3], projection.sos_embed_1) and torch.equal(
        x[1, -1], projection.eos_embed_1
    )
    torch.testing.assert_close(x[:, 1:2], projection.projection(clap[0]))
    torch.testing.assert_close(x[:, 4:-1], projection.projection_1(text[0]))
    assert (
        mask[:, :4].all() and mask[:, -1].all() and torch.equal(mask[:, 4:-1], text[1])
    )
    assert torch.equal(projection([clap, text])[0], x)


def test_generation_with_a_cache_equals_the_loop_without():
    model = model_of_order_one()
    conditions = some_conditions()
    x, mask = model.projection(conditions)
    for _ in range(5):
        y = model.gpt2(x, mask)[:, -1:]
        x, mask = torch.cat([x, y], dim=1), F.pad(mask, (0, 1), value=True)
    loa = model.generate(conditions)
    assert loa.std() > 0.3
    torch.testing.assert_close(loa, x[:, -5:], rtol=1e-5, atol=1e-5)


def test_a_cache_fed_several_positions_at_once_equals_one_pass():
    model = model_of_order_one().gpt2
    x = torch.randn(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 2:5] = False
    cache = model.empty_cache()
    pieces = [model(x[:, a:b], mask[:, :b], cache) for a, b in ((0, 4), (4, 8), (8, 9))]
    torch.testing.assert_close(
        torch.cat(pieces, 1), model(x, mask), rtol=1e-5, atol=1e-5
    )


def test_teacher_forcing_with_the_generated_truth_predicts_it():
    """Reads at the position before each target: then forward on generated LOA returns
    that LOA.
    """
    model = model_of_order_one()
    conditions = some_conditions()
    loa = model.generate(conditions, n_tokens=6)
    torch.testing.assert_close(model(conditions, loa), loa, rtol=1e-5, atol=1e-5)


def test_a_prediction_sees_the_truth_before_it_and_none_after():
    model = model_of_order_one()
    conditions = some_conditions()
    loa = torch.randn(3, 6, 32)
    changed = loa.clone()
    changed[:, 3] = torch.randn(3, 32)  # a constant would vanish in the layer norm
    a, b = model(conditions, loa), model(conditions, changed)
    # the prediction of vector 3 does not see vector 3
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert ((a - b)[:, 4:].abs().amax(dim=(0, 2)) > 1e-3).all()


def test_every_prediction_sees_every_condition():
    model = model_of_order_one()
    loa = torch.randn(3, 6, 32)
    for name in ("clap", "text"):
        conditions = some_conditions()
        x, mask = conditions[name]
        conditions[name] = (x.requires_grad_(), mask)
        for prediction in model(conditions, loa).unbind(1):
            # the sum over channels is constant after a layer norm
            first = prediction[..., 0].sum()
            (gradient,) = torch.autograd.grad(first, x, retain_graph=True)
            is_read = (
                torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
            )
            assert (gradient.abs().sum(-1) > 0).eq(is_read).all()


def test_what_stands_under_the_padding_changes_nothing():
    model = model_of_order_one()
    conditions = some_conditions()
    text, mask = conditions["text"]
    rubbish = {**conditions, "text": (text.masked_fill(~mask[..., None], 1e3), mask)}
    loa = torch.randn(3, 6, 32)
    torch.testing.assert_close(model(rubbish, loa), model(conditions, loa))
    torch.testing.assert_close(model.generate(rubbish), model.generate(conditions))


def test_padding_is_counted_as_positions_like_in_the_released_model():
    """The one way in which padding matters; with equal position vectors it does not."""
    model = model_of_order_one()
    conditions = some_conditions()
    text, mask = conditions["text"]
    longer = {**conditions, "text": (F.pad(text, (0, 0, 0, 4)), F.pad(mask, (0, 4)))}
    assert not torch.allclose(
        model.generate(longer), model.generate(conditions), atol=1e-3
    )
    with torch.no_grad():
        model.gpt2.wpe.weight.copy_(model.gpt2.wpe.weight[:1].clone())
    torch.testing.assert_close(
        model.generate(longer), model.generate(conditions), rtol=1e-5, atol=1e-5
    )


def test_one_row_of_a_batch_equals_the_row_alone():
    model = model_of_order_one()
    conditions = some_conditions()
    row = {
        name: (x[1:2], None if m is None else m[1:2])
        for name, (x, m) in conditions.items()
    }
    torch.testing.assert_close(
        model.generate(row), model.generate(conditions)[1:2], rtol=1e-5, atol=1e-5
    )


def test_gradients_flow_through_generation_to_every_weight_but_the_unread_table():
    model = model_of_order_one()
    model.generate(some_conditions())[..., 0].sum().backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert without == ["gpt2.wte.weight"] and not model.gpt2.wte.weight.requires_grad
    with torch.no_grad():
        assert not model.generate(some_conditions()).requires_grad


def test_gradient_of_generation_is_that_of_the_loop_without_a_cache():
    model = model_of_order_one()
    conditions = some_conditions()

    def gradient(loa: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(
            loa[..., 0].sum(), model.gpt2.h[0].attn.c_attn.weight
        )[0]

    x, mask = model.projection(conditions)
    for _ in range(5):
        y = model.gpt2(x, mask)[:, -1:]
        x, mask = torch.cat([x, y], dim=1), F.pad(mask, (0, 1), value=True)
    expected = gradient(x[:, -5:])
    difference = (
        gradient(model.generate(conditions)) - expected
    ).norm() / expected.norm()
    assert difference < 1e-4


def test_the_level_is_read_from_what_is_small_in_an_loa():
    model = LOARegressor(dataclasses.replace(CONFIG, level=True))
    parameters = [p.clone() for p in model.parameters()]
    loa = torch.randn(900, 5, 32)
    loa[:, 2, 7] *= 0.3  # where the level stands, and nothing else does
    decibels = 40 * loa[:, 2, 7] - 25
    model.fit_level(loa[:700], decibels[:700])
    told = model.level(loa[700:])
    assert told.shape == (200,) and (told - decibels[700:]).abs().max() < 3
    assert all(
        torch.equal(a, b) for a, b in zip(parameters, model.parameters(), strict=True)
    )
    extreme = torch.zeros(2, 5, 32)
    extreme[:, 2, 7] = torch.tensor([-50.0, 50.0])
    # louder than all clips is none
    least, most = decibels[:700].min(), decibels[:700].max()
    torch.testing.assert_close(model.level(extreme), torch.stack([least, most]))


def test_a_model_that_was_never_fitted_says_no_level_and_the_released_one_has_none(
    tmp_path,
):
    loa = torch.randn(2, 5, 32)
    model = LOARegressor(dataclasses.replace(CONFIG, level=True))
    assert model.level(loa) is None and LOARegressor(CONFIG).level(loa) is None
    assert not GPTConfig().level and not [
        name for name in LOARegressor(CONFIG).state_dict() if "level" in name
    ]
    model.fit_level(torch.randn(50, 5, 32), torch.linspace(-40, -10, 50))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        LOARegressor.from_pretrained(tmp_path).level(loa), model.level(loa)
    )


def test_the_loss_is_the_mean_square_and_falls():
    torch.manual_seed(0)
    model = LOARegressor(CONFIG)
    (clap, _), (text, mask) = some_conditions().values()
    batch = {
        "clap": clap,
        "text": text,
        "text_mask": mask,
        "loa": torch.randn(3, 6, 32),
    }
    first = model.loss(batch)
    expected = (model(some_conditions(), batch["loa"]) - batch["loa"]).square().mean()
    torch.testing.assert_close(first, expected)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        model.loss(batch).backward()
        optimiser.step()
    assert model.loss(batch) < 0.7 * first


def test_where_the_teacher_is_silent_the_regression_goes_on_from_what_it_wrote():
    model = model_of_order_one()
    (clap, _), (text, mask) = some_conditions().values()
    loa = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
    batch = {"clap": clap, "text": text, "text_mask": mask, "loa": loa}
    none = torch.zeros(3, 6, dtype=torch.bool)
    half = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        own = model.generate(some_conditions(), 6)
        for keep in (none, half, ~none):
            expected = model(some_conditions(), torch.where(keep[:, :, None], loa, own))
            loss = model.loss({**batch, "keep": keep})
            torch.testing.assert_close(loss, F.mse_loss(expected, loa))
        torch.testing.assert_close(
            model.loss({**batch, "keep": ~none}), model.loss(batch)
        )
        torch.testing.assert_close(
            model.loss({**batch, "keep": none}), F.mse_loss(own, loa)
        )
        assert (model.loss({**batch, "keep": none}) - model.loss(batch)).abs() > 1e-3


def test_no_gradient_flows_through_what_was_written():
    model = model_of_order_one()
    (clap, _), (text, mask) = some_conditions().values()
    loa = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
    batch = {"clap": clap, "text": text, "text_mask": mask, "loa": loa}
    model.loss({**batch, "keep": torch.zeros(3, 6, dtype=torch.bool)}).backward()
    mine = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        own = model.generate(some_conditions(), 6)
    model.zero_grad()
    F.mse_loss(model(some_conditions(), own), loa).backward()
    other = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, other, strict=True)
    )


@pytest.mark.parametrize("preset", ("tiny", "full"))
def test_conditions_of_any_width_arrive_with_the_variance_of_the_loa(preset):
    projection = (
        LOARegressor.preset(preset).projection
        if preset == "tiny"
        else Projection(GPTConfig())
    )
    projection.initialise()
    generator = torch.Generator().manual_seed(0)
    dims = (projection.projection.in_features, projection.projection_1.in_features)
    # CLAP's have length 1
    clap = F.normalize(torch.randn(64, 1, dims[0], generator=generator), dim=-1)
    text = torch.randn(64, 4, dims[1], generator=generator)
    with torch.no_grad():
        clap, text = projection.projection(clap), projection.projection_1(text)
    assert abs(clap.std() - 1) < 0.2 and abs(text.std() - 1) < 0.2


def test_one_condition_or_three_are_as_good_as_two():
    for dims in ((12,), (12, 20, 8)):
        names = ("clap", "text", "phonemes")[: len(dims)]
        model = LOARegressor(
            dataclasses.replace(CONFIG, conditions=names, condition_dims=dims)
        )
        conditions = [(torch.randn(2, 3, dim), None) for dim in dims]
        assert model.generate(conditions).shape == (2, 5, 32)
        assert hasattr(model.projection, "projection_2") == (len(dims) == 3)


def test_full_size_is_gpt2_base_and_the_released_projection():
    with torch.device("meta"):
        model = LOARegressor.preset("full")
    assert sum(p.numel() for p in model.gpt2.parameters()) == 124_439_808
    assert sum(p.numel() for p in model.projection.parameters()) == 1_184_256


def test_a_saved_regressor_loads_equal(tmp_path):
    model = model_of_order_one()
    model.save_pretrained(tmp_path)
    loaded = LOARegressor.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    assert torch.equal(
        loaded.generate(some_conditions()), model.generate(some_conditions())
    )


def test_bad_conditions_and_sizes_get_one_sentence():
    model = LOARegressor(CONFIG)
    conditions = some_conditions()
    clap, (text, mask) = conditions["clap"], conditions["text"]
    with pytest.raises(ValueError, match="conditions must be clap, text, not clap"):
        model.generate({"clap": clap})
    with pytest.raises(ValueError, match=r"conditions must be 2 \(clap, text\), not 1"):
        model.generate([clap])
    with pytest.raises(
        ValueError,
        match=r"condition text must have shape \(3, S, 20\), not \(3, 1, 12\)",
    ):
        model.generate({"clap": clap, "text": clap})
    with pytest.raises(
        ValueError,
        match=r"condition text must have shape \(3, S, 20\), not \(2, 7, 20\)",
    ):
        model.generate({"clap": clap, "text": (text[:2], None)})
    with pytest.raises(
        ValueError, match=r"the mask of condition text must be \(3, 7\), not \(3, 6\)"
    ):
        model.generate({"clap": clap, "text": (text, mask[:, 1:])})
    with pytest.raises(ValueError, match="n_tokens must be at least 1, not 0"):
        model.generate(conditions, n_tokens=0)
    with pytest.raises(
        ValueError, match="n_tokens must be at most 29 after 12 positions, not 30"
    ):
        model.generate(conditions, n_tokens=30)
    assert model.generate(conditions, n_tokens=29).shape == (3, 29, 32)
    with pytest.raises(ValueError, match="at most 40 positions, not 41"):
        model(conditions, torch.randn(3, 30, 32))
    with pytest.raises(
        ValueError, match=r"loa must have shape \(3, L, 32\), not \(3, 4, 31\)"
    ):
        model(conditions, torch.randn(3, 4, 31))
    with pytest.raises(
        ValueError, match=r"mask must have shape \(1, 4\), not \(1, 3\)"
    ):
        model.gpt2(torch.randn(1, 4, 32), torch.ones(1, 3))
    with pytest.raises(ValueError, match="must pair up"):
        LOARegressor(dataclasses.replace(CONFIG, condition_dims=(12,)))


@torch.no_grad()
def test_learned_positions_join_the_last_condition_before_its_projection():
    torch.manual_seed(0)
    projection = Projection(
        GPTConfig(condition_dims=(4, 6), n_embd=8, learned_positions=5)
    )
    projection.learnable_positional_embedding.normal_()
    clap, phonemes = torch.randn(2, 1, 4), torch.randn(2, 3, 6)
    moved = phonemes + projection.learnable_positional_embedding[0, :, :3].T
    sequence, _ = projection([(clap, None), (phonemes, None)])
    torch.testing.assert_close(sequence[:, 1:2], projection.projection(clap))
    torch.testing.assert_close(sequence[:, 4:7], projection.projection_1(moved))
    with pytest.raises(
        ValueError, match="condition text must have at most 5 positions, not 6"
    ):
        projection([(clap, None), (torch.randn(2, 6, 6), None)])
