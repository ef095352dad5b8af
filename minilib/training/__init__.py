"""Training: the loop, the stages in the paper's order, and whole runs.

Chapter 16 builds it.
"""

from minilib.training.clips import TrainingData
from minilib.training.loop import Recipe, budget, learning_rate, step_generator, train
from minilib.training.runs import RUNS, Run, train_stages
from minilib.training.stages import ALL_STAGES, STAGES, Joint, Stage

__all__ = [
    "ALL_STAGES",
    "RUNS",
    "STAGES",
    "Joint",
    "Recipe",
    "Run",
    "Stage",
    "TrainingData",
    "budget",
    "learning_rate",
    "step_generator",
    "train",
    "train_stages",
]
