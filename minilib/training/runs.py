"""Whole runs: the recipes of a preset, the data, and every stage in turn into a folder
that ends as a pipeline.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from minilib import folders
from minilib.data import OPEN_LICENCES, AudioFolder, Corpus, of_part
from minilib.files import replacing
from minilib.guidance import Sampling
from minilib.model import read_json
from minilib.soundworld import CLASSES, INSTRUMENTS, SoundWorld, plain, vocabulary
from minilib.tokenizer import Tokenizer, split_words
from minilib.training.checkpoints import log, train
from minilib.training.clips import TrainingData
from minilib.training.loop import Recipe
from minilib.training.processes import (
    check_shares,
    is_main,
    meet,
    n_processes,
    one_voice,
)
from minilib.training.stages import ALL_STAGES, STAGES


@dataclass(frozen=True)
class Run:
    """A preset's training: its data and a recipe for each stage."""

    n_clips: int  # clips of SoundWorld that the stages see
    seconds: float
    recipes: dict[str, Recipe]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # of stages
    pairs: float = 0.5  # share of the clips of effects with two events
    music: float = 0.0  # share of clips that are tunes
    sampling: Sampling = Sampling()  # how the pipeline wants to be sampled


RUNS = {
    "tiny": Run(
        n_clips=12000,
        seconds=2.56,
        pairs=0.4,
        music=0.4,
        sampling=Sampling(
            steps=10, guidance=1.5, guidance_interval=(300, 1000), temperature=0.7
        ),
        recipes={
            "vae": Recipe(steps=7600, batch_size=4, lr=2e-3, ema=0.995),
            "vocoder": Recipe(steps=1500, batch_size=16, lr=1e-3, ema=0.99),
            "adversarial": Recipe(
                steps=400, batch_size=16, lr=2e-4, ema=0.99, betas=(0.8, 0.99)
            ),
            "audiomae": Recipe(steps=1000, batch_size=48, lr=1e-3, ema=0.99),
            "clap": Recipe(steps=320, batch_size=64, lr=1e-3, ema=0.99),
            "text": Recipe(steps=1500, batch_size=64, lr=2e-3),
            "gpt": Recipe(
                steps=4500, batch_size=32, lr=2e-3, ema=0.998, muon=("linear",)
            ),
            "ldm": Recipe(
                steps=4000, batch_size=16, lr=2e-3, ema=0.998, muon=("conv",),
                precision="bf16",
            ),
            "joint": Recipe(
                steps=3200, batch_size=16, lr=1.5e-3, ema=0.998, muon=("conv",),
                precision="bf16",
            ),
            "judge": Recipe(steps=400, batch_size=64, lr=2e-3),
        },
        options={
            "vae": {"crop": 64, "recorded": 0.75},
            "vocoder": {"crop": 48, "recorded": 0.5},
            "adversarial": {"crop": 48, "recorded": 0.5},
            "audiomae": {"recorded": 0.25},
            "joint": {"levels": 2},
        },
    ),
    "colab": Run(
        n_clips=40000,
        seconds=10.24,
        music=0.25,
        recipes={
            "vae": Recipe(
                steps=20000, batch_size=16, lr=5e-4, ema=0.999, precision="bf16"
            ),
            "vocoder": Recipe(steps=20000, batch_size=16, lr=2e-4, ema=0.999),
            "adversarial": Recipe(
                steps=20000, batch_size=16, lr=2e-4, ema=0.999, betas=(0.8, 0.99)
            ),
            "audiomae": Recipe(
                steps=10000, batch_size=64, lr=5e-4, ema=0.999, precision="bf16"
            ),
            "clap": Recipe(
                steps=5000, batch_size=128, lr=5e-4, ema=0.999, precision="bf16"
            ),
            "text": Recipe(steps=5000, batch_size=128, lr=1e-3, precision="bf16"),
            "gpt": Recipe(
                steps=10000, batch_size=64, lr=3e-4, ema=0.999, precision="bf16"
            ),
            "ldm": Recipe(
                steps=20000, batch_size=32, lr=2e-4, ema=0.9995, precision="bf16"
            ),
            "joint": Recipe(
                steps=10000, batch_size=32, lr=1e-4, ema=0.9995, precision="bf16"
            ),
            "judge": Recipe(steps=2000, batch_size=64, lr=1e-3),
        },
        options={
            "vae": {"crop": 128, "recorded": 0.5},
            "vocoder": {"crop": 64, "recorded": 0.5},
            "adversarial": {"crop": 64, "recorded": 0.5},
            "audiomae": {"recorded": 0.5},
        },
    ),
}  # fmt: skip


@one_voice()
def train_stages(
    stages: str | list[str],
    preset: str = "tiny",
    out: str | Path = "runs/tiny",
    data: str | Path | None = None,
    steps: int | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Train stages in turn and write each finished part into `out`, which ends as a
    pipeline.

    Called in each of several processes (`torchrun`, `accelerate launch`), it trains one
    pipeline with all of them, the same as one process would have; only the first writes
    and prints.

    Args:
        stages: "all", or names of stages; what a stage needs is taken from `out`.
        preset: "tiny" or "colab".
        out: folder of the parts, the log and the checkpoints.
        data: folder of captioned recordings; None for SoundWorld.
        steps: of every stage, instead of the recipe's.
        resume: skip finished stages and go on from a stage's last checkpoint.
        seed: of weights and batches.

    Raises:
        ValueError: unknown stage or preset, steps below 1, data without captions, or a
            batch that the processes can't share equally.
        FileNotFoundError: a stage needs a part that is not there yet.
    """
    asked = ALL_STAGES if stages == "all" else stages
    names = [asked] if isinstance(asked, str) else list(asked)
    check_run(names, preset, steps)
    out, run, todo = Path(out), RUNS[preset], names
    if resume:
        todo = [name for name in names if not told_finished(out, name)]
    if not todo:
        return out
    check_released(out, todo)
    check_needs(out, todo[0])
    recipes = {name: run.recipes[name] for name in todo}
    for name, recipe in recipes.items():
        check_shares(name, recipe.batch_size, recipe.accumulate)
    clips = prepare_data(run, out, data, seed, todo)
    log(out, opening_line(preset, seed, clips))
    for name, recipe in recipes.items():
        check_needs(out, name)
        recipe = replace(recipe, steps=steps or recipe.steps)
        options = run.options.get(name, {})
        run_stage(name, recipe, options, clips, preset, out, seed, resume, progress)
    return out


def run_stage(
    name: str,
    recipe: Recipe,
    options: dict[str, Any],
    data: TrainingData,
    preset: str,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> None:
    """Train one stage, save what it makes, and note that it is finished."""
    began, kind = time.monotonic(), STAGES[name]
    renewed = [part for part in kind.renews if holds(out, part)]
    parts = {x: folders.load_part(out, x, torch.float32) for x in kind.needs}
    parts |= {x: folders.load_part(out, x, torch.float32) for x in renewed}
    stage = kind(preset, recipe, data, parts, seed, **options)
    train(stage, out, resume, progress)
    if is_main():
        for part, model in stage.finish().items():
            model.save_pretrained(out / part, dtype=torch.float16)
            # what joint makes of it will be compared with it
            if part in folders.TUNED and name != "joint":
                apart = out / folders.SEPARATE / part
                model.save_pretrained(apart, dtype=torch.float16)
        seconds = time.monotonic() - began
        how = {"recipe": {**asdict(recipe), **options}}
        taken = {"steps": recipe.steps, "seconds": round(seconds)}
        note_finished(out, name, taken | how)
        taken = f"{recipe.steps} steps in {seconds:.0f} s, caches included"
        log(out, f"{name:9s} finished: {taken}")
        (out / "checkpoints" / f"{name}.pt").unlink(missing_ok=True)
    for part in stage.makes:
        data.forget(part)
    meet().wait_for_everyone()  # the next stage reads these parts


def opening_line(preset: str, seed: int, data: TrainingData) -> str:
    """What a run is made with and of, for its log."""
    heard = f"{len(data.corpus)} clips"
    if data.recordings:
        heard += f" and {sum(map(len, data.recordings))} pieces of recordings"
    workers = f"{torch.get_num_threads()} threads"
    if n_processes() > 1:
        workers = f"{n_processes()} processes of {workers}"
    return (
        f"preset {preset}, seed {seed}, torch {torch.__version__}, {workers}, {heard}"
    )


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_main():
        print(line)


def note_finished(out: Path, name: str, values: dict[str, Any]) -> None:
    """Write down that a stage is finished, and how."""
    (out / "finished").mkdir(parents=True, exist_ok=True)
    with replacing(out / "finished" / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def finished(out: Path, name: str) -> dict[str, Any]:
    """What was written down when a stage was finished; empty if it was not."""
    path = out / "finished" / f"{name}.json"
    return read_json(path) if path.is_file() else {}


def told_finished(out: Path, name: str) -> bool:
    """Whether a stage was finished before; if so, it is said."""
    if record := finished(out, name):
        say(f"{name}: finished before, {record['steps']} steps")
    return bool(record)


def holds(out: Path, part: str) -> bool:
    """Whether a part has been trained into the folder."""
    return (out / part / "config.json").is_file()


def check_run(names: list[str], preset: str, steps: int | None) -> None:
    """Raise ValueError for stages, presets and numbers of steps that there are not."""
    for name in names:
        if name not in STAGES:
            known = ", ".join(STAGES)
            raise ValueError(f"stage must be all or one of {known}, not {name!r}")
    if preset not in RUNS:
        raise ValueError(f"preset must be one of {', '.join(RUNS)}, not {preset!r}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}")


def check_released(out: Path, names: list[str]) -> None:
    """Raise ValueError for a stage that would put a part of a preset among those of a
    released pipeline.
    """
    tunes = ("adversarial", "audiomae", "joint", "judge")
    others = [name for name in names if name not in tunes]
    if folders.holds_released(out) and others:
        raise ValueError(
            f"{out} holds a released pipeline, which audiomae and joint tune further; "
            f"{others[0]} would start anew: give it another --out"
        )


def check_needs(out: Path, name: str) -> None:
    """Raise FileNotFoundError where a part that the stage builds on has not been
    trained.
    """
    for part in STAGES[name].needs:
        if not holds(out, part):
            maker = next(stage for stage in STAGES.values() if part in stage.makes).name
            raise FileNotFoundError(
                f"stage {name} needs {part}, which is not in {out}: train stage "
                f"{maker} there first"
            )


def prepare_data(
    run: Run,
    out: Path,
    folder: str | Path | None,
    seed: int,
    names: Sequence[str] = ALL_STAGES,
) -> TrainingData:
    """Clips, captions, tokenizer and recordings for these stages of a run, kept in
    `out` for the next one.

    A tokenizer belongs to the encoders that learned to read with it: where one of them
    stays, so does the tokenizer, which is open to any word.
    """
    recorded = None if folder is None else of_part(folder, "train")
    if recorded is None:
        corpus = cached_soundworld(run, out / "cache", seed)
        words, heard = soundworld_words(run, corpus), recordings(run.seconds)
    else:
        corpus = Corpus.from_folder(recorded, run.seconds, progress=is_main())
        words, heard = caption_words(corpus), []
    if folders.holds_released(out):
        return TrainingData(corpus, None, heard, folder=recorded)
    stays = any(holds(out, part) for part in {"clap", "text"}.difference(names))
    if is_main():
        if not stays:
            tokenizer = Tokenizer.train(corpus.captions)
            folders.save_tokenizers(out, tokenizer, tokenizer)
        # these learn what the words sound like
        if not stays or {"gpt", "joint"}.intersection(names):
            folders.save_description(out, run.seconds, words, run.sampling)
    meet().wait_for_everyone()
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    return TrainingData(corpus, tokenizer, heard, folder=recorded)


def cached_soundworld(run: Run, cache: Path, seed: int) -> Corpus:
    """The training clips of SoundWorld, rendered once and kept on disk."""
    name = f"soundworld-{run.n_clips}-{run.seconds}-{run.pairs}-{run.music}-{seed}"
    with meet().main_process_first():
        if not (cache / name).is_dir():
            world = SoundWorld("train", seed, run.seconds, run.pairs, run.music)
            workers = os.cpu_count() or 1
            corpus = Corpus.from_soundworld(world, run.n_clips, workers=workers)
            corpus.save(cache / name)
    return Corpus.load(cache / name)


def soundworld_words(run: Run, corpus: Corpus) -> dict[str, list[str]]:
    """What a pipeline of SoundWorld knows: words, classes, and captions to suggest, the
    plain one of every class first.
    """
    classes = sorted([*CLASSES, *(INSTRUMENTS if run.music else ())])
    told = [plain(name) for name in classes]
    captions = told + sorted(set(corpus.captions[:300]) - set(told))
    words = vocabulary(music=run.music > 0)
    return {"words": words, "classes": classes, "captions": captions}


def caption_words(corpus: Corpus) -> dict[str, list[str]]:
    """What a pipeline of recordings knows: words, and captions to suggest."""
    captions = sorted(set(corpus.captions))
    words = {word for caption in captions for word in split_words(caption)}
    return {"words": sorted(words - {""}), "classes": [], "captions": captions[:200]}


def recordings(seconds: float) -> list[Corpus]:
    """Openly licensed recordings in the folder that MINILIB_REALAUDIO names, kind by
    kind.
    """
    folder = os.environ.get("MINILIB_REALAUDIO")
    if not folder:
        say(
            "MINILIB_REALAUDIO is not set: VAE, vocoder and AudioMAE hear SoundWorld "
            "only"
        )
        return []
    given = {"part": "train", "licences": OPEN_LICENCES, "captions": False}
    kinds = AudioFolder(folder, **given).by("category").values()
    return [Corpus.from_folder(kind, seconds, progress=False) for kind in kinds]
