"""The vocoders' own ways.

HiFi-GAN's equality with transformers' is tested in parity/.
"""

import pytest
import torch

from minilib import audio
from minilib.vocoder import (
    LOUDEST,
    VOCODERS,
    HiFiGAN,
    HiFiGANConfig,
    Vocos,
    VocosConfig,
    soft_limit,
    spectral_loss,
    stft_distance,
    vocode,
)


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


def speaking(model: type) -> HiFiGAN | Vocos:
    """A vocoder whose random weights say something."""
    torch.manual_seed(0)
    narrow = HiFiGANConfig(upsample_initial_channel=64)
    broad = VocosConfig(dim=64, intermediate_dim=96, n_layer=4)
    vocoder = model(narrow if model is HiFiGAN else broad).eval()
    for parameter in vocoder.parameters():
        if parameter.dim() > 1:
            # else all it says is silence
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return vocoder


@pytest.mark.parametrize("model", [HiFiGAN, Vocos])
def test_pieces_make_the_waveform_of_the_whole(model, monkeypatch):
    vocoder = speaking(model)
    for n_frames in (20, 100, 120):
        log_mel = torch.randn(2, 1, n_frames, 64) - 8
        with torch.no_grad():
            whole = vocode(vocoder, log_mel, frames=10**9)
            pieces = vocode(vocoder, log_mel, frames=50)
        assert whole.std() > 1e-4 and pieces.shape == whole.shape
        close = 1e-5 * float(whole.abs().max())
        torch.testing.assert_close(pieces, whole, rtol=0, atol=close)
    # with too little of the surroundings it is no longer the same
    monkeypatch.setattr(type(vocoder.config), "context", 3)
    with torch.no_grad():
        short = vocode(vocoder, log_mel, frames=50)
    assert (short - whole).abs().max() > 1e-4 * whole.abs().max()


@pytest.mark.parametrize("model", [HiFiGAN, Vocos])
def test_the_context_is_all_that_a_sample_depends_on_and_hardly_more(model):
    vocoder, frames = speaking(model), 130
    context, middle = vocoder.config.context, frames // 2
    log_mel = torch.randn(1, 1, frames, 64, dtype=torch.float64) - 8
    other = log_mel.clone()
    other[:, :, middle] += 1.0
    with torch.no_grad():
        waves = [vocoder.double().unlimited(x)[0] for x in (log_mel, other)]
    changed = ((waves[0] - waves[1]).abs() > 1e-12).nonzero()
    before = middle - int(changed.min()) // audio.HOP
    after = int(changed.max()) // audio.HOP - middle
    assert max(before, after) <= context <= max(before, after) + 4


def test_what_is_cut_into_pieces_is_heard_once(monkeypatch):
    """No sample comes from two pieces, and each piece gets the frames that it needs."""
    vocoder, given = speaking(Vocos), []
    real = vocoder.unlimited
    noted = lambda x: given.append(x.shape[2]) or real(x)
    monkeypatch.setattr(vocoder, "unlimited", noted)
    context = vocoder.config.context
    with torch.no_grad():
        vocode(vocoder, torch.zeros(1, 1, 130, 64), frames=60)
    assert given == [60 + context, min(60, context) + 60 + 10, context + 10]


def test_each_vocoder_says_a_written_mel_as_it_should():
    mel = torch.randn(2, 1, 12, 64) + 4  # far louder than any recording
    with torch.no_grad():
        hifigan, vocos = speaking(HiFiGAN), speaking(Vocos)
        assert torch.equal(hifigan.wave(mel), hifigan(mel))
        assert torch.equal(hifigan.unlimited(mel), hifigan(mel))
        assert torch.equal(vocode(hifigan, mel), hifigan(mel))
        loudest = vocos.unlimited(mel.clamp(max=LOUDEST))
        assert torch.equal(vocos.wave(mel), loudest) and (mel > LOUDEST).any()


def test_every_preset_has_a_vocoder():
    assert all(preset in kind.presets for preset, kind in VOCODERS.items())
    assert set(VOCODERS) == {"tiny", "colab", "full"}


def test_the_loss_is_hifigans_mel_term_and_parallel_wavegans_at_three_resolutions():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 8000, generator=generator) - 0.5 for _ in range(2))
    mel = audio.log_mel(b)
    losses = spectral_loss(a, b, mel)
    mel_l1 = (audio.log_mel(a) - mel).abs().mean()
    found = []
    for n_fft in (256, 512, 2048):
        window = torch.hann_window(n_fft)
        spectra = (
            torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True).abs()
            for x in (a, b)
        )
        x, y = (magnitude.clamp(min=1e-4) for magnitude in spectra)
        # as in 1910.11480: Frobenius norms, then a mean of logarithms
        convergence = (x - y).square().sum((1, 2)).sqrt() / y.square().sum(
            (1, 2)
        ).sqrt()
        found.append(convergence.mean() + (x / y).log().abs().mean())
        torch.testing.assert_close(stft_distance(a, b, n_fft), found[-1])
    torch.testing.assert_close(losses["mel_l1"], mel_l1)
    torch.testing.assert_close(losses["stft"], sum(found) / 3)
    torch.testing.assert_close(losses["loss"], mel_l1 + sum(found) / 3)
    assert stft_distance(b, b, 512) == 0


@pytest.mark.parametrize("model", [HiFiGAN, Vocos])
def test_the_loss_of_a_vocoder_hears_its_wave_before_any_limit(model):
    vocoder, wave = speaking(model), torch.rand(1, 20 * audio.HOP) - 0.5
    mel = audio.log_mel(wave)
    heard = vocoder.unlimited(mel)[:, : wave.shape[1]]
    expected, found = (
        spectral_loss(heard, wave, mel),
        vocoder.loss({"wave": wave, "mel": mel}),
    )
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_an_untrained_vocos_already_puts_sound_where_the_mel_has_it():
    """Its magnitudes are those of the pseudo-inverse, corrected by little."""
    vocoder = small()
    with torch.no_grad():
        vocoder.head.weight.zero_()
        vocoder.head.bias.zero_()
        vocoder.head.bias[513:1026] = 1.0  # real parts: no correction, phase 0
        n = torch.arange(8000) / audio.SAMPLE_RATE
        mel = audio.log_mel(0.3 * torch.sin(2 * torch.pi * 1000 * n)[None])
        spectrum = vocoder.spectrum(mel)
    guess = audio.mel_to_linear(mel).clamp(min=1e-5)
    torch.testing.assert_close(spectrum.real, guess, rtol=1e-4, atol=0)
    assert spectrum.imag.abs().max() == 0 and spectrum.shape == (1, 50, 513)


def test_the_network_of_vocos_sees_about_unit_variance_and_begins_with_small_changes():
    vocoder, seen = speaking(Vocos), []
    vocoder.embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    mel = 3 * torch.randn(1, 1, 400, 64) - 7
    with torch.no_grad():
        vocoder.spectrum(mel)
    assert abs(seen[0].mean()) < 0.02 and abs(seen[0].std() - 1) < 0.02
    assert all(torch.equal(b.gamma, torch.full((64,), 0.25)) for b in vocoder.convnext)


def test_the_two_parts_of_the_phase_never_change_the_magnitude():
    vocoder, mel = small(), torch.randn(1, 1, 20, 64) - 6
    with torch.no_grad():
        before = vocoder.spectrum(mel).abs()
        vocoder.head.weight[513:] *= 3.0
        vocoder.head.bias[513:] *= 3.0
        torch.testing.assert_close(
            vocoder.spectrum(mel).abs(), before, rtol=1e-3, atol=1e-6
        )
        vocoder.head.bias[:513] += 1.0
        louder = vocoder.spectrum(mel).abs() / before
    torch.testing.assert_close(
        louder, torch.full_like(louder, torch.e), rtol=1e-3, atol=0
    )


def test_a_sound_that_is_too_loud_is_turned_down_and_not_bent():
    torch.manual_seed(0)
    vocoder = Vocos.preset("tiny").eval()
    n = torch.arange(16000) / audio.SAMPLE_RATE
    sine = torch.sin(2 * torch.pi * 1000 * n)
    tone = audio.log_mel(torch.tensor([[0.2], [1.0]]) * sine) + 0.5
    tone[1, :, 40:60, 40:] = 7.0  # no wave within [-1, 1] has this
    with torch.no_grad():
        whole = vocoder.unlimited(tone.clamp(max=LOUDEST))
        quiet, loud = vocode(vocoder, tone)
    peak = whole.abs().amax(dim=1)
    assert peak[0] < 1 < peak[1]
    assert torch.equal(quiet, whole[0])
    torch.testing.assert_close(loud, whole[1] / peak[1])


@pytest.mark.parametrize("model", [HiFiGAN, Vocos])
def test_a_log_mel_that_is_constant_in_time_repeats_with_every_hop(model):
    """Both do the same at every frame: from such a log-mel no other pitch is possible
    than the multiples of 100 Hz.
    """
    vocoder = speaking(model)
    mel = torch.randn(1, 1, 1, 64, generator=torch.Generator().manual_seed(0)) - 7
    with torch.no_grad():
        wave = vocoder.unlimited(mel.expand(1, 1, 120, 64))[0]
    middle = wave[50 * audio.HOP : 70 * audio.HOP].view(20, audio.HOP)
    assert (middle - middle[0]).abs().max() < 1e-4 * middle.abs().max()
    assert middle[0].std() > 1e-2 * middle.abs().max() > 0


def test_the_first_odd_stair_makes_the_32_samples_too_many():
    mel = torch.zeros(1, 1, 10, 64)
    with torch.no_grad():
        for first, extra in ((16, 32), (15, 0), (17, 0)):
            config = HiFiGANConfig(
                upsample_initial_channel=32, upsample_kernel_sizes=(first, 16, 8, 4, 4)
            )
            assert HiFiGAN(config)(mel).shape == (1, 10 * audio.HOP + extra)
