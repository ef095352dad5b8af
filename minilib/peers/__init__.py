"""Systems before and beside AudioLDM 2, each in one module that is trained apart.

A peer's module has `train(out, seed, progress)`, which makes its weights. It stands on
the models and the loop, and never on another peer.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# name -> what it is; its module has the same name and is imported when it is asked for
PEERS: dict[str, str] = {
    "instructed_t5": "a T5 encoder that has learned to follow instructions",
    "text_ldm": "latent diffusion that reads the caption, with no LOA between",
}


def peer(name: str) -> ModuleType:
    """The module of a peer.

    Raises:
        ValueError: there is no peer of this name.
    """
    if name not in PEERS:
        raise ValueError(f"peer must be one of {', '.join(PEERS)}, not {name!r}")
    return import_module(f"minilib.peers.{name}")


def pipeline(folder: str | Path) -> Any:
    """The peer's pipeline in a folder; None if its `pipeline.json` names no peer."""
    from minilib.model import read_json  # brings torch, which help does without

    description = Path(folder) / "pipeline.json"
    name = read_json(description).get("peer") if description.is_file() else None
    if name is None:
        return None
    if name not in PEERS:
        raise ValueError(f"{description} is damaged: there is no peer {name!r}")
    return peer(name).TextToAudio.from_pretrained(folder)
