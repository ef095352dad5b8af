"""The tokenizer, and what encoders do with it (chapter 11)."""

import copy
import inspect
import re

import pytest
import torch

from minilib.clap import CLAP
from minilib.text import T5
from minilib.tokenizer import (
    CLS,
    EOS,
    MIN_VOCABULARY,
    N_SENTINELS,
    PAD,
    SENTINEL,
    SPECIAL_TOKENS,
    Reader,
    Tokenizer,
    check_ids,
    split_words,
)

CAPTIONS = [
    "a dog barks, then a bell rings",
    "rain falls softly",
    "a high bell rings twice",
    "thunder rolls, then rain falls",
    "a low engine hums while a bird sings",
] * 10


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=400)


def test_special_ids_are_the_fixed_ones(tokenizer):
    assert [tokenizer.backend.token_to_id(token) for token in SPECIAL_TOKENS] == list(
        range(3 + N_SENTINELS)
    )
    assert (PAD, EOS, CLS, SENTINEL) == (0, 1, 2, 3)


def test_encode_ends_with_eos_and_pads_to_the_longest(tokenizer):
    ids, mask = tokenizer.encode(
        ["rain falls softly", "a dog barks, then a bell rings"]
    )
    assert (
        ids.dtype == torch.long and mask.dtype == torch.bool and ids.shape == mask.shape
    )
    length = mask.sum(1)
    assert int(length.max()) == ids.shape[1]
    assert ids[torch.arange(2), length - 1].tolist() == [EOS, EOS]
    assert (ids[~mask] == PAD).all() and (ids[mask] != PAD).all()


def test_encode_can_pad_to_a_length_that_longer_captions_exceed(tokenizer):
    assert tokenizer.encode(["rain"], pad_to=40)[0].shape == (1, 40)
    longest = len(tokenizer.encode(["rain " * 30])[0][0])
    assert tokenizer.encode(["rain", "rain " * 30], pad_to=3)[0].shape == (2, longest)


def test_any_word_comes_back_unchanged(tokenizer):
    words = ["xylophone", "zürich", "雨が降る", "\U0001f415 woof", "a - b; c/d"]
    assert tokenizer.decode(tokenizer.encode(words)[0]) == words


@pytest.mark.parametrize(
    "variant",
    [
        "A dog barks.",
        "a  dog\tbarks!",
        " a dog barks ",
        "A DOG BARKS ...",
        "a dog barks",
    ],
)
def test_case_spaces_and_closing_marks_do_not_matter(tokenizer, variant):
    assert torch.equal(
        tokenizer.encode([variant])[0], tokenizer.encode(["a dog barks"])[0]
    )


def test_a_known_word_is_the_same_token_wherever_it_stands(tokenizer):
    first, later = (tokenizer.encode([c])[0][0].tolist() for c in ("bell", "a bell"))
    assert first == later[-len(first) :]


def test_an_empty_caption_is_eos_alone(tokenizer):
    for caption in ("", "   ", "..."):
        ids, mask = tokenizer.encode([caption])
        assert ids.tolist() == [[EOS]] and mask.tolist() == [[True]]


def test_a_caption_that_spells_a_special_token_does_not_become_one(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for t in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        ids, _ = t.encode(["a <pad> b </s> c <cls> <extra_id_0>"])
        assert (ids[0, :-1] >= len(SPECIAL_TOKENS)).all()


def test_a_long_caption_is_refused_by_number_or_cut_on_demand(tokenizer):
    with pytest.raises(ValueError, match="has 41 tokens, but at most 16 can be read"):
        tokenizer.encode(["rain " * 40], max_length=16)
    ids, _ = tokenizer.encode(["rain " * 40], max_length=16, truncate=True)
    assert ids.shape == (1, 16) and ids[0, -1] == EOS
    assert tokenizer.encode(["rain " * 15], max_length=16)[0].shape == (1, 16)


def test_captions_of_64_tokens_are_read_and_a_refusal_quotes_40_letters(tokenizer):
    assert tokenizer.encode(["rain " * 63])[0].shape == (1, 64)
    told = (
        "caption "
        + repr(("rain " * 64)[:37] + "...")
        + " has 65 tokens, but at most 64"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        tokenizer.encode(["rain " * 64])
    with pytest.raises(ValueError, match="caption '" + "rain " * 8 + "' has 9 tokens"):
        tokenizer.encode(["rain", "rain " * 8], max_length=4)
    told = "caption '" + "rain " * 7 + "ra...' has"  # 41 letters
    with pytest.raises(ValueError, match=re.escape(told)):
        tokenizer.encode(["rain " * 8 + "s"], max_length=4)
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        tokenizer.encode(["rain"], max_length=0, truncate=True)
    assert tokenizer.encode(["rain"], max_length=1, truncate=True)[0].tolist() == [
        [EOS]
    ]


def test_pairs_are_merged_that_occur_twice():
    assert Tokenizer.train(["ab"], 400).vocab_size == MIN_VOCABULARY == 275
    assert Tokenizer.train(["ab"] * 2, 400).vocab_size == MIN_VOCABULARY + 2
    assert Tokenizer.train(["ab"] * 2, MIN_VOCABULARY).vocab_size == MIN_VOCABULARY


def test_the_vocabulary_is_that_of_the_smallest_models_unless_told():
    size = inspect.signature(Tokenizer.train).parameters["vocab_size"].default
    assert size == T5.presets["tiny"].vocab_size == CLAP.presets["tiny"].vocab_size


def test_decoding_shows_sentinels_and_nothing_else_that_is_special(tokenizer):
    word = tokenizer.encode(["rain"])[0][0, 0].item()
    ids = torch.tensor([[CLS, word, SENTINEL, word, EOS, PAD, PAD]])
    assert tokenizer.decode(ids) == ["rain<extra_id_0> rain"]


def test_training_is_deterministic_in_the_words_not_their_order():
    a, b = Tokenizer.train(CAPTIONS, 400), Tokenizer.train(CAPTIONS[::-1], 400)
    assert a.backend.to_str() == b.backend.to_str()


def test_a_saved_tokenizer_loads_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == tokenizer.vocab_size <= 400
    assert torch.equal(loaded.encode(CAPTIONS)[0], tokenizer.encode(CAPTIONS)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_copy_of_a_tokenizer_is_itself(tokenizer):
    """A copy of an encoder takes it along; the library's own would read "<pad>"."""
    assert copy.deepcopy({"tokenizer": tokenizer})["tokenizer"] is tokenizer


def test_a_missing_damaged_or_foreign_tokenizer_is_named(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Tokenizer.load(tmp_path)
    half = tmp_path / "half.json"
    half.write_text(tokenizer.backend.to_str()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer.load(half)
    half.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer.load(half)
    foreign = tmp_path / "foreign.json"
    foreign.write_text(tokenizer.backend.to_str().replace('"<cls>"', '"[CLS]"'))
    with pytest.raises(ValueError, match="id 2 is not <cls>"):
        Tokenizer.load(foreign)


def test_bad_captions_and_sizes_get_one_sentence(tokenizer):
    with pytest.raises(
        TypeError, match=r"must be a list of str, not one str: write \['rain'\]"
    ):
        tokenizer.encode("rain")
    with pytest.raises(TypeError, match=re.escape(f"write ['{'rain ' * 8}']")):
        tokenizer.encode("rain " * 9)  # 40 letters tell enough
    with pytest.raises(TypeError, match="one of them is int"):
        tokenizer.encode(["rain", 3])
    with pytest.raises(ValueError, match="at least one caption"):
        tokenizer.encode([])
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        tokenizer.encode(["rain"], max_length=0)
    with pytest.raises(ValueError, match=f"at least {MIN_VOCABULARY}, not 100"):
        Tokenizer.train(CAPTIONS, vocab_size=100)
    with pytest.raises(ValueError, match="at least one caption"):
        Tokenizer.train([])


def test_the_words_of_a_caption_are_small_and_bare():
    assert split_words('A "Dog" barks, twice...') == ["a", "dog", "barks", "twice"]


# --- what encoders share


class Table(Reader, torch.nn.Embedding):
    """The least that is an encoder: a vector for each id."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert ids.shape == mask.shape and ids.device == self.weight.device
        return super().forward(ids)


def test_an_encoder_reads_with_its_own_tokenizer(tokenizer):
    encoder = Table(400, 3)
    with pytest.raises(ValueError, match="this Table has no tokenizer: set its"):
        encoder.encode(["rain"])
    encoder.tokenizer = tokenizer
    for asked, S in ((0, 24), (23, 24), (30, 30)):  # 24: the tokenizer's own
        ids, mask = tokenizer.encode(["rain", "a bell"], pad_to=S)
        context = encoder.encode(["rain", "a bell"], pad_to=asked)
        assert torch.equal(context.sequence, encoder.weight[ids])
        assert torch.equal(context.mask, mask) and mask.shape == (2, S)
        empty = encoder.empty(3, pad_to=asked)
        assert torch.equal(empty.sequence, encoder.encode([""] * 3, asked).sequence)
        assert empty.mask.sum(dim=1).tolist() == [1, 1, 1]  # </s> alone
    encoder.to("meta")
    assert encoder.encode(["rain"]).sequence.is_meta
    assert encoder.reads == "caption" and Table.tokenizer is None


def test_the_mask_of_ids_is_checked_and_all_true_if_none_is_given():
    ids = torch.tensor([[0, 4], [3, 1]])
    mask = check_ids(ids, None, vocab_size=5, most=2)
    assert mask.dtype == torch.bool and mask.all() and mask.shape == (2, 2)
    given = check_ids(ids, torch.tensor([[1, 0], [1, 1]]), vocab_size=5)
    assert given.tolist() == [[True, False], [True, True]]
    inside = "ids must lie between 0 and 4, the model's vocabulary, not"
    shape = "(B, S), not"
    for wrong, mask, most, said in (
        (ids, None, 1, "ids must have at most 1 tokens, not 2"),
        (ids + 1, None, None, f"{inside} 1 to 5"),
        (ids - 1, None, None, f"{inside} -1 to 3"),
        (ids, torch.ones(2, 3), None, "the shape of ids, (2, 2), not (2, 3)"),
        (ids[0], None, None, f"{shape} torch.int64 of shape (2,)"),
        (ids[:, :0], None, None, f"{shape} torch.int64 of shape (2, 0)"),
        (ids / 2, None, None, f"{shape} torch.float32 of shape (2, 2)"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            check_ids(wrong, mask, 5, most)
