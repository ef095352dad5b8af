"""Do the sounds follow the captions? The evaluation of generated sounds, tunes and
recordings, and the known captions nearest to a given one.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from tqdm.auto import tqdm

from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.data import AudioFolder
from minilib.guidance import Sampling, check_sampling
from minilib.metrics.evaluation import (
    check_asked,
    rows_of,
    settings,
    sounds_of,
    told_settings,
)
from minilib.metrics.questions import (
    Listener,
    compared,
    distances,
    embeddings,
    enough_scenes,
    held_out_scenes,
    recorded_scenes,
)
from minilib.soundworld import INSTRUMENTS
from minilib.tokenizer import split_words


def evaluate(
    pipe: AudioLDM2,
    judge: Classifier,
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    candidates: int = 1,
    listener: Listener | None = None,
    progress: bool = True,
    kinds: Collection[str] = ("single", "pair", "music"),
) -> dict[str, float]:
    """Generate held-out scenes of one event, of two events, and tunes, and judge
    whether the sounds follow the captions.

    Args:
        pipe, judge: the pipeline to measure, and the classifier that judges it.
        sampling: the pipeline's settings for sampling; None for its weights' own.
        n: how often each question is asked, 2 or more; seed: of the scenes and the
            noise.
        candidates: as for the pipeline; the paper's results use 3.
        listener: the CLAP whose cosine of sound and caption is measured; None for the
            pipeline's own. A separately trained one is fairer, since the pipeline's
            GPT-2 did not learn from it what captions mean.
        progress: show a bar over the sounds.
        kinds: of the scenes: one event, two events, tunes.
    Returns:
        a flat dictionary: for every question the mean over the scenes, and under the
            same name after a prefix `chance.` (guessing), `control.` (the same sounds,
            captions shuffled), `roundtrip.` (clean renders through VAE and vocoder),
            `ceiling.` (clean renders) and `se.` (standard error of the mean). For one
            event: `single.class`, `single.clap`, and in closed form `pitch`, `count`,
            `speed`, `loudness`; for two: `pair.first`, `pair.second`, `pair.both`,
            `pair.any`, `pair.clap`; for tunes, if the weights know any:
            `music.instrument`, `music.tempo`, `music.loudness`, `music.clap`. `frechet`
            is the distance of the generated sounds of one event from as many other
            renders in the judge's features, `ceiling.frechet` that of clean renders,
            and `frechet.clap` the same in the listener's embeddings.
    Raises:
        ValueError, TypeError: `n`, `seed`, `candidates` or `sampling` is not as
            described, or the weights read no captions alone, or know no scenes of
            these kinds.
    """
    n, seed, candidates = check_asked(n, seed, candidates)
    check_reads_captions(pipe)
    how, listener = check_sampling(sampling, pipe.sampling), listener or pipe.clap
    draw, drawn = partial(held_out_scenes, judge, seed=seed, seconds=pipe.seconds), {}
    if "single" in kinds:
        drawn["single"] = draw(enough_scenes(n, seed, pipe.seconds), n_events=1)
    if "pair" in kinds:
        drawn["pair"] = draw(n, n_events=2)
    if "music" in kinds and plays(pipe):
        drawn["music"] = draw(n, n_events=1, music=True)
    if not drawn:
        raise ValueError("pipe must know tunes: its weights know no instrument")
    results = settings(n, seed, how, candidates)
    total = sum(len(scenes.captions) for scenes in drawn.values())
    with tqdm(total=total, desc="evaluate", unit="sound", disable=not progress) as bar:
        for kind, scenes in drawn.items():
            sounds = sounds_of(pipe, scenes, how, seed, candidates, bar)
            results |= compared(judge, listener, n, scenes, sounds, kind, seed)
            if kind == "single":
                sounds = {prefix: waves[:n] for prefix, waves in sounds.items()}
                others = held_out_scenes(judge, n, seed + 1, pipe.seconds, 1).waves
                results |= distances("frechet", sounds, others, judge.embed)
                embed = partial(embeddings, listener)
                results |= distances("frechet.clap", sounds, others, embed)
    return results


def evaluate_recordings(
    pipe: AudioLDM2,
    judge: Classifier,
    folder: AudioFolder,
    sampling: Sampling | None = None,
    n: int = 200,
    seed: int = 0,
    candidates: int = 1,
    progress: bool = True,
) -> dict[str, float]:
    """Generate sounds from the captions of recordings that were held out from training,
    and judge their classes.

    Args:
        pipe, judge: the pipeline to measure, and a judge trained on other recordings.
        folder: recordings with captions and a column `class`; n: how many are drawn,
            all classes equally likely.
        sampling, seed, candidates, progress: as for `evaluate`.
    Returns:
        as `evaluate`, for the questions `single.class` and `single.clap` (by the
        pipeline's own CLAP); the ceiling is the score of the recordings.
    Raises:
        ValueError, TypeError: numbers are not as described, or the judge knows fewer
            than two of the classes.
    """
    n, seed, candidates = check_asked(n, seed, candidates)
    how = check_sampling(sampling, pipe.sampling)
    check_reads_captions(pipe)
    scenes = recorded_scenes(judge, folder, n, seed, pipe.seconds)
    with tqdm(total=n, desc="evaluate", unit="sound", disable=not progress) as bar:
        sounds = sounds_of(pipe, scenes, how, seed, candidates, bar)
    found = compared(judge, pipe.clap, n, scenes, sounds, seed=seed)
    return {**settings(n, seed, how, candidates), **found}


def check_reads_captions(pipe: AudioLDM2) -> None:
    """Raise ValueError for a pipeline that makes no sound from a caption alone."""
    if pipe.sees or pipe.speaks:
        read = "pictures" if pipe.sees else "transcriptions"
        raise ValueError(f"pipe must follow captions: its weights read {read}")


def plays(pipe: AudioLDM2) -> bool:
    """Whether the pipeline was trained on tunes."""
    return not set(INSTRUMENTS).isdisjoint(pipe.vocabulary.get("classes", ()))


def report(results: dict[str, float], recorded: bool = False) -> str:
    """The results of `evaluate` or `evaluate_recordings` as a table: chance < value <
    ceiling.
    """
    held_out = "times each question of held-out scenes"
    about = told_settings(results, "recordings held out" if recorded else held_out)
    wanted = "recordings" if recorded else "renders"
    legend = f"""\
chance: guessing. control: the same sounds, captions shuffled. value: the sounds, \
± standard error.
round trip: clean {wanted} through VAE and vocoder. ceiling: clean {wanted}. \
clap: cosine of sound and caption."""
    if not recorded:
        legend += "\nfrechet: distance from other renders, lower is better; "
        legend += "its ceiling is that of clean renders."
    return "\n".join([about, "", *rows_of(results), "", legend])


# --------------------------------------------------------------------------------------
# The captions nearest to a given one


@torch.no_grad()
def nearest_captions(pipe: AudioLDM2, caption: str, n: int = 3) -> list[str]:
    """The n known captions most like this one: first by the share of words in common,
    then by CLAP's cosine.

    Args:
        pipe: its known captions are `pipe.vocabulary["captions"]`; without them the
            result is empty.
        caption: any sentence that the encoders can read.
    """
    # each caption once
    known = list(dict.fromkeys(pipe.vocabulary.get("captions", ())))
    if not known:
        return []
    spoken, *others = (set(split_words(text)) for text in (caption, *known))
    shared = [len(spoken & other) / len(spoken | other) for other in others]  # Jaccard
    embedded = pipe.clap.encode([caption, *known]).sequence[:, 0].cpu()  # (1 + K, D)
    cosine = embedded[1:] @ embedded[0]
    order = sorted(range(len(known)), key=lambda i: (-shared[i], -float(cosine[i])))
    return [known[i] for i in order[:n]]
