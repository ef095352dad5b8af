"""VALL-E (Wang et al., 2301.02111) on the course's codec, and SpeechX's tasks.

VALL-E says a word in the voice of a recording: phonemes and half a second of codes
stand in front of the codes to be written. SpeechX (Wang et al., 2308.06873) asks the
same two networks for more by a sign between two pieces of sound: take the noise away,
leave nothing but the noise, or leave the enrolled talker alone. First the networks
learn to speak, then all tasks. The codec writes 4 of its 8 codebooks for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilib import audio
from minilib.arguments import (
    MAX_SEED,
    check_path,
    check_seconds,
    check_whole,
    check_word,
    seeded,
)
from minilib.audioldm2 import Profile
from minilib.codec_lm import PROMPT, VALLE, CodecLMConfig, NARConfig, VALLEConfig
from minilib.conditions import Conditions, Context, to_batch
from minilib.files import replacing_folder
from minilib.guidance import Sampling
from minilib.model import read_json
from minilib.peers.codec import (
    PEAKS,
    CodecAndVocoder,
    check_recorded,
    check_spoken,
    check_temperature,
    log_mels,
)
from minilib.phonemes import END, PhonemeTokenizer, phonemize
from minilib.soundworld import SoundWorld, espeak
from minilib.soundworld.speech import OTHERS
from minilib.soundworld.talkers import NOISE, TALKERS, Talker
from minilib.training import Recipe, fit
from minilib.vocoder import vocode

N_Q = 4  # codebooks that are written
SECONDS = 0.96  # of a word
MIXED_SECONDS = 1.28  # of a mixture, and of all rows while its tasks are learned
ENROLMENT = 24  # frames of the codec from another word of the talker: 0.48 s
RATES = (120, 160)  # words per minute, the slowest and the fastest
N_WORDS, N_MIXTURES = 5000, 1500  # clips
QUIET = 35  # decibels below the loudest frame: before the first louder one is silence
TASKS = ("ns", "sr", "tse")  # take noise away, leave only noise, leave one talker
N_SIGNS = 4  # one a task, and one that is never trained
SHARES = {"tts": 0.25, "ns": 0.2, "sr": 0.2, "tse": 0.35}  # of the rows
P_NO_PROMPT, P_NO_TEXT = 0.15, 0.5  # in speaking, and in the other tasks
HOW = {"batch_size": 32, "lr": 7e-3, "warmup": 30, "ema": 0.98, "muon": ("linear",)}
SPEAKING = {"ar": Recipe(steps=1400, **HOW), "nar": Recipe(steps=500, **HOW)}
LESS = {**HOW, "lr": 3.5e-3}
ALL_TASKS = {"ar": Recipe(steps=200, **LESS), "nar": Recipe(steps=120, **LESS)}
SAMPLING = Sampling(temperature=0.7)
BORROWED = ("codec", "vocoder")

SIZES = {
    "n_embd": 128, "n_head": 4, "n_positions": 512, "n_codes": 64, "n_signs": N_SIGNS,
    "conditions": ("phonemes",), "condition_dims": (PhonemeTokenizer.vocab_size,),
}  # fmt: skip


# ---- What the networks read


class Phones:
    """An encoder without weights: a vector for each phoneme of a text, in which the
    entries of its symbol and of its marks of stress and length are 1, then scaled to a
    mean square near 1. An end sign follows.
    """

    tokenizer = PhonemeTokenizer()
    dim = PhonemeTokenizer.vocab_size

    def vectors(self, text: str) -> Tensor:
        """A text as (S, dim)."""
        ids, rows, marks = self.tokenizer.ids, [], []
        for symbol in phonemize(text):
            if symbol in "ˈˌ":
                marks.append(ids[symbol])
            elif symbol == "ː" and rows:
                rows[-1].append(ids[symbol])
            else:
                rows.append([ids[symbol], *marks])
                marks = []
        x = torch.zeros(len(rows) + 1, self.dim)
        for i, row in enumerate([*rows, [END]]):
            x[i, row] = self.dim**0.5
        return x

    def encode(self, texts: Sequence[str]) -> Context:
        """B texts as (B, S, dim) with a mask."""
        rows = [self.vectors(text) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Context(padded, torch.arange(padded.shape[1]) < lengths[:, None])

    def empty(self, n: int = 1) -> Context:
        """The condition that says nothing."""
        return Context(torch.zeros(n, 1, self.dim), torch.zeros(n, 1).bool())


def enrolment(mel: Tensor, codes: Tensor) -> Tensor:
    """The first ENROLMENT frames (B, P, Q), from the first loud one on, of codes
    (B, M, Q) of a log-mel (B, 1, T, F); fewer if there are no more.
    """
    level = mel[:, 0].logsumexp(dim=2)  # (B, T)
    loud = level > level.amax(dim=1, keepdim=True) - QUIET * np.log(10) / 20
    stride = mel.shape[2] // codes.shape[1]
    P = min(ENROLMENT, codes.shape[1])
    first = (loud.int().argmax(dim=1) // stride).clamp(max=codes.shape[1] - P)
    place = first[:, None] + torch.arange(P)
    return codes.gather(1, place[..., None].expand(-1, -1, codes.shape[2]))


def prompt_of(
    enrolled: Tensor | None, task: str | None = None, mixture: Tensor | None = None
) -> Context:
    """SpeechX's prompt: enrolment, the task's sign, mixture, in fixed places, so that
    frame m of every mixture lies equally far from frame m of what is written.

    Args:
        enrolled: codes (B, P, Q), or None.
        task: of TASKS, or "unknown" for the sign that is never trained; None for none.
        mixture: codes (B, M, Q), with a task.
    """
    some = enrolled if mixture is None else mixture
    B, _, Q = some.shape
    given = 0 if enrolled is None else enrolled.shape[1]
    slot = torch.zeros(B, ENROLMENT, Q, dtype=torch.long)
    slot[:, :given] = 0 if enrolled is None else enrolled
    parts, mask = [slot], torch.arange(ENROLMENT).expand(B, -1) < given
    if task is not None:
        number = (*TASKS, "unknown").index(task)
        sign = torch.full((B, 1, Q), SIZES["n_codes"] + number)
        parts += [sign, mixture]
        mask = F.pad(mask, (0, 1 + mixture.shape[1]), value=True)
    return Context(torch.cat(parts, dim=1), mask)


# ---- Data


def spoken(word: str, talker: Talker, rng: np.random.Generator) -> np.ndarray:
    """A word as a wave (N,) of peak 1, at a rate that rng draws."""
    rate = int(rng.integers(*RATES, endpoint=True))
    said = espeak.speak(word, f"en-us+{talker.variant}", talker.height, rate)
    return said / abs(said).max()


def placed(waves: Sequence[tuple[np.ndarray, float]], seconds: float) -> Tensor:
    """The sum (N,) of waves, each with the second at which it begins; what lasts too
    long is cut off.
    """
    total = np.zeros(round(seconds * audio.SAMPLE_RATE), dtype=np.float32)
    for wave, onset in waves:
        first = round(onset * audio.SAMPLE_RATE)
        part = wave[: len(total) - first]
        total[first : first + len(part)] += part
    return torch.from_numpy(total)


def hiss(wave: Tensor, rng: np.random.Generator) -> Tensor:
    """The wave with the faint noise that lies under all clips."""
    noise = NOISE * rng.standard_normal(len(wave))
    return wave + torch.from_numpy(noise.astype(np.float32))


class Words:
    """Clips of one word in one voice, as codes.

    Args:
        pipe: the codec.
        words, talkers: lists of equal length.
        seed: of rates, levels and onsets.
    """

    def __init__(
        self, pipe: CodecAndVocoder, words: Sequence[str], talkers: Sequence[Talker],
        seed: int = 0, seconds: float = MIXED_SECONDS,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.words, self.talkers, waves = list(words), list(talkers), []
        for word, talker in zip(words, talkers, strict=True):
            wave = spoken(word, talker, rng) * rng.uniform(*PEAKS)
            waves.append(hiss(placed([(wave, rng.uniform(0, 0.06))], seconds), rng))
        self.waves = torch.stack(waves)  # (n, N)
        mel = log_mels(waves)
        self.codes = coded(pipe, mel)  # (n, M, Q)
        self.enrolled = enrolment(mel, self.codes)  # (n, P, Q)
        self.phonemes = Phones().encode(self.words)
        self.rows: dict[Talker, Tensor] = {
            talker: torch.tensor([i for i, x in enumerate(talkers) if x == talker])
            for talker in dict.fromkeys(talkers)
        }

    @classmethod
    def draw(cls, pipe: CodecAndVocoder, n: int, seed: int) -> Words:
        """n clips with words and voices of training."""
        rng = np.random.default_rng([seed, 1])
        words = [OTHERS[i] for i in rng.integers(len(OTHERS), size=n)]
        talkers = [TALKERS[i] for i in rng.integers(len(TALKERS), size=n)]
        return cls(pipe, words, talkers, seed)


@torch.no_grad()
def coded(pipe: CodecAndVocoder, mel: Tensor) -> Tensor:
    """The codes (n, M, N_Q) of log-mels (n, 1, T, F)."""
    return torch.cat([pipe.encode(some)[..., :N_Q] for some in mel.split(64)])


class Mixtures:
    """Two talkers, of whom the second begins before the first has ended, and a sound of
    SoundWorld, all as codes and as waves by name: mixture, both, noise, first, second.

    Args:
        pipe: the codec.
        n: how many.
        seed: of words, voices, sounds and levels.
        words: to be drawn from.
        split: of SoundWorld.
    """

    kinds = ("mixture", "both", "noise", "first", "second")

    def __init__(
        self, pipe: CodecAndVocoder, n: int, seed: int, words: Sequence[str] = OTHERS,
        split: str = "train",
    ):  # fmt: skip
        rng = np.random.default_rng([seed, 2])
        world = SoundWorld(split, seed, MIXED_SECONDS, pairs=0.0)
        self.words, self.talkers, waves = [], [], {kind: [] for kind in self.kinds}
        for i in range(n):
            said = [words[k] for k in rng.choice(len(words), 2, replace=False)]
            who = [TALKERS[k] for k in rng.choice(len(TALKERS), 2, replace=False)]
            onsets = rng.uniform(0, 0.06), rng.uniform(0.35, 0.5)
            parts = [
                placed([(spoken(w, t, rng) * rng.uniform(*PEAKS), at)], MIXED_SECONDS)
                for w, t, at in zip(said, who, onsets)
            ]
            both, noise = sum(parts), world[i].wave
            below = 10 ** (-rng.uniform(0, 10) / 20)  # decibels from speech to noise
            noise = noise * (below * both.norm() / noise.norm().clamp(min=1e-6))
            made = both + noise, both, noise, *parts
            scale = min(1.0, 0.95 / float(made[0].abs().max()))
            for kind, wave in zip(self.kinds, made):
                waves[kind].append(hiss(scale * wave, rng))
            self.words.append(said)
            self.talkers.append(who)
        self.waves = {kind: torch.stack(x) for kind, x in waves.items()}
        self.codes = {kind: coded(pipe, log_mels(x)) for kind, x in waves.items()}
        self.phonemes = {
            "both": Phones().encode([" ".join(said) for said in self.words]),
            "first": Phones().encode([first for first, _ in self.words]),
            "second": Phones().encode([second for _, second in self.words]),
        }


class SpeakingBatches:
    """Batches for VALL-E: a word, its phonemes, and an enrolment from another clip of
    the same talker; some rows have none.
    """

    def __init__(self, words: Words, batch_size: int = HOW["batch_size"]):
        self.words, self.batch_size = words, batch_size
        self.M = round(SECONDS * words.codes.shape[1] / MIXED_SECONDS)

    def rows(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips (n,), and as many others of the same talkers."""
        rows = torch.randint(len(self.words.words), (n,), generator=generator)
        others = [self.other(int(row), generator) for row in rows]
        return rows, torch.tensor(others)

    def other(self, row: int, generator: torch.Generator) -> int:
        """Another clip of the same talker; the same if there is no other."""
        own = self.words.rows[self.words.talkers[row]]
        own = own[own != row] if len(own) > 1 else own
        return int(own[torch.randint(len(own), (), generator=generator)])

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `VALLE.loss`."""
        n, words = self.batch_size, self.words
        rows, others = self.rows(n, generator)
        enrolled, mask = prompt_of(words.enrolled[others])
        kept = torch.rand(n, generator=generator) >= P_NO_PROMPT
        x, read = words.phonemes
        told = {
            "phonemes": Context(x[rows], read[rows]),
            PROMPT: Context(enrolled, mask & kept[:, None]),
        }
        stage = torch.randint(1, N_Q, (n,), generator=generator)
        codes = words.codes[rows, : self.M]
        return {"codes": codes, "stage": stage, **to_batch(told)}


class TaskBatches(SpeakingBatches):
    """Batches for SpeechX: each row is asked to speak, or one of TASKS."""

    def __init__(
        self, words: Words, mixtures: Mixtures, batch_size: int = HOW["batch_size"]
    ):
        super().__init__(words, batch_size)
        self.mixtures = mixtures

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch for `VALLE.loss`."""
        n, weights = self.batch_size, torch.tensor([*SHARES.values()])
        drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
        rows = [self.row([*SHARES][k], generator) for k in drawn.tolist()]
        codes, told = zip(*rows)
        batch = {"codes": torch.cat(codes), **to_batch(padded(told))}
        batch["stage"] = torch.randint(1, N_Q, (n,), generator=generator)
        return batch

    def row(self, task: str, generator: torch.Generator) -> tuple[Tensor, Conditions]:
        """What is to be written (1, M, Q), and the conditions, of one row."""
        chance = lambda p: bool(torch.rand((), generator=generator) < p)
        words, mixed, text = self.words, self.mixtures, Phones().empty()
        if task == "tts":
            rows, others = self.rows(1, generator)
            enrolled = None if chance(P_NO_PROMPT) else words.enrolled[others]
            some = prompt_of(words.enrolled[others])
            if enrolled is None:
                some = Context(some.sequence, torch.zeros_like(some.mask))
            text = Context(*(x[rows] for x in words.phonemes))
            return words.codes[rows], {"phonemes": text, PROMPT: some}
        i = int(torch.randint(len(mixed.words), (), generator=generator))
        kind, enrolled = {"ns": "both", "sr": "noise"}.get(task), None
        if kind is None:
            k = int(chance(0.5))
            kind, own = ("first", "second")[k], words.rows.get(mixed.talkers[i][k])
            if own is None:  # this talker said no word: only in tiny data sets
                own = torch.arange(len(words.words))
            pick = own[torch.randint(len(own), (1,), generator=generator)]
            enrolled = words.enrolled[pick]
        if kind != "noise" and not chance(P_NO_TEXT):
            text = Context(*(x[i : i + 1] for x in mixed.phonemes[kind]))
        mixture = mixed.codes["mixture"][i : i + 1]
        told = {"phonemes": text, PROMPT: prompt_of(enrolled, task, mixture)}
        return mixed.codes[kind][i : i + 1], told


def padded(rows: Sequence[Conditions]) -> Conditions:
    """Conditions of one item each as those of all, the shorter ones padded."""
    joined = {}
    for name in rows[0]:
        S = max(row[name].sequence.shape[1] for row in rows)
        pad = lambda x, S=S: F.pad(x, (0, 0) * (x.ndim - 2) + (0, S - x.shape[1]))
        joined[name] = Context(
            torch.cat([pad(row[name].sequence) for row in rows]),
            torch.cat([pad(row[name].mask) for row in rows]),
        )
    return joined


def first_codebook(batches: Any) -> Any:
    """The same batches for the AR model: of codes and prompt the first codebook."""

    def drawn(generator: torch.Generator) -> dict[str, Tensor]:
        batch = batches(generator)
        return batch | {name: batch[name][..., :1] for name in ("codes", PROMPT)}

    return drawn


# ---- Training


def config_for(pipe: CodecAndVocoder, latents: bool = True) -> VALLEConfig:
    """The sizes of VALL-E for a codec."""
    codec = pipe.codec.config
    sizes = {**SIZES, "n_codes": codec.n_codes, "codec": pipe.codec.fingerprint}
    nar = NARConfig(n_layer=3, n_q=N_Q, code_dim=codec.dim, latents=latents, **sizes)
    return VALLEConfig(CodecLMConfig(n_layer=4, n_q=1, **sizes), nar)


def codebooks(pipe: CodecAndVocoder) -> Tensor:
    """The vectors (N_Q, K, code_dim) of the codec."""
    levels = pipe.codec.quantiser.levels[:N_Q]
    return torch.stack([level.embedding.weight.detach().float() for level in levels])


def untrained(pipe: CodecAndVocoder, seed: int = 0, latents: bool = True) -> VALLE:
    """VALL-E with fresh weights and the codec's vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VALLE(config_for(pipe, latents))
    if latents:
        model.nar.take(codebooks(pipe))
    return model


def learn(
    model: VALLE, batches: Any, recipes: dict[str, Recipe], seed: int, name: str,
    progress: bool = True,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Train both networks, which share no weights, and return their curves."""
    ar, nar = (f"{name} {part}" for part in ("ar", "nar"))
    first = first_codebook(batches)
    return {
        "ar": fit(model.ar, first, recipes["ar"], seed, ar, progress),
        "nar": fit(model.nar, batches, recipes["nar"], seed, nar, progress),
    }


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights: `out/valle` in float16, and `out/pipeline.json`, which names
    codec and vocoder.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipes.
        progress: show a bar.
        weights: the folder whose vocoder it uses; the codec's lies beside it, in
            `../peers/codec`.

    Raises:
        ModuleNotFoundError: espeak-ng is not installed.
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    if steps is not None:
        check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    codec = weights.parent / "peers" / "codec"
    pipe = CodecAndVocoder.from_pretrained(codec)
    words = Words.draw(pipe, N_WORDS, seed)
    mixtures = Mixtures(pipe, N_MIXTURES, seed)
    few = lambda recipes: {
        key: replace(x, steps=steps or x.steps) for key, x in recipes.items()
    }
    model = untrained(pipe, seed)
    B = SPEAKING["ar"].batch_size  # of all four recipes
    speaking, tasks = SpeakingBatches(words, B), TaskBatches(words, mixtures, B)
    learn(model, speaking, few(SPEAKING), seed, "speak", progress)
    learn(model, tasks, few(ALL_TASKS), seed, "tasks", progress)
    save(model, out, codec, weights)
    return out


def save(model: VALLE, out: Path, codec: Path, weights: Path) -> None:
    """Write the folder of a trained model."""
    there = {"codec": codec, "vocoder": weights / "vocoder"}
    told = {name: os.path.relpath(path, out) for name, path in there.items()}
    told = {"peer": "valle", "temperature": SAMPLING.temperature, **told}
    with replacing_folder(out) as new:
        model.save_pretrained(new / "valle", dtype=torch.float16)
        (new / "pipeline.json").write_text(json.dumps(told, indent=1) + "\n")


# ---- The pipeline


class TextToAudio:
    """A transcription and a voice -> codes -> log-mel -> wave; called as `AudioLDM2` is
    with a voice. Its folder holds both networks, in `valle`.

    Raises:
        ValueError: the networks write the codes of another codec.
    """

    speaks, sees = True, False
    text = Phones()
    seconds = SECONDS

    def __init__(
        self, valle: VALLE, pipe: CodecAndVocoder, sampling: Sampling = SAMPLING
    ):
        pipe.codec.check_fingerprint(valle.config.nar.codec)
        self.valle, self.pipe, self.sampling = valle.eval(), pipe, sampling
        self.profile = Profile()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextToAudio:
        """Load it from a folder that `train` wrote; FileNotFoundError or ValueError
        names a file that is missing or damaged.
        """
        folder = check_path("folder", folder)
        told = read_json(folder / "pipeline.json")
        pipe = CodecAndVocoder.borrowed(folder)
        valle = VALLE.from_pretrained(folder / "valle", dtype=torch.float32)
        sampling = SAMPLING.changed(temperature=told.get("temperature"))
        return cls(valle, pipe, sampling)

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
        """Say words in a voice.

        Args:
            captions: not read, and refused without a voice; as many sounds are made as
                there are captions, or one.
            sampling: only its temperature is used.
            transcription: the words, one text for all or one for each.
            voice: a recording (N,) at 16 kHz of whom to copy; None for any voice.
            seconds: length of the sounds, at most 2.56.
            seed, candidates: as for `AudioLDM2`; there is nothing to choose among
                candidates, so they must be 1.
        Returns:
            (B, N).
        Raises:
            ValueError, TypeError: an argument is not as described.
        """
        temperature = check_temperature(sampling, self.sampling, changes)
        texts = check_spoken(captions, transcription, voice, candidates)
        seconds = check_seconds(self.seconds if seconds is None else seconds)
        if seconds > 2 * MIXED_SECONDS:
            most = f"at most {2 * MIXED_SECONDS:g}, twice the longest of training"
            raise ValueError(f"seconds must be {most}, not {seconds:g}")
        generators, self.profile = seeded(seed, len(texts)), Profile()
        with self.profile.measure("encode"):
            told = {"phonemes": self.text.encode(texts)}
            if voice is not None:
                told[PROMPT] = self.enrol(voice).repeat(len(texts))
        n_samples = round(seconds * audio.SAMPLE_RATE)
        with self.profile.measure("sample"):
            codes = self.write(told, n_samples, generators, temperature)
        with self.profile.measure("decode"):
            return self.decode(codes)[:, :n_samples]

    def unknown_words(self, caption: str) -> list[str]:
        """None: captions are not read."""
        return []

    def enrol(self, voice: Tensor) -> Context:
        """The prompt (1, P, Q) of a recording (N,)."""
        scaled = check_recorded(voice, 0.1)
        noise = torch.randn(len(voice), generator=torch.Generator().manual_seed(0))
        mel = log_mels([scaled + NOISE * noise])
        mel = mel[:, :, : mel.shape[2] // 2 * 2]
        return prompt_of(enrolment(mel, coded(self.pipe, mel)))

    def write(
        self, told: Conditions, n_samples: int, generators: list[torch.Generator],
        temperature: float = SAMPLING.temperature,
    ) -> Tensor:  # fmt: skip
        """Codes (B, M, Q) for conditions, as long as n_samples."""
        hop = audio.HOP * self.pipe.codec.config.stride
        M = -(-n_samples // hop)
        return self.valle.generate(M, generators, told, temperature)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, M, Q) to waves (B, N)."""
        return vocode(self.pipe.vocoder, self.pipe.codec.decode(codes))

    @torch.no_grad()
    def listen(
        self,
        task: str,
        mixture: Tensor,
        voice: Tensor | None = None,
        transcription: str | None = None,
        seed: int = 0,
        temperature: float = SAMPLING.temperature,
    ) -> Tensor:
        """SpeechX: what a task makes of a mixture (N,) of at most 1.28 s -> (N,).

        Args:
            task: "ns" takes noise away, "sr" leaves nothing but noise, "tse" leaves the
                talker of `voice`.
            mixture: at 16 kHz.
            voice: a recording (N,), with "tse" alone.
            transcription: the words to be heard in the end, if they are known.
            seed, temperature: of the draws.
        Raises:
            ValueError: an argument is not as described.
        """
        check_word("task", task, (*TASKS, "unknown"))
        if (task == "tse") != (voice is not None):
            raise ValueError("voice must be given with the task tse, and no other")
        most = round(MIXED_SECONDS * audio.SAMPLE_RATE)
        if mixture.ndim != 1 or not 0 < len(mixture) <= most:
            shape = tuple(mixture.shape)
            said = f"(N,) with at most {most} samples, not {shape}"
            raise ValueError(f"mixture must be {said}")
        mel = log_mels([F.pad(mixture.float(), (0, most - len(mixture)))])
        enrolled = None
        if voice is not None:
            enrolled, mask = self.enrol(voice)
            enrolled = enrolled[:, : int(mask.sum())]
        text = self.text.empty()
        if transcription is not None:
            text = self.text.encode([transcription])
        prompt = prompt_of(enrolled, task, coded(self.pipe, mel))
        told = {"phonemes": text, PROMPT: prompt}
        codes = self.write(told, most, seeded(seed, 1), temperature)
        return self.decode(codes)[0, : len(mixture)]
