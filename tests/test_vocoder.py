"""The vocoders' own ways.

HiFi-GAN's equality with transformers' is tested in parity/.
"""

import pytest
import torch

from minilib import audio
from minilib.vocoder import LOUDEST, HiFiGAN, Vocos, VocosConfig, soft_limit, vocode


def small() -> Vocos:
    torch.manual_seed(0)
    return Vocos(VocosConfig(dim=16, intermediate_dim=32, n_layer=1))


def test_the_limiter_leaves_what_is_below_the_knee_and_bends_the_rest():
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    y = soft_limit(x)
    assert torch.equal(y[x.abs() <= 0.8], x[x.abs() <= 0.8])
    # never clipped, and louder stays louder
    assert y.abs().max() < 1 and (y.diff() > 0).all()
    torch.testing.assert_close(y, -y.flip(0))
    slope = y.diff() / x.diff()
    assert (slope.diff().abs() < 0.02).all()  # no corner, so no crackle


def test_a_wave_fits_its_mel_and_never_leaves_its_range():
    # far louder than any recording
    vocoder, mel = small(), torch.full((2, 1, 20, audio.N_MELS), 6.0)
    wave = vocoder(mel)
    assert wave.shape == (2, 20 * audio.HOP) and wave.abs().max() <= 1
    assert torch.equal(wave, soft_limit(vocoder.unlimited(mel)))


def test_the_loss_sees_by_how_much_a_sound_is_too_loud():
    """Behind the limiter every wave that is too loud would look alike, and the gradient
    there would vanish.
    """
    vocoder, mel = small(), torch.full((1, 1, 20, audio.N_MELS), 6.0)
    error = lambda wave: (audio.log_mel(wave) - mel).abs().mean()
    with torch.no_grad():
        loss = vocoder.loss({"mel": mel, "wave": torch.zeros(1, 20 * audio.HOP)})[
            "mel_l1"
        ]
        torch.testing.assert_close(loss, error(vocoder.unlimited(mel)))
        assert (error(vocoder(mel)) - loss).abs() > 0.5


@pytest.mark.parametrize("model", [HiFiGAN, Vocos])
@pytest.mark.parametrize("n_frames", [40, 250, 300])
def test_pieces_make_the_waveform_of_the_whole(model, n_frames):
    torch.manual_seed(0)
    vocoder = model.preset("tiny").eval()
    for parameter in vocoder.parameters():
        if parameter.dim() > 1:
            # else all it says is silence
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    log_mel = torch.randn(2, 1, n_frames, 64) - 8
    with torch.no_grad():
        whole, pieces = (
            vocode(vocoder, log_mel, frames=10**9),
            vocode(vocoder, log_mel, frames=100),
        )
        assert whole.std() > 1e-4 and pieces.shape == whole.shape
        torch.testing.assert_close(
            pieces, whole, rtol=0, atol=1e-5 * float(whole.abs().max())
        )
        if model is HiFiGAN:
            assert torch.equal(whole, vocoder(log_mel))
        # with too little of the surroundings it is no longer the same
        if n_frames > 200:
            model_context, model.context = model.context, 3
            short = vocode(vocoder, log_mel, frames=100)
            model.context = model_context
            assert (short - whole).abs().max() > 1e-4 * whole.abs().max()


def test_a_sound_that_is_too_loud_is_turned_down_and_not_bent():
    torch.manual_seed(0)
    vocoder = Vocos.preset("tiny").eval()
    n = torch.arange(32000) / audio.SAMPLE_RATE
    tone = (
        audio.log_mel(torch.tensor([[0.2], [1.0]]) * torch.sin(2 * torch.pi * 1000 * n))
        + 0.5
    )
    tone[1, :, 80:120, 40:] = 7.0  # no wave within [-1, 1] has this
    with torch.no_grad():
        whole = vocoder.unlimited(tone.clamp(max=LOUDEST))
        quiet, loud = vocode(vocoder, tone)
    peak = whole.abs().amax(dim=1)
    assert peak[0] < 1 < peak[1]
    assert torch.equal(quiet, whole[0])
    torch.testing.assert_close(loud, whole[1] / peak[1])
