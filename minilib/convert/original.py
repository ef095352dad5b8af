"""The checkpoint that the authors published: one `.pth` with all parts, under the names
of their own code.

This module holds names only: it maps each tensor in that file to its name in diffusers
or transformers, as found in diffusers' converter and the repository's state dicts.
Configs and tokenizers are not in the file; they come from a released folder. Chapter 18
shows it at work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minilib.convert.configs import pairs
from minilib.convert.pretrained import State, gpt_in, read_bin, t5_in, under
from minilib.model import Model, without_prefix
from minilib.unet import UNetConfig

# Tensors in the file that no pipeline needs: the schedule's tables, the average of the
# weights, the loss of the autoencoder, AudioMAE, and constants of CLAP's front end.
UNNEEDED = re.compile(
    r"(model_ema|first_stage_model\.loss|cond_stage_models\.0\.cond_stage_models"
    r"|clap\.mel_transform|clap\.model\.((text|audio)_transform|audio_branch\."
    r"(spectrogram_extractor|logmel_extractor|tscam_conv|head)))\."
    r"|(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights"
    r"|logvar)$"
    r"|.*(position_ids|token_type_ids|relative_position_index|num_batches_tracked"
    r"|attn_mask)$"
)
UNET_ENDS = pairs(
    "time_embedding.linear_1=time_embed.0 time_embedding.linear_2=time_embed.2 "
    "conv_in=input_blocks.0.0 conv_norm_out=out.0 conv_out=out.2"
)
UNET = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.?(\d*)\."
    r"(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)"
)
RESNET = pairs(
    "norm1=in_layers.0 conv1=in_layers.2 time_emb_proj=emb_layers.1 "
    "norm2=out_layers.0 conv2=out_layers.3 conv_shortcut=skip_connection"
)
VAE = pairs(
    "conv_norm_out=norm_out conv_shortcut=nin_shortcut "
    "mid_block.resnets.0=mid.block_1 mid_block.resnets.1=mid.block_2 "
    "mid_block.attentions.0=mid.attn_1 group_norm=norm to_q=q to_k=k to_v=v "
    "to_out.0=proj_out down_blocks=down up_blocks=up resnets=block "
    "downsamplers.0=downsample upsamplers.0=upsample"
)
CLAP = pairs(
    "_projection.linear1=_projection.0 _projection.linear2=_projection.2 "
    "text_model.=text_branch."
)
HTSAT = pairs(  # CLAP's audio tower
    "audio_model.audio_encoder.=audio_branch. attention.output.dense=attn.proj "
    "attention.self=attn intermediate.dense=mlp.fc1 output.dense=mlp.fc2 "
    "layernorm_before=norm1 layernorm_after=norm2 batch_norm=bn0"
)


class Checkpoint:
    """The tensors of a published file, and a record of which have been taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, contains code, or is not a checkpoint of AudioLDM 2.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        state = read_bin(path)
        self.path, self.state = path, without_prefix(state.get("state_dict", state))
        self.taken: set[str] = set()
        if not under("model.diffusion_model.", self.state):
            said = "it holds no model.diffusion_model"
            raise ValueError(f"{path} is not a checkpoint of AudioLDM 2: {said}")

    def take(self, names: Mapping[str, str]) -> State:
        """Tensors by our names, from their names in the file; missing ones are left
        out, and the part will report them.
        """
        self.taken.update(names.values())
        return {k: self.state[x] for k, x in names.items() if x in self.state}

    def take_all(self, prefix: str) -> State:
        """The tensors under a prefix, unchanged."""
        return self.take({name: prefix + name for name in under(prefix, self.state)})

    def check_taken(self) -> None:
        """Raise ValueError for a tensor that neither belongs to a pipeline nor is known
        to be unneeded.
        """
        tensors = [name for name, x in self.state.items() if torch.is_tensor(x)]
        unread = [name for name in tensors if name not in self.taken]
        left = [name for name in unread if not UNNEEDED.match(name)]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            said = "which is not part of AudioLDM 2 as this package knows it"
            raise ValueError(f"{self.path} holds {left[0]}{more}, {said}")


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A name with all pieces that the table lists replaced, in the table's order."""
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def unet_name(config: UNetConfig, name: str) -> str:
    """The name in the file of a tensor of the U-Net. There, blocks are numbered
    consecutively, not level by level, and so are the contents of a block: residual
    block, transformers, change of resolution.
    """
    match = UNET.fullmatch(name)
    if match is None:
        ours, end = name.rsplit(".", 1)
        return f"model.diffusion_model.{UNET_ENDS[ours]}.{end}"
    half, level, kind, index, rest = match.groups()
    level, i = int(level or 0), int(index)
    n, n_transformers = config.layers_per_block, len(config.cross_attention_dim)
    if kind == "resnets":
        part, end = rest.split(".", 1)
        layer, place, rest = i, 0, f"{RESNET[part]}.{end}"
    elif kind == "attentions":
        layer, place = i // n_transformers, 1 + i % n_transformers
    elif kind == "downsamplers":
        layer, place, rest = n, 0, rest.replace("conv", "op", 1)
    else:
        layer, place = n, 1 + n_transformers * config.attention[::-1][level]
    block = level * (n + 1) + layer  # the file's first block is conv_in
    blocks = {
        "down_blocks": f"input_blocks.{1 + block}.{place}",
        "mid_block": f"middle_block.{place + (1 + n_transformers) * layer}",
        "up_blocks": f"output_blocks.{block}.{place}",
    }
    return f"model.diffusion_model.{blocks[half]}.{rest}"


def unet(file: Checkpoint, ours: Model) -> State:
    """The U-Net's tensors."""
    return file.take({name: unet_name(ours.config, name) for name in ours.state_dict()})


def vae(file: Checkpoint, ours: Model) -> State:
    """The VAE's tensors. In the file, the decoder's levels are numbered from the
    finest, and its attention layers are 1 x 1 convolutions.
    """
    last = len(ours.config.block_out_channels) - 1
    finest_first = lambda match: f"up_blocks.{last - int(match[1])}"
    names = {}
    for name in ours.state_dict():
        theirs = renamed(re.sub(r"up_blocks\.(\d+)", finest_first, name), VAE)
        names[name] = f"first_stage_model.{theirs}"
    return {
        name: x.flatten(1) if ".attentions.0.to_" in name and x.ndim == 4 else x
        for name, x in file.take(names).items()
    }


def vocoder(file: Checkpoint, ours: Model) -> State:
    """The vocoder's tensors, and two that diffusers stores but never reads."""
    prefix, n = "first_stage_model.vocoder.", ours.config.model_in_dim
    names = {x: prefix + x.replace("upsampler.", "ups.") for x in ours.state_dict()}
    return {"mean": torch.zeros(n), "scale": torch.ones(n), **file.take(names)}


def clap(file: Checkpoint, names: Iterable[str]) -> State:
    """CLAP's tensors by transformers' names; in the file, query, key and value of the
    audio tower are one tensor.
    """
    qkv, theirs = re.compile(r"(attention\.self\.)(query|key|value)"), {}
    for name in names:
        in_tower = name.startswith("audio_model.")
        original = qkv.sub(r"\1qkv", name) if in_tower else name
        table = {**HTSAT, **CLAP} if in_tower else CLAP
        theirs[name] = f"clap.model.{renamed(original, table)}"
    found = file.take(theirs)
    for name in found:
        if ".attn.qkv." in theirs[name]:
            third = ("query", "key", "value").index(name.split(".")[-2])
            found[name] = found[name].chunk(3)[third]
    return found


def projection(file: Checkpoint) -> State:
    """GPT-2's projections with their start and end vectors, which in the file are rows
    of two tables.
    """
    prefix, found = "cond_stage_models.0.", {}
    for i, suffix in enumerate(("", "_1")):
        linear, ends = f"{prefix}input_sequence_embed_linear.{i}", ("weight", "bias")
        found |= file.take({f"projection{suffix}.{x}": f"{linear}.{x}" for x in ends})
        tables = file.take(  # (32, D); two rows are used
            {
                f"sos_embed{suffix}": f"{prefix}start_of_sequence_tokens.weight",
                f"eos_embed{suffix}": f"{prefix}end_of_sequence_tokens.weight",
            }
        )
        found |= {name: table[i] for name, table in tables.items()}
    return found


def scaling_factor(file: Checkpoint) -> float | None:
    """The factor by which latents are multiplied, a tensor in the file; None if it is
    missing.
    """
    x = file.take({"scale": "scale_factor"}).get("scale")
    return float(x) if isinstance(x, Tensor) else None


def states(file: Checkpoint, models: Mapping[str, Model]) -> dict[str, State]:
    """The tensors of each part except CLAP, by our names."""
    gpt2 = file.take_all("cond_stage_models.0.model.")
    return {
        "vae": vae(file, models["vae"]),
        "unet": unet(file, models["unet"]),
        "vocoder": vocoder(file, models["vocoder"]),
        "gpt": gpt_in(projection(file), gpt2),
        "text": t5_in(file.take_all("cond_stage_models.1.model.")),
    }
