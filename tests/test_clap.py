"""CLAP: two towers, one space (chapter 10)."""

import math

import pytest
import torch

from minilib.clap import (
    CLAP,
    MAX_LOGIT_SCALE,
    CLAPConfig,
    contrastive_loss,
    same_captions,
)

CONFIG = CLAPConfig(
    dim=16,
    dropout=0.0,
    vocab_size=60,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=12,
    channels=(4, 8, 12),
    stride=2,
)


def some_pairs(B: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Captions of three tokens, and sounds whose loud mel bands depend on them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, 60, (B, 3), generator=generator)
    ids[:, 2] = 1
    log_mel = torch.randn(B, 1, 32, 16, generator=generator) - 6.8
    for row, (a, b, _) in zip(log_mel, ids.tolist(), strict=True):
        row[0, :16, a % 16] += 6.0
        row[0, 16:, b % 16] += 6.0
    return {
        "ids": ids,
        "mask": torch.ones_like(ids, dtype=torch.bool),
        "log_mel": log_mel,
    }


@pytest.fixture()
def model() -> CLAP:
    torch.manual_seed(0)
    return CLAP(CONFIG).eval()


def test_embeddings_have_unit_length_and_cosines_their_range(model):
    batch = some_pairs()
    text, audio = model(batch["ids"], batch["mask"], batch["log_mel"])
    assert text.shape == audio.shape == (8, 16)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(8))
    cosine = CLAP.similarity(text[:3], audio)
    assert cosine.shape == (3, 8) and cosine.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(
        cosine[2, 5], torch.nn.functional.cosine_similarity(text[2], audio[5], dim=0)
    )


def test_the_loss_of_perfect_and_of_blind_embeddings_is_known():
    eye = torch.eye(6)
    scale = torch.tensor(10.0)
    perfect = math.log(1 + 5 * math.exp(-10))
    assert contrastive_loss(eye, eye, scale).item() == pytest.approx(perfect, rel=1e-3)
    blind = torch.ones(6, 4) / 2
    assert contrastive_loss(blind, blind, scale).item() == pytest.approx(
        math.log(6), rel=1e-5
    )


def test_the_loss_is_symmetric_in_its_two_sides():
    torch.manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 6, 4), dim=-1)
    scale = torch.tensor(5.0)
    torch.testing.assert_close(
        contrastive_loss(a, b, scale), contrastive_loss(b, a, scale)
    )
    rows = torch.nn.functional.cross_entropy(5 * a @ b.T, torch.arange(6))
    # one direction alone is another number
    assert abs(contrastive_loss(a, b, scale) - rows) > 1e-3


def test_like_captions_are_no_wrong_answers():
    ids = torch.tensor([[30, 1, 0], [31, 1, 0], [30, 1, 0]])
    same = same_captions(ids)
    assert same.tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]
    text = torch.eye(3)
    text[2] = text[0]  # like captions, like embeddings
    scale = torch.tensor(50.0)
    assert contrastive_loss(text, text, scale, same) < 1e-6
    # log 2 in two of three rows, for being right
    assert contrastive_loss(text, text, scale) > 0.4


def test_the_model_compares_captions_by_ids_unless_told(model):
    batch = some_pairs()
    batch["ids"][5] = batch["ids"][2]
    told = model.loss({**batch, "same": same_captions(batch["ids"])})
    torch.testing.assert_close(model.loss(batch), told)
    assert (
        abs(told - model.loss({**batch, "same": torch.eye(8, dtype=torch.bool)})) > 1e-4
    )


def test_what_stands_under_the_padding_changes_nothing(model):
    batch = some_pairs()
    padded = torch.nn.functional.pad(batch["ids"], (0, 4), value=33)
    mask = torch.nn.functional.pad(batch["mask"], (0, 4))
    torch.testing.assert_close(
        model.embed_text(padded, mask),
        model.embed_text(batch["ids"]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_one_row_of_a_batch_equals_the_row_alone_in_evaluation(model):
    batch = some_pairs()
    alone = model.embed_audio(batch["log_mel"][3:4])
    torch.testing.assert_close(
        alone, model.embed_audio(batch["log_mel"])[3:4], rtol=1e-5, atol=1e-5
    )


def test_evaluation_leaves_the_batch_norm_as_it_is_and_training_does_not(model):
    before = {name: b.clone() for name, b in model.named_buffers()}
    model.embed_audio(some_pairs()["log_mel"])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    model.train().embed_audio(some_pairs()["log_mel"])
    assert any(not torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_any_length_of_sound_is_read(model):
    for T in (8, 31, 100):
        assert model.embed_audio(torch.randn(2, 1, T, 16)).shape == (2, 16)


def test_the_first_temperature_is_that_of_the_paper_and_the_scale_stays_below_100(
    model,
):
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    model.loss(some_pairs()).backward()
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    assert model.logit_scale.grad.abs() > 0  # and can still come down


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = CLAP(CLAPConfig(**{**CONFIG.__dict__, "dropout": 0.5})).eval()
    batch = some_pairs()
    assert torch.equal(model.embed_text(batch["ids"]), model.embed_text(batch["ids"]))
    model.train()
    assert not torch.equal(
        model.embed_text(batch["ids"]), model.embed_text(batch["ids"])
    )


def test_training_pairs_captions_with_their_sounds_and_shuffled_ones_learn_nothing_new():
    def accuracy_on_new_pairs(shuffled: bool) -> float:
        torch.manual_seed(0)
        model = CLAP(CONFIG).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(100):
            batch = some_pairs(B=32, seed=step)
            if shuffled:
                batch["log_mel"] = batch["log_mel"].roll(1, dims=0)
            optimiser.zero_grad()
            model.loss(batch).backward()
            optimiser.step()
        assert all(p.grad is not None for p in model.parameters())
        batch = some_pairs(B=32, seed=1000)
        with torch.no_grad():
            text, audio = model.eval()(batch["ids"], batch["mask"], batch["log_mel"])
        return (
            (CLAP.similarity(text, audio).argmax(1) == torch.arange(32))
            .float()
            .mean()
            .item()
        )

    assert accuracy_on_new_pairs(shuffled=False) > 0.3  # chance: 1/32
    assert accuracy_on_new_pairs(shuffled=True) < 0.15


def test_a_saved_clap_loads_equal_in_half_precision(model, tmp_path):
    model.save_pretrained(tmp_path, dtype=torch.float16)
    loaded = CLAP.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config == CONFIG
    ids = some_pairs()["ids"]
    torch.testing.assert_close(
        loaded.embed_text(ids), model.embed_text(ids), rtol=1e-2, atol=1e-2
    )


def test_presets_have_the_papers_widths():
    with torch.device("meta"):
        full = CLAP.preset("full")
        assert CLAP.preset("tiny").n_parameters() < 1_500_000
    assert (
        full.config.dim == 1024
        and len(full.text.layers) == 12
        and full.audio.fc.in_features == 2048
    )


def test_bad_input_gets_one_sentence(model):
    with pytest.raises(ValueError, match="ids must be long of shape"):
        model.embed_text(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="ids must have at most 11 tokens, not 12"):
        model.embed_text(torch.zeros(2, 12, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"mask must have the shape of ids, \(2, 3\), not \(2, 4\)"
    ):
        model.embed_text(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4))
    with pytest.raises(
        ValueError,
        match=r"log_mel must have shape \(B, 1, T, F\), T and F at least 8, not \(2, "
        r"1, 7, 16\)",
    ):
        model.embed_audio(torch.zeros(2, 1, 7, 16))
    with pytest.raises(ValueError, match="log_mel must have shape"):
        model.embed_audio(torch.zeros(2, 32, 16))
