"""The effects of chapter 17: many tasks, edits, and what measures are blind to.

The sounds are the shipped weights' own, or clean renders that are spoilt on purpose.
The regressors that learn effects with and without music are small: two layers of width
64, which write the 64 principal components of the LOA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from effects import Claim, Measured, experiment
from torch import Tensor

import minilib
from minilib import audio, metrics
from minilib.clap import CLAP
from minilib.classifier import Classifier
from minilib.cli import place_of, shipped_judge, shipped_listener, shipped_weights
from minilib.conditions import Conditions, Context, to_batch
from minilib.folders import load_part, part_folder
from minilib.frechet import frechet_distance
from minilib.gpt import GPTConfig, LOARegressor
from minilib.metrics import TASKS, Scenes
from minilib.soundworld import SoundWorld
from minilib.training import Recipe, fit

SECONDS = 2.56
N_TASK = 48  # how often each question of a task is asked, for each seed
N_FOOLED = 160  # clean renders that are spoilt
N_CAPTIONS, N_CANDIDATES = 72, 8
N_EDITED, STRENGTHS = 16, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
START, END = 0.85, 1.71  # seconds: the gap that is filled
STEADY = ("engine", "siren", "rain", "wind", "waves", "fire", "alarm", "clock")
N_TRAIN, N_TEST = 240, 100  # clips of each kind for the small regressors
STEPS, LR, DIM = 160, 1e-2, 64
SMALL = GPTConfig(
    n_embd=DIM, n_layer=2, n_head=4, n_positions=64, n_tokens=16, vocab_size=1,
    conditions=("text",), condition_dims=(128,),
)  # fmt: skip
LONGEST = 24  # tokens of a caption


@functools.cache
def pipe(folder: str = "tiny") -> minilib.AudioLDM2:
    """A pipeline that ships."""
    where = shipped_weights() if folder == "tiny" else place_of(folder)
    return minilib.AudioLDM2.from_pretrained(where, device="cpu")


@functools.cache
def judge() -> Classifier:
    """The judge that ships."""
    return Classifier.from_pretrained(shipped_judge(), dtype=torch.float32).eval()


@functools.cache
def listener() -> CLAP:
    """The CLAP that was trained apart."""
    return load_part(shipped_listener(), "clap", torch.float32).eval()


def made(captions: list[str], first: int, **options) -> Tensor:
    """Sounds (n, N) for captions, with seeds from `first` on."""
    waves = []
    for i in range(0, len(captions), 16):
        some = captions[i : i + 16]
        waves.append(pipe()(some, seed=first + i, progress=False, **options))
    return torch.cat(waves)


def share_right(waves: Tensor, scenes: Scenes) -> Tensor:
    """The share of what a caption asks for that is in each sound: (n,)."""
    found = metrics.attributes(waves, scenes.events)
    found["class"] = metrics.judged(judge(), waves, scenes.labels)["class"]
    return torch.stack(list(found.values())).nanmean(dim=0)


# --------------------------------------------------------------------------------------
# The five tasks

# task -> the prefix of the question in the results, and what it counts
ASKED = {
    "text": ("single.class", "share of sounds whose class is right"),
    "music": ("music.instrument", "share of tunes whose instrument is right"),
    "speech": ("held_out.word", "share of held-out words that are heard"),
    "prompted": ("held_out.voice", "share of sounds with the voice of the prompt"),
    "picture": ("single.class", "share of sounds whose class is that of the picture"),
}
ARMS = {
    "control": "control.", "value": "", "round trip": "roundtrip.",
    "clean": "ceiling.",
}  # fmt: skip


def evaluated(task: str, seed: int) -> dict[str, float]:
    """What `minilib evaluate --task` finds, with its own judges."""
    known = TASKS[task]
    given = pipe(known.weights), known.judges(place_of("judges"))
    found = known.evaluate(*given, n=N_TASK, seed=100 + seed)
    if found["seed"] != 100 + seed:  # or three seeds would be one, without an error
        raise ValueError(f"{task} was evaluated with seed {found['seed']}")
    return found


def pictured(seed: int) -> dict[str, float]:
    """The question about pictures, without those about tunes and pitch that take four
    times as many sounds.
    """
    n, draws = N_TASK, pipe("picture")
    scenes = metrics.held_out_scenes(judge(), n, 100 + seed, SECONDS, 1)
    pictures = metrics.pictures_of(n, 100 + seed, SECONDS)
    seeds = [1000 * seed + i for i in range(n)]
    waves = torch.cat(
        [
            draws(picture=pictures[i : i + 16], seed=seeds[i : i + 16], progress=False)
            for i in range(0, n, 16)
        ]
    )
    back, others = metrics.round_trip(draws, scenes.waves), scenes.shuffled(seed).labels
    heard_as = {
        "control.": (waves, others),
        "": (waves, scenes.labels),
        "roundtrip.": (back, scenes.labels),
        "ceiling.": (scenes.waves, scenes.labels),
    }
    right = lambda x, labels: metrics.judged(judge(), x, labels)["class"].mean()
    question = ASKED["picture"][0]
    return {k + question: float(right(*given)) for k, given in heard_as.items()}


def task_effect(task: str, seed: int) -> Measured:
    """Control, value, round trip and ceiling of a task's question."""
    question = ASKED[task][0]
    found = pictured(seed) if task == "picture" else evaluated(task, seed)
    return {task: {arm: found[prefix + question] for arm, prefix in ARMS.items()}}


def whole(task: str) -> bool:
    """Whether the weights of a task are here."""
    folder, parts = place_of(TASKS[task].weights), ("gpt", "unet", "vae", "vocoder")
    if not (folder / "pipeline.json").is_file():
        return False
    return all((part_folder(folder, x) / "config.json").is_file() for x in parts)


def follows(m: dict[str, float]) -> bool:
    """Whether a task is done: the sounds follow what was asked, the control's not."""
    return m["control"] < m["value"] - 0.2 and m["value"] <= m["clean"] + 0.05


for name in filter(whole, ASKED):
    claim = Claim(
        name,
        "sounds follow what was asked, and not what was asked for others",
        ASKED[name][1],
        follows,
        control="control",
    )
    experiment(claim)(partial(task_effect, name))


# --------------------------------------------------------------------------------------
# Effects alone, and effects with music


@torch.no_grad()
def heard(seed: int, music: float, split: str, n: int) -> tuple[Conditions, Tensor]:
    """T5's states of n captions, and the LOA (n, 16, D) of their clips."""
    world = SoundWorld(split, seed=1700 + seed, pairs=0.0, music=music)
    captions, loa = [world.caption(i) for i in range(n)], []
    mae = pipe().audiomae
    for i in range(0, n, 8):
        waves = torch.stack([world[j].wave for j in range(i, min(i + 8, n))])
        loa.append(mae.loa(audio.log_mel(waves), mae.config.pool_for(16)))
    states, mask = map(
        torch.cat,
        zip(*(pipe().text.encode(captions[i : i + 64]) for i in range(0, n, 64))),
    )
    assert not mask[:, LONGEST:].any()
    told = {"text": Context(states[:, :LONGEST], mask[:, :LONGEST])}
    return told, torch.cat(loa)


def rows(told: Conditions, i: Tensor) -> Conditions:
    """The conditions of some items."""
    return {name: Context(c.sequence[i], c.mask[i]) for name, c in told.items()}


def learned(
    seed: int, kinds: list[tuple[Conditions, Tensor]], share: list[int]
) -> LOARegressor:
    """A small regressor, trained on so many clips of each kind in a batch."""
    torch.manual_seed(seed)
    width = kinds[0][0]["text"].sequence.shape[2]
    model = LOARegressor(replace(SMALL, condition_dims=(width,)))

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        drawn = []
        for (told, y), n in zip(kinds, share):
            i = torch.randperm(len(y), generator=generator)[:n]
            some = rows(told, i)["text"]
            drawn.append((some.sequence, some.mask, y[i]))
        states, mask, y = map(torch.cat, zip(*drawn))
        keep = torch.zeros(len(y), SMALL.n_tokens, dtype=torch.bool)
        return {"loa": y, "keep": keep, **to_batch({"text": Context(states, mask)})}

    recipe = Recipe(STEPS, sum(share), LR, ema=0.98, muon=("linear",))
    fit(model, batch, recipe, seed, progress=False)
    return model.eval()


@experiment(
    Claim(
        "shared",
        "a regressor that learns tunes beside effects errs less on unseen effects than "
        "one that sees as many effects and no tunes",
        "squared error over the variance of the LOA of unseen effects",
        lambda m: (
            m["16 effects, 16 tunes"] < m["16 effects"]
            and m["16 effects, 16 tunes"] < m["16 effects, 16 tunes, captions shuffled"]
        ),
        control="16 effects, 16 tunes, captions shuffled",
        chance=1.0,
    )
)
@torch.no_grad()
def shared(seed: int) -> Measured:
    """Small regressors that learn effects, alone and beside tunes, at equal steps."""
    effects, tunes = (heard(seed, m, "train", N_TRAIN) for m in (0.0, 1.0))
    told, loa = heard(seed, 0.0, "test", N_TEST)
    mean = torch.cat([effects[1], tunes[1]]).mean(dim=0)
    vectors = torch.cat([effects[1], tunes[1]]).sub(mean).flatten(0, 1)
    axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors[:, -DIM:]
    scale = (vectors @ axes).std()
    component = lambda x: (x - mean) @ axes / scale
    effects, tunes = ((c, component(y)) for c, y in (effects, tunes))
    y = component(loa)
    spread = (y - effects[1].mean(dim=0)).square().mean()
    order = torch.arange(N_TRAIN).roll(1)
    arms = {
        "32 effects": ([effects], [32]),
        "16 effects": ([effects], [16]),
        "16 effects, 16 tunes": ([effects, tunes], [16, 16]),
        "16 effects, 16 tunes, captions shuffled": (
            [effects, (rows(tunes[0], order), tunes[1])],
            [16, 16],
        ),
    }
    found = {}
    for arm, (kinds, share) in arms.items():
        with torch.enable_grad():
            model = learned(seed, kinds, share)
        found[arm] = float((model.generate(told) - y).square().mean() / spread)
    return {"shared": found}


# --------------------------------------------------------------------------------------
# What measures are blind to


def one_for_each_class(scenes: Scenes) -> Tensor:
    """The first clip of its class in place of each clip (n, N)."""
    labels = scenes.labels[:, 0].tolist()
    first = {label: labels.index(label) for label in labels}
    return scenes.waves[[first[label] for label in labels]]


def spoilt(scenes: Scenes, seed: int) -> dict[str, Tensor]:
    """Clean renders (n, N), and sounds that are wrong in one way each."""
    waves = scenes.waves
    generator = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.randn(waves.shape, generator=generator).clamp(-3, 3)
    return {
        "clean renders": waves,
        "one clip for each class": one_for_each_class(scenes),
        "played backwards": waves.flip(1),
        "20 dB softer": 0.1 * waves,
        "renders of other captions": scenes.shuffled(seed).waves,
        "white noise": noise,
    }


def sees_repeats_alone(m: dict[str, float]) -> bool:
    """Whether a distance sees that clips repeat, and not that captions are ignored."""
    return (
        m["renders of other captions"] < 1.01 * m["clean renders"]
        and m["one clip for each class"] > 1.5 * m["clean renders"]
    )


FOOLED: dict[str, tuple[str, str, Callable[[dict[str, float]], bool]]] = {
    "fooled_class": (
        "the class judge sees nothing wrong with one clip for each class, and accepts "
        "most clips that are played backwards",
        "share of sounds whose class is right",
        lambda m: (
            m["one clip for each class"] > m["clean renders"] - 0.02
            and m["played backwards"] > 0.75
        ),
    ),
    "fooled_kl": (
        "the KL divergence of its probabilities sees nothing wrong with one clip for "
        "each class",
        "KL in nats from the clean render's classes",
        lambda m: m["one clip for each class"] < 0.01 * m["renders of other captions"],
    ),
    "fooled_clap": (
        "the CLAP score takes off more for clips 20 dB too soft than for one clip for "
        "each class",
        "cosine of sound and caption",
        lambda m: (
            m["20 dB softer"]
            < m["one clip for each class"]
            < m["clean renders"]
            > m["renders of other captions"]
        ),
    ),
    "fooled_frechet": (
        "the Fréchet distance sees that clips repeat and not that captions are ignored",
        "squared Fréchet distance in the judge's features",
        sees_repeats_alone,
    ),
    "fooled_frechet_clap": (
        "the Fréchet distance in the embeddings of CLAP sees and misses the same",
        "squared Fréchet distance in CLAP's embeddings",
        sees_repeats_alone,
    ),
    "fooled_attributes": (
        "what is told in closed form sees one clip for each class, and finds little "
        "wrong with clips that are played backwards",
        "share of pitch, count, speed and loudness that is right",
        lambda m: (
            m["one clip for each class"] < m["clean renders"] - 0.1
            and m["played backwards"] > m["clean renders"] - 0.05
        ),
    ),
}


@experiment(
    *(
        Claim(name, says, unit, holds, control="white noise")
        for name, (says, unit, holds) in FOOLED.items()
    )
)
def fooled(seed: int) -> Measured:
    """Six measures of clean renders and of sounds that are wrong on purpose."""
    draw = partial(metrics.held_out_scenes, judge(), N_FOOLED, seconds=SECONDS)
    scenes, others = draw(seed, n_events=1), draw(seed + 50, n_events=1).waves
    heard_of = {"": judge().embed, "_clap": partial(metrics.embeddings, listener())}
    goal = {name: embed(others) for name, embed in heard_of.items()}
    found: Measured = {name: {} for name in FOOLED}
    for arm, waves in spoilt(scenes, seed).items():
        own = metrics.attributes(waves, scenes.events)
        values = {
            "class": metrics.judged(judge(), waves, scenes.labels)["class"].mean(),
            "kl": metrics.class_kl(judge(), waves, scenes.waves).mean(),
            "clap": metrics.cosines(listener(), waves, scenes.captions).mean(),
            "attributes": torch.stack(list(own.values())).nanmean(dim=0).nanmean(),
        }
        for name, embed in heard_of.items():
            values[f"frechet{name}"] = frechet_distance(embed(waves), goal[name])
        for name, value in values.items():
            found[f"fooled_{name}"][arm] = float(value)
    return found


# --------------------------------------------------------------------------------------
# Candidates, and standard errors


@experiment(
    Claim(
        "candidates",
        "the more candidates CLAP chooses from, the more of what was asked for is "
        "there, by judges that did not choose",
        "share of what a caption asks for",
        lambda m: (
            m["1"] < m["2 ranked"] < m["4 ranked"] < m["8 ranked"]
            and abs(m["8 by chance"] - m["1"]) < 0.03
        ),
        control="8 by chance",
        ceiling=1.0,
    ),
    Claim(
        "candidates_own",
        "the CLAP that chose sees a larger gain than a CLAP that did not",
        "gain in cosine of 8 candidates over 1",
        lambda m: m["by the CLAP that chose"] > m["by a CLAP that was trained apart"],
    ),
    Claim(
        "errors",
        "counting eight sounds of one caption as eight captions makes the standard "
        "error too small",
        "standard error of the share of what is asked for",
        lambda m: (
            m["by caption"] > 1.3 * m["as if all were independent"]
            and m["by caption, answers shuffled"]
            < 1.15 * m["as if all were independent"]
        ),
        control="by caption, answers shuffled",
    ),
)
@torch.no_grad()
def candidates(seed: int) -> Measured:
    """Eight sounds for each of 72 captions, of which CLAP chooses one."""
    n, k = N_CAPTIONS, N_CANDIDATES
    scenes = metrics.held_out_scenes(judge(), n, 300 + seed, SECONDS, 1)
    each = [i for i in range(n) for _ in range(k)]
    often = Scenes(
        [scenes.captions[i] for i in each],
        scenes.waves[each],
        scenes.labels[each],
        [scenes.events[i] for i in each],
    )
    waves = made(often.captions, 10_000 * (seed + 1))
    right = share_right(waves, often).view(n, k)
    own, apart = (
        metrics.cosines(clap, waves, often.captions).view(n, k)
        for clap in (pipe().clap, listener())
    )
    chosen = {m: own[:, :m].argmax(dim=1, keepdim=True) for m in (2, 4, 8)}
    first = torch.zeros(n, 1, dtype=torch.long)
    picked = lambda x, i: float(x.gather(1, i).mean())
    shares = {"1": picked(right, first)}
    shares |= {f"{m} ranked": picked(right, i) for m, i in chosen.items()}
    generator = torch.Generator().manual_seed(seed)
    anyone = torch.randint(k, (n, 1), generator=generator)
    shares["8 by chance"] = picked(right, anyone)
    shares["8, the best by the judges"] = float(right.amax(dim=1).mean())
    gain = lambda x: picked(x, chosen[8]) - picked(x, first)
    mixed = right.flatten()[torch.randperm(n * k, generator=generator)].view(n, k)
    by_caption = lambda x: metrics.standard_error(x.mean(dim=1))
    return {
        "candidates": shares,
        "candidates_own": {
            "by the CLAP that chose": gain(own),
            "by a CLAP that was trained apart": gain(apart),
        },
        "errors": {
            "as if all were independent": metrics.standard_error(right.flatten()),
            "by caption": by_caption(right),
            "by caption, answers shuffled": by_caption(mixed),
        },
    }


# --------------------------------------------------------------------------------------
# Edits


def level(waves: Tensor) -> Tensor:
    """The level of each frame in decibels, (n, T)."""
    power = audio.log_mel(waves)[:, 0].mul(2).logsumexp(dim=2)
    return audio.decibels(power) / 2


def alike(a: Tensor, b: Tensor) -> float:
    """The mean correlation of the levels (n, T) of two sets of sounds over time."""
    rows_of = (level(x) - level(x).mean(dim=1, keepdim=True) for x in (a, b))
    return float(torch.cosine_similarity(*rows_of, dim=1).mean())


def to_edit(seed: int) -> tuple[Scenes, Scenes]:
    """Recordings, and scenes of other classes whose captions they shall follow."""
    scenes = metrics.held_out_scenes(judge(), 4 * N_EDITED, 500 + seed, SECONDS, 1)
    there, wanted = list(range(N_EDITED)), []
    for i in there:
        taken = (j for j in range(N_EDITED, 4 * N_EDITED) if j not in wanted)
        wanted.append(next(j for j in taken if scenes.labels[j] != scenes.labels[i]))
    cut = lambda i: Scenes(
        [scenes.captions[j] for j in i], scenes.waves[i], scenes.labels[i]
    )
    return cut(there), cut(wanted)


def edited(waves: Tensor, captions: list[str], strength: float, first: int) -> Tensor:
    """Recordings (n, N), edited with seeds from `first` on."""
    some = range(0, len(waves), 16)
    parts = ((i, waves[i : i + 16], captions[i : i + 16]) for i in some)
    edit = partial(pipe().edit, strength=strength, progress=False)
    return torch.cat([edit(x, told, seed=first + i) for i, x, told in parts])


@experiment(
    Claim(
        "edit_caption",
        "the stronger an edit, the more it follows the new caption",
        "share of sounds whose class is the new caption's",
        lambda m: m["0"] < 0.1 and m["0.4"] < m["0.6"] < m["0.8"] <= m["1"],
        control="0",
        ceiling=1.0,
    ),
    Claim(
        "edit_recording",
        "the stronger an edit, the less of the recording's course is left, and at 0.4 "
        "more than in an unrelated recording",
        "correlation of the level over time with the recording's",
        lambda m: (
            m["0"] > m["0.2"] > m["0.4"] > m["0.6"] > m["0.8"]
            and m["0.4"] > m["from another recording, 0.8"] + 0.1
        ),
        control="from another recording, 0.8",
        ceiling=1.0,
    ),
)
def edits(seed: int) -> Measured:
    """Recordings that are changed to other captions, more or less strongly."""
    recorded, wanted = to_edit(seed)
    found: Measured = {"edit_caption": {}, "edit_recording": {}}
    for strength in STRENGTHS:
        waves = edited(recorded.waves, wanted.captions, strength, 100 * seed)
        arm = f"{strength:g}"
        right = metrics.judged(judge(), waves, wanted.labels)["class"]
        found["edit_caption"][arm] = float(right.mean())
        found["edit_recording"][arm] = alike(waves, recorded.waves)
        if strength == 0.8:
            control = alike(waves, recorded.waves.roll(1, dims=0))
    found["edit_recording"]["from another recording, 0.8"] = control
    return found


@experiment(
    Claim(
        "gap",
        "what fills a gap is nearer to what was there if the rest of the recording is "
        "known",
        "difference of the mean spectrum in the gap from the recording's, dB",
        lambda m: (
            m["inpainted"] < m["generated alone and pasted"]
            and m["inpainted, each step 4 times"] < m["generated alone and pasted"]
        ),
        control="generated alone and pasted",
    )
)
def gaps(seed: int) -> Measured:
    """Recordings of steady sounds whose middle is filled in."""
    world, chosen, i = SoundWorld("test", seed=700 + seed, pairs=0.0), [], 0
    while len(chosen) < N_EDITED:
        if world.scene(i).events[0].name in STEADY:
            chosen.append(i)
        i += 1
    waves = torch.stack([world[i].wave for i in chosen])
    captions = [world.caption(i) for i in chosen]
    inside = slice(round(100 * START) + 4, round(100 * END) - 4)  # frames

    def off(filled: Tensor) -> float:
        means = (audio.log_mel(x)[:, 0, inside].mean(dim=1) for x in (filled, waves))
        a, b = means
        return float(audio.decibels((a - b).abs()).mean())

    fill = lambda **more: torch.cat(
        [
            pipe().inpaint(
                waves[i : i + 8], captions[i : i + 8], START, END,
                seed=1000 * seed + i, progress=False, **more,
            )
            for i in range(0, N_EDITED, 8)
        ]
    )  # fmt: skip
    return {
        "gap": {
            "inpainted": off(fill()),
            "inpainted, each step 4 times": off(fill(resample=4)),
            "generated alone and pasted": off(made(captions, 1000 * seed)),
        }
    }
