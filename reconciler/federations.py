"""The federations of flops.yaml as the loop keeps them: a SuperLink that runs before anybody trains, with the declared keys alone.

A key that was merged, or taken out, counts from the next look on; a federation that flops.yaml has no more is stopped. What is
declared is written down during the look, so that a training that begins after it goes by it. All that can take time – a SuperLink
that starts, another's that hangs – is done beside the loop and tried again with backoff.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from reconciler.engine import Engine
from reconciler.errors import FlopsError
from reconciler.execution import unexpected
from reconciler.nodes import SUPERLINK
from reconciler.runtimes.model import Service
from reconciler.workqueue import FIRST_DELAY, LAST_DELAY

if TYPE_CHECKING:
    from reconciler.nodes.federation import Federation

RENEW = 6 * 3600.0
"""Seconds after which a SuperLink that is as it should be is seen to again: its certificate has an end."""


@dataclass(slots=True)
class _Kept:
    """One federation. `done` is what it was last made to be; `federation` that of `commit`."""

    commit: str = ""
    federation: Federation | None = None
    invalid: FlopsError | None = None
    done: str = ""
    done_at: float = 0.0
    error: FlopsError | None = None
    failures: int = 0
    due: float = 0.0
    working: bool = False


class Federations:
    """Keeps the federations of one engine; `look` is for the thread that decides."""

    def __init__(
        self,
        engine: Engine,
        pool: Executor,
        changed: Callable[[], None],
        *,
        monotonic: Callable[[], float],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._engine, self._pool, self._changed = engine, pool, changed
        self._monotonic, self._uniform = monotonic, uniform
        self._kept: dict[str, _Kept] = {}
        self._pruned = False
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """How many SuperLinks are seen to now."""
        with self._lock:
            return sum(item.working for item in self._kept.values())

    @property
    def failing(self) -> bool:
        """Whether a federation is not as it is declared."""
        with self._lock:
            return any(item.error or item.invalid for item in self._kept.values())

    def look(self, commit: str, complain: Callable[[FlopsError], None]) -> None:
        """Sees that all federations are as this commit declares them; `complain` is told of those that cannot be."""
        declared = self._engine.config.federations
        if not declared and self._pruned:
            return
        running = self._running()
        gone = running.keys() - {name for name, config in declared.items() if config.superlink is None}
        for name in sorted(gone):
            self._see_to(name, "gone", partial(self._engine.runtime.remove, running[name].name), there=False)
        self._pruned = not gone
        for name, config in sorted(declared.items()):
            kept = self._kept.setdefault(name, _Kept())
            self._read(name, commit, kept)
            if kept.invalid is not None:
                complain(kept.invalid)
            if kept.federation is None:
                continue
            there = config.superlink is not None or name in running
            self._see_to(name, kept.federation.declare(), kept.federation.take_up, there=there)
        with self._lock:
            for kept in self._kept.values():
                if kept.error is not None:
                    complain(kept.error)

    def _running(self) -> Mapping[str, Service]:
        services = self._engine.runtime.observe()
        ours = {"flops.kind": SUPERLINK, "flops.instance": self._engine.config.instance}
        return {item.labels["flops.federation"]: item for item in services if ours.items() <= item.labels.items()}

    def _read(self, name: str, commit: str, kept: _Kept) -> None:
        """The federation at a commit. With a file that is not valid the keys stay those that are allowed."""
        if kept.commit == commit:
            return
        try:
            kept.federation, kept.invalid, kept.commit = self._engine.federation(name, commit), None, commit
        except FlopsError as error:
            kept.invalid, kept.commit = error, commit

    def _see_to(self, name: str, wanted: str, work: Callable[[], object], *, there: bool = True) -> None:
        now = self._monotonic()
        with self._lock:
            kept = self._kept.setdefault(name, _Kept())
            if kept.working or now < kept.due or (there and kept.done == wanted and now - kept.done_at < RENEW):
                return
            kept.working = True
        self._pool.submit(self._work, kept, wanted, work)

    def _work(self, kept: _Kept, wanted: str, work: Callable[[], object]) -> None:
        error: FlopsError | None = None
        try:
            work()
        except FlopsError as raised:
            error = raised
        except Exception as bug:  # nothing of a federation may end the loop
            error = unexpected(bug)
        with self._lock:
            now = self._monotonic()
            kept.error, kept.working = error, False
            kept.failures = kept.failures + 1 if error else 0
            if error is None:
                kept.done, kept.done_at, kept.due = wanted, now, now
            else:
                longest = min(FIRST_DELAY * 2 ** min(kept.failures - 1, 20), LAST_DELAY)
                kept.due = now + self._uniform(longest / 2, longest)
        self._changed()
