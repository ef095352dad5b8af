"""SoundWorld: a small world of sounds whose truth is known (chapter 01).

A `Scene` (events with class, attributes and onset, or a tune) is rendered to a waveform
and a caption, and every label is kept. It is endless and needs no download; the same
seed gives the same clip.

    world = SoundWorld("train", music=0.3)
    clip = world[0]  # clip.wave (N,), clip.caption, clip.scene
"""

from __future__ import annotations

from .captions import describe, plain, vocabulary
from .corpus import SAMPLE_RATE, SoundWorld, render
from .effects import CLASSES, SoundClass
from .music import INSTRUMENTS, Instrument
from .scene import (
    SPLITS,
    Clip,
    Combination,
    Event,
    Scene,
    held_out_combinations,
    held_out_pairs,
)
from .tunes import Melody, Tune, held_out_melodies

__all__ = [
    "CLASSES",
    "INSTRUMENTS",
    "SAMPLE_RATE",
    "SPLITS",
    "Clip",
    "Combination",
    "Event",
    "Instrument",
    "Melody",
    "Scene",
    "SoundClass",
    "SoundWorld",
    "Tune",
    "describe",
    "held_out_combinations",
    "held_out_melodies",
    "held_out_pairs",
    "plain",
    "render",
    "vocabulary",
]
