"""What the tests of training share: the preset "small", a few thousand parameters a
model and clips of 0.64 s, so that every stage trains in a moment.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from small_pipe import SECONDS, small_parts

from minilib import training, vocoder
from minilib.bind import BindConfig, ImageBind, SenseConfig, TextConfig
from minilib.classifier import Classifier, ClassifierConfig
from minilib.data import Corpus
from minilib.discriminators import (
    Discriminators,
    DiscriminatorsConfig,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
)
from minilib.gpt import Loudness, LoudnessConfig
from minilib.soundworld import CLASSES, INSTRUMENTS, SoundWorld
from minilib.text import T5
from minilib.tokenizer import Tokenizer
from minilib.training import RUNS, STAGES, Recipe, TrainingData, stages
from minilib.training.scale import AdversarialVAEStage

RECIPE = Recipe(steps=3, batch_size=8, lr=3e-3, warmup=1, ema=0.9, checkpoint_every=2)
OPTIONS = {
    **{name: {"crop": 48} for name in ("vae", "vocoder", "adversarial")},
    "joint": {"levels": 2},
}


class SharpStage(AdversarialVAEStage):
    """The VAE of the released scale; the discriminator joins in at the second step."""

    name, start = "sharp", 1

    def build(self) -> torch.nn.Module:
        model = super().build()
        model.most = 1e12  # so that the adversarial loss has the weight it is to have
        return model


KINDS = {**STAGES, "sharp": SharpStage}


def add_small(patch: pytest.MonkeyPatch) -> None:
    """Add the preset "small" of every model, and its run."""
    configs = {type(model): model.config for model in small_parts().values()}
    for kind, config in configs.items():
        if hasattr(config, "d_model") or kind is stages.CLAP:
            config = replace(config, vocab_size=1000)
        patch.setitem(kind.presets, "small", config)
    classes = (*CLASSES, *INSTRUMENTS)
    judge = ClassifierConfig(classes=classes, channels=(4, 8))
    patch.setitem(Classifier.presets, "small", judge)
    patch.setitem(vocoder.VOCODERS, "small", vocoder.Vocos)
    small = DiscriminatorsConfig(
        (2, 3), (2, 2, 4, 4, 4), 1, (4, 4, 4, 8, 8, 8, 8), (1, 2, 2, 2, 2, 2, 1)
    )
    patch.setitem(Discriminators.presets, "small", small)
    patch.setitem(PatchDiscriminator.presets, "small", PatchDiscriminatorConfig(4))
    of = lambda name: replace(RECIPE, muon=RUNS["tiny"].recipes[name].muon)
    patch.setitem(ImageBind.presets, "small", small_senses())
    recipes = {name: of(name) for name in STAGES}
    run = training.Run(16, SECONDS, recipes, OPTIONS)
    patch.setitem(RUNS, "small", run)
    patch.setattr(os, "cpu_count", lambda: 1)
    patch.delenv("MINILIB_REALAUDIO", raising=False)


def small_senses() -> BindConfig:
    """ImageBind at a few thousand parameters, for clips of 0.64 s."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    seen = lambda C, **x: SenseConfig((C, 32, 32), (16, 16), **sizes, **x)
    return BindConfig(
        dim=16, text=TextConfig(1000, 16, 1, 2, 80), image=seen(3, frames=2),
        audio=SenseConfig((1, 64, 64), (16, 16), **sizes, mean=-6.8, std=2.8),
        depth=seen(1), thermal=seen(1),
        motion=SenseConfig((6, 1, 32), (1, 8), **sizes, mean=0.0),
    )  # fmt: skip


def small_data() -> TrainingData:
    """Sixteen captioned clips, and a tokenizer of their words."""
    world = SoundWorld("train", seed=5, seconds=SECONDS)
    corpus = Corpus.from_soundworld(world, 16, progress=False)
    return TrainingData(corpus, Tokenizer.train(corpus.captions))


def made_parts(data: TrainingData) -> dict[str, torch.nn.Module]:
    """Every part at the small preset, its weights random but fixed."""
    classes = {
        "vae": stages.VAE, "vocoder": vocoder.Vocos, "audiomae": stages.AudioMAE,
        "clap": stages.CLAP, "gpt": stages.LOARegressor, "unet": stages.UNet,
        "text": T5, "bind": ImageBind,
    }  # fmt: skip
    made = {k: stages.seeded(kind, "small", 1).eval() for k, kind in classes.items()}
    made["text"] = made["text"].text_encoder()
    made["loudness"] = Loudness(LoudnessConfig(4, 16))
    for name in ("clap", "text", "bind"):
        made[name].tokenizer = data.tokenizer
    return made


def make(
    name: str, data: TrainingData, parts: dict, double: bool = False, **changes
) -> training.Stage:
    """A stage of the small preset; in float64 if `double`."""
    kind = KINDS[name]
    given = {k: copy.deepcopy(parts[k]) for k in (*kind.needs, *kind.renews)}
    recipe = replace(RUNS["small"].recipes.get(name, RECIPE), **changes)
    stage = kind("small", recipe, data, given, **OPTIONS.get(name, {}))
    if double:
        stage.model.double()
        draw = stage.batch
        twice = lambda x: x.double() if x.is_floating_point() else x
        stage.batch = lambda g: {key: twice(x) for key, x in draw(g).items()}
    return stage


def weights(model: torch.nn.Module) -> torch.Tensor:
    """All that a model knows, as one vector."""
    every = model.state_dict().values()
    return torch.cat([x.detach().double().flatten().cpu() for x in every])


@contextmanager
def small_world() -> Iterator[TrainingData]:
    """The data of the small preset, which exists as long."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        add_small(patch)
        yield small_data()
    torch.set_num_threads(n_threads)
