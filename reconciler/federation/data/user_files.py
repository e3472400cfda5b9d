"""An operator's directory of Parquet, Arrow or CSV files: its digest, and its rows as tables.

Files called `test.*` or `holdout.*` (or `test-00000-of-00003.*`, as Hugging Face names them), and those in a folder `test/` or
`holdout/`, are held out; all others are for training. Links are refused, hidden files are not looked at.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from reconciler.digests import digest_of
from reconciler.errors import DataError, Where
from reconciler.federation.data import cached, columns

SUFFIXES = (".parquet", ".pq", ".arrow", ".arrows", ".ipc", ".feather", ".csv")
HELD_OUT = frozenset({"test", "holdout"})
_HELD_OUT_NAME = re.compile(r"(test|holdout)(-\d+-of-\d+)?")
_FILES = f"Put files ({', '.join(SUFFIXES)}) there that are not called test or holdout."
_SETTLED = 2 * 10**9
"""Nanoseconds after which a file's time of change tells two contents apart on any file system."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The rows to learn from and, maybe, those that are held out; both have the same columns."""

    train: pa.Table
    holdout: pa.Table | None


def digest(directory: Path, tag: str, remembered: Path | None = None) -> str:
    """SHA-256 over the names, sizes and contents of a directory's data files.

    `remembered` is a file that keeps the hash of each file beside its size, times and inode, so that only changed ones are
    read again.
    """
    known = _recall(remembered)
    seen: dict[str, list[int | str]] = {}
    settled: dict[str, list[int | str]] = {}
    for path in _files(directory, tag):
        name = path.relative_to(directory).as_posix()
        try:
            stat = path.stat()
            stamp: list[int | str] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            old = known.get(name, [])
            seen[name] = old if old[:-1] == stamp else [*stamp, cached.sha256(path)]
        except OSError as error:
            raise _unreadable(error, Where(name)) from error
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
            settled[name] = seen[name]
    if remembered is not None and settled != known:
        _remember(remembered, settled)
    return digest_of([[name, entry[0], entry[-1]] for name, entry in sorted(seen.items())])


def read_file(path: Path, tag: str) -> Tables:
    """The table of one data file; raises DataError naming the column that does not fit."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("FL4010", f"{path.name} is not a data file.", cure=f"Known endings: {', '.join(SUFFIXES)}.")
    return _tables([_part(path, path.parent)], [], tag)


def read_directory(directory: Path, tag: str) -> Tables:
    """The tables of an operator's directory; raises DataError naming the file and the column that do not fit."""
    files = _files(directory, tag)
    held_out = [path for path in files if _is_held_out(path.relative_to(directory))]
    train = [path for path in files if path not in held_out]
    return _tables([_part(path, directory) for path in train], [_part(path, directory) for path in held_out], tag)


def _tables(train: Sequence[columns.Part], held_out: Sequence[columns.Part], tag: str) -> Tables:
    try:
        parts = [columns.plain(part) for part in train]
        held_out_parts = [columns.plain(part) for part in held_out]
    except columns.MisfitError as misfit:
        raise DataError(
            "FL4013",
            f"A dataset cannot hold this file: {misfit.reason}.",
            cure="Rename the column or store it as numbers, text, bytes, lists or structs of them.",
            where=Where(misfit.label),
        ) from misfit
    if not any(part.table.num_rows for part in parts):
        raise DataError("FL4007", f"The data directory of tag {tag!r} has no rows to learn from.", cure=_FILES)
    try:
        schema = columns.common_schema([*parts, *held_out_parts])
        holdout = columns.join(held_out_parts, schema) if held_out_parts else None
        return Tables(columns.join(parts, schema), holdout if holdout is not None and holdout.num_rows else None)
    except columns.MisfitError as misfit:
        raise DataError(
            "FL4011",
            f"The files of tag {tag!r} do not go together: {misfit.reason}.",
            cure="Give all files of a tag the same columns with the same types.",
            where=Where(misfit.label),
        ) from misfit


def union(tables: Sequence[tuple[str, Tables]]) -> Tables:
    """The rows of several tags together; raises DataError naming the tag and the column that do not fit."""
    if len(tables) == 1:
        return tables[0][1]
    train = [columns.Part(f"tag {tag!r}", item.train) for tag, item in tables]
    held_out = [columns.Part(f"tag {tag!r}", item.holdout) for tag, item in tables if item.holdout is not None]
    try:
        schema = columns.common_schema([*train, *held_out])
        return Tables(columns.join(train, schema), columns.join(held_out, schema) if held_out else None)
    except columns.MisfitError as misfit:
        raise DataError(
            "FL4012",
            f"The data of {misfit.label} cannot be put together with the rest: {misfit.reason}.",
            cure="Select tags whose data have the same columns with the same types.",
        ) from misfit


def _files(directory: Path, tag: str) -> list[Path]:
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
        raise DataError("FL4007", f"The data directory of tag {tag!r} has no data files.", cure=_FILES)
    return sorted(found)


def _is_held_out(name: Path) -> bool:
    return bool(_HELD_OUT_NAME.fullmatch(name.stem.lower())) or bool(HELD_OUT.intersection(name.parts[:-1]))


def _part(path: Path, directory: Path) -> columns.Part:
    name = path.relative_to(directory).as_posix()
    try:
        return columns.Part(name, _read(path), guessed=path.suffix.lower() == ".csv")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(error, Where(name)) from error


def _read(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".pq"}:
        # Not `read_table`: that takes folders called `name=value` for columns.
        return pa.parquet.ParquetFile(path).read()
    if suffix == ".csv":
        return pa.csv.read_csv(path)
    with path.open("rb") as file:
        magic = file.read(6)
    if magic == b"ARROW1":
        with pa.OSFile(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    if magic[:4] == b"FEA1":
        return pa.feather.read_table(path)
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def _unreadable(error: Exception, where: Where) -> DataError:
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
