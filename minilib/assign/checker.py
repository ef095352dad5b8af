"""Runs the tests of a notebook on answers that live in another process.

The tests see the names of the answers' functions, but a call of one goes over the wire
and back: whatever the answers replace or compare, they replace and compare it in their
own process.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from minilib.assign.sandbox import Answers
from minilib.assign.wire import AnswerError, WireError, printable

TEST_SECONDS = 10  # for the calls of one test cell
HIDDEN = re.compile(r"^[^\n]*BEGIN HIDDEN TESTS.*?END HIDDEN TESTS[^\n]*", re.M | re.S)


@dataclass(frozen=True)
class Verdict:
    """What became of one test cell."""

    fault: str = ""  # one sentence; empty if the test passed
    printed: str = ""

    @property
    def passed(self) -> bool:
        """Whether the test passed."""
        return not self.fault


class Checker:
    """The tests of one assignment, to be run on one submission after another.

    Args:
        given: source of each cell that is given, such as imports and helpers, in order;
            trusted, because it comes from the instructor's notebook.
        names: the functions and classes that answers define.
        hidden: folders that answers must not see.
    """

    def __init__(
        self, given: Sequence[str], names: Sequence[str], hidden: Sequence[Path] = ()
    ) -> None:
        self.names, self.hidden = list(names), hidden
        self.given: dict[str, Any] = {"__name__": "__main__"}
        for source in given:
            exec(compile(source, "<given>", "exec"), self.given)

    def check(
        self, cells: Sequence[tuple[str, str]], tests: dict[str, str]
    ) -> tuple[dict[str, Verdict], dict[str, str]]:
        """The verdict of each test on answers, and the faults of the answers' cells.

        Args:
            cells: (name, source) of each cell of the answers, given ones among them.
            tests: name -> source of each test cell.
        """
        with Answers(cells, self.hidden) as answers:
            verdicts = {name: self.test(answers, test) for name, test in tests.items()}
            return verdicts, answers.faults

    def test(self, answers: Answers, test: str) -> Verdict:
        """The verdict of one test cell. Answers that an earlier test left dead are
        started again.
        """
        try:
            answers.start()
        except Exception as error:
            answers.stop()
            return Verdict(f"The cells can't be run: {error}.")
        answers.allow(TEST_SECONDS)
        names = dict(self.given)
        for name in self.names:
            try:
                names[name] = named(name, answers.find(name), answers)
            except Exception as error:
                names[name] = missing(name, error, answers.faults)
        torch.manual_seed(0)
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                exec(compile(test, "<test>", "exec"), names)
            return Verdict("", printable(printed.getvalue()))
        except Exception as error:
            if isinstance(error, WireError):  # what they say now can't be trusted
                answers.stop()
            fault = printable(fault_of(error, test))
            return Verdict(fault, printable(printed.getvalue()))


class Fault(Exception):
    """A function of the answers failed; its text is a sentence."""


def named(name: str, function: Callable, answers: Answers) -> Callable:
    """The function of the answers, which says its own name when it fails."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except WireError as error:
            answers.stop()
            raise Fault(f"{name} did not answer: {error}.") from error
        except NotImplementedError as error:
            raise Fault(f"{name} is not answered yet.") from error
        except Exception as error:
            error.raised_by = name
            raise

    return call


def missing(name: str, error: Exception, faults: dict[str, str]) -> Callable:
    """Stands for a function that the answers don't have."""
    own = {name: faults[name]} if name in faults else faults
    why = "; ".join(f"cell {cell}: {fault}" for cell, fault in own.items())

    def call(*args: Any, **kwargs: Any) -> NoReturn:
        raise Fault(f"{name} is missing ({why or error}).")

    return call


def fault_of(error: Exception, test: str) -> str:
    """What a test found, in one sentence that shows nothing of a hidden test but the
    message written for students.
    """
    if isinstance(error, Fault):
        return str(error)
    line = 0
    trace = error.__traceback__
    while trace is not None:  # the last line of the test itself
        if trace.tb_frame.f_code.co_filename == "<test>":
            line = trace.tb_lineno
        trace = trace.tb_next
    hidden = any(
        test[: found.start()].count("\n") < line <= test[: found.end()].count("\n") + 1
        for found in HIDDEN.finditer(test)
    )
    where = "A hidden test: " if hidden else ""
    if isinstance(error, AssertionError):
        return where + (str(error) or "an assertion does not hold")
    if isinstance(error, WireError):
        return f"{where}the answers' process did not answer: {error}"
    who = getattr(error, "raised_by", "the test")
    if "allocate memory" in str(error) or "MemoryError" in str(error):
        return f"{where}{who} needed too much memory"
    kind = "" if isinstance(error, AnswerError) else f"{type(error).__name__}: "
    return f"{where}{who} raised {kind}{error}"[:600]


def defined(source: str) -> list[str]:
    """The functions and classes that a cell defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds)]
