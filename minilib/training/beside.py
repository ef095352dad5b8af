"""A second process for work that nothing waits for yet: both get half of the CPU's
threads. Chapter 16 builds it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch


class Beside:
    """Run `function(name, **arguments)` in another process while the `with` block runs
    here.

    Whoever leaves the block early stops that process too. With `name` None nothing runs
    beside the block.
    """

    def __init__(
        self, function: Callable[..., None], name: str | None, **arguments: Any
    ):
        self.name, self.work, self.process = name, (function, arguments), None

    def __enter__(self) -> Beside:
        self.n_threads = torch.get_num_threads()
        if self.name is not None:
            half = max(1, self.n_threads // 2)
            # Spawned, not forked: a fork of a process whose torch has threads can hang.
            context = multiprocessing.get_context("spawn")
            self.hears, says = context.Pipe(duplex=False)
            function, arguments = self.work
            self.process = context.Process(
                target=work_beside,
                args=(says, half, function, self.name),
                kwargs=arguments,
                daemon=True,
            )
            self.process.start()
            says.close()
            torch.set_num_threads(max(1, self.n_threads - half))
        return self

    def check(self, wait: bool = False) -> None:
        """Raise ChildProcessError if the work beside has failed; `wait` for its end.

        All threads are ours after it.
        """
        if self.process is None or not (wait or self.hears.poll()):
            return
        try:
            failure = self.hears.recv()
        except EOFError:
            failure = "it was killed"
        self.process.join()
        self.process = None
        torch.set_num_threads(self.n_threads)
        if failure:
            raise ChildProcessError(
                f"{self.name}, trained in a process beside the others, stopped: "
                f"{failure}"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join()
        torch.set_num_threads(self.n_threads)


def work_beside(
    says: Connection,
    n_threads: int,
    function: Callable[..., None],
    name: str,
    **arguments: Any,
) -> None:
    """What the second process does: the work, then a word on how it ended ("" for
    well).
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(n_threads)
    try:
        function(name, **arguments)
    except KeyboardInterrupt:
        says.send("it was interrupted")
    except Exception as error:
        says.send(str(error) or type(error).__name__)
    else:
        says.send("")


def end_with_parent() -> None:
    """Leave no process behind when its parent was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)
