"""The data that projects learn from: each selection is described once a look, as user data are looked at on disk, however many
projects have it."""

from __future__ import annotations

from collections.abc import Mapping

from reconciler.errors import FlopsError
from reconciler.federation.data import DataCatalog
from reconciler.parsing import Parsed
from reconciler.spec import MockData

Selection = tuple[tuple[str, str] | None, tuple[str, ...]]
"""Mock data (name and tag), and the tags."""
Versions = tuple[tuple[str, str], ...]
"""(tag, digest) of data."""


class Selections:
    """What the selections of all projects come to."""

    def __init__(self, catalog: DataCatalog) -> None:
        self._catalog = catalog
        self._used: dict[Selection, MockData | None] = {}
        self._found: dict[Selection, Versions | FlopsError] = {}

    def use(self, selections: Mapping[Selection | None, MockData | None]) -> None:
        """These are all that there are, each with its mock data."""
        self._used = {key: mock for key, mock in selections.items() if key is not None}

    def changed(self) -> frozenset[Selection]:
        """Those that come to something else than at the last call."""
        found = {key: self._describe(mock, key) for key, mock in self._used.items()}
        changed = frozenset(key for key, item in found.items() if not _same(self._found.get(key), item))
        self._found = {key: item if key in changed else self._found[key] for key, item in found.items()}
        return changed

    def versions(self, project: Parsed) -> Versions:
        """Of one project's data. Raises what is wrong with its selection."""
        key = selection(project)
        found = self._found[key] if key is not None else ()
        if isinstance(found, FlopsError):
            raise found
        return found

    def _describe(self, mock: MockData | None, key: Selection) -> Versions | FlopsError:
        try:
            return tuple((item.tag, item.digest) for item in self._catalog.describe(mock, key[1]))
        except FlopsError as error:
            return error


def selection(parsed: Parsed) -> Selection | None:
    """Which data; nothing for a federation: the data are those of its nodes."""
    mock = parsed.mock_data
    return None if parsed.federated else ((mock.dataset_name, mock.data_tag) if mock else None, parsed.tags)


def _same(before: Versions | FlopsError | None, after: Versions | FlopsError) -> bool:
    return before == after or (isinstance(before, FlopsError) and str(before) == str(after))
