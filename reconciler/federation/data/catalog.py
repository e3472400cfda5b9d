"""The catalogue: from an SLA's data tags to a dataset version on disk, and from that to one shard per learner.

A version's digest is known without fetching anything, so that a plan costs nothing. What is on disk is content-addressed,
complete or absent, and made by one process at a time.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from reconciler.digests import digest_of
from reconciler.errors import DataError
from reconciler.federation.data import mnist, user_files
from reconciler.spec import MockData

DATASETS = ("mnist",)
_FORM = 1
"""Version of the on-disk form; part of every digest."""


@dataclass(frozen=True, slots=True)
class Described:
    """A dataset version as a plan sees it."""

    name: str
    tag: str
    digest: str


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A dataset on disk: `directory/train.arrow` and, where something is held out, `directory/holdout.arrow`."""

    name: str
    tag: str
    digest: str
    directory: Path
    rows: int
    holdout_rows: int
    columns: tuple[str, ...]


def _silent(_line: str) -> None:
    return None


class DataCatalog:
    """Datasets of one machine. `user_data` are the operator's directories by tag."""

    def __init__(
        self,
        cache: Path,
        user_data: Mapping[str, Path] | None = None,
        *,
        mnist_sources: Sequence[tuple[str, mnist.Source]] = mnist.DEFAULT_SOURCES,
    ) -> None:
        self._cache = cache
        self._user_data = dict(user_data or {})
        self._mnist_sources = mnist_sources

    def describe(self, mock: MockData | None, tags: Sequence[str]) -> list[Described]:
        """The dataset versions behind these tags; fetches nothing. Raises DataError when there are none."""
        if not tags:
            raise DataError(
                "FL4001",
                "The SLA selects no data.",
                cure="Name at least one tag in training_configuration.data_tags.",
            )
        found = []
        for tag in dict.fromkeys(tags):
            if mock is not None and mock.data_tag == tag:
                found.append(Described(mock.dataset_name, tag, _known_digest(mock.dataset_name)))
            elif tag in self._user_data:
                found.append(Described(tag, tag, user_files.digest(self._user_data[tag], tag)))
            else:
                known = sorted({*self._user_data, *([mock.data_tag] if mock else [])})
                raise DataError(
                    "FL4003",
                    f"No data has the tag {tag!r}.",
                    cure=f"Known tags: {', '.join(known) or 'none'}. Add a mock_data.yaml or a data directory.",
                )
        return found

    def resolve(self, mock: MockData | None, tags: Sequence[str], *, on_line: Callable[[str], None] = _silent) -> DatasetVersion:
        """The data behind these tags on disk; fetched, verified and converted once."""
        described = self.describe(mock, tags)
        digest = digest_of([item.digest for item in described])
        directory = self._cache / "versions" / digest[:32]
        with self._making(directory) as make:
            if make:
                tables = [self._tables(item, on_line) for item in described]
                user_files.write_version(directory, tables)
        train, holdout = user_files.sizes(directory)
        return DatasetVersion(
            name="+".join(item.name for item in described),
            tag="+".join(item.tag for item in described),
            digest=digest,
            directory=directory,
            rows=train.rows,
            holdout_rows=holdout.rows if holdout else 0,
            columns=train.columns,
        )

    def shards(self, version: DatasetVersion, count: int, seed: int, dest: Path, partitions: int | None = None) -> list[Path]:
        """Disjoint files, one per learner, that together hold every row once; sizes differ by a partition at most.

        With `partitions` the rows are cut into that many parts, which are dealt to the learners in turn.
        """
        parts = partitions or count
        if parts < count or version.rows < parts:
            what = f"{parts} partitions" if parts < count else f"{version.rows} rows"
            raise DataError(
                "FL4004",
                f"{what} are too few for {max(count, parts)} parts.",
                cure="Raise number_of_partitions, or lower min_available_clients.",
            )
        directory = dest / digest_of([version.digest, count, seed, parts, _FORM])[:32]
        with self._making(directory) as make:
            if make:
                order = np.random.default_rng(seed).permutation(version.rows)
                dealt = np.array_split(order, parts)
                for learner in range(count):
                    rows = np.sort(np.concatenate(dealt[learner::count]))
                    user_files.take(version.directory, rows, directory / f"{learner:04}.arrow")
        return [directory / f"{learner:04}.arrow" for learner in range(count)]

    def _tables(self, item: Described, tell: Callable[[str], None]) -> user_files.Tables:
        if item.name == "mnist":
            folder = self._cache / "mnist"
            with self._making(folder) as make:
                if make:
                    mnist.fetch(folder, self._mnist_sources, tell)
            return user_files.mnist_tables(folder)
        return user_files.read_directory(self._user_data[item.tag], item.tag)

    @contextmanager
    def _making(self, directory: Path) -> Iterator[bool]:
        """Hold the lock of a directory; True when it has to be made. It counts as made after the body ends well."""
        done = directory / ".complete"
        if done.exists():
            yield False
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.parent / f".{directory.name}.lock"):
                if done.exists():
                    yield False
                    return
                yield True
                done.touch()
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DataError(
                    "FL4005",
                    "The disk is full; the dataset could not be written.",
                    cure="Free some space; it is fetched again by itself.",
                    transient=True,
                ) from error
            raise


def _known_digest(name: str) -> str:
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known datasets: {', '.join(DATASETS)}."
        raise DataError("FL4006", f"There is no dataset {name!r}.", cure=hint)
    return digest_of([mnist.SHA256, _FORM])
