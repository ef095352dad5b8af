"""The vocoders' own ways. HiFi-GAN's equality with transformers' is tested in parity/."""

import torch

from minilib import audio
from minilib.vocoder import Vocos, VocosConfig, soft_limit


def small() -> Vocos:
    torch.manual_seed(0)
    return Vocos(VocosConfig(dim=16, intermediate_dim=32, n_layer=1))


def test_the_limiter_leaves_what_is_below_the_knee_and_bends_the_rest():
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    y = soft_limit(x)
    assert torch.equal(y[x.abs() <= 0.8], x[x.abs() <= 0.8])
    assert y.abs().max() < 1 and (y.diff() > 0).all()  # never clipped, and louder stays louder
    torch.testing.assert_close(y, -y.flip(0))
    slope = y.diff() / x.diff()
    assert (slope.diff().abs() < 0.02).all()  # no corner, so no crackle


def test_a_wave_fits_its_mel_and_never_leaves_its_range():
    vocoder, mel = small(), torch.full((2, 1, 20, audio.N_MELS), 6.0)  # far louder than any recording
    wave = vocoder(mel)
    assert wave.shape == (2, 20 * audio.HOP) and wave.abs().max() <= 1
    assert torch.equal(wave, soft_limit(vocoder.unlimited(mel)))


def test_the_loss_sees_by_how_much_a_sound_is_too_loud():
    """Behind the limiter every wave that is too loud would look alike, and the gradient there would vanish."""
    vocoder, mel = small(), torch.full((1, 1, 20, audio.N_MELS), 6.0)
    error = lambda wave: (audio.log_mel(wave) - mel).abs().mean()
    with torch.no_grad():
        loss = vocoder.loss({"mel": mel, "wave": torch.zeros(1, 20 * audio.HOP)})["mel_l1"]
        torch.testing.assert_close(loss, error(vocoder.unlimited(mel)))
        assert (error(vocoder(mel)) - loss).abs() > 0.5
