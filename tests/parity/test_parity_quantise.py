"""The quantiser and the autoencoder around it are those of diffusers' VQModel, key by
key, number by number and gradient by gradient.
"""

import pytest
import torch

import minilib  # noqa: F401  (guards torchaudio, which diffusers imports)
from minilib.quantise import VectorQuantiser
from minilib.vae import VQVAE, VQVAEConfig

SIZES = dict(
    in_channels=1, latent_channels=4, block_out_channels=(8, 16, 24),
    layers_per_block=2, norm_num_groups=2,
)  # fmt: skip


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.05
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def quantisers() -> tuple[VectorQuantiser, torch.nn.Module]:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    theirs = VectorQuantizer(16, 4, beta=0.25, legacy=False)
    theirs.embedding.weight.data = normal(16, 4)
    ours = VectorQuantiser(16, 4, decay=0.0, restart=0.0)
    ours.load_state_dict(theirs.state_dict())  # strict: every key, every shape
    return ours, theirs


def test_the_quantiser_equals_vectorquantizer_forward_and_backward():
    gradients = []
    for quantiser in quantisers():
        x, weight = normal(2, 4, 6, 3, seed=1).requires_grad_(), normal(2, 4, 6, 3)
        if isinstance(quantiser, VectorQuantiser):
            vectors, codes, loss = quantiser(x.movedim(1, -1))
            vectors = vectors.movedim(-1, 1)
        else:
            vectors, loss, (_, _, codes) = quantiser(x)
        total = loss + (vectors * weight).mean()
        of = (x, quantiser.embedding.weight)
        gradients.append([vectors, loss, *torch.autograd.grad(total, of)])
        gradients[-1].append(codes.flatten())
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)
    assert len(gradients[0][-1].unique()) > 8


def test_their_own_default_puts_beta_on_the_other_term():
    """ "legacy": the code of Stable Diffusion's VQ models weighs the codebook term."""
    from diffusers.models.autoencoders.vae import VectorQuantizer

    ours, theirs = quantisers()
    legacy = VectorQuantizer(16, 4, beta=0.25)
    legacy.load_state_dict(theirs.state_dict())
    x = normal(2, 4, 6, 3, seed=1)
    apart = (x.movedim(1, -1) - ours(x.movedim(1, -1)).vectors).square().mean()
    # the same number, and different gradients
    torch.testing.assert_close(legacy(x)[1], 1.25 * apart)
    for quantiser, of_codes in ((theirs, 1.0), (legacy, 0.25)):
        quantiser.zero_grad()
        quantiser(x)[1].backward()
        ours.zero_grad()
        ours(x.movedim(1, -1)).loss.backward()
        torch.testing.assert_close(
            quantiser.embedding.weight.grad, of_codes * ours.embedding.weight.grad
        )


@pytest.fixture(scope="module")
def models() -> tuple[VQVAE, torch.nn.Module]:
    from diffusers import VQModel

    theirs = VQModel(
        **SIZES,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        num_vq_embeddings=16,
    )
    with torch.no_grad():  # weights that keep activations of order one
        for seed, p in enumerate(theirs.parameters()):
            scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.2
            p.copy_(scale * normal(*p.shape, seed=seed) + 0.5 * (p.ndim == 1))
        # codes among the latents, so that many are used
        z = theirs.encode(normal(2, 1, 48, 16, seed=7)).latents
        rows = z.movedim(1, -1).reshape(-1, 4)
        theirs.quantize.embedding.weight.copy_(rows[torch.arange(16) * 6])
    ours = VQVAE(VQVAEConfig(**SIZES, n_codes=16, decay=0.0, restart=0.0))
    ours.load_state_dict(theirs.state_dict())  # strict: every key, every shape
    return ours.eval(), theirs.eval()


def test_vqvae_equals_vqmodel_forward_and_backward(models):
    ours, theirs = models
    mel = normal(2, 1, 48, 16, seed=1)
    z = theirs.encode(mel).latents
    scale = ours.config.scaling_factor
    assert relative_error(ours.encode(mel), z * scale) < 1e-5
    decoded = theirs.decode(z)
    assert relative_error(ours.decode(z * scale), decoded.sample) < 1e-5
    assert relative_error(ours(mel), theirs(mel).sample) < 1e-5
    codes = ours.quantise(z).codes
    assert codes.shape == (2, 12, 4) and len(codes.unique()) > 4
    for model, restored in ((ours, ours(mel)), (theirs, theirs(mel).sample)):
        model.zero_grad()
        restored.square().mean().backward()
    their_gradient = {k: p.grad for k, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None and their_gradient[name] is not None:
            error = (parameter.grad - their_gradient[name]).norm()
            assert error < 1e-4 * their_gradient[name].norm().clamp_min(1e-3), name


def test_the_loss_is_their_restored_mel_and_their_quantisers_loss(models):
    ours, theirs = models
    mel = normal(2, 1, 48, 16, seed=1)
    theirs.quantize.legacy = False
    told = theirs(mel)
    loss = ours.loss({"mel": mel})
    torch.testing.assert_close(loss["vq"], told.commit_loss)
    torch.testing.assert_close(loss["l1"], (told.sample - mel).abs().mean())
