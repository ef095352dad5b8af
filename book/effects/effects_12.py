"""The effects of chapter 12: ImageBind and LanguageBind.

The networks are small (width 64, two layers), so that many of them are trained in
minutes. Scenes are single events. Pictures and captions learn together from one set of
scenes, sounds meet them in another; all are tested on combinations that training never
had. A seed changes weights and batches.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, experiment
from torch import Tensor, nn

from minilib import audio, judges
from minilib.audioldm2 import AudioLDM2
from minilib.bind import (
    FILM,
    HEARD,
    TRACE,
    BindConfig,
    Binding,
    ImageBind,
    LanguageBind,
    TextConfig,
    small,
)
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.soundworld import CLASSES, Event, Scene, SoundWorld, describe, picture
from minilib.tokenizer import Tokenizer
from minilib.training import Recipe, fit

N_SEEN, N_HEARD, N_TEST = 3000, 2000, 400
SIGHT, MEET, LR, BATCH = 500, 300, 3e-3, 64
SMALL = BindConfig(
    dim=64, text=TextConfig(1000, 64, 2, 4, 80), image=small(64, 2, **FILM),
    audio=small(64, 2, rank=4, **HEARD), depth=small(64, 1), thermal=small(64, 1),
    motion=small(64, 1, **TRACE), alpha=64.0,
)  # fmt: skip
NAMES = list(CLASSES)
OTHER = {"low": "high", "high": "low"}
CLASS = {
    "unit": "share of unseen sounds whose class is right", "chance": 1 / len(NAMES),
    "ceiling": 1.0,
}  # fmt: skip


def told(scene: Scene, event: Event | None = None, wording: int = 1) -> str:
    """The caption of a scene, or of one event in its place."""
    scene = replace(scene, events=(event,)) if event else scene
    return describe(scene, np.random.default_rng([scene.seed, wording]))


def mels(world: SoundWorld, indices: range) -> Tensor:
    """Log-mels (n, 1, 256, 64) of some clips."""
    some = [indices[i : i + 8] for i in range(0, len(indices), 8)]
    waves = (torch.stack([world[i].wave for i in few]) for few in some)
    return torch.cat([audio.log_mel(wave) for wave in waves])


@functools.cache
def tokenizer() -> Tokenizer:
    """A tokenizer of the training captions."""
    world = SoundWorld("train", pairs=0.0)
    return Tokenizer.train(world.caption(i) for i in range(N_SEEN))


def scenes(indices: range) -> dict[str, Tensor]:
    """Pictures of training scenes, and two captions of each."""
    world = SoundWorld("train", pairs=0.0)
    every = [world.scene(i) for i in indices]
    batch = {"image": torch.stack([picture(scene) for scene in every])}
    for name, wording in (("", 1), ("other_", 3)):
        captions = [told(scene, wording=wording) for scene in every]
        ids, mask = tokenizer().encode(captions)
        batch |= {f"{name}ids": ids, f"{name}mask": mask}
    return batch


@functools.cache
def to_see() -> dict[str, Tensor]:
    """What pictures and captions learn from."""
    return scenes(range(N_SEEN))


@functools.cache
def to_hear() -> dict[str, Tensor]:
    """Other scenes, with their sounds."""
    indices = range(N_SEEN, N_SEEN + N_HEARD)
    heard = mels(SoundWorld("train", pairs=0.0), indices)
    return {**scenes(indices), "audio": heard}


@functools.cache
def unseen() -> dict:
    """Single events in combinations that training never had."""
    world = SoundWorld("test", pairs=0.0)
    every = [world.scene(i) for i in range(N_TEST)]
    return {
        "scenes": every, "audio": mels(world, range(N_TEST)),
        "image": torch.stack([picture(scene) for scene in every]),
        "class": torch.tensor([NAMES.index(x.events[0].name) for x in every]),
    }  # fmt: skip


@functools.cache
def examples() -> dict[str, list[str]]:
    """Up to twenty training captions of each class."""
    world, found, i = SoundWorld("train", pairs=0.0), {name: [] for name in NAMES}, 0
    while min(map(len, found.values())) < 8:
        scene, i = world.scene(i), i + 1
        name = scene.events[0].name
        if len(scene.events) == 1 and len(found[name]) < 20:
            found[name].append(told(scene))
    return found


def train(
    model: nn.Module, data: dict[str, Tensor], names: tuple[str, ...], steps: int,
    seed: int, lr: float = LR, shuffled: bool = False,
) -> None:  # fmt: skip
    """Train a model on some senses of some scenes."""
    n = len(data["image"])

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        i = torch.randperm(n, generator=generator)[:BATCH]
        batch = {name: data[name][i] for name in names}
        if shuffled:
            batch[names[0]] = batch[names[0]].roll(1, dims=0)
        return batch

    recipe = Recipe(steps=steps, batch_size=BATCH, lr=lr, warmup=30)
    fit(model, draw, recipe, seed=seed, progress=False)


@functools.cache
def sighted(seed: int, words: bool = True) -> ImageBind:
    """An ImageBind whose pictures and captions have learned together, with `words` also
    captions and their other wordings.
    """
    torch.manual_seed(seed)
    model = ImageBind(SMALL)
    others = ("other_ids", "other_mask") if words else ()
    train(model, to_see(), ("image", "ids", "mask", *others), SIGHT, seed)
    model.tokenizer = tokenizer()
    return model


class ByCaptions(ImageBind):
    """The towers of ImageBind with captions for a hub, so that only the hub differs."""

    hub = "text"

    def scale(self, sense: str) -> Tensor:
        return self.logit_scale.exp()


@functools.cache
def heard(
    seed: int,
    kind: type[Binding] = ImageBind,
    shuffled: bool = False,
    words: bool = True,
) -> Binding:
    """A model whose sounds have met pictures or captions."""
    torch.manual_seed(seed)
    model = kind(SMALL)
    model.load_state_dict(sighted(seed, words).state_dict())
    model.freeze("image", "text")
    model.logit_scale.requires_grad_(kind is ByCaptions)
    hub = ("image",) if kind is ImageBind else ("ids", "mask")
    train(model, to_hear(), (*hub, "audio"), MEET, seed, shuffled=shuffled)
    model.tokenizer = tokenizer()
    return model


@torch.no_grad()
def embedded(model: Binding, sense: str) -> Tensor:
    """The unseen scenes as a sense has them: (N_TEST, dim)."""
    return torch.cat([model.embed(sense, x) for x in unseen()[sense].split(100)])


@torch.no_grad()
def classes_right(model: Binding, sense: str = "audio") -> float:
    """How often the nearest class is the right one, a class being the mean of its
    captions.
    """
    means = [model.embed("text", x).mean(dim=0) for x in examples().values()]
    nearest = (embedded(model, sense) @ F.normalize(torch.stack(means)).T).argmax(dim=1)
    return float((nearest == unseen()["class"]).float().mean())


def changed(event: Event, what: str) -> Event | None:
    """An event with another pitch, or once instead of several times."""
    if what == "pitch":
        other = OTHER.get(event.pitch)
        return replace(event, pitch=other) if other else None
    return replace(event, count=1) if (event.count or 0) > 1 else None


@torch.no_grad()
def told_apart(model: Binding, what: str, sense: str = "audio") -> float:
    """How often a scene is nearer to its caption than to the same one with another
    pitch or count; low and high, or 2 to 4, count alike.
    """
    found = [(i, s.events[0]) for i, s in enumerate(unseen()["scenes"])]
    pairs = [(i, e, o) for i, e in found if (o := changed(e, what))]
    scene = unseen()["scenes"]
    right = model.embed("text", [told(scene[i], e) for i, e, _ in pairs])
    wrong = model.embed("text", [told(scene[i], o) for i, _, o in pairs])
    x = embedded(model, sense)[[i for i, *_ in pairs]]
    better = (((right - wrong) * x).sum(dim=1) > 0).float()
    kind = [e.pitch if what == "pitch" else e.count for _, e, _ in pairs]
    groups = [[k == value for k in kind] for value in sorted(set(kind), key=str)]
    return float(torch.stack([better[torch.tensor(g)].mean() for g in groups]).mean())


FITS = {
    "unit": "share of unseen sounds that are nearer to their caption than to the "
    "changed one",
    "chance": 0.5,
    "ceiling": 1.0,
}


@experiment(
    Claim(
        "emergent",
        "sounds find the names of their classes without ever having met a caption, if "
        "they have met pictures",
        holds=lambda m: (
            m["met pictures"] > 10 / len(NAMES)
            and m["met shuffled pictures"] < 3 / len(NAMES)
        ),
        control="met shuffled pictures",
        **CLASS,
    ),
    Claim(
        "pitch",
        "the pitch, which no picture shows, is found by sounds that met captions, not "
        "by those that met pictures",
        holds=lambda m: m["met captions"] > 0.65 and abs(m["met pictures"] - 0.5) < 0.1,
        control="met pictures",
        **FITS,
    ),
    Claim(
        "count",
        "the count, which pictures show, is found by both",
        holds=lambda m: min(m["met pictures"], m["met captions"]) > 0.6,
        control="met shuffled pictures",
        **FITS,
    ),
)
def hubs(seed: int) -> dict[str, dict[str, float]]:
    """Sounds after they have met pictures, shuffled pictures, or captions."""
    met = {
        "met pictures": heard(seed),
        "met shuffled pictures": heard(seed, shuffled=True),
        "met captions": heard(seed, ByCaptions),
    }
    shown = {"the pictures themselves": classes_right(sighted(seed), "image")}
    emergent = {name: classes_right(model) for name, model in met.items()}
    return {
        "emergent": emergent | shown,
        "pitch": {name: told_apart(model, "pitch") for name, model in met.items()},
        "count": {name: told_apart(model, "count") for name, model in met.items()},
    }


@experiment(
    Claim(
        "words",
        "captions that have only met pictures have forgotten the pitch; those that "
        "have also met their other wordings have not",
        holds=lambda m: m["met other wordings, too"] > m["met pictures only"] + 0.1,
        control="met pictures only",
        **FITS,
    )
)
def wordings(seed: int) -> dict[str, dict[str, float]]:
    """The pitch of sounds that met captions, after two trainings of the captions."""
    kinds = {"met other wordings, too": True, "met pictures only": False}
    found = {k: heard(seed, ByCaptions, words=words) for k, words in kinds.items()}
    return {"words": {k: told_apart(model, "pitch") for k, model in found.items()}}


RANKS = (0, 2, 4, 16)


@experiment(
    Claim(
        "lora",
        "a correction of rank 4 on the frozen tower of pictures names sounds nearly as "
        "well as training the whole of it",
        holds=lambda m: m["rank 4"] > 0.95 * m["all weights"],
        control="rank 0",
        **CLASS,
    ),
    Claim(
        "lora_weights",
        "it trains a tenth of the weights, or fewer",
        "weights of the tower of sounds that are trained",
        lambda m: m["rank 4"] < 0.1 * m["all weights"],
    ),
)
def ranks(seed: int) -> dict[str, dict[str, float]]:
    """LanguageBind's tower of sounds, adapted by corrections of several ranks."""
    right, trained = {}, {}
    for rank in (*RANKS, None):
        torch.manual_seed(seed)
        sizes = replace(SMALL, audio=replace(SMALL.audio, rank=rank or 0))
        model = LanguageBind(sizes).start_from(sighted(seed))
        tower, name = model.towers["audio"], f"rank {rank}"
        if rank is None:
            tower.requires_grad_(True)
            name = "all weights"
        train(model, to_hear(), ("ids", "mask", "audio"), MEET, seed)
        model.tokenizer = tokenizer()
        learned = [p for p in tower.parameters() if p.requires_grad]
        trained[name] = float(sum(p.numel() for p in learned))
        right[name] = classes_right(model)
    return {"lora": right, "lora_weights": trained}


@experiment(
    Claim(
        "forgetting",
        "captions that may move to meet a few sounds forget the pictures; frozen ones "
        "cannot",
        "share of unseen pictures whose class is right",
        lambda m: (
            m["text moves"] < m["before"] - 0.05 and m["text frozen"] == m["before"]
        ),
        control="text moves",
        chance=1 / len(NAMES),
        ceiling=1.0,
    ),
    Claim(
        "few_pairs",
        "what the captions forget buys little for the sounds",
        holds=lambda m: m["text moves"] < m["text frozen"] + 0.1,
        **CLASS,
    ),
)
def few(seed: int) -> dict[str, dict[str, float]]:
    """128 sounds with captions, for text that is frozen or moves."""
    pairs = {name: x[:128] for name, x in to_hear().items()}
    pictures = {"before": classes_right(sighted(seed), "image")}
    sounds = {}
    for name, frozen in (("text frozen", True), ("text moves", False)):
        torch.manual_seed(seed)
        model = ByCaptions(SMALL)
        model.load_state_dict(sighted(seed).state_dict())
        model.freeze("image", *(("text",) if frozen else ()))
        train(model, pairs, ("ids", "mask", "audio"), MEET // 2, seed)
        model.tokenizer = tokenizer()
        pictures[name] = classes_right(model, "image")
        sounds[name] = classes_right(model)
    return {"forgetting": pictures, "few_pairs": sounds}


N_PAINTED = 80  # pictures that are asked for a sound


@functools.cache
def shipped() -> tuple[AudioLDM2, ImageBind, Classifier]:
    """The pipeline, the ImageBind and the judge that ship."""
    folder = shipped_weights()
    known = ImageBind.from_pretrained(folder.parent / "picture" / "bind").float()
    judge = Classifier.from_pretrained(shipped_judge(), dtype=torch.float32)
    return AudioLDM2.from_pretrained(folder, device="cpu"), known, judge


@torch.no_grad()
def looked_at(world: SoundWorld, indices: range) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the sounds and the pictures of scenes, and their log-mels."""
    known, heard = shipped()[1], mels(world, indices)
    seen = torch.stack([picture(world.scene(i)) for i in indices])
    sounds = torch.cat([known.embed("audio", x) for x in heard.split(64)])
    return sounds, known.embed("image", seen), heard


@torch.no_grad()
def judged(loa: Tensor, events: list[Event], seed: int) -> tuple[float, float]:
    """The shares of sounds made from a LOA whose class is right, and whose pitch is, of
    those with one.
    """
    pipe, _, judge = shipped()
    right, pitches = [], []
    for start in range(0, len(loa), 20):
        some, told_of = loa[start : start + 20], events[start : start + 20]
        noise = torch.Generator().manual_seed(1000 * seed + start)
        z0 = pipe.sample(some, pipe.encode([""] * len(some)), generator=noise)
        waves = pipe.as_loud_as_told(pipe.decode(z0, pipe.n_samples()), some)
        for wave, event, found in zip(waves, told_of, judge.hear(waves).tolist()):
            right.append(judge.config.classes[found] == event.name)
            if event.pitch:
                pitches.append(judges.answers(wave, event)["pitch"])
    return sum(right) / len(right), sum(pitches) / len(pitches)


READ = 0.02  # temperature at which the memory of sounds is read


@experiment(
    Claim(
        "painted",
        "a memory of sounds and their LOA, asked with a picture, makes its sound",
        "share of sounds whose class is right",
        lambda m: m["picture"] > 0.5 and m["another picture"] < 0.15,
        control="another picture",
        chance=1 / len(NAMES),
        ceiling=1.0,
    ),
    Claim(
        "painted_pitch",
        "the pitch of what a picture makes is a guess, that of what a sound makes is "
        "not",
        "share of pitched sounds whose pitch, of three, is right",
        lambda m: m["picture"] < 0.45 and m["true LOA"] > 0.8,
        control="picture",
        chance=1 / 3,
        ceiling=1.0,
    ),
)
def painted(seed: int) -> dict[str, dict[str, float]]:
    """Sounds made from pictures by what was only ever shown sounds."""
    pipe, _, _ = shipped()
    e, seen, heard = looked_at(SoundWorld("train", 50 + seed, pairs=0.0), range(800))
    with torch.no_grad():
        loa = torch.cat([pipe.audiomae.loa(x) for x in heard.split(8)])
    y, x = loa.flatten(1), e - e.mean(0)
    W = torch.linalg.solve(x.T @ x + 0.3 * torch.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    whole = lambda y: y.view(len(y), *loa.shape[1:])
    remember = lambda q: whole((q @ e.T / READ).softmax(dim=1) @ y)
    world = SoundWorld("valid", seed, pairs=0.0)
    sounds, pictures, clips = looked_at(world, range(N_PAINTED))
    events = [world.scene(i).events[0] for i in range(N_PAINTED)]
    with torch.no_grad():
        true = torch.cat([pipe.audiomae.loa(x) for x in clips.split(8)])
    asked = {
        "picture": remember(pictures),
        "another picture": remember(pictures.roll(1, dims=0)),
        "picture, linear map": whole(y.mean(0) + (pictures - seen.mean(0)) @ W),
        "sound": remember(sounds),
        "sound, linear map": whole(y.mean(0) + (sounds - e.mean(0)) @ W),
        "true LOA": true,
    }
    found = {name: judged(x, events, seed) for name, x in asked.items()}
    return {
        "painted": {name: x for name, (x, _) in found.items()},
        "painted_pitch": {name: x for name, (_, x) in found.items()},
    }
