"""CLAP: two towers, one space (chapter 10)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilib.clap import (
    CLAP,
    AudioTower,
    CLAPConfig,
    ConvBlock,
    ProjectionHead,
    TextTower,
    contrastive_loss,
    same_captions,
)
from minilib.tokenizer import CLS, MIN_VOCABULARY, Tokenizer

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


def as_torch_has_it(layer: nn.Module) -> nn.Module:
    """torch's own post-norm transformer layer with the weights of a `BERTLayer`."""
    W, names = CONFIG.n_embd, {"attn_out": "self_attn.out_proj", "mlp_in": "linear1"}
    names |= {"mlp_out": "linear2", "norm_1": "norm1", "norm_2": "norm2"}
    theirs = nn.TransformerEncoderLayer(
        W, CONFIG.n_head, 4 * W, 0.0, F.gelu, 1e-12, batch_first=True
    )
    state = {f"{names[k]}.{kind}": p for name, p in layer.state_dict().items()
             for k, kind in [name.split(".")] if k in names}  # fmt: skip
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = getattr(layer.attn_in, kind)
    theirs.load_state_dict(state)
    return theirs.eval()


@torch.no_grad()
def test_the_text_tower_is_bert_and_cls_stands_for_the_sentence():
    torch.manual_seed(0)
    tower = TextTower(CONFIG).eval()
    for p in tower.parameters():  # of order one, or attention would be flat
        p.copy_(torch.randn(p.shape) * (p.shape[1] ** -0.5 if p.ndim > 1 else 1.0))
    ids, S = torch.randint(20, 60, (3, 7)), torch.tensor([7, 4, 1])
    keep = torch.arange(-1, 7) < S[:, None]  # <cls> is always read
    with_cls = torch.cat([torch.full((3, 1), CLS), ids], dim=1)
    x = tower.token(with_cls) + tower.position.weight[:8]
    x = F.layer_norm(x, (32,), tower.norm.weight, tower.norm.bias, eps=1e-12)
    for layer in tower.layers:
        x = as_torch_has_it(layer)(x, src_key_padding_mask=~keep)
    state = tower(ids, torch.arange(7) < S[:, None])
    assert state.std() > 0.3
    torch.testing.assert_close(state, x[:, 0], rtol=1e-4, atol=1e-4)
    norms = [m for m in tower.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and all(norm.eps == 1e-12 for norm in norms)


def test_the_text_tower_begins_with_berts_weights():
    torch.manual_seed(0)
    tower = TextTower(replace(CONFIG, n_embd=64))
    for name, p in tower.named_parameters():
        if p.ndim == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), name
        else:
            assert (p == float("norm" in name and "weight" in name)).all(), name


def test_the_audio_tower_hears_the_loudest_moment_and_the_whole():
    tower = AudioTower(replace(CONFIG, channels=(1,), mel_mean=-2.0, mel_std=4.0))
    tower.blocks, tower.fc = nn.ModuleList(), nn.Identity()
    mel = torch.randn(2, 1, 9, 5) - 2.0
    over_frequency = (mel[:, 0].mean(dim=2) + 2.0) / 4.0  # (2, 9)
    wanted = over_frequency.max(dim=1).values + over_frequency.mean(dim=1)
    torch.testing.assert_close(tower(mel)[:, 0], wanted.relu())


@pytest.mark.parametrize(("stride", "pool"), [(1, 1), (2, 2), (1, 2)])
def test_a_block_is_two_convolutions_each_normalised_then_a_mean_over_squares(
    stride, pool
):
    torch.manual_seed(0)
    block, x = ConvBlock(3, 5, pool, stride).train(), torch.randn(2, 3, 8, 12)
    h = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    h = F.batch_norm(h, None, None, training=True).relu()
    h = F.conv2d(h, block.conv2.weight, padding=1)
    h = F.batch_norm(h, None, None, training=True).relu()
    B, C, T, n_bands = h.shape
    squares = h.view(B, C, T // pool, pool, n_bands // pool, pool)
    torch.testing.assert_close(block(x), squares.mean(dim=(3, 5)))
    assert (T, n_bands) == (8 // stride, 12 // stride)
    assert block.conv1.bias is None and block.conv2.bias is None


def test_all_blocks_but_the_last_halve_the_mel_and_the_first_takes_the_stride(model):
    blocks = model.audio.blocks
    assert [block.pool for block in blocks] == [2, 2, 1]
    assert [block.conv1.stride for block in blocks] == [(2, 2), (1, 1), (1, 1)]
    assert model.audio.reduction == 8


def test_a_projection_adds_its_second_layer_to_its_first():
    torch.manual_seed(0)
    head, x = ProjectionHead(6, 4, dropout=0.0), torch.randn(3, 6)
    e1 = x @ head.linear1.weight.T
    e = F.layer_norm(e1 + F.gelu(e1) @ head.linear2.weight.T, (4,))
    torch.testing.assert_close(head(x), e / e.norm(dim=1, keepdim=True))


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
    assert model.logit_scale.item() == pytest.approx(math.log(100))
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


def test_training_pairs_captions_with_sounds_and_shuffled_pairs_teach_nothing():
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


@torch.no_grad()
def test_a_captions_condition_is_one_vector_whatever_the_padding():
    torch.manual_seed(0)
    captions = ["a dog barks", "rain falls on a tin roof"]
    size = replace(CONFIG, vocab_size=MIN_VOCABULARY, n_positions=40)
    model, tokenizer = CLAP(size).eval(), Tokenizer.train(captions, MIN_VOCABULARY)
    with pytest.raises(ValueError, match="this CLAP has no tokenizer"):
        model.encode(captions)
    model.tokenizer = tokenizer
    context, padded = model.encode(captions), model.encode(captions, pad_to=30)
    assert model.reads == "caption" and context.sequence.shape == (2, 1, model.dim)
    assert context.mask is None and torch.equal(context.sequence, padded.sequence)
    ids, mask = tokenizer.encode(captions, pad_to=tokenizer.pad_to)
    assert torch.equal(context.sequence[:, 0], model.embed_text(ids, mask))
    assert torch.equal(model.empty(3).sequence, model.encode([""] * 3).sequence)


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
    for shape in ((2, 32, 16), (2, 2, 32, 16)):
        with pytest.raises(ValueError, match="log_mel must have shape"):
            model.embed_audio(torch.zeros(shape))


def test_the_loss_bounds_the_mutual_information_and_shows_at_most_log_b():
    """A world of eight words, each with its own sound: log 8 nats, and the best loss is
    the logarithm of how often a word is drawn.
    """
    generator, scale = torch.Generator().manual_seed(0), torch.tensor(60.0)
    shown = {}
    for B in (4, 256):
        losses, least = [], []
        for _ in range(200):
            words = torch.randint(8, (B,), generator=generator)
            rows = torch.eye(8)[words]
            losses.append(contrastive_loss(rows, rows, scale))
            alike = (words[:, None] == words).sum(dim=1)
            least.append(alike.log().mean())
        torch.testing.assert_close(torch.stack(losses), torch.stack(least))
        shown[B] = math.log(B) - float(torch.stack(losses).mean())
    assert shown[4] < math.log(4) < shown[256] < math.log(8)
    assert shown[256] > math.log(8) - 0.05


def test_the_stage_draws_captions_with_their_own_sounds():
    from minilib import audio
    from minilib.data import Corpus
    from minilib.soundworld import SoundWorld
    from minilib.training import Recipe, TrainingData
    from minilib.training.stages import CLAPStage

    world = SoundWorld("train", seconds=0.6)
    corpus = Corpus.from_soundworld(world, 6, progress=False)
    tokenizer = Tokenizer.train(corpus.captions, MIN_VOCABULARY)
    data = TrainingData(corpus, tokenizer)
    recipe = Recipe(steps=1, batch_size=4, lr=1e-3)
    stage = CLAPStage("tiny", recipe, data, {}, seed=3)
    batch = stage.batch(torch.Generator().manual_seed(1))
    drawn = tokenizer.decode(batch["ids"])
    assert len(set(drawn)) == 4
    for caption, mel in zip(drawn, batch["log_mel"], strict=True):
        (i,) = (k for k in range(6) if corpus.captions[k].lower() == caption)
        torch.testing.assert_close(mel, audio.log_mel(corpus.wave([i]))[0])
    assert torch.isfinite(stage.model.loss(batch))
    assert stage.finish() == {"clap": stage.model}
    twin = CLAPStage("tiny", recipe, data, {}, seed=3)
    assert torch.equal(twin.model.text.token.weight, stage.model.text.token.weight)
