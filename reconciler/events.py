"""The observer: one stream of events, to the journal and to whoever looks on (the console now, the web later)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reconciler.journal import Event, Journal

Listener = Callable[[Event], None]


class Observer:
    """Writes each event down before it is shown."""

    def __init__(self, journal: Journal, listeners: tuple[Listener, ...] = ()) -> None:
        self._journal = journal
        self._listeners = listeners

    def tell(self, project: str, kind: str, message: str, *, digest: str = "", data: Mapping[str, Any] | None = None) -> None:
        """One event of a project; project is "" for the cycle itself."""
        stage = str((data or {}).get("stage", ""))
        event = self._journal.append(project, kind, message, digest=digest, stage=stage, data=data)
        for listener in self._listeners:
            listener(event)
