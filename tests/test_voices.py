"""The judge that knows voices by some of their words."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minilib.soundworld import espeak, talkers
from minilib.soundworld.speech import WORDS
from minilib.voices import CEPSTRA, LAGS, KnownVoices, traits


def hum(pitch: float, formant: float, seed: int) -> torch.Tensor:
    """A buzz of 0.5 s with one formant; the seed moves all of it a little."""
    rng = np.random.default_rng(seed)
    t, pitch = np.arange(8000) / 16000, pitch * rng.uniform(0.97, 1.03)
    formant = formant * rng.uniform(0.97, 1.03)
    wave = sum(
        np.exp(-(((k * pitch - formant) / 300) ** 2))
        * np.sin(2 * np.pi * k * pitch * t)
        for k in range(1, int(7000 / pitch))
    )
    wave = wave / abs(wave).max() + 1e-3 * rng.standard_normal(8000)
    return torch.from_numpy((0.5 * rng.uniform(0.2, 1) * wave).astype(np.float32))


VOICES = {"low": (80, 600), "high": (160, 600), "bright": (80, 1500)}


def hums(seed: int, n: int) -> tuple[torch.Tensor, list[str]]:
    names = [name for name in VOICES for _ in range(n)]
    waves = [hum(*VOICES[name], seed + i) for i, name in enumerate(names)]
    return torch.stack(waves), names


@pytest.fixture(scope="module")
def judge() -> KnownVoices:
    return KnownVoices.enrolled(*hums(0, 12))


def test_it_tells_pitch_and_formant_apart_at_any_level(judge):
    waves, names = hums(500, 6)
    assert judge.names == tuple(VOICES)
    assert judge.hear(waves) == names
    assert judge.hear(0.1 * waves) == names
    assert judge.hear(waves[:0]) == []


def test_distances_are_those_of_mahalanobis(judge):
    waves, _ = hums(500, 2)
    x = (traits(waves) - judge.mean) / judge.scale
    root = torch.linalg.cholesky(judge.precision)
    expected = torch.stack(
        [((x - centre) @ root).square().sum(dim=1) for centre in judge.centres], dim=1
    )
    torch.testing.assert_close(judge.distances(waves), expected)
    own = judge.distances(hums(0, 12)[0]).view(3, 12, 3).mean(dim=1)
    assert (own.argmin(dim=1) == torch.arange(3)).all()


def test_what_varies_within_a_voice_counts_less_than_what_tells_voices_apart():
    """Two voices differ by pitch alone; their words differ far more by the formant."""
    formants = (500, 1000, 2000, 3000)
    draw = lambda seed: torch.stack(
        [hum(p, f, seed + i) for i, f in enumerate(formants * 4) for p in (100, 140)]
    )
    names = ["low", "high"] * 16
    judge, waves = KnownVoices.enrolled(draw(0), names), draw(900)
    right = lambda heard: sum(a == b for a, b in zip(heard, names)) / 32
    found = right(judge.hear(waves))
    plain = replace(judge, precision=torch.eye(len(judge.precision)).double())
    assert found > 0.9 and right(plain.hear(waves)) < found - 0.1


def test_traits_are_a_row_of_finite_numbers_even_of_silence():
    x = traits(torch.zeros(2, 4000))
    assert x.shape == (2, 2 * (CEPSTRA + len(LAGS))) and x.isfinite().all()


@pytest.mark.parametrize(
    "waves, said_by, says",
    [
        (torch.ones(3, 4000), ["a", "b"], "3 waves and 2 names"),
        (torch.ones(2, 4000), ["a", "a"], "two voices or more"),
        (torch.ones(3, 4000), ["a", "a", "b"], "two waves or more"),
        (torch.ones(4, 100), list("aabb"), "N at least 1024"),
        (torch.full((4, 4000), torch.nan), list("aabb"), "finite"),
        (torch.ones(4000), list("aabb") * 1000, r"\(n, N\)"),
    ],
)
def test_what_it_cannot_enrol_gets_one_sentence(waves, said_by, says):
    with pytest.raises(ValueError, match=says):
        KnownVoices.enrolled(waves, said_by)


def test_it_knows_talkers_by_other_words_than_those_it_hears():
    pytest.importorskip("espeakng_loader")
    few = talkers.TALKERS[:6]
    judge = talkers.known_talkers(talkers=few)
    assert judge.names == tuple(talker.name for talker in few)
    rng = np.random.default_rng(3)
    said = [(WORDS[3 * i], few[i % 6]) for i in range(12)]
    waves = torch.stack([talkers.say(word, talker, rng) for word, talker in said])
    heard = judge.hear(waves)
    right = [name == talker.name for name, (_, talker) in zip(heard, said)]
    assert np.mean(right) >= 10 / 12, heard


def test_it_hears_every_second_word_behind_the_vocoder_too(monkeypatch):
    given = []
    monkeypatch.setattr(talkers, "say", lambda *_: torch.ones(2048))
    monkeypatch.setattr(
        KnownVoices, "enrolled", lambda waves, said_by: given.append((waves, said_by))
    )
    talkers.known_talkers(lambda waves: -waves, talkers.TALKERS[:2])
    (waves, said_by) = given[0]
    assert waves[:, 0].tolist() == [1.0] * 48 + [-1.0] * 24
    assert said_by[:48] == ["m1 15"] * 24 + ["m1 35"] * 24
    assert said_by[48:] == ["m1 15"] * 12 + ["m1 35"] * 12


def test_variants_that_are_held_out_are_none_of_the_forty():
    assert not set(talkers.VARIANTS) & set(talkers.UNSEEN_VARIANTS)
    assert len(talkers.TALKERS) == 40 and len(talkers.UNSEEN_TALKERS) == 8
    assert espeak.PITCHES[0] <= min(talkers.HEIGHTS) < max(talkers.HEIGHTS) <= 99
