"""What is written is whole or not at all: each writer of minilib meets a real limit on
the size of files.
"""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small_pipe import small_parts

from minilib import AudioLDM2, audio, cli, files
from minilib.data import Corpus
from minilib.folders import Parts
from minilib.model import Model
from minilib.soundworld import SoundWorld
from minilib.tokenizer import Tokenizer
from minilib.training import runs

resource = pytest.importorskip(
    "resource", reason="this system sets no limit on the size of files"
)
LIMIT = 4000  # bytes: less than each writer below wants to write


@contextlib.contextmanager
def files_of_at_most(n_bytes: int):
    """The system's own limit: a write beyond it fails in the middle, as on a full
    disk.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden or not: files with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class WordyConfig:
    text: str = ""


class Wordy(Model):
    """A model of few weights whose config can be long."""

    config_class = WordyConfig

    def __init__(self, config: WordyConfig):
        super().__init__(config)
        self.linear = torch.nn.Linear(2, 2)


def noise(n: int) -> torch.Tensor:
    return 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(n))


def write_tensors(folder: Path, n: int) -> None:
    with files.replacing(folder / "target") as path:
        torch.save({"a": noise(n), "b": torch.arange(n)}, path)  # as checkpoints are


def write_model(folder: Path, n: int) -> None:
    model = small_parts()["vocoder"].to(torch.float16)
    model.save_pretrained(folder / "target", dtype=(torch.float32, torch.float64)[n])


def sound_writer(suffix: str):
    return lambda folder, n: audio.save(folder / f"target{suffix}", noise(n))


WRITERS = {  # each writes its n-th version of `target` into a folder
    "a model": write_model,
    "a model whose weights fit and whose config does not": lambda folder, n: Wordy(
        WordyConfig("x" * n * 2 * LIMIT)
    ).save_pretrained(folder / "target"),
    "a tokenizer": lambda folder, n: Tokenizer.train([("cd cd", "ab ab")[n]]).save(
        folder / "target"
    ),
    "a corpus": lambda folder, n: Corpus(
        np.full((2, 9000 + n), n, dtype=np.int16), ["a", "b"]
    ).save(folder / "target"),
    "a corpus whose waves fit and whose captions do not": lambda folder, n: Corpus(
        np.full((2, 10), n, dtype=np.int16), ["a", n * 2 * LIMIT * "b"]
    ).save(folder / "target"),
    "tensors": write_tensors,
    "a note on a finished stage": lambda folder, n: runs.note_finished(
        folder, "target", {"a": n * 2 * LIMIT * "b"}
    ),
    "a plot": lambda folder, n: cli.plot(
        folder / "target.png", noise(n), f"caption {n}"
    ),
    **{f"a sound, {suffix}": sound_writer(suffix) for suffix in cli.SOUND_FILES},
}  # fmt: skip


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_write_that_fails_in_the_middle_leaves_what_was_there_and_nothing_else(
    tmp_path, write
):
    write(tmp_path, 0)
    before = contents(tmp_path)
    with files_of_at_most(LIMIT), pytest.raises((OSError, ValueError)) as caught:
        write(tmp_path, 1)
    assert contents(tmp_path) == before
    said = cli.sentence(caught.value)
    assert "target" in said and "File too large" in said and "\n" not in said
    write(tmp_path, 1)
    assert contents(tmp_path) != before


LONGEST = ["n" * 255, "ü" * 127 + "n"]  # as many bytes as a name may have


@pytest.mark.parametrize("name", LONGEST, ids=["ascii", "utf-8"])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path, name):
    with files.replacing(tmp_path / name) as path:
        path.write_text("whole")
    with files.replacing_folder(tmp_path / "a" / name) as new:
        (new / "file").touch()
    with files.replacing_entries(tmp_path / "b" / name, [name]) as new:
        (new / name).touch()
    suffixed = name[:-8] + ".wav"
    audio.save(tmp_path / suffixed, noise(0))
    written = {name, suffixed, "a", f"a/{name}", f"a/{name}/file"}
    written |= {"b", f"b/{name}", f"b/{name}/{name}"}
    assert set(contents(tmp_path)) == written


def test_files_that_are_written_at_the_same_time_have_temporary_names_of_their_own(
    tmp_path,
):
    with (
        files.replacing(tmp_path / "a") as first,
        files.replacing(tmp_path / "b") as second,
    ):
        first.write_text("first")
        second.write_text("second")
    assert contents(tmp_path) == {"a": b"first", "b": b"second"}


def test_a_clip_that_does_not_fit_into_the_cache_leaves_no_file(tmp_path):
    world = SoundWorld(cache=tmp_path)
    with (
        files_of_at_most(LIMIT),
        pytest.raises(OSError, match="File too large: .*000.i16"),
    ):
        world[0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_can_not_take_its_place_is_put_back(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    replace = os.replace

    def fails_at_last(source, target):
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_last)
    with (
        pytest.raises(OSError, match="folder"),
        files.replacing_folder(tmp_path / "folder") as new,
    ):
        (new / "new").touch()
    assert contents(tmp_path) == {"folder": None, "folder/old": b""}


def pipeline(n: int) -> AudioLDM2:
    """The n-th version: other weights, and a vocabulary that grows."""
    vocabulary = {"words": [2**20 * n * "x"]}
    parts = Parts(**small_parts(), seconds=0.64, vocabulary=vocabulary)
    parts.text.tokenizer = parts.clap.tokenizer = Tokenizer.train(["ab ab"])
    for part in parts.models.values() if n else ():
        part.load_state_dict(
            {name: torch.zeros_like(x) for name, x in part.state_dict().items()}
        )
    return AudioLDM2(parts)


def test_of_a_pipeline_that_does_not_fit_no_part_takes_the_place_of_an_older_one(
    tmp_path,
):
    pipeline(0).save_pretrained(tmp_path)
    (tmp_path / "train.log").write_text("another's")
    before = contents(tmp_path)
    # each part fits, the vocabulary does not
    assert max(len(x or b"") for x in before.values()) < 2**20
    with (
        files_of_at_most(2**20),
        pytest.raises(OSError, match=f"File too large: '{tmp_path}'"),
    ):
        pipeline(1).save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    with files_of_at_most(2**20), pytest.raises(OSError, match="File too large"):
        pipeline(1).save_pretrained(tmp_path / "a" / "b")
    assert contents(tmp_path) == before
    pipeline(1).save_pretrained(tmp_path)
    after = contents(tmp_path)
    assert after.keys() == before.keys() and after["train.log"] == before["train.log"]
    assert all(
        after[f"{name}/model.safetensors"] != before[f"{name}/model.safetensors"]
        for name in small_parts()
    )


def test_what_an_older_pipeline_had_alone_goes_with_it(tmp_path):
    pipeline(0).save_pretrained(tmp_path)
    (tmp_path / "clap_tokenizer").mkdir()
    pipe = pipeline(1)
    pipe.audiomae = None
    pipe.save_pretrained(tmp_path)
    assert (
        not (tmp_path / "clap_tokenizer").exists()
        and not (tmp_path / "audiomae").exists()
    )
    assert (
        AudioLDM2.from_pretrained(tmp_path, device="cpu").vocabulary == pipe.vocabulary
    )


@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_entries_that_can_not_take_their_places_are_put_back(
    tmp_path, monkeypatch, failing
):
    for name in "acd":
        (tmp_path / name).write_text(f"old {name}")
    replace = os.replace

    def fails_once(source, target):
        if Path(source).parent.name == "new" and Path(source).name == failing:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with (
        pytest.raises(OSError, match="error"),
        files.replacing_entries(tmp_path, ["d"]) as new,
    ):
        for name in "abc":
            (new / name).write_text(f"new {name}")
    assert contents(tmp_path) == {name: f"old {name}".encode() for name in "acd"}
    monkeypatch.undo()
    with files.replacing_entries(tmp_path, ["d"]) as new:
        (new / "a").write_text("new a")
    assert contents(tmp_path) == {"a": b"new a", "c": b"old c"}


def test_errors_that_have_nothing_to_do_with_writing_come_through(tmp_path):
    for replacing in (
        files.replacing,
        files.replacing_folder,
        lambda path: files.replacing_entries(path, []),
    ):
        with pytest.raises(ZeroDivisionError), replacing(tmp_path / "target"):
            raise ZeroDivisionError
        with pytest.raises(FileNotFoundError), replacing(tmp_path / "target"):
            (tmp_path / "nowhere" / "file").write_text("")
    with (
        pytest.raises(ZeroDivisionError),
        files.replacing_folder(tmp_path / "a" / "b" / "target"),
    ):
        raise ZeroDivisionError
    assert contents(tmp_path) == {}


def test_the_systems_reason_is_found_where_libraries_hide_it(tmp_path):
    path = tmp_path / "target"
    told = files.not_written(
        path, Exception("Error while serializing: I/O error: x (os error 28)")
    )
    assert cli.sentence(told) == f"{path}: No space left on device" and cli.is_full(
        told
    )
    cut_short = OSError("9000 requested and 4000 written")
    with files_of_at_most(LIMIT):
        assert cli.is_full(files.not_written(path, cut_short))
    assert (
        str(files.not_written(path, cut_short))
        == f"{path} can't be written: {cut_short}"
    )
    assert files.not_written(path, RuntimeError("CUDA error")) is None


# --------------------------------------------------------------------------------------
# On the command line


def run(capsys, *argv: str) -> tuple[int, str]:
    """Exit code and last sentence of a command."""
    code = cli.main(argv)
    # a bar stands before it
    return code, re.sub(
        r".*(?=minilib: )", "", capsys.readouterr().err.strip(), flags=re.S
    )


@pytest.fixture
def here(tmp_path, tiny_pipe_folder, monkeypatch) -> Path:
    """An empty working folder; the small pipeline stands in the place of the weights
    that ship.
    """
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "tiny").symlink_to(tiny_pipe_folder)
    (folder := tmp_path / "here").mkdir()
    monkeypatch.setattr(cli, "DATA", tmp_path / "data")
    monkeypatch.chdir(folder)
    return folder


def test_generate_keeps_the_old_sound_where_the_new_one_does_not_fit(capsys, here):
    (here / "sound.wav").write_bytes(b"old")
    with files_of_at_most(LIMIT):
        code, said = run(capsys, "generate", "a dog barks", "--steps", "1")
    assert (
        code == 2
        and said
        == "minilib: path must be writable; 'sound.wav' is not (File too large)"
    )
    assert contents(here) == {"sound.wav": b"old"}


def test_convert_leaves_no_half_of_a_pipeline(capsys, here, tiny_pipe, monkeypatch):
    from minilib.audioldm2 import AudioLDM2
    from minilib.convert import released

    monkeypatch.setattr(released, "is_released", lambda folder: True)
    monkeypatch.setattr(AudioLDM2, "from_pretrained", lambda *args, **kwargs: tiny_pipe)
    largest = max(
        len(content or b"")
        for content in contents(cli.DATA / "weights" / "tiny").values()
    )
    with files_of_at_most(largest):  # float32 now: some parts fit, others don't
        code, said = run(capsys, "convert", str(cli.DATA / "weights" / "tiny"), "out")
    assert code == 2 and said == "minilib: out: File too large"
    assert contents(here) == {}


def test_training_says_how_to_go_on_and_goes_on(capsys, here, monkeypatch):
    monkeypatch.delenv("MINILIB_REALAUDIO", raising=False)
    (here / "sounds").mkdir()
    audio.save(here / "sounds" / "a.wav", noise(0))
    (here / "sounds" / "metadata.csv").write_text(
        "file_name,caption\na.wav,a bell rings\n"
    )
    train = ("train", "text", "--data", "sounds", "--out", "out", "--steps")
    assert run(capsys, *train, "1")[0] == 0
    before = contents(here)
    with files_of_at_most(100_000):
        code, said = run(capsys, *train, "2")
    go_on = (
        "minilib train text --out out --preset tiny --data sounds --steps 2 --seed 0"
    )
    go_on += " --resume"
    assert code == 2
    full = "out/checkpoints/text.pt: File too large"
    assert said == f"minilib: {full}; stopped; to continue, run: {go_on}"
    after = contents(here)
    assert after.pop("out/train.log").startswith(before.pop("out/train.log"))
    before.pop("out/finished/text.json")  # what is trained anew is not finished
    assert after == before
    assert run(capsys, *train, "2", "--resume")[0] == 0
    assert (
        json.loads((here / "out" / "finished" / "text.json").read_text())["steps"] == 2
    )


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    out = tmp_path / "run"
    with files.alone(out):
        with pytest.raises(ValueError, match="another process is training there"):
            with files.alone(out):
                pass
        (out / "log").write_text("made", encoding="utf-8")
    with files.alone(out):
        assert (out / ".in-use").exists()
    assert [path.name for path in out.iterdir()] == ["log"]


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path):
    with pytest.raises(ValueError, match="no"), files.alone(tmp_path / "runs" / "a"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
