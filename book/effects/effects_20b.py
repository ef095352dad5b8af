"""The experiments of chapter 20b: what semantic tokens tell, who is heard after a
conversion, how few transcripts two stages need, and what several tasks in one language
model, and a new one, cost each other.

The weights that ship are those of `minilib train-peer uniaudio`. Everything else is
trained here, in a hundred steps or two. Words of tests are held out of all training.
A recogniser that nobody here trained hears words, and a judge that compares voices by
their spectrum hears which of ten variants of espeak-ng spoke.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import audio
from minilib.cli import shipped_weights
from minilib.codec_lm import CodecLM, MultiScaleLM, PatternLM, given
from minilib.peers import uniaudio
from minilib.peers.codec import log_mels
from minilib.peers.uniaudio import (
    Clips,
    Tasks,
    TextToAudio,
    Units,
    UnitsConfig,
    audible,
    coded,
    prompt,
    together,
)
from minilib.recogniser import Recogniser
from minilib.soundworld import espeak
from minilib.soundworld.speech import OTHERS, WORDS
from minilib.soundworld.talkers import (
    FRAMES,
    NOISE,
    RATES,
    TALKERS,
    VARIANTS,
    known_talkers,
)
from minilib.training import Recipe, fit
from minilib.vocoder import vocode
from minilib.voices import KnownVoices

N_HEARD = 36  # sounds that the judges hear, for each seed and arm
STEPS = 225  # as many as the shipped model spent on conversion, and on sounds
ALONE = replace(uniaudio.RECIPE, steps=STEPS)
FEW = 120  # transcripts, 5 in 100
TEACH = Recipe(steps=80, batch_size=24, lr=5e-3, warmup=15, ema=0.95, muon=("linear",))
TUNE = Recipe(steps=80, batch_size=16, lr=2e-3, warmup=10, ema=0.95, muon=("linear",))

# --------------------------------------------------------------------------------------
# Material


@cache
def pipe() -> TextToAudio:
    """The shipped system."""
    return TextToAudio.from_pretrained(shipped_weights().parent / "peers" / "uniaudio")


@cache
def clips(seed: int, lexicon: tuple[str, ...], n: tuple[int, int, int]) -> Clips:
    """Clips as the system learns from, of other seeds or words."""
    split = "train" if lexicon == OTHERS else "test"
    given = pipe().pipe.codec, pipe().units, pipe().lm.config.n_q
    return Clips(*given, seed=seed, n=n, lexicon=lexicon, split=split)


def learned() -> Clips:
    """What there is to learn from: the clips of the shipped system."""
    return clips(0, OTHERS, (2400, 1600, 400))


def fresh(seed: int) -> Clips:
    """What it never heard: held-out words, and sounds and tunes of the test split."""
    return clips(1000 + seed, WORDS, (240, 96, 48))


@cache
@torch.no_grad()
def judges() -> tuple[Recogniser, KnownVoices]:
    """Who hears words, and who hears voices."""
    resounded = lambda waves: vocode(pipe().pipe.vocoder, audio.log_mel(waves))
    return Recogniser(WORDS), known_talkers(resounded)


@torch.no_grad()
def sounded(codes: Tensor) -> Tensor:
    """The waves (B, N) of codes (B, M, Q)."""
    return vocode(pipe().pipe.vocoder, pipe().pipe.codec.decode(codes))


@torch.no_grad()
def written(lm: CodecLM, prompts: list[Tensor], M: int, seed: int) -> Tensor:
    """Codes (B, M, Q) behind prompts."""
    generators = [
        torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))
    ]
    return lm.generate(M, generators, {"prompt": together(prompts)}, 0.7)


def words_right(codes: Tensor, said: Sequence[str]) -> float:
    """The share of sounds in which the recogniser hears the word."""
    return judges()[0].accuracy(sounded(codes), said)


def voices_right(codes: Tensor, variants: Sequence[str]) -> float:
    """The share of sounds in which the judge hears the variant of espeak-ng."""
    heard = [name.split()[0] for name in judges()[1].hear(sounded(codes))]
    return float(np.mean([a == b for a, b in zip(heard, variants)]))


def taught(model: CodecLM, batches, recipe: Recipe, seed: int, name: str) -> CodecLM:
    """A model that has learned."""
    with torch.enable_grad():
        fit(model, batches, recipe, seed, name, progress=False)
    return model


def new_lm(seed: int, kind: type[CodecLM] = MultiScaleLM, **sizes) -> CodecLM:
    """An untrained language model; sizes as for the shipped one, but for changes."""
    config = pipe().lm.config
    if kind is PatternLM:
        known = PatternLM.config_class.__dataclass_fields__
        config = PatternLM.config_class(**{k: getattr(config, k) for k in known})
    torch.manual_seed(seed)
    return kind(replace(config, **sizes))


@torch.no_grad()
def nats(lm: CodecLM, test: Clips, task: str, n: int = 96) -> float:
    """Nats a code of a task, on clips that are new to the model."""
    tasks = Tasks(test, lm.config, pipe().words, {task: 1.0}, n)
    batch = tasks.batch(task, torch.Generator().manual_seed(7))
    return -float(lm.log_prob(batch["codes"], given(lm.config, batch)).mean())


# --------------------------------------------------------------------------------------
# What tokens tell


def shared_bits(a: Tensor, b: Tensor) -> float:
    """The mutual information of two series of numbers (n,), in bits, less what appears
    to be shared once one is shuffled.
    """

    def told(a: Tensor, b: Tensor) -> float:
        B = int(b.max()) + 1
        joint = torch.bincount(a * B + b, minlength=(int(a.max()) + 1) * B).double()
        joint = (joint / joint.sum()).view(-1, B)
        entropies = (torch.special.entr(p).sum() for p in (joint.sum(0), joint.sum(1)))
        return float(sum(entropies) - torch.special.entr(joint).sum()) / math.log(2)

    order = torch.randperm(len(b), generator=torch.Generator().manual_seed(0))
    return told(a, b) - told(a, b[order])


def labelled(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n words: log-mels, the phoneme of each frame or -1 (n, M), the variant (n, M)."""
    rng, waves, rows = np.random.default_rng(500 + seed), [], []
    N, names = FRAMES * audio.HOP, {}
    for i in range(n):
        talker, word = TALKERS[i % len(TALKERS)], OTHERS[rng.integers(len(OTHERS))]
        rate = int(rng.integers(*RATES, endpoint=True))
        said = espeak.say(word, f"en-us+{talker.variant}", talker.height, rate)
        wave = NOISE * rng.standard_normal(N)
        part = said.wave[:N]
        wave[: len(part)] += part * (0.65 / abs(said.wave).max())
        waves.append(torch.from_numpy(wave.astype(np.float32)))
        row = torch.full((N // (2 * audio.HOP),), -1)
        for p in said.phonemes:
            number = names.setdefault(p.symbol.strip("ˈˌ"), len(names))
            row[round(50 * p.start) : round(50 * p.end)] = number
        rows.append(row)
    variants = torch.tensor(
        [VARIANTS.index(TALKERS[i % len(TALKERS)].variant) for i in range(n)]
    )
    phonemes = torch.stack(rows)
    return log_mels(waves), phonemes, variants[:, None].expand_as(phonemes)


BITS = {"unit": "bits a token shares"}


@experiment(
    Claim(
        "tokens_voice",
        "normalised clip by clip, clusters of cepstra tell less than half as much of "
        "the voice (3.3 bits) as without",
        holds=lambda x: x["normalised, K = 64"] < 0.5 * x["as they are, K = 64"],
        control="as they are, K = 64",
        chance=0.0,
        ceiling=math.log2(len(VARIANTS)),
        **BITS,
    ),
    Claim(
        "tokens_phoneme",
        "they tell as much of the phoneme as the codec's first code, and more than "
        "its second",
        holds=lambda x: (
            x["normalised, K = 64"] > 0.9 * x["codebook 1"]
            and x["normalised, K = 64"] > x["codebook 2"]
        ),
        chance=0.0,
        **BITS,
    ),
)
def tokens(seed: int) -> Measured:
    """What codes and clusters tell of phoneme and voice, frame by frame."""
    mel, phonemes, variants = labelled(1200, seed)
    codes = coded(pipe().pipe.codec, mel, 3)
    kinds = {f"codebook {q + 1}": codes[..., q] for q in range(3)}
    for K in (16, 64, 256):
        for name, normalised in (("as they are", False), ("normalised", True)):
            units = Units(UnitsConfig(n_units=K, normalised=normalised))
            units.fit(mel, seed)
            kinds[f"{name}, K = {K}"] = units.encode(mel)
    on = audible(mel) & (phonemes >= 0)
    tell = lambda truth: {k: shared_bits(x[on], truth[on]) for k, x in kinds.items()}
    return {"tokens_voice": tell(variants), "tokens_phoneme": tell(phonemes)}


# --------------------------------------------------------------------------------------
# The shipped system: words and voices


class Cast:
    """Who says what in a test: N_HEARD source words, and for each another talker of
    another variant, with half a second of another word of theirs.
    """

    def __init__(self, test: Clips, seed: int):
        rng = np.random.default_rng(seed)
        variant = [TALKERS[k].variant for k in test.talkers.tolist()]
        self.source = rng.choice(len(variant), N_HEARD, replace=False).tolist()
        others = [[j for j, v in enumerate(variant) if v != variant[i]]
                  for i in self.source]  # fmt: skip
        self.target = [int(rng.choice(some)) for some in others]
        self.said = [test.said[i] for i in self.source]
        self.from_ = [variant[i] for i in self.source]
        self.to = [variant[j] for j in self.target]
        draw = torch.Generator().manual_seed(seed)
        pieces = [(test.words[j], test.heard[j], draw) for j in self.target]
        self.voices = [uniaudio.excerpt(*piece) for piece in pieces]


@experiment(
    Claim(
        "converted_words",
        "conversion keeps most of the words that the codes of the source keep",
        "share of 36 words",
        lambda x: x["converted"] > 0.6 * x["codes of the source"],
        control="converted, another word's tokens",
        chance=1 / len(WORDS),
        ceiling=1.0,
    ),
    Claim(
        "converted_voices",
        "conversion moves the voice to the target, which copied codes do not",
        "share of 36 target voices (variants)",
        lambda x: x["converted"] > x["codes of the source"] + 0.3,
        control="codes of the source",
        chance=1 / len(VARIANTS),
        ceiling=1.0,
    ),
    Claim(
        "spoken_words",
        "words that it never heard are understood from their phonemes",
        "share of 36 words",
        lambda x: x["spoken"] > x["phonemes reversed"] + 0.2,
        control="phonemes reversed",
        chance=1 / len(WORDS),
        ceiling=1.0,
    ),
    Claim(
        "spoken_voices",
        "the prompt sets the voice of spoken words",
        "share of 36 target voices (variants)",
        lambda x: x["spoken"] > x["no prompt"] + 0.3,
        control="no prompt",
        chance=1 / len(VARIANTS),
        ceiling=1.0,
    ),
)
def heard(seed: int) -> Measured:
    """Words and voices of the shipped system, on held-out words."""
    test, lm = fresh(seed), pipe().lm
    cast, M = Cast(fresh(seed), seed), fresh(seed).words.shape[1]
    turned = cast.source[1:] + cast.source[:1]
    of = lambda task, told, voices: written(
        lm, [prompt(lm.config, task, *x) for x in zip(told, voices)], M, seed
    )
    units = lambda rows: [{"unit": test.units[i]} for i in rows]
    phonemes = [{"phoneme": test.phonemes[word]} for word in cast.said]
    mixed = [{"phoneme": x["phoneme"][-2::-1] + x["phoneme"][-1:]} for x in phonemes]
    source, target = test.words[cast.source], test.words[cast.target]
    converted = of("convert", units(cast.source), cast.voices)
    other = of("convert", units(turned), cast.voices)
    spoken = of("speak", phonemes, cast.voices)
    nobody = of("speak", phonemes, [None] * N_HEARD)
    backwards = of("speak", mixed, cast.voices)
    return {
        "converted_words": {
            "codes of the source": words_right(source, cast.said),
            "converted": words_right(converted, cast.said),
            "converted, another word's tokens": words_right(other, cast.said),
        },
        "converted_voices": {
            "codes of the target": voices_right(target, cast.to),
            "converted": voices_right(converted, cast.to),
            "codes of the source": voices_right(source, cast.to),
        },
        "spoken_words": {
            "codes of the source": words_right(source, cast.said),
            "spoken": words_right(spoken, cast.said),
            "spoken, no prompt": words_right(nobody, cast.said),
            "phonemes reversed": words_right(backwards, cast.said),
        },
        "spoken_voices": {
            "codes of the target": voices_right(target, cast.to),
            "spoken": voices_right(spoken, cast.to),
            "no prompt": voices_right(nobody, cast.to),
        },
    }


# --------------------------------------------------------------------------------------
# Make-A-Voice: two stages


@cache
def raw_units() -> Units:
    """Clusters of cepstra as they are; `raw_clips` fits them."""
    return Units(UnitsConfig(normalised=False))


@cache
def raw_clips(seed: int = 0, lexicon: tuple[str, ...] = OTHERS, n: int = 2400) -> Clips:
    """The same words as `clips`, with these tokens."""
    own = pipe().pipe.codec, raw_units(), pipe().lm.config.n_q
    return Clips(*own, seed=seed, n=(n, 1, 1), lexicon=lexicon)


@cache
def second_stage(normalised: bool) -> CodecLM:
    """A model that has learned conversion alone, without any transcript."""
    source = learned() if normalised else raw_clips()
    model = new_lm(0)
    draw = Tasks(source, model.config, pipe().words, {"convert": 1.0})
    return taught(model, draw, ALONE, 0, "convert")


def converted(model: CodecLM, test: Clips, cast: Cast, units: Tensor, seed: int):
    """The codes of each source word in the voice of its target."""
    told = zip(units, cast.voices)
    rows = [prompt(model.config, "convert", {"unit": u}, v) for u, v in told]
    return written(model, rows, test.words.shape[1], seed)


@experiment(
    Claim(
        "raw_voices",
        "without normalisation, less of the target's voice is heard: the tokens "
        "themselves still tell the source's",
        "share of 36 target voices (variants)",
        lambda x: x["normalised"] > x["as they are"] + 0.1,
        control="as they are",
        chance=1 / len(VARIANTS),
        ceiling=1.0,
    ),
    Claim(
        "raw_sources",
        "what is heard instead is the voice of the source",
        "share of 36 source voices (variants)",
        lambda x: x["as they are"] > x["normalised"] + 0.1,
        chance=1 / len(VARIANTS),
        ceiling=1.0,
    ),
    Claim(
        "raw_words",
        "both keep words",
        "share of 36 words",
        lambda x: min(x.values()) > 0.3,
        chance=1 / len(WORDS),
        ceiling=1.0,
    ),
)
def raw(seed: int) -> Measured:
    """Conversion from tokens that are normalised and from tokens that are not."""
    test = fresh(seed)
    cast, found = Cast(test, seed), {}
    for name, normalised in (("normalised", True), ("as they are", False)):
        model = second_stage(normalised)
        own = test if normalised else raw_clips(1000 + seed, WORDS, 240)
        found[name] = converted(model, test, cast, own.units[cast.source], seed)
    measure = lambda judge, truth: {k: judge(x, truth) for k, x in found.items()}
    return {
        "raw_voices": measure(voices_right, cast.to),
        "raw_sources": measure(voices_right, cast.from_),
        "raw_words": measure(words_right, cast.said),
    }


def labelled_batches(model: CodecLM, rows: list[int], target: str):
    """Batches of the few clips that have a transcript: their phonemes, and codes or
    semantic tokens (in patches of n_q) to be written.
    """
    source, Q = learned(), model.config.n_q
    truth = source.words if target == "codes" else patched(source.units, Q)

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        which = torch.randint(len(rows), (24,), generator=generator).tolist()
        which = [rows[k] for k in which]
        voices = Tasks(source, model.config, pipe().words, {})
        told = [{"phoneme": source.phonemes[source.said[i]]} for i in which]
        voice = lambda i: voices.voice(i, generator) if target == "codes" else None
        given = [
            prompt(model.config, "speak", x, voice(i)) for x, i in zip(told, which)
        ]
        sequence, mask = together(given)
        return {"codes": truth[which], "prompt": sequence, "prompt_mask": mask}

    return draw


def patched(units: Tensor, n_q: int) -> Tensor:
    """Semantic tokens (B, M) as frames of n_q in a row: (B, M / n_q, Q)."""
    return units.unflatten(1, (-1, n_q))


@experiment(
    Claim(
        "few_labels",
        "with 120 transcripts, phonemes to tokens to codes says more words that were "
        "held out than phonemes to codes",
        "share of 36 words",
        lambda x: x["two stages"] > x["one stage"] + 0.1,
        control="two stages, phonemes reversed",
        chance=1 / len(WORDS),
        ceiling=1.0,
    ),
    Claim(
        "patches",
        "on the multi-scale transformer, in patches of three, semantic tokens cost "
        "no more nats than one by one",
        "nats a token on held-out words",
        lambda x: x["patches of 3"] < x["one by one"] + 0.05,
        ceiling=math.log(64),
    ),
)
def labels(seed: int) -> Measured:
    """Text to speech with few transcripts, by two stages and by one."""
    test, rng = fresh(seed), np.random.default_rng(seed)
    cast, M = Cast(test, seed), test.words.shape[1]
    rows = rng.choice(len(learned().said), FEW, replace=False).tolist()
    few = replace(TEACH, steps=60)
    whole = new_lm(seed)
    whole = taught(whole, labelled_batches(whole, rows, "codes"), few, seed, "one")
    firsts, cost = {}, {}
    for name, model in (
        ("one by one", new_lm(seed, PatternLM, n_q=1, pattern="flat")),
        ("patches of 3", new_lm(seed, n_q=3)),
    ):
        draw = labelled_batches(model, rows, "units")
        firsts[name] = taught(model, draw, TEACH, seed, name)
        told = [{"phoneme": test.phonemes[word]} for word in test.said]
        asked = together([prompt(model.config, "speak", x) for x in told])
        with torch.no_grad():
            truth = patched(test.units, model.config.n_q)
            cost[name] = -float(model.log_prob(truth, {"prompt": asked}).mean())
    first, second = firsts["patches of 3"], second_stage(True)
    phonemes = [test.phonemes[word] for word in cast.said]
    backwards = [x[-2::-1] + x[-1:] for x in phonemes]

    def two(phonemes: list[list[int]]) -> Tensor:
        rows = [prompt(first.config, "speak", {"phoneme": x}) for x in phonemes]
        units = written(first, rows, M // 3, seed).flatten(1)  # (B, M)
        return converted(second, test, cast, units, seed)

    asked = [prompt(whole.config, "speak", {"phoneme": x}, v)
             for x, v in zip(phonemes, cast.voices)]  # fmt: skip
    return {
        "few_labels": {
            "two stages": words_right(two(phonemes), cast.said),
            "one stage": words_right(written(whole, asked, M, seed), cast.said),
            "two stages, phonemes reversed": words_right(two(backwards), cast.said),
            "true tokens, second stage": words_right(
                converted(second, test, cast, test.units[cast.source], seed), cast.said
            ),
        },
        "patches": cost,
    }


# --------------------------------------------------------------------------------------
# UniAudio: several tasks


OLD = tuple(uniaudio.TOGETHER)


@cache
def alone(task: str) -> CodecLM:
    """A model that has learned one task, as long as the shipped one has."""
    if task == "convert":
        return second_stage(True)
    model = new_lm(0)
    draw = Tasks(learned(), model.config, pipe().words, {task: 1.0})
    return taught(model, draw, ALONE, 0, task)


@experiment(
    Claim(
        "transfer",
        "one model for three tasks costs no task more than 0.05 nats a code beside a "
        "model that spent equally many steps on this task alone",
        "nats a code on held-out words and sounds",
        lambda x: all(
            x[f"{task}, together"] < x[f"{task}, alone"] + 0.05
            for task in ("convert", "sound")
        ),
        ceiling=math.log(64),
    )
)
def transfer(seed: int) -> Measured:
    """What learning together costs, or saves."""
    found = {}
    for task in ("convert", "sound"):
        found[f"{task}, together"] = nats(pipe().lm, fresh(seed), task)
        found[f"{task}, alone"] = nats(alone(task), fresh(seed), task)
    return {"transfer": found}


def note_spectra() -> tuple[Tensor, Tensor]:
    """Frequencies in quarter tones, and the fine shape of the log-mel of each."""
    hertz = uniaudio.LOWEST * 2 ** (torch.arange(114) / 24)
    t = torch.arange(4096) / audio.SAMPLE_RATE
    k = torch.arange(1, 20)[:, None]
    tones = [
        (torch.sin(2 * math.pi * f * k * t + k**2) / k * (f * k < 7500)).sum(dim=0)
        for f in hertz
    ]
    mel = audio.log_mel(0.1 * torch.stack(tones))
    return hertz, fine(mel[:, 0, 8:16].mean(dim=1))


def fine(x: Tensor) -> Tensor:
    """Spectra (..., F) without their envelope, of norm 1."""
    flat = torch.nn.functional.pad(x.flatten(0, -2)[:, None], (4, 4), mode="replicate")
    x = x - torch.nn.functional.avg_pool1d(flat, 9, 1)[:, 0].view(x.shape)
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-9)


@torch.no_grad()
def notes_right(codes: Tensor, notes: Tensor) -> float:
    """The share of frames with a note whose log-mel looks like that note, or one less
    than three quarters of a semitone off.
    """
    hertz, spectra = note_spectra()
    mel = pipe().pipe.codec.decode(codes)[:, 0].unflatten(1, (-1, 2)).mean(dim=2)
    found = hertz[(fine(mel) @ spectra.T).argmax(dim=2)]  # (B, M)
    wanted = uniaudio.LOWEST * 2 ** ((notes - 1) / 12)
    off = 12 * (found / wanted).log2().abs()
    return float((off[notes > 0] < 0.75).float().mean())


@experiment(
    Claim(
        "new_task",
        "fine-tuning teaches tunes by their notes in 80 steps, old tasks in half of "
        "the batches or not",
        "nats a code of tunes of the test split",
        lambda x: max(x["with old tasks"], x["alone"]) < x["before"] - 0.3,
        control="before",
        ceiling=math.log(64),
    ),
    Claim(
        "old_tasks",
        "the old tasks survive if they go on, and suffer if they do not",
        "nats a code, mean over the three old tasks",
        lambda x: (
            x["with old tasks"] < x["before"] + 0.05 and x["alone"] > x["before"] + 0.1
        ),
        control="alone",
        ceiling=math.log(64),
    ),
    Claim(
        "notes",
        "notes are followed: the frames of a tune have the pitch that is asked for "
        "more often than with the notes of another tune",
        "share of frames within three quarters of a semitone",
        lambda x: x["its notes"] > x["another tune's notes"] + 0.1,
        control="another tune's notes",
        chance=0.03,
        ceiling=1.0,
    ),
)
def new_task(seed: int) -> Measured:
    """A fourth task for the shipped model."""
    test, base = fresh(seed), pipe().lm
    models = {"before": base}
    for name, shares in (
        (
            "with old tasks",
            {"play": 0.5} | {k: x / 2 for k, x in uniaudio.TOGETHER.items()},
        ),
        ("alone", {"play": 1.0}),
    ):
        draw = Tasks(learned(), base.config, pipe().words, shares, TUNE.batch_size)
        models[name] = taught(deepcopy(base), draw, TUNE, seed, name)
    old = lambda lm: float(np.mean([nats(lm, test, task) for task in OLD]))
    tasks = Tasks(test, base.config, pipe().words, {})
    M, n = test.tunes.shape[1], 24
    rows = [tasks.play(i, torch.Generator())[0] for i in range(n)]
    notes = torch.stack([row["note"] for row in rows])
    turned = [row | {"note": notes[(i + 1) % n]} for i, row in enumerate(rows)]
    tuned = models["with old tasks"]
    play = lambda rows: notes_right(
        written(tuned, [prompt(tuned.config, "play", x) for x in rows], M, seed), notes
    )
    return {
        "new_task": {k: nats(lm, test, "play", 48) for k, lm in models.items()},
        "old_tasks": {k: old(lm) for k, lm in models.items()},
        "notes": {
            "codes of the tune": notes_right(test.tunes[:n], notes),
            "its notes": play(rows),
            "another tune's notes": play(turned),
        },
    }
