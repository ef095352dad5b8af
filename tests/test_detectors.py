"""Pitch, speed, loudness and onsets of sounds whose truth is known (chapter 17)."""

import math

import numpy as np
import pytest
import torch

from minilib import audio, detectors
from minilib.detectors import Pattern, Strokes

RATE = audio.SAMPLE_RATE
LEVELS = (200.0, 400.0, 800.0)
N = 40960  # samples: 2.56 s


def noise(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def tone(f0: float, n_harmonics: int = 6) -> torch.Tensor:
    """A tone whose harmonics are all as strong: its octave is easily mistaken."""
    phase = 2 * math.pi * f0 * torch.arange(N, dtype=torch.float64) / RATE
    wave = sum(torch.sin(k * phase) for k in range(1, n_harmonics + 1))
    return (0.1 * wave).float() + 1e-4 * noise()


def strokes(times, decay: float = 0.03) -> torch.Tensor:
    """Noise bursts that begin at `times` (seconds) and die away."""
    wave = 1e-4 * noise()
    for k, time in enumerate(times):
        start = round(time * RATE)
        fall = torch.exp(-torch.arange(N - start) / (decay * RATE))
        wave[start:] += 0.3 * noise(N - start, seed=k + 1) * fall
    return wave


def mel(wave: torch.Tensor) -> torch.Tensor:
    return audio.log_mel(wave[None])[0, 0]


def smeared(wave: torch.Tensor, seconds: float, seed: int = 9) -> torch.Tensor:
    """The wave with every moment spread over `seconds`, by a burst of noise that swells
    and falls.
    """
    n = round(seconds * RATE)
    spread = noise(n, seed) * torch.hann_window(n)
    size = 2 * len(wave)
    smear = torch.fft.irfft(
        torch.fft.rfft(wave, size) * torch.fft.rfft(spread, size), size
    )[: len(wave)]
    return smear * (wave.abs().max() / smear.abs().max())


def cents(found: float, true: float) -> float:
    return abs(1200 * math.log2(found / true))


# --------------------------------------------------------------------------------------
# Pitch


@pytest.fixture(scope="module")
def pitches() -> Pattern:
    hz = [f0 * 2**octaves for f0 in LEVELS for octaves in (-0.02, 0.0, 0.02)]
    return Pattern.of(
        detectors.spectrum(torch.stack([tone(f0) for f0 in hz])), hz, LEVELS
    )


@pytest.mark.parametrize(
    "f0", [165.0, 200.0, 213.0, 371.0, 400.0, 455.0, 800.0, 1010.0]
)
def test_a_tone_is_found_at_its_pitch_and_not_at_its_octave(pitches, f0):
    assert cents(pitches.find(detectors.spectrum(tone(f0)[None])[0]), f0) < 15
    assert cents(pitches.find(detectors.spectrum(0.01 * tone(f0)[None])[0]), f0) < 15


@pytest.mark.filterwarnings("error")
def test_noise_silence_and_a_tone_far_from_every_level_have_no_pitch(pitches):
    for wave in (noise(), torch.zeros(N), tone(100.0), tone(2000.0), tone(282.0)):
        assert math.isnan(pitches.find(detectors.spectrum(wave[None])[0]))


def test_a_pattern_that_would_fit_better_beyond_its_reach_is_not_found():
    def hump(f0: float) -> np.ndarray:  # an octave wide
        bands = np.arange(192) - 24 * math.log2(f0 / 30)
        return detectors.unit(np.exp(-0.5 * np.square(bands / 12)))

    pattern = Pattern.of(
        np.stack([hump(300.0), hump(1500.0)]), (300.0, 1500.0), (300.0, 1500.0)
    )
    assert cents(pattern.find(hump(300 * 2**0.3)), 300 * 2**0.3) < 15
    beyond = hump(300 * 2**0.6)
    assert pattern.likeness(beyond) > detectors.LIKENESS and math.isnan(
        pattern.find(beyond)
    )


def test_spectra_slide_to_their_level_before_they_are_averaged():
    """A class that varies by 0.2 octaves has a pattern as sharp as one that doesn't
    vary.
    """
    varied = [400 * 2**octaves for octaves in (-0.2, -0.1, 0.0, 0.1, 0.2)]
    pattern = Pattern.of(
        detectors.spectrum(torch.stack([tone(f0) for f0 in varied])),
        varied,
        (400.0, 1600.0)[:1],
    )
    assert pattern.likeness(detectors.spectrum(tone(400.0)[None])[0]) > 0.95


def test_the_nearest_level_is_measured_in_octaves():
    assert [
        detectors.nearest(value, LEVELS) for value in (10, 282, 284, 565, 567, 1e4)
    ] == [0, 0, 1, 1, 2, 2]
    assert detectors.nearest(math.nan, LEVELS) == -1


# --------------------------------------------------------------------------------------
# Speed


def test_the_rate_of_a_throbbing_noise_is_found():
    def throb(rate: float, seed: int = 0) -> torch.Tensor:
        seconds = torch.arange(N) / RATE
        return (
            noise(N, seed) * (0.1 + torch.cos(math.pi * rate * seconds).square()) ** 2
        )

    hz = [
        rate * 2**octaves for rate in (2.0, 4.0, 8.0) for octaves in (-0.02, 0.0, 0.02)
    ]
    spectra = np.stack([detectors.modulation(mel(throb(rate))) for rate in hz])
    pattern = Pattern.of(spectra, hz, (2.0, 4.0, 8.0))
    for rate in (1.7, 2.0, 4.5, 8.0, 9.1):
        assert pattern.find(
            detectors.modulation(mel(throb(rate, seed=1)))
        ) == pytest.approx(rate, rel=0.04)
    assert math.isnan(pattern.find(detectors.modulation(mel(noise()))))


def test_burstiness_falls_as_one_over_the_rate_of_grains():
    def grains(rate: float) -> float:
        found = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            wave = torch.zeros(N)
            wave[rng.integers(0, N, rng.poisson(rate * N / RATE))] = 1.0
            found.append(detectors.burstiness(wave))
        return float(np.mean(found))

    assert grains(20) - grains(80) == pytest.approx(math.log(4), abs=0.15)
    assert detectors.burstiness(torch.zeros(N)) < -20


def test_tempo_is_that_of_the_beat_with_a_pair_of_eighths_and_two_halves():
    beats = np.array([0, 1, 2, 2.5, 3, 4, 6, 7, 9])
    assert detectors.tempo(0.1 + beats / 3.1) == pytest.approx(3.1)
    assert math.isnan(detectors.tempo(np.array([0.3])))


# --------------------------------------------------------------------------------------
# Onsets


TIMES = (0.1, 0.42, 0.77, 1.05)


@pytest.fixture(scope="module")
def known() -> Strokes:
    mels = torch.stack([mel(strokes(times)) for times in ((0.2,), (0.1, 0.5), TIMES)])
    return Strokes.of(mels, ((0.2,), (0.1, 0.5), TIMES), interval=0.33)


@pytest.mark.parametrize("gain", [1.0, 0.003])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_strokes_are_counted_and_timed_to_ten_milliseconds(known, n, gain):
    found = known.find(mel(gain * strokes(TIMES[:n])))
    assert (
        np.allclose(found, TIMES[:n], atol=0.011)
        if len(found) == n
        else pytest.fail(f"{len(found)} strokes")
    )


def test_what_rises_by_less_than_is_asked_is_no_onset():
    sharp = mel(strokes([0.5]))
    rise = detectors.onset_strength(sharp, interval=0.33).max()
    assert len(detectors.onsets(sharp, interval=0.33, rise=0.99 * rise)) == 1
    assert len(detectors.onsets(sharp, interval=0.33, rise=1.01 * rise)) == 0


def test_the_time_that_a_stroke_takes_to_rise_is_measured_and_taken_off():
    # as if these strokes had a slow beginning
    earlier = [time - 0.04 for time in TIMES]
    slow = Strokes.of(mel(strokes(TIMES))[None], [earlier], interval=0.33)
    assert np.allclose(slow.find(mel(strokes(TIMES[:2]))), earlier[:2], atol=0.011)


def test_strokes_that_ring_into_each_other_are_counted(known):
    ringing = Strokes.of(
        torch.stack([mel(strokes(TIMES, decay=0.4))]), [TIMES], interval=0.33
    )
    assert len(ringing.find(mel(strokes([0.1, 0.45, 0.8], decay=0.4)))) == 3


def test_a_smear_a_steady_noise_and_silence_have_no_strokes(known):
    assert len(known.find(mel(smeared(strokes(TIMES), 1.0)))) <= 1
    assert len(known.find(mel(0.1 * noise()))) == 0
    assert len(known.find(mel(torch.zeros(N)))) == 0


def test_peaks_nearer_than_six_tenths_of_the_interval_are_one():
    sharp = mel(strokes([0.5, 0.65]))
    assert len(detectors.onsets(sharp, interval=0.15, rise=0.3)) == 2
    assert len(detectors.onsets(sharp, interval=0.4, rise=0.3)) == 1
