"""CLAP beside transformers: the text tower is BertModel, the loss ClapModel's function
in both directions.
"""

import pytest
import torch
import torch.nn.functional as F

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.clap import CLAPConfig, TextTower, contrastive_loss
from minilib.tokenizer import CLS

CONFIG = CLAPConfig(
    dim=16, vocab_size=120, n_embd=48, n_layer=3, n_head=4, n_positions=24,
    channels=(4, 8),
)  # fmt: skip


def bert():
    """transformers' BertModel of the tower's sizes, its weights of order one."""
    from transformers import BertConfig, BertModel

    sizes = BertConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.n_embd,
        num_hidden_layers=CONFIG.n_layer,
        num_attention_heads=CONFIG.n_head,
        intermediate_size=4 * CONFIG.n_embd,
        max_position_embeddings=CONFIG.n_positions,
    )
    model = BertModel(sizes, add_pooling_layer=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            random = torch.randn(p.shape, generator=generator)
            scale = 1.0 if p.ndim < 2 or "embeddings" in name else p.shape[1] ** -0.5
            p.copy_(1 + 0.3 * random if "LayerNorm.weight" in name else scale * random)
    return model.eval()


def tower_of(theirs) -> TextTower:
    """Our text tower with the weights of a BertModel; the row of the first of two
    sentences goes into the positions.
    """
    tower, state = TextTower(CONFIG).eval(), theirs.state_dict()
    first = state["embeddings.token_type_embeddings.weight"][0]
    given = {
        "token.weight": state["embeddings.word_embeddings.weight"],
        "position.weight": state["embeddings.position_embeddings.weight"] + first,
    }
    names = {
        "attn_out": "attention.output.dense",
        "norm_1": "attention.output.LayerNorm",
        "mlp_in": "intermediate.dense",
        "mlp_out": "output.dense",
        "norm_2": "output.LayerNorm",
    }
    for kind in ("weight", "bias"):
        given[f"norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
        for i in range(CONFIG.n_layer):
            at = f"encoder.layer.{i}"
            three = [
                state[f"{at}.attention.self.{name}.{kind}"]
                for name in ("query", "key", "value")
            ]
            given[f"layers.{i}.attn_in.{kind}"] = torch.cat(three)
            for ours, name in names.items():
                given[f"layers.{i}.{ours}.{kind}"] = state[f"{at}.{name}.{kind}"]
    tower.load_state_dict(given)  # strict: all of ours is filled
    return tower


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.3  # of order one, or the comparison means nothing
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_the_text_tower_equals_bertmodel_at_cls(padded):
    theirs, S = bert(), 20
    ours = tower_of(theirs)
    ids = torch.randint(20, 120, (3, S), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(S) < torch.tensor([S, 7, 1] if padded else [S] * 3)[:, None]
    read = {
        "input_ids": F.pad(ids, (1, 0), value=CLS),
        "attention_mask": F.pad(mask, (1, 0), value=True).long(),
    }
    expected = theirs(**read).last_hidden_state[:, 0]
    assert relative_error(ours(ids, mask), expected) < 1e-5
    # another weight, another state: the comparison sees it
    ours.layers[1].mlp_in.bias += 0.5
    assert relative_error(ours(ids, mask), expected) > 1e-3


def test_the_gradient_of_the_text_tower_equals_bertmodels():
    theirs = bert()
    ours = tower_of(theirs)
    ids = torch.randint(20, 120, (3, 9), generator=torch.Generator().manual_seed(2))
    towards = torch.randn(3, 48, generator=torch.Generator().manual_seed(3))
    (ours(ids) * towards).sum().backward()
    states = theirs(input_ids=F.pad(ids, (1, 0), value=CLS)).last_hidden_state
    (states[:, 0] * towards).sum().backward()
    read = torch.unique(ids)
    table = theirs.embeddings.word_embeddings.weight.grad[read]
    mine = ours.token.weight.grad[read]
    assert relative_error(mine / table.std(), table / table.std()) < 1e-4


def embeddings(B: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    text, audio = F.normalize(torch.randn(2, B, 16), dim=-1)
    return text, audio, torch.tensor(7.0)


def test_the_loss_is_the_mean_of_transformers_two_directions():
    from transformers.models.clap.modeling_clap import contrastive_loss as theirs

    text, audio, scale = embeddings()
    rows, columns = theirs(scale * text @ audio.T), theirs(scale * audio @ text.T)
    torch.testing.assert_close(
        contrastive_loss(text, audio, scale), (rows + columns) / 2
    )
    assert abs(rows - columns) > 1e-3


@torch.no_grad()
def test_the_loss_that_clapmodel_returns_has_one_direction_only():
    """What chapter 10 tells of transformers 5.23: where this fails, they have mended it
    and the chapter must say so.
    """
    from transformers import ClapConfig, ClapModel
    from transformers.models.clap.modeling_clap import contrastive_loss as theirs

    torch.manual_seed(5)
    small = {"hidden_size": 32, "num_attention_heads": [1, 2], "num_hidden_layers": 2}
    sound = {**small, "depths": [1, 1], "patch_embeds_hidden_size": 16}
    sound |= {"spec_size": 64, "num_mel_bins": 16, "window_size": 4}
    text = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text |= {"intermediate_size": 32, "vocab_size": 60, "max_position_embeddings": 20}
    config = ClapConfig(text_config=text, audio_config=sound, projection_dim=16)
    model = ClapModel(config).eval()
    out = model(
        input_ids=torch.randint(5, 60, (6, 8)),
        input_features=torch.randn(6, 1, 64, 16),
        is_longer=torch.zeros(6, 1, dtype=torch.bool),
        return_loss=True,
    )
    scale = model.logit_scale_t.exp()
    both = contrastive_loss(out.text_embeds, out.audio_embeds, scale)
    torch.testing.assert_close(out.loss, theirs(out.logits_per_text))
    assert abs(both - out.loss) > 1e-5
