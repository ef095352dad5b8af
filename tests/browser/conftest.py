"""The book as it was built, served on this machine, in a real browser.

The pages are those of `_build/html` (`make test` builds them just before), or of the
folder that MINILIB_BOOK names. Without a Chromium or without pages all is skipped; with
`MINILIB_REQUIRE=browser` that is a failure.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator

import pytest
from built_book import BOOK, CHROMIUM, NAMES, missing


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the book is served: http://127.0.0.1:PORT/."""
    if not (BOOK / "index.html").is_file():
        missing(f"no book in {BOOK}: build it with make")
    handler = functools.partial(Quiet, directory=str(BOOK))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A Chromium without a window."""
    if CHROMIUM is None:
        missing(f"no Chromium here: none of {', '.join(NAMES)} is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--mute-audio"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture()
def page(browser, address):
    """An empty tab that reaches this machine alone.

    `page.faults` lists what went wrong on it: requests to others, requests without an
    answer, errors of scripts.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.faults = []

    def only_here(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        tab.faults.append(f"asks another host: {route.request.url[:100]}")
        return route.abort()

    context.route("**/*", only_here)
    tab.on("pageerror", lambda error: tab.faults.append(f"script: {error}"))
    tab.on(
        "console",
        lambda said: said.type == "error" and tab.faults.append(f"says: {said.text}"),
    )
    tab.on(
        "response",
        lambda got: got.status >= 400 and tab.faults.append(f"{got.status}: {got.url}"),
    )
    yield tab
    context.close()
