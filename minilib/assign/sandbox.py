"""The closed process in which answers run: no files but the libraries, no network, and
limits on memory, time and files.

bubblewrap (`bwrap`, Linux) closes the file system and the network; `confine` does the
rest from inside. Where bubblewrap is missing, `missing_guard` says so, and the answers
run with the limits alone.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from minilib.assign.wire import Peer, WireError, printable

PACKAGE = Path(__file__).resolve().parents[1]
WEIGHTS = PACKAGE.parent / "data/weights"  # answers may use the weights that ship
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/fonts")
CELL_SECONDS = 10  # that one cell may take
START_SECONDS = 60  # for Python, torch and the notebook's cells together
TEMPORARY_BYTES = 2**26  # of all files that answers write
RUN, FIND, PUT = range(3)  # the functions that `answers.main` offers


def visible() -> list[str]:
    """The folders that answers can read: Python, its packages, minilib, weights."""
    python = (sys.base_prefix, sys.prefix, os.path.realpath(sys.base_prefix))
    return [*SYSTEM, *dict.fromkeys(python), str(PACKAGE), str(WEIGHTS)]


def closed(command: Sequence[str], hidden: Sequence[Path] = ()) -> list[str]:
    """The command, run by bubblewrap: a file system with nothing but `visible` in it,
    without network, as the only process.
    """
    bind = [x for path in visible() for x in ("--ro-bind-try", path, path)]
    for path in hidden:  # where a visible folder contains it
        if any(path.is_relative_to(folder) for folder in visible()):
            bind += ["--tmpfs", str(path)]
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1"),
        *("--cap-drop", "ALL", "--clearenv", *environment_options()),
        # first, since what is visible may lie under /tmp
        *("--size", str(TEMPORARY_BYTES), "--tmpfs", "/tmp", *bind),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--chdir", "/tmp", "--", *command),
    ]


def environment() -> dict[str, str]:
    """The environment of the answers: nothing of the instructor's."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(threads, "1"),
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "MPLBACKEND": "agg",
        "MINILIB_DEVICE": "cpu",
        "PYTHONPATH": str(PACKAGE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
    }


def environment_options() -> list[str]:
    """The environment as options of bubblewrap."""
    return [x for item in environment().items() for x in ("--setenv", *item)]


@functools.cache
def missing_guard() -> str:
    """One sentence about what does not guard this machine from answers, or nothing."""
    risk = "answers can read this machine's files: grade only those that you trust"
    if shutil.which("bwrap") is None:
        return f"bubblewrap is missing (on Debian: apt install bubblewrap), so {risk}"
    tried = subprocess.run(closed(["/usr/bin/env"]), capture_output=True, text=True)
    if tried.returncode:
        reason = " ".join(tried.stderr.split()) or f"exit code {tried.returncode}"
        return f"bubblewrap can't run here ({reason:.200}), so {risk}"
    return ""


class Answers:
    """A notebook's cells in a closed process, whose functions can be called.

    Args:
        cells: (name, source) of each code cell, in order.
        hidden: folders that must stay out of sight even if libraries lie around them.
    """

    def __init__(
        self, cells: Sequence[tuple[str, str]], hidden: Sequence[Path] = ()
    ) -> None:
        self.cells, self.hidden = list(cells), hidden
        self.process: subprocess.Popen | None = None
        self.faults: dict[str, str] = {}  # of cells, by name

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, if it does not run, and run the cells in it."""
        if self.process is not None and self.process.poll() is None:
            return
        self.stop()
        command = [sys.executable, "-m", "minilib.assign.answers"]
        if not missing_guard():
            command = closed(command, self.hidden)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        pipes = self.process.stdout.fileno(), self.process.stdin.fileno()
        self.peer = Peer(*pipes)
        self.allow(START_SECONDS)
        self.faults = {}
        for name, source in self.cells:
            fault = self.run(source)
            if fault:
                self.faults[name] = fault

    def allow(self, seconds: float) -> None:
        """From now on, the process has so much time."""
        self.peer.deadline = time.monotonic() + seconds

    def run(self, source: str) -> str:
        """Run one more cell; what went wrong in one line, or nothing."""
        fault = self.peer.call(RUN, (source, CELL_SECONDS), {})
        return printable(fault) if isinstance(fault, str) else "its result is forged"

    def find(self, name: str) -> Callable[..., Any]:
        """The function of that name, to be called there."""
        found = self.peer.call(FIND, (name,), {})
        if not callable(found):
            raise WireError("its result is forged")
        return found

    def put(self, name: str, function: Callable[..., Any]) -> None:
        """Let a name stand for a function of this process there."""
        self.peer.call(PUT, (name, function), {})

    def stop(self) -> None:
        """End the process and whatever it has started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
