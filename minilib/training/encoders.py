"""The frozen encoders of the released scale, FLAN-T5 and LAION's CLAP, gathered into
one folder from which stages borrow them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from minilib import folders
from minilib.convert import pretrained, released
from minilib.files import replacing_folder
from minilib.model import local_folder

SOURCES = (  # where a T5, a CLAP and what they need lie in a pipeline of diffusers
    "text_encoder_2", "tokenizer_2", "text_encoder", "tokenizer", "feature_extractor",
)  # fmt: skip


def gathered(sources: Sequence[str | Path], out: Path) -> Path:
    """The folder of the encoders: made at `out` as float32, unless it was made there of
    the same sources before, or the source is such a folder itself.

    Args:
        sources: one pipeline in this package's or diffusers' layout; or a T5 and a
            CLAP, as transformers stores them. Folders or hub ids.

    Raises:
        FileNotFoundError: a folder or a file in it is missing, or the hub can't be
            reached.
        ValueError: there are more than two sources, or one is another model.
    """
    if not 1 <= len(sources) <= 2:
        wanted = "one pipeline, or a T5 and a CLAP"
        raise ValueError(f"encoders must be {wanted}, not {len(sources)} sources")
    if folders.holds_released(Path(sources[0])) and len(sources) == 1:
        return Path(sources[0])
    known = out / "sources.json"
    if known.is_file() and known.read_text() == json.dumps([str(x) for x in sources]):
        return out
    places = fetched(sources)
    text = pretrained.read("T5EncoderModel", places["text_encoder_2"], torch.float32)
    at = places["text_encoder"], places["feature_extractor"]
    clap = released.ReleasedCLAP.from_pretrained(*at, torch.float32)
    of = [released.load_tokenizer(places[x]) for x in ("tokenizer_2", "tokenizer")]
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(out) as new:
        text.save_pretrained(new / "text")
        clap.save_pretrained(new / "clap")
        folders.save_tokenizers(new, *of)
        (new / known.name).write_text(json.dumps([str(x) for x in sources]))
    return out


def fetched(sources: Sequence[str | Path]) -> dict[str, Path]:
    """The folder of each of SOURCES, downloaded where a source is a hub id."""
    ends = (*released.PATTERNS, "*.safetensors")
    if len(sources) == 2:
        text, clap = (local_folder(x, allow_patterns=list(ends)) for x in sources)
        return dict(zip(SOURCES, (text, text, clap, clap, clap)))
    needed = [f"{name}/{end}" for name in SOURCES for end in ends]
    whole = local_folder(sources[0], allow_patterns=[released.INDEX, *needed])
    if not released.is_released(whole):
        said = "is no pipeline with released encoders"
        raise FileNotFoundError(f"{sources[0]} {said}: it has no {released.INDEX}")
    return {name: whole / name for name in SOURCES}
