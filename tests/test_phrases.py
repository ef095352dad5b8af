"""Phrases whose phonemes have their places, and the pitch that is heard in them."""

import numpy as np
import pytest
import torch

from minilib.soundworld.phrases import HOP, M_CLIP, SILENCE, pieces_of, say, track
from minilib.soundworld.talkers import TALKERS, Talker

pytest.importorskip("espeakng_loader")
TALKER = Talker("m3", 35)


def buzz(hz: np.ndarray) -> np.ndarray:
    """Harmonics of a pitch (N,) that moves."""
    phase = 2 * np.pi * np.cumsum(hz) / 16_000
    return sum(np.sin(k * phase) / k for k in range(1, 8)).astype(np.float32)


def test_every_frame_belongs_to_one_piece_in_the_order_of_the_phrase():
    phrase = say("window doctor seven", TALKER, 140, 0.04)
    assert phrase.pieces == pieces_of("window doctor seven")
    assert phrase.pieces[0] == phrase.pieces[-1] == SILENCE
    d = phrase.durations
    assert len(d) == len(phrase.pieces) and d.sum() == M_CLIP and (d >= 0).all()
    assert len(phrase.wave) == M_CLIP * HOP and len(phrase.log_f0) == M_CLIP
    power = np.square(phrase.wave.reshape(M_CLIP, HOP)).mean(axis=1)
    first, last = int(d[0]), int(d[:-1].sum())
    assert power[first:last].mean() > 100 * power[last + 4 :].max()
    assert power[: first - 1].max() == 0


def test_vowels_are_louder_than_the_consonants_beside_them():
    phrase = say("october", TALKER, 120, 0.02)
    power = np.square(phrase.wave.reshape(M_CLIP, HOP)).mean(axis=1)
    bounds = np.cumsum([0, *phrase.durations.tolist()])
    loud = {p: power[a:b].mean() for p, a, b in zip(phrase.pieces, bounds, bounds[1:])}
    assert loud["ˈoʊ"] > 3 * loud["k"] and loud["ˈoʊ"] > 3 * loud["t"]


def test_a_slower_rate_lengthens_the_phonemes_and_nothing_else():
    slow, fast = (say("narrow castle", TALKER, rate, 0.02) for rate in (110, 170))
    assert slow.pieces == fast.pieces
    assert slow.durations[1:-1].sum() > 1.3 * fast.durations[1:-1].sum()


def test_no_voice_changes_the_phonemes():
    told = {say("seven lions", talker, 140, 0.02).pieces for talker in TALKERS[::3]}
    assert told == {pieces_of("seven lions")}


def test_a_phrase_that_is_too_long_says_so():
    with pytest.raises(
        ValueError, match="^'winter window' lasts longer than 20 frames$"
    ):
        say("winter window", TALKER, 140, 0.02, M=20)


@pytest.mark.parametrize("hz", [80, 150, 240, 380])
def test_the_pitch_of_a_steady_buzz_is_exact_to_one_percent(hz):
    log_f0, voiced = track(buzz(np.full(9600, float(hz))))
    assert len(log_f0) == 30 and voiced[2:-2].all()
    assert (log_f0[2:-2].exp() / hz - 1).abs().max() < 0.02


def test_the_pitch_follows_a_glide_and_crosses_noise_in_a_line():
    hz = np.geomspace(100, 200, 16_000)
    wave = buzz(hz)
    wave[6400:9600] = 0.3 * np.random.default_rng(0).standard_normal(3200)
    log_f0, voiced = track(wave)
    truth = torch.from_numpy(np.log(hz.reshape(50, HOP).mean(axis=1))).float()
    assert not voiced[22:28].any() and voiced[3:18].all() and voiced[32:47].all()
    assert (log_f0 - truth)[3:47].abs().max() < 0.05


def test_silence_and_noise_have_no_voice():
    noise = np.random.default_rng(0).standard_normal(9600).astype(np.float32)
    assert track(noise)[1].float().mean() < 0.1
    assert not track(np.zeros(9600, dtype=np.float32))[1].any()


def test_espeak_speaks_higher_when_it_is_told_to():
    low, high = (
        say("lonely lion", Talker("f1", height), 130, 0.02) for height in (15, 75)
    )
    pitch = lambda phrase: float(phrase.log_f0[phrase.voiced].exp().median())
    assert pitch(high) > 1.4 * pitch(low)


def test_a_deep_hoarse_voice_is_still_a_voice():
    wave = buzz(np.full(9600, 56.0))
    rng, power = np.random.default_rng(0), float(np.square(wave).mean())
    hoarse = wave + (power / 3) ** 0.5 * rng.standard_normal(9600)
    log_f0, voiced = track(hoarse)
    assert voiced[3:-3].float().mean() > 0.8
    assert abs(float(log_f0[3:-3].exp().median()) / 56 - 1) < 0.02
