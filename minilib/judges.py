"""Judges in closed form: do the pitch, speed, loudness and number of strokes of a sound
match its caption?

The detectors first measure a few clean renders of a class (`reference`) and then the
sound to be judged. Each answer is right or wrong. Clean renders are nearly always
right: a judge is scored on them before anything else. Chapter 17 uses this module.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from minilib import audio
from minilib.detectors import (
    Pattern,
    Strokes,
    burstiness,
    modulation,
    nearest,
    spectrum,
    tempo,
)
from minilib.soundworld import CLASSES, INSTRUMENTS, Event, Melody, Scene, SoundWorld
from minilib.soundworld.scene import (
    DEFAULT_SECONDS,
    LOUDNESSES,
    PEAKS,
    PITCHES,
    SPEEDS,
    Combination,
    draw_event,
)
from minilib.soundworld.tunes import CONTOURS, TEMPI, draw_tune

EXAMPLES = 18  # clean renders of a class
SHORTEST = audio.SAMPLE_RATE // 2  # fewest samples of a sound that can be judged
# grains scattered at random: their speed is their number per second
GRAINS = ("applause", "fire", "rain")

# --------------------------------------------------------------------------------------
# The sound of a class


@dataclass(frozen=True)
class Reference:
    """Measurements of clean renders of a class or instrument; None for an attribute
    that it does not have.
    """

    loudness: dict[tuple, float]  # decibels at a peak of 1, by pitch and speed
    spectrum: Pattern  # shifted from each level of pitch
    strokes: Strokes | None
    speeds: tuple[float, ...] | None  # Hz, slow to fast
    modulation: Pattern | None  # shifted from each level of speed
    burstiness: np.ndarray | None  # of grains, slow to fast


def speed_levels(name: str) -> tuple[float, ...] | None:
    """The rates in Hz that slow, normal and fast mean for a class or instrument."""
    return (
        CLASSES[name].speed
        if name in CLASSES
        else tuple(beats / 60 for beats in TEMPI.values())
    )


def examples(name: str) -> list[Event]:
    """Draw events of a class, or tunes of an instrument, with each pitch and speed,
    loudness and count.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    sound, onset, room = CLASSES.get(name), 0.08, DEFAULT_SECONDS - 0.1
    pitches = PITCHES if sound is None or sound.pitch else (None,)
    speeds = SPEEDS if sound is None or sound.speed else (None,)
    kinds, events = list(itertools.product(pitches, speeds)), []
    for k, (pitch, speed) in itertools.product(range(EXAMPLES // len(kinds)), kinds):
        loudness = LOUDNESSES[k % 3]
        if sound is None:
            melody = Melody(name, pitch, speed, CONTOURS[k % 3])
            events.append(draw_tune(melody, loudness, "major", onset, room, rng))
        else:
            count = sound.counts[k % len(sound.counts)] if sound.counts else None
            events.append(
                draw_event(
                    Combination(name, pitch, speed, loudness, count), onset, room, rng
                )
            )
    return events


def loudness_by_kind(mels: Tensor, events: Sequence[Event]) -> dict[tuple, float]:
    """The median loudness at a peak of 1, in decibels, for each pitch and speed."""
    found: dict[tuple, list[float]] = {}
    for event, decibels in zip(events, audio.loudness(mels).tolist()):
        at_peak_1 = decibels - 20 * math.log10(event.peak)
        found.setdefault((event.pitch, event.speed), []).append(at_peak_1)
    return {kind: float(np.median(values)) for kind, values in found.items()}


@lru_cache
def reference(name: str) -> Reference:
    """Measure clean renders of a class of effects or of an instrument; the result is
    cached.

    Raises:
        ValueError: SoundWorld has no such class.
    """
    if name not in CLASSES and name not in INSTRUMENTS:
        raise ValueError(
            f"name must be a class or an instrument of SoundWorld, not {name!r}"
        )
    sound, speeds, events = CLASSES.get(name), speed_levels(name), examples(name)
    scenes = [Scene((event,), DEFAULT_SECONDS, event.seed) for event in events]
    waves = torch.stack([SoundWorld().render(scene) for scene in scenes])
    # (n, T, F); a few at a time fit in the processor's cache
    mels = torch.cat([audio.log_mel(some)[:, 0] for some in waves.split(4)])
    strokes = modulated = bursts = None
    if sound is None or sound.counts:
        interval = sound.interval if sound else 1 / speeds[-1]
        strokes = Strokes.of(mels, [event.strokes for event in events], interval)
    if name in GRAINS:
        measured = [
            (event.speed, burstiness(wave)) for event, wave in zip(events, waves)
        ]
        bursts = np.array(
            [np.median([x for at, x in measured if at == speed]) for speed in SPEEDS]
        )
    elif sound and speeds:
        spectra = np.stack([modulation(mel) for mel in mels])
        modulated = Pattern.of(spectra, [event.rate for event in events], speeds)
    pitches = sound.pitch if sound and sound.pitch else (1.0,)
    hz = [event.f0 if len(pitches) > 1 else 1.0 for event in events]
    heard_at = Pattern.of(spectrum(waves), hz, pitches)
    loudness = loudness_by_kind(mels, events)
    return Reference(loudness, heard_at, strokes, speeds, modulated, bursts)


# --------------------------------------------------------------------------------------
# Does the sound match the caption?


def heard_rate(wave: Tensor, mel: Tensor, name: str) -> float:
    """Beats, strokes, sweeps or grains per second in a sound of this class; NaN if
    there are none.
    """
    known = reference(name)
    if name in INSTRUMENTS:
        return tempo(known.strokes.find(mel))
    if name in GRAINS:  # the fewer grains, the burstier the sound
        return math.exp(
            np.interp(-burstiness(wave), -known.burstiness, np.log(known.speeds))
        )
    return known.modulation.find(modulation(mel))


def heard(wave: Tensor, event: Event) -> dict[str, float]:
    """Measure the attributes of a sound that the caption of an event mentions.

    Args:
        wave: (samples,) at 16 kHz, 0.5 s or more; event: the only event that it should
            hold.
    Returns:
        `peak`, the peak at which a clean render of the event is as loud, and, where the
        event has them, `f0` and `rate` in Hz (NaN if none was found) and `count`.
    Raises:
        ValueError: `wave` is not one waveform of finite numbers, or SoundWorld has no
            such class.
    """
    if wave.ndim != 1 or len(wave) < SHORTEST:
        raise ValueError(
            f"wave must be (N,) with N at least {SHORTEST} samples; given "
            f"{tuple(wave.shape)}"
        )
    if not wave.isfinite().all():
        raise ValueError(
            "wave must hold finite numbers; the given one holds NaN or infinity"
        )
    known, mel = reference(event.name), audio.log_mel(wave[None])[0, 0]  # (T, F)
    louder = float(audio.loudness(mel)) - known.loudness[event.pitch, event.speed]
    found = {"peak": 10 ** (louder / 20)}
    if event.name in CLASSES and event.pitch:
        found["f0"] = known.spectrum.find(spectrum(wave[None])[0])
    if event.count:
        found["count"] = len(known.strokes.find(mel))
    if event.speed:
        found["rate"] = heard_rate(wave, mel, event.name)
    return found


def answers(wave: Tensor, event: Event) -> dict[str, float]:
    """Whether a sound matches the caption of an event: 1 if right, 0 if wrong.

    Args:
        wave, event: as for `heard`.
    Returns:
        `loudness` and, where the event has them, `pitch` (with `cents`, its distance
        from the pitch that the caption's word means, or NaN), `count`, and `speed`,
        called `tempo` for a tune.
    """
    found, music = heard(wave, event), event.name in INSTRUMENTS
    right = {
        "loudness": nearest(found["peak"], list(PEAKS.values()))
        == LOUDNESSES.index(event.loudness)
    }
    if "f0" in found:
        levels, wanted = CLASSES[event.name].pitch, PITCHES.index(event.pitch)
        right |= {"pitch": nearest(found["f0"], levels) == wanted}
        right |= {"cents": 1200 * abs(math.log2(found["f0"] / levels[wanted]))}
    if "count" in found:
        right |= {"count": found["count"] == event.count}
    if "rate" in found:
        speed = nearest(found["rate"], reference(event.name).speeds) == SPEEDS.index(
            event.speed
        )
        right |= {"tempo" if music else "speed": speed}
    return {question: float(answer) for question, answer in right.items()}


def chance(event: Event) -> dict[str, float]:
    """How often a guess among the values that the class can have would be right, for
    each question.
    """
    sound = CLASSES.get(event.name)
    options = {
        "loudness": LOUDNESSES,
        "pitch": sound and sound.pitch,
        "count": sound and sound.counts,
    }
    options |= {"speed" if sound else "tempo": speed_levels(event.name)}
    return {question: 1 / len(values) for question, values in options.items() if values}


def in_order(wave: Tensor, first: str, second: str) -> bool:
    """Whether the halves of a sound resemble two classes more in this order than in the
    reverse.
    """
    # (N,) each
    early, late = spectrum(torch.stack(wave[: len(wave) // 2 * 2].chunk(2)))
    a, b = reference(first).spectrum, reference(second).spectrum
    return a.likeness(early) + b.likeness(late) > b.likeness(early) + a.likeness(late)
