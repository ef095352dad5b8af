"""The preset `speech`: its data, its stages, its pipeline and how it is judged
(chapters 11b and 13).
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_world
import torch

from minilib import audio, cli, metrics
from minilib.audioldm2 import AudioLDM2
from minilib.audiomae import Columns, ColumnsConfig
from minilib.classifier import Classifier, ClassifierConfig
from minilib.folders import load_part
from minilib.metrics.hearing import answers
from minilib.phonemes import PhonemeConfig, PhonemeEncoder, PhonemeTokenizer
from minilib.soundworld import (
    HELD_OUT_VOICE,
    HELD_OUT_WORDS,
    VOICES,
    WORDS,
    describe,
    speech,
)
from minilib.training import RUNS, clips, step_generator, train_stages
from minilib.training.stages import MOST_PHONEMES, SPEECH

pytest.importorskip("espeakng_loader")
SAID = ("zero", "happy", "uncle")
HEARD = ("low fast man", "high fast woman")
FAST = {"steps": 2, "progress": False}
SMALL = PhonemeConfig(
    hidden_size=8, num_layers=1, num_heads=2, ffn_dim=8, window_size=2, flow_size=1
)


@pytest.fixture(scope="module")
def small_speech(tiny_pipe_folder):
    """The preset "speech" with few words, small models and few steps; the folder of the
    pipeline that it borrows from.
    """
    with pytest.MonkeyPatch.context() as patch:
        small_world.add_small(patch)
        patch.setitem(PhonemeEncoder.presets, "small", SMALL)
        patch.setattr(clips, "lexicon", lambda split, others=False: SAID * (not others))
        patch.setattr(clips, "voices", lambda split: HEARD)
        run = RUNS["speech"]
        few = {"steps": 2, "batch_size": 4}
        recipes = {name: replace(x, **few) for name, x in run.recipes.items()}
        sizes = {"recipes": recipes, "options": {}, "sizes": "small"}
        patch.setitem(RUNS, "speech", replace(run, seconds=0.64, **sizes))
        yield tiny_pipe_folder


@pytest.fixture(scope="module")
def folder(small_speech, tmp_path_factory) -> Path:
    """A small pipeline that has been trained to speak, badly."""
    out = tmp_path_factory.mktemp("runs") / "speech"
    return train_stages(
        "all", "speech", out, shipped=small_speech, progress=False
    )  # fmt: skip


@pytest.fixture
def pipe(folder) -> AudioLDM2:
    """The pipeline of `folder`."""
    return AudioLDM2.from_pretrained(folder, device="cpu")


@pytest.fixture
def stage(small_speech, folder, tmp_path):
    """The stage that learns to write the LOA of speech."""
    data = clips.spoken_data(0.64, tmp_path / "cache", progress=False)
    data.tokenizer = load_part(folder, "clap").tokenizer
    parts = {name: load_part(folder, name, torch.float32) for name in SPEAK.needs}
    return SPEAK("small", RUNS["speech"].recipes["speak"], data, parts)


SPEAK = SPEECH["speak"]
CHANGES = {"transcription": "zero", "seed": 1, **FAST}


# --------------------------------------------------------------------------------------
# The LOA


def columns_of(audiomae, **changes) -> Columns:
    sizes = {"n_frames": 64, "patch_size": 16, "n_features": 64, "dim": 16}
    return Columns(ColumnsConfig(**{**sizes, **changes}))


def test_columns_join_the_patches_of_a_moment_and_ignore_what_comes_after(pipe):
    mel = torch.randn(3, 1, 64, 64) - 7
    columns = columns_of(pipe.audiomae)
    with torch.no_grad():
        joined = columns.joined(pipe.audiomae, mel)
        features = pipe.audiomae.features(mel)  # (B, D, T', F')
    assert joined.shape == (3, 4, 64)
    torch.testing.assert_close(joined[1, 2, :16], features[1, :, 2, 0])
    torch.testing.assert_close(joined[1, 2, 48:], features[1, :, 2, 3])


def test_fitted_columns_keep_distances_and_give_every_dimension_a_like_variance(pipe):
    mel = torch.randn(70, 1, 64, 64) * 2 - 7
    whole = columns_of(pipe.audiomae, dim=64)
    kept = whole.fit(pipe.audiomae, mel)
    assert kept == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        raw, loa = whole.joined(pipe.audiomae, mel), whole.loa(pipe.audiomae, mel)
    apart = lambda x: torch.pdist(x.flatten(0, 1)[:50])
    ratio = apart(loa) / apart(raw)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    flat = loa.flatten(0, 1)
    assert flat.mean(dim=0).abs().max() < 1e-3
    assert flat.var(dim=0).mean() == pytest.approx(1, rel=1e-2)
    assert flat.var(dim=0).max() < 6  # the first component alone had far more
    narrow = columns_of(pipe.audiomae, dim=8)
    assert 0.1 < narrow.fit(pipe.audiomae, mel) < kept


def test_columns_refuse_longer_clips_and_widths_that_no_column_has(pipe):
    with pytest.raises(ValueError, match="mel must have at most 64 frames, not 65"):
        columns_of(pipe.audiomae).loa(pipe.audiomae, torch.zeros(1, 1, 65, 64))
    with pytest.raises(ValueError, match="dim must be from 1 to n_features, 64, not 9"):
        columns_of(pipe.audiomae, dim=99)


# --------------------------------------------------------------------------------------
# The data


def test_speech_is_every_word_in_every_voice_once_from_the_same_moment_on(
    small_speech, tmp_path
):
    data = clips.spoken_data(0.64, tmp_path / "cache", progress=False)
    pairs = list(zip(data.transcriptions, data.voices, strict=True))
    assert pairs == [(word, voice) for word in SAID for voice in HEARD]
    waves, begin = data.corpus.wave(range(6)), round(clips.BEGIN * 16000)
    assert waves[:, : begin - 80].abs().max() < 1e-3  # the noise floor
    assert (waves[:, begin : begin + 1600].abs().amax(dim=1) > 0.01).all()
    assert all("man" in caption for caption in data.corpus.captions)
    again = clips.spoken_data(0.64, tmp_path / "cache", progress=False)
    assert again.transcriptions == data.transcriptions
    assert torch.equal(again.corpus.wave(range(6)), waves)


def test_words_that_last_too_long_are_left_out(small_speech, tmp_path, monkeypatch):
    long = ("zero", "grandmother")
    monkeypatch.setattr(clips, "lexicon", lambda split, others=False: long * others)
    data = clips.spoken_data(0.64, tmp_path / "cache", progress=False)
    assert data.transcriptions == ["zero"] * 2


def test_held_out_words_and_the_held_out_voice_are_not_trained_on():
    words = {*speech.lexicon("train"), *speech.lexicon("train", others=True)}
    assert words.isdisjoint(HELD_OUT_WORDS) and {*WORDS} - {*HELD_OUT_WORDS} <= words
    assert set(speech.voices("train")) == {*VOICES} - {HELD_OUT_VOICE}


# --------------------------------------------------------------------------------------
# The stages


def test_the_voice_is_told_by_another_word_in_the_same_voice_or_by_a_caption(stage):
    indices = torch.arange(6).repeat(50)
    drawn = stage.prompts(indices, step_generator(0, "speak", 0))
    voices = stage.data.voices
    assert all(voices[i] == voices[j] for i, j in zip(indices, drawn))
    assert (drawn != indices).float().mean() > 0.5  # three words in each voice
    batches = [stage.batch(step_generator(0, "speak", k)) for k in range(30)]
    clap = torch.cat([x["clap"][~x["dropped"], 0] for x in batches])
    sounds = stage.sounds
    heard = torch.cdist(clap, sounds).amin(dim=1) < 1e-6
    assert 0.3 < heard.float().mean() < 0.7
    dropped = torch.cat([x["clap"][x["dropped"], 0] for x in batches])
    assert len(dropped) and torch.cdist(dropped, sounds).min() > 1e-6


def test_gpt_2_and_the_phoneme_encoder_learn_together(stage):
    batch = stage.batch(step_generator(0, "speak", 0))
    assert batch["text_ids"].shape == (4, MOST_PHONEMES) and "text" not in batch
    assert batch["loa"].shape == (4, 4, 16) and batch["clap"].shape == (4, 1, 16)
    stage.model.loss(batch).backward()
    made = stage.finish()
    assert set(made) == {"gpt", "text", "columns"}
    for part in ("gpt", "text"):
        assert any(p.grad is not None and p.grad.any() for p in made[part].parameters())
    assert stage.gpt.config.learned_positions == MOST_PHONEMES


def test_a_run_makes_a_pipeline_that_borrows_its_vae_and_vocoder(folder, pipe):
    description = json.loads((folder / "pipeline.json").read_text())
    for part in ("vae", "vocoder", "audiomae"):
        assert not (folder / part).exists()
        assert (folder / description[part] / "config.json").is_file()
    assert isinstance(pipe.text, PhonemeEncoder) and pipe.speaks
    assert isinstance(pipe.text.tokenizer, PhonemeTokenizer)
    assert pipe.gpt.config.n_tokens == pipe.columns.config.n_tokens == 4
    assert pipe.unet.config.cross_attention == (None, "loa")
    assert (pipe.unet.config.loa_grid, pipe.unet.config.loa_patch) == ((4, 1), (4, 16))
    assert pipe.unknown_words("a man barks") == ["barks"]
    assert not (folder / "separate").exists()


def test_the_command_has_a_recipe_for_each_stage_and_its_help_names_them(capsys):
    run = RUNS["speech"]
    assert (*run.stages, "words", "voices") == tuple(run.recipes)
    assert set(SPEECH) <= set(run.recipes)
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "preset speech has the stages clap, speak and utter, and " in said
    assert "words and voices, the judges of what is said" in said


def test_a_finished_run_is_resumed_without_training(small_speech, folder, capsys):
    train_stages("all", "speech", folder, shipped=small_speech, resume=True)
    said = capsys.readouterr().out
    assert said.count("already finished, 2 steps") == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shipped": None}, "shipped must be the folder of a trained pipeline: preset"),
        ({"data": "sounds"}, "data must be None, as preset speech learns from speech"),
        (
            {"stages": "gpt"},
            "stage must be one of preset speech, whose stages are clap",
        ),
        ({"stages": "hum"}, "stage must be all or one of vae, .*, not 'hum'"),
        ({"preset": "tiny", "stages": "speak"}, "stage must be one of preset tiny"),
    ],
)
def test_a_run_is_refused_in_a_sentence(small_speech, tmp_path, arguments, said):
    given = {"stages": "all", "preset": "speech", "shipped": small_speech, **arguments}
    with pytest.raises(ValueError, match=said):
        train_stages(out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_without_the_parts_to_borrow_is_refused(small_speech, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="preset speech borrows vae, which is"):
        train_stages("all", "speech", tmp_path / "o", shipped=tmp_path / "empty")


# --------------------------------------------------------------------------------------
# The pipeline


def test_what_is_said_and_who_says_it_change_the_sound(pipe):
    caption, other = "a man speaks", "a woman speaks quickly in a high voice"
    first = pipe(caption, **CHANGES)
    assert first.shape == (1, 10240) and first.isfinite().all()
    assert torch.equal(pipe(caption, **CHANGES), first)
    assert not torch.equal(pipe(other, **CHANGES), first)
    assert not torch.equal(
        pipe(caption, **{**CHANGES, "transcription": "happy"}), first
    )


def test_a_voice_is_heard_in_place_of_the_caption(pipe):
    one, two = (metrics.clean("uncle", voice, 0.64) for voice in HEARD)
    first = pipe("a man speaks", voice=one, **CHANGES)
    assert torch.equal(pipe("a woman speaks", voice=one, **CHANGES), first)
    assert not torch.equal(pipe("a man speaks", voice=two, **CHANGES), first)
    assert not torch.equal(pipe("a man speaks", **CHANGES), first)
    both = pipe(["a man speaks"] * 2, voice=torch.stack([one, two]), **CHANGES)
    torch.testing.assert_close(both[:1], first, atol=1e-4, rtol=0)
    context = pipe.heard(torch.stack([one, two]), 4, candidates=2).sequence
    assert torch.equal(context[0], context[1]) and len(context) == 4
    assert not torch.equal(context[1], context[2])
    assert len(pipe.heard(one, 4, candidates=2).sequence) == 4


@pytest.mark.parametrize(
    ("voice", "error", "said"),
    [
        (
            torch.zeros(3, 8000),
            ValueError,
            r"shape \(N,\) or \(1, N\), N at least 4000",
        ),
        (torch.zeros(100), ValueError, r"voice must have shape .*, not \(100,\)"),
        (torch.full((8000,), torch.nan), ValueError, "voice must hold finite real"),
        ("a.wav", TypeError, "voice must be a waveform, a tensor"),
    ],
)
def test_a_voice_that_cannot_be_heard_is_refused(pipe, voice, error, said):
    with pytest.raises(error, match=said):
        pipe("a man speaks", voice=voice, **CHANGES)


def test_weights_that_do_not_speak_take_no_voice(tiny_pipe):
    with pytest.raises(ValueError, match="do not speak: voice must be None"):
        tiny_pipe("a dog barks", voice=torch.zeros(8000), **FAST)


def test_a_pipeline_that_speaks_is_saved_whole(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "whole")
    whole = AudioLDM2.from_pretrained(tmp_path / "whole", device="cpu")
    waves = (x("a man speaks", **CHANGES) for x in (whole, pipe))
    torch.testing.assert_close(*waves, atol=1e-4, rtol=0)
    (tmp_path / "whole" / "phonemes.json").write_text("{")
    with pytest.raises(ValueError, match="phonemes.json is damaged"):
        AudioLDM2.from_pretrained(tmp_path / "whole")


# --------------------------------------------------------------------------------------
# Its judges


def test_shuffled_phonemes_are_the_same_in_another_order():
    own, shuffled = PhonemeTokenizer(16), metrics.ShuffledPhonemes(16)
    ids, mask = own.encode(["window", "zero"])
    others, same = shuffled.encode(["window", "zero"])
    assert torch.equal(mask, same)
    assert torch.equal(ids.sort(dim=1).values, others.sort(dim=1).values)
    n = mask.sum(dim=1)
    for row, other, k in zip(ids, others, n.tolist()):
        assert not torch.equal(row, other) and other[k - 1] == row[k - 1]  # the end


@pytest.fixture(scope="module")
def judges(recogniser) -> metrics.SpeechJudges:
    """A recogniser, and untrained judges beside it."""
    torch.manual_seed(0)
    apart = (ClassifierConfig(x, channels=(4,)) for x in (WORDS, tuple(VOICES)))
    return metrics.SpeechJudges(recogniser, *(Classifier(x).eval() for x in apart))


@pytest.mark.parametrize("prompted", [False, True])
def test_speech_is_judged_between_chance_and_ceiling(
    pipe, judges, monkeypatch, prompted
):
    monkeypatch.setattr(metrics.speech, "voices", lambda split: HEARD)
    monkeypatch.setattr(metrics.speech, "WORDS", (*SAID, "ocean"))
    monkeypatch.setattr(metrics.speech, "HELD_OUT_WORDS", ("ocean",))
    how = pipe.sampling.changed(steps=2)
    given = {"n": 4, "prompted": prompted, "progress": False}
    found = metrics.evaluate_speech(pipe, judges, how, **given)
    assert isinstance(pipe.text.tokenizer, PhonemeTokenizer)
    assert not isinstance(pipe.text.tokenizer, metrics.ShuffledPhonemes)
    for kind in ("seen", "held_out"):
        assert found[f"ceiling.{kind}.word"] > 0.5
        assert found[f"{kind}.word"] < 0.5  # after two steps of training
        for prefix in ("control.", "true_loa.", "roundtrip.", "se."):
            assert 0 <= found[f"{prefix}{kind}.word.class"] <= 1
    assert found["chance.seen.voice"] == 1 / 8
    assert found == metrics.evaluate_speech(pipe, judges, how, **given)
    table = metrics.speech_report(found)
    assert "held_out.word.class" in table and "4 words" in table
    assert "true LOA" in table and "pip install --no-deps Resemblyzer" in table


@pytest.mark.parametrize("prompted", [False, True])
def test_the_seed_draws_the_order_and_the_noise_of_all_that_is_said(
    pipe, monkeypatch, prompted
):
    monkeypatch.setattr(metrics.speech, "voices", lambda split: HEARD)
    monkeypatch.setattr(metrics.speech, "WORDS", (*SAID, "ocean"))
    monkeypatch.setattr(metrics.speech, "HELD_OUT_WORDS", ("ocean",))
    drawn = []
    keep = lambda judges, said, sounds: drawn.append((said, sounds)) or {}
    monkeypatch.setattr(metrics.speech, "judged_speech", keep)
    how = pipe.sampling.changed(steps=2, eta=1.0)  # eta adds noise in every step
    for seed in (0, 0, 1):
        given = {"n": 6, "seed": seed, "prompted": prompted, "progress": False}
        found = metrics.evaluate_speech(pipe, None, how, **given)
        assert found["seed"] == seed
    assert drawn[0][0] != drawn[4][0]
    for (said, first), (same, again), (order, other) in (drawn[::2], drawn[1::2]):
        assert said == same
        at = [order.index(pair) for pair in said]  # the same words in the same voices
        for prefix, waves in first.items():
            assert torch.equal(waves, again[prefix])
            alike = (waves == other[prefix][at]).all(dim=1)
            assert (
                alike.all() if prefix in ("ceiling.", "roundtrip.") else not alike.any()
            )


def test_a_recording_that_tells_the_voice_says_another_word(pipe, monkeypatch):
    heard, options = [], []
    clean = lambda word, voice, seconds: heard.append((word, voice)) or torch.zeros(9)
    monkeypatch.setattr(metrics.speech, "clean", clean)
    monkeypatch.setattr(metrics.speech, "WORDS", SAID)

    def silent(self, captions, how, **given):
        options.append(given)
        return torch.zeros(len(captions), 4)

    monkeypatch.setattr(type(pipe), "__call__", silent)
    said = [(word, voice) for word in SAID for voice in HEARD] * 5
    speak = lambda prompted: metrics.speech.spoken_by(
        pipe, said, pipe.sampling, prompted, np.random.default_rng(0), bar
    )
    bar = SimpleNamespace(update=lambda n: None)
    assert speak(prompted=True).shape == (30, 4) and len(heard) == 30
    for (word, voice), (wanted, own) in zip(heard, said):
        assert word in SAID and word != wanted and voice == own
    assert {len(given["voice"]) for given in options} == {16, 14}
    options.clear()
    speak(prompted=False)
    assert len(heard) == 30 and not any("voice" in given for given in options)


def test_the_true_loa_goes_through_diffusion_alone(pipe, monkeypatch):
    waves = torch.stack([metrics.clean("zero", voice, 0.64) for voice in HEARD])
    told = []
    keep = lambda loa, *_: told.append(loa) or torch.zeros(2, 8, 16, 16)
    monkeypatch.setattr(type(pipe), "sample", staticmethod(keep))
    monkeypatch.setattr(pipe, "decode", lambda z0, n: torch.zeros(len(z0), n))
    bar = SimpleNamespace(update=lambda n: None)
    rng = np.random.default_rng(0)
    made = metrics.resounded(pipe, waves, pipe.sampling, rng, bar)
    with torch.no_grad():
        true = pipe.columns.loa(pipe.audiomae, audio.log_mel(waves))
    assert made.shape == waves.shape
    torch.testing.assert_close(told[0], true)


def test_a_pipeline_that_cannot_be_judged_is_refused(tiny_pipe, pipe, judges):
    given = {"n": 2, "progress": False}
    with pytest.raises(ValueError, match="pipe must speak"):
        metrics.evaluate_speech(tiny_pipe, judges, **given)
    pipe.columns = None
    with pytest.raises(ValueError, match="pipe must have its audiomae and columns"):
        metrics.evaluate_speech(pipe, judges, **given)


def test_the_judges_of_speech_are_trained_apart(small_speech, tmp_path, monkeypatch):
    for name in ("MANNERS", "SAYINGS"):
        monkeypatch.setattr(clips, name, 1)
    words = lambda split, others=False: ("water",) if others else SAID
    monkeypatch.setattr(clips, "lexicon", words)
    given = {"shipped": small_speech, "progress": False}
    out = train_stages(["words", "voices"], "speech", tmp_path / "out", **given)
    found = [Classifier.from_pretrained(out / x) for x in ("words", "voices")]
    assert [judge.config.classes for judge in found] == [WORDS, tuple(VOICES)]


# --------------------------------------------------------------------------------------
# The command line


@pytest.fixture
def shipped(folder, monkeypatch, tmp_path) -> Path:
    """A place where the small weights that speak are those that ship."""
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "speech").symlink_to(folder)
    monkeypatch.setattr(cli, "DATA", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_transcription_and_voice_choose_the_weights_that_speak(shipped, capsys):
    line = ["--transcription", "zero", "--steps", "2", "--seed", "1"]
    assert cli.main(["generate", "a man speaks", *line, "-o", "told.wav"]) == 0
    audio.save("me.wav", metrics.clean("uncle", HEARD[1], 0.64))
    assert cli.main(["generate", "--voice", "me.wav", *line, "-o", "heard.wav"]) == 0
    out, err = capsys.readouterr()
    assert "heard.wav  0.64 s  seed 1  the voice of me.wav" in out
    assert "minilib:" not in err
    told, heard = audio.load("told.wav"), audio.load("heard.wav")
    assert len(told) == len(heard) == 10240 and not torch.equal(told, heard)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --voice me.wav", "--voice needs --transcription: the words to be"),
        ("generate --transcription zero", "there is no CAPTION: describe a sound, or"),
        ("generate x --voice no.wav --transcription zero", "no.wav"),
        (
            "evaluate --task speech --candidates 2",
            "--task speech takes no --candidates",
        ),
        ("evaluate --task prompted --data x", "--task prompted takes no --data"),
    ],
)
def test_speech_is_refused_in_a_sentence(shipped, capsys, line, said):
    assert cli.main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_the_command_evaluate_judges_speech(shipped, capsys, monkeypatch):
    asked = {}

    def evaluated(pipe, judges, how, **given):
        asked.update(given, judges=judges, steps=how.steps)
        kinds = [f"{k}.{q}" for k in ("seen", "held_out") for q in ("word", "voice")]
        values = {f"{p}{k}": 0.5 for p in ("", "ceiling.") for k in kinds}
        return metrics.settings(given["n"], given["seed"], how) | values

    task = metrics.TASKS["prompted"]
    assert task.evaluate.keywords == {"prompted": True}
    task = replace(task, evaluate=evaluated, judges=lambda folder: folder.name)
    monkeypatch.setitem(metrics.TASKS, "prompted", task)
    line = "evaluate --task prompted --n 7 --seed 3 --steps 9 --json found.json"
    assert cli.main(line.split()) == 0
    assert asked == {"n": 7, "seed": 3, "steps": 9, "judges": "judges"}
    assert "held_out.voice" in capsys.readouterr().out
    assert json.loads((shipped / "found.json").read_text())["seen.word"] == 0.5


def test_evaluate_says_which_judges_are_missing(shipped, capsys, monkeypatch):
    monkeypatch.setattr(cli, "origin", lambda: [])
    assert cli.main(["evaluate", "--task", "speech"]) == 2
    assert "lacks the judge words; train it with: minilib" in capsys.readouterr().err


# --------------------------------------------------------------------------------------
# The weights that ship


@pytest.fixture(scope="module")
def speaking() -> AudioLDM2:
    """The pipeline that ships for speech."""
    return AudioLDM2.from_pretrained(cli.shipped_for("speech"), device="cpu")


def test_the_weights_that_ship_say_words_in_the_voice_that_is_told(
    speaking, recogniser
):
    shipped = metrics.SpeechJudges.load(cli.place_of("judges"))
    words = ("window", "ocean", "rocket", "doctor")  # the last two are held out
    voices = ("low slow man", "high fast woman", "high slow man", "low slow woman")
    said = list(zip(words, voices))
    scenes, rng = (clips.uttered(*pair, 1.28) for pair in said), np.random.default_rng
    captions = [describe(scene, rng(0)) for scene in scenes]
    given = {"seed": 0, "progress": False}
    waves = speaking(captions, transcription=list(words), **given)
    assert waves.shape == (4, 20480)
    found = answers(shipped.heard(waves), said)
    assert found["word.class"].sum() >= 3 and found["voice"].sum() >= 3
    prompts = torch.stack([metrics.clean("party", voice, 1.28) for voice in voices])
    heard = speaking(voice=prompts, captions=["?"] * 4, transcription=list(words))
    found = answers(shipped.heard(heard), said)
    assert found["word.class"].sum() >= 3 and found["voice"].sum() >= 3


def test_it_is_said_when_more_words_are_asked_for_than_were_learned(speaking, capsys):
    assert speaking.vocabulary["spoken"] == 1
    cli.warn_of_many_words(speaking, "seven rivers")
    assert 'of "seven rivers" not all' in capsys.readouterr().err
    for words in ("river", None):
        cli.warn_of_many_words(speaking, words)
        assert not capsys.readouterr().err
