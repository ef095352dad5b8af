"""Where a caption gets lost: the chain from text to sound with one link changed at a
time.

Each way of sampling gets the same captions and the same noise. With the true LOA, what
is still wrong is the latent diffusion's fault; without the LOA or without the text one
sees what the other carries; GPT-2 and U-Net as they were before joint fine-tuning show
what that is worth.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minilib import audio
from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.folders import SEPARATE, TUNED, load_part
from minilib.guidance import Sampling
from minilib.metrics import (
    BATCH,
    Scenes,
    check_asked,
    guided_where,
    held_out_scenes,
    plays,
    question_name,
    scores,
    settings,
    standard_error,
)

LOAS = ("true", "joint", "separate", "none")
WRITTEN = ("joint", "separate")  # by GPT-2, which then also says how loud
STRENGTHS = (1.0, 1.5, 2.0, 2.5, 3.5, 5.0, 8.0)
LENGTHS = (5, 10, 25, 50, 100)  # of sampling, in steps
COLUMNS = (
    *("single.class", "pitch", "count", "speed", "loudness"),
    *("pair.first", "pair.second", "pair.both"),
    # where the weights know tunes
    *("music.instrument", "music.tempo", "music.loudness"),
)


@dataclass(frozen=True)
class Way:
    """One way from a caption to a sound."""

    # the LOA: of the clean render; GPT-2's, tuned jointly or before that; or that of
    # the empty caption
    loa: str = "joint"
    text: bool = True  # whether the U-Net reads the caption's words
    sampling: Sampling = Sampling()

    @property
    def name(self) -> str:
        """What the results call it."""
        how, text = self.sampling, "with" if self.text else "no"
        strength = f"w {how.guidance:g}, {how.steps} steps"
        return f"{self.loa} LOA, {text} text, {strength}"


def ways(separate: bool, own: Sampling) -> list[Way]:
    """All ways of the table, each once; with the parts before joint tuning only where
    there are any.

    `own`: how the pipeline samples, where nothing else is said.
    """
    loas = [loa for loa in LOAS if separate or loa != "separate"]
    links = [Way(loa, text, own) for loa in loas for text in (True, False)]
    strengths, lengths = {*STRENGTHS, own.guidance}, {*LENGTHS, own.steps}
    changes = [own.changed(guidance=w) for w in sorted(strengths)]
    changes += [own.changed(steps=k) for k in sorted(lengths)]
    return list(dict.fromkeys([*links, *(Way(sampling=how) for how in changes)]))


def untuned(pipe: AudioLDM2, folder: Path) -> AudioLDM2 | None:
    """The pipeline with GPT-2 and U-Net as they were before joint fine-tuning, which
    training keeps in its folder; None if they were not kept.
    """
    if not (folder / SEPARATE).is_dir():
        return None
    other = copy.copy(pipe)
    for name in TUNED:
        kept = (folder / SEPARATE / name).is_dir()
        part = load_part(folder / SEPARATE, name, torch.float32) if kept else None
        setattr(other, name, part)
    return other.to(pipe.device)


@torch.no_grad()
def sounds(pipe: AudioLDM2, scenes: Scenes, way: Way, seed: int) -> Tensor:
    """Generate one sound for each scene in this way: (n, N), from noise that depends on
    the seed only.
    """
    generator, waves = torch.Generator().manual_seed(seed), []
    n_samples = scenes.waves.shape[1]
    for start in range(0, len(scenes.captions), BATCH):
        captions = scenes.captions[start : start + BATCH]
        conditions = pipe.encode(captions)
        empty = pipe.encode([""] * len(captions), like=conditions)
        empty["loa"] = pipe.loa_of_negative(empty, way.sampling)
        if way.loa == "true":
            mel = audio.log_mel(scenes.waves[start : start + BATCH])
            pool = pipe.audiomae.config.pool_for(pipe.gpt.config.n_tokens)
            loa = pipe.audiomae.loa(mel.to(pipe.device), pool)
        else:
            none = way.loa == "none"
            loa = empty["loa"].sequence if none else pipe.loa(conditions)
        if not way.text:
            conditions = {**conditions, "text": empty["text"]}
        latents = pipe.noise(len(captions), n_samples, generator=generator)
        z0 = pipe.sample(loa, conditions, way.sampling, empty, latents)
        made = pipe.decode(z0, n_samples)
        if way.loa in WRITTEN:
            made = pipe.as_loud_as_told(made, loa)
        waves.append(made.float().cpu())
    return torch.cat(waves)


def explain(
    pipe: AudioLDM2,
    judge: Classifier,
    separate: AudioLDM2 | None = None,
    sampling: Sampling | None = None,
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
        sampling: how to sample where a way doesn't say otherwise; None for what the
            weights want.
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
    n, seed, _ = check_asked(n, seed=seed)
    if pipe.audiomae is None:
        lacking = "pipe must have its audiomae, for the true LOA"
        raise ValueError(f"{lacking}; train that stage, or take weights with it")
    draw = partial(held_out_scenes, judge, n, seed, pipe.seconds)
    kinds = {"single": draw(n_events=1), "pair": draw(n_events=2)}
    if plays(pipe):
        kinds["music"] = draw(n_events=1, music=True)
    own, ask = sampling or pipe.sampling, partial(scores, judge, pipe.clap, n)
    apart = "steps", "guidance", "candidates"  # each way tells its own
    results = {k: x for k, x in settings(n, seed, own).items() if k not in apart}
    asked = ways(separate is not None, own)
    for way in tqdm(asked, desc="chain", unit="way", disable=not progress):
        sampled = separate if way.loa == "separate" else pipe
        for kind, scenes in kinds.items():
            answers = ask(sounds(sampled, scenes, way, seed), scenes)
            for question, x in answers.items():
                name = f"{way.name}.{question_name(kind, question)}"
                results |= {name: float(x.nanmean()), f"se.{name}": standard_error(x)}
    return results


def report(results: dict[str, float]) -> str:
    """What `explain` found, as a table to read: a row for each way."""
    last, means = ".single.class", [key for key in results if not key.startswith("se.")]
    names = [key.removesuffix(last) for key in means if key.endswith(last)]
    width = max(map(len, names))
    columns = [column for column in COLUMNS if f"{names[0]}.{column}" in results]
    headings = (f"{column.split('.')[-1]:>11}" for column in columns)
    lines = [" " * width + "".join(headings)]
    for name in names:
        values = (f"{results[f'{name}.{column}']:11.3f}" for column in columns)
        lines.append(f"{name:{width}}" + "".join(values))
    most = max(value for key, value in results.items() if key.startswith("se."))
    about = "{n} held-out scenes of one event, {n} of two"
    about += " and {n} tunes" if "music.tempo" in columns else ""
    if where := guided_where(results):
        about += f"; guidance{where}"
    about += "; temperature {temperature:g}, seed {seed}"
    about = f"{about.format(**results)}; standard errors up to {most:.3f}"
    return "\n".join([about, "", *lines])
