"""Processes that read clips: each decodes, cuts and resamples one piece of one sound
file at a time, while the main process trains.

A process is started as `python -m minilib.readers N`. It reads requests from its
standard input and ends when that is closed, however the main process ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from queue import Empty, Queue

import numpy as np
import soxr

from minilib import audio
from minilib.soundworld.corpus import INT16

PATIENCE = 120  # seconds to wait for a process that replaces another
PACKAGE = Path(__file__).resolve().parents[1]


def read_clip(source: str | bytes, place: float, n_samples: int) -> np.ndarray:
    """A piece of a sound file as int16 (n_samples,) at 16 kHz, padded with zeros if the
    file is shorter. Only this piece is decoded.

    Args:
        source: path of the file, or all its bytes.
        place: where the piece lies: 0 is the beginning, 1 the end of the file.

    Raises:
        FileNotFoundError, ValueError: as `audio.load`.
    """
    path = BytesIO(source) if isinstance(source, bytes) else source
    seconds = n_samples / audio.SAMPLE_RATE
    wave, rate = audio.read_piece(path, place, seconds)
    if rate != audio.SAMPLE_RATE:
        wave = soxr.resample(wave, rate, audio.SAMPLE_RATE)
    wave = wave[:n_samples] / max(1.0, float(np.abs(wave).max(initial=0.0)))
    samples = np.zeros(n_samples, dtype=np.int16)
    samples[: len(wave)] = np.round(wave * INT16)
    return samples


class Readers:
    """Clips of `n_samples`, read by `workers` processes; by this one if it is 0, and
    until the others have started.
    """

    def __init__(self, n_samples: int, workers: int) -> None:
        self.n_samples, self.workers = n_samples, workers
        # each thread hands a request to a process and waits for its answer
        self.threads = ThreadPoolExecutor(workers) if workers else None
        self.idle: Queue[subprocess.Popen] = Queue()
        self.started: list[subprocess.Popen] = []
        self.closed = False
        for _ in range(workers):
            threading.Thread(target=self._start, daemon=True).start()

    def read(self, source: str | bytes, place: float) -> Future[np.ndarray]:
        """Ask for the clip that `read_clip` returns."""
        if self.threads:
            return self.threads.submit(self._read, source, place)
        found: Future[np.ndarray] = Future()
        try:
            found.set_result(read_clip(source, place, self.n_samples))
        except (ValueError, OSError) as error:
            found.set_exception(error)
        return found

    def close(self) -> None:
        """End all processes."""
        self.closed = True
        if self.threads:
            self.threads.shutdown(cancel_futures=True)
        for process in list(self.started):
            _end(process)

    def _start(self) -> None:
        """Start a process; it is used as soon as it says that it is ready."""
        process = _started(self.n_samples)
        self.started.append(process)
        with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
            pickle.load(process.stdout)
            self.idle.put(process)
        if self.closed:
            _end(process)

    def _read(self, source: str | bytes, place: float) -> np.ndarray:
        try:
            process = self.idle.get_nowait()
        except Empty:
            return read_clip(source, place, self.n_samples)
        for _ in range(2):  # a process may have been killed while it was idle
            try:
                pickle.dump((source, place), process.stdin)
                process.stdin.flush()
                answer = pickle.load(process.stdout)
                break
            except (EOFError, OSError, pickle.UnpicklingError):
                self.started.remove(process)
                _end(process)
                self._start()
                process = self.idle.get(timeout=PATIENCE)
        else:  # it would end this process, too
            name = "the sound in this row" if isinstance(source, bytes) else source
            answer = ValueError(f"the process that reads {name} ends without an answer")
        self.idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _started(n_samples: int) -> subprocess.Popen:
    paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment["OMP_NUM_THREADS"] = "1"
    line = [sys.executable, "-m", "minilib.readers", str(n_samples)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(line, env=environment, **pipes)


def _end(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # it holds what a killed process has not read
            pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(n_samples: int) -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    with suppress(EOFError, BrokenPipeError):
        pickle.dump("ready", answers)
        answers.flush()
        while True:
            source, place = pickle.load(requests)
            try:
                answer = read_clip(source, place, n_samples)
            except (ValueError, OSError) as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
