"""Watching a run: what a tracker is told, and that a watched run is the same run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import tracking
from small_world import small_world, weights

from minilib import cli, folders
from minilib.audioldm2 import AudioLDM2
from minilib.training import TrainingData, curves, runs, train_stages, watching
from minilib.training.watching import Watch, check_watched

ROOT = Path(__file__).parents[1]
QUIET = {"preset": "small", "progress": False}


@pytest.fixture(scope="module")
def small() -> Iterator[TrainingData]:
    with small_world() as data:
        yield data


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    """The folder of a run, as far as gpt and the vocoder."""
    out = tmp_path_factory.mktemp("runs") / "run"
    names = ["vae", "vocoder", "audiomae", "clap", "text", "gpt"]
    return train_stages(names, out=out, steps=1, **QUIET)


class Recorder(tracking.GeneralTracker):
    """A tracker that keeps what it is told, in TensorBoard's place."""

    name, requires_logging_directory = "tensorboard", True
    told, heard, finished = [], [], 0

    def __init__(self, run_name, logging_dir, **given):
        super().__init__()
        type(self).told, type(self).heard, type(self).finished = [], [], 0

    @property
    def tracker(self):
        return self

    def start(self):
        pass

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **given):
        type(self).told.append((step, values))

    def add_audio(self, tag, wave, step, rate):
        type(self).heard.append((step, tag, wave, rate))

    def flush(self):
        pass

    def finish(self):
        type(self).finished += 1


@pytest.fixture
def recorder(monkeypatch) -> type[Recorder]:
    return record(monkeypatch)


def record(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Put the recorder in TensorBoard's place."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    known = [*tracking._available_trackers, tracking.LoggerType.TENSORBOARD]
    monkeypatch.setattr(tracking, "_available_trackers", known)
    found = SimpleNamespace(origin="here")
    monkeypatch.setattr(watching, "find_spec", lambda name: found)
    return Recorder


def again(trained: Path, folder: Path) -> Path:
    return Path(shutil.copytree(trained, folder / "run"))


# --------------------------------------------------------------------------------------
# What is told


def test_a_watched_run_is_the_same_run(trained, tmp_path, recorder):
    ends = []
    for name, how in (
        ("still", {}),
        ("watched", {"log_with": "tensorboard", "sound_every": 1}),
    ):
        out = again(trained, tmp_path / name)
        torch.manual_seed(3)
        train_stages(["ldm", "joint"], out=out, steps=3, **QUIET, **how)
        parts = (folders.load_part(out, x) for x in ("unet", "gpt", "loudness"))
        ends.append((torch.cat([weights(part) for part in parts]), torch.rand(4)))
    assert all(torch.equal(*both) for both in zip(*ends))
    assert recorder.heard and recorder.finished == 1


def test_losses_and_learning_rate_of_each_stage_are_told(
    trained, tmp_path, recorder, monkeypatch
):
    monkeypatch.setattr(watching, "EVERY", 2)
    out = again(trained, tmp_path)
    train_stages(["clap", "text"], out=out, steps=5, log_with="tensorboard", **QUIET)
    assert recorder.told[0] == (0, {"settings": "preset small, seed 0"})
    assert [step for step, _ in recorder.told[1:]] == [2, 4, 5] * 2
    assert [next(iter(x)).split("/")[0] for _, x in recorder.told[1:]] == [
        *["clap"] * 3,
        *["text"] * 3,
    ]
    last = curves.read_log(out)["text"][-1]
    told = recorder.told[-1][1]
    assert last.step == 5
    assert told["text/loss"] == pytest.approx(last.losses["loss"], abs=1e-4)
    assert 0 < told["text/learning rate"] < 3e-3
    assert recorder.heard == []


def test_the_same_captions_sound_every_n_steps_as_the_pipeline_is(
    trained, tmp_path, recorder, monkeypatch
):
    out, seen = again(trained, tmp_path), []
    noted = lambda unet: seen.append(weights(unet)) or {"unet": unet}
    monkeypatch.setitem(watching.SOUNDED, "ldm", noted)
    how = {"log_with": "tensorboard", "sound_every": 2}
    train_stages("ldm", out=out, steps=5, **QUIET, **how)
    # the average of the weights, which is what the stage writes
    saved = weights(folders.load_part(out, "unet", torch.float32))
    assert torch.equal(seen[-1].half().double(), saved)
    assert [step for step, *_ in recorder.heard] == [2] * 4 + [4] * 4 + [5] * 4
    tags = [tag for _, tag, *_ in recorder.heard]
    assert tags[:4] == tags[4:8] == tags[8:] and len(set(tags)) == 4
    assert tags[0].startswith("ldm/sound 1: ")
    first, last = (torch.cat([x[2] for x in recorder.heard[i:][:4]]) for i in (0, 8))
    assert first.isfinite().all() and not torch.equal(first, last)
    assert {x[3] for x in recorder.heard} == {16000}
    # the last ones are those of the pipeline that was written, in half precision
    captions = [tag.split(": ", 1)[1] for tag in tags[8:]]
    pipe = AudioLDM2.from_pretrained(out, device="cpu")
    waves = pipe(captions, seed=[0, 1, 2, 3], progress=False)
    assert (waves - last).norm() < 0.05 * waves.norm()
    assert (waves - first).norm() > 0.05 * waves.norm()


def test_weights_that_speak_are_told_the_words_of_the_clips():
    folder = ROOT / "data" / "weights" / "speech"
    names = [x for x in folders.CLASSES if folders.part_folder(folder, x).is_dir()]
    load = lambda name: folders.load_part(folder, name, torch.float32)
    frozen = {name: load(name) for name in names if name != "unet"}
    corpus, words = Clips(["a man speaks slowly in a low voice"]), ["river"]
    stage = SimpleNamespace(name="utter")
    stage.data = SimpleNamespace(corpus=corpus, transcriptions=words)
    cpu = SimpleNamespace(device=torch.device("cpu"))
    loop = SimpleNamespace(model=load("unet"), average={}, accelerator=cpu)
    captions, waves = watching.sounds(stage, loop, frozen, folder)
    assert captions == corpus.captions and waves.shape == (1, 20480)
    pipe = AudioLDM2.from_pretrained(folder, device="cpu")
    same = pipe(captions, transcription=words, seed=0, progress=False)
    torch.testing.assert_close(waves, same, atol=1e-4, rtol=0)


class Clips:
    def __init__(self, captions):
        self.captions = captions

    def __len__(self):
        return len(self.captions)


TWO = """
import json
import os
import sys
from pathlib import Path

tests, out = sys.argv[1:]
sys.path.insert(0, tests)
import pytest
from small_world import small_world
from test_watching import record

from minilib.training import train_stages

names = ["vae", "vocoder", "audiomae", "clap", "text", "gpt", "ldm"]
with small_world(), pytest.MonkeyPatch.context() as patch:
    recorder = record(patch)
    how = {"log_with": "tensorboard", "sound_every": 1, "progress": False}
    train_stages(names, "small", out, steps=2, **how)
told = [len(recorder.told), len(recorder.heard), recorder.finished]
Path(out, os.environ["RANK"] + ".json").write_text(json.dumps(told))
"""


def test_of_two_processes_the_first_alone_tells(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    line += ["--nproc_per_node", "2", str(tmp_path / "two.py")]
    line += [str(ROOT / "tests"), str(tmp_path / "run")]
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    env = {**os.environ, **own, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = lambda name: json.loads((tmp_path / "run" / name).read_text())
    assert read("0.json") == [1 + 7, 2 * 4, 1] and read("1.json") == [0, 0, 0]
    assert (tmp_path / "run" / "loss.png").is_file()


def test_a_run_ends_with_its_curves_as_a_picture(trained):
    assert (trained / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_wandb_is_told_steps_of_its_own_for_each_stage(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("Audio = lambda *a, **b: (a, b)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    watch, told = Watch(tmp_path, "wandb", 5), []
    watch.accelerator = SimpleNamespace(
        log=lambda values, step=None: told.append((step, values)),
        get_tracker=lambda name, unwrap: None,
    )
    wave = torch.zeros(2, 8)
    monkeypatch.setattr(watching, "sounds", lambda *a: (["one", "two"], wave))
    watch.frozen = {"vae": None}
    recipe = SimpleNamespace(steps=100, lr=1.0, warmup=1, final_lr=1.0)
    for name in ("ldm", "joint"):
        stage = SimpleNamespace(name=name)
        watch.step(stage, SimpleNamespace(done=10, recipe=recipe, losses={"loss": 2.0}))
    assert [step for step, _ in told] == [None] * 6
    assert told[0][1] == {"ldm/loss": 2.0, "ldm/learning rate": 1.0, "ldm/step": 10}
    heard, caption = told[1][1]["ldm/sound 1"]
    assert heard[1] == 16000 and caption == {"caption": "one"}
    assert told[3][1]["joint/step"] == 10


def test_tensorboard_reads_what_was_written(trained, tmp_path):
    if "tensorboard" not in os.environ.get("MINILIB_REQUIRE", "").split(","):
        pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = again(trained, tmp_path)
    how = {"log_with": "tensorboard", "sound_every": 3}
    train_stages("ldm", out=out, steps=3, **QUIET, **how)
    found = EventAccumulator(str(out / "tensorboard"), {"audio": 0}).Reload()
    assert [x.step for x in found.Scalars("ldm/loss")] == [3]
    tags = found.Tags()["audio"]
    assert len(tags) == 4 and found.Audio(tags[0])[0].sample_rate == 16000


# --------------------------------------------------------------------------------------
# Bad input: one sentence


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("comet", None), 'log_with must be "tensorboard" or "wandb", not'),
        ((None, 5), "log_with must say where the sounds go, tensorboard or wandb"),
        (("tensorboard", 0), "sound_every must be a whole number, 1 or more, not 0"),
    ],
)
def test_what_can_not_be_watched_is_one_sentence(given, said, recorder, tmp_path):
    with pytest.raises(ValueError) as error:
        log_with, sound_every = given
        train_stages(
            "all", out=tmp_path / "x", log_with=log_with, sound_every=sound_every
        )
    assert said in str(error.value) and not (tmp_path / "x").exists()


def test_stages_before_which_there_is_no_pipeline_can_not_sound(recorder):
    with pytest.raises(ValueError, match="sound during ldm, utter, joint, adversarial"):
        check_watched("tensorboard", 5, ["vae", "gpt"])
    check_watched("tensorboard", 5, ["vae", "ldm"])


def test_a_tracker_that_is_not_installed_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for found in (None, SimpleNamespace(origin=None)):
        monkeypatch.setattr(watching, "find_spec", lambda name, found=found: found)
        assert cli.main(["train", "all", "--log-with", "wandb"]) == 2
        assert capsys.readouterr().err == (
            "minilib: wandb is not installed: pip install wandb\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_refuses_is_one_sentence(trained, tmp_path, recorder):
    def refuse(self):
        raise RuntimeError("api_key not configured")

    out = again(trained, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "start", refuse)
        with pytest.raises(OSError, match="tensorboard could not begin: api_key not"):
            train_stages("text", out=out, steps=1, log_with="tensorboard", **QUIET)


def test_a_missing_part_is_named_before_the_stage_begins(trained, tmp_path, recorder):
    out = again(trained, tmp_path)
    shutil.rmtree(out / "vocoder")
    how = {"log_with": "tensorboard", "sound_every": 2}
    with pytest.raises(FileNotFoundError, match="vocoder"):
        train_stages("ldm", out=out, steps=3, **QUIET, **how)
    assert "ldm" not in curves.read_log(out) and not runs.finished(out, "ldm")
