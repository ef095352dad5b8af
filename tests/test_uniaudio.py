"""UniAudio in small: its tokens, prompts and tasks, its folder, and what it refuses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minilib import audio, cli
from minilib.codec import Codec
from minilib.codec_lm import CodecLMConfig
from minilib.peers import uniaudio as peer
from minilib.peers.uniaudio import KINDS, TASKS, Clips, Tasks, Units, UnitsConfig
from minilib.soundworld import SoundWorld
from minilib.soundworld.speech import OTHERS, WORDS

pytest.importorskip("espeakng_loader")
TINY = Path(__file__).parents[1] / "data" / "weights" / "tiny"
CONFIG = CodecLMConfig(n_q=4, n_codes=64)


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """Make data sets small."""
    with pytest.MonkeyPatch.context() as patch:
        few = (0, (80, 6, 4), OTHERS[:30], "train")
        patch.setattr(Clips.__init__, "__defaults__", few)
        patch.setattr(peer, "RECIPE", replace(peer.RECIPE, batch_size=4))
        patch.setattr(Tasks.__init__, "__defaults__", (4,))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of weights: tiny's vocoder, and an untrained codec beside it."""
    root = tmp_path_factory.mktemp("weights")
    (root / "tiny").mkdir()
    told = {"vocoder": str(TINY / "vocoder")}
    (root / "tiny" / "pipeline.json").write_text(json.dumps(told))
    torch.manual_seed(0)
    codec = Codec.preset("tiny", width=32, n_layer=1)
    codec.save_pretrained(root / "peers" / "codec" / "codec")
    description = {"peer": "codec", "vocoder": str(TINY / "vocoder")}
    (root / "peers" / "codec" / "pipeline.json").write_text(json.dumps(description))
    (root / "tiny" / "vocoder").symlink_to(TINY / "vocoder")
    return root / "tiny"


@pytest.fixture(scope="module")
def folder(place):
    out = place.parent / "peers" / "uniaudio"
    return peer.train(out, steps=2, progress=False, weights=place)


@pytest.fixture(scope="module")
def pipe(folder):
    return peer.TextToAudio.from_pretrained(folder)


@pytest.fixture(scope="module")
def clips(pipe):
    return Clips(pipe.pipe.codec, pipe.units)


def noise(n: int = 16000, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def some_mels() -> torch.Tensor:
    swell = torch.linspace(0.2, 1, 20480)
    return audio.log_mel(torch.stack([noise(20480, k) * swell for k in range(3)]))


# ---- Semantic tokens


def test_cepstra_are_an_orthonormal_cosine_transform_of_each_pair_of_frames():
    from scipy.fft import dct

    mel = some_mels()
    pairs = mel[:, 0].unflatten(1, (-1, 2)).mean(dim=2).numpy()
    wanted = dct(pairs, norm="ortho", axis=2)[..., 1:6]
    assert np.allclose(peer.cepstra(mel, 5).numpy(), wanted, atol=1e-3)


def test_a_filter_changes_no_normalised_token_but_others():
    mel, tilt = some_mels(), torch.linspace(0.5, -0.5, 64)
    for normalised in (True, False):
        units = Units(UnitsConfig(n_units=16, normalised=normalised))
        units.fit(mel)
        both = units.encode(mel), units.encode(mel + tilt)
        assert torch.equal(*both) == normalised
        assert both[0].min() >= 0 and both[0].max() < 16


def test_token_0_is_silence_and_only_silence():
    mel, units = some_mels(), Units(UnitsConfig(n_units=8))
    units.fit(mel)
    longer = F.pad(mel, (0, 0, 20, 40), value=math.log(audio.LOG_FLOOR))
    tokens = units.encode(longer)
    assert not tokens[:, :10].any() and not tokens[:, -20:].any()
    assert torch.equal(tokens[:, 10:-20], units.encode(mel))
    assert (tokens[:, 10:-20] > 0).all()


# ---- Prompts


def test_signs_of_all_kinds_follow_the_codes_and_no_two_are_alike():
    every = torch.cat([peer.signs(kind, range(n), 64) for kind, n in KINDS.items()])
    assert torch.equal(every, torch.arange(64, 64 + peer.N_SIGNS))
    for number in (-1, KINDS["note"]):
        with pytest.raises(ValueError, match=f"kind note must lie .* not be {number}"):
            peer.signs("note", [number], 64)


def test_a_prompt_is_the_task_what_it_is_given_and_the_voice():
    voice = torch.arange(8).view(2, 4)
    row = peer.prompt(CONFIG, "speak", {"phoneme": [5, 6]}, voice)
    first = peer.signs("task", [TASKS.index("speak")], 64)
    signs = torch.cat([first, peer.signs("phoneme", [5, 6], 64)])
    assert torch.equal(row, torch.cat([signs[:, None].expand(-1, 4), voice]))


def test_prompts_of_a_batch_are_padded_at_the_end():
    rows = [torch.ones(n, 3, dtype=torch.long) for n in (2, 4)]
    sequence, mask = peer.together(rows)
    assert sequence.shape == (2, 4, 3)
    assert mask.tolist() == [[True, True, False, False], [True] * 4]


def test_notes_are_semitones_above_55_hertz():
    assert [peer.note_of(x) for x in (55, 58.27, 110, 440, 1760)] == [1, 2, 13, 37, 61]
    tune = SoundWorld("train", 0, 1.28, music=1.0).scene(0).events[0]
    notes = peer.notes_of(tune, 64)
    for hertz, start, length in zip(tune.notes, tune.strokes, tune.lengths):
        middle = round(50 * (start + length / 2))
        assert notes[middle] == peer.note_of(hertz)


# ---- Tasks


def test_words_that_are_held_out_are_in_no_clip(monkeypatch):
    said = []
    keep = lambda word, talker, rng: said.append(word) or noise(20480)
    monkeypatch.setattr(peer, "say", keep)
    torch.manual_seed(0)
    codec = Codec.preset("tiny", width=32, n_layer=1)
    Clips(codec, Units(UnitsConfig()), n=(300, 1, 1), lexicon=OTHERS)
    assert not set(said) & set(WORDS) and set(said) <= set(OTHERS)


def test_a_word_begins_where_it_is_heard(clips):
    assert clips.words.shape == (80, 48, 4)
    assert clips.heard[:, 0].all() and (clips.words[:, 0, 0] > 0).all()
    assert torch.equal(clips.words[..., 0] > 0, clips.heard)  # 0 is silence


def test_the_voice_comes_from_another_word_of_the_same_talker(clips, pipe):
    tasks, draw = Tasks(clips, pipe.lm.config, pipe.words, {}), torch.Generator()
    for i in (0, 3):
        voice = tasks.voice(i, draw)
        assert voice.shape == (24, 4)
        windows = clips.words.unfold(1, 24, 1).transpose(2, 3)  # (n, 25, 24, 4)
        found = (windows == voice).flatten(2).all(dim=2).any(dim=1)
        others = torch.arange(80) % 40 == i % 40
        assert found[others].any() and not found[i]


def test_batches_hold_one_task_at_its_share(clips, pipe):
    tasks = Tasks(clips, pipe.lm.config, pipe.words, {"speak": 0.75, "play": 0.25})
    first = {"speak": 0, "play": 0}
    for k in range(200):
        batch = tasks(torch.Generator().manual_seed(k))
        (sign,) = batch["prompt"][:, 0].unique()
        first[TASKS[int(sign) - 64]] += 1
        assert batch["prompt_mask"][:, 0].all()
    assert abs(first["speak"] - 150) < 20
    for task, frames in (("speak", 48), ("convert", 48), ("sound", 64), ("play", 64)):
        batch = tasks.batch(task, torch.Generator())
        assert batch["codes"].shape == (4, frames, 4)
        assert batch["prompt"].max() < 64 + peer.N_SIGNS
        assert pipe.lm.loss(batch).isfinite()


def test_given_semantic_tokens_take_the_first_place_and_the_rest_is_drawn(pipe):
    rows = [peer.prompt(pipe.lm.config, "convert", {}) for _ in range(2)]
    seeds = lambda: [torch.Generator().manual_seed(k) for k in (1, 2)]
    free = peer.write(pipe.lm, rows, 6, seeds(), 0.8)
    told = {"prompt": peer.together(rows)}
    assert torch.equal(free, pipe.lm.generate(6, seeds(), told, 0.8))
    units = torch.arange(12).view(2, 6)
    led = peer.write(pipe.lm, rows, 6, seeds(), 0.8, units)
    assert torch.equal(led[..., 0], units)
    assert led.shape == (2, 6, 4) and not torch.equal(led[..., 1:], free[..., 1:])


# ---- Folder and pipeline


def test_training_writes_a_folder_that_borrows_codec_and_vocoder(folder):
    told = json.loads((folder / "pipeline.json").read_text())
    assert told["peer"] == "uniaudio" and told["codec"] == "../codec"
    names = sorted(x.name for x in folder.iterdir())
    assert names == ["lm", "pipeline.json", "units"]


def test_weights_come_from_the_seed(folder, place, tmp_path):
    again, other = (
        peer.train(tmp_path / str(seed), seed, 2, False, place) for seed in (0, 1)
    )
    read = lambda x: (x / "lm" / "model.safetensors").read_bytes()
    assert read(folder) == read(again) != read(other)


def test_sounds_are_as_long_as_is_said_and_the_same_alone(pipe):
    both = pipe(["a dog barks", "a bell rings"], seed=[1, 2])
    assert both.shape == (2, 20480) and both.abs().max() <= 1
    assert torch.allclose(pipe("a bell rings", seed=2)[0], both[1], atol=1e-4)
    said = pipe(transcription="window", seed=3)
    assert said.shape == (1, 15360)
    other = pipe("x", transcription="window", voice=noise(), seed=3)
    assert other.shape == said.shape and not torch.allclose(other, said)
    assert pipe("a dog", seed=0, seconds=0.7).shape == (1, 11200)
    assert pipe.convert(noise(), noise(seed=1)).shape == (15360,)
    assert pipe.play("flute", [(440, 0.5), (0, 0.1), (660, 0.5)]).shape == (20480,)


def test_the_command_makes_sounds_and_speaks(folder, tmp_path, capsys):
    voice, out = tmp_path / "voice.wav", tmp_path / "out.wav"
    audio.save(voice, noise())
    line = ["generate", "-o", str(out), "--weights", str(folder), "--seed", "1"]
    assert cli.main([*line, "a dog barks"]) == 0
    assert audio.load(out).shape == (20480,)
    assert cli.main([*line, "--voice", str(voice), "--transcription", "window"]) == 0
    assert audio.load(out).shape == (15360,)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda p: p("zyzzyva"), "no word of 'zyzzyva' is known"),
        (lambda p: p(""), "a caption is empty"),
        (lambda p: p(transcription=" "), "a transcription is empty"),
        (lambda p: p("a man", transcription="window"), "no caption is read"),
        (lambda p: p("a dog", voice=noise()), "voice needs a transcription"),
        (lambda p: p("a dog", seconds=3), "seconds must be at most 1.28, not 3"),
        (lambda p: p("a dog", candidates=2), "candidates must be 1"),
        (lambda p: p("a dog", guidance=2.0), "leave out guidance"),
        (lambda p: p.convert(noise(40000), noise()), "at most 20480 samples"),
        (lambda p: p.convert(noise(), noise(4000)), "voice must last 0.48 s"),
        (lambda p: p.convert(noise(), torch.zeros(9999)), "that is not silent"),
        (lambda p: p.play("kazoo", [(440, 1)]), "instrument must be one of"),
        (lambda p: p.play("flute", [(30, 1)]), "numbers of kind note must lie"),
        (lambda p: p.play("flute", [(440, 2)]), "notes must last at most 1.28 s"),
    ],
)
def test_what_it_cannot_do_gets_one_sentence(pipe, call, says):
    with pytest.raises(ValueError, match=says):
        call(pipe)


def test_the_codes_of_another_codec_are_refused(folder, tmp_path):
    torch.manual_seed(1)
    other = Codec.preset("tiny", width=32, n_layer=1)
    other.save_pretrained(tmp_path / "codec" / "codec")
    (tmp_path / "codec" / "pipeline.json").write_text(
        json.dumps({"peer": "codec", "vocoder": str(TINY / "vocoder")})
    )
    told = json.loads((folder / "pipeline.json").read_text())
    told |= {"codec": str(tmp_path / "codec"), "vocoder": str(TINY / "vocoder")}
    for name in ("lm", "units"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "pipeline.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="the codec is another one"):
        peer.TextToAudio.from_pretrained(tmp_path)


@pytest.mark.parametrize("prompt", ["out of range", "empty", "five codebooks"])
def test_wrong_prompts_and_codes_get_one_sentence(pipe, prompt):
    rows = {
        "out of range": torch.full((1, 2, 4), 64 + peer.N_SIGNS),
        "empty": torch.zeros(1, 0, 4, dtype=torch.long),
        "five codebooks": torch.zeros(1, 2, 5, dtype=torch.long),
    }
    says = {
        "out of range": "prompt must lie between 0 and",
        "empty": "prompt is empty",
        "five codebooks": "prompt must have 4 codebooks, as in training, not 5",
    }
    told = {"prompt": peer.Context(rows[prompt])}
    with pytest.raises(ValueError, match=says[prompt]):
        pipe.lm.generate(4, [torch.Generator()], told)


@pytest.mark.parametrize(
    "given, says",
    [({"seed": -1}, "seed"), ({"steps": 0}, "steps"), ({"weights": "no"}, "no")],
)
def test_training_refuses_what_it_cannot_do(tmp_path, given, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        peer.train(tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()
