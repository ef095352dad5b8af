"""Plots, players and sliders: plain HTML, whole, the same at every run, with a text for
those who can't see or hear.
"""

import base64
import io
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from minilib import audio, show  # noqa: E402

N = 16000
ROOT = Path(__file__).parents[1]


def tone(hz=440.0, n=N):
    # (N,)
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(n) / audio.SAMPLE_RATE)


def picture(k=0):
    return np.outer(np.arange(16) + k, np.arange(24))


class Page(HTMLParser):
    """Every element of a page as (tag, attributes), its text, and whether what is
    opened is closed.
    """

    def __init__(self, block):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.html = block._repr_html_()
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def content(source):
    return io.BytesIO(base64.b64decode(source.partition("base64,")[2]))


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def blocks():
    figure, ax = plt.subplots(figsize=(3, 2))
    show.mel(tone(), ax=ax)
    return [
        show.player(tone(), "a tone"),
        show.sound(tone(), "a tone"),
        show.slider([picture(), figure], [tone(), None], alt="two pictures"),
    ]


# --------------------------------------------------------------------------------------


def test_mel_puts_a_tone_at_its_tick_with_units_on_every_axis():
    for kilohertz in (0.5, 1.0, 2.0, 4.0):
        figure, ax = plt.subplots()
        show.mel(tone(1000 * kilohertz), "a tone", ax=ax)
        image = ax.images[0].get_array()  # (F, T)
        (tick,) = [
            y
            for y, label in zip(ax.get_yticks(), ax.get_yticklabels())
            if label.get_text() == f"{kilohertz:g}"
        ]
        assert abs(image[:, 50].argmax() + 0.5 - tick) < 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "frequency (kHz)")
    assert figure.axes[1].get_ylabel() == "level (dB)" and ax.get_xlim() == (0, 1)


def test_mel_takes_waves_and_log_mels_alike():
    log_mel = audio.log_mel(tone()[None])
    pictures = []
    for sound in (
        tone(),
        tone()[None],
        tone().numpy(),
        log_mel,
        log_mel[0],
        log_mel[0, 0],
        log_mel.requires_grad_(),
    ):
        _, ax = plt.subplots()
        show.mel(sound, ax=ax)
        pictures.append(ax.images[0].get_array())
    assert all(np.allclose(pictures[0], other) for other in pictures)
    for batch in (torch.zeros(2, 1, 100, 64), torch.zeros(3, 100, 64)):
        with pytest.raises(
            ValueError,
            match=r"sound must be one log-mel \(1, 1, T, F\) or one wave \(N,\); given",
        ):
            show.mel(batch)


def test_mels_share_one_scale_and_one_bar():
    show.mels([tone(), 0.01 * tone(880.0)], ["loud", "soft"])
    left, right, bar = plt.gcf().axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == show.LIMITS
    assert (left.get_title(loc="left") or left.get_title(), bar.get_ylabel()) == (
        "loud",
        "level (dB)",
    )
    with pytest.raises(
        ValueError,
        match="titles must be one for each of at least one sound; given 1 for 2",
    ):
        show.mels([tone(), tone()], ["one"])


def test_wave_is_plotted_over_seconds():
    show.wave(tone(n=8000), "half a second")
    (ax,) = plt.gcf().axes
    assert (
        ax.get_xlim() == (0, 0.5)
        and ax.get_xlabel() == "time (s)"
        and ax.get_ylabel() == "amplitude"
    )
    with pytest.raises(
        ValueError,
        match=r"wave must be one waveform, \(N,\) or \(1, N\); given \(2, 10\)",
    ):
        show.wave(torch.zeros(2, 10))


def test_style_paints_figures_white_so_that_dark_mode_can_read_them():
    with matplotlib.rc_context():
        show.style()
        assert (
            plt.figure().get_facecolor() == (1, 1, 1, 1)
            and matplotlib.rcParams["savefig.facecolor"] == "white"
        )


# --------------------------------------------------------------------------------------


def test_a_player_holds_its_sound_and_its_label():
    page = Page(show.player(tone(n=3 * N), 'a "tone" < a bell'))
    (player,) = page.all("audio")
    assert (
        player["aria-label"] == page.text == 'a "tone" < a bell'
        and "controls" in player
    )
    assert player["src"].startswith("data:audio/mpeg;base64,")
    heard, rate = soundfile.read(content(player["src"]))
    assert rate == 16000 and len(heard) == 3 * N and len(player["src"]) < 40_000
    assert np.corrcoef(heard, tone(n=3 * N))[0, 1] > 0.99


def test_a_player_clips_no_loud_sound_and_leaves_the_level_of_others():
    def peak(wave):
        (player,) = Page(show.player(wave, "a sound")).all("audio")
        return abs(soundfile.read(content(player["src"]))[0]).max()

    noise = torch.randn(N, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    overshot, _ = soundfile.read(io.BytesIO(audio.encode(noise, "mp3")))
    assert abs(overshot).max() > 1.2 and 0.8 < peak(noise) <= 1
    assert peak(tone()) == pytest.approx(0.5, abs=0.03)


def test_a_sound_shows_player_picture_and_both_in_words():
    block = show.sound(tone(1000.0), "a whistle")
    page = Page(block)
    (image,) = page.all("img")
    assert len(page.all("audio")) == 1 and page.text.startswith("a whistle")
    words = "1.0 seconds, strongest near 1.0 kilohertz."
    assert (
        image["alt"] == f"Mel spectrogram of: a whistle. {words}"
        and repr(block) == f"Sound: a whistle. {words}"
    )
    assert (
        "1.0 seconds of silence"
        in Page(show.sound(torch.zeros(N), "nothing")).all("img")[0]["alt"]
    )


def test_the_picture_of_a_sound_is_its_spectrogram_pixel_by_pixel():
    wave = tone(1000.0) * torch.linspace(0, 1, N)
    (image,) = Page(show.sound(wave, "a whistle")).all("img")
    pixels = np.asarray(Image.open(content(image["src"])).convert("RGB"))
    log_mel = audio.log_mel(wave[None])[0, 0]  # (T, F)
    assert pixels.shape == (64, 100, 3)
    assert (image["width"], image["height"]) == ("100", "64")
    brightest = 63 - pixels.astype(int).sum(2)[:, 20:].argmax(0)
    assert (abs(brightest - log_mel[20:].argmax(1).numpy()) <= 1).all()
    shades = {tuple(pixel) for pixel in pixels.reshape(-1, 3)}
    assert 10 < len(shades) <= show.LEVELS


def test_the_axes_of_a_sound_are_text_of_the_page_at_their_places():
    page = Page(show.sound(tone(1000.0, n=2 * N), "a whistle"))
    ticks = dict(re.findall(r"left:([\d.]+)%;transform[^>]*>([\d.]+)<", str(page.html)))
    assert ticks == {
        "0.0": "0",
        "25.0": "0.5",
        "50.0": "1",
        "75.0": "1.5",
        "100.0": "2",
    }
    heights = re.findall(r"bottom:([\d.]+)%;transform[^>]*>([\d.]+)<", page.html)
    (image,) = page.all("img")
    pixels = np.asarray(Image.open(content(image["src"])).convert("L"))
    row = 1 - (pixels[:, 50].argmax() + 0.5) / 64  # of the tone, from below
    (kilohertz,) = (float(place) for place, name in heights if name == "1")
    assert [name for _, name in heights] == ["0.5", "1", "2", "4"]
    assert abs(100 * row - kilohertz) < 2
    assert {"kHz", "time (s)"} <= set(re.findall(r">([^<>]+)</span>", page.html))
    (box,) = (div for div in page.all("div") if div["class"] == "minilib-mel")
    assert box["data-seconds"] == "2" and "color" not in box["style"]
    assert "aria-hidden" in page.all("span")[0]  # the alternative says it in words


@pytest.mark.parametrize(
    "seconds, last", [(0.5, "0.5"), (5, "5"), (10, "10"), (60, "60")]
)
def test_a_sound_of_any_length_has_four_to_eight_ticks_of_time(seconds, last):
    page = Page(show.sound(tone(n=int(seconds * N)), "a tone"))
    ticks = re.findall(r"left:[\d.]+%;transform[^>]*>([\d.]+)<", page.html)
    assert 4 <= len(ticks) <= 8 and ticks[0] == "0" and ticks[-1] == last


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_nothing_is_shown_without_words(alt):
    for make in (
        lambda: show.player(tone(), alt),
        lambda: show.sound(tone(), alt),
        lambda: show.slider([picture()], alt=alt),
        lambda: show.slider([picture()], labels=[alt], alt="a picture"),
    ):
        with pytest.raises(
            ValueError, match="must be a text that says what is shown or heard; given"
        ):
            make()


# --------------------------------------------------------------------------------------


def test_a_slider_starts_at_its_first_picture_and_sound_and_says_so():
    sounds, labels = [tone(220.0), None, tone(880.0)], ["low", "none", "h<gh"]
    page = Page(
        show.slider(
            [picture(k) for k in range(3)], sounds, labels, alt="a ramp", name="Pitch"
        )
    )
    images, players, (control,) = page.all("img"), page.all("audio"), page.all("input")
    assert [image["alt"] for image in images] == [
        "a ramp: low",
        "a ramp: none",
        "a ramp: h<gh",
    ]
    assert [player["aria-label"] for player in players] == [
        "a ramp: low",
        "a ramp: h<gh",
    ]
    assert [part["data-position"] for part in images + players] == [
        "0",
        "1",
        "2",
        "0",
        "2",
    ]
    assert ["display:block" in part["style"] for part in images + players] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert (control["type"], control["min"], control["max"], control["value"]) == (
        "range",
        "0",
        "2",
        "0",
    )
    assert (
        control["aria-label"] == "Pitch"
        and control["aria-valuetext"] == "low"
        and page.text == "Pitch: low"
    )
    assert all("max-width:100%" in image["style"] for image in images)  # fits a phone


def test_a_slider_closes_its_figures_and_keeps_their_size():
    figure, ax = plt.subplots(figsize=(4, 2), dpi=100)
    (image,) = Page(show.slider([figure], alt="a figure")).all("img")
    assert (image["width"], image["height"]) == (
        "400",
        "200",
    ) and not plt.fignum_exists(figure.number)


def test_a_slider_scales_all_arrays_alike_and_shows_colours_as_they_are():
    images = Page(
        show.slider(
            [np.zeros((8, 8)), np.full((8, 8), 5.0), np.full((8, 8), 10.0)],
            alt="levels",
        )
    ).all("img")
    dark, middle, bright = (
        np.asarray(Image.open(content(i["src"])).convert("L")).mean() for i in images
    )
    assert dark < 10 and 60 < middle < 160 and bright > 220
    (image,) = Page(
        show.slider([np.tile([1.0, 0.0, 0.0], (300, 300, 1))], alt="red")
    ).all("img")
    assert (
        np.abs(
            np.asarray(Image.open(content(image["src"])).convert("RGB")) - [255, 0, 0]
        ).max()
        < 8
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"frames": []}, "frames must hold at least one picture; given none"),
        (
            {"frames": [picture()], "labels": ["a", "b"]},
            "labels must be one for each of 1 frames; given 2",
        ),
        (
            {"frames": [picture()] * 2, "sounds": [tone()]},
            "sounds must be one for each of 2 frames; given 1",
        ),
        (
            {"frames": [np.zeros((4, 4, 2))]},
            r"frames must be figures or arrays .* given \(4, 4, 2\)",
        ),
    ],
)
def test_a_slider_names_what_does_not_fit(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.slider(**arguments, alt="a picture")


def test_a_slider_that_would_weigh_down_the_page_is_refused_with_its_size(monkeypatch):
    assert show.MAX_BYTES == 400 * 1024
    monkeypatch.setattr(show, "MAX_BYTES", 100 * 1024)
    noise = np.random.default_rng(0).random((2, 300, 300, 3))
    with pytest.raises(
        ValueError, match=r"frames and sounds take 1\d\d KB; a slider may take 100 KB"
    ):
        show.slider(list(noise), alt="noise")


# --------------------------------------------------------------------------------------


def test_blocks_need_nothing_from_elsewhere():
    for block in blocks():
        page = Page(block)
        assert [tag for tag, _ in page.elements].count("script") == 0
        sources = [
            attributes["src"] for _, attributes in page.elements if "src" in attributes
        ]
        assert sources and all(source.startswith("data:") for source in sources)
        assert not re.search(
            r"https?:|//|@import|url\(", re.sub(r'src="[^"]*"', "", block.html)
        )


def test_ids_come_from_the_content():
    first, again = blocks(), blocks()
    ids = [re.match(r'<figure id="([^"]+)"', block.html)[1] for block in first]
    assert len(set(ids)) == 3
    assert [block.html for block in first] == [block.html for block in again]
    assert ids[0] not in show.player(tone(441.0), "a tone").html


def test_a_slider_moves_in_a_browser(tmp_path):
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium here")
    two = [
        show.slider(
            [picture(k) for k in range(3)], [tone()] * 3, list("abc"), alt=alt
        ).html
        for alt in ("x", "y")
    ]
    move = "const i=document.querySelectorAll('input')[1];i.value=2;"
    move += "i.dispatchEvent(new Event('input'))"
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><meta charset='utf-8'>{''.join(two)}<script>{move}</script>",
        encoding="utf-8",
    )
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    flags += " disable-background-networking disable-component-update dump-dom"
    flags += f" user-data-dir={tmp_path / 'profile'}"
    command = [browser, *(f"--{flag}" for flag in flags.split()), page.as_uri()]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium does not start here")
    if "<figure" not in result.stdout:
        pytest.skip("Chromium does not start here")
    shown = re.findall(
        r'<(img|audio)[^>]*data-position="(\d)"[^>]*style="display: ?block',
        result.stdout,
    )
    assert shown == [("img", "0"), ("audio", "0"), ("img", "2"), ("audio", "2")]
    assert re.findall(r"<output[^>]*>(\w)<", result.stdout) == ["a", "c"]
    assert re.findall(r'aria-valuetext="(\w)"', result.stdout) == ["a", "c"]


# --------------------------------------------------------------------------------------
# Where axes stand on an image: the page keeps spectrograms as they are in the dark, and
# moves a playhead over them


def places(text):
    return [
        ([float(x) for x in numbers[:4]], kind, [float(x) for x in seconds])
        for *numbers, kind, seconds in (
            (*one.split(",")[:4], one.split(",")[4], one.split(",")[5:])
            for one in text.split()
        )
    ]


def test_the_axes_of_a_figure_in_a_slider_are_told_to_the_page():
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2), layout="constrained")
    show.mel(tone(), ax=left)
    right.plot([0, 1], [1, 2])
    (image,) = Page(show.slider([figure], alt="two")).all("img")
    (place, kind, seconds), bar = places(image["data-axes"])
    assert (kind, seconds) == ("picture", [0, 1]) and bar[1:] == ("picture", [])
    # the blue of the colours ends at 191, that of white is 255
    pixels = np.asarray(Image.open(content(image["src"])).convert("RGB"))[..., 2]
    height, width = pixels.shape
    left, top, wide, high = (x / 100 for x in place)
    inside = pixels[
        round(top * height) + 2 : round((top + high) * height) - 2,
        round(left * width) + 2 : round((left + wide) * width) - 2,
    ]
    assert inside.max() < 200  # nothing white: the spectrogram fills it
    outside = pixels[round(top * height) + 2, round(left * width) - 6]
    assert outside > 240


def test_a_plot_over_time_has_a_time_axis_and_one_over_something_else_has_none():
    def axes(draw):
        figure, ax = plt.subplots()
        draw(ax)
        (image,) = Page(show.slider([figure], alt="a plot")).all("img")
        return image["data-axes"]

    ((_, kind, seconds),) = places(axes(lambda ax: show.wave(tone(n=2 * N), ax=ax)))
    assert (kind, seconds) == ("plot", [0, 2])
    assert axes(lambda ax: ax.plot([0, 1], [2, 3])) == ""
    (image,) = Page(show.slider([picture()], alt="an array")).all("img")
    assert "data-axes" not in image


def test_a_printed_figure_says_in_its_file_where_its_axes_stand():
    with matplotlib.rc_context(show.look()):
        show.mels([tone(), tone(880.0)], ["low", "high"])
        figure = plt.gcf()
        image = Image.open(io.BytesIO(show._printed(figure)))
    first, second, bar = places(image.text["axes"])
    assert [kind for _, kind, _ in (first, second, bar)] == ["picture"] * 3
    pixels = np.asarray(image.convert("RGB")).astype(int).sum(2)
    height, width = pixels.shape
    for (left, top, wide, high), _, seconds in (first, second):
        rows = [round((top + part * high) / 100 * height) for part in (0.02, 0.98)]
        columns = [round((left + part * wide) / 100 * width) for part in (0.02, 0.98)]
        assert seconds == [0, 1]
        assert pixels[rows[0] : rows[1], columns[0] : columns[1]].max() < 700
        assert pixels[rows[0], round((left - 1) / 100 * width)] == 765  # white paper


# --------------------------------------------------------------------------------------


def test_live_says_how_to_get_widgets_where_nobody_can_move_them(capsys, monkeypatch):
    show.live(print, steps=(1, 10), guidance=(0.0, 5.0))
    sentence = (
        "Run this cell in Jupyter or Colab to change steps and guidance yourself.\n"
    )
    assert capsys.readouterr().out == sentence
    monkeypatch.setattr(show, "_somebody_is_there", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    show.live(print, steps=(1, 10), guidance=(0.0, 5.0))
    assert capsys.readouterr().out == sentence


def test_live_hands_the_controls_to_ipywidgets(monkeypatch):
    calls = []
    monkeypatch.setattr(show, "_somebody_is_there", lambda: True)
    monkeypatch.setattr(
        "ipywidgets.interact",
        lambda function, **controls: calls.append((function, controls)),
    )
    show.live(print, steps=(1, 10))
    assert calls == [(print, {"steps": (1, 10)})]


@pytest.fixture(scope="module")
def kernel():
    """A function that runs code in another process, and gives what it prints and the
    figures that it shows.
    """
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))

    def run(code, attended=False):
        said = []
        hook = lambda message: said.append(message["content"])
        reply = client.execute_interactive(
            code, allow_stdin=attended, timeout=60, output_hook=hook
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        text = "".join(some.get("text", "") for some in said)
        data = [some["data"] for some in said if "data" in some]
        return text.strip(), [some["image/png"] for some in data if "image/png" in some]

    slow = "{'matplotlib', 'PIL', 'ipywidgets', 'librosa', 'scipy'}"
    run.loaded, _ = run(
        f"import sys; from minilib import show; print({slow} & set(sys.modules))"
    )
    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_importing_show_waits_with_all_that_is_slow(kernel):
    assert kernel.loaded == "set()"


def test_blocks_are_the_same_bytes_in_another_process(kernel):
    program = (
        "import numpy as np, torch\n"
        "from minilib import show\n"
        "wave = torch.sin(torch.arange(8000) / 5)\n"
        "block = show.slider([np.eye(4), np.ones((4, 4))], [wave, wave / 2], alt='x')\n"
        "html = block.html + show.sound(wave, 'y').html\n"
    )
    here = {}
    exec(program, here)
    assert kernel(f"{program}print(html)")[0] == here["html"]


def test_a_kernel_knows_whether_somebody_is_there(kernel):
    code = "from minilib import show; print(show._somebody_is_there())"
    assert kernel(code)[0] == "False" and kernel(code, attended=True)[0] == "True"


def test_a_notebook_shows_small_pictures_of_figures(kernel):
    kernel("import matplotlib.pyplot as plt, torch; from minilib import show")
    kernel("show.style()")
    code = "show.mel(torch.sin(torch.arange(8000.0).square() / 1e4)); plt.show()"
    (figure,) = kernel(code)[1]
    image = Image.open(content(f"base64,{figure}"))
    # a palette, the look of the book, and no empty margins
    assert image.mode == "P" and abs(image.width - 770) < 20
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert len(image.convert("RGB").getcolors()) > 100
