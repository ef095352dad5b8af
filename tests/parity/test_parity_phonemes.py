"""The phoneme encoder is transformers' VITS text encoder, weight by weight: same names,
numbers and gradients.
"""

import pytest
import torch

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.phonemes import PhonemeConfig, PhonemeEncoder

CONFIG = PhonemeConfig(
    30, 24, num_layers=3, num_heads=2, ffn_dim=40, window_size=3, flow_size=6
)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """A VITS text encoder whose weights are of order one."""
    from transformers import VitsConfig
    from transformers.models.vits.modeling_vits import VitsTextEncoder

    config = VitsConfig(
        vocab_size=30,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        ffn_dim=40,
        window_size=3,
        flow_size=6,
        # without it the mask comes as true and false, and is added as 1 and 0
        attn_implementation="eager",
    )
    model = VitsTextEncoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel() if p.ndim > 1 and "emb" not in name else 1
            p.copy_(
                torch.randn(p.shape, generator=generator) * fan_in**-0.5
                + ("norm.weight" in name)
            )
    return model.eval()


def batch(S: int, padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 30, (3, S), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(S) < torch.tensor([S, 5, 1] if padded else [S, S, S])[:, None]
    return ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("S", [2, 14])  # shorter than the window, and longer
@pytest.mark.parametrize("padded", [False, True])
def test_states_and_gradients_equal_those_of_vits(theirs, S, padded):
    ours = PhonemeEncoder(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
    ids, mask = batch(S, padded and S > 5)
    expected = theirs(ids, mask[:, :, None].float(), mask.long()).last_hidden_state
    states = ours(ids, mask)
    assert expected.std() > 0.3  # of order one, or the comparison means nothing
    assert float(((states - expected).norm() / expected.norm()).detach()) <= 1e-5
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    differences, norms = 0.0, 0.0
    theirs.zero_grad()
    for output in (states, expected):
        (output * weight).sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        if name.startswith("project."):
            continue  # read by neither
        differences += float((p.grad - grads[name]).square().sum())
        norms += float(grads[name].square().sum())
    assert (differences / norms) ** 0.5 <= 1e-4


def test_the_full_preset_is_vits_as_released():
    from transformers import VitsConfig
    from transformers.models.vits.modeling_vits import VitsTextEncoder

    with torch.device("meta"):
        ours, released = (
            PhonemeEncoder.preset("full"),
            VitsTextEncoder(VitsConfig(vocab_size=183)),
        )
    shapes = lambda model: {name: p.shape for name, p in model.state_dict().items()}
    assert shapes(ours) == shapes(released)
    assert ours.n_parameters() == 6_327_744
