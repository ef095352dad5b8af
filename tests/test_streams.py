"""Data sets larger than memory: every source, the same clips again, bad rows."""

import copy
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import small_world
import soundfile
import torch

from minilib import cli, readers, streams
from minilib.training import RUNS, train_stages
from minilib.training.checkpoints import read_ahead

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

RATE = 22050
WORDS = ("bell", "dog", "rain", "drum")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def sound(i: int, seconds: float = 2.0) -> np.ndarray:
    """A tone whose pitch tells i; it gets louder, which tells the place."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (np.sin(2 * np.pi * (300 + 100 * i) * t) * t / (seconds * 2)).astype("f")


def pitch(wave: torch.Tensor) -> int:
    """Which sound a clip of a second is cut from."""
    return round((int(torch.fft.rfft(wave).abs().argmax()) - 300) / 100)


def write_sounds(folder: Path, n: int = 4) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        soundfile.write(folder / f"{i}.wav", sound(i), RATE)
    return [f"{i}.wav" for i in range(n)]


def big(folder: Path, n: int = 20_000, **changed: dict[int, str]) -> Path:
    """A folder whose table has n rows of four files; some cells are changed."""
    files = write_sounds(folder)
    columns = {
        "file_name": [files[i % 4] for i in range(n)],
        "caption": [f"a {WORDS[i % 4]}" for i in range(n)],
    }
    for name, cells in changed.items():
        for row, cell in cells.items():
            columns[name][row] = cell
    parquet.write_table(pyarrow.table(columns), folder / "metadata.parquet")
    return folder


def of_bytes(n: int) -> dict[str, list]:
    """Columns with the sounds themselves, as data sets of the hub have them."""
    cells = []
    for i in range(n):
        file = BytesIO()
        soundfile.write(file, sound(i % 4), RATE, format="FLAC")
        cells.append({"bytes": file.getvalue(), "path": f"{i}.flac"})
    return {"audio": cells, "text": [f"a {WORDS[i % 4]}" for i in range(n)]}


def as_csv(where: Path) -> Path:
    files = write_sounds(where)
    rows = [f'{files[i % 4]};"a {WORDS[i % 4]}"' for i in range(10_001)]
    (where / "metadata.csv").write_text("file_name;caption\n" + "\n".join(rows) + "\n")
    return where


def as_jsonl(where: Path) -> Path:
    files = write_sounds(where)
    row = lambda i: {"file_name": files[i % 4], "caption": f"a {WORDS[i % 4]}"}
    lines = "".join(json.dumps(row(i)) + "\n" for i in range(10_001))
    (where / "metadata.jsonl").write_text(lines)
    return where


def as_parquet(where: Path) -> Path:
    where.mkdir()
    for k, part in enumerate(("train", "test")):
        rows = datasets.Dataset.from_dict(of_bytes(8 if k == 0 else 3))
        rows = rows.cast_column("audio", datasets.Audio())  # as the hub has them
        rows.to_parquet(where / f"{part}-00000-of-00001.parquet")
    return where


def as_arrow(where: Path) -> Path:
    rows = datasets.Dataset.from_dict(of_bytes(8))
    rows = rows.cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"train": rows, "test": rows.take(2)}).save_to_disk(where)
    return where


def as_arrow_alone(where: Path) -> Path:
    datasets.Dataset.from_dict(of_bytes(8)).save_to_disk(where)
    return where


def as_tar(where: Path) -> Path:
    where.mkdir()
    columns = of_bytes(8)
    with tarfile.open(where / "train-000.tar", "w") as tar:
        for i in range(8):
            said = json.dumps({"caption": columns["text"][i]}).encode()
            pieces = {"flac": columns["audio"][i]["bytes"], "json": said}
            for suffix, content in pieces.items():
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    return where / "train-000.tar"


SOURCES = {
    "parquet table": lambda where: big(where),
    **{"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet, "tar": as_tar},
    **{"saved splits": as_arrow, "saved": as_arrow_alone},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_sounds_with_their_captions(source, tmp_path):
    where = SOURCES[source](tmp_path / "set")
    assert streams.is_stream(where)
    stream = streams.open_stream(where, 1.0, workers=0)
    indices = stream.settled(stream.drawn(6, torch.Generator().manual_seed(1)))
    waves = stream.wave(indices)
    assert waves.shape == (6, 16000) and waves.abs().max() <= 1
    heard = [f"a {WORDS[pitch(wave)]}" for wave in waves]
    assert heard == [stream.captions[i] for i in indices.tolist()]
    assert len(set(heard)) > 1
    assert not stream.faults().faults
    assert len(stream) in (8, 10_001, 20_000)


def test_a_place_is_where_the_clip_is_cut(tmp_path):
    stream = streams.open_stream(big(tmp_path), 1.0, workers=0)
    places = torch.tensor([0, 512, streams.PLACES - 1])
    loud = stream.wave(2 + len(stream) * places).abs().amax(dim=1)
    # the sound of two seconds swells from 0 to 1/2; a clip lasts one second
    assert torch.allclose(loud, torch.tensor([0.25, 0.375, 0.5]), atol=0.01)


def test_workers_read_the_same_clips_as_one_process(tmp_path):
    where = big(tmp_path)
    alone = streams.open_stream(where, 1.0, workers=0)
    helped = streams.open_stream(where, 1.0, workers=2)
    indices = alone.drawn(100, torch.Generator().manual_seed(3))
    both = [helped.readers.idle.get(timeout=60) for _ in range(2)]  # they have started
    for process in both:
        helped.readers.idle.put(process)
    helped.ahead(indices)
    assert torch.equal(alone.wave(indices), helped.wave(indices))
    assert len(helped._asked) <= 400
    helped.close()


def test_a_killed_reader_is_replaced(tmp_path):
    helped = streams.open_stream(big(tmp_path), 1.0, workers=1)
    first = helped.wave([5])
    process = helped.readers.idle.get(timeout=60)
    helped.readers.idle.put(process)
    process.send_signal(signal.SIGKILL)
    helped._asked.clear()
    assert torch.equal(helped.wave([5]), first)
    assert helped.readers.started[0] is not process
    helped.close()


def test_a_sound_that_ends_its_reader_is_one_sentence(tmp_path):
    helped = streams.open_stream(big(tmp_path), 1.0, workers=1)

    def dead():
        process = readers._started(helped.n_samples)
        process.kill()
        process.wait()
        helped.readers.started.append(process)
        helped.readers.idle.put(process)

    helped.readers.idle.get(timeout=60)
    helped.readers._start = dead
    dead()
    with pytest.raises(ValueError, match="that reads .*wav ends without an answer"):
        helped.readers.read(str(tmp_path / "0.wav"), 0.0).result()
    helped.close()


def test_readers_end_with_the_process_that_is_killed(tmp_path):
    where = big(tmp_path / "set")
    code = (
        "import sys, time; from minilib import streams\n"
        f"s = streams.open_stream({str(where)!r}, 1.0, workers=2)\n"
        "some = [s.readers.idle.get(timeout=60) for _ in range(2)]\n"
        "print(*[p.pid for p in some], flush=True)\n"
        "time.sleep(60)"
    )
    home = {**os.environ, "HF_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=home
    ) as main:
        pids = [int(pid) for pid in main.stdout.readline().split()]
        assert pids and all(Path(f"/proc/{pid}").exists() for pid in pids)
        main.kill()
    until = time.monotonic() + 20
    while any(running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_of_many_rows_a_bad_one_is_skipped_counted_and_named(tmp_path):
    where = big(tmp_path, file_name={1: "none.wav", 2: "text.wav"}, caption={5: ""})
    (where / "text.wav").write_text("no sound")
    stream = streams.open_stream(where, 1.0, workers=0)
    with pytest.warns(UserWarning, match="row 2 is skipped.*'none.wav' is missing"):
        settled = stream.settled([0, 1, 2, 4, 5])
    assert settled.tolist() == [0, 3, 3, 4, 6]
    assert [pitch(wave) for wave in stream.wave(settled)] == [0, 3, 3, 0, 2]
    told = stream.report()
    assert told.startswith("3 of 20000 rows") and "text.wav' is not audio" in told
    assert "row 6: no caption" in told
    # another process, which has not met them, goes to the same rows
    again = streams.open_stream(where, 1.0, workers=0)
    with pytest.warns(UserWarning):
        assert again.settled([5, 2]).tolist() == [6, 3]


def test_of_few_rows_a_bad_one_is_an_error(tmp_path):
    columns = of_bytes(6)
    columns["audio"][4]["bytes"] = b"no sound"
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    stream = streams.open_stream(tmp_path / "x.parquet", 1.0, workers=0)
    with pytest.raises(ValueError, match="x.parquet, row 5: .*is not audio"):
        stream.settled([4])


def test_nothing_but_bad_rows_is_an_error(tmp_path):
    where = big(tmp_path, n=10_001)
    for file in where.glob("*.wav"):
        file.unlink()
    stream = streams.open_stream(where, 1.0, workers=0)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="100 rows .* can't be used, from row 8 on"),
    ):
        stream.settled([7])


BAD = {
    "no source": (lambda x: x / "none.parquet", FileNotFoundError, "there is no"),
    "no folder": (
        lambda x: "none/x.parquet",
        *(FileNotFoundError, "there is no folder or file"),
    ),
    "no captions": (
        lambda x: written(x, {"audio": of_bytes(2)["audio"]}),
        *(ValueError, "none of captions: 'caption'"),
    ),
    "no sounds": (
        lambda x: written(x, {"caption": ["a bell"]}),
        *(ValueError, "none of sounds: 'file_name'"),
    ),
    "no part": (
        lambda x: written(x, {**of_bytes(1), "part": ["test"]}),
        *(ValueError, "no row with part 'train'; it has test"),
    ),
    "no sample": (
        lambda x: tarfile.open(x / "x.tar", "w").close() or x / "x.tar",
        *(ValueError, "x.tar must hold samples of a sound .* and a caption"),
    ),
    "no table": (
        lambda x: (x / "x.parquet").write_bytes(b"PAR1") and x / "x.parquet",
        *(ValueError, "x.parquet' can't be read"),
    ),
}


def written(folder: Path, columns: dict) -> Path:
    parquet.write_table(pyarrow.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_one_sentence(case, tmp_path):
    make, kind, said = BAD[case]
    with pytest.raises(kind, match=said) as error:
        streams.open_stream(make(tmp_path), 1.0, workers=0)
    assert "\n" not in str(error.value) and type(error.value) is kind


def test_without_datasets_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="needs datasets, which is not installed"):
        streams.open_stream(big(tmp_path), 1.0)


def test_a_small_folder_is_no_stream(tmp_path):
    write_sounds(tmp_path / "own")
    (tmp_path / "own" / "metadata.csv").write_text("file_name,caption\n0.wav,a bell\n")
    assert not streams.is_stream(tmp_path / "own")
    assert not streams.is_stream(tmp_path / "none")
    assert streams.is_stream("user/name")


def test_check_looks_at_all_rows(tmp_path, capsys):
    where = big(tmp_path, n=10_001, file_name={7000: "none.wav"})
    assert cli.main(["data", "check", str(where)]) == 1
    told = capsys.readouterr().out
    assert "rows        10001 of 10001" in told and "1 fault:" in told
    assert "row 7001: the file 'none.wav' is missing" in told


# --------------------------------------------------------------------------------------
# Training


@pytest.fixture
def small(monkeypatch):
    small_world.add_small(monkeypatch)
    return monkeypatch


STAGES = ["vae", "audiomae", "clap", "text", "gpt", "ldm", "joint"]


def test_all_stages_train_on_a_stream(small, tmp_path):
    where = big(tmp_path / "set", n=10_001, file_name={i: "none.wav" for i in range(9)})
    out = train_stages(STAGES, "small", tmp_path / "a", where, steps=2, progress=False)
    assert {x.stem for x in (out / "finished").glob("*.json")} == set(STAGES)
    told = json.loads((out / "finished" / "gpt.json").read_text())
    assert told["source"] == "recordings"


@pytest.mark.parametrize("borrows", [(), ("text", "clap")])
def test_the_vocabulary_is_that_of_the_stream(borrows, small, tmp_path):
    small.setitem(RUNS, "small", replace(RUNS["small"], borrows=borrows))
    where = big(tmp_path / "set")
    out = train_stages("vae", "small", tmp_path / "a", where, steps=1, progress=False)
    known = json.loads((out / "vocabulary.json").read_text())
    assert known["words"] == sorted(["a", *WORDS])


def test_a_run_ends_the_processes_that_read_for_it(small, tmp_path):
    where, started = big(tmp_path / "set"), []
    of = readers._started
    small.setattr(readers, "_started", lambda n: started.append(of(n)) or started[-1])
    train_stages("vae", "small", tmp_path / "a", where, steps=1, progress=False)
    assert started and all(x.wait(timeout=60) == 0 for x in started)


@pytest.mark.parametrize("stage", ["vae", "clap"])
def test_resumed_to_the_same_clip(stage, small, tmp_path):
    where, how = big(tmp_path / "set"), {"steps": 5, "progress": False}
    whole = train_stages(stage, "small", tmp_path / "a", where, **how)
    heard = []
    stopped = RUNS["small"].recipes[stage].checkpoint_every
    draw = streams.Stream.drawn

    def stop(self, n, generator):
        if len(heard) == stopped + 3:  # two are drawn ahead
            raise KeyboardInterrupt
        heard.append(generator.initial_seed())
        return draw(self, n, copy.copy(generator))

    with small.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(streams.Stream, "drawn", stop)
        train_stages(stage, "small", tmp_path / "b", where, **how)
    resumed = train_stages(stage, "small", tmp_path / "b", where, resume=True, **how)
    files = [x / stage / "model.safetensors" for x in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_resumed_with_other_rows_is_one_sentence(small, tmp_path):
    where, out = big(tmp_path / "set"), tmp_path / "a"
    train_stages("vae", "small", out, where, steps=1, progress=False)
    other = big(tmp_path / "other", n=20_001)
    with pytest.raises(ValueError, match="other clips or captions"):
        train_stages("vae", "small", out, other, steps=1, resume=True, progress=False)


def test_pictures_and_judges_refuse_a_stream(small, tmp_path):
    with pytest.raises(ValueError, match="stage judge trains on a folder of at most"):
        train_stages("judge", "small", tmp_path / "a", big(tmp_path / "set"), steps=1)


def test_reading_ahead_asks_for_the_clips_of_the_next_step(small, tmp_path):
    from minilib.training.clips import TrainingData
    from minilib.training.loop import step_generator
    from minilib.training.stages import VAEStage

    stream = streams.open_stream(big(tmp_path), small_world.SECONDS, workers=0)
    recipe = RUNS["small"].recipes["vae"]
    stage = VAEStage("small", recipe, TrainingData(stream), {})
    read_ahead(stage, [2, recipe.steps])
    asked = list(stream._asked)
    assert len(asked) == recipe.batch_size
    read = []
    small.setattr(readers, "read_clip", lambda *x: read.append(x))
    stage.batch(step_generator(0, "vae", 2))
    assert not read and list(stream._asked) == asked
