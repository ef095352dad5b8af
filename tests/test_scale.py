"""The stages of the released scale, tried at a small size: the VAE against a
discriminator in its authors' weights, the filterbank, and the LOA of every lambda.
"""

import sys
from dataclasses import replace

import pytest
import torch
from small_world import RECIPE, made_parts, small_world, weights

from minilib import audiomae as of_audiomae
from minilib.audiomae import AudioMAE, fbank
from minilib.discriminators import (
    AdversarialVAE,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
)
from minilib.training import RUNS, scale, train
from minilib.training.loop import Loop
from minilib.unet import UNet
from minilib.vae import VAE


@pytest.fixture(scope="module")
def small():
    """Sixteen clips, and small presets of every model; AudioMAE has 128 bands."""
    with small_world() as data, pytest.MonkeyPatch.context() as patch:
        small = PatchDiscriminatorConfig(4)
        patch.setitem(PatchDiscriminator.presets, "small", small)
        wide = replace(AudioMAE.presets["small"], n_mels=128)
        parts = made_parts(data)
        patch.setitem(AudioMAE.presets, "small", wide)
        parts["audiomae"] = AudioMAE(wide).eval()
        data.parts = parts
        yield data


def made(kind, small, parts=(), recompute=False, **options):
    recipe = replace(RECIPE, recompute=recompute)
    given = {name: small.parts[name] for name in parts}
    torch.manual_seed(0)
    return kind("small", recipe, small, given, **options)


def sharp(small, start=0, **changes):
    return made(scale.AdversarialVAEStage, small, start=start, **changes)


def step(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    losses = model.loss(batch)
    (losses if isinstance(losses, torch.Tensor) else losses["loss"]).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


# ---- The VAE against a discriminator


def test_before_its_start_the_loss_is_that_of_the_vae_in_the_authors_units(small):
    model = sharp(small, start=9).model.train()
    batch = sharp(small).batch(step())
    n = batch["mel"][0].numel()
    alone = VAE(replace(model.vae.config, kl_weight=1000 / n))
    alone.load_state_dict(model.vae.state_dict())
    found, wanted = gradients(model, batch), gradients(alone, batch)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[f"vae.{name}"], grad)
    others = [grad for name, grad in found.items() if "discriminator" in name]
    assert others and not any(grad.any() for grad in others)


def test_the_authors_kl_weight_at_the_released_length_is_about_0_015():
    # a loss of sums over 1024 x 64 values, with the mean of the KL times 1000
    assert AdversarialVAE.kl_weight / (1024 * 64) == pytest.approx(0.01526, rel=1e-3)


def test_the_adversarial_gradient_is_half_of_the_l1s_at_the_last_layer(small):
    model, batch = sharp(small).model.eval(), sharp(small).batch(step())
    last = model.vae.decoder.conv_out.weight
    mean, log_variance = model.vae.moments(batch["mel"])
    z = mean + (0.5 * log_variance).exp() * batch["eps"]
    restored = model.vae.restore(z)
    l1 = (restored - batch["mel"]).abs().mean()
    n = batch["mel"][0].numel()
    for factor in (1e3, 1e-9):  # the second is stopped at 10,000
        fooled = -factor * model.discriminator(restored).mean()
        weight = model.balance(l1, fooled, n)
        of = lambda x: torch.autograd.grad(x, last, retain_graph=True)[0].norm()
        if factor == 1e3:
            ratio = weight * of(fooled) / of(l1)
            torch.testing.assert_close(ratio, torch.tensor(0.5), rtol=1e-3, atol=0)
        else:
            assert weight == pytest.approx(0.5 * 1e4 / n)


def test_each_side_of_the_game_moves_its_own_weights_only(small):
    model, batch = sharp(small).model.eval(), sharp(small).batch(step())
    found = gradients(model, batch)
    judge = dict(model.discriminator.named_parameters())
    mel = batch["mel"]
    with torch.no_grad():
        mean, log_variance = model.vae.moments(mel)
        made = model.vae.restore(mean + (0.5 * log_variance).exp() * batch["eps"])
    real, told = model.discriminator(mel), model.discriminator(made)
    hinge = 0.5 * ((1 - real).relu().mean() + (1 + told).relu().mean())
    own = torch.autograd.grad(hinge, list(judge.values()))
    for name, grad in zip(judge, own):
        torch.testing.assert_close(found[f"discriminator.{name}"], grad)
    # and the VAE feels the discriminator
    later = gradients(sharp(small, start=9).model.eval(), batch)
    name = "vae.decoder.conv_out.weight"
    assert not torch.allclose(found[name], later[name])


def test_the_discriminators_shape_is_latent_diffusions():
    model = PatchDiscriminator.preset("full")
    convs = [x for x in model.modules() if isinstance(x, torch.nn.Conv2d)]
    assert [x.out_channels for x in convs] == [64, 128, 256, 512, 1]
    assert [x.stride[0] for x in convs] == [2, 2, 2, 1, 1]
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 6, 6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_vae_meets_its_discriminator_at_the_same_step(
    small, tmp_path, accumulate
):
    recipe = replace(RECIPE, checkpoint_every=1, accumulate=accumulate, final_lr=1.0)
    make = lambda n: scale.AdversarialVAEStage(
        "small", replace(recipe, steps=n), small, {}, start=2
    )
    whole = train(make(4), tmp_path / "whole", progress=False)
    assert whole.calls == 4 * accumulate and whole.start == 2 * accumulate
    train(make(1), tmp_path / "cut", progress=False)
    again = train(make(4), tmp_path / "cut", resume=True, progress=False)
    assert torch.equal(weights(again), weights(whole))  # `calls` among them


def test_the_latent_has_variance_one_after_one_factor_for_all_channels(small):
    stage = sharp(small)
    before = weights(stage.vae)
    vae = stage.finish()["vae"]
    assert torch.equal(weights(vae), before)  # only the config holds the factor
    mel = small.mels(256)
    eps = torch.randn(vae.moments(mel)[0].shape, generator=step())
    assert vae.encode(mel, eps).detach().std().item() == pytest.approx(1.0, rel=0.02)


# ---- Activations that are computed again


@pytest.mark.parametrize("kind", [scale.AdversarialVAEStage, scale.FbankStage])
def test_recomputed_activations_give_the_same_gradients(small, kind):
    found = {}
    for on in (False, True):
        stage, kept = made(kind, small, recompute=on), []
        keep = lambda x, kept=kept: kept.append(x.numel()) or x
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            grads = gradients(stage.model.eval(), stage.batch(step()))
        found[on] = sum(kept), grads
    (much, wanted), (little, ours) = found[False], found[True]
    assert little < 0.8 * much and ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    stage.finish()  # and what ends is as it was before
    assert not any("forward" in vars(x) for x in stage.model.modules())


def test_a_unet_that_recomputes_has_the_same_gradients_with_masked_loa(small):
    found = []
    for on in (False, True):
        stage = lambdas(small, recompute=on)
        batches = (stage.batch(step(n)) for n in range(99))
        batch = next(x for x in batches if "loa_mask" in x)
        assert not batch["loa_mask"].all()
        found.append(gradients(stage.model, batch))
    assert all(torch.equal(found[1][name], x) for name, x in found[0].items())


# ---- The filterbank and the lambdas


def test_the_filterbank_has_a_row_every_10_ms_and_hears_each_clip_alone(small):
    waves = small.corpus.wave(range(3))
    whole, one = fbank(waves), fbank(waves[1:2])
    assert whole.shape == (3, 1, waves.shape[1] // 160, 128)
    assert torch.equal(whole[1:2], one)
    # 25 ms fit into a clip of T frames T - 2 times
    assert not whole[:, :, -2:].any() and whole[:, :, :-2].abs().amin(dim=3).all()
    tone = torch.sin(torch.arange(16000) * (2 * torch.pi * 1000 / 16000))[None]
    peaks = fbank(tone)[0, 0, :98].argmax(dim=1).unique()
    mel = lambda hz: 1127 * torch.log1p(torch.tensor(hz) / 700)
    place = (mel(1000.0) - mel(20.0)) / (mel(8000.0) - mel(20.0)) * 129 - 1
    assert (peaks - place).abs().max() < 1


def test_without_torchaudio_the_filterbank_says_what_to_install(small, monkeypatch):
    for name in ("torchaudio", "torchaudio.compliance"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="missing: pip install torchaudio"):
        fbank(torch.zeros(1, 16000))


def test_an_audiomae_hears_the_bands_it_has(small):
    waves = small.corpus.wave(range(2))
    wide = small.parts["audiomae"]
    narrow = AudioMAE(replace(wide.config, n_mels=64))
    assert of_audiomae.heard(wide, waves).shape[3] == 128
    torch.testing.assert_close(
        of_audiomae.heard(narrow, waves), of_audiomae.log_mel(waves)
    )
    # joint and gpt ask for the LOA of all clips
    assert small.loa(wide, wide.config.n_loa()).shape[0] == 16


def test_the_loa_of_the_filterbank_has_variance_one(small):
    audiomae = made(scale.FbankStage, small).finish()["audiomae"]
    loa = audiomae.loa(fbank(small.corpus.wave(range(16))), 1)
    torch.testing.assert_close(loa.std(), torch.tensor(1.0), rtol=0.02, atol=0)


def lambdas(small, **changes):
    """The stage ldm of the released scale, its AudioMAE of 128 bands."""
    needs = scale.LambdasStage.needs
    return made(scale.LambdasStage, small, needs, unet="small", **changes)


def test_each_step_of_ldm_draws_its_lambda_and_reads_the_true_loa(small):
    stage, audiomae = lambdas(small), small.parts["audiomae"]
    every = fbank(small.corpus.wave(range(16)))
    true = {audiomae.config.n_loa(p): audiomae.loa(every, p) for p in (1, 2, 4)}
    nothing = stage.empty["loa"].sequence
    seen = []
    for n in range(40):
        batch, (indices, _) = stage.batch(step(n)), small.pairs(8, step(n))
        mask = batch.get("loa_mask")
        for i, index in enumerate(indices.tolist()):
            row = batch["loa"][i] if mask is None else batch["loa"][i][mask[i]]
            if len(row) == nothing.shape[1] and torch.allclose(row, nothing[0]):
                continue  # emptied
            seen.append(len(row))
            torch.testing.assert_close(row, true[len(row)][index])
    assert set(seen) == set(true)
    assert all(seen.count(n) > 40 for n in true)


def test_the_three_stages_learn_something(small):
    for stage in (sharp(small, start=4), made(scale.FbankStage, small), lambdas(small)):
        batch = stage.batch(step())
        stage.recipe = replace(RECIPE, steps=30, ema=0.0)
        loop = Loop(stage.model, lambda g, batch=batch: batch, stage.recipe, 0, "x")
        losses = [loop.step() for _ in range(30)]
        key = "l1" if "l1" in losses[0] else "loss"
        assert losses[-1][key] < 0.9 * losses[0][key], stage.name


# ---- The presets


@pytest.mark.parametrize("preset", ["full", "large"])
def test_the_presets_of_the_released_scale_have_a_recipe_for_every_stage(preset):
    run = RUNS[preset]
    assert set(run.stages) <= set(run.recipes) and run.encodes
    for name, options in run.options.items():
        assert all(hasattr(run.kind(name), option) for option in options)
    assert run.kind("vae") is scale.AdversarialVAEStage
    assert not {"text", "clap"}.intersection(run.stages)
    for name in ("gpt", "ldm", "joint"):
        recipe = run.recipes[name]
        assert (recipe.lr, recipe.warmup, recipe.final_lr) == (1e-4, 10_000, 1.0)
        assert recipe.betas == (0.9, 0.999) and not recipe.muon
    assert scale.P_EMPTY == 0.1


def test_large_is_full_with_another_unet():
    full, large = RUNS["full"], RUNS["large"]
    assert large.options["ldm"] == {"unet": "large"} and large.sizes == "full"
    assert large.recipes == full.recipes
    assert UNet.presets["large"] != UNet.presets["full"]
