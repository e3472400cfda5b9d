"""Directories that are made once, by one process, and never used when they are not whole.

A directory counts as made when its list of files (`.complete`) is there and each file is what the list says. The size of a file
is looked at every time; its content is hashed again when its time of change is not the recorded one. Whatever does not fit is made
again; files are replaced by renaming, so that a process that maps the old one keeps it.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from reconciler.errors import DataError
from reconciler.refusals import disk_is_full

WAIT_SECONDS = 900
"""How long another process may take to make the same dataset."""

_LIST = ".complete"


@contextmanager
def locked(directory: Path, *, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of a directory, which is created; raises DataError when the disk is full or refuses."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.parent / f".{directory.name}.lock", timeout=wait):
            yield
    except Timeout as error:
        raise DataError(
            "FL4015",
            f"Another process has been making the dataset in {directory.name} for more than {wait:g} seconds.",
            cure="See what that process waits for, or end it.",
            transient=True,
        ) from error
    except OSError as error:
        if is_full(error):
            raise DataError(
                "FL4005",
                "The disk is full; the dataset could not be written.",
                cure="Free some space; it is fetched again by itself.",
                transient=True,
            ) from error
        raise DataError(
            "FL4016",
            f"The data cache cannot be used: {error.strerror or error}.",
            cure="Make the cache directory writable, or set FLOPS_CACHE to another one.",
            transient=True,
        ) from error


@contextmanager
def making(directory: Path) -> Iterator[bool]:
    """True when the body has to make the directory's files; what the body leaves there counts when it ends well."""
    if is_whole(directory):
        yield False
        return
    with locked(directory):
        if is_whole(directory):
            yield False
            return
        _clear(directory)
        yield True
        _record(directory)


def is_whole(directory: Path) -> bool:
    """Whether everything that was made here is still what it was."""
    try:
        listed = orjson.loads((directory / _LIST).read_bytes())
        return bool(listed) and all(_same(directory / name, *entry) for name, entry in listed.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(error: OSError) -> bool:
    """Whether there is no space (or quota, or permitted file size) left."""
    return error.errno == errno.EFBIG or disk_is_full(error)


def _same(path: Path, size: int, mtime: int, content: str) -> bool:
    stat = path.stat()
    return stat.st_size == size and (stat.st_mtime_ns == mtime or sha256(path) == content)


def _record(directory: Path) -> None:
    entries = {}
    for path in sorted(directory.iterdir()):
        stat = path.stat()
        entries[path.name] = [stat.st_size, stat.st_mtime_ns, sha256(path)]
    temporary = directory / f"{_LIST}.new"
    temporary.write_bytes(orjson.dumps(entries))
    temporary.replace(directory / _LIST)


def _clear(directory: Path) -> None:
    """Remove what a process that was killed has left; its lock is ours now."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.startswith("."):
            path.unlink()
