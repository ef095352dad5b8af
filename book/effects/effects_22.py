"""The effects of chapter 22: what the parts of Make-An-Audio 1 and 2 are worth.

Small networks of the kind of `peers/make_an_audio_2` learn ten classes of sounds, alone
and in pairs of 1.28 s. All arms of an effect take equally many steps. The ordered pairs
of classes that SoundWorld's test split holds out are joined by nobody: not here, and
not in what T5, CLAP and the VAEs that ship have learned from.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import audio, diffusion, lean
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.conditions import Context
from minilib.folders import load_part
from minilib.guidance import Sampling, guided
from minilib.metrics import judged
from minilib.peers.make_an_audio import (
    TEMPLATES,
    Expert,
    Pair,
    Reprogrammed,
    Sounds,
    caption_of,
    chosen,
)
from minilib.peers.make_an_audio_2 import (
    DualEncoder,
    Parser,
    StructuredClips,
    StructuredLDM,
    StructuredLDMConfig,
    start_from,
)
from minilib.peers.text_ldm import TextLDM, TextLDMConfig
from minilib.soundworld import CLASSES, SoundWorld, held_out_pairs, plain
from minilib.training import Recipe, fit
from minilib.training.loop import Loop, all_steps
from minilib.vocoder import vocode

# every third class of the ring by which SoundWorld holds out pairs: of their 90 ordered
# pairs 10 are unseen, and each has its reverse among the others
KINDS = (
    "owl", "footsteps", "rain", "alarm", "cat", "horn", "helicopter", "clock",
    "applause", "bell",
)  # fmt: skip
SECONDS = 1.28
N_CLIPS = 50  # of each class, whole and half
PAIRS = tuple(itertools.permutations(KINDS, 2))
UNSEEN = tuple(pair for pair in PAIRS if pair in held_out_pairs())
SEEN = tuple(pair for pair in PAIRS if pair not in held_out_pairs())
AFTER, THEN = "{b} after {a}", "{a}, then {b}"  # of TEMPLATES
BATCH, LR = 32, 2e-2
AT = (150, 300)  # steps after which is listened
HOW = Sampling(steps=12, guidance=1.5, temperature=0.7)


@functools.cache
def part(name: str) -> torch.nn.Module:
    """A part that ships."""
    return load_part(shipped_weights(), name, torch.float32)


@functools.cache
def judge() -> Classifier:
    """The judge that ships."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()


@functools.cache
def waves(seconds: float) -> tuple[Tensor, tuple[str, ...]]:
    """Sounds (n, N) of the ten classes, N_CLIPS of each, and their classes."""
    world = SoundWorld("train", 2200, seconds, pairs=0.0)
    found: dict[str, list[int]] = {name: [] for name in KINDS}
    for i in itertools.count():
        mine = found.get(world.scene(i).events[0].name)
        if mine is not None and len(mine) < N_CLIPS:
            mine.append(i)
        if min(map(len, found.values())) == N_CLIPS:
            break
    chosen = [i for some in found.values() for i in some]
    names = tuple(name for name in KINDS for _ in range(N_CLIPS))
    return torch.stack([world[i].wave for i in chosen]), names


@functools.cache
@torch.no_grad()
def sounds(seconds: float) -> Sounds:
    """Those sounds, encoded by the VAE that ships."""
    some, names = waves(seconds)
    mels = (audio.log_mel(wave) for wave in some.split(16))
    return Sounds(torch.cat([part("vae").encode(mel) for mel in mels]), names)


class Remembering:
    """A text encoder that reads each caption once."""

    def __init__(self, text: torch.nn.Module):
        self.text, self.tokenizer = text, text.tokenizer
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Context:
        for new in set(captions) - set(self.known):
            states, mask = self.text.encode([new])
            self.known[new] = states[0, mask[0]]
        rows = [self.known[caption] for caption in captions]
        S = max(16, *map(len, rows))
        states = torch.zeros(len(rows), S, rows[0].shape[1])
        mask = torch.zeros(len(rows), S, dtype=torch.bool)
        for i, row in enumerate(rows):
            states[i, : len(row)], mask[i, : len(row)] = row, True
        return Context(states, mask)


@functools.cache
def text() -> Remembering:
    """T5 as it ships."""
    return Remembering(part("text"))


def recipe(steps: int, lr: float = LR) -> Recipe:
    """Of the diffusion models."""
    return Recipe(steps, BATCH, lr, warmup=20, ema=0.98, muon=("linear", "conv"))


# --------------------------------------------------------------------------------------
# Sounds from captions, and what is heard


@torch.no_grad()
def drawn(
    model: TextLDM, told: Context, empty: Context, steps: int = round(25 * SECONDS)
) -> Tensor:
    """Latents (n, C, steps, F/r), one for each condition."""
    shape = len(told.sequence), 4, steps, 16
    zT = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    predict = guided(model, {"text": told}, {"text": empty}, HOW)
    as_eps = lambda zt, t: model.as_eps(zt, t, predict(zt, t))
    zT = HOW.temperature * zT
    return diffusion.ddim_sample(as_eps, model.schedule, zT, HOW.steps)


@torch.no_grad()
def to_waves(z0: Tensor) -> Tensor:
    """Latents to waves."""
    mels = (lean.decode(part("vae"), z) for z in z0.split(16))
    return torch.cat([vocode(part("vocoder"), mel) for mel in mels])


def answers(made: Tensor, pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    """What the judge hears in sounds of pairs: `both` in order, `any` order, and so
    on, each (n,).
    """
    number = judge().config.classes.index
    wanted = torch.tensor([[number(a), number(b)] for a, b in pairs])
    return judged(judge(), made, wanted)


# --------------------------------------------------------------------------------------
# Networks in training


def source(seed: int, **how: float) -> Reprogrammed:
    """Batches of singles and pairs."""
    some = sounds(SECONDS), sounds(SECONDS / 2)
    return Reprogrammed(text(), *some, **how, seed=seed, batch_size=BATCH)


def learning(
    seed: int, clips: Reprogrammed, streams: tuple[str, ...], error: float
) -> Iterator[tuple[int, StructuredLDM]]:
    """A small `StructuredLDM` in training: yields it, averaged, after each of AT
    steps.
    """
    torch.manual_seed(seed)
    sizes = dict(in_channels=4, bins=16, patch=2, width=96, n_layer=2)
    model = StructuredLDM(StructuredLDMConfig(**sizes, context_dim=96, streams=streams))
    start_from(model, part("text"))
    batches = StructuredClips(clips, DualEncoder(text(), model, Parser(error)))
    loop = Loop(model, batches, recipe(AT[-1]), seed, "fit")
    for k, _ in enumerate(all_steps(loop, progress=False), start=1):
        if k in AT:
            kept = {name: x.detach().clone() for name, x in loop.learned.items()}
            yield k, loop.finish()
            for name, x in kept.items():
                loop.learned[name].data.copy_(x)
            model.train()


def heard(
    model: StructuredLDM, asked: Sequence[tuple[Pair, str]], error: float = 0.0
) -> dict[str, float]:
    """The shares of `answers` for pairs in templates; the parser errs at this rate."""
    captions = [caption_of(pair, form) for pair, form in asked]
    made = generated(model, captions, error)
    found = answers(made, [pair for pair, _ in asked])
    return {name: float(x.mean()) for name, x in found.items()}


@torch.no_grad()
def generated(model: StructuredLDM, captions: list[str], error: float = 0.0) -> Tensor:
    """Waves (n, N) for captions."""
    encoder, draw = DualEncoder(text(), model, Parser(error)), torch.Generator()
    told = model.read(encoder.given(captions, draw.manual_seed(7)))
    empty = model.read(encoder.given([""] * len(captions)))
    return to_waves(drawn(model, told, empty))


# --------------------------------------------------------------------------------------
# Experiments

BOTH = "share of sounds with both events, in order"
CHANCE = 1 / len(CLASSES) ** 2  # the judge's classes, guessed twice
N_SOUNDS = 320  # that are captioned by experts
ERRORS = (0.3, 0.5, 0.5)  # of the experts


@experiment(
    Claim(
        "precision",
        "of three proposed captions, CLAP's choice is right more often than the best "
        "expert",
        "share of right captions",
        lambda m: (
            m["CLAP's choice"] > m["the best expert"] + 0.05
            and m["CLAP's choice, other sounds"] < m["one expert, drawn"] + 0.05
            and m["CLAP's choice"] <= m["some expert is right"]
        ),
        control="CLAP's choice, other sounds",
        chance=1 / len(CLASSES),
        ceiling=1.0,
    )
)
def captions_from_experts(seed: int) -> Measured:
    """Three experts and CLAP on sounds of combinations that no shipped part has
    heard.
    """
    world = SoundWorld("test", seed, SECONDS, pairs=0.0)
    clips = [world[i] for i in range(N_SOUNDS)]
    names = [clip.scene.events[0].name for clip in clips]
    some, draw = torch.stack([clip.wave for clip in clips]), torch.Generator()
    experts = [Expert(error, tuple(CLASSES)) for error in ERRORS]
    told = [expert(names, draw.manual_seed(seed + k)) for k, expert in
            enumerate(experts)]  # fmt: skip
    right = torch.tensor([[a == b for a, b in zip(x, names)] for x in told]).float()
    picked = right_choice(some, told, names)
    other = right_choice(some.roll(1, dims=0), told, names)
    return {
        "precision": {
            "one expert, drawn": float(right.mean()),
            "the best expert": float(right.mean(dim=1).max()),
            "CLAP's choice": picked,
            "CLAP's choice, other sounds": other,
            "some expert is right": float(right.amax(dim=0).mean()),
        }
    }


def right_choice(some: Tensor, told: list[list[str]], names: list[str]) -> float:
    """How often CLAP chooses a right caption."""
    proposals = [[plain(name) for name in row] for row in zip(*told)]
    best = chosen(part("clap"), some, proposals)
    picked = [row[k] for row, k in zip(zip(*told), best)]
    return sum(a == b for a, b in zip(picked, names)) / len(names)


FIXED = 40  # pairs that a data set of captioned pairs holds
SOURCES = {
    "single sounds only": {"joined": 0.0},
    f"{FIXED} pairs, always the same": {"joined": 0.6, "fixed": FIXED},
    "pairs joined anew": {"joined": 0.6},
}
SINGLE, STATIC, ANEW = SOURCES
TRUE = "true sounds"
READERS = {
    "caption alone": (("text",), 0.0),
    "and structure": (("text", "structure"), 0.0),
    "and shuffled orders": (("text", "structure"), 0.5),
}
PLAIN, PARSED, SHUFFLED = READERS
PARSING = (0.2, 0.4, 1.0)  # errors of the parser when sounds are asked for
SOME = PAIRS[::2]  # that are asked for during training
when = lambda name, steps: f"{name}, {steps} steps"


def reached(reader: str, seed: int) -> dict[str, float]:
    """What a network reaches that reads captions in one way."""
    found, clips = {}, source(seed, **SOURCES[ANEW])
    for steps, model in learning(seed, clips, *READERS[reader]):
        for kind, form in (("after", AFTER), ("then", THEN)):
            right = heard(model, [(pair, form) for pair in SOME])["both"]
            found[f"{kind} {steps}"] = right
        if reader == PARSED and steps == AT[-1]:
            every = heard(model, list(itertools.product(UNSEEN, TEMPLATES)))
            found["unseen"] = every["both"]
            found["swapped"] = every["any"] - every["both"]
            for error in PARSING:
                right = heard(model, [(pair, AFTER) for pair in SOME], error)["both"]
                found[f"error {error:g}"] = right
    assert not clips.made & held_out_pairs()
    return found


@experiment(
    Claim(
        "after",
        'with structure "B after A" is right in at least 0.2 more of the sounds after '
        "equally many steps",
        BOTH,
        lambda m: (
            m[when(PARSED, AT[-1])]
            >= 0.2 + max(m[when(PLAIN, AT[-1])], m[when(SHUFFLED, AT[-1])])
        ),
        control=when(SHUFFLED, AT[-1]),
        chance=CHANCE,
    ),
    Claim(
        "then",
        'with structure "A, then B" is right more often, too',
        BOTH,
        lambda m: m[when(PARSED, AT[-1])] > m[when(PLAIN, AT[-1])],
        control=when(SHUFFLED, AT[-1]),
        chance=CHANCE,
    ),
    Claim(
        "reversed",
        "with structure fewer unseen pairs come in the wrong order than in the right "
        "one",
        "share of sounds with both events",
        lambda m: m["wrong order"] < m["right order"],
        control="wrong order",
        chance=CHANCE,
    ),
    Claim(
        "parser",
        'the more the parser errs, the less often "B after A" is right',
        BOTH,
        lambda m: list(m.values()) == sorted(m.values(), reverse=True),
        control="error 1",
        chance=CHANCE,
    ),
)
def structure(seed: int) -> Measured:
    """Three readings of captions, on pairs joined anew."""
    readers = {name: reached(name, seed) for name in READERS}
    best = readers[PARSED]
    by_steps = lambda kind: {
        when(name, steps): x[f"{kind} {steps}"]
        for name, x in readers.items()
        for steps in AT
    }
    errors = {f"error {e:g}": best[f"error {e:g}"] for e in PARSING}
    return {
        "after": by_steps("after"), "then": by_steps("then"),
        "reversed": {"right order": best["unseen"], "wrong order": best["swapped"]},
        "parser": {"error 0": best[f"after {AT[-1]}"], **errors},
    }  # fmt: skip


# --------------------------------------------------------------------------------------
# Sources of pairs: in small, since the two events are all that is asked for. A clip is
# two averages of a latent over time, one for each half.

SMALL_STEPS, SMALL_LR = 400, 1.5e-2
N_MEAN = 40  # sounds of each class whose mean stands for it; the others are true sounds


@functools.cache
def averages() -> Tensor:
    """The latents of short sounds, averaged over time: (n, C, 1, F/r)."""
    z = sounds(SECONDS / 2).z0.mean(dim=2, keepdim=True)
    return (z - z.mean(dim=0)) / z.std()


def nearest(z: Tensor) -> Tensor:
    """The classes (n,), as numbers, whose means are nearest to averages."""
    by_class = averages().unflatten(0, (len(KINDS), N_CLIPS))
    return torch.cdist(
        z.flatten(1), by_class[:, :N_MEAN].mean(dim=1).flatten(1)
    ).argmin(1)


def both_found(z0: Tensor, pairs: Sequence[Pair]) -> dict[str, float]:
    """The shares of clips (n, C, 2, F/r) with both events: in `order`, in `any`."""
    found = torch.stack([nearest(z0[:, :, :1]), nearest(z0[:, :, 1:])], dim=1)
    wanted = torch.tensor([[KINDS.index(name) for name in pair] for pair in pairs])
    order = (found == wanted).all(dim=1)
    either = order | (found == wanted.flip(1)).all(dim=1)
    return {"order": float(order.float().mean()), "any": float(either.float().mean())}


def small_clips(name: str, seed: int) -> Reprogrammed:
    """Batches from one of SOURCES."""
    z, names = averages(), waves(SECONDS / 2)[1]
    some = Sounds(torch.cat([z, z], dim=2), names), Sounds(z, names)
    return Reprogrammed(text(), *some, **SOURCES[name], seed=seed, batch_size=BATCH)


@torch.no_grad()
def small_drawn(model: TextLDM, asked: list[tuple[Pair, str]]) -> Tensor:
    """Clips (n, C, 2, F/r) for pairs in templates."""
    captions = [caption_of(pair, form) for pair, form in asked]
    told, empty = (text().encode(x) for x in (captions, [""] * len(asked)))
    return drawn(model, told, empty, steps=2)


def small_reached(name: str, seed: int) -> Measured:
    """What a small `TextLDM` reaches that learns from one source."""
    clips = small_clips(name, seed)
    torch.manual_seed(seed)
    model = TextLDM(TextLDMConfig(width=64, n_layer=2, patch=1))
    fit(model, clips, recipe(SMALL_STEPS, SMALL_LR), seed, "fit", progress=False)
    assert not clips.made & held_out_pairs()
    found = {}
    for kind, pairs in (("seen", SEEN[::2]), ("unseen", UNSEEN)):
        asked = list(itertools.product(pairs, TEMPLATES))
        found[kind] = both_found(small_drawn(model, asked), [pair for pair, _ in asked])
    return found


def true_pairs() -> dict[str, float]:
    """The same shares for pairs of sounds that are in no mean."""
    rest = averages().unflatten(0, (len(KINDS), N_CLIPS))[:, N_MEAN:]
    at = KINDS.index
    rows = [torch.cat([rest[at(a)], rest[at(b)]], dim=2) for a, b in PAIRS]
    pairs = [pair for pair in PAIRS for _ in range(N_CLIPS - N_MEAN)]
    return both_found(torch.cat(rows), pairs)


@experiment(
    Claim(
        "unseen_pairs",
        "pairs that were never joined have both events, in either order, more often "
        "after training on pairs joined anew in every batch than on fixed pairs, and "
        "in at least 0.2 more of the clips than after single sounds",
        "share of clips with both events, in any order",
        lambda m: m[ANEW] >= m[SINGLE] + 0.2 and m[ANEW] > m[STATIC],
        control=SINGLE,
        chance=2 / len(KINDS) ** 2,
    ),
    Claim(
        "seen_pairs",
        "the same for pairs that may be joined",
        "share of clips with both events, in any order",
        lambda m: m[ANEW] >= m[SINGLE] + 0.2 and m[ANEW] > m[STATIC],
        control=SINGLE,
        chance=2 / len(KINDS) ** 2,
    ),
    Claim(
        "unseen_order",
        "pairs that were never joined come in the right order in at least 0.2 more of "
        "the clips after pairs joined anew than after single sounds, and not less "
        "often than after fixed pairs",
        "share of clips with both events, in order",
        lambda m: m[ANEW] >= m[SINGLE] + 0.2 and m[ANEW] > m[STATIC],
        control=SINGLE,
        chance=1 / len(KINDS) ** 2,
    ),
)
def reprogramming(seed: int) -> Measured:
    """Training on single sounds, on fixed pairs, and on pairs joined anew."""
    found, true = {x: small_reached(x, seed) for x in SOURCES}, true_pairs()
    of = lambda kind, how: {name: x[kind][how] for name, x in found.items()}
    return {
        "unseen_pairs": of("unseen", "any") | {TRUE: true["any"]},
        "seen_pairs": of("seen", "any") | {TRUE: true["any"]},
        "unseen_order": of("unseen", "order") | {TRUE: true["order"]},
    }
