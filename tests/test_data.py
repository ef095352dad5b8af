"""Folders of recordings, and sets of equal clips: what is read, what is refused, what
is kept.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import soundfile
import torch

from minilib.data import OPEN_LICENCES, AudioFolder, Corpus
from minilib.soundworld import SoundWorld

SR = 16000


def make_folder(folder, rows, table="metadata.csv", sounds=None):
    """Write a table and, for every file it names or `sounds` names, a wave (0.1 s of a
    tone by default).
    """
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / SR)
    columns = list(rows[0])
    lines = [",".join(columns)] + [",".join(row[c] for c in columns) for row in rows]
    (folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    waves = {row[columns[0]]: tone for row in rows} if sounds is None else sounds
    for name, wave in waves.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(folder / name, wave, SR, subtype="PCM_16")
    return folder


ROWS = [
    {"file_name": "a.wav", "caption": "a bell", "part": "train", "licence": "CC0 1.0"},
    {
        "file_name": "sub/b.flac",
        "caption": "a dog",
        "part": "train",
        "licence": "CC BY-SA 4.0",
    },
    {"file_name": "c.wav", "caption": "a cat", "part": "test", "licence": "cc-by-4.0"},
    {
        "file_name": "d.wav",
        "caption": "a cow",
        "part": "train",
        "licence": "Public domain",
    },
    {
        "file_name": "e.wav",
        "caption": "an owl",
        "part": "train",
        "licence": "Apache 2.0",
    },
]


# --------------------------------------------------------------------------------------
# AudioFolder


def test_a_folder_gives_wave_caption_and_row(tmp_path):
    folder = AudioFolder(make_folder(tmp_path, ROWS))
    wave, caption, row = folder[1]
    assert len(folder) == 5 and folder.captions[0] == "a bell"
    assert (
        wave.shape == (1600,)
        and wave.dtype == torch.float32
        and wave.abs().max() == pytest.approx(0.5, abs=0.01)
    )
    assert caption == "a dog" and row == ROWS[1]


def test_a_manifest_with_columns_file_and_text_is_read_too(tmp_path):
    rows = [{"file": "a.wav", "text": "a bell"}]
    folder = AudioFolder(make_folder(tmp_path, rows, "manifest.csv"))
    assert folder[0][1] == "a bell" and folder.path(0) == tmp_path / "a.wav"


def test_part_and_licences_choose_rows(tmp_path):
    make_folder(tmp_path, ROWS)
    assert AudioFolder(tmp_path, part="train").captions == [
        "a bell",
        "a dog",
        "a cow",
        "an owl",
    ]
    assert AudioFolder(tmp_path, licences=OPEN_LICENCES).captions == [
        "a bell",
        "a cat",
        "a cow",
    ]
    assert AudioFolder(tmp_path, part="train", licences=["CC0"]).captions == ["a bell"]


def test_a_missing_folder_or_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
        AudioFolder(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"has no metadata.csv \(nor manifest.csv\)"
    ):
        AudioFolder(tmp_path)


def test_a_missing_caption_column_is_an_error_unless_captions_are_not_needed(tmp_path):
    make_folder(tmp_path, [{"file_name": "a.wav", "label": "bell"}])
    with pytest.raises(ValueError, match="has no column 'caption'"):
        AudioFolder(tmp_path)
    assert AudioFolder(tmp_path, captions=False).captions == [""]


def test_rows_without_caption_are_counted_and_the_first_named(tmp_path):
    rows = [
        {"file_name": f"{k}.wav", "caption": caption}
        for k, caption in enumerate(["a bell", " ", "", "a dog"])
    ]
    make_folder(tmp_path, rows)
    with pytest.raises(
        ValueError, match="has 2 rows without a caption, the first for '1.wav'"
    ):
        AudioFolder(tmp_path)
    assert len(AudioFolder(tmp_path, captions=False)) == 4


def test_missing_files_are_counted_and_the_first_named(tmp_path):
    make_folder(tmp_path, ROWS, sounds={"a.wav": np.ones(100), "d.wav": np.ones(100)})
    with pytest.raises(
        FileNotFoundError,
        match="3 of 5 rows name files that are missing, the first 'sub/b.flac'",
    ):
        AudioFolder(tmp_path)
    assert len(AudioFolder(tmp_path, licences=["CC0", "public domain"])) == 2


def test_a_part_or_licence_that_no_row_has_is_an_error_that_says_what_there_is(
    tmp_path,
):
    make_folder(tmp_path, ROWS)
    with pytest.raises(
        ValueError, match="has no row with part 'dev'; it has test, train"
    ):
        AudioFolder(tmp_path, part="dev")
    with pytest.raises(ValueError, match="has no row with licence 'MIT'"):
        AudioFolder(tmp_path, licences=["MIT"])


def test_a_column_to_choose_by_must_exist(tmp_path):
    make_folder(tmp_path, [{"file_name": "a.wav", "caption": "a bell"}])
    with pytest.raises(ValueError, match="has no column 'part' to choose 'train' by"):
        AudioFolder(tmp_path, part="train")


def test_a_table_that_is_empty_or_no_text_is_an_error(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,caption\n")
    with pytest.raises(ValueError, match="has no rows"):
        AudioFolder(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(b"file_name,caption\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match="is not a table of comma-separated values"):
        AudioFolder(tmp_path)


# --------------------------------------------------------------------------------------
# Corpus


def test_a_corpus_of_soundworld_holds_its_clips_whatever_the_number_of_processes():
    world = SoundWorld("valid", seconds=1.0)
    one = Corpus.from_soundworld(world, 66, progress=False)
    two = Corpus.from_soundworld(world, 66, progress=False, workers=2)
    assert len(one) == 66 and one.waves.shape == (66, SR)
    assert np.array_equal(one.waves, two.waves) and one.captions == two.captions
    batch = one.wave([0, 65])
    assert torch.equal(batch, torch.stack([world[0].wave, world[65].wave]))
    assert one.captions[65] == world[65].caption


def test_long_recordings_are_cut_short_ones_padded_and_silence_dropped(tmp_path):
    rows = [
        {"file_name": f"{name}.wav", "caption": name}
        for name in ("long", "short", "silent", "holed")
    ]
    ones = np.full(SR, 0.25)
    sounds = {
        "long.wav": np.full(int(2.6 * SR), 0.25),
        "short.wav": ones[:100],
        "silent.wav": 0 * ones,
        "holed.wav": np.concatenate([ones, 0 * ones, ones, ones[:50]]),
    }
    corpus = Corpus.from_folder(
        AudioFolder(make_folder(tmp_path, rows, sounds=sounds)), 1.0, progress=False
    )
    assert corpus.captions == ["long"] * 3 + ["short"] + ["holed"] * 2
    assert [int((row != 0).sum()) for row in corpus.waves] == [
        SR,
        SR,
        int(0.6 * SR),
        100,
        SR,
        SR,
    ]


def test_a_folder_of_silence_is_an_error(tmp_path):
    make_folder(tmp_path, ROWS[:1], sounds={"a.wav": np.zeros(500)})
    with pytest.raises(ValueError, match="are digital silence"):
        Corpus.from_folder(AudioFolder(tmp_path), 1.0, progress=False)


def test_a_saved_corpus_comes_back_and_saving_again_replaces_it(tmp_path):
    first = Corpus(np.arange(12, dtype=np.int16).reshape(3, 4), ["a", "b", "ü"])
    first.save(tmp_path / "x" / "corpus")
    second = Corpus(first.waves[:2] + 1, ["c", "d"])
    second.save(tmp_path / "x" / "corpus")
    loaded = Corpus.load(tmp_path / "x" / "corpus")
    assert np.array_equal(loaded.waves, second.waves) and loaded.captions == ["c", "d"]
    assert torch.equal(loaded.wave([1, 0]), second.wave([1, 0]))
    assert os.listdir(tmp_path / "x") == ["corpus"]


def test_a_save_that_fails_leaves_the_old_corpus(tmp_path, monkeypatch):
    corpus = Corpus(np.zeros((1, 4), dtype=np.int16), ["a"])
    corpus.save(tmp_path / "corpus")
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Corpus(np.ones((2, 4), dtype=np.int16), ["b", "c"]).save(tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus").captions == ["a"] and os.listdir(
        tmp_path
    ) == ["corpus"]


def test_a_missing_or_damaged_corpus_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="is no saved corpus: it has no waves.npy"
    ):
        Corpus.load(tmp_path)
    Corpus(np.zeros((3, 4), dtype=np.int16), ["a", "b", "c"]).save(tmp_path / "corpus")
    whole = (tmp_path / "corpus" / "waves.npy").read_bytes()
    (tmp_path / "corpus" / "waves.npy").write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="is damaged"):
        Corpus.load(tmp_path / "corpus")


def test_waves_and_captions_must_fit():
    with pytest.raises(ValueError, match="waves must be int16"):
        Corpus(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="as many captions as waves, not 1 for 2"):
        Corpus(np.zeros((2, 3), dtype=np.int16), ["a"])


# --------------------------------------------------------------------------------------
# Real recordings


@pytest.fixture
def recordings():
    folder = os.environ.get("MINILIB_REALAUDIO")
    if not folder:
        pytest.skip("no real recordings: MINILIB_REALAUDIO names no folder")
    return folder


def test_real_recordings_become_clips(recordings):
    folder = AudioFolder(recordings, part="test", licences=OPEN_LICENCES)
    assert {row["licence"].split(" ")[0] for row in folder.rows} <= {
        "CC0",
        "CC",
        "Public",
    }
    assert not any("SA" in row["licence"] for row in folder.rows)
    corpus = Corpus.from_folder(folder, 2.56, progress=False)
    assert len(corpus) >= len(folder) / 2 and corpus.waves.shape[1] == 40960
    assert (np.abs(corpus.waves).max(axis=1) > 0).all()
