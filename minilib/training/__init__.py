"""Training: the loop, the stages in the paper's order, and whole runs."""

from minilib.training.checkpoints import train
from minilib.training.clips import TrainingData
from minilib.training.loop import (
    Loop,
    Recipe,
    budget,
    fit,
    learning_rate,
    step_generator,
)
from minilib.training.runs import RUNS, Run, train_stages
from minilib.training.stages import ALL_STAGES, STAGES, Joint, Stage

__all__ = [
    "ALL_STAGES",
    "RUNS",
    "STAGES",
    "Joint",
    "Loop",
    "Recipe",
    "Run",
    "Stage",
    "TrainingData",
    "budget",
    "fit",
    "learning_rate",
    "step_generator",
    "train",
    "train_stages",
]
