"""Pipelines on disk: folders of any layout, read into one `Parts` and written from it.

This package's own folder holds `pipeline.json`, `vocabulary.json`, tokenizers and a
folder for each part; `pipeline.json` may point to a part in another folder
(`"vae": "../tiny/vae"`). `convert` reads diffusers' folders and the authors' file.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minilib.arguments import (
    MAX_SECONDS,
    check_device,
    check_dtype,
    check_path,
    check_whole,
)
from minilib.audiomae import AudioMAE, Columns
from minilib.bind import ImageBind
from minilib.clap import CLAP
from minilib.convert import older, released
from minilib.files import replacing, replacing_entries
from minilib.gpt import LOARegressor, Loudness
from minilib.guidance import Sampling
from minilib.memory import Memory
from minilib.model import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Model,
    config_from,
    has_gpu,
    read_json,
    read_weights,
)
from minilib.phonemes import PhonemeEncoder, PhonemeTokenizer
from minilib.text import T5Encoder
from minilib.tokenizer import Tokenizer
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN, Vocos

CLASSES: dict[str, tuple[type[Model], ...]] = {  # possible classes of each part
    "text": (T5Encoder, PhonemeEncoder),
    "clap": (CLAP,),  # or transformers' own
    "gpt": (LOARegressor,),
    "unet": (UNet,),
    "vae": (VAE,),
    "vocoder": (Vocos, HiFiGAN),
    "audiomae": (AudioMAE,),
    "columns": (Columns,),
    "loudness": (Loudness,),
    "bind": (ImageBind,),
    "memory": (Memory,),
}
# for training, for setting the loudness, and for senses other than text
OPTIONAL = ("audiomae", "columns", "loudness", "bind", "memory")
# A folder also keeps the earlier state of the parts that joint fine-tuning changed.
SEPARATE, TUNED = "separate", ("gpt", "unet", "loudness")
PHONEMES = "phonemes.json"  # the tokenizer of a phoneme encoder trained here
TOKENIZERS = ("tokenizer.json", PHONEMES, "tokenizer", "clap_tokenizer")

Device = str | torch.device | None


@dataclass(eq=False)
class Parts:
    """All parts of a pipeline; encoders carry their tokenizers."""

    text: nn.Module
    clap: nn.Module
    gpt: LOARegressor
    unet: UNet
    vae: VAE
    vocoder: nn.Module
    audiomae: AudioMAE | None = None
    columns: Columns | None = None
    loudness: Loudness | None = None
    bind: ImageBind | None = None
    memory: Memory | None = None
    seconds: float = 10.24  # the length that the weights were trained on
    vocabulary: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = Sampling()  # the weights' own settings for sampling

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The encoders of the conditions by name, in the order in which GPT-2 reads;
        last those that only the U-Net reads.
        """
        read = (*self.gpt.config.conditions, *self.unet.config.cross_attention)
        return {name: getattr(self, name) for name in read if name not in (None, "loa")}

    @property
    def models(self) -> dict[str, nn.Module]:
        """The networks by name, in the order in which data passes them."""
        named = {name: getattr(self, name) for name in CLASSES}
        return {name: model for name, model in named.items() if model is not None}


class Stored(Parts):
    """Parts that are loaded, moved and saved as one."""

    def __init__(self, parts: Parts):
        super().__init__(**vars(parts))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: Device = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> Stored:
        """Load a pipeline from a folder of any layout, or from the hub.

        Args:
            folder: holds `pipeline.json`, tokenizers and a folder for each part; or a
                folder of diffusers, which `from_diffusers` reads.
            device: where to put it; a GPU if there is one, else the CPU.
            dtype: floating-point type of the loaded weights; None keeps the stored
                type.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: a file is damaged, or weights and configs do not belong
                together.
        """
        return cls(load(folder, dtype)).to(device)

    @classmethod
    def from_diffusers(
        cls,
        folder: str | Path,
        device: Device = None,
        dtype: torch.dtype | None = torch.float32,
        unconditional_loa: str = "gpt",
        **options: Any,
    ) -> Stored:
        """Load the released AudioLDM 2: base, large, music or speech.

        The authors' code and diffusers' pipeline differ (chapter 18 lists where); the
        defaults are diffusers'. The authors' choices are head_width=32 and
        unconditional_loa="zeros" and, in a call, eta=1 and candidates=3.

        Args:
            folder: a folder written by diffusers, or a hub id, e.g.
                "cvssp/audioldm2".
            device, dtype: as in `from_pretrained`.
            unconditional_loa: the LOA that guidance leads away from: "gpt", the LOA of
                the negative caption, or "zeros".
            options: `head_width` of the U-Net's attention heads, None for 8 heads
                everywhere; `n_tokens`, the number of LOA vectors that GPT-2 writes,
                None for the config's own, or 512 for speech; for a `.pth` also `like`.

        Raises:
            FileNotFoundError: the folder or a module in it is missing, or the hub can't
                be reached.
            ValueError: it is not an AudioLDM 2, a file is damaged, or reading it would
                run the code in a pickle.
        """
        changes = {"unconditional_loa": unconditional_loa}
        Sampling().changed(**changes)
        check_options(folder, **options)
        pipe = cls(load(folder, dtype, **options)).to(device)
        pipe.sampling = pipe.sampling.changed(**changes)
        return pipe

    @classmethod
    def from_original(cls, path: str | Path, *args: Any, **options: Any) -> Stored:
        """Load a checkpoint published by the authors: a `.pth` that holds all parts.

        It works like `from_diffusers`, but by default with head_width=32 and
        unconditional_loa="zeros", as in their code. `like`, a folder or hub id of the
        same model in diffusers' layout, supplies configs and tokenizers. Steps,
        candidates and eta are not in the file: a call chooses them.
        """
        authors = {"head_width": 32, "unconditional_loa": "zeros"}
        return cls.from_diffusers(path, *args, **authors | options)

    def to(self, device: Device) -> Stored:
        """Move every part to a device (None: a GPU if there is one), with channels
        last, the memory layout in which convolutions are fastest.
        """
        device = ("cuda" if has_gpu() else "cpu") if device is None else device
        device = check_device(device)
        for model in self.models.values():
            model.to(device, memory_format=torch.channels_last)
        return self

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None
    ) -> None:
        """Write a folder that `from_pretrained` reads, whole or not at all."""
        save(self, folder, dtype)

    def to_diffusers(self, folder: str | Path) -> None:
        """Write a folder that diffusers' AudioLDM2Pipeline loads and that gives the
        same sounds, at the loudness that `decode` gives them.

        Raises:
            ValueError: a part has no counterpart there; the sentence names it, and
                nothing is written.
            FileExistsError: the folder holds something other than a pipeline.
        """
        target = check_path("folder", folder)
        released.write(released.as_diffusers(self), target)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.unet.device


def load(
    source: str | Path,
    dtype: torch.dtype | None = torch.float32,
    like: str | Path = "cvssp/audioldm2",
    **options: Any,
) -> Parts:
    """Read a pipeline, whatever its layout.

    Args:
        source: this package's folder, diffusers' folder, a hub id, or a `.pth` of the
            authors.
        dtype: floating-point type of the loaded weights; None keeps the stored type.
        like: for a `.pth`: the same model in diffusers' layout, for configs and
            tokenizers.
        options: for released weights, as `convert.released.read` takes them.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged, or weights and configs do not belong together.
    """
    check_dtype(dtype)
    path = check_path("folder", source)
    if path.suffix == ".pth":
        if not path.is_file():  # before the hub is asked for `like`
            raise FileNotFoundError(f"there is no file {str(source)!r}")
        found = released.read_original(path, released.fetch(like), dtype, **options)
    else:
        folder = released.fetch(source)
        whole = released.is_released(folder)
        found = (
            released.read(folder, dtype, **options) if whole else read(folder, dtype)
        )
    parts = Parts(**found)
    check_widths(parts, path)
    return parts


def check_options(source: str | Path, **options: Any) -> None:
    """Raise TypeError or ValueError for an option of `from_diffusers` that is unknown,
    is not a whole number, or does not apply to this source.
    """
    single = check_path("folder", source).suffix == ".pth"
    known = ("head_width", "n_tokens", *(["like"] if single else []))
    for name, value in options.items():
        if name not in known:
            takes = f"{source} takes {' and '.join(known)}"
            raise TypeError(f"{name} is not an option here: {takes}")
        if name != "like" and value is not None:
            check_whole(name, value, 1, 2**16)
    if (Path(source) / "pipeline.json").is_file() and any(options.values()):
        said = "which are for released weights: its configs hold its sizes"
        raise ValueError(f"{source} takes no {' or '.join(options)}, {said}")


def read(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The fields of `Parts` from this package's own folder."""
    description = read_description(folder)
    here = [n for n in CLASSES if n not in OPTIONAL or part_folder(folder, n).is_dir()]
    found: dict[str, Any] = {name: load_part(folder, name, dtype) for name in here}
    if "loudness" not in here:
        found["loudness"] = older.loudness(part_folder(folder, "gpt"), dtype)
    vocabulary = folder / "vocabulary.json"
    if vocabulary.is_file():
        found["vocabulary"] = read_vocabulary(vocabulary)
    return {**found, **description}


def read_vocabulary(path: Path) -> dict[str, Any]:
    """The contents of a `vocabulary.json`; a damaged one raises a sentence."""
    known = read_json(path)
    for key in ("classes", "words", "captions"):
        values = known.get(key, [])
        if not isinstance(values, list) or not all(isinstance(x, str) for x in values):
            raise ValueError(f"{path} is damaged: `{key}` must be a list of strings")
    if not isinstance(known.get("spoken", 1), int):
        raise ValueError(f"{path} is damaged: `spoken` must be a whole number")
    return known


def part_folder(folder: Path, name: str) -> Path:
    """The folder of a part: in the pipeline's, or where its `pipeline.json` points."""
    path = folder / "pipeline.json"
    named = read_json(path).get(name, name) if path.is_file() else name
    if not isinstance(named, str):
        raise ValueError(
            f"{path} is damaged: `{name}` must name a folder, not {named!r}"
        )
    return folder / named


def load_part(folder: Path, name: str, dtype: torch.dtype | None = None) -> nn.Module:
    """Load one part of this package's own folder as the class that its config fits; an
    encoder comes with its tokenizer, if there is one.
    """
    path = part_folder(folder, name)
    config = read_json(path / CONFIG_FILE)
    if config.get("model_type") == "clap":  # transformers' own
        part = released.ReleasedCLAP.from_pretrained(path, dtype=dtype)
    else:
        vae = part_folder(folder, "vae") / CONFIG_FILE
        config = older.config(name, config, vae)
        model_class = class_of(name, config, path / CONFIG_FILE)
        sizes = config_from(model_class.config_class, config, path / CONFIG_FILE)
        state = older.state(name, read_weights(path / WEIGHTS_FILE))
        part = model_class.filled(sizes, state, path, dtype)
    if name == "bind":
        part.reads = "picture"  # at inference; in training it hears the sounds
    if hasattr(part, "tokenizer"):
        own = isinstance(part, PhonemeEncoder) and not holds_released(path.parent)
        part.tokenizer = (
            PhonemeTokenizer.load(path.parent / PHONEMES)
            if own
            else load_tokenizer(path.parent, name)
        )
    return part


def class_of(name: str, config: dict[str, Any], path: Path) -> type[Model]:
    """The class of a part that has this config. A config saved by an older version may
    lack a newer field, which then takes its default.
    """
    known = lambda c: {field.name for field in fields(c.config_class)}
    # the class that shares the most fields
    likely = max(CLASSES[name], key=lambda c: len(known(c) & set(config)))
    unknown = sorted(set(config) - known(likely))
    if not config or 2 * len(unknown) > len(config):
        expected = " or ".join(c.__name__ for c in CLASSES[name])
        raise ValueError(f"{path} is not the config of a {expected}")
    if unknown:
        said = f"a {likely.__name__} of this version of minilib does not know"
        raise ValueError(f"{path}: {said} the field {unknown[0]!r}")
    return likely


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer of an encoder: one for all, or transformers' own for each."""
    if not holds_released(folder):
        return Tokenizer.load(folder / "tokenizer.json")
    if name == "clap":
        return released.load_tokenizer(folder / "clap_tokenizer")
    path = part_folder(folder, "gpt") / CONFIG_FILE
    gpt = read_json(path) if path.is_file() else {}  # a folder of encoders has none
    return released.load_tokenizer(
        folder / "tokenizer", gpt.get("learned_positions", 0)
    )


def holds_released(folder: Path) -> bool:
    """Whether a folder in this package's layout holds a released pipeline."""
    return (folder / "clap_tokenizer").is_dir()


def save(parts: Parts, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write all parts, tokenizers and the description, so that `load` finds them.

    They replace those of an older pipeline in `folder`, all or none; other files there
    stay.
    """
    check_dtype(dtype)
    with replacing_entries(
        check_path("folder", folder), [*CLASSES, *TOKENIZERS]
    ) as new:
        for name, model in parts.models.items():
            model.save_pretrained(new / name, dtype=dtype)
        save_tokenizers(new, parts.text.tokenizer, parts.clap.tokenizer)
        save_description(new, parts.seconds, parts.vocabulary, parts.sampling)


def save_tokenizers(folder: Path, tokenizer: Any, clap_tokenizer: Any) -> None:
    """Write the tokenizers that `load_part` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, PhonemeTokenizer):
        tokenizer.save(folder / PHONEMES)
        clap_tokenizer.save(folder / "tokenizer.json")
    elif isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / "tokenizer.json")
    else:
        tokenizer.save(folder / "tokenizer")
        clap_tokenizer.save(folder / "clap_tokenizer")


def save_description(
    folder: Path,
    seconds: float,
    vocabulary: dict[str, Any],
    sampling: Sampling,
    borrowed: dict[str, str] | None = None,
) -> None:
    """Write the rest of a pipeline: `pipeline.json`, with the length of its sounds, its
    settings for sampling and the folders of parts that lie elsewhere, by name; and the
    vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"seconds": seconds, **asdict(sampling), **(borrowed or {})}
    for name, values in (("pipeline", description), ("vocabulary", vocabulary)):
        with replacing(folder / f"{name}.json") as path:
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """`seconds` and `sampling` from a `pipeline.json`; a damaged one raises a
    sentence.
    """
    path = folder / "pipeline.json"
    if not path.is_file():
        below = sorted(x.parent.name for x in folder.glob("*/pipeline.json"))
        name = f"; name one of those in it: {', '.join(below)}" if below else ""
        raise FileNotFoundError(f"{path} is missing: {folder} holds no pipeline{name}")
    given = older.description(read_json(path))
    if "peer" in given:
        raise ValueError(f"{folder} holds the peer {given['peer']}, not AudioLDM 2")
    found = {k: v for k, v in given.items() if k not in CLASSES}
    seconds = found.pop("seconds", None)
    number = isinstance(seconds, int | float) and math.isfinite(seconds)
    if not number or not 0 < seconds <= MAX_SECONDS:
        wanted = f"`seconds` of a sound must be above 0 and at most {MAX_SECONDS:g}"
        raise ValueError(f"{path} is damaged: {wanted}")
    try:
        return {"seconds": seconds, "sampling": Sampling().changed(**found)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def check_widths(parts: Parts, source: Path) -> None:
    """Raise ValueError if one part's output does not fit the next one's input."""
    gpt, unet, vae = parts.gpt.config, parts.unet.config, parts.vae.config
    widths = {name: encoder.dim for name, encoder in parts.encoders.items()}
    pairs = [("vae", vae.latent_channels, "unet", unet.in_channels)]
    read = zip(gpt.conditions, gpt.condition_dims)
    pairs += [(name, widths[name], "gpt", dim) for name, dim in read]
    widths["loa"] = gpt.n_embd
    read = zip(unet.cross_attention, unet.cross_attention_dim)
    pairs += [(name, widths[name], "unet", dim) for name, dim in read if name]
    for giver, given, taker, taken in pairs:
        if given != taken:
            widths = f"{giver} gives width {given}, but {taker} takes {taken}"
            raise ValueError(f"{source} mixes configs: {widths}")
    if unet.loa_channels and gpt.n_tokens != math.prod(unet.loa_grid):
        lengths = (
            f"gpt writes {gpt.n_tokens} LOA vectors, but unet lays out {unet.loa_grid}"
        )
        raise ValueError(f"{source} mixes configs: {lengths}")
