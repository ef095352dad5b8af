"""Make-An-Audio's pseudo prompts: captions for sounds that have none, and pairs of
sounds that are new in every batch (Huang et al., 2301.12661).

Experts propose captions for a sound and CLAP chooses one (distillation); then captioned
sounds are joined at random, with a caption made from both (dynamic reprogramming). What
learns from them is the transformer of `text_ldm`. Chapter 22 builds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minilib.arguments import MAX_SEED, check_path, check_whole
from minilib.clap import CLAP
from minilib.files import replacing_folder
from minilib.folders import load_part
from minilib.peers.text_ldm import (
    BORROWED,
    JOINED,
    RECIPE,
    SECONDS,
    JoinedClips,
    TextLDM,
    TextToAudio,
    latents,
    save_description,
)
from minilib.soundworld import CLASSES, SoundWorld, held_out_pairs, plain
from minilib.training import fit

__all__ = ["BORROWED", "TextToAudio", "train"]

# {a} is heard first; in one of the six its words come second
TEMPLATES = (
    "{a}, then {b}",
    "{a} and then {b}",
    "{a} before {b}",
    "first {a}, then {b}",
    "after {a}, {b}",
    "{b} after {a}",
)
ERRORS = (0.3, 0.5, 0.5)  # of the experts that caption the sounds for `train`
N_SOUNDS = 1500  # of each kind: single sounds, and short ones to be joined

Pair = tuple[str, str]  # the classes of two sounds, in the order in which they sound


def caption_of(pair: Pair, template: str) -> str:
    """The caption of two sounds, one after the other: "a bell rings after a dog barks".

    Chapter 22.
    """
    first, second = map(plain, pair)
    return template.format(a=first, b=second)


def chance_that(probability: float, generator: torch.Generator) -> bool:
    """True with this probability."""
    return bool(torch.rand((), generator=generator) < probability)


def one_of(some: Sequence, generator: torch.Generator):
    """One of several things, each equally likely."""
    return some[int(torch.randint(len(some), (), generator=generator))]


@dataclass(frozen=True)
class Expert:
    """A captioner that names the wrong class with a known probability; it stands for
    the models that caption or tag sounds in 2301.12661. Chapter 22.
    """

    error: float  # the probability of a wrong class, 0 to 1
    classes: tuple[str, ...]  # that it knows, each wrong one equally likely

    def __call__(self, names: Sequence[str], generator: torch.Generator) -> list[str]:
        """A proposed class for each sound, whose true classes are `names`."""
        proposed = []
        for name in names:
            others = [x for x in self.classes if x != name]
            wrong = chance_that(self.error, generator)
            proposed.append(one_of(others, generator) if wrong else name)
        return proposed


@torch.no_grad()
def chosen(clap: CLAP, waves: Tensor, proposals: Sequence[Sequence[str]]) -> list[int]:
    """The caption of each sound that is nearest to it for CLAP (2301.12661): argmax
    over k of cos(f(x), g(c_k)).

    Args:
        waves: (n, N).
        proposals: n lists of K captions.

    Returns:
        n numbers from 0 to K - 1. Chapter 22.
    """
    n, K = len(proposals), len(proposals[0])
    captions = [caption for some in proposals for caption in some]
    told = clap.encode(captions).sequence[:, 0].view(n, K, -1)
    heard = torch.cat([clap.embed_waves(some) for some in waves.split(16)])
    return torch.einsum("nkd,nd->nk", told, heard).argmax(dim=1).tolist()


def distil(
    clap: CLAP,
    waves: Tensor,
    names: Sequence[str],
    experts: Sequence[Expert],
    generator: torch.Generator,
) -> list[str]:
    """Pseudo captions' classes for sounds (n, N) without captions: every expert
    proposes one, CLAP chooses. Chapter 22.
    """
    proposed = list(zip(*(expert(names, generator) for expert in experts)))
    captions = [[plain(name) for name in some] for some in proposed]
    best = chosen(clap, waves, captions)
    return [some[k] for some, k in zip(proposed, best, strict=True)]


@dataclass(frozen=True)
class Sounds:
    """Encoded sounds and the classes that their captions name, right or wrong."""

    z0: Tensor  # (n, C, T/r, F/r)
    names: tuple[str, ...]


class Reprogrammed(JoinedClips):
    """Batches of `TextLDM`: single sounds, and pairs by dynamic reprogramming
    (2301.12661), each drawn again for every batch.

    Args:
        text: the frozen text encoder.
        singles, halves: whole sounds, and short ones of half their length.
        joined: the share of pairs in a batch, 0 to 1.
        fixed: how many pairs are drawn once and used for ever ("static"); None draws
            new ones.
        held_out: ordered pairs of classes that are never joined.
        seed: of the fixed pairs.

    Chapter 22.
    """

    def __init__(
        self, text: nn.Module, singles: Sounds, halves: Sounds, joined: float = JOINED,
        fixed: int | None = None, held_out: frozenset[Pair] = held_out_pairs(),
        seed: int = 0, batch_size: int = RECIPE.batch_size,
    ):  # fmt: skip
        self.text, self.batch_size, self.held_out = text, batch_size, held_out
        self.n_pairs = round(joined * batch_size)
        self.singles, self.halves, self.names = singles.z0, halves.z0, halves.names
        self.captions = [plain(name) for name in singles.names]
        self.empty = {"text": self.encode([""])}
        self.made: set[Pair] = set()  # every pair that was joined so far
        draw = torch.Generator().manual_seed(seed)
        self.fixed = [self.new_pair(draw) for _ in range(fixed or 0)]

    def pair(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """Two sounds, joined: z0 (1, C, T/r, F/r) and caption."""
        if self.fixed:
            return one_of(self.fixed, generator)
        return self.new_pair(generator)

    def new_pair(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """The same, from any two sounds whose classes differ and are not held out."""
        while True:
            i, j = torch.randint(len(self.names), (2,), generator=generator).tolist()
            pair = self.names[i], self.names[j]
            if pair[0] != pair[1] and pair not in self.held_out:
                break
        self.made.add(pair)
        told = caption_of(pair, one_of(TEMPLATES, generator))
        return torch.cat([self.halves[[i]], self.halves[[j]]], dim=2), told


def train(
    out: str | Path,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    weights: str | Path = "data/weights/tiny",
) -> Path:
    """Make the weights, `out/unet` in float16 and `out/pipeline.json`, from sounds
    whose captions three experts proposed and CLAP chose.

    Args:
        out: the folder to write, whole or not at all; what was there is replaced.
        seed: of sounds, weights and batches; a whole number >= 0.
        steps: None for those of the recipe.
        progress: show a bar.
        weights: the folder whose text encoder, CLAP, VAE and vocoder it uses.

    Raises:
        ValueError, FileNotFoundError: an argument is not as described.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    steps = RECIPE.steps if steps is None else check_whole("steps", steps, 1)
    out, weights = check_path("out", out), check_path("weights", weights)
    text, vae, clap = (
        load_part(weights, x, torch.float32) for x in ("text", "vae", "clap")
    )
    singles, halves = (
        pseudo_captioned(clap, vae, seconds, seed) for seconds in (SECONDS, SECONDS / 2)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextLDM.preset("tiny")
    batches = Reprogrammed(text, singles, halves, seed=seed)
    fit(model, batches, replace(RECIPE, steps=steps), seed, "make_an_audio", progress)
    with replacing_folder(out) as new:
        model.save_pretrained(new / "unet", dtype=torch.float16)
        parts = {x: weights / x for x in BORROWED}
        save_description(new, out, parts, "make_an_audio")
    return out


def pseudo_captioned(clap: CLAP, vae: nn.Module, seconds: float, seed: int) -> Sounds:
    """N_SOUNDS sounds of this length, encoded, with distilled captions."""
    world = SoundWorld("train", seed, seconds, pairs=0.0)
    names = [world.scene(i).events[0].name for i in range(N_SOUNDS)]
    experts = [Expert(error, tuple(CLASSES)) for error in ERRORS]
    draw, found = torch.Generator().manual_seed(seed), []
    for some in torch.arange(N_SOUNDS).split(64):
        waves = torch.stack([world[i].wave for i in some.tolist()])
        true = [names[i] for i in some.tolist()]
        found += distil(clap, waves, true, experts, draw)
    return Sounds(latents(vae, world, N_SOUNDS), tuple(found))
