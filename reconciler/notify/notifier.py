"""The notifier: finds the transitions among the loop's documents, writes them down, and has them sent beside the loop.

A transition is a document that says something else, or the same of a newer commit of the project. Which commit is told: the one
that last changed the project's folder; where something outside of it changed what is declared, the tracked branch's head.
The loop only hands over its documents; Git, the database and the network are other threads' business.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from reconciler.errors import FlopsError, NotifyError
from reconciler.events import Observer
from reconciler.execution import unexpected
from reconciler.journal import Journal
from reconciler.notify.notice import Notice, digest_of, notice
from reconciler.notify.outbox import Outbox, Told
from reconciler.notify.sender import LOOK_AGAIN, Sender
from reconciler.notify.targets import channels
from reconciler.source import GitRepo
from reconciler.spec import OperatorConfig
from reconciler.statusdoc import Document

Complain = Callable[[str], None]
PART = 100
"""Notices that are written down at once."""
FAREWELL = 5.0
"""Seconds that an end waits for notices to get out; what does not waits in the outbox."""


class Commits(Protocol):
    """Which commits changed projects."""

    def touched(self, since: str, until: str) -> dict[str, str]:
        """The projects that were changed after a commit, with the newest commit that did."""

    def last(self, project: str, until: str) -> str:
        """The newest commit that changed a project; empty when there is none."""


class Notifier:
    """Tells all targets; without any it does nothing and has no thread."""

    def __init__(
        self, instance: str, senders: list[Sender], outbox: Outbox, commits: Commits, complain: Complain,
        *, clock: Callable[[], float] = time.time, background: bool = True,
    ) -> None:  # fmt: skip
        self.senders = senders
        self._instance, self._outbox, self._commits = instance, outbox, commits
        self._complain, self._clock, self._background = complain, clock, background
        self.dropped = 0
        self._baseline: Mapping[str, Document] | None = None
        self._commit = ""
        self._head: str | None = None
        self._told: dict[str, Told] = {}
        self._seen: Mapping[str, Document] = {}
        self._error = ""
        self._changed = threading.Condition()
        self._offered: tuple[Mapping[str, Document], str] | None = None
        self._busy = self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def targets(self) -> list[str]:
        """The names under which notices wait."""
        return [channel.name for sender in self.senders for channel in sender.channels]

    def begin(self, documents: Mapping[str, Document]) -> None:
        """Work begins with what was published: what is as it was then is no transition."""
        if not self.senders:
            return
        with self._changed:
            self._baseline, self._offered, self._commit = dict(documents), None, ""
        for sender in self.senders if self._background else ():
            sender.start()

    def offer(self, documents: Mapping[str, Document], commit: str, *, changed: bool) -> None:
        """What the loop says of all projects at a commit of the tracked branch, and whether that changed since the last time."""
        if not self.senders or not (changed or commit != self._commit):
            return
        documents, self._commit = dict(documents), commit
        if not self._background:
            self._safely(documents, commit)
            return
        with self._changed:
            self._offered = (documents, commit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def rest(self) -> None:
        """Another reconciler works on: nothing is told until `begin`."""
        with self._changed:
            self._offered = None
        for sender in self.senders:
            sender.rest()

    def flush(self, seconds: float = FAREWELL) -> None:
        """Bring out what can be brought out within so many seconds; the rest stays in the outbox."""
        end = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._offered is None and not self._busy, seconds)
        for sender in self.senders:
            sender.flush(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """End; nobody waits for what is on its way."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for sender in self.senders:
            sender.close()

    def waiting(self) -> dict[str, int]:
        """How much waits for each target; nothing where that cannot be read."""
        with suppress(NotifyError):
            return {name: self._outbox.waiting(name) for name in self.targets}
        return {}

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offered is not None or self._closing)
                if self._offered is None:
                    return
                (documents, commit), self._offered, self._busy = self._offered, None, True
            taken = self._safely(documents, commit)
            with self._changed:
                if not taken and self._offered is None and not self._closing:
                    self._changed.wait_for(lambda: self._offered is not None or self._closing, LOOK_AGAIN)
                    self._offered = self._offered or (None if self._closing else (documents, commit))
                self._busy = False
                self._changed.notify_all()

    def _safely(self, documents: Mapping[str, Document], commit: str) -> bool:
        try:
            self._take(documents, commit)
            error = ""
        except FlopsError as known:
            error = str(known)
        except Exception as bug:
            error = str(unexpected(bug))
        if error:
            self._once(error)
        return not error

    def _once(self, error: str) -> None:
        if error != self._error:
            self._complain(error)
        self._error = error

    def _take(self, documents: Mapping[str, Document], commit: str) -> None:
        """Find the transitions and write them down; nothing of it counts before that."""
        self._load()
        touched = self._touched(commit)
        seen = self._seen
        changed = {name for name, document in documents.items() if seen.get(name) is not document} | (
            self._told.keys() - documents.keys()
        )
        notices, told, failed = list[Notice](), dict[str, Told | None](), set[str]()
        for name in sorted(changed | ((touched or {}).keys() & documents.keys())):
            document, before = documents.get(name), self._told.get(name)
            try:
                where = self._commit_of(name, before, document, commit, touched)
                item = notice(self._instance, name, where, document, self._clock())
                item.to_json()
            except Exception as bug:  # one project's document or name that cannot be told; the others are
                self._once(f"{name!r} cannot be told: {unexpected(bug)}")
                failed.add(name)
                continue
            if before is not None and before.key == item.key and name not in (touched or ()):
                continue
            told[item.project] = Told(where, item.digest, item.key) if document is not None else None
            notices.append(item)
        # In parts, as each holds the journal; how far Git was read counts with the last one.
        parts = [notices[at : at + PART] for at in range(0, len(notices), PART)] or ([[]] if commit != self._head else [])
        for number, part in enumerate(parts, 1):
            self._write(
                commit if number == len(parts) else self._head or "", {item.project: told[item.project] for item in part}, part
            )
        self._head = commit
        self._seen = {name: document for name, document in documents.items() if name not in failed} if failed else documents

    def _write(self, head: str, told: Mapping[str, Told | None], notices: Sequence[Notice]) -> None:
        dropped = self._outbox.take(head, told, notices, self.targets)
        if dropped:
            self.dropped += dropped
            cause = f"Too much waits to be told: the oldest {dropped} notices were dropped, {self.dropped} in all."
            self._complain(str(NotifyError("FL9412", cause, cure="See why a target cannot be told.", transient=True)))
        for name, now_told in told.items():
            if now_told is None:
                self._told.pop(name, None)
            else:
                self._told[name] = now_told
        for sender in self.senders if notices else ():
            sender.wake()

    def _load(self) -> None:
        baseline = self._baseline
        if baseline is None:
            return
        self._head, self._told = self._outbox.told()
        if self._head is None:
            self._told = {name: _as_told(self._instance, name, document) for name, document in baseline.items()}
            self._outbox.take("", self._told, [], [])
        self._seen, self._baseline = {}, None

    def _touched(self, commit: str) -> dict[str, str] | None:
        """The projects that were changed since the last time; None where Git cannot say, as after a rewritten history."""
        if not self._head or self._head == commit:
            return {}
        try:
            return self._commits.touched(self._head, commit)
        except FlopsError:
            return None

    def _commit_of(
        self, name: str, before: Told | None, document: Document | None, head: str, touched: Mapping[str, str] | None
    ) -> str:
        """The commit that a project's state is about."""
        if touched is None or before is None or name in touched:
            return (touched or {}).get(name, "") or self._commits.last(name, head) or head
        outside = document is not None and digest_of(document) not in ("", before.digest)
        if outside and self._head and self._head != head:
            return head
        return before.commit or self._commits.last(name, head) or head


def _as_told(instance: str, name: str, document: Document) -> Told:
    item = notice(instance, name, "", document, 0.0)
    return Told("", item.digest, item.key)


def open_notifier(config: OperatorConfig, journal: Journal, repo: GitRepo, observer: Observer) -> Notifier:
    """The notifier of an operator's settings. Raises NotifyError FL9401 for a forge of which nobody says where it is."""

    def complain(text: str) -> None:
        observer.tell("", "warning", text)

    outbox = Outbox(journal, time.time)
    senders = [
        Sender(target.name, channels(target, repo.remote_url, outbox, os.environ), outbox, complain, pause=target.pause)
        for target in config.notify
    ]
    return Notifier(config.instance, senders, outbox, repo, complain)
