"""The size of a pipeline and the cost of a sound: parameters, bytes and operations,
counted without running the models.

Models are created on the meta device, where tensors have shapes but no memory, so that
the released sizes can be counted on a laptop in seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minilib import audio
from minilib.audioldm2 import AudioLDM2
from minilib.audiomae import AudioMAE
from minilib.clap import CLAP
from minilib.conditions import Context
from minilib.convert import released
from minilib.diffusion import time_steps
from minilib.folders import OPTIONAL, Parts, part_folder
from minilib.gpt import LOARegressor
from minilib.guidance import MAX_STEPS, Sampling
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import VOCODERS, HiFiGAN

WORDS = 16  # tokens in the caption for which operations are counted
FOLDERS = {  # the modules of a released pipeline that form each part
    "text": ("text_encoder_2",),
    "clap": ("text_encoder",),
    "gpt": ("projection_model", "language_model"),
    "unet": ("unet",),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
}


@dataclass(frozen=True)
class PartCost:
    """The class and size of a part of a pipeline, or of a piece of one."""

    name: str
    model: str
    parameters: int
    memory: int  # bytes, buffers included
    disk: int | None  # bytes of its files; None for a preset, which has no files


def preset_parts(preset: str) -> dict[str, nn.Module]:
    """All parts of a preset, without memory; "large" and "speech" differ from "full" in
    some parts.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in UNet.presets:
        known = ", ".join(UNet.presets)
        raise ValueError(f"preset must be one of {known}, not {preset!r}")
    classes = {
        "text": PhonemeEncoder if preset == "speech" else T5Encoder,
        "clap": CLAP,
        "gpt": LOARegressor,
        "unet": UNet,
        "vae": VAE,
        "vocoder": VOCODERS.get(preset, HiFiGAN),
        "audiomae": AudioMAE,
    }
    config = lambda model: model.presets.get(preset, model.presets["full"])
    with torch.device("meta"):
        return {name: model(config(model)) for name, model in classes.items()}


def sizes(parts: Mapping[str, nn.Module], folder: Path | None = None) -> list[PartCost]:
    """The size of each part; GPT-2 and its projections, which are released separately,
    count as two.
    """
    rows = []
    for name, part in parts.items():
        disk = None if folder is None else bytes_on_disk(name, folder)
        if name == "gpt":
            children = [(f"gpt.{x}", child) for x, child in part.named_children()]
            rows += [size(*child) for child in children[:-1]]
            name, part = children[-1]
        rows.append(size(name, part, disk))
    return rows


def size(name: str, part: nn.Module, disk: int | None = None) -> PartCost:
    """The size of one module."""
    parameters = sum(p.numel() for p in part.parameters())
    tensors = [*part.parameters(), *part.buffers()]
    memory = sum(x.numel() * x.element_size() for x in tensors)
    return PartCost(name, type(part).__name__, parameters, memory, disk)


def bytes_on_disk(name: str, folder: Path) -> int:
    """The bytes of a part's files in a pipeline's folder of either layout."""
    if released.is_released(folder):
        places = [folder / module for module in FOLDERS.get(name, ())]
    else:
        places = [part_folder(folder, name)]
    files = (file for place in places for file in place.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)


def operations(
    parts: Mapping[str, nn.Module], seconds: float, sampling: Sampling | None = None
) -> dict[str, int]:
    """The floating-point operations of each stage for one sound; a multiplication and
    an addition count as two.

    A guided step runs the U-Net twice, and guidance in any step runs the encoders and
    GPT-2 twice. Fourier transforms and elementwise operations are left out: they cost
    little.
    """
    how = sampling or Sampling()
    read = parts["gpt"].config.conditions
    needed = {k: part for k, part in parts.items() if k not in OPTIONAL or k in read}
    meta = {name: without_memory(part) for name, part in needed.items()}
    pipe = AudioLDM2(Parts(**meta))
    for encoder in pipe.encoders.values():
        spoken = encoder.reads == "transcription"
        n = (spoken and pipe.gpt.config.learned_positions) or WORDS
        encoder.tokenizer = Counted(n)
    conditions: dict[str, Context] = {}
    empty = lambda *shape: torch.zeros(shape, device="meta")
    seen = empty(1, *pipe.bind.config.image.shape) if pipe.sees else None
    given = ["a caption"], ["what is said"], None, seen
    encode = lambda: conditions.update(pipe.encode(*given))
    encoded, config = count(encode), pipe.gpt.config
    for name, dim in zip(config.conditions, config.condition_dims):
        sequence, mask = conditions[name]  # the presets' CLAP may have another width
        conditions[name] = Context(empty(*sequence.shape[:2], dim), mask)
    n_loa, told = config.n_tokens, {name: conditions[name] for name in read}
    loa = in_all(n_loa, lambda n: count(lambda: pipe.gpt.generate(told, n)))
    z = empty(*pipe.latent_shape(1, round(seconds * audio.SAMPLE_RATE)))
    given = {**conditions, "loa": Context(empty(1, n_loa, config.n_embd))}
    # an inverse STFT can't run without memory
    speak = getattr(pipe.vocoder, "spectrum", pipe.vocoder)
    guided = n_guided(how)
    twice = 2 if guided else 1
    return {
        "encode": twice * encoded,
        "loa": twice * loa,
        "sample": (how.steps + guided) * count(lambda: pipe.unet(z, empty(1), given)),
        "decode": count(lambda: speak(pipe.vae.decode(z))),
    }


def n_guided(how: Sampling) -> int:
    """The number of the sampler's steps that are guided."""
    return sum(how.guides(t) for t in time_steps(MAX_STEPS, how.steps))


class Counted:
    """A tokenizer that returns a fixed number of tokens for any words."""

    def __init__(self, n_tokens: int):
        self.pad_to = n_tokens

    def encode(self, captions: list[str], pad_to: int) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and mask (B, S), as `Tokenizer.encode`."""
        ids = torch.zeros(len(captions), pad_to, dtype=torch.long, device="meta")
        return ids, torch.ones_like(ids, dtype=torch.bool)


def count(function: Callable[[], object]) -> int:
    """The floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def in_all(n: int, upto: Callable[[int], int]) -> int:
    """The operations for writing n vectors, from those for one, two and three: each
    vector reads one more than the vector before.
    """
    if n <= 3:
        return upto(n)
    one, two, three = upto(1), upto(2), upto(3)
    growth = three - 2 * two + one  # the extra cost of a vector over the one before
    return one + (n - 1) * (two - one) + (n - 1) * (n - 2) // 2 * growth


def without_memory(part: nn.Module) -> nn.Module:
    """A copy of a model whose tensors have shapes but no memory."""

    def bare(x: Tensor) -> Tensor:
        return x.detach().to(
            "meta", torch.float32 if x.is_floating_point() else x.dtype
        )

    made = {id(x): bare(x) for x in part.buffers()}
    for p in part.parameters():
        made[id(p)] = nn.Parameter(bare(p), requires_grad=False)
    return copy.deepcopy(part, made)  # `made` holds the tensors' copies already


def report(
    rows: list[PartCost], flops: Mapping[str, int], seconds: float, how: Sampling
) -> str:
    """Both tables as text."""
    on_disk = any(row.disk is not None for row in rows)
    line = "{:18}{:22}{:>14}{:>12}".format
    disk = lambda text: f"{text:>12}" if on_disk else ""
    lines = [line("part", "class", "parameters", "in memory") + disk("on disk")]
    totals = {"name": "total", "model": ""}
    for key in ("parameters", "memory", "disk"):
        totals[key] = sum(getattr(row, key) or 0 for row in rows)
    for row in [*rows, PartCost(**totals)]:
        told = line(row.name, row.model, f"{row.parameters:,}", megabytes(row.memory))
        lines.append(told + disk(megabytes(row.disk)))
    guided = n_guided(how)
    where = f"{guided} of them guided" if guided else "not guided"
    where = "guided" if guided == how.steps else where
    asked = f"{seconds:g} s of sound, {how.steps} steps, {where}"
    lines += ["", f"{asked:40}{'GFLOP':>14}"]
    for stage, n in {**flops, "total": sum(flops.values())}.items():
        lines.append(f"{stage:40}{n / 1e9:14,.1f}")
    return "\n".join(lines)


def megabytes(n: int | None) -> str:
    """Bytes as megabytes of a million bytes each."""
    return "" if n is None else f"{n / 1e6:,.1f} MB"
