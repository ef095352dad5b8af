"""Tunes in SoundWorld: what is played is what is labelled and told, and music leaves
the effects alone.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from minilib.soundworld import (
    CLASSES,
    INSTRUMENTS,
    Melody,
    SoundWorld,
    Tune,
    describe,
    held_out_melodies,
    plain,
    vocabulary,
)
from minilib.soundworld.scene import LEEWAY, LOUDNESSES, PEAKS, PITCHES, SPEEDS, Scene
from minilib.soundworld.tunes import CONTOURS, KEYS, SCALES, TEMPI, draw_tune, melodies

SR = 16000


def render_tune(name: str, seed: int = 0, **wanted) -> tuple[Tune, np.ndarray]:
    """A tune with the wanted attributes, and the wave of a clip that holds it alone."""
    about = {"pitch": "medium", "speed": "normal", "contour": "wandering"}
    melody = Melody(
        name, **{key: wanted.get(key, value) for key, value in about.items()}
    )
    rng = np.random.default_rng(seed)
    tune = draw_tune(
        melody,
        wanted.get("loudness", "normal"),
        wanted.get("scale", "major"),
        0.1,
        2.4,
        rng,
    )
    return tune, SoundWorld().render(Scene((tune,), 2.56, seed)).numpy()


@functools.cache
def tunes(split: str, n: int, **arguments) -> list[Tune]:
    world = SoundWorld(split, music=1.0, **arguments)
    return [world.scene(i).events[0] for i in range(n)]


# --------------------------------------------------------------------------------------
# Music beside the effects


def test_a_share_of_the_scenes_is_music_and_all_others_are_as_without():
    without, with_music = SoundWorld(), SoundWorld(music=0.3)
    are_tunes = [isinstance(with_music.scene(i).events[0], Tune) for i in range(600)]
    assert 0.26 < np.mean(are_tunes) < 0.34
    others = [i for i in range(600) if not are_tunes[i]]
    assert all(with_music.scene(i) == without.scene(i) for i in others)
    # as many pairs as ever
    assert 0.42 < np.mean([len(without.scene(i).events) == 2 for i in others]) < 0.58
    for i in others[:10]:
        assert torch.equal(with_music[i].wave, without[i].wave)
        assert with_music.caption(i) == without.caption(i)


def test_a_tune_is_the_same_whatever_the_share_of_music():
    some, only = SoundWorld(music=0.3), SoundWorld(music=1.0)
    scenes = [(some.scene(i), only.scene(i)) for i in range(100)]
    assert all(a == b for a, b in scenes if isinstance(a.events[0], Tune))


def test_no_instrument_has_the_name_of_a_class_and_there_are_at_least_7():
    assert len(INSTRUMENTS) >= 7 and not set(INSTRUMENTS) & set(CLASSES)


@pytest.mark.parametrize("music", [-0.1, 1.5, float("nan"), "all"])
def test_a_bad_share_of_music_is_named(music):
    with pytest.raises(ValueError) as caught:
        SoundWorld(music=music)
    assert str(caught.value) == f"music must be a number from 0 to 1, not {music!r}"


def test_the_cache_keeps_music_apart_and_its_clips_whole(tmp_path):
    plainly, cached = SoundWorld(music=1.0), SoundWorld(music=1.0, cache=tmp_path)
    effect = SoundWorld(cache=tmp_path)[0].wave
    for _ in range(2):
        assert torch.equal(cached[0].wave, plainly[0].wave)
    assert not torch.equal(cached[0].wave, effect)


# --------------------------------------------------------------------------------------
# Notes


def test_notes_lie_on_the_beat_grid_and_within_the_tune():
    for tune in tunes("train", 1200):
        beats = (np.array(tune.strokes) - tune.onset) * tune.rate
        grid = 1 if tune.speed == "fast" else 2
        assert np.abs(beats * grid - np.round(beats * grid)).max() < 1e-6
        assert len(tune.notes) == len(tune.lengths) == len(tune.strokes) >= 3
        ends = np.array(tune.strokes) + np.array(tune.lengths)
        assert (ends[:-1] <= np.array(tune.strokes[1:]) + 1e-9).all() and ends[
            -1
        ] <= tune.end + 1e-9
        assert min(tune.lengths) > 0.09


def test_tempo_is_what_its_word_says_and_notes_come_as_fast():
    between = {}
    for tune in tunes("train", 1200):
        assert abs(np.log2(60 * tune.rate / TEMPI[tune.speed])) <= LEEWAY
        between.setdefault(tune.speed, []).append(np.median(np.diff(tune.strokes)))
    for slower, faster in itertools.pairwise(SPEEDS):
        assert min(between[slower]) > 1.35 * max(between[faster])


def test_there_are_held_notes_rests_and_eighths():
    every = tunes("train", 1200)
    gaps = [np.diff(tune.strokes) * tune.rate for tune in every]
    rests = [
        np.array(tune.lengths[:-1]) < 0.99 * np.diff(tune.strokes) for tune in every
    ]
    halves = np.concatenate(gaps) > 1.9
    assert (
        0.03 < halves.mean() < 0.15
        and 0.03 < (np.concatenate(gaps) < 0.6).mean() < 0.25
    )
    assert 0.4 < np.concatenate(rests)[halves].mean() < 0.6


def test_every_note_belongs_to_the_scale_and_the_tonic_ends_the_tune():
    for tune in tunes("train", 1200):
        assert {semitone % 12 for semitone in tune.semitones} <= set(SCALES[tune.scale])
        assert tune.semitones[-1] % 12 == 0 == tune.semitones[0] % 12
        back = tune.f0 * 2 ** (np.array(tune.semitones) / 12)
        np.testing.assert_allclose(back, tune.notes, rtol=1e-9)


def test_keys_vary_and_registers_lie_an_octave_apart():
    keys = {}
    for tune in tunes("train", 1200):
        assert 0 <= min(tune.semitones) and max(tune.semitones) <= 12
        keys.setdefault((tune.name, tune.pitch), set()).add(
            round(69 + 12 * np.log2(tune.f0 / 440))
        )
    assert set(keys) == set(itertools.product(INSTRUMENTS, PITCHES))
    for (name, pitch), found in keys.items():
        middle = INSTRUMENTS[name].tonics[PITCHES.index(pitch)]
        assert found == set(range(middle + KEYS[0], middle + KEYS[1] + 1))
    assert all(
        b - a == 12
        for i in INSTRUMENTS.values()
        for a, b in itertools.pairwise(i.tonics)
    )


@pytest.mark.parametrize("seconds", [0.51, 2.56, 10.24])
def test_tunes_rise_fall_or_wander_as_is_said(seconds):
    for split in ("train", "test"):
        for tune in tunes(split, 100, seconds=seconds):
            trend = np.corrcoef(tune.strokes, np.log(tune.notes))[0, 1]
            told = {
                "rising": trend > 0.8,
                "falling": trend < -0.8,
                "wandering": abs(trend) < 0.5,
            }
            assert told[tune.contour]


def test_a_tune_without_room_for_three_beats_is_refused():
    melody = Melody("piano", "low", "slow", "rising")
    said = "room must be long enough for 3 beats of a slow tune; 1.2 s is enough for 2"
    with pytest.raises(ValueError, match=said):
        draw_tune(melody, "loud", "minor", 0.1, 1.2, np.random.default_rng(0))


# --------------------------------------------------------------------------------------
# Waves


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_an_instrument_sounds_from_the_onset_and_ends_without_a_click(name):
    for seed, (pitch, loudness) in enumerate(itertools.product(PITCHES, LOUDNESSES)):
        tune, wave = render_tune(
            name, seed, pitch=pitch, loudness=loudness, speed=SPEEDS[seed % 3]
        )
        begin, end = round(tune.onset * SR), round(tune.end * SR)
        assert np.isfinite(wave).all() and np.abs(wave).max() == pytest.approx(
            PEAKS[loudness], rel=0.06
        )
        assert np.abs(wave[: begin - 1]).max() < 1e-3, (
            "something sounds before the onset"
        )
        assert np.abs(wave[begin : begin + SR // 10]).max() > 0.05 * tune.peak, (
            "nothing sounds at the onset"
        )
        assert np.abs(wave[end - 80 : end]).max() < 0.03 * tune.peak, "the end is cut"
        assert abs(wave.mean()) < 0.02 * tune.peak, "the wave isn't centred"


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_notes_sound_to_their_end_without_a_click_and_rests_are_silent(name):
    ring, rests = INSTRUMENTS[name].ring, 0
    for seed in range(12):
        tune, wave = render_tune(name, seed, loudness="loud")
        for onset, length, after in zip(tune.strokes, tune.lengths, tune.strokes[1:]):
            if ring == 0:
                held = wave[
                    round((onset + 0.7 * length) * SR) : round(
                        (onset + 0.85 * length) * SR
                    )
                ]
                assert np.abs(held).max() > 0.4 * tune.peak, "a held note ends too soon"
            stop = round((onset + length + ring) * SR)
            # no note before the last one still rings
            if after * SR > stop + 160 and ring < 0.1:
                rests += 1
                assert np.abs(wave[stop - 32 : stop]).max() < 0.03 * tune.peak, (
                    "the end is cut"
                )
                assert np.abs(wave[stop + 2 : round(after * SR) - 1]).max() < 1e-3, (
                    "a rest isn't silent"
                )
    assert rests > 0 or ring > 0.1


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_the_pitch_of_every_note_is_heard(name):
    for seed, (pitch, speed) in enumerate(itertools.product(PITCHES, SPEEDS)):
        tune, wave = render_tune(name, seed, pitch=pitch, speed=speed)
        for onset, length, f0 in zip(tune.strokes, tune.lengths, tune.notes):
            note = wave[
                round((onset + 0.03) * SR) : round(
                    (onset + min(length - 0.01, 0.2)) * SR
                )
            ]
            spectrum = np.abs(np.fft.rfft(note * np.hanning(len(note)), 65536))
            hertz = np.fft.rfftfreq(65536, 1 / SR)
            # up to the second harmonic of a low note
            near = (hertz > f0 / 1.45) & (hertz < f0 * 1.45)
            heard = hertz[near][spectrum[near].argmax()]
            assert abs(1200 * np.log2(heard / f0)) < 30, (pitch, speed, heard, f0)


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_sudden_change_of_the_spectrum_stands_at_every_onset(name):
    for seed, speed in enumerate(SPEEDS):
        tune, wave = render_tune(name, seed, speed=speed, contour="rising")
        frames = np.lib.stride_tricks.sliding_window_view(wave, 400)[::80] * np.hanning(
            400
        )
        level = np.log(np.abs(np.fft.rfft(frames)) + 0.3 * tune.peak)
        # frame k: from 80 k to 80 (k + 6)
        flux = np.maximum(level[6:] - level[:-6], 0).mean(axis=1)
        centres = (80 * (np.arange(len(flux)) + 3) + 200) / SR
        away = np.min(np.abs(centres[:, None] - np.array(tune.strokes)), axis=1) > 0.06
        for onset in tune.strokes:
            at_onset = flux[np.abs(centres - onset) < 0.05].max()
            assert not away.any() or at_onset > 1.5 * np.median(flux[away])


def test_instruments_sound_unlike_each_other():
    spectra = {}
    for name in INSTRUMENTS:
        waves = [render_tune(name, seed, contour="rising")[1] for seed in range(4)]
        power = np.mean([np.abs(np.fft.rfft(wave)) ** 2 for wave in waves], axis=0)[
            : 32 * 640
        ].reshape(32, -1)
        spectra[name] = np.log(power.mean(axis=1))
    for one, other in itertools.combinations(INSTRUMENTS, 2):
        difference = spectra[one] - spectra[other]
        assert (difference - difference.mean()).std() > 0.5, (one, other)


# --------------------------------------------------------------------------------------
# Captions


def test_the_vocabulary_with_music_holds_the_words_of_tunes_too():
    words = set()
    for i, tune in enumerate(tunes("train", 1200) + tunes("test", 1200)):
        words |= set(
            describe(Scene((tune,), 2.56, 0), np.random.default_rng(i)).split()
        )
    assert set(vocabulary(music=True)) == words | set(vocabulary())
    assert len(vocabulary(music=True)) >= len(vocabulary()) + 15


SAID = {
    "low": {"low"},
    "high": {"high"},
    "slow": {"slow", "slowly"},
    "fast": {"fast", "quick", "quickly"},
    "quiet": {"quiet", "quietly", "softly"},
    "loud": {"loud", "loudly"},
    "rising": {"rising", "rises"},
    "falling": {"falling", "falls"},
}


def test_the_caption_says_the_instrument_and_every_attribute_that_is_not_ordinary():
    for i, tune in enumerate(tunes("train", 1200)):
        caption = describe(Scene((tune,), 2.56, 0), np.random.default_rng(i))
        words, values = set(caption.split()), {*tune.combination, tune.loudness}
        assert f" {tune.name} " in f" {caption} "
        for value, ways in SAID.items():
            assert bool(words & ways) == (value in values), (caption, value)


def test_the_caption_names_a_scale_half_the_time_and_only_where_the_notes_tell_it():
    named = []
    telling = {"major": {4, 9}, "minor": {3, 8}, "pentatonic": {0, 2, 4, 7, 9}}
    for i, tune in enumerate(tunes("train", 1200)):
        words = describe(Scene((tune,), 2.56, 0), np.random.default_rng(i)).split()
        said = set(words) & set(SCALES)
        heard = telling[tune.scale] <= {
            round(12 * np.log2(note / tune.f0)) % 12 for note in tune.notes
        }
        assert said <= ({tune.scale} if heard else set())
        named += [bool(said)] * heard
    assert 0.45 < np.mean(named) < 0.55 and len(named) > 400


def test_captions_have_several_phrasings_and_right_articles():
    scene = Scene((render_tune("organ", contour="rising")[0],), 2.56, 0)
    told = {describe(scene, np.random.default_rng(seed)) for seed in range(100)}
    assert {
        "a rising organ melody",
        "an organ plays a rising tune",
        "an organ melody rises",
    } <= told
    assert len(told) >= 10
    assert (
        plain("organ") == "an organ plays" and plain("music box") == "a music box plays"
    )
    world = SoundWorld(music=1.0)
    for i in range(300):
        words = world.caption(i).split()
        for article, after in itertools.pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (after[0] in "aeiou"), words


# --------------------------------------------------------------------------------------
# Splits


def test_held_out_melodies_are_heard_in_test_alone():
    heard = {
        split: {tune.combination for tune in tunes(split, 1200)}
        for split in ("train", "valid", "test")
    }
    assert not (heard["train"] | heard["valid"]) & held_out_melodies()
    assert heard["test"] == held_out_melodies()


def test_about_an_eighth_of_each_instrument_is_held_out_and_every_value_is_left():
    for name in INSTRUMENTS:
        train = [m for m in melodies(name) if m not in held_out_melodies()]
        assert len(melodies(name)) - len(train) == 3 and len(melodies(name)) == 27
        assert Melody(name, "medium", "normal", "wandering") in train
        for k, values in ((1, PITCHES), (2, SPEEDS), (3, CONTOURS)):
            assert {m[k] for m in train} == set(values)


def test_every_instrument_loudness_and_scale_is_drawn_in_train_and_in_test():
    for split in ("train", "test"):
        drawn = tunes(split, 1200)
        assert {tune.name for tune in drawn} == set(INSTRUMENTS)
        assert {(tune.loudness, tune.scale) for tune in drawn} == set(
            itertools.product(LOUDNESSES, SCALES)
        )
