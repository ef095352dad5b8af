"""What all evaluations share: checked settings, generated sounds, round trips, and a
table that reads chance < value < ceiling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minilib import audio
from minilib.arguments import MAX_CANDIDATES, MAX_SEED, check_whole
from minilib.audioldm2 import AudioLDM2
from minilib.guidance import MAX_STEPS, Sampling
from minilib.metrics.questions import BATCH, Scenes

# --------------------------------------------------------------------------------------
# Settings


def check_asked(n: int, seed: int = 0, candidates: int = 1) -> tuple[int, int, int]:
    """Number of scenes, seed and candidates as plain numbers; impossible ones raise a
    sentence.
    """
    return (
        check_whole("n", n, 2),
        check_whole("seed", seed, 0, MAX_SEED),
        check_whole("candidates", candidates, 1, MAX_CANDIDATES),
    )


def settings(n: int, seed: int, how: Sampling, candidates: int = 1) -> dict[str, float]:
    """The settings of an evaluation, with which its results begin."""
    numbers = {"n": n, "seed": seed, "candidates": candidates}
    numbers |= {x: getattr(how, x) for x in ("steps", "guidance", "temperature")}
    low, high = how.guidance_interval
    return {**numbers, "guidance.low": low, "guidance.high": high}


def guided_where(results: dict[str, float]) -> str:
    """The noise levels of guidance in words, from `settings`; "" if all are guided."""
    low, high = results["guidance.low"], results["guidance.high"]
    return "" if (low, high) == (0, MAX_STEPS) else f" at levels {low} to {high}"


# --------------------------------------------------------------------------------------
# Sounds


def sounds_of(
    pipe: AudioLDM2, scenes: Scenes, how: Sampling, seed: int, candidates: int, bar: Any
) -> dict[str, Tensor]:
    """Sounds (n, N) that should match these scenes, by the prefix of their results:
    generated sounds, and renders with and without VAE and vocoder.
    """
    made = generate(pipe, scenes.captions, how, seed, candidates, bar)
    back = round_trip(pipe, scenes.waves)
    return {"": made, "roundtrip.": back, "ceiling.": scenes.waves}


def generate(
    pipe: AudioLDM2,
    captions: list[str],
    how: Sampling,
    seed: int,
    candidates: int,
    bar: Any,
) -> Tensor:
    """Generate one sound for each caption, batch by batch: (n, N)."""
    generator, waves = torch.Generator().manual_seed(seed), []
    options = {"candidates": candidates, "progress": False}
    other = torch.Generator().manual_seed(seed)  # for the noise that eta adds
    seeds = torch.randint(MAX_SEED, (len(captions),), generator=other)
    for start in range(0, len(captions), BATCH):
        some = captions[start : start + BATCH]
        n = len(some) * candidates
        latents = pipe.noise(n, pipe.n_samples(), generator=generator)
        own = seeds[start : start + BATCH]
        waves.append(pipe(some, how, latents=latents, seed=own, **options))
        bar.update(len(some))
    return torch.cat(waves)


@torch.no_grad()
def round_trip(pipe: AudioLDM2, waves: Tensor) -> Tensor:
    """Sounds (n, N) after VAE and vocoder: the best that any latent could give."""
    mels = (audio.log_mel(batch.to(pipe.device)) for batch in waves.split(BATCH))
    back = (pipe.vocoder(pipe.reconstruct(mel)) for mel in mels)
    return torch.cat([x[:, : waves.shape[1]].cpu() for x in back])


# --------------------------------------------------------------------------------------
# Tables


def told_settings(results: dict[str, float], what: str) -> str:
    """The settings of an evaluation, of so many times what, as a line."""
    about = "{n} " + what
    about += "; {steps} steps, guidance {guidance:g}" + guided_where(results)
    about += ", temperature {temperature:g}, seed {seed}"
    if results["candidates"] > 1:
        about += ", the best of {candidates} candidates each"
    return about.format(**results)


def rows_of(results: dict[str, float]) -> list[str]:
    """The table of an evaluation: a row for each question."""
    shown = lambda key: f"{results[key]:.3f}" if key in results else "-"
    asked = [k.removeprefix("ceiling.") for k in results if k.startswith("ceiling.")]
    beside = {"chance": "chance", "control": "control", "": "value"}
    if any(key.startswith("true_loa.") for key in results):
        beside["true_loa"] = "true LOA"
    beside |= {"roundtrip": "round trip", "ceiling": "ceiling"}
    widths = {"": 17, "roundtrip": 13, "chance": 9}
    width = max(17, *(len(question) + 1 for question in asked))
    cells = lambda texts: "".join(f"{x:>{widths.get(k, 10)}}" for k, x in texts.items())
    rows = [f"{'':{width}}{cells(beside)}"]
    for question in asked:
        texts = {k: shown(f"{k}.{question}") for k in beside}
        error = shown(f"se.{question}")
        texts[""] = shown(question) + (f" ± {error}" if error != "-" else "")
        rows.append(f"{question:{width}}{cells(texts)}")
    return rows
