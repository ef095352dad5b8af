"""VAE and U-Net are diffusers', HiFi-GAN and the AudioMAE encoder transformers', key by
key and number by number.
"""

from dataclasses import replace

import pytest
import torch

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.audiomae import AudioMAE, AudioMAEConfig, sincos_positions
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

    theirs = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 16, 24), layers_per_block=2,
        norm_num_groups=2, down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    )  # fmt: skip
    ours = VAE(
        VAEConfig(
            1, 4, (8, 16, 24), layers_per_block=2, norm_num_groups=2, scaling_factor=0.5
        )
    )
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


VARIANTS = {"base": (None, 12, 20), "large": (None, 12, 20, None), "speech": (None, 12)}


@pytest.mark.parametrize("dims", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(
    ("padded", "recompute"), [(False, False), (True, False), (True, True)]
)
def test_unet_equals_audioldm2unet_forward_and_backward(dims, padded, recompute):
    from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel

    layers = 2 if len(dims) == 4 else 1
    theirs = AudioLDM2UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, cross_attention_dim=[list(dims)] * 3, attention_head_dim=4,
        transformer_layers_per_block=layers,
    )  # fmt: skip
    config = UNetConfig(4, (16, 32, 32), (False, True, True), 2, 4, dims, layers, 4)
    ours = UNet(config)
    ours.recompute_activations(recompute)
    ours.load_state_dict(randomise(theirs).state_dict())
    generator = torch.Generator().manual_seed(2)
    z, t = torch.randn(2, 4, 16, 8, generator=generator), torch.tensor([3, 700])
    loa, text = (
        torch.randn(2, 5, 12, generator=generator),
        torch.randn(2, 7, 20, generator=generator),
    )
    mask = torch.arange(7) < torch.tensor([[7], [4 if padded else 7]])
    expected = theirs(
        z, t - 1, encoder_hidden_states=loa, encoder_hidden_states_1=text if len(dims) > 2 else loa,
        encoder_attention_mask_1=mask if len(dims) > 2 else None,
    ).sample  # fmt: skip
    got = ours(z, t, (loa, None), (text, mask))
    assert relative_error(got, expected) < 1e-5
    got.square().mean().backward()
    expected.square().mean().backward()
    assert gradient_error(ours, theirs) < 1e-4


def test_heads_level_by_level_are_theirs():
    """Heads of one width, as the original code trained the released weights: other
    numbers, the same keys.
    """
    from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel

    theirs = AudioLDM2UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        norm_num_groups=4, cross_attention_dim=[[None, 12, 20]] * 2, attention_head_dim=(2, 4),
    )  # fmt: skip
    ours = UNet(UNetConfig(4, (16, 32), (True, True), 1, 4, (None, 12, 20), 1, (2, 4)))
    ours.load_state_dict(randomise(theirs).state_dict())
    generator = torch.Generator().manual_seed(2)
    z, t = torch.randn(2, 4, 16, 8, generator=generator), torch.tensor([3, 700])
    loa, text = (
        torch.randn(2, 5, 12, generator=generator),
        torch.randn(2, 7, 20, generator=generator),
    )
    with torch.no_grad():
        expected = theirs(
            z, t - 1, encoder_hidden_states=loa, encoder_hidden_states_1=text
        ).sample
        assert relative_error(ours(z, t, (loa, None), (text, None)), expected) < 1e-5
        same_everywhere = UNet(replace(ours.config, n_head=4))
        same_everywhere.load_state_dict(ours.state_dict())
        assert (
            relative_error(same_everywhere(z, t, (loa, None), (text, None)), expected)
            > 1e-3
        )
    with pytest.raises(
        ValueError,
        match=r"n_head must be one number or one for each of 2 levels, not \(2, 4, 8\)",
    ):
        UNet(replace(ours.config, n_head=(2, 4, 8)))


def test_unet_with_the_loa_beside_its_latent_is_theirs_with_more_input_channels():
    from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel

    theirs = AudioLDM2UNet2DConditionModel(
        sample_size=16, in_channels=4 + 3, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, cross_attention_dim=[[None, 12, 20]] * 2, attention_head_dim=4,
    )  # fmt: skip
    config = UNetConfig(4, (16, 32), (False, True), 1, 4, (None, 12, 20), 1, 4)
    ours = UNet(replace(config, loa_channels=3, loa_grid=(4, 2), loa_patch=4))
    randomise(ours)
    theirs.load_state_dict(
        {k: v for k, v in ours.state_dict().items() if not k.startswith("loa_map.")}
    )
    generator = torch.Generator().manual_seed(2)
    z, t = torch.randn(2, 4, 16, 8, generator=generator), torch.tensor([3, 700])
    loa, text = (
        torch.randn(2, 8, 12, generator=generator),
        torch.randn(2, 7, 20, generator=generator),
    )
    with torch.no_grad():
        wide = torch.cat([z, ours.loa_map(loa, 16)], dim=1)
        expected = theirs(
            wide, t - 1, encoder_hidden_states=loa, encoder_hidden_states_1=text
        ).sample
        assert relative_error(ours(z, t, (loa, None), (text, None)), expected) < 1e-5


def test_each_loa_vector_unfolds_into_its_own_patch_and_repeats_in_a_longer_latent():
    loa_map = LOAMap(12, 3, grid=(4, 2), patch=4)
    loa = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    other = loa.clone()
    other[0, 5] += 1.0  # the vector of row 2 in time, column 1 in frequency
    with torch.no_grad():
        plane = loa_map(loa, 16)
        changed = (loa_map(other, 16) != plane)[0].all(dim=0)  # (16, 8)
        assert plane.shape == (1, 3, 16, 8)
        assert changed[8:12, 4:].all() and changed.sum() == 16
        assert torch.equal(
            loa_map(loa, 40), torch.cat([plane, plane, plane[:, :, :8]], dim=2)
        )
        assert torch.equal(loa_map(loa, 6), plane[:, :, :6])


def test_unet_sees_no_padding_of_the_text():
    unet = randomise(
        UNet(UNetConfig(4, (16, 32), (False, True), 1, 4, (None, 12, 20), 1, 4))
    )
    generator = torch.Generator().manual_seed(3)
    z, t = torch.randn(2, 4, 16, 8, generator=generator), torch.tensor([3, 700])
    loa, text = (
        torch.randn(2, 5, 12, generator=generator),
        torch.randn(2, 7, 20, generator=generator),
    )
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    other = text.clone()
    other[1, 4:] = 100.0
    with torch.no_grad():
        assert torch.equal(
            unet(z, t, (loa, None), (text, mask)),
            unet(z, t, (loa, None), (other, mask)),
        )
        assert not torch.equal(
            unet(z, t, (loa, None), (text, None)),
            unet(z, t, (loa, None), (other, None)),
        )


def test_hifigan_equals_speecht5hifigan():
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    sizes = dict(
        model_in_dim=8, upsample_initial_channel=32, upsample_rates=[5, 4], upsample_kernel_sizes=[16, 8],
        resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3], [1, 5]],
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
        AudioMAEConfig(32, 32, 8, 16, 2, 2, 8, 1, 2, mel_mean=0.0, mel_std=1.0)
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
    unet = UNet(UNetConfig(4, (16, 32), (False, True), 1, 4, (None, 12, 20), 1, 4))
    z, t = torch.randn(2, 4, 16, 8), torch.tensor([3, 700])
    contexts = (torch.randn(2, 5, 12), None), (torch.randn(2, 7, 20), None)
    kept = []
    for recompute in (False, True):
        unet.recompute_activations(recompute)
        sizes: dict[int, int] = {}
        keep = lambda x, sizes=sizes: (
            sizes.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()})
            or x
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            unet(z, t, *contexts)
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.5 * kept[0]
