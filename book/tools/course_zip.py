"""Write the course as one file for Colab: course.zip, with the package, the chapters
and the weights that they use, and course-peers.zip, with the weights of the peers.

make colab

While the course has no address, the first cell of a chapter unpacks these files. The
same files give the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import notebooks

from minilib.files import replacing

MAX_BYTES = 100 * 10**6  # of each zip
TOP = "course"  # the folder that they unpack to
WEIGHTS = "data/weights"
# What the course needs; solutions of assignments stay with the instructors. The two
# peers are those that chapters 11 and 15 read; the second zip holds them all.
COURSE = (
    *("pyproject.toml", "README.md", "LICENSE", "CITATION.cff"),
    *("minilib", "chapters/*.ipynb", "data/*.md", "data/*.csv", "data/results"),
    "data/accelerate",
    *(f"{WEIGHTS}/{x}" for x in ("tiny", "speech", "picture", "judges", "*.json")),
    *(f"{WEIGHTS}/peers/{x}" for x in ("instructed_t5", "text_ldm")),
)
PEERS = (f"{WEIGHTS}/peers",)
ZIPS = {"course.zip": COURSE, "course-peers.zip": PEERS}
LEFT_OUT = ("__pycache__", "checkpoints", "cache")
DATE = (2026, 1, 1, 0, 0, 0)  # of every file, so that bytes depend on contents alone


def files_of(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    """The files that patterns name, folders whole, without hidden ones and caches.

    Raises:
        FileNotFoundError: a pattern names nothing.
    """
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{root / pattern} is missing: the zip needs it")
        for path in found:
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (x for x in inside if x.is_file() and kept(x.relative_to(root)))


def kept(path: Path) -> bool:
    """Whether a file, named from the checkout, belongs to the course."""
    return not any(part.startswith(".") or part in LEFT_OUT for part in path.parts)


def write_zip(path: Path, root: Path, patterns: Iterable[str]) -> int:
    """Write a zip, whole or not at all, and return its number of bytes.

    Raises:
        ValueError: it would be larger than MAX_BYTES.
    """
    with replacing(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for source in files_of(root, patterns):
                name = f"{TOP}/{source.relative_to(root).as_posix()}"
                entry = zipfile.ZipInfo(name, DATE)
                entry.external_attr = 0o644 << 16  # readable by all
                entry.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(entry, source.read_bytes(), compresslevel=9)
        size = temporary.stat().st_size
        if size > MAX_BYTES:
            most = f"at most {MAX_BYTES // 10**6} MB"
            raise ValueError(
                f"{path.name} has {size / 1e6:.0f} MB, but may have {most}"
            )
    return size


def main() -> int:
    """Write both zips into the checkout."""
    for name, patterns in ZIPS.items():
        try:
            size = write_zip(notebooks.ROOT / name, notebooks.ROOT, patterns)
        except (ValueError, OSError) as error:
            print(f"course_zip: {error}", file=sys.stderr)
            return 2
        print(f"{name}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
