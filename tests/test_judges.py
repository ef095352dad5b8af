"""Closed-form judges: right on clean renders, near chance under other captions, wrong
on a smear (chapter 17).
"""

import dataclasses
import math

import pytest
import torch

from minilib import audio, judges
from minilib.soundworld import CLASSES, INSTRUMENTS, Scene, SoundWorld
from minilib.soundworld.scene import LOUDNESSES, PEAKS, PITCHES, SPEEDS

SOME = ("bell", "dog", "drum", "siren", "wind", "clock", "rain", "knock", "piano")


@pytest.fixture(scope="module")
def clips():
    """Held-out scenes of some classes, four of each, and tunes."""
    effects, music = (
        SoundWorld("test", pairs=0.0),
        SoundWorld("test", pairs=0.0, music=1.0),
    )
    found = {name: [] for name in SOME}
    for world, names in ((effects, CLASSES), (music, INSTRUMENTS)):
        for i in range(400):
            event = world.scene(i).events[0]
            if (
                event.name in found
                and event.name in names
                and len(found[event.name]) < 4
            ):
                found[event.name].append(world[i])
    return [clip for of_one in found.values() for clip in of_one]


def share_right(waves, events) -> dict[str, float]:
    """The mean answer to each question, cents left out."""
    rows = [judges.answers(wave, event) for wave, event in zip(waves, events)]
    questions = {question for row in rows for question in row} - {"cents"}
    given = {q: [row[q] for row in rows if q in row] for q in questions}
    return {
        question: sum(answers) / len(answers) for question, answers in given.items()
    }


def scene(event) -> torch.Tensor:
    return SoundWorld().render(Scene((event,), 2.56, event.seed))


def smeared(wave: torch.Tensor, seconds: float) -> torch.Tensor:
    """The wave with every moment spread over `seconds`, as loud as before."""
    n, size = round(seconds * audio.SAMPLE_RATE), 2 * len(wave)
    spread = torch.randn(
        n, generator=torch.Generator().manual_seed(0)
    ) * torch.hann_window(n)
    smear = torch.fft.irfft(
        torch.fft.rfft(wave, size) * torch.fft.rfft(spread, size), size
    )[: len(wave)]
    return smear * (wave.abs().max() / smear.abs().max())


def test_clean_renders_of_held_out_scenes_are_right(clips):
    found = share_right(
        [clip.wave for clip in clips], [clip.scene.events[0] for clip in clips]
    )
    assert set(found) == {"loudness", "pitch", "count", "speed", "tempo"}
    assert min(found.values()) >= 0.95, found


def test_under_other_captions_the_same_sounds_score_no_better_than_chance(clips):
    waves, events = (
        [clip.wave for clip in clips],
        [clip.scene.events[0] for clip in clips],
    )
    found = share_right(waves[7:] + waves[:7], events)
    guesses = [judges.chance(event) for event in events]
    for question, share in found.items():
        guess = [of_one[question] for of_one in guesses if question in of_one]
        assert share <= sum(guess) / len(guess) + 0.2, (question, share)


def test_a_smear_has_lost_its_strokes_and_its_tempo(clips):
    many = [
        c
        for c in clips
        if c.scene.events[0].name in ("knock", "bell", "dog", "drum", "piano")
    ]
    events = [c.scene.events[0] for c in many]
    several = [k for k, event in enumerate(events) if len(event.strokes) > 1]
    waves = [smeared(many[k].wave, 0.8) for k in several]
    found = share_right(waves, [events[k] for k in several])
    assert found["count"] <= 0.34 and found["tempo"] <= 0.34


@pytest.mark.parametrize("name", [name for name in CLASSES if CLASSES[name].pitch])
def test_each_pitch_is_heard_and_another_one_is_called_wrong(name):
    events = judges.examples(name)[-9:]
    for event in {event.pitch: event for event in events}.values():
        wave, k = scene(event), PITCHES.index(event.pitch)
        answers = judges.answers(wave, event)
        assert answers["pitch"] == 1 and answers["cents"] < 250
        other = dataclasses.replace(event, pitch=PITCHES[k - 1])
        assert judges.answers(wave, other)["pitch"] == 0
    heard, f0 = judges.heard(wave, event)["f0"], CLASSES[name].pitch[k]
    assert answers["cents"] == pytest.approx(1200 * abs(math.log2(heard / f0)))


@pytest.mark.parametrize(
    "name", ["alarm", "helicopter", "siren", "waves", "fire", "violin"]
)
def test_each_speed_is_heard_and_another_one_is_called_wrong(name):
    question = "tempo" if name in INSTRUMENTS else "speed"
    for event in {event.speed: event for event in judges.examples(name)}.values():
        wave = scene(event)
        for speed in SPEEDS:
            answer = judges.answers(wave, dataclasses.replace(event, speed=speed))[
                question
            ]
            assert answer == (speed == event.speed)


@pytest.mark.parametrize("name", ["bell", "rain", "organ"])
def test_loudness_follows_the_gain(name):
    event = next(event for event in judges.examples(name) if event.loudness == "normal")
    wave = scene(event)
    assert judges.heard(wave, event)["peak"] == pytest.approx(event.peak, rel=0.15)
    for loudness in LOUDNESSES:
        as_loud = wave * PEAKS[loudness] / PEAKS["normal"]
        for asked in LOUDNESSES:
            answer = judges.answers(
                as_loud, dataclasses.replace(event, loudness=asked)
            )["loudness"]
            assert answer == (asked == loudness)


def test_the_order_of_a_pair_is_heard():
    world = SoundWorld("test", pairs=1.0)
    for i in range(8):
        clip = world[i]
        first, second = (event.name for event in clip.scene.events)
        assert judges.in_order(clip.wave, first, second)
        assert not judges.in_order(clip.wave, second, first)


def test_guessing_is_one_of_as_many_as_the_class_can_do():
    events = {
        name: judges.examples(name)[0] for name in ("cow", "rain", "knock", "banjo")
    }
    third = pytest.approx(1 / 3)
    assert judges.chance(events["cow"]) == {
        "loudness": third,
        "pitch": third,
        "count": 0.5,
    }
    assert judges.chance(events["rain"]) == {"loudness": third, "speed": third}
    assert judges.chance(events["knock"]) == {"loudness": third, "count": 0.25}
    assert judges.chance(events["banjo"]) == {"loudness": third, "tempo": third}


def test_chance_and_answers_know_the_same_questions():
    first = {name: judges.examples(name)[0] for name in (*CLASSES, *INSTRUMENTS)}
    for name, event in first.items():
        asked = ["loudness", *(["count"] if event.count else [])]
        asked += ["tempo"] if name in INSTRUMENTS else ["pitch"] if event.pitch else []
        asked += ["speed"] if name in CLASSES and event.speed else []
        assert set(judges.chance(event)) == set(asked), name
    for name in SOME:
        answers = judges.answers(torch.zeros(16000), first[name])
        assert set(judges.chance(first[name])) == set(answers) - {"cents"}


def test_what_cannot_be_judged_is_refused():
    event = judges.examples("knock")[0]
    with pytest.raises(
        ValueError, match="N at least 8000 samples; given \\(1, 40960\\)"
    ):
        judges.heard(torch.zeros(1, 40960), event)
    with pytest.raises(ValueError, match="N at least 8000 samples; given \\(7999,\\)"):
        judges.heard(torch.zeros(7999), event)
    with pytest.raises(ValueError, match="finite numbers"):
        judges.heard(torch.full((40960,), math.nan), event)
    with pytest.raises(ValueError, match="of SoundWorld, not 'unicorn'"):
        judges.reference("unicorn")
