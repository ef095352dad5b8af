"""The origin of weights: the settings of a stage, and a fingerprint of all its input.

It is stored in a checkpoint and in the note of a finished stage. A run is resumed only
with the origin that it started with: with other clips or another tokenizer it would
silently continue towards the wrong weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from minilib.training.clips import TrainingData
from minilib.training.fingerprints import fingerprint, samples, weights
from minilib.training.loop import Recipe

Origin = dict[str, Any]

OPTIONS = ("crop", "recorded", "levels", "blur", "start", "unet", "widths")  # of stages
# fields of a recipe that may differ when a run is resumed
FREE = ("steps", "checkpoint_every")
ENCODERS = {"clap", "text", "bind"}  # these read with the tokenizer


def of_settings(
    kind: Any,
    preset: str | None,
    recipe: Recipe,
    seed: int,
    options: dict[str, Any] | None = None,
) -> Origin:
    """The training settings of a stage, or of one of its class with these options."""
    own = {name: getattr(kind, name) for name in OPTIONS if hasattr(kind, name)}
    how = {**asdict(recipe), **own, **(options or {})}
    # in the form that JSON returns
    how = json.loads(json.dumps(how, default=float))
    return {"preset": preset, "seed": seed, "recipe": how}


def of_data(
    kind: Any, data: TrainingData, options: dict[str, Any] | None = None
) -> Origin:
    """The clips that a stage, or one of its class with these options, trains on."""
    hears = (options or {}).get("recorded", kind.recorded) > 0
    recordings = data.recordings if hears else []
    pieces = chain.from_iterable(map(samples, [data.corpus, *recordings]))
    said = [str(text).encode() for text in data.transcriptions or ()]
    if kind.reads_classes and data.folder is not None:
        said += [row.get("class", "").encode() for row in data.folder.rows]
    found = data.corpus if data.streamed else data.folder
    origin = {"source": source(found), "data": fingerprint(chain(pieces, said))}
    if data.streamed and "audiomae" in kind.needs:  # which clips it draws
        origin["pieces"] = data.corpus.covered if data.shards else 0
    return origin


def of_tokenizer(kind: Any, path: Path) -> Origin:
    """The tokenizer that a stage, or one of its class, reads with, if it reads."""
    if not (reads_captions(kind) and path.is_file()):
        return {}
    return {"tokenizer": fingerprint([path.read_bytes()])}


def of_stage(stage: Any) -> Origin:
    """The whole origin of a stage's weights, before it is trained."""
    preset = getattr(stage, "preset", None)
    found = of_settings(stage, preset, stage.recipe, stage.seed)
    data = getattr(stage, "data", None)
    if not isinstance(data, TrainingData):
        return found
    found |= of_data(stage, data)
    if data.tokenizer is not None and reads_captions(stage):
        words = data.tokenizer.backend.to_str()
        found["tokenizer"] = fingerprint([words.encode()])
    frozen = set(stage.needs).difference(stage.makes)
    parts = {name: weights(stage.parts[name]) for name in sorted(frozen)}
    return {**found, "parts": {name: fingerprint(x) for name, x in parts.items()}}


def reads_captions(kind: Any) -> bool:
    """Whether a stage learns to read captions, or needs a part that does."""
    return bool(ENCODERS.intersection((*kind.needs, *kind.makes)))


def source(folder: Any) -> str:
    """The source of the clips, in a word."""
    return "SoundWorld" if folder is None else "recordings"


def differences(known: Origin, now: Origin) -> list[str]:
    """The differences between two origins, in words; entries that either lacks are
    assumed to be equal.
    """
    before, after = known.get("recipe", {}), now.get("recipe", {})
    before, after = {**known, **before}, {**now, **after}
    plain = [name for name in after if name not in ("recipe", "parts", *FREE)]
    changed = [name for name in plain if before.get(name, after[name]) != after[name]]
    words = {"data": "other clips or captions", "tokenizer": "another tokenizer"}
    words["pieces"] = "other features, shards or fly"
    told = [
        words.get(name, f"{name} {before[name]}, not {after[name]}") for name in changed
    ]
    parts = before.get("parts", {})
    for name, now_is in after.get("parts", {}).items():
        if parts.get(name, now_is) != now_is:
            told.append(f"another {name}, which has been trained again since")
    return told


def check(path: Path, name: str, known: Origin, now: Origin) -> None:
    """Raise ValueError if a stage's checkpoint, or the note that it is finished, has a
    different origin from the run that would resume it.
    """
    if told := differences(known, now):
        anew = f"use the same again, or leave out --resume to start {name} anew"
        raise ValueError(f"{path} was made with {'; '.join(told)}: {anew}")
