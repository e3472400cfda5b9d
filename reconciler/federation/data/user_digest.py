"""An operator's directory of data files: which they are, and the digest of them all. Links are refused, hidden files are not looked
at. A plan asks for it at every look, so nothing is imported here that reads what is in them.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import orjson

from reconciler.digests import digest_of
from reconciler.errors import DataError, Where
from reconciler.federation.data import cached

SUFFIXES = (".parquet", ".pq", ".arrow", ".arrows", ".ipc", ".feather", ".csv")
FILES = f"Put files ({', '.join(SUFFIXES)}) there that are not called test or holdout."
_SETTLED = 2 * 10**9
"""Nanoseconds after which a file's time of change tells two contents apart on any file system."""


def digest(directory: Path, tag: str, remembered: Path | None = None) -> str:
    """SHA-256 over the names, sizes and contents of a directory's data files.

    `remembered` is a file that keeps the hash of each file beside its size, times and inode, so that only changed ones are
    read again.
    """
    known = _recall(remembered)
    seen: dict[str, list[int | str]] = {}
    settled: dict[str, list[int | str]] = {}
    for path in data_files(directory, tag):
        name = path.relative_to(directory).as_posix()
        try:
            stat = path.stat()
            stamp: list[int | str] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            old = known.get(name, [])
            seen[name] = old if old[:-1] == stamp else [*stamp, cached.sha256(path)]
        except OSError as error:
            raise unreadable(error, Where(name)) from error
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
            settled[name] = seen[name]
    if remembered is not None and settled != known:
        _remember(remembered, settled)
    return digest_of([[name, entry[0], entry[-1]] for name, entry in sorted(seen.items())])


def data_files(directory: Path, tag: str) -> list[Path]:
    """The data files of a directory, by path. Raises DataError."""
    if not directory.is_dir():
        raise DataError(
            "FL4008",
            f"The data directory of tag {tag!r} does not exist.",
            cure="Correct data_directories in flops.yaml.",
            transient=True,
        )
    found = []
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        data = [name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        for path in (Path(folder) / name for name in [*folders, *data]):
            if path.is_symlink() or (path.name in data and not path.is_file()):
                raise DataError(
                    "FL4009",
                    f"{path.relative_to(directory)} in the data directory of tag {tag!r} is a link or no regular file.",
                    cure="Replace it by the file itself, or remove it.",
                )
        found += [Path(folder) / name for name in data]
    if not found:
        raise DataError("FL4007", f"The data directory of tag {tag!r} has no data files.", cure=FILES)
    return sorted(found)


def unreadable(error: Exception, where: Where) -> DataError:
    """For a file that cannot be read."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return DataError("FL4010", f"The file cannot be read: {reason[:200].rstrip('.')}.", cure="Mend or remove it.", where=where)


def _recall(path: Path | None) -> dict[str, list[int | str]]:
    try:
        known = orjson.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(item, list) for item in known.values()) else {}


def _remember(path: Path, known: dict[str, list[int | str]]) -> None:
    """Keep hashes for next time; where nothing can be written they are computed again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(orjson.dumps(known))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
