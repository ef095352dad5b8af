"""What the stages learn from: captioned clips, recordings, and for the judge sounds of
known class.

Chapter 16 builds it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minilib import audio
from minilib.convert.released import ReleasedTokenizer
from minilib.data import AudioFolder, Corpus
from minilib.soundworld import SoundWorld
from minilib.tokenizer import Tokenizer
from minilib.training.loop import Recipe
from minilib.training.processes import is_main, n_processes

RENDERS = 4000  # clips of SoundWorld, at most
FEWEST = 20  # recordings of a class that are enough to learn it from


@dataclass
class TrainingData:
    """What the stages learn from: captioned clips, and recordings without captions if
    there are any.
    """

    corpus: Corpus  # clips with captions, all of one length
    tokenizer: Tokenizer
    # by kind; heard by VAE, vocoder and AudioMAE only
    recordings: list[Corpus] = field(default_factory=list)
    # LOA and latents of all clips, kept between stages
    features: dict[str, Tensor] = field(default_factory=dict)
    # of all captions, likewise
    conditions: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    clap_tokenizer: ReleasedTokenizer | None = None  # CLAP's own, where it has one
    folder: AudioFolder | None = None  # where the clips are from; None for SoundWorld

    def waves(self, recipe: Recipe, generator: torch.Generator) -> Tensor:
        """Draw a batch of clips (B, N), some of them recordings where there are any:
        each a kind, a clip, a gain.
        """
        n_recorded = (
            round(recipe.batch_size * recipe.recorded) if self.recordings else 0
        )
        waves = [
            self.corpus.wave(
                draw(len(self.corpus), recipe.batch_size - n_recorded, generator)
            )
        ]
        for kind in torch.randint(
            len(self.recordings) or 1, (n_recorded,), generator=generator
        ).tolist():
            clip = self.recordings[kind].wave(
                draw(len(self.recordings[kind]), 1, generator)
            )
            # -9 to +3 dB
            gain = 10.0 ** (0.6 * torch.rand((), generator=generator) - 0.45)
            if recipe.narrow and torch.rand((), generator=generator) < recipe.narrow:
                clip = low_passed(
                    clip, 2000 + 4000 * float(torch.rand((), generator=generator))
                )
            waves.append((clip * gain).clamp(-1.0, 1.0))
        return torch.cat(waves)

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Draw n captioned clips: indices (n,) and captions."""
        indices = draw(len(self.corpus), n, generator)
        return indices, [self.corpus.captions[i] for i in indices.tolist()]


def low_passed(waves: Tensor, hertz: float) -> Tensor:
    """Waves (B, N) without the frequencies above `hertz`, as a telephone or an old
    recorder leaves them.
    """
    spectrum = torch.fft.rfft(waves)
    spectrum[:, round(hertz * waves.shape[1] / audio.SAMPLE_RATE) :] = 0
    return torch.fft.irfft(spectrum, waves.shape[1])


def draw(total: int, n: int, generator: torch.Generator) -> Tensor:
    """n of `total` indices, without repetition where there are enough."""
    if n <= total:
        return torch.randperm(total, generator=generator)[:n]
    return torch.randint(total, (n,), generator=generator)


def crop(waves: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
    """Cut a piece of n_samples from each wave (B, N): of three random ones the loudest,
    for little to learn is silence.
    """
    starts = torch.randint(
        waves.shape[1] - n_samples + 1, (3, len(waves), 1), generator=generator
    )
    # (3, B, n_samples)
    pieces = torch.stack(
        [waves.gather(1, start + torch.arange(n_samples)) for start in starts]
    )
    loudest = pieces.square().sum(dim=2).argmax(dim=0)  # (B,)
    return pieces[loudest, torch.arange(len(waves))]


class Labelled(ABC):
    """Sounds and what they are of."""

    classes: tuple[str, ...]  # to tell apart

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n waveforms (n, N) and the numbers of their classes (n,)."""


class Renders(Labelled):
    """Clean renders of SoundWorld, none of which the generator has been trained on."""

    def __init__(self, classes: tuple[str, ...], n: int, seed: int):
        self.classes = classes
        # no clip of the generator's own training
        world = SoundWorld("train", seed + 1, music=0.3)
        n = min(n, RENDERS)
        # each process renders all clips
        workers = max(1, (os.cpu_count() or 1) // n_processes())
        self.clips = Corpus.from_soundworld(
            world, n, progress=is_main(), workers=workers
        )
        number = {name: i for i, name in enumerate(classes)}
        self.labels = [
            [number[event.name] for event in world.scene(i).events] for i in range(n)
        ]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Whole clips of one event, or one half of clips of two."""
        n_events = 1 + int(torch.randint(2, (), generator=generator))
        candidates = [
            i for i, labels in enumerate(self.labels) if len(labels) == n_events
        ]
        indices = torch.tensor(candidates)[draw(len(candidates), n, generator)]
        halves = torch.randint(n_events, (len(indices),), generator=generator)
        n_samples = self.clips.waves.shape[1] // n_events
        # (B, events, N / events)
        clips = self.clips.wave(indices).unflatten(1, (n_events, n_samples))
        pairs = zip(indices.tolist(), halves.tolist(), strict=True)
        labels = torch.tensor([self.labels[i][half] for i, half in pairs])
        return clips[torch.arange(len(indices)), halves], labels


class Recordings(Labelled):
    """Recordings of a folder whose table has a column `class`: the classes with enough
    of them.

    What is learned must not hang on where in a clip a sound stands, on its level or on
    what digital silence sounds like: each is turned round in time, made louder or
    softer, and laid over faint noise.
    """

    def __init__(self, folder: AudioFolder, seconds: float):
        if "class" not in folder.rows[0]:
            raise ValueError(
                f"{folder.folder} has no column 'class' that a judge could learn"
            )
        kinds = {
            name: kind
            for name, kind in folder.by("class").items()
            if len(kind) >= FEWEST
        }
        if len(kinds) < 2:
            raise ValueError(
                f"{folder.folder} must hold {FEWEST} recordings or more of two "
                f"classes, to tell them apart"
            )
        self.classes = tuple(kinds)
        self.clips = [
            Corpus.from_folder(kind, seconds, progress=False) for kind in kinds.values()
        ]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips of classes that are all as likely."""
        labels, waves = torch.randint(len(self.clips), (n,), generator=generator), []
        for label in labels.tolist():
            clips = self.clips[label]
            wave = clips.wave(draw(len(clips), 1, generator))[0]
            wave = wave.roll(int(torch.randint(len(wave), (), generator=generator)))
            loud, faint = torch.rand(2, generator=generator).tolist()
            # -12 to +6, -100 to -60 dB
            gain, floor = 10.0 ** (0.9 * loud - 0.6), 10.0 ** (2.0 * faint - 5.0)
            noise = torch.randn(wave.shape, generator=generator)
            waves.append((gain * wave + floor * noise).clamp(-1.0, 1.0))
        return torch.stack(waves), labels
