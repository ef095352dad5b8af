"""Files and folders that are written whole or not at all: a full disk costs what was to
be written, nothing else.

What is written has a name of its own, beside the old, and takes the old one's place
when it is whole (`os.replace`). Chapter 02 shows it at work.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# the disk, the quota or the longest file allowed is used up
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the temporary name it yields becomes `path` on
    success only.

    Raises:
        OSError: the file can't be written; it names `path`, and what stood there is
            untouched.
    """
    # short, for a name may be as long as the disk allows
    name = zlib.crc32(os.fsencode(path.name))
    writer = f"{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{name:08x}-{writer}.part")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: the new folder it yields takes the place of
    `folder` on success only.

    Raises:
        OSError: the folder can't be written; it names `folder`, and what stood there is
            untouched.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    new, old = beside / "new", beside / "old"
    try:
        with naming(folder):
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
    finally:
        if old.exists() and not folder.exists():  # stopped between the two steps
            os.replace(old, folder)
        shutil.rmtree(beside)
        if not folder.exists():
            with suppress(OSError):  # another process may have put something there
                for parent in missing:
                    parent.rmdir()


@contextmanager
def replacing_entries(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Write several entries of a folder, all or none: what is made in the folder it
    yields moves into `folder`.

    Args:
        folder: made if it is missing; what else it holds stays.
        names: of what was there and goes, also where nothing new takes its place.

    Raises:
        OSError: something can't be written; it names `folder`, and what stood there is
            untouched.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    new, old = beside / "new", beside / "old"
    placed: list[str] = []
    whole = False
    try:
        with naming(folder):
            new.mkdir()
            old.mkdir()
            yield new
            written = sorted(path.name for path in new.iterdir())
            # from here on only names change, which takes no room
            for name in sorted({*written, *names}):
                if (folder / name).exists():
                    os.replace(folder / name, old / name)
            for name in written:
                os.replace(new / name, folder / name)
                placed.append(name)
            whole = True
    finally:
        if not whole:
            for name in placed:
                os.replace(folder / name, new / name)
            for path in old.glob("*"):
                os.replace(path, folder / path.name)
        shutil.rmtree(beside)
        with suppress(OSError):  # they hold something: what was written, or another's
            for path in missing:
                path.rmdir()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error that kept `path` from being written name it, whichever library met
    it.
    """
    try:
        yield
    except Exception as error:
        if unwritten := not_written(path, error):
            raise unwritten from error
        raise


def not_written(path: Path, error: Exception) -> OSError | None:
    """The OSError that says why `path` can't be written; None if the error is of
    another kind.

    safetensors and tokenizers hide the system's reason in a text; NumPy and torch.save
    say only how far they came.
    """
    hidden = re.search(r"\(os error (\d+)\)", str(error))
    cut_short = re.search(
        r"\d+ requested and \d+ written|inline_container|PytorchStreamWriter",
        str(error),
    )
    if not (isinstance(error, OSError) or hidden or cut_short):
        return None
    number = int(hidden[1]) if hidden else getattr(error, "errno", None)
    if number is None and cut_short and (reason := refusal(path.parent)):
        number = reason.errno
    if number is None:
        return OSError(f"{path} can't be written: {error}")
    return OSError(number, os.strerror(number), str(path))


def refusal(folder: Path) -> OSError | None:
    """Why a folder does not take another megabyte, or None: asks the disk itself, as
    permissions say too little.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
    except OSError as error:
        return error
    return None
