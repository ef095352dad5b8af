"""The data of the stages: captioned clips, recordings, and for the judge sounds of
known class.
"""

from __future__ import annotations

import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minilib import audio
from minilib.audiomae import AudioMAE, Columns, heard
from minilib.conditions import Context, drop, to_batch
from minilib.data import AudioFolder, Corpus
from minilib.files import replacing
from minilib.model import Model
from minilib.soundworld import (
    VOICES,
    WORDS,
    Scene,
    SoundWorld,
    describe,
    draw_utterance,
    espeak,
)
from minilib.soundworld.corpus import render
from minilib.soundworld.espeak import Spoken
from minilib.soundworld.speech import lexicon, spoken, voices
from minilib.streams import Stream
from minilib.tokenizer import Tokenizer
from minilib.training.features import (
    TOGETHER,
    Computed,
    Encoded,
    Kept,
    KeptTexts,
    concatenated,
    in_order,
    of_sounds,
    of_texts,
    on_device,
)
from minilib.training.fingerprints import fingerprint, samples, weights
from minilib.training.processes import is_main, n_processes
from minilib.training.shards import Shards
from minilib.vae import VAE

RENDERS = 4000  # the most clips of SoundWorld
FEWEST = 20  # the fewest recordings from which a class can be learned
BEGIN = 0.04  # seconds of silence before speech
# how the judge of words hears them: variants of espeak-ng, and manners of each word
VARIANTS = tuple(f"en-us+{x}" for x in ("m3", "f2", "m3", "f2", "m1", "m7", "f3", "f5"))
MANNERS = 24
SAYINGS = 160  # words from which the judge of voices learns
SPOKEN = "spoken.json"  # beside a corpus of speech: word and voice of each clip


@dataclass
class TrainingData:
    """The data of the stages: captioned clips, and recordings without captions if there
    are any.
    """

    corpus: Corpus | Stream  # clips with captions, all of one length
    # CLAP and T5 learn to read with it; None for a released pipeline, which has its own
    tokenizer: Tokenizer | None = None
    # by kind; only VAE, vocoder and AudioMAE train on them
    recordings: list[Corpus] = field(default_factory=list)
    transcriptions: list[str] | None = None  # the words spoken in each clip
    voices: list[str] | None = None  # and the voice that speaks them
    folder: AudioFolder | None = None  # the clips' source; None for SoundWorld
    # outputs of frozen parts for all clips, kept between stages: by part and setting
    features: dict[tuple[str, int], Tensor | Kept] = field(default_factory=dict)
    # outputs of frozen encoders for all their texts, kept in the same way: by part
    encoded: dict[str, Encoded | KeptTexts] = field(default_factory=dict)
    progress: bool = True  # show bars
    # False for a stage whose batches need no sound: no clip of a stream is read ahead
    hears: bool = True
    # folder in which outputs of frozen parts are kept for all clips, instead of memory
    shards: Path | None = None
    fly: bool = False  # compute them when they are asked for, even of clips in memory
    # of a stream, what the present stage draws from in the place of unusable clips
    usable: Tensor | None = None
    unusable: dict[int, str] = field(default_factory=dict)  # its rows, and why

    @property
    def streamed(self) -> bool:
        """Whether the clips are read when they are asked for."""
        return isinstance(self.corpus, Stream)

    def begin(self, hears: bool) -> None:
        """Get ready for a stage whose batches need sounds, or only what is kept."""
        self.hears, self.usable = hears, None
        if self.streamed:
            self.corpus.cut()

    def report(self) -> str:
        """The rows of a stream that were skipped, as one line; "" if none."""
        return self.corpus.report(self.unusable) if self.streamed else ""

    def close(self) -> None:
        """End the processes that read a stream."""
        if self.streamed:
            self.corpus.close()

    def clips(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the indices (n,) of clips; of a stream, those that can be read."""
        if not self.streamed:
            return draw(len(self.corpus), n, generator)
        drawn = self.drawn(n, generator)
        known = self.usable is not None or not self.hears
        return drawn if known else self.corpus.settled(drawn)

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the indices (n,) of a stream's clips: usable ones if they are known."""
        drawn = self.corpus.drawn(n, generator)
        if self.usable is None:
            return drawn
        return self.usable[self.corpus.numbers(drawn)]

    def ahead(self, n: int, generator: torch.Generator) -> None:
        """Let a stream begin to read the clips that a later batch will draw first."""
        if self.streamed and self.hears:
            self.corpus.ahead(self.drawn(n, generator))

    def first(self, n: int) -> Tensor:
        """The indices of the first n clips, or of all; of a stream, of n that are
        spread evenly.
        """
        if self.streamed:
            return self.corpus.settled(self.corpus.some(n))
        return torch.arange(min(n, len(self.corpus)))

    def waves(self, n: int, recorded: float, generator: torch.Generator) -> Tensor:
        """Draw n clips (n, N), a share of them recordings if there are any. For each
        recording, a kind, a clip and a gain are drawn.
        """
        n_recorded = round(n * recorded) if self.recordings else 0
        waves = [self.corpus.wave(self.clips(n - n_recorded, generator))]
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
        indices = self.clips(n, generator)
        return indices, [self.corpus.captions[i] for i in indices.tolist()]

    def mels(self, n: int) -> Tensor:
        """Log-mels (n, 1, T, F) of the first n clips, or of all."""
        return audio.log_mel(self.corpus.wave(self.first(n)))

    def texts(self, encoder: Any) -> Sequence[str]:
        """The text that an encoder reads for each clip: its caption, or its words."""
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
        """The conditions of clips (B,), named as in the losses, empty where `dropped`
        (B,) is true. Encoders that are `learning` run inside the loss: for encoder NAME
        the batch holds `NAME_ids` and `NAME_ids_mask`.
        """
        told, empty, batch = {}, {}, {}
        for name, encoder in encoders.items():
            if encoder.reads == "picture":  # it hears the clips
                sounds = self.heard(name, encoder)[indices]
                told[name], empty[name] = Context(sounds[:, None]), encoder.empty(1)
                continue
            every = self.texts(encoder)
            texts = [every[i] for i in indices.tolist()]
            if name in learning:
                ids, mask = (x.cpu() for x in encoder.read(texts))
                batch |= {f"{name}_ids": ids, f"{name}_ids_mask": mask}
                batch["dropped"] = dropped
                continue
            if self.shards is not None:
                known = self.kept_texts(name, encoder)
                told[name], empty[name] = known(indices), known.empty
                continue
            if name not in self.encoded:
                known = () if self.streamed else every
                self.encoded[name] = Encoded(encoder, known)
            known = self.encoded[name]
            told[name], empty[name] = known(texts), known.empty
        return batch | to_batch(drop(told, empty, dropped))

    def heard(self, name: str, encoder: Any) -> Tensor:
        """The embeddings (N, dim) of the sounds of all clips, in the place of pictures,
        by the encoder of this name; computed once.
        """
        embed = lambda mel: encoder.embed("audio", mel)
        return self.over_clips((name, 0), embed, of=(encoder,))

    def loa(self, audiomae: AudioMAE, n_tokens: int) -> Tensor:
        """The LOA (N, L, D) of all clips, for the lambda that gives `n_tokens` vectors,
        computed once.
        """
        pool = audiomae.config.pool_for(n_tokens)
        loa = lambda mel: audiomae.loa(mel, pool)
        hear = partial(heard, audiomae)
        return self.over_clips(("audiomae", pool), loa, hear, of=(audiomae,))

    def columns(self, audiomae: AudioMAE, columns: Columns) -> Tensor:
        """The LOA (N, L, D) of all clips, a vector for each column of patches, computed
        once.
        """
        loa = lambda mel: columns.loa(audiomae, mel)
        return self.over_clips(("columns", 0), loa, of=(audiomae, columns))

    def latents(self, vae: VAE) -> Tensor:
        """The latents z0 (N, C, T/r, F/r) of all clips, computed once."""
        vae.to(memory_format=torch.channels_last)
        return self.over_clips(("vae", 0), vae.encode, of=(vae,))

    @torch.no_grad()
    def over_clips(
        self,
        key: tuple[str, int],
        function: Callable[[Tensor], Tensor],
        hear: Callable[[Tensor], Tensor] = audio.log_mel,
        of: Sequence[Model] = (),
    ) -> Tensor | Computed | Kept:
        """The values (N, ...) of a function of all clips' log-mels, or of what `hear`
        makes of their waves, computed once. Those of a stream are computed whenever
        some are asked for, if they are not kept as shards.

        `of` are the frozen parts on whose weights the values depend; what depends on
        none is quick to compute, and is never kept as shards.
        """
        if self.shards is not None and of:
            return self.kept(key, function, hear, of)
        if self.streamed or self.fly:
            return Computed(lambda wave: function(hear(wave)), self.corpus)
        if key not in self.features:
            n = len(self.corpus)
            batches = torch.arange(n).split(TOGETHER)
            batches = bar(batches, key[0], self.progress)
            mels = (hear(self.corpus.wave(batch)) for batch in batches)
            self.features[key] = concatenated(n, map(function, mels))
        return self.features[key]

    def kept(
        self,
        key: tuple[str, int],
        function: Callable[[Tensor], Tensor],
        hear: Callable[[Tensor], Tensor],
        of: Sequence[Model],
    ) -> Kept:
        """The values (N, ...) of `over_clips` in shards; of a stream, those of as many
        pieces of each recording as cover one on average.
        """
        n = len(self.corpus)
        if self.streamed:
            self.corpus.cut(self.corpus.covered)
            n *= len(self.corpus.grid)
        if key not in self.features:
            folder = self.shards / "-".join(map(str, key))
            make = partial(of_sounds, self.corpus, function, hear)
            shards = Shards(folder, n, self.source(key, of), make)
            with on_device(of):
                shards.fill(self.progress)
            self.features[key] = Kept(shards, self.corpus)
        found = self.features[key]
        if self.streamed and self.usable is None:
            self.usable, skipped = found.shards.heard()
            self.unusable |= skipped
        return found

    def kept_texts(self, name: str, encoder: Any) -> KeptTexts:
        """What an encoder returns for the texts of all clips, in shards: each different
        text once, or, of a stream, the text of each row.
        """
        if name not in self.encoded:
            n, read, place, every = len(self.corpus), None, None, []
            if self.streamed:
                read, place = self.corpus.said, lambda clip: clip % n
            else:
                texts = self.texts(encoder)
                every = in_order(texts)
                n, at = len(every), {text: i for i, text in enumerate(every)}
                read, place = every.__getitem__, lambda clip: at[texts[clip]]
            source = self.source((name, 0), (encoder,), every)
            make = partial(of_texts, encoder, read)
            shards = Shards(self.shards / name, n, source, make)
            with on_device((encoder,)):
                shards.fill(self.progress)
            self.encoded[name] = KeptTexts(encoder, shards, place)
        return self.encoded[name]

    def source(
        self, key: tuple[str, int], of: Sequence[Model], texts: Sequence[str] = ()
    ) -> str:
        """A fingerprint of all that the features of some frozen parts depend on."""
        about = [repr(key), *(repr(part.config) for part in of), *texts]
        if self.streamed:
            about.append(repr(self.corpus.grid.tolist()))
        if self.tokenizer is not None:
            about.append(self.tokenizer.backend.to_str())
        known = (text.encode() for text in about)
        return fingerprint(chain(known, samples(self.corpus), *map(weights, of)))

    def forget(self, part: str) -> None:
        """Drop cached outputs of a part that has been trained again."""
        self.encoded.pop(part, None)
        for key in [key for key in self.features if key[0] == part]:
            del self.features[key]


def spoken_data(seconds: float, cache: Path, progress: bool = True) -> TrainingData:
    """Speech to train on: every word of the split `train` in each of its voices, once,
    unless it lasts too long; rendered once and kept in the folder `cache`.

    All words begin at the same moment. A caption does not say when a sound begins, and
    GPT-2 would write the mean of all beginnings.
    """
    if not (cache / SPOKEN).is_file():
        render_speech(seconds, cache, progress)
    said, voice = zip(*json.loads((cache / SPOKEN).read_text()))
    corpus, of = Corpus.load(cache), {"progress": progress}
    return TrainingData(corpus, transcriptions=list(said), voices=list(voice), **of)


def render_speech(seconds: float, cache: Path, progress: bool) -> None:
    """Render the clips of `spoken_data` into the folder `cache`."""
    words = (*lexicon("train"), *lexicon("train", others=True))
    pairs = [(word, voice) for word in words for voice in voices("train")]
    said, waves, captions = [], [], []
    for pair in tqdm(pairs, desc="speech", unit="clip", disable=not progress):
        if lasts(*pair) <= seconds - BEGIN:
            scene = uttered(*pair, seconds)
            said.append(pair)
            waves.append(render(scene))
            captions.append(describe(scene, np.random.default_rng([scene.seed, 1])))
    Corpus(np.stack(waves), captions).save(cache)
    with replacing(cache / SPOKEN) as path:
        path.write_text(json.dumps(said))


def lasts(word: str, voice: str) -> float:
    """The seconds that a word takes in a voice."""
    return len(spoken((word,), voice).wave) / espeak.SAMPLE_RATE


def uttered(word: str, voice: str, seconds: float) -> Scene:
    """A scene in which a voice says a word, from BEGIN on; its seed depends on both."""
    seed = zlib.crc32(f"{voice}/{word}".encode())
    rng, room = np.random.default_rng(seed), seconds - BEGIN
    return Scene((draw_utterance((word,), voice, BEGIN, room, rng),), seconds, seed)


def bar(batches: Sequence[Tensor], part: str, progress: bool) -> Iterable[Tensor]:
    """The batches, with a progress bar that names the part that processes them."""
    shown = {"desc": f"{part} over all clips", "unit": "batch", "leave": False}
    return tqdm(batches, disable=not (progress and is_main()), **shown)


def draw(total: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw n of `total` indices, without repetition if there are enough."""
    if n <= total:
        return torch.randperm(total, generator=generator)[:n]
    return torch.randint(total, (n,), generator=generator)


def crop(waves: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
    """Cut a piece of n_samples from each wave (B, N): the loudest of three random ones,
    since there is little to learn from silence.
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
    """Sounds and their classes."""

    classes: tuple[str, ...]  # the classes to distinguish

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n waveforms (n, N) and the indices of their classes (n,)."""


class Renders(Labelled):
    """Clean renders of SoundWorld on which the generator was not trained."""

    def __init__(
        self, classes: tuple[str, ...], n: int, seed: int, progress: bool = True
    ):
        self.classes = classes
        # none of the generator's training clips
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
        """Draw whole clips with one event, or one half of clips with two."""
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
    """Recordings in a folder whose table has a column `class`, of the classes with
    enough of them.

    Each is `disturbed`.
    """

    def __init__(self, folder: AudioFolder, seconds: float):
        kinds = learnable(folder)
        self.classes = tuple(kinds)
        self.clips = [
            Corpus.from_folder(kind, seconds, progress=False) for kind in kinds.values()
        ]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw clips with all classes equally likely."""
        labels, waves = torch.randint(len(self.clips), (n,), generator=generator), []
        for label in labels.tolist():
            clips = self.clips[label]
            wave = clips.wave(draw(len(clips), 1, generator))[0]
            waves.append(disturbed(wave, generator))
        return torch.stack(waves), labels


class Said(Labelled):
    """Single words of clean speech, said as none of the voices in VOICES says a word of
    WORDS, so that no judge has heard what it will judge.

    Each is `disturbed`; a subclass chooses what is said, and what is to be told apart.
    """

    def __init__(self, seconds: float, progress: bool = True):
        pairs = self.sayings(np.random.default_rng(0))
        waves, self.of = [], []
        shown = {"unit": "word", "disable": not (progress and is_main())}
        for label, said in tqdm(pairs, desc="clean speech", **shown):
            wave = soxr.resample(said.wave, espeak.SAMPLE_RATE, audio.SAMPLE_RATE)
            n_samples = round(seconds * audio.SAMPLE_RATE)
            if len(wave) <= n_samples:
                wave = torch.from_numpy(wave / np.abs(wave).max())
                waves.append(F.pad(0.5 * wave, (0, n_samples - len(wave))))
                self.of.append(label)
        self.waves, self.of = torch.stack(waves), torch.tensor(self.of)

    @abstractmethod
    def sayings(self, rng: np.random.Generator) -> list[tuple[int, Spoken]]:
        """What is said, and the index of its class."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw words, all equally likely."""
        some = draw(len(self.waves), n, generator)
        waves = [disturbed(wave, generator) for wave in self.waves[some]]
        return torch.stack(waves), self.of[some]


class SaidWords(Said):
    """The words of WORDS in voices that lie between those of VOICES and beside them."""

    classes = WORDS

    def sayings(self, rng: np.random.Generator) -> list[tuple[int, Spoken]]:
        """Each word in MANNERS manners: variant of espeak-ng, pitch and rate."""
        found = []
        for label in np.repeat(np.arange(len(WORDS)), MANNERS).tolist():
            variant = VARIANTS[rng.integers(len(VARIANTS))]
            how = int(rng.integers(10, 90)), int(rng.integers(90, 161))
            found.append((label, espeak.say(WORDS[label], variant, *how)))
        return found


class SaidVoices(Said):
    """Words of OTHERS in each of VOICES."""

    classes = tuple(VOICES)

    def sayings(self, rng: np.random.Generator) -> list[tuple[int, Spoken]]:
        """The same words in every voice."""
        words = rng.permutation(lexicon("train", others=True))[:SAYINGS].tolist()
        every = enumerate(VOICES)
        return [(i, spoken((w,), voice)) for i, voice in every for w in words]


def disturbed(wave: Tensor, generator: torch.Generator) -> Tensor:
    """A sound (N,) shifted cyclically in time, made louder or softer, and mixed with
    faint noise: a judge must not learn from a sound's position in the clip, its level,
    or digital silence.
    """
    wave = wave.roll(int(torch.randint(len(wave), (), generator=generator)))
    loud, faint = torch.rand(2, generator=generator).tolist()
    # gain -12 to +6 dB, noise at -100 to -60 dB
    gain, floor = 10.0 ** (0.9 * loud - 0.6), 10.0 ** (2.0 * faint - 5.0)
    noise = torch.randn(wave.shape, generator=generator)
    return (gain * wave + floor * noise).clamp(-1.0, 1.0)


def learnable(folder: AudioFolder) -> dict[str, AudioFolder]:
    """The recordings of each class that has enough of them.

    Raises:
        ValueError: the table has no classes, or fewer than two with enough recordings.
    """
    if "class" not in folder.rows[0]:
        lacks = "has no column 'class', from which a judge learns"
        raise ValueError(f"{folder.folder} {lacks}")
    kinds = folder.by("class").items()
    found = {name: kind for name, kind in kinds if len(kind) >= FEWEST}
    if len(found) < 2:
        wanted = f"{FEWEST} or more recordings in each of at least two classes"
        raise ValueError(f"{folder.folder} must hold {wanted}")
    return found
