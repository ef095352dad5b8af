"""The judges of speech: which word is said, and by whom (chapter 11b)."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minilib import audio, metrics
from minilib.classifier import Classifier, ClassifierConfig
from minilib.metrics import SpeechJudges, clustered_error, hearing
from minilib.metrics.hearing import answers
from minilib.metrics.speech import judged_speech
from minilib.soundworld import VOICES, WORDS, espeak
from minilib.speakers import ABSENT
from minilib.training import clips

pytest.importorskip("espeakng_loader")
OWN = {(v.variant, v.height, v.rate) for v in VOICES.values()}


# --------------------------------------------------------------------------------------
# What they learn from


@pytest.fixture
def said(monkeypatch) -> list[tuple]:
    """What espeak-ng is asked to say; it says nothing."""
    asked = []
    monkeypatch.setattr(espeak, "say", lambda *how: asked.append(how))
    monkeypatch.setattr(clips, "spoken", lambda words, voice: asked.append((*words,)))
    return asked


def test_the_judge_of_words_hears_every_word_but_never_as_soundworld_says_it(said):
    pairs = clips.SaidWords.sayings(None, np.random.default_rng(0))
    assert [WORDS[label] for label, _ in pairs] == [text for text, *_ in said]
    assert {text for text, *_ in said} == set(WORDS)
    assert not OWN & {tuple(how) for _, *how in said}
    variants = {variant for _, variant, *_ in said}
    assert {v.variant for v in VOICES.values()} < variants and len(variants) > 4


def test_the_judge_of_voices_hears_every_voice_but_no_word_of_soundworld(said):
    pairs = clips.SaidVoices.sayings(None, np.random.default_rng(0))
    assert [label for label, _ in pairs] == sorted([*range(8)] * clips.SAYINGS)
    assert not {word for (word,) in said} & set(WORDS)


@pytest.fixture(scope="module")
def voices_said() -> clips.SaidVoices:
    """Two words in each voice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "SAYINGS", 2)
        return clips.SaidVoices(1.28, progress=False)


def test_clean_speech_is_shifted_scaled_and_mixed_with_faint_noise(voices_said):
    assert voices_said.waves.shape[1] == 20480 and len(voices_said.of) > 8
    generator = torch.Generator().manual_seed(0)
    waves, labels = voices_said.draw(8, generator)
    assert waves.shape == (8, 20480) and waves.abs().max() <= 1
    assert labels.dtype == torch.long and set(labels.tolist()) <= set(range(8))
    for wave, label in zip(waves, labels):
        spectrum = lambda x: torch.fft.rfft(x).abs()
        same = voices_said.waves[voices_said.of == label]
        alike = [torch.cosine_similarity(spectrum(wave), spectrum(x), 0) for x in same]
        assert max(alike) > 0.99  # a cyclic shift changes no magnitude
    peaks = waves.abs().amax(dim=1)
    assert peaks.max() > 1.5 * peaks.min()
    again, _ = voices_said.draw(8, torch.Generator().manual_seed(0))
    assert torch.equal(again, waves)


# --------------------------------------------------------------------------------------
# What they answer


PAIRS = [("zero", "low slow man"), ("ocean", "low fast man"), ("zero", "high fast man")]


def hears(classes, *names) -> SimpleNamespace:
    """A classifier that hears these classes, whatever the sounds."""
    hear = lambda waves: torch.tensor([classes.index(name) for name in names])
    config = SimpleNamespace(classes=tuple(classes))
    return SimpleNamespace(hear=hear, config=config, device="cpu")


def fakes(**others) -> SpeechJudges:
    """Judges that hear one word right, two words, and two voices of the three."""
    recogniser = lambda wave: "zero"
    recogniser.words = WORDS
    words = hears(WORDS, "zero", "zero", "zero")
    by = hears(list(VOICES), "low slow man", "low slow man", "high fast man")
    return SpeechJudges(recogniser, words, by, **others)


def test_judges_answer_for_word_voice_and_speaker():
    heard = iter(["low fast man", "low fast man", "low fast man"])
    speakers = SimpleNamespace(hear=lambda wave: next(heard))
    found = answers(fakes(speakers=speakers).heard(torch.zeros(3, 800)), PAIRS)
    assert {name: x.tolist() for name, x in found.items()} == {
        "word": [1, 0, 1],
        "word.class": [1, 0, 1],
        "voice": [1, 0, 1],
        "speaker": [1, 1, 0],  # the speed does not count
    }
    assert "speaker" not in answers(fakes().heard(torch.zeros(3, 800)), PAIRS)


def test_chance_is_guessing_among_all():
    chance = fakes(speakers=SimpleNamespace()).chance()
    assert chance == {"word": 1 / 60, "word.class": 1 / 60, "voice": 1 / 8} | {
        "speaker": 1 / 4
    }
    assert "speaker" not in fakes().chance()


def test_words_are_controlled_by_shuffled_phonemes_and_voices_by_other_voices():
    waves = torch.zeros(3, 800)
    found = judged_speech(fakes(), PAIRS, {"": waves, "control.": waves})
    assert found["{}word"] == pytest.approx(2 / 3) == found["control.{}word"]
    assert found["{}voice"] == pytest.approx(2 / 3)
    assert found["control.{}voice"] == 0  # asked for the voice of the next
    words = ["zero", "ocean", "zero"]
    error = clustered_error(torch.tensor([1.0, 0.0, 1.0]), words)
    assert found["se.{}word"] == pytest.approx(error)
    assert found["chance.{}voice"] == 1 / 8


def test_the_error_of_clusters_counts_each_for_one():
    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    alone = clustered_error(x, list("abcdefgh"))
    assert alone == pytest.approx(metrics.standard_error(x) * math.sqrt(8 / 7))
    copies = clustered_error(x.repeat(5), list("abcdefgh") * 5)
    assert copies == pytest.approx(alone)  # five copies say no more
    assert metrics.standard_error(x.repeat(5)) < 0.5 * copies
    assert clustered_error(x, ["a"] * 8) == metrics.standard_error(x)


def test_the_error_of_clusters_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    draws = rng.random((4000, 30)) < 0.6  # 30 words, right in all 4 sounds or in none
    means = draws.mean(axis=1)
    of = [str(k) for k in range(30) for _ in range(4)]
    some = torch.tensor(np.repeat(draws[:200], 4, axis=1)).float()
    told = np.sqrt(np.mean([clustered_error(x, of) ** 2 for x in some]))
    assert told == pytest.approx(means.std(), rel=0.05)


# --------------------------------------------------------------------------------------
# Those that ship, and speakers


@pytest.fixture(scope="module")
def shipped() -> SpeechJudges:
    from minilib import cli

    try:
        return SpeechJudges.load(cli.place_of("judges"))
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_the_judges_that_ship_hear_clean_speech_and_not_noise(shipped):
    pairs = [(w, v) for w in WORDS[::6] for v in list(VOICES)[::2]]
    waves = torch.stack([metrics.clean(w, v, 1.28) for w, v in pairs])
    found = answers(shipped.heard(waves), pairs)
    for asked in ("word.class", "voice"):
        assert found[asked].mean() > 0.95
    assert found["word"].mean() > 0.8
    noise = 0.1 * torch.randn(len(pairs), 20480)
    found = answers(shipped.heard(noise), pairs)
    assert all(found[asked].mean() < 0.3 for asked in ("word", "word.class", "voice"))


def test_judges_that_are_missing_are_named_with_the_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="lacks the judge words; train it with: minilib"
    ):
        SpeechJudges.load(tmp_path)


def test_without_the_speaker_encoder_the_others_judge(tmp_path, monkeypatch):
    for name, classes in (("words", WORDS), ("voices", tuple(VOICES))):
        judge = Classifier(ClassifierConfig(classes, channels=(4,)))
        judge.save_pretrained(tmp_path / "speech" / name)

    def absent():
        raise ModuleNotFoundError(ABSENT)

    monkeypatch.setattr(hearing, "Recogniser", lambda words: "recogniser")
    monkeypatch.setattr(hearing, "SpeakerEncoder", absent)
    judges = SpeechJudges.load(tmp_path)
    assert judges.speakers is None and judges.recogniser == "recogniser"
    assert judges.voices.config.classes == tuple(VOICES)


def test_speakers_are_known_by_words_that_are_never_asked_for(monkeypatch):
    told = []

    class Encoder:
        def embed(self, wave):
            spectrum = audio.log_mel(wave[None])[0, 0].mean(dim=0)
            return (spectrum - spectrum.mean()) / (spectrum - spectrum.mean()).norm()

    monkeypatch.setattr(hearing, "SpeakerEncoder", Encoder)
    monkeypatch.setattr(hearing, "ENROLLED", 2)
    clean = hearing.clean
    monkeypatch.setattr(hearing, "clean", lambda *x: told.append(x[0]) or clean(*x))
    speakers = hearing.Speakers.enrolled()
    assert len(told) == 16 and not set(told) & set(WORDS)
    torch.testing.assert_close(speakers.known.norm(dim=1), torch.ones(8))
    for voice in VOICES:
        heard = speakers.hear(clean("window", voice, 2.56))
        assert hearing.speaker(heard) == hearing.speaker(voice)
