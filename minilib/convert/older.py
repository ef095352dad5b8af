"""Updates for folders that this package wrote before December 2026, applied as they are
read; to be deleted when no such folder is left.

In those folders the VAE packs the latents that the U-Net now patches, the position of
each of the U-Net's transformers says what it reads, GPT-2 contains the present part
`loudness`, and AudioMAE has statistics for one lambda only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib.convert.pretrained import conditions_of
from minilib.gpt import Loudness, LoudnessConfig
from minilib.model import read_json, read_weights

GONE = {"vae": ("pack", "faint_weight"), "gpt": ("level",)}
LEVEL = "level_"


def config(name: str, given: dict[str, Any], vae: Path) -> dict[str, Any]:
    """The config of a part as it would be saved now; `vae` is the VAE's config file."""
    found = {k: x for k, x in given.items() if k not in GONE.get(name, ())}
    if name == "unet" and "patch" not in given and "in_channels" in given:
        places = (vae, vae.parents[2] / "vae" / vae.name)  # for a part in `separate`
        pack = next((read_json(x).get("pack", 1) for x in places if x.is_file()), 1)
        found |= {"patch": pack, "in_channels": given["in_channels"] // pack**2}
        dims = given.get("cross_attention_dim", (None, 768, 1024))
        found.setdefault("cross_attention", list(conditions_of(dims)))
    if name == "audiomae" and "pool" in given:
        found.setdefault("pools", [given["pool"]])
    return found


def state(name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part as they would be saved now."""
    found = {k: x for k, x in given.items() if name != "gpt" or LEVEL not in k}
    for k in ("loa_mean", "loa_std") if name == "audiomae" else ():
        if k in found and found[k].ndim == 1:
            found[k] = found[k][None]
    return found


def loudness(gpt: Path, dtype: torch.dtype | None) -> Loudness | None:
    """The part `loudness` from the folder of a GPT-2 that holds it, or None."""
    given = read_json(gpt / "config.json")
    if not given.get("level"):
        return None
    tensors = read_weights(gpt / "model.safetensors")
    found = {k.removeprefix(LEVEL): x for k, x in tensors.items() if LEVEL in k}
    if "range" in found and not found["range"][0] < found["range"][1]:
        return None  # it was never fitted
    sizes = {name: given[name] for name in ("n_tokens", "n_embd")}
    return Loudness.filled(LoudnessConfig(**sizes), found, gpt, dtype)


def description(given: dict[str, Any]) -> dict[str, Any]:
    """The contents of `pipeline.json`, without a setting that was removed unused."""
    return {k: x for k, x in given.items() if (k, x) != ("rescale", 0.0)}
