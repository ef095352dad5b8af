"""Instructions about scenes: true answers, and phrasings that are new in tests."""

import dataclasses

import numpy as np
import pytest

from minilib.soundworld import SoundWorld, describe, plain, vocabulary
from minilib.soundworld.captions import WORDS
from minilib.soundworld.instructions import (
    PHRASINGS,
    UNSEEN,
    UNSEEN_PAIRS,
    instruct,
    instructions,
    rephrase,
    tasks,
)
from minilib.tokenizer import split_words

PAIRED = ("first", "last", "before", "after", "reverse")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scenes(n: int, n_events: int) -> list:
    world = SoundWorld("train", seed=3, pairs=float(n_events == 2))
    return [world.scene(i) for i in range(n)]


def named(text: str, names: list[str]) -> list[str]:
    """The sounds of `names` that an instruction names, as they stand in it."""
    at = {name: text.find(f"the {WORDS[name].sound}") for name in names}
    return sorted((name for name in names if at[name] >= 0), key=at.get)


def test_the_same_arguments_give_the_same_instructions_and_others_others():
    assert instructions(20) == instructions(20) == instructions(30)[:20]
    for other in (instructions(20, seed=1), instructions(20, "test")):
        assert other != instructions(20)


def test_every_task_is_asked_in_several_phrasings():
    asked = instructions(2000)
    assert {x.task for x in asked} == set(PHRASINGS) == set(UNSEEN)
    assert all(len(x) >= 3 for x in PHRASINGS.values())
    for task, phrasings in PHRASINGS.items():
        starts = [x.text for x in asked if x.task == task]
        for phrasing in phrasings:
            piece = max(phrasing.split("{caption}"), key=len).split("{")[0].strip()
            assert any(piece in text for text in starts), phrasing


def test_a_fifth_of_the_instructions_or_more_needs_order():
    counts = [x.task in PAIRED for x in instructions(1000)]
    assert 0.2 < sum(counts) / len(counts) < 0.6


def test_unseen_phrasings_are_new_and_made_of_known_words():
    known = set(vocabulary())
    for phrasing in sum(PHRASINGS.values(), ()):
        known |= set(split_words(phrasing))
    for task, phrasings in UNSEEN.items():
        assert not set(phrasings) & set(PHRASINGS[task]) and len(phrasings) >= 2
        assert set(split_words(" ".join(phrasings))) <= known
    words = " ".join(UNSEEN_PAIRS).translate(str.maketrans(",{}", "   "))
    pieces = {f"{kind}{k}" for kind in ("clause", "phrase") for k in (1, 2)}
    assert set(words.split()) <= known | pieces
    seen, unseen = instructions(300), instructions(300, unseen=True)
    for a, b in zip(seen, unseen, strict=True):  # about the same, in other words
        assert (a.task, a.answer) == (b.task, b.answer) and a.text != b.text


@pytest.mark.parametrize("unseen", [False, True])
def test_answers_about_order_are_those_of_the_scene(unseen):
    answers = set()
    for i, scene in enumerate(scenes(200, 2)):
        names = [event.name for event in scene.events]
        one, two = map(plain, names)
        right = {"first": one, "last": two}
        right |= {"retell": f"{one}, then {two}", "reverse": f"{two}, then {one}"}
        for task, answer in right.items():
            assert instruct(scene, rng(i), task, unseen).answer == answer
        for task in ("before", "after"):
            asked = instruct(scene, rng(i), task, unseen, caption="")
            told = named(asked.text, names)
            assert len(told) == 2
            # only these phrasings of "after" name the earlier sound first
            turned = "comes first and then" in asked.text and task == "after"
            right = (told == names) == (task == "before" or turned)
            assert asked.answer == ("yes" if right else "no"), asked
            answers.add((task, asked.answer))
    assert len(answers) == 4


def test_answers_about_one_sound_are_those_of_its_event():
    met = set()
    for i, scene in enumerate(scenes(150, 2) + scenes(150, 1)):
        events = {event.name: event for event in scene.events}
        for task in set(tasks(scene)) & {"count", "loudness", "pitch", "heard"}:
            asked = instruct(scene, rng(i), task, caption="")
            (name,) = [x for x in WORDS if f"the {WORDS[x].sound}" in asked.text][:1]
            if task == "heard":
                assert asked.answer == ("yes" if name in events else "no")
            else:
                value = getattr(events[name], task)
                names = {1: "one", 2: "two", 3: "three", 4: "four"}
                assert asked.answer == names.get(value, value)
            met.add((task, asked.answer))
    assert len(met) == 2 + 4 + 3 + 3


def test_a_scene_is_asked_only_what_it_can_answer():
    for scene in scenes(200, 1):
        (event,) = scene.events
        able = tasks(scene)
        assert not set(PAIRED) & set(able) and {"retell", "heard", "loudness"} <= {
            *able
        }
        assert ("count" in able) == (event.count is not None)
        assert ("pitch" in able) == (event.pitch is not None)
    assert all(set(PAIRED) <= set(tasks(scene)) for scene in scenes(20, 2))


def test_the_caption_is_the_scenes_own_or_the_one_that_is_given():
    (scene,) = scenes(1, 2)
    asked = instruct(scene, rng(), "first", caption="one, then two")
    assert "one, then two" in asked.text
    drawn = instruct(scene, rng(5), "first").text
    assert drawn == instruct(scene, rng(5), "first").text != asked.text
    assert any(describe(scene, rng(k)) in drawn for k in range(200))


def test_a_rephrased_caption_is_none_that_describe_can_make():
    for i, scene in enumerate(scenes(100, 2)):
        told = rephrase(scene, rng(i))
        every = {describe(scene, rng(k)) for k in range(40)}
        assert told not in every and told == rephrase(scene, rng(i))
        turned = dataclasses.replace(scene, events=scene.events[::-1])
        assert rephrase(turned, rng(i)) != told


def test_what_cannot_be_asked_gets_one_sentence():
    tune = SoundWorld("train", music=1.0).scene(0)
    with pytest.raises(ValueError, match="one or two events, not a tune"):
        tasks(tune)
    (single,) = scenes(1, 1)
    with pytest.raises(ValueError, match="task must be one of .* not 'reverse'"):
        instruct(single, rng(), "reverse")
    with pytest.raises(ValueError, match="scene must have two events, not 1"):
        rephrase(single, rng())
    for n in (0, 1.5):
        with pytest.raises(ValueError, match="n must be a whole number >= 1, not"):
            instructions(n)
