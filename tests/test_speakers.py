"""The speaker encoder that nobody here trained."""

import numpy as np
import pytest
import torch

from minilib import speakers
from minilib.speakers import SpeakerEncoder, weights_file


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    try:
        return SpeakerEncoder()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def random_encoder(tmp_path, monkeypatch) -> SpeakerEncoder:
    """The network with random weights, stored as Resemblyzer stores them."""
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(40, 256, 3), torch.nn.Linear(256, 256)
    state = {f"lstm.{k}": x for k, x in lstm.state_dict().items()}
    state |= {f"linear.{k}": x for k, x in linear.state_dict().items()}
    state["similarity_weight"] = torch.ones(1)  # of its training alone
    torch.save({"model_state": state, "step": 3}, tmp_path / "pretrained.pt")
    monkeypatch.setattr(speakers, "weights_file", lambda: tmp_path / "pretrained.pt")
    return SpeakerEncoder()


def tone(hertz: float, n: int = 8000) -> torch.Tensor:
    return 0.2 * torch.sin(2 * torch.pi * hertz * torch.arange(n) / 16000)


def test_a_speaker_is_a_vector_of_length_one_whatever_level_and_silence(random_encoder):
    vector = random_encoder.embed(tone(300))
    assert vector.shape == (256,) and vector.norm() == pytest.approx(1)
    assert (vector >= 0).all() and not vector.requires_grad
    softer = torch.cat([torch.zeros(8000), 0.3 * tone(300), torch.zeros(4000)])
    assert random_encoder.embed(softer) @ vector > 0.999
    assert torch.equal(random_encoder.embed(tone(300).numpy()), vector)
    assert random_encoder.embed(torch.zeros(16000)).isfinite().all()


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 800), torch.zeros(0), np.full(800, np.nan)]
)
def test_what_is_not_one_sound_is_refused(random_encoder, wrong):
    with pytest.raises(ValueError, match=r"wave must be \(N,\) of finite numbers, not"):
        random_encoder.embed(wrong)


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(speakers, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="install --no-deps Resemblyzer==0"):
        weights_file()


def test_speakers_of_the_package_are_told_apart(encoder):
    pytest.importorskip("espeakng_loader")
    from minilib.soundworld import espeak

    say = lambda text, voice, pitch: espeak.speak(text, voice, pitch, 120)
    man, other = (say(x, "en-us+m3", 20) for x in ("window", "yesterday"))
    woman = say("window", "en-us+f2", 80)
    man, other, woman = map(encoder.embed, (man, other, woman))
    assert man @ other > man @ woman + 0.2
