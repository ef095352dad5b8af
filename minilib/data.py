"""Data sets: a folder of recordings with captions, and a set of equal clips to train on
(chapter 01).

`AudioFolder` reads the Hugging Face audiofolder convention: sound files and a table
beside them. `Corpus` holds clips of one length in memory (or mapped from disk), from
SoundWorld or from a folder.
"""

from __future__ import annotations

import copy
import csv
import json
import multiprocessing
import os
import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import audio
from .files import replacing_folder
from .soundworld import SoundWorld
from .soundworld.corpus import INT16, to_float

# Licences under which recordings may shape weights that are themselves CC BY; any
# version of each.
OPEN_LICENCES = ("CC0", "public domain", "CC BY")
# table: its column of file names
TABLES = {"metadata.csv": "file_name", "manifest.csv": "file"}
CAPTION_COLUMNS = ("caption", "text")


class AudioFolder:
    """Recordings in a folder, as the Hugging Face audiofolder convention lays them:
    sound files and a table.

    The table is `metadata.csv` (column file_name) or `manifest.csv` (column file); its
    column of captions is `caption` or `text`. `folder[i]` is (wave (N,), caption, row),
    the row a dict of all columns.

    Args:
        folder: where the table lies; file names in it are relative to the folder.
        part: only rows whose column `part` says this ("train").
        licences: only rows whose column `licence` (or `license`) is one of these, in
            any version; OPEN_LICENCES are those under which weights may be CC BY.
        captions: False lets rows have no caption (it is then "").

    Raises:
        FileNotFoundError: no folder, no table, or rows that name missing files.
        ValueError: a missing column, rows without caption, or no row left.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        part: str | None = None,
        licences: Collection[str] | None = None,
        captions: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._table, self._file_column = _find_table(self.folder)
        self.rows: list[dict[str, str]] = _read_table(self._table, self._file_column)
        if part is not None:
            self._keep("part", part, lambda row: row["part"] == part)
        if licences is not None:
            column = "license" if "license" in self.rows[0] else "licence"
            allowed = {_licence_name(licence) for licence in licences}
            self._keep(
                column,
                ", ".join(licences),
                lambda row: _licence_name(row[column]) in allowed,
            )
        self.captions: list[str] = self._read_captions(captions)
        self._check_files()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, dict[str, str]]:
        return self.wave(index), self.captions[index], self.rows[index]

    def wave(self, index: int) -> torch.Tensor:
        """Recording `index` as (N,) float32 in [-1, 1] at 16 kHz."""
        return audio.load(self.path(index))

    def path(self, index: int) -> Path:
        """The file of recording `index`."""
        return self.folder / self.rows[index][self._file_column]

    def by(self, column: str) -> dict[str, AudioFolder]:
        """The recordings apart for each value of a column; one folder under "" where
        there is no such column.
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
        if column not in self.rows[0]:
            raise ValueError(
                f"{self._table} has no column {column!r} to choose {wanted!r} by"
            )
        there = sorted({row[column] for row in self.rows})
        self.rows = [row for row in self.rows if keep(row)]
        if not self.rows:
            raise ValueError(
                f"{self._table} has no row with {column} {wanted!r}; it has "
                f"{', '.join(there)}"
            )

    def _read_captions(self, needed: bool) -> list[str]:
        column = next((name for name in CAPTION_COLUMNS if name in self.rows[0]), None)
        if column is None and needed:
            raise ValueError(f"{self._table} has no column 'caption' (nor 'text')")
        captions = [row[column].strip() if column else "" for row in self.rows]
        empty = [i for i, caption in enumerate(captions) if not caption]
        if empty and needed:
            first = self.rows[empty[0]][self._file_column]
            raise ValueError(
                f"{self._table} has {len(empty)} rows without a caption, the first "
                f"for {first!r}"
            )
        return captions

    def _check_files(self) -> None:
        missing = [
            row[self._file_column]
            for i, row in enumerate(self.rows)
            if not self.path(i).is_file()
        ]
        if missing:
            many = (
                f"{len(missing)} of {len(self.rows)} rows name files that are missing"
            )
            raise FileNotFoundError(f"{self._table}: {many}, the first {missing[0]!r}")


def of_part(folder: str | os.PathLike, part: str) -> AudioFolder:
    """The captioned recordings of one part ("train", "test") where the table tells
    parts, or else all.
    """
    every = AudioFolder(folder)
    return AudioFolder(folder, part=part) if "part" in every.rows[0] else every


def _find_table(folder: Path) -> tuple[Path, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    for name, column in TABLES.items():
        if (folder / name).is_file():
            return folder / name, column
    raise FileNotFoundError(
        f"the folder {str(folder)!r} has no metadata.csv (nor manifest.csv)"
    )


def _read_table(table: Path, file_column: str) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                {key: value or "" for key, value in row.items() if key}
                for row in csv.DictReader(file)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{table} is not a table of comma-separated values in UTF-8: {error}"
        ) from error
    if not rows:
        raise ValueError(f"{table} has no rows")
    if file_column not in rows[0]:
        raise ValueError(f"{table} has no column {file_column!r}")
    return rows


def _licence_name(licence: str) -> str:
    """A licence without its version: "CC BY 3.0" and "cc-by-4.0" are both "cc by"."""
    return (
        re.sub(r"[\s-]+v?\d+(\.\d+)*$", "", licence.strip()).replace("-", " ").lower()
    )


class Corpus:
    """Clips of one length to train on: `waves` int16 (N, n_samples), in memory or
    mapped, and N `captions`.
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

        With `workers` > 1 a script needs the usual `if __name__ == "__main__":` (new
        processes are spawned).
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

        The last piece is padded with zeros, or dropped if less than a tenth of it is
        recording; pieces of digital silence are dropped.
        """
        n_samples = round(seconds * audio.SAMPLE_RATE)
        if n_samples < 1:
            raise ValueError(f"seconds must be above 0, not {seconds}")
        waves, captions = [], []
        for i in tqdm(
            range(len(folder)),
            desc=folder.folder.name,
            unit="file",
            disable=not progress,
        ):
            for piece in _pieces(folder.wave(i).numpy(), n_samples):
                waves.append(piece)
                captions.append(folder.captions[i])
        if not waves:
            raise ValueError(
                f"all recordings of {str(folder.folder)!r} are digital silence"
            )
        return cls(np.stack(waves), captions)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `waves.npy` and `captions.json` into `folder`, which is then whole or
        as it was before.
        """
        with replacing_folder(Path(folder)) as new:
            np.save(new / "waves.npy", self.waves)
            (new / "captions.json").write_text(
                json.dumps(self.captions, ensure_ascii=False), encoding="utf-8"
            )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Corpus:
        """Open a saved corpus; its waves stay on disk and are read as they are asked
        for.
        """
        folder = Path(folder)
        for name in ("waves.npy", "captions.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"the folder {str(folder)!r} is no saved corpus: it has no {name}"
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
    # Spawned, not forked: a fork of a process whose torch has threads can hang.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(chunks))) as pool:
        yield from pool.imap(partial(_render_chunk, world), chunks)


def _pieces(wave: np.ndarray, n_samples: int) -> Iterator[np.ndarray]:
    samples = np.round(wave * INT16).astype(np.int16)
    for start in range(0, len(samples), n_samples):
        piece = samples[start : start + n_samples]
        if piece.any() and (start == 0 or len(piece) >= n_samples / 10):
            yield np.pad(piece, (0, n_samples - len(piece)))
