"""Kill training with SIGKILL at random moments, resume it each time, and compare what
comes out with what an unbroken run makes: the same bytes.

    .venv/bin/python tests/kill_nine.py [SEED]

Three stages of the small preset, twenty kills in all; then twenty kills of `ldm` on
recordings that two processes read from disk, while features are computed into shards
and while it trains on them: five minutes. Each run is a process of its own. pytest
does not collect this file; the exit status is 1 where anything differs.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import accelerate  # noqa: E402, F401
import datasets  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow  # noqa: E402
import small_world  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401
from pyarrow import parquet  # noqa: E402

from minilib.training import shards, train_stages  # noqa: E402

KILLS = {"clap": 7, "gpt": 7, "ldm": 6}
KILLS_OF_SHARDS = 20
RECORDINGS, IN_A_SHARD, STEPS_ON_SHARDS = 200, 8, 24
STEPS = 120
BEFORE = ["vae", "audiomae", "clap", "text", "gpt"]  # what the three build on


def run(name: str, out: Path) -> None:
    """Train a stage, or go on with it."""
    how = {"steps": STEPS, "resume": True, "progress": False}
    train_stages(name, "small", out, **how)


def prepare(out: Path) -> None:
    """Train all that the stages need, for a step each."""
    train_stages(BEFORE, "small", out, steps=1, progress=False)
    shutil.rmtree(out / "finished")  # they are to be trained on


def run_on_shards(name: str, out: Path) -> None:
    """Train a stage on recordings that are read from disk, with features in shards."""
    os.cpu_count = lambda: 2  # so many processes read
    how = {"resume": True, "progress": False, "features": "shards"}
    given = name, "small", out, out.parent / "set.parquet", STEPS_ON_SHARDS
    train_stages(*given, **how)


def write_recordings(path: Path) -> None:
    """Hisses with captions, as one file."""
    rng, cells = np.random.default_rng(0), []
    for i in range(RECORDINGS):
        file = BytesIO()
        hiss = rng.uniform(-0.5, 0.5, rng.integers(8000, 24000))
        soundfile.write(file, hiss, 22050, format="FLAC")
        cells.append({"bytes": file.getvalue(), "path": f"{i}.flac"})
    said = [f"a {'bell dog rain drum'.split()[i % 4]}" for i in range(RECORDINGS)]
    parquet.write_table(pyarrow.table({"audio": cells, "text": said}), path)


def start(function, *given) -> multiprocessing.Process:
    """A process that begins where this one is: everything is imported."""
    process = multiprocessing.get_context("fork").Process(target=function, args=given)
    process.start()
    return process


def to_the_end(function, *given) -> None:
    process = start(function, *given)
    process.join()
    assert process.exitcode == 0, f"it ended with {process.exitcode}"


def unbroken(name: str, out: Path, how=run) -> tuple[float, float]:
    """Seconds until a run has something to lose, a checkpoint or a shard, and from
    there to the end.
    """
    began, first = time.monotonic(), 0.0
    process = start(how, name, out)
    while process.is_alive():
        if not first and kept(name, out) != (0, 0):
            first = time.monotonic() - began
        time.sleep(0.002)
    assert process.exitcode == 0 and first
    return first, time.monotonic() - began - first


def kept(name: str, out: Path) -> tuple[int, int]:
    """How many checkpoints of a stage there are, and how many shards."""
    shards_ = list((out / "features").rglob("[0-9]*.safetensors"))
    return int((out / "checkpoints" / f"{name}.pt").is_file()), len(shards_)


def step_of(name: str, out: Path) -> int:
    """The step of a checkpoint; 0 where there is none yet."""
    path = out / "checkpoints" / f"{name}.pt"
    return torch.load(path, weights_only=True)["step"] if path.is_file() else 0


def broken(
    name: str, base: Path, out: Path, waits: list[float], how=run
) -> Iterator[tuple[float, int, int]]:
    """Kill a stage again and again; yields the seconds after which, and the step and
    the number of shards then kept. What ends before its kill starts from `base` again,
    and yields -1 for seconds, as the last run does.
    """
    shutil.copytree(base, out)
    for wait in waits:
        while True:
            process = start(how, name, out)
            process.join(wait)
            if process.exitcode is None:
                break
            assert process.exitcode == 0, f"it ended with {process.exitcode}"
            yield -1.0, 0, 0
            shutil.rmtree(out)
            shutil.copytree(base, out)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        yield wait, step_of(name, out), kept(name, out)[1]
    to_the_end(how, name, out)
    yield -1.0, 0, 0


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of all parts, tokenizers and shards."""
    kept = [*out.rglob("*.safetensors"), *out.rglob("config.json")]
    kept += [out / "tokenizer.json", out / "pipeline.json", out / "vocabulary.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def longest(first: float, rest: float, kills: int) -> float:
    """The longest seconds to a kill, such that a run that is killed so often, after
    random times up to it, does its work about once.
    """
    # at each kill, where d is added to `first`: d^2 / (first + d) / 2 on average
    share = 2 * rest / kills
    return first + (share + (share**2 + 4 * share * first) ** 0.5) / 2


def compare(
    name: str, base: Path, kills: int, rng: random.Random, how=run
) -> tuple[bool, str]:
    """Whether a stage that is killed ends with the bytes of one that is not, and how it
    went.
    """
    whole, pieces = (base.parent / f"{name}-{how.__name__}-{x}" for x in ("a", "b"))
    most = longest(*unbroken(name, Path(shutil.copytree(base, whole)), how), kills)
    if how is run_on_shards:  # a run that goes on takes longer to begin
        most *= 2
    waits, same, told = [rng.uniform(0.0, most) for _ in range(kills)], True, []
    for wait, step, many in broken(name, base, pieces, waits, how):
        if wait >= 0:
            told.append(f"{wait:.2f} ({step}{f'; {many} shards' * bool(many)})")
            continue
        equal = weights(whole) == weights(pieces)
        same = same and equal
        told.append("bit-equal" if equal else "DIFFERS")
    return same, " ".join(told)


def main(seed: int) -> int:
    rng, wrong = random.Random(seed), 0
    print("stage  seconds of each kill (step of the checkpoint then)        the end")
    with tempfile.TemporaryDirectory() as folder, small_world.small_world():
        base = Path(folder) / "base"
        to_the_end(prepare, base)
        for name, kills in KILLS.items():
            same, told = compare(name, base, kills, rng)
            print(f"{name:6} {told}", flush=True)
            wrong += not same
        shards.SHARD, datasets.config.HF_DATASETS_CACHE = (
            IN_A_SHARD,
            Path(folder) / "hf",
        )
        write_recordings(base.parent / "set.parquet")
        same, told = compare("ldm", base, KILLS_OF_SHARDS, rng, run_on_shards)
        print(f"ldm on recordings, features in shards: {told}", flush=True)
        wrong += not same
    kills = sum(KILLS.values()) + KILLS_OF_SHARDS
    print(f"seed {seed}: {kills} kills, {wrong} of {len(KILLS) + 1} differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
