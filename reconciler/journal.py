"""The journal: what was intended, what happened, how long it took.

Append-only SQLite in WAL mode. It explains and speeds up; it is never the only copy of a fact. Delete it and the next
cycle observes everything anew and trains nothing again. An intent is written before an effect, its result after.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from reconciler.errors import ControllerError
from reconciler.redaction import mask, mask_data

_ENDLESS = 2**63 - 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, project TEXT NOT NULL, digest TEXT NOT NULL, kind TEXT NOT NULL,
  stage TEXT NOT NULL, message TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_project ON events (project, id);
CREATE TABLE IF NOT EXISTS stages (
  id INTEGER PRIMARY KEY, project TEXT NOT NULL, digest TEXT NOT NULL, stage TEXT NOT NULL, commit_id TEXT NOT NULL,
  started REAL NOT NULL, seconds REAL, result TEXT, message TEXT);
CREATE INDEX IF NOT EXISTS stages_by_project ON stages (project, digest, id);
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY CHECK (id = 1), token INTEGER NOT NULL, holder TEXT NOT NULL,
  beat INTEGER NOT NULL);
"""
_READ = {
    "events": "id, at, project, digest, kind, stage, message, data",
    "stages": "project, digest, stage, commit_id, started, seconds, result, COALESCE(message, '')",
    "lease": "token, holder, beat",
}
_EVENT = f"SELECT {_READ['events']} FROM events"  # noqa: S608 – our own names
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_OUT_OF_REACH = {
    sqlite3.SQLITE_AUTH, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
}  # fmt: skip
"""What says nothing about the file: whoever put a sound journal aside for it would lose its history, and the lease of another."""


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


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """Who works on this state directory: a token that grows with each holder, a number that changes while the holder lives."""

    token: int
    holder: str
    beat: int


class Journal:
    """One connection behind a lock: writers are few and short, SQLite serialises other processes."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        self.fence: int | None = None
        """The token of the lease under which intents are written; None where there is no lease."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _open(path)
            self._inode = path.stat().st_ino
        except OSError as error:
            raise _closed(path, error.strerror or type(error).__name__) from error

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
        """Write one event and return it, without secrets. A journal that cannot be written costs its history, and stops nothing."""
        at = self._clock()
        message, data = mask(message), mask_data(data or {})
        row = (at, project, digest, kind, stage, message, orjson.dumps(dict(data), default=str))
        number = 0
        with suppress(sqlite3.Error), self._lock, self._db:
            number = int(
                self._db.execute(
                    "INSERT INTO events (at, project, digest, kind, stage, message, data) VALUES (?,?,?,?,?,?,?)", row
                ).lastrowid
                or 0
            )
        return Event(number, at, project, digest, kind, stage, message, data)

    def begin(self, project: str, digest: str, stage: str, commit: str) -> int:
        """Write the intent to run a stage; the number is for `finish`.

        Raises ControllerError, and then nothing may be started: FL9021 when another controller has taken over, FL9012 when it
        cannot be written. Both are transient.
        """
        row = (project, digest, stage, commit, self._clock(), self.fence, self.fence)
        try:
            with self._lock, self._db:
                cursor = self._db.execute(
                    "INSERT INTO stages (project, digest, stage, commit_id, started) SELECT ?,?,?,?,? "
                    "WHERE ? IS NULL OR EXISTS (SELECT 1 FROM lease WHERE token = ?)",
                    row,
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if cursor.rowcount != 1 or (self.fence is not None and not self._in_place()):
            cause = "Another reconciler has taken over this state directory."
            raise ControllerError("FL9021", cause, cure="This one waits for its turn.", transient=True)
        return int(cursor.lastrowid or 0)

    # --- the lease

    def lease(self) -> LeaseRow | None:
        """Who holds the lease; None when nobody ever did. Raises ControllerError FL9012."""
        try:
            with self._lock:
                found = self._db.execute(f"SELECT {_READ['lease']} FROM lease").fetchone()  # noqa: S608 – our own names
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if found is None or not (isinstance(found[0], int) and isinstance(found[1], str)):
            return None
        return LeaseRow(*found)

    def take_lease(self, holder: str, seen: LeaseRow | None) -> int | None:
        """Take the lease if it is still as it was `seen`; the new token, or None when somebody was faster.

        Raises ControllerError FL9012.
        """
        try:
            with self._lock, self._db:
                if seen is None:
                    changed = self._db.execute(
                        "INSERT OR IGNORE INTO lease (id, token, holder, beat) VALUES (1, 1, ?, 0)", (holder,)
                    )
                else:
                    changed = self._db.execute(
                        "UPDATE lease SET token = token + 1, holder = ?, beat = 0 WHERE token = ? AND holder = ? AND beat = ?",
                        (holder, seen.token, seen.holder, seen.beat),
                    )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        if changed.rowcount != 1 or not self._in_place():
            return None
        return seen.token + 1 if seen else 1

    def beat_lease(self, token: int) -> bool:
        """Say that the holder of a token lives; False when the lease is not that holder's any more."""
        try:
            with self._lock, self._db:
                changed = self._db.execute("UPDATE lease SET beat = beat + 1 WHERE token = ? AND holder != ''", (token,))
        except sqlite3.Error:
            return False
        return changed.rowcount == 1 and self._in_place()

    def drop_lease(self, token: int) -> None:
        """Give the lease back; the token stays, so that the next one is higher."""
        with suppress(sqlite3.Error), self._lock, self._db:
            self._db.execute("UPDATE lease SET holder = '' WHERE token = ?", (token,))

    def _in_place(self) -> bool:
        """Whether our file is still the one that others find: a state directory that was replaced has another lease."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def finish(self, intent: int, result: str, message: str, seconds: float) -> None:
        """Write the result of a stage whose intent was written before."""
        with suppress(sqlite3.Error), self._lock, self._db:
            self._db.execute(
                "UPDATE stages SET seconds=?, result=?, message=? WHERE id=?", (seconds, result, mask(message), intent)
            )

    def events(self, project: str = "", *, after: int = 0, limit: int = 1000) -> list[Event]:
        """The newest `limit` events after an id, oldest first; of all projects when `project` is empty.

        Raises ControllerError FL9014.
        """
        query = f"{_EVENT} WHERE id > ? AND (? = '' OR project = ?) ORDER BY id DESC LIMIT ?"
        return [_event(row) for row in self._rows(query, after, project, project, limit)[::-1]]

    def page(self, project: str, *, after: int = -1, before: int = -1, limit: int) -> list[Event]:
        """At most `limit` events of a project, oldest first: the next ones after an id, else the newest ones before one.

        Raises ControllerError FL9014.
        """
        if after >= 0:
            query = f"{_EVENT} WHERE project = ? AND id > ? ORDER BY id LIMIT ?"
            found = self._rows(query, project, after, limit)
        else:
            query = f"{_EVENT} WHERE project = ? AND id < ? ORDER BY id DESC LIMIT ?"
            found = self._rows(query, project, before if before >= 0 else _ENDLESS, limit)[::-1]
        return [_event(row) for row in found]

    def stage_page(self, project: str, *, before: int = -1, limit: int) -> list[tuple[int, StageRecord]]:
        """At most `limit` runs of stages of a project with their ids, oldest first: the newest ones before an id.

        Raises ControllerError FL9014.
        """
        query = f"SELECT id, {_READ['stages']} FROM stages WHERE project = ? AND id < ? ORDER BY id DESC LIMIT ?"  # noqa: S608
        rows = self._rows(query, project, before if before >= 0 else _ENDLESS, limit)
        return [(int(row[0]), StageRecord(*row[1:])) for row in rows[::-1]]

    def stages(self, project: str, digest: str = "") -> list[StageRecord]:
        """Every run of a stage of a project, oldest first. Raises ControllerError FL9014."""
        query = f"SELECT {_READ['stages']} FROM stages WHERE project = ? AND (? = '' OR digest = ?) ORDER BY id"  # noqa: S608
        return [StageRecord(*row) for row in self._rows(query, project, digest, digest)]

    def _rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            cure = "Remove journal.db in the state directory: it costs history, no training."
            raise ControllerError("FL9014", f"The journal cannot be read: {error}.", cure=cure) from error

    def _failed(self, error: sqlite3.Error) -> ControllerError:
        """What is raised for a write that failed. A file that turns out to be damaged is put aside, so that the next one succeeds:
        with it goes the lease, which whoever had it finds out as he does when the state directory is replaced."""
        if _kind(error) in _DAMAGED:
            with self._lock:
                self._db.close()
                self._db = _made_anew(self._path)
                self._inode = self._path.stat().st_ino
        cure = "Check the disk of the state directory; it is tried again."
        return ControllerError("FL9012", f"The journal cannot be written: {error}.", cure=cure, transient=True)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, for a few short statements that are written together or not at all; for others' tables beside ours."""
        with self._lock, self._db:
            yield self._db

    def close(self) -> None:
        """Close the connection; the journal cannot be used after that."""
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if _kind(error) in _OUT_OF_REACH:
            raise _closed(path, error) from error
        return _made_anew(path)


def _made_anew(path: Path) -> sqlite3.Connection:
    """A new journal in the place of a damaged one, which costs its history and not the service. Raises ControllerError FL9001."""
    path.replace(path.with_suffix(".damaged"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    try:
        return _connect(path)
    except sqlite3.Error as error:
        raise _closed(path, error) from error


def _kind(error: Exception) -> int:
    """SQLite's primary result code; 0 where it did not raise."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _closed(path: Path, why: object) -> ControllerError:
    cause = f"The journal {path.parent.name}/{path.name} cannot be opened: {why}."
    return ControllerError("FL9001", cause, cure="Let your user read and write the state directory, or name another (`--state`).")


def _data(content: Any) -> Mapping[str, Any]:
    """What an event carries; nothing where it cannot be read."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _event(row: tuple[Any, ...]) -> Event:
    number, at, project, digest, kind, stage, message, data = row
    return Event(number, at, project, digest, kind, stage, message, _data(data))


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, timeout=10)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_SCHEMA)
        # Not a check of all its pages, which takes a second for each 100 MB: what is damaged deeper shows when it is used.
        for table, columns in _READ.items():
            db.execute(f"SELECT {columns} FROM {table} ORDER BY id DESC LIMIT 1").fetchone()  # noqa: S608 – our own names
    except BaseException:
        db.close()
        raise
    return db
