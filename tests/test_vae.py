"""The VAE's own ways: its blocks, the posterior, the loss, the scale of mel and latent.

Equality with diffusers is tested in parity/.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minilib.vae import (
    VAE,
    VQVAE,
    Encoder,
    MidBlock,
    SpatialAttention,
    VAEConfig,
    VQVAEConfig,
    centre,
    standardise,
)

SMALL = VAEConfig(
    latent_channels=4,
    block_out_channels=(4, 8, 8),
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=0.5,
)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**changes) -> VAE:
    torch.manual_seed(0)
    return VAE(replace(SMALL, **changes)).eval()


def mels(n: int = 2) -> torch.Tensor:
    return normal(n, 1, 32, 16)


def with_posterior(vae: VAE, mean: float, log_variance: float) -> VAE:
    """The VAE, whatever it hears, with this q(z | mel)."""
    C = vae.config.latent_channels
    torch.nn.init.zeros_(vae.quant_conv.weight)
    vae.quant_conv.bias.data = torch.tensor([mean] * C + [log_variance] * C)
    return vae


@torch.no_grad()
def test_each_level_after_the_first_halves_time_and_frequency():
    for widths, r in (((4,), 1), ((4, 8), 2), ((4, 8, 8), 4)):
        vae = made(block_out_channels=widths)
        assert vae.config.reduction == r
        z0 = vae.encode(mels())
        assert z0.shape == (2, 4, 32 // r, 16 // r)
        assert vae.decode(z0).shape == mels().shape


def test_the_decoder_has_one_residual_block_a_level_more_than_the_encoder():
    vae = made(layers_per_block=2)
    widths = [
        [(layer.conv1.in_channels, layer.conv1.out_channels) for layer in block.resnets]
        for block in (*vae.encoder.down_blocks, *vae.decoder.up_blocks)
    ]
    down = [[(4, 4), (4, 4)], [(4, 8), (8, 8)], [(8, 8), (8, 8)]]
    up = [3 * [(8, 8)], 3 * [(8, 8)], [(8, 4), (4, 4), (4, 4)]]
    assert widths == down + up


@torch.no_grad()
def test_attention_reads_all_positions_of_the_normalised_map_and_adds_to_it():
    torch.manual_seed(0)
    layer = SpatialAttention(4, groups=2)
    torch.nn.init.normal_(layer.group_norm.weight)
    x = 1e-3 * normal(2, 4, 3, 2)  # so small that the epsilon counts
    h = F.group_norm(x, 2, layer.group_norm.weight, layer.group_norm.bias, eps=1e-6)
    wanted = torch.empty_like(x)
    for b in range(2):
        rows = h[b].permute(1, 2, 0).reshape(6, 4)  # time before frequency
        q, k, v = layer.to_q(rows), layer.to_k(rows), layer.to_v(rows)
        read = torch.softmax(q @ k.T / math.sqrt(4), dim=1) @ v
        wanted[b] = x[b] + layer.to_out[0](read).reshape(3, 2, 4).permute(2, 0, 1)
    torch.testing.assert_close(layer(x), wanted)


@torch.no_grad()
def test_the_middle_is_a_residual_block_attention_and_another_residual_block():
    torch.manual_seed(0)
    middle, x = MidBlock(4, groups=2), normal(1, 4, 3, 2)
    first, second = middle.resnets
    torch.testing.assert_close(middle(x), second(middle.attentions[0](first(x))))


@torch.no_grad()
def test_encoder_and_decoder_go_through_their_layers_in_order():
    vae, mel, z = made(), mels(), normal(2, 4, 8, 4)
    for part, x in ((vae.encoder, mel), (vae.decoder, z)):
        h = part.conv_in(x)
        if isinstance(part, Encoder):
            for block in part.down_blocks[:2]:
                h = block.downsamplers[0](block.resnets[0](h))
            h = part.mid_block(part.down_blocks[2].resnets[0](h))
        else:
            h = part.mid_block(h)
            for block in part.up_blocks[:2]:
                h = block.upsamplers[0](block.resnets[1](block.resnets[0](h)))
            h = part.up_blocks[2].resnets[1](part.up_blocks[2].resnets[0](h))
        wanted = part.conv_out(F.silu(part.conv_norm_out(h)))
        torch.testing.assert_close(part(x), wanted)


def test_every_normalisation_has_the_epsilon_of_autoencoderkl():
    norms = [m for m in made().modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {(norm.eps, norm.num_groups) for norm in norms} == {(1e-6, 4)}


@torch.no_grad()
def test_the_scaled_latent_is_the_posteriors_mean_or_a_draw_from_it():
    vae, eps = made(), normal(2, 4, 8, 4)
    mean, log_variance = vae.moments(mels())
    torch.testing.assert_close(vae.encode(mels()), 0.5 * mean)
    draw = mean + log_variance.exp().sqrt() * eps
    torch.testing.assert_close(vae.encode(mels(), eps), 0.5 * draw)
    torch.testing.assert_close(vae.decode(0.5 * draw), vae.restore(draw))
    torch.testing.assert_close(vae(mels()), vae.restore(mean))


@torch.no_grad()
def test_the_log_variance_stays_where_its_exponential_is_finite():
    for given, kept in ((-99.0, -30.0), (-29.0, -29.0), (19.0, 19.0), (99.0, 20.0)):
        mean, log_variance = with_posterior(made(), -99.0, given).moments(mels())
        assert (mean == -99.0).all() and (log_variance == kept).all()


@pytest.mark.parametrize("shape", [(1, 1, 34, 16), (1, 1, 32, 18), (1, 32, 16)])
def test_a_mel_that_the_levels_cannot_halve_is_refused(shape):
    with pytest.raises(ValueError, match="T and F multiples of 4, not .*1, "):
        made().encode(torch.zeros(shape))


@torch.no_grad()
def test_the_kl_term_is_that_of_two_gaussians():
    vae = made()
    mean, log_variance = vae.moments(mels())
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    loss = vae.loss({"mel": mels(), "eps": torch.zeros_like(mean)})
    expected = torch.distributions.kl_divergence(q, prior).mean()
    torch.testing.assert_close(loss["kl"], expected)
    vae = with_posterior(vae, 3.0, 0.0)  # half the square of the mean
    assert vae.loss({"mel": mels(), "eps": mean})["kl"].item() == pytest.approx(4.5)


@torch.no_grad()
def test_the_loss_is_the_error_of_a_draw_and_a_little_of_the_kl_term():
    vae, eps = made(kl_weight=0.25), normal(2, 4, 8, 4)
    loss = vae.loss({"mel": mels(), "eps": eps})
    restored = vae.decode(vae.encode(mels(), eps))
    torch.testing.assert_close(loss["l1"], (restored - mels()).abs().mean())
    torch.testing.assert_close(loss["loss"], loss["l1"] + 0.25 * loss["kl"])


def test_the_loss_reaches_every_weight_and_its_parts_none():
    vae = made()
    loss = vae.loss({"mel": mels(), "eps": normal(2, 4, 8, 4)})
    loss["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters() if p.ndim > 1)
    assert not loss["l1"].requires_grad and not loss["kl"].requires_grad


@pytest.mark.parametrize("final_norm", [True, False])
def test_the_final_norm_forgets_how_loud_a_mel_is(final_norm):
    """Without the branches of the residual blocks, the way to the latent is linear but
    for the final SiLU and norm.
    """
    vae = made(final_norm=final_norm)
    for name, parameter in vae.named_parameters():
        if name.endswith("bias") or "conv2.weight" in name or "to_out" in name:
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        ways = ((vae.encode, 9.0 * mels()), (vae.decode, 9.0 * normal(2, 4, 8, 4)))
        for way, x in ways:
            once, twice = way(x), way(2.0 * x)
            assert ((twice - once).abs().max() < 0.01 * once.abs().max()) == final_norm
    assert (
        any("conv_norm_out" in name for name, _ in vae.named_parameters()) == final_norm
    )


@torch.no_grad()
def test_a_centred_vae_takes_log_mels_as_a_fresh_one_takes_normal_noise():
    vae, fresh, z = made(), made(), normal(2, 4, 8, 4)
    centre(vae, mean=-7.0, std=3.0)
    # zeros that pad the edges are not the mean, so the inside is compared
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    given = vae.encoder.conv_in(3.0 * mels() - 7.0)[inside]
    torch.testing.assert_close(given, fresh.encoder.conv_in(mels())[inside])
    bias = fresh.decoder.conv_out.bias[:, None, None]
    wanted = 3.0 * (fresh.restore(z) - bias) - 7.0
    torch.testing.assert_close(vae.restore(z), wanted)


@torch.no_grad()
def test_a_standardised_vae_decodes_the_same_from_latents_of_another_scale():
    vae, same, eps = made(), made(), normal(2, 4, 8, 4)
    mean, std = torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([0.5, 2.0, 3.0, 1.0])
    standardise(vae, mean, std)
    # every draw from the posterior, its deviation too; scaled by 0.5 on either side
    draw, column = 2.0 * same.encode(mels(), eps), (slice(None), None, None)
    wanted = (draw - mean[column]) / std[column]
    torch.testing.assert_close(2.0 * vae.encode(mels(), eps), wanted)
    torch.testing.assert_close(vae(mels()), same(mels()))


def quantised(**changes) -> VQVAE:
    torch.manual_seed(0)
    sizes = {k: getattr(SMALL, k) for k in SMALL.__dataclass_fields__}
    return VQVAE(VQVAEConfig(**sizes | {"n_codes": 16} | changes)).eval()


@torch.no_grad()
def test_the_latent_of_a_quantising_autoencoder_is_the_vector_before_the_quantiser():
    vae, mel = quantised(), mels()
    vae.train().loss({"mel": mel})  # from now on its codes lie among its latents
    vae.eval()
    z = vae.quant_conv(vae.encoder(mel))
    assert z.shape == (2, 4, 8, 4)  # C channels, not 2C
    torch.testing.assert_close(vae.encode(mel), 0.5 * z)
    torch.testing.assert_close(vae.encode(mel, normal(2, 4, 8, 4)), 0.5 * z)
    nearest = vae.quantize.decode(vae.quantize.encode(z.movedim(1, -1))).movedim(-1, 1)
    assert not torch.allclose(nearest, z, atol=0.01)
    # the decoder quantises first: a latent beside a code is that code
    wanted = vae.decoder(vae.post_quant_conv(nearest))
    torch.testing.assert_close(vae.decode(0.5 * z), wanted)
    torch.testing.assert_close(vae.decode(0.5 * nearest), wanted)
    torch.testing.assert_close(vae(mel), wanted)
    made = vae.quantise(z)
    torch.testing.assert_close(made.vectors, nearest)
    assert made.codes.shape == (2, 8, 4)


@torch.no_grad()
def test_the_latent_of_a_quantising_autoencoder_is_certain():
    z, log_variance = quantised().moments(mels())
    assert z.shape == log_variance.shape and (log_variance == -30.0).all()


def test_the_loss_of_a_quantising_autoencoder_reaches_every_weight_but_its_codes():
    vae = quantised().train()
    loss = vae.loss({"mel": mels()})
    apart = (vae(mels()) - mels()).abs().mean()
    assert loss["l1"].item() == pytest.approx(apart.item(), rel=0.2)
    torch.testing.assert_close(loss["loss"], loss["l1"] + loss["vq"])
    loss["loss"].backward()
    learned = [p for p in vae.parameters() if p.requires_grad]
    assert all(p.grad.abs().sum() > 0 for p in learned if p.ndim > 1)
    assert len(learned) + 1 == len(list(vae.parameters()))
    assert not loss["l1"].requires_grad and not loss["vq"].requires_grad


def test_the_quantiser_is_given_what_the_config_says():
    vae = quantised(n_codes=7, beta=0.5, decay=0.9, restart=0.2)
    quantize = vae.quantize
    assert quantize.embedding.weight.shape == (7, 4)
    given = quantize.beta, quantize.decay, quantize.restart, quantize.seed
    assert given == (0.5, 0.9, 0.2, 0)


def test_a_quantising_autoencoder_comes_back_from_its_folder(tmp_path):
    vae = quantised().train()
    vae.loss({"mel": mels()})
    vae.save_pretrained(tmp_path)
    again = VQVAE.from_pretrained(tmp_path)
    assert again.config == vae.config
    state = again.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in vae.state_dict().items())
    for name in VQVAE.presets:
        assert isinstance(VQVAE.presets[name], VQVAEConfig)
