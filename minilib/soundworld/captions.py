"""The grammar of SoundWorld: from a scene to a sentence, in several phrasings
(chapter 01).

An event is described by a clause ("a small dog barks loudly twice") or by a noun phrase
("two loud high dog barks"). Every statement is true, and ordinary attributes (medium
pitch, normal speed and loudness) are not mentioned. A tune is described by its
instrument and how it is played ("a fast rising piano melody in a minor key"), and an
utterance by its voice ("a man speaks slowly in a low voice"); its words are the
transcription.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from .music import INSTRUMENTS
from .scene import Event, Scene
from .speech import SPEAKERS, VOICES, Utterance
from .tunes import Tune


@dataclass(frozen=True)
class Words:
    """The words for a class.

    The pairs of adjectives mean (low, high) pitch and (quiet, loud) loudness.
    """

    subject: str  # subject of the clause: "dog"
    verb: str
    sound: str  # head of the noun phrase: "dog bark"
    sounds: str = ""  # its plural; "" if the noun phrase isn't counted
    subject_article: bool = True
    sound_article: bool = True
    subject_pitch: tuple[str, str] = ("low", "high")
    sound_pitch: tuple[str, str] = ("low", "high")
    sound_loudness: tuple[str, str] = ("quiet", "loud")


SIZE = ("big", "small")
WORDS: dict[str, Words] = {
    "alarm": Words("alarm", "beeps", "alarm"),
    "applause": Words("crowd", "claps", "applause", sound_article=False),
    "bell": Words("bell", "rings", "bell chime", "bell chimes"),
    "bird": Words("bird", "sings", "birdsong", sound_article=False, subject_pitch=SIZE),
    "cat": Words("cat", "meows", "cat meow", "cat meows", subject_pitch=SIZE),
    "clock": Words("clock", "ticks", "ticking clock"),
    "cow": Words("cow", "moos", "cow moo", "cow moos", subject_pitch=SIZE),
    "cricket": Words(
        "cricket", "chirps", "cricket song", sound_article=False, subject_pitch=SIZE
    ),
    "dog": Words("dog", "barks", "dog bark", "dog barks", subject_pitch=SIZE),
    "door": Words("door", "creaks", "door creak", "door creaks", subject_pitch=SIZE),
    "drip": Words(
        "water",
        "drips",
        "water drop",
        "water drops",
        subject_article=False,
        subject_pitch=("", ""),
    ),
    "drum": Words("drum", "beats", "drum beat", "drum beats"),
    "engine": Words("engine", "runs", "engine"),
    "fire": Words("fire", "crackles", "crackling fire"),
    "footsteps": Words(
        "someone", "walks", "footsteps", subject_article=False, sound_article=False
    ),
    "frog": Words("frog", "croaks", "frog croak", "frog croaks", subject_pitch=SIZE),
    "glass": Words("glass", "breaks", "glass crash", subject_pitch=SIZE),
    "guitar": Words("guitar", "plays", "guitar note", "guitar notes"),
    "helicopter": Words("helicopter", "flies", "helicopter"),
    "horn": Words("car horn", "honks", "car horn honk", "car horn honks"),
    "knock": Words("someone", "knocks", "knock", "knocks", subject_article=False),
    "laser": Words("laser", "zaps", "laser zap", "laser zaps"),
    "owl": Words("owl", "hoots", "owl hoot", "owl hoots", subject_pitch=SIZE),
    "rain": Words(
        "rain", "falls", "rain", "", False, False, sound_loudness=("light", "heavy")
    ),
    "siren": Words("siren", "wails", "siren"),
    "thunder": Words(
        "thunder", "rumbles", "thunder clap", "thunder claps", subject_article=False
    ),
    "waves": Words("waves", "crash", "ocean waves", "", False, False),
    "whistle": Words("whistle", "blows", "whistle blast", "whistle blasts"),
    "wind": Words(
        "wind",
        "blows",
        "wind",
        "",
        False,
        False,
        ("deep", "whistling"),
        ("deep", "whistling"),
        ("gentle", "strong"),
    ),
}

LOUDLY = {"quiet": ("quietly", "softly"), "normal": ("",), "loud": ("loudly",)}
SPEEDILY = {
    "slow": ("slowly",),
    "normal": ("",),
    "fast": ("fast", "quickly"),
    None: ("",),
}
SPEEDY = {"slow": ("slow",), "normal": ("",), "fast": ("fast", "quick"), None: ("",)}
TIMES = {
    None: ("",),
    1: ("", "", "once"),
    2: ("twice", "two times"),
    3: ("three times",),
    4: ("four times",),
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
SINGLES = ("{clause}", "{clause}", "{phrase}", "the sound of {phrase}")
PAIRS = (
    "{clause1}, then {clause2}",
    "{clause1} and then {clause2}",
    "{clause1} before {clause2}",
    "{clause2} after {clause1}",
    "after {clause1}, {clause2}",
    "first {clause1}, then {clause2}",
    "{phrase1}, then {phrase2}",
    "{phrase1} followed by {phrase2}",
    "first {phrase1}, followed by {phrase2}",
    "{phrase1} before {phrase2}",
    "{phrase2} after {phrase1}",
    "the sound of {phrase1}, then {phrase2}",
)
TUNES = ("melody", "tune")
MOVES = {"rising": "rises", "falling": "falls"}
SCALED = {
    "major": "in a major key",
    "minor": "in a minor key",
    "pentatonic": "on a pentatonic scale",
}
MUSIC = (
    "{phrase}",
    "{phrase}",
    "the sound of {phrase}",
    "{player} plays {tune} {loudly}",
    "someone plays {tune} on the {instrument} {loudly}",
)
# For a tune that rises or falls, and for one that does neither and stays in the middle.
MOVING = ("{moving} {moves}",) * 2
PLAYING = ("{player} plays {manner}", "someone plays the {instrument} {manner}")
SPEECH = (
    "a {name} speaks {speedily} in a {pitch} voice",
    "a {name} with a {pitch} voice speaks {speedily}",
    "a {name} talks {speedily} in a {pitch} voice",
    "the {pitch} {speedy} voice of a {name}",
    "{speedy} speech in the {pitch} voice of a {name}",
)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _pitch_word(event: Event, words: tuple[str, str]) -> str:
    return {"low": words[0], "high": words[1]}.get(event.pitch, "")


def clause(event: Event, rng: np.random.Generator) -> str:
    """Describe an event by a sentence without a full stop: "a small dog barks loudly
    twice".
    """
    words = WORDS[event.name]
    subject = _join(_pitch_word(event, words.subject_pitch), words.subject)
    if words.subject_article:
        subject = _with_article(subject)
    manner = [
        m
        for m in (_pick(SPEEDILY[event.speed], rng), _pick(LOUDLY[event.loudness], rng))
        if m
    ]
    return _join(
        subject, words.verb, " and ".join(manner), _pick(TIMES[event.count], rng)
    )


def phrase(event: Event, rng: np.random.Generator) -> str:
    """Describe an event by a noun phrase: "two loud high dog barks"."""
    words = WORDS[event.name]
    loudness = {"quiet": words.sound_loudness[0], "loud": words.sound_loudness[1]}.get(
        event.loudness, ""
    )
    adjectives = _join(
        loudness, _pick(SPEEDY[event.speed], rng), _pitch_word(event, words.sound_pitch)
    )
    if event.count is not None and event.count > 1:
        return _join(NUMBERS[event.count], adjectives, words.sounds)
    if event.count == 1 and rng.random() < 0.25:
        return _join("one", adjectives, words.sound)
    body = _join(adjectives, words.sound)
    return _with_article(body) if words.sound_article else body


def _tellings(event: Event, rng: np.random.Generator, number: str) -> dict[str, str]:
    """The event as a clause and as a phrase; if the subject takes no pitch word, only
    the phrase can name the pitch.
    """
    told = {
        "clause" + number: clause(event, rng),
        "phrase" + number: phrase(event, rng),
    }
    if event.pitch in ("low", "high") and "" in WORDS[event.name].subject_pitch:
        told["clause" + number] = told["phrase" + number]
    return told


def _describe_tune(tune: Tune, rng: np.random.Generator) -> str:
    """Caption a tune: "a fast rising piano melody in a minor key", "someone plays the
    violin quietly".
    """
    word, moves = _pick(TUNES, rng), MOVES.get(tune.contour, "")
    contour, pitch = (tune.contour if moves else ""), _pitch_word(tune, ("low", "high"))
    loud, speedy = tune.loudness.replace("normal", ""), _pick(SPEEDY[tune.speed], rng)
    loudly = _pick(LOUDLY[tune.loudness], rng)
    manner = " and ".join(m for m in (loudly, _pick(SPEEDILY[tune.speed], rng)) if m)
    forms = MUSIC + (MOVING if moves else () if pitch else PLAYING)
    told = _pick(forms, rng).format(
        phrase=_with_article(_join(loud, speedy, pitch, contour, tune.name, word)),
        tune=_with_article(_join(speedy, pitch, contour, word)),
        moving=_with_article(_join(loud, speedy, pitch, tune.name, word)),
        player=_with_article(tune.name),
        manner=manner,
        instrument=tune.name,
        loudly=loudly,
        moves=moves,
    )
    scale = SCALED[tune.scale] if tune.tells_scale and rng.random() < 0.5 else ""
    return _join(*told.split(), scale)


def _describe_voice(utterance: Utterance, rng: np.random.Generator) -> str:
    """Caption an utterance: "a man speaks slowly in a low voice"."""
    return _pick(SPEECH, rng).format(
        name=utterance.name,
        pitch=utterance.pitch,
        speedy=_pick(SPEEDY[utterance.speed], rng),
        speedily=_pick(SPEEDILY[utterance.speed], rng),
    )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Caption a scene in one of many phrasings."""
    if isinstance(scene.events[0], Utterance):
        return _describe_voice(scene.events[0], rng)
    if isinstance(scene.events[0], Tune):
        return _describe_tune(scene.events[0], rng)
    if len(scene.events) == 1:
        return _pick(SINGLES, rng).format(**_tellings(scene.events[0], rng, ""))
    template = _pick(PAIRS, rng)
    return template.format(
        **_tellings(scene.events[0], rng, "1"), **_tellings(scene.events[1], rng, "2")
    )


def plain(name: str) -> str:
    """The shortest caption of a class, instrument or speaker: "a dog barks", "a piano
    plays", "a man speaks".
    """
    if name in SPEAKERS:
        return f"{_with_article(name)} speaks"
    if name in INSTRUMENTS:
        return f"{_with_article(name)} plays"
    words = WORDS[name]
    subject = _with_article(words.subject) if words.subject_article else words.subject
    return f"{subject} {words.verb}"


def _strings() -> Iterator[str]:
    for words in WORDS.values():
        for field in fields(words):
            value = getattr(words, field.name)
            if isinstance(value, str):
                yield value
            elif isinstance(value, tuple):
                yield from value
    for table in (LOUDLY, SPEEDILY, SPEEDY, TIMES):
        for options in table.values():
            yield from options
    yield from NUMBERS.values()
    yield from map(_frame, SINGLES + PAIRS)
    yield "a an and"


def _music_strings() -> Iterator[str]:
    yield from (*INSTRUMENTS, *TUNES, *MOVES, *MOVES.values(), *SCALED.values())
    yield from map(_frame, MUSIC + MOVING + PLAYING)


def _speech_strings() -> Iterator[str]:
    for voice in VOICES.values():
        yield from (voice.name, voice.pitch)
        yield from (*SPEEDY[voice.speed], *SPEEDILY[voice.speed])
    yield from map(_frame, SPEECH)


def _frame(template: str) -> str:
    """The words of the template itself."""
    return " ".join(
        word for word in template.replace(",", "").split() if "{" not in word
    )


def vocabulary(music: bool = False, speech: bool = False) -> list[str]:
    """All words that captions can contain, sorted; those of tunes only with `music`,
    those of voices only with `speech`.
    """
    texts = [*_strings()]
    texts += _music_strings() if music else []
    texts += _speech_strings() if speech else []
    return sorted({word for text in texts for word in text.split()})
