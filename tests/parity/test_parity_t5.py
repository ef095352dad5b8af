"""T5 is transformers' T5, weight by weight: same names, same numbers."""

import pytest
import torch

import minilib  # noqa: F401  (guards torchaudio, which transformers imports)
from minilib.text import T5, T5Config, T5Encoder

CONFIG = T5Config(
    vocab_size=120,
    d_model=48,
    d_kv=12,
    d_ff=80,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
)


def transformers_config():
    from transformers import T5Config as Config

    return Config(
        vocab_size=CONFIG.vocab_size,
        d_model=CONFIG.d_model,
        d_kv=CONFIG.d_kv,
        d_ff=CONFIG.d_ff,
        num_layers=CONFIG.num_layers,
        num_decoder_layers=CONFIG.num_decoder_layers,
        num_heads=CONFIG.num_heads,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=True,
    )


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of order one after each layer: attention neither flat nor saturated, no
    two norms alike.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.rand(p.shape, generator=generator) + 0.5)
            else:
                is_table = "shared" in name or "relative" in name
                std = (
                    1.0
                    if is_table
                    else p.shape[1] ** -0.5 * (0.5 if ".q." in name else 1.0)
                )
                p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model.eval()


def tokens(padded: bool, S: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    """Long enough that distances of every kind of bucket occur."""
    ids = torch.randint(1, 120, (3, S), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(S) < torch.tensor([S, 23, 1] if padded else [S, S, S])[:, None]
    return ids.masked_fill(~mask, 0), mask


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert theirs.std() > 0.3  # of order one, or the comparison means nothing
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_the_encoder_equals_t5encodermodel(padded):
    from transformers import T5EncoderModel

    theirs = randomise(T5EncoderModel(transformers_config()))
    state = {
        k: v
        for k, v in theirs.state_dict().items()
        if k != "encoder.embed_tokens.weight"
    }
    ours = T5Encoder(CONFIG)
    ours.load_state_dict(state)  # strict: the same names and shapes
    ids, mask = tokens(padded)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert relative_error(ours(ids, mask)[mask], expected[mask]) < 1e-5


@torch.no_grad()
def test_encoder_and_decoder_equal_t5forconditionalgeneration():
    from transformers import T5ForConditionalGeneration

    theirs = randomise(T5ForConditionalGeneration(transformers_config()))
    tied = (
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    )
    ours = T5(CONFIG)
    ours.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if k not in tied}
    )
    ids, mask = tokens(padded=True)
    targets = torch.randint(1, 120, (3, 40), generator=torch.Generator().manual_seed(2))
    expected = theirs(input_ids=ids, attention_mask=mask.long(), labels=targets)
    logits = ours(ids, mask, targets)
    assert relative_error(logits, expected.logits) < 1e-5
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_ours_loads_into_theirs():
    from transformers import T5EncoderModel

    ours = randomise(T5Encoder(CONFIG))
    theirs = T5EncoderModel(transformers_config()).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"} and not unexpected
    ids, mask = tokens(padded=True)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert relative_error(ours(ids, mask)[mask], expected[mask]) < 1e-5
