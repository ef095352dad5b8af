"""Where a caption gets lost: the chain from text to sound with one link changed at a
time.

Every variant gets the same captions and the same noise. With the true LOA, the errors
that remain are due to latent diffusion. Without the LOA or without the text, the result
shows what the other contributes. GPT-2 and U-Net as they were before joint fine-tuning
show how much it helps.
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
    check_reads_captions,
    guided_where,
    held_out_scenes,
    plays,
    question_name,
    scores,
    settings,
    standard_error,
)

LOAS = ("true", "joint", "separate", "none")
WRITTEN = ("joint", "separate")  # LOAs by GPT-2, which also set the loudness
STRENGTHS = (1.0, 1.5, 2.0, 2.5, 3.5, 5.0, 8.0)
LENGTHS = (5, 10, 25, 50, 100)  # numbers of sampling steps
COLUMNS = (
    *("single.class", "pitch", "count", "speed", "loudness"),
    *("pair.first", "pair.second", "pair.both"),
    # if the weights know tunes
    *("music.instrument", "music.tempo", "music.loudness"),
)


@dataclass(frozen=True)
class Way:
    """One variant of the way from a caption to a sound."""

    # the LOA: that of the clean render; GPT-2's after or before joint fine-tuning; or
    # that of the empty caption
    loa: str = "joint"
    text: bool = True  # whether the U-Net reads the caption's words
    sampling: Sampling = Sampling()

    @property
    def name(self) -> str:
        """Its name in the results."""
        how, text = self.sampling, "with" if self.text else "no"
        strength = f"w {how.guidance:g}, {how.steps} steps"
        return f"{self.loa} LOA, {text} text, {strength}"


def ways(separate: bool, own: Sampling) -> list[Way]:
    """All rows of the table, each once; those with the parts before joint fine-tuning
    only if these were kept.

    `own`: the pipeline's settings for sampling, unless a row changes them.
    """
    loas = [loa for loa in LOAS if separate or loa != "separate"]
    links = [Way(loa, text, own) for loa in loas for text in (True, False)]
    strengths, lengths = {*STRENGTHS, own.guidance}, {*LENGTHS, own.steps}
    changes = [own.changed(guidance=w) for w in sorted(strengths)]
    changes += [own.changed(steps=k) for k in sorted(lengths)]
    return list(dict.fromkeys([*links, *(Way(sampling=how) for how in changes)]))


def untuned(pipe: AudioLDM2, folder: Path) -> AudioLDM2 | None:
    """The pipeline with the GPT-2 and U-Net from before joint fine-tuning, which
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
    """Generate one sound for each scene in this way: (n, N), from noise that depends
    only on the seed.
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
    """Ask the questions of `metrics.evaluate` about sounds generated in each of the
    `ways`.

    Args:
        pipe, judge: the pipeline to measure, with its AudioMAE, and the classifier that
            judges it.
        separate: the pipeline with the GPT-2 and U-Net from before joint fine-tuning,
            if they were kept.
        sampling: settings for sampling, unless a way changes them; None for the
            weights' own.
        n: number of scenes with one event, with two, and of tunes if the weights know
            any, 2 or more of each.
        seed: of the scenes and the noise.
        progress: show a bar over the ways.
    Returns:
        a flat dictionary: the mean under `<name of the way>.<question>`, and its
            standard error after the prefix `se.`.
    Raises:
        ValueError: `n` is below 2, or the pipeline has no AudioMAE, or reads no
            captions.
    """
    n, seed, _ = check_asked(n, seed=seed)
    check_reads_captions(pipe)
    if pipe.audiomae is None:
        lacking = "pipe must have its audiomae, which gives the true LOA"
        raise ValueError(f"{lacking}; train that stage, or use weights that include it")
    draw = partial(held_out_scenes, judge, n, seed, pipe.seconds)
    kinds = {"single": draw(n_events=1), "pair": draw(n_events=2)}
    if plays(pipe):
        kinds["music"] = draw(n_events=1, music=True)
    own, ask = sampling or pipe.sampling, partial(scores, judge, pipe.clap, n)
    apart = "steps", "guidance", "candidates"  # each way has its own
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
    """The results of `explain` as a table with a row for each way."""
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
