"""The catalogue: from an SLA's data tags to a dataset version on disk, and from that to one shard per learner.

A version's digest is known without fetching anything, so that a plan costs nothing. What is on disk is content-addressed,
complete or absent, and made by one process at a time. Whatever reads rows – NumPy, Arrow – is imported when rows are read.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.digests import digest_of
from reconciler.errors import DataError
from reconciler.federation.data import user_digest
from reconciler.federation.data.cached import locked, making
from reconciler.federation.data.known import DATASETS
from reconciler.spec import MockData
from reconciler.spec.training import Partitioner

if TYPE_CHECKING:
    from reconciler.federation.data import mnist, user_files

_FORM = 1
"""Version of the on-disk form; part of every digest."""
_DEAL = 2
"""Version of the way in which rows are dealt to learners."""


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


def silent(_line: str) -> None:
    """Tells nobody."""


class DataCatalog:
    """Datasets of one machine. `user_data` are the operator's directories by tag."""

    def __init__(
        self,
        cache: Path,
        user_data: Mapping[str, Path] | None = None,
        *,
        mnist_sources: Sequence[tuple[str, mnist.Source]] | None = None,
    ) -> None:
        self._cache = cache
        self._user_data = dict(user_data or {})
        self._mnist_sources = mnist_sources

    def describe(self, mock: MockData | None, tags: Sequence[str]) -> list[Described]:
        """The dataset versions behind these tags; fetches nothing. Raises DataError when there are none."""
        if not tags:
            raise DataError(
                "FL4001",
                "The SLA selects no data, so the learners cannot find any data.",
                cure="Name at least one tag in training_configuration.data_tags.",
            )
        found = []
        for tag in sorted(set(tags)):
            if mock is not None and mock.data_tag == tag:
                found.append(Described(mock.dataset_name, tag, _known_digest(mock.dataset_name)))
            elif tag in self._user_data:
                found.append(Described(tag, tag, self._user_digest(tag)))
            else:
                known = sorted({*self._user_data, *([mock.data_tag] if mock else [])})
                raise DataError(
                    "FL4003",
                    f"No data has the tag {tag!r}.",
                    cure=f"Known tags: {', '.join(known) or 'none'}. Add a mock_data.yaml or a data directory.",
                )
        return found

    def resolve(self, mock: MockData | None, tags: Sequence[str], *, on_line: Callable[[str], None] = silent) -> DatasetVersion:
        """The data behind these tags on disk; fetched, verified and converted once."""
        from reconciler.federation.data import arrow_files, user_files

        described = self.describe(mock, tags)
        digest = digest_of([item.digest for item in described])
        directory = self._cache / "versions" / digest[:32]
        with making(directory) as make:
            if make:
                mocked = mock.data_tag if mock else None
                made = user_files.union(
                    [(item.tag, self._known(item.name, on_line) if item.tag == mocked else self._user(item)) for item in described]
                )
                arrow_files.write(made.train, directory / "train.arrow")
                if made.holdout is not None:
                    arrow_files.write(made.holdout, directory / "holdout.arrow")
        train = arrow_files.read(directory / "train.arrow")
        holdout = directory / "holdout.arrow"
        return DatasetVersion(
            name="+".join(item.name for item in described),
            tag="+".join(item.tag for item in described),
            digest=digest,
            directory=directory,
            rows=train.num_rows,
            holdout_rows=arrow_files.read(holdout).num_rows if holdout.is_file() else 0,
            columns=tuple(train.column_names),
        )

    def shards(
        self,
        version: DatasetVersion,
        count: int,
        seed: int,
        dest: Path,
        partitions: int | None = None,
        partitioner: Partitioner | None = None,
    ) -> list[Path]:
        """Disjoint files, one per learner, that together hold every row once, shuffled; sizes differ by a partition at most.

        With `partitions` the rows are cut into that many parts, which are dealt to the learners in turn. A partitioner deals
        the rows instead, without regard to partitions.
        """
        parts = count if partitioner is not None else partitions or count
        if parts < count:
            raise DataError(
                "FL4004",
                f"{parts} partitions are too few for {count} learners.",
                cure="Raise number_of_partitions in mock_data.yaml, or lower min_available_clients.",
            )
        if version.rows < parts:
            raise DataError(
                "FL4004",
                f"{version.rows} rows are too few for {parts} parts.",
                cure="Add data, or lower number_of_partitions and min_available_clients.",
            )
        named = [partitioner.model_dump()] if partitioner is not None else []
        directory = dest / digest_of([version.digest, count, seed, parts, _FORM, _DEAL, *named])[:32]
        with making(directory) as make:
            if make:
                from reconciler.federation.data import arrow_files, partitioners

                # Rows stay in the shuffled order: ML repos cut their last fifth off to evaluate with, and data are often sorted.
                train = version.directory / "train.arrow"
                if partitioner is None:
                    dealt = partitioners.iid(version.rows, count, seed, parts)
                else:
                    dealt = partitioners.deal(arrow_files.read(train), count, seed, partitioner)
                for learner, rows in enumerate(dealt):
                    arrow_files.take(train, rows, directory / f"{learner:04}.arrow")
        return [directory / f"{learner:04}.arrow" for learner in range(count)]

    def _user_digest(self, tag: str) -> str:
        directory = self._user_data[tag].absolute()
        remembered = self._cache / "hashes" / f"{digest_of(str(directory))[:32]}.json"
        return digest_of([user_digest.digest(directory, tag, remembered), _FORM])

    def _user(self, item: Described) -> user_files.Tables:
        from reconciler.federation.data import user_files

        tables = user_files.read_directory(self._user_data[item.tag].absolute(), item.tag)
        if self._user_digest(item.tag) != item.digest:
            raise DataError(
                "FL4014",
                f"The data directory of tag {item.tag!r} changed while it was read.",
                cure="It is read again by itself; let the copying end first.",
                transient=True,
            )
        return tables

    def _known(self, name: str, tell: Callable[[str], None]) -> user_files.Tables:
        from reconciler.federation.data import digits, mnist, user_files

        if name == "digits":
            return user_files.Tables(*digits.tables())
        folder = self._cache / "mnist"
        with locked(folder):
            mnist.fetch(folder, mnist.DEFAULT_SOURCES if self._mnist_sources is None else self._mnist_sources, tell)
            return user_files.Tables(*mnist.tables(folder))


def _known_digest(name: str) -> str:
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known datasets: {', '.join(DATASETS)}."
        raise DataError("FL4006", f"There is no dataset {name!r}.", cure=hint)
    return digest_of([DATASETS[name], _FORM])
