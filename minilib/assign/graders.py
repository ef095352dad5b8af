"""Graders are graded: right and wrong answers, tried on each function's tests.

chapters/assignments/graders/NAME.py holds functions named `jump__wrong_no_root` and
`jump__right_loops`: each takes the place of the reference answer `jump` in turn. A test
must take the points of the wrong ones, and leave them to the right ones, which are
written in other styles.

`python -m minilib.assign.graders [NAME ...]` tries all and prints what survived.
"""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from minilib.assign.checker import Checker
from minilib.assign.course import ASSIGNMENTS, Assignment, assignment, assignments, kind
from minilib.assign.sandbox import Answers

MIN_WRONG, MIN_RIGHT = 8, 2  # for each function
MIN_CAUGHT = 0.95  # of all wrong answers


@dataclass(frozen=True)
class Variant:
    """One answer to one function."""

    function: str
    label: str  # what is wrong, or the style
    right: bool
    source: str


@dataclass(frozen=True)
class Trial:
    """What the tests said of one answer."""

    variant: Variant
    fault: str  # empty if it passed

    @property
    def just(self) -> bool:
        """Whether the verdict is right."""
        return self.variant.right == (not self.fault)


def variants(name: str) -> tuple[str, list[Variant]]:
    """The imports that the answers share, and the answers, of an assignment."""
    path = ASSIGNMENTS / "graders" / f"{name}.py"
    if not path.is_file():
        missing = f"there are no right and wrong answers to {name}: no file {path}"
        raise FileNotFoundError(missing)
    text = path.read_text(encoding="utf-8")
    shared, found = [], []
    for node in ast.parse(text).body:
        source = ast.get_source_segment(text, node)
        function, _, rest = getattr(node, "name", "").partition("__")
        style, _, label = rest.partition("_")
        if style in ("wrong", "right"):
            source = source.replace(node.name, function, 1)
            is_right = style == "right"
            found.append(Variant(function, label.replace("_", " "), is_right, source))
        else:
            shared.append(source)
    return "\n".join(shared), found


def reference(task: Assignment) -> list[tuple[str, str]]:
    """(name, source) of the cells that the instructor's answers need."""
    cells = [c for c in task.notebook.cells if kind(c) in ("given", "answer", "other")]
    code = [c for c in cells if c.cell_type == "code"]
    return [(f"{i + 1}", cell.source) for i, cell in enumerate(code)]


def try_all(name: str, n_wrong: int | None = None, right: bool = True) -> list[Trial]:
    """Try answers to an assignment: of each function the reference, the right ones
    unless `right` is False, and the wrong ones, all or the first `n_wrong`.
    """
    task = assignment(name)
    shared, found = variants(name)
    checker, trials = task.checker(), []
    with Answers([*reference(task), ("shared", shared)], checker.hidden) as answers:
        for function in task.functions:
            own = Variant(function, "reference", True, "")
            others = [x for x in found if x.function == function and x.right]
            wrong = [x for x in found if x.function == function and not x.right]
            test = task.tests[f"test_{function}"]
            for variant in [own, *others[: None if right else 0], *wrong[:n_wrong]]:
                fault = fault_of(checker, answers, variant, test)
                trials.append(Trial(variant, fault))
    return trials


def fault_of(checker: Checker, answers: Answers, variant: Variant, test: str) -> str:
    """What the test says of one answer, which takes the reference's place meanwhile."""
    replaced = f"{variant.function}__reference = {variant.function}"
    back = f"{variant.function} = {variant.function}__reference"
    answers.start()
    for source in (replaced, variant.source):
        fault = answers.run(source)
        if fault:
            return fault
    fault = checker.test(answers, test).fault
    answers.start()  # a wrong answer may have ended it
    answers.run(back)
    return fault


def report(name: str, trials: list[Trial]) -> bool:
    """Print how the tests of one assignment did; whether they are good enough."""
    good = True
    for function in dict.fromkeys(trial.variant.function for trial in trials):
        own = [trial for trial in trials if trial.variant.function == function]
        wrong = [trial for trial in own if not trial.variant.right]
        right = [trial for trial in own if trial.variant.right]
        caught, kept = sum(t.just for t in wrong), sum(t.just for t in right)
        print(f"{name:24}{function:26}", end="")
        print(f"{caught:3} of {len(wrong):2} wrong caught", end="")
        print(f", {kept} of {len(right)} right kept")
        for trial in own:
            if not trial.just:
                print(
                    f"    {function}, {trial.variant.label}: {trial.fault or 'passes'}"
                )
            elif " raised " in trial.fault:  # caught, but perhaps for another reason
                print(f"    ({function}, {trial.variant.label}: {trial.fault})")
        # the reference is a right one more
        enough = len(wrong) >= MIN_WRONG and len(right) > MIN_RIGHT
        if not enough:
            print(f"    {function} needs {MIN_WRONG} wrong answers, {MIN_RIGHT} right")
        good = good and enough and kept == len(right)
    return good


def main(names: Sequence[str]) -> int:
    """Try the answers of the named assignments, or of all; 0 if the graders are good
    enough.
    """
    good, all_trials = True, []
    for name in names or assignments():
        began = time.perf_counter()
        trials = try_all(name)
        good = report(name, trials) and good
        all_trials += trials
        print(f"{name}: {time.perf_counter() - began:.1f} s\n")
    wrong = [trial for trial in all_trials if not trial.variant.right]
    caught = sum(trial.just for trial in wrong)
    print(f"{caught} of {len(wrong)} wrong answers lost their points", end="")
    print(f" ({caught / max(len(wrong), 1):.1%}).")
    return 0 if good and caught >= MIN_CAUGHT * len(wrong) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
