"""The shared layers, held to loops and formulas written out."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from minilib.layers import Downsample, Gather, ResBlock, Upsample, attention, gathered

N_HEAD, D_HEAD = 2, 4


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def looped(q, k, v, scale, added):
    """softmax(scale q k^T + added) v, one head of one query of one clip at a time."""
    out = torch.zeros(*q.shape[:2], v.shape[-1])
    for b in range(len(q)):
        for head in range(N_HEAD):
            d = slice(D_HEAD * head, D_HEAD * (head + 1))
            for n in range(q.shape[1]):
                scores = torch.stack([scale * q[b, n, d] @ key for key in k[b, :, d]])
                weights = (scores + added[b, head, n]).exp()
                out[b, n, d] = weights @ v[b, :, d] / weights.sum()
    return out


def queries_keys_values() -> list[torch.Tensor]:
    return [normal(2, n, N_HEAD * D_HEAD, seed=n) for n in (3, 5, 5)]


@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_is_the_softmax_over_the_keys_in_each_head(scale):
    q, k, v = queries_keys_values()
    wanted = looped(
        q, k, v, scale or 1 / math.sqrt(D_HEAD), torch.zeros(2, N_HEAD, 3, 5)
    )
    torch.testing.assert_close(attention(q, k, v, N_HEAD, scale=scale), wanted)


def test_numbers_of_a_mask_are_added_to_the_scores():
    q, k, v = queries_keys_values()
    bias = normal(1, N_HEAD, 3, 5)
    wanted = looped(q, k, v, 1 / math.sqrt(D_HEAD), bias.expand(2, -1, -1, -1))
    torch.testing.assert_close(attention(q, k, v, N_HEAD, bias), wanted)


def test_a_query_reads_only_the_keys_where_a_bool_mask_is_true():
    q, k, v = queries_keys_values()
    mask = normal(2, 1, 3, 5, seed=4) > 0
    mask[..., 0] = True  # each query reads something
    added = torch.where(mask, 0.0, -torch.inf).expand(-1, N_HEAD, -1, -1)
    wanted = looped(q, k, v, 1 / math.sqrt(D_HEAD), added)
    torch.testing.assert_close(attention(q, k, v, N_HEAD, mask), wanted)


@pytest.mark.parametrize("n_out", [4, 8])
@pytest.mark.parametrize("time_dim", [None, 6])
def test_a_residual_block_adds_two_normalised_convolutions_to_its_input(
    n_out, time_dim
):
    torch.manual_seed(0)
    block = ResBlock(4, n_out, groups=2, eps=1e-2, time_dim=time_dim)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    # so small that the epsilon counts
    x, time = 0.1 * normal(2, 4, 6, 3), None if time_dim is None else normal(2, 6)

    def active(x, norm):
        parts = x.unflatten(1, (2, -1))  # (B, groups, C / groups, T, F)
        mean = parts.mean(dim=(2, 3, 4), keepdim=True)
        variance = (parts - mean).square().mean(dim=(2, 3, 4), keepdim=True)
        x = ((parts - mean) / (variance + 1e-2).sqrt()).flatten(1, 2)
        x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return x * torch.sigmoid(x)

    def convolve(x, conv):
        return F.conv2d(x, conv.weight, conv.bias, padding=1)

    h = convolve(active(x, block.norm1), block.conv1)
    if time is not None:
        h = h + block.time_emb_proj(time * torch.sigmoid(time))[:, :, None, None]
    h = convolve(active(h, block.norm2), block.conv2)
    beside = x if n_out == 4 else block.conv_shortcut(x)
    torch.testing.assert_close(block(x, time), h + beside)
    assert hasattr(block, "conv_shortcut") == (n_out != 4)
    assert hasattr(block, "time_emb_proj") == (time_dim is not None)


def test_a_residual_block_has_the_epsilon_of_the_vae_and_no_time_unless_asked():
    block = ResBlock(4, 8, 2)
    assert block.norm1.eps == block.norm2.eps == 1e-6
    assert not hasattr(block, "time_emb_proj")
    assert block.conv_shortcut.kernel_size == (1, 1)


@pytest.mark.parametrize("padding, before, of_odd", [(0, 0, (3, 2)), (1, 1, (4, 3))])
def test_downsampling_pads_at_the_end_or_on_every_side(padding, before, of_odd):
    torch.manual_seed(0)
    layer, x = Downsample(2, padding), normal(1, 2, 6, 4)
    padded = torch.zeros(1, 2, 8, 6)
    padded[:, :, before : before + 6, before : before + 4] = x
    made = layer(x)
    assert made.shape == (1, 2, 3, 2)
    assert layer(normal(1, 2, 7, 5)).shape[2:] == of_odd
    for t in range(3):
        for f in range(2):
            window = padded[0, :, 2 * t : 2 * t + 3, 2 * f : 2 * f + 3]
            wanted = (layer.conv.weight * window).sum(dim=(1, 2, 3)) + layer.conv.bias
            torch.testing.assert_close(made[0, :, t, f], wanted)


def test_upsampling_repeats_each_value_and_then_convolves():
    torch.manual_seed(0)
    layer, x = Upsample(2), normal(1, 2, 3, 4)
    padded = torch.zeros(1, 2, 8, 10)
    for t in range(6):
        for f in range(8):
            padded[..., t + 1, f + 1] = x[..., t // 2, f // 2]
    made = layer(x)
    assert made.shape == (1, 2, 6, 8)
    for t in range(6):
        for f in range(8):
            window = padded[0, :, t : t + 3, f : f + 3]
            wanted = (layer.conv.weight * window).sum(dim=(1, 2, 3)) + layer.conv.bias
            torch.testing.assert_close(made[0, :, t, f], wanted)


def test_a_process_alone_has_all_rows_and_gathering_keeps_values_and_gradients():
    x = torch.randn(3, 2, requires_grad=True)
    assert gathered(x) is x
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert gathered(x) is x
        (Gather.apply(x) * torch.arange(6.0).view(3, 2)).sum().backward()
    finally:
        dist.destroy_process_group()
    assert torch.equal(x.grad, torch.arange(6.0).view(3, 2))
