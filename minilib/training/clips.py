"""What the stages learn from: captioned clips, recordings, and for the judge sounds of
known class.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minilib import audio
from minilib.audiomae import AudioMAE
from minilib.conditions import Context, drop, to_batch
from minilib.data import AudioFolder, Corpus
from minilib.soundworld import SoundWorld
from minilib.tokenizer import Tokenizer
from minilib.training.processes import is_main, n_processes
from minilib.vae import VAE

RENDERS = 4000  # clips of SoundWorld, at most
FEWEST = 20  # recordings of a class that are enough to learn it from
BATCH = 64  # captions that are encoded together


@dataclass
class TrainingData:
    """What the stages learn from: captioned clips, and recordings without captions if
    there are any.
    """

    corpus: Corpus  # clips with captions, all of one length
    # with which CLAP and T5 learn to read; None for a released pipeline, which can
    tokenizer: Tokenizer | None = None
    # by kind; heard by VAE, vocoder and AudioMAE only
    recordings: list[Corpus] = field(default_factory=list)
    transcriptions: list[str] | None = None  # what is said in each clip
    folder: AudioFolder | None = None  # where the clips are from; None for SoundWorld
    # what frozen parts make of all clips, kept between stages: by part and its setting
    features: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    # what frozen encoders make of all that they read, likewise: by part
    encoded: dict[str, Encoded] = field(default_factory=dict)
    progress: bool = True  # show bars

    def waves(self, n: int, recorded: float, generator: torch.Generator) -> Tensor:
        """Draw n clips (n, N), a share of them recordings where there are any: each a
        kind, a clip, a gain.
        """
        n_recorded = round(n * recorded) if self.recordings else 0
        waves = [self.corpus.wave(draw(len(self.corpus), n - n_recorded, generator))]
        n_kinds = len(self.recordings) or 1
        for kind in torch.randint(n_kinds, (n_recorded,), generator=generator).tolist():
            clips = self.recordings[kind]
            clip = clips.wave(draw(len(clips), 1, generator))
            # -9 to +3 dB
            gain = 10.0 ** (0.6 * torch.rand((), generator=generator) - 0.45)
            waves.append((clip * gain).clamp(-1.0, 1.0))
        return torch.cat(waves)

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Draw n captioned clips: indices (n,) and captions."""
        indices = draw(len(self.corpus), n, generator)
        return indices, [self.corpus.captions[i] for i in indices.tolist()]

    def mels(self, n: int) -> Tensor:
        """Log-mels (n, 1, T, F) of the first n clips, or of all."""
        return audio.log_mel(self.corpus.wave(range(min(n, len(self.corpus)))))

    def texts(self, encoder: Any) -> list[str]:
        """What an encoder reads of each clip: its caption, or what is said in it."""
        if encoder.reads == "caption":
            return self.corpus.captions
        if self.transcriptions is None:
            name = type(encoder).__name__
            raise ValueError(f"these clips have no {encoder.reads}, which {name} reads")
        return self.transcriptions

    def told(
        self,
        encoders: dict[str, Any],
        indices: Tensor,
        dropped: Tensor,
        learning: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """What encoders make of clips (B,) and, where `dropped` (B,) says so, of
        nothing: conditions as the losses name them. Those that are `learning` are left
        to the loss: of encoder NAME there are `NAME_ids` and `NAME_ids_mask`.
        """
        told, empty, batch = {}, {}, {}
        for name, encoder in encoders.items():
            every = self.texts(encoder)
            texts = [every[i] for i in indices.tolist()]
            if name in learning:
                ids, mask = (x.cpu() for x in encoder.read(texts))
                batch |= {f"{name}_ids": ids, f"{name}_ids_mask": mask}
                batch["dropped"] = dropped
                continue
            if name not in self.encoded:
                self.encoded[name] = Encoded(encoder, every)
            known = self.encoded[name]
            told[name], empty[name] = known(texts), known.empty
        return batch | to_batch(drop(told, empty, dropped))

    def loa(self, audiomae: AudioMAE, n_tokens: int) -> Tensor:
        """The LOA (N, L, D) of all clips at the lambda that makes `n_tokens` vectors,
        computed once.
        """
        pool = audiomae.config.pool_for(n_tokens)
        return self.over_clips(("audiomae", pool), lambda mel: audiomae.loa(mel, pool))

    def latents(self, vae: VAE) -> Tensor:
        """The latents z0 (N, C, T/r, F/r) of all clips, computed once."""
        vae.to(memory_format=torch.channels_last)
        return self.over_clips(("vae", 0), vae.encode)

    @torch.no_grad()
    def over_clips(
        self, key: tuple[str, int], function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A function of the log-mels of all clips, computed once: (N, ...)."""
        if key not in self.features:
            n = len(self.corpus)
            batches = torch.arange(n).split(8)  # as the CPU's cache holds
            batches = bar(batches, key[0], self.progress)
            mels = (audio.log_mel(self.corpus.wave(batch)) for batch in batches)
            self.features[key] = concatenated(n, map(function, mels))
        return self.features[key]

    def forget(self, part: str) -> None:
        """Drop what was computed by a part that has been trained anew."""
        self.encoded.pop(part, None)
        for key in [key for key in self.features if key[0] == part]:
            del self.features[key]


class Encoded:
    """What a frozen encoder makes of texts, each encoded once and kept without padding;
    called, it gives some of them as one context.
    """

    @torch.no_grad()
    def __init__(self, encoder: Any, texts: Sequence[str]):
        here = lambda context: Context(*(x if x is None else x.cpu() for x in context))
        self.empty: Context = here(encoder.empty(1))
        self.rows: dict[str, Tensor] = {}
        different = sorted(set(texts), key=lambda text: (len(text), text))
        for start in range(0, len(different), BATCH):
            some = different[start : start + BATCH]
            x, mask = here(encoder.encode(some))
            rows = x if mask is None else x[mask].split(mask.sum(dim=1).tolist())
            self.rows |= zip(some, rows)

    def __call__(self, texts: Sequence[str]) -> Context:
        """The context (B, S, D), padded as the encoder pads."""
        rows = [self.rows[text] for text in texts]
        if self.empty.mask is None:
            return Context(torch.stack(rows))
        lengths = torch.tensor([len(row) for row in rows])
        S = max(self.empty.sequence.shape[1], int(lengths.max()))
        padded = [F.pad(row, (0, 0, 0, S - len(row))) for row in rows]
        return Context(torch.stack(padded), torch.arange(S) < lengths[:, None])


def bar(batches: Sequence[Tensor], part: str, progress: bool) -> Iterable[Tensor]:
    """The batches, with a bar that says who goes over all clips."""
    shown = {"desc": f"{part} over all clips", "unit": "batch", "leave": False}
    return tqdm(batches, disable=not (progress and is_main()), **shown)


def concatenated(n: int, pieces: Iterable[Tensor]) -> Tensor:
    """Pieces (k, ...) as one tensor (n, ...), each copied at once to where it will
    stay.

    Kept one by one they would lie scattered among all that was computed and freed
    between them, and a process would grow by several times what they hold.
    """
    whole, end = torch.empty(0), 0
    for piece in pieces:
        whole = whole if len(whole) else piece.new_empty(n, *piece.shape[1:])
        whole[end : end + len(piece)] = piece
        end += len(piece)
    return whole


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

    def __init__(
        self, classes: tuple[str, ...], n: int, seed: int, progress: bool = True
    ):
        self.classes = classes
        # no clip of the generator's own training
        world = SoundWorld("train", seed + 1, music=0.3)
        n = min(n, RENDERS)
        # each process renders all clips
        workers = max(1, (os.cpu_count() or 1) // n_processes())
        shown = {"progress": progress and is_main(), "workers": workers}
        self.clips = Corpus.from_soundworld(world, n, **shown)
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
        kinds = learnable(folder)
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


def learnable(folder: AudioFolder) -> dict[str, AudioFolder]:
    """The recordings of each class that has enough of them.

    Raises:
        ValueError: the table tells no classes, or there are fewer than two.
    """
    if "class" not in folder.rows[0]:
        lacks = "has no column 'class' that a judge could learn"
        raise ValueError(f"{folder.folder} {lacks}")
    kinds = folder.by("class").items()
    found = {name: kind for name, kind in kinds if len(kind) >= FEWEST}
    if len(found) < 2:
        wanted = f"{FEWEST} recordings or more of two classes, to tell them apart"
        raise ValueError(f"{folder.folder} must hold {wanted}")
    return found
