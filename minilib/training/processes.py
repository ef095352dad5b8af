"""Several processes that train as one, started by `torchrun` or `accelerate launch` on
one machine or many.

Each holds the whole model, or its share where `sharding` cuts it. All draw the same
global batch, of which each takes its share; the gradients are averaged. Operations that
couple the clips of a batch, CLAP's contrastive loss and batch norm, must see the clips
of all processes. Only the main process writes files, to a folder that all of them can
see.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore

from minilib.layers import gathered
from minilib.model import has_gpu

if TYPE_CHECKING:
    from accelerate import PartialState

# patience of waiting processes, e.g. while the main process renders the corpus
PATIENCE = timedelta(hours=6)
# seconds; when one process fails, the launcher ends the others within a second
GRACE = 5.0
# the launcher's variable that asks for shards, and where it is kept from accelerate
FSDP, SHARDS = "ACCELERATE_USE_FSDP", "MINILIB_SHARDS"
LOST = (
    "a process of this run has ended; all is kept up to the last checkpoint: go on "
    "with --resume"
)


def n_processes() -> int:
    """The number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes, prints and shows progress bars."""
    return os.environ.get("RANK", "0") == "0"


def meet() -> PartialState:
    """Join the started processes, on GPUs or on the CPU; a single process is a run of
    one.

    Raises:
        ValueError: the processes do not find each other, so that each would train and
            write as if it were alone.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without a GPU, and on Apple's, the CPU must be requested, or the processes would
    # not find each other.
    alone = n_processes() == 1 and os.environ.get("MINILIB_DEVICE") != "cpu"
    gpu = has_gpu() or (alone and torch.backends.mps.is_available())
    state = PartialState(
        cpu=not gpu or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE
    )
    # accelerate's own shards exist on GPUs alone: `sharding` makes them everywhere
    if FSDP in os.environ:
        os.environ[SHARDS] = os.environ.pop(FSDP)
    if state.num_processes != n_processes():
        raise ValueError(
            f"{n_processes()} processes were started, but accelerate sees "
            f"{state.num_processes}"
        )
    return state


def check_shares(name: str, batch_size: int, accumulate: int) -> None:
    """Raise ValueError if a stage's batch can't be cut into equal shares; unequal ones
    would have unequal weights.
    """
    if batch_size % (n_processes() * accumulate):
        raise ValueError(
            f"batch_size of stage {name} must be a multiple of processes x accumulate "
            f"({n_processes()} x {accumulate}), not {batch_size}"
        )


@contextmanager
def one_voice() -> Iterator[None]:
    """Let only the process that fails first report the error; the others, which fail
    with it, end silently.

    Either all fail in the same way, or one fails and the others wait for it in vain
    until the launcher ends them. One that is killed reports nothing: then the first of
    the others that loses it, or is ended by the launcher, says so.

    Raises:
        ConnectionAbortedError: another process of this run has ended.
    """
    if n_processes() == 1:
        yield
        return
    before = on_end(abort)
    try:
        yield
    except Exception as error:
        lost = is_lost(error)
        # the launcher is about to end this process too, which has something to say
        on_end((lambda *about: None) if lost else before)
        if fails_first(otherwise=lost or is_main()):
            if lost:
                raise ConnectionAbortedError(LOST) from error
            raise
        on_end(signal.SIG_DFL)
        # if this process ended first, the launcher would stop the other too early
        time.sleep(GRACE)
        raise SystemExit(2) from error
    except BaseException:
        on_end(before)
        raise
    on_end(before)


def on_end(act: Any) -> Any:
    """Set what this process does when the launcher ends it, if this is its main thread;
    return what it did before.
    """
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, act)
    return act


def abort(*about: Any) -> None:
    """Stop what this process is doing."""
    raise ConnectionAbortedError(LOST)


def is_lost(error: Exception) -> bool:
    """Whether an error says that the connection to another process has broken."""
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def fails_first(otherwise: bool) -> bool:
    """Whether no other process of this run has failed before; failures are counted in
    the launcher's store. Without a store, what stands in `otherwise`.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=GRACE))
        return store.add(f"minilib failed, start {start}", 1) == 1
    except (KeyError, RuntimeError):
        # The main process, which may hold it, has not created it yet or has ended.
        return otherwise


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm (1502.03167) with the mean and variance of the global batch; its input
    is one process's equal share of that batch.

    (torch's SyncBatchNorm does the same, but only on GPUs.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, F) -> (B, C, T, F)."""
        if not self.training:
            return super().forward(x)
        h = x.to(self.weight.dtype)  # statistics in full precision
        mean = gathered(h.mean(dim=(0, 2, 3))[None]).mean(dim=0)  # (C,)
        h = h - mean[:, None, None]
        variance = gathered(h.square().mean(dim=(0, 2, 3))[None]).mean(dim=0)  # (C,)
        n = n_processes() * h.numel() / h.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (h * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_batch_norm(model: nn.Module) -> None:
    """Make each batch norm of a model use the global batch if several processes train;
    parameters, buffers and their names stay.
    """
    for module in model.modules() if n_processes() > 1 else ():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
