"""The codec of the log-mel: its codes, its bits, and what it says to bad input."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minilib.codec import Codec, CodecConfig, Means
from minilib.quantise import GRVQ, RVQ
from minilib.training import Recipe, fit
from minilib.vae import VAE

SMALL = CodecConfig(width=16, n_layer=1, dim=8, n_levels=4, n_codes=8)


def small(**changes) -> Codec:
    """A codec whose codebooks started from a first batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = Codec(replace(SMALL, **changes))
    given = symbols(4, seed=7) if codec.config.n_symbols else None
    codec.train()(mel(4, seed=7), symbols=given)
    return codec.eval()


def mel(n: int = 2, frames: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(n, 1, frames // 4, 2, generator=generator)
    bands = torch.linspace(0, math.pi, 64)
    shapes = torch.stack([bands.cos(), (3 * bands).sin()])  # what can be learned
    return -7 + 2 * level.repeat_interleave(4, dim=2) @ shapes


def symbols(n: int = 2, frames: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, (n, frames), generator=generator)


@pytest.mark.parametrize("n_groups, n_levels", [(1, 4), (2, 2), (4, 1)])
def test_a_log_mel_becomes_codes_and_comes_back(n_groups, n_levels):
    codec, x = small(n_groups=n_groups, n_levels=n_levels), mel()
    codes = codec.encode(x)
    assert codes.shape == (2, 12, 4) and codes.dtype == torch.long
    assert 0 <= codes.min() and codes.max() < 8 and len(codes.unique()) > 2
    assert isinstance(codec.quantiser, RVQ if n_groups == 1 else GRVQ)
    assert codec.decode(codes).shape == x.shape
    torch.testing.assert_close(codec.decode(codes), codec(x).mel)
    assert torch.equal(codec(x).codes, codes)


def test_fewer_codebooks_are_the_first_ones_and_dropout_is_truncation():
    codec, x = small(), mel()
    codes = codec.encode(x)
    kept = codec(x, torch.tensor([1, 3])).mel
    for row, n in enumerate((1, 3)):
        truncated = codec.decode(codes[[row], :, :n])
        torch.testing.assert_close(kept[[row]], truncated)
        assert not torch.allclose(truncated, codec.decode(codes[[row]]))


def test_the_bits_of_the_presets():
    """Eight codebooks of 64 entries, 50 frames a second: 48 bits, 2.4 kbit/s."""
    config = Codec.presets["tiny"]
    assert config.frames_per_second == 50 and config.n_codebooks == 8
    assert (config.bits_per_code, config.bits_per_frame) == (6, 48)
    assert config.kbit_per_second == pytest.approx(2.4)
    grouped = replace(config, n_groups=2, n_levels=2)
    assert grouped.bits_per_frame == 24 and grouped.kbit_per_second == 1.2
    # 24 kHz, hop 320, 4 codebooks of 1024 in HiFi-Codec: 10 bits a code
    assert Codec.presets["full"].bits_per_frame == 80
    assert set(Codec.presets) == {"tiny", "colab", "full"}
    codec = Codec.preset("tiny")
    numbers = sum(x.numel() for x in codec.state_dict().values())
    assert 2 * numbers < 1_500_000


@pytest.mark.parametrize("changes", [{}, {"n_groups": 2, "n_levels": 2}])
def test_gradients_reach_the_encoder_as_if_nothing_were_quantised(changes):
    codec, x = small(**changes), mel()
    codec.train().quantiser.eval()
    z = codec.latent(x)
    made = codec.quantiser(z).vectors
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    (straight,) = torch.autograd.grad((made * weight).sum(), z)
    assert torch.equal(straight, weight)
    codec.loss({"mel": x})["loss"].backward()
    assert codec.conv_in.weight.grad.abs().sum() > 0
    assert codec.conv_out.weight.grad.abs().sum() > 0


def test_the_loss_is_the_l1_of_the_log_mel_and_the_quantisers():
    codec, x, keep = small(), mel(), torch.tensor([1, 4])
    found, made = codec.loss({"mel": x, "keep": keep}), codec(x, keep)
    torch.testing.assert_close(found["l1"], (made.mel - x).abs().mean())
    torch.testing.assert_close(found["loss"], found["l1"] + made.loss)
    assert found["vq"] == made.loss > 0


def test_training_lowers_the_error_and_uses_the_codebooks():
    torch.manual_seed(0)
    codec = Codec(SMALL)
    draw = lambda g: {"mel": mel(8, seed=int(torch.randint(2**31, (), generator=g)))}
    recipe = Recipe(steps=60, batch_size=8, lr=5e-3, warmup=5, muon=("linear",))
    curve = fit(codec, draw, recipe, progress=False)["l1"]
    assert curve[-10:].mean() < 0.75 * curve[:10].mean()
    assert len(codec.encode(mel(8, seed=1))[..., 0].unique()) > 3
    x = mel(8, seed=1)
    back = [codec.decode(codec.encode(x)[..., :n]).detach() for n in (1, 4)]
    assert (back[1] - x).abs().mean() < (back[0] - x).abs().mean()


# --------------------------------------------------------------------------------------
# The semantic residual


def test_the_means_are_those_of_the_vectors_of_each_symbol():
    means, x, own = Means(4, 8, decay=0.5), mel(2)[:, 0, :12, :8], symbols()
    assert not means(own).any()
    for _ in range(2):
        means.follow(x, own)
    for symbol in range(3):
        torch.testing.assert_close(
            means(torch.tensor(symbol)), x[own == symbol].mean(dim=0)
        )
    assert not means(torch.tensor(3)).any()  # never seen


def test_only_what_the_symbols_leave_is_quantised_and_they_are_added_back():
    codec, x, own = small(n_symbols=3), mel(), symbols()
    said = codec.means(own)
    assert said.abs().max() > 0.1
    codes = codec.encode(x, own)
    assert torch.equal(codes, codec.quantiser.encode(codec.latent(x) - said))
    back = codec.restore(codec.quantiser.decode(codes) + said)
    torch.testing.assert_close(codec.decode(codes, own), back)
    torch.testing.assert_close(codec(x, symbols=own).mel, back)
    other = (own + 1) % 3
    assert not torch.allclose(codec.decode(codes, other), back)


def test_no_gradient_reaches_a_semantic_vector():
    """Subtracted and added back, a learned V_s would get its gradient twice, with
    opposite signs.
    """
    said = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    said.requires_grad_()
    codec, z = small(), torch.randn(2, 12, 8)
    out = (codec.quantiser(z - said).vectors + said).square().sum()
    (gradient,) = torch.autograd.grad(out, said)
    assert not gradient.any()
    assert not list(small(n_symbols=3).means.parameters())


# --------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "codes, says",
    [
        (torch.zeros(1, 12, 5, dtype=torch.long), "must have 1 to 4 codebooks, .* 5"),
        (torch.zeros(1, 12, 0, dtype=torch.long), "must have 1 to 4 codebooks, .* 0"),
        (torch.full((1, 12, 4), 8), "codes must lie between 0 and 7, not be 8"),
        (torch.full((1, 12, 4), -1), "codes must lie between 0 and 7, not be -1"),
        (torch.zeros(1, 12, 4), "codes must be whole numbers, not torch.float32"),
        (torch.zeros(12, 4, dtype=torch.long), r"codes must be \(B, M, n\), not"),
    ],
)
def test_codes_that_are_none_get_one_sentence(codes, says):
    with pytest.raises(ValueError, match=says) as error:
        small().decode(codes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 23, 64), (1, 24, 64), (1, 2, 24, 64)])
def test_a_mel_of_another_shape_gets_one_sentence(shape):
    with pytest.raises(ValueError, match="mel must be .* a multiple of 2, not"):
        small().encode(torch.zeros(shape))


def test_symbols_are_wanted_where_there_are_any_and_nowhere_else():
    with_symbols, x = small(n_symbols=3), mel()
    with pytest.raises(ValueError, match="this codec has 3 symbols, and none were"):
        with_symbols.encode(x)
    with pytest.raises(ValueError, match="this codec has no symbols, and some were"):
        small().encode(x, symbols())
    with pytest.raises(ValueError, match="symbols must lie between 0 and 2, not be 3"):
        with_symbols.encode(x, symbols() + 1)
    with pytest.raises(ValueError, match=r"symbols must be \(B, M\) = \(2, 12\), not"):
        with_symbols.encode(x, symbols(frames=11))


def test_more_codebooks_than_trained_are_refused():
    assert small().first(None) == 4 and small().first(2) == 2
    for n in (0, 5, 1.5):
        with pytest.raises((ValueError, TypeError), match="codebooks must be a whole"):
            small().first(n)


def test_codes_of_another_codec_are_told_by_its_fingerprint(tmp_path):
    codec, other = small(), small()
    assert codec.fingerprint == other.fingerprint
    other.quantiser.levels[-1].embedding.weight.data[-1, -1] += 1.0
    assert codec.fingerprint != other.fingerprint
    codec.save_pretrained(tmp_path, dtype=torch.float16)
    again = Codec.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.fingerprint == codec.fingerprint
    again.check_fingerprint(codec.fingerprint)
    with pytest.raises(ValueError, match="the codec is another one: .*, and this one"):
        again.check_fingerprint(other.fingerprint)


def test_weights_of_another_model_or_size_get_one_sentence(tmp_path):
    VAE.preset("tiny").save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="is not a CodecConfig"):
        Codec.from_pretrained(tmp_path / "vae")
    small().save_pretrained(tmp_path / "small")
    small(n_codes=16).save_pretrained(tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    (tmp_path / "small" / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match="do not fit its config: .* has shape"):
        Codec.from_pretrained(tmp_path / "small")


def test_a_saved_codec_says_the_same(tmp_path):
    codec, x = small(n_groups=2, n_levels=2), mel()
    codec.save_pretrained(tmp_path)
    again = Codec.from_pretrained(tmp_path)
    assert again.config == codec.config
    assert torch.equal(again.encode(x), codec.encode(x))
    assert torch.equal(again.decode(again.encode(x)), codec.decode(codec.encode(x)))


def test_an_odd_stride_is_refused():
    with pytest.raises(ValueError, match="stride must be even, not 3"):
        Codec(replace(SMALL, stride=3))
    codec = Codec(replace(SMALL, stride=4)).eval()
    assert codec.encode(mel()).shape == (2, 6, 4)
    assert codec.config.kbit_per_second == 4 * math.log2(8) * 25 / 1000
    assert codec(F.pad(mel(), (0, 0, 0, 4))).mel.shape == (2, 1, 28, 64)
