"""What training a preset takes: memory, operations and days, counted without running
it.

Models and batches are fake: their tensors have shapes but no memory, so that a step of
the released sizes is counted on a laptop in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from minilib import audio
from minilib.audiomae import AudioMAE, ViTBlock
from minilib.discriminators import (
    Adversarial,
    AdversarialVAE,
    Discriminators,
    PatchDiscriminator,
)
from minilib.gpt import LOARegressor
from minilib.layers import ResBlock
from minilib.model import Model
from minilib.text import T5Encoder
from minilib.training.runs import RUNS, Run
from minilib.training.stages import Joint
from minilib.unet import UNet, UNetBlock
from minilib.vae import VAE, SpatialAttention
from minilib.vocoder import VOCODERS

WORDS = 16  # tokens in a caption
FLOAT = 4  # bytes of a number
LAION_CLAP = 193_913_882  # parameters of the released ClapModel
STATES = 4  # of each trained number: itself, its gradient and AdamW's two means
# chip: memory in bytes, and operations a second in half precision without sparsity, by
# NVIDIA's data sheets of T4, A100 80GB and H100 SXM; the last gives twice as many, with
# sparsity
CHIPS = {"T4": (16e9, 65e12), "A100": (80e9, 312e12), "H100": (80e9, 989e12)}
SHARE = 0.3  # of a chip's operations that training is taken to reach
# the attention of a CPU, which torch's counter does not know
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *others, **named: sdpa_flop_count(q, k, v)
    )
}
BLOCKS = (UNetBlock, ResBlock, SpatialAttention, ViTBlock)  # that may recompute


@dataclass(frozen=True)
class StageCost:
    """What a stage takes: numbers for its whole batch, memory in bytes of float32."""

    name: str
    parameters: int  # that are trained
    frozen: int  # parameters that stay, of this model and of other parts it holds
    batch_size: int
    steps: int
    flops: int  # of one step
    state: int  # weights, gradients, AdamW's means and the average
    clip: int  # activations that are kept for each clip
    recomputed: int  # or kept for each clip where blocks recompute theirs

    def memory(self, clips: int, recompute: bool = False) -> int:
        """Bytes with so many clips at a time on one device."""
        one = self.recomputed if recompute else self.clip
        return self.state + FLOAT * self.frozen + clips * one

    def days(self, operations: float) -> float:
        """Days at so many operations a second."""
        return self.steps * self.flops / operations / 86_400


def training(preset: str) -> list[StageCost]:
    """The cost of every stage of a preset of the released scale, but for the judge.

    Raises:
        ValueError: there is no such preset, or it is another kind of preset.
    """
    known = [name for name, run in RUNS.items() if run.encodes]
    if preset not in known:
        wanted = f"one of {', '.join(known)}"
        raise ValueError(f"preset must be {wanted} for --train, not {preset!r}")
    run = RUNS[preset]
    sizes = run.sizes or preset
    with FakeTensorMode(allow_non_fake_inputs=True):
        return [cost(name, run, sizes) for name in run.stages]


def cost(name: str, run: Run, sizes: str) -> StageCost:
    """The cost of one stage; needs fake tensors."""
    recipe = run.recipes[name]
    model, batch, frozen = EXAMPLES[name](run, sizes)
    every = sum(p.numel() for p in model.parameters())
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept, inputs = {}, {}
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with watched(model, kept, inputs), counter:
        model.loss(batch)
    flops = 3 * counter.get_total_flops()  # the backward pass takes twice the forward's
    outside = kept.pop("", 0)
    clip = outside + sum(kept.values())
    again = outside + sum(inputs.values()) + max(kept.values(), default=0)
    copies = STATES + (recipe.ema > 0)
    return StageCost(
        name=name,
        parameters=numbers,
        frozen=frozen + every - numbers,  # GPT-2's vocabulary is never read
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        flops=flops * recipe.batch_size,
        state=FLOAT * copies * numbers,
        clip=clip,
        recomputed=min(clip, again) if inputs else clip,
    )


@contextmanager
def watched(
    model: nn.Module, kept: dict[str, int], inputs: dict[str, int]
) -> Iterator[None]:
    """Count the bytes that the forward pass keeps for the backward: inside of each
    block, under its place, and outside of all under ""; and of the blocks' inputs.
    """
    seen = {x.untyped_storage()._cdata for x in model.parameters()}
    inside: list[str] = []
    handles = []

    def enter(place: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            if not inside:
                key = f"{place} {len(inputs)}"
                x = next(x for x in given if isinstance(x, Tensor))
                inputs[key] = x.numel() * x.element_size()
                inside.append(key)
            else:
                inside.append(inside[0])

        return hook

    def leave(*given: Any) -> None:
        inside.pop()

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            key = inside[0] if inside else ""
            kept[key] = kept.get(key, 0) + storage.nbytes()
        return x

    for place, block in model.named_modules():
        if isinstance(block, BLOCKS):
            handles.append(block.register_forward_pre_hook(enter(place)))
            handles.append(block.register_forward_hook(leave))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield
    for handle in handles:
        handle.remove()


# --------------------------------------------------------------------------------------
# A model, its batch of one clip, and the parameters of the frozen parts, of each stage

Example = tuple[nn.Module, dict[str, Tensor], int]


def sized(kind: type[Model], preset: str) -> Model:
    """A model of a preset, or of `full` where it has no other size."""
    return kind(kind.presets.get(preset, kind.presets["full"]))


def spectrogram(run: Run, n_mels: int = audio.N_MELS) -> Tensor:
    """The log-mel (1, 1, T, F) of a clip."""
    return torch.randn(1, 1, round(run.seconds * audio.SAMPLE_RATE / audio.HOP), n_mels)


def latent(run: Run, vae: VAE) -> Tensor:
    """A latent (1, C, T/r, F/r) of a clip."""
    mel, r = spectrogram(run), vae.config.reduction
    C = vae.config.latent_channels
    return torch.randn(1, C, mel.shape[2] // r, mel.shape[3] // r)


def n_parameters(*models: Model) -> int:
    """Parameters of several models."""
    return sum(model.n_parameters() for model in models)


def of_vae(run: Run, sizes: str) -> Example:
    """The VAE and its discriminator."""
    vae, judge = sized(VAE, sizes), sized(PatchDiscriminator, sizes)
    batch = {"mel": spectrogram(run), "eps": latent(run, vae)}
    return AdversarialVAE(vae, judge).train(), batch, 0


def piece(run: Run, name: str) -> dict[str, Tensor]:
    """A piece of a waveform and its log-mel."""
    frames = run.options[name]["crop"]
    wave = torch.randn(1, frames * audio.HOP)
    return {"wave": wave, "mel": torch.randn(1, 1, frames, audio.N_MELS)}


def of_vocoder(run: Run, sizes: str) -> Example:
    """The vocoder alone."""
    vocoder = sized(VOCODERS.get(sizes, VOCODERS["full"]), sizes)
    return vocoder, piece(run, "vocoder"), 0


def of_adversarial(run: Run, sizes: str) -> Example:
    """The vocoder and its discriminators."""
    vocoder, batch, _ = of_vocoder(run, sizes)
    return Adversarial(vocoder, sized(Discriminators, sizes)), batch, 0


def of_audiomae(run: Run, sizes: str) -> Example:
    """The masked autoencoder."""
    audiomae = sized(AudioMAE, sizes)
    noise = torch.rand(1, audiomae.config.grid[0] * audiomae.config.grid[1])
    batch = {"mel": spectrogram(run, audiomae.config.n_mels), "noise": noise}
    return audiomae, batch, 0


def read_by(gpt: LOARegressor) -> dict[str, Tensor]:
    """What GPT-2 reads and writes of a clip."""
    c = gpt.config
    lengths = {"clap": 1, "text": WORDS}
    told = {
        name: torch.randn(1, lengths[name], dim)
        for name, dim in zip(c.conditions, c.condition_dims)
    }
    told["text_mask"] = torch.ones(1, WORDS, dtype=torch.bool)
    return {**told, "loa": torch.randn(1, c.n_tokens, c.n_embd)}


def of_gpt(run: Run, sizes: str) -> Example:
    """GPT-2; beside it the encoders and AudioMAE, which are frozen."""
    gpt = sized(LOARegressor, sizes)
    batch = read_by(gpt)
    batch["keep"] = torch.zeros(1, gpt.config.n_tokens, dtype=torch.bool)
    return gpt, batch, encoders() + n_parameters(sized(AudioMAE, sizes))


def encoders() -> int:
    """Parameters of the frozen encoders: FLAN-T5-large and LAION's CLAP."""
    with torch.device("meta"):  # counted without taking their memory
        return n_parameters(sized(T5Encoder, "full")) + LAION_CLAP


def noisy(run: Run, vae: VAE, levels: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The latent of a clip and its noise."""
    z0 = latent(run, vae)
    shape = (1, *levels, *z0.shape[1:])
    t = torch.ones((1, *levels), dtype=torch.long)
    return {"z0": torch.randn(shape), "eps": torch.randn(shape), "t": t}


def of_ldm(run: Run, sizes: str) -> Example:
    """The U-Net that reads the most LOA, of lambda 1; frozen is all that makes its
    batches.
    """
    unet = sized(UNet, run.options.get("ldm", {}).get("unet", sizes))
    vae, audiomae, gpt = (sized(kind, sizes) for kind in (VAE, AudioMAE, LOARegressor))
    told = read_by(gpt)
    told["loa"] = torch.randn(1, audiomae.config.n_loa(1), gpt.config.n_embd)
    frozen = encoders() + n_parameters(vae, audiomae, gpt)
    return unet, {**noisy(run, vae), **told}, frozen


def of_joint(run: Run, sizes: str) -> Example:
    """GPT-2 and U-Net as one."""
    unet = sized(UNet, run.options.get("ldm", {}).get("unet", sizes))
    vae, audiomae, gpt = (sized(kind, sizes) for kind in (VAE, AudioMAE, LOARegressor))
    levels = run.options.get("joint", {}).get("levels", 1)
    batch = {**noisy(run, vae, (levels,)), **read_by(gpt)}
    batch["true_loa"] = torch.zeros(1, levels, dtype=torch.bool)
    return Joint(gpt, unet), batch, encoders() + n_parameters(vae, audiomae)


EXAMPLES: dict[str, Callable[[Run, str], Example]] = {
    "vae": of_vae,
    "vocoder": of_vocoder,
    "adversarial": of_adversarial,
    "audiomae": of_audiomae,
    "gpt": of_gpt,
    "ldm": of_ldm,
    "joint": of_joint,
}


# --------------------------------------------------------------------------------------
# As text


def report(rows: list[StageCost]) -> str:
    """A table of all stages: what one step takes, and how long all of them."""
    line = "{:12}{:>12}{:>7}{:>12}{:>10}{:>10}{:>10}{:>11}".format
    head = "stage", "trained", "batch", "steps", "state", "a clip", "again", "TFLOP"
    days = "".join(f"{f'days {chip}':>12}" for chip in CHIPS)
    lines = [line(*head) + days]
    totals = dict.fromkeys(CHIPS, 0.0)
    for row in rows:
        sizes = (gigabytes(x) for x in (row.state, row.clip, row.recomputed))
        numbers = f"{row.parameters:,}", row.batch_size, f"{row.steps:,}"
        text = line(row.name, *numbers, *sizes, f"{row.flops / 1e12:,.1f}")
        for chip, (_, operations) in CHIPS.items():
            taken = row.days(SHARE * operations)
            totals[chip] += taken
            text += f"{taken:12,.1f}"
        lines.append(text)
    total = "".join(f"{taken:12,.1f}" for taken in totals.values())
    peaks = ", ".join(f"{chip} {x / 1e12:.0f}" for chip, (_, x) in CHIPS.items())
    lines.append(f"{'total':84}" + total)
    fits = []
    for chip, (memory, _) in CHIPS.items():
        told = ", ".join(most_clips(row, memory) for row in rows)
        fits.append(f"  {chip}, {memory / 1e9:.0f} GB: {told}")
    lines += [
        "",
        "state: weights, gradients, AdamW's means and average in float32, in GB;",
        "a clip: activations kept for each clip in float32, in GB; again: where blocks",
        "recompute theirs (Recipe.recompute); TFLOP: of one step of the whole batch;",
        f"days: on one chip at {SHARE:.0%} of the TFLOPS in NVIDIA's data sheets, for",
        f"half precision without sparsity: {peaks} (SXM).",
        "Stages take longer in float32 (Recipe.precision), and T4 has no bfloat16.",
        "Steps and batches are the preset's. Without what encoders and frozen parts",
        "compute for each batch, and without what is computed again.",
        "",
        "clips at a time that fit beside state and frozen parts (+: recomputed):",
        *fits,
    ]
    return "\n".join(lines)


def most_clips(row: StageCost, memory: float) -> str:
    """The most clips, up to the batch, that fit at a time, in words."""
    left = memory - row.memory(0)
    both = (int(left // max(1, x)) for x in (row.clip, row.recomputed))
    n, more = (max(0, min(row.batch_size, fits)) for fits in both)
    return f"{row.name} {n}" + (f" (+ {more})" if more > n else "")


def gigabytes(n: int) -> str:
    """Bytes as gigabytes of 10^9."""
    return f"{n / 1e9:,.2f}"
