"""Span corruption, instructions and T5 (chapter 11)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minilib.data import Corpus
from minilib.soundworld.instructions import instructions
from minilib.text import (
    T5,
    T5Config,
    T5Encoder,
    noise_spans,
    relative_bucket,
    span_corrupt,
)
from minilib.tokenizer import EOS, N_SENTINELS, PAD, SENTINEL, SPECIAL_TOKENS, Tokenizer
from minilib.training import Recipe, TrainingData
from minilib.training.stages import InstructStage

CONFIG = T5Config(
    vocab_size=400,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=2,
    num_decoder_layers=1,
    num_heads=4,
)


def batch_of_tokens(
    B: int = 8, S: int = 24, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL_TOKENS), 400, (B, S), generator=generator)
    length = torch.randint(2, S + 1, (B,), generator=generator)
    length[0] = S
    mask = torch.arange(S) < length[:, None]
    ids[torch.arange(B), length - 1] = EOS
    return ids.masked_fill(~mask, PAD), mask


# --- span corruption


def test_noise_hides_the_asked_share_in_spans_of_the_asked_length():
    mask = torch.ones(200, 61, dtype=torch.bool)
    noise = noise_spans(
        mask, torch.Generator().manual_seed(0), rate=0.15, mean_span=3.0
    )
    assert (noise.sum(1) == 9).all()  # 15 % of 60 tokens
    n_spans = (noise & ~torch.nn.functional.pad(noise[:, :-1], (1, 0))).sum(1)
    assert (n_spans == 3).all()
    # every place but the first may be hidden
    assert noise[:, 1:60].float().mean(0).min() > 0.03


def test_noise_never_touches_eos_or_padding_and_always_hides_something():
    _, mask = batch_of_tokens(B=64)
    noise = noise_spans(mask, torch.Generator().manual_seed(0), rate=0.5, mean_span=1.0)
    last = mask.sum(1) - 1
    assert not noise[torch.arange(64), last].any() and not (noise & ~mask).any()
    assert (noise.sum(1) >= 1).all()


def test_noise_is_the_generators():
    _, mask = batch_of_tokens()
    a, b, c = (
        noise_spans(mask, torch.Generator().manual_seed(s), 0.4) for s in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_noise_of_empty_and_one_word_captions():
    mask = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    assert noise_spans(mask).int().tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_span_corrupt_is_the_papers_figure_2():
    ids = torch.tensor(
        [[30, 31, 32, 33, 34, 35, 36, 37, 38, 39, EOS], [40, 41, EOS] + [PAD] * 8]
    )
    noise = torch.zeros_like(ids, dtype=torch.bool)
    noise[0, [2, 3, 8]] = True
    inputs, targets = span_corrupt(ids, ids != PAD, noise)
    s = SENTINEL
    assert inputs.tolist() == [
        [30, 31, s, 34, 35, 36, 37, s + 1, 39, EOS],
        [40, 41, EOS] + [PAD] * 7,
    ]
    assert targets.tolist() == [
        [s, 32, 33, s + 1, 38, s + 2],
        [s, PAD, PAD, PAD, PAD, PAD],
    ]


def test_input_and_target_together_hold_every_token():
    ids, mask = batch_of_tokens(B=32)
    noise = noise_spans(mask, torch.Generator().manual_seed(0), rate=0.5, mean_span=2.0)
    inputs, targets = span_corrupt(ids, mask, noise)
    for row, masked, target in zip(ids, inputs.tolist(), targets.tolist(), strict=True):
        spans, sentinel = {}, None
        for token in filter(None, target):
            if SENTINEL <= token < SENTINEL + N_SENTINELS:
                sentinel = token
            spans.setdefault(sentinel, []).extend([] if token == sentinel else [token])
        filled = [
            t for token in masked if token != PAD for t in spans.get(token, [token])
        ]
        assert filled == row[row != PAD].tolist()


def test_bad_noise_gets_one_sentence():
    ids, mask = batch_of_tokens(S=64)
    with pytest.raises(ValueError, match="rate must be between 0 and 1"):
        noise_spans(mask, rate=1.0)
    with pytest.raises(ValueError, match="mean_span"):
        noise_spans(mask, mean_span=0.5)
    with pytest.raises(ValueError, match="at most 15 spans per sentence, not 32"):
        span_corrupt(ids, mask, (torch.arange(64) % 2 == 0).expand_as(ids))
    noise = noise_spans(mask, rate=0.5, mean_span=1.0)  # would be 32 spans
    inputs, _ = span_corrupt(ids, mask, noise)
    last = SENTINEL + N_SENTINELS - 1  # ends the target, and so hides nothing
    assert ((inputs >= SENTINEL) & (inputs < last)).sum(dim=1).max() == 15
    assert not (inputs == last).any()


def test_a_few_hidden_tokens_stand_side_by_side_where_spans_are_long():
    mask = torch.ones(20, 9, dtype=torch.bool)
    noise = noise_spans(mask, torch.Generator().manual_seed(0), 0.25, mean_span=9.0)
    assert (noise[:, 1:] & noise[:, :-1]).sum(dim=1).tolist() == [1] * 20
    assert noise.sum(dim=1).tolist() == [2] * 20


# --- T5


def test_near_distances_have_their_own_bucket_and_far_ones_share():
    distance = torch.arange(-200, 201)
    bucket = relative_bucket(distance, n_buckets=32, max_distance=128)
    assert bucket.min() == 0 and bucket.max() == 31
    near = bucket[(distance.abs() < 8)]
    assert len(near.unique()) == 15  # 0, seven to the left, seven to the right
    assert (
        len(bucket[distance >= 128].unique())
        == len(bucket[distance <= -128].unique())
        == 1
    )
    left = relative_bucket(distance, 32, 128, bidirectional=False)
    assert (left[distance > 0] == 0).all() and left[distance == -15] == 15


def test_padding_changes_no_state_of_a_token():
    torch.manual_seed(0)
    model = T5Encoder(CONFIG)
    ids, mask = batch_of_tokens(S=20)
    states = model(ids, mask)
    # any rubbish under the mask
    longer = torch.nn.functional.pad(ids, (0, 9), value=77)
    again = model(longer, torch.nn.functional.pad(mask, (0, 9)))[:, :20]
    assert states.std() > 0.3
    torch.testing.assert_close(again[mask], states[mask], rtol=1e-5, atol=1e-5)
    alone = model(ids[1:2, : int(mask[1].sum())])
    torch.testing.assert_close(alone[0], states[1][mask[1]], rtol=1e-5, atol=1e-5)


def test_the_encoder_hears_word_order():
    torch.manual_seed(0)
    model = T5Encoder(CONFIG)
    a = model(torch.tensor([[30, 31, 32, 33]])).mean(1)
    b = model(torch.tensor([[32, 33, 30, 31]])).mean(1)
    assert (a - b).norm() / a.norm() > 1e-3


def test_the_decoder_sees_no_later_target():
    torch.manual_seed(0)
    model = T5(CONFIG)
    ids, mask = batch_of_tokens()
    targets = torch.randint(20, 400, (8, 6))
    changed = targets.clone()
    changed[:, 4:] = 20
    a, b = model(ids, mask, targets), model(ids, mask, changed)
    # logits l predict target l from those before it
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5], b[:, 5])


def test_the_first_loss_is_that_of_guessing_and_falls():
    torch.manual_seed(0)
    model = T5(CONFIG)
    ids, mask = batch_of_tokens()
    batch = {
        "ids": ids,
        "mask": mask,
        "noise": noise_spans(mask, torch.Generator().manual_seed(0)),
    }
    first = model.loss(batch)
    assert abs(float(first.detach()) - 6.0) < 1.5  # log 400 = 5.99
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        model.loss(batch).backward()
        optimiser.step()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
    )
    assert model.loss(batch) < 0.6 * first


def test_the_mean_loss_of_shares_is_that_of_the_whole():
    torch.manual_seed(0)
    model, (ids, mask) = T5(CONFIG).eval(), batch_of_tokens()
    noise = noise_spans(mask, torch.Generator().manual_seed(0), rate=0.4)
    _, targets = span_corrupt(ids, mask, noise)
    n_targets = ((targets != PAD).sum() / 8).expand(8)
    batch = {"ids": ids, "mask": mask, "noise": noise, "n_targets": n_targets}
    shares = [{k: x[i : i + 4] for k, x in batch.items()} for i in (0, 4)]
    whole = model.loss({k: batch[k] for k in ("ids", "mask", "noise")})
    torch.testing.assert_close(sum(map(model.loss, shares)) / 2, whole)
    torch.testing.assert_close(model.loss(batch), whole)


# --- instructions and answers


def questions(B: int = 6) -> dict[str, torch.Tensor]:
    """Ids of questions, and answers of one to four tokens that they determine."""
    ids, mask = batch_of_tokens(B, S=9)
    targets = torch.full((B, 5), PAD)
    for i in range(B):
        targets[i, : 1 + i % 4] = ids[i, 0] if i % 2 else ids[i, 0] // 2 + 19
        targets[i, 1 + i % 4] = EOS
    return {"ids": ids, "mask": mask, "targets": targets}


def test_the_loss_of_answers_is_that_of_their_tokens_and_of_no_padding():
    torch.manual_seed(0)
    model, batch = T5(CONFIG).eval(), questions()
    logits = model(batch["ids"], batch["mask"], batch["targets"]).log_softmax(dim=2)
    nats = -logits.gather(2, batch["targets"][:, :, None])[:, :, 0]
    expected = nats[batch["targets"] != PAD].mean()
    torch.testing.assert_close(model.loss(batch), expected)
    longer = batch | {"targets": torch.nn.functional.pad(batch["targets"], (0, 3))}
    torch.testing.assert_close(model.loss(longer), expected)
    n_targets = ((batch["targets"] != PAD).sum() / 6).expand(6)
    shares = [{k: x[i : i + 3] for k, x in batch.items()} for i in (0, 3)]
    halves = [model.loss({**x, "n_targets": n_targets[:3]}) for x in shares]
    torch.testing.assert_close(sum(halves) / 2, expected)


def test_answers_that_were_learned_are_generated_and_end_where_they_should():
    torch.manual_seed(0)
    model, batch = T5(CONFIG), questions()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        model.loss(batch).backward()
        optimiser.step()
    answers = model.generate(batch["ids"], batch["mask"])
    assert torch.equal(answers, batch["targets"])  # no longer than the longest
    assert not answers.requires_grad
    for i in range(3):  # alone as in a batch, whatever stands under the padding
        one = batch["ids"][i : i + 1, : int(batch["mask"][i].sum())]
        alone = model.generate(one, torch.ones_like(one))
        assert alone[0].tolist() == batch["targets"][i, : 2 + i % 4].tolist()


def test_each_token_is_the_likeliest_after_those_before_it():
    torch.manual_seed(1)
    model, (ids, mask) = T5(CONFIG).eval(), batch_of_tokens(4, 9)
    answers = model.generate(ids, mask, most=7)
    assert answers.shape == (4, 7)  # random weights hardly say </s>
    logits = model(ids, mask, answers)
    assert torch.equal(logits.argmax(dim=2), answers)
    assert model.generate(ids, mask, most=1).shape == (4, 1)


def test_bad_ids_of_a_question_get_one_sentence():
    with pytest.raises(ValueError, match="ids must lie between 0 and 399"):
        T5(CONFIG).generate(torch.tensor([[400]]), torch.ones(1, 1))


def test_the_instructed_stage_asks_and_answers_and_goes_on_with_the_t5_it_is_given():
    captions, told = ["a dog barks"] * 40, instructions(40, seed=3)
    words = [text for x in told for text in (x.text, x.answer)]
    tokenizer = Tokenizer.train(words, 600)
    data = TrainingData(Corpus(np.zeros((40, 0), np.int16), captions), tokenizer)
    torch.manual_seed(0)
    model = T5(replace(CONFIG, vocab_size=600))
    recipe = Recipe(steps=1, batch_size=8, lr=1e-3)
    stage = InstructStage("tiny", recipe, data, {"text": model}, seed=3)
    batch = stage.batch(torch.Generator().manual_seed(0))
    assert stage.model is model and all(len(x) == 8 for x in batch.values())
    asked, answers = (tokenizer.decode(batch[x]) for x in ("ids", "targets"))
    every = {(tidy(x.text), x.answer) for x in told}
    assert {(tidy(x), y) for x, y in zip(asked, answers, strict=True)} <= every
    assert torch.equal(batch["mask"], batch["ids"] != PAD)
    assert batch["n_targets"].sum() == (batch["targets"] != PAD).sum()
    assert next(model.parameters()).requires_grad
    assert stage.finish()["text"].shared.weight is model.shared.weight


def tidy(text: str) -> str:
    return text.rstrip("?.! ")


def test_weights_are_drawn_at_t5s_own_scales():
    torch.manual_seed(0)
    size = T5Config(200, 64, 16, 96, num_layers=2, num_decoder_layers=1, num_heads=8)
    block = T5Encoder(size).encoder.block[0]
    attention, network = (block.layer[i]._modules[n] for i, n in
                          ((0, "SelfAttention"), (1, "DenseReluDense")))  # fmt: skip
    for linear, variance in (
        (attention.q, 1 / (64 * 16)),  # makes up for the missing 1/sqrt(d)
        (attention.k, 1 / 64),
        (attention.v, 1 / 64),
        (attention.o, 1 / 128),
        (attention.relative_attention_bias, 1 / 64),
        (network.wi_0, 1 / 64),
        (network.wi_1, 1 / 64),
        (network.wo, 1 / 96),
    ):
        assert linear.weight.var().item() == pytest.approx(variance, rel=0.35)


@torch.no_grad()
def test_the_condition_of_captions_is_states_and_mask():
    torch.manual_seed(0)
    encoder = T5Encoder(CONFIG).eval()
    assert encoder.reads == "caption" and encoder.dim == 32
    with pytest.raises(ValueError, match="this T5Encoder has no tokenizer"):
        encoder.encode(["rain"])
    encoder.tokenizer = Tokenizer.train(["rain falls", "a dog barks"] * 2, 300)
    ids, mask = encoder.tokenizer.encode(["rain falls", "a dog"], pad_to=30)
    context = encoder.encode(["rain falls", "a dog"], pad_to=30)
    assert torch.equal(context.sequence, encoder(ids, mask))
    assert torch.equal(context.mask, mask)
    assert encoder.empty(2).sequence.shape == (2, Tokenizer.pad_to, 32)


def test_the_loss_takes_its_randomness_from_the_batch():
    torch.manual_seed(0)
    model = T5(CONFIG).train()
    ids, mask = batch_of_tokens()
    batch = {"ids": ids, "mask": mask, "noise": noise_spans(mask)}
    assert torch.equal(model.loss(batch), model.loss(batch))


def test_the_encoder_that_ships_shares_the_trained_weights(tmp_path):
    torch.manual_seed(0)
    model = T5(CONFIG)
    encoder = model.text_encoder()
    assert encoder.shared.weight is model.shared.weight
    encoder.save_pretrained(tmp_path)
    loaded = T5Encoder.from_pretrained(tmp_path)
    assert loaded.config == CONFIG
    ids, mask = batch_of_tokens()
    assert torch.equal(loaded(ids, mask), model.encoder(model.shared(ids), mask))


def test_full_size_is_flan_t5_large_and_tiny_is_small():
    with torch.device("meta"):
        assert T5Encoder.preset("full").n_parameters() == 341_231_104
        assert T5Encoder.preset("tiny").n_parameters() < 1_000_000


def test_bad_ids_get_one_sentence():
    model = T5Encoder(CONFIG)
    with pytest.raises(
        ValueError,
        match=r"ids must be long of shape \(B, S\), not torch.int64 of shape \(3,\)",
    ):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="ids must be long"):
        model(torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"mask must have the shape of ids, \(2, 3\), not \(2, 4\)"
    ):
        model(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4))
    with pytest.raises(
        ValueError,
        match=r"ids must lie between 0 and 399, the model's vocabulary, not 5 to 400",
    ):
        model(torch.tensor([[5, 400]]))
