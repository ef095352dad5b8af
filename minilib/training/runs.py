"""Whole runs: the recipes of a preset, the data, and every stage in turn into a folder
that ends as a pipeline.

Chapter 16 builds it.
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

from minilib.audioldm2 import (
    load_part,
    load_tokenizers,
    save_description,
    save_tokenizers,
)
from minilib.chain import SEPARATE, TUNED
from minilib.data import OPEN_LICENCES, AudioFolder, Corpus, of_part
from minilib.files import replacing
from minilib.model import read_json
from minilib.soundworld import CLASSES, INSTRUMENTS, SoundWorld, plain, vocabulary
from minilib.tokenizer import Tokenizer, split_words
from minilib.training.beside import Beside
from minilib.training.clips import TrainingData
from minilib.training.loop import Recipe, log, train
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
    pairs: float = 0.5  # share of the clips of effects with two events
    music: float = 0.0  # share of clips that are tunes
    # how the pipeline samples, where not as usual: steps, guidance, guidance_interval,
    # temperature, rescale
    sampling: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "tiny": Run(
        n_clips=12000,
        seconds=2.56,
        pairs=0.4,
        music=0.4,
        sampling={
            "steps": 10,
            "guidance": 1.5,
            "guidance_interval": (300, 1000),
            "temperature": 0.7,
        },
        recipes={
            "vae": Recipe(
                steps=7600,
                batch_size=4,
                lr=2e-3,
                crop=64,
                recorded=0.75,
                narrow=0.25,
                ema=0.995,
            ),
            "vocoder": Recipe(
                steps=1500, batch_size=16, lr=1e-3, crop=48, recorded=0.5, ema=0.99
            ),
            "adversarial": Recipe(
                steps=400,
                batch_size=16,
                lr=2e-4,
                betas=(0.8, 0.99),
                crop=48,
                recorded=0.5,
                ema=0.99,
            ),
            "audiomae": Recipe(
                steps=1000, batch_size=48, lr=1e-3, recorded=0.25, ema=0.99
            ),
            "clap": Recipe(steps=320, batch_size=64, lr=1e-3, ema=0.99),
            "text": Recipe(steps=1500, batch_size=64, lr=2e-3),
            "gpt": Recipe(
                steps=4500, batch_size=32, lr=2e-3, ema=0.998, muon=("linear",)
            ),
            "ldm": Recipe(
                steps=4000,
                batch_size=16,
                lr=2e-3,
                ema=0.998,
                level_power=0.7,
                precision="bf16",
                muon=("conv",),
            ),
            "joint": Recipe(
                steps=3200,
                batch_size=16,
                levels=2,
                lr=1.5e-3,
                ema=0.998,
                level_power=1.2,
                precision="bf16",
                muon=("conv",),
            ),
            "judge": Recipe(steps=400, batch_size=64, lr=2e-3),
        },
    ),
    "colab": Run(
        n_clips=40000,
        seconds=10.24,
        music=0.25,
        recipes={
            "vae": Recipe(
                steps=20000,
                batch_size=16,
                recorded=0.5,
                lr=5e-4,
                crop=128,
                ema=0.999,
                precision="bf16",
            ),
            "vocoder": Recipe(
                steps=20000, batch_size=16, recorded=0.5, lr=2e-4, crop=64, ema=0.999
            ),
            "adversarial": Recipe(
                steps=20000,
                batch_size=16,
                lr=2e-4,
                betas=(0.8, 0.99),
                crop=64,
                recorded=0.5,
                ema=0.999,
            ),
            "audiomae": Recipe(
                steps=10000,
                batch_size=64,
                recorded=0.5,
                lr=5e-4,
                ema=0.999,
                precision="bf16",
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
    ),
}


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
    names = (
        list(ALL_STAGES)
        if stages == "all"
        else [stages]
        if isinstance(stages, str)
        else list(stages)
    )
    check_run(names, preset, steps)
    out, run = Path(out), RUNS[preset]
    todo = []
    for name in names:
        if resume and (record := finished(out, name)):
            say(f"{name}: finished before, {record['steps']} steps")
        else:
            todo.append(name)
    if not todo:
        return out
    check_released(out, todo)
    check_needs(out, todo[0])
    recipes = {
        name: replace(run.recipes[name], steps=steps or run.recipes[name].steps)
        for name in todo
    }
    for name, recipe in recipes.items():
        check_shares(name, recipe.batch_size, recipe.accumulate)
    training_data = prepare_data(run, out, data, seed, todo)
    log(out, opening_line(preset, seed, training_data))
    order = {
        "preset": preset,
        "out": out,
        "seed": seed,
        "resume": resume,
        "progress": progress,
    }
    first, others = in_parallel(todo)
    with Beside(
        run_beside, first, recipe=recipes.get(first), run=run, folder=data, **order
    ) as beside:
        for name in others:
            beside.check(wait=first in STAGES[name].needs)
            check_needs(out, name)
            run_stage(name, recipes[name], training_data, **order)
        beside.check(wait=True)
    return out


def run_stage(
    name: str,
    recipe: Recipe,
    data: TrainingData,
    preset: str,
    out: Path,
    seed: int,
    resume: bool,
    progress: bool,
    row: int = 0,
) -> None:
    """Train one stage, save what it makes, and note that it is finished."""
    began = time.monotonic()
    parts = {part: load_part(out, part, torch.float32) for part in STAGES[name].needs}
    stage = STAGES[name](preset, recipe, data, parts, seed)
    train(stage, out, resume, progress, row)
    for part in stage.makes:
        data.features.pop(part, None)
        if part in ("clap", "text"):
            data.conditions.clear()
    if is_main():
        for part, model in stage.finish().items():
            model.save_pretrained(out / part, dtype=torch.float16)
            # what joint makes of it will be compared with it
            if part in TUNED and name != "joint":
                model.save_pretrained(out / SEPARATE / part, dtype=torch.float16)
        seconds = time.monotonic() - began
        note_finished(
            out,
            name,
            {
                "steps": recipe.steps,
                "seconds": round(seconds),
                "recipe": asdict(recipe),
            },
        )
        log(
            out,
            f"{name:9s} finished: {recipe.steps} steps in {seconds:.0f} s, caches "
            f"included",
        )
        (out / "checkpoints" / f"{name}.pt").unlink(missing_ok=True)
    meet().wait_for_everyone()  # the next stage reads these parts


def run_beside(name: str, run: Run, folder: str | Path | None, **order: Any) -> None:
    """Train one stage in a process of its own, whose bar stands below the other's."""
    data = prepare_data(run, order["out"], folder, order["seed"], [name])
    run_stage(name, data=data, row=1, **order)


def in_parallel(names: list[str]) -> tuple[str | None, list[str]]:
    """The stage to train in a process beside the others, if any, and the others in
    turn.

    Small models leave a CPU's second core half idle, and nothing before ldm needs the
    VAE, which takes as long as all other stages before ldm together: two processes of
    half the threads each are sooner done than one of all. A GPU, or a run of several
    processes, works on one stage at a time.
    """
    alone = (
        torch.cuda.is_available()
        or torch.backends.mps.is_available()
        or "WORLD_SIZE" in os.environ
    )
    independent = [
        name for name in names if name != "vae" and "vae" not in STAGES[name].needs
    ]
    if alone or "vae" not in names or not independent or torch.get_num_threads() < 2:
        return None, names
    return "vae", [name for name in names if name != "vae"]


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


def check_run(names: list[str], preset: str, steps: int | None) -> None:
    """Raise ValueError for stages, presets and numbers of steps that there are not."""
    for name in names:
        if name not in STAGES:
            raise ValueError(
                f"stage must be all or one of {', '.join(STAGES)}, not {name!r}"
            )
    if preset not in RUNS:
        raise ValueError(f"preset must be one of {', '.join(RUNS)}, not {preset!r}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be 1 or more, not {steps}")


def check_released(out: Path, names: list[str]) -> None:
    """Raise ValueError for a stage that would put a part of a preset among those of a
    released pipeline.
    """
    others = [
        name
        for name in names
        if name not in ("adversarial", "audiomae", "joint", "judge")
    ]
    if holds_released(out) and others:
        raise ValueError(
            f"{out} holds a released pipeline, which audiomae and joint tune further; "
            f"{others[0]} would start anew: "
            "give it another --out"
        )


def check_needs(out: Path, name: str) -> None:
    """Raise FileNotFoundError where a part that the stage builds on has not been
    trained.
    """
    for part in STAGES[name].needs:
        if not (out / part / "config.json").is_file():
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
        classes = sorted([*CLASSES, *(INSTRUMENTS if run.music else ())])
        captions = known_captions(classes, corpus)
        words = {
            "words": vocabulary(music=run.music > 0),
            "classes": classes,
            "captions": captions,
        }
    else:
        corpus = Corpus.from_folder(recorded, run.seconds, progress=is_main())
        spoken = {word for caption in corpus.captions for word in split_words(caption)}
        words = {
            "words": sorted(spoken - {""}),
            "classes": [],
            "captions": sorted(set(corpus.captions))[:200],
        }
    heard = recordings(run.seconds) if folder is None else []
    if holds_released(out):
        tokenizer, clap_tokenizer = load_tokenizers(out, load_part(out, "gpt"))
        return TrainingData(
            corpus, tokenizer, heard, clap_tokenizer=clap_tokenizer, folder=recorded
        )
    stays = any(
        (out / part / "config.json").is_file()
        for part in {"clap", "text"}.difference(names)
    )
    if is_main():
        if not stays:
            tokenizer = Tokenizer.train(corpus.captions)
            save_tokenizers(out, tokenizer, tokenizer)
        # these learn what the words sound like
        if not stays or {"gpt", "joint"}.intersection(names):
            save_description(out, run.seconds, words, **run.sampling)
    meet().wait_for_everyone()
    return TrainingData(
        corpus, Tokenizer.load(out / "tokenizer.json"), heard, folder=recorded
    )


def holds_released(out: Path) -> bool:
    """Whether a folder holds a released pipeline, converted, which brings its own
    tokenizers.
    """
    return (out / "clap_tokenizer").is_dir()


def cached_soundworld(run: Run, cache: Path, seed: int) -> Corpus:
    """The training clips of SoundWorld, rendered once and kept on disk."""
    path = (
        cache / f"soundworld-{run.n_clips}-{run.seconds}-{run.pairs}-{run.music}-{seed}"
    )
    with meet().main_process_first():
        if not path.is_dir():
            world = SoundWorld("train", seed, run.seconds, run.pairs, run.music)
            Corpus.from_soundworld(
                world, run.n_clips, workers=os.cpu_count() or 1
            ).save(path)
    return Corpus.load(path)


def known_captions(classes: list[str], corpus: Corpus) -> list[str]:
    """Captions to suggest: the plain one of every class, then some of the corpus."""
    told = [plain(name) for name in classes]
    return told + sorted(set(corpus.captions[:300]) - set(told))


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
    kinds = AudioFolder(
        folder, part="train", licences=OPEN_LICENCES, captions=False
    ).by("category")
    return [
        Corpus.from_folder(kind, seconds, progress=False) for kind in kinds.values()
    ]
