"""Whole training runs: the recipes of a preset, the data, and every stage in turn,
written to a folder that becomes a pipeline.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from minilib import files, folders
from minilib.arguments import MAX_SEED, check_whole, check_word
from minilib.data import (
    CHECKED,
    OPEN_LICENCES,
    SILENT,
    AudioFolder,
    Corpus,
    of_part,
    told,
)
from minilib.files import FULL, replacing
from minilib.guidance import Sampling
from minilib.model import read_json, to_dtype
from minilib.phonemes import PhonemeTokenizer
from minilib.soundworld import CLASSES, INSTRUMENTS, SoundWorld, plain, vocabulary
from minilib.soundworld.speech import SPEAKERS
from minilib.streams import SAMPLE, Stream, is_stream, open_stream
from minilib.tokenizer import Tokenizer, split_words
from minilib.training import curves, origins
from minilib.training.checkpoints import (
    OLDER,
    check_steps,
    checkpoint_path,
    log,
    read_checkpoint,
    train,
)
from minilib.training.clips import TrainingData, learnable, spoken_data
from minilib.training.loop import Recipe, step_generator
from minilib.training.processes import (
    check_shares,
    is_main,
    meet,
    n_processes,
    one_voice,
)
from minilib.training.scale import SCALED
from minilib.training.stages import (
    ALL_STAGES,
    SEEING,
    SOUNDLESS,
    SPEECH,
    STAGES,
    Stage,
    check_seen,
)
from minilib.training.watching import Watch, check_watched

KINDS = {**STAGES, **SPEECH, **SEEING}  # the class of every stage
FEATURES = ("memory", "shards", "fly")  # where outputs of frozen parts are kept


@dataclass(frozen=True)
class Run:
    """The training of a preset: its data and a recipe for each stage."""

    n_clips: int  # clips of SoundWorld that the stages train on
    seconds: float
    recipes: dict[str, Recipe]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # of stages
    pairs: float = 0.5  # share of clips with two events among those of effects
    music: float = 0.0  # share of clips that are tunes
    sampling: Sampling = Sampling()  # the pipeline's settings for sampling
    stages: tuple[str, ...] = ALL_STAGES  # all stages, in order
    sizes: str = ""  # the models' preset; "" for one that is named like the run
    # parts of a trained pipeline that this one uses as they are
    borrows: tuple[str, ...] = ()
    speech: bool = False  # whether the clips are spoken words
    # classes of stages that differ from the usual ones, by name
    kinds: dict[str, type[Stage]] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Whether what it borrows are encoders alone, with tokenizers of their own."""
        return set(self.borrows) == {"text", "clap"}

    def kind(self, name: str) -> type[Stage]:
        """The class of a stage."""
        return self.kinds.get(name, KINDS[name])


BINDING = {  # ImageBind
    "sight": Recipe(steps=800, batch_size=64, lr=3e-3, ema=0.99),
    "bind": Recipe(steps=1000, batch_size=64, lr=3e-3, ema=0.99),
}
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
            **BINDING,
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
            "sight": Recipe(steps=10000, batch_size=128, lr=5e-4, ema=0.999),
            "bind": Recipe(steps=10000, batch_size=128, lr=5e-4, ema=0.999),
            "judge": Recipe(steps=2000, batch_size=64, lr=1e-3),
        },
        options={
            "vae": {"crop": 128, "recorded": 0.5},
            "vocoder": {"crop": 64, "recorded": 0.5},
            "adversarial": {"crop": 64, "recorded": 0.5},
            "audiomae": {"recorded": 0.5},
        },
    ),
    "speech": Run(
        n_clips=0,  # as many as there are words and voices
        seconds=1.28,
        sampling=Sampling(steps=20, guidance=1.5, temperature=0.7),
        stages=("clap", "speak", "utter"),
        sizes="tiny",
        borrows=("vae", "vocoder", "audiomae"),
        speech=True,
        recipes={
            "clap": Recipe(steps=320, batch_size=64, lr=1e-3, ema=0.99),
            "speak": Recipe(
                steps=3000, batch_size=32, lr=2e-3, ema=0.998, muon=("linear",)
            ),
            "utter": Recipe(
                steps=6000, batch_size=16, lr=2e-3, ema=0.998, muon=("conv",),
                precision="bf16",
            ),
            "words": Recipe(steps=600, batch_size=64, lr=2e-3),
            "voices": Recipe(steps=300, batch_size=64, lr=2e-3),
        },
        options={"utter": {"widths": (48, 80, 120)}},
    ),
    "picture": Run(
        n_clips=4000,
        seconds=2.56,
        pairs=0.0,
        music=0.3,
        sampling=Sampling(
            steps=10, guidance=1.5, guidance_interval=(300, 1000), temperature=0.7
        ),
        stages=("sight", "bind", "depict"),
        sizes="tiny",
        borrows=("text", "clap", "unet", "vae", "vocoder", "audiomae"),
        recipes={
            **BINDING,
            "depict": Recipe(
                steps=2000, batch_size=32, lr=2e-3, ema=0.998, muon=("linear",)
            ),
        },
    ),
}  # fmt: skip
# the recipe of the paper and its code: AdamW as torch sets it, a constant rate after
# 10,000 steps of warm-up, an average of the weights. The number of steps is that of the
# authors' training code, the batch that of the released models' configurations (in that
# code it is 2); other numbers of steps are ours where no source is named
AS_RELEASED = Recipe(
    steps=800_000, batch_size=16, lr=1e-4, warmup=10_000, final_lr=1.0,
    betas=(0.9, 0.999), ema=0.9999, precision="bf16", checkpoint_every=1000,
)  # fmt: skip
RUNS["full"] = Run(
    n_clips=40000,
    seconds=10.24,
    music=0.25,
    borrows=("text", "clap"),  # FLAN-T5-large and LAION's CLAP, both frozen
    stages=("vae", "vocoder", "audiomae", "gpt", "ldm", "joint", "adversarial"),
    kinds=SCALED,
    recipes={
        # rate, betas and batch are those of the authors' training code
        "vae": Recipe(
            steps=400_000, batch_size=4, lr=8e-6, warmup=1, final_lr=1.0,
            betas=(0.5, 0.9), weight_decay=0.0, checkpoint_every=1000,
        ),
        "vocoder": Recipe(
            steps=100_000, batch_size=16, lr=2e-4, ema=0.999, checkpoint_every=1000,
        ),
        # steps, rate and betas of HiFi-GAN's authors (2010.05646), whose rate falls by
        # a thousandth an epoch
        "adversarial": Recipe(
            steps=2_500_000, batch_size=16, lr=2e-4, betas=(0.8, 0.99),
            checkpoint_every=1000,
        ),
        # batch, rate, betas and decay of AudioMAE's training code: 2e-4 for every 256
        # clips, and 33 passes over the two million clips of AudioSet, three of them
        # for the warm-up. Its targets are also normalised patch by patch; ours are not
        "audiomae": replace(
            AS_RELEASED, steps=129_000, batch_size=512, lr=4e-4, warmup=11_700,
            betas=(0.9, 0.95), weight_decay=1e-4, ema=0.0, final_lr=0.0, accumulate=8,
        ),
        "gpt": replace(AS_RELEASED, steps=200_000),
        "ldm": AS_RELEASED,
        "joint": replace(AS_RELEASED, steps=350_000),
        "judge": Recipe(steps=2000, batch_size=64, lr=1e-3),
    },
    options={
        "vae": {"recorded": 0.5},
        "vocoder": {"crop": 52, "recorded": 0.5},  # 8,320 samples
        "adversarial": {"crop": 52, "recorded": 0.5},
        "audiomae": {"recorded": 0.5},
    },
)  # fmt: skip
RUNS["large"] = replace(
    RUNS["full"],
    sizes="full",
    options={**RUNS["full"].options, "ldm": {"unet": "large"}},
)


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
    shipped: str | Path | None = None,
    log_with: str | None = None,
    sound_every: int | None = None,
    features: str | None = None,
) -> Path:
    """Train stages in turn and write each finished part to `out`, which becomes a
    pipeline.

    If several processes call it (`torchrun`, `accelerate launch`), they train one
    pipeline together, the same as one process would; only the first writes and prints.

    Args:
        stages: "all", or names of stages; the parts that a stage needs are read from
            `out`.
        preset: "tiny" or "colab", or "speech" or "picture", which borrow parts of a
            pipeline, or "full" or "large", the released sizes, which borrow encoders.
        out: folder of the parts, the log and the checkpoints.
        data: folder of captioned recordings, or another source that
            `streams.open_stream` reads; None for SoundWorld.
        steps: steps of each stage, instead of the recipe's.
        resume: skip finished stages and continue from a stage's last checkpoint.
            Otherwise they start from the beginning, and their checkpoints are deleted.
        seed: of weights and batches.
        progress: show bars, and say what is skipped; otherwise print nothing.
        shipped: folder of the pipeline whose parts a preset borrows, or of the encoders
            (`encoders.gathered`). `out` refers to it.
        log_with: "tensorboard" or "wandb", which is then told of losses and sounds;
            None for neither. `out` keeps a log, and `loss.png`, in any case.
        sound_every: steps between the sounds of a few captions, which are told as well;
            None for none.
        features: where what frozen parts make of the clips and captions is kept:
            "memory"; "shards", files in `out`/features, computed once by all processes
            and read row by row; or "fly", nowhere: it is computed for every batch. None
            for "fly" if the clips are read from disk, else "memory". Of long recordings
            on disk, shards hold as many pieces, spread evenly, as cover them on
            average, and the stages draw from these.

    Raises:
        ValueError: a stage or preset is unknown, steps are below 1, recordings or
            captions are unusable (one sentence lists all faults), the processes can't
            share a batch equally, or another run trains in `out`; or a stage to be
            resumed is damaged, was made with other data or settings, or was finished
            with fewer steps.
        FileNotFoundError: a stage needs a part that does not exist yet.
        ModuleNotFoundError: what `log_with` names is not installed.
    """
    names = stage_names(stages, preset)
    steps, seed = check_run(names, preset, steps, seed)
    check_watched(log_with, sound_every, names)
    check_features(features, data)
    out, run, todo = Path(out), RUNS[preset], names
    check_seen(names, data)
    borrowed = check_borrowed(preset, out, shipped, data, names)
    changed = {} if steps is None else {"steps": steps}
    recipes = {name: replace(run.recipes[name], **changed) for name in names}
    sizes = run.sizes or preset
    if resume:
        check_settings(out, run, recipes, sizes, seed, data)
        todo = [name for name in names if not finished(out, name)]
    check_startable(out, {name: recipes[name] for name in todo}, borrowed)
    with ExitStack() as stack:
        if is_main():
            stack.enter_context(files.alone(out))
        if todo or data is not None:
            how = resume, progress, borrowed, features
            clips = prepare_data(run, out, data, seed, names, *how)
            stack.enter_context(closing(clips))
        for name in names:
            if name not in todo:
                say(f"{name}: {told_finished(out, name)}", progress)
        if todo:
            log(out, opening_line(preset, seed, clips))
        watch = Watch(out, log_with, sound_every, {"preset": preset, "seed": seed})
        stack.enter_context(closing(watch))
        for name in todo:
            check_needs(out, name)
            how = run.options.get(name, {}), clips, sizes, out, seed, resume
            given = recipes[name], *how, progress
            run_stage(name, *given, kind=run.kind(name), watch=watch)
        if todo and is_main():
            curves.draw(out)
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
    kind: type[Stage] | None = None,
    watch: Watch | None = None,
) -> None:
    """Train one stage, save the parts it makes, and record that it is finished; `kind`
    is its class, None for the usual one.
    """
    began, kind = time.monotonic(), kind or KINDS[name]
    kept = data.shards is not None and "audiomae" in kind.needs
    # `text` learns from captions alone
    data.begin(kind.makes != ("text",) and not (kept and kind in SOUNDLESS))
    renewed = [part for part in kind.renews if holds(out, part)]
    parts = {x: folders.load_part(out, x, torch.float32) for x in kind.needs}
    parts |= {x: folders.load_part(out, x, torch.float32) for x in renewed}
    stage = kind(preset, recipe, data, parts, seed, **options)
    origin = origins.of_stage(stage)
    if kept:  # in all processes, as they share in the shards that a batch reads
        stage.batch(step_generator(seed, name, 0))
    if watch is not None:
        watch.open(stage)
    train(stage, out, resume, progress, watch and watch.step)
    if is_main():
        save_parts(out, name, stage.finish())
        seconds = time.monotonic() - began
        del origin["parts"]  # later stages tune some of them
        taken = {"steps": recipe.steps, "seconds": round(seconds)}
        note_finished(out, name, taken | origin)
        taken = f"{recipe.steps} steps in {seconds:.0f} s, caches included"
        log(out, f"{name:9s} finished: {taken}")
        if skipped := data.report():
            log(out, f"{name:9s} {skipped}")
            say(f"{name}: {skipped}", progress)
        checkpoint_path(out, name).unlink(missing_ok=True)
    for part in stage.makes:
        data.forget(part)
    meet().wait_for_everyone()  # since the next stage reads these parts


def save_parts(out: Path, name: str, made: dict[str, Any]) -> None:
    """Write the parts that a stage made, as float16.

    Raises:
        FloatingPointError: a number is not finite in float16; nothing is written.
    """
    for part, model in made.items():
        for key, x in model.state_dict().items():
            if not to_dtype(x, torch.float16).isfinite().all():
                where = f"{key} of {part} is not finite in float16"
                raise FloatingPointError(f"{name}: {where}; lower the learning rate")
    for part, model in made.items():
        model.save_pretrained(out / part, dtype=torch.float16)
        if isinstance(getattr(model, "tokenizer", None), PhonemeTokenizer):
            model.tokenizer.save(out / folders.PHONEMES)
        # the parts that joint tunes will be compared with these
        if part in folders.TUNED and name in ("gpt", "ldm"):
            apart = out / folders.SEPARATE / part
            model.save_pretrained(apart, dtype=torch.float16)


def opening_line(preset: str, seed: int, data: TrainingData) -> str:
    """The settings and data of a run, as a line for its log."""
    heard = f"{len(data.corpus)} clips"
    if data.recordings:
        heard += f" and {sum(map(len, data.recordings))} pieces of recordings"
    workers = f"{torch.get_num_threads()} threads"
    if n_processes() > 1:
        workers = f"{n_processes()} processes of {workers}"
    return (
        f"preset {preset}, seed {seed}, torch {torch.__version__}, {workers}, {heard}"
    )


def say(line: str, progress: bool = True) -> None:
    """Print a line, once for all processes."""
    if progress and is_main():
        print(line)


# --------------------------------------------------------------------------------------
# Stages that are finished or interrupted


def note_path(out: Path, name: str) -> Path:
    """The path of the note that a stage is finished."""
    return out / "finished" / f"{name}.json"


def note_finished(out: Path, name: str, values: dict[str, Any]) -> None:
    """Record that a stage is finished, and how."""
    (out / "finished").mkdir(parents=True, exist_ok=True)
    with replacing(note_path(out, name)) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def finished(out: Path, name: str) -> dict[str, Any]:
    """The record of a finished stage; empty if it is not finished."""
    path = note_path(out, name)
    if not path.is_file():
        return {}
    note = read_json(path)
    if not isinstance(note.get("steps"), int):
        anew = f"remove it to start {name} from the beginning"
        raise ValueError(f"{path} is damaged, as it has no valid `steps`: {anew}")
    return note


def told_finished(out: Path, name: str) -> str:
    """A phrase that says how a stage was finished before."""
    note = finished(out, name)
    older = "" if "data" in note else f"; its note {OLDER}"
    return f"already finished, {note['steps']} steps{older}"


def known_origins(out: Path, name: str) -> Iterator[tuple[Path, origins.Origin]]:
    """The files from which a stage is resumed, and the origin that each records."""
    if note := finished(out, name):
        yield note_path(out, name), note
        return
    path = checkpoint_path(out, name)
    if path.is_file():
        found = read_checkpoint(path)
        yield path, {**found.get("origin", {}), "step": found["step"]}


def check_settings(
    out: Path,
    run: Run,
    recipes: dict[str, Recipe],
    preset: str,
    seed: int,
    data: str | Path | None,
) -> None:
    """Raise ValueError if a stage can't be resumed with these settings, before the
    clips are read.
    """
    for name, recipe in recipes.items():
        kind, options = run.kind(name), run.options.get(name)
        now = origins.of_settings(kind, preset, recipe, seed, options)
        now |= origins.of_tokenizer(kind, out / "tokenizer.json")
        now |= {"source": origins.source(data)}
        for path, known in known_origins(out, name):
            origins.check(path, name, known, now)
            check_steps(path, known.get("step", 0), recipe.steps)
        if (steps := finished(out, name).get("steps", recipe.steps)) < recipe.steps:
            longer = f"to train it for {recipe.steps}, leave out --resume"
            raise ValueError(f"{name} was finished with {steps} steps; {longer}")


def check_clips(out: Path, run: Run, names: Sequence[str], clips: TrainingData) -> None:
    """Raise ValueError if a stage can't be resumed with these clips."""
    for name in names:
        now = origins.of_data(run.kind(name), clips, run.options.get(name))
        for path, known in known_origins(out, name):
            origins.check(path, name, known, now)


def forget(out: Path, names: Sequence[str]) -> None:
    """Remove the checkpoints and notes of stages that start from the beginning."""
    for name in names if is_main() else ():
        checkpoint_path(out, name).unlink(missing_ok=True)
        note_path(out, name).unlink(missing_ok=True)


def holds(out: Path, part: str) -> bool:
    """Whether a part has been trained into the folder, or is borrowed."""
    return (folders.part_folder(out, part) / "config.json").is_file()


# --------------------------------------------------------------------------------------
# Checks of a run's arguments


def stage_names(stages: str | list[str], preset: str) -> list[str]:
    """The stages that are asked for; of "all", those of a preset."""
    every = RUNS[preset].stages if preset in RUNS else ALL_STAGES
    asked = every if stages == "all" else stages
    return [asked] if isinstance(asked, str) else list(asked)


def check_run(
    names: list[str], preset: str, steps: int | None, seed: int
) -> tuple[int | None, int]:
    """Steps and seed as ints; ValueError for unknown stages and presets, and for
    impossible numbers of steps.
    """
    if not names:
        raise ValueError("stages is empty: name at least one, or all")
    if len(names) > 1 and "all" in names:
        raise ValueError("stage all must stand alone: it holds all others of a preset")
    for name in names:
        if name not in KINDS:
            known = ", ".join(STAGES)
            raise ValueError(f"stage must be all or one of {known}, not {name!r}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"stage {twice[0]} is named more than once: name it once")
    if preset not in RUNS:
        raise ValueError(f"preset must be one of {', '.join(RUNS)}, not {preset!r}")
    known = RUNS[preset].recipes
    for name in names:
        if name not in known:
            has = f"whose stages are {', '.join(known)}"
            raise ValueError(f"stage must be one of preset {preset}, {has}, not {name}")
    steps = None if steps is None else check_whole("steps", steps, 1)
    return steps, check_whole("seed", seed, 0, MAX_SEED)


def check_features(features: str | None, data: str | Path | None) -> None:
    """Raise ValueError unless features can be kept like this."""
    if features is None:
        return
    check_word("features", features, FEATURES)
    if features == "memory" and data is not None and is_stream(data):
        said = f"as {str(data)!r} is read from disk clip by clip"
        raise ValueError(f"features must be shards or fly, not memory, {said}")


def check_borrowed(
    preset: str,
    out: Path,
    shipped: str | Path | None,
    data: str | Path | None,
    names: Sequence[str] = (),
) -> dict[str, str]:
    """The folders of the parts that a preset borrows, as they are called from `out`;
    encoders only where one of the stages needs them.

    Raises:
        ValueError: no pipeline is named, or recordings for a preset of speech.
        FileNotFoundError: the pipeline lacks a part.
    """
    run = RUNS[preset]
    if run.speech and data is not None:
        said = f"preset {preset} learns from speech that is made for it"
        raise ValueError(f"data must be None, as {said}, not {str(data)!r}")
    if run.encodes and shipped is None:
        if not any(set(run.borrows) & set(run.kind(name).needs) for name in names):
            return {}
        if all(holds(out, part) for part in run.borrows):
            shipped = folders.part_folder(out, run.borrows[0]).parent
    if run.borrows and shipped is None:
        needed = ", ".join(run.borrows)
        said = f"preset {preset} uses its {needed}"
        of = "encoders (--encoders)" if run.encodes else "a trained pipeline"
        raise ValueError(f"shipped must be the folder of {of}: {said}")
    for part in run.borrows:
        if not holds(Path(shipped), part):
            said = f"preset {preset} borrows {part}, which is not in {shipped}"
            raise FileNotFoundError(said)
    return {x: os.path.relpath(Path(shipped) / x, out) for x in run.borrows}


def check_startable(
    out: Path, recipes: dict[str, Recipe], borrowed: Collection[str] = ()
) -> None:
    """Raise a sentence if these stages can't be trained in this folder, with parts that
    are borrowed, or by these processes.
    """
    check_out(out)
    check_released(out, list(recipes))
    for name in list(recipes)[:1]:
        check_needs(out, name, borrowed)
    for name, recipe in recipes.items():
        check_shares(name, recipe.batch_size, recipe.accumulate)


def check_out(out: Path) -> None:
    """Raise ValueError if the folder can't be made or written to, before the clips take
    minutes to render.
    """
    wanted = f"out must be a writable folder, not {str(out)!r}"
    paths = (out, *out.absolute().parents)
    there = next(path for path in paths if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"{wanted}: {str(there)!r} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ValueError(f"{wanted}: {error.strerror}") from error


def check_released(out: Path, names: list[str]) -> None:
    """Raise ValueError for a stage that would replace a part of a released pipeline by
    one of a preset.
    """
    tunes = ("adversarial", "audiomae", "joint", "judge")
    others = [name for name in names if name not in tunes]
    if folders.holds_released(out) and others:
        raise ValueError(
            f"{out} holds a released pipeline, on which {', '.join(tunes[:-1])} and "
            f"{tunes[-1]} can train; {others[0]} would start from random weights: use "
            "another --out"
        )
    if "joint" in names and speaks(out):
        lacks = "the words spoken in the clips, which no folder of recordings provides"
        raise ValueError(f"{out} holds a speech model, and joint would need {lacks}")


def speaks(out: Path) -> bool:
    """Whether a folder holds a released pipeline that reads phonemes."""
    gpt = folders.part_folder(out, "gpt") / "config.json"
    released = folders.holds_released(out) and gpt.is_file()
    return released and bool(read_json(gpt).get("learned_positions", 0))


def check_needs(out: Path, name: str, borrowed: Collection[str] = ()) -> None:
    """Raise FileNotFoundError if a part that the stage builds on has not been
    trained, and is not one of those that will be borrowed.
    """
    for part in KINDS[name].needs:
        if part not in borrowed and not holds(out, part):
            maker = next(stage for stage in KINDS.values() if part in stage.makes).name
            raise FileNotFoundError(
                f"stage {name} needs {part}, which is not in {out}: train stage "
                f"{maker} there first"
            )


# --------------------------------------------------------------------------------------
# Clips and words


def prepare_data(
    run: Run,
    out: Path,
    folder: str | Path | None,
    seed: int,
    names: Sequence[str] = ALL_STAGES,
    resume: bool = True,
    progress: bool = True,
    borrowed: dict[str, str] | None = None,
    features: str | None = None,
) -> TrainingData:
    """Clips, captions, tokenizer and recordings for these stages of a run, kept in
    `out` for later runs. Everything is checked before anything is written.

    A tokenizer belongs to the encoders that learned to read with it: if one of them
    stays, so does the tokenizer, which can encode any word.
    """
    encoders = None
    if run.encodes and borrowed:
        encoders = (out / borrowed["clap"]).parent
    data = read_clips(run, out, folder, seed, names, progress, encoders)
    data.fly = features == "fly"
    data.shards = out / "features" if features == "shards" else None
    new = [name for name in names if not (resume and finished(out, name))]
    if resume:
        check_clips(out, run, names, data)
    if folders.holds_released(out):
        check_read(read_with(out, new), data.corpus)
        return data
    if run.encodes:
        check_read(read_with(out, new, (), encoders), data.corpus)
        write_description(run, out, data, names if new else (), resume, borrowed)
        return data
    stays = keeps_tokenizer(out, new, resume)
    path = out / "tokenizer.json"
    data.tokenizer = (
        Tokenizer.load(path) if stays else Tokenizer.train(captions_of(data.corpus))
    )
    if any(origins.reads_captions(KINDS[name]) for name in new):
        check_read([data.tokenizer], data.corpus)
    meet().wait_for_everyone()  # all have read the files that the first now changes
    if is_main() and new:
        if not resume:
            forget(out, names)
        write_words(run, out, data, new, stays, borrowed)
    meet().wait_for_everyone()
    if new:
        data.tokenizer = Tokenizer.load(path)
    return data


def read_clips(
    run: Run,
    out: Path,
    folder: str | Path | None,
    seed: int,
    names: Sequence[str],
    progress: bool,
    encoders: Path | None = None,
) -> TrainingData:
    """The clips of SoundWorld, with recordings if there are any, or those of a folder
    without faults.
    """
    if run.speech:
        cache = out / "cache" / f"speech-{run.seconds}"
        with meet().main_process_first():
            return spoken_data(run.seconds, cache, progress and is_main())
    if folder is None:
        corpus = cached_soundworld(run, out / "cache", seed, progress)
        heard = recordings(run.seconds, progress)
        return TrainingData(corpus, recordings=heard, progress=progress)
    if is_stream(folder):
        corpus = read_stream(run, folder, names, progress and is_main())
        return TrainingData(corpus, progress=progress)
    check_folder(out, folder, names, encoders)
    recorded = of_part(folder, "train")
    if "judge" in names:
        learnable(recorded)
    shown = progress and is_main()
    corpus = Corpus.from_folder(recorded, run.seconds, progress=shown)
    return TrainingData(corpus, folder=recorded, progress=progress)


def read_stream(
    run: Run, where: str | Path, names: Sequence[str], progress: bool
) -> Stream:
    """A data set that is read from disk while it is trained on; some of its rows are
    checked, or all if there are few.
    """
    for name in names:
        if name in ("judge", *SEEING, "sight", "bind"):
            said = f"stage {name} trains on a folder of at most {CHECKED} recordings"
            raise ValueError(f"{said}, or on SoundWorld, not on {str(where)!r}")
    with meet().main_process_first():  # which converts it
        stream = open_stream(where, run.seconds, progress=progress)
    many = len(stream) > CHECKED
    found = stream.faults(SAMPLE if many else None)
    faults, n = found.faults, max(1, found.rates.total())
    stream.covered = max(1, round(found.seconds / n / run.seconds))
    if faults and (not many or len(faults) == SAMPLE):
        raise ValueError(told(faults, where))
    return stream


def captions_of(corpus: Corpus | Stream) -> Sequence[str]:
    """The captions of all clips; of a stream, those of a sample."""
    return corpus.sample() if isinstance(corpus, Stream) else corpus.captions


def check_folder(
    out: Path, folder: str | Path, names: Sequence[str], encoders: Path | None = None
) -> None:
    """Raise ValueError with all faults in a folder of recordings: in its table, in its
    files, and captions that are too long.
    """
    every = AudioFolder(folder, strict=False)
    # a silent file does no harm: it is left out, with a warning
    faults = [x for x in every.faults() if not x.endswith(SILENT)]
    tokenizers = []
    if every.captions:
        tokenizers = read_with(out, names, every.captions, encoders)
    if tokenizers:
        faults += long_captions(every, tokenizers)
    if len(faults) == 1:
        raise ValueError(faults[0])
    if faults:
        numbered = (f"({i + 1}) {fault}" for i, fault in enumerate(faults))
        many = f"{str(folder)!r} has {len(faults)} faults"
        raise ValueError(f"{many}: {'; '.join(numbered)}")


def read_with(
    out: Path,
    names: Sequence[str],
    captions: Sequence[str] = (),
    encoders: Path | None = None,
) -> list[Any]:
    """The tokenizers with which these stages read captions: those in the folder, or in
    that of the encoders, or one that would be trained on the captions.
    """
    if not any(origins.reads_captions(KINDS[name]) for name in names):
        return []
    if folders.holds_released(place := encoders or out):
        readers = ("clap",) if speaks(place) else ("clap", "text")
        return [folders.load_tokenizer(place, name) for name in readers]
    if keeps_tokenizer(out, names, resume=True):
        return [Tokenizer.load(out / "tokenizer.json")]
    return [Tokenizer.train(captions)]


def long_captions(folder: AudioFolder, tokenizers: Sequence[Any] = ()) -> list[str]:
    """A sentence, with file and line, for each caption in a folder that has too many
    tokens; without tokenizers, for the one that would be trained on them.
    """
    captions = [caption for caption in folder.captions if caption]
    if captions and not tokenizers:
        tokenizers = [Tokenizer.train(captions)]
    said = {caption: too_long(tokenizers, [caption]) for caption in set(captions)}
    rows = zip(folder.rows, folder.captions)
    return [f"{row.place}: {x}" for row, text in rows for x in said.get(text, ())]


def too_long(tokenizers: Sequence[Any], captions: Sequence[str]) -> list[str]:
    """The errors of tokenizers about captions that have too many tokens."""
    said = []
    for caption in captions:
        try:
            for tokenizer in tokenizers:
                tokenizer.encode([caption])
        except ValueError as error:
            said.append(str(error))
    return said


def check_captions(tokenizers: Sequence[Any], captions: Sequence[str]) -> None:
    """Raise ValueError that names all captions that are too long to be read."""
    if said := too_long(tokenizers, sorted(set(captions))):
        raise ValueError("; ".join(said))


def check_read(tokenizers: Sequence[Any], corpus: Corpus | Stream) -> None:
    """Raise ValueError that names all captions that are too long to be read; a large
    stream skips them instead, when it meets them.
    """
    if isinstance(corpus, Stream):
        corpus.check = lambda caption: [x.encode([caption]) for x in tokenizers]
        if len(corpus) > CHECKED:
            return
    check_captions(tokenizers, captions_of(corpus))


def keeps_tokenizer(out: Path, names: Sequence[str], resume: bool) -> bool:
    """Whether an encoder in the folder has learned to read, or is learning, and these
    stages do not restart it.
    """
    trained = origins.ENCODERS.difference(names)
    learning = origins.ENCODERS if resume else trained
    return any(holds(out, part) for part in trained) or any(
        checkpoint_path(out, name).is_file() for name in learning
    )


def write_words(
    run: Run,
    out: Path,
    data: TrainingData,
    names: Sequence[str],
    stays: bool,
    borrowed: dict[str, str] | None = None,
) -> None:
    """Write the tokenizer and the description, except for those that stay."""
    if not stays:
        folders.save_tokenizers(out, data.tokenizer, data.tokenizer)
    # these stages learn how the words sound
    if not stays or {"gpt", "joint", "speak", "depict"}.intersection(names):
        words = known_words(run, data)
        if run.speech:
            most = max(len(x.split()) for x in data.transcriptions)
            words |= {"classes": list(SPEAKERS), "spoken": most}
        folders.save_description(out, run.seconds, words, run.sampling, borrowed)


def write_description(
    run: Run,
    out: Path,
    data: TrainingData,
    names: Sequence[str],
    resume: bool,
    borrowed: dict[str, str] | None,
) -> None:
    """Write the description of a pipeline whose encoders are borrowed, unless there is
    one already that stays; forget the stages that start from the beginning.
    """
    if is_main() and names:
        if not resume:
            forget(out, names)
        path = out / "pipeline.json"
        if borrowed or not path.is_file():
            words = known_words(run, data)
            folders.save_description(out, run.seconds, words, run.sampling, borrowed)
    meet().wait_for_everyone()


def cached_soundworld(
    run: Run, cache: Path, seed: int, progress: bool = True
) -> Corpus:
    """The training clips of SoundWorld, rendered once and kept on disk."""
    name = f"soundworld-{run.n_clips}-{run.seconds}-{run.pairs}-{run.music}-{seed}"
    with meet().main_process_first():
        if not (cache / name).is_dir():
            world = SoundWorld("train", seed, run.seconds, run.pairs, run.music)
            shown = {"progress": progress, "workers": os.cpu_count() or 1}
            corpus = Corpus.from_soundworld(world, run.n_clips, **shown)
            corpus.save(cache / name)
    return Corpus.load(cache / name)


def known_words(run: Run, data: TrainingData) -> dict[str, Any]:
    """The vocabulary of a pipeline that is trained on these clips."""
    if run.speech or data.streamed or data.folder is not None:
        return caption_words(data.corpus)
    return soundworld_words(run, data.corpus)


def soundworld_words(run: Run, corpus: Corpus) -> dict[str, list[str]]:
    """The vocabulary of a pipeline trained on SoundWorld: words, classes, and captions
    to suggest, beginning with the plain one of every class.
    """
    classes = sorted([*CLASSES, *(INSTRUMENTS if run.music else ())])
    told = [plain(name) for name in classes]
    captions = told + sorted(set(corpus.captions[:300]) - set(told))
    words = vocabulary(music=run.music > 0)
    return {"words": words, "classes": classes, "captions": captions}


def caption_words(corpus: Corpus | Stream) -> dict[str, list[str]]:
    """The vocabulary of a pipeline trained on recordings: words, and captions to
    suggest.
    """
    captions = sorted(set(captions_of(corpus)))
    words = {word for caption in captions for word in split_words(caption)}
    return {"words": sorted(words - {""}), "classes": [], "captions": captions[:200]}


def recordings(seconds: float, progress: bool = True) -> list[Corpus]:
    """The openly licensed recordings in the folder that MINILIB_REALAUDIO names,
    grouped by kind.
    """
    folder = os.environ.get("MINILIB_REALAUDIO")
    if not folder:
        heard = "VAE, vocoder and AudioMAE train on SoundWorld only"
        say(f"MINILIB_REALAUDIO is not set: {heard}", progress)
        return []
    given = {"part": "train", "licences": OPEN_LICENCES, "captions": False}
    kinds = AudioFolder(folder, **given).by("category").values()
    return [Corpus.from_folder(kind, seconds, progress=False) for kind in kinds]
