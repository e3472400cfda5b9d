"""Structured logs: each event as one line of JSON, for machines that collect them. The fields are in docs/operations.md."""

from __future__ import annotations

import sys
from typing import TextIO

import orjson

from reconciler.digests import short
from reconciler.journal import Event
from reconciler.statusdoc import clean

_LEVELS = {"error": "error", "traceback": "error", "warning": "warning", "fight": "warning", "retry": "warning"}


class JsonLog:
    """A listener for the observer. Text is one line without control characters, whoever wrote it."""

    def __init__(self, instance: str, stream: TextIO | None = None) -> None:
        self._instance, self._stream = instance, stream or sys.stdout

    def __call__(self, event: Event) -> None:
        line = {
            "time": event.at,
            "level": _LEVELS.get(event.kind, "info"),
            "instance": self._instance,
            "kind": event.kind,
            "project": event.project,
            "digest": short(event.digest),
            "stage": event.stage,
            "attempt": event.data.get("attempt"),
            "trace_id": event.data.get("trace_id"),
            "code": event.data.get("code"),
            "message": clean(event.message),
        }
        self._stream.write(orjson.dumps({name: value for name, value in line.items() if value not in (None, "")}).decode() + "\n")
        self._stream.flush()
