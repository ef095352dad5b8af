"""Two processes that call each other's functions over a pair of pipes.

Neither trusts the other: only numbers, texts, tensors, and lists, tuples and dicts of
these are sent, as JSON and safetensors, and nothing that arrives is ever executed. A
function is sent as a number, under which the sender can be asked to call it. Gradients
cross as well: a result that depends on an argument, or on a weight of the other side,
can be differentiated here.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

MAX_TEXT = 2**22  # bytes of one message without its tensors
MAX_TENSORS = 2**26  # bytes of the tensors of one message
MAX_KEPT = 1024  # results that wait for their gradients
HEADER = struct.Struct(">QQ")
# errors that a function raised and that its caller may expect
ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, NameError),
    *(NotImplementedError, ZeroDivisionError, OverflowError, FloatingPointError),
)


class WireError(Exception):
    """The other process is gone, silent, or sends what it must not."""


class AnswerError(RuntimeError):
    """The other side's function raised an error that is not one of `ERRORS`."""


class Remote:
    """A function of the other process, which is called there."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer, self.number = peer, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.peer.call(self.number, args, kwargs)


class Peer:
    """One end of the wire.

    Attributes:
        offered: the functions that the other side may call, by their number.
        deadline: the time (`time.monotonic`) after which waiting raises `WireError`.
    """

    def __init__(self, read_from: int, write_to: int) -> None:
        self.read_from, self.write_to = read_from, write_to
        self.offered: list[Callable] = []
        self.deadline = math.inf
        self.kept: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.n_calls = 0

    def offer(self, function: Callable) -> int:
        """The number under which the other side can call a function."""
        for number, known in enumerate(self.offered):
            if known is function:
                return number
        self.offered.append(function)
        return len(self.offered) - 1

    # ---- calls

    def call(self, number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of the other side's function."""
        tree, inputs = self.encode((args, kwargs))
        wants_gradients = torch.is_grad_enabled()
        message = {
            "call": number,
            "value": tree,
            "gradients": wants_gradients,
            "tracked": [wants_gradients and x.requires_grad for x in inputs],
        }
        reply, outputs = self.request(message, inputs)
        tracked = [i for i, is_tracked in enumerate(reply["tracked"]) if is_tracked]
        if tracked:
            trip = Trip(self, reply["number"], [outputs[i] for i in tracked])
            # the anchor makes the result depend on this trip, whatever the arguments
            anchor = torch.zeros((), requires_grad=True)
            for i, x in zip(tracked, Crossing.apply(trip, anchor, *inputs)):
                outputs[i] = x
        return self.decode(reply["value"], outputs)

    def serve(self) -> None:
        """Answer calls until the other side hangs up."""
        while True:
            self.answer(*self.receive())

    def request(self, message: dict, tensors: list[Tensor]) -> tuple[dict, list]:
        """Send a message and wait for its reply; until then, answer calls."""
        self.write(pack(message, tensors))
        while True:
            reply, arrived = self.receive()
            if "error" in reply:
                name, text = (printable(str(x)) for x in reply["error"])
                known = {error.__name__: error for error in ERRORS}
                if name in known:
                    raise known[name](text)
                raise AnswerError(f"{name}: {text}" if text else name)
            if "reply" in reply:
                return reply, arrived
            self.answer(reply, arrived)

    def answer(self, message: dict, tensors: list[Tensor]) -> None:
        """Do what a message asks for, and send the result or the error."""
        try:
            do = self.answer_call if "call" in message else self.answer_gradients
            reply, outputs = do(message, tensors)
            packed = pack({"reply": True, **reply}, outputs)
        except WireError:
            raise
        except (Exception, SystemExit) as error:
            packed = pack({"error": [type(error).__name__, str(error)[:1000]]}, [])
        self.write(packed)

    def answer_call(self, message: dict, tensors: list[Tensor]) -> tuple[dict, list]:
        """Call the function that a message names."""
        inputs = [
            x.requires_grad_() if tracked else x
            for x, tracked in zip(tensors, message["tracked"])
        ]
        args, kwargs = self.decode(message["value"], inputs)
        with torch.set_grad_enabled(message["gradients"] is True):
            value = self.offered[message["call"]](*args, **kwargs)
        tree, outputs = self.encode(value)
        tracked = [x.requires_grad for x in outputs]
        self.n_calls += 1
        if any(tracked):
            kept = [x for x in outputs if x.requires_grad]
            self.kept[self.n_calls] = inputs, kept
            self.kept.pop(self.n_calls - MAX_KEPT, None)
        return {"value": tree, "tracked": tracked, "number": self.n_calls}, outputs

    def answer_gradients(
        self, message: dict, tensors: list[Tensor]
    ) -> tuple[dict, list]:
        """Carry the gradients of an earlier result back to the arguments, and to the
        weights behind it.
        """
        inputs, outputs = self.kept[message["back"]]
        torch.autograd.backward(outputs, tensors, retain_graph=True)
        found = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        tree, gradients = self.encode(found)
        return {"value": tree, "tracked": []}, gradients

    # ---- values

    def encode(self, value: Any) -> tuple[Any, list[Tensor]]:
        """A value as JSON, and the tensors in it, in the order of their numbers."""
        tensors: list[Tensor] = []

        def keep(x: Tensor, kind: str) -> dict:
            tensors.append(x)
            return {kind: len(tensors) - 1}

        def tree(x: Any) -> Any:
            if x is None or isinstance(x, bool | int | float | str):
                return x
            if isinstance(x, Tensor) and x.dtype == torch.complex128:
                return keep(torch.view_as_real(x), "complex128")
            if isinstance(x, Tensor):
                return keep(x, "tensor")
            if isinstance(x, np.generic):
                return tree(x.item())
            if isinstance(x, np.ndarray):
                return keep(torch.from_numpy(np.array(x)), "array")
            if isinstance(x, torch.Generator):
                return keep(x.get_state(), "generator")
            if isinstance(x, torch.dtype):
                return {"dtype": str(x).removeprefix("torch.")}
            if isinstance(x, complex):
                return {"complex": [x.real, x.imag]}
            if isinstance(x, tuple):
                return {"tuple": [tree(y) for y in x]}
            if isinstance(x, list):
                return [tree(y) for y in x]
            if isinstance(x, dict):
                return {"dict": [[tree(k), tree(y)] for k, y in x.items()]}
            if isinstance(x, Remote):
                return {"yours": x.number}
            if callable(x):
                return {"function": self.offer(x)}
            kinds = "a number, text, tensor, function, or list, tuple or dict of these"
            raise TypeError(f"a {type(x).__name__} can't be compared: give {kinds}")

        return tree(value), tensors

    def decode(self, tree: Any, tensors: list[Tensor]) -> Any:
        """The value that `encode` took apart."""
        if isinstance(tree, list):
            return [self.decode(x, tensors) for x in tree]
        if not isinstance(tree, dict):
            return tree
        ((kind, x),) = tree.items()
        if kind == "tensor":
            return tensors[x]
        if kind == "complex128":
            return torch.view_as_complex(tensors[x])
        if kind == "array":
            return tensors[x].detach().numpy()
        if kind == "generator":
            generator = torch.Generator()
            generator.set_state(tensors[x])
            return generator
        if kind == "dtype":
            found = getattr(torch, x)
            return found if isinstance(found, torch.dtype) else None
        if kind == "complex":
            return complex(*x)
        if kind == "tuple":
            return tuple(self.decode(y, tensors) for y in x)
        if kind == "dict":
            return {self.decode(k, tensors): self.decode(y, tensors) for k, y in x}
        return self.offered[x] if kind == "yours" else Remote(self, int(x))

    # ---- bytes

    def write(self, packed: bytes) -> None:
        """Write one message."""
        left = memoryview(packed)
        while left:
            self.wait([], [self.write_to])
            try:  # so few bytes that a pipe that is ready takes them at once
                left = left[os.write(self.write_to, left[: select.PIPE_BUF]) :]
            except OSError as error:
                raise WireError("the process has ended") from error

    def receive(self) -> tuple[dict, list[Tensor]]:
        """Read one message; whatever is wrong with it raises `WireError`."""
        n_text, n_data = HEADER.unpack(self.read(HEADER.size))
        if n_text > MAX_TEXT or n_data > MAX_TENSORS:
            raise WireError("the result is too large")
        text, data = self.read(n_text), self.read(n_data)
        try:
            message, arrived = json.loads(text), safetensors.torch.load(data)
            if message.keys() & {"call", "back", "reply", "error"}:
                return message, [arrived[str(i)] for i in range(len(arrived))]
        except Exception as error:
            raise WireError("a message can't be read") from error
        raise WireError("a message can't be read")

    def read(self, n: int) -> bytes:
        """Exactly n bytes."""
        parts = []
        while n:
            self.wait([self.read_from], [])
            parts.append(os.read(self.read_from, min(n, 2**20)))
            if not parts[-1]:
                raise WireError("the process has ended")
            n -= len(parts[-1])
        return b"".join(parts)

    def wait(self, to_read: list[int], to_write: list[int]) -> None:
        """Wait until the pipe is ready, but not beyond the deadline."""
        left = self.deadline - time.monotonic()
        if left > 0:
            patience = None if math.isinf(left) else left
            if any(select.select(to_read, to_write, [], patience)):
                return
        raise WireError("it took too long")


class Trip:
    """One call whose results can be differentiated."""

    def __init__(self, peer: Peer, number: int, outputs: list[Tensor]) -> None:
        self.peer, self.number, self.outputs = peer, number, outputs

    def back(self, gradients: tuple[Tensor, ...]) -> list[Tensor | None]:
        """The gradients of the arguments, from those of the results."""
        tensors = [x.contiguous() for x in gradients]
        reply, found = self.peer.request({"back": self.number}, tensors)
        return self.peer.decode(reply["value"], found)


class Crossing(torch.autograd.Function):
    """Puts a call of the other process into this one's graph."""

    @staticmethod
    def forward(ctx: Any, trip: Trip, anchor: Tensor, *inputs: Tensor) -> tuple:
        """The results of the trip."""
        ctx.trip = trip
        return tuple(trip.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        """No gradient for the trip and the anchor, then those of the arguments."""
        return None, None, *ctx.trip.back(gradients)


def printable(text: str) -> str:
    """A text from the other side without characters that can't be printed or stored."""
    return "".join(x if x.isprintable() or x == "\n" else "?" for x in text)


def pack(message: dict, tensors: list[Tensor]) -> bytes:
    """One message: the lengths of its two parts, JSON, safetensors."""
    text = json.dumps(message).encode()
    plain = {str(i): plain_copy(x) for i, x in enumerate(tensors)}
    data = safetensors.torch.save(plain)
    return HEADER.pack(len(text), len(data)) + text + data


def plain_copy(x: Tensor) -> Tensor:
    """The numbers of a tensor, by themselves, in memory of their own."""
    x = x.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    return x.to("cpu").clone(memory_format=torch.contiguous_format)
