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
from minilib.conditions import Conditions, Context
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
    VAE1D,
    DualEncoder,
    Parser,
    StructuredClips,
    StructuredLDM,
    StructuredLDMConfig,
    start_from,
)
from minilib.soundworld import CLASSES, SoundWorld, held_out_pairs, plain
from minilib.training import Recipe, fit
from minilib.training.loop import Loop, all_steps
from minilib.unet import UNet, UNetConfig
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
def vae_1d() -> VAE1D:
    """The 1-D VAE that ships."""
    folder = shipped_weights().parent / "peers" / "make_an_audio_2" / "vae"
    return VAE1D.from_pretrained(folder, dtype=torch.float32)


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
def sounds(vae: str, seconds: float) -> Sounds:
    """Those sounds, encoded by the VAE that ships ("2-D") or the 1-D one."""
    some, names = waves(seconds)
    encode = (vae_1d() if vae == "1-D" else part("vae")).encode
    z0 = torch.cat([encode(audio.log_mel(wave)) for wave in some.split(16)])
    return Sounds(z0, names)


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
    model: torch.nn.Module, told: Conditions, empty: Conditions, seconds: float, seed=0
) -> Tensor:
    """Latents, one for each condition."""
    n, config = len(next(iter(told.values())).sequence), model.config
    F_r = getattr(config, "bins", 16)
    rate = 50 if F_r == 1 else 25  # steps of the latent in a second
    shape = n, config.in_channels, round(rate * seconds), F_r
    generator = torch.Generator().manual_seed(seed)
    zT = HOW.temperature * torch.randn(shape, generator=generator)
    predict = guided(model, told, empty, HOW)
    as_eps = lambda zt, t: model.as_eps(zt, t, predict(zt, t))
    return diffusion.ddim_sample(as_eps, model.schedule, zT, HOW.steps)


@torch.no_grad()
def to_waves(z0: Tensor) -> Tensor:
    """Latents of either VAE to waves."""
    if z0.shape[3] == 1:
        mels = (vae_1d().decode(z) for z in z0.split(16))
    else:
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


def source(
    seed: int, joined: float, fixed: int | None = None, vae: str = "2-D"
) -> Reprogrammed:
    """Batches of singles and pairs."""
    some = sounds(vae, SECONDS), sounds(vae, SECONDS / 2)
    return Reprogrammed(
        text(), *some, joined=joined, fixed=fixed, seed=seed, batch_size=BATCH
    )


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
    return to_waves(drawn(model, {"text": told}, {"text": empty}, SECONDS))


def named(model: StructuredLDM) -> float:
    """How often a single sound has the class of its caption."""
    names = [name for name in KINDS for _ in range(3)]
    found = judge().hear(generated(model, [plain(name) for name in names]))
    right = [judge().config.classes[k] == name for k, name in zip(found, names)]
    return sum(right) / len(right)


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


def decoded(seed: int) -> float:
    """How often both events are heard in pairs of true sounds, through VAE and
    vocoder.
    """
    halves, draw = sounds("2-D", SECONDS / 2), torch.Generator().manual_seed(seed)
    first = {name: k * N_CLIPS for k, name in enumerate(KINDS)}
    at = lambda name: first[name] + int(torch.randint(N_CLIPS, (), generator=draw))
    rows = [(at(a), at(b)) for a, b in PAIRS]
    z0 = torch.cat([torch.cat([halves.z0[[i]], halves.z0[[j]]], 2) for i, j in rows])
    return float(answers(to_waves(z0), list(PAIRS))["both"].mean())


FIXED = 40  # pairs that a data set of captioned pairs holds
SOURCES = {
    "single sounds only": {"joined": 0.0},
    f"{FIXED} pairs, always the same": {"joined": 0.6, "fixed": FIXED},
    "pairs joined anew": {"joined": 0.6},
}
SINGLE, STATIC, ANEW = SOURCES
DECODED = "true sounds, decoded"
READERS = {
    "caption alone": (("text",), 0.0),
    "and structure": (("text", "structure"), 0.0),
    "and shuffled orders": (("text", "structure"), 0.5),
}
PLAIN, PARSED, SHUFFLED = READERS
PARSING = (0.2, 0.4, 1.0)  # errors of the parser when sounds are asked for
SOME = PAIRS[::2]  # that are asked for during training
when = lambda name, steps: f"{name}, {steps} steps"


def reached(reader: str, origin: str, seed: int) -> dict[str, float]:
    """What a network reaches that reads captions in one way and learns from one
    source.
    """
    found, clips = {}, source(seed, **SOURCES[origin])
    for steps, model in learning(seed, clips, *READERS[reader]):
        if origin == ANEW:
            for kind, form in (("after", AFTER), ("then", THEN)):
                right = heard(model, [(pair, form) for pair in SOME])["both"]
                found[f"{kind} {steps}"] = right
        if reader == PARSED and steps == AT[-1]:
            every = heard(model, list(itertools.product(UNSEEN, TEMPLATES)))
            found["unseen"] = every["both"]
            found["swapped"] = every["any"] - every["both"]
            seen = list(itertools.product(SEEN[::2], (THEN, AFTER)))
            found["seen"], found["alone"] = heard(model, seen)["both"], named(model)
            for error in PARSING if origin == ANEW else ():
                right = heard(model, [(pair, AFTER) for pair in SOME], error)["both"]
                found[f"error {error:g}"] = right
    assert not clips.made & held_out_pairs()
    return found


@experiment(
    Claim(
        "unseen_pairs",
        "pairs that were never joined are right more often after training on pairs "
        "joined anew in every batch than on fixed pairs, and than on single sounds",
        BOTH,
        lambda m: m[ANEW] >= m[SINGLE] + 0.2 and m[ANEW] > m[STATIC],
        control=SINGLE,
        chance=CHANCE,
    ),
    Claim(
        "seen_pairs",
        "the same for pairs that may be joined",
        BOTH,
        lambda m: m[ANEW] >= m[SINGLE] + 0.2 and m[ANEW] > m[STATIC],
        control=SINGLE,
        chance=CHANCE,
    ),
    Claim(
        "reversed",
        "after training on pairs joined anew, fewer unseen pairs come in the wrong "
        "order than in the right one",
        "share of sounds with both events",
        lambda m: m["wrong order"] < m["right order"],
        control="wrong order",
        chance=CHANCE,
    ),
    Claim(
        "singles",
        "single sounds do not suffer from the pairs",
        "share of single sounds whose class is right",
        lambda m: m[ANEW] >= m[SINGLE] - 0.1,
        chance=1 / len(CLASSES),
        ceiling=1.0,
    ),
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
        "parser",
        'the more the parser errs, the less often "B after A" is right',
        BOTH,
        lambda m: list(m.values()) == sorted(m.values(), reverse=True),
        control="error 1",
        chance=CHANCE,
    ),
)
def mechanisms(seed: int) -> Measured:
    """Three sources of pairs with structure, and three readings of pairs joined
    anew.
    """
    best = reached(PARSED, ANEW, seed)
    sources = {name: reached(PARSED, name, seed) for name in (SINGLE, STATIC)}
    sources[ANEW], true = best, {DECODED: decoded(seed)}
    readers = {PLAIN: reached(PLAIN, ANEW, seed), PARSED: best}
    readers[SHUFFLED] = reached(SHUFFLED, ANEW, seed)
    of = lambda what: {name: x[what] for name, x in sources.items()}
    by_steps = lambda kind: {
        when(name, steps): x[f"{kind} {steps}"]
        for name, x in readers.items()
        for steps in AT
    }
    errors = {f"error {e:g}": best[f"error {e:g}"] for e in PARSING}
    return {
        "unseen_pairs": of("unseen") | true, "seen_pairs": of("seen") | true,
        "singles": of("alone"), "after": by_steps("after"), "then": by_steps("then"),
        "reversed": {"right order": best["unseen"], "wrong order": best["swapped"]},
        "parser": {"error 0": best[f"after {AT[-1]}"], **errors},
    }  # fmt: skip


def line_learner(seed: int) -> StructuredLDM:
    """A small transformer on the 1-D latent, trained on single sounds."""
    torch.manual_seed(seed)
    sizes = dict(in_channels=20, bins=1, patch=4, width=96, n_layer=2)
    config = StructuredLDMConfig(**sizes, context_dim=96, streams=("text",))
    model = StructuredLDM(config)
    batches = source(seed, 0.0, vae="1-D")
    fit(model, batches, recipe(LENGTH_STEPS), seed, "fit", progress=False)
    return model


def picture_learner(seed: int) -> UNet:
    """A small U-Net on the 2-D latent, with cross-attention to the caption, trained on
    the same sounds.
    """
    torch.manual_seed(seed)
    config = UNetConfig(
        in_channels=4, block_out_channels=(48, 80), attention=(True, True),
        layers_per_block=1, norm_num_groups=8, cross_attention=(None, "text"),
        cross_attention_dim=(None, 128), n_head=4, prediction="v", patch=2,
    )  # fmt: skip
    model, batches = UNet(config), source(seed, 0.0)
    fit(model, batches, recipe(LENGTH_STEPS), seed, "fit", progress=False)
    return model


@torch.no_grad()
def at_the_end(model: torch.nn.Module, seconds: float) -> float:
    """How often the last 1.28 s of a single sound have the class of its caption."""
    names = [name for name in KINDS for _ in range(3)]
    captions = [plain(name) for name in names]
    read = lambda x: text().encode(x)
    if isinstance(model, StructuredLDM):
        read = DualEncoder(text(), model).encode
    told, empty = ({"text": read(x)} for x in (captions, [""] * len(names)))
    made = to_waves(drawn(model, told, empty, seconds))
    found = judge().hear(made[:, -round(SECONDS * audio.SAMPLE_RATE) :])
    right = [judge().config.classes[k] == name for k, name in zip(found, names)]
    return sum(right) / len(right)


LENGTH_STEPS = 300
LENGTHS = (1.28, 2.56)
LINE, PICTURE = "1-D transformer", "2-D U-Net"


@experiment(
    Claim(
        "longer",
        "asked for twice the length of training, the transformer on the 1-D latent "
        "keeps more of its right sounds than the U-Net on the 2-D one",
        "share of sounds whose last 1.28 s have the right class",
        lambda m: (
            m[f"{LINE}, 2.56 s"] / max(m[f"{LINE}, 1.28 s"], 1e-9)
            > m[f"{PICTURE}, 2.56 s"] / max(m[f"{PICTURE}, 1.28 s"], 1e-9)
        ),
        chance=1 / len(CLASSES),
        ceiling=1.0,
    )
)
def longer(seed: int) -> Measured:
    """Sounds of 1.28 s, as in training, and of 2.56 s."""
    found = {}
    for name, learn in ((LINE, line_learner), (PICTURE, picture_learner)):
        model = learn(seed)
        for seconds in LENGTHS:
            found[f"{name}, {seconds:g} s"] = at_the_end(model, seconds)
    return {"longer": found}
