"""Questions about sounds that were made from captions of held-out scenes, and their
answers beside chance, control, round trip and ceiling. Chapter 17 builds the measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib import audio, judges
from minilib.clap import CLAP
from minilib.classifier import Classifier
from minilib.convert.released import ReleasedCLAP
from minilib.data import AudioFolder
from minilib.frechet import frechet_distance
from minilib.soundworld import Event, SoundWorld

BATCH = 16  # sounds that are made or scored together
# questions about one event that are answered in closed form
QUESTIONS = ("pitch", "count", "speed", "loudness")
Listener = CLAP | ReleasedCLAP  # compares sounds with captions


# --------------------------------------------------------------------------------------
# Scenes that were held out from training


@dataclass(frozen=True)
class Scenes:
    """Scenes to generate and judge: captions (n), clean renders (n, N), classes
    (n, 1 or 2).
    """

    captions: list[str]
    waves: Tensor
    labels: Tensor
    # for scenes with one event: the event, which their captions describe
    events: list[Event] = field(default_factory=list)

    def shuffled(self, seed: int) -> Scenes:
        """The same scenes in an order that leaves none in its place."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.captions), generator=generator)
        other = torch.empty_like(order)
        # a cycle through all scenes: each is replaced by another
        other[order] = order.roll(1)
        events = [self.events[i] for i in other] if self.events else []
        captions = [self.captions[i] for i in other]
        return Scenes(captions, self.waves[other], self.labels[other], events)


def held_out_scenes(
    judge: Classifier,
    n: int,
    seed: int,
    seconds: float,
    n_events: int,
    music: bool = False,
) -> Scenes:
    """Draw scenes that were held out from training: combinations of attributes, or
    ordered pairs of classes.
    """
    shares = {"pairs": float(n_events - 1), "music": float(music)}
    world = SoundWorld("test", seed=seed, seconds=seconds, **shares)
    clips = [world[i] for i in range(n)]
    names = [[event.name for event in clip.scene.events] for clip in clips]
    number = {name: i for i, name in enumerate(judge.config.classes)}
    if unknown := {name for some in names for name in some} - set(number):
        said = f"judge does not know {', '.join(sorted(unknown))}"
        raise ValueError(f"{said}: train it on the same SoundWorld")
    labels = torch.tensor([[number[name] for name in some] for some in names])
    events = [clip.scene.events[0] for clip in clips] if n_events == 1 else []
    waves = torch.stack([clip.wave for clip in clips])
    return Scenes([clip.caption for clip in clips], waves, labels, events)


def recorded_scenes(
    judge: Classifier, folder: AudioFolder, n: int, seed: int, seconds: float
) -> Scenes:
    """Draw n recordings from a folder, with all classes that the judge knows equally
    likely.

    The table must have a column `class`; of each recording the first `seconds` are
    kept.
    """
    known, kinds = judge.config.classes, folder.by("class")
    kinds = {name: kind for name, kind in kinds.items() if name in known}
    if len(kinds) < 2:
        said = "holds too few of the classes that the judge knows"
        raise ValueError(f"{folder.folder} {said}: {', '.join(known)}")
    rng = np.random.default_rng(seed)
    names = rng.choice(list(kinds), size=n)
    drawn = [(kinds[name], int(rng.integers(len(kinds[name])))) for name in names]
    n_samples = round(seconds * audio.SAMPLE_RATE)
    waves = [kind.wave(i)[:n_samples] for kind, i in drawn]
    waves = torch.stack([F.pad(wave, (0, n_samples - len(wave))) for wave in waves])
    labels = torch.tensor([[known.index(name)] for name in names])
    return Scenes([kind.captions[i] for kind, i in drawn], waves, labels)


def enough_scenes(n: int, seed: int, seconds: float) -> int:
    """The number of held-out scenes of one event that ask each question of
    `judges.answers` at least n times.
    """
    world = SoundWorld("test", seed=seed, seconds=seconds, pairs=0.0)
    asked = dict.fromkeys(QUESTIONS, 0)
    for i in count():
        if min(asked.values()) >= n:
            return i
        for question in judges.chance(world.scene(i).events[0]):
            asked[question] += 1


# --------------------------------------------------------------------------------------
# The answers


def judged(judge: Classifier, waves: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Whether sounds have the wanted classes: for each question a tensor (n,) of 0 and
    1.

    One event: the whole clip has the right `class`. Two events: the `first` half has
    the first class, the `second` half the second, `both` have theirs; `any` also
    accepts the reverse order.

    Args:
        waves: (n, N); labels: (n, 1) or (n, 2), the indices of the classes in the order
            of the events.
    """
    if labels.shape[1] == 1:
        return {"class": (judge.hear(waves) == labels[:, 0]).float()}
    half = waves.shape[1] // 2
    halves = waves[:, :half], waves[:, half : 2 * half]
    heard = torch.stack([judge.hear(x) for x in halves], dim=1)  # (n, 2)
    right, swapped = heard == labels, heard.flip(1) == labels
    both = right.all(dim=1)
    answers = {"first": right[:, 0], "second": right[:, 1], "both": both}
    answers["any"] = both | swapped.all(dim=1)
    return {name: answer.float() for name, answer in answers.items()}


def chance(n_classes: int) -> dict[str, float]:
    """The score of guessing each class at random, for each question."""
    one = 1 / n_classes
    guesses = dict.fromkeys(("class", "first", "second"), one)
    return {**guesses, "both": one**2, "any": 2 * one**2}


def attributes(waves: Tensor, events: list[Event]) -> dict[str, Tensor]:
    """Whether sounds (n, N) have the attributes that their captions mention, in closed
    form.

    Returns a tensor (n,) of 0 and 1 for each question, NaN for events that it does not
    apply to.
    """
    pairs = zip(waves, events, strict=True)
    found = [judges.answers(wave, event) for wave, event in pairs]
    asked = sorted({question for answer in found for question in answer} - {"cents"})
    column = lambda q: torch.tensor([answer.get(q, math.nan) for answer in found])
    return {question: column(question) for question in asked}


@torch.no_grad()
def embeddings(listener: Listener, waves: Tensor) -> Tensor:
    """CLAP's embeddings (n, D) of sounds (n, N), of unit length."""
    device = next(listener.parameters()).device
    batches = (batch.to(device) for batch in waves.split(BATCH))
    return torch.cat([listener.embed_waves(batch).cpu() for batch in batches])


@torch.no_grad()
def cosines(listener: Listener, waves: Tensor, captions: list[str]) -> Tensor:
    """CLAP's cosine of each sound (n, N) and its caption: (n,), -1 to 1.

    Chapter 17.
    """
    told = listener.encode(captions).sequence[:, 0].cpu()  # (n, D)
    return (embeddings(listener, waves) * told).sum(dim=1)


@torch.no_grad()
def class_kl(judge: Classifier, waves: Tensor, references: Tensor) -> Tensor:
    """KL(p || q) in nats for each pair of sounds (n, N): p are the judge's class
    probabilities for the reference, q those for the sound; (n,). Chapter 17.
    """
    embedded = (judge.embed(x).to(judge.device) for x in (waves, references))
    q, p = (judge.head(features).log_softmax(dim=1).cpu() for features in embedded)
    return (p.exp() * (p - q)).sum(dim=1)


def scores(
    judge: Classifier, listener: Listener, n: int, waves: Tensor, scenes: Scenes
) -> dict[str, Tensor]:
    """The answers to all questions about sounds (m, N) that should match these scenes.

    Class and CLAP are asked about the first n sounds, the other attributes in the
    captions about all.
    """
    return {
        **judged(judge, waves[:n], scenes.labels[:n]),
        "clap": cosines(listener, waves[:n], scenes.captions[:n]),
        **(attributes(waves, scenes.events) if scenes.events else {}),
    }


def compared(
    judge: Classifier,
    listener: Listener,
    n: int,
    scenes: Scenes,
    sounds: dict[str, Tensor],
    kind: str = "single",
    seed: int = 0,
) -> dict[str, float]:
    """The answers for one kind of scenes, with chance, control, round trip and ceiling,
    named as in `evaluate`.

    Args:
        judge, listener, n: as for `scores`.
        sounds: `sounds_of` these scenes, each (m, N).
        kind: of scenes: `single`, `pair` or `music`; seed: of the shuffled captions.
    """
    ask = partial(scores, judge, listener, n)
    rounds = {prefix: ask(waves, scenes) for prefix, waves in sounds.items()}
    rounds["control."] = ask(sounds[""], scenes.shuffled(seed))
    guesses = chance(len(judge.config.classes))
    asked = [judges.chance(event) for event in scenes.events]
    for question in {question for guess in asked for question in guess}:
        guesses[question] = fmean(g[question] for g in asked if question in g)
    found = {}
    for question, own in rounds[""].items():
        name = question_name(kind, question)
        answers = {prefix: rounds[prefix][question] for prefix in rounds}
        found |= {f"{k}{name}": float(x.nanmean()) for k, x in answers.items()}
        found[f"se.{name}"] = standard_error(own)
        if question in guesses:
            found[f"chance.{name}"] = guesses[question]
    return found


def standard_error(x: Tensor) -> float:
    """Standard error of the mean of answers (n,), without NaN; for a share p it is
    binomial, sqrt(p (1 - p) / n). Chapter 17.
    """
    x = x[~x.isnan()]
    return float(x.std(correction=0)) / len(x) ** 0.5


def question_name(kind: str, question: str) -> str:
    """The name in `evaluate` of the answer to a question about scenes of a kind."""
    if kind == "single" and question in QUESTIONS:
        return question
    asked = "instrument" if (kind, question) == ("music", "class") else question
    return f"{kind}.{asked}"


def distances(
    name: str,
    sounds: dict[str, Tensor],
    renders: Tensor,
    embed: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The Fréchet distances between sets of sounds (n, N) and as many renders (n, N),
    by prefix and name.
    """
    other = embed(renders)
    distance = lambda waves: frechet_distance(embed(waves), other)
    return {f"{prefix}{name}": distance(waves) for prefix, waves in sounds.items()}
