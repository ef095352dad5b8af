"""The small pipeline that ships: how soon it sounds, what each stage takes, how fast it
trains, in what memory, and how fast its clips are rendered.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import heading, in_a_fresh_process, resident, row

from minilib.audioldm2 import AudioLDM2
from minilib.data import Corpus
from minilib.soundworld import SoundWorld, SpeechWorld
from minilib.training import loop
from minilib.training.runs import RUNS
from minilib.training.stages import STAGES, TrainingData

WEIGHTS = Path(__file__).parents[2] / "data" / "weights" / "tiny"
CAPTIONS = ["a dog barks", "rain falls", "a bell rings", "the sound of a siren"]
WARM_UP, TIMED = 3, 12  # training steps
RENDERED = 500  # clips of each world


def report(folder: Path, seconds: float) -> Iterator[str]:
    """Tables of first sound, stages, rates and training."""
    yield from heading("in a fresh process", "seconds")
    arguments = ["generate", "a dog barks", "-o", str(folder / "a.wav")]
    sounding = f"from minilib import cli; cli.main({arguments})"
    for name, code in (
        ("`import minilib`", "import minilib"),
        ("`minilib generate`, first sound", sounding),
    ):
        yield row(name, statistics.median(fresh(code) for _ in range(3)))
    yield ""
    pipe = AudioLDM2.from_pretrained(WEIGHTS, device="cpu")
    for _ in range(2):  # the first one is slower
        pipe(CAPTIONS[0], progress=False)
    yield from heading(f"a sound of 2.56 s, {pipe.sampling.steps} steps", "seconds")
    for stage, taken in pipe.profile.seconds.items():
        yield row(stage, taken)
    yield ""
    yield from heading("batch", "sounds a minute", "MiB of the process")
    for n in (1, 16):
        taken, memory = in_a_fresh_process(generating, n)
        yield row(str(n), 60 * n / taken, memory)
    yield ""
    yield from heading("clips of 2.56 s, one process", "clips a second")
    for name, world in worlds().items():
        began = time.perf_counter()
        Corpus.from_soundworld(world, RENDERED, progress=False)
        yield row(name, RENDERED / (time.perf_counter() - began))
    yield ""
    yield from heading("training", "steps a second", "MiB of the process")
    for stage in STAGES:
        yield row(stage, *in_a_fresh_process(training, stage))


def worlds() -> dict[str, SoundWorld]:
    """A corpus of each kind."""
    return {
        "effects": SoundWorld("train"),
        "music": SoundWorld("train", music=1.0),
        "one spoken word": SpeechWorld("train", words=(1,)),
        "two spoken words": SpeechWorld("train", words=(2,)),
    }


def fresh(code: str) -> float:
    """Seconds that Python takes to start, run this and end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def generating(n: int) -> tuple[float, float]:
    """Seconds of n sounds at once, after a first one, and the most MiB that the process
    had.
    """
    pipe = AudioLDM2.from_pretrained(WEIGHTS, device="cpu")
    pipe(CAPTIONS[0], steps=2, progress=False)
    began = time.perf_counter()
    pipe((CAPTIONS * n)[:n], progress=False)
    return time.perf_counter() - began, resident("VmHWM")


def training(name: str) -> tuple[float, float]:
    """Steps a second of a stage, on 64 clips and without recordings, and the most MiB
    that the process had.
    """
    run = RUNS["tiny"]
    corpus = Corpus.from_soundworld(
        SoundWorld("train", seconds=run.seconds), 64, progress=False
    )
    pipe = AudioLDM2.from_pretrained(WEIGHTS, device="cpu")
    data = TrainingData(corpus, pipe.text.tokenizer)
    parts = {part: getattr(pipe, part) for part in STAGES[name].needs}
    stage = STAGES[name](
        "tiny", run.recipes[name], data, parts, **run.options.get(name, {})
    )
    trained = loop.Loop(stage.model, stage.batch, stage.recipe, stage.seed, name)
    for _ in range(WARM_UP):
        trained.step()
    began = time.perf_counter()
    for _ in range(TIMED):
        trained.step()
    return TIMED / (time.perf_counter() - began), resident("VmHWM")
