"""Structured logs: each event as one line of JSON, for machines that collect them."""

from __future__ import annotations

import sys
from typing import TextIO

import orjson

from reconciler.journal import Event
from reconciler.statusdoc import clean

_LEVELS = {"error": "error", "traceback": "error", "warning": "warning", "fight": "warning", "retry": "warning"}


class JsonLog:
    """A listener for the observer. Text is one line without control characters, whoever wrote it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def __call__(self, event: Event) -> None:
        line = {
            "time": event.at,
            "level": _LEVELS.get(event.kind, "info"),
            "kind": event.kind,
            "project": event.project,
            "digest": event.digest,
            "stage": event.stage,
            "message": clean(event.message),
        }
        self._stream.write(orjson.dumps(line).decode() + "\n")
        self._stream.flush()
