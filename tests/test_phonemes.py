"""Phonemes: what text becomes, ids and back; and the encoder: padding that is silent,
distances that count, and ids that are not there.
"""

import sys
from itertools import pairwise

import pytest
import torch

from minilib.phonemes import (
    END,
    SYMBOLS,
    PhonemeConfig,
    PhonemeEncoder,
    PhonemeTokenizer,
    RelativeAttention,
    phonemize,
)
from minilib.soundworld import WORDS
from minilib.soundworld.espeak import ipa, say
from minilib.soundworld.speech import OTHERS

SMALL = PhonemeConfig(20, 16, num_layers=2, ffn_dim=24, window_size=2, flow_size=4)


@pytest.fixture
def encoder() -> PhonemeEncoder:
    torch.manual_seed(0)
    return PhonemeEncoder(SMALL).eval()


def phonemes(S: int) -> torch.Tensor:
    return torch.randint(1, 20, (2, S), generator=torch.Generator().manual_seed(1))


def padded(ids: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids, and n of padding after them, with the mask."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    return torch.nn.functional.pad(ids, (0, n)), torch.nn.functional.pad(mask, (0, n))


@torch.no_grad()
def test_states_do_not_hang_on_the_padding_behind_them(encoder):
    short, long = (encoder(*padded(phonemes(7), n)) for n in (0, 5))
    torch.testing.assert_close(long[:, :7], short)
    assert (long[:, 7:] == 0).all()


@torch.no_grad()
def test_distances_count_within_the_window_and_no_further():
    """Attention by its formula, one pair of positions after the other (1803.02155 Eqs.
    3 and 4).
    """
    torch.manual_seed(0)
    S, w, d = 6, SMALL.window_size, 8
    attention, x = RelativeAttention(SMALL), torch.randn(1, 6, 16)
    q, k, v = (
        p(x)[0].view(S, 2, d)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    near = lambda table, i, j: (
        table[0, j - i + w] if abs(j - i) <= w else torch.zeros(d)
    )
    out = torch.zeros(S, 2, d)
    for h in range(2):
        for i in range(S):
            keys = torch.stack(
                [k[j, h] + near(attention.emb_rel_k, i, j) for j in range(S)]
            )
            values = torch.stack(
                [v[j, h] + near(attention.emb_rel_v, i, j) for j in range(S)]
            )
            out[i, h] = (keys @ q[i, h] / d**0.5).softmax(0) @ values
    torch.testing.assert_close(
        attention(x, torch.ones(1, 1, 1, S, dtype=torch.bool)),
        attention.out_proj(out.flatten(1))[None],
    )


def test_distances_begin_with_vectors_of_about_unit_length():
    torch.manual_seed(0)
    attention = RelativeAttention(PhonemeConfig())
    for table in (attention.emb_rel_k, attention.emb_rel_v):
        assert table.norm(dim=2).mean().item() == pytest.approx(1.0, rel=0.1)


class Letters:
    """A tokenizer that takes letters for phonemes, 5 at least."""

    pad_to = 5

    def encode(
        self, inputs: list[str], pad_to: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.zeros(len(inputs), pad_to, dtype=torch.long)
        for row, word in zip(ids, inputs, strict=True):
            row[: len(word)] = torch.tensor([ord(c) - ord("a") + 1 for c in word])
        return ids, ids > 0


@torch.no_grad()
def test_what_is_spoken_is_a_condition_and_silence_is_zeros_that_nobody_reads(encoder):
    assert encoder.reads == "transcription" and encoder.dim == 16
    for call in (lambda: encoder.encode(["ab"]), lambda: encoder.empty(2)):
        with pytest.raises(ValueError, match="this PhonemeEncoder has no tokenizer"):
            call()
    encoder.tokenizer = Letters()
    ids, mask = encoder.tokenizer.encode(["ab", "c"], pad_to=5)
    context = encoder.encode(["ab", "c"])
    assert torch.equal(context.sequence, encoder(ids, mask))
    assert torch.equal(context.mask, mask)
    for asked, S in ((0, 5), (3, 3), (9, 9)):
        empty = encoder.empty(2, pad_to=asked)
        assert empty.sequence.shape == (2, S, 16) and not empty.sequence.any()
        assert empty.mask.shape == (2, S) and not empty.mask.any()
        assert empty.mask.dtype == torch.bool
    assert encoder.half().empty(1).sequence.dtype == torch.float16


def test_without_a_mask_all_phonemes_are_read(encoder):
    ids = phonemes(7)
    assert torch.equal(encoder(ids), encoder(ids, torch.ones_like(ids)))


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        (
            [[1, 20]],
            [[True, True]],
            "ids must lie between 0 and 19, the model's vocabulary, not 1 to 20",
        ),
        (
            [[-1, 2]],
            [[True, True]],
            "ids must lie between 0 and 19, the model's vocabulary, not -1 to 2",
        ),
        (
            [[1, 2]],
            [[True]],
            r"mask must have the shape of ids, \(1, 2\), not \(1, 1\)",
        ),
    ],
)
def test_what_cannot_be_encoded_is_named(encoder, ids, mask, said):
    with pytest.raises(ValueError, match=said):
        encoder(torch.tensor(ids), torch.tensor(mask))


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(
        ValueError, match="hidden_size must be a multiple of num_heads, not 16 of 3"
    ):
        PhonemeEncoder(PhonemeConfig(20, 16, num_heads=3))


# --------------------------------------------------------------------------------------
# Text to phonemes


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("seven rivers", "sˈɛvən ɹˈɪvɚz"),
        ("Hello, world!", "həlˈoʊ, wˈɜːld!"),
        ("hello ,world", "həlˈoʊ wˈɜːld"),  # no mark ends a word here
        ("42", "fˈɔːɹɾi tˈuː"),
        ("3.14 or 1,000.", "θɹˈiː pɔɪnt wˈʌn fˈɔːɹ ɔːɹ wˈʌn θˈaʊzənd."),
        ("(yes)", "jˈɛs"),
        ("“yes”", "jˈɛs"),
        ("", ""),
        ("  \n ", ""),
        ("...", "..."),
        ("…", "…"),
        ("Dr. Smith", "dˈɑːktɚ smˈɪθ"),
        ("I saw Mr. and Mrs. Jones.", "aɪ sˈɔː mˈɪstɚ ænd mˈɪsɪz dʒˈoʊnz."),
        ("e.g. this", "ˌiːdʒˈiː. ðˈɪs"),  # the limit that the docstring names
    ],
)
def test_text_becomes_phonemes_and_the_marks_that_end_clauses_stay(text, phonemes):
    assert phonemize(text) == phonemes


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("Dr. Smith", False),
        ("Mr. Smith", False),
        ("Mrs. Smith", False),
        ("Prof. Smith", False),
        ("Rev. Smith", False),
        ("St. James", False),
        ("J. R. R. Tolkien", False),
        ("It was I. Then we left", True),
        ("The cart. Then we left", True),
        ("U.S. Army", True),
    ],
)
def test_a_point_is_a_mark_where_espeak_pauses(text, ends):
    sounds = say(text).phonemes
    pause = max(after.start - before.end for before, after in pairwise(sounds))
    assert (pause > 0.2) == ends == ("." in phonemize(text))


def test_a_title_at_the_end_keeps_the_point_of_the_sentence():
    assert phonemize("He is a Dr.") == phonemize("He is a doctor.")


def test_a_long_text_is_read_to_its_end():
    spoken = phonemize("seven rivers, " * 5_000)
    assert spoken.split(" ") == (["sˈɛvən", "ɹˈɪvɚz,"] * 5_000)


@pytest.mark.parametrize("text", ["привет", "日本", "seven \u2603", "a\0b", "γ"])
def test_another_script_and_unknown_symbols_are_named_and_not_guessed(text):
    with pytest.raises(ValueError, match="text must be English: it holds "):
        phonemize(text)


def test_the_table_is_that_of_vits():
    assert len(SYMBOLS) == 178 and PhonemeTokenizer.vocab_size == END + 1 == 183
    # as in the released model: padding 0, the space after 15 signs, letters, IPA
    assert [SYMBOLS.index(s) for s in "_ Aazɑˈːᵻ"] == [
        0,
        16,
        17,
        43,
        68,
        69,
        156,
        158,
        177,
    ]


def test_every_word_of_soundworld_becomes_ids_and_comes_back():
    tokenizer, words = PhonemeTokenizer(32), [*WORDS, *OTHERS]
    ids, mask = tokenizer.encode(words)
    assert ids.dtype == torch.long and mask.dtype == torch.bool
    assert tokenizer.decode(ids) == [ipa(word) for word in words]
    assert len({tuple(row) for row in ids.tolist()}) > 0.98 * len(words)  # homophones


def test_a_sequence_ends_with_the_end_sign_and_padding_is_masked():
    tokenizer = PhonemeTokenizer()
    assert tokenizer.max_tokens == tokenizer.pad_to == 310
    ids, mask = tokenizer.encode(["seven", ""], pad_to=9)
    assert ids.tolist() == [[61, 156, 86, 64, 83, 56, END, 0, 0], [END] + 8 * [0]]
    assert torch.equal(mask, ids != 0)
    assert tokenizer.encode(["seven"])[0].shape == (1, 7)


def test_a_transcription_alone_is_as_in_a_batch():
    tokenizer = PhonemeTokenizer(32)
    together, _ = tokenizer.encode(["happy", "wagon", ""], pad_to=32)
    for row, text in zip(together, ["happy", "wagon", ""]):
        assert torch.equal(tokenizer.encode([text], pad_to=32)[0][0], row)


def test_what_cannot_be_tokenised_is_named():
    tokenizer = PhonemeTokenizer(8)
    assert tokenizer.encode(["wagon"])[0].shape == (1, 7)
    long = (
        "the transcription 'happy wagon' has 13 phonemes and signs, but at most 8 can"
    )
    for texts, said in (
        (["wagon", "happy wagon"], long),
        (["river " * 10_000], "the transcription 'river river .*' has 60000 phonemes"),
        ([], "transcriptions is empty: at least one is needed"),
        (["a\ud800"], "transcriptions must be text in UTF-8"),
    ):
        with pytest.raises(ValueError, match=said):
            tokenizer.encode(texts)
    with pytest.raises(TypeError, match="transcriptions must hold strings, not int"):
        tokenizer.encode([3])
    with pytest.raises(
        ValueError, match="max_tokens must be a whole number, 1 or more"
    ):
        PhonemeTokenizer(0)


def test_a_tokenizer_is_saved_and_comes_back(tmp_path):
    path = tmp_path / "phonemes.json"
    PhonemeTokenizer(32).save(path)
    loaded = PhonemeTokenizer.load(path)
    assert isinstance(loaded, PhonemeTokenizer) and loaded.max_tokens == 32
    text = path.read_text()
    for damage, said in (
        (text[:-5], "is damaged: no phoneme tokenizer can be read from it"),
        ("[]", "is damaged"),
        (text.replace("32", "0"), "is damaged"),
        (text.replace("_;", "_,"), "is not minilib's: its symbols are not those of"),
        (text.replace("182", "181"), "is not minilib's"),
    ):
        path.write_text(damage)
        with pytest.raises(ValueError, match=said):
            PhonemeTokenizer.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PhonemeTokenizer.load(tmp_path / "none.json")


@torch.no_grad()
def test_the_encoder_reads_with_it_and_words_differ():
    torch.manual_seed(0)
    encoder = PhonemeEncoder(PhonemeEncoder.presets["tiny"]).eval()
    encoder.tokenizer = PhonemeTokenizer(24)
    context = encoder.encode(["happy wagon", "wagon", ""])
    assert context.sequence.shape == (3, 24, 96)
    assert context.mask.sum(dim=1).tolist() == [13, 7, 1]
    assert not torch.allclose(context.sequence[0, :7], context.sequence[1, :7])


def test_without_espeak_a_sentence_says_what_to_install_and_the_encoder_works(
    encoder, monkeypatch
):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    ipa.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        PhonemeTokenizer().encode(["seven"])
    assert encoder(phonemes(3)).shape == (2, 3, 16)


def test_symbols_begin_at_unit_scale():
    torch.manual_seed(0)
    encoder = PhonemeEncoder(PhonemeConfig())
    started = encoder.embed_tokens(torch.arange(1, 183)) * encoder.dim**0.5
    assert started.std().item() == pytest.approx(1.0, rel=0.05)
