"""The checkpoint that the authors published: one `.pth` of all parts, under the names
of their own code.

Names only: which tensor of that file is which of diffusers' and transformers', as its
converter and the repository's state dicts tell. Configs and tokenizers are not in the
file; they come from a released folder. Chapter 18 builds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from minilib.convert.pretrained import State, read_bin
from minilib.unet import UNetConfig

# What the file also holds and no pipeline needs: the schedule's tables, the average of
# the weights, the loss of the autoencoder, AudioMAE, and what CLAP's front end
# computes.
UNNEEDED = re.compile(
    r"(model_ema|first_stage_model\.loss|cond_stage_models\.0\.cond_stage_models|clap\.mel_transform)\."
    r"|clap\.model\.((text|audio)_transform|audio_branch\.(spectrogram|logmel)_extractor|audio_branch\.(tscam_conv|head))\."
    r"|(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights|logvar)$"
    r"|.*(position_ids|token_type_ids|relative_position_index|num_batches_tracked|attn_mask)$"
)
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
HTSAT = {
    "attention.output.dense": "attn.proj",
    "attention.self": "attn",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "batch_norm": "bn0",
}


def read(path: Path) -> State:
    """All tensors of a published checkpoint, unpickled without running any code.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is damaged, holds code, or holds no checkpoint of AudioLDM 2.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    state = read_bin(path)
    state = state.get("state_dict", state)
    if not any(name.startswith("model.diffusion_model.") for name in state):
        raise ValueError(
            f"{path} is no checkpoint of AudioLDM 2: it holds no model.diffusion_model"
        )
    return state


def unet_name(config: UNetConfig, name: str) -> str:
    """The name in the file of a tensor of the U-Net: blocks are counted through, not
    level by level.
    """
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return f"model.diffusion_model.{theirs}.{name.removeprefix(f'{ours}.')}"
    n, n_transformers = config.layers_per_block, len(config.cross_attention_dim)
    half, rest = name.split(".", 1)
    level = 0
    if half != "mid_block":
        number, rest = rest.split(".", 1)
        level = int(number)
    kind, index, rest = rest.split(".", 2)
    i, layer = (
        int(index),
        int(index) // n_transformers if kind == "attentions" else int(index),
    )
    place = 0 if kind == "resnets" else 1 + i % n_transformers  # within the block
    if half == "mid_block":
        place = (1 + n_transformers) * i if kind == "resnets" else 1 + i
        block = f"middle_block.{place}"
    elif half == "down_blocks":
        block = f"input_blocks.{1 + level * (n + 1) + (n if kind == 'downsamplers' else layer)}.{place}"
    else:
        attended = config.attention[::-1][level]
        if kind == "upsamplers":
            layer, place = n, 1 + n_transformers * attended
        block = f"output_blocks.{level * (n + 1) + layer}.{place}"
    if kind == "downsamplers":
        block, rest = block.rsplit(".", 1)[0] + ".0", rest.replace("conv", "op", 1)
    if kind == "resnets":
        part, rest = rest.split(".", 1)
        rest = f"{RESNET[part]}.{rest}"
    return f"model.diffusion_model.{block}.{rest}"


def vae_name(n_levels: int, name: str) -> str:
    """The name in the file of a tensor of the VAE.

    The decoder's levels are counted from the finest.
    """
    name = name.replace("conv_norm_out", "norm_out").replace(
        "conv_shortcut", "nin_shortcut"
    )
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    finest_first = lambda match: (
        f"up.{n_levels - 1 - int(match[1])}.{'block' if match[2] == 'resnets' else 'upsample'}"
    )
    name = re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)", finest_first, name)
    name = re.sub(
        r"mid_block\.resnets\.(\d)",
        lambda match: f"mid.block_{int(match[1]) + 1}",
        name,
    )
    if "mid_block.attentions.0." in name:
        half, part = name.split(".mid_block.attentions.0.")
        part, end = part.rsplit(".", 1)
        name = f"{half}.mid.attn_1.{VAE_ATTENTION[part]}.{end}"
    return f"first_stage_model.{name}"


def vocoder_name(name: str) -> str:
    """The name in the file of a tensor of the vocoder."""
    return f"first_stage_model.vocoder.{name.replace('upsampler.', 'ups.')}"


def clap_name(name: str) -> str:
    """The name in the file of a tensor of transformers' ClapModel."""
    name = name.replace("_projection.linear1", "_projection.0").replace(
        "_projection.linear2", "_projection.2"
    )
    if name.startswith("audio_model.audio_encoder."):
        for theirs, original in HTSAT.items():
            name = name.replace(theirs, original)
    name = name.replace("audio_model.audio_encoder.", "audio_branch.").replace(
        "text_model.", "text_branch."
    )
    return f"clap.model.{name}"


def pick(
    state: State, names: Iterable[str], where: Callable[[str], str], used: set[str]
) -> State:
    """The tensors of one part under their new names; what is not there is left to the
    part to name.
    """
    found = {}
    for name in names:
        original = where(name)
        if original in state:
            found[name] = state[original]
            used.add(original)
    return found


def vae(state: State, names: Iterable[str], n_levels: int, used: set[str]) -> State:
    """The VAE's tensors; its attention is written as 1 x 1 convolutions there."""
    found = pick(state, names, lambda name: vae_name(n_levels, name), used)
    return {
        name: x.flatten(1) if ".attentions.0.to_" in name and x.ndim == 4 else x
        for name, x in found.items()
    }


def clap(state: State, names: Iterable[str], used: set[str]) -> State:
    """CLAP's tensors; query, key and value of the audio tower are one there."""
    found: State = {}
    for name in names:
        match = re.fullmatch(
            r"(audio_model\..*attention\.self\.)(query|key|value)\.(weight|bias)", name
        )
        original = clap_name(f"{match[1]}qkv.{match[3]}" if match else name)
        if original in state:
            used.add(original)
            x = state[original]
            found[name] = (
                x.chunk(3)[("query", "key", "value").index(match[2])] if match else x
            )
    return found


def projection(state: State, used: set[str]) -> State:
    """GPT-2's projections with their start and end vectors, which are rows of two
    tables there.
    """
    prefix, found = "cond_stage_models.0.", {}
    for i, suffix in enumerate(("", "_1")):
        for end in ("weight", "bias"):
            original = f"{prefix}input_sequence_embed_linear.{i}.{end}"
            if original in state:
                found[f"projection{suffix}.{end}"] = state[original]
                used.add(original)
        for short, long in (("sos", "start"), ("eos", "end")):
            # (32, D), of which two rows are used
            original = f"{prefix}{long}_of_sequence_tokens.weight"
            if original in state:
                found[f"{short}_embed{suffix}"] = state[original][i]
                used.add(original)
    return found


def prefixed(state: State, prefix: str, used: set[str]) -> State:
    """The tensors under a prefix, as they are."""
    found = {
        name.removeprefix(prefix): x
        for name, x in state.items()
        if name.startswith(prefix)
    }
    used.update(prefix + name for name in found)
    return found


def scaling_factor(state: State, used: set[str]) -> float | None:
    """What the latents are multiplied with, kept as a tensor there; None where the file
    does not say.
    """
    used.add("scale_factor")
    x = state.get("scale_factor")
    return float(x) if isinstance(x, Tensor) else None


def check_used(state: State, used: set[str], path: Path) -> None:
    """Raise ValueError for a tensor that is none of a pipeline's and none known to be
    unneeded.
    """
    left = [
        name
        for name in state
        if name not in used
        and not UNNEEDED.match(name)
        and torch.is_tensor(state[name])
    ]
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise ValueError(
            f"{path} holds {left[0]}{more}, which is no part of AudioLDM 2 as this "
            f"package knows it"
        )
