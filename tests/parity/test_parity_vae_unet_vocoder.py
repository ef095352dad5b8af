"""VAE and U-Net are diffusers', HiFi-GAN and the AudioMAE encoder transformers', key by
key and number by number.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.audiomae import AudioMAE, AudioMAEConfig, sincos_positions
from minilib.conditions import Conditions, Context
from minilib.unet import LOAMap, UNet, UNetConfig
from minilib.vae import VAE, VAEConfig, standardise
from minilib.vocoder import HiFiGAN, HiFiGANConfig


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep activations of order one: with the usual small ones any test
    would pass on noise.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.copy_(0.5 + 0.2 * torch.randn(p.shape, generator=generator))
            else:
                p.copy_(
                    torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5
                )
    return model.eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.05
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def gradient_error(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    """Norm of the difference of all gradients over their norm."""
    theirs_grad = {name: p.grad for name, p in theirs.named_parameters()}
    pairs = [(p.grad, theirs_grad[name]) for name, p in ours.named_parameters()]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def vaes() -> tuple[VAE, torch.nn.Module]:
    from diffusers import AutoencoderKL

    sizes = dict(
        in_channels=1, latent_channels=4, block_out_channels=(8, 16, 24),
        layers_per_block=2, norm_num_groups=2,
    )  # fmt: skip
    theirs = AutoencoderKL(
        **sizes,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
    )
    ours = VAE(VAEConfig(**sizes, scaling_factor=0.5))
    # strict: every key, every shape
    ours.load_state_dict(randomise(theirs).state_dict())
    return ours.eval(), theirs


def test_vae_equals_autoencoderkl_forward_and_backward():
    ours, theirs = vaes()
    mel = torch.randn(2, 1, 48, 16, generator=torch.Generator().manual_seed(1))
    z = theirs.encode(mel).latent_dist.mean
    decoded = theirs.decode(z).sample
    assert relative_error(ours.encode(mel), z * 0.5) < 1e-5
    assert relative_error(ours(mel), decoded) < 1e-5
    ours(mel).square().mean().backward()
    decoded.square().mean().backward()
    # the log-variance has no part in this: no gradient on either side
    for model in (ours, theirs):
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    assert gradient_error(ours, theirs) < 1e-4


def test_folding_the_latents_scale_into_the_vae_changes_no_decoded_mel():
    ours, _ = vaes()
    mel = torch.randn(2, 1, 48, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, z = ours(mel), ours.encode(mel)
        # z is scaled by 0.5
        standardise(ours, 2 * z.mean(dim=(0, 2, 3)), 2 * z.std(dim=(0, 2, 3)))
        after, z = ours(mel), 2 * ours.encode(mel)
    assert relative_error(after, before) < 1e-5
    assert (
        z.mean(dim=(0, 2, 3)).abs().max() < 1e-4
        and (z.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4
    )


VARIANTS = {
    "base": {"loa": 12, "text": 20},
    "large": {"loa": 12, "text": 20, None: None},
    "speech": {"loa": 12},
}


def unets(
    reads: dict[str | None, int | None],
    attention: tuple[bool, ...] = (False, True),
    n_head: int | tuple[int, ...] = 4,
    transformer_layers: int = 1,
    layers_per_block: int = 1,
    **ours: Any,
) -> tuple[UNet, torch.nn.Module]:
    """Our U-Net and diffusers', of the same weights, but for the map of the LOA."""
    from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel

    names, dims = zip((None, None), *reads.items())
    widths, kinds = (16, 32, 32)[: len(attention)], ["DownBlock2D", "UpBlock2D"]
    down, up = (
        [f"CrossAttn{kind}" if attended else kind for attended in attention]
        for kind in kinds
    )
    config = UNetConfig(
        in_channels=4, block_out_channels=widths, attention=attention,
        layers_per_block=layers_per_block, norm_num_groups=4, cross_attention=names,
        cross_attention_dim=dims, transformer_layers=transformer_layers, n_head=n_head,
        **ours,
    )  # fmt: skip
    theirs = AudioLDM2UNet2DConditionModel(
        sample_size=16, in_channels=4 + config.loa_channels, out_channels=4,
        layers_per_block=layers_per_block, block_out_channels=widths,
        down_block_types=down, up_block_types=up[::-1], norm_num_groups=4,
        cross_attention_dim=[list(dims)] * len(widths), attention_head_dim=n_head,
        transformer_layers_per_block=transformer_layers,
    )  # fmt: skip
    unet = randomise(UNet(config))
    state = unet.state_dict()
    # strict: every key, every shape
    theirs.load_state_dict({k: x for k, x in state.items() if "loa_map." not in k})
    return unet, theirs.eval()


def batch(n_loa: int = 5, n_read: int = 7) -> tuple[torch.Tensor, ...]:
    """Latents, noise levels and conditions, of whose second text `n_read` of 7 vectors
    are to be read.
    """
    generator = torch.Generator().manual_seed(2)
    random = lambda *shape: torch.randn(shape, generator=generator)
    z, loa, text = random(2, 4, 16, 8), random(2, n_loa, 12), random(2, 7, 20)
    mask = None if n_read == 7 else torch.arange(7) < torch.tensor([[7], [n_read]])
    conditions = {"loa": Context(loa), "text": Context(text, mask)}
    return z, torch.tensor([3, 700]), conditions


def their_eps(
    theirs: torch.nn.Module, z: torch.Tensor, t: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """What diffusers' U-Net says; it counts noise levels from 0."""
    text, mask = conditions["text"]
    return theirs(
        z, t - 1, encoder_hidden_states=conditions["loa"].sequence,
        encoder_hidden_states_1=text, encoder_attention_mask_1=mask,
    ).sample  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS)
def both(request):
    """The U-Nets of a variant, with two layers a block, transformers as released."""
    depth = 2 if request.param == "large" else 1
    return unets(VARIANTS[request.param], (False, True, True), 4, depth, 2)


@pytest.mark.parametrize(
    ("padded", "recompute"), [(False, False), (True, False), (True, True)]
)
def test_unet_equals_audioldm2unet_forward_and_backward(both, padded, recompute):
    ours, theirs = both
    ours.recompute_activations(recompute)
    z, t, conditions = batch(n_read=4 if padded else 7)
    expected, got = their_eps(theirs, z, t, conditions), ours(z, t, conditions)
    assert relative_error(got, expected) < 1e-5
    for model, eps in ((ours, got), (theirs, expected)):
        model.zero_grad()
        eps.square().mean().backward()
    assert gradient_error(ours, theirs) < 1e-4


@torch.no_grad()
def test_heads_one_by_one_are_theirs():
    """Heads of one width, as the original code trained the released weights: other
    numbers, the same keys.
    """
    ours, theirs = unets(VARIANTS["base"], (True, True), n_head=(2, 4))
    expected = their_eps(theirs, *batch())
    assert relative_error(ours(*batch()), expected) < 1e-5
    same_everywhere = UNet(replace(ours.config, n_head=4))
    same_everywhere.load_state_dict(ours.state_dict())
    assert relative_error(same_everywhere(*batch()), expected) > 1e-3
    said = r"n_head must be one number or one for each of 2, not \(2, 4, 8\)"
    with pytest.raises(ValueError, match=said):
        UNet(replace(ours.config, n_head=(2, 4, 8)))


@torch.no_grad()
def test_unet_with_the_loa_beside_its_latent_is_theirs_with_more_input_channels():
    ours, theirs = unets(VARIANTS["base"], loa_channels=3, loa_grid=(4, 2))
    z, t, conditions = batch(n_loa=8)
    wide = torch.cat([z, ours.loa_map(conditions["loa"].sequence, 16)], dim=1)
    expected = their_eps(theirs, wide, t, conditions)
    assert relative_error(ours(z, t, conditions), expected) < 1e-5


@torch.no_grad()
def test_each_loa_vector_unfolds_into_its_own_patch_and_repeats_in_a_longer_latent():
    config = UNetConfig(loa_channels=3, loa_grid=(4, 2), loa_patch=4)
    loa_map = LOAMap(config, loa_dim=12)
    loa = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    other = loa.clone()
    other[0, 5] += 1.0  # the vector of row 2 in time, column 1 in frequency
    plane = loa_map(loa, 16)
    changed = (loa_map(other, 16) != plane)[0].all(dim=0)  # (16, 8)
    assert plane.shape == (1, 3, 16, 8)
    assert changed[8:12, 4:].all() and changed.sum() == 16
    longer = torch.cat([plane, plane, plane[:, :, :8]], dim=2)
    assert torch.equal(loa_map(loa, 40), longer)
    assert torch.equal(loa_map(loa, 6), plane[:, :, :6])


@torch.no_grad()
def test_unet_sees_no_padding_of_the_text():
    unet, _ = unets(VARIANTS["base"])
    z, t, conditions = batch(n_read=4)
    text, mask = conditions["text"]
    other = text.clone()
    other[1, 4:] = 100.0
    eps = lambda *text: unet(z, t, {**conditions, "text": Context(*text)})
    assert torch.equal(eps(text, mask), eps(other, mask))
    assert not torch.equal(eps(text), eps(other))


def test_hifigan_equals_speecht5hifigan():
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    sizes = dict(
        model_in_dim=8, upsample_initial_channel=32, upsample_rates=[5, 4],
        upsample_kernel_sizes=[16, 8], resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3], [1, 5]],
    )  # fmt: skip
    theirs = SpeechT5HifiGan(SpeechT5HifiGanConfig(**sizes, normalize_before=False))
    ours = HiFiGAN(HiFiGANConfig(8, 32, (5, 4), (16, 8), (3, 7), ((1, 3), (1, 5))))
    ours.load_state_dict(randomise(theirs).state_dict())
    mel = torch.randn(2, 1, 20, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert relative_error(ours.eval()(mel), theirs(mel[:, 0])) < 1e-5


RENAMED = {  # ours -> transformers'
    "patch_embed": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "layer.": "layers.",
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.o_proj",
    "norm_before": "layernorm_before",
    "norm_after": "layernorm_after",
    "intermediate": "mlp.fc1",
    "output": "mlp.fc2",
}


def test_audiomae_encoder_equals_vitmae_without_masking():
    from transformers import ViTMAEConfig, ViTMAEModel

    sizes = dict(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        layer_norm_eps=1e-6,
    )
    theirs = ViTMAEModel(
        ViTMAEConfig(
            **sizes, image_size=32, patch_size=8, num_channels=1, mask_ratio=0.0
        )
    )
    randomise(theirs)
    # MAE's own code puts the second axis first, as ours does; transformers 5 draws them
    # the other way round
    theirs.embeddings.position_embeddings.data = sincos_positions(16, (4, 4))[None]
    ours = AudioMAE(
        AudioMAEConfig(
            n_frames=32,
            n_mels=32,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            mel_mean=0.0,
            mel_std=1.0,
        )
    ).eval()
    state = theirs.state_dict()
    mine = {}
    for name in ours.vit.state_dict():
        other = name
        for a, b in RENAMED.items():
            other = other.replace(a, b)
        mine[name] = state[other]
    ours.vit.load_state_dict(mine)
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        # the noise that leaves the patches where they are
        in_order = torch.arange(16.0).expand(2, -1)
        expected = theirs(x, noise=in_order).last_hidden_state
        assert relative_error(ours.vit.layernorm(ours.vit(x)[-1]), expected) < 1e-5


def test_recomputed_activations_are_not_kept():
    unet, _ = unets(VARIANTS["base"])
    kept = []
    for recompute in (False, True):
        unet.recompute_activations(recompute)
        sizes: dict[int, int] = {}

        def keep(x, sizes=sizes):
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            unet(*batch())
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.5 * kept[0]
