"""The sound effects of SoundWorld: each class is one short synthesiser (chapter 01).

A synthesiser is a function `(event, rng, sample_rate) -> wave (n,)` that makes
`event.duration` seconds of sound at any level; the corpus sets the level and fades the
ends. The attributes that a caption mentions (the fundamental `f0`, the `rate`, the
times of the `strokes`) were drawn before and are followed here; `rng` only adds the
differences between two barks. CLASSES, at the end, is the table of all classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .materials import (
    band,
    glide,
    noise,
    partials,
    resonate,
    running_phase,
    strike,
    swell,
    times,
    tone,
    voice,
    wander,
)

if TYPE_CHECKING:
    from .scene import Event

Synthesiser = Callable[["Event", np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class SoundClass:
    """The attributes that a class has, and their values in hertz and seconds.

    A class without `length` fills the time it is given (rain); one with `counts` is a
    series of strokes (knocks); one with `length` but no `counts` happens once (breaking
    glass).
    """

    synthesise: Synthesiser
    pitch: tuple[float, float, float] | None = None  # f0 in Hz when low, medium, high
    # rate in Hz when slow, normal, fast
    speed: tuple[float, float, float] | None = None
    counts: tuple[int, ...] = ()  # possible numbers of strokes in an event
    length: float = 0.0  # natural seconds of one stroke, its ringing included
    interval: float = 0.0  # approximate seconds between strokes
    shortest: float = 0.0  # the fewest seconds in which a stroke can be recognised
    # whether it fills its time with strokes at `rate`, whose times are stored
    regular: bool = False


# --------------------------------------------------------------------------------------
# Events of many strokes, and of many grains


def _length(event: Event, sample_rate: int) -> int:
    return max(1, round(event.duration * sample_rate))


def _series(
    event: Event,
    rng: np.random.Generator,
    sample_rate: int,
    seconds: float,
    stroke: Callable[[int], np.ndarray],
    spread: bool = False,
) -> np.ndarray:
    """Put `stroke(n)` at every stroke of the event, at nearly equal levels; each lasts
    at most `seconds`.

    Without `spread`, a stroke also ends before the next begins (a dog can't bark twice
    at once).
    """
    total = _length(event, sample_rate)
    wave = np.zeros(total, dtype=np.float32)
    starts = [round((time - event.onset) * sample_rate) for time in event.strokes]
    for start, after in zip(starts, starts[1:] + [total]):
        room = (
            total - start if spread or after == total else round(0.85 * (after - start))
        )
        n = min(round(seconds * sample_rate), room)
        if n > 16:
            piece = stroke(n) * swell(
                n, 0.0, min(0.03, n / sample_rate / 4), sample_rate
            )
            wave[start : start + n] += piece * (
                rng.uniform(0.85, 1) / np.abs(piece).max()
            )
    return wave


def _scatter(
    rng: np.random.Generator,
    n: int,
    rate: float,
    grain: Callable[[], np.ndarray],
    sample_rate: int,
    power: float = 2,
) -> np.ndarray:
    """Scatter grains, about `rate` per second, with levels spread by `power` (few loud,
    many soft).
    """
    wave = np.zeros(n, dtype=np.float32)
    count = max(1, round(rate * n / sample_rate))
    # uneven times, without long gaps
    starts = (np.arange(count) + rng.random(count) ** 1.3 - 0.3).clip(0) * (n / count)
    for start in starts.astype(int):
        piece = grain()[: n - start]
        wave[start : start + len(piece)] += piece * (0.1 + rng.random() ** power)
    return wave


# --------------------------------------------------------------------------------------
# Animals


def dog(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A bark: a short rough voice whose pitch jumps up and falls."""
    size = (event.f0 / 360) ** 0.3  # a small dog has a short throat: higher formants

    def bark(n: int) -> np.ndarray:
        rough = 1 + 0.04 * wander(rng, n, 90, sample_rate)
        f0 = event.f0 * glide(n, 0.8, 1.12, 1.05, 0.85, 0.6) * rough
        formants = [
            (650 * size, 220, 1.0),
            (1300 * size, 260, 0.9),
            (2700 * size, 500, 0.35),
        ]
        wave = voice(f0, formants, sample_rate)
        breath = band(noise(rng, n), 500 * size, 3500, sample_rate)
        wave = wave / np.abs(wave).max() + 0.12 * breath
        return wave * swell(n, 0.015, 0.6 * n / sample_rate, sample_rate)

    return _series(event, rng, sample_rate, rng.uniform(0.17, 0.22), bark)


def cat(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A meow: a voice that rises and falls while the mouth opens and closes."""
    size = (event.f0 / 520) ** 0.3

    def meow(n: int) -> np.ndarray:
        f0 = (
            event.f0
            * glide(n, 0.82, 1.02, 1.12, 1.05, 0.9, 0.72)
            * (1 + 0.006 * wander(rng, n, 25, sample_rate))
        )
        first = size * glide(n, 350, 800, 1100, 950, 600, 450)
        second = size * glide(n, 2300, 2500, 2000, 1500, 1000, 800)
        wave = voice(
            f0,
            [(first, 180, 1.0), (second, 260, 0.8), (3600 * size, 500, 0.25)],
            sample_rate,
            6000,
        )
        return wave * swell(
            n, 0.25 * n / sample_rate, 0.5 * n / sample_rate, sample_rate
        )

    return _series(event, rng, sample_rate, rng.uniform(0.5, 0.62), meow)


def cow(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A moo: a long low voice, first through closed lips, then open."""
    size = (event.f0 / 150) ** 0.25

    def moo(n: int) -> np.ndarray:
        f0 = (
            event.f0
            * glide(n, 0.85, 1.0, 1.08, 1.08, 1.0, 0.8)
            * (1 + 0.01 * wander(rng, n, 40, sample_rate))
        )
        first = size * glide(n, 230, 300, 520, 560, 500, 350)
        second = size * glide(n, 700, 750, 1000, 1050, 950, 750)
        wave = voice(
            f0,
            [(first, 120, 1.0), (second, 170, 0.5), (2300 * size, 350, 0.12)],
            sample_rate,
            3500,
        )
        return wave * swell(
            n, 0.2 * n / sample_rate, 0.25 * n / sample_rate, sample_rate
        )

    return _series(event, rng, sample_rate, rng.uniform(1.0, 1.4), moo)


def owl(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A hoot: nearly a pure tone with breath, swelling softly."""

    def hoot(n: int) -> np.ndarray:
        phase = running_phase(
            event.f0 * glide(n, 0.93, 1.0, 1.01, 1.0, 0.92), n, sample_rate
        )
        breath = band(noise(rng, n), 0.8 * event.f0, 1.3 * event.f0, sample_rate)
        wave = (
            np.sin(phase)
            + 0.12 * np.sin(2 * phase)
            + 0.05 * np.sin(3 * phase)
            + 0.08 * breath
        )
        return wave * swell(
            n, 0.35 * n / sample_rate, 0.55 * n / sample_rate, sample_rate
        )

    return _series(event, rng, sample_rate, rng.uniform(0.36, 0.46), hoot)


def frog(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A croak: a fast train of pulses, each ringing in the vocal sac at `f0`."""
    pulses = rng.uniform(27, 33)

    def croak(n: int) -> np.ndarray:
        turns = times(n, sample_rate) * pulses * glide(n, 0.9, 1.1)
        comb = np.diff(np.floor(turns), prepend=-1.0)
        sac = resonate(comb, event.f0, 90, sample_rate) + 0.4 * resonate(
            comb, 2.1 * event.f0, 200, sample_rate
        )
        half = 0.4 * n / sample_rate  # two syllables: rib-bit
        gap = 1 - 0.85 * np.exp(-(((times(n, sample_rate) - half) / 0.025) ** 2))
        return sac * gap * swell(n, 0.04, 0.06, sample_rate)

    return _series(event, rng, sample_rate, rng.uniform(0.26, 0.34), croak)


def bird(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A song: whistled chirps that sweep in pitch; each bird has its own motif."""
    shapes = [(0.85, 1.2), (1.2, 0.85), (0.9, 1.2, 0.9), (1.15, 0.85, 1.15)]
    motif = [shapes[k] for k in rng.integers(0, len(shapes), 2)]
    turn = iter(range(10_000))

    def chirp(n: int) -> np.ndarray:
        phase = running_phase(
            event.f0 * glide(n, *motif[next(turn) % 2]), n, sample_rate
        )
        # above half the sample rate it would alias
        second = 0.1 if event.f0 < 3300 else 0.0
        return (np.sin(phase) + second * np.sin(2 * phase)) * np.hanning(n)

    return _series(event, rng, sample_rate, min(0.16, 0.6 / event.rate), chirp)


def cricket(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A chirp of wing strokes: a constant high tone cut into quick pulses."""

    def chirp(n: int) -> np.ndarray:
        # 24 wing strokes per second
        pulses = np.abs(np.sin(np.pi * 24 * times(n, sample_rate))) ** 1.5
        return (
            tone(event.f0, n, sample_rate) * pulses * swell(n, 0.02, 0.02, sample_rate)
        )

    return _series(event, rng, sample_rate, min(0.2, 0.6 / event.rate), chirp)


# --------------------------------------------------------------------------------------
# Weather and water


def rain(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A steady hiss under the patter of single drops, `rate` per second."""
    n = _length(event, sample_rate)
    hiss = band(noise(rng, n), 1200, sample_rate, sample_rate)
    fall = strike(160, 0.0003, 0.002, sample_rate)
    drops = [
        band(noise(rng, 160), low, low + 2500, sample_rate) * fall
        for low in (1500, 2500, 3500, 4500)
    ]
    patter = _scatter(rng, n, event.rate, lambda: drops[rng.integers(4)], sample_rate)
    hiss *= 1 + 0.1 * wander(rng, n, 4, sample_rate)
    # the denser the rain, the less single drops are heard
    return hiss * (event.rate / 1200) ** 0.6 + 2 * patter


def thunder(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A crack and a long rumble that rolls and dies away."""

    def clap(n: int) -> np.ndarray:
        t = times(n, sample_rate)
        rolls = np.exp(0.9 * wander(rng, n, 7, sample_rate)) * np.exp(-t / 0.55)
        deep = band(noise(rng, n), 35, 160, sample_rate) * 3
        middle = band(noise(rng, n), 100, 700, sample_rate) * np.exp(-t / 0.3)
        crack = band(noise(rng, n), 300, 3500, sample_rate) * np.exp(-t / 0.05)
        return (deep * rolls + middle * rolls + 0.7 * crack) * swell(
            n, 0.004, 0.3, sample_rate
        )

    return _series(event, rng, sample_rate, 2.2, clap)


def wind(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Gusts: a band of noise that howls around `f0`, over a dull rush."""
    n = _length(event, sample_rate)
    slow = wander(rng, n, 1.5, sample_rate)
    howl_at = event.f0 * 2 ** (0.16 * np.clip(slow, -2, 2))
    body = band(noise(rng, n), 0, 60, sample_rate) * np.cos(
        running_phase(howl_at, n, sample_rate)
    )
    body -= band(noise(rng, n), 0, 60, sample_rate) * np.sin(
        running_phase(howl_at, n, sample_rate)
    )
    rush = band(noise(rng, n), 60, 500, sample_rate)
    gust = np.exp(0.5 * np.clip(slow, -2, 2) + 0.2 * wander(rng, n, 4, sample_rate))
    return (6 * body + 0.5 * rush) * gust


def waves(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Surf: noise that swells, breaks and runs out as foam, `rate` times a second."""
    n = _length(event, sample_rate)
    turns = times(n, sample_rate) * event.rate + rng.uniform(0, 0.35)
    part = turns % 1.0
    since = (part - 0.4) % 1.0  # periods since the last wave broke
    surge = (
        np.maximum(np.where(part < 0.4, part / 0.4, 0), np.exp(-since / 0.22)) ** 1.5
    )
    foam = np.maximum(np.where(part < 0.4, part / 0.4, 0) ** 4, np.exp(-since / 0.16))
    deep = band(noise(rng, n), 80, 900, sample_rate)
    high = band(noise(rng, n), 900, 5000, sample_rate)
    return deep * (0.06 + surge) + 0.8 * high * (0.02 + foam)


def drip(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A drop: the bubble under the surface rings and rises in pitch; a pipe echoes."""

    def drop(n: int) -> np.ndarray:
        t = times(n, sample_rate)
        rising = event.f0 * (1 + 0.5 * np.minimum(t / 0.06, 1))
        plop = tone(rising, n, sample_rate) * strike(n, 0.002, 0.028, sample_rate)
        click = band(noise(rng, n), 3000, 7000, sample_rate) * strike(
            n, 0.0003, 0.002, sample_rate
        )
        wave, echo = plop + 0.25 * click, round(rng.uniform(0.055, 0.075) * sample_rate)
        wave[echo:] += 0.22 * plop[: n - echo]
        return wave

    return _series(event, rng, sample_rate, 0.25, drop)


def fire(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Crackles at random over a soft low roar."""
    n = _length(event, sample_rate)
    grains = []
    for frequency in rng.uniform(700, 5000, 6):
        burst = noise(rng, 400) * strike(400, 0.0003, 0.003, sample_rate)
        grains.append(burst + 2 * resonate(burst, frequency, 400, sample_rate))
    crackle = _scatter(
        rng, n, event.rate, lambda: grains[rng.integers(6)], sample_rate, power=1.5
    )
    roar = band(noise(rng, n), 50, 350, sample_rate) * (
        1 + 0.4 * wander(rng, n, 6, sample_rate)
    )
    return crackle + 0.16 * roar


# --------------------------------------------------------------------------------------
# Machines and traffic


def engine(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A motor: uneven firing pulses at `f0` through an exhaust, with noise in step."""
    n = _length(event, sample_rate)
    f0 = event.f0 * (1 + 0.015 * wander(rng, n, 3, sample_rate))
    turns = np.cumsum(f0) / sample_rate
    cylinder = np.array([1.0, 0.7, 0.85, 0.6])[turns.astype(int) % 4]
    pulse = np.exp(-6 * (turns % 1.0)) * cylinder
    size = (event.f0 / 72) ** 0.5  # a small motor has a short exhaust
    resonances = [(110 * size, 60, 1.0), (320 * size, 120, 1.2), (800 * size, 250, 1.2)]
    pipe = sum(level * resonate(pulse, f, b, sample_rate) for f, b, level in resonances)
    hiss = band(noise(rng, n), 400 * size, 3000 * size, sample_rate)
    return band(pipe, 25, sample_rate, sample_rate) + 0.09 * hiss * pulse


def horn(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A car horn: two reeds a major third apart, bright and steady."""

    def honk(n: int) -> np.ndarray:
        bell = [(900, 600, 1.0), (2200, 900, 1.2), (3600, 900, 0.5)]
        rise = glide(n, 0.99, 1, 1, 1, 1, 1, 1)
        reeds = [
            voice(event.f0 * ratio * rise, bell, sample_rate, 6500)
            for ratio in (1.0, 1.26)
        ]
        return (reeds[0] + reeds[1]) * swell(n, 0.012, 0.05, sample_rate)

    return _series(event, rng, sample_rate, rng.uniform(0.34, 0.5), honk)


def siren(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A wail: a tone that rises and falls around `f0`, `rate` times a second."""
    n = _length(event, sample_rate)
    start = rng.uniform(0.6, 0.9)
    sweep = np.sin(2 * np.pi * (event.rate * times(n, sample_rate) + start))
    phase = running_phase(event.f0 * 2 ** (0.5 * sweep), n, sample_rate)
    return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase)


def helicopter(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Rotor blades that beat the air `rate` times a second, and the whine of the
    turbine.
    """
    n = _length(event, sample_rate)
    t = times(n, sample_rate)
    part = t * event.rate % 1.0
    chop = np.exp(-part * 5)
    thump = band(noise(rng, n), 40, 220, sample_rate) * chop
    slap = band(noise(rng, n), 300, 2200, sample_rate) * chop**2
    whine = tone(rng.uniform(2300, 2700), n, sample_rate)
    return 2.5 * thump + 0.9 * slap + 0.05 * whine


def alarm(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Electronic beeps of a hollow tone: odd harmonics only."""

    def beep(n: int) -> np.ndarray:
        phase = running_phase(event.f0, n, sample_rate)
        wave = np.sin(phase)
        for k in (3, 5):
            if k * event.f0 < 0.47 * sample_rate:
                wave += np.sin(k * phase) / k
        return wave * swell(n, 0.004, 0.008, sample_rate)

    return _series(event, rng, sample_rate, 0.5 / event.rate, beep)


def laser(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A zap as in old films: a bright tone that falls three octaves from `f0`."""

    def zap(n: int) -> np.ndarray:
        t = times(n, sample_rate)
        phase = running_phase(
            event.f0 * (0.12 + 0.88 * np.exp(-t / 0.06)), n, sample_rate
        )
        wave = np.sin(phase) + 0.25 * np.sin(2 * phase) * (t > 0.03)
        return wave * strike(n, 0.002, 0.14, sample_rate)

    return _series(event, rng, sample_rate, rng.uniform(0.28, 0.34), zap)


# --------------------------------------------------------------------------------------
# Things in the house and the street


def bell(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A cast bell: inharmonic partials over the hum tone `f0`; the high ones die away
    first.
    """
    ratios = np.array([1, 2, 2.4, 3, 4, 5.33, 6.7, 8.2])
    levels = np.array([0.7, 1, 0.8, 0.4, 0.7, 0.35, 0.2, 0.12])
    decays = np.array([0.8, 0.65, 0.55, 0.4, 0.32, 0.22, 0.16, 0.11])
    ratios = ratios * (1 + 0.004 * rng.standard_normal(len(ratios)))

    def stroke(n: int) -> np.ndarray:
        ring = partials(n, event.f0 * ratios, levels, decays, sample_rate)
        # beats
        ring += 0.5 * partials(
            n, event.f0 * ratios[:2] * 1.004, levels[:2], decays[:2], sample_rate
        )
        clapper = band(noise(rng, n), 2000, 6000, sample_rate) * strike(
            n, 0.0005, 0.006, sample_rate
        )
        return ring * (1 - np.exp(-times(n, sample_rate) / 0.002)) + 0.6 * clapper

    return _series(event, rng, sample_rate, 2.4, stroke, spread=True)


def clock(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Tick, tock: two short dry clicks in turn."""
    turn = iter(range(10_000))

    def tick(n: int) -> np.ndarray:
        click = noise(rng, n) * strike(n, 0.0002, 0.0012, sample_rate)
        low, high = ((2100, 4300), (1500, 3300))[next(turn) % 2]
        return (
            3 * resonate(click, low, 180, sample_rate)
            + 3 * resonate(click, high, 250, sample_rate)
            + 0.3 * click
        )

    return _series(event, rng, sample_rate, 0.06, tick)


def knock(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Knuckles on a wooden door: a few short low modes."""
    modes = np.array([170, 290, 430, 700, 1100]) * rng.uniform(0.9, 1.1)

    def hit(n: int) -> np.ndarray:
        wood = partials(
            n,
            modes,
            np.array([1, 0.9, 0.7, 0.5, 0.3]),
            np.array([30, 28, 22, 14, 9]) / 1000,
            sample_rate,
        )
        knuckle = band(noise(rng, n), 400, 2500, sample_rate) * strike(
            n, 0.0005, 0.006, sample_rate
        )
        return (
            wood * (1 - np.exp(-times(n, sample_rate) / 0.0008)) + knuckle
        ) * rng.uniform(0.85, 1)

    return _series(event, rng, sample_rate, 0.18, hit)


def door(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A creak: a hinge that sticks and slips unevenly, `f0` times a second, in a wooden
    body.
    """
    size = (event.f0 / 110) ** 0.25
    modes = [(620, 1.0), (1250, 1.2), (2150, 1.2), (3400, 0.8)]

    def creak(n: int) -> np.ndarray:
        bend = glide(n, 0.7, 0.9, 1.15, 1.3, 0.95) * (
            1 + 0.1 * np.clip(wander(rng, n, 12, sample_rate), -2, 2)
        )
        turns = np.cumsum(event.f0 * bend) / sample_rate
        slips = np.diff(np.floor(turns), prepend=0.0) * (0.6 + 0.4 * rng.random(n))
        wood = sum(
            level * resonate(slips, size * f, 120, sample_rate) for f, level in modes
        )
        return wood * swell(n, 0.15, 0.25, sample_rate)

    return _series(event, rng, sample_rate, rng.uniform(0.8, 1.1), creak)


def footsteps(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Steps on gravel: a dull heel, then the crunch of the sole."""

    def step(n: int) -> np.ndarray:
        t = times(n, sample_rate)
        heel = np.sin(2 * np.pi * 75 * t) * strike(n, 0.003, 0.03, sample_rate)
        grit = band(noise(rng, n), 1200, 5500, sample_rate) * np.abs(
            wander(rng, n, 250, sample_rate)
        )
        crunch = grit * np.exp(-(((t - 0.055) / 0.035) ** 2))
        return rng.uniform(0.8, 1) * (heel + 0.9 * crunch)

    return _series(event, rng, sample_rate, min(0.17, 0.8 / event.rate), step)


def glass(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A crash, then splinters that tinkle at and above `f0` as they fall."""
    n = _length(event, sample_rate)
    crash = band(noise(rng, n), 0.8 * event.f0, 7900, sample_rate) * strike(
        n, 0.001, 0.05, sample_rate
    )
    wave = 1.2 * crash
    starts = np.minimum(rng.exponential(0.22, 36), 0.9 * event.duration)
    starts[:10] = rng.uniform(0, 0.02, 10)
    for start, frequency in zip(starts, event.f0 * rng.uniform(1, 2.0, 36)):
        begin = round(start * sample_rate)
        m = min(n - begin, 2400)
        splinter = tone(frequency, m, sample_rate) * strike(
            m, 0.0005, rng.uniform(0.01, 0.04), sample_rate
        )
        wave[begin : begin + m] += (
            splinter * rng.uniform(0.15, 0.5) * np.exp(-start / 0.5)
        )
    return wave


def applause(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A small crowd: random hand claps, `rate` per second."""
    n = _length(event, sample_rate)
    claps = []
    for centre in rng.uniform(700, 1600, 8):
        hands = noise(rng, 500) * strike(500, 0.0008, 0.006, sample_rate)
        claps.append(band(hands, 0.7 * centre, 1.8 * centre, sample_rate))
    return _scatter(
        rng, n, event.rate, lambda: claps[rng.integers(8)], sample_rate, power=1
    )


def whistle(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A referee's whistle: a piercing tone that trembles with the rolling pea."""
    roll = rng.uniform(16, 20)
    second = 0.08 if event.f0 < 3300 else 0.0

    def blast(n: int) -> np.ndarray:
        pea = np.sin(2 * np.pi * roll * times(n, sample_rate))
        phase = running_phase(
            event.f0 * (1 + 0.025 * pea) * glide(n, 0.97, 1, 1, 1, 0.97), n, sample_rate
        )
        breath = band(noise(rng, n), 0.8 * event.f0, 1.25 * event.f0, sample_rate)
        wave = (np.sin(phase) + second * np.sin(2 * phase)) * (
            0.65 + 0.35 * pea
        ) + 0.1 * breath
        return wave * swell(n, 0.02, 0.04, sample_rate)

    return _series(event, rng, sample_rate, rng.uniform(0.3, 0.42), blast)


# --------------------------------------------------------------------------------------
# Instruments


def drum(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A drum: the modes of a round skin, whose pitch falls as the skin relaxes."""

    def beat(n: int) -> np.ndarray:
        t = times(n, sample_rate)
        relax = 1 + 0.5 * np.exp(-t / 0.03)
        skin = sum(
            level * tone(event.f0 * ratio * relax, n, sample_rate) * np.exp(-t / decay)
            for ratio, level, decay in [
                (1, 1, 0.17),
                (1.59, 0.5, 0.1),
                (2.14, 0.3, 0.07),
                (2.65, 0.2, 0.05),
            ]
        )
        stick = band(noise(rng, n), 500, 4000, sample_rate) * np.exp(-t / 0.008)
        return (skin + 0.3 * stick) * (1 - np.exp(-t / 0.001))

    return _series(event, rng, sample_rate, 0.5, beat, spread=True)


def guitar(event: Event, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A plucked string: harmonics whose levels depend on where it was plucked; the high
    ones die away first.
    """
    k = np.arange(1, 25)
    levels = np.abs(np.sin(np.pi * k * rng.uniform(0.17, 0.23))) / k**0.9
    # stiff strings are a little sharp
    frequencies = event.f0 * k * np.sqrt(1 + 0.00008 * k**2)

    def pluck(n: int) -> np.ndarray:
        string = partials(n, frequencies, levels, 0.8 / (1 + 0.28 * k), sample_rate)
        finger = band(noise(rng, n), 800, 4000, sample_rate) * strike(
            n, 0.0005, 0.004, sample_rate
        )
        return string * (1 - np.exp(-times(n, sample_rate) / 0.0015)) + 0.15 * finger

    return _series(event, rng, sample_rate, 1.6, pluck, spread=True)


COUNTS = (1, 2, 3, 4)

CLASSES: dict[str, SoundClass] = {
    "alarm": SoundClass(
        alarm, pitch=(600, 1100, 2000), speed=(1.7, 3.2, 6.5), regular=True
    ),
    "applause": SoundClass(applause, speed=(14, 40, 130)),
    "bell": SoundClass(bell, (262, 524, 1048), None, COUNTS, 2.4, 0.44, 0.24),
    "bird": SoundClass(bird, (1700, 2900, 4900), (1.8, 3.6, 7.5), regular=True),
    "cat": SoundClass(cat, (300, 510, 860), None, (1, 2, 3), 0.62, 0.67, 0.5),
    "clock": SoundClass(clock, speed=(1.6, 3.0, 6.0), regular=True),
    "cow": SoundClass(cow, (90, 150, 250), None, (1, 2), 1.4, 1.2, 0.9),
    "cricket": SoundClass(cricket, (2500, 4100, 6700), (1.6, 3.2, 6.0), regular=True),
    "dog": SoundClass(dog, (210, 360, 610), None, COUNTS, 0.22, 0.4, 0.24),
    "door": SoundClass(door, (60, 110, 200), None, (1, 2), 1.1, 1.05, 0.75),
    "drip": SoundClass(drip, (480, 900, 1700), None, COUNTS, 0.25, 0.39, 0.22),
    "drum": SoundClass(drum, (60, 110, 200), None, COUNTS, 0.5, 0.36, 0.22),
    "engine": SoundClass(engine, (38, 72, 135)),
    "fire": SoundClass(fire, speed=(7, 18, 50)),
    "footsteps": SoundClass(footsteps, speed=(1.5, 2.6, 4.8), regular=True),
    "frog": SoundClass(frog, (480, 850, 1500), None, COUNTS, 0.34, 0.47, 0.26),
    "glass": SoundClass(glass, (1400, 2300, 3700), length=1.2, shortest=0.4),
    "guitar": SoundClass(guitar, (110, 220, 440), None, COUNTS, 1.6, 0.41, 0.25),
    "helicopter": SoundClass(helicopter, speed=(5.9, 9.5, 15.25), regular=True),
    "horn": SoundClass(horn, (220, 370, 620), None, COUNTS, 0.5, 0.49, 0.28),
    "knock": SoundClass(knock, None, None, COUNTS, 0.18, 0.32, 0.2),
    "laser": SoundClass(laser, (1600, 2900, 5200), None, COUNTS, 0.34, 0.42, 0.25),
    "owl": SoundClass(owl, (260, 430, 720), None, COUNTS, 0.46, 0.5, 0.28),
    "rain": SoundClass(rain, speed=(14, 80, 450)),
    "siren": SoundClass(siren, (420, 720, 1250), (0.6, 1.3, 3.0)),
    "thunder": SoundClass(thunder, None, None, (1, 2), 2.2, 1.05, 0.9),
    "waves": SoundClass(waves, speed=(0.5, 0.9, 1.8)),
    "whistle": SoundClass(whistle, (1300, 2200, 3700), None, COUNTS, 0.42, 0.47, 0.27),
    "wind": SoundClass(wind, (280, 560, 1150)),
}
