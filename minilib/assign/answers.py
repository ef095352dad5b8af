"""The program in the closed process: it runs a notebook's cells, and then calls the
functions in them as often as the checker asks. `sandbox` starts it.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from minilib.assign import confine

HARMLESS = {"%%time", "%%timeit", "%%capture", "%%prun"}  # a cell does the same without


class Stubs:
    """Stands for a notebook's shell, of which answers need nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Cells:
    """The cells of a notebook that have been run, and the names they define."""

    def __init__(self) -> None:
        quiet = lambda *args, **kwargs: None
        self.names = {"__name__": "__main__", "display": quiet, "get_ipython": Stubs}

    def run(self, source: str, seconds: int) -> str:
        """Run a cell, for so many seconds at most; return what went wrong in one line,
        or nothing.
        """
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(seconds)
        try:
            exec(compiled(source), self.names)
            return ""
        except SyntaxError as error:
            line = f" (line {error.lineno} of the cell)" if error.lineno else ""
            return f"SyntaxError: {error.msg}{line}"
        except MemoryError:
            return "MemoryError: it needed too much memory"
        except BaseException as error:  # also SystemExit and KeyboardInterrupt
            return f"{type(error).__name__}: {error}"[:500]
        finally:
            signal.alarm(0)

    def put(self, name: str, value: Any) -> None:
        """Give a name another value."""
        self.names[name] = value

    def find(self, name: str) -> Any:
        """The function or class of that name."""
        if not callable(self.names.get(name)):
            raise NameError(f"the notebook defines no function {name}")
        return self.names[name]


def compiled(source: str) -> Any:
    """The code of a cell; lines such as `%matplotlib inline` are understood, and
    `%%time` at its top is left out.
    """
    first, _, rest = source.lstrip().partition("\n")
    if first.split()[:1] and first.split()[0] in HARMLESS:
        source = f"\n{rest}"
    elif first.startswith("%%"):
        raise SyntaxError(f"cells that begin with {first.split()[0]} are not run")
    try:
        return compile(source, "<cell>", "exec")
    except SyntaxError as error:
        from IPython.core.inputtransformer2 import TransformerManager

        changed = TransformerManager().transform_cell(source)
        if changed.strip() == source.strip():
            raise error
        return compile(changed, "<cell>", "exec")


def too_long(number: int, frame: FrameType | None) -> NoReturn:
    """End a cell that runs for too long."""
    raise TimeoutError("it ran for too long")


def main() -> None:
    """Close the process, and answer calls until the checker hangs up."""
    # the wire moves to other numbers, so that printing doesn't end up in it
    read_from, write_to = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    confine.filter_calls()  # before anything starts a thread
    import torch

    from minilib.assign.wire import Peer, WireError

    torch.set_num_threads(1)
    confine.limit()
    cells, peer = Cells(), Peer(read_from, write_to)
    for function in (cells.run, cells.find, cells.put):  # in `sandbox`'s order
        peer.offer(function)
    try:
        peer.serve()
    except WireError:
        sys.exit()


if __name__ == "__main__":
    main()
