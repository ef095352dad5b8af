"""How fast and how lean minilib is. `make bench` runs this; no test needs it.

Prints tables as they come and keeps them in a file, under the name of the machine:
those of the same machine and section are replaced, all others stay.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import gpu
import measure
import peers
import small
import torch

SECTIONS = {
    "Beside diffusers and transformers": peers,
    "The small pipeline that ships": small,
    "The released size on a GPU": gpu,
}
TITLE = """# Benchmarks

What `make bench` printed, machine by machine. Times are medians of runs that take
turns, so that the ratios are better known than the times; memory is what a fresh
process takes above what it held before, or, where it says so, all that the process has.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [module.__name__ for module in SECTIONS.values()]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        help="sections (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of turns for each row (default: 10)",
    )
    parser.add_argument("--out", type=Path, help="the file that keeps the tables")
    args = parser.parse_args()
    for title, module in SECTIONS.items():
        if module.__name__ not in args.only or (
            module is gpu and not torch.cuda.is_available()
        ):
            continue
        print(f"### {title}\n", flush=True)
        lines = []
        with tempfile.TemporaryDirectory() as folder:
            for line in module.report(Path(folder), args.seconds):
                print(line, flush=True)
                lines.append(line)
        print()
        if args.out:
            keep(
                args.out,
                measure.machine(),
                title,
                f"{module.__doc__}\n\n" + "\n".join(lines).strip(),
            )


def keep(path: Path, machine: str, title: str, text: str) -> None:
    """Put a section under its machine's heading."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept: dict[tuple[str, str], str] = {}
    for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]:
        name, *sections = re.split(r"^### ", part, flags=re.MULTILINE)
        for section in sections:
            heading, _, body = section.partition("\n")
            kept[name.strip(), heading.strip()] = body.strip()
    kept[machine, title] = text
    written = [TITLE]
    for name in dict.fromkeys(machine for machine, _ in kept):
        written.append(f"## {name}\n")
        written += [
            f"### {t}\n\n{body}\n" for (m, t), body in kept.items() if m == name
        ]
    path.write_text("\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
