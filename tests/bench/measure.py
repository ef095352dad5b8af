"""What the benchmarks share: works that take turns, memory of a fresh process, the
machine's name, tables.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]


def take_turns(*works: Work, seconds: float = 10.0) -> list[float]:
    """Median time of each work, run in turns for about so many seconds and at least
    three times.

    Whatever else the machine does meets all alike, so that their ratios are better
    known than the times.
    """
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    until = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < until:
        for work, taken in zip(works, times, strict=True):
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]


def resident(name: str) -> float:
    """Memory of this process in MiB: VmRSS, what it has now, or VmHWM, the most it had.

    Linux only.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return (
        next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
        / 1024
    )


def peak(work: Work) -> tuple[float, float]:
    """Seconds that a work takes, and the MiB that it needs at most above what the
    process held before.
    """
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    began = time.perf_counter()
    work()
    return time.perf_counter() - began, resident("VmHWM") - before


def in_a_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module gives in a process of its own, whose memory nothing
    else has used.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def machine() -> str:
    """The processor, the threads, and the GPU if there is one."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{cpu}, {threads}{gpu}, torch {torch.__version__}"


def heading(*columns: str) -> Iterator[str]:
    """The first two lines of a table in Markdown: the first column stands left, the
    others right.
    """
    yield "| " + " | ".join(columns) + " |"
    yield "|---|" + "--:|" * (len(columns) - 1)


def row(*cells: str | float | None) -> str:
    """A line of a table: numbers with three significant digits, None as nothing."""
    shown = ("" if c is None else c if isinstance(c, str) else digits(c) for c in cells)
    return "| " + " | ".join(shown) + " |"


def digits(x: float) -> str:
    """A number with three significant digits, and never as a power of ten."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:#.3g}"
