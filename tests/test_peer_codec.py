"""The codec as a peer: its training data, its folder, and the command that uses it."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from minilib import audio, cli
from minilib.codec import Codec
from minilib.peers import codec as peer
from minilib.peers.codec import CodecAndVocoder, CodecClips
from minilib.soundworld.speech import OTHERS, WORDS
from minilib.soundworld.talkers import (
    TALKERS,
    UNSEEN_TALKERS,
    UNSEEN_VARIANTS,
    VARIANTS,
    say,
)
from minilib.vocoder import vocode

pytest.importorskip("espeakng_loader")
TINY = Path(__file__).parents[1] / "data" / "weights" / "tiny"


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """Make data sets small."""
    with pytest.MonkeyPatch.context() as patch:
        few = (0, 6, 4, 8, peer.KEPT)
        patch.setattr(CodecClips.__init__, "__defaults__", few)
        patch.setattr(peer, "RECIPE", peer.replace(peer.RECIPE, batch_size=8))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("peers") / "codec"
    return peer.train(out, steps=2, progress=False, weights=TINY)


def refused(capsys, *line: str) -> str:
    assert cli.main([str(x) for x in line]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_words_and_voices_that_are_held_out_are_in_no_clip(monkeypatch):
    said = []
    keep = lambda word, talker, rng: said.append((word, talker)) or torch.zeros(20480)
    monkeypatch.setattr(peer, "say", keep)
    CodecClips(n_words=400, n_events=1)
    words, talkers = zip(*said)
    assert not set(words) & set(WORDS) and set(words) <= set(OTHERS)
    assert set(talkers) == set(TALKERS) and len(TALKERS) == 40
    assert not set(VARIANTS) & set(UNSEEN_VARIANTS)
    assert len(UNSEEN_TALKERS) == 8


def test_a_word_is_said_alike_by_equal_seeds_and_not_cut_off():
    said = [
        say("butterfly" if i == 3 else "butter", TALKERS[i == 2], rng)
        for i, rng in enumerate(np.random.default_rng(k) for k in (0, 0, 0, 0, 1))
    ]
    assert torch.equal(said[0], said[1])
    for other in said[2:]:
        assert not torch.equal(said[0], other)
    assert all(x.shape == (20480,) and 0.3 < x.abs().max() < 1 for x in said)
    assert said[0][-800:].abs().max() < 0.01  # it is over before the end


def test_batches_are_half_words_and_half_events_with_a_draw_of_codebooks():
    clips = CodecClips()
    batch = clips(torch.Generator().manual_seed(1))
    assert batch["mel"].shape == (8, 1, 128, 64) and batch["keep"].shape == (8,)
    drawn = [clips(torch.Generator().manual_seed(k))["keep"] for k in range(9)]
    assert set(torch.cat(drawn).tolist()) == {1, 2, 4, 8}
    known = lambda x, all_: any(torch.equal(x, y) for y in all_)
    assert all(known(x, clips.words) for x in batch["mel"][:4])
    parts = clips.events.unfold(2, 128, 1).movedim(-1, 3).flatten(0, 2)
    assert all(known(x[0], parts) for x in batch["mel"][4:])
    assert "keep" not in CodecClips(kept=None)(torch.Generator())


def test_training_writes_a_folder_that_borrows_the_vocoder(folder):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "codec" and set(told) == {"peer", "vocoder"}
    assert (folder / told["vocoder"] / "config.json").is_file()
    assert sorted(x.name for x in folder.iterdir()) == ["codec", "pipeline.json"]
    assert Codec.from_pretrained(folder / "codec").dtype == torch.float16


def test_weights_come_from_the_seed(folder, tmp_path):
    again, other = (
        peer.train(tmp_path / str(seed), seed, 2, False, TINY) for seed in (0, 1)
    )
    read = lambda x: (x / "codec" / "model.safetensors").read_bytes()
    assert read(folder) == read(again) != read(other)


def test_sounds_of_any_length_come_back_by_as_many_codebooks_as_are_asked(folder):
    whole, first = (CodecAndVocoder.from_pretrained(folder, n) for n in (None, 2))
    mel = audio.log_mel(torch.randn(1, 101 * 160, generator=torch.manual_seed(0)) / 9)
    assert whole.encode(mel).shape == (1, 51, 8)
    silence = torch.full((1, 1, 1, 64), math.log(audio.LOG_FLOOR))
    longer = torch.cat([mel, silence], dim=2)  # as if the sound went on in silence
    assert torch.equal(whole.encode(mel), whole.encode(longer))
    assert torch.equal(first.encode(mel), whole.encode(mel)[..., :2])
    assert whole.reconstruct(mel).shape == first.reconstruct(mel).shape == mel.shape
    assert not torch.allclose(whole.reconstruct(mel), first.reconstruct(mel))
    assert (whole.kbit_per_second, first.kbit_per_second) == (
        pytest.approx(2.4),
        pytest.approx(0.6),
    )


def test_the_command_sends_a_recording_through_it(folder, tmp_path, capsys):
    sound, back = tmp_path / "x.wav", tmp_path / "y.wav"
    audio.save(sound, 0.1 * torch.randn(9999, generator=torch.manual_seed(0)))
    line = ["reconstruct", sound, "-o", back, "--weights", folder, "--codebooks", 4]
    assert cli.main([str(x) for x in line]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "4 codebooks  1.20 kbit/s"
    names = [re.match(r"[A-Za-z ]+?(?= {2,})", x)[0] for x in lines[3:6]]
    assert names == ["codec", "vocoder", "codec and vocoder"]
    assert audio.load(back).shape == (9999,)


def test_what_a_codec_cannot_do_gets_one_sentence(folder, tmp_path, capsys):
    sound = tmp_path / "x.wav"
    audio.save(sound, 0.1 * torch.randn(9999, generator=torch.manual_seed(0)))
    use = ["reconstruct", sound, "-o", tmp_path / "y.wav", "--codebooks"]
    said = "codebooks must be a whole number from 1 to 8, not 9"
    assert said in refused(capsys, *use, 9, "--weights", folder)
    for more in ([], ["--weights", TINY]):
        assert "--codebooks needs the weights of a codec" in refused(
            capsys, *use, 4, *more
        )
    line = ["generate", "a dog", "-o", tmp_path / "z.wav", "--weights", folder]
    assert "makes no sound from a caption: it holds the peer codec" in refused(
        capsys, *line
    )
    assert sorted(x.name for x in tmp_path.iterdir()) == ["x.wav"]


@pytest.mark.parametrize(
    "given, says",
    [({"seed": -1}, "seed"), ({"steps": 0}, "steps"), ({"weights": "no"}, "no")],
)
def test_training_refuses_what_it_cannot_do(tmp_path, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        peer.train(tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_the_weights_that_ship_are_small_and_refine_what_they_keep():
    """The log-mels of words that no model heard in training, off by less with every
    codebook. Models of codes are tied to these weights by their fingerprint.
    """
    folder = TINY.parent / "peers" / "codec"
    assert sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()) < 1_500_000
    pipe = CodecAndVocoder.from_pretrained(folder)
    assert pipe.codec.fingerprint == "73b39261"
    rng = np.random.default_rng(4)
    words = [say(word, TALKERS[(7 * i) % 40], rng) for i, word in enumerate(WORDS[:16])]
    mel = peer.log_mels(words)
    codes = pipe.encode(mel)
    with torch.no_grad():
        back = [pipe.codec.decode(codes[..., :n]) for n in range(1, 9)]
    off = [audio.DB_PER_NEPER * float((x - mel).abs().mean()) for x in back]
    assert off == sorted(off, reverse=True)
    assert off[3] < 3 and off[7] < 2.5 < 3.5 < off[0], off


def test_it_learns_to_keep_words_and_refines_what_it_keeps(
    tmp_path, monkeypatch, recogniser
):
    """Words that it did not hear in training, after 150 steps of a narrow codec."""
    narrow = peer.replace(Codec.presets["tiny"], width=64, n_layer=1)
    monkeypatch.setitem(Codec.presets, "tiny", narrow)
    many = (0, 150, 40, 8, peer.KEPT)
    monkeypatch.setattr(CodecClips.__init__, "__defaults__", many)
    out = peer.train(tmp_path / "out", 0, 150, False, TINY)
    pipe, words = CodecAndVocoder.from_pretrained(out), WORDS[:24]
    rng = np.random.default_rng(4)
    waves = [say(word, TALKERS[(7 * i) % 40], rng) for i, word in enumerate(words)]
    mel = peer.log_mels(waves)
    with torch.no_grad():
        codes = pipe.encode(mel)
        back = {n: pipe.codec.decode(codes[..., :n]) for n in (1, 2, 4, 8)}
        heard = {n: vocode(pipe.vocoder, back[n]) for n in (1, 8)}
    decibels = [
        audio.DB_PER_NEPER * float((x - mel).abs().mean()) for x in back.values()
    ]
    assert decibels == sorted(decibels, reverse=True)
    assert decibels[2] < 5.2 and decibels[3] < decibels[0] - 0.8, decibels
    right = {n: recogniser.accuracy(wave, words) for n, wave in heard.items()}
    assert right[8] > 0.3 and right[8] > right[1], right
