"""Real data sets by name: downloaded, checked, unpacked, and given the table that
`AudioFolder` reads.

    minilib data list
    minilib data get speech_commands

A download that was interrupted goes on where it stopped. Nothing of a set appears in
its folder before all of it is there.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from minilib.files import replacing, replacing_folder

UNPACKED = 2.0  # the most bytes that a byte of an archive becomes, about
BLOCK = 2**20
TIMEOUT = 60  # seconds without an answer
Rows = Iterator[dict[str, str]]


@dataclass(frozen=True)
class File:
    """A file of a set, and what it must hash to."""

    url: str
    checksum: str = ""  # "sha256:..." or "md5:..."; "" if its makers give none

    @property
    def name(self) -> str:
        """The name under which it is stored."""
        return self.url.partition("?")[0].rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """A data set: what it is, what it may be used for, and where it is."""

    about: str
    licence: str
    page: str
    files: tuple[File, ...] = ()  # () if only a list of links can be had
    rows: Callable[[Path], Rows] | None = None  # of the table, from what was unpacked

    @property
    def only_links(self) -> bool:
        """Whether no sounds can be downloaded, but a list of where they are."""
        return not self.files


def esc50(folder: Path) -> Rows:
    """A row for each clip of ESC-50: its class, and the fifth fold as test."""
    root = folder / "ESC-50-master"
    with (root / "meta" / "esc50.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row["category"]
            yield {
                "file_name": f"ESC-50-master/audio/{row['filename']}",
                "caption": name.replace("_", " "),
                "class": name,
                "part": "test" if row["fold"] == "5" else "train",
            }


def speech_commands(folder: Path) -> Rows:
    """A row for each word of Speech Commands, in the parts that its lists name."""
    listed = lambda name: set((folder / name).read_text().split())
    valid, test = listed("validation_list.txt"), listed("testing_list.txt")
    for path in sorted(folder.glob("*/*.wav")):
        word, name = path.parent.name, f"{path.parent.name}/{path.name}"
        if word.startswith("_"):  # noises to be mixed in
            continue
        part = "valid" if name in valid else "test" if name in test else "train"
        said = {"caption": f'a voice says "{word}"', "class": word}
        yield {"file_name": name, **said, "part": part}


def ljspeech(folder: Path) -> Rows:
    """A row for each sentence of LJSpeech, which has no parts."""
    table = folder / "LJSpeech-1.1" / "metadata.csv"
    for line in table.read_text(encoding="utf-8").splitlines():
        name, _, said = line.split("|")  # as written, and as read aloud
        yield {"file_name": f"LJSpeech-1.1/wavs/{name}.wav", "caption": said}


SPEECH_COMMANDS = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
LJSPEECH = "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5"
SETS = {
    "esc50": DataSet(
        "ESC-50: 2,000 recordings of 5 s in 50 classes; the captions are the classes",
        "CC BY-NC: weights trained on it are not free for every use",
        "https://github.com/karolpiczak/ESC-50",
        (File("https://github.com/karolpiczak/ESC-50/archive/master.zip"),),
        esc50,
    ),
    "speech_commands": DataSet(
        "Speech Commands 0.02: single English words of 1 s (1804.03209)",
        "CC BY 4.0",
        "https://arxiv.org/abs/1804.03209",
        (
            File(
                "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
                f"sha256:{SPEECH_COMMANDS}",
            ),
        ),
        speech_commands,
    ),
    "ljspeech": DataSet(
        "LJSpeech 1.1: 13,100 sentences of one English speaker, about 24 hours",
        "public domain",
        "https://keithito.com/LJ-Speech-Dataset",
        (
            File(
                "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
                f"sha256:{LJSPEECH}",
            ),
        ),
        ljspeech,
    ),
    "clotho": DataSet(
        "Clotho 2.1: recordings of 15 to 30 s with five captions each; its archives "
        "are .7z files, which are unpacked by hand",
        "its own, for non-commercial use; the sounds have various CC licences",
        "https://zenodo.org/records/4783391",
    ),
    "audiocaps": DataSet(
        "AudioCaps: captions of pieces of YouTube videos",
        "the captions' own; the sounds belong to those who made the videos",
        "https://github.com/cdjkim/audiocaps",
    ),
    "musiccaps": DataSet(
        "MusicCaps: captions of pieces of YouTube videos with music",
        "captions CC BY-SA 4.0; the sounds belong to those who made the videos",
        "https://huggingface.co/datasets/google/MusicCaps",
    ),
}


def listing() -> str:
    """All data sets as text: what each is, its licence, and whether it can be had."""
    lines = []
    for name, found in SETS.items():
        how = "no: see its page" if found.only_links else f"minilib data get {name}"
        lines += [name, f"  {found.about}", f"  licence   {found.licence}"]
        lines += [f"  page      {found.page}", f"  download  {how}", ""]
    return "\n".join(lines[:-1])


def get(name: str, out: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """Download a data set into the folder `out`, or into `recordings/NAME`.

    Raises:
        ValueError: the name is unknown, only links can be had, a checksum differs, an
            archive is damaged, or the server can't be reached.
        OSError: the disk has too little space, or can't be written.
    """
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)}, not {name!r}")
    wanted, out = SETS[name], Path(out or Path("recordings") / name)
    if wanted.only_links:
        said = "minilib can't download its sounds; its page says how to get them"
        raise ValueError(f"{name}: {said}: {wanted.page}")
    if (out / "metadata.csv").is_file():
        return out
    if out.exists():
        raise ValueError(f"out must be a new folder, not {str(out)!r}")
    beside = out.with_name(f"{out.name}.download")
    beside.mkdir(parents=True, exist_ok=True)
    archives = [download(file, beside, progress) for file in wanted.files]
    with replacing_folder(out) as folder:
        for archive in archives:
            unpack(archive, folder)
        write_table(wanted, name, folder)
    shutil.rmtree(beside)
    return out


def download(file: File, folder: Path, progress: bool = True) -> Path:
    """The file in `folder`, whole and checked; what is there already is not loaded
    again.
    """
    path = folder / file.name
    if path.is_file():
        return path
    half = path.with_name(f"{path.name}.part")
    done = half.stat().st_size if half.is_file() else 0
    with asked(file.url, done) as answer:
        if answer.status != 206:  # it sends everything
            done = 0
        if answer.status != 416:  # all of it is there
            left = int(answer.headers.get("Content-Length") or 0)
            check_space(folder, left, round(UNPACKED * (done + left)))
            shown = {"initial": done, "total": done + left or None, "unit": "B"}
            shown |= {"unit_scale": True, "disable": not progress, "desc": file.name}
            with half.open("ab" if done else "wb") as target, tqdm(**shown) as bar:
                got = 0
                for block in iter(lambda: answer.read(BLOCK), b""):
                    target.write(block)
                    got += len(block)
                    bar.update(len(block))
            if got < left:
                said = f"{file.url} ended after {done + got} of {done + left} bytes"
                raise ValueError(f"{said}: run the same again, and it goes on there")
    check_sum(file, half)
    os.replace(half, path)
    return path


@contextmanager
def asked(url: str, start: int) -> Iterator[urllib.request.addinfourl]:
    """The answer to a request for a file from its byte `start` on."""
    headers = {
        "User-Agent": "minilib",
        **({"Range": f"bytes={start}-"} if start else {}),
    }
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise ValueError(f"{url} can't be loaded: {error}") from error
        yield error
    except (
        *(urllib.error.URLError, HTTPException),
        *(ConnectionError, TimeoutError),
    ) as error:
        again = "run the same again, and it goes on where it stopped"
        raise ValueError(f"{url} can't be loaded ({error}): {again}") from error


def check_space(folder: Path, left: int, unpacked: int) -> None:
    """Raise OSError if the disk can't hold what is left to load, and what is in it."""
    free = shutil.disk_usage(folder).free
    if left + unpacked > free:
        need = f"{(left + unpacked) / 1e9:.1f} GB are needed to load and unpack it"
        raise OSError(f"{str(folder)!r} has {free / 1e9:.1f} GB left: {need}")


def check_sum(file: File, path: Path) -> None:
    """Raise ValueError, and remove the file, if it is not the one that is known."""
    if not file.checksum:
        return
    kind, _, known = file.checksum.partition(":")
    found = hashlib.new(kind)
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(BLOCK), b""):
            found.update(block)
    if found.hexdigest() != known:
        path.unlink()
        said = f"its {kind} is {found.hexdigest()}, not {known}: it has been removed"
        raise ValueError(f"{file.url} is not the file that is known: {said}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar file; nothing is written outside of the folder."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        archive.unlink()
        said = "it has been removed: run the same again"
        raise ValueError(f"{archive} is damaged ({error}): {said}") from error


def write_table(wanted: DataSet, name: str, folder: Path) -> None:
    """Write `metadata.csv`, with the licence in each row."""
    try:
        rows = [{**row, "licence": wanted.licence} for row in wanted.rows(folder)]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{name} is not laid out as it was: {error}") from error
    if not rows:
        raise ValueError(f"{name} is not laid out as it was: it holds no sounds")
    with replacing(folder / "metadata.csv") as path:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
