"""The recogniser judges a sound alike, alone or after others, and silence as no word.

That it hears clean speech, `test_speech` tests.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from minilib.recogniser import MARGIN, PEAK, Recogniser, audible
from minilib.soundworld import SpeechWorld


def test_a_sound_is_heard_alike_alone_and_after_others(recogniser):
    waves = [SpeechWorld("test", words=(1,))[i].wave for i in range(20)]

    def heard(wave: torch.Tensor) -> tuple[str, float]:
        return recogniser(wave), recogniser._decoder.hyp().score

    forth = [heard(wave) for wave in waves]
    assert [heard(wave) for wave in reversed(waves)] == forth[::-1]
    assert len({word for word, _ in forth}) > 5


def test_level_and_silence_around_a_word_do_not_matter(recogniser):
    right, silence = [], torch.zeros(32000)
    for clip in map(SpeechWorld("valid", words=(1,)).__getitem__, range(12)):
        longer = torch.cat([silence, clip.wave, silence])
        for wave in (0.01 * clip.wave, longer, clip.wave.numpy()):
            right.append(recogniser(wave) == clip.scene.transcription)
    assert np.mean(right) > 0.95


def test_silence_is_no_word_and_what_is_no_wave_is_refused(recogniser):
    assert recogniser(torch.zeros(16000)) == recogniser(torch.zeros(0)) == ""
    for wave in (torch.zeros(1, 16000), torch.full((16000,), torch.nan)):
        with pytest.raises(ValueError, match=r"wave must be \(N,\) of finite numbers"):
            recogniser(wave)


def test_the_loud_part_is_cut_out_at_one_peak():
    wave = np.zeros(16000, dtype=np.float32)
    wave[4000:8000] = 0.01 * np.sin(np.arange(4000))
    wave[12000:12400] = 1e-5
    cut = audible(wave)
    assert 4000 <= len(cut) <= 4800 and np.abs(cut).max() == pytest.approx(PEAK)
    assert len(audible(np.ones(3, dtype=np.float32))) == 400
    assert MARGIN > 0


def test_accuracy_is_the_share_of_texts_heard_in_full(recogniser):
    clips = [SpeechWorld("valid", words=(1,))[i] for i in range(4)]
    waves, heard = [c.wave for c in clips], [recogniser(c.wave) for c in clips]
    assert recogniser.accuracy(waves, heard) == 1
    assert recogniser.accuracy(waves, ["wrong", *heard[1:]]) == 0.75


def test_two_words_are_heard_by_a_recogniser_of_two():
    pytest.importorskip("pocketsphinx")
    pair, world = Recogniser(["happy", "wagon", "leader"], 2), SpeechWorld(words=(2,))
    heard = pair(world.render(world.scene(0)))
    assert len(heard.split()) in (1, 2) and set(heard.split()) <= set(pair.words)


@pytest.mark.usefixtures("recogniser")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ([],),
            "words must hold at least one word, and longest be 1 or more, not 0 wo",
        ),
        ((["happy"], 0), "words must hold at least one word, and longest be 1 or more"),
        ((["happy", "xqzt"],), "words must be in the recogniser's dictionary: .* xqzt"),
    ],
)
def test_words_that_cannot_be_heard_are_named(given, said):
    with pytest.raises(ValueError, match=said):
        Recogniser(*given)


def test_without_pocketsphinx_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        Recogniser(["happy"])
    assert str(caught.value) == (
        "the recogniser, pocketsphinx, is not installed: pip install pocketsphinx"
        "==5.1.1"
    )
