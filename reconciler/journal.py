"""The journal: what was intended, what happened, how long it took.

Append-only SQLite in WAL mode. It explains and speeds up; it is never the only copy of a fact. Delete it and the next
cycle observes everything anew and trains nothing again. An intent is written before an effect, its result after.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from reconciler.errors import ControllerError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, project TEXT NOT NULL, digest TEXT NOT NULL, kind TEXT NOT NULL,
  stage TEXT NOT NULL, message TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_project ON events (project, id);
CREATE TABLE IF NOT EXISTS stages (
  id INTEGER PRIMARY KEY, project TEXT NOT NULL, digest TEXT NOT NULL, stage TEXT NOT NULL, commit_id TEXT NOT NULL,
  started REAL NOT NULL, seconds REAL, result TEXT, message TEXT);
CREATE INDEX IF NOT EXISTS stages_by_project ON stages (project, digest, id);
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a project's observer. `at` is seconds since the epoch; `id` grows without end."""

    id: int
    at: float
    project: str
    digest: str
    kind: str
    stage: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One run of a stage; `result` is None while it runs or when it was cut off."""

    project: str
    digest: str
    stage: str
    commit: str
    started: float
    seconds: float | None
    result: str | None
    message: str


class Journal:
    """One connection behind a lock: writers are few and short, SQLite serialises other processes."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = self._open(path)

    def append(
        self,
        project: str,
        kind: str,
        message: str,
        *,
        digest: str = "",
        stage: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        """Write one event and return it."""
        at = self._clock()
        row = (at, project, digest, kind, stage, message, orjson.dumps(dict(data or {}), default=str))
        with self._lock, self._db:
            cursor = self._db.execute(
                "INSERT INTO events (at, project, digest, kind, stage, message, data) VALUES (?,?,?,?,?,?,?)", row
            )
        return Event(int(cursor.lastrowid or 0), at, project, digest, kind, stage, message, data or {})

    def begin(self, project: str, digest: str, stage: str, commit: str) -> int:
        """Write the intent to run a stage; the number is for `finish`."""
        with self._lock, self._db:
            cursor = self._db.execute(
                "INSERT INTO stages (project, digest, stage, commit_id, started) VALUES (?,?,?,?,?)",
                (project, digest, stage, commit, self._clock()),
            )
        return int(cursor.lastrowid or 0)

    def finish(self, intent: int, result: str, message: str, seconds: float) -> None:
        """Write the result of a stage whose intent was written before."""
        with self._lock, self._db:
            self._db.execute("UPDATE stages SET seconds=?, result=?, message=? WHERE id=?", (seconds, result, message, intent))

    def events(self, project: str = "", *, after: int = 0, limit: int = 1000) -> list[Event]:
        """The newest `limit` events after an id, oldest first; of all projects when `project` is empty."""
        query = (
            "SELECT * FROM (SELECT id, at, project, digest, kind, stage, message, data FROM events "
            "WHERE id > ? AND (? = '' OR project = ?) ORDER BY id DESC LIMIT ?) ORDER BY id"
        )
        with self._lock:
            rows = self._db.execute(query, (after, project, project, limit)).fetchall()
        return [
            Event(number, at, name, digest, kind, stage, message, orjson.loads(data))
            for number, at, name, digest, kind, stage, message, data in rows
        ]

    def stages(self, project: str, digest: str = "") -> list[StageRecord]:
        """Every run of a stage of a project, oldest first."""
        query = (
            "SELECT project, digest, stage, commit_id, started, seconds, result, COALESCE(message, '') FROM stages "
            "WHERE project = ? AND (? = '' OR digest = ?) ORDER BY id"
        )
        with self._lock:
            rows = self._db.execute(query, (project, digest, digest)).fetchall()
        return [StageRecord(*row) for row in rows]

    def close(self) -> None:
        """Close the connection; the journal cannot be used after that."""
        self._db.close()

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.DatabaseError:
            # A damaged journal costs its history, not the service: put it aside and observe anew.
            path.replace(path.with_suffix(".damaged"))
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            try:
                return _connect(path)
            except sqlite3.Error as error:
                raise ControllerError(
                    "FL9001",
                    f"The journal {path.name} cannot be opened: {error}.",
                    cure="Check that its directory is writable.",
                ) from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, timeout=10)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_SCHEMA)
        db.execute("SELECT count(*) FROM events").fetchone()
    except BaseException:
        db.close()
        raise
    return db
