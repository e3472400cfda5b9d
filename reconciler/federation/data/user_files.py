"""An operator's directory of Parquet, Arrow or CSV files: its rows as tables.

Files called `test.*` or `holdout.*` (or `test-00000-of-00003.*`, as Hugging Face names them), and those in a folder `test/` or
`holdout/`, are held out; all others are for training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from reconciler.errors import DataError, Where
from reconciler.federation.data import columns
from reconciler.federation.data.user_digest import FILES, SUFFIXES, data_files, unreadable

HELD_OUT = frozenset({"test", "holdout"})
_HELD_OUT_NAME = re.compile(r"(test|holdout)(-\d+-of-\d+)?")


@dataclass(frozen=True, slots=True)
class Tables:
    """The rows to learn from and, maybe, those that are held out; both have the same columns."""

    train: pa.Table
    holdout: pa.Table | None


def read_file(path: Path, tag: str) -> Tables:
    """The table of one data file; raises DataError naming the column that does not fit."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("FL4010", f"{path.name} is not a data file.", cure=f"Known endings: {', '.join(SUFFIXES)}.")
    return _tables([_part(path, path.parent)], [], tag)


def read_directory(directory: Path, tag: str) -> Tables:
    """The tables of an operator's directory; raises DataError naming the file and the column that do not fit."""
    files = data_files(directory, tag)
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
        raise DataError("FL4007", f"The data directory of tag {tag!r} has no rows to learn from.", cure=FILES)
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


def _is_held_out(name: Path) -> bool:
    return bool(_HELD_OUT_NAME.fullmatch(name.stem.lower())) or bool(HELD_OUT.intersection(name.parts[:-1]))


def _part(path: Path, directory: Path) -> columns.Part:
    name = path.relative_to(directory).as_posix()
    try:
        return columns.Part(name, _read(path), guessed=path.suffix.lower() == ".csv")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(error, Where(name)) from error


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
