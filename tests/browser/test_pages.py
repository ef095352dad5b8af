"""Every page in a browser: wide, narrow, light, dark, heard, searched, quizzed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from built_book import BOOK, missing, pages

PROBE = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8")
COLUMNS = {1280: 88, 500: 0}  # px -> characters of code that must fit
PAGES = pages()
SET_THEME = """(theme) => {
    document.documentElement.dataset.theme = theme;
    document.documentElement.dataset.mode = theme;
}"""
SETTLED = """() => Promise.race([
    new Promise((done) => setTimeout(done, 1000)),
    new Promise(requestAnimationFrame).then(() => Promise.allSettled(
        document.getAnimations().map((one) => one.finished)))])"""
each_page = pytest.mark.parametrize("name", PAGES)


def open_page(page, address: str, name: str, width: int = 1280) -> None:
    """Go to a page, and wait for its formulas."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address + name, wait_until="load")
    page.wait_for_function("!window.MathJax || Boolean(MathJax.startup?.promise)")
    page.evaluate("window.MathJax?.startup.promise")


def test_there_are_pages():
    if not PAGES:
        missing(f"no pages in {BOOK}")
    assert any(name.startswith("chapters/01") for name in PAGES)


# ---- how it looks


@each_page
def test_a_page_is_whole_wide_and_narrow_light_and_dark(page, address, name):
    open_page(page, address, name)
    faults = []
    for width, columns in COLUMNS.items():
        page.set_viewport_size({"width": width, "height": 900})
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.evaluate(SET_THEME, theme)
            page.evaluate(SETTLED)  # as colours glide
            found = page.evaluate(PROBE, columns)
            faults += [f"{width} px, {theme}: {fault}" for fault in found]
    assert not faults + page.faults, "\n".join(faults + page.faults)


def test_a_page_that_is_opened_in_the_dark_is_dark(page, address):
    page.emulate_media(color_scheme="dark")
    open_page(page, address, "book/welcome.html")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(x) for x in colour[4:-1].split(",")[:3]) < 60, colour


# ---- what sounds


@each_page
def test_every_sound_of_a_page_loads(page, address, name):
    open_page(page, address, name)
    silent = page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map((sound) =>
        new Promise((resolve) => {
            const say = () => resolve(sound.duration > 0 ? "" : sound.ariaLabel || "?");
            if (sound.readyState) return say();
            sound.addEventListener("loadedmetadata", say);
            sound.addEventListener("error", say);
            setTimeout(say, 15000);
            sound.preload = "auto";
            sound.load();
        })))"""
    )
    assert not [name for name in silent if name]


@each_page
def test_players_play_seek_and_stop_each_other(page, address, name):
    open_page(page, address, name)
    figures = page.locator("figure.minilib-sound.live:visible")
    whole = page.locator("figure.minilib-sound:visible").count()
    assert figures.count() == whole, "not every sound has its player"
    if not whole:
        pytest.skip("no sound on this page")
    first = figures.first
    first.locator("button.play").click()
    sounds = "f => f.querySelector('audio').currentTime > 0.05"
    page.wait_for_function(sounds, arg=first.element_handle())
    seek = first.locator(".seek")
    assert (
        float(seek.locator(".playhead").evaluate("x => parseFloat(x.style.left)")) > 0
    )
    if whole > 1:
        figures.nth(1).locator("button.play").click()
        stopped = "f => f.querySelector('audio').paused"
        page.wait_for_function(stopped, arg=first.element_handle())
    page.evaluate("document.querySelectorAll('audio').forEach((x) => x.pause())")
    seek.focus()
    seek.press("Home")
    before = float(seek.get_attribute("aria-valuenow"))
    seek.press("ArrowRight")
    seek.press("ArrowRight")
    assert float(seek.get_attribute("aria-valuenow")) == pytest.approx(before + 0.2)
    seek.scroll_into_view_if_needed()
    box = seek.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    half = float(seek.get_attribute("aria-valuemax")) / 2
    assert float(seek.get_attribute("aria-valuenow")) == pytest.approx(half, abs=0.2)
    assert not page.faults


@each_page
def test_two_sounds_of_one_cell_are_compared_at_the_same_moment(page, address, name):
    open_page(page, address, name)
    groups = page.locator(".cell_output .compare:visible")
    if not groups.count():
        pytest.skip("no sounds to compare on this page")
    cell = page.locator(".cell_output:has(.compare:visible)").first
    sounds = cell.locator("figure.minilib-sound.live")
    sounds.first.locator(".seek").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    at = float(sounds.first.locator(".seek").get_attribute("aria-valuenow"))
    page.keyboard.press("x")
    second = sounds.nth(1)
    plays = "f => !f.querySelector('audio').paused"
    page.wait_for_function(plays, arg=second.element_handle())
    assert second.evaluate("f => f.querySelector('audio').currentTime") >= at - 0.1


@each_page
def test_sliders_move_by_keyboard(page, address, name):
    open_page(page, address, name)
    sliders = page.locator("figure.minilib-slider:visible input[type=range]")
    if not sliders.count():
        pytest.skip("no slider on this page")
    for slider in sliders.all():
        slider.focus()
        slider.press("Home")
        figure = slider.locator("xpath=ancestor::figure")
        picture = """f => [...f.querySelectorAll("img")].filter(
            (x) => x.getBoundingClientRect().width).map((x) => x.src.slice(-80))"""
        before = slider.input_value(), figure.evaluate(picture)
        slider.press("ArrowRight")
        after = slider.input_value(), figure.evaluate(picture)
        assert before[0] != after[0]
        assert before[1] != after[1] or not before[1], "the picture stays the same"


def test_the_welcome_page_sounds_within_one_click(page, address):
    open_page(page, address, "book/welcome.html")
    play = page.locator("figure.minilib-sound button.play").first
    assert play.bounding_box()["y"] < 900, "the first sound is below the fold"
    play.click()
    page.wait_for_function(
        "[...document.querySelectorAll('audio')].some(x => !x.paused)"
    )


# ---- what answers


@each_page
def test_a_quiz_answers_at_once(page, address, name):
    open_page(page, address, name)
    boxes = page.locator(".admonition.quiz")
    assert page.locator(".admonition.quiz.live").count() == boxes.count()
    if not boxes.count():
        pytest.skip("no quiz with choices on this page")
    for box in boxes.all():
        choices = box.locator("ol > li > button.choice")
        for i in range(choices.count()):
            choices.nth(i).focus()
            page.keyboard.press("Enter")
        assert box.locator("li.right").count() == 1
        assert box.locator("li.wrong").count() == choices.count() - 1
        assert box.locator(".said").inner_text().strip()
        assert box.locator("details").evaluate("x => x.open")


def test_search_finds_what_a_chapter_is_about(page, address):
    page.goto(address + "search.html?q=spectrogram")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li").all_inner_texts()
    assert any("Sound as tensors" in text for text in found)
    excerpts = [text for text in found if "\\frac" in text or "import " in text]
    assert not excerpts, "raw TeX or imports in what search shows"


def test_formulas_are_no_stops_of_the_tab_key(page, address):
    open_page(page, address, next(name for name in PAGES if "/03_" in name))
    assert page.locator("mjx-container").count() > 50
    assert page.locator("mjx-container[tabindex='0']").count() == 0


def test_a_term_is_explained_where_the_pointer_rests(page, address):
    open_page(page, address, next(name for name in PAGES if "/03_" in name))
    term = page.locator("main a[href*='glossary.html#term']:visible").first
    term.scroll_into_view_if_needed()
    term.hover()
    page.wait_for_selector(".preview[role=tooltip]:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector(".preview[role=tooltip]", state="hidden")


# ---- links


class Links(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        """Note what has an id and what points elsewhere."""
        given = dict(attrs)
        self.ids.update(filter(None, (given.get("id"), given.get("name"))))
        for key in ("href", "src", "xlink:href"):
            if given.get(key):
                self.links.add(given[key])


def test_links_and_anchors_are_alive():
    parsed = {
        path: Links(path.read_text(encoding="utf-8")) for path in BOOK.rglob("*.html")
    }
    if not parsed:
        missing(f"no pages in {BOOK}")
    dead = []
    for path, page in parsed.items():
        if "_static" in path.parts:
            continue
        for link in page.links:
            if link.startswith(("http:", "https:", "mailto:", "data:", "javascript:")):
                continue
            to, anchor = urldefrag(urljoin(path.as_uri(), link))
            target = Path(unquote(to.removeprefix("file://").split("?")[0]))
            if not target.exists():
                dead.append(f"{path.name}: {link}")
            elif (
                anchor
                and target in parsed
                and unquote(anchor) not in parsed[target].ids
            ):
                dead.append(f"{path.name}: no {anchor} in {target.name}")
    assert not dead, "\n".join(sorted(dead))
