"""The noise predictor: its time embedding and transformers written out, who reads which
condition, the map of the LOA, and what an output means.
"""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from minilib.conditions import Conditions, Context, to_batch
from minilib.diffusion import q_sample, sqrt_linear_schedule, velocity
from minilib.unet import (
    GEGLU,
    Attention,
    FeedForward,
    LOAMap,
    SpatialTransformer,
    TimeEmbedding,
    TransformerBlock,
    UNet,
    UNetConfig,
    timestep_embedding,
)

CONFIG = UNetConfig(
    in_channels=3, block_out_channels=(8, 12, 16), attention=(False, True, False),
    layers_per_block=2, norm_num_groups=4, cross_attention_dim=(None, 6, 10), n_head=2,
    n_steps=50,
)  # fmt: skip
WITH_MAP = replace(CONFIG, loa_channels=5, loa_grid=(2, 2), loa_patch=4)
both_configs = pytest.mark.parametrize(
    "config", [CONFIG, WITH_MAP], ids=["as released", "with a map of the LOA"]
)


def of_order_one(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep activations of order one, and biases that show."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        drawn = torch.randn(p.shape, generator=generator)
        weight = drawn * p[0].numel() ** -0.5 if p.ndim > 1 else 0.7 + 0.3 * drawn
        p.data.copy_(weight)
    return module.eval()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def network(config: UNetConfig) -> UNet:
    """One for all tests that only look at what it says."""
    return of_order_one(UNet(config))


ZT, T = randn(2, 3, 16, 8), torch.tensor([3, 40])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
CONDITIONS = {
    "loa": Context(randn(2, 4, 6, seed=1)),
    "text": Context(randn(2, 5, 10, seed=2), MASK),
}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max().detach())


def changed(conditions: Conditions, name: str, i: int, j: int) -> Conditions:
    """The conditions with another vector j in item i of one of them."""
    x, mask = conditions[name]
    x = x.clone()
    x[i, j] = randn(x.shape[2], seed=9)
    return {**conditions, name: Context(x, mask)}


# ---- Time


def test_times_become_cosines_then_sines_of_falling_frequency():
    embedding = timestep_embedding(torch.tensor([0, 7, 999]), 6)
    frequencies = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    for t, ours in zip((0, 7, 999), embedding.tolist(), strict=True):
        angles = [t * frequency for frequency in frequencies]
        wanted = [*map(math.cos, angles), *map(math.sin, angles)]
        assert ours == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_the_time_goes_through_a_network_of_one_hidden_layer():
    model, t = of_order_one(TimeEmbedding(8)), torch.tensor([0, 7, 999])
    hidden = timestep_embedding(t, 8) @ model.linear_1.weight.T + model.linear_1.bias
    hidden = hidden * torch.sigmoid(hidden)
    assert_close(model(t), hidden @ model.linear_2.weight.T + model.linear_2.bias)
    assert hidden.shape == model(t).shape == (3, 32)
    assert model.half()(t).dtype == torch.float16


@torch.no_grad()
def test_noise_levels_count_from_1_and_the_network_counts_from_0():
    unet, seen = of_order_one(UNet(CONFIG)), []
    unet.time_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unet(ZT, torch.tensor([1, 50]), CONDITIONS)
    assert [t.tolist() for t in seen] == [[0, 49]]


@torch.no_grad()
def test_each_item_has_its_own_noise_level():
    unet = network(CONFIG)
    before, after = (
        unet(ZT, T, CONDITIONS),
        unet(ZT, T + torch.tensor([0, 5]), CONDITIONS),
    )
    assert torch.equal(before[0], after[0]) and distance(before[1], after[1]) > 1e-2


# ---- Transformers, written out


def attended(model, x, context, mask):
    """Each head of each position by itself: a softmax over what it reads."""
    q = x @ model.to_q.weight.T
    k, v = (context @ layer.weight.T for layer in (model.to_k, model.to_v))
    out = torch.zeros_like(q)
    for b in range(len(x)):
        for head in range(model.n_head):
            d = slice(4 * head, 4 * head + 4)
            scores = q[b, :, d] @ k[b, mask[b], d].T / math.sqrt(4)
            out[b, :, d] = scores.softmax(dim=1) @ v[b, mask[b], d]
    return out @ model.to_out[0].weight.T + model.to_out[0].bias


@torch.no_grad()
def test_attention_reads_a_context_where_its_mask_says_or_itself():
    x, context = randn(2, 3, 8), randn(2, 5, 6, seed=1)
    model, all_of_it = of_order_one(Attention(8, 6, n_head=2)), torch.ones_like(MASK)
    assert_close(model(x, context), attended(model, x, context, all_of_it))
    for mask in (MASK, MASK.long()):
        assert_close(model(x, context, mask), attended(model, x, context, MASK))
    model = of_order_one(Attention(8, 8, n_head=2))
    assert_close(model(x), attended(model, x, x, all_of_it[:, :3]))


@torch.no_grad()
def test_the_feed_forward_network_is_gated_and_four_times_as_wide_inside():
    model, x = of_order_one(FeedForward(8)), randn(2, 3, 8)
    value, gate = (x @ model.net[0].proj.weight.T + model.net[0].proj.bias).split(
        32, -1
    )
    hidden = value * 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    assert_close(model(x), hidden @ model.net[2].weight.T + model.net[2].bias)
    assert GEGLU(8, 5)(x).shape == (2, 3, 5)


@torch.no_grad()
@pytest.mark.parametrize("context_dim", [6, None])
def test_a_block_attends_to_itself_then_to_the_context_then_feeds_forward(context_dim):
    model, x = of_order_one(TransformerBlock(8, context_dim, n_head=2)), randn(2, 3, 8)
    context = None if context_dim is None else randn(2, 5, 6, seed=1)
    mask = None if context_dim is None else MASK
    h = x + model.attn1(model.norm1(x))
    h = h + model.attn2(model.norm2(h), context, mask)
    assert_close(model(x, context, mask), h + model.ff(model.norm3(h)))
    # without a context it attends to itself twice
    assert model.attn2.to_k.in_features == (context_dim or 8)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_a_spatial_transformer_adds_to_each_position_what_its_blocks_say(depth):
    config = replace(CONFIG, transformer_layers=depth)
    model = of_order_one(SpatialTransformer(config, 8, 10, n_head=2))
    x, (text, mask) = randn(2, 8, 4, 3), CONDITIONS["text"]
    h = F.conv2d(model.norm(x), model.proj_in.weight, model.proj_in.bias)
    rows = torch.stack([h[:, :, t, f] for t in range(4) for f in range(3)], dim=1)
    for block in model.transformer_blocks:
        rows = block(rows, text, mask)
    back = torch.zeros_like(h)
    for i, row in enumerate(rows.unbind(1)):
        back[:, :, i // 3, i % 3] = row
    wanted = x + F.conv2d(back, model.proj_out.weight, model.proj_out.bias)
    assert len(model.transformer_blocks) == depth
    assert_close(model(x, text, mask), wanted)
    assert model(x[:, :, :, :1], text).shape == (2, 8, 4, 1)


# ---- The blocks and what joins them


def test_where_it_attends_and_how_wide_it_is():
    unet = UNet(replace(CONFIG, n_head=(1, 3, 4)))
    wanted = {  # widths of the residual blocks, transformers, their heads
        "down 0": ([(8, 8), (8, 8)], 0, None),
        "down 1": ([(8, 12), (12, 12)], 6, 3),
        "down 2": ([(12, 16), (16, 16)], 0, None),
        "mid": ([(16, 16), (16, 16)], 3, 4),
        "up 0": ([(16 + 16, 16), (16 + 16, 16), (16 + 12, 16)], 0, None),
        "up 1": ([(16 + 12, 12), (12 + 12, 12), (12 + 8, 12)], 9, 3),
        "up 2": ([(12 + 8, 8), (8 + 8, 8), (8 + 8, 8)], 0, None),
    }
    names = [f"{way} {i}" for way in ("down", "up") for i in range(3)]
    blocks = dict(zip(names, [*unet.down_blocks, *unet.up_blocks], strict=True))
    for name, block in {**blocks, "mid": unet.mid_block}.items():
        widths, n, heads = wanted[name]
        convs = [(r.conv1.in_channels, r.conv2.out_channels) for r in block.resnets]
        assert convs == widths and len(block.attentions) == n
        for i, transformer in enumerate(block.attentions):
            (layer,) = transformer.transformer_blocks
            assert layer.attn1.n_head == layer.attn2.n_head == heads
            assert layer.attn1.to_k.in_features == widths[-1][1]
            assert layer.attn2.to_k.in_features == (widths[-1][1], 6, 10)[i % 3]
    changes = [len(b.downsamplers) for b in unet.down_blocks]
    assert changes == [1, 1, 0] == [len(b.upsamplers) for b in unet.up_blocks]
    assert unet.conv_in.weight.shape == (8, 3, 3, 3)
    assert unet.conv_out.weight.shape == (3, 8, 3, 3)


def test_one_number_of_heads_is_that_of_every_resolution():
    assert [CONFIG.heads(i) for i in (0, 1, 2, -1)] == [2, 2, 2, 2]
    assert [replace(CONFIG, n_head=(1, 3, 4)).heads(i) for i in (0, 2, -1)] == [1, 4, 4]


def test_normalisation_is_the_released_models():
    unet = UNet(replace(CONFIG, norm_num_groups=2))
    norms = {n: m for n, m in unet.named_modules() if isinstance(m, torch.nn.GroupNorm)}
    for name, norm in norms.items():
        assert norm.eps == (1e-6 if "attentions" in name else 1e-5), name
        assert norm.num_groups == 2
    assert len(norms) == 2 * (6 + 2 + 9) + 6 + 3 + 9 + 1


@torch.no_grad()
def test_the_way_up_takes_what_the_way_down_left_last_first():
    unet, left, taken = of_order_one(UNet(CONFIG)), [], []
    keep = lambda *args: left.append(args[-1])
    unet.conv_in.register_forward_hook(keep)
    for block in unet.down_blocks:
        # a residual block leaves what its last transformer makes of it
        last = block.attentions[2::3] or block.resnets
        for module in (*last, *block.downsamplers):
            module.register_forward_hook(keep)
    for block in unet.up_blocks:
        for resnet in block.resnets:
            resnet.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    unet(ZT, T, CONDITIONS)
    assert len(left) == len(taken) == 9
    for mine, theirs in zip(left[::-1], taken, strict=True):
        assert torch.equal(theirs[:, -mine.shape[1] :], mine)


@torch.no_grad()
@both_configs
def test_the_noise_has_the_shape_of_the_latent_of_any_length(config):
    unet = network(config)
    for n_time in (1, 2, 3, 4, 5, 7, 16, 31):
        zt = randn(2, 3, n_time, 8)
        assert unet(zt, T, CONDITIONS).shape == zt.shape
    assert unet(ZT, T, CONDITIONS).std() > 0.1
    patched = UNet(replace(config, patch=2, in_channels=3))
    assert patched(randn(2, 3, 14, 16), T, CONDITIONS).shape == (2, 3, 14, 16)


@torch.no_grad()
def test_the_way_up_takes_the_sizes_of_the_way_down():
    unet, sizes = of_order_one(UNet(CONFIG)), []
    for block in unet.up_blocks:
        for upsample in block.upsamplers:
            upsample.register_forward_hook(
                lambda _, args, out: sizes.append((args[0].shape[2], out.shape[2]))
            )
    for n_time, wanted in {13: [(4, 7), (7, 13)], 5: [(2, 3), (3, 5)]}.items():
        sizes.clear()
        unet(randn(2, 3, n_time, 8), T, CONDITIONS)
        assert sizes == wanted


@torch.no_grad()
def test_an_odd_length_is_what_diffusers_makes_of_it():
    pytest.importorskip("diffusers")
    from minilib.convert import pretrained

    unet = network(CONFIG)
    theirs = pretrained.unet_out(unet).eval()
    given = {
        "encoder_hidden_states": CONDITIONS["loa"].sequence,
        "encoder_hidden_states_1": CONDITIONS["text"].sequence,
        "encoder_attention_mask_1": MASK,
    }
    for n_time in (1, 3, 9, 14, 31):
        zt = randn(2, 3, n_time, 8)
        ours = unet(zt, T, CONDITIONS)
        assert_close(ours, theirs(zt, T - 1, **given).sample)


# ---- Conditions


@torch.no_grad()
@both_configs
@pytest.mark.parametrize(
    ("name", "j"), [("loa", 0), ("loa", 3), ("text", 0), ("text", 2)]
)
def test_every_vector_that_is_read_reaches_all_of_its_own_item(config, name, j):
    unet = network(config)
    before, after = (
        unet(ZT, T, given) for given in (CONDITIONS, changed(CONDITIONS, name, 1, j))
    )
    assert torch.equal(before[0], after[0])
    assert ((before[1] - after[1]).abs() > 0).double().mean() > 0.99


@torch.no_grad()
@pytest.mark.parametrize("name", ["loa", "text"])
def test_a_masked_vector_reaches_nothing(name):
    unet, S = network(CONFIG), CONDITIONS[name].sequence.shape[1]
    mask = torch.ones(2, S, dtype=torch.bool)
    mask[1, S - 1] = False
    given = {**CONDITIONS, name: Context(CONDITIONS[name].sequence, mask)}
    before, after = unet(ZT, T, given), unet(ZT, T, changed(given, name, 1, S - 1))
    assert torch.equal(before, after)
    unmasked = unet(ZT, T, {**given, name: Context(given[name].sequence)})
    assert distance(before, unmasked) > 1e-3


@torch.no_grad()
def test_conditions_go_by_their_names_whatever_these_are():
    unet = network(CONFIG)
    other = UNet(replace(CONFIG, cross_attention=(None, "tune", "score")))
    other.load_state_dict(unet.state_dict())
    loa, text = CONDITIONS["loa"], CONDITIONS["text"]
    wanted = unet(ZT, T, {"text": text, "loa": loa})
    assert torch.equal(other.eval()(ZT, T, {"tune": loa, "score": text}), wanted)
    more = {**CONDITIONS, "clap": Context(randn(2, 1, 6))}
    assert torch.equal(unet(ZT, T, more), wanted)  # of which nobody spoke
    with pytest.raises(KeyError, match="text"):
        unet(ZT, T, {"loa": loa})


@torch.no_grad()
def test_one_condition_may_be_read_twice_and_the_feature_map_last():
    config = replace(
        CONFIG,
        cross_attention=("text", "loa", "text", None),
        cross_attention_dim=(10, 6, 10, None),
    )
    unet, read = of_order_one(UNet(config)), []
    for transformer in unet.mid_block.attentions:
        transformer.register_forward_pre_hook(lambda _, args: read.append(args[1:]))
    unet(ZT, T, CONDITIONS)
    text, loa = tuple(CONDITIONS["text"]), tuple(CONDITIONS["loa"])
    assert len(read) == 4 and read[3] == ()
    for given, wanted in zip(read, (text, loa, text), strict=False):
        assert all(a is b for a, b in zip(given, wanted, strict=True))


# ---- Patches and the map of the LOA


@torch.no_grad()
@both_configs
def test_patches_are_channels_unshuffled_at_the_door_and_shuffled_at_the_exit(config):
    config = replace(config, in_channels=12)
    plain = network(config)
    patched = UNet(replace(config, in_channels=3, patch=2)).eval()
    patched.load_state_dict(plain.state_dict())  # strict: the same weights
    zt = randn(2, 3, 32, 16)
    wanted = F.pixel_shuffle(plain(F.pixel_unshuffle(zt, 2), T, CONDITIONS), 2)
    assert_close(patched(zt, T, CONDITIONS), wanted)


@torch.no_grad()
@pytest.mark.parametrize("patch", [3, (2, 5)], ids=["square", "unequal"])
def test_each_loa_vector_unfolds_into_its_own_patch(patch):
    config = replace(CONFIG, loa_channels=4, loa_grid=(3, 2), loa_patch=patch)
    loa_map, loa = of_order_one(LOAMap(config, 6)), randn(2, 6, 6)
    p, q = (patch, patch) if isinstance(patch, int) else patch
    plane = loa_map(loa, 3 * p)
    assert plane.shape == (2, 4, 3 * p, 2 * q)
    weight = loa_map.proj.weight[:, :, 0, 0]
    for i in range(6):  # the vectors go through frequency first, then through time
        t, f = p * (i // 2), q * (i % 2)
        told = (loa[:, i] @ weight.T + loa_map.proj.bias).view(2, 4, p, q)
        assert_close(plane[:, :, t : t + p, f : f + q], told)


@torch.no_grad()
def test_a_longer_latent_has_the_map_again_and_a_shorter_one_a_part():
    loa_map, loa = of_order_one(LOAMap(WITH_MAP, 6)), randn(2, 4, 6)
    plane = loa_map(loa, 8)
    for n in (1, 7, 8, 9, 16, 20):
        repeated = torch.cat([plane, plane, plane], dim=2)[:, :, :n]
        assert torch.equal(loa_map(loa, n), repeated)
    # more vectors are a longer map
    assert loa_map(randn(2, 10, 6), 20).shape == (2, 5, 20, 8)


@torch.no_grad()
def test_the_map_stands_beside_the_latent_after_it():
    unet, seen = of_order_one(UNet(WITH_MAP)), []
    unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unet(ZT, T, CONDITIONS)
    plane = unet.loa_map(CONDITIONS["loa"].sequence, 16)
    assert torch.equal(seen[0], torch.cat([ZT, plane], dim=1))
    assert not hasattr(UNet(CONFIG), "loa_map")


def test_the_map_is_as_wide_as_the_loa_wherever_that_is_read():
    config = replace(
        WITH_MAP, cross_attention=("text", "loa"), cross_attention_dim=(10, 6)
    )
    assert UNet(config).loa_map.proj.in_channels == 6


# ---- What an output means, and the loss


def test_the_schedule_is_that_of_the_config():
    unet = UNet(replace(CONFIG, beta_1=0.001, beta_T=0.3))
    wanted = sqrt_linear_schedule(50, 0.001, 0.3)
    assert torch.equal(unet.schedule.beta, wanted.beta)


def test_an_output_is_the_noise_or_the_velocity_that_means_it():
    x0, eps = randn(2, 3, 16, 8, seed=3), randn(2, 3, 16, 8, seed=4)
    for prediction in ("eps", "v"):
        unet = UNet(replace(CONFIG, prediction=prediction))
        zt = q_sample(unet.schedule, x0, T, eps)
        out = eps if prediction == "eps" else velocity(unet.schedule, x0, T, eps)
        assert_close(unet.as_eps(zt, T, out), eps)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_the_squared_error_of_what_is_predicted(prediction):
    unet = network(replace(CONFIG, prediction=prediction))
    z0, eps = randn(2, 3, 16, 8, seed=3), randn(2, 3, 16, 8, seed=4)
    batch = {
        "z0": z0,
        "eps": eps,
        "t": T,
        **to_batch(CONDITIONS),
        "clap": randn(2, 1, 4),
    }
    kept = unet.schedule.alpha_bar[T].view(2, 1, 1, 1)
    zt = kept.sqrt() * z0 + (1 - kept).sqrt() * eps
    aim = eps if prediction == "eps" else kept.sqrt() * eps - (1 - kept).sqrt() * z0
    wanted = (unet(zt, T, CONDITIONS) - aim).square().mean()
    assert_close(unet.loss(batch), wanted)
    # the mask of the text is in the batch, and counts
    assert distance(unet.loss({**batch, "text_mask": MASK.flip(1)}), wanted) > 1e-4


def test_a_few_steps_down_the_gradient_lower_the_loss():
    torch.manual_seed(0)
    unet, losses = UNet(WITH_MAP), []
    z0, eps = randn(2, 3, 16, 8, seed=3), randn(2, 3, 16, 8, seed=4)
    batch = {"z0": z0, "eps": eps, "t": T, **to_batch(CONDITIONS)}
    for _ in range(6):
        losses.append(unet.loss(batch))
        slopes = torch.autograd.grad(losses[-1], list(unet.parameters()))
        for p, slope in zip(unet.parameters(), slopes, strict=True):
            p.data -= 0.1 * slope
    assert losses[-1] < 0.9 * losses[0]


# ---- Memory


@both_configs
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(config):
    unet = of_order_one(UNet(config))
    batch = {
        "z0": ZT,
        "eps": randn(2, 3, 16, 8, seed=4),
        "t": T,
        **to_batch(CONDITIONS),
    }
    runs = []
    for on in (False, True):
        unet.recompute_activations(on)
        kept = []

        def keep(x, kept=kept):
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = unet.loss(batch)
        slopes = torch.autograd.grad(loss, list(unet.parameters()))
        runs.append((sum(kept), loss, *slopes))
    (much, *wanted), (little, *ours) = runs
    assert little < 0.5 * much
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_recomputing_goes_on_unless_told_otherwise_and_never_without_gradients():
    unet = of_order_one(UNet(CONFIG))
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    assert [b.recompute for b in blocks] == [False] * 7
    unet.recompute_activations()
    assert [b.recompute for b in blocks] == [True] * 7
    with torch.no_grad():
        assert not unet(ZT, T, CONDITIONS).requires_grad
    unet.recompute_activations(False)
    assert [b.recompute for b in blocks] == [False] * 7


# ---- Configs

REFUSED = {
    "prediction must be \"eps\" or \"v\", not 'x0'": {"prediction": "x0"},
    r"n_head must be one number or one for each of 3, not \(2, 4\)": {"n_head": (2, 4)},
    r"attention must have 3 entries, not \(True, True\)": {"attention": (True, True)},
    r"cross_attention \(None, 'loa'\) needs one width each, not \(None, 6, 10\)": {
        "cross_attention": (None, "loa"),
    },
    r"cross_attention \('a', None, 'b'\) needs one width each, not \(None, 6, 10\)": {
        "cross_attention": ("a", None, "b"),
    },
    r"with loa_channels, \"loa\" must be in cross_attention \(None, 'tune', 'text'\)": {
        "cross_attention": (None, "tune", "text"), "loa_channels": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize(("said", "fields"), REFUSED.items(), ids=range(len(REFUSED)))
def test_fields_that_do_not_fit_each_other_get_one_sentence(said, fields):
    with pytest.raises(ValueError, match=f"^{said}$"):
        UNet(replace(CONFIG, **fields))


def test_a_saved_unet_loads_equal(tmp_path):
    unet = of_order_one(UNet(WITH_MAP))
    unet.save_pretrained(tmp_path)
    loaded = UNet.from_pretrained(tmp_path)
    assert loaded.config == WITH_MAP
    with torch.no_grad():
        assert torch.equal(loaded(ZT, T, CONDITIONS), unet(ZT, T, CONDITIONS))
