"""The experiments of chapter 20: orders of codes on a process of known likelihood, the
two forms of VALL-E's second network, what words and voices come from, and SpeechX's
tasks. All that is heard is heard in the weights that ship; seeds draw words, voices,
mixtures and codes.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from effects import Claim, experiment
from torch import Tensor

from minilib import audio
from minilib.cli import shipped_weights
from minilib.codec_lm import (
    PATTERNS,
    PROMPT,
    VALLE,
    CodecLM,
    CodecLMConfig,
    MultiScaleConfig,
    MultiScaleLM,
    NARConfig,
    PatternLM,
    VALLEConfig,
)
from minilib.conditions import Context
from minilib.peers import valle
from minilib.peers.codec import CodecAndVocoder, log_mels
from minilib.recogniser import Recogniser
from minilib.soundworld.speech import OTHERS, WORDS
from minilib.soundworld.talkers import TALKERS, UNSEEN_TALKERS, Talker, known_talkers
from minilib.soundworld.tokens import TokenProcess
from minilib.training import Recipe, fit
from minilib.vocoder import vocode

PEERS = shipped_weights().parent / "peers"
TOY = CodecLMConfig(
    n_embd=32, n_layer=1, n_head=2, n_positions=64, n_codes=4, n_q=3, conditions=(),
    condition_dims=(),
)  # fmt: skip
N_FRAMES = 8  # of the token process
N = 60  # words that are said for each seed
N_MIXTURES = 32


def model_of(name: str, seed: int) -> CodecLM:
    """A small model of a pattern."""
    torch.manual_seed(seed)
    if name == "ar_nar":
        second = NARConfig(latents=False, **vars(TOY))
        return VALLE(VALLEConfig(replace(TOY, n_q=1), second))
    if name == "multi_scale":
        return MultiScaleLM(MultiScaleConfig(n_local=1, **vars(TOY)))
    return PatternLM(replace(TOY, pattern=name))


@experiment(
    Claim(
        "patterns",
        "heads in parallel lose the total correlation, other orders hardly anything",
        "nats a frame above the floor",
        lambda m: (
            abs(m["parallel"] - m["total correlation"]) < 0.15
            and all(m[x] < 0.2 for x in PATTERNS if x != "parallel")
        ),
        control="parallel",
    )
)
def patterns(seed: int) -> dict[str, dict[str, float]]:
    """Each pattern after 200 steps on a process that the seed draws."""
    process = TokenProcess.draw(seed, n_states=4, n_q=3, n_codes=4)
    fresh = process.sample(1000, N_FRAMES, torch.Generator().manual_seed(99))
    least = -float(process.log_prob(fresh)[0].mean())
    batches = lambda generator: {"codes": process.sample(32, N_FRAMES, generator)}
    recipe, above = Recipe(steps=200, batch_size=32, lr=5e-3, warmup=10), {}
    for name in PATTERNS:
        model = model_of(name, seed)
        fit(model, batches, recipe, seed, progress=False)
        with torch.no_grad():
            above[name] = -float(model.log_prob(fresh, {}).sum(2).mean()) - least
    return {"patterns": {**above, "total correlation": process.exact(N_FRAMES)[1]}}


# ---- Speech


@functools.cache
def codec() -> CodecAndVocoder:
    """The codec that ships."""
    return CodecAndVocoder.from_pretrained(PEERS / "codec")


@functools.cache
def pipeline() -> valle.TextToAudio:
    """VALL-E as it ships."""
    return valle.TextToAudio.from_pretrained(PEERS / "valle")


def of_training(words: valle.Words) -> dict[str, Tensor]:
    """All of the words as one batch, with a prompt by another clip of the talker."""
    batches = valle.SpeakingBatches(words, len(words.words))
    return batches(torch.Generator().manual_seed(1))


@experiment(
    Claim(
        "nar",
        "a NAR model learns faster that reads and writes the codec's vectors",
        "nats a code",
        lambda m: all(m[f"latents, {q}"] < m[f"textbook, {q}"] for q in (2, 3, 4)),
        control="textbook, 2",
        chance=float(np.log(64)),
    )
)
def nar(seed: int) -> dict[str, dict[str, float]]:
    """Both forms after 120 steps on 600 words, measured on 120 others."""
    words, rng = valle.Words.draw(codec(), 600, seed), np.random.default_rng(seed)
    who = [TALKERS[i] for i in np.arange(120) % 20]
    said = [WORDS[i] for i in rng.integers(len(WORDS), size=120)]
    test = of_training(valle.Words(codec(), said, who, 1000 + seed))
    told = {
        "phonemes": Context(test["phonemes"], test["phonemes_mask"]),
        PROMPT: Context(test["prompt"], test["prompt_mask"]),
    }
    found = {}
    for name, latents in (("textbook", False), ("latents", True)):
        model = valle.untrained(codec(), seed, latents).nar
        recipe = replace(valle.SPEAKING["nar"], steps=120)
        fit(model, valle.SpeakingBatches(words), recipe, seed, progress=False)
        with torch.no_grad():
            nats = -model.log_prob(test["codes"], told).mean(dim=(0, 1))
        found |= {f"{name}, {q}": float(nats[q - 2]) for q in (2, 3, 4)}
    return {"nar": found}


@functools.cache
def judge(talkers: tuple[Talker, ...] = TALKERS):
    """Who knows the talkers, clean and through four codebooks and the vocoder."""
    return known_talkers(
        lambda w: pipeline().decode(valle.coded(codec(), log_mels(list(w)))), talkers
    )


def variants(knows, waves: Tensor) -> list[str]:
    """The espeak variant of the nearest talker; his pitch is left aside."""
    return [name.split()[0] for name in knows.hear(waves)]


@functools.cache
def ear(words: tuple[str, ...] = WORDS) -> Recogniser:
    """Who hears which word is said."""
    return Recogniser(words)


def spoken(words: list[str], talkers: list[Talker], seed: int) -> valle.Words:
    """Words that are really said, in the clips' length of VALL-E's training."""
    return valle.Words(codec(), words, talkers, seed)


def said(
    phonemes: Context, enrolled: Tensor | None, seed: int, first: Tensor | None = None
) -> Tensor:
    """What VALL-E makes of phonemes and enrolled codes: waves (n, N); with `first`
    (n, M, 1), the true codes of the first codebook, only its second network writes.
    """
    pipe, told = pipeline(), {"phonemes": phonemes}
    n = len(phonemes.sequence)
    if enrolled is not None:
        told[PROMPT] = valle.prompt_of(enrolled)
    if first is not None:
        with torch.no_grad():
            return pipe.decode(pipe.valle.nar.fill(first, told))
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(n)]
    n_samples = round(valle.SECONDS * audio.SAMPLE_RATE)
    return pipe.decode(pipe.write(told, n_samples, generators))


def drawn(seed: int, words: tuple[str, ...], talkers: tuple[Talker, ...]):
    """N words with talkers, as really said, and other words of the same talkers."""
    rng = np.random.default_rng([seed, 9])
    who = [talkers[i] for i in rng.permutation(10 * N)[:N] % len(talkers)]
    order = rng.permutation(len(words))
    one = [words[order[i % len(words)]] for i in range(N)]
    two = [words[order[(i + N // 2) % len(words)]] for i in range(N)]
    return spoken(one, who, 2000 + seed), spoken(two, who, 3000 + seed)


ARMS = (
    "real", "codec", "VALL-E", "true first codebook", "no prompt", "another's prompt",
    "another word",
)  # fmt: skip


@torch.no_grad()
def speaking(
    seed: int, words: tuple[str, ...], talkers: tuple[Talker, ...],
    arms: tuple[str, ...] = ARMS,
) -> tuple[valle.Words, dict[str, Tensor]]:  # fmt: skip
    """Waves by arm, with the words and talkers that are asked for."""
    real, other = drawn(seed, words, talkers)
    M = round(valle.SECONDS * 50)
    x, mask = real.phonemes
    wrong = Context(x.roll(7, 0), mask.roll(7, 0))
    given, turned = (real.phonemes, other.enrolled), other.enrolled.roll(7, 0)
    make = {
        "real": lambda: real.waves,
        "codec": lambda: pipeline().decode(real.codes),
        "VALL-E": lambda: said(*given, seed),
        "true first codebook": lambda: said(*given, seed, real.codes[:, :M, :1]),
        "no prompt": lambda: said(real.phonemes, None, seed),
        "another's prompt": lambda: said(real.phonemes, turned, seed),
        "another word": lambda: said(wrong, other.enrolled, seed),
    }
    return real, {arm: make[arm]() for arm in arms}


def share(heard: list[str], wanted: list[str]) -> float:
    """The share of answers that are right."""
    return float(np.mean([a == b for a, b in zip(heard, wanted, strict=True)]))


@experiment(
    Claim(
        "words",
        "the words come from the phonemes: held-out words are understood with and "
        "without a prompt",
        "share of words that are heard right",
        lambda m: (
            m["VALL-E"] >= 0.6 * m["codec"]
            and abs(m["VALL-E"] - m["no prompt"]) <= 0.07
        ),
        control="another word",
        chance=1 / len(WORDS),
    ),
    Claim(
        "voices",
        "the voice comes from the prompt: it is lost without one",
        "share of voices that are heard right",
        lambda m: m["VALL-E"] - m["no prompt"] >= 0.4,
        control="no prompt",
        chance=1 / 10,
    ),
)
def speech(seed: int) -> dict[str, dict[str, float]]:
    """Held-out words in the 40 voices of training."""
    real, waves = speaking(seed, WORDS, TALKERS)
    who = [talker.variant for talker in real.talkers]
    found = {"words": {}, "voices": {}}
    for arm, x in waves.items():
        found["words"][arm] = share([ear()(wave) for wave in x], real.words)
        found["voices"][arm] = share(variants(judge(), x), who)
    return found


@experiment(
    Claim(
        "seen",
        "words of training are understood, six for ten that the codec keeps or more",
        "share of words that are heard right",
        lambda m: m["VALL-E"] >= 0.6 * m["codec"],
        control="another word",
        chance=1 / len(WORDS),
    )
)
def seen(seed: int) -> dict[str, dict[str, float]]:
    """60 words of training, of five letters or more."""
    some = tuple(word for word in OTHERS if len(word) > 4)[::4][: len(WORDS)]
    kept = ("real", "codec", "VALL-E", "no prompt", "another word")
    real, waves = speaking(seed, some, TALKERS, kept)
    right = {a: share([ear(some)(w) for w in waves[a]], real.words) for a in kept}
    return {"seen": right}


@experiment(
    Claim(
        "unseen",
        "voices that were in no training clip are copied, too",
        "share of voices that are heard right",
        lambda m: m["VALL-E"] - m["no prompt"] >= 0.4,
        control="no prompt",
        chance=1 / 12,
    )
)
def unseen(seed: int) -> dict[str, dict[str, float]]:
    """Held-out words in unseen voices, told from all 48."""
    kept = ("real", "codec", "VALL-E", "no prompt", "another's prompt")
    real, waves = speaking(seed, WORDS, UNSEEN_TALKERS, kept)
    who, knows = [x.variant for x in real.talkers], judge(TALKERS + UNSEEN_TALKERS)
    return {"unseen": {arm: share(variants(knows, waves[arm]), who) for arm in kept}}


# ---- SpeechX


REFERENCES = {"ns": "both", "sr": "noise", "tse": "first"}


@functools.cache
def mixtures(seed: int) -> tuple[valle.Mixtures, dict[str, Tensor]]:
    """Test mixtures, and enrolments of both talkers."""
    mixed = valle.Mixtures(codec(), N_MIXTURES, 500 + seed, WORDS, "test")
    firsts, seconds = zip(*mixed.talkers)
    say = lambda who, k: spoken([WORDS[(7 * i + k) % 60] for i in range(N_MIXTURES)],
                                list(who), 4000 + seed + k).enrolled  # fmt: skip
    return mixed, {"first": say(firsts, 1), "second": say(seconds, 2)}


@torch.no_grad()
def asked(seed: int, task: str, enrolled: Tensor | None, text: Context | None = None):
    """The log-mels (n, 1, T, F) of what a sign makes of the mixtures."""
    mixed, _ = mixtures(seed)
    n = len(mixed.words)
    text = valle.Phones().empty(n) if text is None else text
    prompt = valle.prompt_of(enrolled, task, mixed.codes["mixture"])
    generators = [
        torch.Generator().manual_seed(7000 * (seed + 1) + i) for i in range(n)
    ]
    told, n_samples = {"phonemes": text, PROMPT: prompt}, mixed.waves["both"].shape[1]
    return pipeline().pipe.codec.decode(pipeline().write(told, n_samples, generators))


def off(mel: Tensor, seed: int, kind: str) -> float:
    """The mean error in decibels of log-mels against a part of the mixtures."""
    truth = log_mels(list(mixtures(seed)[0].waves[kind]))
    return audio.DB_PER_NEPER * float((mel - truth).abs().mean())


def nearest(task: str):
    """The claim that a sign comes nearest to what it asks for."""
    what = {"both": "the talkers", "noise": "the noise", "first": "the enrolled talker"}
    others = [x for x in valle.TASKS if x != task]
    return Claim(
        task,
        f"of the three signs <{task}> comes nearest to {what[REFERENCES[task]]}",
        "dB from it",
        lambda m: all(m[f"<{task}>"] < m[f"<{x}>"] for x in (*others, "unknown")),
        control="<unknown>",
    )


@experiment(
    nearest("ns"), nearest("sr"), nearest("tse"),
    Claim(
        "enrolled",
        "the enrolment says whom <tse> leaves",
        "dB from the first talker",
        lambda m: m["the first enrolled"] < m["the second enrolled"] - 0.3,
        control="the second enrolled",
    ),
    Claim(
        "text",
        "phonemes help <tse> to write the word that was said",
        "share of words that are heard right",
        lambda m: m["with phonemes"] > m["without"] + 0.05,
        control="without",
        chance=1 / len(WORDS),
    ),
)  # fmt: skip
def tasks(seed: int) -> dict[str, dict[str, float]]:
    """Every sign on the same mixtures, without phonemes but in the last claim."""
    mixed, enrolled = mixtures(seed)
    given = {"ns": None, "sr": None, "tse": enrolled["first"], "unknown": None}
    made = {task: asked(seed, task, x) for task, x in given.items()}
    swapped = asked(seed, "tse", enrolled["second"])
    told = asked(seed, "tse", enrolled["first"], mixed.phonemes["first"])
    found: dict[str, dict[str, float]] = {}
    for task, kind in REFERENCES.items():
        arms = {f"<{x}>": off(mel, seed, kind) for x, mel in made.items()}
        arms["<unknown>"] = arms.pop("<unknown>")
        arms["the mixture"] = off(log_mels(list(mixed.waves["mixture"])), seed, kind)
        through = pipeline().pipe.codec.decode(mixed.codes[kind])
        arms["codec"] = off(through, seed, kind)
        found[task] = arms
    firsts = [first for first, _ in mixed.words]
    heard = lambda mel: share([ear()(w) for w in vocode(codec().vocoder, mel)], firsts)
    with torch.no_grad():
        through = pipeline().pipe.codec.decode(mixed.codes["first"])
        return found | {
            "enrolled": {
                "the first enrolled": off(made["tse"], seed, "first"),
                "the second enrolled": off(swapped, seed, "first"),
            },
            "text": {
                "codec": heard(through),
                "with phonemes": heard(told),
                "without": heard(made["tse"]),
                "the mixture": share(
                    [ear()(w) for w in mixed.waves["mixture"]], firsts
                ),
            },
        }
