"""A run's learner as its node sees it: something beside the node that has the data and answers messages, over one pipe.

Where it is – a process (`processes`), a container (`boxes`) – makes no difference to the messages, to what fails and how that is
told. Invariant: a learner that did not answer in time is ended, so that a late answer is never taken for that of the next message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Protocol

from flwr.app import Message
from flwr.proto.message_pb2 import Message as ProtoMessage

from reconciler.nodes import packing
from reconciler.nodes.fab import CODE, LearnerSpec

_ASK_SECONDS = 5.0
_LOG_LIMIT = 4 << 20
GoOn = Callable[[], None]
"""Asked every few seconds; raises to give up."""
Tell = Callable[[str, str], None]
"""Told in (kind, sentence)."""


class LearnerError(Exception):
    """What the learner told of a failure, or why it is gone: a `Failure` as a mapping."""

    def __init__(self, failure: Mapping[str, Any]) -> None:
        super().__init__(str(failure.get("cause", "")))
        self.failure = dict(failure)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run's learner works on this node: `directory` has the unpacked ML repo, and is the run's own.

    `bundle` is the SHA-256 of the app bundle. `held_out` has the rows that are in no training; None where this node has none.
    """

    directory: Path
    bundle: str
    shard: Path
    log: Path
    held_out: Path | None = None

    @property
    def code(self) -> Path:
        """The ML repo's files."""
        return (self.directory / CODE).resolve()

    def open_log(self) -> IO[bytes]:
        """Where all that a learner prints is added; the log of before is put aside when it has become long."""
        if self.log.is_file() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")


class Learners(Protocol):
    """Whoever starts learners on this node."""

    def start(self, spec: LearnerSpec, learner: int, place: Place, tell: Tell, cancelled: Callable[[], bool]) -> Host:
        """A learner that begins to load its data; may take minutes when its packages are not there. Raises FlopsError."""


class Host:
    """The pipe to one learner; `ready` after `await_ready`."""

    grace = 60.0
    """Seconds that are waited for an answer beyond those that the learner has: it may know by itself that they are over."""

    def __init__(self, connection: Connection, tell: Tell) -> None:
        self._connection = connection
        self._tell = tell
        self._raised: dict[str, Any] | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends it and all that it started; nothing when it has ended."""
        raise NotImplementedError

    def await_ready(self, seconds: float, go_on: GoOn) -> None:
        """Waits until the learner has its data. Raises LearnerError."""
        note = self._next(seconds, go_on)
        if isinstance(note, bytes) or note["kind"] != "ready":
            raise LearnerError(_failure(note))

    def ask(self, content: bytes, message: Message, go_on: GoOn) -> bytes:
        """The content of the learner's reply. Raises LearnerError."""
        self._raised = None
        try:
            self._connection.send_bytes(packing.learner_frame(content, message))
        except OSError as error:
            raise LearnerError(self._gone()) from error
        answer = self._next(message.metadata.ttl, go_on)
        if isinstance(answer, bytes):
            reply = ProtoMessage.FromString(answer)
            if reply.HasField("content"):
                return packing.content_of(reply)
            answer = {"failure": self._raised or {"code": f"FL{reply.error.code}", "cause": reply.error.reason}}
        raise LearnerError(_failure(answer))

    def _gone(self) -> dict[str, Any]:
        """The failure of a learner that has hung up."""
        return gone()

    def _next(self, seconds: float, go_on: GoOn) -> bytes | dict[str, Any]:
        """The next reply (bytes), or the next note that says how it is."""
        deadline = time.monotonic() + seconds + self.grace
        while (left := deadline - time.monotonic()) > 0:
            try:
                if not self._connection.poll(min(_ASK_SECONDS, left)):
                    go_on()
                    continue
                frame = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise LearnerError(self._gone()) from error
            if frame[:1] == packing.FRAME_MESSAGE:
                return frame[1:]
            note: dict[str, Any] = json.loads(frame[1:])
            if note["kind"] in ("ready", "failed"):
                return note
            self._noted(note)
        self.close()
        raise LearnerError({**gone(), "code": "FL5021", "cause": f"The learner did not answer within {seconds:g} s."})

    def _noted(self, note: Mapping[str, Any]) -> None:
        kind = note["kind"]
        if kind == "event":
            self._tell("learner", f"{note['event']}: {note['message']}")
        elif kind == "warning":
            self._tell("learner", f"warning: {note['message']}")
        elif kind == "failure":  # an answer that says less of it follows
            self._raised = dict(note["failure"])
            self._tell("learner", f"learner_failed: {self._raised.get('cause')}")


def gone() -> dict[str, Any]:
    """The failure of a learner of which nothing more is known."""
    return {
        "code": "FL5020", "cause": "The learner's process died.", "cure": "See learner.log on the node.",
        "path": "", "line": 0, "transient": False,
    }  # fmt: skip


def _failure(answer: Any) -> dict[str, Any]:
    return dict(answer["failure"]) if isinstance(answer, Mapping) and "failure" in answer else gone()
