"""Systems before and beside AudioLDM 2, each in one module that is trained apart.

A peer's module has `train(out, seed, steps, progress)`, which makes its weights; one
that borrows parts also takes the folder of the `weights` that hold them. It stands on
the models and the loop, and on no other peer but `text_ldm` and `codec`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# name -> what it is; its module has the same name and is imported when it is asked for
PEERS: dict[str, str] = {
    "codec": "a codec: 8 codes for each 20 ms, for language models to write",
    "instructed_t5": "a T5 encoder that has learned to follow instructions",
    "make_an_audio": "latent diffusion on captions that CLAP chose among proposals",
    "make_an_audio_2": "latent diffusion along time that reads parsed captions",
    "musicldm": "latent diffusion of loops that mixes loops on their beats",
    "naturalspeech2": "NaturalSpeech 2 on the codec: diffusion says phrases in a voice",
    "nextgpt": "NExT-GPT: a language model that hears, sees, draws and plays",
    "tango": "latent diffusion with an instructed T5 and sounds mixed at one level",
    "text_ldm": "latent diffusion that reads the caption, with no LOA between",
    "uniaudio": "UniAudio on the codec: speech, other voices and sounds from one model",
    "valle": "VALL-E on the codec, which also does SpeechX's tasks",
}


def peer(name: str) -> ModuleType:
    """The module of a peer.

    Raises:
        ValueError: there is no peer of this name.
    """
    if name not in PEERS:
        raise ValueError(f"peer must be one of {', '.join(PEERS)}, not {name!r}")
    return import_module(f"minilib.peers.{name}")


def peer_of(folder: str | Path) -> str | None:
    """The peer whose weights a folder holds; None if its `pipeline.json` names none.

    Raises:
        ValueError: it names one that there is not.
    """
    from minilib.model import read_json  # brings torch, which help does without

    description = Path(folder) / "pipeline.json"
    name = read_json(description).get("peer") if description.is_file() else None
    if name not in (None, *PEERS):
        raise ValueError(f"{description} is damaged: there is no peer {name!r}")
    return name


def check_out(out: Path, name: str) -> None:
    """Raise a sentence unless a peer's weights may take the place of the folder `out`:
    it is new or empty, or holds older weights of this peer and nothing else.
    """
    wanted = f"out must be a new folder, or one that holds weights of {name} alone"
    for path in out.rglob("*") if out.is_dir() else [out] * out.exists():
        inside = path.relative_to(out)
        deep = len(inside.parts) > 2  # as in a folder of several pipelines
        if path.is_file() and (deep or path.suffix not in (".json", ".safetensors")):
            held = f"which holds {str(inside)!r}" if path != out else "which is a file"
            raise ValueError(f"{wanted}, not {str(out)!r}, {held}")
    if (out / "pipeline.json").is_file() and peer_of(out) != name:
        held = peer_of(out) or "a pipeline"
        raise ValueError(f"{wanted}, not {str(out)!r}, which holds {held}")


def pipeline(folder: str | Path) -> Any:
    """The peer's pipeline in a folder; None if its `pipeline.json` names no peer.

    Raises:
        ValueError: the peer makes no sounds from captions.
    """
    name = peer_of(folder)
    if name is None:
        return None
    if not hasattr(module := peer(name), "TextToAudio"):
        said = f"it holds the peer {name}"
        raise ValueError(f"{folder} makes no sound from a caption: {said}")
    return module.TextToAudio.from_pretrained(folder)


def coder(folder: str | Path, codebooks: int | None = None) -> Any:
    """The codec and its vocoder in a folder, with its first codebooks or all; None if
    its `pipeline.json` names no codec.

    Raises:
        ValueError: codebooks are asked for, but there are fewer, or no codec.
    """
    if peer_of(folder) == "codec":
        return peer("codec").CodecAndVocoder.from_pretrained(folder, codebooks)
    if codebooks is not None:
        how = "train one with minilib train-peer codec, and name it with --weights"
        here = f"{folder} holds none; {how}"
        raise ValueError(f"--codebooks needs the weights of a codec: {here}")
    return None
