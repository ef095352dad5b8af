"""Memory and time to the first batch of a stream of 1,000 and of 1,000,000 rows, which
name the same 100 files.

    .venv/bin/python tests/stream_memory.py [BATCHES]

Each is read in a process of its own, with two that read for it. Printed are the time
from opening to the first batch, without imports, and again when the table has been
converted before; the time of a later batch; and the memory of the process: its own, and
all of it, with the pages of the Arrow file that it happened to touch, which the system
takes back when it needs them. The exit status is 1 where its own memory differs by more
than 50 MB. pytest does not collect this file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ROWS = 1_000, 1_000_000
MOST = 50  # MB
SECONDS, BATCH = 2.56, 32
FIELDS = ("opened", "first", "later", "own", "whole")


def make(folder: Path) -> None:
    """A hundred recordings of five seconds, and a table of each length."""
    import pyarrow
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    for i in range(100):
        noise = 0.1 * rng.standard_normal(5 * 44100)
        soundfile.write(folder / f"{i}.flac", noise, 44100)
    for n in ROWS:
        files = [f"{i % 100}.flac" for i in range(n)]
        said = [f"noise number {i} of {n}, row by row" for i in range(n)]
        table = pyarrow.table({"file_name": files, "caption": said})
        parquet.write_table(table, folder / f"{n}.parquet")


def memory(name: str) -> float:
    """A line of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1e3
    raise KeyError(name)


def measure(table: Path, batches: int) -> None:
    """Read batches, and print the FIELDS."""
    import datasets  # noqa: F401
    import torch

    from minilib import streams

    draw = lambda step: stream.drawn(BATCH, torch.Generator().manual_seed(step))
    began = time.monotonic()
    stream = streams.open_stream(table, SECONDS, workers=2)
    stream.sample()  # the captions from which words are taken
    opened = time.monotonic() - began
    stream.wave(stream.settled(draw(0)))
    first, later = time.monotonic() - began, time.monotonic()
    for step in range(1, batches):
        stream.ahead(draw(step + 1))
        stream.wave(stream.settled(draw(step)))
    later = (time.monotonic() - later) / max(1, batches - 1)
    print(opened, first, later, memory("RssAnon"), memory("VmRSS"))
    stream.close()


def main(batches: int) -> int:
    """Print the table of measurements."""
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        line = "{:>10}{:>12}{:>14}{:>14}{:>14}{:>10}{:>10}".format
        print(line("rows", "converted", *FIELDS[:3], "own MB", "whole MB"))
        own, whole = [], []
        for n in ROWS:
            for again in ("now", "before"):
                found = in_a_process(Path(made), n, batches)
                times = [f"{x:.2f} s" for x in found[:3]]
                print(line(n, again, *times, *(f"{x:.0f}" for x in found[3:])))
                own.append(found[3])
                whole.append(found[4])
        differences = [max(x) - min(x) for x in (own, whole)]
        print("difference: {:.0f} MB own, {:.0f} MB whole".format(*differences))
        return int(differences[0] > MOST)


def in_a_process(folder: Path, n: int, batches: int) -> list[float]:
    line = [sys.executable, __file__, str(batches), str(folder / f"{n}.parquet")]
    home = {**os.environ, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(line, env=home, check=True, stdout=subprocess.PIPE, text=True)
    return [float(x) for x in told.stdout.split()]


if __name__ == "__main__":
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    if len(sys.argv) > 2:
        measure(Path(sys.argv[2]), many)
    else:
        sys.exit(main(many))
