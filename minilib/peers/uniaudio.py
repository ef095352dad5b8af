"""Several tasks in one language model of codes: UniAudio in small (Yang et al.,
2310.00704), with the semantic tokens of Make-A-Voice (Huang et al., 2305.19269).

A frame that is written holds a semantic token and then 3 codes: what is said, and how
it sounds. All else that a task is given stands in front, as one prompt: the name of the
task, phonemes, notes, the words of a caption, and frames of a voice.
Three tasks are learned together: to speak, to convert a voice, and the sounds of
captions; `Tasks` also knows a fourth, tunes by their notes, for fine-tuning. Codec and
vocoder are borrowed. Chapter 20b builds what a reader has to see of it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minilib import audio
from minilib.arguments import (
    MAX_SEED,
    check_captions,
    check_path,
    check_seconds,
    check_whole,
    one_each,
    seeded,
)
from minilib.audioldm2 import Profile
from minilib.codec import Codec
from minilib.codec_lm import (
    PROMPT,
    CodecLM,
    CodecLMConfig,
    MultiScaleConfig,
    MultiScaleLM,
    draw,
)
from minilib.conditions import Context
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.guidance import Sampling
from minilib.model import Model, read_json
from minilib.peers.codec import (
    CodecAndVocoder,
    check_recorded,
    check_temperature,
    log_mels,
)
from minilib.phonemes import END, PhonemeTokenizer
from minilib.quantise import k_means
from minilib.soundworld import INSTRUMENTS, SoundWorld, Tune, vocabulary
from minilib.soundworld.speech import OTHERS
from minilib.soundworld.talkers import TALKERS, say
from minilib.tokenizer import split_words
from minilib.training import Recipe, fit
from minilib.vocoder import vocode

SECONDS, SPOKEN = 1.28, 0.96  # of a sound, and of a word from where it begins
N_WRITTEN = 3  # of the codec's codebooks, behind the semantic token of a frame
WORD = 48  # frames of the codec in 0.96 s
VOICE = 24  # frames of another word that tell a voice: 0.48 s
N_WORDS, N_SOUNDS, N_TUNES = 2400, 1600, 400  # clips to learn from
TASKS = ("speak", "convert", "sound", "play")
TOGETHER = {"speak": 0.6, "convert": 0.2, "sound": 0.2}  # shares of the batches
P_NO_VOICE = 0.1  # share of words that are spoken in a voice of the model's choice
RECIPE = Recipe(
    steps=800, batch_size=24, lr=5e-3, warmup=30, ema=0.98, muon=("linear",)
)
SAMPLING = Sampling(temperature=0.7)
BORROWED = ("vocoder",)

# ---- Semantic tokens


@dataclass(frozen=True)
class UnitsConfig:
    """Sizes of the semantic tokens."""

    n_units: int = 64  # K; number 0 is silence
    n_cepstra: int = 10
    normalised: bool = True  # clip by clip


def cepstra(mel: Tensor, n: int, stride: int = 2) -> Tensor:
    """The first n cepstra (B, M, n), without the level, of a log-mel (B, 1, T, F): the
    coarse shape of the spectrum of each frame of a codec, M = T / stride. Chapter 20b.
    """
    frames = mel[:, 0].unflatten(1, (-1, stride)).mean(dim=2)  # (B, M, F)
    bins = torch.arange(frames.shape[2]) + 0.5
    waves = torch.cos(math.pi / len(bins) * torch.arange(1, n + 1)[:, None] * bins)
    return frames @ (waves * (2 / len(bins)) ** 0.5).T.to(frames)


def audible(mel: Tensor, stride: int = 2, decibels: float = 35.0) -> Tensor:
    """Which frames (B, M) are less than so many decibels below the loudest of a clip.

    Chapter 20b.
    """
    power = mel[:, 0].exp().square().sum(dim=2).unflatten(1, (-1, stride)).mean(dim=2)
    return power > power.amax(dim=1, keepdim=True) * 10 ** (-decibels / 10)


class Units(Model):
    """Semantic tokens: the cluster of each frame's cepstra.

    The mean of a voice's cepstra tells the voice, and so does their spread. Normalised,
    each clip has mean 0 and variance 1, and what is left is how its frames differ,
    mostly by phoneme. HuBERT, from which Make-A-Voice takes its tokens, learns that
    instead. Chapter 20b.
    """

    config_class = UnitsConfig

    def __init__(self, config: UnitsConfig):
        super().__init__(config)
        n, K = config.n_cepstra, config.n_units
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.register_buffer("centres", torch.zeros(K - 1, n))

    def features(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Cepstra (B, M, n) of a log-mel (B, 1, T, F), and which are audible (B, M)."""
        x, heard = cepstra(mel, self.config.n_cepstra), audible(mel)
        if not self.config.normalised:
            return (x - self.mean) / self.std, heard
        weight = (heard / heard.sum(dim=1, keepdim=True))[..., None].to(x)  # (B, M, 1)
        off = x - (weight * x).sum(dim=1, keepdim=True)
        spread = (weight * off.square()).sum(dim=1, keepdim=True)
        return off / spread.clamp_min(1e-4).sqrt(), heard

    @torch.no_grad()
    def fit(self, mel: Tensor, seed: int = 0, most: int = 8000) -> None:
        """Find the clusters of at most so many audible frames of log-mels."""
        raw = cepstra(mel, self.config.n_cepstra)[audible(mel)]
        self.mean.copy_(raw.mean(dim=0))
        self.std.copy_(raw.std(dim=0))
        x, heard = self.features(mel)
        rows = x[heard][:: max(1, int(heard.sum()) // most)]
        self.centres.copy_(k_means(rows, self.config.n_units - 1, 15, seed))

    @torch.no_grad()
    def encode(self, mel: Tensor) -> Tensor:
        """The units (B, M) of a log-mel, from 0 to K - 1; 0 where it is silent."""
        x, heard = self.features(mel)
        return heard * (1 + torch.cdist(x, self.centres).argmin(dim=2))


# ---- Prompts

LOWEST = 55.0  # Hz, of note 1; note 0 is none, and a semitone lies between two notes
# What may stand in a prompt beside codes, and how many there are of each kind
KINDS = {"task": 8, "phoneme": END + 1, "note": 96, "word": 160}
FIRST = dict(zip(KINDS, np.cumsum([0, *KINDS.values()]).tolist()))
N_SIGNS = sum(KINDS.values())


def note_of(hertz: float) -> int:
    """The number of the nearest note."""
    return 1 + round(12 * math.log2(hertz / LOWEST))


def signs(kind: str, numbers: Tensor | Sequence[int], n_codes: int) -> Tensor:
    """The signs (S,) of numbers of one kind; signs follow the K codes' own numbers.

    Raises ValueError if a number is out of range. Chapter 20b.
    """
    numbers = torch.as_tensor(numbers, dtype=torch.long)
    if numbers.numel() and not 0 <= numbers.min() <= numbers.max() < KINDS[kind]:
        worst = int(numbers.min() if numbers.min() < 0 else numbers.max())
        most = f"between 0 and {KINDS[kind] - 1}, not be {worst}"
        raise ValueError(f"numbers of kind {kind} must lie {most}")
    return n_codes + FIRST[kind] + numbers


def prompt(
    config: CodecLMConfig, task: str, given: dict[str, Tensor | Sequence[int]],
    voice: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What stands in front of the codes: (P, Q) long.

    Args:
        config: of the language model.
        task: one of TASKS.
        given: numbers (S,) by kind, in order. A sign takes all Q places of a frame, as
            in UniAudio.
        voice: frames (V, Q) of another word.
    Chapter 20b.
    """
    parts = {"task": [TASKS.index(task)], **given}
    row = torch.cat([signs(kind, x, config.n_codes) for kind, x in parts.items()])
    frames = row[:, None].expand(-1, config.n_q)  # (P, Q)
    return frames if voice is None else torch.cat([frames, voice])


def together(prompts: Sequence[Tensor]) -> Context:
    """Prompts (P, Q) of any lengths as one batch. Chapter 20b."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [F.pad(x, (0, 0, 0, longest - len(x))) for x in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return Context(torch.stack(rows), torch.arange(longest) < lengths[:, None])


@torch.no_grad()
def write(
    lm: CodecLM, prompts: Sequence[Tensor], M: int, generators: list[torch.Generator],
    temperature: float = 1.0, units: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Write frames (B, M, Q) behind prompts; where semantic tokens (B, M) are given,
    they take the first place of each frame, and only the codes are drawn. Chapter 20b.
    """
    done = 0  # codes of each item

    def choose(logits: Tensor) -> Tensor:
        nonlocal done
        m, q = divmod(done, lm.config.n_q)
        done += 1
        given = units is not None and q == 0
        return units[:, m] if given else draw(logits, generators, temperature)

    return lm.write(M, len(prompts), {PROMPT: together(prompts)}, choose)


# ---- Training


def phonemes_of(word: str) -> list[int]:
    """The numbers of a word's phonemes and stress marks, and an end sign."""
    return PhonemeTokenizer().encode([word])[0][0].tolist()


def notes_of(tune: Tune, M: int) -> Tensor:
    """The note of each of M frames: (M,)."""
    notes = torch.zeros(M, dtype=torch.long)
    for hertz, start, length in zip(tune.notes, tune.strokes, tune.lengths):
        notes[round(start * 50) : round((start + length) * 50)] = note_of(hertz)
    return notes


class Clips:
    """What there is to learn from, as frames (n, M, Q) and labels.

    Args:
        codec: whose first codebooks are written.
        units: the semantic tokens, fitted here unless they have been.
        seed: of the clips.
        n: words, sounds and tunes.
        lexicon: the words that are said.
        split: of SoundWorld.
    """

    def __init__(
        self, codec: Codec, units: Units, seed: int = 0,
        n: tuple[int, int, int] = (N_WORDS, N_SOUNDS, N_TUNES),
        lexicon: Sequence[str] = OTHERS, split: str = "train",
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.said = [lexicon[i] for i in rng.integers(len(lexicon), size=n[0])]
        self.talkers = torch.arange(n[0]) % len(TALKERS)
        said = zip(self.said, self.talkers.tolist())
        waves = [say(word, TALKERS[k], rng) for word, k in said]
        mel = log_mels(waves)
        if not units.centres.any():
            units.fit(mel)
        heard = audible(mel)
        cut = lambda x: torch.stack([spoken_part(*pair) for pair in zip(x, heard)])
        self.words, self.heard = cut(coded(codec, units, mel)), cut(heard)
        known = set(lexicon)
        self.phonemes = {word: phonemes_of(word) for word in sorted(known)}
        world = SoundWorld(split, seed, SECONDS, pairs=0.0)
        mel = log_mels([world[i].wave for i in range(n[1])])
        self.sounds = coded(codec, units, mel)
        self.scenes = [world.scene(i) for i in range(n[1])]
        self.captions = [world.caption(i) for i in range(n[1])]
        tunes = SoundWorld(split, seed, SECONDS, music=1.0)
        mel = log_mels([tunes[i].wave for i in range(n[2])])
        self.tunes = coded(codec, units, mel)
        self.melodies = [tunes.scene(i).events[0] for i in range(n[2])]


def spoken_part(x: Tensor, heard: Tensor) -> Tensor:
    """The WORD frames of x (M, ...) from the first that is heard on, (M,) bool."""
    start = int(heard.int().argmax())
    return x[min(start, len(x) - WORD) :][:WORD]


@torch.no_grad()
def coded(codec: Codec, units: Units, mel: Tensor) -> Tensor:
    """Log-mels as frames (B, M, 1 + N_WRITTEN): a semantic token, then codes."""
    codes = torch.cat([codec.encode(some)[..., :N_WRITTEN] for some in mel.split(64)])
    return torch.cat([units.encode(mel)[..., None], codes], dim=2)


class Tasks:
    """Training batches, each of one task.

    Args:
        clips: what there is to learn from.
        config: of the language model.
        words: that captions may hold; their numbers are the places in this list.
        shares: of the batches, by task.
    """

    def __init__(
        self, clips: Clips, config: MultiScaleConfig, words: Sequence[str],
        shares: dict[str, float], batch_size: int = RECIPE.batch_size,
    ):  # fmt: skip
        self.clips, self.config, self.words = clips, config, list(words)
        self.shares, self.batch_size = shares, batch_size

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a task, and a batch of it for `MultiScaleLM.loss`."""
        weights = torch.tensor(list(self.shares.values()))
        task = list(self.shares)[
            int(torch.multinomial(weights, 1, generator=generator))
        ]
        return self.batch(task, generator)

    def batch(self, task: str, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch of one task: codes, prompt and its mask."""
        rows = {"sound": self.clips.sounds, "play": self.clips.tunes}
        codes = rows.get(task, self.clips.words)
        drawn = torch.randint(len(codes), (self.batch_size,), generator=generator)
        of = getattr(self, task)
        prompts = [prompt(self.config, task, *of(i, generator)) for i in drawn.tolist()]
        sequence, mask = together(prompts)
        return {"codes": codes[drawn], PROMPT: sequence, f"{PROMPT}_mask": mask}

    def speak(self, i: int, generator: torch.Generator) -> tuple[dict, Tensor | None]:
        """Phonemes and, mostly, a voice."""
        told = {"phoneme": self.clips.phonemes[self.clips.said[i]]}
        if torch.rand((), generator=generator) < P_NO_VOICE:
            return told, None
        return told, self.voice(i, generator)

    def convert(self, i: int, generator: torch.Generator) -> tuple[dict, Tensor]:
        """A voice: the semantic tokens are given as they are written."""
        return {}, self.voice(i, generator)

    def sound(self, i: int, generator: torch.Generator) -> tuple[dict]:
        """The words of a caption."""
        return ({"word": numbers_of(self.clips.captions[i], self.words)},)

    def play(self, i: int, generator: torch.Generator) -> tuple[dict]:
        """An instrument, and a note for each frame."""
        tune, M = self.clips.melodies[i], self.clips.tunes.shape[1]
        told = numbers_of(tune.name, self.words)
        return ({"word": told, "note": notes_of(tune, M)},)

    def voice(self, i: int, generator: torch.Generator) -> Tensor:
        """VOICE frames of another word of the same talker, from where it is heard."""
        clips = self.clips
        same = (clips.talkers == clips.talkers[i]).nonzero()[:, 0]
        others = same[same != i]
        j = int(others[torch.randint(len(others), (), generator=generator)])
        return excerpt(clips.words[j], clips.heard[j], generator)


def excerpt(codes: Tensor, heard: Tensor, generator: torch.Generator) -> Tensor:
    """VOICE of frames (M, Q), drawn from those that are heard (M,) bool."""
    where = heard.nonzero()[:, 0]
    first, last = int(where[0]), max(int(where[0]), int(where[-1]) + 1 - VOICE)
    start = int(torch.randint(first, last + 1, (), generator=generator))
    return codes[min(start, len(codes) - VOICE) :][:VOICE]


def numbers_of(caption: str, words: Sequence[str]) -> list[int]:
    """The numbers of the words of a caption; those that are not known are left out."""
    numbers = {word: i for i, word in enumerate(words)}
    return [numbers[word] for word in split_words(caption) if word in numbers]


def known_words() -> list[str]:
    """The words that captions may hold, and the instruments."""
    return sorted({*vocabulary(), *(w for x in INSTRUMENTS for w in split_words(x))})


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/lm` and `out/units` in float16, and `out/pipeline.json`,
    which names codec and vocoder.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose vocoder it uses; the codec is in `../peers/codec`.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    load_part(weights, "vocoder")  # a missing one shall not cost the training
    place = weights.parent / "peers" / "codec"
    codec = Codec.from_pretrained(place / "codec", dtype=torch.float32)
    units, words = Units(UnitsConfig()), known_words()
    clips = Clips(codec, units, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = MultiScaleLM(sizes(codec))
    batches = Tasks(clips, lm.config, words, TOGETHER)
    fit(lm, batches, replace(RECIPE, steps=steps), seed, "uniaudio", progress)
    with replacing_folder(out) as new:
        lm.save_pretrained(new / "lm", dtype=torch.float16)
        units.save_pretrained(new / "units")
        there = {"vocoder": weights / "vocoder", "codec": place}
        there = {name: os.path.relpath(path, out) for name, path in there.items()}
        told = {"peer": "uniaudio", **there, "words": words}
        (new / "pipeline.json").write_text(json.dumps(told, indent=1) + "\n")
    return out


def sizes(codec: Codec) -> MultiScaleConfig:
    """The config of the language model for a codec."""
    return replace(
        MultiScaleLM.presets["tiny"], n_layer=3, n_local=1, n_q=1 + N_WRITTEN,
        n_positions=256, n_signs=N_SIGNS, conditions=(), condition_dims=(),
        n_codes=codec.config.n_codes, codec=codec.fingerprint,
    )  # fmt: skip


# ---- The pipeline


class TextToAudio:
    """All tasks of one language model: captions become sounds, words are spoken or
    change their voice, notes become tunes.

    Args:
        lm, units: the parts that `train` makes.
        pipe: the codec and its vocoder.
        words: that captions may hold, in the order of their numbers.
        sampling: of which only the temperature counts.

    Raises:
        ValueError: the language model writes the codes of another codec.
    """

    speaks, sees = True, False
    text = SimpleNamespace(tokenizer=PhonemeTokenizer())
    seconds = SECONDS

    def __init__(
        self, lm: MultiScaleLM, units: Units, pipe: CodecAndVocoder,
        words: Sequence[str], sampling: Sampling = SAMPLING,
    ):  # fmt: skip
        pipe.codec.check_fingerprint(lm.config.codec)
        self.lm, self.units, self.pipe = lm.eval(), units, pipe
        self.words, self.sampling, self.profile = list(words), sampling, Profile()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        told = read_json(folder / "pipeline.json")
        pipe = CodecAndVocoder.borrowed(folder)
        lm = MultiScaleLM.from_pretrained(folder / "lm", dtype=torch.float32)
        units = Units.from_pretrained(folder / "units", dtype=torch.float32)
        return cls(lm, units, pipe, told.get("words", []))

    @torch.no_grad()
    def __call__(
        self,
        captions: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        *,
        transcription: str | Sequence[str] | None = None,
        voice: Tensor | None = None,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        candidates: int = 1,
        progress: bool = False,
        **changes: Any,
    ) -> Tensor:
        """Make the sounds of captions, or speak words in a voice.

        Args:
            captions: one sound for each; with a `voice` they are not read.
            sampling: only its temperature is used.
            transcription: the words to speak, one text for all or one for each.
            voice: a recording (N,) at 16 kHz of the voice; None for any voice.
            seconds: length of the sounds, at most 1.28.
            seed, candidates: as for `AudioLDM2`; there is nothing to choose among
                candidates, so they must be 1.
        Returns:
            (B, N).
        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        temperature = check_temperature(sampling, self.sampling, changes)
        if candidates != 1:
            said = f"must be 1 without a CLAP to choose, not {candidates}"
            raise ValueError(f"candidates {said}")
        if transcription is None:
            if voice is not None:
                raise ValueError("voice needs a transcription: the words to be spoken")
            prompts = [self.prompt_of(text) for text in check_captions(captions)]
        else:
            if captions is not None and voice is None:
                said = "leave captions out, or give a recording as voice"
                raise ValueError(f"with words to speak, no caption is read: {said}")
            n = 1 if captions is None or isinstance(captions, str) else len(captions)
            codes = None if voice is None else self.excerpt(voice)
            texts = one_each("transcription", transcription, n)
            prompts = [self.spoken(text, codes) for text in texts]
            seconds = SPOKEN if seconds is None else seconds
        generators = seeded(seed, len(prompts))
        return self.sounds(prompts, generators, temperature, seconds)

    def convert(
        self, wave: Tensor, voice: Tensor, seed: int = 0, temperature: float = 0.7
    ) -> Tensor:
        """The word in a recording (N,) of at most 1.28 s, said by the voice in another:
        0.96 s from where it begins. ValueError if a recording is silent, too long or
        too short.
        """
        most = round(SECONDS * audio.SAMPLE_RATE)
        if wave.ndim != 1 or not 0 < len(wave) <= most or not wave.any():
            said = f"(N,) with at most {most} samples and not silent"
            raise ValueError(f"wave must be {said}, not {tuple(wave.shape)}")
        mel = log_mels([F.pad(wave.float(), (0, most - len(wave)))])
        units = spoken_part(self.units.encode(mel)[0], audible(mel)[0])
        row = prompt(self.lm.config, "convert", {}, self.excerpt(voice))
        given = [row], seeded(seed, 1), temperature, SPOKEN, units[None]
        return self.sounds(*given)[0]

    def play(
        self, instrument: str, notes: Sequence[tuple[float, float]], seed: int = 0,
        temperature: float = 0.7,
    ) -> Tensor:  # fmt: skip
        """A tune (N,) of notes, each (Hz, seconds), 1.28 s at most; 0 Hz is a rest.

        ValueError if the instrument is unknown or a note out of range.
        """
        told = numbers_of(instrument, self.words)
        if instrument not in INSTRUMENTS or not told:
            known = ", ".join(INSTRUMENTS)
            raise ValueError(f"instrument must be one of {known}, not {instrument!r}")
        if sum(seconds for _, seconds in notes) > SECONDS + 1e-6:
            raise ValueError(f"notes must last at most {SECONDS} s together")
        rows, at = torch.zeros(round(50 * SECONDS), dtype=torch.long), 0.0
        for hertz, seconds in notes:
            span = slice(round(at * 50), round((at + seconds) * 50))
            rows[span] = 0 if hertz <= 0 else note_of(hertz)
            at += seconds
        row = prompt(self.lm.config, "play", {"word": told, "note": rows})
        return self.sounds([row], seeded(seed, 1), temperature)[0]

    def sounds(
        self, prompts: list[Tensor], generators: list[torch.Generator],
        temperature: float, seconds: float | None = None, units: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Write frames behind prompts, with semantic tokens (B, M) if they are given,
        and sound them: (B, N).
        """
        seconds = check_seconds(SECONDS if seconds is None else seconds)
        if seconds > SECONDS:
            raise ValueError(f"seconds must be at most {SECONDS}, not {seconds:g}")
        n_samples, self.profile = round(seconds * audio.SAMPLE_RATE), Profile()
        with self.profile.measure("sample"):
            M = -(-n_samples // (audio.HOP * self.pipe.codec.config.stride))
            frames = write(self.lm, prompts, M, generators, temperature, units)
        with self.profile.measure("decode"), torch.no_grad():
            mel = self.pipe.codec.decode(frames[..., 1:])
            return vocode(self.pipe.vocoder, mel)[:, :n_samples]

    def prompt_of(self, caption: str) -> Tensor:
        """The prompt (P, Q) of a caption; ValueError if it holds no known word."""
        told = numbers_of(caption, self.words)
        if not told:
            said = "name a sound, such as a bell or a dog"
            raise ValueError(f"no word of {caption!r} is known: {said}")
        return prompt(self.lm.config, "sound", {"word": told})

    def spoken(self, text: str, voice: Tensor | None) -> Tensor:
        """The prompt (P, Q) of words to speak, and codes of a voice or None."""
        if not text.strip():
            raise ValueError("a transcription is empty: write the word to speak")
        return prompt(self.lm.config, "speak", {"phoneme": phonemes_of(text)}, voice)

    def excerpt(self, voice: Tensor) -> Tensor:
        """Frames (VOICE, Q) from the middle of what is heard in a recording (N,)."""
        scaled = check_recorded(voice, VOICE / 50)
        mel = log_mels([scaled])
        mel = mel[:, :, : mel.shape[2] // 2 * 2]
        where = audible(mel)[0].nonzero()[:, 0]
        start = int(where.float().mean()) - VOICE // 2
        start = min(max(0, start), mel.shape[2] // 2 - VOICE)
        frames = coded(self.pipe.codec, self.units, mel)[0]
        return frames[start : start + VOICE]

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that these weights do not know."""
        return sorted(set(split_words(caption)) - {"", *self.words})
