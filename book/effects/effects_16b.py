"""What chapter 16b measures: what the way by the Language of Audio buys where captions
are scarce, and whether GPT-2 could write the VAE's latent instead.

Small networks of the kind of `peers/text_ldm` learn ten classes of sounds, all with
pitches. Two routes get the same sounds and the same captions: one diffusion model that
reads T5's states, and one that reads a Y' which is computed from sound alone, behind a
small GPT-2 that writes Y' from T5's states. VAE, AudioMAE, T5 and vocoder are those
that ship.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from effects import Claim, Measured, experiment
from torch import Tensor

import minilib
from minilib import audio, diffusion, judges, lean
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.conditions import Context, drop, to_batch
from minilib.gpt import GPTConfig, LOARegressor
from minilib.guidance import Sampling, guided
from minilib.peers import text_ldm
from minilib.peers.text_ldm import TextLDM, TextLDMConfig
from minilib.soundworld import Scene, SoundWorld
from minilib.training import Recipe, fit
from minilib.training.loop import Batches
from minilib.training.stages import P_EMPTY, P_TRUE_LOA, Joint
from minilib.vocoder import vocode

KINDS = (
    "bell", "bird", "cow", "dog", "drum", "guitar", "horn", "owl", "siren", "whistle",
)  # fmt: skip
N_CLIPS, N_TEST = 120, 4  # clips of each class, and captions to be followed
SHARES = (0.02, 0.05, 0.1, 0.25, 1.0)  # of the clips whose captions are kept
LONGEST = 20  # tokens of a caption
N_LOA, DIM = 8, 64  # vectors of Y' and their width
BATCH = 32
# steps of G, of GPT-2, of both together; and of the direct route: their forward and
# backward passes take as many operations, within 2 % (counted in the chapter)
STEPS, GPT_STEPS, JOINT, DIRECT = 150, 200, 50, 250
NOISE = 0.5  # in the states of captions that are trained on, over their deviation
LR = 2e-2
LABELLED = 0.5  # the least share of a batch that has captions, in the direct route
SMALL = TextLDMConfig(width=96, n_layer=2)
WRITER = GPTConfig(
    conditions=("text",), condition_dims=(128,), n_embd=DIM, n_layer=2, n_head=4,
    n_positions=64, n_tokens=N_LOA, vocab_size=1,
)  # fmt: skip
HOW = Sampling(steps=12, guidance=1.5)
SECONDS = 1.28

Heard = tuple[float, float]  # shares of right classes, and of right ones in pitch


@functools.cache
def pipe() -> minilib.AudioLDM2:
    """The pipeline that ships."""
    return minilib.AudioLDM2.from_pretrained(shipped_weights(), device="cpu")


@functools.cache
def judge() -> Classifier:
    """The judge that ships."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()


@dataclass(frozen=True)
class Clips:
    """Scenes with their captions' states, latents and waves."""

    scenes: list[Scene]
    told: Context  # (N, S, D)
    z0: Tensor  # (N, C, T/r, F/r)
    waves: Tensor  # (N, samples)


@torch.no_grad()
def read(captions: list[str]) -> Context:
    """T5's states (n, S, D), padded to LONGEST."""
    some = [captions[i : i + 64] for i in range(0, len(captions), 64)]
    states, mask = map(torch.cat, zip(*(pipe().text.encode(few) for few in some)))
    return Context(states[:, :LONGEST], mask[:, :LONGEST])


@functools.cache
@torch.no_grad()
def clips(split: str, seed: int, n: int, seconds: float = SECONDS) -> Clips:
    """n clips of each class, of a world that no shipped part has heard."""
    world = SoundWorld(split, 1600 + seed, seconds, pairs=0.0)
    found: dict[str, list[int]] = {name: [] for name in KINDS}
    for i in itertools.count():
        mine = found.get(world.scene(i).events[0].name)
        if mine is not None and len(mine) < n:
            mine.append(i)
        if min(map(len, found.values())) == n:
            break
    chosen = [i for rows in zip(*found.values()) for i in rows]  # class by class
    waves = torch.stack([world[i].wave for i in chosen])
    z0 = torch.cat([pipe().vae.encode(audio.log_mel(w)) for w in waves.split(16)])
    told = read([world.caption(i) for i in chosen])
    return Clips([world.scene(i) for i in chosen], told, z0, waves)


def rows(context: Context, i: Tensor) -> Context:
    """Some items of a context."""
    return Context(*(None if x is None else x[i] for x in context))


# --------------------------------------------------------------------------------------
# What may stand between: vectors (n, 8, D) of a clip, for 4 places in time and 2 in
# frequency


def cells(plane: Tensor) -> Tensor:
    """A plane (n, C, T, F) as the values of its 8 cells, (n, 8, C T/4 F/2)."""
    n, C, T, F_ = plane.shape
    cut = plane.view(n, C, 4, T // 4, 2, F_ // 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, N_LOA, -1)


@torch.no_grad()
def between(kind: str, some: Clips) -> Tensor:
    """A form of the clips that is computed from their sounds alone."""
    if kind == "LOA":
        mels = map(audio.log_mel, some.waves.split(16))
        silent = math.log(audio.LOG_FLOOR)  # AudioMAE hears 2.56 s
        whole = (F.pad(mel, (0, 0, 0, 128), value=silent) for mel in mels)
        return torch.cat([pipe().audiomae.loa(mel)[:, :N_LOA] for mel in whole])
    if kind == "VAE":  # neighbours averaged: as many numbers as the LOA's components
        return cells(F.avg_pool2d(some.z0, 2))
    # random projections of the wave: of four pieces, each projected twice
    values = some.waves.view(len(some.waves), 4, -1).repeat_interleave(2, dim=1)
    drawn = torch.randn(N_LOA, values.shape[2], DIM, generator=seeded(16))
    return torch.einsum("nld,ldk->nlk", values, drawn / values.shape[2] ** 0.5)


@dataclass(frozen=True)
class Basis:
    """The principal components of such vectors, about their mean at each place."""

    mean: Tensor  # (L, D)
    axes: Tensor  # (D, DIM), scaled so that components have variance 1 on average

    @classmethod
    def of(cls, vectors: Tensor) -> Basis:
        mean = vectors.mean(dim=0)
        flat = (vectors - mean).flatten(0, 1)
        axes = torch.linalg.eigh(flat.T @ flat).eigenvectors[:, -DIM:]
        return cls(mean, axes / (flat @ axes).std())

    def __call__(self, vectors: Tensor) -> Tensor:
        """(n, L, D) -> (n, L, DIM)."""
        return (vectors - self.mean) @ self.axes


@functools.cache
def targets(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Y' (n, L, DIM) of the training clips and of the test clips."""
    train, test = clips("train", 0, N_CLIPS), clips("valid", seed, N_TEST)
    basis = Basis.of(between(kind, train))
    return basis(between(kind, train)), basis(between(kind, test))


# --------------------------------------------------------------------------------------
# The two routes


def recipe(steps: int, lr: float = LR) -> Recipe:
    """Of the diffusion models."""
    return Recipe(steps, BATCH, lr, warmup=20, ema=0.98, muon=("linear", "conv"))


def nothing(like: Context) -> Context:
    """The empty condition of Y', which is its mean, or T5's states of ""."""
    if like.mask is None:
        return Context(torch.zeros_like(like.sequence[:1]))
    return read([""])


def noisy(told: Context, generator: torch.Generator) -> Context:
    """States of captions with some noise, without which few captions are learned by
    heart.
    """
    states, mask = told
    noise = torch.randn(states.shape, generator=generator)
    return Context(states + NOISE * states.std() * noise, mask)


def student(told: Context, labelled: Tensor, seed: int) -> tuple[TextLDM, Batches]:
    """A diffusion model, untrained, and its batches: of the clips (N,) that are
    labelled it reads `told`, of the others, and of a tenth of these, nothing.
    """
    torch.manual_seed(seed)
    z0, dim = clips("train", 0, N_CLIPS).z0, told.sequence.shape[2]
    name = "loa" if told.mask is None else "text"
    config = replace(SMALL, condition=name, context_dim=dim, context_length=LONGEST)
    model, empty = TextLDM(config), {name: nothing(told)}
    known = torch.nonzero(labelled)[:, 0]
    n = round(BATCH * max(LABELLED, len(known) / len(z0)))

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        draw = lambda m, k: torch.randint(m, (k,), generator=generator)
        i = torch.cat([known[draw(len(known), n)], draw(len(z0), BATCH - n)])
        dropped = torch.rand(BATCH, generator=generator) < P_EMPTY
        dropped[n:] = True
        u = (torch.rand((), generator=generator) + torch.arange(BATCH) / BATCH) % 1
        u = u[torch.randperm(BATCH, generator=generator)] ** text_ldm.CURVE
        t = 1 + (u * config.n_steps).long().clamp_max(config.n_steps - 1)
        eps = torch.randn(z0[i].shape, generator=generator)
        some = rows(told, i)
        some = noisy(some, generator) if name == "text" else some
        read = drop({name: some}, empty, dropped)
        return {"z0": z0[i], "t": t, "eps": eps, **to_batch(read)}

    return model, batch


def diffuser(
    told: Context, labelled: Tensor, seed: int, steps: int, name: str = "fit"
) -> TextLDM:
    """A diffusion model, trained."""
    model, batch = student(told, labelled, seed)
    fit(model, batch, recipe(steps), seed, name, progress=False)
    return model.eval()


def writer(y: Tensor, told: Context, seed: int) -> LOARegressor:
    """A small GPT-2 that writes y (n, L, DIM) from T5's states of n captions."""
    torch.manual_seed(seed)
    model = LOARegressor(WRITER)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        i = torch.randint(len(y), (BATCH,), generator=generator)
        told_noisily = {"text": noisy(rows(told, i), generator)}
        none = torch.zeros(BATCH, N_LOA, dtype=torch.bool)  # no true vectors are shown
        return {"loa": y[i], "keep": none, **to_batch(told_noisily)}

    how = Recipe(GPT_STEPS, BATCH, 1e-2, ema=0.98, muon=("linear",))
    fit(model, batch, how, seed, progress=False)
    return model.eval()


@torch.no_grad()
def drawn(model: TextLDM, told: Context, how: Sampling = HOW) -> Tensor:
    """Latents, one for each condition, from the same noise for all models."""
    n = len(told.sequence)
    shape = n, *clips("train", 0, N_CLIPS).z0.shape[1:]
    zT = torch.randn(shape, generator=torch.Generator().manual_seed(77))
    name, none = model.config.condition, nothing(told)
    empty = {name: rows(none, torch.zeros(n, dtype=torch.long))}
    predict = guided(model, {name: told}, empty, how)
    as_eps = lambda zt, t: model.as_eps(zt, t, predict(zt, t))
    return diffusion.ddim_sample(as_eps, model.schedule, zT, how.steps)


@torch.no_grad()
def sounds(z0: Tensor) -> Tensor:
    """The waves (n, samples) of latents."""
    made = [vocode(pipe().vocoder, lean.decode(pipe().vae, z)) for z in z0.split(16)]
    return torch.cat(made)


def named(waves: Tensor, scenes: list[Scene]) -> list[bool]:
    """Whether each sound is of its scene's class, to the judge."""
    found = [judge().config.classes[k] for k in judge().hear(waves)]
    return [a == scene.events[0].name for a, scene in zip(found, scenes, strict=True)]


def heard(waves: Tensor, scenes: list[Scene]) -> Heard:
    """The share of right classes, and of sounds whose class and pitch are right."""
    events, right = [scene.events[0] for scene in scenes], named(waves, scenes)
    tuned = [judges.answers(w, e)["pitch"] for w, e in zip(waves, events)]
    both = [a and b for a, b in zip(right, tuned)]
    return sum(right) / len(right), sum(both) / len(both)


# --------------------------------------------------------------------------------------
# What the routes reach


def kept(share: float, seed: int) -> Tensor:
    """The clips (n,) whose captions are kept: the first of an order of all, so that
    more captions contain the fewer.
    """
    n = N_CLIPS * len(KINDS)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: round(share * n)]


@functools.cache
def from_sound(kind: str, seed: int) -> TextLDM:
    """G: the diffusion model that reads Y', which no caption has a part in."""
    y, _ = targets(kind, seed)
    everything = torch.ones(len(y), dtype=torch.bool)
    return diffuser(Context(y), everything, seed, STEPS, "course")


@functools.cache
def from_caption(share: float, seed: int, shuffled: bool = False) -> TextLDM:
    """H: the diffusion model that reads the captions that were kept."""
    told = clips("train", 0, N_CLIPS).told
    labelled = torch.zeros(len(told.sequence), dtype=torch.bool)
    labelled[kept(share, seed)] = True
    if shuffled:
        told = rows(told, torch.randperm(len(labelled), generator=seeded(seed)))
    return diffuser(told, labelled, seed, DIRECT)


@functools.cache
def wrote(kind: str, share: float, seed: int, shuffled: bool = False) -> LOARegressor:
    """M: a GPT-2 that has learned from the captions that were kept."""
    (y, _), i = targets(kind, seed), kept(share, seed)
    told = i[torch.randperm(len(i), generator=seeded(seed))] if shuffled else i
    return writer(y[i], rows(clips("train", 0, N_CLIPS).told, told), seed)


@torch.no_grad()
def written(gpt: LOARegressor, seed: int) -> Context:
    """Y' that GPT-2 writes for the test captions, (n, L, DIM)."""
    return Context(gpt.generate({"text": clips("valid", seed, N_TEST).told}))


@functools.cache
def tuned(share: float, seed: int) -> tuple[LOARegressor, TextLDM]:
    """M and G after some steps of joint fine-tuning (2308.05734 section 3.4) on the
    clips whose captions were kept.
    """
    train, y = clips("train", 0, N_CLIPS), targets("LOA", seed)[0]
    gpt, g = copy.deepcopy((wrote("LOA", share, seed), from_sound("LOA", seed)))
    known = kept(share, seed)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        i = known[torch.randint(len(known), (BATCH,), generator=generator)]
        true = torch.rand(BATCH, 1, generator=generator) < P_TRUE_LOA
        t = torch.randint(1, SMALL.n_steps + 1, (BATCH, 1), generator=generator)
        eps = torch.randn(train.z0[i].shape, generator=generator)[:, None]
        told = {"text": noisy(rows(train.told, i), generator)}
        made = {"z0": train.z0[i][:, None], "t": t, "eps": eps, "true_loa": true}
        return {"loa": y[i], **made, **to_batch(told)}

    fit(Joint(gpt, g), batch, recipe(JOINT, LR / 4), seed, progress=False)
    return gpt.eval(), g.eval()


def seeded(seed: int) -> torch.Generator:
    """A source of random numbers."""
    return torch.Generator().manual_seed(seed)


def reached(model: TextLDM, told: Context, seed: int) -> Heard:
    """`heard` of what a diffusion model makes for the test clips."""
    return heard(sounds(drawn(model, told)), clips("valid", seed, N_TEST).scenes)


# --------------------------------------------------------------------------------------
# Experiments

CLASS = "share of sounds whose class is right"
PITCH = "share of sounds whose class and pitch are right"
CHANCE = 1 / len(KINDS)
percent = lambda share: f"{100 * share:g} %"


def arm(route: str, share: float) -> str:
    """The name of an arm."""
    return f"{route}, {percent(share)}"


def ahead(m: dict[str, float], route: str, shares: Sequence[float]) -> bool:
    """Whether a route is ahead of the direct one at all of these shares."""
    return all(m[arm(route, x)] > m[arm("direct", x)] for x in shares)


def by_plan(kind: str, share: float, seed: int, shuffled: bool = False) -> Heard:
    """What G reaches from what GPT-2 writes."""
    gpt = wrote(kind, share, seed, shuffled)
    return reached(from_sound(kind, seed), written(gpt, seed), seed)


def both_routes(seed: int) -> dict[str, Heard]:
    """What every arm of `routes` reaches."""
    told, g, found = clips("valid", seed, N_TEST).told, from_sound("LOA", seed), {}
    for share in SHARES:
        gpt, together = tuned(share, seed)
        found[arm("LOA", share)] = reached(together, written(gpt, seed), seed)
        found[arm("direct", share)] = reached(from_caption(share, seed), told, seed)
    found["LOA, 100 %, not tuned"] = by_plan("LOA", 1.0, seed)
    found["LOA, captions shuffled"] = by_plan("LOA", 1.0, seed, True)
    found["true LOA"] = reached(g, Context(targets("LOA", seed)[1]), seed)
    return found


def missed(kind: str, share: float, seed: int) -> float:
    """The squared error of what GPT-2 writes, over the variance."""
    y = targets(kind, seed)[1]
    error = (written(wrote(kind, share, seed), seed).sequence - y).square().mean()
    return float(error / y.square().mean())


@experiment(
    Claim(
        "labels",
        "with a tenth of the captions or fewer, the route by the LOA gets more sounds "
        "right than the direct one",
        CLASS,
        lambda m: ahead(m, "LOA", (0.02, 0.05, 0.1)),
        control="LOA, captions shuffled",
        chance=CHANCE,
        ceiling=1.0,
    ),
    Claim(
        "crossing",
        "with all captions the direct route has caught up with the one by the LOA",
        CLASS,
        lambda m: m[arm("direct", 1.0)] >= m[arm("LOA", 1.0)],
        chance=CHANCE,
        ceiling=1.0,
    ),
    Claim(
        "pitches",
        "with a tenth of the captions or fewer, the route by the LOA gets class and "
        "pitch right more often than the direct one",
        PITCH,
        lambda m: ahead(m, "LOA", (0.02, 0.05, 0.1)),
        control="LOA, captions shuffled",
        chance=CHANCE / 3,
        ceiling=1.0,
    ),
    Claim(
        "gap",
        "the more captions, the nearer is GPT-2's LOA to the true one",
        "squared error over the variance",
        lambda m: list(m.values()) == sorted(m.values(), reverse=True),
        chance=1.0,
    ),
)
def routes(seed: int) -> Measured:
    """The route by the LOA and the direct one, with some of the captions."""
    found = both_routes(seed)
    named_right, pitched = ({x: y[i] for x, y in found.items()} for i in (0, 1))
    ends = {x: named_right[x] for x in (arm("LOA", 1.0), arm("direct", 1.0))}
    gap = {percent(share): missed("LOA", share, seed) for share in SHARES}
    return {"labels": named_right, "crossing": ends, "pitches": pitched, "gap": gap}


@experiment(
    Claim(
        "plans",
        "captions decide more of the LOA than of averaged VAE latents of its size, and "
        "nothing of random projections of the wave",
        "squared error of what GPT-2 writes, over the variance",
        lambda m: m["LOA"] < m["VAE latents"] - 0.05 and m["random"] > 0.95,
        control="random",
        chance=1.0,
    ),
    Claim(
        "plans_heard",
        "plans that GPT-2 writes lead to more right sounds as LOA than as averaged VAE "
        "latents, and as these than as random projections of the wave",
        CLASS,
        lambda m: m["LOA"] > m["VAE latents"] > m["random"] + CHANCE,
        control="random",
        chance=CHANCE,
        ceiling=1.0,
    ),
)
def plans(seed: int) -> Measured:
    """Three kinds of Y', written by GPT-2 from all captions and not tuned jointly: what
    it misses, and what is heard of it; and what is heard of the true ones.
    """
    kinds = {"LOA": "LOA", "VAE latents": "VAE", "random": "random"}
    gaps = {name: missed(kind, 1.0, seed) for name, kind in kinds.items()}
    found = {name: by_plan(kind, 1.0, seed)[0] for name, kind in kinds.items()}
    for name, kind in kinds.items():
        true = Context(targets(kind, seed)[1])
        found[f"true {name}"] = reached(from_sound(kind, seed), true, seed)[0]
    return {"plans": gaps, "plans_heard": found}
