"""espeak-ng: text to phonemes and to speech, by the library's own functions
(chapter 11b).

espeak-ng is a formant synthesiser with pronunciation rules. The package
`espeakng-loader` carries it as a shared library with its data, and ctypes calls it:
nothing else must be installed. It is under the GPL-3, so it is an extra of this package
and none of its code is here.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import soxr

from ..arguments import check_whole

SAMPLE_RATE = 16000  # Hz
# Of speak_lib.h: parameters, kinds of event, and what is asked for
RATE, PITCH = 1, 3
WORD, END, PHONEME = 1, 0, 7
SYNCHRONOUS, UTF8, AS_IPA = 2, 1, 2
# phoneme events, named in IPA; without a configuration the library must not exit
OPTIONS = 0x1 | 0x2 | 0x8000
PITCHES = (0, 99)
RATES = (80, 450)
SEED = 0  # of the breath in some voices
# characters other than letters and digits that the English rules read or pause at
SIGNS = frozenset(".,;:!?'\"()-/&%$£€+=@#*\u2013\u2014\u2018\u2019\u201c\u201d\u2026")
ABSENT = (
    "espeak-ng, which turns text into phonemes and speech, is not installed: "
    "pip install espeakng-loader"
)


class Piece(NamedTuple):
    """A word or a phoneme within a sound; times in seconds from its start."""

    symbol: str  # the word as it is written, the phoneme in IPA
    start: float
    end: float


class Spoken(NamedTuple):
    """What espeak-ng says: wave (N,) float32 in (-1, 1) at 16 kHz, and its pieces."""

    wave: np.ndarray
    words: tuple[Piece, ...]
    phonemes: tuple[Piece, ...]


def speak(
    text: str, voice: str = "en-us", pitch: int = 50, rate: int = 175
) -> np.ndarray:
    """Say a text: wave (N,) float32 in (-1, 1) at 16 kHz; arguments as for `say`."""
    return say(text, voice, pitch, rate).wave


def say(text: str, voice: str = "en-us", pitch: int = 50, rate: int = 175) -> Spoken:
    """Say a text, and note when each word and phoneme is heard.

    The same arguments give the same samples, whatever was said before.

    Args:
        text: English, at most a few sentences.
        voice: a language, and after a plus a variant: "en-us+f2".
        pitch: from 0 to 99; 50 is the voice's own.
        rate: words per minute, from 80 to 450.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError: there is nothing to say, a character can't be read, the voice is
            unknown, or a number lies outside its range.
    """
    check_text(text)
    pitch = check_whole("pitch", pitch, *PITCHES)
    rate = check_whole("rate", rate, *RATES)
    with library() as espeak:
        _set_voice(espeak, voice)
        for parameter, value in ((PITCH, pitch), (RATE, rate)):
            _check(espeak.espeak_SetParameter(parameter, value, 0))
        samples, events = _synthesise(espeak, text)
    if not samples or not any(kind == PHONEME and name for kind, *_, name in events):
        raise ValueError(f"text must hold something to say, not {text[:40]!r}")
    wave = np.concatenate(samples).astype(np.float32) / 32768
    words, phonemes = _pieces(text, events, espeak.rate)
    return Spoken(soxr.resample(wave, espeak.rate, SAMPLE_RATE), words, phonemes)


@functools.lru_cache(maxsize=4096)
def ipa(text: str, voice: str = "en-us") -> str:
    """The phonemes of a text in IPA, with stress marks and a space between words, by
    espeak-ng's own rules; "" if nothing is pronounced.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError: a character can't be read, or the voice is unknown.
    """
    check_text(text)
    clauses = []
    with library() as espeak:
        _set_voice(espeak, voice)
        # the function moves the pointer from clause to clause, and to NULL at the end
        rest = ctypes.c_char_p(text.encode())
        while rest.value is not None:
            at = ctypes.byref(rest)
            clauses.append(espeak.espeak_TextToPhonemes(at, UTF8, AS_IPA).decode())
    return " ".join(" ".join(clauses).split())


def check_text(text: str) -> None:
    """Raise a sentence unless all of a text can be read by English rules."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    for character in text:
        if not _readable(character):
            said = f"it holds {character!r} ({unicodedata.name(character, 'unnamed')})"
            allowed = "Latin letters, digits and punctuation can be read as English"
            raise ValueError(f"text must be English: {said}, and only {allowed}")


@functools.lru_cache(maxsize=4096)
def _readable(character: str) -> bool:
    if character.isspace() or character in SIGNS or character in "0123456789":
        return True
    return character.isalpha() and "LATIN" in unicodedata.name(character, "")


# --------------------------------------------------------------------------------------
# The library


class _Name(ctypes.Union):
    _fields_ = [("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint)]
    _fields_ += [("text_position", ctypes.c_int), ("length", ctypes.c_int)]
    _fields_ += [("audio_position", ctypes.c_int), ("sample", ctypes.c_int)]
    _fields_ += [("user_data", ctypes.c_void_p), ("id", _Name)]


SYNTH_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_lock = threading.Lock()


def loader() -> ModuleType:
    """The package that carries espeak-ng.

    Raises:
        ModuleNotFoundError: it is not installed; the error says what to install.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise ModuleNotFoundError(ABSENT) from error
    return espeakng_loader


@contextmanager
def library() -> Iterator[ctypes.CDLL]:
    """A freshly loaded espeak-ng, for one thread at a time; `rate` is that of its
    samples in Hz.

    The library is loaded for each call (3 ms) because its wave generator runs on from
    one text to the next: what it said before would change what it says now.
    """
    package = loader()
    with _lock:
        espeak = ctypes.CDLL(package.get_library_path())
        try:
            data = package.get_data_path().encode()
            espeak.rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, data, OPTIONS)
            if espeak.rate <= 0:
                raise RuntimeError(f"espeak-ng finds no data in {data.decode()!r}")
            espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
            _check(espeak.espeak_ng_SetRandSeed(ctypes.c_long(SEED)))
            yield espeak
            _check(espeak.espeak_Terminate())
        finally:
            close = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary
            close(espeak._handle)


def _set_voice(espeak: ctypes.CDLL, voice: str) -> None:
    """Choose a voice; ValueError for an unknown one, which the library answers by
    keeping the voice it has, or for a variant even reports as set.
    """
    _, plus, variant = voice.partition("+")
    variants = Path(loader().get_data_path()) / "voices" / "!v"
    known = not plus or variant in {path.name for path in variants.iterdir()}
    if not known or espeak.espeak_SetVoiceByName(voice.encode()):
        example = 'such as "en-us" or "en-us+f2"'
        said = f"voice must be one that espeak-ng knows, {example}, not {voice!r}"
        raise ValueError(said)


def _synthesise(
    espeak: ctypes.CDLL, text: str
) -> tuple[list[np.ndarray], list[tuple[int, int, int, int, bytes]]]:
    """The samples of a text, piece by piece, and its events: kind, sample, position and
    length in the text, name.
    """
    samples: list[np.ndarray] = []
    events: list[tuple[int, int, int, int, bytes]] = []

    @SYNTH_CALLBACK
    def heard(wave, n, event):
        if n > 0:
            samples.append(np.ctypeslib.as_array(wave, (n,)).copy())
        i = 0
        while (e := event[i]).type != END:
            events.append((e.type, e.sample, e.text_position, e.length, e.id.string))
            i += 1
        return 0

    espeak.espeak_SetSynthCallback(heard)
    data = text.encode() + b"\0"
    _check(espeak.espeak_Synth(data, len(data), 0, 1, 0, UTF8, None, None))
    _check(espeak.espeak_Synchronize())
    return samples, events


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"espeak-ng reports error {status}")


def _pieces(
    text: str, events: list[tuple[int, int, int, int, bytes]], rate: int
) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """The words and phonemes of these events, each up to the next phoneme or pause."""
    sounds = [
        (at, where, name) for kind, at, where, _, name in events if kind == PHONEME
    ]
    ends = [at for at, _, _ in sounds[1:]] + [sounds[-1][0]]
    phonemes, words = [], []
    for (at, _, name), end in zip(sounds, ends):
        if name:
            phonemes.append(Piece(name.decode(), at / rate, end / rate))
    for kind, _, where, length, _ in events:
        times = [(at, end) for (at, w, n), end in zip(sounds, ends) if n and w == where]
        if kind == WORD and times:  # positions count characters from 1
            word = text[where - 1 : where - 1 + length]
            words.append(Piece(word, times[0][0] / rate, times[-1][1] / rate))
    return tuple(words), tuple(phonemes)
