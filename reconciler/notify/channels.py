"""Channels: the ways in which one target is told. Each sends one waiting notice – or all of its commit – and says what it sent."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Protocol

import orjson

from reconciler.errors import NotifyError
from reconciler.notify.exchange import Exchange
from reconciler.notify.forges import Forge
from reconciler.notify.notice import Notice, State
from reconciler.notify.outbox import Outbox, Waiting
from reconciler.notify.texts import code
from reconciler.secrets import Secret

MAX_ROWS = 100
"""Projects in a comment: 65,536 characters is GitHub's limit of one."""
_MARKS = {
    State.PENDING: "⏳ in progress", State.SUCCESS: "✅ done", State.FAILURE: "❌ failed", State.ERROR: "❌ error",
    State.SUPERSEDED: "↪ superseded",
}  # fmt: skip


class Channel(Protocol):
    """One way of telling; `name` is its own in the outbox and in metrics."""

    name: str

    def send(self, waiting: Waiting) -> Sequence[Waiting]:
        """Send it; all that is told by that. Raises NotifyError, SecretError."""

    @property
    def pause(self) -> float:
        """Seconds for which the other side wants nothing more."""


class Statuses:
    """Commit statuses on a forge."""

    def __init__(self, name: str, forge: Forge) -> None:
        self.name, self._forge = name, forge

    def send(self, waiting: Waiting) -> Sequence[Waiting]:
        """Set the status."""
        self._forge.set_status(waiting.notice)
        return [waiting]

    @property
    def pause(self) -> float:
        """As the forge said last."""
        return self._forge.pause


class Comments:
    """One comment on the request that brought a commit, with all of that commit's projects; written again, not posted twice."""

    def __init__(self, name: str, forge: Forge, outbox: Outbox) -> None:
        self.name, self._forge, self._outbox = name, forge, outbox

    def send(self, waiting: Waiting) -> Sequence[Waiting]:
        """Write the comment as it is to be now."""
        commit = waiting.notice.commit
        told = self._outbox.of_commit(self.name, commit)
        thread, comment = self._outbox.comment(self.name, commit) or ("", "")
        thread = thread or self._forge.thread_of(commit)
        if not thread:
            return told  # pushed without a request: there is nobody to tell
        mark = marker(waiting.notice.instance)
        text = f"{mark}\n{body([item.notice for item in told])}"
        written = ""
        if comment:
            try:
                written = self._forge.write_comment(thread, comment, text)
            except NotifyError as error:
                if error.code != "FL9404":  # somebody deleted it
                    raise
        if not written:
            written = self._forge.write_comment(thread, self._find(thread, mark), text)
        self._outbox.remember(self.name, commit, thread, written)
        return told

    @property
    def pause(self) -> float:
        """As the forge said last."""
        return self._forge.pause

    def _find(self, thread: str, mark: str) -> str:
        """Our comment, by its marker and by who wrote it: the marker alone can be written by anybody."""
        me = self._forge.me().casefold()
        own = (number for number, author, text in self._forge.comments(thread) if text.startswith(mark) and author.casefold() == me)
        return next(own, "")


class Webhook:
    """A POST of JSON, signed as our own generic receiver wants it."""

    def __init__(
        self, name: str, url: str, secret: Callable[[], Secret], exchange: Exchange, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self.name, self._url, self._secret, self._exchange, self._clock = name, url, secret, exchange, clock
        self._pause = 0.0

    def send(self, waiting: Waiting) -> Sequence[Waiting]:
        """Post the notice. The id is the same when it is sent again."""
        notice, secret = waiting.notice, self._secret()
        content = orjson.dumps(
            {
                "id": notice.id,
                "event": "transition",
                "time": notice.at,
                "sent": self._clock(),
                "instance": notice.instance,
                "project": notice.project,
                "customer": notice.customer,
                "commit": notice.commit,
                "state": str(notice.state),
                "reason": notice.reason,
                "message": notice.message,
                "context": notice.context,
                "digest": notice.digest,
                "model_version": notice.version,
            }
        )
        headers = {
            "Content-Type": "application/json", "X-Event": "transition", "X-Event-Id": notice.id,
            "X-Signature-256": signature(secret, content),
        }  # fmt: skip
        self._pause = self._exchange("POST", self._url, headers, secret, content=content).pause
        return [waiting]

    @property
    def pause(self) -> float:
        """As the receiver said last."""
        return self._pause


def signature(secret: Secret, content: bytes) -> str:
    """The header's value: HMAC SHA-256 over the body."""
    return "sha256=" + hmac.new(secret.reveal().strip().encode(), content, hashlib.sha256).hexdigest()


def marker(instance: str) -> str:
    """The hidden first line of our comment."""
    return f"<!-- flops-gitops status of {instance} -->"


def body(notices: Sequence[Notice]) -> str:
    """The comment: a table with a line for each project."""
    commits = ", ".join(dict.fromkeys(code(item.commit[:12]) for item in notices))
    rows = [
        f"| {code(item.project, 80)} | {_MARKS[item.state]} | {code(item.reason, 60)} | {code(item.message)} |" for item in notices
    ]
    more = f"\n\n… and {len(rows) - MAX_ROWS} more." if len(rows) > MAX_ROWS else ""
    instance = code(notices[0].instance) if notices else ""
    head = f"**flops** – instance {instance}, commit {commits}\n\n| project | state | reason | says |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows[:MAX_ROWS]) + more
