"""Folders of diffusers and transformers become this package's models and go back,
without a bit changed.
"""

import json
import shutil
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.clap import CLAP
from minilib.convert import pretrained, released
from minilib.gpt import GPTConfig, LOARegressor
from minilib.unet import UNet
from minilib.vae import VAE
from minilib.vocoder import Vocos


def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=2,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=0.4,
    )  # fmt: skip


def unet():
    from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel

    return AudioLDM2UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        cross_attention_dim=[[None, 12, 20]] * 2, attention_head_dim=4,
    )  # fmt: skip


def projection(**speech):
    from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel

    return AudioLDM2ProjectionModel(6, 20, 12, **speech)


def gpt2(headed: bool = True):
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    config = GPT2Config(
        n_embd=12, n_layer=2, n_head=3, n_positions=64, vocab_size=30, max_new_tokens=5
    )
    return (GPT2LMHeadModel if headed else GPT2Model)(config)


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=40,
            d_model=20,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def vocoder():
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        model_in_dim=8, upsample_initial_channel=16, upsample_rates=[5, 4],
        upsample_kernel_sizes=[16, 8], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]], normalize_before=False,
    )  # fmt: skip
    return SpeechT5HifiGan(config)


SCHEDULE = {"n_steps": 1000, "beta_1": 0.0015, "beta_T": 0.0195, "prediction": "eps"}
read = lambda kind: lambda folder: pretrained.read(kind, folder)
MODELS = {  # what is saved, how it is read, how it goes back
    "vae": (vae, read("AutoencoderKL"), pretrained.vae_out),
    "unet": (
        unet,
        lambda folder: pretrained.read_unet(folder, SCHEDULE),
        pretrained.unet_out,
    ),
    "t5": (t5, read("T5EncoderModel"), pretrained.t5_out),
    "vocoder": (vocoder, read("SpeechT5HifiGan"), pretrained.vocoder_out),
}


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """The same names, the same bits."""
    a, b = first.state_dict(), second.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_in_and_out_is_bit_equal(name, tmp_path):
    make, read, write = MODELS[name]
    torch.manual_seed(0)
    theirs = make()
    theirs.save_pretrained(tmp_path / "in")
    ours = read(tmp_path / "in")
    assert not any(p.is_meta for p in ours.state_dict().values()) and not ours.training
    back = write(ours)
    assert type(back) is type(theirs) and same(back, theirs)
    back.save_pretrained(tmp_path / "again")
    assert same(read(tmp_path / "again"), ours)
    assert read(tmp_path / "again").config == ours.config


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize(
    "speech", [{}, {"use_learned_position_embedding": True, "max_seq_length": 9}]
)
def test_gpt2_and_its_projections_go_in_and_out(headed, speech, tmp_path):
    torch.manual_seed(0)
    language_model, projections = gpt2(headed), projection(**speech)
    language_model.save_pretrained(tmp_path / "language_model")
    projections.save_pretrained(tmp_path / "projection_model")
    ours = pretrained.read_gpt(
        tmp_path / "language_model", tmp_path / "projection_model"
    )
    assert (ours.config.n_tokens, ours.config.learned_positions) == (
        5,
        speech.get("max_seq_length", 0),
    )
    back_projections, back = pretrained.gpt_out(ours)
    assert same(back_projections, projections)
    bare = language_model.transformer if headed else language_model
    assert same(back.transformer, bare) and back.config.max_new_tokens == 5
    x = torch.randn(2, 4, 12)
    with torch.no_grad():
        expected = bare.eval()(inputs_embeds=x).last_hidden_state
        torch.testing.assert_close(ours.gpt2(x), expected, rtol=1e-5, atol=1e-5)


def test_the_phoneme_encoder_comes_out_of_a_whole_vits(tmp_path):
    from transformers import VitsConfig, VitsModel

    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, ffn_dim=24, flow_size=8,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]], prior_encoder_num_flows=1,
        posterior_encoder_num_wavenet_layers=1, prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1, depth_separable_num_layers=1,
    )  # fmt: skip
    theirs = VitsModel(config)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.read("VitsModel", tmp_path)
    assert same(ours, theirs.text_encoder)
    assert same(pretrained.phonemes_out(ours).text_encoder, theirs.text_encoder)


def spoil(key: str, value: object):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def as_pickle(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"code": pytest.raises}, folder / "diffusion_pytorch_model.bin")


def cut(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (
            spoil("act_fn", "gelu"),
            ValueError,
            "act_fn must be 'silu' for minilib, not 'gelu'",
        ),
        (spoil("latent_channels", 8), ValueError, "do not fit its config"),
        (
            as_pickle,
            ValueError,
            "holds more than tensors: reading it would run its code",
        ),
        (cut, ValueError, "damaged or incomplete"),
        (
            lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(),
            FileNotFoundError,
            "holds no weights",
        ),
    ],
)
def test_what_cannot_be_read_is_named(damage, error, said, tmp_path):
    vae().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=said) as caught:
        pretrained.read("AutoencoderKL", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bin_file_of_tensors_reads_as_safetensors_does(tmp_path):
    theirs = vae()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    assert same(pretrained.read("AutoencoderKL", tmp_path), theirs)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["4KB", "1GB"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_of_a_variant_and_in_many_files_read_as_from_one(
    name, size, variant, tmp_path
):
    make, read, _ = MODELS[name]
    theirs = make()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size=size, variant=variant)
    files = [path.name for path in (tmp_path / "many").glob("*.safetensors")]
    assert (len(files) > 1) == (size == "4KB")
    assert all(("fp16" in file) == (variant == "fp16") for file in files)
    assert same(read(tmp_path / "many"), read(tmp_path / "one"))


def test_a_variant_is_read_where_it_is_the_only_one(tmp_path):
    theirs = vae()
    theirs.half().save_pretrained(tmp_path, variant="fp16")
    theirs.bfloat16().save_pretrained(tmp_path, variant="bf16")
    with pytest.raises(
        ValueError, match="holds .*bf16.* and .*fp16.*: keep only one var"
    ):
        pretrained.read("AutoencoderKL", tmp_path)
    torch.save(theirs.float().state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    read = pretrained.read("AutoencoderKL", tmp_path)  # which is no variant
    assert read.dtype == torch.float32
    shutil.rmtree(tmp_path)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    shard = sorted(tmp_path.glob("*-of-*"))[0]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing"):
        pretrained.read("AutoencoderKL", tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json is damaged: it must hold a `wei"):
        pretrained.read("AutoencoderKL", tmp_path)
    index.unlink()
    with pytest.raises(FileNotFoundError, match="holds no index beside diffusion_"):
        pretrained.read("AutoencoderKL", tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_a_wrappers_prefix_is_taken_off_or_named(prefix, file, tmp_path):
    theirs = vae()
    theirs.save_pretrained(tmp_path)
    wrapped = {prefix + name: x for name, x in theirs.state_dict().items()}
    path = tmp_path / f"diffusion_pytorch_model.{file}"
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    write = torch.save if file == "bin" else save_file
    write(wrapped, path)
    assert same(pretrained.read("AutoencoderKL", tmp_path), theirs)
    bare = wrapped.pop(prefix + "quant_conv.bias")
    write({**wrapped, "quant_conv.bias": bare}, path)
    first = prefix.split(".")[0]
    with pytest.raises(ValueError, match=f"has a wrapper's prefix '{first}.'"):
        pretrained.read("AutoencoderKL", tmp_path)


def test_weights_are_read_in_the_type_that_is_asked_for(tmp_path):
    vae().half().save_pretrained(tmp_path)
    for dtype, found in ((None, torch.float16), (torch.float32, torch.float32)):
        ours = pretrained.read("AutoencoderKL", tmp_path, dtype)
        assert {p.dtype for p in ours.parameters()} == {found}


def test_the_transformers_of_the_released_unet_read_by_their_place():
    names = [
        pretrained.conditions_of(dims)
        for dims in ([None, 12, 20], [None, 12, 20, None], [None, 12], [12, 12, 20])
    ]
    base, large = (None, "loa", "text"), (None, "loa", "text", None)
    assert names == [base, large, (None, "loa"), ("loa", "loa", "text")]


def test_unets_and_gpts_whose_numbers_do_not_fit_are_refused(tmp_path):
    folder = tmp_path / "unet"
    unet().save_pretrained(folder)
    config = partial(pretrained.unet_config, folder, SCHEDULE)
    assert config().cross_attention == (None, "loa", "text")
    assert config().attention == (False, True)
    assert (config().n_head, config(head_width=8).n_head) == (4, (2, 4))
    for width in (0, 5):
        with pytest.raises(ValueError, match="head_width must divide .*, not"):
            config(head_width=width)
    spoil("cross_attention_dim", [[None, 12, 20], [None, 12, 21]])(folder)
    with pytest.raises(ValueError, match="must be the same at every level"):
        config()
    gpt2().save_pretrained(tmp_path / "gpt2")
    projection().save_pretrained(tmp_path / "projection")
    spoil("langauge_model_dim", 13)(tmp_path / "projection")
    with pytest.raises(ValueError, match="projects to width 13, but GPT-2 reads 12"):
        pretrained.gpt_config(tmp_path / "gpt2", tmp_path / "projection")


def test_the_schedule_is_read_or_refused(tmp_path):
    scheduler = pretrained.scheduler_out(UNet.preset("tiny"))
    scheduler.save_config(tmp_path)
    assert pretrained.read_schedule(tmp_path) == {**SCHEDULE, "prediction": "v"}
    scheduler.register_to_config(prediction_type="sample")
    scheduler.save_config(tmp_path)
    with pytest.raises(ValueError, match="must be one of epsilon, v_prediction for"):
        pretrained.read_schedule(tmp_path)
    scheduler.register_to_config(beta_schedule="linear")
    scheduler.save_config(tmp_path)
    with pytest.raises(
        ValueError,
        match="beta_schedule must be 'scaled_linear' for minilib, not 'linear'",
    ):
        pretrained.read_schedule(tmp_path)


def schedule_with(folder, **changes):
    """A scheduler's folder as released, with other settings."""
    pretrained.scheduler_out(UNet.preset("tiny")).save_config(folder)
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return pretrained.read_schedule(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rescale_betas_zero_snr", True), ("thresholding", True),
        ("prediction_type", "sample"), ("clip_sample", True), ("steps_offset", 0),
        ("trained_betas", [0.1]), ("set_alpha_to_one", True),
        ("timestep_spacing", "trailing"), ("something_new", 1),
    ],
)  # fmt: skip
def test_no_setting_of_a_scheduler_is_passed_over(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{name}.*"):
        schedule_with(tmp_path, **{name: value})


def test_another_scheduler_is_said_to_be_left_unread_if_its_noise_levels_fit(tmp_path):
    from diffusers import DPMSolverMultistepScheduler

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_released = schedule_with(tmp_path, clip_sample_range=2.0)  # without effect
    other = DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    other.save_config(tmp_path)
    said = "is for a DPMSolverMultistepScheduler, but .* not read: .*solver_order"
    with pytest.warns(UserWarning, match=said):
        assert pretrained.read_schedule(tmp_path) == as_released
    with (
        pytest.warns(UserWarning, match=said),
        pytest.raises(ValueError, match="rescale_betas_zero_snr must be False"),
    ):
        other.register_to_config(rescale_betas_zero_snr=True)
        other.save_config(tmp_path)
        pretrained.read_schedule(tmp_path)


CONFIGS = {  # a class of theirs, and settings that ours lacks
    "vae": (
        vae,
        {
            "act_fn": "gelu", "shift_factor": 0.1, "latents_mean": [0.0] * 4,
            "use_quant_conv": False, "mid_block_add_attention": False,
            "out_channels": 2, "down_block_types": ["DownEncoderBlock2D", "Other"],
            "up_block_types": ["UpDecoderBlock2D"], "_class_name": "AutoencoderTiny",
            "something_new": None,
        },
    ),
    "unet": (
        unet,
        {
            "time_embedding_act_fn": "silu", "timestep_post_act": "silu",
            "addition_embed_type": "text", "encoder_hid_dim": 8, "norm_eps": 1e-6,
            "num_attention_heads": 3, "time_cond_proj_dim": 4, "num_class_embeds": 2,
            "class_embeddings_concat": True, "upcast_attention": True,
            "mid_block_type": None, "time_embedding_dim": 12, "out_channels": 8,
            "down_block_types": ["DownBlock2D", "ResnetDownsampleBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": [1, 1], "resnet_skip_time_act": True,
            "_class_name": "UNet2DConditionModel", "something_new": 1,
        },
    ),
    "t5": (
        t5,
        {"feed_forward_proj": "relu", "dense_act_fn": "relu", "something_new": 1},
    ),
    "vocoder": (
        vocoder,
        {"normalize_before": True, "sampling_rate": 22050, "something_new": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, (_, others) in CONFIGS.items() for field in others],
)
def test_no_field_of_a_config_is_passed_over(name, field, tmp_path):
    make, others = CONFIGS[name]
    make().save_pretrained(tmp_path)
    spoil(field, others[field])(tmp_path)
    with pytest.raises(ValueError, match=f"config.json: .*{field}") as caught:
        MODELS[name][1](tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "field", "value"),
    [
        ("gpt2", "activation_function", "relu"), ("gpt2", "n_inner", 7),
        ("gpt2", "reorder_and_upcast_attn", True), ("gpt2", "something_new", 1),
        ("projection", "something_new", 1),
    ],
)  # fmt: skip
def test_no_field_of_gpt2_and_its_projections_is_passed_over(
    folder, field, value, tmp_path
):
    gpt2().save_pretrained(tmp_path / "gpt2")
    projection().save_pretrained(tmp_path / "projection")
    spoil(field, value)(tmp_path / folder)
    with pytest.raises(ValueError, match=f"config.json: .*{field}"):
        pretrained.gpt_config(tmp_path / "gpt2", tmp_path / "projection")


# What older versions of both libraries wrote, as the published folders hold it.
WRITTEN_BEFORE = {
    "vae": {"_diffusers_version": "0.21.0.dev0", "sample_size": 1024},
    "unet": {
        "_name_or_path": "x", "sample_size": 256, "encoder_hid_dim": None,
        "addition_embed_type_num_heads": 64, "dual_cross_attention": False,
    },
    "t5": {
        "_name_or_path": "google/flan-t5-large", "classifier_dropout": 0.0,
        "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "n_positions": 512,
        "is_gated_act": True, "output_past": True, "tie_word_embeddings": False,
        "torch_dtype": "float32", "use_cache": True, "initializer_factor": 1.0,
        "task_specific_params": {}, "transformers_version": "4.32.0.dev0",
    },
    "vocoder": {"torch_dtype": "float32", "initializer_range": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_has_no_effect_is_read_over(name, tmp_path):
    make, read, _ = MODELS[name]
    make().save_pretrained(tmp_path)
    expected = read(tmp_path)
    for field, value in WRITTEN_BEFORE[name].items():
        spoil(field, value)(tmp_path)
    again = read(tmp_path)
    assert same(again, expected) and again.config == expected.config


bare = {"loa_channels": 0, "patch": 1}  # as the released U-Net


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (VAE.preset("tiny"), "a VAE with final_norm=False has no counterpart in"),
        (UNet.preset("tiny"), "a U-Net with loa_channels=32 has no counterpart in"),
        (UNet.preset("tiny", **bare | {"patch": 2}), "train one with patch=1"),
        (
            UNet.preset("tiny", **bare, cross_attention=(None, "loa", "clap")),
            r"train one with cross_attention=\(None, 'loa', 'text'\)",
        ),
        (
            LOARegressor(GPTConfig(n_layer=1, conditions=("text", "clap"))),
            r"an LOA regressor with conditions=\('text', 'clap'\) has no counterpart",
        ),
        (Vocos.preset("tiny"), "the vocoder Vocos has no counterpart in transformers"),
        (CLAP.preset("tiny"), "the CLAP and the tokenizer of this package have no"),
    ],
)
def test_what_has_no_counterpart_is_named(model, said):
    with pytest.raises(ValueError, match=said):
        released.out(model)


def test_configs_of_other_modules_are_refused(tmp_path):
    t5().save_pretrained(tmp_path / "t5")
    vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="is not the config of a GPT2Model"):
        pretrained.read_sizes("GPT2Model", tmp_path / "t5" / "config.json")
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        ValueError,
        match="is not the config of a AudioLDM2ProjectionModel: it lacks text_enc",
    ):
        pretrained.read_gpt(tmp_path / "gpt2", tmp_path / "vae")
    # diffusers would count from 0 to 1, linearly
    (tmp_path / "scheduler_config.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match="beta_schedule must be 'scaled_linear' for minilib, not 'linear'",
    ):
        pretrained.read_schedule(tmp_path)
