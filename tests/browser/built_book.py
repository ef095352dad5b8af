"""Where the built book lies, which pages it has, and what happens without them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOK = Path(os.environ.get("MINILIB_BOOK", ROOT / "_build" / "html"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


def pages() -> list[str]:
    """The addresses of the pages that a reader can reach, below the book's own."""
    folders = ("book", "chapters")
    return sorted(
        path.relative_to(BOOK).as_posix()
        for folder in folders
        for path in (BOOK / folder).glob("*.html")
    )


def missing(what: str) -> None:
    """Skip, or fail where a browser is required."""
    if "browser" in os.environ.get("MINILIB_REQUIRE", "").split(","):
        pytest.fail(what)
    pytest.skip(what)
