"""One latent and several conditions: what guidance asks of the U-Net."""

from dataclasses import replace

import pytest
import torch

from minilib.unet import UNet


@pytest.mark.parametrize(
    "loa_channels", [0, 8], ids=["as released", "with a map of the LOA"]
)
def test_several_conditions_of_a_latent_are_several_latents_with_one_each(loa_channels):
    torch.manual_seed(0)
    config = replace(
        UNet.presets["tiny"],
        in_channels=4,
        block_out_channels=(8, 16, 16),
        attention=(False, True, True),
        cross_attention_dim=(None, 12, 10),
        loa_channels=loa_channels,
    )
    unet = UNet(config).eval()
    zt, t = torch.randn(2, 4, 16, 8), torch.tensor([30, 700])
    loa, text = torch.randn(6, 16, 12), torch.randn(6, 5, 10)
    mask = torch.rand(6, 5) < 0.8
    with torch.no_grad():
        once = unet(zt, t, (loa, None), (text, mask))
        thrice = unet(zt.repeat(3, 1, 1, 1), t.repeat(3), (loa, None), (text, mask))
    torch.testing.assert_close(once, thrice)
    assert (once[:2] - once[2:4]).abs().mean() > 0.01  # the conditions do differ
