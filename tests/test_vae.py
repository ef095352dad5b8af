"""The VAE's own ways: packing, the scale of the latent, the loss.

Equality with diffusers is tested in parity/.
"""

from dataclasses import replace

import pytest
import torch

from minilib.vae import VAE, VAEConfig

PLAIN = VAEConfig(
    1, 4, (4, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
)


def pair() -> tuple[VAE, VAE]:
    """The same weights, once with the latent as it is and once packed 2 x 2."""
    torch.manual_seed(0)
    plain, packed = VAE(PLAIN).eval(), VAE(replace(PLAIN, pack=2)).eval()
    packed.load_state_dict(plain.state_dict())
    return plain, packed


def mels(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 1, 32, 16, generator=torch.Generator().manual_seed(1))


def test_packing_puts_the_same_numbers_on_a_smaller_grid():
    plain, packed = pair()
    with torch.no_grad():
        z, zp = plain.encode(mels()), packed.encode(mels())
    assert z.shape == (2, 4, 8, 4) and zp.shape == (2, 16, 4, 2)
    assert (
        packed.config.z_channels == 16
        and packed.config.reduction == 2 * plain.config.reduction == 8
    )
    assert torch.equal(z.flatten().sort().values, zp.flatten().sort().values)
    # a 2 x 2 neighbourhood is one vector
    assert torch.equal(zp[:, :4, 1, 1], z[:, 0, 2:4, 2:4].flatten(1))


def test_packing_changes_no_restored_mel_and_no_loss():
    plain, packed = pair()
    eps = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(packed(mels()), plain(mels()))
        ours = packed.loss(
            {"mel": mels(), "eps": torch.nn.functional.pixel_unshuffle(eps, 2)}
        )
        theirs = plain.loss({"mel": mels(), "eps": eps})
    for name in ("loss", "l1", "kl"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_packed_vae_asks_for_lengths_that_it_can_pack():
    _, packed = pair()
    with pytest.raises(ValueError, match="multiples of 8"):
        packed.encode(torch.zeros(1, 1, 36, 16))


def test_the_kl_term_is_that_of_two_gaussians():
    plain, _ = pair()
    with torch.no_grad():
        mean, log_variance = plain.moments(mels())
        q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        expected = torch.distributions.kl_divergence(
            q, torch.distributions.Normal(0.0, 1.0)
        ).mean()
        loss = plain.loss({"mel": mels(), "eps": torch.zeros_like(mean)})
    torch.testing.assert_close(loss["kl"], expected)
    torch.testing.assert_close(loss["loss"], loss["l1"] + PLAIN.kl_weight * loss["kl"])


def test_an_error_counts_less_where_both_mels_are_faint(monkeypatch):
    """The left half is made 2 nats too loud: from faint to faint, from loud to loud,
    from faint to heard.
    """
    vae, eps = (
        VAE(replace(PLAIN, kl_weight=0.0, faint_weight=0.2)).eval(),
        torch.zeros(1, 4, 8, 4),
    )
    for level, error, counted in (
        (-15.0, 2.0, 0.2),
        (1.0, 2.0, 1.0),
        (-15.0, 16.0, 1.0),
    ):
        mel = torch.full((1, 1, 32, 16), level)
        made = mel.clone()
        made[..., :8] += error
        monkeypatch.setattr(vae, "restore", lambda z, made=made: made)
        loss = vae.loss({"mel": mel, "eps": eps})
        assert loss["l1"].item() == pytest.approx(error / 2)
        assert loss["loss"].item() == pytest.approx(counted * error / 2, rel=0.01)


@pytest.mark.parametrize("final_norm", [True, False])
def test_the_final_norm_forgets_how_loud_a_mel_is(final_norm):
    """Without the branches of the residual blocks, the way to the latent is linear but
    for the final SiLU and norm.
    """
    torch.manual_seed(0)
    vae = VAE(replace(PLAIN, final_norm=final_norm)).eval()
    for name, parameter in vae.named_parameters():
        if name.endswith("bias") or "conv2.weight" in name or "to_out" in name:
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for way, x in (
            (vae.encode, 9.0 * mels()),
            (vae.decode, 9.0 * torch.randn(2, 4, 8, 4)),
        ):
            once, twice = way(x), way(2.0 * x)
            assert ((twice - once).abs().max() < 0.01 * once.abs().max()) == final_norm
    assert (
        any("conv_norm_out" in name for name, _ in vae.named_parameters()) == final_norm
    )
