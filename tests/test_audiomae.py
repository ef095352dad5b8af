"""AudioMAE: what is hidden stays hidden, what is restored lands in its place, and the
Language of Audio is pooled and scaled as the paper says.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.audiomae import (
    AudioMAE,
    AudioMAEConfig,
    pool_patches,
    random_mask,
    sincos_positions,
)

# 8 x 4 patches of 4 x 4, of which 8 stay visible
SMALL = AudioMAEConfig(
    n_frames=32,
    n_mels=16,
    patch_size=4,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    decoder_hidden_size=8,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    mask_ratio=0.75,
    n_feature_layers=2,
    pool=2,
    pools=(1, 2, 8),
    mel_mean=-7.0,
    mel_std=3.0,
)
T, M, P = 32, 16, 32


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(n: int = 2, patches: int = P) -> torch.Tensor:
    return torch.rand(n, patches, generator=torch.Generator().manual_seed(2))


def mels(n: int = 2, seed: int = 1) -> torch.Tensor:
    return 3.0 * normal(n, 1, T, M, seed=seed) - 7.0


@torch.no_grad()
def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep activations of order one, so that nothing passes on noise."""
    for i, p in enumerate(model.parameters()):
        if p.ndim == 1:
            p.copy_(0.5 + 0.2 * normal(*p.shape, seed=i))
        else:
            p.copy_(normal(*p.shape, seed=i) * p[0].numel() ** -0.5)
    return model.eval()


@pytest.fixture()
def mae() -> AudioMAE:
    return randomised(AudioMAE(SMALL))


def pixels(patches: torch.Tensor) -> torch.Tensor:
    """A value for each patch (B, P) spread over the patch: (B, 1, T, M)."""
    grid = patches.unflatten(1, (8, 4))[:, None]
    return grid.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.05
    return float((ours - theirs).norm() / theirs.norm())


# Masking


@pytest.mark.parametrize(
    "patches, ratio, hidden",
    [(40, 0.8, 32), (32, 0.75, 24), (64, 0.8, 51), (3, 0.0, 0), (4, 0.99, 3)],
)
def test_the_mask_ratio_holds_exactly_in_every_clip(patches, ratio, hidden):
    visible, mask = random_mask(noise(5, patches), ratio)
    assert (mask.sum(dim=1) == hidden).all()
    assert visible.shape == (5, patches - hidden)
    for b in range(5):
        rest = sorted(set(range(patches)) - set(visible[b].tolist()))
        assert mask[b].nonzero().flatten().tolist() == rest


def test_the_patches_with_the_smallest_noise_stay_visible():
    visible, mask = random_mask(torch.tensor([[0.3, 0.1, 0.9, 0.2]]), 0.5)
    assert visible.tolist() == [[1, 3]] and mask.tolist() == [[1, 0, 1, 0]]


@torch.no_grad()
def test_the_encoder_never_sees_a_hidden_patch(mae):
    visible, mask = random_mask(noise(), 0.75)
    x = normal(2, 1, T, M)
    before = mae.vit(x, visible)
    after = mae.vit(x + 9.0 * pixels(mask), visible)
    assert [h.shape for h in before] == 3 * [(2, 1 + 8, 16)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    seen = mae.vit(x + pixels(1.0 - mask), visible)
    assert all((a - b).abs().amax(-1).min() > 1e-3 for a, b in zip(seen, before))


@torch.no_grad()
def test_a_prediction_depends_on_every_visible_patch_and_on_no_hidden_one(mae):
    before, _, mask = mae(mels(1), noise(1))
    after, _, _ = mae(mels(1) + 9.0 * pixels(mask), noise(1))
    assert torch.equal(after, before)
    hidden = mask[0].bool()
    for place in (~hidden).nonzero().flatten():
        one = F.one_hot(place, P)[None].float()
        after, _, _ = mae(mels(1) + pixels(one), noise(1))
        # each of the hidden patches is predicted otherwise
        assert ((after - before)[0, hidden].abs().amax(dim=1) > 1e-5).all()


@torch.no_grad()
def test_the_decoder_reads_every_visible_patch_for_every_hidden_one(mae):
    visible, mask = random_mask(noise(1), 0.75)
    features = normal(1, 1 + 8, 16)
    before = mae.decoder(features, visible)
    for i in range(1, 1 + 8):
        other = features.clone()
        other[:, i] += 1.0 + normal(16)
        change = (mae.decoder(other, visible) - before)[0, mask[0].bool()]
        assert (change.abs().amax(dim=1) > 1e-3).all()


@torch.no_grad()
def test_the_decoder_puts_every_patch_and_the_mask_token_at_its_place(mae):
    decoder = mae.decoder
    seen = []
    decoder.layer.register_forward_pre_hook(lambda _, h: seen.append(h[0]))
    decoder.layer.register_forward_hook(lambda _, given, __: given[0])
    decoder.decoder_norm = decoder.decoder_pred = torch.nn.Identity()
    features = normal(2, 1 + 3, 16)
    visible = torch.tensor([[5, 0, 31], [7, 8, 2]])
    made = decoder(features, visible)
    embedded, position = decoder.decoder_embed(features), sincos_positions(8, (8, 4))
    for b in range(2):
        wanted = decoder.mask_token[0] + position[1:]
        for i, place in enumerate(visible[b].tolist()):
            wanted[place] = embedded[b, 1 + i] + position[1 + place]
        torch.testing.assert_close(made[b], wanted)
        # [CLS] goes along, and is left out of the prediction
        torch.testing.assert_close(seen[0][b, 0], embedded[b, 0])


# The loss


@torch.no_grad()
def test_the_loss_counts_masked_patches_only(mae, monkeypatch):
    _, patches, mask = mae(mels(), noise())
    for where, loss in ((mask, 4.0), (1.0 - mask, 0.0)):
        guess = patches + 2.0 * where[:, :, None]
        monkeypatch.setattr(mae.decoder, "forward", lambda *_, guess=guess: guess)
        found = mae.loss({"mel": mels(), "noise": noise()})
        assert found.item() == pytest.approx(loss, abs=1e-6)


@torch.no_grad()
def test_the_loss_is_the_mean_squared_error_of_what_was_hidden(mae):
    predicted, patches, mask = mae(mels(), noise())
    hidden = mask.bool()
    wanted = ((predicted - patches)[hidden] ** 2).mean()
    torch.testing.assert_close(mae.loss({"mel": mels(), "noise": noise()}), wanted)


@torch.no_grad()
def test_true_patches_are_those_of_the_normalised_mel_time_before_frequency(mae):
    _, patches, _ = mae(mels(), noise())
    x = (mels() + 7.0) / 3.0
    for t in range(8):
        for f in range(4):
            block = x[:, 0, 4 * t : 4 * t + 4, 4 * f : 4 * f + 4].flatten(1)
            torch.testing.assert_close(patches[:, 4 * t + f], block)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model, batch = AudioMAE(SMALL), {"mel": mels(), "noise": noise()}
    weights, losses = list(model.parameters()), []
    for _ in range(10):
        loss = model.loss(batch)
        for p, slope in zip(weights, torch.autograd.grad(loss, weights)):
            p.data -= 0.1 * slope
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_positions_are_sines_and_cosines_of_frequency_and_then_of_time():
    table = sincos_positions(8, (3, 5))
    assert table.shape == (1 + 15, 8) and (table[0] == 0).all()
    for t in range(3):
        for f in range(5):
            wanted = [
                wave(place * rate)
                for place in (f, t)
                for wave in (math.sin, math.cos)
                for rate in (1.0, 1e-2)
            ]
            torch.testing.assert_close(table[1 + 5 * t + f], torch.tensor(wanted))


def test_tokens_start_small_norms_have_vits_epsilon_and_positions_are_not_stored():
    torch.manual_seed(0)
    model = AudioMAE.preset("tiny")
    for token in (model.vit.cls_token, model.decoder.mask_token):
        assert 0.015 < token.std() < 0.025
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert not any("position" in name for name in model.state_dict())


# The Language of Audio


@pytest.mark.parametrize(
    "pool, shape", [(1, (8, 4)), (2, (4, 2)), (4, (2, 1)), (8, (1, 1))]
)
def test_pooling_is_half_the_mean_and_half_the_maximum_of_each_block(pool, shape):
    features = normal(2, 3, 8, 4)
    pooled = pool_patches(features, pool)
    assert pooled.shape == (2, 3, *shape)
    height = min(pool, 4)  # frequency has no more
    for t in range(shape[0]):
        for f in range(shape[1]):
            rows = slice(pool * t, pool * (t + 1))
            columns = slice(height * f, height * (f + 1))
            block = features[:, :, rows, columns].flatten(2)
            wanted = 0.5 * block.mean(dim=2) + 0.5 * block.amax(dim=2)
            torch.testing.assert_close(pooled[:, :, t, f], wanted)


@pytest.mark.parametrize("pool", [0, 3, 16, -2])
def test_a_pool_that_does_not_divide_the_patches_along_time_is_refused(pool):
    with pytest.raises(ValueError, match=f"divide the 8 patches .* not {pool}$"):
        pool_patches(normal(1, 2, 8, 4), pool)


@torch.no_grad()
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_features_are_the_last_layers_each_normalised_and_then_averaged(mae, n_layers):
    mae.config = replace(SMALL, n_feature_layers=n_layers)
    outputs = mae.vit((mels() + 7.0) / 3.0)
    last = [mae.vit.layernorm(h)[:, 1:] for h in outputs[3 - n_layers :]]
    features, mean = mae.features(mels()), sum(last) / n_layers
    assert features.shape == (2, 16, 8, 4)
    for t in range(8):
        for f in range(4):
            torch.testing.assert_close(features[:, :, t, f], mean[:, 4 * t + f])


@torch.no_grad()
def test_unmasked_features_see_every_patch_embedded_time_before_frequency(mae):
    seen = []
    mae.vit.layer[0].register_forward_pre_hook(lambda _, h: seen.append(h[0]))
    mae.features(mels())
    x, conv = (mels() + 7.0) / 3.0, mae.vit.patch_embed
    position = sincos_positions(16, (8, 4))
    wanted = F.linear(mae.patchify(x), conv.weight.flatten(1), conv.bias) + position[1:]
    cls = mae.vit.cls_token.expand(2, -1, -1)
    torch.testing.assert_close(seen[0], torch.cat([cls, wanted], dim=1))


@torch.no_grad()
def test_loa_vectors_stand_time_before_frequency(mae, monkeypatch):
    places = 10.0 * torch.arange(8)[:, None] + torch.arange(4)
    features = places.expand(1, 16, -1, -1)
    monkeypatch.setattr(mae, "features", lambda mel: features)
    order = mae.loa(mels(1), pool=1)[0, :, 0].tolist()
    assert order[:9] == [0, 1, 2, 3, 10, 11, 12, 13, 20] and order[-1] == 73
    # (mean + maximum) / 2 of 0, 1, 10, 11 and of their neighbours
    assert mae.loa(mels(1))[0, :3, 0].tolist() == [8.25, 10.25, 28.25]


@torch.no_grad()
def test_the_number_of_loa_vectors_is_the_configs(mae):
    for pool in SMALL.pools:
        assert mae.loa(mels(), pool).shape == (2, SMALL.n_loa(pool), 16)
    assert mae.loa(mels()).shape[1] == SMALL.n_loa() == SMALL.n_loa(2) == 8
    # the paper's 8 vectors of ten seconds, and the 512 of speech
    full, tiny = AudioMAE.presets["full"], AudioMAE.presets["tiny"]
    assert (full.n_loa(), full.n_loa(1), full.n_loa(4)) == (8, 512, 32)
    assert [tiny.n_loa(pool) for pool in tiny.pools] == [64, 16, 4, 2]


def test_a_number_of_loa_vectors_names_its_lambda_and_another_number_is_refused():
    assert [SMALL.pool_for(SMALL.n_loa(pool)) for pool in SMALL.pools] == [1, 2, 8]
    # 2 vectors there are at lambda 4, which has no statistics
    with pytest.raises(ValueError, match="has 32, 8, 1 LOA vectors, never 2$"):
        SMALL.pool_for(SMALL.n_loa(4))


def test_every_preset_keeps_its_own_lambda_and_pools_that_divide_its_patches():
    for config in AudioMAE.presets.values():
        assert config.pool in config.pools
        assert all(config.grid[0] % pool == 0 for pool in config.pools)


# Statistics


@torch.no_grad()
def test_before_statistics_are_fitted_the_loa_is_what_was_pooled(mae):
    wanted = pool_patches(mae.features(mels()), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mae.loa(mels()), wanted)


@torch.no_grad()
def test_a_fitted_loa_has_mean_0_and_deviation_1_in_every_dimension_at_every_pool(mae):
    clips = mels(70)
    wanted = {pool: pool_patches(mae.features(clips), pool) for pool in SMALL.pools}
    mae.fit_statistics(clips)
    mae.fit_statistics(clips)  # of what was pooled, not of what was scaled
    for row, pool in enumerate(SMALL.pools):
        y = mae.loa(clips, pool)
        torch.testing.assert_close(y.mean((0, 1)), torch.zeros(16), atol=1e-4, rtol=0)
        torch.testing.assert_close(y.flatten(0, 1).std(0), torch.ones(16))
        raw = wanted[pool].transpose(0, 1).flatten(1)
        torch.testing.assert_close(mae.loa_mean[row], raw.mean(dim=1))
        torch.testing.assert_close(mae.loa_std[row], raw.std(dim=1))
    assert not mae.loa_mean.requires_grad


@torch.no_grad()
def test_each_lambda_has_statistics_of_its_own(mae):
    raw = {pool: mae.loa(mels(), pool) for pool in SMALL.pools}
    mae.loa_mean[1], mae.loa_std[1] = 0.25, 4.0
    torch.testing.assert_close(mae.loa(mels()), (raw[2] - 0.25) / 4.0)
    for pool in (1, 8):
        assert torch.equal(mae.loa(mels(), pool), raw[pool])


@pytest.mark.parametrize("pool", [4, 0, 3])
def test_a_lambda_without_statistics_is_refused(mae, pool):
    with pytest.raises(ValueError, match=rf"in \(1, 2, 8\), .* not {pool}$"):
        mae.loa(mels(), pool)


def test_statistics_are_stored_with_the_weights(mae, tmp_path):
    mae.fit_statistics(mels(4))
    mae.save_pretrained(tmp_path)
    again = AudioMAE.from_pretrained(tmp_path)
    assert again.config == SMALL
    with torch.no_grad():
        assert torch.equal(again.loa(mels(), 8), mae.loa(mels(), 8))


@pytest.mark.parametrize(
    "shape", [(2, 1, 32, 15), (2, 1, 36, 16), (2, 32, 16), (2, 2, 32, 16)]
)
def test_a_mel_of_another_size_is_refused(mae, shape):
    for take in (mae.loa, mae.fit_statistics, lambda mel: mae(mel, noise())):
        with pytest.raises(ValueError, match=r"\(B, 1, 32, 16\), not \(2, "):
            take(torch.zeros(shape))


def test_a_mel_is_normalised_by_the_configs_mean_and_deviation(mae):
    mel = torch.full((1, 1, T, M), -4.0)
    assert mae.normalise(mel).unique().tolist() == [1.0]


# Parity

NAMES = {
    "layer.": "layers.",
    "patch_embed.": "embeddings.patch_embeddings.projection.",
    "cls_token": "embeddings.cls_token",
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.o_proj",
    "norm_before": "layernorm_before",
    "norm_after": "layernorm_after",
    "intermediate": "mlp.fc1",
    "output": "mlp.fc2",
    "decoder.layers.": "decoder.decoder_layers.",
}


def renamed(name: str) -> str:
    """The key in transformers' state of what we call so."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def theirs_and_ours(mask_ratio: float) -> tuple[torch.nn.Module, AudioMAE]:
    """transformers' ViTMAE and ours with its weights; 16 patches of 8 x 8."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        patch_size=8,
        mask_ratio=mask_ratio,
    )
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            **sizes,
            image_size=32,
            num_channels=1,
            intermediate_size=64,
            decoder_intermediate_size=32,
            layer_norm_eps=1e-6,
            norm_pix_loss=False,
        )
    )
    randomised(theirs)
    # which half of a position is time differs between their releases
    theirs.vit.embeddings.position_embeddings.data = sincos_positions(16, (4, 4))[None]
    theirs.decoder.decoder_pos_embed.data = sincos_positions(8, (4, 4))[None]
    ours = AudioMAE(
        AudioMAEConfig(n_frames=32, n_mels=32, mel_mean=0.0, mel_std=1.0, **sizes)
    )
    state, mine = theirs.state_dict(), {}
    for name, start in ours.state_dict().items():
        mine[name] = start if name.startswith("loa_") else state.pop(renamed(name))
    ours.load_state_dict(mine)
    assert all("pos" in name for name in state)  # nothing else is left of theirs
    return theirs, ours.eval()


@torch.no_grad()
def test_encoder_and_decoder_equal_vitmae_where_nothing_is_masked():
    theirs, ours = theirs_and_ours(mask_ratio=0.0)
    x = normal(2, 1, 32, 32)
    # the noise that leaves the patches where they are
    wanted = theirs.vit(
        x, noise=torch.arange(16.0).expand(2, -1), output_hidden_states=True
    )
    layers = ours.vit(x)
    assert error(ours.vit.layernorm(layers[-1]), wanted.last_hidden_state) < 1e-5
    for layer, states in zip(layers[:-1], wanted.hidden_states[1:]):
        assert error(layer, states) < 1e-5
    predicted, _, mask = ours(x, noise(2, 16))
    assert error(predicted, theirs(x, noise=noise(2, 16)).logits) < 1e-5
    assert not mask.any()


def test_encoder_decoder_loss_and_gradients_equal_vitmae_with_masking():
    theirs, ours = theirs_and_ours(mask_ratio=0.75)
    x, chance = normal(2, 1, 32, 32), noise(2, 16)
    wanted = theirs(x, noise=chance)
    visible, _ = random_mask(chance, 0.75)
    states = theirs.vit(x, noise=chance).last_hidden_state
    encoded = ours.vit.layernorm(ours.vit(x, visible)[-1])
    predicted, patches, mask = ours(x, chance)
    loss = ours.loss({"mel": x, "noise": chance})
    assert torch.equal(mask, wanted.mask)
    assert torch.equal(patches, theirs.patchify(x))
    assert error(encoded.detach(), states.detach()) < 1e-5
    assert error(predicted.detach(), wanted.logits.detach()) < 1e-5
    assert loss.item() == pytest.approx(wanted.loss.item(), rel=1e-5)
    loss.backward()
    wanted.loss.backward()
    slopes = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        slope = slopes[renamed(name)]
        # no key's bias matters: the softmax takes the same from all scores of a query
        if not name.endswith("key.bias"):
            assert (p.grad - slope).norm() < 1e-4 * slope.norm(), name
