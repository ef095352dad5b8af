"""The decoder that works in pieces gives what the whole one gives, whatever the
pieces.
"""

import pytest
import torch

from minilib import lean
from minilib.vae import VAE, VAEConfig


def made(**changes) -> VAE:
    """A small VAE whose norms and biases differ from those of a fresh one."""
    torch.manual_seed(0)
    config = VAEConfig(
        latent_channels=4, block_out_channels=(8, 16, 16), norm_num_groups=4, **changes
    )
    vae = VAE(config)
    for name, parameter in vae.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(
                parameter, mean=float("norm" in name and "weight" in name), std=0.5
            )
    return vae.eval()


@pytest.mark.parametrize(
    "piece", [1, 3000, 2**19], ids=["row by row", "some pieces", "one piece"]
)
@pytest.mark.parametrize("final_norm", [True, False])
def test_decoding_in_pieces_is_decoding(monkeypatch, piece, final_norm):
    monkeypatch.setattr(lean, "PIECE", piece)
    vae = made(final_norm=final_norm, layers_per_block=1, scaling_factor=0.5)
    z0 = torch.randn(2, 4, 26, 8)
    whole = vae.decode(z0).detach()
    atol = 1e-5 * float(whole.abs().max())
    torch.testing.assert_close(lean.decode(vae, z0), whole, rtol=1e-4, atol=atol)


def test_what_is_decoded_stays_as_it_was_and_has_no_gradient():
    vae, z0 = made(), torch.randn(1, 4, 6, 4)
    before = z0.clone()
    assert not lean.decode(vae, z0).requires_grad
    assert torch.equal(z0, before)


def test_statistics_of_pieces_are_those_of_the_whole_where_the_mean_is_large(
    monkeypatch,
):
    monkeypatch.setattr(lean, "PIECE", 200)
    norm = torch.nn.GroupNorm(2, 4, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    # each piece has a mean of its own
    x = 0.1 * torch.randn(2, 4, 37, 5) + torch.linspace(-9, 9, 37)[:, None]
    scale, shift = lean.scale_and_shift(norm, x)
    torch.testing.assert_close(x * scale + shift, norm(x), rtol=1e-5, atol=1e-5)


def test_doubled_is_the_convolution_of_the_repeated_map(monkeypatch):
    monkeypatch.setattr(lean, "PIECE", 60)
    conv, x = torch.nn.Conv2d(5, 3, 3, padding=1), torch.randn(2, 5, 7, 3)
    wanted = conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    with torch.no_grad():
        torch.testing.assert_close(lean.doubled(conv, x), wanted)


def test_bfloat16_stays_bfloat16_and_near():
    vae, z0 = made(), torch.randn(1, 4, 8, 4)
    whole = vae.decode(z0)
    low = lean.decode(vae.to(torch.bfloat16), z0.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert (low.float() - whole).abs().mean() < 0.05 * whole.abs().mean()
