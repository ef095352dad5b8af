"""Spectral errors, questions, and what stands beside every number (chapter 17)."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minilib import audio, metrics
from minilib.audioldm2 import AudioLDM2
from minilib.classifier import Classifier, ClassifierConfig
from minilib.guidance import Sampling
from minilib.metrics import Scenes
from minilib.soundworld import SoundWorld, held_out_combinations, held_out_pairs

# a seed whose first scenes are of few classes: the judge in closed form renders each
# eighteen times before it answers
FEW = 17
NEPER = 20 / math.log(10)  # decibels


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------
# Spectral errors


def test_a_log_mel_that_is_off_by_a_factor_is_off_by_its_decibels():
    mel = torch.randn(2, 1, 10, 64)
    error = metrics.spectral_error(mel, mel + math.log(2))
    assert error["db"] == pytest.approx(20 * math.log10(2), rel=1e-5)
    assert error["silent_share"] == error["silent_db"] == 0
    signs = torch.where(torch.rand_like(mel) < 0.5, 1.0, -1.0)
    # no cancelling
    assert metrics.spectral_error(mel, mel + signs)["db"] == pytest.approx(
        NEPER, rel=1e-5
    )


def test_digital_silence_is_scored_apart():
    wave = noise(1, 16000)
    wave[:, 6000:12000] = 0
    mel = audio.log_mel(wave)
    silent = metrics.silent_frames(wave, 100)[0]
    wrong = mel + torch.where(silent, 3.0, 0.5)[None, None, :, None] / NEPER
    error = metrics.spectral_error(mel, wrong, wave)
    assert error["db"] == pytest.approx(0.5, rel=1e-4)
    assert error["silent_db"] == pytest.approx(3.0, rel=1e-4)
    assert (
        error["silent_share"] == pytest.approx(silent.float().mean().item())
        and 0.2 < silent.float().mean() < 0.4
    )
    every = metrics.spectral_error(mel, wrong, torch.zeros_like(wave))
    assert every["silent_share"] == 1 and every["db"] == 0


def test_silent_frames_are_those_whose_window_sees_only_zeros():
    wave = torch.zeros(3, 8000)
    wave[0, 4000] = 1e-4  # one sample
    wave[1, :100] = 0.5
    wave[2, -1] = -0.5
    at_floor = (audio.stft(wave).abs() == 0).all(dim=2)  # (B, T)
    found = metrics.silent_frames(wave, 50)
    assert found.shape == (3, 50)
    assert (found & ~at_floor).sum() == 0  # what is called silent is silent
    # but for a sample on which the window is zero
    assert (at_floor & ~found).sum() <= 2


def test_mels_of_different_shapes_and_short_waves_are_refused():
    mel = torch.zeros(1, 1, 10, 64)
    with pytest.raises(ValueError, match="must both be"):
        metrics.spectral_error(mel, mel[:, :, :9])
    with pytest.raises(ValueError, match="at least 1600 samples; given \\(1, 1599\\)"):
        metrics.spectral_error(mel, mel, torch.zeros(1, 1599))


def fake_pipe(wave: torch.Tensor, vae_db: float) -> SimpleNamespace:
    """A VAE that makes everything louder by some decibels, and a vocoder that always
    says the same wave.
    """

    def vocoder(mel):
        return torch.nn.functional.pad(
            wave, (0, mel.shape[2] * audio.HOP - wave.shape[1])
        )

    return SimpleNamespace(
        device="cpu", reconstruct=lambda mel: mel + vae_db / NEPER, vocoder=vocoder
    )


@pytest.mark.parametrize("n", [1, 300, 1280, 4000, 16000])
def test_a_reconstruction_measures_each_step_by_itself(n):
    wave = noise(1, n)
    result = metrics.reconstruction(fake_pipe(wave, vae_db=2.0), wave[0])
    assert torch.equal(result["wave"], wave[0])
    assert result["vae_db"] == pytest.approx(2.0, rel=1e-4)
    assert result["vocoder_db"] == result["total_db"] == 0
    off = metrics.reconstruction(fake_pipe(wave * 2, vae_db=2.0), wave)
    assert off["vae_db"] == pytest.approx(2.0, rel=1e-4)
    if n >= 4000:  # shorter ones are mostly padding
        assert off["vocoder_db"] == pytest.approx(20 * math.log10(2), rel=0.02)


def test_what_a_short_recording_is_padded_with_does_not_count():
    wave = noise(1, 320)
    padded = torch.nn.functional.pad(wave, (0, 8 * 160 - 320))
    padded[:, 1120:] = 0.5  # no window of the first two frames reaches so far
    result = metrics.reconstruction(fake_pipe(padded, vae_db=1.0), wave)
    assert result["total_db"] == result["vocoder_db"] == 0 and result["wave"].shape == (
        320,
    )


def test_a_reconstruction_scores_silence_apart():
    wave = torch.cat([noise(1, 8000), torch.zeros(1, 8000)], dim=1)
    pipe = fake_pipe(wave + 0.01 * torch.ones(1, 16000).cumsum(1).sin(), vae_db=1.0)
    result = metrics.reconstruction(pipe, wave)
    assert 0.4 < result["silent_share"] < 0.5
    assert result["vae_db"] == pytest.approx(1.0, rel=1e-3) == result["vae_silent_db"]
    assert result["total_silent_db"] > 5 * result["total_db"] > 0


def test_a_pipeline_reconstructs_recordings_of_any_length(tiny_pipe):
    for n in (1, 513, 5003):
        result = metrics.reconstruction(tiny_pipe, noise(n))
        assert result["wave"].shape == (n,) and result["wave"].isfinite().all()
        assert not result["wave"].requires_grad
        json.dumps({key: value for key, value in result.items() if key != "wave"})
    for wrong in (torch.zeros(0), torch.zeros(2, 100)):
        with pytest.raises(ValueError, match="wave must be"):
            metrics.reconstruction(tiny_pipe, wrong)


def test_pieces_of_a_long_recording_join_without_a_seam(monkeypatch):
    monkeypatch.setattr(metrics.spectral, "CHUNK", 64)
    monkeypatch.setattr(metrics.spectral, "CONTEXT", 16)
    seen = []

    def smooth(x):  # (1, T, C) -> (1, T, C): sees 4 frames to either side
        seen.append(x.shape[1])
        return torch.nn.functional.avg_pool1d(x.mT, 9, stride=1, padding=4).mT

    for T in (1, 63, 64, 65, 200):
        x = noise(1, T, 3)
        torch.testing.assert_close(
            metrics.in_chunks(smooth, x, torch.device("cpu")), smooth(x)
        )
        seen.clear()
    metrics.in_chunks(smooth, noise(1, 1000, 3), torch.device("cpu"))
    assert max(seen) == 64 + 2 * 16


def test_a_long_recording_is_reconstructed_in_pieces(tiny_pipe, monkeypatch):
    monkeypatch.setattr(metrics.spectral, "CHUNK", 32)
    monkeypatch.setattr(metrics.spectral, "CONTEXT", 8)
    lengths = []
    once = tiny_pipe.vae.forward
    monkeypatch.setattr(
        tiny_pipe.vae, "forward", lambda mel: lengths.append(mel.shape[2]) or once(mel)
    )
    result = metrics.reconstruction(tiny_pipe, noise(16001))
    assert result["wave"].shape == (16001,) and max(lengths) == 48 and len(lengths) == 4


# --------------------------------------------------------------------------------------
# Are captions followed?


def test_chance_is_what_guessing_scores():
    K, wanted = 4, (0, 2)
    guesses = list(itertools.product(range(K), repeat=2))
    share = lambda right: sum(map(right, guesses)) / len(guesses)
    assert metrics.chance(K) == pytest.approx(
        {
            "class": share(lambda g: g[0] == wanted[0]),
            "first": share(lambda g: g[0] == wanted[0]),
            "second": share(lambda g: g[1] == wanted[1]),
            "both": share(lambda g: g == wanted),
            "any": share(lambda g: set(g) == set(wanted)),
        }
    )


def test_answers_for_one_event_and_for_two():
    # the class is told by the level
    hear = lambda waves: (10 * waves.mean(dim=1)).round().long()
    judge = SimpleNamespace(hear=hear)

    def clip(first, second):
        return torch.cat(
            [torch.full((50,), first / 10), torch.full((50,), second / 10)]
        )

    waves, labels = (
        torch.stack([clip(1, 2), clip(2, 1), clip(1, 3), clip(3, 3)]),
        torch.tensor([[1, 2]] * 4),
    )
    answers = metrics.judged(judge, waves, labels)
    assert {name: answer.tolist() for name, answer in answers.items()} == {
        "first": [1, 0, 1, 0],
        "second": [1, 0, 0, 0],
        "both": [1, 0, 0, 0],
        "any": [1, 1, 0, 0],
    }
    alone = metrics.judged(
        judge, torch.stack([clip(4, 4), clip(5, 5)]), torch.tensor([[4], [4]])
    )
    assert alone["class"].tolist() == [1, 0]


@pytest.mark.parametrize("n", [2, 3, 17])
def test_shuffled_scenes_leave_none_at_its_place(n):
    labels = torch.arange(n)[:, None]
    scenes = Scenes([str(i) for i in range(n)], labels.float(), labels)
    for seed in range(5):
        other = scenes.shuffled(seed)
        assert sorted(other.labels[:, 0].tolist()) == list(range(n))
        assert (other.labels != labels).all()
        assert other.captions == [str(i) for i in other.labels[:, 0].tolist()]
        assert torch.equal(other.waves, other.labels.float())


def test_scenes_are_held_out_and_labelled_by_their_truth():
    judge = Classifier.preset("tiny")
    for n_events in (1, 2):
        scenes = metrics.held_out_scenes(judge, 6, 3, 2.56, n_events)
        world = SoundWorld("test", seed=3, pairs=float(n_events - 1))
        assert scenes.waves.shape == (6, 40960) and scenes.labels.shape == (6, n_events)
        for i in range(6):
            events = world.scene(i).events
            assert [judge.config.classes[k] for k in scenes.labels[i].tolist()] == [
                e.name for e in events
            ]
            assert scenes.captions[i] == world.caption(i)
            if n_events == 1:
                assert events[0].combination in held_out_combinations()
            else:
                assert (events[0].name, events[1].name) in held_out_pairs()
    with pytest.raises(ValueError, match="judge does not know"):
        metrics.held_out_scenes(
            Classifier(ClassifierConfig(classes=("bell",))), 6, 3, 2.56, 1
        )


class Oracle(Classifier):
    """Knows every test clip by heart, and takes anything else for class 0."""

    def __init__(self, n: int, seed: int, seconds: float):
        classes = Classifier.presets["tiny"].classes
        super().__init__(ClassifierConfig(classes, channels=(4, 8)))
        self.eval().truth = {}
        for n_events, music in ((1, False), (2, False), (1, True)):
            scenes = metrics.held_out_scenes(self, n, seed, seconds, n_events, music)
            # halves of clips of two
            pieces = scenes.waves.unflatten(1, (n_events, -1)).flatten(0, 1)
            known = zip(map(tuple, pieces.tolist()), scenes.labels.flatten().tolist())
            self.truth |= dict(known)

    def hear(self, waves):
        return torch.tensor([self.truth.get(tuple(wave), 0) for wave in waves.tolist()])


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(8, FEW, 0.64)


@pytest.fixture
def perfect_pipe(tiny_pipe, monkeypatch):
    """A pipeline that gives back the very render of each caption, and loses all in its
    vocoder.
    """
    renders: dict[str, list] = {}
    for pairs, music, n in ((0.0, 0.0, 60), (1.0, 0.0, 8), (0.0, 1.0, 8)):
        shares = {"pairs": pairs, "music": music}
        world = SoundWorld("test", FEW, seconds=tiny_pipe.seconds, **shares)
        for clip in map(world.__getitem__, range(n)):
            # clips may share a caption
            renders.setdefault(clip.caption, []).append(clip.wave)

    def give_back(pipe, captions, sampling, **_):
        return torch.stack([renders[caption].pop(0) for caption in captions])

    monkeypatch.setattr(type(tiny_pipe), "__call__", give_back)
    silence = lambda mel: torch.zeros(len(mel), 160 * mel.shape[2])
    monkeypatch.setattr(tiny_pipe.vocoder, "forward", silence)
    return tiny_pipe


@pytest.fixture
def classes_only(monkeypatch):
    """Nothing is asked in closed form, which takes a second for each class of sound."""
    monkeypatch.setattr(metrics.questions, "attributes", lambda waves, events: {})
    monkeypatch.setattr(metrics.text, "enough_scenes", lambda n, seed, seconds: n)


def test_a_perfect_pipeline_reaches_the_ceiling_and_its_control_does_not(
    perfect_pipe, oracle
):
    perfect_pipe.vocabulary = {"classes": ["piano"]}
    results = metrics.evaluate(perfect_pipe, oracle, n=4, seed=FEW, progress=False)
    asked = ["single.class", *(f"pair.{x}" for x in ("first", "second", "both", "any"))]
    for question in asked:
        assert results[question] == results[f"ceiling.{question}"] == 1
        assert results[f"se.{question}"] == 0
        assert results[f"control.{question}"] <= 0.5
        assert results[f"roundtrip.{question}"] <= 0.25
        assert results[f"chance.{question}"] < 0.04
    for question in metrics.QUESTIONS:
        value, ceiling = results[question], results[f"ceiling.{question}"]
        assert value == ceiling > results[f"control.{question}"]
        assert results[f"chance.{question}"] == pytest.approx(1 / 3, abs=0.1)
    assert results["single.clap"] == results["ceiling.single.clap"]
    distance = results["frechet"]
    assert distance == results["ceiling.frechet"] < results["roundtrip.frechet"]
    for question in ("music.instrument", "music.tempo", "music.loudness"):
        value, ceiling = results[question], results[f"ceiling.{question}"]
        assert value == ceiling > results[f"roundtrip.{question}"]
    assert results["chance.music.tempo"] == pytest.approx(1 / 3)
    assert "music.class" not in results and "music.pitch" not in results
    assert json.loads(json.dumps(results)) == results


def test_chance_is_the_mean_over_the_events_that_are_asked(
    tiny_pipe, oracle, monkeypatch
):
    scenes = metrics.held_out_scenes(oracle, 3, 0, 0.64, n_events=1)
    guesses = [{"pitch": 0.5}, {"pitch": 0.25, "speed": 0.2}, {}]
    by_event = {id(e): guess for e, guess in zip(scenes.events, guesses, strict=True)}
    monkeypatch.setattr(
        metrics.questions.judges, "chance", lambda event: by_event[id(event)]
    )
    answers = {"pitch": torch.tensor([1.0, math.nan, 0.0])}
    monkeypatch.setattr(metrics.questions, "attributes", lambda *_: answers)
    sounds = {"": scenes.waves, "ceiling.": scenes.waves}
    found = metrics.compared(oracle, tiny_pipe.clap, 3, scenes, sounds)
    assert found["chance.pitch"] == pytest.approx(0.375)
    assert "chance.speed" not in found  # no sound was asked for it
    assert found["pitch"] == 0.5 and found["se.pitch"] == pytest.approx(0.5 / 2**0.5)
    assert found["chance.single.class"] == 1 / len(oracle.config.classes)


def test_class_and_clap_are_asked_of_the_first_and_the_rest_of_all(
    tiny_pipe, oracle, monkeypatch
):
    scenes = metrics.held_out_scenes(oracle, 4, 0, 0.64, n_events=1)
    monkeypatch.setattr(
        metrics.questions, "attributes", lambda x, _: {"pitch": x[:, 0]}
    )
    found = metrics.scores(oracle, tiny_pipe.clap, 2, scenes.waves, scenes)
    sizes = {name: len(answer) for name, answer in found.items()}
    assert sizes == {"class": 2, "clap": 2, "pitch": 4}


def test_every_question_is_asked_often_enough():
    m = metrics.enough_scenes(5, seed=3, seconds=2.56)
    world = SoundWorld("test", seed=3, pairs=0.0)
    events = [world.scene(i).events[0] for i in range(m)]
    asked = {
        question: sum(getattr(event, question) is not None for event in events)
        for question in ("pitch", "count", "speed", "loudness")
    }
    assert min(asked.values()) == 5 and max(asked.values()) == m


QUICK = {"n": 2, "progress": False}


@pytest.fixture(scope="module")
def usual(tiny_pipe_folder, oracle) -> dict[str, float]:
    """What an evaluation finds whose class and CLAP alone are asked, in one step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.questions, "attributes", lambda waves, events: {})
        patch.setattr(metrics.text, "enough_scenes", lambda n, seed, seconds: n)
        pipe = AudioLDM2.from_pretrained(tiny_pipe_folder, device="cpu")
        return metrics.evaluate(pipe, oracle, Sampling(steps=1), **QUICK)


def test_a_pipeline_is_evaluated_the_same_twice(tiny_pipe, oracle, classes_only, usual):
    given = tiny_pipe, oracle, Sampling(steps=1)
    assert metrics.evaluate(*given, **QUICK) == usual
    assert usual["n"] == 2 and usual["steps"] == 1
    assert all(math.isfinite(x) for x in usual.values())
    # these weights know no instrument
    assert not any("music" in key for key in usual)
    other = metrics.evaluate(*given, seed=1, **QUICK)
    assert other["seed"] == 1 and other["single.clap"] != usual["single.clap"]


def test_the_seed_draws_scenes_and_noise_of_every_kind(tiny_pipe, oracle, monkeypatch):
    tiny_pipe.vocabulary = {"classes": ["piano"]}
    drawn, noises = {}, []

    def keep(pipe, scenes, how, seed, *_):
        noises.append(seed)
        drawn.setdefault(seeds[0], []).append(scenes.waves)
        return {"": scenes.waves}

    monkeypatch.setattr(metrics.text, "sounds_of", keep)
    for name in ("compared", "distances"):
        monkeypatch.setattr(metrics.text, name, lambda *_, **__: {})
    monkeypatch.setattr(metrics.text, "enough_scenes", lambda n, seed, seconds: n)
    known = Classifier(ClassifierConfig(("cow", "dog"), channels=(4,)))
    for seeds in ((3, 0), (4, 0), (3, 1)):
        given = {"n": 4, "seed": seeds[0], "progress": False}
        metrics.evaluate(tiny_pipe, oracle, **given)
        metrics.evaluate_recordings(tiny_pipe, known, Folder(), **given)
    assert noises == [3] * 4 + [4] * 4 + [3] * 4  # one, two events, tunes, recordings
    for first, again, other in zip(drawn[3][:4], drawn[3][4:], drawn[4], strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("of_pipe", "read"), [("speaks", "transcriptions"), ("sees", "pictures")]
)
def test_weights_that_read_no_captions_are_refused_before_anything_is_drawn(
    tiny_pipe, oracle, monkeypatch, of_pipe, read
):
    drawn = lambda *args, **kwargs: pytest.fail("scenes were drawn")
    for name in ("enough_scenes", "held_out_scenes", "recorded_scenes"):
        monkeypatch.setattr(metrics.text, name, drawn)
    monkeypatch.setattr(type(tiny_pipe), of_pipe, True)
    said = f"pipe must follow captions: its weights read {read}"
    with pytest.raises(ValueError, match=said):
        metrics.evaluate(tiny_pipe, oracle, **QUICK)
    with pytest.raises(ValueError, match=said):
        metrics.evaluate_recordings(tiny_pipe, oracle, Folder(), **QUICK)


def test_bad_numbers_are_refused_before_anything_is_drawn(tiny_pipe, monkeypatch):
    drawn = lambda *args, **kwargs: pytest.fail("scenes were drawn")
    monkeypatch.setattr(metrics.text, "enough_scenes", drawn)
    monkeypatch.setattr(metrics.text, "recorded_scenes", drawn)
    for ask in (
        lambda **given: metrics.evaluate(tiny_pipe, None, **given),
        lambda **given: metrics.evaluate_recordings(tiny_pipe, None, None, **given),
    ):
        whole, number, text = "must be a whole number", ValueError, TypeError
        for name, bad, said, error in (
            *(
                ("n", bad, "n must be a whole number, 2 or more", number)
                for bad in (1, 0)
            ),
            *(
                ("n", bad, f"n {whole}, 2 or more, not", text)
                for bad in (2.0, "3", None)
            ),
            ("candidates", 0, f"candidates {whole} from 1 to 64, not 0", number),
            ("candidates", 65, f"candidates {whole} from 1 to 64, not 65", number),
            ("candidates", 1.5, f"candidates {whole} from 1 to 64, not 1.5", text),
            ("seed", 1.5, f"seed {whole} from 0 to 4294967295, not 1.5", text),
            ("seed", [1, 2], f"seed {whole} from 0 to 4294967295", text),
            ("seed", -1, f"seed {whole} from 0 to 4294967295, not -1", number),
            ("sampling", 25, "sampling must be a Sampling or None, not 25", text),
        ):
            with pytest.raises(error, match=said):
                ask(**{"n": 2, name: bad})
    given = np.int64(2), torch.tensor(5), np.int64(64)
    asked = metrics.check_asked(*given)
    assert asked == (2, 5, 64) and all(type(x) is int for x in asked)


def test_the_best_of_several_candidates_is_more_like_its_caption(
    tiny_pipe, oracle, classes_only, usual
):
    given = tiny_pipe, oracle, Sampling(steps=1)
    four = metrics.evaluate(*given, candidates=4, **QUICK)
    assert (usual["candidates"], four["candidates"]) == (1, 4)
    for question in ("single.clap", "pair.clap"):
        assert four[question] > usual[question]


def test_evaluation_samples_as_the_pipeline_wants_where_it_is_not_told(
    tiny_pipe, oracle, classes_only, usual
):
    own = {"steps": 2, "guidance": 1.5, "temperature": 0.5}
    tiny_pipe.sampling = Sampling(**own, guidance_interval=(300, 1000))
    found = metrics.evaluate(tiny_pipe, oracle, **QUICK)
    assert {name: found[name] for name in own} == own
    assert (found["guidance.low"], found["guidance.high"]) == (300, 1000)
    told = {name: usual[name] for name in own}
    assert told == {"steps": 1, "guidance": 3.5, "temperature": 1.0}


def test_sounds_are_generated_in_batches_from_one_stream_of_noise(
    tiny_pipe, monkeypatch
):
    monkeypatch.setattr(metrics.evaluation, "BATCH", 2)
    captions, how = ["a dog barks", "rain falls", "a bell rings"], Sampling(steps=1)
    shown = []
    bar = SimpleNamespace(update=shown.append)
    made = metrics.generate(tiny_pipe, captions, how, 5, 1, bar)
    noise = torch.Generator().manual_seed(5)
    for some, waves in (captions[:2], made[:2]), (captions[2:], made[2:]):
        latents = tiny_pipe.noise(len(some), 10240, generator=noise)
        wanted = tiny_pipe(some, how, latents=latents, progress=False)
        torch.testing.assert_close(waves, wanted)
    assert shown == [2, 1]
    three = metrics.generate(tiny_pipe, captions, how, 5, 3, bar)
    assert three.shape == made.shape and not torch.equal(three, made)
    new_noise = Sampling(steps=2, eta=1.0)  # comes from the seed, too
    again = [metrics.generate(tiny_pipe, captions, new_noise, 5, 1, bar) for _ in "ab"]
    assert torch.equal(*again)


def test_the_round_trip_goes_through_vae_and_vocoder(tiny_pipe, monkeypatch):
    monkeypatch.setattr(metrics.evaluation, "BATCH", 2)
    waves = noise(3, 10240)
    mels = (audio.log_mel(some) for some in waves.split(2))
    back = (tiny_pipe.vocoder(tiny_pipe.reconstruct(mel)) for mel in mels)
    wanted = torch.cat(list(back))
    torch.testing.assert_close(metrics.round_trip(tiny_pipe, waves), wanted)
    scenes = Scenes(["a dog barks"] * 3, waves, torch.zeros(3, 1, dtype=torch.long))
    bar, how = SimpleNamespace(update=lambda n: None), Sampling(steps=1)
    sounds = metrics.sounds_of(tiny_pipe, scenes, how, 0, 1, bar)
    assert list(sounds) == ["", "roundtrip.", "ceiling."]
    torch.testing.assert_close(sounds["roundtrip."], wanted)
    assert sounds["ceiling."] is waves and sounds[""].shape == (3, 10240)


def test_clap_trained_apart_listens_in_place_of_the_pipelines_own(
    tiny_pipe, oracle, classes_only, usual
):
    sounds, captions = noise(20, 10240), ["a dog barks", "rain falls"] * 10
    embedded = tiny_pipe.clap.embed_waves(sounds)
    torch.testing.assert_close(metrics.embeddings(tiny_pipe.clap, sounds), embedded)
    told = tiny_pipe.encode(captions)["clap"].sequence[:, 0]
    found = metrics.cosines(tiny_pipe.clap, sounds, captions)
    torch.testing.assert_close(found, (embedded * told).sum(dim=1))
    torch.manual_seed(7)
    apart = type(tiny_pipe.clap)(tiny_pipe.clap.config).eval()
    apart.tokenizer = tiny_pipe.clap.tokenizer
    given = tiny_pipe, oracle, Sampling(steps=1)
    by_other = metrics.evaluate(*given, listener=apart, **QUICK)
    heard = {key for key in usual if "clap" in key}
    assert {"single.clap", "pair.clap", "frechet.clap", "ceiling.frechet.clap"} <= heard
    assert all((usual[key] != by_other[key]) == (key in heard) for key in usual)


def test_the_standard_error_of_a_share_is_the_binomial_one():
    answers = torch.tensor([1.0, math.nan, *[0.0] * 8, *[1.0] * 2, math.nan, 0.0])
    wanted = math.sqrt(0.25 * 0.75 / 12)
    assert metrics.standard_error(answers) == pytest.approx(wanted)


def test_distances_are_from_the_other_renders():
    embed = lambda waves: waves[:, :2]
    sounds = {"": noise(6, 5), "ceiling.": noise(6, 5) + 1.0}
    found = metrics.distances("x", sounds, noise(6, 5), embed)
    assert found == pytest.approx({"x": 0.0, "ceiling.x": 2.0}, abs=1e-5)


class Folder:
    """Recordings of one second by class; the samples of number i of class k are k + i /
    10.
    """

    folder = "recordings"

    def by(self, column):
        assert column == "class"
        return {"dog": Kind(1, 4), "cat": Kind(2, 3), "cow": Kind(3, 9)}


class Kind:
    def __init__(self, number, n):
        self.number, self.n = number, n
        self.captions = [f"{number} {i}" for i in range(n)]

    def __len__(self):
        return self.n

    def wave(self, i):
        return torch.full((16000,), self.number + i / 10)


def test_recordings_are_drawn_by_class_as_long_as_they_are_asked_for():
    judge = Classifier(ClassifierConfig(classes=("cow", "bird", "dog"), channels=(4,)))
    scenes = metrics.recorded_scenes(judge, Folder(), 300, 0, seconds=0.5)
    assert scenes.waves.shape == (300, 8000) and scenes.labels.shape == (300, 1)
    for caption, wave, label in zip(scenes.captions, scenes.waves, scenes.labels):
        number, i = map(int, caption.split())
        assert torch.all(wave == number + i / 10)
        assert label.item() == {3: 0, 1: 2}[number]  # no cat: the judge knows none
    assert 120 < (scenes.labels == 0).sum() < 180  # though there are more cows
    assert len(set(scenes.captions)) == 4 + 9
    longer = metrics.recorded_scenes(judge, Folder(), 2, 0, seconds=1.25)
    assert longer.waves.shape == (2, 20000) and (longer.waves[:, 16000:] == 0).all()
    alone = Classifier(ClassifierConfig(classes=("cow", "bird"), channels=(4,)))
    said = "recordings holds too few of the classes that the judge knows: cow, bird"
    with pytest.raises(ValueError, match=said):
        metrics.recorded_scenes(alone, Folder(), 2, 0, 1.0)


def test_recordings_are_asked_for_their_class_and_the_pipelines_own_clap(tiny_pipe):
    classes = "cow", "dog"
    judge = Classifier(ClassifierConfig(classes, channels=(4, 8))).eval()
    found = metrics.evaluate_recordings(
        tiny_pipe, judge, Folder(), Sampling(steps=1), n=3, seed=4, progress=False
    )
    about = {"n": 3, "seed": 4, "steps": 1, "candidates": 1, "guidance": 3.5}
    assert {key: found[key] for key in about} == about
    assert found["chance.single.class"] == 0.5
    for question in ("single.class", "single.clap"):
        for prefix in ("", "se.", "control.", "roundtrip.", "ceiling."):
            assert math.isfinite(found[prefix + question])
    again = metrics.evaluate_recordings(
        tiny_pipe, judge, Folder(), Sampling(steps=1), n=3, seed=4, progress=False
    )
    assert found == again
    tiny_pipe.sampling = Sampling(steps=2, guidance=1.0)
    own = metrics.evaluate_recordings(tiny_pipe, judge, Folder(), n=2, progress=False)
    assert (own["steps"], own["guidance"]) == (2, 1.0)


def test_the_report_reads_from_chance_to_ceiling():
    results = {
        "n": 5,
        "seed": 0,
        "steps": 25,
        "guidance": 3.5,
        "temperature": 0.7,
        "candidates": 1,
    }
    results |= {"guidance.low": 0, "guidance.high": 1000}
    parts = {
        "": 0.9,
        "se.": 0.021,
        "chance.": 0.034,
        "control.": 0.05,
        "roundtrip.": 0.95,
        "ceiling.": 0.99,
    }
    results |= {f"{prefix}single.class": value for prefix, value in parts.items()}
    results |= {
        f"{prefix}pair.clap": value
        for prefix, value in parts.items()
        if prefix != "chance."
    }
    lines = metrics.report(results).splitlines()
    said = "5 times each question of held-out scenes; 25 steps, guidance 3.5, "
    said += "temperature 0.7, seed 0"
    assert lines[0] == said
    best = metrics.report({**results, "candidates": 3}).splitlines()[0]
    assert best == said + ", the best of 3 candidates each"
    within = metrics.report({**results, "guidance.low": 300}).splitlines()[0]
    assert within == said.replace("guidance 3.5", "guidance 3.5 at levels 300 to 1000")
    assert lines[2].split() == [
        "chance",
        "control",
        "value",
        "round",
        "trip",
        "ceiling",
    ]
    assert lines[3].split() == [
        "single.class",
        "0.034",
        "0.050",
        "0.900",
        "±",
        "0.021",
        "0.950",
        "0.990",
    ]
    assert lines[4].split() == [
        "pair.clap",
        "-",
        "0.050",
        "0.900",
        "±",
        "0.021",
        "0.950",
        "0.990",
    ]
    results |= {"frechet": 7.5, "roundtrip.frechet": 3.25, "ceiling.frechet": 2.0}
    assert metrics.report(results).splitlines()[5].split() == [
        "frechet",
        "-",
        "-",
        "7.500",
        "3.250",
        "2.000",
    ]


def test_near_captions_share_words_and_then_meaning(tiny_pipe):
    near = metrics.nearest_captions(tiny_pipe, "A wolf BARKS, loudly")
    assert near[0] == "a dog barks" and len(near) == 3 == len(set(near))
    assert metrics.nearest_captions(tiny_pipe, "glorp", n=2) != []
    tiny_pipe.vocabulary["captions"] = ["a dog barks", "a dog barks", "a cat meows"]
    assert sorted(metrics.nearest_captions(tiny_pipe, "a dog")) == [
        "a cat meows",
        "a dog barks",
    ]
    tiny_pipe.vocabulary = {}
    assert metrics.nearest_captions(tiny_pipe, "glorp") == []


# --------------------------------------------------------------------------------------
# The divergence of classes


def test_the_divergence_of_classes_is_from_the_reference_and_zero_for_itself():
    torch.manual_seed(0)
    judge = Classifier(ClassifierConfig(classes=("a", "b", "c"), channels=(4, 8)))
    judge.head.weight.data *= 10
    judge.eval()
    waves, references = noise(5, 4000), noise(5, 4000, seed=1)
    with torch.no_grad():
        logits = [judge(audio.log_mel(x)).double() for x in (waves, references)]
    q, p = (x.softmax(dim=1) for x in logits)
    wanted = (p * (p / q).log()).sum(dim=1)
    found = metrics.class_kl(judge, waves, references)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-3)
    assert (found > 0).all() and found.shape == (5,)
    assert not torch.allclose(found, metrics.class_kl(judge, references, waves))
    assert metrics.class_kl(judge, waves, waves).abs().max() < 1e-6
