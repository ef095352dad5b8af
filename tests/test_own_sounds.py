"""Sounds of one's own: a folder with classes and parts trains a judge, and what it
never heard is asked for.
"""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import own_sounds
import pytest
import soundfile
import torch

from minilib import audio, classifier, cli, metrics, training
from minilib.audioldm2 import AudioLDM2
from minilib.data import AudioFolder, Corpus, of_part
from minilib.training import RUNS, clips

SECONDS = 0.64
N = round(SECONDS * audio.SAMPLE_RATE)


def sound(name: str, rng: np.random.Generator) -> np.ndarray:
    """A tone or a hiss, a little shorter than a clip."""
    n = int(N * rng.uniform(0.5, 0.9))
    tone = np.sin(2 * np.pi * rng.uniform(800, 1200) * np.arange(n) / audio.SAMPLE_RATE)
    return rng.uniform(0.1, 0.5) * (tone if name == "tone" else rng.uniform(-1, 1, n))


@pytest.fixture
def folder(tmp_path):
    """20 tones and 20 hisses to learn from, 4 of each to be asked for, 2 others of a
    third class.
    """
    rng, lines = np.random.default_rng(0), ["file_name,caption,class,part"]
    (tmp_path / "own").mkdir()
    for part, n in (("train", 20), ("test", 4)):
        for name in ("tone", "hiss"):
            lines += [
                f"{part}-{name}-{i}.wav,a {name} sounds,{name},{part}" for i in range(n)
            ]
    lines += [
        f"rare-{part}.wav,something rare,rare,{part}" for part in ("train", "test")
    ]
    for line in lines[1:]:
        file_name, _, name, _ = line.split(",")
        soundfile.write(
            tmp_path / "own" / file_name, sound(name, rng), audio.SAMPLE_RATE
        )
    (tmp_path / "own" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "own"


@pytest.fixture
def short_run(monkeypatch):
    recipe = training.Recipe(steps=24, batch_size=16, lr=2e-3, warmup=4)
    run = training.runs.Run(
        n_clips=8, seconds=SECONDS, recipes={**RUNS["tiny"].recipes, "judge": recipe}
    )
    monkeypatch.setitem(RUNS, "tiny", run)


def test_a_run_keeps_to_the_part_that_is_for_training(folder, tmp_path):
    assert len(of_part(folder, "train")) == 41 and len(of_part(folder, "test")) == 9
    data = training.runs.prepare_data(RUNS["tiny"], tmp_path / "out", folder, seed=0)
    assert len(data.corpus) == 41 and {row["part"] for row in data.folder.rows} == {
        "train"
    }
    table = (folder / "metadata.csv").read_text().replace("part", "set")
    (folder / "metadata.csv").write_text(table)
    assert len(of_part(folder, "train")) == 50  # where the table tells no parts, all


def test_a_tokenizer_stays_with_the_encoders_that_read_with_it(
    folder, tmp_path, tiny_pipe_folder
):
    out = tmp_path / "run"
    shutil.copytree(tiny_pipe_folder, out)
    (out / "vocabulary.json").write_text('{"words": ["old"]}')
    tokenizer = (out / "tokenizer.json").read_bytes()
    for names, same, words in (
        (["vocoder", "judge"], True, "old"),  # neither reads captions
        (["clap", "gpt"], True, "hiss"),  # text stays
        (["text", "clap"], False, "hiss"),
    ):
        data = training.runs.prepare_data(
            RUNS["tiny"], out, folder, seed=0, names=names
        )
        assert ((out / "tokenizer.json").read_bytes() == tokenizer) == same, names
        assert data.tokenizer.backend.to_str() == (out / "tokenizer.json").read_text()
        assert words in (out / "vocabulary.json").read_text()


def test_a_judge_of_recordings_scores_what_it_never_heard(
    folder, tmp_path, short_run, tiny_pipe_folder, capsys, monkeypatch
):
    training.train_stages("judge", out=tmp_path / "run", data=folder, progress=False)
    judge = classifier.Classifier.from_pretrained(
        tmp_path / "run" / "judge", dtype=torch.float32
    )
    assert judge.config.classes == ("hiss", "tone")  # of a third one there are too few
    shutil.copytree(tiny_pipe_folder, tmp_path / "run", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    line = [
        "evaluate",
        "--data",
        str(folder),
        "--weights",
        "run",
        "--n",
        "12",
        "--steps",
        "1",
    ]
    assert cli.main(line) == 0
    told = capsys.readouterr().out
    assert (
        "12 recordings held out" in told
        and "frechet" not in told
        and "round trip: clean recordings" in told
    )
    row = next(
        line.split() for line in told.splitlines() if line.startswith("single.class")
    )
    assert row[1] == "0.500" and row[-1] == "1.000"  # chance and ceiling


def test_recordings_are_drawn_by_class_each_at_another_level_and_place(folder):
    sounds = clips.Recordings(of_part(folder, "train"), SECONDS)
    waves, labels = sounds.draw(200, torch.Generator().manual_seed(0))
    assert waves.shape == (200, N) and waves.abs().max() <= 1.0
    assert 70 < labels.sum() < 130
    levels = waves.square().mean(dim=1).log10() * 10
    assert levels.max() - levels.min() > 12
    assert len(torch.unique(waves.abs().cummax(dim=1).indices[:, -1])) > 150
    assert (waves == 0).float().mean() < 0.01  # digital silence gives nothing away


def test_what_was_asked_for_stands_beside_the_recording(folder):
    judge = classifier.Classifier(classifier.ClassifierConfig(classes=("hiss", "tone")))
    scenes = metrics.recorded_scenes(
        judge, AudioFolder(folder, part="test"), 30, 0, SECONDS
    )
    names = [judge.config.classes[label] for label in scenes.labels[:, 0]]
    assert scenes.captions == [f"a {name} sounds" for name in names] and set(names) == {
        "hiss",
        "tone",
    }
    crossings = (
        (scenes.waves[:, 1:].sign() != scenes.waves[:, :-1].sign()).float().mean(dim=1)
    )
    assert all(
        (rate > 0.2) == (name == "hiss")
        for rate, name in zip(crossings, names, strict=True)
    )


def test_what_no_judge_can_learn_or_tell_is_said_in_a_sentence(
    folder, tmp_path, capsys
):
    judge = classifier.Classifier(classifier.ClassifierConfig(classes=("dog", "tone")))
    with pytest.raises(
        ValueError, match="holds too few of the classes that the judge knows: dog, tone"
    ):
        metrics.recorded_scenes(judge, AudioFolder(folder, part="test"), 4, 0, SECONDS)
    with pytest.raises(ValueError, match="must hold 20 or more recordings in each"):
        clips.Recordings(AudioFolder(folder, part="test"), SECONDS)
    line = ["evaluate", "--data", str(folder), "--weights", str(tmp_path)]
    assert cli.main(line) == 2
    assert (
        f"train one with: minilib train judge --data {folder} --out {tmp_path}"
        in capsys.readouterr().err
    )
    # of those that ship no judge is to be trained
    assert cli.main(["evaluate", "--data", str(folder)]) == 2
    assert (
        f"--data needs --weights: the folder of a pipeline that was trained on {folder}"
        in capsys.readouterr().err
    )
    table = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(table.replace("class", "kind"))
    with pytest.raises(
        ValueError, match="has no column 'class', from which a judge learns"
    ):
        clips.Recordings(AudioFolder(folder), SECONDS)
    (folder / "metadata.csv").write_text(table.replace("part", "set"))
    assert cli.main(line) == 2
    assert "has no column 'part' in which to find 'test'" in capsys.readouterr().err


def test_the_page_of_own_sounds_tells_what_evaluate_finds(
    folder, tmp_path, tiny_pipe_folder
):
    run, lines = tmp_path / "run", (folder / "metadata.csv").read_text().splitlines()
    licences = {
        "class": "licence",
        "tone": "CC BY 4.0",
        "hiss": "CC BY-SA 4.0",
        "rare": "CC0 1.0",
    }
    lines = [f"{line},{licences[line.split(',')[2]]}" for line in lines]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)  # any judge will do
    config = classifier.ClassifierConfig(classes=("hiss", "tone"))
    classifier.Classifier(config).save_pretrained(run / "judge")
    for k, name in enumerate(training.ALL_STAGES):
        training.runs.note_finished(
            run, name, {"steps": 10 + k, "seconds": 90 + 60 * k}
        )
    shutil.copytree(tiny_pipe_folder, run, dirs_exist_ok=True)

    page = own_sounds.page(run, folder, minutes=31.4, memory=2.5, n=12, steps=1)
    pipe = AudioLDM2.from_pretrained(run)
    judge = classifier.Classifier.from_pretrained(run / "judge", dtype=torch.float32)
    asked, how = AudioFolder(folder, part="test"), pipe.sampling.changed(steps=1)
    found = metrics.evaluate_recordings(pipe, judge, asked, how, n=12, progress=False)
    assert metrics.report(found, recorded=True) in page
    assert "41 recordings in 3 different captions, two cores, 31 minutes" in " ".join(
        page.split()
    )
    k = training.ALL_STAGES.index("gpt")
    assert (
        f"| `gpt` | {10 + k} | {(90 + 60 * k) / 60:.0f} |" in page and "2.5 GiB" in page
    )
    rows = re.findall(r"\| (tone|hiss) \| (\d+) \| (\S+) \| (\S+) \| (\S+) \|", page)
    assert {name for name, *_ in rows} == {"tone", "hiss"} and sum(
        int(n) for _, n, *_ in rows
    ) == 12
    for column, key in (
        (2, "single.class"),
        (3, "roundtrip.single.class"),
        (4, "ceiling.single.class"),
    ):
        mean = sum(int(row[1]) * float(row[column]) for row in rows) / 12
        assert mean == pytest.approx(found[key], abs=0.01)
    # of open licence
    assert (
        page.count('class="sound-card"') == 1
        and "Mel spectrogram of: a tone sounds" in page
    )
    assert not re.search(r"\{\w+\}", page)


def test_the_nearest_piece_is_the_sound_itself_at_any_level(folder):
    corpus = Corpus.from_folder(of_part(folder, "train"), SECONDS, progress=False)
    pieces = corpus.wave(range(len(corpus)))
    assert own_sounds.nearest(0.1 * pieces[:5], pieces) < 0.01
    assert 1 < own_sounds.nearest(pieces[:5], pieces[5:]) < 60


def test_each_class_has_its_own_shares_the_best_followed_first():
    hearer = SimpleNamespace(
        config=SimpleNamespace(classes=("hiss", "tone", "rare")),
        hear=lambda waves: waves[:, 0].long(),
    )
    asked = torch.tensor([[0], [0], [1], [1], [1]])
    scenes = metrics.Scenes(["?"] * 5, torch.zeros(5, 8), asked)
    sounds = lambda *heard_as: torch.tensor(heard_as)[:, None].expand(-1, 8).float()
    rows = own_sounds.by_class(
        hearer, scenes, sounds(0, 1, 1, 1, 1), sounds(0, 0, 0, 0, 1)
    )
    assert rows == [("tone", 3, [1.0, pytest.approx(1 / 3)]), ("hiss", 2, [0.5, 1.0])]


def test_a_silent_recording_is_named_and_left_out_and_training_goes_on(
    folder, tmp_path, short_run
):
    other = shutil.copytree(folder, tmp_path / "with-silence")
    name = AudioFolder(other).rows[0].file
    soundfile.write(other / name, np.zeros(8000), audio.SAMPLE_RATE)
    with pytest.warns(UserWarning, match="silence"):
        training.train_stages(
            "clap", out=tmp_path / "run", data=other, steps=1, progress=False
        )
    assert (tmp_path / "run" / "clap" / "config.json").is_file()
