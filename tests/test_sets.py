"""Real data sets by name, from a server on this machine."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from minilib import cli, sets
from minilib.data import AudioFolder


def sound() -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(file, noise, 16000, format="WAV")
    return file.getvalue()


def tar(kind: str, files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=f"w:{kind}") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return made.getvalue()


def packed_zip(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return made.getvalue()


ESC = "filename,fold,target,category\n1.wav,1,0,dog\n2.wav,5,1,sea_waves\n"
SENTENCES = 'LJ-1|Dr. A|Doctor A\nLJ-2|"B, said he|"B, said he\n'
ARCHIVES = {
    "esc50": packed_zip(
        {
            "ESC-50-master/meta/esc50.csv": ESC.encode(),
            **{f"ESC-50-master/audio/{i}.wav": sound() for i in (1, 2)},
        }
    ),
    "speech_commands": tar(
        "gz",
        {
            "./validation_list.txt": b"yes/b.wav\n",
            "./testing_list.txt": b"no/a.wav\n",
            **{f"./{x}.wav": sound() for x in ("yes/a", "yes/b", "no/a")},
            "./_background_noise_/hum.wav": sound(),
        },
    ),
    "ljspeech": tar(
        "bz2",
        {
            "LJSpeech-1.1/metadata.csv": SENTENCES.encode(),
            **{f"LJSpeech-1.1/wavs/LJ-{i}.wav": sound() for i in (1, 2)},
        },
    ),
}
TOLD = {
    "esc50": [("dog", "train"), ("sea waves", "test")],
    "speech_commands": [
        ('a voice says "no"', "test"),
        ('a voice says "yes"', "train"),
        ('a voice says "yes"', "valid"),
    ],
    "ljspeech": [("Doctor A", None), ('"B, said he', None)],
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server of the archives, which may stop early, and notes what it is asked."""

    class Handler(BaseHTTPRequestHandler):
        asked: list[str | None] = []
        most = None  # bytes of an answer
        chunked = False  # whether an answer does not say how long it is

        def do_GET(self):
            name = self.path.strip("/")
            if name not in ARCHIVES:
                return self.send_error(404)
            start = self.headers.get("Range")
            self.asked.append(start)
            first = int(start[6:-1]) if start else 0
            content = ARCHIVES[name][first:]
            if first and not content:
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if self.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                return self.wfile.write(b"%x\r\n" % len(content) + content[: self.most])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: self.most])

        def log_message(self, *given):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        for name, content in ARCHIVES.items():
            known = sets.SETS[name].files[0].checksum and hashlib.sha256(content)
            checksum = known and f"sha256:{known.hexdigest()}"
            file = sets.File(f"http://127.0.0.1:{running.server_port}/{name}", checksum)
            local = replace(sets.SETS[name], files=(file,))
            monkeypatch.setitem(sets.SETS, name, local)
        monkeypatch.chdir(tmp_path)
        yield Handler
        running.shutdown()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_set_becomes_a_folder_to_train_on(name, server, tmp_path):
    out = sets.get(name, progress=False)
    folder = AudioFolder(out)
    told = [(said, row.get("part")) for said, row in zip(folder.captions, folder.rows)]
    assert told == TOLD[name]
    assert len(folder.wave(0)) == 8000 and not folder.faults()
    assert {row["licence"] for row in folder.rows} == {sets.SETS[name].licence}
    assert [path.name for path in (tmp_path / "recordings").iterdir()] == [name]
    sets.get(name, progress=False)
    assert len(server.asked) == 1  # it is there


def test_an_interrupted_download_goes_on(server, tmp_path):
    server.most = 100
    with pytest.raises(ValueError, match="100 of .* bytes: run the same again"):
        sets.get("ljspeech", progress=False)
    assert not (tmp_path / "recordings" / "ljspeech").exists()
    server.most = None
    sets.get("ljspeech", progress=False)
    assert server.asked == [None, "bytes=100-"]


def test_an_answer_of_unknown_length_that_ends_early_is_one_sentence(server, tmp_path):
    server.most, server.chunked = 100, True
    with pytest.raises(ValueError, match="can't be loaded .*goes on where it stopped"):
        sets.get("esc50", progress=False)


def test_what_was_loaded_whole_before_is_not_loaded_again(server, tmp_path):
    beside = tmp_path / "recordings" / "ljspeech.download"
    beside.mkdir(parents=True)
    (beside / "ljspeech.part").write_bytes(ARCHIVES["ljspeech"])
    assert len(AudioFolder(sets.get("ljspeech", progress=False))) == 2


def test_another_file_is_removed_and_one_sentence(server, monkeypatch, tmp_path):
    other = {**ARCHIVES, "ljspeech": ARCHIVES["ljspeech"] + b"x"}
    monkeypatch.setitem(ARCHIVES, "ljspeech", other["ljspeech"])
    with pytest.raises(ValueError, match="its sha256 is .*, not .*removed"):
        sets.get("ljspeech", progress=False)
    assert not list((tmp_path / "recordings").rglob("*.part"))


def test_a_damaged_archive_is_one_sentence(server, monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHIVES, "esc50", ARCHIVES["esc50"][:500])
    with pytest.raises(ValueError, match="esc50 is damaged"):
        sets.get("esc50", progress=False)
    assert not (tmp_path / "recordings" / "esc50").exists()


def test_too_small_a_disk_is_one_sentence_before_anything_is_loaded(
    server, monkeypatch, tmp_path
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(sets.shutil, "disk_usage", lambda path: usage(9, 9, 100))
    with pytest.raises(OSError, match="has 0.0 GB left: .* are needed"):
        sets.get("ljspeech", progress=False)
    assert not list((tmp_path / "recordings").rglob("*.part"))


def test_bad_names_and_places_are_one_sentence(server, tmp_path):
    with pytest.raises(ValueError, match="one of esc50, .*, not 'esc'"):
        sets.get("esc")
    with pytest.raises(ValueError, match="audiocaps: minilib can't download its sound"):
        sets.get("audiocaps")
    (tmp_path / "full").mkdir()
    with pytest.raises(ValueError, match="out must be a new folder"):
        sets.get("ljspeech", tmp_path / "full")
    missing = replace(sets.SETS["esc50"].files[0], url=server_of("none"))
    with pytest.raises(ValueError, match="none can't be loaded: HTTP Error 404"):
        sets.download(missing, tmp_path, progress=False)
    with pytest.raises(ValueError, match="can't be loaded .*goes on where it stopped"):
        sets.download(sets.File("http://127.0.0.1:9/x"), tmp_path, progress=False)


def server_of(name: str) -> str:
    return f"{sets.SETS['esc50'].files[0].url.rpartition('/')[0]}/{name}"


def test_the_command_lists_and_gets(server, tmp_path, capsys):
    assert not cli.main(["data", "list"])
    told = capsys.readouterr().out
    assert all(name in told for name in sets.SETS) and "CC BY-NC" in told
    assert not cli.main(["data", "get", "ljspeech", "--out", "lj"])
    told = capsys.readouterr().out
    assert "public domain" in told and "minilib train all --data lj" in told
    assert (tmp_path / "lj" / "metadata.csv").is_file()
    assert cli.main(["data", "check"]) == 2
    assert "check needs the folder" in capsys.readouterr().err
    assert cli.main(["data", "list", "ljspeech"]) == 2
    assert "list takes no name" in capsys.readouterr().err
    assert cli.main(["data", "check", "lj", "--out", "there"]) == 2
    assert "check takes no --out" in capsys.readouterr().err
