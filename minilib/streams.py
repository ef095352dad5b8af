"""Data sets that are larger than memory: rows stay on disk, in Arrow files that Hugging
Face `datasets` maps, and each clip is read when it is asked for.

A source is a folder with a table of more than CHECKED rows, as `AudioFolder` reads
smaller ones; Arrow, Parquet or WebDataset (.tar) files, or a folder of them; what
`Dataset.save_to_disk` wrote; or a data set of the hub, "user/name".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from minilib import audio, tables
from minilib.data import CHECKED, TOLD, reason
from minilib.readers import Readers
from minilib.soundworld.corpus import to_float

PLACES = 1024  # places in a recording at which a clip may begin
SAMPLE = 1000  # rows that are checked before training, if there are more than CHECKED
MOST_BAD = 100  # rows one after the other that may be unusable
MOST_WORKERS = 4  # reading processes, unless more are asked for
CHUNK = 64  # clips that are read at a time, where many are asked for at once
CAPTIONS = 20_000  # captions from which words are taken
BLOCKS = 50  # places from which these are taken
IDENTITY = 256  # rows that tell one data set from another
BUILDERS = {".arrow": "arrow", ".parquet": "parquet", ".tar": "webdataset"}
TEXT_TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".parquet": "parquet"}
FILES = (*tables.FILE_COLUMNS, "audio", "path")  # columns that may name sound files
SAID = (*tables.CAPTION_COLUMNS, "txt", "json")  # columns that may hold captions
SOUNDS = (".flac", ".wav", ".ogg", ".opus", ".mp3")  # in WebDataset files
HUB_ID = r"[\w.-]+/[\w.-]+"


class Stream:
    """Captioned recordings that are read when they are asked for, as clips of one
    length. Only the clips of the last few batches are in memory.

    Clip i is cut from row i % N of the N rows, at place i // N of PLACES places, which
    are spread evenly over the recording; place 0 is its beginning. A clip depends on
    its index alone, so that whoever draws the same indices hears the same clips.

    In a data set of more than CHECKED rows, a row without a usable file and caption is
    skipped: its clips are those of the next usable row. `skipped` says why.

    Args:
        rows: the data set; its columns of files and captions are found by type and
            name.
        folder: what the names of files are relative to.
        seconds: length of the clips.
        name: of the source, in sentences.
        workers: processes that read; 0 reads in this process.

    Raises:
        ValueError: there are no rows, or no column of files or captions.
    """

    def __init__(
        self,
        rows: Any,
        folder: str | os.PathLike,
        seconds: float,
        name: str,
        workers: int | None = None,
    ) -> None:
        if len(rows) == 0:
            raise ValueError(f"{name} has no rows")
        self.name, self.folder, self.n_rows = name, Path(folder), len(rows)
        self.columns = list(rows.column_names)
        self.n_samples = round(seconds * audio.SAMPLE_RATE)
        if self.n_samples < 1:
            raise ValueError(f"seconds must be above 0, not {seconds}")
        self._file, rows = _file_column(rows, name)
        self._caption = _caption_column(rows, name)
        self._files = rows.select_columns([self._file])
        self._said = rows.select_columns([self._caption])
        self.captions = Captions(self)
        n = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
        self.readers = Readers(self.n_samples, n)
        self.check: Callable[[str], Any] = lambda caption: None  # raises ValueError
        self.skipped: dict[int, str] = {}  # by row
        self.warned = False  # that rows are skipped
        # pieces that are together as long as a recording is on average
        self.covered = 1
        # places at which clips begin: all, or as many as there are pieces
        self.grid = places(PLACES)
        self._asked: dict[int, Future[np.ndarray]] = {}  # by clip, oldest first
        self._kept = 0  # the most clips that are kept

    def __len__(self) -> int:
        return self.n_rows

    def drawn(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw clips (n,): different rows if there are enough, each at any place of the
        grid.
        """
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = np.random.default_rng(seed)
        rows = rng.choice(self.n_rows, n, replace=n > self.n_rows)
        k = rng.integers(len(self.grid), size=n)
        return torch.from_numpy(rows + self.n_rows * self.grid[k])

    def cut(self, pieces: int | None = None) -> None:
        """Let clips be drawn from so many pieces of each recording, which are spread
        evenly, or from all.
        """
        self.grid = places(pieces or PLACES)

    def clips(self, numbers: Sequence[int]) -> list[int]:
        """The clips of the grid with these numbers: first one of every row, then the
        next.
        """
        n = self.n_rows
        return [i % n + n * int(self.grid[i // n]) for i in numbers]

    def numbers(self, clips: Sequence[int] | torch.Tensor) -> list[int]:
        """The numbers of clips of the grid."""
        n, clips = self.n_rows, np.array(_whole(clips), dtype=np.int64)
        return (clips % n + n * np.searchsorted(self.grid, clips // n)).tolist()

    @contextmanager
    def unprejudiced(self) -> Iterator[dict[int, str]]:
        """Settle clips as if no row had been skipped before; yields those that are
        skipped inside.
        """
        known, self.skipped = self.skipped, {}
        try:
            yield self.skipped
        finally:
            self.skipped = known

    def ahead(self, indices: Sequence[int] | torch.Tensor) -> None:
        """Let the processes begin to read clips that will be asked for."""
        wanted = _whole(indices)
        # those of the batch in work, of this one and the next, and some in their place
        self._kept = max(self._kept, 4 * len(wanted))
        for i in wanted:
            with _passing():
                self._ask(i)
        for i in list(self._asked)[: max(0, len(self._asked) - self._kept)]:
            del self._asked[i]

    def settled(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """These clips (n,), with usable ones in the place of those that are not."""
        found = [self._settle(i) for some in self._asked_for(indices) for i in some]
        return torch.tensor(found)

    def wave(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The clips (n,) as a float32 batch (n, n_samples) in [-1, 1]."""
        waves = np.empty((len(indices), self.n_samples), dtype=np.int16)
        places = iter(waves)
        for some in self._asked_for(indices):
            for i in some:
                next(places)[:] = self._ask(self._settle(i)).result()
        return torch.from_numpy(to_float(waves))

    def caption(self, index: int) -> str:
        """The caption of a clip; "" if its row has none."""
        return _text(self._said[index % self.n_rows][self._caption])

    def said(self, row: int) -> str:
        """The caption of a row; "" if it can't be used."""
        caption = self.caption(row)
        try:
            return "" if self._unsaid(caption) else caption
        except ValueError:
            return ""

    def source(self, row: int) -> str | bytes:
        """The path of the file of a row, or all its bytes."""
        sound, named = self._cell(row)
        if sound:
            return sound
        if not named:
            raise ValueError("no file")
        path = self.folder / named
        if not path.is_file():
            raise FileNotFoundError(f"the file {named!r} is missing")
        return str(path)

    def some(self, most: int) -> list[int]:
        """The first clips of all rows, or of `most` drawn from a fixed seed."""
        if most >= self.n_rows:
            return list(range(self.n_rows))
        rng = np.random.default_rng(0)
        return sorted(rng.choice(self.n_rows, most, replace=False).tolist())

    def sample(self) -> list[str]:
        """The captions of all rows, or of CAPTIONS of them, in blocks of neighbours,
        which touch less of the file; none is "".
        """
        rows = range(self.n_rows)
        if self.n_rows > CAPTIONS:
            starts = (k * self.n_rows // BLOCKS for k in range(BLOCKS))
            n = CAPTIONS // BLOCKS
            rows = [row for start in starts for row in range(start, start + n)]
        return [said for said in map(self.caption, rows) if said]

    def identity(self) -> Iterator[bytes]:
        """What tells this data set from others: its columns, its length, some rows."""
        sizes = [self.n_rows, self.n_samples, PLACES, sorted(self.columns)]
        yield json.dumps(sizes).encode()
        for row in self.some(IDENTITY):
            sound, named = self._cell(row)
            yield hashlib.sha256(sound).digest() if sound else named.encode()
            yield self.caption(row).encode()

    def report(self, others: dict[int, str] | None = None) -> str:
        """How many rows were skipped, and why, as one line; "" if none. `others` were
        skipped by other processes, or before.
        """
        skipped = {**(others or {}), **self.skipped}
        if not skipped:
            return ""
        told = [f"row {row + 1}: {why}" for row, why in sorted(skipped.items())]
        more = f"; and {len(told) - TOLD} more" * (len(told) > TOLD)
        many = f"{len(told)} of {self.n_rows} rows of {self.name} skipped"
        return f"{many}: {'; '.join(told[:TOLD])}{more}"

    def faults(self, most: int | None = None, progress: bool = False) -> Found:
        """What is wrong with the rows, or with `most` of them: captions, missing files,
        headers.
        """
        found, known = Found(), {}
        rows = range(self.n_rows) if most is None else self.some(most)
        shown = {"desc": self.name, "unit": "row", "disable": not progress}
        for row in tqdm(rows, **shown):
            sound, named = self._cell(row)
            # a file may have several captions
            if sound or named not in known:
                known[named or str(row)] = self._header(row, found)
            try:
                wrong = known[named or str(row)] or self._unsaid(self.caption(row))
            except ValueError as error:
                wrong = str(error)
            if wrong:
                found.faults.append(f"{self.name}, row {row + 1}: {wrong}")
        found.rows, found.files = len(rows), len(known)
        return found

    def close(self) -> None:
        """End the reading processes."""
        self.readers.close()

    def _cell(self, row: int) -> tuple[bytes | None, str]:
        """The sound in a row, if it holds one, and the name of its file."""
        given = self._files[row][self._file]
        if isinstance(given, bytes):
            return given, ""
        if isinstance(given, dict):
            return given.get("bytes"), _text(given.get("path"))
        return None, _text(given)

    def _header(self, row: int, found: Found) -> str:
        try:
            source = self.source(row)
            path = BytesIO(source) if isinstance(source, bytes) else source
            seconds, rate = audio.header(path)
        except (ValueError, OSError) as error:
            return reason(error)
        found.seconds += seconds
        found.rates[rate] += 1
        return ""

    def _unsaid(self, caption: str) -> str:
        if not caption:
            return "no caption"
        self.check(caption)
        return ""

    def _asked_for(
        self, indices: Sequence[int] | torch.Tensor
    ) -> Iterator[Sequence[int]]:
        """Clips a few at a time, all of which the processes have begun to read."""
        wanted = _whole(indices)
        for start in range(0, len(wanted), CHUNK):
            some = wanted[start : start + CHUNK]
            self.ahead(some)
            yield some

    def _ask(self, index: int) -> Future[np.ndarray]:
        if index not in self._asked:
            row, place = index % self.n_rows, index // self.n_rows
            source = self.source(row)
            self._asked[index] = self.readers.read(source, place / (PLACES - 1))
        return self._asked[index]

    def _settle(self, index: int) -> int:
        place = index // self.n_rows
        for step in range(min(MOST_BAD, self.n_rows)):
            row = (index + step) % self.n_rows
            if row in self.skipped:
                continue
            found = row + self.n_rows * place
            try:
                if wrong := self._unsaid(self.caption(row)):
                    raise ValueError(wrong)
                self._ask(found).result()
                return found
            except (ValueError, OSError) as error:
                self._skip(row, reason(error))
        first = self.skipped[index % self.n_rows]
        many = f"{min(MOST_BAD, self.n_rows)} rows of {self.name} one after the other"
        raise ValueError(
            f"{many} can't be used, from row {index % self.n_rows + 1} on: {first}"
        )

    def _skip(self, row: int, why: str) -> None:
        if self.n_rows <= CHECKED:
            raise ValueError(f"{self.name}, row {row + 1}: {why}")
        if not self.warned:
            said = f"{self.name}, row {row + 1} is skipped, as all like it will be"
            warnings.warn(f"{said}: {why}", stacklevel=5)
            self.warned = True
        self.skipped[row] = why


class Captions(Sequence[str]):
    """The captions of a stream's clips, each read when it is asked for."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.stream.caption(i) for i in range(*index.indices(len(self)))]
        return self.stream.caption(index)

    def __iter__(self) -> Iterator[str]:
        return map(self.stream.caption, range(len(self)))


class Found:
    """The findings of a check of a stream: how much it holds, and its faults."""

    def __init__(self) -> None:
        self.rows, self.files, self.seconds = 0, 0, 0.0
        self.rates: Counter[int] = Counter()  # files by sample rate
        self.faults: list[str] = []

    def report(self, stream: Stream) -> str:
        """All findings as text, line by line."""
        rates = ", ".join(f"{rate} Hz ({n})" for rate, n in self.rates.most_common())
        many = f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)}"
        lines = [
            f"source      {stream.name}",
            f"columns     {', '.join(stream.columns)}",
            f"rows        {self.rows} of {len(stream)}",
            f"files       {self.files}, {self.seconds / 3600:.2f} hours",
            f"rates       {rates}",
            *("", f"{many}{':' * bool(self.faults)}"),
        ]
        return "\n".join([*lines, *(f"  {fault}" for fault in self.faults)])


# --------------------------------------------------------------------------------------
# Sources


def is_stream(where: str | os.PathLike) -> bool:
    """Whether `open_stream` reads this source, and not `AudioFolder`."""
    path = Path(where)
    if path.is_dir():
        if found := _tables(path):
            return sum(map(n_rows, found)) > CHECKED
        return bool(_saved(path) or _shards(path))
    return path.suffix in BUILDERS or _is_hub_id(where)


def open_stream(
    where: str | os.PathLike,
    seconds: float,
    part: str = "train",
    progress: bool = False,
    workers: int | None = None,
) -> Stream:
    """Open a data set as clips of `seconds`.

    What is not Arrow already is converted once into `datasets`' own cache on disk
    (HF_HOME says where it lies).

    Args:
        where: any of the sources that the module lists.
        part: the split, or the value in the column `part`, if there are any.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: `datasets` is not installed, or the source can't be read by it.
    """
    path = Path(where)
    with _readable(where, progress) as datasets:
        found = _tables(path)
        if path.is_dir() and (path / "dataset_info.json").is_file():
            rows, folder = datasets.load_from_disk(str(path)), path
        elif path.is_dir() and _saved(path):
            split = _split(json.loads(_saved(path).read_text())["splits"], part)
            rows, folder = datasets.load_from_disk(str(path / split)), path
        elif found:
            found = _of_part(found, part)
            folder = found[0].parent
            if len(found) > 1:
                names = " and ".join(map(str, found))
                raise ValueError(f"{names} must be one table for part {part!r}")
            rows = _loaded(datasets, TEXT_TABLES[found[0].suffix], found)
        elif path.exists():
            files = [path] if path.is_file() else _of_part(_shards(path), part)
            if not files or files[0].suffix not in BUILDERS:
                known = ", ".join(BUILDERS)
                raise ValueError(f"{str(where)!r} holds no table, nor {known} files")
            folder = path if path.is_dir() else path.parent
            rows = _loaded(datasets, BUILDERS[files[0].suffix], files)
        elif _is_hub_id(where):
            name, folder = path.as_posix(), Path()
            split = _split(datasets.get_dataset_split_names(name), part)
            rows = datasets.load_dataset(name, split=split)
        else:
            raise FileNotFoundError(f"there is no folder or file {str(where)!r}")
        if "part" in rows.column_names:
            rows = _chosen(rows, part, str(where))
    import pyarrow

    pyarrow.default_memory_pool().release_unused()  # what the conversion took
    return Stream(rows, folder, seconds, str(where), workers)


def places(n: int) -> np.ndarray:
    """Places (n,) that are spread evenly over a recording, the first at its beginning;
    at most PLACES.
    """
    return np.linspace(0, PLACES - 1, min(n, PLACES)).round().astype(np.int64)


def n_rows(table: Path) -> int:
    """About how many rows a table has: as many as it has lines, or as Parquet says."""
    if table.suffix == ".parquet":
        try:
            from pyarrow import parquet

            return parquet.ParquetFile(table).metadata.num_rows
        except Exception:  # `tables` says what is wrong
            return 0
    with table.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(2**20), b""))


@contextmanager
def _readable(where: str | os.PathLike, progress: bool) -> Iterator[Any]:
    """The module `datasets`; a sentence for whatever it raises about a source."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"reading {str(where)!r} needs datasets, which is not installed: "
            "pip install datasets"
        ) from error
    if not progress:
        datasets.disable_progress_bars()
    try:
        yield datasets
    except (FileNotFoundError, ValueError) as error:
        if str(where) in str(error) and type(error) in (FileNotFoundError, ValueError):
            raise
        raise ValueError(f"{str(where)!r} can't be read: {_first(error)}") from error
    except Exception as error:  # datasets and pyarrow raise kinds of their own
        local = Path(where).exists()
        missing = f"there is no folder {str(where)!r}, and the hub did not provide it"
        told = f"{str(where)!r} can't be read" if local else missing
        raise ValueError(f"{told}: {_first(error)}") from error


def _loaded(datasets: Any, builder: str, files: Sequence[Path]) -> Any:
    """The rows of files of one kind."""
    given: dict[str, Any] = {"data_files": [str(file) for file in files]}
    if builder == "csv":
        separator, names = tables.layout(files[0])
        names = [name or f"unnamed_{i}" for i, name in enumerate(names)]
        text = datasets.Features({name: datasets.Value("string") for name in names})
        given |= {"sep": separator, "column_names": names, "skiprows": 1}
        given |= {"features": text, "na_filter": False, "skipinitialspace": True}
        given["encoding"] = "utf-8-sig"
    if builder == "parquet":
        given["batch_size"] = SAMPLE  # otherwise whole row groups are in memory
    if builder == "webdataset":
        given["features"] = _tar_features(datasets, files[0])
    return datasets.load_dataset(builder, split="train", **given)


def _tar_features(datasets: Any, file: Path) -> Any:
    """The sound and the caption of each sample in a WebDataset file, as its first
    sample has them. (Left to itself, `datasets` needs torchcodec for the sounds.)
    """
    found, first = {}, None
    with tarfile.open(file) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            key, _, kind = member.name.rpartition("/")[2].partition(".")
            if first not in (None, key):
                break
            first = key
            if f".{kind.rpartition('.')[2].lower()}" in SOUNDS and "sound" not in found:
                found["sound"] = {kind: datasets.Value("binary")}
            elif kind in SAID and kind != "json":
                found["said"] = {kind: datasets.Value("string")}
            elif kind == "json" and "said" not in found:
                known = json.loads(tar.extractfile(member).read())
                keys = [x for x in tables.CAPTION_COLUMNS if x in known]
                text = {x: datasets.Value("string") for x in keys}
                found |= {"said": {kind: text}} if text else {}
    if set(found) != {"sound", "said"}:
        held = "a sound (.flac, .wav) and a caption (.txt, or in .json)"
        raise ValueError(f"{file} must hold samples of {held}")
    return datasets.Features({**found["sound"], **found["said"]})


def _chosen(rows: Any, part: str, name: str) -> Any:
    """The rows of one part."""
    from pyarrow import compute

    known = rows.select_columns(["part"]).with_format("arrow")[:]["part"]
    wanted = np.flatnonzero(compute.equal(known, part).to_numpy(zero_copy_only=False))
    if not len(wanted):
        there = ", ".join(sorted(map(str, compute.unique(known).to_pylist())))
        raise ValueError(f"{name} has no row with part {part!r}; it has {there}")
    return rows if len(wanted) == len(rows) else rows.select(wanted)


def _split(names: Iterable[str], part: str) -> str:
    """The split that is a part: its name, another name of it, or the only one."""
    names = list(names)
    same = [x for x in names if tables.PARTS.get(x.lower(), x) == part]
    if not same and len(names) > 1:
        raise ValueError(f"there is no split {part!r}; there are {', '.join(names)}")
    return (same or names)[0]


def _of_part(files: Sequence[Path], part: str) -> list[Path]:
    """Those files whose name or folder says that they are of one part; all if none
    does.
    """

    def parts(file: Path) -> set[str | None]:
        words = re.split(r"[-_.]", file.name.lower())[0], file.parent.name.lower()
        return {tables.PARTS.get(word) for word in words}

    return [file for file in files if part in parts(file)] or list(files)


def _saved(folder: Path) -> Path | None:
    """The file by which `datasets` knows a folder that it has written."""
    names = ("dataset_info.json", "dataset_dict.json")
    return next((folder / x for x in names if (folder / x).is_file()), None)


def _tables(folder: Path) -> list[Path]:
    """The tables by which `AudioFolder` would read a folder; none if there are none."""
    try:
        return tables.find(folder)
    except FileNotFoundError:
        return []


def _shards(folder: Path) -> list[Path]:
    """The files of the first kind in BUILDERS that a folder, or a folder directly in
    it, holds.
    """
    for suffix in BUILDERS:
        found = sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"*/*{suffix}")])
        if found:
            return found
    return []


def _is_hub_id(where: str | os.PathLike) -> bool:
    """Whether this is called like a data set of the hub, and there is no such path."""
    path = Path(where)
    if path.suffix in (*BUILDERS, *TEXT_TABLES) or path.parent.exists():
        return False
    return bool(re.fullmatch(HUB_ID, path.as_posix()))


def _file_column(rows: Any, name: str) -> tuple[str, Any]:
    """The column that holds sounds or names files, and the rows with its bytes as they
    are: nothing is decoded.
    """
    from datasets import Audio

    for column, kind in rows.features.items():
        if isinstance(kind, Audio):
            return column, rows.cast_column(column, Audio(decode=False))
    for column, kind in rows.features.items():
        named = column in FILES and (isinstance(kind, dict) or kind.dtype == "string")
        if named or f".{column.rpartition('.')[2].lower()}" in SOUNDS:
            return column, rows
    columns = ", ".join(rows.column_names)
    raise ValueError(f"{name} has columns {columns}, but none of sounds: 'file_name'")


def _caption_column(rows: Any, name: str) -> str:
    """The column of captions."""
    for column in SAID:
        if column in rows.features:
            return column
    columns = ", ".join(rows.column_names)
    raise ValueError(f"{name} has columns {columns}, but none of captions: 'caption'")


def _text(value: Any) -> str:
    """A caption or a name as text; of several captions, or of WebDataset's JSON, the
    first that says something.
    """
    if isinstance(value, dict):
        value = next((value[x] for x in tables.CAPTION_COLUMNS if value.get(x)), "")
    if isinstance(value, list):
        value = next(filter(None, value), "")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return "" if value is None else str(value).strip()


def _whole(indices: Sequence[int] | torch.Tensor) -> list[int]:
    return [int(i) for i in indices]


@contextmanager
def _passing() -> Iterator[None]:
    """Leave what is wrong with a clip to the moment when it is needed."""
    try:
        yield
    except (ValueError, OSError):
        pass


def _first(error: Exception) -> str:
    """The first line of the text of an error, or of what caused it; or its kind."""
    while error.__cause__ and not isinstance(error.__cause__, ModuleNotFoundError):
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
