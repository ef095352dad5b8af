"""diffusers' AudioLDM2Pipeline in small sizes, of random weights: what parity tests and
benchmark compare with.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)

SPACE = 24  # dimensions in which CLAP's captions and sounds meet
PROMPTS = ["a dog barks", "loud rain falls on a roof", "a bell"]


@dataclass(frozen=True)
class Size:
    """Widths and depths of every module."""

    seconds: float = 0.64
    clap: int = 16  # width of the text tower, of `layers` layers
    layers: int = 1
    positions: int = 128  # of CLAP and of GPT-2
    text: int = 20  # width of T5
    loa: int = 12  # width of GPT-2
    loa_layers: int = 2
    loa_heads: int = 3
    words: int = 30  # in GPT-2's table
    n_loa: int = 5
    heads: int = 2  # of the U-Net's attention
    vae: tuple[int, ...] = (8, 16, 16)
    unet: tuple[int, ...] = (16, 32)
    vocoder: int = 32  # its first width
    kernels: tuple[int, ...] = (3,)  # of the vocoder's residual stacks


SMALL = Size()
SIZES = {
    "base": SMALL,
    "large": SMALL,
    "speech": SMALL,
    # LOA as AudioMAE's tiny preset makes it
    "trainable": replace(SMALL, loa=192, n_loa=16),
    "mid": Size(
        seconds=10.24, clap=256, layers=4, positions=1024, text=256, loa=256,
        loa_layers=6, loa_heads=8, words=50257, n_loa=8, vae=(32, 64, 128),
        unet=(32, 64, 96, 160), heads=2, vocoder=256, kernels=(3, 7, 11),
    ),
}  # fmt: skip
SECONDS = SMALL.seconds


def roberta(size: Size) -> Any:
    from transformers import RobertaTokenizer

    words = sorted(
        {f"Ġ{word}" for prompt in PROMPTS for word in prompt.split()} | {"a", "loud"}
    )
    letters = [chr(i) for i in range(97, 123)] + ["Ġ"]
    vocab = {
        t: i
        for i, t in enumerate(
            ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *words]
        )
    }
    return RobertaTokenizer(
        vocab=vocab, merges=[], model_max_length=min(512, size.positions - 8)
    )


def clap(size: Size) -> tuple[Any, Any]:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    config = ClapConfig(
        text_config={
            "vocab_size": 60, "hidden_size": size.clap,
            "num_hidden_layers": size.layers, "num_attention_heads": size.clap // 8,
            "intermediate_size": 4 * size.clap,
            "max_position_embeddings": size.positions, "projection_dim": SPACE,
            "pad_token_id": 1,
        },
        audio_config={
            "spec_size": 64, "num_mel_bins": 16, "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1],
            "num_attention_heads": [2, 2], "window_size": 4, "projection_dim": SPACE,
            "enable_fusion": False,
        },
        projection_dim=SPACE,
    )  # fmt: skip
    heard = ClapFeatureExtractor(
        feature_size=16, sampling_rate=48000, hop_length=480, max_length_s=2,
        fft_window_size=1024, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    return ClapModel(config), heard


def t5(size: Size) -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters += [(chr(i), -3.0) for i in range(97, 123)]
    tokenizer = T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=128)
    config = T5Config(
        vocab_size=40, d_model=size.text, d_kv=8, d_ff=2 * size.text,
        num_layers=2 * size.layers, num_heads=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config), tokenizer


def vits(folder: Path) -> tuple[Any, Any]:
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    symbols = ["_", *(chr(i) for i in range(97, 123)), " ", "<unk>"]
    (folder / "vocab.json").write_text(
        json.dumps({symbol: i for i, symbol in enumerate(symbols)})
    )
    tokenizer = VitsTokenizer(
        str(folder / "vocab.json"), pad_token="_", unk_token="<unk>", add_blank=False,
        phonemize=False, model_max_length=24,
    )  # fmt: skip
    config = VitsConfig(
        vocab_size=183, hidden_size=16, num_hidden_layers=1, ffn_dim=24, flow_size=8,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]], prior_encoder_num_flows=1,
        posterior_encoder_num_wavenet_layers=1, prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1, depth_separable_num_layers=1,
    )  # fmt: skip
    return VitsModel(config), tokenizer


def peer(folder: Path, variant: str = "base") -> Any:
    """diffusers' pipeline: base, large, speech, one that `minilib train` can tune, or
    one of middle size.

    The weights are scaled so that activations are of order 1: a pipeline with the
    weights that the classes draw puts out 1e-7, and any comparison passes.
    """
    from diffusers import AudioLDM2Pipeline, AutoencoderKL, DDIMScheduler
    from diffusers.pipelines.audioldm2 import (
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
    )
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    torch.manual_seed(0)
    size, speech = SIZES[variant], variant == "speech"
    text, tokenizer_2 = vits(folder) if speech else t5(size)
    text_encoder, feature_extractor = clap(size)
    dims = [None, size.loa] + {"speech": [], "large": [size.text, None]}.get(
        variant, [size.text]
    )
    learned = (
        {"use_learned_position_embedding": True, "max_seq_length": 24} if speech else {}
    )
    n_up = len(size.unet) - 1
    parts = {
        "vae": AutoencoderKL(
            in_channels=1, out_channels=1, latent_channels=4,
            block_out_channels=size.vae, layers_per_block=1, norm_num_groups=4,
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3, scaling_factor=0.4,
        ),
        "text_encoder": text_encoder, "text_encoder_2": text,
        "projection_model": AudioLDM2ProjectionModel(
            SPACE, 16 if speech else size.text, size.loa, **learned
        ),
        "language_model": GPT2LMHeadModel(
            GPT2Config(
                n_embd=size.loa, n_layer=size.loa_layers, n_head=size.loa_heads,
                n_positions=size.positions, vocab_size=size.words,
                max_new_tokens=size.n_loa,
            )
        ),
        "unet": AudioLDM2UNet2DConditionModel(
            sample_size=round(size.seconds * 25), in_channels=4, out_channels=4,
            layers_per_block=1, block_out_channels=size.unet,
            down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * n_up,
            up_block_types=["CrossAttnUpBlock2D"] * n_up + ["UpBlock2D"],
            norm_num_groups=4, cross_attention_dim=[dims] * len(size.unet),
            attention_head_dim=size.heads,
            transformer_layers_per_block=2 if variant == "large" else 1,
        ),
        "vocoder": SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=64, upsample_initial_channel=size.vocoder,
                upsample_rates=[5, 4, 2, 2, 2], upsample_kernel_sizes=[16, 16, 8, 4, 4],
                resblock_kernel_sizes=list(size.kernels),
                resblock_dilation_sizes=[[1, 3]] * len(size.kernels),
                normalize_before=False,
            )
        ),
    }  # fmt: skip
    for part in parts.values():
        part.eval()
        for parameter in part.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipe = AudioLDM2Pipeline(
        **parts, tokenizer=roberta(size), tokenizer_2=tokenizer_2,
        feature_extractor=feature_extractor, scheduler=scheduler,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
