"""Do the sounds follow the pictures? Image-to-audio by the same questions and judges as
captions, on pictures of held-out scenes.

A picture shows class and count. It does not show pitch, speed, tempo or loudness: of
these a sound can only be right by chance, and the table says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minilib.arguments import MAX_SEED
from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.guidance import Sampling, check_sampling
from minilib.metrics.evaluation import (
    check_asked,
    round_trip,
    rows_of,
    settings,
    told_settings,
)
from minilib.metrics.questions import (
    BATCH,
    Listener,
    compared,
    enough_scenes,
    held_out_scenes,
)
from minilib.soundworld import SENSES, SoundWorld


def evaluate_pictures(
    pipe: AudioLDM2,
    judges: tuple[Classifier, Listener],
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Generate sounds from pictures of held-out scenes, of one event or a tune, and
    judge whether they are the sounds of the scenes.

    Args:
        pipe: a pipeline that sees; judges: a classifier and a CLAP, as for `evaluate`.
        sampling: the pipeline's settings for sampling; None for its weights' own.
        n: how often each question is asked, 2 or more; seed: of the scenes and the
            noise.
        progress: show a bar over the sounds.
    Returns:
        a flat dictionary, named as in `evaluate`; the control is the same sounds,
            pictures shuffled.
    Raises:
        ValueError, TypeError: an argument is not as described, or the pipeline sees
            no pictures.
    """
    n, seed, _ = check_asked(n, seed=seed)
    how = check_sampling(sampling, pipe.sampling)
    if not pipe.sees:
        raise ValueError("pipe must see: its weights read no pictures")
    judge, listener = judges[0].to(pipe.device), judges[1]
    results = settings(n, seed, how)
    sizes = {"single": enough_scenes(n, seed, pipe.seconds), "music": n}
    total = sum(sizes.values())
    with tqdm(total=total, desc="evaluate", unit="sound", disable=not progress) as bar:
        for kind, size in sizes.items():
            given = size, seed, pipe.seconds
            music = kind == "music"
            scenes = held_out_scenes(judge, *given, n_events=1, music=music)
            made = drawn_from(pipe, pictures_of(*given, music), how, seed, bar)
            sounds = {"": made, "roundtrip.": round_trip(pipe, scenes.waves)}
            sounds["ceiling."] = scenes.waves
            results |= compared(judge, listener, n, scenes, sounds, kind, seed)
    return results


def pictures_of(n: int, seed: int, seconds: float, music: bool = False) -> Tensor:
    """The pictures (n, 3, H, W) of the scenes of one event that `held_out_scenes`
    draws.
    """
    world = SoundWorld("test", seed, seconds, pairs=0.0, music=float(music))
    return torch.stack([SENSES["image"](world.scene(i)) for i in range(n)])


def drawn_from(
    pipe: AudioLDM2, pictures: Tensor, how: Sampling, seed: int, bar: Any
) -> Tensor:
    """Generate one sound for each picture, batch by batch: (n, N)."""
    generator, waves = torch.Generator().manual_seed(seed), []
    for some in pictures.split(BATCH):
        own = torch.randint(MAX_SEED, (len(some),), generator=generator)
        waves.append(pipe(sampling=how, picture=some, seed=own, progress=False))
        bar.update(len(some))
    return torch.cat(waves)


def picture_report(results: dict[str, float]) -> str:
    """The results of `evaluate_pictures` as a table: chance < value < ceiling."""
    about = told_settings(results, "times each question of pictures of held-out scenes")
    legend = """\
chance: guessing. control: the same sounds, pictures shuffled. value: the sounds, \
± standard error.
round trip: clean renders through VAE and vocoder. ceiling: clean renders. \
clap: cosine of sound and caption.
A picture shows class and count, but not pitch, speed, tempo or loudness: there the \
value should not exceed chance and control."""
    return "\n".join([about, "", *rows_of(results), "", legend])
