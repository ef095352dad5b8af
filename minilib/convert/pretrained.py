"""The released AudioLDM 2 in and out: folders of diffusers and transformers, model by
model.

A released pipeline is a folder of modules, each a `config.json` and its weights. VAE,
U-Net, GPT-2 with its projections, T5 encoder, phoneme encoder and HiFi-GAN become the
classes of this package, key by key, and go back without a bit changed. Which class of
theirs is which of ours stands in a table, `PEERS`. Chapter 18 shows it at work.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minilib.gpt import GPTConfig, LOARegressor
from minilib.model import Model, as_dataclass, check_weights, read_json, read_weights
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.unet import UNet, UNetConfig
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN

State = dict[str, Tensor]

# --------------------------------------------------------------------------------------
# Configs


def pairs(names: str) -> dict[str, str]:
    """A dictionary written as `one=other`, or as one name where both are the same."""
    found = (name.partition("=") for name in names.split())
    return {one: other or one for one, _, other in found}


@dataclass(frozen=True)
class Peer:
    """A class of diffusers or transformers, and what its config says in our words."""

    ours: type[Model] | None  # None where it is a part of one, or no network
    names: str  # of their fields and ours, as `pairs` reads them
    # their settings that our class knows only one way of
    built_in: Mapping[str, Any]
    # the class of transformers that knows what a file leaves out, if there is one
    defaults: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """Our name of each of their fields."""
        return pairs(self.names)

    def write(self, config: Any, **others: Any) -> dict[str, Any]:
        """Their config from ours, `others` being what is not among the names."""
        own = {theirs: getattr(config, ours) for theirs, ours in self.fields.items()}
        return {**self.built_in, **own, **others}


PEERS = {
    "AutoencoderKL": Peer(
        VAE,
        "in_channels latent_channels block_out_channels layers_per_block "
        "norm_num_groups scaling_factor",
        {
            "act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True,
            "use_post_quant_conv": True, "shift_factor": None,
        },
    ),
    "AudioLDM2UNet2DConditionModel": Peer(
        UNet,
        # diffusers' attention_head_dim is an old mistake: it counts heads
        "in_channels block_out_channels layers_per_block norm_num_groups "
        "transformer_layers_per_block=transformer_layers attention_head_dim=n_head",
        {
            "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0,
            "use_linear_projection": False, "only_cross_attention": False,
            "downsample_padding": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
            "class_embed_type": None, "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional", "conv_in_kernel": 3,
            "conv_out_kernel": 3,
        },
    ),
    "GPT2Model": Peer(
        None,
        "n_embd n_layer n_head n_positions vocab_size layer_norm_epsilon",
        {
            "activation_function": "gelu_new", "n_inner": None,
            "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        "GPT2Config",
    ),
    "AudioLDM2ProjectionModel": Peer(
        None,  # the spelling of the third is theirs
        "text_encoder_dim=first text_encoder_1_dim=second langauge_model_dim=n_embd",
        {},
    ),
    "T5EncoderModel": Peer(
        T5Encoder,
        "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads "
        "relative_attention_num_buckets relative_attention_max_distance "
        "layer_norm_epsilon",
        {"feed_forward_proj": "gated-gelu"},
        "T5Config",
    ),
    "VitsModel": Peer(
        PhonemeEncoder,
        "vocab_size hidden_size num_hidden_layers=num_layers "
        "num_attention_heads=num_heads ffn_dim ffn_kernel_size window_size flow_size "
        "layer_norm_eps",
        {"hidden_act": "relu", "use_bias": True},
        "VitsConfig",
    ),
    "SpeechT5HifiGan": Peer(
        HiFiGAN,
        "model_in_dim upsample_initial_channel upsample_rates upsample_kernel_sizes "
        "resblock_kernel_sizes resblock_dilation_sizes leaky_relu_slope",
        {"normalize_before": False, "sampling_rate": 16000},
        "SpeechT5HifiGanConfig",
    ),
    "DDIMScheduler": Peer(
        None,
        "num_train_timesteps=n_steps beta_start=beta_1 beta_end=beta_T "
        "prediction_type=prediction",
        {
            "beta_schedule": "scaled_linear", "trained_betas": None,
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
            "timestep_spacing": "leading",
        },
    ),
}  # fmt: skip
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
DDIM_DEFAULTS = {  # of diffusers' DDIMScheduler: what a file means that does not say
    "beta_schedule": "linear", "clip_sample": True, "set_alpha_to_one": True,
    "steps_offset": 0, "prediction_type": "epsilon",
}  # fmt: skip


def read_sizes(
    kind: str, path: Path, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Our config fields from a config file of a class of theirs.

    Raises:
        ValueError: it is another class's, or has a setting that our class lacks.
    """
    peer, config = PEERS[kind], {**(defaults or {}), **read_json(path)}
    if peer.defaults:  # transformers leaves out what equals its defaults
        import transformers

        theirs = getattr(transformers, peer.defaults)().to_dict()
        if config.get("model_type") != theirs["model_type"]:
            raise ValueError(f"{path} is not the config of a {kind}")
        config = {**theirs, **config}
    for name, value in peer.built_in.items():
        if name in config and config[name] != value:
            raise ValueError(
                f"{path}: {name} must be {value!r} for minilib, not {config[name]!r}"
            )
    missing = [name for name in peer.fields if name not in config]
    if missing:
        raise ValueError(f"{path} is not the config of a {kind}: it lacks {missing[0]}")
    return {ours: config[theirs] for theirs, ours in peer.fields.items()}


def read_schedule(folder: Path) -> dict[str, Any]:
    """The noise levels that a scheduler's folder names, as fields of a UNetConfig."""
    path = folder / "scheduler_config.json"
    sizes = read_sizes("DDIMScheduler", path, DDIM_DEFAULTS)
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
    if isinstance(dims[0], list):  # one list a level
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
    attention = ["CrossAttn" in name for name in config.get("down_block_types", ())]
    given = {"cross_attention_dim": dims, "cross_attention": conditions_of(dims)}
    return as_dataclass(
        UNetConfig, {**sizes, **schedule, **given, "attention": attention}
    )


def conditions_of(dims: list[int | None]) -> tuple[str | None, ...]:
    """Which condition each entry of `cross_attention_dim` stands for in the released
    model: by its position, the first two for the LOA, and None for the map itself.
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
        raise ValueError(f"{path}: it projects to {width}, but GPT-2 reads {read}")
    learned = theirs.get("use_learned_position_embedding")
    return GPTConfig(
        **sizes,
        condition_dims=(widths["first"], widths["second"]),
        n_tokens=n_tokens or read_json(gpt_path).get("max_new_tokens", 8),
        learned_positions=theirs["max_seq_length"] if learned is not None else 0,
    )


# --------------------------------------------------------------------------------------
# Weights

WEIGHTS = (  # of diffusers and transformers, in the order in which they are looked for
    "diffusion_pytorch_model.safetensors", "model.safetensors",
    "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip


def read_state(folder: Path) -> State:
    """All tensors of a module's folder: safetensors, in one file or many, or a `.bin`
    without pickled code.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: a file is damaged, or can only be read by running the code in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the pipeline is not complete")
    if indices := sorted(folder.glob("*.safetensors.index.json")):
        shards = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
        return {k: x for name in shards for k, x in read_weights(folder / name).items()}
    for path in (folder / name for name in WEIGHTS):
        if path.is_file():
            return read_bin(path) if path.suffix == ".bin" else read_weights(path)
    raise FileNotFoundError(f"{folder} holds no weights: the pipeline is not complete")


def read_bin(path: Path) -> State:
    """The tensors of a file of `torch.save`, unpickled without running any code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors: reading it would run its code"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or half-copied") from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} does not hold tensors by name, but a {type(state).__name__}"
        )
    return state


def under(prefix: str, state: State) -> State:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}


def fill(model: Model, state: State, folder: Path, dtype: torch.dtype | None) -> Model:
    """Put weights into a model from the meta device, all of them or none."""
    check_weights(model, state, folder)
    model.load_state_dict(state, assign=True)
    return (model if dtype is None else model.to(dtype)).eval()


def made(model_class: type[Model], config: Any) -> Model:
    """The model with shapes but without memory."""
    with torch.device("meta"):
        return model_class(config)


def gpt_in(projection: State, language_model: State) -> State:
    """The tensors of the LOA regressor from those of its projections and of GPT-2,
    without prefix, vocabulary head and stored masks, its linear layers turned.
    """
    bare = {k.removeprefix("transformer."): x for k, x in language_model.items()}
    unread = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")
    gpt2 = {k: turned(k, x) for k, x in bare.items() if not k.endswith(unread)}
    named = {"projection": projection, "gpt2": gpt2}
    return {f"{part}.{k}": x for part, state in named.items() for k, x in state.items()}


def turned(name: str, x: Tensor) -> Tensor:
    """A tensor of GPT-2, turned if it is the weight of a linear layer, which
    transformers stores transposed.
    """
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return x.T.contiguous() if name.endswith(linear) else x


def t5_in(state: State) -> State:
    """T5's tensors without the second name that its table of tokens may have."""
    state = dict(state)
    table = state.pop("encoder.embed_tokens.weight", None)
    return state if table is None else {"shared.weight": table, **state}


STATES: dict[str, Callable[[State], State]] = {  # what is not as ours is
    "T5EncoderModel": t5_in,
    # the rest of VITS is left where it is
    "VitsModel": lambda state: under("text_encoder.", state),
}

# --------------------------------------------------------------------------------------
# Model by model: in


def untrained(kind: str, folder: Path, **changes: Any) -> Model:
    """Our model, without memory, for the config of a class of theirs in its folder."""
    ours = PEERS[kind].ours
    sizes = {**read_sizes(kind, folder / "config.json"), **changes}
    return made(ours, as_dataclass(ours.config_class, sizes))


def read(kind: str, folder: Path, dtype: torch.dtype | None = None) -> Model:
    """Our model from the folder of a class of theirs: AutoencoderKL, T5EncoderModel,
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

    Its config names 8 heads at every level, as diffusers runs it; `head_width` 32 is
    how the weights were trained.
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
# Model by model: out


def check_out(what: str, config: Any, **needed: Any) -> None:
    """Raise ValueError for a setting that the counterpart in diffusers lacks."""
    for name, value in needed.items():
        if (given := getattr(config, name)) != value:
            said = f"has no counterpart in diffusers: train one with {name}={value!r}"
            raise ValueError(f"{what} with {name}={given!r} {said}")


def filled(model_class: type, settings: Mapping[str, Any], state: State) -> nn.Module:
    """A module of theirs with our weights, none missing and none left over."""
    model = model_class(**settings)
    model.load_state_dict(state)
    dtype = next(x.dtype for x in state.values() if x.is_floating_point())
    return model.to(dtype).eval()


def vae_out(vae: VAE) -> nn.Module:
    """The VAE as an AutoencoderKL."""
    from diffusers import AutoencoderKL

    check_out("a VAE", vae.config, final_norm=True)
    levels = len(vae.config.block_out_channels)
    settings = PEERS["AutoencoderKL"].write(
        vae.config,
        out_channels=vae.config.in_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
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
    """The noise levels that the U-Net is trained for, as the released DDIMScheduler."""
    from diffusers import DDIMScheduler

    theirs = {ours: name for name, ours in PREDICTIONS.items()}[unet.config.prediction]
    peer = PEERS["DDIMScheduler"]
    return DDIMScheduler(**peer.write(unet.config, prediction_type=theirs))


def gpt_out(gpt: LOARegressor) -> tuple[nn.Module, nn.Module]:
    """The LOA regressor as an AudioLDM2ProjectionModel and a GPT2LMHeadModel, which
    diffusers needs and whose head is the table of words itself.
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
    """The phoneme encoder in a VitsModel; the rest of VITS, which nothing reads, is
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
    # tuples become lists, as it wants them
    config = SpeechT5HifiGanConfig(**json.loads(json.dumps(settings)))
    return filled(SpeechT5HifiGan, {"config": config}, vocoder.state_dict())
