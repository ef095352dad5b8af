"""A whole pipeline, so small that it is made in a moment and says nothing sensible."""

import torch

from minilib.audiomae import AudioMAE, AudioMAEConfig
from minilib.clap import CLAP, CLAPConfig
from minilib.gpt import GPTConfig, LOARegressor
from minilib.model import Model
from minilib.text import T5Config, T5Encoder
from minilib.tokenizer import MIN_VOCABULARY
from minilib.unet import UNet, UNetConfig
from minilib.vae import VAE, VAEConfig
from minilib.vocoder import Vocos, VocosConfig

SECONDS = 0.64  # of the sounds that the small pipeline makes: 64 frames
WIDTH = 16  # of everything
VOCABULARY = MIN_VOCABULARY + 30


def small_parts() -> dict[str, Model]:
    """Every part of a pipeline at a few thousand parameters, random but fixed."""
    torch.manual_seed(0)
    W = WIDTH
    text = T5Config(VOCABULARY, W, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    clap = CLAPConfig(
        dim=W, dropout=0.0, vocab_size=VOCABULARY, n_embd=W, n_layer=1, n_head=2,
        n_positions=80, channels=(4, 8), stride=2,
    )  # fmt: skip
    gpt = GPTConfig(
        condition_dims=(W, W), n_embd=W, n_layer=1, n_head=2, n_positions=128,
        n_tokens=4, vocab_size=1,
    )  # fmt: skip
    unet = UNetConfig(
        in_channels=4, block_out_channels=(8, W), attention=(False, True),
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=(None, W, W),
        n_head=2, loa_channels=2, loa_grid=(2, 2), loa_patch=8,
    )  # fmt: skip
    vae = VAEConfig(
        latent_channels=4, block_out_channels=(4, 8, 8), layers_per_block=1,
        norm_num_groups=4, scaling_factor=1.0,
    )  # fmt: skip
    audiomae = AudioMAEConfig(
        n_frames=64, n_mels=64, hidden_size=W, num_hidden_layers=1,
        num_attention_heads=2, decoder_hidden_size=W, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, n_feature_layers=1, pool=2, pools=(1, 2, 4),
    )  # fmt: skip
    return {
        "text": T5Encoder(text),
        "clap": CLAP(clap),
        "gpt": LOARegressor(gpt),
        "unet": UNet(unet),
        "vae": VAE(vae),
        "vocoder": Vocos(VocosConfig(dim=W, intermediate_dim=32, n_layer=1)),
        "audiomae": AudioMAE(audiomae),
    }
