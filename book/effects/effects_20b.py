"""The experiments of chapter 20b: what semantic tokens tell, who is heard after a
conversion, what further steps on recordings without transcripts bring, whether codes
lean on semantic tokens, and what two tasks in one model cost each other.

The weights that ship are those of `minilib train-peer uniaudio`. Everything else is
trained here, in a hundred steps or two. Words of tests are held out of all training.
A recogniser that nobody here trained hears words, and a judge that compares voices by
their spectrum hears which of ten variants of espeak-ng spoke.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import audio
from minilib.cli import shipped_weights
from minilib.codec_lm import CodecLM, MultiScaleLM, given
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
FEW = 120  # transcripts, 5 in 100
TEACH = Recipe(steps=60, batch_size=16, lr=5e-3, warmup=15, ema=0.95, muon=("linear",))

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
    own = pipe().pipe.codec, pipe().units
    return Clips(*own, seed=seed, n=n, lexicon=lexicon, split=split)


def learned() -> Clips:
    """What there is to learn from: the clips of the shipped system."""
    return clips(0, OTHERS, (2400, 1600, 400))


def fresh(seed: int) -> Clips:
    """What it never heard: held-out words, and sounds and tunes of the test split."""
    return clips(1000 + seed, WORDS, (240, 96, 48))


@cache
@torch.no_grad()
def judges() -> tuple[Recogniser, KnownVoices]:
    """Who hears words, and who hears voices: by clean words and by the same words
    through the codes that are written.
    """
    own = pipe().pipe.codec, pipe().units
    resounded = lambda waves: sounded(coded(*own, audio.log_mel(waves)))
    return Recogniser(WORDS), known_talkers(resounded)


@torch.no_grad()
def sounded(frames: Tensor) -> Tensor:
    """The waves (B, N) of frames (B, M, Q)."""
    return vocode(pipe().pipe.vocoder, pipe().pipe.codec.decode(frames[..., 1:]))


def written(
    lm: CodecLM, prompts: list[Tensor], M: int, seed: int, units: Tensor | None = None
) -> Tensor:
    """Frames (B, M, Q) behind prompts; semantic tokens (B, M) may be given."""
    generators = [
        torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))
    ]
    return uniaudio.write(lm, prompts, M, generators, 0.7, units)


def words_right(frames: Tensor, said: Sequence[str]) -> float:
    """The share of sounds in which the recogniser hears the word."""
    return judges()[0].accuracy(sounded(frames), said)


def voices_right(frames: Tensor, variants: Sequence[str]) -> float:
    """The share of sounds in which the judge hears the variant of espeak-ng."""
    heard = [name.split()[0] for name in judges()[1].hear(sounded(frames))]
    return float(np.mean([a == b for a, b in zip(heard, variants)]))


def taught(model: CodecLM, batches, recipe: Recipe, seed: int, name: str) -> CodecLM:
    """A model that has learned."""
    with torch.enable_grad():
        fit(model, batches, recipe, seed, name, progress=False)
    return model


def new_lm(seed: int) -> MultiScaleLM:
    """An untrained language model of the size of the shipped one."""
    torch.manual_seed(seed)
    return MultiScaleLM(pipe().lm.config)


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
    mel, phonemes, variants = labelled(800, seed)
    frames = coded(pipe().pipe.codec, pipe().units, mel)
    kinds = {f"codebook {q}": frames[..., q] for q in (1, 2, 3)}
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
    of = lambda task, told, voices, *units: written(
        lm, [prompt(lm.config, task, *x) for x in zip(told, voices)], M, seed, *units
    )
    nothing = [{}] * N_HEARD
    phonemes = [{"phoneme": test.phonemes[word]} for word in cast.said]
    mixed = [{"phoneme": x["phoneme"][-2::-1] + x["phoneme"][-1:]} for x in phonemes]
    source, target = test.words[cast.source], test.words[cast.target]
    converted = of("convert", nothing, cast.voices, source[..., 0])
    other = of("convert", nothing, cast.voices, test.words[turned][..., 0])
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
# Make-A-Voice: how few transcripts it needs, and what a semantic token does


class FewLabels(Tasks):
    """Tasks of which "speak" knows the transcripts of a few clips only."""

    def __init__(self, rows: list[int], shares: dict[str, float]):
        super().__init__(
            learned(), pipe().lm.config, pipe().words, shares, TEACH.batch_size
        )
        self.rows = torch.tensor(rows)

    def batch(self, task: str, generator: torch.Generator) -> dict[str, Tensor]:
        """As `Tasks.batch`, with the few clips for "speak"."""
        if task != "speak":
            return super().batch(task, generator)
        which = torch.randint(len(self.rows), (self.batch_size,), generator=generator)
        which = self.rows[which]
        told = [self.speak(i, generator) for i in which.tolist()]
        sequence, mask = together([prompt(self.config, "speak", *x) for x in told])
        codes = self.clips.words[which]
        return {"codes": codes, "prompt": sequence, "prompt_mask": mask}


@experiment(
    Claim(
        "few_labels",
        "beside 120 transcripts, as many further steps on recordings without any make "
        "held-out words cheaper to write from their phonemes",
        "nats a frame, semantic token and 3 codes",
        lambda x: x["and 2,400 recordings"] < x["120 transcripts alone"] - 0.1,
        control="120 transcripts alone",
        ceiling=4 * math.log(64),
    ),
    Claim(
        "semantic_first",
        "the codes of a frame lean on its semantic token: another word's makes them "
        "dearer",
        "nats a code on held-out words, by the shipped model",
        lambda x: x["its own"] < x["another word's"] - 0.3,
        control="another word's",
        ceiling=math.log(64),
    ),
)
def labels(seed: int) -> Measured:
    """What recordings without transcripts bring, and what a semantic token does."""
    test, rng = fresh(seed), np.random.default_rng(seed)
    rows = rng.choice(len(learned().said), FEW, replace=False).tolist()
    found = {}
    for name, shares in (
        ("120 transcripts alone", {"speak": 1.0}),
        ("and 2,400 recordings", {"speak": 0.5, "convert": 0.5}),
    ):
        # equally many steps with transcripts
        recipe = TEACH if len(shares) == 1 else replace(TEACH, steps=2 * TEACH.steps)
        model = taught(new_lm(seed), FewLabels(rows, shares), recipe, seed, name)
        tasks = Tasks(test, model.config, pipe().words, {}, 96)
        batch = tasks.batch("speak", torch.Generator().manual_seed(7))
        with torch.no_grad():
            cost = model.log_prob(batch["codes"], given(model.config, batch))
        found[name] = -float(cost.sum(dim=2).mean())
    lm, own = pipe().lm, {}
    batch = Tasks(test, lm.config, pipe().words, {}, 96).batch(
        "convert", torch.Generator().manual_seed(7)
    )
    for name, shift in (("its own", 0), ("another word's", 1)):
        codes = batch["codes"].clone()
        codes[..., 0] = codes[..., 0].roll(shift, dims=0)
        with torch.no_grad():
            cost = lm.log_prob(codes, given(lm.config, batch))
        own[name] = -float(cost[..., 1:].mean())
    return {"few_labels": found, "semantic_first": own}


# --------------------------------------------------------------------------------------
# UniAudio: what tasks that are learned together cost each other

PAIR = ("convert", "sound")
SHARED = Recipe(
    steps=50, batch_size=12, lr=5e-3, warmup=15, ema=0.95, muon=("linear",)
)  # for each task


@torch.no_grad()
def nats(lm: CodecLM, test: Clips, task: str) -> float:
    """Nats a code of a task, semantic tokens not counted, on clips that are new to the
    model.
    """
    tasks = Tasks(test, lm.config, pipe().words, {}, 96)
    batch = tasks.batch(task, torch.Generator().manual_seed(7))
    log_prob = lm.log_prob(batch["codes"], given(lm.config, batch))
    return -float(log_prob[..., 1:].mean())


@experiment(
    Claim(
        "transfer",
        "learning two tasks together costs neither more than 0.05 nats a code, beside "
        "a model that learns it alone in as many steps with this task",
        "nats a code on held-out words and on sounds of the test split",
        lambda x: all(
            x[f"{task}, together"] < x[f"{task}, alone"] + 0.05 for task in PAIR
        ),
        ceiling=math.log(64),
    )
)
def transfer(seed: int) -> Measured:
    """What learning together costs, or saves, in as many steps with each task, and in
    as many steps overall.
    """
    material, equal = clips(0, OTHERS, (600, 600, 1)), dict.fromkeys(PAIR, 0.5)
    arms = {f"{task}, alone": ((task,), {task: 1.0}, SHARED.steps) for task in PAIR} | {
        "together": (PAIR, equal, 2 * SHARED.steps),
        "together, half of the steps": (PAIR, equal, SHARED.steps),
    }
    found = {}
    for arm, (tested, shares, steps) in arms.items():
        model, how = new_lm(seed), replace(SHARED, steps=steps)
        draw = Tasks(material, model.config, pipe().words, shares, how.batch_size)
        taught(model, draw, how, seed, arm)
        for task in tested:
            name = arm if len(tested) == 1 else f"{task}, {arm}"
            found[name] = nats(model, fresh(seed), task)
    return {"transfer": dict(sorted(found.items()))}
