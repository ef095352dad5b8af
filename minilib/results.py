"""Stored measurements of effects that take too long to measure in a chapter.

`book/tools/effects.py NN` measures the effects of chapter NN and writes them to
data/results/NN.json. A chapter loads them with this module, prints them, and measures a
smaller case again.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from minilib.files import replacing

FOLDER = Path(__file__).parents[1] / "data" / "results"


@dataclass(frozen=True)
class Effect:
    """One claim with its numbers: a value for each arm of the comparison and seed."""

    claim: str  # a sentence with a direction
    unit: str  # of the values: "dB", "share of clips", ...
    arms: dict[str, list[float]]  # each arm of the comparison -> one value per seed
    control: str  # the arm that must fail; "" if the claim has none
    chance: float | None  # the value of a guess, if there is one
    ceiling: float | None  # the best value that the measure allows
    holds: bool  # whether the claim held for the means over the seeds
    seeds: list[int]
    command: str  # the command that measures it
    minutes: float  # the minutes that the command took on two CPU cores

    def mean(self, arm: str) -> float:
        """The mean of an arm's values over the seeds."""
        return statistics.fmean(self.arms[arm])

    def error(self, arm: str) -> float:
        """The standard error of the mean over the seeds; NaN for a single seed."""
        values = self.arms[arm]
        if len(values) < 2:
            return math.nan
        return statistics.stdev(values) / math.sqrt(len(values))

    def table(self) -> str:
        """The arms, one per line, with standard errors, chance and ceiling."""
        width = max(map(len, self.arms))
        lines = [
            f"{arm:{width}}  {self.mean(arm):8.3g} ± {self.error(arm):.1g}"
            + (" (control)" if arm == self.control else "")
            for arm in self.arms
        ]
        ends = {"chance": self.chance, "ceiling": self.ceiling}
        given = [f"{name} {x:.3g}" for name, x in ends.items() if x is not None]
        measured = [self.unit, f"{len(self.seeds)} seeds", *given]
        return "\n".join([", ".join(measured) + ":", *lines])


def load(chapter: str) -> dict[str, Effect]:
    """Load the stored effects of a chapter ("07", "11b"), by name.

    Raises:
        FileNotFoundError: none are stored; the message names the command that measures
            them.
    """
    path = FOLDER / f"{chapter}.json"
    if not path.is_file():
        how = f"measure them with: python book/tools/effects.py {chapter}"
        raise FileNotFoundError(f"no effects of chapter {chapter} in {path}; {how}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: Effect(**effect) for name, effect in stored.items()}


def store(chapter: str, effects: dict[str, Effect]) -> Path:
    """Add effects of a chapter to those that are stored, and return the file."""
    path = FOLDER / f"{chapter}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored |= {name: asdict(effect) for name, effect in effects.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: stored[name] for name in sorted(stored)}  # arms keep their order
    text = json.dumps(stored, ensure_ascii=False, indent=1) + "\n"
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path
