"""Data sets: a folder of recordings with captions, and a set of clips of equal length
to train on (chapter 01).

`AudioFolder` reads the Hugging Face audiofolder convention: sound files and a table
beside them. `Corpus` holds clips of one length in memory (or mapped from disk), from
SoundWorld or from a folder.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import audio, tables
from .files import replacing_folder
from .soundworld import SoundWorld
from .soundworld.corpus import INT16, to_float
from .tables import Row

# Licences, in any version, of recordings on which weights may be trained that are
# themselves CC BY.
OPEN_LICENCES = ("CC0", "public domain", "CC BY")
TOLD = 20  # the most faults that an error lists
SILENT = "is digital silence"
CHECKED = 10_000  # the most rows whose files are checked before training


class AudioFolder:
    """Recordings in a folder laid out by the Hugging Face audiofolder convention: sound
    files and a table.

    The table is the first of TABLES that exists: `metadata.csv` (or `manifest.csv`),
    separated by commas, semicolons or tabs, `metadata.jsonl`, or `metadata.parquet`,
    for which pyarrow must be installed. File names are in the column `file_name` (or
    `audio_file_name`, or `file`), with / or \\ between folders; captions are in
    `caption` or `text`. Text is UTF-8, or UTF-16 with a byte-order mark. If the folder
    itself has no table, the tables in the folders directly below it are read together;
    file names are relative to each table, and rows without a `part` take it from the
    name of their folder (train, test, valid). Tables in deeper folders are ignored.

    `folder[i]` is (wave (N,), caption, row); the row is a dict of all columns.

    Args:
        folder: the folder with the table; file names are relative to it.
        part: keep only rows with this value in the column `part` ("train").
        licences: keep only rows whose column `licence` (or `license`) is one of these,
            in any version; OPEN_LICENCES allow CC BY weights.
        captions: False lets rows have no caption (it is then "").
        strict: False keeps faults for `faults` to list, and leaves out rows that can't
            be read.

    Raises:
        FileNotFoundError: there is no folder or no table, or rows name missing files.
        ValueError: a line is not a row, a column is missing, rows have no caption, or
            no rows are left; one sentence lists all faults, with file and line.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        part: str | None = None,
        licences: Collection[str] | None = None,
        captions: bool = True,
        strict: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.tables: list[Path] = tables.find(self.folder)
        self.rows: list[Row]
        self.rows, self._faults = tables.read(self.tables)
        if part is not None and self.rows:
            self._keep("part", part, lambda row: row["part"] == part)
        if licences is not None and self.rows:
            column = "license" if "license" in self.rows[0] else "licence"
            allowed = {_licence_name(licence) for licence in licences}
            self._keep(
                column,
                ", ".join(licences),
                lambda row: _licence_name(row[column]) in allowed,
            )
        self.captions: list[str]
        self.captions, uncaptioned = tables.captions(self.rows, captions)
        self._faults = [*self._faults, *uncaptioned]
        missing = tables.missing(self.rows)
        if strict and (self._faults or missing):
            kind = ValueError if self._faults else FileNotFoundError
            raise kind(told([*self._faults, *missing], self.folder))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, Row]:
        return self.wave(index), self.captions[index], self.rows[index]

    def wave(self, index: int) -> torch.Tensor:
        """Recording `index` as (N,) float32 in [-1, 1] at 16 kHz."""
        return audio.load(self.path(index))

    def path(self, index: int) -> Path:
        """The file of recording `index`."""
        return self.rows[index].path

    def faults(self, most: int | None = CHECKED) -> list[str]:
        """Everything that is wrong with the folder, one sentence per fault, with file
        and line: lines, columns, captions, missing and unreadable files, silence.

        Args:
            most: the number of rows whose files are opened, spread evenly over the
                table; a tenth as many are read to the end. None checks all of them.
        """
        return self.examine(most).faults

    def examine(self, most: int | None = None, progress: bool = False) -> Findings:
        """What the folder holds and what is wrong with it; `most` as for `faults`."""
        found = Findings(self)
        found.faults = [*self._faults, *tables.missing(self.rows)]
        # a file may have several captions
        files = {
            row.path: row
            for row in _spread(self.rows, most)
            if os.path.isfile(row.path)
        }
        heard = set(_spread(list(files), None if most is None else most // 10))
        shown = {"desc": self.folder.name, "unit": "file", "disable": not progress}
        for path, row in tqdm(files.items(), **shown):
            found.look(path, row, path in heard)
        return found

    def by(self, column: str) -> dict[str, AudioFolder]:
        """The recordings grouped by the values of a column; one group under "" if there
        is no such column.
        """
        parts: dict[str, AudioFolder] = {}
        for value in sorted({row.get(column, "") for row in self.rows}):
            chosen = [
                i for i, row in enumerate(self.rows) if row.get(column, "") == value
            ]
            parts[value] = copy.copy(self)
            parts[value].rows = [self.rows[i] for i in chosen]
            parts[value].captions = [self.captions[i] for i in chosen]
        return parts

    def _keep(self, column: str, wanted: str, keep) -> None:
        said = " and ".join(map(str, self.tables))
        if column not in self.rows[0]:
            raise ValueError(
                f"{said} has no column {column!r} in which to find {wanted!r}; its "
                f"columns are {', '.join(self.rows[0])}"
            )
        there = sorted({row[column] for row in self.rows})
        self.rows = [row for row in self.rows if keep(row)]
        if not self.rows:
            raise ValueError(
                f"{said} has no row with {column} {wanted!r}; it has {', '.join(there)}"
            )


def of_part(folder: str | os.PathLike, part: str) -> AudioFolder:
    """The captioned recordings of one part ("train", "test"), or all if the table has
    no parts.
    """
    every = AudioFolder(folder)
    return AudioFolder(folder, part=part) if "part" in every.rows[0] else every


def told(faults: Sequence[str], folder: str | os.PathLike) -> str:
    """Faults as one sentence for an error: the first TOLD of them, and their number."""
    if len(faults) == 1:
        return faults[0]
    more = len(faults) - TOLD
    rest = f"; and {more} more: minilib data check {folder}" if more > 0 else ""
    numbered = (f"({i + 1}) {fault}" for i, fault in enumerate(faults[:TOLD]))
    return f"{str(folder)!r} has {len(faults)} faults: {'; '.join(numbered)}{rest}"


@dataclass
class Findings:
    """The findings of a check of a folder: how much it holds, and one sentence per
    fault.
    """

    folder: AudioFolder
    seconds: float = 0.0  # total length of the files that were opened
    rates: Counter[int] = field(default_factory=Counter)  # files by sample rate
    faults: list[str] = field(default_factory=list)
    # recordings that are changed as they are read: louder than 1, cancelling channels
    notes: list[str] = field(default_factory=list)

    def look(self, path: Path, row: Row, hear: bool) -> None:
        """Check a file: its header and, if `hear`, all of its samples."""
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                seconds, rate = audio.header(path)
                if hear and not _audible(audio.read(path)[0]).any():
                    self.faults.append(f"{row.place}: {str(path)!r} {SILENT}")
        except (ValueError, OSError) as error:
            self.faults.append(f"{row.place}: {reason(error)}")
            return
        self.seconds += seconds
        self.rates[rate] += 1
        self.notes += [f"{row.place}: {note.message}" for note in said]

    def report(self) -> str:
        """All findings as text, line by line."""
        rows, tables = self.folder.rows, self.folder.tables
        columns = ", ".join(rows[0]) if rows else "none that can be read"
        n, hours = sum(self.rates.values()), self.seconds / 3600
        lines = [
            f"tables      {', '.join(map(str, tables))}",
            f"columns     {columns}",
            f"rows        {len(rows)}, {len(set(self.folder.captions))} captions",
            f"files       {n}, {hours:.2f} hours",
            f"rates       {_counts({f'{k} Hz': self.rates[k] for k in self.rates})}",
        ]
        for name, column in (("parts", "part"), ("classes", "class")):
            if rows and column in rows[0]:
                counts = _counts(Counter(row[column] for row in rows))
                lines.append(f"{name:12}{counts}")
        for name, sentences in (("note", self.notes), ("fault", self.faults)):
            if sentences or name == "fault":
                many = f"{len(sentences)} {name}{'s' * (len(sentences) != 1)}"
                lines += ["", f"{many}{':' * bool(sentences)}"]
                lines += [f"  {sentence}" for sentence in sentences]
        return "\n".join(lines)


def _counts(counts: dict[str, int], most: int = 40) -> str:
    """Names and how often each occurs, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name!s} ({n})" for name, n in ordered[:most])
    return shown + f" and {len(ordered) - most} more" * (len(ordered) > most)


def _spread(items: Sequence, most: int | None) -> Sequence:
    """All items, or `most` of them, spread evenly from the first to the last."""
    if most is None or len(items) <= max(1, most):
        return items
    n = max(1, most)
    return [items[i * len(items) // n] for i in range(n)]


def _audible(samples: np.ndarray) -> np.ndarray:
    """Which samples in [-1, 1] are not 0 when stored in 16 bits."""
    return np.round(samples * INT16) != 0


def _licence_name(licence: str) -> str:
    """A licence without its version: "CC BY 3.0" and "cc-by-4.0" are both "cc by"."""
    return (
        re.sub(r"[\s-]+v?\d+(\.\d+)*$", "", licence.strip()).replace("-", " ").lower()
    )


class Corpus:
    """Clips of one length to train on: `waves` int16 (N, n_samples), in memory or
    mapped from disk, and N `captions`.
    """

    def __init__(self, waves: np.ndarray, captions: Sequence[str]) -> None:
        if waves.ndim != 2 or waves.dtype != np.int16:
            raise ValueError(
                f"waves must be int16 (N, n_samples), not {waves.dtype} {waves.shape}"
            )
        if len(waves) != len(captions):
            raise ValueError(
                f"there must be as many captions as waves, not {len(captions)} for "
                f"{len(waves)}"
            )
        self.waves, self.captions = waves, list(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def wave(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """The clips at `indices` (B,) as a float32 batch (B, n_samples) in [-1, 1]."""
        return torch.from_numpy(to_float(self.waves[np.asarray(indices)]))

    @classmethod
    def from_soundworld(
        cls, world: SoundWorld, n: int, progress: bool = True, workers: int = 1
    ) -> Corpus:
        """Render the first `n` clips of a SoundWorld; the result is the same for any
        number of processes.

        With `workers` > 1, new processes are spawned, so a script needs the usual
        `if __name__ == "__main__":`.
        """
        if n < 1 or workers < 1:
            raise ValueError(f"n and workers must be at least 1, not {n} and {workers}")
        waves, captions = np.empty((n, world.n_samples), dtype=np.int16), []
        with tqdm(total=n, desc="SoundWorld", unit="clip", disable=not progress) as bar:
            for samples, told in _render_chunks(world, n, workers):
                waves[len(captions) : len(captions) + len(told)] = samples
                captions.extend(told)
                bar.update(len(told))
        return cls(waves, captions)

    @classmethod
    def from_folder(
        cls, folder: AudioFolder, seconds: float, progress: bool = True
    ) -> Corpus:
        """Cut recordings into pieces of `seconds`, each with the recording's caption.

        The last piece is padded with zeros, or dropped if the recording fills less than
        a tenth of it. Pieces of digital silence are dropped, with a warning that names
        their recordings. In folders of more than CHECKED recordings, unreadable ones
        are dropped in the same way.
        """
        n_samples = round(seconds * audio.SAMPLE_RATE)
        if n_samples < 1:
            raise ValueError(f"seconds must be above 0, not {seconds}")
        waves, captions = _cut(folder, n_samples, progress)
        if not waves:
            raise ValueError(
                f"all recordings of {str(folder.folder)!r} are digital silence"
            )
        return cls(np.stack(waves), captions)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `waves.npy` and `captions.json` to `folder`, both or neither. An older
        corpus there is replaced; a folder with anything else in it raises ValueError.
        """
        folder, own = Path(folder), ("waves.npy", "captions.json")
        held = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
        if others := [name for name in held if name not in own]:
            wanted = "folder must be new, or hold a corpus alone"
            raise ValueError(f"{wanted}; {str(folder)!r} holds {others[0]!r}")
        with replacing_folder(folder) as new:
            np.save(new / "waves.npy", self.waves)
            (new / "captions.json").write_text(
                json.dumps(self.captions, ensure_ascii=False), encoding="utf-8"
            )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Corpus:
        """Open a saved corpus; its waves stay on disk and are read when needed."""
        folder = Path(folder)
        for name in ("waves.npy", "captions.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"the folder {str(folder)!r} holds no saved corpus: no {name}"
                )
        try:
            waves = np.load(folder / "waves.npy", mmap_mode="r")
            captions = json.loads(
                (folder / "captions.json").read_text(encoding="utf-8")
            )
        except ValueError as error:
            raise ValueError(
                f"the corpus in {str(folder)!r} is damaged: {error}"
            ) from error
        return cls(waves, captions)


def _render_chunk(world: SoundWorld, indices: range) -> tuple[np.ndarray, list[str]]:
    return np.stack([world.samples(i) for i in indices]), [
        world.caption(i) for i in indices
    ]


def _render_chunks(
    world: SoundWorld, n: int, workers: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    chunks = [range(start, min(start + 64, n)) for start in range(0, n, 64)]
    if workers == 1:
        yield from map(partial(_render_chunk, world), chunks)
        return
    # Spawn processes: a fork can hang if torch has started threads.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(chunks))) as pool:
        yield from pool.imap(partial(_render_chunk, world), chunks)


def _cut(
    folder: AudioFolder, n_samples: int, progress: bool
) -> tuple[list[np.ndarray], list[str]]:
    """All pieces of the recordings that hold sound, and their captions."""
    waves, captions, silent, unread = [], [], [], []
    shown = {"desc": folder.folder.name, "unit": "file", "disable": not progress}
    for i in tqdm(range(len(folder)), **shown):
        try:
            pieces = _pieces(folder.wave(i).numpy(), n_samples)
        except (ValueError, OSError) as error:
            if len(folder) <= CHECKED:
                raise
            unread.append(reason(error))
            continue
        heard = [piece for piece in pieces if piece.any()]
        waves += heard
        captions += [folder.captions[i]] * len(heard)
        if len(heard) < len(pieces):
            n = f"{len(pieces) - len(heard)} of {len(pieces)}"
            silent.append(f"{n} of {folder.rows[i].file!r}")
    _warn_of(unread, f"of {len(folder)} recordings can't be read")
    if waves:  # without any, an error is raised
        _warn_of(silent, f"of {len(folder)} recordings hold pieces of silence")
    return waves, captions


def _pieces(wave: np.ndarray, n_samples: int) -> list[np.ndarray]:
    samples = np.round(wave * INT16).astype(np.int16)
    pieces = [
        samples[start : start + n_samples]
        for start in range(0, len(samples), n_samples)
        if start == 0 or len(samples) - start >= n_samples / 10
    ]
    return [np.pad(piece, (0, n_samples - len(piece))) for piece in pieces]


def _warn_of(dropped: list[str], what: str) -> None:
    """Warn how many recordings were left out, wholly or partly, and name the first."""
    if dropped:
        more = f" and {len(dropped) - TOLD} more" * (len(dropped) > TOLD)
        said = f"{len(dropped)} {what}, left out: {', '.join(dropped[:TOLD])}{more}"
        warnings.warn(said, stacklevel=4)  # blames the line that calls `from_folder`


def reason(error: Exception) -> str:
    """What is wrong with a file: an error's text without its demand on `path`."""
    return str(error).partition("; ")[2] or str(error)
