"""Measure the effects of a chapter that take longer than the chapter may.

    python book/tools/effects.py 07                all experiments of chapter 07
    python book/tools/effects.py 07 rate           those that measure the effect `rate`
    python book/tools/effects.py 07 --seeds 1      quickly, and nothing is stored

The experiments of chapter 07 stand in book/effects/effects_07.py: functions of a seed,
each with the claims that it measures. What they find is stored in data/results/07.json,
which the chapter reads through `minilib.results`.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minilib import results

EXPERIMENTS = Path(__file__).parents[1] / "effects"
SEEDS = (0, 1, 2)

Means = dict[str, float]
Measured = dict[str, dict[str, float]]  # effect -> arm -> value


@dataclass(frozen=True)
class Claim:
    """What an experiment should show, and when it does."""

    name: str
    says: str  # a sentence with a direction
    unit: str
    holds: Callable[[Means], bool]  # of the means of the arms over the seeds
    control: str = ""  # the arm that must fail
    chance: float | None = None
    ceiling: float | None = None


@dataclass(frozen=True)
class Experiment:
    """A measurement and its claims."""

    measure: Callable[[int], Measured]
    claims: tuple[Claim, ...]


EXPERIMENT: list[Experiment] = []


def experiment(*claims: Claim) -> Callable[[Callable[[int], Measured]], Callable]:
    """Declare a function of a seed as the experiment that measures these claims."""

    def declare(measure: Callable[[int], Measured]) -> Callable[[int], Measured]:
        EXPERIMENT.append(Experiment(measure, claims))
        return measure

    return declare


def experiments(chapter: str) -> list[Experiment]:
    """The experiments of a chapter, in the order of its file."""
    path = EXPERIMENTS / f"effects_{chapter}.py"
    if not path.is_file():
        raise SystemExit(f"chapter {chapter} has no experiments: {path} is missing")
    # so that its `from effects import ...` finds this module and not a second copy
    sys.modules.setdefault("effects", sys.modules[__name__])
    EXPERIMENT.clear()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return list(EXPERIMENT)


def run(made: Experiment, seeds: list[int], command: str) -> dict[str, results.Effect]:
    """The effects that an experiment shows over the seeds.

    Raises:
        ValueError: it doesn't measure what it claims, its arms change from seed to
            seed, or a value is not finite.
    """
    began = time.perf_counter()
    measured = [made.measure(seed) for seed in seeds]
    minutes = (time.perf_counter() - began) / 60
    names = {claim.name for claim in made.claims}
    for values in measured:
        if set(values) != names:
            raise ValueError(f"claimed {sorted(names)}, measured {sorted(values)}")
    return {
        claim.name: effect(
            claim, [values[claim.name] for values in measured], seeds, command, minutes
        )
        for claim in made.claims
    }


def effect(
    claim: Claim,
    values: list[dict[str, float]],
    seeds: list[int],
    command: str,
    minutes: float,
) -> results.Effect:
    """The values of one claim, seed by seed, as they are stored."""
    for of_seed in values:
        if list(of_seed) != list(values[0]):
            raise ValueError(f"{claim.name}: the arms differ from seed to seed")
        for arm, x in of_seed.items():
            if not math.isfinite(x):
                raise ValueError(f"{claim.name}: {arm} is {x}")
    arms = {arm: [float(f"{v[arm]:.5g}") for v in values] for arm in values[0]}
    if claim.control and claim.control not in arms:
        raise ValueError(f"{claim.name}: its control {claim.control!r} is not measured")
    means = {arm: sum(x) / len(x) for arm, x in arms.items()}
    return results.Effect(
        claim=claim.says, unit=claim.unit, arms=arms, control=claim.control,
        chance=claim.chance, ceiling=claim.ceiling, holds=bool(claim.holds(means)),
        seeds=list(seeds), command=command, minutes=round(minutes, 1),
    )  # fmt: skip


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapter", help='number of the chapter: "07", "11b"')
    parser.add_argument("effect", nargs="*", help="measure these only")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    given = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    made = experiments(given.chapter)
    known = {claim.name for one in made for claim in one.claims}
    for name in set(given.effect) - known:
        raise SystemExit(f"no effect {name!r}; there are: {', '.join(sorted(known))}")
    for one in made:
        names = [claim.name for claim in one.claims]
        if given.effect and not set(names) & set(given.effect):
            continue
        command = f"python book/tools/effects.py {given.chapter} {names[0]}"
        found = run(one, list(range(given.seeds)), command)
        for name, shown in found.items():
            says = "holds" if shown.holds else "DOES NOT HOLD"
            print(f"\n{name}: {shown.claim}: {says}\n{shown.table()}", flush=True)
        if given.seeds >= len(SEEDS):
            print("stored in", results.store(given.chapter, found))


if __name__ == "__main__":
    main()
