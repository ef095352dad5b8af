"""The tasks of `minilib evaluate --task`: whose weights are measured, who judges, and
which function asks the questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier
from minilib.folders import load_part
from minilib.guidance import Sampling
from minilib.metrics import picture, speech, text
from minilib.metrics.hearing import SpeechJudges
from minilib.metrics.questions import Listener


@dataclass(frozen=True)
class Task:
    """One task: what `minilib evaluate` needs to measure weights at it."""

    weights: str  # the folder in data/weights whose weights ship for it
    # the judges, loaded from the folder data/weights/judges: Path -> Any
    judges: Callable[[Path], Any]
    # (pipe, judges, sampling, n=, seed=) -> a flat dictionary of results
    evaluate: Callable[..., dict[str, float]]
    report: Callable[[dict[str, float]], str]  # the results as a table


SoundJudges = tuple[Classifier, Listener]


def sound_judges(folder: Path) -> SoundJudges:
    """The judges of sounds and tunes in a folder: a classifier, and a CLAP that was
    trained apart.
    """
    judge = Classifier.from_pretrained(folder / "judge", dtype=torch.float32)
    return judge, load_part(folder, "clap", torch.float32)


def evaluate_captions(
    pipe: AudioLDM2,
    judges: SoundJudges,
    sampling: Sampling | None = None,
    kinds: tuple[str, ...] = (),
    **asked: Any,
) -> dict[str, float]:
    """`text.evaluate` by these judges, of scenes of these kinds."""
    judge, listener = judges
    given = pipe, judge.to(pipe.device), sampling
    return text.evaluate(*given, listener=listener, kinds=kinds, **asked)


CAPTIONED = {"text": ("single", "pair"), "music": ("music",)}
TASKS: dict[str, Task] = {
    name: Task(
        "tiny", sound_judges, partial(evaluate_captions, kinds=kinds), text.report
    )
    for name, kinds in CAPTIONED.items()
}
TASKS |= {
    name: Task(
        "speech",
        SpeechJudges.load,
        partial(speech.evaluate_speech, prompted=name == "prompted"),
        speech.speech_report,
    )
    for name in ("speech", "prompted")
}
TASKS["picture"] = Task(
    "picture", sound_judges, picture.evaluate_pictures, picture.picture_report
)
