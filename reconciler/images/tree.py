"""Folders that become layers: what may be in them, and how much of it.

Invariant: a layer has plain files and folders of ours alone. Symbolic links, devices, pipes and sockets are refused and never
followed, so nothing of the reconciler's machine gets into an image by a planted name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import ImageError, Where
from reconciler.images.tarball import Entry

MAX_DEPTH = 64
LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".ipynb_checkpoints"})
_KINDS: dict[int, str] = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one layer may hold; `what` is how errors call the folder."""

    what: str
    files: int
    bytes: int


CODE = Limits("ML repo", 20_000, 512 * 1024 * 1024)
MODEL = Limits("model", 20_000, 16 * 1024**3)
DEPENDENCIES = Limits("dependencies", 500_000, 32 * 1024**3)


def entries_of(root: Path, prefix: str, limits: Limits, *, keep: Callable[[str], bool] = lambda _: True) -> list[Entry]:
    """The files below a folder, as entries below `prefix`; names for which `keep` is false (relative to root) are left out.

    Byte code and the folders of tools are left out always. Raises ImageError: FL6113 for links and special files, FL6114 for too
    much, FL6116 for names that no file should have, FL6115 when the folder is not there.
    """
    found: list[Entry] = []
    total = 0
    for name, entry in _walk(root, "", 0, limits):
        if not keep(name):
            continue
        information = entry.stat(follow_symlinks=False)
        total += information.st_size
        if len(found) >= limits.files or total > limits.bytes:
            raise ImageError(
                "FL6114",
                f"The {limits.what} is too large for an image (over {limits.files:,} files or {limits.bytes:,} bytes).",
                cure="Take out what is not code or model; data does not belong into it.",
                where=Where(name),
            )
        found.append(Entry(f"{prefix}/{name}", information.st_size, Path(entry.path), bool(information.st_mode & 0o100)))
    return found


def _walk(folder: Path, name: str, depth: int, limits: Limits) -> Iterator[tuple[str, os.DirEntry[str]]]:
    if depth > MAX_DEPTH:
        raise ImageError(
            "FL6114", f"The {limits.what} has more than {MAX_DEPTH} folders in each other.", cure="Flatten it.", where=Where(name)
        )
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda item: item.name)
    except OSError as error:
        raise ImageError(
            "FL6115", f"The {limits.what} cannot be read: {error.strerror}.", cure="It is tried again.", transient=True
        ) from error
    for entry in entries:
        path = f"{name}/{entry.name}" if name else entry.name
        if not entry.name.isprintable() or "\\" in entry.name:
            raise ImageError(
                "FL6116",
                f"A file of the {limits.what} has a name with control characters, a backslash, or bytes that are no UTF-8.",
                cure="Rename it.",
                where=Where(ascii(path)[1:-1]),
            )
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            if entry.name not in LEFT_OUT:
                yield from _walk(Path(entry.path), path, depth + 1, limits)
        elif not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
            raise ImageError("FL6113", f"The {limits.what} has {kind} in it.", cure="Put the file itself there.", where=Where(path))
        elif not entry.name.endswith((".pyc", ".pyo")):
            yield path, entry
