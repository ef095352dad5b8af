"""VALL-E and SpeechX's tasks as a peer: what the networks read and are to write, the
folder, and the command that speaks.
"""

import json

import numpy as np
import pytest
import small_codec
import torch

from minilib import audio, cli
from minilib.codec import Codec
from minilib.codec_lm import VALLE
from minilib.guidance import Sampling
from minilib.peers import valle as peer
from minilib.peers.codec import CodecAndVocoder, check_temperature, log_mels
from minilib.peers.valle import (
    ENROLMENT,
    Mixtures,
    Phones,
    SpeakingBatches,
    TaskBatches,
    TextToAudio,
    Words,
    enrolment,
    prompt_of,
)
from minilib.soundworld.speech import OTHERS, WORDS
from minilib.soundworld.talkers import TALKERS

pytest.importorskip("espeakng_loader")
SIGN = peer.SIZES["n_codes"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return small_codec.codec_in(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def coder(weights):
    return CodecAndVocoder.from_pretrained(weights.parent / "peers" / "codec")


@pytest.fixture(scope="module")
def data(coder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "TALKERS", TALKERS[:3])
        return Words.draw(coder, 12, seed=0), Mixtures(coder, 4, seed=0)


@pytest.fixture(scope="module")
def folder(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "N_WORDS", 8)
        patch.setattr(peer, "N_MIXTURES", 2)
        patch.setattr(peer, "SPEAKING", few(peer.SPEAKING))
        patch.setattr(peer, "ALL_TASKS", few(peer.ALL_TASKS))
        out = weights.parent / "peers" / "valle"
        return peer.train(out, steps=1, progress=False, weights=weights)


def few(recipes):
    return {k: peer.replace(x, batch_size=4) for k, x in recipes.items()}


def bad(message: str, kind: type[Exception] = ValueError):
    return pytest.raises(kind, match=f"^{message}$")


# ---- What the networks read


def test_a_phoneme_has_its_marks_beside_it_and_an_end_sign_follows():
    x = Phones().vectors("seven")  # sˈɛvən
    ids = Phones.tokenizer.ids
    rows = [set(row.nonzero()[:, 0].tolist()) for row in x]
    wanted = [{ids["s"]}, {ids["ɛ"], ids["ˈ"]}, {ids["v"]}, {ids["ə"]}, {ids["n"]}]
    assert rows == [*wanted, {peer.END}]
    assert float(x[0].square().mean()) == pytest.approx(1.0, rel=1e-5)
    two, mask = Phones().encode(["seven", "go"])
    assert torch.equal(two[0], x) and mask.sum(dim=1).tolist()[0] == 6
    assert not two[1][~mask[1]].any() and not Phones().empty(2).mask.any()


def test_enrolment_begins_with_the_first_loud_frame():
    wave = 1e-4 * torch.randn(20_480, generator=torch.Generator().manual_seed(0))
    wave[6400:16_000] += 0.5 * torch.sin(0.3 * torch.arange(9600))
    codes = torch.arange(64)[None, :, None].expand(1, -1, 4)
    got = enrolment(log_mels([wave]), codes)
    assert got.shape == (1, ENROLMENT, 4) and got[0, 0, 0] in (18, 19, 20)
    assert torch.equal(got[0, :, 0] - got[0, 0, 0], torch.arange(ENROLMENT))
    wave[:16_000] = wave[:6400].repeat(3)[:16_000]
    wave[16_000:] += 0.5 * torch.sin(0.3 * torch.arange(4480))
    late = enrolment(log_mels([wave]), codes)  # too late for all frames: the last ones
    assert late[0, -1, 0] == 63


def test_a_prompt_has_enrolment_sign_and_mixture_in_fixed_places():
    enrolled = torch.randint(64, (2, ENROLMENT, 4))
    mixture = torch.randint(64, (2, 10, 4))
    x, mask = prompt_of(enrolled)
    assert torch.equal(x, enrolled) and mask.all()
    for task in (*peer.TASKS, "unknown"):
        own = enrolled if task == "tse" else None
        x, mask = prompt_of(own, task, mixture)
        number = SIGN + (*peer.TASKS, "unknown").index(task)
        assert x.shape == (2, ENROLMENT + 1 + 10, 4)
        assert (x[:, ENROLMENT] == number).all()
        assert torch.equal(x[:, ENROLMENT + 1 :], mixture)
        assert mask[:, :ENROLMENT].all() if task == "tse" else not mask[:, :24].any()
        assert mask[:, ENROLMENT:].all()
    short = prompt_of(enrolled[:, :5])
    assert short.mask.sum(dim=1).tolist() == [5, 5]


# ---- Data


def test_held_out_words_are_in_no_training_clip(data):
    words, mixed = data
    heard = {*words.words, *(word for pair in mixed.words for word in pair)}
    assert heard <= set(OTHERS) and not heard & set(WORDS)
    assert all(one != two for one, two in mixed.talkers)


def test_a_mixture_is_the_sum_of_its_parts(data):
    w = data[1].waves
    hiss = 6 * peer.NOISE * 3
    assert (w["first"] + w["second"] - w["both"]).abs().max() < hiss
    assert (w["both"] + w["noise"] - w["mixture"]).abs().max() < hiss
    loud = lambda x: x.square().mean(dim=1)
    decibels = 10 * torch.log10(loud(w["both"]) / loud(w["noise"]))
    assert (decibels > -0.1).all() and (decibels < 10.1).all()
    quiet = w["second"][:, : round(0.34 * 16_000)]  # the second talker begins later
    assert quiet.abs().max() < hiss


def test_a_prompt_is_another_clip_of_the_same_talker(data):
    words, _ = data
    batches = SpeakingBatches(words, 64)
    rows, others = batches.rows(64, torch.Generator().manual_seed(0))
    assert (rows != others).all()
    assert [words.talkers[i] for i in rows] == [words.talkers[i] for i in others]
    batch = batches(torch.Generator().manual_seed(0))
    assert batch["codes"].shape == (64, 48, 4)
    none = ~batch["prompt_mask"].any(dim=1)
    assert 0 < none.sum() < 25 and batch["prompt_mask"][~none].all()
    assert set(batch["stage"].tolist()) == {1, 2, 3}


def test_each_task_has_its_sign_and_is_to_write_its_part_of_the_mixture(data):
    words, mixed = data
    batches, generator = TaskBatches(words, mixed), torch.Generator().manual_seed(3)
    parts = {"ns": ("both",), "sr": ("noise",), "tse": ("first", "second")}
    texts = {}
    for task, kinds in parts.items():
        for _ in range(12):
            codes, told = batches.row(task, generator)
            x, mask = told["prompt"]
            assert x[0, ENROLMENT, 0] == SIGN + peer.TASKS.index(task)
            same = (mixed.codes["mixture"] == x[0, ENROLMENT + 1 :]).flatten(1).all(1)
            i = int(same.nonzero()[0, 0])
            assert any(torch.equal(codes[0], mixed.codes[k][i]) for k in kinds)
            assert bool(mask[0, 0]) == (task == "tse")
            texts.setdefault(task, []).append(bool(told["phonemes"].mask.any()))
            if task == "tse" and not torch.equal(*(mixed.codes[k][i] for k in kinds)):
                k = [torch.equal(codes[0], mixed.codes[k][i]) for k in kinds].index(1)
                own = words.rows.get(mixed.talkers[i][k])
                if own is not None:
                    assert any(torch.equal(x[0, :24], words.enrolled[j]) for j in own)
    assert set(texts["ns"]) == set(texts["tse"]) == {True, False}
    assert set(texts["sr"]) == {False}


def test_batches_of_all_tasks_are_padded_and_reach_the_loss(data, coder):
    batch = TaskBatches(*data, batch_size=8)(torch.Generator().manual_seed(1))
    assert batch["codes"].shape == (8, 64, 4) and batch["prompt"].shape[1] == 89
    losses = peer.untrained(coder).loss(batch)
    assert losses["loss"].isfinite()
    first = peer.first_codebook(lambda _: batch)(None)
    assert first["codes"].shape == (8, 64, 1) and first["prompt"].shape[2] == 1


# ---- Weights and pipeline


def test_training_writes_a_folder_that_borrows_codec_and_vocoder(folder):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "valle" and set(told) == {
        "peer", "temperature", "codec", "vocoder"
    }  # fmt: skip
    assert sorted(x.name for x in folder.iterdir()) == ["pipeline.json", "valle"]
    model = VALLE.from_pretrained(folder / "valle")
    assert model.dtype == torch.float16
    assert model.nar.embedding.codebooks.abs().sum() > 0


def test_both_networks_learn_to_tell_a_word_from_silence(data, coder):
    model = peer.untrained(coder)
    recipes = {k: peer.replace(x, steps=25) for k, x in few(peer.SPEAKING).items()}
    curves = peer.learn(model, SpeakingBatches(data[0], 4), recipes, 0, "x", False)
    for curve in curves.values():
        assert curve["loss"][-5:].mean() < curve["loss"][:3].mean() - 0.3


def test_a_sound_is_the_same_alone_and_among_others(folder):
    pipe = TextToAudio.from_pretrained(folder)
    voice = 0.3 * torch.randn(9000, generator=torch.Generator().manual_seed(0))
    how = {"transcription": "window", "voice": voice, "seconds": 0.4}
    both = pipe(["", ""], seed=[5, 6], **how)
    assert both.shape == (2, 6400) and not torch.equal(both[0], both[1])
    alone = pipe(seed=6, **how)
    assert torch.allclose(alone[0], both[1], atol=1e-4)
    assert pipe.enrol(voice[:2000]).mask.sum() < ENROLMENT  # shorter than an enrolment
    assert set(pipe.profile.seconds) == {"encode", "sample", "decode"}


def test_a_mixture_of_any_length_is_listened_to(folder):
    pipe = TextToAudio.from_pretrained(folder)
    wave = 0.3 * torch.randn(9000, generator=torch.Generator().manual_seed(0))
    made = [pipe.listen("ns", wave, seed=seed) for seed in (0, 0, 1)]
    made.append(pipe.listen("tse", wave, voice=wave, transcription="window"))
    assert all(x.shape == (9000,) for x in made)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])


def test_the_command_speaks(folder, tmp_path, capsys):
    sound, out = tmp_path / "x.wav", tmp_path / "y.wav"
    audio.save(
        sound, 0.1 * torch.randn(9999, generator=torch.Generator().manual_seed(0))
    )
    line = ["generate", "--weights", folder, "--voice", sound, "-o", out]
    line += ["--transcription", "window", "--seed", 3, "--seconds", 0.4]
    assert cli.main([str(x) for x in line]) == 0
    assert audio.load(out).shape == (6400,)
    assert "seed 3" in capsys.readouterr().out


def test_what_it_cannot_do_gets_one_sentence(folder, tmp_path, capsys):
    sound = tmp_path / "x.wav"
    audio.save(
        sound, 0.1 * torch.randn(9999, generator=torch.Generator().manual_seed(0))
    )
    use = ["generate", "--weights", folder, "-o", tmp_path / "y.wav"]
    say = ["--transcription", "window", "--voice", sound]
    for line, said in (
        (["a dog"], "these weights speak: transcription must give the words"),
        (["a man", *say[:2]], "these weights read no captions"),
        ([*say, "--steps", 9], "have a temperature alone: leave out steps"),
        ([*say, "--candidates", 2], "candidates must be 1 without a CLAP"),
        ([*say, "--seconds", 9], "seconds must be at most 2.56"),
        (["--transcription", " ", *say[2:]], "a transcription is empty"),
        (["--transcription", "чай", *say[2:]], "text must be English"),
        (["--transcription", "go " * 400, *say[2:]], "at most 512 positions"),
    ):
        assert cli.main([str(x) for x in (*use, *line)]) == 2
        told = capsys.readouterr().err
        assert told.splitlines()[-1].count("minilib:") == 1 and said in told, told
    assert not (tmp_path / "y.wav").exists()
    pipe = TextToAudio.from_pretrained(folder)
    wave = torch.ones(9000)
    for call, said in (
        (lambda: pipe.listen("clean", wave), 'task must be "ns" or .*'),
        (lambda: pipe.listen("tse", wave), "voice must be given with the task tse.*"),
        (lambda: pipe.listen("ns", wave, wave), "voice must be given with the .*"),
        (lambda: pipe.listen("ns", torch.ones(30_000)), "mixture must be .*"),
        (lambda: pipe.enrol(torch.zeros(9000)), "voice must be a recording .*"),
        (lambda: pipe.enrol(torch.ones(90)), "voice must last 0.1 s or longer.*"),
    ):
        with bad(said):
            call()
    with pytest.raises(TypeError, match="sampling"):
        pipe(transcription="window", sampling=3)
    assert check_temperature(Sampling(temperature=0.7), pipe.sampling, {}) == 0.7


def test_weights_of_another_codec_are_refused(folder, coder):
    other = CodecAndVocoder(Codec.preset("tiny"), coder.vocoder)
    valle = VALLE.from_pretrained(folder / "valle", dtype=torch.float32)
    with bad("the codec is another one: these weights need codec .*"):
        TextToAudio(valle, other)


@pytest.mark.parametrize(
    "given, says",
    [({"seed": -1}, "seed"), ({"steps": 0}, "steps"), ({"weights": "no"}, "no")],
)
def test_training_refuses_what_it_cannot_do(tmp_path, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        peer.train(tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_weights_come_from_the_seed(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "N_WORDS", 6)
    monkeypatch.setattr(peer, "N_MIXTURES", 1)
    monkeypatch.setattr(peer, "SPEAKING", few(peer.SPEAKING))
    monkeypatch.setattr(peer, "ALL_TASKS", few(peer.ALL_TASKS))
    made = [
        peer.train(tmp_path / str(k), seed, 1, False, weights)
        for k, seed in enumerate((0, 0, 1))
    ]
    read = lambda x: (x / "valle" / "model.safetensors").read_bytes()
    assert read(made[0]) == read(made[1]) != read(made[2])


def test_a_wave_is_placed_and_cut(coder):
    x = np.ones(100, dtype=np.float32)
    total = peer.placed([(x, 0.0), (2 * x, 0.005)], 0.01)
    assert total.tolist() == [1.0] * 80 + [3.0] * 20 + [2.0] * 60
