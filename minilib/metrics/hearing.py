"""The judges of speech: which word is said, and by whom.

Two were trained apart from all that they judge, on clean speech that is not that of
SoundWorld: a classifier of words and one of voices. Two nobody here trained: a speech
recogniser and, where it is installed, a speaker encoder. All are scored on clean speech
and on round trips first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minilib.classifier import Classifier
from minilib.metrics.questions import standard_error
from minilib.recogniser import Recogniser
from minilib.soundworld import VOICES, WORDS, render
from minilib.soundworld.corpus import to_float
from minilib.soundworld.speech import OTHERS
from minilib.speakers import ABSENT, SpeakerEncoder
from minilib.training.clips import uttered

ENROLLED = 12  # words from which a speaker is known
SAID = 2.56  # seconds in which every voice can say every word of SoundWorld
Pair = tuple[str, str]  # a word, and the voice that says it


@dataclass(frozen=True)
class Speakers:
    """The speakers of SoundWorld, each known to a speaker encoder by a few words that
    it is never asked about.
    """

    encoder: SpeakerEncoder
    known: Tensor  # (8, 256), a vector for each of VOICES

    @classmethod
    def enrolled(cls) -> Speakers:
        """Let the encoder hear ENROLLED words of OTHERS in each voice.

        Raises:
            ModuleNotFoundError: the encoder is not installed.
        """
        encoder, words = SpeakerEncoder(), OTHERS[:: len(OTHERS) // ENROLLED][:ENROLLED]
        heard = [[encoder.embed(clean(w, v, SAID)) for w in words] for v in VOICES]
        known = torch.stack([torch.stack(vectors).mean(dim=0) for vectors in heard])
        return cls(encoder, known / known.norm(dim=1, keepdim=True))

    def hear(self, wave: Tensor) -> str:
        """The voice of VOICES that is most like the speaker of a wave (N,)."""
        return list(VOICES)[int((self.known @ self.encoder.embed(wave)).argmax())]


@dataclass(frozen=True)
class SpeechJudges:
    """Who judges speech."""

    recogniser: Recogniser  # of all words of SoundWorld
    words: Classifier  # of the same words
    voices: Classifier  # of VOICES
    speakers: Speakers | None = None  # None where the encoder is not installed

    @classmethod
    def load(cls, folder: Path) -> SpeechJudges:
        """The judges in the folder of judges that ships, and those in packages.

        Raises:
            FileNotFoundError: the folder lacks them.
            ModuleNotFoundError: the recogniser is not installed.
        """
        own, parts = folder / "speech", []
        for name in ("words", "voices"):
            if not (own / name / "config.json").is_file():
                how = f"minilib train words voices --preset speech --out {own}"
                raise FileNotFoundError(
                    f"{own} lacks the judge {name}; train it with: {how}"
                )
            part = Classifier.from_pretrained(own / name, dtype=torch.float32)
            parts.append(part)
        recogniser = Recogniser(WORDS)
        try:
            return cls(recogniser, *parts, Speakers.enrolled())
        except ModuleNotFoundError as error:
            if str(error) != ABSENT:
                raise
            return cls(recogniser, *parts)

    def chance(self) -> dict[str, float]:
        """The score of guessing, for each question."""
        word, voice = 1 / len(self.words.config.classes), 1 / len(VOICES)
        found = {"word": 1 / len(self.recogniser.words), "word.class": word}
        found["voice"] = voice
        return {**found, "speaker": 2 * voice} if self.speakers else found

    def heard(self, waves: Tensor) -> dict[str, list[str]]:
        """What is heard in sounds (n, N): words by the recogniser (`word`) and by the
        classifier (`word.class`), voices by the classifier (`voice`) and by the speaker
        encoder (`speaker`).
        """
        found = {"word": [self.recogniser(wave) for wave in waves]}
        for name, judge in (("word.class", self.words), ("voice", self.voices)):
            classes, indices = judge.config.classes, judge.hear(waves)
            found[name] = [classes[i] for i in indices.tolist()]
        if self.speakers:
            found["speaker"] = [self.speakers.hear(wave) for wave in waves]
        return found


def answers(heard: dict[str, list[str]], said: Sequence[Pair]) -> dict[str, Tensor]:
    """Whether what `SpeechJudges` heard is what should be said: for each question a
    tensor (n,) of 0 and 1.

    `speaker` asks for the man or the woman, and for a high or a low voice, be it slow
    or fast.
    """
    words, voices = zip(*said, strict=True)
    wanted = {"word": words, "word.class": words, "voice": voices}
    found = {name: equal(heard[name], wanted[name]) for name in wanted}
    if "speaker" in heard:
        nearest = map(speaker, heard["speaker"])
        found["speaker"] = equal(nearest, map(speaker, voices))
    return found


def speaker(voice: str) -> tuple[str, str]:
    """Who speaks in a voice of VOICES, without the speed: name and pitch."""
    return VOICES[voice].name, VOICES[voice].pitch


def equal(found: Iterable, wanted: Iterable) -> Tensor:
    """Which of two sequences' elements are equal: (n,) of 0 and 1."""
    return torch.tensor([float(x == y) for x, y in zip(found, wanted, strict=True)])


def clustered_error(x: Tensor, of: Sequence[str]) -> float:
    """Standard error of the mean of answers (n,) that come in clusters, named by `of`
    (Liang and Zeger, Biometrika 73, 1986).

    Sounds of one word stand or fall together, so each counts for less than one: the
    sums over whole clusters are taken as independent. With one answer in each cluster
    it is nearly `standard_error`.
    """
    if len(different := sorted(set(of))) < 2:
        return standard_error(x)
    number = {name: k for k, name in enumerate(different)}
    sums = torch.zeros(len(number))
    sums.index_add_(0, torch.tensor([number[name] for name in of]), x - x.mean())
    G = len(number)
    return float((sums.square().sum() * G / (G - 1)).sqrt() / len(x))


def clean(word: str, voice: str, seconds: float) -> Tensor:
    """A word in a voice, rendered: (N,)."""
    return torch.from_numpy(to_float(render(uttered(word, voice, seconds))))
