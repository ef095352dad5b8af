"""Plots, players and sliders for the book: what can be seen is plotted, what can be
heard is played.

Everything that is shown is plain HTML with its pictures and sounds inside: it needs no
kernel, no network and no script from elsewhere, is the same bytes at every run, and
carries a text alternative. "How to use this book" shows each function at work.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import soundfile
import torch
from torch import Tensor

from minilib import audio

# matplotlib and PIL take a second to import: only those who plot wait for them
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.transforms import Bbox
    from PIL.Image import Image

LIMITS = (-80.0, 10.0)  # decibels that the colours of a mel spectrogram span
COLOURS = "magma"  # even steps of lightness: readable in grey and by the colour-blind
KILOHERTZ = (0.5, 1.0, 2.0, 4.0)  # ticks of a mel spectrogram
LEVELS = 64  # shades of a mel spectrogram beside a player: 1.4 dB each
MAX_BYTES = 400 * 1024  # of one slider: a page may hold several

LOOK = {
    "figure.figsize": (7.0, 2.6),
    "figure.dpi": 110,
    "savefig.dpi": 110,
    # not transparent: black letters must stay readable in dark mode
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "image.cmap": COLOURS,
    "lines.linewidth": 1.5,
}
# Okabe and Ito 2008
LINE_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)


def style() -> None:
    """Give matplotlib the look of the book: once, at the top of a chapter.

    In a notebook plots then come as PNG with 256 colours: they look the same, and take
    up less than half of the room. Where their axes stand is written into the file, so
    that the page can turn a plot dark and leave spectrograms as they are.
    """
    import matplotlib

    shell = _shell()
    if shell is not None and hasattr(shell, "display_formatter"):
        from matplotlib import pyplot
        from matplotlib.figure import Figure

        # loaded now, for when the backend is loaded it asks for its own pictures
        pyplot.switch_backend(matplotlib.get_backend())
        shell.display_formatter.formatters["image/png"].for_type(Figure, _printed)
    matplotlib.rcParams.update(look())


def look() -> dict[str, Any]:
    """Matplotlib's settings for the look of the book."""
    from cycler import cycler

    return {**LOOK, "axes.prop_cycle": cycler(color=LINE_COLOURS)}


# --------------------------------------------------------------------------------------
# Plots. Each draws on the axes it is given, or on a figure of its own.


def wave(
    wave: Tensor,
    title: str = "",
    sample_rate: int = audio.SAMPLE_RATE,
    ax: Axes | None = None,
) -> None:
    """Plot a waveform: amplitude over seconds.

    Args:
        wave: (N,) or (1, N) in [-1, 1]; title: above the plot; sample_rate: in hertz;
            ax: where to draw.
    """
    samples = _one(wave, "wave")
    ax = _new_axes(1)[0] if ax is None else ax
    seconds = torch.arange(len(samples)) / sample_rate
    ax.plot(seconds.numpy(), samples.numpy(), linewidth=0.6, color=LINE_COLOURS[0])
    ax.set(
        title=title,
        xlabel="time (s)",
        ylabel="amplitude",
        xlim=(0, len(samples) / sample_rate),
    )
    ax.set_ylim(-1.05, 1.05)


def mel(
    sound: Tensor,
    title: str = "",
    ax: Axes | None = None,
    limits: tuple[float, float] = LIMITS,
) -> None:
    """Plot a mel spectrogram: seconds by kilohertz, the level in decibels as colour.

    Args:
        sound: a log-mel (1, 1, T, F), (1, T, F) or (T, F), or a wave (N,) or (1, N) at
            16 kHz.
        title: above the plot; ax: where to draw; limits: decibels of the darkest and
            the brightest colour.
    """
    ax = _new_axes(1)[0] if ax is None else ax
    image = _draw_mel(ax, _log_mel(sound), limits)
    ax.set(title=title, ylabel="frequency (kHz)")
    ax.figure.colorbar(image, ax=ax, label="level (dB)")


def mels(
    sounds: Sequence[Tensor],
    titles: Sequence[str],
    limits: tuple[float, float] = LIMITS,
) -> None:
    """Plot mel spectrograms side by side, with one scale of colours.

    Args:
        sounds: log-mels or waves, as for `mel`; titles: one for each; limits: decibels,
            as for `mel`.
    Raises:
        ValueError: there are no sounds, or not as many titles.
    """
    if len(sounds) == 0 or len(sounds) != len(titles):
        raise ValueError(
            f"titles must be one for each of at least one sound; given {len(titles)} "
            f"for {len(sounds)}"
        )
    axes = _new_axes(len(sounds))
    images = [_draw_mel(ax, _log_mel(sound), limits) for ax, sound in zip(axes, sounds)]
    for ax, title in zip(axes, titles):
        ax.set_title(title)
    axes[0].set_ylabel("frequency (kHz)")
    axes[0].figure.colorbar(images[0], ax=axes, label="level (dB)")


def _new_axes(n: int) -> list[Axes]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, sharey=True, squeeze=False, layout="constrained")
    return list(axes[0])


def _draw_mel(ax: Axes, log_mel: Tensor, limits: tuple[float, float]) -> AxesImage:
    T, F = log_mel.shape
    image = ax.imshow(
        audio.decibels(log_mel).T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, T * audio.HOP / audio.SAMPLE_RATE, 0, F),
        cmap=COLOURS,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    ax.set_yticks(_heights(F), [f"{k:g}" for k in KILOHERTZ])
    ax.set_xlabel("time (s)")
    ax.grid(False)
    return image


def _heights(F: int) -> list[float]:
    """Where KILOHERTZ lie on an axis that counts the F bands of a mel spectrogram."""
    # mel from one band to the next
    step = audio.hz_to_mel(audio.SAMPLE_RATE / 2) / (F + 1)
    return (audio.hz_to_mel(1000 * torch.tensor(KILOHERTZ)) / step - 0.5).tolist()


def _one(x: Tensor, name: str) -> Tensor:
    """A single waveform (N,) on the CPU, from (N,) or (1, N)."""
    x = torch.as_tensor(x).detach().cpu().float()
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1) or x.numel() == 0:
        raise ValueError(
            f"{name} must be one waveform, (N,) or (1, N); given {tuple(x.shape)}"
        )
    return x.reshape(-1)


def _log_mel(sound: Tensor) -> Tensor:
    """A single log-mel (T, F) on the CPU, from a log-mel or a waveform."""
    sound = torch.as_tensor(sound).detach().cpu().float()
    if sound.ndim == 1 or (sound.ndim == 2 and sound.shape[0] == 1):
        return audio.log_mel(sound.reshape(1, -1))[0, 0]
    if sound.ndim > 4 or any(size != 1 for size in sound.shape[:-2]):
        raise ValueError(
            f"sound must be one log-mel (1, 1, T, F) or one wave (N,); given "
            f"{tuple(sound.shape)}"
        )
    return sound.reshape(sound.shape[-2:])


# --------------------------------------------------------------------------------------
# Sounds


@dataclass(frozen=True)
class Block:
    """A piece of HTML that a notebook shows as it is, and prints as its text
    alternative.
    """

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def player(wave: Tensor, alt: str, sample_rate: int = audio.SAMPLE_RATE) -> Block:
    """A player with its label; the sound is inside the page, as MP3.

    Args:
        wave: (N,) or (1, N) in [-1, 1]; alt: what is heard, shown as label;
            sample_rate: in hertz.
    Raises:
        ValueError: the wave is not one waveform of finite numbers, or `alt` is empty.
    """
    label = _text(alt, "alt")
    return Block(
        _figure("sound", f"{_caption(label)}{_audio(wave, label, sample_rate)}"),
        f"Sound: {alt}",
    )


def sound(wave: Tensor, caption: str) -> Block:
    """A sound to hear and to see: caption, player and mel spectrogram, with a text
    alternative.

    Args:
        wave: (N,) or (1, N) at 16 kHz in [-1, 1], N > 512; caption: what is heard.
    Raises:
        ValueError: the wave is not one waveform of finite numbers, or too short, or
            `caption` is empty.
    """
    label, log_mel = _text(caption, "caption"), _log_mel(_one(wave, "wave"))
    alt = f"Mel spectrogram of: {label}. {_in_words(log_mel)}"
    content = f"{_caption(label)}{_audio(wave, label, audio.SAMPLE_RATE)}"
    return Block(
        _figure("sound", f"{content}{_mel_html(log_mel, alt)}"),
        f"Sound: {caption}. {_in_words(log_mel)}",
    )


def _mel_html(log_mel: Tensor, alt: str) -> str:
    """A mel spectrogram whose axes are text of the page: as wide as there is room, in
    the colours of the page, light or dark.
    """
    T, F = log_mel.shape
    seconds = T * audio.HOP / audio.SAMPLE_RATE
    step = next(
        x for x in (0.1, 0.5, 1, 2, 5, 10, 30, 60) if seconds <= 7 * x or x > 30
    )
    times = [i * step for i in range(1 + math.floor(seconds / step + 1e-6))]
    rows = [
        _tick(f"{k:g}", f"right:calc(100% + 0.4em);bottom:{100 * y / F:.1f}%", "0,50%")
        for k, y in zip(KILOHERTZ, _heights(F))
    ]
    columns = [
        _tick(
            f"{t:g}", f"top:calc(100% + 0.3em);left:{100 * t / seconds:.1f}%", "-50%,0"
        )
        for t in times
    ]
    low, high = (f"{limit:.0f}".replace("-", "\u2212") for limit in LIMITS)
    bar = f"linear-gradient(90deg,{','.join(_shades(6))})"
    names = (
        _tick("kHz", "right:calc(100% + 0.4em);top:0", "0,-50%")
        + _tick("time (s)", "top:calc(100% + 1.6em);left:0", "0,0")
        + '<span style="position:absolute;top:calc(100% + 1.6em);right:0;'
        f'white-space:nowrap">level {low} <span style="display:inline-block;width:5em;'
        f'height:0.7em;background:{bar}"></span> {high} dB</span>'
    )
    return (
        f'<div class="minilib-mel" data-seconds="{seconds:g}" style="position:relative;'
        'height:10em;margin:0.8em 0.8em 3.2em 3em;font-size:0.8em;line-height:1.2">'
        f'<img alt="{alt}" width="{T}" height="{F}" style="display:block;width:100%;'
        'height:100%;max-width:none;image-rendering:pixelated" '
        f'src="{_uri("image/webp", _raster(log_mel))}"><span aria-hidden="true">'
        f"{''.join(rows)}{''.join(columns)}{names}</span></div>"
    )


def _tick(text: str, place: str, shift: str) -> str:
    return (
        f'<span style="position:absolute;{place};transform:translate({shift})">'
        f"{text}</span>"
    )


def _shades(n: int) -> list[str]:
    """The colours of a mel spectrogram in n even steps, as CSS names them."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[COLOURS](i / (n - 1))) for i in range(n)]


def _raster(log_mel: Tensor) -> bytes:
    """A mel spectrogram (T, F) as an image, a pixel for each value, low ones below."""
    from matplotlib import colormaps
    from PIL import Image

    level = (audio.decibels(log_mel).T.flip(0) - LIMITS[0]) / (LIMITS[1] - LIMITS[0])
    steps = (level.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)
    pixels = (255 * colormaps[COLOURS](steps.numpy())[..., :3]).round().astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, method=6)
    return file.getvalue()


def _in_words(log_mel: Tensor) -> str:
    """What a mel spectrogram shows, for those who don't see it: its length and where it
    is strongest.
    """
    T, F = log_mel.shape
    seconds = T * audio.HOP / audio.SAMPLE_RATE
    if audio.decibels(log_mel.max()) < LIMITS[0]:
        return f"{seconds:.1f} seconds of silence."
    band = int(log_mel.exp().mean(dim=0).argmax())
    kilohertz = (
        audio.mel_to_hz((band + 1) * audio.hz_to_mel(audio.SAMPLE_RATE / 2) / (F + 1))
        / 1000
    )
    return f"{seconds:.1f} seconds, strongest near {float(kilohertz):.1f} kilohertz."


# --------------------------------------------------------------------------------------
# Sliders


def slider(
    frames: Sequence[Figure | Any],
    sounds: Sequence[Tensor | None] | None = None,
    labels: Sequence[str] | None = None,
    *,
    alt: str,
    name: str = "Position",
) -> Block:
    """Pictures to slide through, with a sound for each position where there is one;
    works without a kernel.

    All pictures and sounds are in the page; a few words of script inside the slider
    show one of them at a time.

    Args:
        frames: figures of matplotlib (they are closed, so that they don't show twice),
            or arrays: (H, W), drawn with the colours of `mel` from the lowest to the
            highest of all frames, or (H, W, 3) from 0 to 1.
        sounds: for each frame a wave (N,) at 16 kHz, or None; labels: for each frame
            its text.
        alt: what the pictures show; name: the label of the slider.
    Raises:
        ValueError: there are no frames, or not as many sounds or labels, a text is
            empty, or all exceeds 400 KB.
    """
    if len(frames) == 0:
        raise ValueError("frames must hold at least one picture; given none")
    for things, kind in ((labels, "labels"), (sounds, "sounds")):
        if things is not None and len(things) != len(frames):
            raise ValueError(
                f"{kind} must be one for each of {len(frames)} frames; given "
                f"{len(things)}"
            )
    alt, name = _text(alt, "alt"), _text(name, "name")
    labels = [
        _text(label, "labels")
        for label in labels or [f"{i + 1} of {len(frames)}" for i in range(len(frames))]
    ]
    words = [f"{alt}: {label}" for label in labels]
    places = [_at(i, label) for i, label in enumerate(labels)]
    parts = [*map(_img, _scaled(frames), words, places), _range(labels, name)]
    for sound, word, place in zip(sounds or (), words, places):
        if sound is not None:
            parts += [_audio(sound, word, audio.SAMPLE_RATE, place)]
    page = _figure("slider", "".join(parts))
    if len(page) > MAX_BYTES:
        raise ValueError(
            f"frames and sounds take {len(page) / 1024:.0f} KB; a slider may take "
            f"{MAX_BYTES // 1024} KB: "
            "show fewer or smaller ones"
        )
    return Block(page, f"Slider with {len(frames)} positions: {html.unescape(alt)}")


def _at(i: int, label: str) -> str:
    """The attributes of a slider's part: its position, its label, and whether it is
    shown at first.
    """
    display = "none" if i else "block"
    return f'data-position="{i}" data-label="{label}" style="display:{display};'


def _range(labels: Sequence[str], name: str) -> str:
    """The control of a slider: the mouse, a finger or the arrow keys move it, and its
    text is read aloud.
    """
    return (
        f'<label style="display:block">{name}: <output '
        f'aria-live="polite">{labels[0]}</output>'
        f'<input type="range" min="0" max="{len(labels) - 1}" value="0" step="1" '
        f'autocomplete="off" '
        f'aria-label="{name}" aria-valuetext="{labels[0]}" '
        f'oninput="{html.escape(SLIDE)}" '
        'style="display:block;width:100%;height:2em;margin:0"></label>'
    )


# What a slider does when it is moved: shows what stands at its position, hides the
# rest, and where a sound was playing, plays the one that belongs there. It finds its
# parts from itself, so many sliders can share a page.
SLIDE = (
    "let playing=false,here=null;"
    "for(const part of this.closest('figure').querySelectorAll('[data-position]')){"
    "const shown=part.dataset.position===this.value;"
    "part.style.display=shown?'block':'none';"
    "if(part.pause){playing=playing||!part.paused;part.pause();if(shown)here=part;}"
    "else if(shown){this.setAttribute('aria-valuetext',part.dataset.label);"
    "this.closest('figure').querySelector('output').textContent=part.dataset.label;}}"
    "if(playing&&here){here.currentTime=0;here.play();}"
)


def live(function: Callable[..., Any], **controls: Any) -> None:
    """In Jupyter, widgets that call the function anew when they are moved; elsewhere a
    sentence.

    Use it beside `slider`, never in its place: the rendered book has no kernel that
    could answer.

    Args:
        function: draws or prints; controls: one for each of its arguments, as
            `ipywidgets.interact` takes them.
    """
    try:
        from ipywidgets import interact
    except ImportError:
        interact = None
    if interact is None or not _somebody_is_there():
        print(
            f"Run this cell in Jupyter or Colab to change {' and '.join(controls)} "
            f"yourself."
        )
        return
    interact(function, **controls)


def _somebody_is_there() -> bool:
    """Whether a kernel runs this for a person: programs that run notebooks say that
    they can't answer questions.
    """
    if "google.colab" in sys.modules:
        return True
    return getattr(getattr(_shell(), "kernel", None), "_allow_stdin", False)


def _shell() -> Any:
    """The IPython that runs this, or None."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


# --------------------------------------------------------------------------------------
# Pieces of HTML


def _text(text: str, name: str) -> str:
    """A text, safe inside HTML; the reader who can't see or hear has nothing else."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{name} must be a text that says what is shown or heard; given {text!r}"
        )
    return html.escape(text)


def _figure(kind: str, content: str) -> str:
    """A block of the page.

    Its id comes from its content; its colours are the page's, light or dark.
    """
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    return (
        f'<figure id="{kind}-{name}" class="minilib-{kind}" '
        f'style="margin:0.5em 0;max-width:44em;color:inherit">{content}</figure>'
    )


def _caption(label: str) -> str:
    return f'<figcaption style="margin:0 0 0.3em">{label}</figcaption>'


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _audio(
    wave: Tensor,
    label: str,
    sample_rate: int,
    attributes: str = 'style="display:block;',
) -> str:
    sound = _uri("audio/mpeg", _mp3(wave, sample_rate))
    return (
        f'<audio controls preload="metadata" aria-label="{label}" '
        f'{attributes}width:100%" src="{sound}"></audio>'
    )


def _mp3(wave: Tensor, sample_rate: int) -> bytes:
    """A wave as MP3, where MP3 would overshoot 1 (as with loud noise) so much quieter
    that a player clips nothing.
    """
    wave, level = torch.as_tensor(wave).clamp(-1, 1), 1.0
    while True:
        sound = audio.encode(wave * level, "mp3", sample_rate)
        samples, _ = soundfile.read(io.BytesIO(sound))
        if abs(samples).max() <= 1:
            return sound
        level *= 0.9


def _img(picture: Any, alt: str, attributes: str = 'style="display:block;') -> str:
    image, axes = _render(picture)
    where = "" if axes is None else f'data-axes="{axes}" '
    return (
        f'<img alt="{alt}" width="{image.width}" height="{image.height}" {where}'
        f'{attributes}max-width:100%;height:auto" '
        f'src="{_uri(*_compress(image))}">'
    )


def _scaled(frames: Sequence[Any]) -> list[Any]:
    """Frames with every (H, W) array brought to 0 to 1 by one scale for all."""
    import numpy as np
    from matplotlib.figure import Figure

    pictures = [
        frame if isinstance(frame, Figure) else np.asarray(frame, dtype="float64")
        for frame in frames
    ]
    flat = [
        picture
        for picture in pictures
        if not isinstance(picture, Figure) and picture.ndim == 2
    ]
    low, high = (min(map(np.min, flat)), max(map(np.max, flat))) if flat else (0.0, 1.0)
    return [
        picture
        if isinstance(picture, Figure) or picture.ndim == 3
        else (picture - low) / max(high - low, 1e-12)
        for picture in pictures
    ]


def _render(picture: Any) -> tuple[Image, str | None]:
    """A figure, or an array (H, W) or (H, W, 3) of values from 0 to 1, as an image of
    at least 240 pixels a side; with it the axes of a figure.
    """
    import numpy as np
    from matplotlib import colormaps, pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    if isinstance(picture, Figure):
        canvas = FigureCanvasAgg(picture)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        axes = _axes(picture, picture.bbox, image)
        pyplot.close(picture)
        return image, axes
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError(
            f"frames must be figures or arrays (H, W) or (H, W, 3); given "
            f"{picture.shape}"
        )
    pixels = colormaps[COLOURS](picture)[..., :3] if picture.ndim == 2 else picture
    pixels = (255 * pixels.clip(0, 1)).round().astype("uint8")
    # small arrays in whole multiples, so that each value stays a square
    times = -(-240 // min(pixels.shape[:2]))
    return Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)), None


def _axes(figure: Figure, page: Bbox, image: Image) -> str:
    """Where a figure's spectrograms and time axes stand on its image, for the page.

    Args:
        figure: drawn; page: what of it the image shows, in pixels; image: of that.
    Returns:
        for each such axes "left,top,width,height" in per cent of the image, then
        "picture" where colours mean something and must stay as they are or "plot", and
        of a time axis the seconds at both ends; separated by spaces.
    """
    from matplotlib.collections import QuadMesh

    found = []
    for ax in figure.axes:
        coloured = ax.images or any(isinstance(x, QuadMesh) for x in ax.collections)
        siblings = ax.get_shared_x_axes().get_siblings(ax)
        timed = any(other.get_xlabel() == "time (s)" for other in siblings)
        if not coloured and not timed:
            continue
        box = ax.get_window_extent()
        sides = (
            round(image.width * (box.x0 - page.x0) / page.width),
            round(image.height * (page.y1 - box.y1) / page.height),
            round(image.width * (box.x1 - page.x0) / page.width),
            round(image.height * (page.y1 - box.y0) / page.height),
        )
        left, top, right, bottom = _filled(image, sides) if coloured else sides
        place = (
            100 * left / image.width,
            100 * top / image.height,
            100 * (right - left) / image.width,
            100 * (bottom - top) / image.height,
        )
        values = [f"{x:.2f}" for x in place] + ["picture" if coloured else "plot"]
        values += [f"{x:g}" for x in ax.get_xlim()] if timed else []
        found.append(",".join(values))
    return " ".join(found)


def _filled(image: Image, sides: tuple[int, int, int, int]) -> tuple[int, ...]:
    """A rectangle (left, top, right, bottom) made wider by up to two pixels on each
    side, as far as there is ink and not paper.
    """
    import numpy as np

    paper = np.asarray(image)[..., 2] > 235  # blue: no colour of a spectrogram has it
    left, top, right, bottom = sides
    for _ in range(2):
        left -= left > 0 and paper[top:bottom, left - 1].mean() < 0.5
        right += right < image.width and paper[top:bottom, right].mean() < 0.5
        top -= top > 0 and paper[top - 1, left:right].mean() < 0.5
        bottom += bottom < image.height and paper[bottom, left:right].mean() < 0.5
    return left, top, right, bottom


def _printed(figure: Figure) -> bytes:
    """A figure as a notebook prints it, without empty margins: PNG with 256 colours."""
    from IPython.core.pylabtools import print_figure
    from matplotlib import rcParams
    from matplotlib.transforms import Bbox
    from PIL import Image

    printed = print_figure(figure, "png")
    page = figure.get_tightbbox().padded(rcParams["savefig.pad_inches"])
    page = Bbox(page.get_points() * figure.dpi)
    with Image.open(io.BytesIO(printed)) as file:
        image = file.convert("RGB")
    return _png(image, 256, _axes(figure, page, image))


def _png(image: Image, n_colours: int, axes: str | None = None) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    file, notes = io.BytesIO(), PngInfo()
    if axes is not None:
        notes.add_text("axes", axes)
    image.quantize(n_colours, dither=0).save(file, "PNG", optimize=True, pnginfo=notes)
    return file.getvalue()


def _compress(image: Image) -> tuple[str, bytes]:
    """The smaller of PNG with 128 colours (lines, letters) and WebP (spectrograms),
    with its type.
    """
    webp = io.BytesIO()
    image.save(webp, "WEBP", quality=80, method=6)
    kinds = ("image/png", _png(image, 128)), ("image/webp", webp.getvalue())
    return min(kinds, key=lambda kind: len(kind[1]))
