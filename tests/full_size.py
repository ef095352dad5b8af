"""One true training step of stages at the released size, on the CPU: losses finite, and
the peak of memory. `python tests/full_size.py [--preset full] [STAGE ...]` runs each
stage in a process of its own, one clip of 10.24 s at a time; no test needs it.

Weights and encoders are random, for want of a network; sizes, data, loss and optimizer
are the preset's.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace

import torch

from minilib.audiomae import AudioMAE
from minilib.clap import CLAP
from minilib.convert.released import ReleasedCLAP
from minilib.data import Corpus
from minilib.gpt import LOARegressor
from minilib.model import Model
from minilib.soundworld import SoundWorld
from minilib.text import T5, T5Encoder
from minilib.tokenizer import Tokenizer
from minilib.training import RUNS, TrainingData
from minilib.training.costs import LAION_CLAP
from minilib.training.loop import Loop
from minilib.training.stages import seeded
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import VOCODERS

LIMIT = 20.0  # GiB


def clap_of_laion() -> ReleasedCLAP:
    """LAION's CLAP as AudioLDM 2 uses it: RoBERTa-base and HTSAT-base, random."""
    from transformers import ClapConfig, ClapModel

    heard = {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2]}
    heard |= {"hidden_size": 1024, "num_attention_heads": [4, 8, 16, 32]}
    config = ClapConfig(audio_config=heard, projection_dim=512)
    clap = ReleasedCLAP(ClapModel(config), None)
    n = sum(p.numel() for p in clap.parameters())
    assert n == LAION_CLAP, (
        f"the released CLAP has {LAION_CLAP:,} parameters, not {n:,}"
    )
    return clap


def part(name: str, preset: str, unet: str) -> torch.nn.Module:
    """A part of the preset's size, with random weights."""
    frozen = RUNS[preset].encodes
    sizes = RUNS[preset].sizes or preset
    kinds: dict[str, type[Model]] = {
        "vae": VAE, "audiomae": AudioMAE, "gpt": LOARegressor, "unet": UNet,
        "vocoder": VOCODERS[sizes],
    }  # fmt: skip
    if name == "clap":
        return clap_of_laion() if frozen else seeded(CLAP, sizes, 1)
    if name == "text":
        kind = T5Encoder if frozen else T5
        text = seeded(kind, sizes, 1)
        return text if frozen else text.text_encoder()
    return seeded(kinds[name], unet if name == "unet" else sizes, 1)


def step(preset: str, name: str, batch_size: int, recompute: bool) -> bool:
    """Take one step of a stage, print what it took, and return whether all is well."""
    run = RUNS[preset]
    world = SoundWorld("train", 0, run.seconds)
    corpus = Corpus.from_soundworld(world, max(2, batch_size), progress=False)
    data = TrainingData(corpus, Tokenizer.train(corpus.captions), progress=False)
    options = dict(run.options.get(name, {}))
    unet = run.options.get("ldm", {}).get("unet", run.sizes or preset)
    kind = run.kind(name)
    parts = {x: part(x, preset, unet).eval() for x in (*kind.needs, *kind.renews)
             if x != "loudness"}  # fmt: skip
    for encoder in ("clap", "text"):
        if encoder in parts:
            parts[encoder].tokenizer = data.tokenizer
    recipe = run.recipes[name]
    recipe = replace(recipe, batch_size=batch_size, accumulate=1, recompute=recompute)
    stage = kind(run.sizes or preset, recipe, data, parts, **options)
    loop, began = Loop(stage.model, stage.batch, recipe, 0, name), time.monotonic()
    losses = loop.step()  # raises FloatingPointError if the loss is not finite
    seconds = time.monotonic() - began
    finite = all(p.isfinite().all() for p in loop.learned.values())
    n = sum(p.numel() for p in loop.learned.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    told = "  ".join(f"{key} {value:.4g}" for key, value in losses.items())
    how = ", recomputed" if recompute else ""
    print(f"{preset} {name}: {n:,} parameters, batch {batch_size}{how}: {told}")
    print(f"  peak {peak:.2f} GiB, one step in {seconds:.0f} s", flush=True)
    return finite and peak <= LIMIT


def main() -> int:
    """Run the stages that the command line names, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--preset", default="full", choices=RUNS)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    names = args.stages or ["vae", "audiomae", "gpt", "ldm", "joint"]
    if args.here:
        taken = [step(args.preset, x, args.batch_size, args.recompute) for x in names]
        return 0 if all(taken) else 1
    given = ["--here", "--preset", args.preset, "--batch-size", str(args.batch_size)]
    given += ["--recompute"] if args.recompute else []
    codes = [subprocess.run([sys.executable, __file__, x, *given]).returncode
             for x in names]  # fmt: skip
    return 1 if any(codes) else 0  # a killed process has a negative one


if __name__ == "__main__":
    raise SystemExit(main())
