"""A notice: what is told of one project at one commit, made from its status document.

Two documents that differ in nothing that matters – a retry's wording, a duration, a restart – have the same `key` and are one
notice, so that only transitions are told.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import orjson

from reconciler.conditions import Reason
from reconciler.notify import texts
from reconciler.statusdoc import Document, condition

_KINDS = ("Stalled", "Suspended", "Reconciling", "Ready")


class State(StrEnum):
    """How it stands; each forge has its own words for it."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Notice:
    """One project at one commit. `message` is whole; `key` is what makes it another notice; `at` is seconds since the epoch."""

    instance: str
    project: str
    commit: str
    state: State
    reason: str
    message: str
    key: str
    at: float
    customer: str = ""
    digest: str = ""
    version: str = ""

    @property
    def context(self) -> str:
        """Whose status it is."""
        return texts.context(self.instance, self.project)

    @property
    def id(self) -> str:
        """The same whenever it is sent again, and of no other notice."""
        parts = (self.instance, self.project, self.commit, self.key, repr(self.at))
        return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32]

    @property
    def description(self) -> str:
        """One plain line of at most 140 characters."""
        return texts.description(f"{self.reason}: {self.message}")

    def to_json(self) -> bytes:
        """As it waits in the outbox."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> Notice:
        """As it was written. Raises ValueError, TypeError or KeyError for what is none."""
        found: dict[str, Any] = orjson.loads(content)
        return cls(**{**found, "state": State(found["state"])})


def notice(instance: str, project: str, commit: str, document: Document | None, at: float) -> Notice:
    """What a document says; None is a project that is gone."""
    if document is None:
        message = "not declared any more; its service is removed"
        return Notice(instance, project, commit, State.SUCCESS, str(Reason.PRUNED), message, str(Reason.PRUNED), at)
    told = next((item for kind in _KINDS if (item := condition(document, kind)) and (kind == "Ready" or _holds(item))), {})
    version = str((document.get("model") or {}).get("version", ""))
    return Notice(
        instance=instance,
        project=project,
        commit=commit,
        state=_state(document),
        reason=texts.line(told.get("reason", "")),
        message=texts.cut(texts.line(told.get("message", "")), 2000),
        key=_key(document),
        at=at,
        customer=texts.line(document.get("customer", "")),
        digest=digest_of(document),
        version=texts.line(version),
    )


def superseded(before: Notice, by: Notice) -> Notice:
    """What is said of a commit whose project is declared otherwise before it was done."""
    message = f"a newer commit declares it: {by.commit[:12]}"
    reason = "Superseded"
    return replace(before, state=State.SUPERSEDED, reason=reason, message=message, key=reason, at=by.at)


def digest_of(document: Document) -> str:
    """Everything that decides what runs, as one digest; empty for an SLA that is not valid."""
    return texts.line(document.get("serving_digest") or document.get("digest") or "")


def _state(document: Document) -> State:
    kinds = {kind: (condition(document, kind) or {}) for kind in (*_KINDS, "Synced")}
    if _holds(kinds["Stalled"]):
        return State.FAILURE
    if _holds(kinds["Suspended"]):
        return State.SUCCESS
    if _holds(kinds["Reconciling"]):
        return State.ERROR if kinds["Reconciling"].get("reason") == Reason.FOUGHT_OVER else State.PENDING
    ready, synced = _holds(kinds["Ready"]), _holds(kinds["Synced"])
    if ready and synced:
        return State.SUCCESS
    return State.FAILURE if synced else State.ERROR


def _holds(item: dict[str, str]) -> bool:
    return item.get("status") == "True"


def _key(document: Document) -> str:
    said = sorted((item.get("type", ""), item.get("status", ""), item.get("reason", "")) for item in document.get("conditions", ()))
    error = str((document.get("error") or {}).get("code", ""))
    version = str((document.get("model") or {}).get("version", ""))
    return texts.line([said, error, version, digest_of(document)])
