"""Features on disk: what frozen parts make of a data set, computed once and written as
shards, files of SHARD clips each, from which training reads row by row.

A shard is written whole or not at all, so an interrupted run goes on with the missing
ones, and each of several processes computes its share of them. Numbers stay as they
were computed, in float32: training on them is the same as without files. (Float16 would
halve the files and round every LOA vector; in float32 they are still smaller than
the sounds.)
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from minilib.files import replacing
from minilib.training.processes import is_main, meet, n_processes

SHARD = 256  # clips of a file, a multiple of those that are computed together
TRIED = 8  # clips that are computed to learn how much room all will take


@dataclass
class Made:
    """What is to be stored of n clips: clip i has the rows from start[i] to stop[i]."""

    values: Tensor  # (rows, ...)
    start: Tensor  # (n,)
    stop: Tensor  # (n,)
    clips: Tensor  # (n,), the clips that were heard
    # of a stream, the rows that can't be used, and why
    skipped: dict[int, str] = field(default_factory=dict)


class Shards:
    """The features of n clips in a folder.

    Args:
        folder: of the files; other files in it are removed.
        n: number of clips.
        source: a fingerprint of the weights and the data that features are made from.
        make: computes those of some clips, which depend on nothing else.
    """

    def __init__(
        self, folder: Path, n: int, source: str, make: Callable[[range], Made]
    ):
        self.folder, self.n, self.make = folder, n, make
        # as the files hold it
        self.source = f"{source}, {n} clips, {SHARD} in a file"

    def fill(self, progress: bool = True) -> None:
        """Compute the shards that are missing; several processes share them.

        Raises:
            ValueError: the disk has too little room for all.
            OSError: a file can't be written.
        """
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
        meet().wait_for_everyone()
        missing = [k for k in range(self.many) if not self.path(k).is_file()]
        own = [k for k in missing if k % n_processes() == meet().process_index]
        if own:
            self.check_room(sum(len(self.clips(k)) for k in missing), own[0])
        shown = {"desc": f"{self.folder.name} into shards", "unit": "clip"}
        shown |= {"leave": False, "disable": not (progress and is_main())}
        with tqdm(total=sum(len(self.clips(k)) for k in own), **shown) as bar:
            for k in own:
                self.write(k)
                bar.update(len(self.clips(k)))
        meet().wait_for_everyone()

    def rows(self, places: Sequence[int]) -> list[Tensor]:
        """The rows (k, ...) of the clips at some places.

        Raises:
            ValueError: a file is damaged or missing.
        """
        found = []
        for place in places:
            k, i = divmod(place, SHARD)
            try:
                with safe_open(self.path(k), "pt") as file:
                    start, stop, wanted, _ = file.get_slice("index")[i].tolist()
                    rows = file.get_slice("values")[start:stop]
                whole = checksum(rows) == wanted
            except (OSError, SafetensorError, ValueError):
                whole = False
            if not whole:
                how = "remove it and go on with --resume, which computes it again"
                raise ValueError(f"{self.path(k)} is damaged or missing: {how}")
            found.append(rows)
        return found

    def heard(self) -> tuple[Tensor, dict[int, str]]:
        """The clips (n,) that were heard, at their places; and the rows of a stream
        that can't be used, with the reasons.
        """
        clips, skipped = [], {}
        for k in range(self.many):
            with safe_open(self.path(k), "pt") as file:
                clips.append(file.get_tensor("index")[:, 3])
                told = json.loads(file.metadata()["made"])
            skipped |= {int(row): why for row, why in told["skipped"].items()}
        return torch.cat(clips), skipped

    @property
    def many(self) -> int:
        """The number of files."""
        return math.ceil(self.n / SHARD)

    def path(self, k: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{k:06d}.safetensors"

    def clips(self, k: int) -> range:
        """The places of a shard's clips."""
        return range(self.n)[k * SHARD : (k + 1) * SHARD]

    def write(self, k: int) -> None:
        """Compute a shard and write its file, whole or not at all."""
        made = self.make(self.clips(k))
        bounds = zip(made.start.tolist(), made.stop.tolist())
        sums = torch.tensor([checksum(made.values[i:j]) for i, j in bounds])
        index = torch.stack([made.start, made.stop, sums, made.clips], dim=1)
        # as one entry: safetensors writes several in any order
        about = {"made": json.dumps({"from": self.source, "skipped": made.skipped})}
        with replacing(self.path(k)) as path:
            tensors = {"values": made.values.contiguous(), "index": index}
            save_file(tensors, path, metadata=about)

    def sweep(self) -> None:
        """Remove what is damaged, was made from something else, or was being written
        when a process was killed.
        """
        for left in self.folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        others = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            source = source_of(path)
            if source is None:
                warnings.warn(f"{path} is damaged and is computed again", stacklevel=4)
            elif source == self.source:
                continue
            others += source is not None
            path.unlink()
        if others:
            was = "was made with other weights or other clips and is computed again"
            warnings.warn(f"what {self.folder} held {was}", stacklevel=4)

    def check_room(self, missing: int, first: int) -> None:
        """Raise ValueError if the disk is too small for the missing clips, judged by
        the first of them.
        """
        tried = self.clips(first)[:TRIED]
        size = self.make(tried).values.nbytes / len(tried)
        needed, free = missing * size / 1e9, shutil.disk_usage(self.folder).free / 1e9
        if needed > free:
            room = f"{needed:.3g} GB, and {free:.3g} GB are free"
            how = "use an --out with more room, or --features fly"
            raise ValueError(f"features in {self.folder} would take {room}: {how}")


def source_of(path: Path) -> str | None:
    """What a shard was made from; None if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["made"])["from"]
    except (SafetensorError, TypeError, LookupError, ValueError):
        return None


def checksum(rows: Tensor) -> int:
    """The CRC-32 of a clip's numbers."""
    flat = rows.contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(flat.numpy())
