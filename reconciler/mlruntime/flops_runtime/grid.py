"""A Flower Grid whose nodes are learner processes beside it: messages go over pipes, nothing polls and nothing sleeps.

A learner that dies, raises or takes too long answers with a Flower error message, so that strategies account for it as they
do for a remote node. A dead one is started again before the next round, at most once a round. Node ids are stable (learner
index + 1) and a dead node keeps its id: which learners a round samples depends on the seed alone, never on timing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from flops_runtime import wire
from flops_runtime.failures import Failure
from flops_runtime.memory import Allowance, MemoryWatch, available_kb
from flops_runtime.nursery import Nursery

RUN_ID = 1
Tell = Callable[..., None]


@dataclass
class Learner:
    """One learner process as the aggregator sees it."""

    index: int
    spec: dict[str, Any]
    pid: int = 0
    connection: Connection | None = None
    ready: bool = False
    failure: Failure | None = None
    pending: dict[str, Message] = field(default_factory=dict)

    @property
    def node_id(self) -> int:
        """The learner's id as a Flower node."""
        return self.index + 1


class EmbeddedGrid(Grid):  # type: ignore[misc, unused-ignore]
    """Flower's Grid over the learners of one run."""

    def __init__(self, nursery: Nursery, specs: list[dict[str, Any]], memory_mb: int, tell: Tell) -> None:
        self._nursery = nursery
        self._memory_mb = memory_mb
        self._tell = tell
        self._watch = MemoryWatch()
        self._replies: dict[str, Message] = {}
        self._run: Any = None
        self.learners = [Learner(index, spec) for index, spec in enumerate(specs)]
        for learner in self.learners:
            self._start(learner)

    # --- learners -------------------------------------------------------------------------------------------------------

    def await_ready(self, timeout: float | None) -> list[Learner]:
        """Waits until every learner that is starting has its data or has failed; returns those that are ready."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while starting := [learner for learner in self.learners if learner.connection and not learner.ready]:
            if not self._pump(deadline):
                for learner in starting:
                    self._kill(learner, timeout or 0, "`set_model_data`")
        return [learner for learner in self.learners if learner.ready]

    def revive(self, timeout: float | None) -> list[Learner]:
        """Starts dead learners again, once; returns all that are ready then."""
        dead = [learner for learner in self.learners if learner.connection is None]
        for learner in dead:
            self._start(learner)
        ready = self.await_ready(timeout)
        for learner in dead:
            if learner.ready:
                self._tell("learner_restarted", f"learner {learner.index} is back", learner=learner.index)
        return ready

    def failures(self) -> list[tuple[int, Failure]]:
        """The last failure of every learner that has one, with its index; cleared by `clear_failures`."""
        return [(learner.index, learner.failure) for learner in self.learners if learner.failure]

    def clear_failures(self) -> None:
        """Forgets the failures of living learners: a new round begins."""
        for learner in self.learners:
            if learner.connection is not None:
                learner.failure = None

    def close(self) -> None:
        """Lets all learners end."""
        for learner in self.learners:
            self._watch.forget(learner.pid)
            if learner.connection is not None:
                learner.connection.close()
                learner.connection, learner.ready = None, False

    def _start(self, learner: Learner) -> None:
        learner.ready, learner.failure = False, None
        learner.pid, learner.connection = self._nursery.fork("learner", learner.spec)
        share = available_kb() * 8 // 10 // max(1, len(self.learners))
        self._watch.allow(learner.pid, Allowance(0, share))  # loading data: only the machine is protected

    def _kill(self, learner: Learner, timeout: float, what: str) -> None:
        with contextlib.suppress(OSError):  # an engine that is gone says so by itself
            self._nursery.kill(learner.pid)
        self._lost(
            learner,
            Failure(
                "FL5021",
                f"{what} did not return within {timeout:g} s.",
                cure="Raise `training_configuration.round_timeout`, or make a round's work smaller.",
            ),
        )

    def _lost(self, learner: Learner, failure: Failure | None) -> None:
        """The learner's process is gone: every message that waits for it gets an error reply."""
        if learner.connection is not None:
            learner.connection.close()
        learner.connection, learner.ready = None, False
        learner.failure = failure or learner.failure or self._why_dead(learner)
        self._watch.forget(learner.pid)
        self._tell(
            "learner_failed",
            f"learner {learner.index}: {learner.failure.cause}",
            learner=learner.index,
            failure=learner.failure.to_dict(),
        )
        for message in list(learner.pending.values()):
            self._refuse(learner, message)

    def _why_dead(self, learner: Learner) -> Failure:
        status = self._nursery.exit_status(learner.pid)
        if (told := self._nursery.told(learner.pid)) is not None:
            return told
        if (excess := self._watch.exceeded.pop(learner.pid, None)) is not None:
            used, allowance = excess
            return Failure(
                "FL5022",
                f"A learner's own work took {used >> 10} MB; {allowance.extra_kb >> 10} MB is its limit "
                f"(`resource_constraints.memory` is {self._memory_mb} MB, copies of its data come on top).",
                cure="Raise `resource_constraints.memory`, or let `fit_model` work in smaller batches.",
            )
        if status is None:
            how = "ended"
        elif os.WIFSIGNALED(status):
            how = f"was killed by signal {os.WTERMSIG(status)} ({signal.Signals(os.WTERMSIG(status)).name})"
        else:
            how = f"ended with exit code {os.WEXITSTATUS(status)}"
        return Failure(
            "FL5020",
            f"The learner process {how}.",
            cure="Look into child.log in the run's directory for what the ML repo's code wrote last.",
        )

    # --- Flower's Grid --------------------------------------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Sets Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The ids of all nodes, those of dead learners too: messages to these come back as errors."""
        return [learner.node_id for learner in self.learners]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages; returns their ids."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_run_id"] = RUN_ID
            message.metadata.__dict__["_message_id"] = identifier = uuid.uuid4().hex
            ids.append(identifier)
            learner = self.learners[message.metadata.dst_node_id - 1]
            learner.pending[identifier] = message
            if learner.connection is None or not learner.ready:
                self._refuse(learner, message)
                continue
            try:
                wire.send_message(learner.connection, message)
            except OSError:
                self._lost(learner, None)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come for these messages."""
        self._pump(time.monotonic())
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages and returns one reply for each, ordered by node id; a learner that is too slow is killed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = list(self.push_messages(messages))
        while busy := [learner for learner in self.learners if learner.pending]:
            if not self._pump(deadline):
                for learner in busy:
                    kind = next(iter(learner.pending.values())).metadata.message_type
                    self._kill(learner, timeout or 0, "`evaluate_model`" if "evaluate" in kind else "`fit_model`")
        replies = [self._replies.pop(identifier) for identifier in ids]
        return sorted(replies, key=lambda reply: int(reply.metadata.src_node_id))

    def _pump(self, deadline: float | None) -> bool:
        """Takes in what has arrived, waiting for it until the deadline; False if nothing came."""
        owners: dict[Any, Learner] = {learner.connection: learner for learner in self.learners if learner.connection is not None}
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait(list(owners), left)
        connection: Any
        for connection in ready:
            learner = owners[connection]
            try:
                received = wire.receive(connection)
            except (EOFError, OSError):
                self._lost(learner, None)
                continue
            if isinstance(received, Message):
                self._replies[received.metadata.reply_to_message_id] = received
                learner.pending.pop(received.metadata.reply_to_message_id, None)
            else:
                self._note(learner, received)
        return bool(ready)

    def _note(self, learner: Learner, note: dict[str, Any]) -> None:
        kind = note.get("kind")
        if kind == "ready":
            learner.ready = True
            extra = self._memory_mb * 1024 + 2 * int(note["data_kb"])
            self._watch.allow(learner.pid, Allowance(int(note["anonymous_kb"]), extra))
        elif kind == "failed":
            learner.failure = Failure.from_dict(note["failure"])  # its process ends now
        elif kind == "failure":
            learner.failure = Failure.from_dict(note["failure"])
            self._tell(
                "learner_failed",
                f"learner {learner.index}: {learner.failure.cause}",
                learner=learner.index,
                failure=note["failure"],
            )
        elif kind == "warning":
            self._tell("warning", f"learner {learner.index}: {note['message']}", learner=learner.index)

    def _refuse(self, learner: Learner, message: Message) -> None:
        identifier = message.metadata.message_id
        learner.pending.pop(identifier, None)
        if learner.failure is None:
            learner.failure = Failure("FL5020", "The learner is not running.", cure="See its earlier failure.")
        error = Error(code=int(learner.failure.code[2:]), reason=learner.failure.cause)
        self._replies[identifier] = Message(error, reply_to=message)
