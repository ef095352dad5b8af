"""Files and folders that are written whole or not at all, so that a full disk damages
nothing that was there before.

Everything is written under a temporary name beside the old version, and replaces it
only when it is complete (`os.replace`).
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

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None

# the disk is full, the quota is used up, or the file is larger than allowed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the temporary name it yields becomes `path` on
    success only.

    Raises:
        OSError: the file can't be written; the error names `path`, and an older file
            there is untouched.
    """
    # a short name: the file's own may be as long as the disk allows
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
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same from working in a folder, which is
    made if it is missing; the lock goes when the process ends, however it ends.

    Raises:
        ValueError: another process works there.
    """
    if fcntl is None:
        yield
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".in-use"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = "another process is training there: wait for it or use another out"
            raise ValueError(
                f"out must be free, not {str(folder)!r}: {said}"
            ) from error
        except OSError:  # a file system without locks, as some network drives are
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # what holds anything stays
                for made in missing:
                    made.rmdir()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: the new folder it yields takes the place of
    `folder` on success only.

    Raises:
        OSError: the folder can't be written; the error names `folder`, and an older
            folder there is untouched.
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
    """Write several entries of a folder, all or none: everything made in the folder it
    yields moves into `folder`.

    Args:
        folder: made if it is missing; its other entries stay.
        names: older entries to remove, even if nothing new takes their place.

    Raises:
        OSError: something can't be written; the error names `folder`, and its older
            entries are untouched.
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
            # from here on only names change, which needs no space
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
        with suppress(OSError):  # not empty: they hold what was written, or other files
            for path in missing:
                path.rmdir()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an error that kept `path` from being written name it, whichever library
    raised it.
    """
    try:
        yield
    except Exception as error:
        if unwritten := not_written(path, error):
            raise unwritten from error
        raise


def not_written(path: Path, error: Exception) -> OSError | None:
    """The OSError that says why `path` can't be written; None for an error of another
    kind.

    safetensors and tokenizers hide the system's reason in their message; NumPy and
    torch.save say only how much they wrote.
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
    """Why another megabyte can't be written to a folder, or None. It tries the disk
    itself, since permissions say too little.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
    except OSError as error:
        return error
    return None
