"""Loss curves, from the log of a run: as numbers, and as a picture beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from minilib.files import replacing

PICTURE = "loss.png"
# a line that `checkpoints.train` writes, and a loss in it
LINE = re.compile(r"(\w+) +step +(\d+) +(\d+) s  (.+)")
LOSS = re.compile(r"(\w+) (-?\d+\.\d+)")
COLUMNS = 3  # of the picture


class Point(NamedTuple):
    """A line of the log: the running means of the losses by name, after so many steps
    and seconds.
    """

    step: int
    seconds: int
    losses: dict[str, float]


def read_log(out: Path) -> dict[str, list[Point]]:
    """The curve of each stage, from the `train.log` in a folder; empty without one.

    A stage that began again, or went on from an earlier step, replaces what was logged
    from that step on.
    """
    path, curves = out / "train.log", {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for found in filter(None, map(LINE.fullmatch, lines)):
        name, step, seconds, told = found.groups()
        losses = {key: float(value) for key, value in LOSS.findall(told)}
        before = [point for point in curves.get(name, ()) if point.step < int(step)]
        curves[name] = [*before, Point(int(step), int(seconds), losses)]
    return curves


def draw(out: Path) -> Path | None:
    """Draw the curves of a run, one panel for each stage, as `loss.png` in its folder;
    None if nothing was logged.
    """
    curves = read_log(out)
    if not curves:
        return None
    from matplotlib.figure import Figure  # takes a second

    n_columns = min(COLUMNS, len(curves))
    n_rows = -(-len(curves) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 2.5 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for panel, (name, points) in zip(panels, curves.items()):
        for key in points[-1].losses:
            known = [point for point in points if key in point.losses]
            values = [point.losses[key] for point in known]
            steps = [point.step for point in known]
            panel.plot(steps, values, label=key, marker="." if len(known) < 3 else "")
        panel.set(title=name, xlabel="step", ylabel="loss")
        panel.legend(frameon=False, fontsize="small")
    for panel in panels[len(curves) :]:  # the rest of the last row
        panel.set_axis_off()
    with replacing(out / PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return out / PICTURE
