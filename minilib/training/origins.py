"""What weights come from: the settings of a stage, and a fingerprint of all that it
reads.

A checkpoint holds it, and so does the note of a finished stage. A run is resumed only
from what it was begun with: from other clips, or with another tokenizer, it would go on
in silence towards weights that nobody asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from minilib.data import Corpus
from minilib.training.clips import TrainingData
from minilib.training.loop import Recipe

Origin = dict[str, Any]

OPTIONS = ("crop", "recorded", "levels")  # of stages
# of a recipe, what a run that goes on may have otherwise
FREE = ("steps", "checkpoint_every")
ENCODERS = {"clap", "text"}  # which read with the tokenizer
READ_WHOLE = 256  # clips of a corpus; of all others the middle is read
MIDDLE = 64  # samples


def of_settings(
    kind: Any,
    preset: str | None,
    recipe: Recipe,
    seed: int,
    options: dict[str, Any] | None = None,
) -> Origin:
    """How a stage, or one of its class with these options, is trained."""
    own = {name: getattr(kind, name) for name in OPTIONS if hasattr(kind, name)}
    how = {**asdict(recipe), **own, **(options or {})}
    # as JSON gives it back
    how = json.loads(json.dumps(how, default=float))
    return {"preset": preset, "seed": seed, "recipe": how}


def of_data(
    kind: Any, data: TrainingData, options: dict[str, Any] | None = None
) -> Origin:
    """From which clips a stage, or one of its class with these options, learns."""
    hears = (options or {}).get("recorded", kind.recorded) > 0
    recordings = data.recordings if hears else []
    pieces = chain.from_iterable(map(samples, [data.corpus, *recordings]))
    said = [str(text).encode() for text in data.transcriptions or ()]
    if kind.reads_classes and data.folder is not None:
        said += [row.get("class", "").encode() for row in data.folder.rows]
    return {"source": source(data.folder), "data": fingerprint(chain(pieces, said))}


def of_tokenizer(kind: Any, path: Path) -> Origin:
    """Which tokenizer a stage, or one of its class, reads with, if it does."""
    if not (reads_captions(kind) and path.is_file()):
        return {}
    return {"tokenizer": fingerprint([path.read_bytes()])}


def of_stage(stage: Any) -> Origin:
    """All that the weights of a stage come from, before it is trained."""
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
    """Whether a stage learns to read captions, or needs what does."""
    return bool(ENCODERS.intersection((*kind.needs, *kind.makes)))


def source(folder: Any) -> str:
    """Where clips come from, in a word."""
    return "SoundWorld" if folder is None else "recordings"


def samples(corpus: Corpus) -> Iterator[bytes]:
    """The captions of a corpus, some of its clips, and the middle of all."""
    waves, n = corpus.waves, len(corpus)
    yield json.dumps([waves.shape, corpus.captions]).encode()
    start = max(0, (waves.shape[1] - MIDDLE) // 2)
    yield waves[:, start : start + MIDDLE].tobytes()
    for i in np.unique(np.linspace(0, n - 1, min(n, READ_WHOLE)).round().astype(int)):
        yield waves[i].tobytes()


def weights(model: nn.Module) -> Iterator[bytes]:
    """All that a model knows."""
    for name, x in sorted(model.state_dict().items()):
        yield name.encode()
        yield x.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def fingerprint(pieces: Iterable[bytes]) -> str:
    """A short text that other pieces, in all likelihood, don't have."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(len(piece).to_bytes(8, "big"))
        found.update(piece)
    return found.hexdigest()[:16]


def differences(known: Origin, now: Origin) -> list[str]:
    """What is otherwise now than it was, in words; what either doesn't tell is taken to
    be the same.
    """
    before, after = known.get("recipe", {}), now.get("recipe", {})
    before, after = {**known, **before}, {**now, **after}
    plain = [name for name in after if name not in ("recipe", "parts", *FREE)]
    changed = [name for name in plain if before.get(name, after[name]) != after[name]]
    words = {"data": "other clips or captions", "tokenizer": "another tokenizer"}
    told = [
        words.get(name, f"{name} {before[name]}, not {after[name]}") for name in changed
    ]
    parts = before.get("parts", {})
    for name, now_is in after.get("parts", {}).items():
        if parts.get(name, now_is) != now_is:
            told.append(f"another {name}, which has been trained anew")
    return told


def check(path: Path, name: str, known: Origin, now: Origin) -> None:
    """Raise ValueError where a stage's checkpoint, or the note that it is finished,
    comes from something else than it would be resumed with.
    """
    if told := differences(known, now):
        anew = f"give what it comes from, or leave out --resume and {name} starts anew"
        raise ValueError(f"{path} comes from {'; '.join(told)}: {anew}")
