"""Runs the tests of a notebook on answers that live in another process.

The tests see the names of the answers' functions, but a call of one goes over the wire
and back: whatever the answers replace or compare, they replace and compare it in their
own process.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from minilib.assign.sandbox import Answers
from minilib.assign.wire import AnswerError, WireError, printable

TEST_SECONDS = 10  # for the calls of one test cell
MAX_SOURCE = 100_000  # characters of a cell that is looked into
HIDDEN = re.compile(r"^[^\n]*BEGIN HIDDEN TESTS.*?END HIDDEN TESTS[^\n]*", re.M | re.S)


@dataclass(frozen=True)
class Verdict:
    """What became of one test cell."""

    fault: str = ""  # one sentence; empty if the test passed
    printed: str = ""
    ended: bool = False  # whether it took too long, or ended its process
    lent: tuple[str, ...] = ()  # failed answers whose reference stood in for them

    @property
    def passed(self) -> bool:
        """Whether the test passed."""
        return not self.fault


PASS = Verdict()


class Checker:
    """The tests of one assignment, to be run on one submission after another.

    Args:
        given: source of each cell that is given, such as imports and helpers, in order;
            trusted, because it comes from the instructor's notebook.
        names: the functions and classes that answers define.
        hidden: folders that answers must not see.
        reference: source of each cell of the instructor's answers. A failed answer that
            calls another failed one is tried again with that one's reference, which
            runs in this process: answers can call it, and see no more of it.
    """

    def __init__(
        self,
        given: Sequence[str],
        names: Sequence[str],
        hidden: Sequence[Path] = (),
        reference: Sequence[str] = (),
    ) -> None:
        self.names, self.hidden = list(names), hidden
        self.given: dict[str, Any] = {"__name__": "__main__"}
        for source in given:
            exec(compile(source, "<given>", "exec"), self.given)
        self.reference = dict(self.given)
        for source in reference:
            exec(compile(source, "<reference>", "exec"), self.reference)

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
            faults = answers.faults
        failed = [x for x in self.names if not verdicts.get(f"test_{x}", PASS).passed]
        for name in failed:
            calls = used(name, cells) & {*failed} & self.reference.keys() - {name}
            if calls and not verdicts[f"test_{name}"].ended:
                test = tests[f"test_{name}"]
                verdict = self.test_with_reference(cells, sorted(calls), test)
                if verdict.passed:
                    verdicts[f"test_{name}"] = verdict
        return verdicts, faults

    def test_with_reference(
        self, cells: Sequence[tuple[str, str]], lent: Sequence[str], test: str
    ) -> Verdict:
        """The verdict of one test cell when the named functions are the reference's."""
        with Answers(cells, self.hidden) as answers:
            try:
                answers.start()
                for name in lent:
                    answers.put(name, self.reference[name])
            except Exception as error:
                return Verdict(f"The cells can't be run: {error}.")
            verdict = self.test(answers, test)
            return dataclasses.replace(verdict, lent=tuple(lent))

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
                names[name] = named(name, answers.find(name), answers, self.tensors)
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
            ended = isinstance(error, WireError | Ended)
            return Verdict(fault, printable(printed.getvalue()), ended)

    @staticmethod
    def tensors(args: tuple, kwargs: dict[str, Any]) -> str:
        """The types and shapes of the tensors that a function was given."""
        found = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        each = [f"{str(x.dtype)[6:]} {tuple(x.shape)}" for x in found]
        return f" (it was given tensors {', '.join(each)})" if each else ""


class Fault(Exception):
    """A function of the answers failed; its text is a sentence."""


class Ended(Fault):
    """A function took too long, or ended its process."""


def named(
    name: str,
    function: Callable,
    answers: Answers,
    tensors: Callable[[tuple, dict], str],
) -> Callable:
    """The function of the answers, which says its own name when it fails."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except WireError as error:
            answers.stop()
            why = f"{error}"
            if "too long" in why:
                limit = f"a test cell may take {TEST_SECONDS} seconds"
                why = f"it took too long ({limit}): look for an endless loop, or "
                why += "replace a long one by operations on whole tensors"
            elif "has ended" in why:
                why = "its process has ended, by exit() or for want of memory"
            raise Ended(f"{name} did not answer: {why}.") from error
        except NotImplementedError as error:
            if is_written(name, answers.cells):
                line = "`raise NotImplementedError()`"
                raise Fault(f"{name} still stops at {line}: delete it.") from error
            raise Fault(f"{name} is not answered yet.") from error
        except Exception as error:
            if str(error).startswith("SystemExit"):
                raise Ended(f"{name} calls exit().") from error
            error.raised_by, error.given = name, tensors(args, kwargs)
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
    given = getattr(error, "given", "")
    return f"{where}{who} raised {kind}{error}"[:600] + given


def functions(name: str, cells: Sequence[tuple[str, str]]) -> list[ast.AST]:
    """The definitions of that name in the cells that Python can read."""
    found = []
    for _, source in cells:
        if len(source) > MAX_SOURCE:
            continue
        try:
            with warnings.catch_warnings():  # of escapes such as \d
                warnings.simplefilter("ignore")
                body = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        found += [node for node in body if getattr(node, "name", None) == name]
    return found


def used(name: str, cells: Sequence[tuple[str, str]]) -> set[str]:
    """The names that a function of the answers uses."""
    nodes = (x for function in functions(name, cells) for x in ast.walk(function))
    return {x.id for x in nodes if isinstance(x, ast.Name)}


def is_written(name: str, cells: Sequence[tuple[str, str]]) -> bool:
    """Whether a function holds more than a text and `raise NotImplementedError()`."""
    for function in functions(name, cells)[-1:]:
        own = [x for x in function.body if not isinstance(x, ast.Raise)]
        return any(not isinstance(getattr(x, "value", x), ast.Constant) for x in own)
    return False


def defined(source: str) -> list[str]:
    """The functions and classes that a cell defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds)]
