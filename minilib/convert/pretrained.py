"""The released AudioLDM 2 in and out: folders of diffusers and transformers, model by
model.

A released pipeline is a folder of modules, each a `config.json` and its weights. VAE,
U-Net, GPT-2 with its projections, T5 encoder, phoneme encoder and HiFi-GAN become the
classes of this package, key by key, and go back without a bit changed. Chapter 18
builds it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilib.gpt import GPTConfig, LOARegressor
from minilib.model import (
    Model,
    as_dataclass,
    check_weights,
    read_json,
    read_weights,
    to_dtype,
)
from minilib.phonemes import PhonemeConfig, PhonemeEncoder
from minilib.text import T5Config, T5Encoder
from minilib.unet import UNet, UNetConfig
from minilib.vae import VAE, VAEConfig
from minilib.vocoder import HiFiGAN, HiFiGANConfig

State = dict[str, Tensor]

# --------------------------------------------------------------------------------------
# Configs


@dataclass(frozen=True)
class Sizes:
    """What a config of diffusers or transformers says, in this package's words."""

    peer: str  # the class that reads the config there
    names: Mapping[str, str]  # their field -> ours
    built_in: Mapping[str, Any]  # their settings that our class knows only one way of

    def read(self, config: Mapping[str, Any], where: Path) -> dict[str, Any]:
        """Our fields from their config; raise ValueError for a setting that our class
        does not have.
        """
        for name, value in self.built_in.items():
            if name in config and jsonable(config[name]) != jsonable(value):
                raise ValueError(
                    f"{where}: {name} must be {value!r} for minilib, not "
                    f"{config[name]!r}"
                )
        missing = [name for name in self.names if name not in config]
        if missing:
            raise ValueError(
                f"{where} is not the config of a {self.peer}: it lacks {missing[0]}"
            )
        return {ours: config[theirs] for theirs, ours in self.names.items()}

    def write(self, config: Any, **others: Any) -> dict[str, Any]:
        """Their config from ours, `others` being what is not among the names."""
        fields = {theirs: getattr(config, ours) for theirs, ours in self.names.items()}
        return {**self.built_in, **fields, **others}


def jsonable(value: Any) -> Any:
    """A value as JSON would give it back: tuples as lists."""
    return json.loads(json.dumps(value))


SIZES = {
    "vae": Sizes(
        "AutoencoderKL",
        {
            "in_channels": "in_channels",
            "latent_channels": "latent_channels",
            "block_out_channels": "block_out_channels",
            "layers_per_block": "layers_per_block",
            "norm_num_groups": "norm_num_groups",
            "scaling_factor": "scaling_factor",
        },
        {
            "act_fn": "silu",
            "mid_block_add_attention": True,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "shift_factor": None,
        },
    ),
    "unet": Sizes(
        "AudioLDM2UNet2DConditionModel",
        {
            "in_channels": "in_channels",
            "block_out_channels": "block_out_channels",
            "layers_per_block": "layers_per_block",
            "norm_num_groups": "norm_num_groups",
            "transformer_layers_per_block": "transformer_layers",
            # diffusers' name is an old mistake: it counts heads
            "attention_head_dim": "n_head",
        },
        {
            "act_fn": "silu",
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "use_linear_projection": False,
            "only_cross_attention": False,
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-5,
            "class_embed_type": None,
            "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional",
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
        },
    ),
    "language_model": Sizes(
        "GPT2Model",
        {
            name: name
            for name in (
                "n_embd",
                "n_layer",
                "n_head",
                "n_positions",
                "vocab_size",
                "layer_norm_epsilon",
            )
        },
        {
            "activation_function": "gelu_new",
            "n_inner": None,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    "t5": Sizes(
        "T5EncoderModel",
        {
            name: name
            for name in (
                "vocab_size",
                "d_model",
                "d_kv",
                "d_ff",
                "num_layers",
                "num_decoder_layers",
                "num_heads",
                "relative_attention_num_buckets",
                "relative_attention_max_distance",
                "layer_norm_epsilon",
            )
        },
        {"feed_forward_proj": "gated-gelu"},
    ),
    "vits": Sizes(
        "VitsModel",
        {
            "vocab_size": "vocab_size",
            "hidden_size": "hidden_size",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "ffn_dim": "ffn_dim",
            "ffn_kernel_size": "ffn_kernel_size",
            "window_size": "window_size",
            "flow_size": "flow_size",
            "layer_norm_eps": "layer_norm_eps",
        },
        {"hidden_act": "relu", "use_bias": True},
    ),
    "vocoder": Sizes(
        "SpeechT5HifiGan",
        {
            name: name
            for name in (
                "model_in_dim",
                "upsample_initial_channel",
                "upsample_rates",
                "upsample_kernel_sizes",
                "resblock_kernel_sizes",
                "resblock_dilation_sizes",
                "leaky_relu_slope",
            )
        },
        {"normalize_before": False, "sampling_rate": 16000},
    ),
    "scheduler": Sizes(
        "DDIMScheduler",
        {
            "num_train_timesteps": "n_steps",
            "beta_start": "beta_1",
            "beta_end": "beta_T",
            "prediction_type": "prediction",
        },
        {
            "beta_schedule": "scaled_linear",
            "trained_betas": None,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
    ),
    "projection": Sizes(
        "AudioLDM2ProjectionModel",
        {
            "text_encoder_dim": "first",
            "text_encoder_1_dim": "second",
            "langauge_model_dim": "n_embd",
        },
        {},
    ),
}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
DDIM_DEFAULTS = {  # of diffusers' DDIMScheduler: what a file means that does not say
    "beta_schedule": "linear",
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
}
CONFIGS = {  # the classes of transformers that know what a file leaves out
    "language_model": "GPT2Config",
    "t5": "T5Config",
    "vits": "VitsConfig",
    "vocoder": "SpeechT5HifiGanConfig",
}


def read_sizes(kind: str, folder: Path) -> dict[str, Any]:
    """Our config fields from the `config.json` of a module's folder.

    transformers leaves out what equals its defaults, so its own config classes fill
    that in.
    """
    path = folder / "config.json"
    config = read_json(path)
    if kind in CONFIGS:
        import transformers

        defaults = getattr(transformers, CONFIGS[kind])().to_dict()
        if config.get("model_type") != defaults["model_type"]:
            raise ValueError(f"{path} is not the config of a {SIZES[kind].peer}")
        config = {**defaults, **config}
    return SIZES[kind].read(config, path)


# --------------------------------------------------------------------------------------
# Weights


def read_state(folder: Path) -> State:
    """All tensors of a module's folder: safetensors, in one file or many, or a `.bin`
    without pickled code.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: a file is damaged, or can only be read by running the code in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the pipeline is not complete")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names: Iterable[str] = sorted(
            set(read_json(indices[0]).get("weight_map", {}).values())
        )
        state: State = {}
        for name in names:
            state.update(read_weights(folder / name))
        return state
    for name in ("diffusion_pytorch_model", "model"):
        if (folder / f"{name}.safetensors").is_file():
            return read_weights(folder / f"{name}.safetensors")
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_bin(folder / name)
    raise FileNotFoundError(f"{folder} holds no weights: the pipeline is not complete")


def read_bin(path: Path) -> State:
    """The tensors of a checkpoint of `torch.save`, unpickled without running any code."""
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


def fill(model: Model, state: State, folder: Path, dtype: torch.dtype | None) -> Model:
    """Put weights into a model that was made on the meta device, all of them or none."""
    check_weights(model, state, folder)
    state = {name: to_dtype(tensor, dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def made(model_class: type[Model], config: Any) -> Model:
    """The model with shapes but without memory."""
    with torch.device("meta"):
        return model_class(config)


# --------------------------------------------------------------------------------------
# Model by model: in


def read_vae(folder: Path, dtype: torch.dtype | None = None) -> VAE:
    """The VAE from an AutoencoderKL's folder."""
    return fill(made(VAE, vae_config(folder)), read_state(folder), folder, dtype)


def vae_config(folder: Path) -> VAEConfig:
    """The config of a VAE from an AutoencoderKL's folder."""
    return as_dataclass(VAEConfig, read_sizes("vae", folder))


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
    return fill(
        made(UNet, unet_config(folder, schedule, head_width)),
        read_state(folder),
        folder,
        dtype,
    )


def unet_config(
    folder: Path, schedule: Mapping[str, Any], head_width: int | None = None
) -> UNetConfig:
    """The config of a U-Net, as `read_unet`."""
    path = folder / "config.json"
    config = read_json(path)
    dims = config.get("cross_attention_dim")
    levels = [dims] if isinstance(dims, int) or dims is None else dims
    if isinstance(levels[0], list | tuple):  # one list a level
        if any(list(level) != list(levels[0]) for level in levels):
            raise ValueError(
                f"{path}: cross_attention_dim must be the same at every level, not "
                f"{dims}"
            )
        levels = levels[0]
    attention = tuple(
        "CrossAttn" in name for name in config.get("down_block_types", ())
    )
    sizes = {**read_sizes("unet", folder), **schedule}
    sizes |= {"cross_attention_dim": tuple(levels), "attention": attention}
    if head_width is not None:
        if head_width < 1 or any(
            width % head_width for width in sizes["block_out_channels"]
        ):
            raise ValueError(
                f"head_width must divide {sizes['block_out_channels']}, not "
                f"{head_width}"
            )
        sizes["n_head"] = tuple(
            width // head_width for width in sizes["block_out_channels"]
        )
    return as_dataclass(UNetConfig, sizes)


def read_schedule(folder: Path) -> dict[str, Any]:
    """The noise levels that a scheduler's folder names, as fields of a UNetConfig."""
    path = folder / "scheduler_config.json"
    sizes = SIZES["scheduler"].read({**DDIM_DEFAULTS, **read_json(path)}, path)
    if sizes["prediction"] not in PREDICTIONS:
        raise ValueError(
            f"{path}: prediction_type must be one of {', '.join(PREDICTIONS)} for "
            f"minilib, not {sizes['prediction']!r}"
        )
    return {**sizes, "prediction": PREDICTIONS[sizes["prediction"]]}


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
    config = gpt_config(language_model, projection, n_tokens)
    state = gpt_in(read_state(projection), read_state(language_model))
    return fill(made(LOARegressor, config), state, language_model, dtype)


def gpt_config(
    language_model: Path, projection: Path, n_tokens: int | None = None
) -> GPTConfig:
    """The config of an LOA regressor, as `read_gpt`."""
    path = projection / "config.json"
    theirs = read_json(path)
    widths = SIZES["projection"].read(theirs, path)
    sizes = read_sizes("language_model", language_model)
    if widths["n_embd"] != sizes["n_embd"]:
        raise ValueError(
            f"{path}: it projects to {widths['n_embd']}, but GPT-2 reads "
            f"{sizes['n_embd']}"
        )
    learned = theirs.get("use_learned_position_embedding")
    return GPTConfig(
        **sizes,
        condition_dims=(widths["first"], widths["second"]),
        n_tokens=n_tokens
        or read_json(language_model / "config.json").get("max_new_tokens", 8),
        learned_positions=theirs["max_seq_length"] if learned is not None else 0,
    )


def gpt_in(projection: State, language_model: State) -> State:
    """The tensors of the LOA regressor from those of its projections and of GPT-2."""
    state = {f"projection.{name}": tensor for name, tensor in projection.items()}
    return state | {
        f"gpt2.{name}": tensor for name, tensor in gpt2_in(language_model).items()
    }


def gpt2_in(state: State) -> State:
    """GPT-2's tensors as ours: no prefix, no vocabulary head, no stored masks, linear
    layers turned.
    """
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    dropped = ("lm_head.weight", ".attn.bias", ".attn.masked_bias")
    return {
        name: tensor.T.contiguous() if turned(name) else tensor
        for name, tensor in bare.items()
        if not name.endswith(dropped)
    }


def gpt2_out(state: State) -> State:
    """Our tensors as those of a GPT2LMHeadModel, whose head is the table of words
    itself.
    """
    return {
        f"transformer.{name}": tensor.T.contiguous() if turned(name) else tensor
        for name, tensor in state.items()
    }


def turned(name: str) -> bool:
    """Whether a weight is that of one of GPT-2's linear layers, which transformers
    stores transposed.
    """
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def read_t5(folder: Path, dtype: torch.dtype | None = None) -> T5Encoder:
    """The T5 encoder from a T5EncoderModel's folder."""
    config = T5Config(**read_sizes("t5", folder))
    return fill(made(T5Encoder, config), t5_in(read_state(folder)), folder, dtype)


def t5_in(state: State) -> State:
    """T5's tensors without the second name that its table of tokens may have."""
    state = dict(state)
    # the same table under a second name
    table = state.pop("encoder.embed_tokens.weight", None)
    if table is not None:
        state.setdefault("shared.weight", table)
    return state


def read_phonemes(folder: Path, dtype: torch.dtype | None = None) -> PhonemeEncoder:
    """The phoneme encoder from a VitsModel's folder, the rest of VITS left where it is."""
    config = PhonemeConfig(**read_sizes("vits", folder))
    prefix = "text_encoder."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in read_state(folder).items()
        if name.startswith(prefix)
    }
    return fill(made(PhonemeEncoder, config), state, folder, dtype)


def read_vocoder(folder: Path, dtype: torch.dtype | None = None) -> HiFiGAN:
    """The vocoder from a SpeechT5HifiGan's folder."""
    return fill(
        made(HiFiGAN, vocoder_config(folder)), read_state(folder), folder, dtype
    )


def vocoder_config(folder: Path) -> HiFiGANConfig:
    """The config of a vocoder from a SpeechT5HifiGan's folder."""
    return as_dataclass(HiFiGANConfig, read_sizes("vocoder", folder))


# --------------------------------------------------------------------------------------
# Model by model: out


def vae_out(vae: VAE) -> torch.nn.Module:
    """The VAE as an AutoencoderKL."""
    from diffusers import AutoencoderKL

    if vae.config.pack != 1:
        raise ValueError(
            f"a VAE that packs {vae.config.pack} x {vae.config.pack} latents has no "
            f"counterpart in diffusers: "
            "train one with pack=1"
        )
    levels = len(vae.config.block_out_channels)
    settings = SIZES["vae"].write(
        vae.config,
        out_channels=vae.config.in_channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    return filled(AutoencoderKL, settings, vae.state_dict())


def unet_out(unet: UNet, sample_size: int | None = None) -> torch.nn.Module:
    """The U-Net as an AudioLDM2UNet2DConditionModel, for latents of `sample_size`
    frames by default.
    """
    from diffusers import AudioLDM2UNet2DConditionModel

    config = unet.config
    if config.loa_channels:
        raise ValueError(
            "a U-Net that lays the LOA beside the latent has no counterpart in "
            "diffusers: train one with "
            "loa_channels=0"
        )
    levels, attended = len(config.block_out_channels), config.attention
    settings = SIZES["unet"].write(
        config,
        sample_size=sample_size,
        out_channels=config.in_channels,
        down_block_types=[
            "CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended
        ],
        up_block_types=[
            "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)
        ],
        cross_attention_dim=[list(config.cross_attention_dim)] * levels,
    )
    return filled(AudioLDM2UNet2DConditionModel, settings, unet.state_dict())


def scheduler_out(unet: UNet) -> Any:
    """The noise levels that the U-Net is trained for, as the released DDIMScheduler."""
    from diffusers import DDIMScheduler

    theirs = {ours: name for name, ours in PREDICTIONS.items()}[unet.config.prediction]
    return DDIMScheduler(
        **SIZES["scheduler"].write(unet.config, prediction_type=theirs)
    )


def gpt_out(gpt: LOARegressor) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The LOA regressor as an AudioLDM2ProjectionModel and a GPT2LMHeadModel, which
    diffusers needs.
    """
    from diffusers import AudioLDM2ProjectionModel
    from transformers import GPT2Config, GPT2LMHeadModel

    config, state = gpt.config, gpt.state_dict()
    part = lambda name: {
        key.removeprefix(f"{name}."): x
        for key, x in state.items()
        if key.startswith(f"{name}.")
    }
    settings = dict(
        zip(
            ("text_encoder_dim", "text_encoder_1_dim"),
            config.condition_dims,
            strict=True,
        ),
        langauge_model_dim=config.n_embd,  # the spelling is theirs
    )
    if config.learned_positions:
        settings |= {
            "use_learned_position_embedding": True,
            "max_seq_length": config.learned_positions,
        }
    sizes = GPT2Config(
        **SIZES["language_model"].write(config, max_new_tokens=config.n_tokens)
    )
    head = {"lm_head.weight": state["gpt2.wte.weight"]}
    return (
        filled(AudioLDM2ProjectionModel, settings, part("projection")),
        filled(GPT2LMHeadModel, {"config": sizes}, {**gpt2_out(part("gpt2")), **head}),
    )


def t5_out(text: T5Encoder) -> torch.nn.Module:
    """The T5 encoder as a T5EncoderModel."""
    from transformers import T5Config as Config
    from transformers import T5EncoderModel

    state = text.state_dict()
    tied = {"encoder.embed_tokens.weight": state["shared.weight"]}
    return filled(
        T5EncoderModel,
        {"config": Config(**SIZES["t5"].write(text.config))},
        {**state, **tied},
    )


def phonemes_out(phonemes: PhonemeEncoder) -> torch.nn.Module:
    """The phoneme encoder in a VitsModel; the rest of VITS, which nothing reads, is
    small and untrained.
    """
    from transformers import VitsConfig, VitsModel

    unread = {
        "spectrogram_bins": 3,
        "upsample_initial_channel": 4,
        "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
        "prior_encoder_num_flows": 1,
        "prior_encoder_num_wavenet_layers": 1,
        "posterior_encoder_num_wavenet_layers": 1,
        "duration_predictor_num_flows": 1,
        "depth_separable_num_layers": 1,
    }
    with torch.random.fork_rng(devices=[]):
        model = VitsModel(VitsConfig(**SIZES["vits"].write(phonemes.config), **unread))
    model.text_encoder.load_state_dict(phonemes.state_dict())
    return model.to(phonemes.embed_tokens.weight.dtype).eval()


def vocoder_out(vocoder: Model) -> torch.nn.Module:
    """HiFi-GAN as a SpeechT5HifiGan."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    if not isinstance(vocoder, HiFiGAN):
        raise ValueError(
            f"the vocoder {type(vocoder).__name__} has no counterpart in "
            f"transformers: train a HiFiGAN"
        )
    config = SpeechT5HifiGanConfig(**jsonable(SIZES["vocoder"].write(vocoder.config)))
    return filled(SpeechT5HifiGan, {"config": config}, vocoder.state_dict())


def filled(
    model_class: type, settings: Mapping[str, Any], state: State
) -> torch.nn.Module:
    """A module of theirs with our weights, none missing and none left over."""
    model = model_class(**settings)
    model.load_state_dict(state)
    dtype = next(x.dtype for x in state.values() if x.is_floating_point())
    return model.to(dtype).eval()
