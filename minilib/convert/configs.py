"""Configs of the released folders: which of their fields correspond to ours, which must
have the value that our class implements, and which have no effect.

No field is ignored silently: one that is in none of these tables is refused by name,
since its effect is unknown here. Chapter 18 shows it at work.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minilib.model import Model, read_json
from minilib.phonemes import PhonemeEncoder
from minilib.text import T5Encoder
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import HiFiGAN


def pairs(names: str) -> dict[str, str]:
    """A dictionary written as `one=other`, or as one name if both are the same."""
    found = (name.partition("=") for name in names.split())
    return {one: other or one for one, _, other in found}


@dataclass(frozen=True)
class Peer:
    """A class of diffusers or transformers, and its config translated into ours."""

    ours: type[Model] | None  # None if it is only part of a model, or not a network
    names: str  # of their fields and ours, as `pairs` reads them
    # their settings for which our class implements only one value
    built_in: Mapping[str, Any]
    # the class of transformers with the defaults that a file omits, if there is one
    defaults: str = ""
    # their fields without effect here, and fields that other functions read
    others: str = ""
    # settings of later and derived classes: a file may hold them with this value only
    neutral: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, str]:
        """Our name for each of their fields."""
        return pairs(self.names)

    @property
    def known(self) -> set[str]:
        """Every name that their config may contain."""
        named = {*self.fields, *self.built_in, *self.neutral, *self.others.split()}
        return named | (common_fields() if self.defaults else DIFFUSERS)

    def write(self, config: Any, **others: Any) -> dict[str, Any]:
        """Their config from ours; `others` are fields that are not among the names."""
        own = {theirs: getattr(config, ours) for theirs, ours in self.fields.items()}
        return {**self.built_in, **own, **others}


DIFFUSERS = {"_class_name", "_diffusers_version", "_name_or_path"}
# Fields of transformers' configs before version 5, for any model.
OLDER = set(
    "name_or_path _commit_hash torch_dtype torchscript pruned_heads use_bfloat16 "
    "tf_legacy_loss tie_encoder_decoder tie_word_embeddings use_return_dict "
    "cross_attention_hidden_size add_cross_attention is_decoder finetuning_task prefix "
    "task_specific_params tokenizer_class num_labels attn_implementation "
    "_attn_implementation _attn_implementation_autoset gradient_checkpointing "
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id "
    "output_scores return_dict_in_generate use_cache max_length min_length do_sample "
    "num_beam_groups diversity_penalty".split()
)
PEERS = {
    "AutoencoderKL": Peer(
        VAE,
        "in_channels latent_channels block_out_channels layers_per_block "
        "norm_num_groups scaling_factor",
        {
            "act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True,
            "use_post_quant_conv": True, "shift_factor": None, "latents_mean": None,
            "latents_std": None,
        },
        others="out_channels down_block_types up_block_types sample_size force_upcast",
    ),
    "AudioLDM2UNet2DConditionModel": Peer(
        UNet,
        # diffusers' attention_head_dim is misnamed: it counts heads
        "in_channels block_out_channels layers_per_block norm_num_groups "
        "transformer_layers_per_block=transformer_layers attention_head_dim=n_head",
        {
            "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0,
            "use_linear_projection": False, "only_cross_attention": False,
            "downsample_padding": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
            "class_embed_type": None, "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional", "conv_in_kernel": 3,
            "conv_out_kernel": 3, "mid_block_type": "UNetMidBlock2DCrossAttn",
            "num_attention_heads": None, "num_class_embeds": None,
            "upcast_attention": False, "time_embedding_dim": None,
            "time_embedding_act_fn": None, "timestep_post_act": None,
            "time_cond_proj_dim": None, "class_embeddings_concat": False,
            "projection_class_embeddings_input_dim": None,
        },
        others="sample_size out_channels down_block_types up_block_types "
        "cross_attention_dim addition_embed_type_num_heads",
        neutral={  # UNet2DConditionModel's
            "center_input_sample": False, "dropout": 0.0, "encoder_hid_dim": None,
            "encoder_hid_dim_type": None, "addition_embed_type": None,
            "addition_time_embed_dim": None, "dual_cross_attention": False,
            "cross_attention_norm": None, "attention_type": "default",
            "mid_block_only_cross_attention": None, "resnet_skip_time_act": False,
            "resnet_out_scale_factor": 1.0,
            "reverse_transformer_layers_per_block": None,
        },
    ),
    "GPT2Model": Peer(
        None,
        "n_embd n_layer n_head n_positions vocab_size layer_norm_epsilon",
        {
            "activation_function": "gelu_new", "n_inner": None,
            "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False, "add_cross_attention": False,
        },
        "GPT2Config",
        "max_new_tokens n_ctx resid_pdrop embd_pdrop attn_pdrop initializer_range "
        "summary_type summary_use_proj summary_activation summary_proj_to_labels "
        "summary_first_dropout",
    ),
    "AudioLDM2ProjectionModel": Peer(
        None,  # the third is misspelt in the original
        "text_encoder_dim=first text_encoder_1_dim=second langauge_model_dim=n_embd",
        {},
        others="use_learned_position_embedding max_seq_length",
    ),
    "T5EncoderModel": Peer(
        T5Encoder,
        "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads "
        "relative_attention_num_buckets relative_attention_max_distance "
        "layer_norm_epsilon",
        {"feed_forward_proj": "gated-gelu"},
        "T5Config",
        "dropout_rate classifier_dropout initializer_factor scale_decoder_outputs "
        "n_positions output_past",
        # these follow from feed_forward_proj
        neutral={"dense_act_fn": "gelu_new", "is_gated_act": True},
    ),
    "VitsModel": Peer(
        PhonemeEncoder,
        "vocab_size hidden_size num_hidden_layers=num_layers "
        "num_attention_heads=num_heads ffn_dim ffn_kernel_size window_size flow_size "
        "layer_norm_eps",
        {"hidden_act": "relu", "use_bias": True},
        "VitsConfig",
        # for training, and for the parts of VITS that are not read
        "layerdrop hidden_dropout attention_dropout activation_dropout "
        "initializer_range spectrogram_bins use_stochastic_duration_prediction "
        "num_speakers speaker_embedding_size upsample_initial_channel upsample_rates "
        "upsample_kernel_sizes resblock_kernel_sizes resblock_dilation_sizes "
        "leaky_relu_slope depth_separable_channels depth_separable_num_layers "
        "duration_predictor_flow_bins duration_predictor_tail_bound "
        "duration_predictor_kernel_size duration_predictor_dropout "
        "duration_predictor_num_flows duration_predictor_filter_channels "
        "prior_encoder_num_flows prior_encoder_num_wavenet_layers "
        "posterior_encoder_num_wavenet_layers wavenet_kernel_size "
        "wavenet_dilation_rate wavenet_dropout speaking_rate noise_scale "
        "noise_scale_duration sampling_rate",
    ),
    "SpeechT5HifiGan": Peer(
        HiFiGAN,
        "model_in_dim upsample_initial_channel upsample_rates upsample_kernel_sizes "
        "resblock_kernel_sizes resblock_dilation_sizes leaky_relu_slope",
        {"normalize_before": False, "sampling_rate": 16000},
        "SpeechT5HifiGanConfig",
        "initializer_range",
    ),
    "DDIMScheduler": Peer(
        None,
        "num_train_timesteps=n_steps beta_start=beta_1 beta_end=beta_T "
        "prediction_type=prediction",
        {
            "beta_schedule": "scaled_linear", "trained_betas": None,
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
            "timestep_spacing": "leading", "thresholding": False,
            "rescale_betas_zero_snr": False,
        },
        others="dynamic_thresholding_ratio sample_max_value clip_sample_range "
        "skip_prk_steps",
    ),
}  # fmt: skip
CLAP = {  # fields that transformers' ClapConfig and its halves no longer read
    "": "hidden_size num_hidden_layers fusion_hidden_size fusion_num_hidden_layers "
    "projection_hidden_size text_config_dict audio_config_dict initializer_range",
    "text_config": "classifier_dropout fusion_hidden_size fusion_num_hidden_layers "
    "projection_hidden_size initializer_range",
    "audio_config": "enable_patch_fusion fusion_hidden_size fusion_num_hidden_layers "
    "projection_hidden_size initializer_range",
}
LISTENER = "processor_class chunk_length_s n_fft nb_max_frames"
# What transformers stores with a tokenizer: its origin, and defaults of calls.
TOKENIZER = (
    "tokenizer_class processor_class name_or_path special_tokens_map_file auto_map "
    "tokenizer_file vocab_file merges_file added_tokens_decoder is_local backend "
    "additional_special_tokens extra_special_tokens clean_up_tokenization_spaces "
    "model_max_length padding_side truncation_side model_input_names chat_template "
    "split_special_tokens use_fast legacy sp_model_kwargs extra_ids local_files_only "
    "spaces_between_special_tokens add_bos_token add_eos_token "
    "model_specific_special_tokens verbose max_length stride truncation_strategy "
    "pad_to_multiple_of pad_token_type_id"
)


def common_fields() -> set[str]:
    """Fields that any config of transformers may contain: about files, classes and text
    generation, never about the numbers of a forward pass.
    """
    from transformers import GenerationConfig, PretrainedConfig

    generation = {k for k in GenerationConfig().to_dict() if not k.startswith("_")}
    return {*PretrainedConfig().to_dict(), *generation, *OLDER}


def refuse_unknown(path: Path, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError that names an unknown field."""
    if unknown := sorted(set(given) - set(known)):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        said = f"minilib does not know the field {unknown[0]!r}{more}"
        raise ValueError(f"{path}: {said}, nor its effect")


def refuse_other(
    path: Path, config: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Raise ValueError for a field whose value differs from these."""
    for name, value in values.items():
        if name in config and config[name] != value:
            raise ValueError(
                f"{path}: {name} must be {value!r} for minilib, not {config[name]!r}"
            )


def read_sizes(
    kind: str,
    path: Path,
    defaults: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Our config fields from a config file of one of their classes.

    Args:
        kind: the class; path: the file.
        defaults: values for fields that the file omits.
        given: the file's contents, if it has been read already.
    Raises:
        ValueError: it belongs to another class, or has a setting that our class lacks.
    """
    peer, given = PEERS[kind], read_json(path) if given is None else given
    config = {**(defaults or {}), **given}
    if peer.defaults:  # transformers omits fields that equal its defaults
        import transformers

        theirs = getattr(transformers, peer.defaults)().to_dict()
        if config.get("model_type") != theirs["model_type"]:
            raise ValueError(f"{path} is not the config of a {kind}")
        config = {**theirs, **config}
    refuse_other(path, config, peer.built_in)
    refuse_other(path, given, peer.neutral)
    missing = [name for name in peer.fields if name not in config]
    if missing:
        raise ValueError(f"{path} is not the config of a {kind}: it lacks {missing[0]}")
    refuse_other(path, given, {} if peer.defaults else {"_class_name": kind})
    refuse_unknown(path, given, peer.known)
    return {ours: config[theirs] for theirs, ours in peer.fields.items()}


def check_clap(path: Path) -> None:
    """Raise ValueError for a field in a ClapModel's config that transformers does not
    read.
    """
    import transformers

    if not path.is_file():
        return  # transformers will report it
    config, common = read_json(path), common_fields()
    refuse_other(path, config, {"model_type": "clap"})
    for part, older in CLAP.items():
        name = f"Clap{part.removesuffix('_config').capitalize()}Config"
        known = {*getattr(transformers, name)().to_dict(), *common, *older.split()}
        given = config.get(part, {}) if part else config
        # newer versions know no other value
        neutral = {"position_embedding_type": "absolute"}
        refuse_other(path, given, neutral)
        refuse_unknown(path, given, {*known, *neutral})


def check_listener(path: Path) -> None:
    """Raise ValueError for a field in the config of CLAP's feature extractor that
    transformers does not read.
    """
    from transformers import ClapFeatureExtractor as Listener

    if not path.is_file():
        return
    given = read_json(path)
    refuse_other(path, given, {"feature_extractor_type": Listener.__name__})
    known = {*inspect.signature(Listener).parameters, *Listener().to_dict()}
    refuse_unknown(path, given, {*known, *LISTENER.split()})


def check_tokenizer(path: Path, tokenizer: Any) -> None:
    """Raise ValueError for a field in a tokenizer's config that its class does not
    read.
    """
    if path.is_file():
        known = set(TOKENIZER.split()) | set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
        for base in type(tokenizer).__mro__:
            known |= set(inspect.signature(base.__init__).parameters)
        refuse_unknown(path, read_json(path), known)
