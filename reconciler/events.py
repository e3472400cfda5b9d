"""The observer: one stream of events, to the journal and to whoever looks on (the console now, the web later)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reconciler.errors import FlopsError
from reconciler.journal import Event, Journal

Listener = Callable[[Event], None]


class Observer:
    """Writes each event down before it is shown."""

    def __init__(self, journal: Journal, listeners: tuple[Listener, ...] = ()) -> None:
        self._journal = journal
        self._listeners = listeners
        self._working: dict[str, dict[str, Any]] = {}

    def works(self, project: str, *, attempt: int, trace_id: str) -> None:
        """From now on a project's events are of this try of its content (the first is 1), and of this trace."""
        self._working[project] = {"attempt": attempt} | ({"trace_id": trace_id} if trace_id else {})

    def tell(self, project: str, kind: str, message: str, *, digest: str = "", data: Mapping[str, Any] | None = None) -> None:
        """One event of a project; project is "" for the cycle itself."""
        stage = str((data or {}).get("stage", ""))
        about = {**self._working.get(project, {}), **(data or {})}
        event = self._journal.append(project, kind, message, digest=digest, stage=stage, data=about)
        for listener in self._listeners:
            listener(event)


class Complaints:
    """Trouble with the whole – the remote, the branch – told once as long as it lasts."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._before: dict[str, str] = {}
        self._now: dict[str, str] = {}

    def begin(self, *, all_anew: bool) -> None:
        """A look begins. With `all_anew` it asks for everything, so what it does not complain of is over."""
        if all_anew:
            self._before, self._now = self._now, {}

    def __call__(self, error: FlopsError) -> None:
        """Tell of an error, unless it is what was told last time."""
        if str(error) not in (self._before.get(error.code), self._now.get(error.code)):
            self._observer.tell("", "warning", str(error), data=error.to_dict())
        self._now[error.code] = str(error)
