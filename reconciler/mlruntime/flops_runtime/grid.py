"""A Flower Grid whose nodes live in processes beside it: messages go over pipes, nothing polls and nothing sleeps.

A node is a learner, or a cluster aggregator, which is a learner to the root. A `Host` is the process that it lives in: its own,
or, in a simulation, one that it shares with many. A host has one message at a time, so that two full pipes never wait for each
other; the others wait in its queue.

A node whose process dies, raises or takes too long answers with a Flower error message, so that strategies account for it as
they do for a remote node. A dead host is started again before the next round, at most once a round – or at once while others
wait in its queue, or when its message may be tried again (`retries`). Node ids are stable (index + 1) and a dead node keeps
its id: which nodes a round samples depends on the seed alone, never on timing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
_START_TIMEOUT = 300.0
"""Seconds: loading data is no round's work."""
Tell = Callable[..., None]


@dataclass
class Learner:
    """One node as the aggregator sees it."""

    index: int
    name: str
    host: Host
    failure: Failure | None = None

    @property
    def node_id(self) -> int:
        """The learner's id as a Flower node."""
        return self.index + 1

    @property
    def ready(self) -> bool:
        """Whether it has its data and waits for messages."""
        return self.host.ready


@dataclass
class Host:
    """One process with its learners, the message that it works on and those that wait for it."""

    spec: dict[str, Any]
    role: str
    learners: list[Learner] = field(default_factory=list)
    pid: int = 0
    connection: Connection | None = None
    ready: bool = False
    current: Message | None = None
    deadline: float | None = None
    queue: deque[Message] = field(default_factory=deque)
    tries: int = 0

    @property
    def name(self) -> str:
        """How it is called in messages to people."""
        return self.learners[0].name if len(self.learners) == 1 else f"learners {self.learners[0].index}…"


class RunGrid(Grid):  # type: ignore[misc, unused-ignore]
    """What the grids of a run have in common, wherever its nodes are."""

    _run: Any = None
    learners: Sequence[Any]
    """Its nodes, each with `index`, `name`, `node_id` and `ready`."""

    def await_ready(self, timeout: float | None) -> Sequence[Any]:
        """Waits for the nodes at the start of a run; returns those that are ready."""
        raise NotImplementedError

    def revive(self, timeout: float | None) -> Sequence[Any]:
        """Lets nodes that failed in again before a round; returns those that are ready."""
        raise NotImplementedError

    def failures(self) -> list[tuple[int, Failure]]:
        """The last failure of every node that has one, with its index."""
        raise NotImplementedError

    def refuse(self, index: int, failure: Failure) -> None:
        """Counts an answer that came, but may not be used, as the node's failure."""
        raise NotImplementedError

    def clear_failures(self) -> None:
        """Forgets the failures of nodes that take part: a new round begins."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of all nodes."""
        raise NotImplementedError

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


class EmbeddedGrid(RunGrid):
    """Flower's Grid over the processes of one run, or of one cluster.

    `specs` has one entry a process, for its role in the nursery: with `learner` (its index), `name` where it is a cluster, or
    `members` where it has many. `memory_mb` is the limit of a learner's own work; None for processes of ours.
    """

    def __init__(
        self,
        nursery: Nursery,
        specs: list[dict[str, Any]],
        memory_mb: int | None,
        tell: Tell,
        *,
        role: str = "learner",
        retries: int = 0,
    ) -> None:
        self._nursery = nursery
        self._memory_mb = memory_mb
        self._tell = tell
        self._retries = retries
        self._watch = MemoryWatch()
        self._replies: dict[str, Message] = {}
        self._timeout: float | None = None
        self._hosts = [Host(spec, role) for spec in specs]
        for host in self._hosts:
            for member in host.spec.get("members", [host.spec]):
                index = int(member["learner"])
                host.learners.append(Learner(index, str(member.get("name", f"learner {index}")), host))
        made = (learner for host in self._hosts for learner in host.learners)
        self.learners: list[Learner] = sorted(made, key=lambda learner: learner.index)
        self._by_id = {learner.node_id: learner for learner in self.learners}
        for host in self._hosts:
            self._start(host)

    # --- learners -------------------------------------------------------------------------------------------------------

    def await_ready(self, timeout: float | None) -> list[Learner]:
        """Waits until every process that is starting has its data or has failed; returns the learners that are ready."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while starting := [host for host in self._hosts if host.connection and not host.ready]:
            if not self._pump(deadline):
                for host in starting:
                    self._kill(host, timeout or 0, "`set_model_data`")
        return [learner for learner in self.learners if learner.ready]

    def revive(self, timeout: float | None) -> list[Learner]:
        """Starts dead processes again, once; returns all learners that are ready then."""
        dead = [host for host in self._hosts if host.connection is None]
        for host in dead:
            for learner in host.learners:
                learner.failure = None
            self._start(host)
        ready = self.await_ready(timeout)
        for host in dead:
            if host.ready:
                self._tell("learner_restarted", f"{host.name} is back", learner=host.learners[0].index)
        return ready

    def failures(self) -> list[tuple[int, Failure]]:
        """The last failure of every learner that has one, with its index; cleared by `clear_failures`."""
        return [(learner.index, learner.failure) for learner in self.learners if learner.failure]

    def refuse(self, index: int, failure: Failure) -> None:
        """Counts an answer that came, but may not be used, as the learner's failure."""
        learner = self._by_id[index + 1]
        learner.failure = failure
        self._tell_failed(learner, failure)

    def clear_failures(self) -> None:
        """Forgets the failures of living learners: a new round begins."""
        for learner in self.learners:
            if learner.host.connection is not None:
                learner.failure = None

    def close(self) -> None:
        """Lets all processes end."""
        for host in self._hosts:
            self._watch.forget(host.pid)
            if host.connection is not None:
                host.connection.close()
                host.connection, host.ready = None, False

    def _start(self, host: Host) -> None:
        host.ready = False
        host.pid, host.connection = self._fork(host)
        share = available_kb() * 8 // 10 // max(1, len(self._hosts))
        self._watch.allow(host.pid, Allowance(0, share))  # loading data: only the machine is protected

    def _fork(self, host: Host) -> tuple[int, Connection]:
        return self._nursery.fork(host.role, host.spec)

    def _kill(self, host: Host, timeout: float, what: str) -> None:
        with contextlib.suppress(OSError):  # an engine that is gone says so by itself
            self._nursery.kill(host.pid)
        host.tries = self._retries
        self._lost(
            host,
            Failure(
                "FL5021",
                f"{what} did not return within {timeout:g} s.",
                cure="Raise `training_configuration.round_timeout`, or make a round's work smaller.",
            ),
        )

    def _lost(self, host: Host, failure: Failure | None) -> None:
        """The process is gone: the message that it worked on is tried again or gets an error reply, the others still wait."""
        was_ready, current = host.ready, host.current
        if host.connection is not None:
            host.connection.close()
        host.connection, host.ready, host.current, host.deadline = None, False, None, None
        self._watch.forget(host.pid)
        hit = [self._by_id[current.metadata.dst_node_id]] if current is not None else host.learners
        failure = failure or next((item.failure for item in hit if item.failure), None) or self._why_dead(host)
        self._tell_failed(hit[0], failure)
        if current is not None and was_ready and host.tries < self._retries:
            host.tries += 1
            host.queue.appendleft(current)
        else:
            for learner in hit:
                learner.failure = failure
            if current is not None:
                self._refuse(current, failure)
        if not was_ready:
            while host.queue:
                self._refuse(host.queue.popleft(), failure)
        elif host.queue:
            self._start(host)
            host.deadline = None if self._timeout is None else time.monotonic() + max(_START_TIMEOUT, self._timeout)

    def _tell_failed(self, learner: Learner, failure: Failure) -> None:
        text = f"{learner.name}: {failure.cause}"
        self._tell("learner_failed", text, learner=learner.index, failure=failure.to_dict())

    def _why_dead(self, host: Host) -> Failure:
        status = self._nursery.exit_status(host.pid)
        if (told := self._nursery.told(host.pid)) is not None:
            return told
        if (excess := self._watch.exceeded.pop(host.pid, None)) is not None:
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
            "FL5603" if host.role == "cluster" else "FL5020",
            f"The {'cluster aggregator' if host.role == 'cluster' else 'learner process'} {how}.",
            cure="Look into child.log in the run's directory for what the ML repo's code wrote last.",
        )

    # --- Flower's Grid --------------------------------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """The ids of all nodes, those of dead learners too: messages to these come back as errors."""
        return [learner.node_id for learner in self.learners]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages, or lets them wait for their host; returns their ids."""
        self._timeout = None
        return self._push(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come for these messages."""
        self._pump(time.monotonic())
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages and returns one reply for each, ordered by node id; a learner that is too slow is killed.

        `timeout` is that of one answer: a learner that shares its process with others waits for its turn first.
        """
        self._timeout = timeout
        ids = self._push(messages)
        while busy := [host for host in self._hosts if host.current or host.queue]:
            if not self._pump(min((host.deadline for host in busy if host.deadline is not None), default=None)):
                now = time.monotonic()
                for host in busy:
                    if host.deadline is not None and host.deadline <= now:
                        self._kill(host, timeout or 0, _method(host.current))
            for host in self._hosts:
                self._send_next(host)
        replies = [self._replies.pop(identifier) for identifier in ids]
        return sorted(replies, key=lambda reply: int(reply.metadata.src_node_id))

    def _push(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_run_id"] = RUN_ID
            message.metadata.__dict__["_message_id"] = identifier = uuid.uuid4().hex
            ids.append(identifier)
            learner = self._by_id[message.metadata.dst_node_id]
            if learner.host.connection is None or not learner.host.ready:
                self._refuse(message, learner.failure)
            else:
                learner.host.queue.append(message)
        for host in self._hosts:
            host.tries = 0
            self._send_next(host)
        return ids

    def _send_next(self, host: Host) -> None:
        if not host.ready or host.current is not None or not host.queue or host.connection is None:
            return
        host.current = host.queue.popleft()
        host.deadline = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            wire.send_message(host.connection, host.current)
        except OSError:
            self._lost(host, None)

    def _pump(self, deadline: float | None) -> bool:
        """Takes in what has arrived, waiting for it until the deadline; False if nothing came."""
        owners: dict[Any, Host] = {host.connection: host for host in self._hosts if host.connection is not None}
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait(list(owners), left)
        connection: Any
        for connection in ready:
            host = owners[connection]
            try:
                received = wire.receive(connection)
            except (EOFError, OSError):
                self._lost(host, None)
                continue
            if isinstance(received, Message):
                self._replies[received.metadata.reply_to_message_id] = received
                host.current, host.deadline = None, None
            else:
                self._note(host, received)
        return bool(ready)

    def _note(self, host: Host, note: dict[str, Any]) -> None:
        kind = note.get("kind")
        learner = self._by_id.get(int(note.get("learner", -1)) + 1, host.learners[0])
        if kind == "ready":
            host.ready = True
            if self._memory_mb is None:
                self._watch.forget(host.pid)
                return
            extra = self._memory_mb * 1024 + 2 * int(note["data_kb"])
            self._watch.allow(host.pid, Allowance(int(note["anonymous_kb"]), extra))
        elif kind == "failed":
            for item in host.learners:
                item.failure = Failure.from_dict(note["failure"])  # its process ends now
        elif kind == "failure":
            learner.failure = Failure.from_dict(note["failure"])
            self._tell_failed(learner, learner.failure)
        elif kind == "warning":
            self._tell("warning", f"{learner.name}: {note['message']}", learner=learner.index)
        elif kind == "event":
            self._tell(note["name"], f"{host.name}: {note['message']}", round=int(note["round"]), **note["data"])

    def _refuse(self, message: Message, failure: Failure | None) -> None:
        failure = failure or Failure("FL5020", "The learner is not running.", cure="See its earlier failure.")
        learner = self._by_id[message.metadata.dst_node_id]
        learner.failure = learner.failure or failure
        error = Error(code=int(failure.code[2:]), reason=failure.cause)
        self._replies[message.metadata.message_id] = Message(error, reply_to=message)


def _method(message: Message | None) -> str:
    if message is None:
        return "`set_model_data`"
    return "`evaluate_model`" if "evaluate" in message.metadata.message_type else "`fit_model`"
