"""Folders of recordings, and sets of equal clips: what is read, what is refused, what
is kept.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import soundfile
import torch

from minilib import data
from minilib.cli import main
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
        FileNotFoundError, match=r"has no metadata.csv \(nor .*manifest.csv\)"
    ):
        AudioFolder(tmp_path)


def test_a_missing_caption_column_is_an_error_unless_captions_are_not_needed(tmp_path):
    make_folder(tmp_path, [{"file_name": "a.wav", "label": "bell"}])
    with pytest.raises(ValueError, match="no column 'caption'"):
        AudioFolder(tmp_path)
    assert AudioFolder(tmp_path, captions=False).captions == [""]


def test_rows_without_caption_are_counted_and_named(tmp_path):
    rows = [
        {"file_name": f"{k}.wav", "caption": caption}
        for k, caption in enumerate(["a bell", " ", "", "a dog"])
    ]
    make_folder(tmp_path, rows)
    told = r"has 2 faults: \(1\) .*metadata.csv, line 3: no caption for '1.wav'; \(2\)"
    with pytest.raises(ValueError, match=told):
        AudioFolder(tmp_path)
    assert len(AudioFolder(tmp_path, captions=False)) == 4


def test_missing_files_are_counted_and_named(tmp_path):
    make_folder(tmp_path, ROWS, sounds={"a.wav": np.ones(100), "d.wav": np.ones(100)})
    with pytest.raises(
        FileNotFoundError,
        match=r"has 3 faults: \(1\) .*line 3: the file 'sub/b.flac' is missing; \(2\)",
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
    with pytest.raises(
        ValueError, match="has no column 'part' in which to find 'train'"
    ):
        AudioFolder(tmp_path, part="train")


def test_a_table_that_is_empty_or_no_text_is_an_error(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,caption\n")
    with pytest.raises(ValueError, match="has no rows"):
        AudioFolder(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(b"file_name,caption\n\xff\xfe,x\n")
    with pytest.raises(
        ValueError, match="metadata.csv, line 2: a table must be text in UTF-8"
    ):
        AudioFolder(tmp_path)


# --------------------------------------------------------------------------------------
# Tables: strict, and of every shape


TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / SR)


def sounds(folder, *names, wave=TONE):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(folder / name, wave, SR)
    return folder


def faults(folder, **settings):
    return AudioFolder(folder, strict=False, **settings).faults()


TWO_COLUMNS = "line 2: 3 fields for 2 columns (file_name, caption); a field that holds"
STRICT = {  # what is said of a table: the table
    f"{TWO_COLUMNS} a comma must be quoted": "file_name,caption\na.wav,a, b\n",
    f"{TWO_COLUMNS} a semicolon must": "file_name;caption\na.wav;rain; wind\n",
    f"{TWO_COLUMNS} a tab must": "file_name\tcaption\na.wav\train\twind\n",
    "line 2: 1 field for 2 columns": "file_name,caption\na.wav\n",
    "line 2: 2 fields for 3 columns": "file_name,caption,class\na.wav,rain\n",
    "line 4: a quote is not closed": 'file_name,caption\na.wav,a\n\nb.wav,"b\nc.wav,c',
    "line 2: a quote is not closed, or text": 'file_name,caption\na.wav,"a\nb.wav,"b"',
    "line 2: the caption spans several lines; is a closing quote missing?": (
        'file_name,caption\na.wav,"a dog\nb.wav,a cat"\n'
    ),
    "line 2: 'wind' is in a column without a name": (
        "file_name,caption,\na.wav,rain, wind\n"
    ),
    "has two columns named 'caption'": "file_name,caption,caption\na.wav,rain,wind\n",
    "line 2: no file_name": "file_name,caption\n,rain\n",
    "has columns name, words, but no column 'file_name'": "name,words\na.wav,rain\n",
    "has columns file_name, words, but no column 'caption' (nor 'text')": (
        "file_name,words\na.wav,rain\n"
    ),
    "has no rows": "",
}


@pytest.mark.parametrize("said", STRICT)
def test_a_table_that_leaves_a_doubt_is_refused_with_its_line(tmp_path, said):
    sounds(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "metadata.csv").write_text(STRICT[said])
    with pytest.raises(ValueError) as refused:
        AudioFolder(tmp_path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "metadata.csv"))
    assert [said in fault for fault in faults(tmp_path)] == [True]


def test_every_fault_of_a_table_is_in_one_list_and_in_the_error(tmp_path):
    sounds(tmp_path, "a.wav", "b.wav")
    lines = ["file_name,caption", "a.wav,rain, wind", "b.wav,", "c.wav,hail", "a.wav"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    places = [fault.partition("metadata.csv, ")[2] for fault in faults(tmp_path)]
    assert [place.partition(":")[0] for place in places] == [
        *("line 2", "line 5", "line 3", "line 4")
    ]
    with pytest.raises(ValueError, match="has 4 faults") as refused:
        AudioFolder(tmp_path)
    assert all(place in str(refused.value) for place in places)


def test_of_many_faults_the_error_tells_some_and_what_lists_all(tmp_path):
    long = "x" * 300  # longer than a name may be
    lines = ["file_name,caption", f"{long}.wav,rain"]
    lines += [f"{i}.wav,rain" for i in range(49)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    said = r"has 50 faults: .*\(20\) .*; and 30 more: minilib data check .*"
    with pytest.raises(FileNotFoundError, match=said):
        AudioFolder(tmp_path)


TWO = ("rain, wind", 'a "loud" dog; ü')  # the captions of a.wav and sub/b.wav
COMMAS = 'file_name,caption\na.wav,"rain, wind"\nsub/b.wav,a "loud" dog; ü\n'
SEMICOLONS = 'text;file\nrain, wind;a.wav\n"a ""loud"" dog; ü";sub\\b.wav'
NUMBERED = (
    ',file_name, caption\n0,a.wav, "rain, wind"\n\n1,sub\\b.wav,a "loud" dog; ü\n,,'
)
TABS = 'file_name\tcaption\n"a.wav"\train, wind\nsub\\b.wav\ta "loud" dog; ü\n'
LINES = [
    {"file_name": "a.wav", "caption": TWO[0]},
    {"caption": TWO[1], "file_name": "sub\\b.wav", "part": "test", "n": 3},
]
JSON = "\n\n".join(json.dumps(line) for line in LINES)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", COMMAS),
        ("manifest.csv", SEMICOLONS),
        ("metadata.csv", NUMBERED),
        ("metadata.csv", TABS),
        ("metadata.tsv", TABS),
        ("metadata.jsonl", JSON),
    ],
    ids=["commas", "semicolons", "numbered", "tabs", "tsv", "json"],
)
def test_tables_of_every_shape_are_read(tmp_path, name, table, newline, encoding):
    sounds(tmp_path, "a.wav", "sub/b.wav")
    (tmp_path / name).write_bytes(table.replace("\n", newline).encode(encoding))
    folder = AudioFolder(tmp_path)
    assert folder.captions == list(TWO)
    assert [folder.path(i) for i in (0, 1)] == [
        tmp_path / "a.wav",
        tmp_path / "sub" / "b.wav",
    ]
    assert folder.wave(1).shape == (1600,) and folder.faults() == []


def test_rows_of_json_have_the_columns_of_all_as_text(tmp_path):
    sounds(tmp_path, "a.wav", "sub/b.wav")
    (tmp_path / "metadata.jsonl").write_text(JSON)
    one, two = AudioFolder(tmp_path).rows
    assert one["part"] == "" and one["n"] == "" and two["n"] == "3"
    assert AudioFolder(tmp_path, part="test").captions == [TWO[1]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"file_name": "a.wav", "caption": ["rain"]}',
            "the caption must be text, not ",
        ),
        ('{"file_name": "a.wav", "caption": "rain"', "must be a JSON object"),
        ('["a.wav", "rain"]', "must be a JSON object, .*: a list"),
        ("3", "must be a JSON object, .*: a number"),
        ("null", "must be a JSON object, .*: null"),
        ('{"file_name": "a.wav", "caption": "a", "caption": "b"}', "appears twice"),
        ('{"caption": "rain"}', "no file_name"),
    ],
)
def test_a_line_of_json_that_is_no_row_is_refused(tmp_path, line, said):
    sounds(tmp_path, "a.wav")
    whole = '{"file_name": "a.wav", "caption": "a bell"}'
    (tmp_path / "metadata.jsonl").write_text(f"{whole}\n{line}\n{whole}\n")
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 2: .*{said}"):
        AudioFolder(tmp_path)


def test_a_name_that_really_holds_a_backslash_is_taken_as_it_is(tmp_path):
    sounds(tmp_path, "x\\a.wav", "x/a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,caption\nx\\a.wav,rain\n")
    assert AudioFolder(tmp_path).path(0) == tmp_path / "x\\a.wav"


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="metadata.parquet needs pyarrow"):
        AudioFolder(tmp_path)


def test_parquet_is_read_where_pyarrow_is(tmp_path, monkeypatch):
    rows = [{"file_name": "a.wav", "caption": "rain", "n": 1, "licence": None}]
    table = types.SimpleNamespace(to_pylist=lambda: rows)
    parquet = types.SimpleNamespace(read_table=lambda path: table)
    both = types.SimpleNamespace(parquet=parquet)
    monkeypatch.setitem(sys.modules, "pyarrow", both)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    sounds(tmp_path, "a.wav")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    (row,) = AudioFolder(tmp_path).rows
    assert row == {"file_name": "a.wav", "caption": "rain", "n": "1", "licence": ""}
    rows[0]["caption"] = ""
    with pytest.raises(ValueError, match="metadata.parquet, row 1: no caption"):
        AudioFolder(tmp_path)


def test_parquet_of_pyarrow_itself_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sounds(tmp_path, "a.wav")
    columns = {"file_name": ["a.wav"], "caption": ["rain"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    assert AudioFolder(tmp_path).captions == ["rain"]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="metadata.parquet is not a Parquet table"):
        AudioFolder(tmp_path)


def test_tables_of_split_folders_are_read_together_and_tell_the_part(tmp_path):
    for name, file in (("training", "a.wav"), ("test", "a.wav"), ("extra", "x/b.wav")):
        sounds(tmp_path / name, file)
        rows = f"file_name,caption\n{file},{name}\n"
        (tmp_path / name / "metadata.csv").write_text(rows)
    folder = AudioFolder(tmp_path)
    assert folder.captions == ["extra", "test", "training"]
    assert [row["part"] for row in folder.rows] == ["extra", "test", "train"]
    assert folder.path(2) == tmp_path / "training" / "a.wav"
    assert data.of_part(tmp_path, "train").captions == ["training"]
    rows = "file_name,text\nb.wav,two, three\n"
    (tmp_path / "test" / "metadata.csv").write_text(rows)
    assert [fault.partition(": ")[0] for fault in faults(tmp_path)] == [
        f"{tmp_path / 'test' / 'metadata.csv'}, line 2"
    ]


def test_rows_know_their_place_after_pickling_too(tmp_path):
    folder = AudioFolder(make_folder(tmp_path, ROWS), part="test")
    again = pickle.loads(pickle.dumps(folder))
    assert again.rows == folder.rows and again.path(0) == folder.path(0)
    assert again.rows[0].place == f"{tmp_path / 'metadata.csv'}, line 4"


# --------------------------------------------------------------------------------------
# What is wrong with the files, before anything is trained on them


def broken_folder(folder):
    """One of each: whole, cut off, no audio, empty, silent, cancelling, too loud."""
    rows = [f"{x}.wav,{x}" for x in ("whole", "cut", "text", "void", "mute", "anti")]
    lines = ["file_name,caption", *rows, "loud.wav,loud", "gone.wav,gone", "b.wav,a,b"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    sounds(folder, "whole.wav", "cut.wav")
    sounds(folder, "mute.wav", wave=0 * TONE)
    sounds(folder, "anti.wav", wave=np.stack([TONE, -TONE], axis=1))
    soundfile.write(folder / "loud.wav", TONE * 26000, 48000, subtype="FLOAT")
    (folder / "cut.wav").write_bytes((folder / "whole.wav").read_bytes()[:-100])
    (folder / "text.wav").write_text("no sound at all" * 20)
    (folder / "void.wav").touch()
    return folder


def test_all_faults_of_tables_and_files_are_in_one_list(tmp_path):
    found = faults(broken_folder(tmp_path))
    told = {
        "10": "3 fields for 2 columns",
        "9": "the file 'gone.wav' is missing",
        "3": "cut.wav' is cut off",
        "4": "text.wav' is not audio, or damaged",
        "5": "void.wav' is empty",
        "6": "mute.wav' is digital silence",
    }
    assert len(found) == len(told)
    for (line, said), fault in zip(told.items(), found):
        assert fault.startswith(f"{tmp_path / 'metadata.csv'}, line {line}: ")
        assert said in fault


def test_data_check_prints_all_there_is_and_all_faults(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["data", "check", str(broken_folder(tmp_path))]) == 1
    said = capsys.readouterr().out
    assert "columns     file_name, caption\n" in said
    assert "rates       16000 Hz (3), 48000 Hz (1)\n" in said
    assert "\n2 notes:\n" in said and "loud.wav' has a peak of 13000" in said
    assert "\n6 faults:\n" in said and said.count("metadata.csv, line") == 8


def test_data_check_of_a_sound_folder_counts_and_returns_0(tmp_path, capsys):
    rows = [{**row, "class": "animal"} for row in ROWS]
    assert main(["data", "check", str(make_folder(tmp_path, rows))]) == 0
    said = capsys.readouterr().out
    assert "parts       train (4), test (1)\n" in said
    assert "classes     animal (5)\n" in said and "rows        5, 5 captions" in said
    assert said.endswith("\n0 faults\n") and "files       5, 0.00 hours" in said


def test_data_check_of_no_folder_is_one_sentence(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "notes.txt").touch()
    assert main(["data", "check", str(tmp_path / "notes.txt")]) == 2
    assert "notes.txt' is a file, not a folder" in capsys.readouterr().err


def test_of_many_rows_some_files_are_looked_at_evenly(tmp_path):
    lines = ["file_name,caption"] + [f"{i}.wav,rain" for i in range(100)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    for i in range(100):
        (tmp_path / f"{i}.wav").write_text("no sound")
    folder = AudioFolder(tmp_path)
    some = folder.faults(most=10)
    assert len(some) == 10 and len(folder.faults()) == 100
    assert all(f"/{10 * i}.wav'" in fault for i, fault in enumerate(some))


def test_a_cut_flac_is_found_by_hearing_it(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, SR)
    sounds(tmp_path, "a.flac", wave=wave)
    (tmp_path / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:-5000])
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.flac,rain\n")
    (found,) = AudioFolder(tmp_path).faults()
    assert "a.flac' is cut off at sample" in found or "damaged" in found


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
    folder = AudioFolder(make_folder(tmp_path, rows, sounds=sounds))
    said = (
        r"2 of 4 recordings hold pieces of silence, left out: 1 of 1 of "
        r"'silent.wav', 1 of 3 of 'holed.wav'"
    )
    with pytest.warns(UserWarning, match=said):
        corpus = Corpus.from_folder(folder, 1.0, progress=False)
    assert corpus.captions == ["long"] * 3 + ["short"] + ["holed"] * 2
    assert [int((row != 0).sum()) for row in corpus.waves] == [
        SR,
        SR,
        int(0.6 * SR),
        100,
        SR,
        SR,
    ]


def test_channels_that_cancel_make_a_clip(tmp_path):
    sounds(tmp_path, "a.wav", wave=np.stack([TONE, -TONE], axis=1))
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.wav,a tone\n")
    with pytest.warns(UserWarning, match="the channels of '.*a.wav' cancel each other"):
        corpus = Corpus.from_folder(AudioFolder(tmp_path), 0.1, progress=False)
    np.testing.assert_allclose(corpus.wave([0])[0], TONE, atol=1e-4)


def test_of_very_many_recordings_the_broken_are_named_and_left_out(
    tmp_path, monkeypatch
):
    sounds(tmp_path, "a.wav", "b.wav", "c.wav")
    (tmp_path / "b.wav").write_text("no sound")
    rows = "".join(f"{x}.wav,{x}\n" for x in "abc")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{rows}")
    folder = AudioFolder(tmp_path)
    with pytest.raises(ValueError, match="b.wav' is not audio"):
        Corpus.from_folder(folder, 0.1, progress=False)
    monkeypatch.setattr(data, "CHECKED", 2)
    with pytest.warns(
        UserWarning, match="1 of 3 recordings can't .*b.wav' is not audio"
    ):
        corpus = Corpus.from_folder(folder, 0.1, progress=False)
    assert corpus.captions == ["a", "c"]


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
    with pytest.raises(ValueError, match="'.*x' holds 'corpus'"):
        second.save(tmp_path / "x")
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
    with pytest.raises(FileNotFoundError, match="holds no saved corpus: no waves.npy"):
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
