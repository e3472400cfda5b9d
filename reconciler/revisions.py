"""Revisions of ML repos elsewhere, resolved beside the loop: a repo that hangs keeps its own project waiting and no other.

What was resolved is kept; a ref that is followed is asked for again after a while, and stays what it was as long as its remote
cannot be reached.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from reconciler.errors import ControllerError, FlopsError, SourceError
from reconciler.source import MLRepoRevision, MLRepos, Snapshot
from reconciler.workqueue import FIRST_DELAY, LAST_DELAY

Key = tuple[str, str | None, str]


@dataclass(slots=True)
class _Known:
    revision: MLRepoRevision | None = None
    error: FlopsError | None = None
    due: float = 0.0
    failures: int = 0
    asking: bool = False


class Revisions:
    """A `Resolve` that does not wait: what is not known yet is a transient error. `changed` is called after each answer."""

    def __init__(
        self,
        repos: MLRepos,
        pool: Executor,
        changed: Callable[[], None],
        *,
        monotonic: Callable[[], float],
        uniform: Callable[[float, float], float],
        refresh: float,
    ) -> None:
        self._repos, self._pool, self._changed = repos, pool, changed
        self._monotonic, self._uniform, self._refresh = monotonic, uniform, refresh
        self._known: dict[Key, _Known] = {}
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """How many repos are being asked now."""
        with self._lock:
            return sum(item.asking for item in self._known.values())

    def __call__(self, url: str, ref: str | None, subdir: str, follow: bool) -> MLRepoRevision:
        """The revision as far as it is known. Raises FlopsError: a transient one while it is not."""
        key = (url, ref, subdir)
        with self._lock:
            known = self._known.setdefault(key, _Known())
            again = known.error is not None or known.revision is None or follow
            ask = again and not known.asking and self._monotonic() >= known.due
            known.asking = known.asking or ask
        if ask:
            self._pool.submit(self._ask, key, known)
        if known.revision is not None:
            return known.revision
        if known.error is not None:
            raise known.error
        raise ControllerError("FL9010", "The ML repo's revision is being looked up.", cure="It goes on by itself.", transient=True)

    def refresh(self, url: str = "") -> None:
        """Ask for followed refs – of one repo, or of all – at the next look, whenever they were asked for last."""
        with self._lock:
            for (known_url, _, _), item in self._known.items():
                if not url or _plain(known_url) == _plain(url):
                    item.due = 0.0

    def _ask(self, key: Key, known: _Known) -> None:
        url, ref, subdir = key
        revision: MLRepoRevision | None = None
        error: FlopsError | None = None
        try:
            revision = self._repos.resolve(url, ref, subdir, Snapshot("", {}))
        except FlopsError as raised:
            error = raised
        except Exception as raised:  # nothing that a repo can cause may end the loop
            error = SourceError("FL2020", f"The ML repo cannot be read: {raised}.", cure="It is tried again.", transient=True)
        with self._lock:
            known.failures = 0 if revision else known.failures + 1
            known.revision, known.error = revision or known.revision, error
            known.due = self._monotonic() + self._pause(known, error)
            known.asking = False
        # Also when it is as it was: a loop that is to end waits for the answer, whatever it is.
        self._changed()

    def _pause(self, known: _Known, error: FlopsError | None) -> float:
        if error is None:
            return self._refresh * self._uniform(0.9, 1.1)
        longest = min(FIRST_DELAY * 2 ** min(known.failures - 1, 20), LAST_DELAY)
        # A ref that does not exist may be pushed any time, but hardly within the second.
        return max(self._uniform(longest / 2, longest), 0.0 if error.transient else self._refresh)


def _plain(url: str) -> str:
    """An address without what forges and people write in different ways."""
    return url.lower().rstrip("/").removesuffix(".git")
