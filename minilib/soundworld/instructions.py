"""Instructions about scenes and their answers, FLAN in small (2210.11416; chapter 11).

A scene's truth answers questions about its caption: which sound comes first, how many
times, is the bell before the dog? Each task is asked in several phrasings. Some of them
are kept for tests; they are made of words that the others have, too.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import numpy as np

from .captions import NUMBERS, WORDS, clause, describe, phrase, plain
from .corpus import SoundWorld
from .effects import CLASSES
from .scene import Event, Scene
from .tunes import Tune

SHARE_OF_PAIRS = 0.85  # most of what can be asked needs two events
# Asked more often than others: if first and last, as told and in reverse were equally
# frequent, what they teach about order would cancel until a network has learned it.
OFTEN = {"first": 4, "retell": 4}


@dataclass(frozen=True)
class Instruction:
    """A task about a caption: what is asked, caption included, and the right answer."""

    task: str
    text: str
    answer: str


# {sound}, {one} and {other} are sounds: "the dog bark"
PHRASINGS: dict[str, tuple[str, ...]] = {
    "first": (
        "which sound comes first? {caption}",
        "{caption}: what do you hear first?",
        "name the first sound of this: {caption}",
        "{caption}: which of the two sounds is first?",
    ),
    "last": (
        "which sound comes last? {caption}",
        "{caption}: what do you hear last?",
        "name the last sound of this: {caption}",
        "{caption}: which of the two sounds is last?",
    ),
    "before": (
        "does {one} come before {other}? {caption}",
        "{caption}: is {one} before {other}?",
        "yes or no: {one} comes before {other}. {caption}",
        "is {one} first and {other} last? {caption}",
    ),
    "after": (
        "does {one} come after {other}? {caption}",
        "{caption}: is {one} after {other}?",
        "yes or no: {one} comes after {other}. {caption}",
        "is {one} last and {other} first? {caption}",
    ),
    "reverse": (
        "reverse the order: {caption}",
        "{caption}: say it in the reverse order",
        "swap the two sounds of this: {caption}",
    ),
    "retell": (
        "say it in plain words: {caption}",
        "{caption}: what do you hear?",
        "name the sounds of this in their order: {caption}",
    ),
    "heard": (
        "do you hear {sound}? {caption}",
        "{caption}: is {sound} in it?",
        "yes or no: you hear {sound}. {caption}",
    ),
    "count": (
        "how many times do you hear {sound}? {caption}",
        "{caption}: how many times does {sound} come?",
        "count {sound}: {caption}",
    ),
    "loudness": (
        "is {sound} loud or quiet? {caption}",
        "{caption}: how loud is {sound}?",
        "loud, quiet or normal: {sound}. {caption}",
    ),
    "pitch": (
        "is {sound} high or low? {caption}",
        "{caption}: how high is {sound}?",
        "high, low or medium: {sound}. {caption}",
    ),
}
UNSEEN: dict[str, tuple[str, ...]] = {
    "first": ("{caption}: name the sound you hear first", "what is first? {caption}"),
    "last": ("{caption}: name the sound you hear last", "what is last? {caption}"),
    "before": (
        "{caption}: do you hear {one} before {other}?",
        "{one} comes first and then {other}, yes or no? {caption}",
    ),
    "after": (
        "{caption}: do you hear {one} after {other}?",
        "{other} comes first and then {one}, yes or no? {caption}",
    ),
    "reverse": (
        "{caption}: swap the order",
        "name the two sounds in the reverse order: {caption}",
    ),
    "retell": (
        "{caption}: say what you hear in plain words",
        "which sounds do you hear? {caption}",
    ),
    "heard": ("{caption}: does {sound} come in it?", "is {sound} in this? {caption}"),
    "count": (
        "{caption}: count the times you hear {sound}",
        "how many times is {sound} in this? {caption}",
    ),
    "loudness": (
        "{caption}: is {sound} quiet, loud or normal?",
        "how loud is {sound} in this? {caption}",
    ),
    "pitch": (
        "{caption}: is {sound} low, high or medium?",
        "how high is {sound} in this? {caption}",
    ),
}
# phrasings of a caption with two events that `describe` never uses
UNSEEN_PAIRS = (
    "before {clause2}, {clause1}",
    "after {phrase1}, {phrase2}",
    "before {phrase2}, {phrase1}",
    "first {clause1} and then {clause2}",
    "{phrase1} and then {phrase2}",
    "{clause2}, after {clause1}",
    "{phrase2}, and before it {phrase1}",
)


def tasks(scene: Scene) -> tuple[str, ...]:
    """The tasks that can be asked about a scene, by name.

    Raises:
        ValueError: the scene is a tune, about which there are no instructions.
    """
    if isinstance(scene.events[0], Tune):
        raise ValueError("scene must hold one or two events, not a tune")
    told = {"retell": True, "heard": True, "loudness": True}
    told |= dict.fromkeys(("first", "last", "before", "after", "reverse"), _two(scene))
    told |= {name: bool(_asked(name, scene)) for name in ("count", "pitch")}
    return tuple(name for name in PHRASINGS if told[name])


def instruct(
    scene: Scene,
    rng: np.random.Generator,
    task: str | None = None,
    unseen: bool = False,
    caption: str | None = None,
) -> Instruction:
    """Draw an instruction about a scene, and answer it.

    Args:
        task: one of `tasks(scene)`; None draws one.
        unseen: ask in a phrasing that is kept for tests.
        caption: of the scene; None describes it in a phrasing that is drawn.

    Raises:
        ValueError: the scene is a tune, or the task can't be asked about it.
    """
    able = tasks(scene)
    weighted = sum(((name,) * OFTEN.get(name, 1) for name in able), ())
    task = _draw(weighted, rng) if task is None else task
    if task not in able:
        known = f"one of {', '.join(able)} for this scene"
        raise ValueError(f"task must be {known}, not {task!r}")
    caption = describe(scene, rng) if caption is None else caption
    phrasing = _draw((UNSEEN if unseen else PHRASINGS)[task], rng)
    words, answer = _question(task, scene, rng)
    return Instruction(task, phrasing.format(caption=caption, **words), answer)


def instructions(
    n: int, split: str = "train", seed: int = 0, unseen: bool = False
) -> list[Instruction]:
    """Instructions about the first n scenes of a SoundWorld, one about each; the same
    arguments give the same instructions.

    Raises:
        ValueError: n is below 1, or split or seed are not as SoundWorld wants them.
    """
    if not isinstance(n, numbers.Integral) or n < 1:
        raise ValueError(f"n must be a whole number >= 1, not {n!r}")
    world = SoundWorld(split, seed, pairs=SHARE_OF_PAIRS)
    scenes = (world.scene(i) for i in range(n))
    draw = lambda scene: np.random.default_rng([scene.seed, 2])
    return [instruct(scene, draw(scene), unseen=unseen) for scene in scenes]


def rephrase(
    scene: Scene, rng: np.random.Generator, phrasing: str | None = None
) -> str:
    """Caption a scene with two events in a phrasing that `describe` never uses; None
    draws one of `UNSEEN_PAIRS`.

    Raises:
        ValueError: the scene does not have two events.
    """
    if not _two(scene):
        raise ValueError(f"scene must have two events, not {len(scene.events)}")
    told = {}
    for k, event in enumerate(scene.events, 1):
        told |= {f"clause{k}": clause(event, rng), f"phrase{k}": phrase(event, rng)}
    phrasing = _draw(UNSEEN_PAIRS, rng) if phrasing is None else phrasing
    return phrasing.format(**told)


def _two(scene: Scene) -> bool:
    return len(scene.events) == 2


def _draw(options: tuple, rng: np.random.Generator) -> object:
    return options[rng.integers(len(options))]


def _the(name: str) -> str:
    return f"the {WORDS[name].sound}"


def _asked(task: str, scene: Scene) -> tuple[Event, ...]:
    """The events of a scene about which a task can ask."""
    able = {"count": lambda e: e.count, "pitch": lambda e: e.pitch}
    return tuple(filter(able.get(task), scene.events))


def _question(
    task: str, scene: Scene, rng: np.random.Generator
) -> tuple[dict[str, str], str]:
    """The sounds that an instruction names, and its answer."""
    names = [event.name for event in scene.events]
    retold = [plain(name) for name in names]
    if task in ("first", "last"):
        return {}, retold[0 if task == "first" else -1]
    if task in ("retell", "reverse"):
        return {}, ", then ".join(retold[::-1] if task == "reverse" else retold)
    yes = bool(rng.random() < 0.5)
    if task in ("before", "after"):
        one, other = names if yes == (task == "before") else names[::-1]
        return {"one": _the(one), "other": _the(other)}, "yes" if yes else "no"
    if task == "heard":
        absent = tuple(name for name in CLASSES if name not in names)
        sound = _draw(tuple(names) if yes else absent, rng)
        return {"sound": _the(sound)}, "yes" if yes else "no"
    event = _draw(_asked(task, scene), rng)
    answer = {"loudness": event.loudness, "pitch": event.pitch}
    answer["count"] = NUMBERS.get(event.count)
    return {"sound": _the(event.name)}, answer[task]
