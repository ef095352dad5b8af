"""Kill training with SIGKILL at random moments, resume it each time, and compare what
comes out with what an unbroken run makes: the same bytes.

    .venv/bin/python tests/kill_nine.py [SEED]

Three stages of the small preset, twenty kills in all, two minutes. Each run is a
process of its own. pytest does not collect this file; the exit status is 1 where
anything differs.
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
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import accelerate  # noqa: E402, F401
import small_world  # noqa: E402
import torch  # noqa: E402

from minilib.training import train_stages  # noqa: E402

KILLS = {"clap": 7, "gpt": 7, "ldm": 6}
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


def start(function, *given) -> multiprocessing.Process:
    """A process that begins where this one is: everything is imported."""
    process = multiprocessing.get_context("fork").Process(target=function, args=given)
    process.start()
    return process


def to_the_end(function, *given) -> None:
    process = start(function, *given)
    process.join()
    assert process.exitcode == 0, f"it ended with {process.exitcode}"


def unbroken(name: str, out: Path) -> tuple[float, float]:
    """Seconds to the first checkpoint, and from there to the end."""
    began, first = time.monotonic(), 0.0
    process = start(run, name, out)
    while process.is_alive():
        if not first and (out / "checkpoints" / f"{name}.pt").is_file():
            first = time.monotonic() - began
        time.sleep(0.002)
    assert process.exitcode == 0 and first
    return first, time.monotonic() - began - first


def step_of(name: str, out: Path) -> int:
    """The step of a checkpoint; 0 where there is none yet."""
    path = out / "checkpoints" / f"{name}.pt"
    return torch.load(path, weights_only=True)["step"] if path.is_file() else 0


def broken(
    name: str, out: Path, longest: float, rng: random.Random
) -> list[tuple[float, int]]:
    """Kill a stage again and again; the seconds after which, and the step then kept."""
    kills = []
    for _ in range(KILLS[name]):
        process, wait = start(run, name, out), rng.uniform(0.0, longest)
        process.join(wait)
        assert process.exitcode is None, f"{name} ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills.append((wait, step_of(name, out)))
    to_the_end(run, name, out)
    return kills


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of all parts and tokenizers."""
    kept = [*out.rglob("*.safetensors"), *out.rglob("config.json")]
    kept += [out / "tokenizer.json", out / "pipeline.json", out / "vocabulary.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def main(seed: int) -> int:
    rng, wrong = random.Random(seed), 0
    print("stage  seconds of each kill (step of the checkpoint then)        the end")
    with tempfile.TemporaryDirectory() as folder, small_world.small_world():
        base = Path(folder) / "base"
        to_the_end(prepare, base)
        for name in KILLS:
            whole, pieces = (
                Path(shutil.copytree(base, Path(folder) / f"{name}-{how}"))
                for how in ("unbroken", "broken")
            )
            first, rest = unbroken(name, whole)
            # so that it is under way at every kill
            longest = first + 1.2 * rest / KILLS[name]
            kills = broken(name, pieces, longest, rng)
            same = weights(whole) == weights(pieces)
            told = " ".join(f"{wait:.2f} ({step})" for wait, step in kills)
            print(f"{name:6} {told}  {'bit-equal' if same else 'DIFFERS'}", flush=True)
            wrong += not same
    print(f"seed {seed}: {sum(KILLS.values())} kills, {wrong} of {len(KILLS)} differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
