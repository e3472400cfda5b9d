"""Tables: MNIST's and those of an operator's directory of Parquet, Arrow or CSV files, and how they are cut.

In a directory, files called `test.*` or `holdout.*`, or a folder `test/`, are held out; all others are for training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from reconciler.digests import digest_of
from reconciler.errors import DataError, Where
from reconciler.federation.data import arrow_files, mnist

SUFFIXES = (".parquet", ".arrow", ".feather", ".csv")
HELD_OUT = frozenset({"test", "holdout"})


@dataclass(frozen=True, slots=True)
class Tables:
    """The rows to learn from and, maybe, those that are held out."""

    train: pa.Table
    holdout: pa.Table | None


@dataclass(frozen=True, slots=True)
class Size:
    """Rows and columns of a file."""

    rows: int
    columns: tuple[str, ...]


def mnist_tables(folder: Path) -> Tables:
    """MNIST's four files as two tables with `image` and `label`."""
    names = [str(digit) for digit in range(10)]
    arrays = [mnist.read_idx(folder / name) for name in mnist.NAMES]
    return Tables(arrow_files.image_table(arrays[0], arrays[1], names), arrow_files.image_table(arrays[2], arrays[3], names))


def digest(directory: Path, tag: str) -> str:
    """SHA-256 over the names and contents of a directory's data files."""
    return digest_of([[str(path.relative_to(directory)), _content(path)] for path in _files(directory, tag)])


def read_directory(directory: Path, tag: str) -> Tables:
    """The tables of an operator's directory; raises DataError naming the file that does not fit."""
    files = _files(directory, tag)
    held_out = [path for path in files if path.stem in HELD_OUT or path.parent.name in HELD_OUT]
    train = [path for path in files if path not in held_out]
    if not train:
        raise DataError("FL4007", f"The data directory of tag {tag!r} has no rows to learn from.", cure=_FILES)
    return Tables(_joined(train, directory), _joined(held_out, directory) if held_out else None)


def write_version(directory: Path, tables: Sequence[Tables]) -> None:
    """Write the union of tables as one version; raises DataError when their columns differ."""
    arrow_files.write(_union([item.train for item in tables]), directory / "train.arrow")
    held_out = [item.holdout for item in tables if item.holdout is not None]
    if held_out:
        arrow_files.write(_union(held_out), directory / "holdout.arrow")


def sizes(directory: Path) -> tuple[Size, Size | None]:
    """Rows and columns of a version's training and held-out files."""
    holdout = directory / "holdout.arrow"
    return _size(directory / "train.arrow"), _size(holdout) if holdout.is_file() else None


def take(directory: Path, rows: npt.NDArray[np.int64], path: Path) -> None:
    """Write some of a version's training rows, in the order given."""
    table = arrow_files.read(directory / "train.arrow").combine_chunks()
    arrow_files.write(table.take(pa.array(rows)), path)


_FILES = f"Put {', '.join(SUFFIXES)} files there that are not called test or holdout."


def _size(path: Path) -> Size:
    table = arrow_files.read(path)
    return Size(table.num_rows, tuple(table.column_names))


def _files(directory: Path, tag: str) -> list[Path]:
    if not directory.is_dir():
        raise DataError(
            "FL4008",
            f"The data directory of tag {tag!r} does not exist.",
            cure="Correct data_directories in flops.yaml.",
            transient=True,
        )
    found = sorted(path for path in directory.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    outside = [path for path in found if not path.resolve().is_relative_to(directory.resolve())]
    if outside:
        raise DataError(
            "FL4009",
            f"{outside[0].name} leads out of the data directory of tag {tag!r}.",
            cure="Replace the link by the file.",
        )
    if not found:
        raise DataError("FL4007", f"The data directory of tag {tag!r} has no data files.", cure=_FILES)
    return found


def _content(path: Path) -> str:
    stat = path.stat()
    return _hash(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=10_000)
def _hash(path: str, _size: int, _mtime: int, _inode: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(files: Sequence[Path], directory: Path) -> pa.Table:
    tables: list[pa.Table] = []
    for path in files:
        where = Where(str(path.relative_to(directory)))
        try:
            table = _read(path)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataError("FL4010", f"The file cannot be read: {reason}.", cure="Mend or remove it.", where=where) from error
        if tables and table.schema.names != tables[0].schema.names:
            differs = sorted(set(table.schema.names) ^ set(tables[0].schema.names)) or table.schema.names
            raise DataError(
                "FL4011",
                f"The columns differ from those of {files[0].name}: {', '.join(differs[:5])}.",
                cure="All files of a tag have the same columns in the same order.",
                where=where,
            )
        tables.append(table)
    return _union(tables)


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path)
    if path.suffix == ".csv":
        return pa.csv.read_csv(path)
    try:
        return pa.feather.read_table(path)
    except pa.ArrowInvalid:
        return arrow_files.read(path)


def _union(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            "FL4012", f"The data cannot be put together: {reason}.", cure="Give the columns the same types everywhere."
        ) from error
