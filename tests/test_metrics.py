"""Judges, spectral errors and what stands beside every number (chapter 17)."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from minilib import audio, metrics
from minilib.classifier import Classifier, ClassifierConfig
from minilib.metrics import Scenes
from minilib.soundworld import (
    CLASSES,
    INSTRUMENTS,
    SoundWorld,
    held_out_combinations,
    held_out_pairs,
)

NEPER = 20 / math.log(10)  # decibels


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------
# The judge


def test_a_judge_hears_clips_of_any_length_from_32_frames_on():
    judge = Classifier.preset("tiny").eval()
    assert judge.config.classes == (*CLASSES, *INSTRUMENTS)
    for T in (32, 33, 128, 300):
        assert judge(torch.zeros(2, 1, T, 64)).shape == (
            2,
            len(CLASSES) + len(INSTRUMENTS),
        )
    with pytest.raises(ValueError, match="T and F at least 32, not \\(2, 1, 31, 64\\)"):
        judge(torch.zeros(2, 1, 31, 64))


def test_every_preset_has_the_same_judge():
    assert len({Classifier.presets[name] for name in ("tiny", "colab", "full")}) == 1
    assert 0.3e6 < Classifier.preset("tiny").n_parameters() < 0.5e6


def test_a_judge_learns_to_tell_low_from_high():
    torch.manual_seed(0)
    judge = Classifier(ClassifierConfig(classes=("low", "high"), channels=(4, 8)))
    seconds = torch.arange(4000) / audio.SAMPLE_RATE
    hertz = torch.cat([torch.linspace(200, 400, 8), torch.linspace(2000, 4000, 8)])
    waves = 0.5 * torch.sin(2 * math.pi * hertz[:, None] * seconds) + 0.05 * noise(
        16, 4000
    )
    batch = {"mel": audio.log_mel(waves), "label": torch.arange(16) // 8}
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.01)
    first = judge.loss(batch).item()
    for _ in range(15):
        optimizer.zero_grad()
        judge.loss(batch).backward()
        optimizer.step()
    assert judge.loss(batch).item() < 0.3 * first
    assert torch.equal(judge.eval().hear(waves), batch["label"])


def test_a_judge_comes_back_from_its_folder(tmp_path):
    torch.manual_seed(0)
    judge = Classifier(
        ClassifierConfig(classes=("a", "b", "c"), channels=(4, 8))
    ).eval()
    judge.save_pretrained(tmp_path, dtype=torch.float16)
    again = Classifier.from_pretrained(tmp_path, dtype=torch.float32)
    mel = torch.randn(2, 1, 40, 64) * 2 - 7
    assert again.config == judge.config
    torch.testing.assert_close(again(mel), judge(mel), atol=1e-2, rtol=1e-2)


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
    with pytest.raises(ValueError, match="N >= 1600 samples; given \\(1, 1599\\)"):
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
    monkeypatch.setattr(metrics, "CHUNK", 64)
    monkeypatch.setattr(metrics, "CONTEXT", 16)
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
    monkeypatch.setattr(metrics, "CHUNK", 32)
    monkeypatch.setattr(metrics, "CONTEXT", 8)
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
        super().__init__(Classifier.presets["tiny"])
        self.truth = {}
        for n_events, music in ((1, False), (2, False), (1, True)):
            scenes = metrics.held_out_scenes(self, n, seed, seconds, n_events, music)
            # halves of clips of two
            pieces = scenes.waves.unflatten(1, (n_events, -1)).flatten(0, 1)
            self.truth |= dict(
                zip(map(tuple, pieces.tolist()), scenes.labels.flatten().tolist())
            )

    def hear(self, waves):
        return torch.tensor([self.truth.get(tuple(wave), 0) for wave in waves.tolist()])


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(8, 0, 0.64)


@pytest.fixture
def perfect_pipe(tiny_pipe, monkeypatch):
    """A pipeline that gives back the very render of each caption, and loses all in its
    vocoder.
    """
    renders: dict[str, list] = {}
    for pairs, music, n in ((0.0, 0.0, 60), (1.0, 0.0, 8), (0.0, 1.0, 8)):
        world = SoundWorld("test", seconds=tiny_pipe.seconds, pairs=pairs, music=music)
        for clip in map(world.__getitem__, range(n)):
            # clips may share a caption
            renders.setdefault(clip.caption, []).append(clip.wave)
    monkeypatch.setattr(
        type(tiny_pipe),
        "__call__",
        lambda self, some, **_: torch.stack([renders[c].pop(0) for c in some]),
    )
    monkeypatch.setattr(
        tiny_pipe.vocoder,
        "forward",
        lambda mel: torch.zeros(len(mel), 160 * mel.shape[2]),
    )
    return tiny_pipe


def test_a_perfect_pipeline_reaches_the_ceiling_and_its_control_does_not(
    perfect_pipe, oracle
):
    results = metrics.evaluate(perfect_pipe, oracle, n=8, progress=False)
    for question in (
        "single.class",
        "pair.first",
        "pair.second",
        "pair.both",
        "pair.any",
    ):
        assert results[question] == results[f"ceiling.{question}"] == 1
        assert results[f"se.{question}"] == 0
        assert results[f"control.{question}"] <= 0.5
        assert results[f"roundtrip.{question}"] <= 0.25
        assert results[f"chance.{question}"] < 0.04
    for question in metrics.QUESTIONS:
        assert (
            results[question]
            == results[f"ceiling.{question}"]
            > results[f"control.{question}"]
        )
        assert results[f"chance.{question}"] == pytest.approx(1 / 3, abs=0.1)
    assert results["single.clap"] == results["ceiling.single.clap"]
    assert (
        results["frechet"] == results["ceiling.frechet"] < results["roundtrip.frechet"]
    )
    # these weights know no instrument
    assert not any("music" in key for key in results)
    assert json.loads(json.dumps(results)) == results


def test_tunes_are_asked_of_weights_that_know_instruments(perfect_pipe, oracle):
    perfect_pipe.vocabulary = {"classes": ["piano"]}
    results = metrics.evaluate(perfect_pipe, oracle, n=8, progress=False)
    for question in ("music.instrument", "music.tempo", "music.loudness"):
        assert (
            results[question]
            == results[f"ceiling.{question}"]
            > results[f"roundtrip.{question}"]
        )
    assert results["chance.music.tempo"] == pytest.approx(1 / 3)
    assert "music.class" not in results and "music.pitch" not in results


def test_every_question_is_asked_often_enough():
    m = metrics.enough_scenes(5, seed=3, seconds=2.56)
    world = SoundWorld("test", seed=3, pairs=0.0)
    events = [world.scene(i).events[0] for i in range(m)]
    asked = {
        "pitch": "pitch",
        "count": "count",
        "speed": "speed",
        "loudness": "loudness",
    }
    n_asked = {
        q: sum(getattr(event, name) is not None for event in events)
        for q, name in asked.items()
    }
    assert min(n_asked.values()) == 5 and max(n_asked.values()) == m


def test_a_pipeline_is_evaluated_the_same_twice(tiny_pipe, oracle):
    first = metrics.evaluate(tiny_pipe, oracle, n=3, steps=1, progress=False)
    assert metrics.evaluate(tiny_pipe, oracle, n=3, steps=1, progress=False) == first
    assert (
        first["n"] == 3
        and first["steps"] == 1
        and all(math.isfinite(x) for x in first.values())
    )
    for bad in (1, 0, 2.5):
        with pytest.raises(ValueError, match="n must be a whole number, 2 or more"):
            metrics.evaluate(tiny_pipe, oracle, n=bad, progress=False)


def test_the_best_of_several_candidates_is_more_like_its_caption(tiny_pipe, oracle):
    one, eight = (
        metrics.evaluate(tiny_pipe, oracle, n=4, steps=1, progress=False, candidates=k)
        for k in (1, 8)
    )
    assert (one["candidates"], eight["candidates"]) == (1, 8)
    assert (
        eight["single.clap"] > one["single.clap"]
        and eight["pair.clap"] > one["pair.clap"]
    )
    with pytest.raises(
        ValueError, match="candidates must be a whole number from 1 to 64, not 0"
    ):
        metrics.evaluate(tiny_pipe, oracle, n=4, progress=False, candidates=0)


def test_evaluation_samples_as_the_pipeline_wants_where_it_is_not_told(
    tiny_pipe, oracle, monkeypatch
):
    own = {"steps": 2, "guidance": 1.5, "temperature": 0.5}
    for name, value in own.items():
        monkeypatch.setattr(tiny_pipe, name, value)
    found = metrics.evaluate(tiny_pipe, oracle, n=2, progress=False)
    assert {name: found[name] for name in own} == own
    told = metrics.evaluate(
        tiny_pipe, oracle, n=2, steps=1, guidance=1.0, progress=False
    )
    assert (told["steps"], told["guidance"]) == (1, 1.0)


def test_clap_trained_apart_listens_in_place_of_the_pipelines_own(
    tiny_pipe, tiny_pipe_folder, oracle, tmp_path
):
    sounds, captions = noise(20, 10240), ["a dog barks", "rain falls"] * 10
    own = metrics.Listener.of(tiny_pipe)
    embedded = tiny_pipe.embed_waves(sounds)
    torch.testing.assert_close(own.embed(sounds), embedded)
    cosine = (embedded * tiny_pipe.encode(captions).clap[0][:, 0]).sum(dim=1)
    torch.testing.assert_close(own.scores(sounds, captions), cosine)
    torch.manual_seed(7)
    type(tiny_pipe.clap)(tiny_pipe.clap.config).save_pretrained(tmp_path / "clap")
    tiny_pipe.tokenizer.save(tmp_path / "tokenizer.json")
    apart = metrics.Listener.from_pretrained(tmp_path)
    assert not apart.clap.training
    by_own, by_other = (
        metrics.evaluate(
            tiny_pipe, oracle, n=3, steps=1, progress=False, listener=listener
        )
        for listener in (None, apart)
    )
    heard = {key for key in by_own if "clap" in key}
    assert {"single.clap", "pair.clap", "frechet.clap", "ceiling.frechet.clap"} <= heard
    assert all((by_own[key] != by_other[key]) == (key in heard) for key in by_own)


def test_the_standard_error_of_a_share_is_the_binomial_one(
    perfect_pipe, oracle, monkeypatch
):
    monkeypatch.setattr(
        oracle, "hear", lambda waves: torch.zeros(len(waves), dtype=torch.long)
    )
    monkeypatch.setattr(
        metrics,
        "held_out_scenes",
        lambda judge, n, seed, seconds, n_events: Scenes(
            ["a dog barks"] * n,
            noise(n, 10240),
            torch.tensor([[0]] * 3 + [[1]] * (n - 3)).repeat(1, n_events),
        ),
    )
    monkeypatch.setattr(
        metrics,
        "generate",
        lambda pipe, captions, *_, **__: noise(len(captions), 10240),
    )
    results = metrics.evaluate(perfect_pipe, oracle, n=12, progress=False)
    assert results["single.class"] == pytest.approx(0.25)
    assert results["se.single.class"] == pytest.approx(math.sqrt(0.25 * 0.75 / 12))


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
    said = "5 times each question of held-out scenes; 25 steps, guidance 3.5, temperature 0.7, seed 0"
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
