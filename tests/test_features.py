"""Features in shards: the same as without them, whole or not at all, and never those of
other weights or clips.
"""

import errno
import json
import os
import shutil
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_world
import soundfile
import torch
from safetensors.torch import load, load_file

from minilib import readers, streams
from minilib.data import Corpus
from minilib.training import RUNS, TrainingData, features, runs, shards, train_stages
from minilib.training.stages import GPTStage, LDMStage

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

PARTS = ["vae", "audiomae", "clap", "text"]
USING = ["gpt", "ldm", "joint"]
ENDS = ["gpt", "unet", "loudness"]  # what these make


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The small preset, with eight clips in a shard."""
    small_world.add_small(monkeypatch)
    monkeypatch.setattr(shards, "SHARD", 8)
    monkeypatch.setattr(features, "BATCH", 8)
    monkeypatch.setattr(streams, "MOST_WORKERS", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return monkeypatch


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the parts that features are made by."""
    with pytest.MonkeyPatch.context() as patch:
        small_world.add_small(patch)
        out = tmp_path_factory.mktemp("features") / "run"
        return train_stages(PARTS, "small", out, steps=1, progress=False)


@pytest.fixture
def out(small, trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def data(small):
    return small_world.small_data()


@pytest.fixture
def parts(data):
    return small_world.made_parts(data)


def use(out: Path, stages=USING, **how) -> Path:
    return train_stages(stages, "small", out, progress=False, **how)


def recordings(
    folder: Path, n: int = 20, seconds: float = 0.64, bad=(), words: int = 1
) -> Path:
    """A Parquet file of n sounds, all different, of which some are unreadable; so many
    words tell of a dog.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for i in range(n):
        noise = np.random.default_rng(i).uniform(-0.5, 0.5, round(seconds * 16000))
        file = BytesIO()
        soundfile.write(file, noise, 16000, format="FLAC")
        content = b"no sound" if i in bad else file.getvalue()
        cells.append({"bytes": content, "path": f"{i}.flac"})
    names = ("bell", "dog " * words, "rain", "drum")
    said = [f"a {names[i % 4]}" for i in range(n)]
    table = pyarrow.table({"audio": cells, "text": said})
    parquet.write_table(table, folder / "set.parquet")
    return folder / "set.parquet"


def streamed(where: Path, data: TrainingData, **changed) -> TrainingData:
    """The data of a stage, from a stream that this process reads."""
    stream = streams.open_stream(where, small_world.SECONDS, workers=0)
    return replace(data, corpus=stream, features={}, encoded={}, **changed)


def weights(out: Path) -> dict[str, bytes]:
    return {x: (out / x / "model.safetensors").read_bytes() for x in ENDS}


def written(out: Path) -> list[Path]:
    """The shards of a run."""
    return sorted((out / "features").rglob("*.safetensors"))


def files(out: Path) -> dict[str, bytes]:
    """Their bytes."""
    return {f"{x.parent.name}/{x.name}": x.read_bytes() for x in written(out)}


def told(caught) -> list[str]:
    return [str(x.message) for x in caught if "computed again" in str(x.message)]


def makes_of(patch: pytest.MonkeyPatch) -> list[Path]:
    """The files of all shards that are computed from here on."""
    made, write = [], shards.Shards.write
    noted = lambda self, k: (made.append(self.path(k)), write(self, k))[1]
    patch.setattr(shards.Shards, "write", noted)
    return made


# --------------------------------------------------------------------------------------
# The same as without


def test_runs_end_with_the_same_weights_wherever_features_are(out, tmp_path):
    outs = {x: Path(shutil.copytree(out, tmp_path / x)) for x in runs.FEATURES}
    ends = {how: weights(use(path, features=how)) for how, path in outs.items()}
    assert ends["memory"] == ends["shards"]  # byte for byte
    for name in ("gpt", "unet"):  # made in batches that processors round differently
        one, two = (load(ends[how][name]) for how in ("memory", "fly"))
        moved = [(one[x].double() - two[x].double()).abs().flatten() for x in one]
        assert torch.cat(moved).mean() < 1e-5  # where each of three steps moves 3e-3
    names = {how: {x.parent.name for x in written(path)} for how, path in outs.items()}
    assert names["shards"] == {"audiomae-2", "vae-0", "clap", "text"}
    assert names["memory"] == names["fly"] == set()


def test_shards_hold_what_memory_holds(data, parts, tmp_path):
    kept = replace(data, features={}, encoded={}, shards=tmp_path)
    fly = replace(data, features={}, encoded={}, fly=True).latents(parts["vae"])
    indices, dropped = torch.tensor([13, 0, 7, 8]), torch.tensor([0, 0, 1, 0]).bool()
    for made, found in (
        (data.latents(parts["vae"]), kept.latents(parts["vae"])),
        (data.loa(parts["audiomae"], 4), kept.loa(parts["audiomae"], 4)),
        (data.heard("bind", parts["bind"]), kept.heard("bind", parts["bind"])),
    ):
        assert torch.equal(made[indices], found[indices])
        assert torch.equal(made[2:11], found[2:11]) and made.shape == found.shape
    z0 = data.latents(parts["vae"])
    assert fly.shape == z0.shape
    torch.testing.assert_close(fly[indices], z0[indices])
    torch.testing.assert_close(fly[2:11], z0[2:11])
    encoders = {name: parts[name] for name in ("clap", "text")}
    one = data.told(encoders, indices, dropped)
    two = kept.told(encoders, indices, dropped)
    assert one.keys() == two.keys() and len(one) == 3
    for name in one:
        assert torch.equal(two[name], one[name])
    assert len(list((tmp_path / "vae-0").iterdir())) == 2  # of 16 clips


def test_another_lambda_and_another_part_have_shards_of_their_own(
    data, parts, tmp_path
):
    kept = replace(data, features={}, shards=tmp_path)
    kept.loa(parts["audiomae"], 4), kept.loa(parts["audiomae"], 1)
    kept.latents(parts["vae"])
    assert {x.name for x in tmp_path.iterdir()} == {"audiomae-2", "audiomae-4", "vae-0"}


def test_each_different_text_is_stored_once(data, parts, tmp_path):
    data.corpus.captions = ["a bell rings", "a dog barks"] * 8
    kept = replace(data, encoded={}, shards=tmp_path)
    kept.told({"text": parts["text"]}, torch.arange(4), torch.zeros(4).bool())
    (only,) = (tmp_path / "text").iterdir()
    found = load_file(only)
    assert found["index"][:, 0].tolist() == [0, found["index"][0, 1]]
    assert len(found["values"]) == found["index"][1, 1]


def test_a_text_that_many_rows_of_a_stream_have_is_stored_once_in_a_shard(
    data, parts, tmp_path
):
    kept = streamed(recordings(tmp_path), data, shards=tmp_path / "features")
    kept.told({"text": parts["text"]}, torch.arange(4), torch.zeros(4).bool())
    found = load_file(tmp_path / "features" / "text" / "000000.safetensors")
    start, stop = found["index"][:, 0], found["index"][:, 1]
    assert torch.equal(start[:4], start[4:]) and len(set(start.tolist())) == 4
    assert len(found["values"]) == stop.max()


# --------------------------------------------------------------------------------------
# Streams


def test_a_stream_is_trained_on_without_a_sound_being_read(
    data, parts, tmp_path, small
):
    kept = streamed(recordings(tmp_path), data, shards=tmp_path / "features")
    flying = streamed(recordings(tmp_path), data)
    for kind in (GPTStage, LDMStage):
        recipe = RUNS["small"].recipes[kind.name]
        kept.begin(hears=False)
        one, two = (kind("small", recipe, x, parts) for x in (kept, flying))
        one.batch(torch.Generator().manual_seed(1))  # which computes the texts
        kept.corpus._asked.clear()
        with small.context() as patch:
            patch.setattr(readers, "read_clip", lambda *x: pytest.fail("it reads"))
            batch = one.batch(torch.Generator().manual_seed(0))
            one.ahead(torch.Generator().manual_seed(1))
        flying.corpus.cut(1)  # the same pieces
        for name, x in two.batch(torch.Generator().manual_seed(0)).items():
            close = dict(rtol=1e-4, atol=1e-5, check_dtype=False)
            torch.testing.assert_close(batch[name], x, **close)


def test_long_recordings_are_kept_in_pieces_that_cover_them(
    small, data, parts, tmp_path
):
    where = recordings(tmp_path / "set", n=6, seconds=1.9)
    stream = runs.read_stream(RUNS["small"], where, ["ldm"], progress=False)
    assert stream.covered == 3  # of 0.64 s
    kept = replace(data, corpus=stream, features={}, shards=tmp_path / "features")
    z0 = kept.latents(parts["vae"])
    drawn = kept.clips(200, torch.Generator().manual_seed(0))
    assert set((drawn // 6).tolist()) == {0, 512, 1023} and len(set(drawn % 6)) > 5
    assert set((drawn % 6).tolist()) == set(range(6))
    some = torch.unique(drawn)
    assert len(some) == 18
    wanted = parts["vae"].encode(small_world.stages.audio.log_mel(stream.wave(some)))
    torch.testing.assert_close(z0[some], wanted)
    kept.begin(hears=True)
    everywhere = kept.clips(200, torch.Generator().manual_seed(0))
    assert len(set((everywhere // 6).tolist())) > 100
    stream.close()


def test_the_place_of_an_unusable_row_is_taken_by_the_next(
    small, data, parts, tmp_path
):
    small.setattr(streams, "CHECKED", 10)
    where = recordings(tmp_path / "set", bad=(3, 4, 19))
    for again in (False, True):  # the second finds the shards
        kept = streamed(where, data, shards=tmp_path / "features")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z0 = kept.latents(parts["vae"])
        warned = [str(x.message) for x in caught if "is skipped" in str(x.message)]
        assert len(warned) == (0 if again else 1)
        assert all(x.startswith(f"{where}, row 4 is skipped") for x in warned)
        assert kept.usable.tolist() == [0, 1, 2, 5, 5, *range(5, 19), 0]
        drawn = kept.clips(20, torch.Generator().manual_seed(0))
        assert sorted(drawn.tolist()) == sorted(kept.usable.tolist())
        assert kept.report().startswith("3 of 20 rows") and "row 20" in kept.report()
    mel = small_world.stages.audio.log_mel(kept.corpus.wave(kept.usable))
    torch.testing.assert_close(z0[kept.usable], parts["vae"].encode(mel))


def test_a_caption_that_can_not_be_read_ends_no_shard(small, data, parts, tmp_path):
    small.setattr(streams, "CHECKED", 10)
    where = recordings(tmp_path / "set", words=200)
    kept = streamed(where, data, shards=tmp_path / "features")
    kept.corpus.check = lambda caption: data.tokenizer.encode([caption])
    with pytest.warns(UserWarning, match="row 2 is skipped.*tokens"):
        kept.latents(parts["vae"])
    drawn = kept.clips(20, torch.Generator().manual_seed(0))
    assert not set((drawn % 4).tolist()) & {1}
    everything = torch.zeros(20, dtype=torch.bool)
    one = kept.told({"text": parts["text"]}, drawn, everything)
    plain = streamed(where, data)
    two = plain.told({"text": parts["text"]}, drawn, everything)
    torch.testing.assert_close(one["text"], two["text"])


def test_a_stream_is_not_resumed_with_features_from_elsewhere(out, tmp_path):
    where = recordings(tmp_path / "set")
    use(out, ["gpt"], data=where, steps=1, features="shards")
    said = "gpt.json was made with other features, shards or fly: use the same again"
    with pytest.raises(ValueError, match=said):
        use(out, ["gpt"], data=where, steps=1, resume=True)
    use(out, ["gpt"], data=where, steps=1, resume=True, features="shards")


# --------------------------------------------------------------------------------------
# Whole or not at all, and never of something else


def test_an_interrupted_run_goes_on_with_the_missing_shards(out, tmp_path, small):
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    use(whole, features="shards")
    with small.context() as patch:
        made = makes_of(patch)
        write = shards.Shards.write

        def stop(self, k):
            if self.folder.name == "vae-0" and k == 1:
                (self.folder / ".x.part").write_bytes(b"half")
                raise KeyboardInterrupt
            write(self, k)

        patch.setattr(shards.Shards, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            use(out, features="shards")
    assert made[-1].parent.name == "vae-0" and "vae-0/000001.safetensors" not in files(
        out
    )
    with small.context() as patch:
        made = makes_of(patch)
        use(out, features="shards", resume=True)
    assert [str(x.relative_to(out / "features")) for x in made] == [
        "vae-0/000001.safetensors"
    ]
    assert weights(out) == weights(whole) and files(out) == files(whole)
    assert not list(out.rglob("*.part"))


def test_every_process_computes_its_share(data, parts, tmp_path, small):
    corpus = Corpus(data.corpus.waves[np.arange(36) % 16], ["a bell"] * 36)
    small.setattr(shards, "n_processes", lambda: 2)
    made = makes_of(small)
    for rank in (0, 1):
        state = SimpleNamespace(process_index=rank, wait_for_everyone=lambda: None)
        small.setattr(shards, "meet", lambda state=state: state)
        kept = replace(data, corpus=corpus, features={}, shards=tmp_path)
        kept.latents(parts["vae"])
    assert [int(x.stem) for x in made] == [0, 2, 4, 1, 3]
    small.undo()


def test_weights_and_clips_decide_whether_shards_still_fit(data, parts, tmp_path):
    def latents(data: TrainingData):
        kept = replace(data, features={}, shards=tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = kept.latents(parts["vae"])[:]
        return found, told(caught)

    assert latents(data)[1] == [] == latents(data)[1]
    with torch.no_grad():
        parts["vae"].encoder.conv_in.bias += 1.0
    again, said = latents(data)
    was = "was made with other weights or other clips and is computed again"
    assert said == [f"what {tmp_path / 'vae-0'} held {was}"]
    assert torch.equal(again, replace(data, features={}).latents(parts["vae"]))
    waves = data.corpus.waves.copy()
    waves[5] //= 2
    other, said = latents(replace(data, corpus=Corpus(waves, data.corpus.captions)))
    assert len(said) == 1 and not torch.equal(other[5], again[5])
    config = parts["vae"].config
    parts["vae"].config = replace(config, scaling_factor=2 * config.scaling_factor)
    assert len(latents(data)[1]) == 1  # the last were of other waves
    parts["vae"].config = config
    assert len(latents(data)[1]) == 1


def test_shards_of_a_longer_data_set_do_not_stay(data, parts, tmp_path):
    for n in (16, 8):
        corpus = Corpus(data.corpus.waves[:n], data.corpus.captions[:n])
        kept = replace(data, corpus=corpus, features={}, shards=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept.latents(parts["vae"])
        assert len(list((tmp_path / "vae-0").iterdir())) == n // 8


def test_a_damaged_shard_is_computed_again(data, parts, tmp_path):
    latents = lambda: replace(data, features={}, shards=tmp_path).latents(parts["vae"])
    whole = latents()[:]
    path = tmp_path / "vae-0" / "000001.safetensors"
    for content in (path.read_bytes()[:-5], b"", b"no shard at all, but text"):
        path.write_bytes(content)
        with pytest.warns(
            UserWarning, match=f"{path} is damaged and is computed again"
        ):
            assert torch.equal(latents()[:], whole)


def test_a_shard_that_is_damaged_inside_is_one_sentence(data, parts, tmp_path):
    z0 = replace(data, features={}, shards=tmp_path).latents(parts["vae"])
    path = tmp_path / "vae-0" / "000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    z0[torch.arange(8)]  # in the other file
    said = f"{path} is damaged or missing: remove it and go on with --resume, which"
    for _ in range(2):
        with pytest.raises(ValueError, match=said) as error:
            z0[torch.arange(16)]
        assert "\n" not in str(error.value)
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------
# Bad input


def test_too_little_room_is_one_sentence_before_a_shard_is_written(
    data, parts, tmp_path, small
):
    z0 = data.latents(parts["vae"])
    free = lambda n: lambda folder: SimpleNamespace(free=n)
    kept = replace(data, features={}, shards=tmp_path)
    small.setattr(shutil, "disk_usage", free(z0.nbytes - 1))
    said = r"vae-0 would take 6.55e-05 GB, and 6.55e-05 GB are free: use an --out with"
    with pytest.raises(ValueError, match=said):
        kept.latents(parts["vae"])
    assert not list(tmp_path.rglob("*.safetensors"))
    small.setattr(shutil, "disk_usage", free(z0.nbytes))
    assert torch.equal(kept.latents(parts["vae"])[:], z0)


def test_a_disk_that_is_full_on_the_way_keeps_what_is_whole(out, small):
    save = shards.save_file

    def full(tensors, path, metadata):
        if (
            path.parent.name == "vae-0"
            and (path.parent / "000000.safetensors").exists()
        ):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, metadata)

    with small.context() as patch:
        patch.setattr(shards, "save_file", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            use(out, features="shards")
    assert error.value.filename.endswith("vae-0/000001.safetensors")
    assert not list(out.rglob("*.part"))
    assert "vae-0/000000.safetensors" in files(out)
    use(out, features="shards", resume=True)
    assert json.loads((out / "finished" / "ldm.json").read_text())["steps"] == 3


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("disk", 'features must be "memory" or "shards" or "fly", not .disk.'),
        (
            "memory",
            r"features must be shards or fly, not memory, as '.*set.parquet' is",
        ),
    ],
)
def test_impossible_places_for_features_are_one_sentence(
    features, said, small, tmp_path
):
    where = recordings(tmp_path / "set")
    with pytest.raises(ValueError, match=said):
        train_stages("vae", "small", tmp_path / "new", where, features=features)
    assert not (tmp_path / "new").exists()
