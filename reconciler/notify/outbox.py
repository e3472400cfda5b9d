"""The outbox: what was told last, and what still waits for whom, in the journal's database.

A notice is written here before anything is sent, and by (target, project, commit), so that a newer state takes the place of one
that waits, the same one is never sent twice, and a restart changes nothing of that. It is feedback: when the file is deleted,
people are not told again what they were told, and no work depends on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from reconciler.errors import NotifyError
from reconciler.journal import Journal
from reconciler.notify.notice import Notice, State, superseded

T = TypeVar("T")
MAX_WAITING = 5000
FREE_SENDS, STEP_SECONDS, MOST_SECONDS = 5, 15, 900
"""What flaps is told so many times at once, then ever more rarely: GitHub takes 1,000 statuses a commit and context, ever."""
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS told (project TEXT PRIMARY KEY, commit_id TEXT NOT NULL, digest TEXT NOT NULL, key TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, target TEXT NOT NULL, project TEXT NOT NULL, "
    "commit_id TEXT NOT NULL, key TEXT NOT NULL, notice BLOB NOT NULL, sent TEXT, sends INTEGER NOT NULL, sent_at REAL NOT NULL, "
    "tries INTEGER NOT NULL, UNIQUE (target, project, commit_id))",
    "CREATE TABLE IF NOT EXISTS comments (target TEXT NOT NULL, commit_id TEXT NOT NULL, thread TEXT NOT NULL, "
    "comment TEXT NOT NULL, PRIMARY KEY (target, commit_id))",
)
_HEAD = ""
"""The row of `told` that says up to which commit transitions were taken in."""


@dataclass(frozen=True, slots=True)
class Told:
    """What was told last of a project. An empty `key`: nothing yet of this commit."""

    commit: str
    digest: str
    key: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A notice that waits for a target; `id` grows with each new notice and stays while it is tried again."""

    id: int
    target: str
    notice: Notice


class Outbox:
    """The tables. Every method may raise NotifyError FL9413 (transient), as the disk may be full."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal, self._clock = journal, clock
        self._ready = False

    # --- taking in

    def told(self) -> tuple[str | None, dict[str, Told]]:
        """The commit up to which transitions were taken in (None: never), and what was told last by project."""
        rows = self._do(lambda db: db.execute("SELECT project, commit_id, digest, key FROM told").fetchall())
        found = {project: Told(commit, digest, key) for project, commit, digest, key in rows}
        head = found.pop(_HEAD, None)
        return (head.commit if head else None), found

    def take(self, head: str, told: Mapping[str, Told | None], notices: Sequence[Notice], targets: Sequence[str]) -> int:
        """Write down at once what is told of projects from now on, and the notices for each target; how many were dropped."""

        def write(db: sqlite3.Connection) -> int:
            rows = [(_HEAD, head, "", "")]
            rows += [(name, item.commit, item.digest, item.key) for name, item in told.items() if item]
            db.executemany("INSERT OR REPLACE INTO told (project, commit_id, digest, key) VALUES (?,?,?,?)", rows)
            db.executemany("DELETE FROM told WHERE project = ?", [(name,) for name, item in told.items() if item is None])
            dropped = 0
            for target in targets:
                for item in notices:
                    self._supersede(db, target, item)
                    self._put(db, target, item)
                dropped += _bound(db, target) if notices else 0
            return dropped

        return self._do(write)

    def _supersede(self, db: sqlite3.Connection, target: str, newer: Notice) -> None:
        """Other commits of the project: what came of them stays; what was said to be going on is said to be over."""
        query = "SELECT seq, sent, notice FROM outbox WHERE target = ? AND project = ? AND commit_id != ?"
        for seq, sent, content in db.execute(query, (target, newer.project, newer.commit)).fetchall():
            with suppress(ValueError, TypeError, KeyError):
                before = Notice.from_json(content)
                if before.state is State.PENDING and sent is None:
                    db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
                elif before.state is State.PENDING:
                    self._put(db, target, superseded(before, newer))

    def _put(self, db: sqlite3.Connection, target: str, item: Notice) -> None:
        where = (target, item.project, item.commit)
        row = db.execute(
            "SELECT key, sent, sends, sent_at FROM outbox WHERE target = ? AND project = ? AND commit_id = ?", where
        ).fetchone()
        if row is not None and row[0] == item.key:
            return
        _, sent, sends, sent_at = row or ("", None, 0, 0.0)
        db.execute("DELETE FROM outbox WHERE target = ? AND project = ? AND commit_id = ?", where)
        db.execute(
            "INSERT INTO outbox (target, project, commit_id, key, notice, sent, sends, sent_at, tries) VALUES (?,?,?,?,?,?,?,?,0)",
            (*where, item.key, item.to_json(), sent, sends, sent_at),
        )

    # --- sending

    def next(self, target: str) -> Waiting | None:
        """What is to be sent next: the least tried, then the oldest; of what was sent often at this commit not all at once."""
        now = self._clock()
        query = (
            "SELECT seq, notice FROM outbox WHERE target = ? AND sent IS NOT key AND (sends < ? OR sent_at > ? OR "
            "sent_at + MIN(?, ? * (sends - ? + 1)) <= ?) ORDER BY tries, seq LIMIT 1"
        )
        values = (target, FREE_SENDS, now, MOST_SECONDS, STEP_SECONDS, FREE_SENDS, now)
        found = self._read(target, query, values)
        return found[0] if found else None

    def of_commit(self, target: str, commit: str) -> list[Waiting]:
        """All that is known of a commit, sent or not, by project."""
        query = "SELECT seq, notice FROM outbox WHERE target = ? AND commit_id = ? ORDER BY project"
        return self._read(target, query, (target, commit))

    def tried(self, waiting: Waiting) -> None:
        """It could not be sent; others come first next time."""
        self._do(lambda db: db.execute("UPDATE outbox SET tries = tries + 1 WHERE seq = ?", (waiting.id,)))

    def sent(self, items: Sequence[Waiting]) -> None:
        """These are sent (or refused for good). What is newer than they waits on; what nobody needs any more is forgotten."""

        def write(db: sqlite3.Connection) -> None:
            for item in items:
                key, said = item.notice.key, item.notice
                # By its place and not by its number: should another one wait there by now, it is compared with what was sent.
                db.execute(
                    "UPDATE outbox SET sent = ?, sends = sends + 1, sent_at = ?, tries = 0 "
                    "WHERE target = ? AND project = ? AND commit_id = ? AND sent IS NOT ?",
                    (key, self._clock(), item.target, said.project, said.commit, key),
                )
            db.execute("DELETE FROM outbox WHERE sent = key AND commit_id NOT IN (SELECT commit_id FROM told)")
            db.execute("DELETE FROM comments WHERE commit_id NOT IN (SELECT commit_id FROM outbox)")

        self._do(write)

    def waiting(self, target: str) -> int:
        """How many notices wait for a target."""
        query = "SELECT COUNT(*) FROM outbox WHERE target = ? AND sent IS NOT key"
        return int(self._do(lambda db: db.execute(query, (target,)).fetchone())[0])

    # --- comments

    def comment(self, target: str, commit: str) -> tuple[str, str] | None:
        """The thread and the comment that tell of a commit."""
        query = "SELECT thread, comment FROM comments WHERE target = ? AND commit_id = ?"
        return self._do(lambda db: db.execute(query, (target, commit)).fetchone())  # type: ignore[no-any-return]

    def remember(self, target: str, commit: str, thread: str, comment: str) -> None:
        """Where a commit's comment is."""
        query = "INSERT OR REPLACE INTO comments (target, commit_id, thread, comment) VALUES (?,?,?,?)"
        self._do(lambda db: db.execute(query, (target, commit, thread, comment)))

    def _read(self, target: str, query: str, values: Sequence[object]) -> list[Waiting]:
        """Notices of a query; a damaged one is removed, as it would be in the way for ever."""

        def read(db: sqlite3.Connection) -> list[Waiting]:
            found = []
            for seq, content in db.execute(query, values).fetchall():
                try:
                    found.append(Waiting(seq, target, Notice.from_json(content)))
                except (ValueError, TypeError, KeyError):
                    db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))
            return found

        return self._do(read)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._journal.transaction() as db:
                if not self._ready:
                    for statement in _SCHEMA:
                        db.execute(statement)
                    self._ready = True
                return work(db)
        except sqlite3.Error as error:
            cause = f"What is to be told cannot be written down or read: {type(error).__name__}: {error}."
            raise NotifyError(
                "FL9413", cause, cure="Check the disk of the state directory; it is tried again.", transient=True
            ) from error


def _bound(db: sqlite3.Connection, target: str) -> int:
    """Drop the oldest of what waits beyond the bound; how many."""
    count = int(db.execute("SELECT COUNT(*) FROM outbox WHERE target = ? AND sent IS NOT key", (target,)).fetchone()[0])
    if count <= MAX_WAITING:
        return 0
    db.execute(
        "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE target = ? AND sent IS NOT key ORDER BY seq LIMIT ?)",
        (target, count - MAX_WAITING),
    )
    return count - MAX_WAITING
