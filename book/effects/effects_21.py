"""The effects of chapter 21: mixing at equal pressure level, and an instructed T5.

The denoisers are small ones of `text_ldm`, for clips of 1.28 s, trained from scratch in
equal numbers of steps. Ceilings of 1 are the largest possible share, not measured.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from effects import Claim, Measured, experiment
from torch import Tensor

from minilib import audio, diffusion, judges, lean
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.conditions import Context, drop, to_batch
from minilib.folders import load_part
from minilib.guidance import guided
from minilib.peers.tango import (
    equal_share,
    joined_caption,
    mix,
    pressure_level,
    to_peak,
)
from minilib.peers.text_ldm import CURVE, P_EMPTY, SAMPLING, TextLDM, TextLDMConfig
from minilib.soundworld import SoundWorld, held_out_pairs, plain
from minilib.training import Recipe, fit

SMALL = TextLDMConfig(width=128, n_layer=3)
NARROW = TextLDMConfig(width=96, n_layer=3)
BATCH, LR, SECONDS = 32, 2e-3, 1.28
PEERS = shipped_weights().parent / "peers"


@functools.cache
def part(name: str) -> torch.nn.Module:
    """A part that ships: vae, text or clap of `tiny`, or the `instructed` T5."""
    if name == "instructed":
        return load_part(PEERS / "instructed_t5", "text", torch.float32)
    return load_part(shipped_weights(), name, torch.float32)


@torch.no_grad()
def latents(waves: Tensor) -> Tensor:
    """The latents (n, C, T/r, F/r) of sounds (n, N)."""
    return torch.cat([part("vae").encode(audio.log_mel(x)) for x in waves.split(16)])


@torch.no_grad()
def decode(z0: Tensor) -> Tensor:
    """The log-mels of latents."""
    return torch.cat([lean.decode(part("vae"), z) for z in z0.split(16)])


def clips(
    kinds: tuple[str, ...], n: int, seed: int, seconds: float = SECONDS,
    like: Callable = lambda event: True,
) -> Tensor:  # fmt: skip
    """n sounds of each class, (classes, n, N), whose event is as `like` asks."""
    world, found, i = SoundWorld("train", seed, seconds, pairs=0.0), {}, 0
    while sum(map(len, found.values())) < n * len(kinds):
        scene, i = world.scene(i), i + 1
        name = scene.events[0].name
        if name in kinds and like(scene.events[0]):
            if len(found.setdefault(name, [])) < n:
                found[name].append(world.render(scene))
    return torch.stack([torch.stack(found[name]) for name in kinds])


def rows(context: Context, i: Tensor) -> Context:
    """The conditions of some items."""
    return Context(*(None if x is None else x[i] for x in context))


def train(
    draw: Callable[[torch.Generator], tuple[Tensor, Context]],
    empty: Context, seed: int, steps: int, config: TextLDMConfig = SMALL,
) -> TextLDM:  # fmt: skip
    """A small denoiser; `draw` makes latents and what is said of them."""
    torch.manual_seed(seed)
    model = TextLDM(config)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        z0, told = draw(generator)
        n = len(z0)
        u = (torch.rand((), generator=generator) + torch.arange(n) / n) % 1
        u = u[torch.randperm(n, generator=generator)] ** CURVE
        t = 1 + (u * config.n_steps).long().clamp_max(config.n_steps - 1)
        dropped = torch.rand(n, generator=generator) < P_EMPTY
        read = drop({"text": told}, {"text": empty}, dropped)
        eps = torch.randn(z0.shape, generator=generator)
        return {"z0": z0, "t": t, "eps": eps, **to_batch(read)}

    recipe = Recipe(steps, BATCH, LR, warmup=20, ema=0.98, muon=("linear", "conv"))
    fit(model, batch, recipe, seed, progress=False)
    return model.eval()


@torch.no_grad()
def sample(
    model: TextLDM, told: Context, empty: Context, seed: int, steps: int = 10
) -> Tensor:
    """The log-mels that a model makes for some captions."""
    n, g = len(told.sequence), torch.Generator().manual_seed(seed)
    zT = SAMPLING.temperature * torch.randn(n, 4, 32, 16, generator=g)
    velocity = guided(model, {"text": told}, {"text": empty.repeat(n)}, SAMPLING)
    as_eps = lambda zt, t: model.as_eps(zt, t, velocity(zt, t))
    return decode(diffusion.ddim_sample(as_eps, model.schedule, zT, steps))


# ---- Levels

N_COMPARED = 200  # pairs


@experiment(
    Claim(
        "levels",
        "after mixing at equal pressure the parts are equally loud, exactly",
        "dB, standard deviation of the difference of the two levels",
        lambda m: m["equal pressure"] < 1e-6 and min(list(m.values())[:3]) > 3,
        control="random share",
        chance=None,
    )
)
def levels(seed: int) -> Measured:
    """How far two single sounds are apart in a mixture."""
    world, n = SoundWorld("train", 2100 + seed, pairs=0.0), N_COMPARED
    first, second = torch.stack([world[i].wave for i in range(2 * n)]).split(n)
    apart = lambda a, b: float((pressure_level(a) - pressure_level(b)).std())
    random = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))
    equal = equal_share(pressure_level(first), pressure_level(second))[:, None]
    return {
        "levels": {
            "as recorded": apart(first, second),
            "equal peaks": apart(to_peak(first), to_peak(second)),
            "random share": apart(random * first, (1 - random) * second),
            "equal pressure": apart(equal * first, (1 - equal) * second),
        }
    }


# ---- Two sounds at once

LOUD = ("thunder", "cow", "horn", "drum", "door")
QUIET = ("alarm", "frog", "laser", "bird", "glass", "cricket")
KINDS = LOUD + QUIET
# asked for in the test; SoundWorld's test split holds these pairs out, in one order
HELD = tuple(
    (KINDS.index(a), KINDS.index(b))
    for a, b in (
        ("thunder", "alarm"), ("cow", "laser"), ("drum", "glass"),
        ("horn", "bird"), ("door", "cricket"), ("thunder", "frog"),
    )
)  # fmt: skip
PAIRS = tuple(itertools.product(range(len(LOUD)), range(len(LOUD), len(KINDS))))
# pairs that are mixed: the split holds out neither order
SEEN = tuple(
    (a, b)
    for a, b in PAIRS
    if not {(KINDS[a], KINDS[b]), (KINDS[b], KINDS[a])} & held_out_pairs()
)
BELOW = (10, 20, 30)  # dB by which the quiet classes lie below the loud ones
N_CLIPS, N_MIXED, MIX_STEPS, N_MADE = 40, 16, 300, 24


def below(k: int, seed: int) -> int:
    """By how many decibels class k is recorded below the loud ones: each quiet class is
    10, 20 and 30 dB below in the three seeds.
    """
    return 0 if k < len(LOUD) else BELOW[(k - len(LOUD) + seed) % 3]


def level_at(pool: Tensor, wanted: Tensor | float = 30.0) -> Tensor:
    """Sounds (classes, n, N), each brought to a pressure level in dB."""
    level = pressure_level(pool.flatten(0, 1)).unflatten(0, pool.shape[:2])
    return pool * (10 ** ((wanted - level) / 20))[..., None].float()


def recorded(pool: Tensor, seed: int) -> Tensor:
    """Sounds (classes, n, N), each at the pressure level of its class."""
    wanted = torch.tensor([30.0 - below(k, seed) for k in range(len(KINDS))])
    return level_at(pool, wanted[:, None])


def added(first: Tensor, second: Tensor, way: str, g: torch.Generator) -> Tensor:
    """Mixtures (n, N), peak 0.5, of sounds as they are recorded."""
    if way == "equal pressure":
        share = equal_share(pressure_level(first), pressure_level(second))
    elif way == "random share":
        share = torch.rand(len(first), generator=g)
    elif way == "plain addition":
        share = torch.full((len(first),), 0.5)
    else:
        raise ValueError(way)
    return to_peak(mix(first, second, share))


@functools.cache
def captions() -> tuple[list[str], dict[tuple[int, int], list[int]]]:
    """All captions, and which of them tell a single class (k, k) or a pair."""
    texts = [plain(name) for name in KINDS]
    told = {(k, k): [k] for k in range(len(KINDS))}
    for a, b in PAIRS:
        told[a, b] = [len(texts), len(texts) + 1]
        texts += [
            joined_caption(texts[a], texts[b]),
            joined_caption(texts[b], texts[a]),
        ]
    return texts, told


@functools.cache
@torch.no_grad()
def states() -> tuple[Context, Context]:
    """The instructed T5's states of all captions and of the empty one."""
    return part("instructed").encode(captions()[0]), part("instructed").encode([""])


def patterns(mels: Tensor) -> Tensor:
    """What the judge looks at, (n, 640): for each band the distribution over time, how
    much it changes, and the steps to the next band.
    """
    x = F.avg_pool1d(mels[:, 0].mT, 2).mT  # (n, T / 2, F)
    ranked = x.sort(dim=1).values
    at = [round(q * (x.shape[1] - 1)) for q in (0.02, 0.25, 0.5, 0.75, 0.95, 1.0)]
    change, step = x.diff(dim=1).abs().mean(dim=1), x.diff(dim=2)
    spread = (x.std(dim=1), change, step.mean(dim=1), step.std(dim=1))
    return torch.cat([*ranked[:, at].unbind(dim=1), *spread], dim=1)


class Ear:
    """Hears one class in mixtures: kernel ridge regression, in closed form, with a
    polynomial of degree 2 as its kernel.
    """

    def __init__(self, mels: Tensor, there: Tensor):
        x = patterns(mels)
        self.mean, self.std, self.threshold = x.mean(dim=0), x.std(dim=0) + 0.05, 0.0
        self.x = (x - self.mean) / self.std
        ridge = self.kernel(self.x) + 0.05 * torch.eye(len(x))
        self.weights = torch.linalg.solve(ridge, 2.0 * there.float() - 1)

    def kernel(self, x: Tensor) -> Tensor:
        return (1 + x @ self.x.T / x.shape[1]) ** 2

    def score(self, mels: Tensor) -> Tensor:
        """Above the threshold where the class is heard: (n,)."""
        return self.kernel((patterns(mels) - self.mean) / self.std) @ self.weights


@dataclass(frozen=True)
class Heard:
    """Clean mixtures about a pair (a, b), through the VAE, and what is in them."""

    mels: Tensor
    has_a: Tensor
    has_b: Tensor

    @classmethod
    def of(cls, pool: Tensor, a: int, b: int, n: int, g: torch.Generator) -> Heard:
        """n of both, and 2n that lack one: alone, or with another class. The second
        sound is 5 dB above to 40 dB below the first.
        """
        draw = lambda among: among[int(torch.randint(len(among), (), generator=g))]
        loud = [k for k in range(len(LOUD)) if k != a]
        quiet = [k for k in range(len(LOUD), len(KINDS)) if k != b]
        pairs = [(a, b)] * n + [(a, None), (None, b)] * (n // 4)
        pairs += [(a, draw(quiet)) for _ in range(3 * n // 4)]
        pairs += [(draw(loud), b) for _ in range(3 * n // 4)]
        waves = torch.zeros(len(pairs), pool.shape[2])
        lower = 10 ** ((5 - 45 * torch.rand(len(pairs), generator=g)) / 20)
        i = torch.randint(pool.shape[1], (len(pairs), 2), generator=g)
        for m, (k, q) in enumerate(pairs):
            waves[m] += 0 if k is None else pool[k, i[m, 0]]
            waves[m] += 0 if q is None else lower[m] * pool[q, i[m, 1]]
        there = [[k == a for k, _ in pairs], [q == b for _, q in pairs]]
        return cls(decode(latents(to_peak(waves))), *map(torch.tensor, there))


N_EAR = 200


@functools.cache
def ears() -> dict[tuple[int, int], tuple[Ear, Ear]]:
    """For each pair of the test, ears for its loud and its quiet class. They learn from
    sounds that no other set has; a twentieth of other such sounds without the class
    passes their threshold.
    """
    learn, check = (level_at(clips(KINDS, n, 9021 + n)) for n in (60, 30))
    g, found = torch.Generator().manual_seed(0), {}
    for a, b in HELD:
        some = Heard.of(learn, a, b, N_EAR, g)
        both = Ear(some.mels, some.has_a), Ear(some.mels, some.has_b)
        some = Heard.of(check, a, b, N_EAR // 2, g)
        for ear, there in zip(both, (some.has_a, some.has_b)):
            ear.threshold = float(ear.score(some.mels)[~there].quantile(0.95))
        found[a, b] = both
    return found


def hears(mels: Tensor, pairs: Tensor, side: int) -> Tensor:
    """Whether the loud (side 0) or quiet (1) class of pairs (n, 2) is heard: (n,)."""
    heard = torch.zeros(len(mels))
    for pair, both in ears().items():
        these = (pairs == torch.tensor(pair)).all(dim=1)
        heard[these] = (both[side].score(mels[these]) > both[side].threshold).float()
    return heard


@functools.cache
def pool(seed: int) -> Tensor:
    """Single sounds of every class, (classes, n, N)."""
    return clips(KINDS, N_CLIPS, seed)


QUIETER = {
    "unit": "share of sounds in which the quieter sound is heard, pairs never mixed",
    "control": "quieter sound left out",
    "chance": 0.05,
    "ceiling": 1.0,
}


@experiment(
    Claim(
        "quieter_10",
        "10 dB apart, the quieter of two sounds is heard more often after mixing at "
        "equal pressure than after plain addition",
        holds=lambda m: m["equal pressure"] > m["plain addition"] + 0.15,
        **QUIETER,
    ),
    Claim(
        "quieter_20",
        "the same, 20 dB apart",
        holds=lambda m: m["equal pressure"] > m["plain addition"] + 0.15,
        **QUIETER,
    ),
    Claim(
        "quieter_30",
        "the same, 30 dB apart",
        holds=lambda m: m["equal pressure"] > m["plain addition"] + 0.15,
        **QUIETER,
    ),
    Claim(
        "louder",
        "the louder sound is heard equally often",
        "share of sounds in which the louder sound is heard, pairs never mixed",
        lambda m: abs(m["equal pressure"] - m["plain addition"]) < 0.05,
        chance=0.05,
        ceiling=1.0,
    ),
)
def mixing(seed: int, ways: tuple[str, ...] = (
    "plain addition", "random share", "equal pressure",
)) -> Measured:  # fmt: skip
    """Models trained on mixtures made in three ways, asked for pairs never mixed."""
    g = torch.Generator().manual_seed(seed)
    sounds = recorded(pool(100 + seed), seed)
    alone = latents(to_peak(sounds.flatten(0, 1)))
    texts, told = captions()
    states_, empty = states()
    # the same sounds in all arms
    pairs = torch.tensor(SEEN).repeat_interleave(N_MIXED, dim=0)  # (M, 2)
    i = torch.randint(N_CLIPS, pairs.shape, generator=g)
    first, second = (sounds[pairs[:, s], i[:, s]] for s in range(2))
    asked = torch.tensor(HELD).repeat_interleave(N_MADE, dim=0)
    lines = torch.tensor([told[tuple(p)][m % 2] for m, p in enumerate(asked.tolist())])
    lower = torch.tensor([below(int(k), seed) for k in asked[:, 1]])
    made = {}
    for way in ways:
        mixed = latents(added(first, second, way, torch.Generator().manual_seed(seed)))

        def draw(g: torch.Generator, mixed: Tensor = mixed) -> tuple[Tensor, Context]:
            n = BATCH // 2
            a = torch.randint(len(alone), (BATCH - n,), generator=g)
            m = torch.randint(len(mixed), (n,), generator=g)
            side = torch.randint(2, (n,), generator=g).tolist()
            line = [told[tuple(pairs[j].tolist())][s] for j, s in zip(m.tolist(), side)]
            line = torch.cat([a // N_CLIPS, torch.tensor(line)])
            return torch.cat([alone[a], mixed[m]]), rows(states_, line)

        model = train(draw, empty, seed, MIX_STEPS)
        made[way] = sample(model, rows(states_, lines), empty, 70 + seed)
    fresh = recorded(clips(KINDS, 20, 200 + seed), seed)
    j = torch.randint(20, asked.shape, generator=g)
    one, two = (fresh[asked[:, s], j[:, s]] for s in range(2))
    made["clean, plainly added"] = decode(latents(added(one, two, "plain addition", g)))
    made["quieter sound left out"] = decode(latents(to_peak(one)))
    found: Measured = {"louder": {}}
    for name, mels in made.items():
        quieter, louder = (hears(mels, asked, side) for side in (1, 0))
        for d in BELOW:
            found.setdefault(f"quieter_{d}", {})[name] = float(
                quieter[lower == d].mean()
            )
        found["louder"][name] = float(louder.mean())
    return found


# ---- What the reader tells: order and count

STRUCK = ("drum", "knock", "drip", "frog")
ORDERS = tuple(itertools.permutations(range(len(STRUCK)), 2))
HELD_ORDERS = tuple(
    i for i, (a, b) in enumerate(ORDERS) if (STRUCK[a], STRUCK[b]) in held_out_pairs()
)
WORDINGS = ("{0}, then {1}", "{0} and then {1}", "{0} before {1}", "{1} after {0}")
TIMES = ("", " twice", " three times")
N_HALVES, N_COUNTED, READ_STEPS, N_TOLD = 40, 24, 300, 8


READERS = {
    "instructed": "instructed T5",
    "text": "T5 without instructions",
    "clap": "CLAP's vector",
}


@functools.cache
def sentences() -> list[str]:
    """All captions: of orders, wording by wording, and then of counts."""
    names = [[plain(STRUCK[k]) for k in order] for order in ORDERS]
    told = [wording.format(*two) for two in names for wording in WORDINGS]
    return told + [plain(name) + times for name in STRUCK for times in TIMES]


@functools.cache
@torch.no_grad()
def readings(reader: str) -> tuple[Context, Context]:
    """What a reader tells of all captions and of the empty one."""
    encode = part(reader).encode
    return encode(sentences()), encode([""])


@functools.cache
def struck() -> tuple[Tensor, Tensor]:
    """Latents of single strokes, 0.64 s each, (kinds, n, C, 16, F/r), and of one to
    three strokes in 1.28 s, (kinds, counts, n, C, 32, F/r).
    """
    once = clips(STRUCK, N_HALVES, 300, 0.64, lambda event: event.count == 1)
    counted = [
        clips(STRUCK, N_COUNTED, 301, SECONDS, lambda event, c=c: event.count == c)
        for c in (1, 2, 3)
    ]
    shaped = lambda x: latents(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    return shaped(once), shaped(torch.stack(counted, dim=1))


@torch.no_grad()
def in_order(mels: Tensor, order: Tensor) -> Tensor:
    """Whether the judge that ships hears both classes, each in its half: (n,)."""
    known = [judge().config.classes.index(name) for name in STRUCK]
    heard = [judge()(half)[:, known].argmax(dim=1) for half in mels.chunk(2, dim=2)]
    return (torch.stack(heard, dim=1) == torch.tensor(ORDERS)[order]).all(dim=1).float()


@functools.cache
def judge() -> Classifier:
    """The judge that ships."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()


def counted(mels: Tensor, kind: Tensor) -> Tensor:
    """How many strokes of its class each mel has, by the closed-form detector: (n,)."""
    find = lambda mel, k: judges.reference(STRUCK[k]).strokes.find(mel[0])
    return torch.tensor([len(find(mel, k)) for mel, k in zip(mels, kind.tolist())])


@experiment(
    Claim(
        "order",
        "two events in an order never met: a denoiser makes it more often from the "
        "states of the instructed T5 that ships than from CLAP's vector",
        "share of sounds with both events right, in order",
        lambda m: m["instructed T5"] > m["CLAP's vector"] + 0.2,
        control="CLAP's vector",
        chance=1 / len(STRUCK) ** 2,
        ceiling=1.0,
    ),
    Claim(
        "order_seen",
        "the same for ordered pairs of the training",
        "share of sounds with both events right, in order",
        lambda m: m["instructed T5"] > m["CLAP's vector"] + 0.2,
        chance=1 / len(STRUCK) ** 2,
        ceiling=1.0,
    ),
    Claim(
        "count",
        "how many strokes there are, the states of an instructed T5 tell better than "
        "CLAP's vector",
        "share of sounds with the right number of strokes, one to three",
        lambda m: m["instructed T5"] > m["CLAP's vector"] + 0.1,
        control="other counts asked for",
        chance=1 / 3,
        ceiling=1.0,
    ),
)
def reading(
    seed: int, readers: tuple[str, ...] = ("instructed", "text", "clap")
) -> Measured:
    """Models told by different readers, asked for orders never heard, and counts."""
    once, several = struck()
    seen = torch.tensor([i for i in range(len(ORDERS)) if i not in HELD_ORDERS])
    both = torch.tensor(ORDERS)
    n_words, first_count = len(WORDINGS), len(ORDERS) * len(WORDINGS)

    def draw(g: torch.Generator, told: Context) -> tuple[Tensor, Context]:
        any_of = lambda n: torch.randint(n, (BATCH // 2,), generator=g)
        order = seen[any_of(len(seen))]
        halves = [once[both[order, s], any_of(N_HALVES)] for s in range(2)]
        line = order * n_words + any_of(n_words)
        k, c = any_of(len(STRUCK)), any_of(3)
        z0 = torch.cat([torch.cat(halves, dim=2), several[k, c, any_of(N_COUNTED)]])
        return z0, rows(told, torch.cat([line, first_count + 3 * k + c]))

    held = torch.tensor(HELD_ORDERS).repeat_interleave(n_words * N_TOLD)
    known = seen.repeat_interleave(n_words * 2)
    word = lambda order: order * n_words + torch.arange(len(order)) % n_words
    kind = torch.arange(len(STRUCK)).repeat_interleave(3 * N_TOLD)
    count = torch.arange(3).repeat(len(STRUCK) * N_TOLD)
    lines = torch.cat([word(held), word(known), first_count + 3 * kind + count])
    found: Measured = {"order": {}, "order_seen": {}, "count": {}}
    for reader in readers:
        told, empty = readings(reader)
        write = functools.partial(draw, told=told)
        model = train(write, empty, seed, READ_STEPS, NARROW)
        mels = sample(model, rows(told, lines), empty, 70 + seed)
        new, old, many = mels.split([len(held), len(known), len(kind)])
        name = READERS[reader]
        found["order"][name] = float(in_order(new, held).mean())
        found["order_seen"][name] = float(in_order(old, known).mean())
        heard = counted(many, kind) - 1
        found["count"][name] = float((heard == count).float().mean())
        if reader == readers[0]:
            wrong = float((heard == (count + 1) % 3).float().mean())
    found["count"]["other counts asked for"] = wrong
    return found
