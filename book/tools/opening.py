"""The book's mark, and the opening picture of its welcome page.

    python book/tools/opening.py     write book/_static/mark.svg

The picture is made by the book's own equation: bar by bar from left to right, the time
of the forward process runs back from all noise to the clean wave. page.py puts it in.
"""

from __future__ import annotations

import math
import random

import notebooks

MARK = notebooks.ROOT / "book" / "_static" / "mark.svg"
SHADES = ("#721f81", "#932b80", "#b5367a", "#d3436e", "#eb5760", "#f8765c", "#fd9567")
BARS, WIDTH, HEIGHT = 144, 864, 150


def wave(u: float) -> float:
    """The clean wave at u in [0, 1]: two strokes that ring out."""
    strokes = ((0.46, 1.0, 9.0), (0.76, 0.9, 9.0))
    return sum(
        size * math.exp(-decay * (u - start)) * math.cos(95 * (u - start))
        for start, size, decay in strokes
        if u >= start
    )


def picture() -> str:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, with t falling from left to
    right, as an SVG.
    """
    noise, lines = random.Random(3), {}
    step = WIDTH / BARS
    for i in range(BARS):
        u = (i + 0.5) / BARS
        alpha_bar = math.sin(0.5 * math.pi * min(1.0, u / 0.72)) ** 2
        x = math.sqrt(alpha_bar) * wave(u)
        x += math.sqrt(1 - alpha_bar) * 0.42 * noise.gauss(0, 1)
        half = max(1.5, min(0.97, abs(x)) * HEIGHT / 2)
        shade = SHADES[min(int(u * len(SHADES)), len(SHADES) - 1)]
        path = f"M{(i + 0.5) * step:.0f} {HEIGHT / 2 - half:.0f}v{2 * half:.0f}"
        lines.setdefault(shade, []).append(path)
    paths = "".join(
        f'<path stroke="{shade}" d="{"".join(path)}"/>' for shade, path in lines.items()
    )
    return (
        f'<svg class="opening" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Bars of noise that become, from left to right, the waveform of '
        'two strokes" fill="none" stroke-width="3" stroke-linecap="round">'
        f"{paths}</svg>"
    )


def mark() -> str:
    """Seven bars under a Gaussian: where every sound of this book begins."""
    bars = ""
    for i, shade in enumerate(SHADES):
        half = 13 * math.exp(-((i - 3) ** 2) / 5.2)
        bars += (
            f'<path stroke="{shade}" d="M{4 + 4 * i} {16 - half:.1f}v{2 * half:.1f}"/>'
        )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" '
        f'stroke-width="2.6" stroke-linecap="round">{bars}</svg>\n'
    )


if __name__ == "__main__":
    MARK.write_text(mark(), encoding="utf-8")
