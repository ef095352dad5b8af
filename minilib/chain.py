"""Where a caption gets lost: the chain from text to sound with one link changed at a
time.

Each way of sampling gets the same captions and the same noise. With the true LOA, what
is still wrong is the latent diffusion's fault; without the LOA or without the text one
sees what the other carries; GPT-2 and U-Net as they were before joint fine-tuning show
what that is worth. Chapter 17 builds this module.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio
from minilib.audioldm2 import GUIDANCE, STEPS, AudioLDM2, load_part
from minilib.classifier import Classifier
from minilib.metrics import (
    BATCH,
    Listener,
    Scenes,
    guided_where,
    held_out_scenes,
    plays,
    question_name,
    scores,
    settings,
    standard_error,
)

# the folder, in that of a run, of the parts as they were before joint fine-tuning
SEPARATE = "separate"
TUNED = ("gpt", "unet")  # these parts
LOAS = ("true", "joint", "separate", "none")
WRITTEN = ("joint", "separate")  # by GPT-2, which then also says how loud
STRENGTHS = (1.0, 1.5, 2.0, 2.5, 3.5, 5.0, 8.0)
LENGTHS = (5, 10, 25, 50, 100)  # of sampling, in steps
COLUMNS = (
    *(
        "single.class",
        "pitch",
        "count",
        "speed",
        "loudness",
        "pair.first",
        "pair.second",
        "pair.both",
    ),
    # where the weights know tunes
    *("music.instrument", "music.tempo", "music.loudness"),
)


@dataclass(frozen=True)
class Way:
    """One way from a caption to a sound."""

    loa: str = (
        # of the clean render; by GPT-2, tuned jointly or before that; or that of the
        # empty caption
        "joint"
    )
    text: bool = True  # whether the U-Net reads the caption's words
    guidance: float = GUIDANCE
    steps: int = STEPS

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"{self.loa} LOA, {'with' if self.text else 'no'} text, w {self.guidance:g}, {self.steps} steps"


def ways(separate: bool, guidance: float = GUIDANCE, steps: int = STEPS) -> list[Way]:
    """All ways of the table, each once; with the parts before joint tuning only where
    there are any.
    """
    loas = [loa for loa in LOAS if separate or loa != "separate"]
    links = [Way(loa, text, guidance, steps) for loa in loas for text in (True, False)]
    strengths = [Way(guidance=w, steps=steps) for w in sorted({*STRENGTHS, guidance})]
    lengths = [Way(guidance=guidance, steps=k) for k in sorted({*LENGTHS, steps})]
    return list(dict.fromkeys([*links, *strengths, *lengths]))


def untuned(pipe: AudioLDM2, folder: Path) -> AudioLDM2 | None:
    """The pipeline with GPT-2 and U-Net as they were before joint fine-tuning; None if
    not kept.
    """
    if not (folder / SEPARATE).is_dir():
        return None
    other = copy.copy(pipe)
    for name in TUNED:
        setattr(other, name, load_part(folder / SEPARATE, name, torch.float32))
    return other.to(pipe.device)


@torch.no_grad()
def sounds(pipe: AudioLDM2, scenes: Scenes, way: Way, seed: int) -> Tensor:
    """Generate one sound for each scene in this way: (n, N), from noise that depends on
    the seed only.
    """
    generator, waves = torch.Generator().manual_seed(seed), []
    for start in range(0, len(scenes.captions), BATCH):
        captions = scenes.captions[start : start + BATCH]
        conditions = pipe.encode(captions)
        empty = pipe.encode_negative([""] * len(captions), conditions)
        if way.loa == "true":
            loa = pipe.audiomae.loa(
                audio.log_mel(scenes.waves[start : start + BATCH]).to(pipe.device)
            )
        else:
            loa = (
                pipe.loa_of_negative(empty)
                if way.loa == "none"
                else pipe.loa(conditions)
            )
        if not way.text:
            conditions = dataclasses.replace(conditions, text=empty.text)
        n_samples = scenes.waves.shape[1]
        latents = torch.randn(
            pipe.latent_shape(len(captions), n_samples), generator=generator
        )
        z0 = pipe.sample(loa, conditions, way.steps, way.guidance, latents=latents)
        made = pipe.decode(z0, n_samples)
        if way.loa in WRITTEN:
            made = pipe.levelled(made, loa)
        waves.append(made.float().cpu())
    return torch.cat(waves)


def explain(
    pipe: AudioLDM2,
    judge: Classifier,
    separate: AudioLDM2 | None = None,
    n: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Ask the questions of `metrics.evaluate` of sounds that came about in every one of
    the `ways`.

    Args:
        pipe, judge: what is measured, and who measures; the pipeline has its AudioMAE.
        separate: the pipeline with GPT-2 and U-Net as they were before joint
            fine-tuning, if they were kept.
        n: scenes of one event, of two, and tunes where the weights know any, 2 or more
            of each.
        seed: of the scenes and of the noise.
        progress: show a bar over the ways.
    Returns:
        a flat dictionary: under `<name of the way>.<question>` the mean, and after the
            prefix `se.` its standard error.
    Raises:
        ValueError: `n` is below 2, or the pipeline has no AudioMAE.
    """
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be a whole number, 2 or more, not {n}")
    if pipe.audiomae is None:
        raise ValueError(
            "pipe must have its audiomae, for the true LOA; train that stage, or take "
            "weights with it"
        )
    draw = partial(held_out_scenes, judge, n, seed, pipe.seconds)
    kinds = {"single": draw(n_events=1), "pair": draw(n_events=2)}
    if plays(pipe):
        kinds["music"] = draw(n_events=1, music=True)
    own = {name: getattr(pipe, name) for name in ("temperature", "guidance_interval")}
    results = settings(n, seed, own)
    listener = Listener.of(pipe)
    asked = ways(separate is not None, pipe.guidance, pipe.steps)
    for way in tqdm(asked, desc="chain", unit="way", disable=not progress):
        sampled = separate if way.loa == "separate" else pipe
        for kind, scenes in kinds.items():
            answers = scores(
                listener, judge, sounds(sampled, scenes, way, seed), scenes, n
            )
            for question, x in answers.items():
                name = f"{way.name}.{question_name(kind, question)}"
                results |= {name: float(x.nanmean()), f"se.{name}": standard_error(x)}
    return results


def report(results: dict[str, float]) -> str:
    """What `explain` found, as a table to read: a row for each way."""
    last = ".single.class"
    names = [
        k.removesuffix(last)
        for k in results
        if k.endswith(last) and not k.startswith("se.")
    ]
    width = max(map(len, names))
    columns = [column for column in COLUMNS if f"{names[0]}.{column}" in results]
    lines = [
        f"{'':{width}}" + "".join(f"{column.split('.')[-1]:>11}" for column in columns)
    ]
    for name in names:
        lines += [
            f"{name:{width}}"
            + "".join(f"{results[f'{name}.{column}']:11.3f}" for column in columns)
        ]
    most = max(value for key, value in results.items() if key.startswith("se."))
    tunes = " and {n} tunes" if "music.tempo" in columns else ""
    where = guided_where(results)
    about = (
        "{n} held-out scenes of one event, {n} of two"
        + tunes
        + (where and f"; guidance{where}")
    )
    about += "; temperature {temperature:g}, seed {seed}"
    return (
        f"{about.format(**results)}; standard errors up to {most:.3f}\n\n"
        + "\n".join(lines)
    )
