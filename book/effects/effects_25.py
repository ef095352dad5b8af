"""The effects of chapter 25: any sense in, any sense out, and what each part is for.

Classes are judged by networks that none of the parts has met: the shipped judge hears
sounds, a small one trained here sees pictures. Scenes of the test split have
combinations of attributes that no part was trained on. Ceilings of 1 are the largest
possible share, not measured. The matrix is that of the weights that ship, one
training, on three draws of scenes; the other effects train anew with each seed.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from effects import Claim, Measured, experiment
from torch import Tensor, nn

from minilib.audio import SAMPLE_RATE
from minilib.classifier import Classifier
from minilib.cli import shipped_judge, shipped_weights
from minilib.folders import load_part
from minilib.peers import nextgpt
from minilib.peers.nextgpt import (
    MODES,
    REQUESTS,
    Decoders,
    Dialogues,
    NextGPT,
    describe_event,
    draw_pictures,
    perceive,
    told,
)
from minilib.peers.text_ldm import SAMPLING, TextLDM, TextToAudio
from minilib.soundworld import CLASSES, SENSES, SoundWorld, plain
from minilib.training import Recipe, fit
from minilib.training.fingerprints import fingerprint, weights

N_SCENES, N_ASKED = 1500, 58  # scenes of training; of the test
STEPS = 500  # of stage 2 in `alignment`; the weights that ship took more
JUDGE_STEPS = 300
STAGES_OF_JOINTS = ("input", "output", "instructions")
NAMES = tuple(CLASSES)


@functools.cache
def part(name: str) -> nn.Module:
    """A part that ships: text, vae or vocoder of `tiny`, or ImageBind, `bind`."""
    folder = shipped_weights()
    folder = folder.parent / "picture" if name == "bind" else folder
    return load_part(folder, name, torch.float32)


@functools.cache
def decoder(name: str) -> TextLDM:
    """A decoder that ships, and that no arm trains: it plays ("audio"), the weights of
    `text_ldm`, or draws ("image"), those of `nextgpt`.
    """
    folder = "text_ldm/unet" if name == "audio" else "nextgpt/icons"
    folder = shipped_weights().parent / "peers" / folder
    return TextLDM.from_pretrained(folder, dtype=torch.float32)


@functools.cache
def decoders() -> Decoders:
    """The decoders' own encoders."""
    return Decoders(part("bind"), part("text"))


class Eye(nn.Module):
    """Sees which class a picture shows: a small network, trained on pictures of scenes
    that no other part has seen.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 16), (16, 32), (32, 64))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b))
            for a, b in sizes
        )
        self.head = nn.Linear(2 * 64, len(NAMES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of pictures (B, 3, 32, 32)."""
        for block in self.blocks:
            x = F.max_pool2d(F.relu(block(x)), 2)
        x = x.flatten(2)
        return self.head(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch["x"]), batch["label"])


def coarse(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 32, 32) as the decoder's pixels can show them."""
    small = F.adaptive_avg_pool2d(pictures, nextgpt.PIXELS)
    return F.interpolate(small, scale_factor=2, mode="bilinear")


@functools.cache
def eye() -> Eye:
    """The judge of pictures, as coarse as drawn ones, with a little of their noise."""
    torch.manual_seed(0)
    model, world = Eye(), SoundWorld("train", 9025, pairs=0.0)
    scenes = [world.scene(i) for i in range(N_SCENES)]
    x = coarse(torch.stack([SENSES["image"](scene) for scene in scenes]))
    labels = torch.tensor([NAMES.index(scene.events[0].name) for scene in scenes])

    def batch(g: torch.Generator) -> dict[str, Tensor]:
        i = torch.randint(len(x), (64,), generator=g)
        noise = 0.05 * torch.randn(x[i].shape, generator=g)
        return {"x": x[i] + noise, "label": labels[i]}

    recipe = Recipe(JUDGE_STEPS, 64, 3e-3, warmup=20)
    fit(model, batch, recipe, progress=False)
    return model


def seen(states: Tensor, seed: int) -> list[str]:
    """The classes of the pictures that a decoder draws from conditions (B, 1, D)."""
    drawn, judge = draw_pictures(decoder("image"), states, seed), eye()
    with torch.no_grad():
        return [NAMES[k] for k in judge(drawn).argmax(dim=1).tolist()]


@torch.no_grad()
def heard(states: Tensor, seed: int) -> list[str]:
    """The classes of the sounds that a decoder makes from conditions (B, S, D)."""
    judge = Classifier.from_pretrained(shipped_judge(), dtype=torch.float32)
    pipe = TextToAudio(decoder("audio"), part("text"), part("vae"), part("vocoder"))
    none = {"text": part("text").encode([""]).repeat(len(states))}
    n = round(pipe.seconds * SAMPLE_RATE)
    g = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(states))]
    read = {"text": Decoders.read(states)}
    z0 = pipe.sample(read, none, n, SAMPLING, g)
    waves = torch.cat([pipe.decode(z, n) for z in z0.split(16)])
    return [judge.config.classes[k] for k in judge.hear(waves).tolist()]


JUDGES = {"image": seen, "audio": heard}


@functools.cache
def senses() -> tuple:
    """The scenes of training, as ImageBind perceives them."""
    return perceive(part("bind"), N_SCENES, 0)


@functools.cache
def asked(seed: int) -> tuple:
    """The scenes of the test."""
    return perceive(part("bind"), N_ASKED, seed, "test")


def finished() -> NextGPT:
    """The weights that ship, after all stages."""
    folder = shipped_weights().parent / "peers/nextgpt/nextgpt"
    return NextGPT.from_pretrained(folder, dtype=torch.float32)


def begun(seed: int) -> NextGPT:
    """The same before stage 2: LoRA silent, signals and output projections new."""
    model = finished()
    torch.manual_seed(seed)
    fresh = NextGPT(model.config).state_dict()
    begin = (*nextgpt.STAGES["output"], "lora")
    name = lambda k: "lora" if k.endswith((".A", ".B")) else k
    new = {k: x for k, x in fresh.items() if name(k).startswith(begin)}
    model.load_state_dict(model.state_dict() | new)
    return model


def stage(
    model: NextGPT, name: str, seed: int, steps: int, align: str = "own"
) -> dict[str, float]:
    """Train one stage; the mean of its last losses by name.

    The alignment loss compares with the condition of the "own" caption, with that of
    "another" one, or is left out ("none").
    """
    batches = Dialogues(model, decoders(), name, senses())
    if align == "another":
        g = torch.Generator().manual_seed(seed)
        other = torch.randperm(len(batches.row), generator=g)
        batches.targets = {x: y[other] for x, y in batches.targets.items()}
    if align == "none":
        batches.targets = {}
    recipe = replace(nextgpt.RECIPES[name], steps=steps)
    curves = fit(model.learn(name), batches, recipe, seed, name, progress=False)
    return {key: float(curve[-50:].mean()) for key, curve in curves.items()}


@torch.no_grad()
def answers(model: NextGPT, given: str, out: str, seed: int) -> tuple[list, list]:
    """What a model says, and the conditions that its signals stand for, about all
    scenes of the test, given as text, picture or sound.
    """
    events, vectors = asked(seed)
    rng = np.random.default_rng([seed, 25])
    wordings = REQUESTS[out]
    prompts = []
    for event in events:
        text = describe_event(event, rng) if given == "text" else None
        prompts.append(model.prompt(wordings[rng.integers(len(wordings))], text))
    zero = torch.zeros(len(events), model.config.sensed)
    return model.answer(prompts, zero if given == "text" else vectors[given])


def right(model: NextGPT, given: str, out: str, seed: int) -> dict[str, float]:
    """How often the answer is of the right class, and of the class of another scene."""
    events = asked(seed)[0]
    ids, made = answers(model, given, out, seed)
    if out == "text":
        words = [model.write(row) for row in ids]
        found = [next((n for n in NAMES if x.startswith(plain(n))), "") for x in words]
    else:
        found = shown(out, [m.get(out) for m in made], seed)
    names = [event.name for event in events]
    other = names[1:] + names[:1]
    share = lambda them: sum(a == b for a, b in zip(found, them)) / len(names)
    return {"right": share(names), "another": share(other)}


def shown(out: str, states: list[Tensor | None], seed: int) -> list[str]:
    """The classes of what a decoder makes from conditions; "" where there is none."""
    some = [i for i, x in enumerate(states) if x is not None]
    found = [""] * len(states)
    if some:
        stacked = torch.stack([states[i] for i in some])
        for i, name in zip(some, JUDGES[out](stacked, seed)):
            found[i] = name
    return found


def ceiling(out: str, seed: int) -> float:
    """How often a decoder is right that reads the caption itself."""
    events = asked(seed)[0]
    states = getattr(decoders(), out)([told(event) for event in events])
    found = shown(out, list(states), seed)
    return sum(a == event.name for a, event in zip(found, events)) / len(events)


NAMED = {"text": "text", "image": "picture", "audio": "sound"}
SHARE = {
    "unit": "share of unseen scenes whose class is right",
    "control": "judged by another scene",
    "chance": 1 / len(NAMES),
    "ceiling": 1.0,
}
ALIGNED = {
    "unit": "share of captions whose class is right",
    "control": "other captions' conditions",
    "chance": 1 / len(NAMES),
    "ceiling": 1.0,
}


def above(m: dict[str, float]) -> bool:
    """Whether all three cells of a column exceed half of what is possible: what the
    decoder reaches that is told the caption, or 1.
    """
    possible = m.get("the decoder told the caption", 1.0)
    return min(m[f"from {x}"] for x in NAMED.values()) > possible / 2


def needed(m: dict[str, float]) -> bool:
    """Whether only the aligned arm is far above chance."""
    return m["aligned"] > 0.3 and max(list(m.values())[1:]) < 0.12


@experiment(
    Claim("to_text", "text, picture and sound are told in words", holds=above, **SHARE),
    Claim("to_picture", "text, picture and sound are drawn", holds=above, **SHARE),
    Claim("to_sound", "text, picture and sound are played", holds=above, **SHARE),
    Claim(
        "signals",
        "signals are given when they are asked for, and not with words alone",
        "share of answers",
        lambda m: min(list(m.values())[:2]) >= 0.95 and m["asked for words"] <= 0.05,
        control="asked for words",
        ceiling=1.0,
    ),
)
def matrix(seed: int) -> Measured:
    """The 3 by 3 matrix of what goes in and what comes out, and the signals."""
    model = finished()
    found: Measured = {}
    for out in MODES:
        row = found.setdefault(f"to_{NAMED[out]}", {})
        cells = {given: right(model, given, out, seed) for given in MODES}
        row |= {f"from {NAMED[given]}": cells[given]["right"] for given in MODES}
        row["judged by another scene"] = sum(c["another"] for c in cells.values()) / 3
        if out != "text":
            row["the decoder told the caption"] = ceiling(out, seed)
    return found | {"signals": signals(model, seed)}


def signals(model: NextGPT, seed: int) -> dict[str, float]:
    """How often all signals of what is asked for are given, and not all those of the
    other kind; for words, how often any is.
    """
    exact: dict[str, list[bool]] = {out: [] for out in MODES}
    for given in MODES:
        for out in MODES:
            for row, made in zip(*answers(model, given, out, seed)):
                only = set(made) == ({out} - {"text"})
                some = any(k >= len(model.tokens) for k in row)
                exact[out].append(some if out == "text" else only)
    share = {out: sum(x) / len(x) for out, x in exact.items()}
    return {
        "asked for a picture": share["image"],
        "asked for a sound": share["audio"],
        "asked for words": share["text"],
    }


@experiment(
    Claim(
        "drawn",
        "without the alignment loss, pictures are near chance",
        holds=needed,
        **ALIGNED,
    ),
    Claim(
        "played",
        "without the alignment loss, sounds are near chance",
        holds=needed,
        **ALIGNED,
    ),
    Claim(
        "text_loss",
        "the loss of the text is as low without the alignment loss",
        "nats a word or signal",
        lambda m: m["no alignment loss"] < m["aligned"] + 0.02,
    ),
)
def alignment(seed: int) -> Measured:
    """The output side trained with its alignment loss, without, and shuffled."""
    arms = {"aligned": "own", "no alignment loss": "none"}
    arms |= {"other captions' conditions": "another"}
    found: Measured = {"drawn": {}, "played": {}, "text_loss": {}}
    for name, align in arms.items():
        model = begun(seed)
        losses = stage(model, "output", seed, STEPS, align)
        for effect, out in (("drawn", "image"), ("played", "audio")):
            found[effect][name] = right(model, "text", out, seed)["right"]
        found["text_loss"][name] = losses["text"]
    return found


def frozen(model: NextGPT, fresh: bool = False) -> dict[str, str]:
    """The fingerprints of all that must not change; `fresh`: of the parts on disk."""
    load, decode = (x.__wrapped__ if fresh else x for x in (part, decoder))
    parts = {x: load(x) for x in ("bind", "text", "vae", "vocoder")}
    parts |= {x: decode(x) for x in ("audio", "image")}
    found = {name: fingerprint(weights(x)) for name, x in parts.items()}
    held = {
        k: x for k, x in model.state_dict().items() if k.startswith(("llm", "words"))
    }
    own = {
        k.replace(".", "_"): x for k, x in held.items() if k[-2:] not in (".A", ".B")
    }
    return found | {"llm": fingerprint(weights(nn.ParameterDict(own)))}


@experiment(
    Claim(
        "frozen",
        "the parts that are frozen stay as they were, bit by bit",
        "parts whose fingerprint changed, of 7",
        lambda m: m["after three stages"] == 0 and m["one tensor moved"] > 0,
        control="one tensor moved",
    ),
    Claim(
        "trained",
        "a small share of the weights is trained",
        "share of all weights, language model and decoders included",
        lambda m: m["instructions"] < 0.06,
    ),
)
def counted(seed: int) -> Measured:
    """Fingerprints before and after a few steps of every stage, and the share that is
    trained.
    """
    model = begun(seed)
    before = frozen(model, fresh=True)
    for name in STAGES_OF_JOINTS:
        stage(model, name, seed, 20)
    after, moved = frozen(model), copy.deepcopy(model)
    with torch.no_grad():
        next(moved.llm.h.parameters()).add_(1e-3)
    differ = lambda a, b: float(sum(a[k] != b[k] for k in a))
    parts = [part(x) for x in ("bind", "text", "vae", "vocoder")]
    parts += [decoder(x) for x in ("audio", "image")]
    everything = sum(p.numel() for x in (*parts, model) for p in x.parameters())
    trained = {}
    for name in STAGES_OF_JOINTS:
        learned = model.learn(name).parameters()
        trained[name] = sum(p.numel() for p in learned if p.requires_grad)
    return {
        "frozen": {
            "after three stages": differ(before, after),
            "one tensor moved": differ(before, frozen(moved)),
        },
        "trained": {name: n / everything for name, n in trained.items()},
    }
