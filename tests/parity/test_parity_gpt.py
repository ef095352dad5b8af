"""The LOA regressor is transformers' GPT2Model behind diffusers'
AudioLDM2ProjectionModel, by weight.
"""

import pytest
import torch
import torch.nn.functional as F

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.conditions import Conditions, Context
from minilib.gpt import GPTConfig, LOARegressor

CONFIG = GPTConfig(
    condition_dims=(20, 28),
    n_embd=48,
    n_layer=3,
    n_head=4,
    n_positions=64,
    n_tokens=8,
    vocab_size=11,
)


def peers():
    """A random GPT2Model and projection whose every weight matters, outputs of order
    one.
    """
    from diffusers import AudioLDM2ProjectionModel
    from transformers import GPT2Config, GPT2Model

    sizes = {
        key: getattr(CONFIG, key)
        for key in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")
    }
    gpt2 = GPT2Model(GPT2Config(**sizes))
    projection = AudioLDM2ProjectionModel(*CONFIG.condition_dims, CONFIG.n_embd)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (*gpt2.parameters(), *projection.parameters()):
            fan_in = p.shape[0] if p.ndim == 2 else 1
            p.copy_(
                torch.randn(p.shape, generator=generator)
                * (fan_in**-0.5 if p.ndim == 2 else 0.5)
            )
        gpt2.wpe.weight.mul_(4)
    return gpt2.eval(), projection.eval()


def ours_from(gpt2: torch.nn.Module, projection: torch.nn.Module) -> LOARegressor:
    model = LOARegressor(CONFIG).eval()
    # Conv1D stores them transposed
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {k: v.T if k.endswith(linear) else v for k, v in gpt2.state_dict().items()}
    model.gpt2.load_state_dict(state)  # strict: the same names and shapes
    model.projection.load_state_dict(projection.state_dict())
    return model


def conditions(padded: bool) -> Conditions:
    generator = torch.Generator().manual_seed(1)
    clap, text = (
        torch.randn(3, S, dim, generator=generator) for S, dim in ((1, 20), (12, 28))
    )
    mask = (
        torch.arange(12) < torch.tensor([12, 5, 1] if padded else [12, 12, 12])[:, None]
    )
    return {"clap": Context(clap), "text": Context(text, mask)}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.3  # of order one, or the comparison means nothing
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_the_projection_equals_audioldm2projectionmodel(padded):
    gpt2, projection = peers()
    (clap, _), (text, mask) = conditions(padded).values()
    clap_mask = torch.ones(3, 1, dtype=torch.long)
    expected = projection(clap, text, clap_mask, mask.long())
    x, keep = ours_from(gpt2, projection).projection(conditions(padded))
    assert relative_error(x, expected.hidden_states) < 1e-6
    assert torch.equal(keep.long(), expected.attention_mask)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_gpt2_equals_gpt2model(padded):
    gpt2, projection = peers()
    model = ours_from(gpt2, projection)
    x, mask = model.projection(conditions(padded))
    expected = gpt2(
        inputs_embeds=x,
        attention_mask=mask.long(),
        position_ids=torch.arange(x.shape[1])[None],
    )
    hidden = model.gpt2(x, mask)
    assert relative_error(hidden[mask], expected.last_hidden_state[mask]) < 1e-5
    if not padded:
        torch.testing.assert_close(model.gpt2(x), hidden)  # no mask: everything is read


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_generation_equals_the_released_loop(padded):
    """diffusers' generate_language_model, without a cache: append the last state, mask
    1, plain positions.
    """
    gpt2, projection = peers()
    (clap, _), (text, mask) = conditions(padded).values()
    clap_mask = torch.ones(3, 1, dtype=torch.long)
    out = projection(clap, text, clap_mask, mask.long())
    x, mask = out.hidden_states, out.attention_mask
    for _ in range(8):
        position_ids = torch.arange(x.shape[1])[None]
        y = gpt2(
            inputs_embeds=x, attention_mask=mask, position_ids=position_ids
        ).last_hidden_state[:, -1:]
        x, mask = torch.cat([x, y], dim=1), F.pad(mask, (0, 1), value=1)
    loa = ours_from(gpt2, projection).generate(conditions(padded))
    assert relative_error(loa, x[:, -8:]) < 1e-5
