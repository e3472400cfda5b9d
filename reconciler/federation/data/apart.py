"""The catalogue as the loop has it: rows are read in a process beside the loop's.

Arrow, NumPy and what they import take 70 MiB, and a tenant's data as much as there are of them. Only that process has them, and its
end gives them back; data that are too large for this machine's memory end it, and not the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reconciler.aside import Aside, tell
from reconciler.errors import DataError
from reconciler.federation.data.catalog import DataCatalog, DatasetVersion, silent
from reconciler.spec import MockData
from reconciler.spec.training import Partitioner


def gone(reason: str) -> DataError:
    """For a process that is gone in the middle of a call."""
    cure = "It is started again. If that happens again, the data may be too large for this machine's memory."
    return DataError("FL4018", f"The process that reads data is gone: {reason}.", cure=cure, transient=True)


READER = Aside(gone)
"""The one of this process."""


class CatalogApart(DataCatalog):
    """A catalogue that imports nothing which reads rows."""

    def resolve(self, mock: MockData | None, tags: Sequence[str], *, on_line: Callable[[str], None] = silent) -> DatasetVersion:
        """See `DataCatalog.resolve`."""
        found: DatasetVersion = READER.call(f"{__name__}:_resolve", self, mock, tags, on_line=on_line)
        return found

    def shards(
        self,
        version: DatasetVersion,
        count: int,
        seed: int,
        dest: Path,
        partitions: int | None = None,
        partitioner: Partitioner | None = None,
    ) -> list[Path]:
        """See `DataCatalog.shards`."""
        found: list[Path] = READER.call(f"{__name__}:_shards", self, version, count, seed, dest, partitions, partitioner)
        return found


def _resolve(catalog: DataCatalog, mock: MockData | None, tags: Sequence[str]) -> DatasetVersion:
    return DataCatalog.resolve(catalog, mock, tags, on_line=tell)


def _shards(catalog: DataCatalog, *arguments: Any) -> list[Path]:
    return DataCatalog.shards(catalog, *arguments)
