"""Make the page of all systems: what the lecture names, what was built of it, and what
was measured.

    python book/tools/systems.py             write book/systems.md
    python book/tools/systems.py --check     only say if the page is out of date, and
                                             exit with 1 then

book/systems.yml describes each system in one entry. Sizes are counted in the weights
that ship, minutes come from their logs, and effects from data/results.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import course_map
import yaml

from minilib import results

ROOT = Path(__file__).parents[2]
ENTRIES = ROOT / "book" / "systems.yml"
PAGE = ROOT / "book" / "systems.md"
WEIGHTS = ROOT / "data" / "weights"
UNKNOWN = "–"
INTRODUCTION = """\
# All systems

<!-- written by book/tools/systems.py from book/systems.yml -->

The lecture names {n} systems or parts. Here they stand in rows: what each models, what
it reads and trains, how large it is in its paper and in this book, and what this book
measured of it.

Every effect below was measured in SoundWorld, over three seeds, beside a control that
must fail. It shows a mechanism and its direction; the papers' figures belong to other
data and other judges and can't be compared with it. **Of the {shown} effects shown,
{held} held and {failed} did not.** The numbers are those of `data/results`, as mean ±
standard error.{missing}

What followed these systems is on [the next page](after.md).

## At a glance

Weights in millions (M) or billions (B). *Here* counts the weights that ship with this
book, *original* those of the system itself. {unknown} means that none ship, or that
we found no figure that we could check.

"""
DESCENT = """\

## How they descend from each other

Systems in the order in which they appeared. A line leads from a system to a later one
that takes something from it; what that is, stands in the row of the later one. Those of
AudioLDM 2 are in colour. Point at a system, and its own lines are; follow it, and you
reach its row. Names in grey are earlier work that has no row here.

"""
NOTE = """
Minutes are those of the logs, on one or two threads of a machine that others used at
the same time.
"""


@cache
def chapters() -> dict[str, str]:
    """Chapter number -> file of each chapter that is written."""
    return course_map.written()


@dataclass(frozen=True)
class System:
    """One entry of book/systems.yml."""

    key: str
    name: str
    what: str = ""
    models: str = ""
    reads: str = ""
    trained: str = ""
    frozen: str = ""
    chapter: str = ""
    module: str = ""
    arxiv: str = ""  # the number of the preprint,
    since: str = ""  # or the year and month, yymm,
    source: str = ""  # and the address, where there is no preprint
    also: list[str] = field(default_factory=list)
    paper: dict[str, str] = field(default_factory=dict)  # size, training
    released: dict = field(default_factory=dict)  # part, weights, where
    weights: list[str] = field(default_factory=list)  # folders of data/weights
    shares: str = ""  # the system whose weights these are
    no_weights: str = ""  # whose weights it uses, if it has none of its own
    logs: dict = field(default_factory=dict)
    effects: dict = field(default_factory=dict)
    no_effect: str = ""
    takes: dict[str, str] = field(default_factory=dict)

    @property
    def date(self) -> str:
        """What systems are ordered by: yymm, and the number within the month."""
        return self.arxiv or self.since

    @property
    def year(self) -> int:
        """The year of the preprint, or of the paper."""
        return 2000 + int(self.date[:2])

    @property
    def written(self) -> bool:
        """Whether its chapter is in the table of contents."""
        return self.chapter in chapters()


@dataclass(frozen=True)
class Group:
    """Systems under one heading."""

    name: str
    intro: str
    systems: tuple[System, ...]


@cache
def entries(path: Path = ENTRIES) -> tuple[list[Group], list[System]]:
    """The groups of systems, and the ancestors that have no row."""
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    make = lambda key, entry: System(key, **entry)
    groups = [
        Group(
            group["name"],
            group["intro"].strip(),
            tuple(make(key, entry) for key, entry in group["systems"].items()),
        )
        for group in told["groups"]
    ]
    return groups, [make(key, entry) for key, entry in told["ancestors"].items()]


def every_system() -> list[System]:
    """All systems with a row, group by group."""
    return [system for group in entries()[0] for system in group.systems]


# --------------------------------------------------------------------------------------
# Sizes and minutes


def count(folder: Path) -> int:
    """The numbers in all weights of a folder, from the headers of their files."""
    total = 0
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total


def size(weights: int) -> str:
    """A number of weights in millions, with three digits: 0.785 M, 15.1 M, 347 M."""
    return f"{weights / 1e6:.3g}\u00a0M"


def size_here(system: System) -> str:
    """The size of the weights that ship; UNKNOWN where none do."""
    here = sum(count(WEIGHTS / folder) for folder in system.weights)
    if not here and system.weights and system.written:
        raise SystemExit(f"{system.name}: no weights in {', '.join(system.weights)}")
    return size(here) if here else UNKNOWN


def size_there(system: System) -> str:
    """The size in the paper, or that of the released part."""
    if system.released:
        return size(system.released["weights"])
    return system.paper.get("size", UNKNOWN).replace(" ", "\u00a0", 1)


def time_here(system: System) -> str:
    """How long the weights that ship were trained, from their logs."""
    if size_here(system) == UNKNOWN:
        return ""
    said = []
    for log, what in system.logs.items():
        said.append(noted(what) if log == "LOG.md" else logged(log, what))
    return "; ".join(said)


def noted(what: dict[str, str]) -> str:
    """A time that a section of data/weights/LOG.md tells in these words."""
    text = (WEIGHTS / "LOG.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    ((heading, words),) = what.items()
    if not any(words in s for name, s in sections.items() if name.startswith(heading)):
        raise SystemExit(f"LOG.md does not say {words!r} under {heading!r}")
    return words


def logged(folder: str, stages: list[str]) -> str:
    """The minutes of stages of a train.log, added up."""
    text = (WEIGHTS / folder / "train.log").read_text(encoding="utf-8")
    finished = r"^(\w+) +finished: \d+ steps in (\d+) s"
    seconds = {name: int(s) for name, s in re.findall(finished, text, re.MULTILINE)}
    if unknown := set(stages) - set(seconds):
        raise SystemExit(f"{folder}/train.log has no stage {', '.join(unknown)}")
    minutes = sum(seconds[stage] for stage in stages) / 60
    threads = re.findall(r"(\d) threads", text)[0]
    where = "one thread" if threads == "1" else f"{threads} threads"
    added = ", all stages added up" if len(stages) > 1 else ""
    return f"{minutes:.0f} minutes on {where}{added}"


# --------------------------------------------------------------------------------------
# Effects


def effect(name: str) -> results.Effect | None:
    """The stored effect "chapter/name"; None if that chapter has no results yet."""
    chapter, name = name.split("/")
    try:
        stored = results.load(chapter)
    except FileNotFoundError:
        return None
    if name not in stored:
        known = ", ".join(sorted(stored))
        raise SystemExit(f"systems.yml: {chapter} has no effect {name!r}, but {known}")
    return stored[name]


def missing() -> list[str]:
    """The effects of systems that are not measured yet."""
    return [name for s in every_system() for name in s.effects if effect(name) is None]


def to_come() -> str:
    """One sentence about results that are missing; empty if none are."""
    chapters = sorted({name.split("/")[0] for name in missing()})
    if not chapters:
        return ""
    *first, last = chapters
    which = f"chapters {', '.join(first)} and {last}" if first else f"chapter {last}"
    return f"Results of {which} are still to come."


def shown_arms(name: str, found: results.Effect, arms: list | dict) -> dict[str, str]:
    """The arms to show, each with its label; the control last."""
    labels = dict(arms) if isinstance(arms, dict) else {arm: arm for arm in arms}
    control = found.control
    label = labels.pop(control, control)
    if unknown := set(labels) - set(found.arms):
        known = ", ".join(found.arms)
        raise SystemExit(f"systems.yml: {name} has no arm {sorted(unknown)}: {known}")
    return labels | ({control: f"{label} (control)"} if control else {})


def mean_and_error(found: results.Effect, arm: str) -> str:
    """An arm's mean and its standard error; both are 0 if only rounding made them."""
    mean, error = (
        x if abs(x) > 1e-6 else 0 for x in (found.mean(arm), found.error(arm))
    )
    return f"{mean:.3g} ± {error:.1g}"


def effect_html(name: str, arms: list | dict) -> str:
    """An effect: whether it held, what was claimed, and its arms with errors."""
    found = effect(name)
    if found is None:
        chapter = name.split("/")[0]
        return f'<p class="later">Still to come: an effect of chapter {chapter}.</p>'
    verdict = "Held" if found.holds else "Did not hold"
    claim = found.claim[0].upper() + found.claim[1:]
    ends = {"chance": found.chance, "ceiling": found.ceiling}
    ends = [f"{end} {x:.3g}" for end, x in ends.items() if x is not None]
    unit = "; ".join([html.escape(found.unit), *ends])
    rows = "".join(
        f'<tr data-arm="{html.escape(arm)}"><th scope="row">{html.escape(label)}</th>'
        f"<td>{mean_and_error(found, arm)}</td></tr>"
        for arm, label in shown_arms(name, found, arms).items()
    )
    return (
        f'<div class="effect" data-effect="{name}"><p><strong class="'
        f'{"held" if found.holds else "failed"}">{verdict}.</strong> '
        f"{html.escape(claim)}.</p><table><caption>{unit}</caption>{rows}</table></div>"
    )


# --------------------------------------------------------------------------------------
# Rows


def row(system: System, names: dict[str, str]) -> str:
    """A system: one sentence, its effects, and the rest to unfold; one line of HTML."""
    effects = "".join(effect_html(*item) for item in system.effects.items())
    if not effects:
        effects = f"<p>{html.escape(system.no_effect)}</p>"
    facts = "".join(
        f"<dt>{term}</dt><dd>{said}</dd>" for term, said in details(system, names)
    )
    return (
        f'<article class="system" id="system-{system.key}"><h3>{system.name} '
        f"<small>{system.year}</small></h3><p>{html.escape(system.what)}</p>"
        f"<p><small>Models {html.escape(system.models)}. "
        f"{' · '.join(links(system))}</small></p>{effects}"
        f"<details><summary>What it reads, trains and costs</summary><dl>{facts}</dl>"
        "</details></article>"
    )


def details(system: System, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What stands folded: term and text."""
    yield "Reads", html.escape(system.reads)
    yield "Trained", html.escape(system.trained)
    yield "Frozen", html.escape(system.frozen)
    here = time_here(system) or measuring(system)
    if system.no_weights:
        yield "Weights", f"{html.escape(system.no_weights)}; no others of its own"
        if system.effects:
            yield "Training", here
    else:
        yield (
            "Weights",
            f"{html.escape(told_size(system))}; here {sizes(system, names)}",
        )
        there = html.escape(system.paper.get("training", ""))
        there = f"{there} in the paper" if there else "no figure for the paper"
        yield "Training", f"{there}; here {here}"
    if system.takes:
        parts = (
            f"{html.escape(what)}, from {link_to(key, names)}"
            for key, what in system.takes.items()
        )
        yield "Takes", "; ".join(parts)


def told_size(system: System) -> str:
    """The size of the original, and where it is of this size."""
    if system.released:
        where = system.released.get("where", "in AudioLDM 2")
        return f"{size_there(system)} {where}, counted"
    there = size_there(system)
    return "no figure for the paper" if there == UNKNOWN else f"{there} in the paper"


def sizes(system: System, names: dict[str, str]) -> str:
    """The size here, and whose weights they are."""
    here = size_here(system)
    if here == UNKNOWN:
        return "none ship"
    return f"{here}, those of {names[system.shares]}" if system.shares else here


def measuring(system: System) -> str:
    """The minutes that its effects took, for a system without weights that ship."""
    measured = [x for name in system.effects if (x := effect(name))]
    if not measured:
        return "not measured yet"
    minutes = " and ".join(f"{m:.3g}" for m in sorted({x.minutes for x in measured}))
    return f"{minutes} minutes for measuring its effects, training included"


def link_to(key: str, names: dict[str, str]) -> str:
    """A link to the row of a system; the plain name of an ancestor."""
    known = {system.key for system in every_system()}
    name = html.escape(names[key])
    return f'<a href="#system-{key}">{name}</a>' if key in known else name


@cache
def repository() -> tuple[str, str]:
    """The repository's address, empty while it has none, and its branch."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"], config["repository"]["branch"]


def links(system: System) -> list[str]:
    """Links to chapter, module and paper."""
    chapter, module = f"chapter {system.chapter}", f"<code>{system.module}</code>"
    if system.written:
        file = chapters()[system.chapter]
        chapter = f'<a href="../{file}.html">{chapter}</a>'
    elif not (ROOT / system.module).is_file():
        module = ""
    url, branch = repository()
    if module and url:
        module = f'<a href="{url}/blob/{branch}/{system.module}">{module}</a>'
    paper = f"arXiv {system.arxiv}" if system.arxiv else "paper"
    address = system.source or f"https://arxiv.org/abs/{system.arxiv}"
    return [
        part for part in (chapter, module, f'<a href="{address}">{paper}</a>') if part
    ]


def glance(groups: list[Group]) -> str:
    """All systems in one table."""
    lines = ["| system | year | here | original | models |", "|---|--:|--:|--:|---|"]
    for group in groups:
        for s in group.systems:
            link = f'<a href="#system-{s.key}">{s.name}</a>'
            there = re.split(r" \(|;", size_there(s))[0]
            cells = (link, s.year, size_here(s), there, s.models)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------
# The picture


STEP = 25  # from one name to the next
DOT = 196  # where lines end
WIDTH = 480


def in_order() -> list[System]:
    """All systems and ancestors as they appeared."""
    return sorted([*every_system(), *entries()[1]], key=lambda s: float(s.date))


def descent() -> str:
    """The systems in the order of their years, and what takes from what, as SVG."""
    systems, rows = in_order(), {system.key for system in every_system()}
    at = {system.key: STEP * i + STEP // 2 for i, system in enumerate(systems)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
        f'{STEP * len(systems)}" role="group" aria-label="Which system takes something '
        'from which; the rows below say it in words" font-family="system-ui, '
        'sans-serif" font-size="14">'
    ]
    for system in systems:
        for parent in system.takes:
            if at[parent] >= at[system.key]:
                raise SystemExit(f"{system.name} takes from {parent}, which is later")
            lines.append(arc(at[parent], at[system.key], parent, system.key))
    for system in systems:
        y = at[system.key]
        where = f"{system.year}" + (f" · {system.chapter}" if system.chapter else "")
        drawn = (
            f'<circle cx="{DOT}" cy="{y}" r="3.5"/>'
            f'<text x="{DOT + 12}" y="{y + 5}">{html.escape(system.name)}</text>'
            f'<text x="{WIDTH - 2}" y="{y + 5}" text-anchor="end" font-size="12">'
            f"{where}</text>"
        )
        if system.key in rows:
            lines.append(
                f'<a href="#system-{system.key}" data-system="{system.key}">{drawn}</a>'
            )
        else:
            lines.append(f'<g class="later">{drawn}</g>')
    return "\n".join([*lines, "</svg>"])


def arc(y1: int, y2: int, parent: str, child: str) -> str:
    """A line from a system to a later one; the further, the wider."""
    x = round(DOT - 20 - 0.3 * (y2 - y1))
    return (
        f'<path class="from-{parent} to-{child}" d="M{DOT} {y1} C{x} {y1} {x} {y2} '
        f'{DOT} {y2}" fill="none"/>'
    )


def lit() -> str:
    """The style by which a system that is pointed at lights its lines."""
    each = ",\n".join(
        f'.descent:has([data-system="{s.key}"]:is(:hover, :focus-visible)) '
        f":is(.from-{s.key}, .to-{s.key})"
        for s in every_system()
    )
    return f"<style>\n{each} {{ opacity: 1; stroke: var(--accent); stroke-width: 3; }}"


def page() -> str:
    """The whole page."""
    groups, ancestors = entries()
    systems = [system for group in groups for system in group.systems]
    names = {system.key: system.name for system in [*systems, *ancestors]}
    measured = [x for s in systems for name in s.effects if (x := effect(name))]
    held = sum(x.holds for x in measured)
    introduction = INTRODUCTION.format(
        n=len(systems), shown=len(measured), held=held, failed=len(measured) - held,
        missing=f" {to_come()}".rstrip(), unknown=UNKNOWN,
    )  # fmt: skip
    parts = [introduction + glance(groups) + DESCENT.rstrip("\n"), ""]
    parts += [f'<figure class="descent">\n{lit()}\n</style>\n{descent()}\n</figure>']
    for i, group in enumerate(groups):
        parts += ["", f"## {group.name}", "", group.intro, NOTE if i == 0 else ""]
        parts += ['<div class="systems">', *(row(s, names) for s in group.systems)]
        parts += ["</div>"]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the page, or check that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if the page is out of date",
    )
    check = parser.parse_args().check
    if names := missing():
        print(to_come()[:-1] + f": {', '.join(names)}.")
    new = page()
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == new:
        return 0
    if check:
        print("book/systems.md is out of date: run python book/tools/systems.py")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    print("book/systems.md was written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
