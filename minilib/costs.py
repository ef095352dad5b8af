"""What a pipeline holds, and what a sound takes: parameters, bytes and operations,
without computing any of it.

Models are made on the meta device, where tensors have shapes but no memory, so that the
released sizes are counted on a laptop in seconds. Chapter 18 builds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minilib import audio
from minilib.audioldm2 import PARTS, VOCODERS, AudioLDM2
from minilib.audiomae import AudioMAE
from minilib.clap import CLAP
from minilib.convert import released
from minilib.gpt import LOARegressor
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN, Vocos

WORDS = 16  # tokens of the caption that is counted
FOLDERS = {  # of a released pipeline: which modules make a part
    "text": ("text_encoder_2",),
    "clap": ("text_encoder",),
    "gpt": ("projection_model", "language_model"),
    "unet": ("unet",),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
}


@dataclass(frozen=True)
class PartCost:
    """One part of a pipeline, or a part of that: its class and what it holds."""

    name: str
    model: str
    parameters: int
    memory: int  # bytes, buffers included
    disk: int | None  # bytes of its files; None for a preset, which has none


def preset_parts(preset: str) -> dict[str, nn.Module]:
    """All parts of a preset, without memory; "large" and "speech" are "full" save some
    parts.

    Raises:
        ValueError: there is no such preset.
    """
    if preset not in UNet.presets:
        raise ValueError(
            f"preset must be one of {', '.join(UNet.presets)}, not {preset!r}"
        )
    classes = {
        "text": PhonemeEncoder if preset == "speech" else T5Encoder,
        "clap": CLAP,
        "gpt": LOARegressor,
        "unet": UNet,
        "vae": VAE,
        "vocoder": VOCODERS.get(preset, HiFiGAN),
        "audiomae": AudioMAE,
    }
    with torch.device("meta"):
        return {
            name: model(model.presets.get(preset, model.presets["full"]))
            for name, model in classes.items()
        }


def pipeline_parts(pipe: AudioLDM2) -> dict[str, nn.Module]:
    """The parts of a pipeline by name."""
    return {name: part for name in PARTS if (part := getattr(pipe, name)) is not None}


def sizes(parts: Mapping[str, nn.Module], folder: Path | None = None) -> list[PartCost]:
    """What each part holds; GPT-2 and its projections, which are released apart, by
    themselves.
    """
    rows = []
    for name, part in parts.items():
        if not isinstance(part, LOARegressor):
            rows.append(size(name, part, folder))
            continue
        disk = bytes_on_disk(name, folder)
        rows += [
            size(f"{name}.{child}", module) for child, module in part.named_children()
        ]
        rows[-1] = PartCost(**{**vars(rows[-1]), "disk": disk})
    return rows


def size(name: str, part: nn.Module, folder: Path | None = None) -> PartCost:
    """What one module holds."""
    tensors = [*part.parameters(), *part.buffers()]
    return PartCost(
        name,
        type(part).__name__,
        sum(p.numel() for p in part.parameters()),
        sum(x.numel() * x.element_size() for x in tensors),
        bytes_on_disk(name, folder),
    )


def bytes_on_disk(name: str, folder: Path | None) -> int | None:
    """Bytes of a part's files in a pipeline's folder of either layout; None without a
    folder.
    """
    if folder is None:
        return None
    names = FOLDERS.get(name, ()) if released.is_released(folder) else (name,)
    return sum(
        file.stat().st_size
        for name in names
        for file in (folder / name).rglob("*")
        if file.is_file()
    )


def operations(
    parts: Mapping[str, nn.Module], seconds: float, steps: int = 25, guided: bool = True
) -> dict[str, int]:
    """Floating-point operations of each stage for one sound, products and sums counted
    apart.

    Fourier transforms and what goes element by element are left out: they are few.
    """
    meta = {
        name: without_memory(part) for name, part in parts.items() if name != "audiomae"
    }
    gpt, unet, vae = meta["gpt"], meta["unet"], meta["vae"]
    B, config = 2 if guided else 1, gpt.config
    n_words = config.learned_positions or WORDS
    ids = torch.zeros(B, n_words, dtype=torch.long, device="meta")
    mask = torch.ones_like(ids, dtype=torch.bool)
    clap_ids = torch.zeros(B, WORDS, dtype=torch.long, device="meta")
    empty = lambda *shape: torch.zeros(shape, device="meta")
    text, loa = (
        empty(B, n_words, config.condition_dims[1]),
        empty(B, config.n_tokens, config.n_embd),
    )
    r, multiple = vae.config.reduction, 2 ** (len(unet.config.block_out_channels) - 1)
    T = -(-round(seconds * audio.SAMPLE_RATE / audio.HOP) // (r * multiple)) * multiple
    z = empty(B, vae.config.z_channels, T, audio.N_MELS // r)
    vocoder = meta["vocoder"]
    # what is counted of it
    speak = vocoder.spectrum if isinstance(vocoder, Vocos) else vocoder
    given = [(empty(B, 1, config.condition_dims[0]), None), (text, mask)]
    t = torch.ones(B, dtype=torch.long, device="meta")
    return {
        "encode": count(
            lambda: (meta["text"](ids, mask), meta["clap"].embed_text(clap_ids, None))
        ),
        "loa": in_all(config.n_tokens, lambda n: count(lambda: gpt.generate(given, n))),
        "sample": steps * count(lambda: unet(z, t, (loa, None), (text, None))),
        "decode": count(lambda: speak(vae.decode(z[:1]))),
    }


def count(function: Callable[[], object]) -> int:
    """Floating-point operations of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def in_all(n: int, upto: Callable[[int], int]) -> int:
    """The operations of writing n vectors, from those of one, two and three: each one
    reads one more.
    """
    if n <= 3:
        return upto(n)
    one, two, three = upto(1), upto(2), upto(3)
    growth = three - 2 * two + one  # what a vector costs more than the one before it
    return one + (n - 1) * (two - one) + (n - 1) * (n - 2) // 2 * growth


def without_memory(part: nn.Module) -> nn.Module:
    """A copy of a model whose tensors have shapes only."""
    bare = lambda x: x.detach().to(
        "meta", torch.float32 if x.is_floating_point() else x.dtype
    )
    made = {id(x): bare(x) for x in part.buffers()}
    made |= {
        id(p): nn.Parameter(bare(p), requires_grad=False) for p in part.parameters()
    }
    return copy.deepcopy(part, made)  # what it has copied before, it takes as it is


def report(
    rows: list[PartCost],
    flops: Mapping[str, int],
    seconds: float,
    steps: int,
    guided: int,
) -> str:
    """Both tables as text."""
    on_disk = any(row.disk is not None for row in rows)
    lines = [
        f"{'part':18}{'class':22}{'parameters':>14}{'in memory':>12}"
        + f"{'on disk':>12}" * on_disk
    ]
    for row in rows:
        disk = "" if not on_disk else f"{megabytes(row.disk):>12}"
        lines.append(
            f"{row.name:18}{row.model:22}{row.parameters:14,}{megabytes(row.memory):>12}{disk}"
        )
    total = [
        sum(getattr(row, key) or 0 for row in rows)
        for key in ("parameters", "memory", "disk")
    ]
    disk = f"{megabytes(total[2]):>12}" if on_disk else ""
    lines += [f"{'total':40}{total[0]:14,}{megabytes(total[1]):>12}{disk}", ""]
    where = (
        "guided"
        if guided == steps
        else f"{guided} of them guided"
        if guided
        else "not guided"
    )
    lines.append(f"{f'{seconds:g} s of sound, {steps} steps, {where}':40}{'GFLOP':>14}")
    lines += [f"{stage:40}{count / 1e9:14,.1f}" for stage, count in flops.items()]
    lines.append(f"{'total':40}{sum(flops.values()) / 1e9:14,.1f}")
    return "\n".join(lines)


def megabytes(n: int | None) -> str:
    """Bytes as megabytes, one of a million bytes."""
    return "" if n is None else f"{n / 1e6:,.1f} MB"
