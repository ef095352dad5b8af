"""SoundWorld: a small world of sounds whose truth is known (chapter 01).

A `Scene` (events with class, attributes and onset, a tune, or words that a voice says)
is rendered to a waveform and a caption, and every label is kept. It is endless and
needs no download; the same seed gives the same clip.

    world = SoundWorld("train", music=0.3)
    clip = world[0]  # clip.wave (N,), clip.caption, clip.scene
"""

from __future__ import annotations

from .captions import describe, plain, vocabulary
from .corpus import SAMPLE_RATE, SoundWorld, SpeechWorld, render
from .effects import CLASSES, SoundClass
from .music import INSTRUMENTS, Instrument
from .pictures import SENSES, depth, motion, picture, thermal, video
from .scene import (
    SPLITS,
    Clip,
    Combination,
    Event,
    Scene,
    held_out_combinations,
    held_out_pairs,
)
from .speech import (
    HELD_OUT_VOICE,
    HELD_OUT_WORDS,
    VOICES,
    WORDS,
    Utterance,
    Voice,
    draw_utterance,
)
from .tunes import Melody, Tune, held_out_melodies

__all__ = [
    "CLASSES",
    "HELD_OUT_VOICE",
    "HELD_OUT_WORDS",
    "INSTRUMENTS",
    "SAMPLE_RATE",
    "SENSES",
    "SPLITS",
    "VOICES",
    "WORDS",
    "Clip",
    "Combination",
    "Event",
    "Instrument",
    "Melody",
    "Scene",
    "SoundClass",
    "SoundWorld",
    "SpeechWorld",
    "Tune",
    "Utterance",
    "Voice",
    "depth",
    "describe",
    "draw_utterance",
    "held_out_combinations",
    "held_out_melodies",
    "held_out_pairs",
    "motion",
    "picture",
    "plain",
    "render",
    "thermal",
    "video",
    "vocabulary",
]
