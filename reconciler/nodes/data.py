"""A node's own catalogue of datasets: what is there, under which tags, and the shard that a learner of a run gets.

Everything stays below the node's data directory, which is for its owner only. `catalog.json` names datasets; the rows are
Arrow files addressed by content, so that a learner maps them and a shard is made once. Rows that are held out for testing
(files called `test…`, or a fraction that the owner sets aside) are in no shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from reconciler.digests import digest_of
from reconciler.errors import DataError
from reconciler.federation.data import arrow_files, user_files
from reconciler.federation.data.cached import making

_CATALOG = "catalog.json"
_SPLIT_SEED = 0
_STATISTICS = 64
"""Columns at most of which statistics are kept."""


@dataclass(frozen=True, slots=True)
class NodeDataset:
    """One dataset of a node. `columns` are type names by column; `statistics` stay on the node, as all of it does."""

    name: str
    tags: tuple[str, ...]
    digest: str
    rows: int
    test_rows: int
    columns: dict[str, str]
    statistics: dict[str, dict[str, float | int]]


@dataclass(frozen=True, slots=True)
class Shard:
    """A learner's rows on disk."""

    path: Path
    rows: int


class NodeData:
    """The catalogue below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def add(self, source: Path, *, name: str, tags: Sequence[str], test_fraction: float = 0.0) -> NodeDataset:
        """Takes a file or a directory of files in; a dataset of that name is replaced. Raises DataError."""
        _check(name, tags, test_fraction)
        tables = self._read(source, name)
        train, test = tables.train, tables.holdout
        if test is None and test_fraction:
            order = np.random.default_rng(_SPLIT_SEED).permutation(train.num_rows)
            cut = round(train.num_rows * test_fraction)
            test, train = train.take(pa.array(np.sort(order[:cut]))), train.take(pa.array(np.sort(order[cut:])))
        if not train.num_rows:
            raise DataError("FL4504", "No rows are left to learn from.", cure="Lower --test-fraction, or add rows.")
        self._prepare()
        staged = self._root / "datasets" / f".{name}.partial"
        shutil.rmtree(staged, ignore_errors=True)
        arrow_files.write(train, staged / "train.arrow")
        if test is not None and test.num_rows:
            arrow_files.write(test, staged / "test.arrow")
        digest = digest_of([_sha256(path) for path in sorted(staged.iterdir())])
        dataset = NodeDataset(
            name=name,
            tags=tuple(sorted(set(tags))),
            digest=digest,
            rows=train.num_rows,
            test_rows=test.num_rows if test is not None else 0,
            columns={field.name: str(field.type) for field in train.schema},
            statistics=_statistics(train),
        )
        with FileLock(self._root / ".catalog.lock"):
            final = self._folder(digest)
            if final.exists():
                shutil.rmtree(staged)
            else:
                staged.replace(final)
            self._write({**self._entries(), name: dataset})
        return dataset

    def list(self) -> list[NodeDataset]:
        """Every dataset, by name. Raises DataError when the catalogue cannot be read."""
        return [dataset for _, dataset in sorted(self._entries().items())]

    def remove(self, name: str) -> None:
        """Takes a dataset and its rows out. Raises DataError when there is none."""
        with FileLock(self._root / ".catalog.lock") if self._root.is_dir() else FileLock("/dev/null", blocking=False):
            entries = self._entries()
            if name not in entries:
                raise DataError("FL4502", f"There is no dataset {name!r}.", cure=f"There are: {', '.join(entries) or 'none'}.")
            gone = entries.pop(name)
            self._write(entries)
            if gone.digest not in {entry.digest for entry in entries.values()}:
                shutil.rmtree(self._folder(gone.digest), ignore_errors=True)
            shutil.rmtree(self._root / "shards", ignore_errors=True)

    def shard(self, tags: Sequence[str], partition: int, partitions: int) -> Shard:
        """The rows to learn from, of every dataset with one of these tags, that belong to one of several learners on this data.

        Shards of different partitions are disjoint, together they are all rows, and they are the same each time. Raises
        DataError.
        """
        chosen = self._with(tags)
        return self._dealt(chosen, "train", partition, partitions)

    def held_out(self, tags: Sequence[str], partition: int, partitions: int) -> Shard | None:
        """The same of the rows that are in no training; None where there are too few for everybody. Raises DataError."""
        chosen = [dataset for dataset in self._with(tags) if dataset.test_rows]
        if sum(dataset.test_rows for dataset in chosen) < partitions:
            return None
        return self._dealt(chosen, "test", partition, partitions)

    def _with(self, tags: Sequence[str]) -> Sequence[NodeDataset]:
        chosen = [dataset for dataset in self.list() if set(dataset.tags) & set(tags)]
        if not chosen:
            raise DataError(
                "FL4501", f"This node has no data with the tags {', '.join(tags)}.", cure="Add some with `flops data add`."
            )
        return chosen

    def _dealt(self, chosen: Sequence[NodeDataset], part: str, partition: int, partitions: int) -> Shard:
        digest = digest_of([[dataset.digest for dataset in chosen], part, partitions])
        directory = self._root / "shards" / digest[:32]
        with making(directory) as make:
            if make:
                tables = [(dataset.name, user_files.Tables(self._table(dataset, part), None)) for dataset in chosen]
                whole = user_files.union(tables).train
                if whole.num_rows < partitions:
                    raise DataError(
                        "FL4504", f"{whole.num_rows} rows are too few for {partitions} learners.", cure="Start fewer learners."
                    )
                order = np.random.default_rng(_SPLIT_SEED).permutation(whole.num_rows)
                for number, rows in enumerate(np.array_split(order, partitions)):
                    arrow_files.write(whole.take(pa.array(rows)), directory / f"{number:04}.arrow")
        path = directory / f"{partition:04}.arrow"
        return Shard(path, arrow_files.read(path).num_rows)

    def _table(self, dataset: NodeDataset, part: str) -> pa.Table:
        return arrow_files.read(self._folder(dataset.digest) / f"{part}.arrow")

    def _read(self, source: Path, name: str) -> user_files.Tables:
        if source.is_file() and not source.is_symlink():
            return user_files.read_file(source, name)
        return user_files.read_directory(source.absolute(), name)

    def _prepare(self) -> None:
        try:
            (self._root / "datasets").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._root.chmod(0o700)
        except OSError as error:
            raise DataError(
                "FL4503", f"The node's data directory cannot be used: {error.strerror}.", cure="Name another with --data."
            ) from error

    def _folder(self, digest: str) -> Path:
        return self._root / "datasets" / digest[:32]

    def _entries(self) -> dict[str, NodeDataset]:
        path = self._root / _CATALOG
        try:
            content = orjson.loads(path.read_bytes())
            return {name: NodeDataset(**{**entry, "tags": tuple(entry["tags"])}) for name, entry in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                "FL4503", f"The node's catalogue cannot be read ({type(error).__name__}).",
                cure=f"Remove {path} and add the datasets again.",
            ) from error  # fmt: skip

    def _write(self, entries: dict[str, NodeDataset]) -> None:
        path = self._root / _CATALOG
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(orjson.dumps({name: asdict(entry) for name, entry in entries.items()}, option=orjson.OPT_INDENT_2))
        temporary.replace(path)


def _check(name: str, tags: Sequence[str], test_fraction: float) -> None:
    if not name or not all(character.isalnum() or character in "-_." for character in name) or name.startswith("."):
        raise DataError("FL4502", f"{name[:80]!r} cannot be a dataset's name.", cure="Use letters, digits, '-', '_' and '.'.")
    if not tags or any(not tag or len(tag) > 100 for tag in tags):
        raise DataError("FL4502", "A dataset needs at least one tag.", cure="Give them with --tags a,b.")
    if not 0 <= test_fraction < 1:
        raise DataError("FL4504", "--test-fraction is not between 0 and 1.", cure="Write for example 0.2.")


def _sha256(path: Path) -> str:
    from reconciler.federation.data.cached import sha256

    return sha256(path)


def _statistics(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Nulls of each column; smallest, largest and mean value of numbers."""
    found: dict[str, dict[str, Any]] = {}
    for field in list(table.schema)[:_STATISTICS]:
        column = table.column(field.name)
        entry: dict[str, Any] = {"nulls": column.null_count}
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            limits = pc.min_max(column).as_py()
            mean = pc.mean(column).as_py()
            entry |= {"min": limits["min"], "max": limits["max"], "mean": mean} if mean is not None else {}
        found[field.name] = entry
    return found
