"""A run's learner as its node sees it: one child process in the run's own environment, up over all the rounds.

The child gets no environment variable of the node, no network and no file but its code, its shard and its work directory;
what it prints stays in a file of the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import Message as ProtoMessage

from reconciler.federation.launching import environment_of
from reconciler.nodes import packing
from reconciler.nodes.fab import CODE, LearnerSpec
from reconciler.runtime_version import mlruntime_dir

_ASK_SECONDS = 5.0
_LOG_LIMIT = 4 << 20


class LearnerError(Exception):
    """What the learner's process told of a failure: a `Failure` as a mapping."""

    def __init__(self, failure: Mapping[str, Any]) -> None:
        super().__init__(str(failure.get("cause", "")))
        self.failure = dict(failure)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run's learner works on this node: `directory` has the unpacked ML repo, and is the run's own.

    `held_out` has the rows that are in no training; None where this node has none.
    """

    directory: Path
    python: Path
    shard: Path
    log: Path
    held_out: Path | None = None


class Host:
    """One child process; `ready` after `await_ready`. Call from the thread that made it: the child ends with that thread."""

    def __init__(self, spec: LearnerSpec, learner: int, place: Place, on_event: Callable[[str, str], None]) -> None:
        self._on_event = on_event
        work = place.directory / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        job = {
            "learner": learner,
            "repo_dir": str((place.directory / CODE).resolve()),
            "work_dir": str(work.resolve()),
            "data": str(place.shard.resolve()),
            "seed": spec.seed,
            "flavor": spec.flavor,
            "privacy": dict(spec.privacy) if spec.privacy is not None else None,
            "held_out": str(place.held_out.resolve()) if place.held_out is not None else "",
            "memory_mb": spec.memory_mb,
            "setup_seconds": spec.setup_seconds,
        }
        job_file = place.directory / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        ours, theirs = socket.socketpair()
        if place.log.is_file() and place.log.stat().st_size > _LOG_LIMIT:
            place.log.replace(place.log.with_suffix(".log.1"))
        with theirs, place.log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(place.python), "-m", "flops_runtime.node_host", str(job_file.resolve()), str(theirs.fileno())],
                cwd=mlruntime_dir(),
                env=environment_of(place.python, work.resolve(), spec.vcpus),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None and not self._connection.closed

    def await_ready(self, seconds: float, go_on: Callable[[], None]) -> None:
        """Waits until the learner has its data. Raises LearnerError; `go_on` may raise to give up."""
        note = self._next(seconds + 60, go_on)
        if isinstance(note, bytes) or note["kind"] != "ready":
            raise LearnerError(_failure(note))

    def ask(self, content: bytes, message: Message, go_on: Callable[[], None]) -> bytes:
        """The content of the learner's reply. Raises LearnerError; `go_on`, asked every few seconds, may raise to give up."""
        try:
            self._connection.send_bytes(packing.learner_frame(content, message))
        except OSError as error:
            raise LearnerError(_gone()) from error
        answer = self._next(message.metadata.ttl + 60, go_on)
        if isinstance(answer, bytes):
            reply = ProtoMessage.FromString(answer)
            if reply.HasField("content"):
                return packing.content_of(reply)
            answer = {"failure": {"code": f"FL{reply.error.code}", "cause": reply.error.reason}}
        raise LearnerError(_failure(answer))

    def close(self) -> None:
        """Kills the child and all of its children."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _next(self, seconds: float, go_on: Callable[[], None]) -> bytes | dict[str, Any]:
        """The next reply (bytes) or note that is no event."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if not self._connection.poll(min(_ASK_SECONDS, seconds)):
                    go_on()
                    continue
                frame = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise LearnerError(_gone()) from error
            if frame[:1] == packing.FRAME_MESSAGE:
                return frame[1:]
            note: dict[str, Any] = json.loads(frame[1:])
            if note["kind"] != "event":
                return note
            self._on_event(str(note["event"]), str(note["message"]))
        raise LearnerError({**_gone(), "code": "FL5021", "cause": "The learner did not answer in time."})


def _failure(answer: Any) -> dict[str, Any]:
    return dict(answer["failure"]) if isinstance(answer, Mapping) and "failure" in answer else _gone()


def _gone() -> dict[str, Any]:
    return {
        "code": "FL5020", "cause": "The learner's process died.", "cure": "See learner.log on the node.",
        "path": "", "line": 0, "transient": False,
    }  # fmt: skip
