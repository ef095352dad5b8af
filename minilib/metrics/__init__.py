"""Measures of generated sounds: a separately trained judge, spectral errors in
decibels, and tables that show chance < value < ceiling.

A number alone means little. Each one is shown beside the score of guessing (chance),
the same judge's score for clean renders of the same scenes (ceiling), and its score
when the captions are shuffled (control). Chapter 17 builds the measures.
"""

from minilib.metrics.evaluation import (
    check_asked,
    generate,
    guided_where,
    round_trip,
    rows_of,
    settings,
    sounds_of,
    told_settings,
)
from minilib.metrics.hearing import Speakers, SpeechJudges, clean, clustered_error
from minilib.metrics.picture import evaluate_pictures, picture_report, pictures_of
from minilib.metrics.questions import (
    BATCH,
    QUESTIONS,
    Listener,
    Scenes,
    attributes,
    chance,
    class_kl,
    compared,
    cosines,
    distances,
    embeddings,
    enough_scenes,
    held_out_scenes,
    judged,
    question_name,
    recorded_scenes,
    scores,
    standard_error,
)
from minilib.metrics.spectral import (
    in_chunks,
    reconstruction,
    silent_frames,
    spectral_error,
)
from minilib.metrics.speech import (
    ShuffledPhonemes,
    evaluate_speech,
    resounded,
    speech_report,
)
from minilib.metrics.tasks import TASKS, Task
from minilib.metrics.text import (
    check_reads_captions,
    evaluate,
    evaluate_recordings,
    nearest_captions,
    plays,
    report,
)

__all__ = [
    "BATCH",
    "QUESTIONS",
    "TASKS",
    "Listener",
    "Scenes",
    "ShuffledPhonemes",
    "Speakers",
    "SpeechJudges",
    "Task",
    "attributes",
    "chance",
    "check_asked",
    "check_reads_captions",
    "class_kl",
    "clean",
    "clustered_error",
    "compared",
    "cosines",
    "distances",
    "embeddings",
    "enough_scenes",
    "evaluate",
    "evaluate_pictures",
    "evaluate_recordings",
    "evaluate_speech",
    "generate",
    "guided_where",
    "held_out_scenes",
    "in_chunks",
    "judged",
    "nearest_captions",
    "picture_report",
    "pictures_of",
    "plays",
    "question_name",
    "reconstruction",
    "recorded_scenes",
    "report",
    "resounded",
    "round_trip",
    "rows_of",
    "scores",
    "settings",
    "silent_frames",
    "sounds_of",
    "spectral_error",
    "speech_report",
    "standard_error",
    "told_settings",
]
