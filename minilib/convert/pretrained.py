"""Conversion of the released AudioLDM 2 in both directions: folders of diffusers and
transformers, model by model.

A released pipeline is a folder of modules, each with a `config.json` and weights. VAE,
U-Net, GPT-2 with its projections, T5 encoder, phoneme encoder and HiFi-GAN become
classes of this package, key by key, and can be converted back without a changed bit.
The table `PEERS` maps their classes to ours. Chapter 18 shows it at work.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilib.convert.configs import PEERS, read_sizes, refuse_other
from minilib.gpt import GPTConfig, LOARegressor
from minilib.model import (
    Model,
    as_dataclass,
    check_weights,
    read_json,
    read_weights,
    without_prefix,
)
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.unet import UNet, UNetConfig
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN

State = dict[str, Tensor]

# --------------------------------------------------------------------------------------
# Configs

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
DDIM_DEFAULTS = {  # of diffusers' DDIMScheduler, for fields that a file omits
    "beta_schedule": "linear", "clip_sample": True, "set_alpha_to_one": True,
    "steps_offset": 0, "prediction_type": "epsilon",
}  # fmt: skip


def read_schedule(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The noise levels in a scheduler's folder, as fields of a UNetConfig.

    The folder may hold another scheduler than DDIM, given by `kind` or by the file, if
    its noise levels are the same: sampling is set by `Sampling`, and a warning names
    the fields that are not read.
    """
    path, ddim = folder / "scheduler_config.json", "DDIMScheduler"
    config = read_json(path)
    kind = kind or config.get("_class_name", ddim)
    if kind != ddim:
        left = sorted(set(config) - PEERS[ddim].known)
        config = {k: x for k, x in config.items() if k not in (*left, "_class_name")}
        said = "this package samples with DDIM or DPM-Solver++, as set by `Sampling`"
        unread = f"; not read: {', '.join(left)}" if left else ""
        warnings.warn(f"{path} is for a {kind}, but {said}{unread}", stacklevel=2)
    sizes = read_sizes(ddim, path, DDIM_DEFAULTS, config)
    given = sizes["prediction"]
    if given not in PREDICTIONS:
        said = f"one of {', '.join(PREDICTIONS)} for minilib, not {given!r}"
        raise ValueError(f"{path}: prediction_type must be {said}")
    return {**sizes, "prediction": PREDICTIONS[given]}


def unet_config(
    folder: Path, schedule: Mapping[str, Any], head_width: int | None = None
) -> UNetConfig:
    """The config of a U-Net, as `read_unet`."""
    path = folder / "config.json"
    sizes, config = read_sizes("AudioLDM2UNet2DConditionModel", path), read_json(path)
    given, widths = config.get("cross_attention_dim"), sizes["block_out_channels"]
    dims = given if isinstance(given, list) else [given]
    if isinstance(dims[0], list):  # one list per level
        if any(level != dims[0] for level in dims):
            raise ValueError(
                f"{path}: cross_attention_dim must be the same at every level, not "
                f"{given}"
            )
        dims = dims[0]
    if head_width is not None:
        if head_width < 1 or any(width % head_width for width in widths):
            raise ValueError(f"head_width must divide {widths}, not {head_width}")
        sizes["n_head"] = [width // head_width for width in widths]
    attention = check_blocks(path, config, sizes)
    given = {"cross_attention_dim": dims, "cross_attention": conditions_of(dims)}
    return as_dataclass(
        UNetConfig, {**sizes, **schedule, **given, "attention": attention}
    )


def check_blocks(
    path: Path, config: Mapping[str, Any], sizes: Mapping[str, Any]
) -> list[bool]:
    """Which resolutions of a U-Net attend to the conditions; ValueError if its blocks
    are not those of the released U-Net.
    """
    down = config.get("down_block_types", ["DownBlock2D"])
    attention = ["CrossAttn" in name for name in down]
    ways = [("CrossAttn" if attended else "") for attended in attention]
    wanted = {
        "down_block_types": [f"{kind}DownBlock2D" for kind in ways],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(ways)],
        "out_channels": sizes["in_channels"],
    }
    refuse_other(path, config, wanted)
    if len(down) != len(sizes["block_out_channels"]):
        said = f"one for each of {sizes['block_out_channels']}, not {down}"
        raise ValueError(f"{path}: down_block_types must be {said}")
    for name in ("layers_per_block", "transformer_layers"):
        if not isinstance(sizes[name], int):
            said = f"one number for all levels, not {sizes[name]}"
            raise ValueError(f"{path}: {name} must be {said}")
    return attention


def conditions_of(dims: list[int | None]) -> tuple[str | None, ...]:
    """The condition that each entry of `cross_attention_dim` stands for in the released
    model. It depends on the position: the first two are for the LOA. None stands for
    the map itself.
    """
    names = ("loa" if i <= 1 else "text" for i in range(len(dims)))
    return tuple(None if dim is None else name for dim, name in zip(dims, names))


def gpt_config(
    language_model: Path, projection: Path, n_tokens: int | None = None
) -> GPTConfig:
    """The config of an LOA regressor, as `read_gpt`."""
    path, gpt_path = projection / "config.json", language_model / "config.json"
    theirs = read_json(path)
    widths = read_sizes("AudioLDM2ProjectionModel", path)
    sizes = read_sizes("GPT2Model", gpt_path)
    width, read = widths["n_embd"], sizes["n_embd"]
    if width != read:
        raise ValueError(f"{path} projects to width {width}, but GPT-2 reads {read}")
    learned = theirs.get("use_learned_position_embedding")
    return GPTConfig(
        **sizes,
        condition_dims=(widths["first"], widths["second"]),
        n_tokens=n_tokens or read_json(gpt_path).get("max_new_tokens", 8),
        learned_positions=theirs["max_seq_length"] if learned is not None else 0,
    )


# --------------------------------------------------------------------------------------
# Weights

STEMS = (  # of file names of diffusers and transformers, in the order of the search
    ("diffusion_pytorch_model", "safetensors"), ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"), ("pytorch_model", "bin"),
)  # fmt: skip


def read_state(folder: Path) -> State:
    """All tensors in a module's folder: safetensors in one or several files, or a
    `.bin` without pickled code; a variant (`model.fp16.safetensors`) if it is the only
    one.

    Raises:
        FileNotFoundError: there are no weights, or some of them are missing.
        ValueError: a file is damaged, or could be read only by running code in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the pipeline is incomplete")
    state: State = {}
    for path in weight_files(folder):
        state |= read_bin(path) if path.suffix == ".bin" else read_weights(path)
    return without_prefix(state)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a module's tensors: one, or those that an index names, or
    those of a variant if there are no others.
    """
    for stem, suffix in STEMS:
        if (index := folder / f"{stem}.{suffix}.index.json").is_file():
            return shards(index)
        if (path := folder / f"{stem}.{suffix}").is_file():
            return [path]
    for stem, suffix in STEMS:
        found = [shards(x) for x in folder.glob(f"{stem}.{suffix}.index.*.json")]
        single = folder.glob(f"{stem}.*.{suffix}")
        found += [[path] for path in single if "-of-" not in path.name]
        if len(found) > 1:
            names = " and ".join(sorted(files[0].name for files in found))
            raise ValueError(f"{folder} holds {names}: keep only one variant")
        if found:
            return found[0]
    lost = sorted(path.name for path in folder.glob("*-of-*"))
    said = f"no index beside {lost[0]}" if lost else "no weights"
    raise FileNotFoundError(f"{folder} holds {said}: the pipeline is incomplete")


def shards(index: Path) -> list[Path]:
    """The files that are listed in the index of a model in several files."""
    files = read_json(index).get("weight_map")
    names = set(map(str, files.values())) if isinstance(files, dict) else ()
    if not names:
        raise ValueError(f"{index} is damaged: it must hold a `weight_map`")
    return [index.parent / name for name in sorted(names)]


def read_bin(path: Path) -> State:
    """The tensors in a file written by `torch.save`, unpickled without running code."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the weights are incomplete")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors: reading it would run its code"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or incomplete") from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} does not hold tensors by name, but a {type(state).__name__}"
        )
    return state


def under(prefix: str, state: State) -> State:
    """The tensors whose names have a prefix, with it removed."""
    return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}


def fill(model: Model, state: State, folder: Path, dtype: torch.dtype | None) -> Model:
    """Put weights into a model on the meta device, all of them or none."""
    check_weights(model, state, folder)
    model.load_state_dict(state, assign=True)
    return (model if dtype is None else model.to(dtype)).eval()


def made(model_class: type[Model], config: Any) -> Model:
    """A model whose tensors have shapes but no memory."""
    with torch.device("meta"):
        return model_class(config)


def gpt_in(projection: State, language_model: State) -> State:
    """The tensors of the LOA regressor from those of its projections and of GPT-2,
    without prefix, vocabulary head and stored masks; linear layers are transposed.
    """
    bare = {k.removeprefix("transformer."): x for k, x in language_model.items()}
    unread = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")
    gpt2 = {k: turned(k, x) for k, x in bare.items() if not k.endswith(unread)}
    named = {"projection": projection, "gpt2": gpt2}
    return {f"{part}.{k}": x for part, state in named.items() for k, x in state.items()}


def turned(name: str, x: Tensor) -> Tensor:
    """A tensor of GPT-2, transposed if it is the weight of a linear layer, since
    transformers stores these transposed.
    """
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return x.T.contiguous() if name.endswith(linear) else x


def t5_in(state: State) -> State:
    """T5's tensors without its decoder, and without the second name that its token
    embedding may have.
    """
    unread = ("decoder.", "lm_head.")
    state = {k: x for k, x in state.items() if not k.startswith(unread)}
    table = state.pop("encoder.embed_tokens.weight", None)
    return state if table is None else {"shared.weight": table, **state}


STATES: dict[str, Callable[[State], State]] = {  # classes whose tensors need changes
    "T5EncoderModel": t5_in,
    # the rest of VITS is not read
    "VitsModel": lambda state: under("text_encoder.", state),
}

# --------------------------------------------------------------------------------------
# Model by model: reading


def untrained(kind: str, folder: Path, **changes: Any) -> Model:
    """Our model, without memory, for the config of their class in a folder."""
    ours, path = PEERS[kind].ours, folder / "config.json"
    sizes = {**read_sizes(kind, path), **changes}
    if kind == "AutoencoderKL":
        levels, C = len(sizes["block_out_channels"]), sizes["in_channels"]
        refuse_other(path, read_json(path), vae_shape(levels, C))
    return made(ours, as_dataclass(ours.config_class, sizes))


def read(kind: str, folder: Path, dtype: torch.dtype | None = None) -> Model:
    """Our model from the folder of one of their classes: AutoencoderKL, T5EncoderModel,
    VitsModel or SpeechT5HifiGan.
    """
    state = STATES.get(kind, dict)(read_state(folder))
    return fill(untrained(kind, folder), state, folder, dtype)


def read_unet(
    folder: Path,
    schedule: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    head_width: int | None = None,
) -> UNet:
    """The U-Net from an AudioLDM2UNet2DConditionModel's folder, for the noise levels of
    `read_schedule`.

    Its config has 8 heads at every level, as diffusers runs it; the weights were
    trained with `head_width` 32.
    """
    unet = made(UNet, unet_config(folder, schedule, head_width))
    return fill(unet, read_state(folder), folder, dtype)


def read_gpt(
    language_model: Path,
    projection: Path,
    n_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> LOARegressor:
    """The LOA regressor from the folders of a GPT2Model (or GPT2LMHeadModel) and its
    projections.

    `n_tokens` is the number of LOA vectors; None for the config's `max_new_tokens`, or
    8.
    """
    gpt = made(LOARegressor, gpt_config(language_model, projection, n_tokens))
    state = gpt_in(read_state(projection), read_state(language_model))
    return fill(gpt, state, language_model, dtype)


# --------------------------------------------------------------------------------------
# Model by model: writing


def check_out(what: str, config: Any, **needed: Any) -> None:
    """Raise ValueError for a setting that diffusers' counterpart lacks."""
    for name, value in needed.items():
        if (given := getattr(config, name)) != value:
            said = f"has no counterpart in diffusers: train one with {name}={value!r}"
            raise ValueError(f"{what} with {name}={given!r} {said}")


def filled(model_class: type, settings: Mapping[str, Any], state: State) -> nn.Module:
    """One of their modules with our weights, none missing and none left over."""
    model = model_class(**settings)
    model.load_state_dict(state)
    dtype = next(x.dtype for x in state.values() if x.is_floating_point())
    return model.to(dtype).eval()


def vae_shape(levels: int, channels: int) -> dict[str, Any]:
    """The fields of an AutoencoderKL's config, other than sizes, for these levels."""
    return {
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def vae_out(vae: VAE) -> nn.Module:
    """The VAE as an AutoencoderKL."""
    from diffusers import AutoencoderKL

    check_out("a VAE", vae.config, final_norm=True)
    levels = len(vae.config.block_out_channels)
    shape = vae_shape(levels, vae.config.in_channels)
    settings = PEERS["AutoencoderKL"].write(vae.config, **shape)
    return filled(AutoencoderKL, settings, vae.state_dict())


def unet_out(unet: UNet, sample_size: int | None = None) -> nn.Module:
    """The U-Net as an AudioLDM2UNet2DConditionModel, for latents of `sample_size`
    frames by default.
    """
    from diffusers import AudioLDM2UNet2DConditionModel

    config, dims = unet.config, unet.config.cross_attention_dim
    routes = {"cross_attention": conditions_of(dims)}
    check_out("a U-Net", config, loa_channels=0, patch=1, **routes)
    blocks = [("CrossAttn" if attended else "") for attended in config.attention]
    settings = PEERS["AudioLDM2UNet2DConditionModel"].write(
        config,
        sample_size=sample_size,
        out_channels=config.in_channels,
        down_block_types=[f"{kind}DownBlock2D" for kind in blocks],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(blocks)],
        cross_attention_dim=[list(dims)] * len(config.block_out_channels),
    )
    return filled(AudioLDM2UNet2DConditionModel, settings, unet.state_dict())


def scheduler_out(unet: UNet) -> Any:
    """The U-Net's noise levels as a DDIMScheduler like the released one."""
    from diffusers import DDIMScheduler

    theirs = {ours: name for name, ours in PREDICTIONS.items()}[unet.config.prediction]
    peer = PEERS["DDIMScheduler"]
    return DDIMScheduler(**peer.write(unet.config, prediction_type=theirs))


def gpt_out(gpt: LOARegressor) -> tuple[nn.Module, nn.Module]:
    """The LOA regressor as an AudioLDM2ProjectionModel and a GPT2LMHeadModel, the class
    that diffusers needs; its head is the token embedding itself.
    """
    from diffusers import AudioLDM2ProjectionModel
    from transformers import GPT2Config, GPT2LMHeadModel

    config, state = gpt.config, gpt.state_dict()
    check_out("an LOA regressor", config, conditions=("clap", "text"))
    first, second = config.condition_dims
    widths = {"text_encoder_dim": first, "text_encoder_1_dim": second}
    settings = {**widths, "langauge_model_dim": config.n_embd}
    if config.learned_positions:
        settings["use_learned_position_embedding"] = True
        settings["max_seq_length"] = config.learned_positions
    sizes = PEERS["GPT2Model"].write(config, max_new_tokens=config.n_tokens)
    gpt2 = {f"transformer.{k}": turned(k, x) for k, x in under("gpt2.", state).items()}
    gpt2["lm_head.weight"] = state["gpt2.wte.weight"]
    return (
        filled(AudioLDM2ProjectionModel, settings, under("projection.", state)),
        filled(GPT2LMHeadModel, {"config": GPT2Config(**sizes)}, gpt2),
    )


def t5_out(text: T5Encoder) -> nn.Module:
    """The T5 encoder as a T5EncoderModel."""
    from transformers import T5Config, T5EncoderModel

    state = text.state_dict()
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    config = T5Config(**PEERS["T5EncoderModel"].write(text.config))
    return filled(T5EncoderModel, {"config": config}, state)


def phonemes_out(phonemes: PhonemeEncoder) -> nn.Module:
    """The phoneme encoder in a VitsModel; the rest of VITS, which is never read, is
    small and untrained.
    """
    from transformers import VitsConfig, VitsModel

    once = "prior_encoder_num_flows prior_encoder_num_wavenet_layers "
    once += "posterior_encoder_num_wavenet_layers duration_predictor_num_flows "
    once += "depth_separable_num_layers"
    unread = {
        "spectrogram_bins": 3, "upsample_initial_channel": 4, "upsample_rates": [2],
        "upsample_kernel_sizes": [4], "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]], **dict.fromkeys(once.split(), 1),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        config = PEERS["VitsModel"].write(phonemes.config, **unread)
        model = VitsModel(VitsConfig(**config))
    model.text_encoder.load_state_dict(phonemes.state_dict())
    return model.to(phonemes.embed_tokens.weight.dtype).eval()


def vocoder_out(vocoder: HiFiGAN) -> nn.Module:
    """HiFi-GAN as a SpeechT5HifiGan."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    settings = PEERS["SpeechT5HifiGan"].write(vocoder.config)
    # tuples become lists, which the class requires
    config = SpeechT5HifiGanConfig(**json.loads(json.dumps(settings)))
    return filled(SpeechT5HifiGan, {"config": config}, vocoder.state_dict())
