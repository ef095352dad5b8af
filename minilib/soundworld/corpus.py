"""SoundWorld, the built-in corpus: an endless list of clips whose truth is known
(chapter 01).
"""

from __future__ import annotations

import numbers
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..files import replacing
from . import espeak
from .captions import describe
from .effects import CLASSES
from .music import play
from .scene import DEFAULT_SECONDS, SPLITS, Clip, Event, Scene, draw_scene
from .speech import Utterance, draw_speech, utter
from .tunes import Tune, draw_music

SAMPLE_RATE = 16000  # Hz
# noise under every clip: no recording is silent, and digital silence gives log-mels a
# spike at their floor
NOISE_FLOOR = 1e-4
VERSION = 1  # version of the synthesiser; a cache of another version isn't read
INT16 = 32767


class SoundWorld:
    """An endless corpus of parametric sounds with captions.

    The same (split, seed, index, seconds, pairs, music) gives the same clip in every
    process. Samples are rounded to 16 bits, so a clip from the cache equals one that is
    rendered again.

    Args:
        split: "train", "valid" (combinations as in train, other draws) or "test"
            (combinations of attributes and pairs of classes that train never has).
        seed: whole number >= 0; another seed gives another corpus.
        seconds: length of a clip, above 0.5 and at most 60.
        pairs: the share of scenes with two events among those of effects, 0 to 1.
        music: the share of scenes that are tunes, 0 to 1. The other scenes are the same
            as in a world without music.
        cache: a folder that keeps rendered clips; None keeps none.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        seconds: float = DEFAULT_SECONDS,
        pairs: float = 0.5,
        music: float = 0.0,
        cache: str | os.PathLike | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if not isinstance(seed, numbers.Integral) or seed < 0:
            raise ValueError(f"seed must be a whole number >= 0, not {seed!r}")
        if not isinstance(seconds, numbers.Real) or not 0.5 < seconds <= 60:
            raise ValueError(
                f"seconds must be a number above 0.5 and at most 60, not {seconds!r}"
            )
        for name, share in (("pairs", pairs), ("music", music)):
            if not isinstance(share, numbers.Real) or not 0 <= share <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {share!r}")
        if cache is not None and Path(cache).exists() and not Path(cache).is_dir():
            raise ValueError(f"cache must be a folder, not the file {str(cache)!r}")
        self.split, self.seed, self.seconds = split, int(seed), float(seconds)
        self.pairs, self.music = float(pairs), float(music)
        self.n_samples = round(self.seconds * SAMPLE_RATE)
        self.cache = None if cache is None else Path(cache)

    def __getitem__(self, index: int) -> Clip:
        """Clip number `index` (0, 1, 2, … without end): wave (N,), caption, scene."""
        scene = self.scene(index)
        return Clip(
            torch.from_numpy(to_float(self.samples(index))),
            self._describe(scene),
            scene,
        )

    def __iter__(self):
        name = type(self).__name__
        raise TypeError(f"a {name} is endless: use world[i] for i in range(n)")

    def scene(self, index: int) -> Scene:
        """The scene of clip `index`, without rendering it."""
        entropy = self._entropy(index)
        # a generator of its own, so that music leaves the effects unchanged
        lot = np.random.default_rng([*entropy, 1])
        if lot.random() < self.music:
            return draw_music(self.split, self.seconds, lot)
        return draw_scene(
            self.split, self.seconds, self.pairs, np.random.default_rng(entropy)
        )

    def caption(self, index: int) -> str:
        """The caption of clip `index`, without rendering it."""
        return self._describe(self.scene(index))

    def render(self, scene: Scene) -> torch.Tensor:
        """Render a scene to its wave (N,), float32 in (-1, 1)."""
        return torch.from_numpy(to_float(render(scene)))

    def samples(self, index: int) -> np.ndarray:
        """The wave of clip `index` as int16 (N,), from the cache if it is there."""
        scene = self.scene(index)
        if self.cache is None:
            return render(scene)
        path = self._cache_path(index)
        kept = _read(path, self.n_samples)
        if kept is None:
            kept = render(scene)
            _write(path, kept)
        return kept

    @staticmethod
    def _describe(scene: Scene) -> str:
        return describe(scene, np.random.default_rng([scene.seed, 1]))

    def _entropy(self, index: int) -> list[int]:
        """The seeds of clip `index`."""
        if not isinstance(index, numbers.Integral) or index < 0:
            raise IndexError(
                f"the index of a clip must be a whole number >= 0, not {index!r}"
            )
        return [zlib.crc32(self.split.encode()), self.seed, int(index)]

    def _cache_path(self, index: int) -> Path:
        world = f"v{VERSION}-{self.split}-seed{self.seed}-{self.seconds!r}s"
        world += self._kind()
        return self.cache / world / f"{index // 1000:06d}" / f"{index % 1000:03d}.i16"

    def _kind(self) -> str:
        """What else distinguishes this world's clips, as a part of a folder's name."""
        music = f"-music{self.music!r}" if self.music else ""
        return f"-pairs{self.pairs!r}{music}"


class SpeechWorld(SoundWorld):
    """An endless corpus of spoken words, with captions that describe the voice and
    transcriptions that hold the words.

    The same arguments and index give the same clip in every process, as in SoundWorld.

    Args:
        split: "train", "valid" (words and voices as in train, other draws) or "test"
            (only HELD_OUT_WORDS, which train never has, in all voices, of which train
            lacks HELD_OUT_VOICE).
        seed, seconds, cache: as in SoundWorld.
        words: the numbers of words that a clip may have, each equally likely; from 1
            to 4.
        others: the share of clips of train and valid, 0 to 1, whose words are OTHERS,
            further common words, instead of WORDS.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError, TypeError: an argument is not as described.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        seconds: float = DEFAULT_SECONDS,
        words: Sequence[int] = (1, 2),
        others: float = 0.0,
        cache: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(split, seed, seconds, pairs=0.0, cache=cache)
        self.words = tuple(words) if isinstance(words, Sequence) else (words,)
        if not self.words or not set(self.words) <= {1, 2, 3, 4}:
            raise ValueError(f"words must be numbers from 1 to 4, not {words!r}")
        if not isinstance(others, numbers.Real) or not 0 <= others <= 1:
            raise ValueError(f"others must be a number from 0 to 1, not {others!r}")
        self.others = float(others)
        espeak.loader()  # if it is missing, that is said at once

    def scene(self, index: int) -> Scene:
        """The scene of clip `index`, an Utterance."""
        rng = np.random.default_rng([*self._entropy(index), 2])
        return draw_speech(self.split, self.seconds, self.words, self.others, rng)

    def transcription(self, index: int) -> str:
        """The words of clip `index`: "seven rivers"."""
        return self.scene(index).transcription

    def _kind(self) -> str:
        return f"-speech{''.join(map(str, self.words))}-others{self.others!r}"


def render(scene: Scene, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Render a scene to int16 samples (N,), with every event at its level and faded at
    both ends.
    """
    n = round(scene.seconds * sample_rate)
    wave = NOISE_FLOOR * np.random.default_rng([scene.seed, 0]).standard_normal(n)
    for event in scene.events:
        start = round(event.onset * sample_rate)
        sound = _level_and_fade(event, sample_rate)[: n - start]
        wave[start : start + len(sound)] += sound
    return np.round(wave * INT16).astype(np.int16)


def _level_and_fade(event: Event, sample_rate: int) -> np.ndarray:
    rng = np.random.default_rng(event.seed)
    if isinstance(event, Tune):
        wave, fades = play(event, rng, sample_rate), (0.001, 0.06)
    elif isinstance(event, Utterance):
        wave, fades = utter(event, sample_rate), (0.001, 0.005)
    else:
        wave, fades = (
            CLASSES[event.name].synthesise(event, rng, sample_rate),
            _fades(event),
        )
    fade_in, fade_out = (
        min(round(seconds * sample_rate), len(wave) // 4) for seconds in fades
    )
    wave = wave.astype(np.float64)
    wave[:fade_in] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(fade_in) / fade_in)
    wave[len(wave) - fade_out :] *= 0.5 + 0.5 * np.cos(
        np.pi * np.arange(fade_out) / fade_out
    )
    return wave * (event.peak / np.abs(wave).max())


def _fades(event: Event) -> tuple[float, float]:
    """The seconds over which an effect fades in and out."""
    sound_class = CLASSES[event.name]
    # strokes begin at once, rain fades in
    unbroken = sound_class.length == 0 and not event.strokes
    return 0.04 if unbroken else 0.001, 0.2 if sound_class.length > 1 else 0.06


def to_float(samples: np.ndarray) -> np.ndarray:
    """int16 samples as float32 in [-1, 1]."""
    return samples.astype(np.float32) / np.float32(INT16)


def _write(path: Path, samples: np.ndarray) -> None:
    """Store samples after their checksum, whole or not at all, even if several
    processes write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = samples.astype("<i2").tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(zlib.crc32(content).to_bytes(4, "little") + content)


def _read(path: Path, n_samples: int) -> np.ndarray | None:
    """The samples stored at `path`; None if there are none or they are damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) != 4 + 2 * n_samples or zlib.crc32(content[4:]) != int.from_bytes(
        content[:4], "little"
    ):
        return None
    return np.frombuffer(content[4:], dtype="<i2").astype(np.int16)
