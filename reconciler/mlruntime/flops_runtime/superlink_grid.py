"""A Flower Grid whose nodes are other machines: messages go over a pipe to the reconciler, which has the way to the SuperLink.

The aggregator has neither network nor credentials; strategy, checkpoints and the choice of the best model are those of the
embedded engine. A node's id is its place among the nodes that may serve the run (by cluster and name): which of them a round
samples depends on the seed and on who is there. A node that is late, or gone, takes no part until it has answered again; nobody
waits for it once there are enough. The grid of a cluster sees the nodes of its cluster only, through the root's `switch`, and has a
patience: the other clusters do not wait for one whose nodes are gone.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Error, Message, RecordDict

from flops_runtime import wire
from flops_runtime.failures import Failure
from flops_runtime.grid import RunGrid

PREPARE = "query.prepare"
_LOOK = 0.5
"""Seconds between two looks at who is connected, while something is waited for."""
_GRACE = 3.0
"""Seconds that a round waits for nodes that have just come (back), when there are enough without them."""
_TRIES, _PAUSE = 2, 5.0
"""How often a node is asked to prepare a run that it cannot serve, and the seconds between."""
_FOR_GOOD = {"FL4501", "FL4504", "FL5807", "FL5842"}
Tell = Callable[..., None]


@dataclass
class Node:
    """One node as the aggregator sees it. `asked` is the message that prepares it, while that is under way."""

    index: int
    name: str
    connected: bool = False
    ready: bool = False
    asked: str = ""
    asked_at: float = 0.0
    failure: Failure | None = None
    was_lost: bool = False
    refusals: int = 0
    not_before: float = 0.0

    @property
    def node_id(self) -> int:
        """The node's id in this grid."""
        return self.index + 1

    @property
    def may_serve(self) -> bool:
        """Whether asking it can be of use: what a node refuses for good, or twice, it will refuse again."""
        return self.refusals < _TRIES

    def refuse(self, failure: Failure) -> None:
        """It cannot serve, for now or for good."""
        self.refusals += 0 if failure.transient else _TRIES if failure.code in _FOR_GOOD else 1
        self.not_before = time.monotonic() + _PAUSE


class SuperLinkGrid(RunGrid):
    """Flower's Grid over the nodes that may serve one run, or one cluster of it.

    `patience` is how long, in seconds, it waits for nodes that are gone when there are too few without them; None: as long as
    it is let. Once it waited in vain it only looks, until there are enough again.
    """

    def __init__(self, connection: Connection, needed: int, tell: Tell, *, patience: float | None = None) -> None:
        self._connection = connection
        self._needed = max(1, needed)
        self._tell = tell
        self._patience = patience
        self._in_vain = False
        self._arrivals: queue.SimpleQueue[Message | dict[str, Any] | None] = queue.SimpleQueue()
        self._pending: dict[str, Node] = {}
        self._messages: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}
        self._waiting_told = False
        self._by_id: dict[int, Node] = {}
        # Always read: the other side could not take our messages while it has to wait with an answer.
        threading.Thread(target=self._read, name="link", daemon=True).start()

    # --- nodes ----------------------------------------------------------------------------------------------------------

    @property
    def learners(self) -> list[Node]:  # type: ignore[override]
        """The nodes that may serve, by index."""
        return [self._by_id[identifier] for identifier in sorted(self._by_id)]

    def await_ready(self, timeout: float | None) -> list[Node]:
        """Waits until every connected node has answered whether it can serve, and enough can; returns those that can."""
        return self._settle(timeout, grace=None)

    def revive(self, timeout: float | None) -> list[Node]:
        """Lets nodes that are back in again; waits for them only as long as there are too few without them."""
        return self._settle(timeout, grace=_GRACE)

    def _settle(self, timeout: float | None, grace: float | None) -> list[Node]:
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        while True:
            self._look()
            asked = [node for node in self.learners if node.asked]
            ready = [node for node in self.learners if node.ready]
            now = time.monotonic()
            busy = [node for node in asked if grace is None or now - node.asked_at < grace]
            if len(ready) >= self._needed and not busy:
                self._in_vain = False
                return ready
            over = deadline is not None and now >= deadline
            if over or self._gives_up(started, now) or sum(node.may_serve for node in self.learners) < self._needed:
                self._in_vain = len(ready) < self._needed
                self._note_missing()
                return ready
            if len(ready) < self._needed and not asked and not self._waiting_told:
                self._waiting_told = True
                self._tell("waiting", f"{len(ready)} of {self._needed} nodes are there: waiting for others to connect")
            self._pump(now + _LOOK)

    def _gives_up(self, started: float, now: float) -> bool:
        """Whether the patience has ended: with nodes that were lost, not with those that prepare the run for the first time."""
        if self._patience is None or any(node.asked and not node.was_lost for node in self.learners):
            return False
        return now - started >= (min(_GRACE, self._patience) if self._in_vain else self._patience)

    def _note_missing(self) -> None:
        """Says of each node that was waited for in vain why it takes no part; what is away can come back."""
        for node in self.learners:
            if not node.ready and node.failure is None:
                cause = "It is not ready yet." if node.connected else "It is not connected."
                node.failure = Failure("FL5811", cause, cure="It takes part again when it is back.", transient=True)

    def prepare(self) -> None:
        """Lets the nodes that are connected prepare the run, without waiting for them."""
        with contextlib.suppress(Failure):  # the end of the run is told to whoever needs its nodes
            self._look()

    def _look(self) -> None:
        """Asks who is connected, and prepares who has come."""
        wire.send_note(self._connection, {"kind": "nodes"})
        self._listed = False
        while not self._listed:
            self._pump(None)
        for node in self.learners:
            if node.connected and not node.ready and not node.asked and node.may_serve and time.monotonic() >= node.not_before:
                node.asked_at = time.monotonic()
                node.asked = self._send(node, Message(RecordDict(), node.node_id, PREPARE), None)

    def failures(self) -> list[tuple[int, Failure]]:
        """The last failure of every node that has one, with its index."""
        return [(node.index, node.failure) for node in self.learners if node.failure]

    def clear_failures(self) -> None:
        """Forgets the failures of nodes that take part: a new round begins."""
        for node in self.learners:
            if node.ready:
                node.failure = None

    def refuse(self, index: int, failure: Failure) -> None:
        """Notes that a node's answer was not taken."""
        self._failed(self._by_id[index + 1], failure)

    def close(self) -> None:
        """Tells the reconciler that no more messages come."""
        wire.send_note(self._connection, {"kind": "done"})

    # --- Flower's Grid --------------------------------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        """The ids of the nodes that can be asked now."""
        return [node.node_id for node in self.learners if node.ready]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages; returns their ids."""
        return [self._send(self._by_id[message.metadata.dst_node_id], message, None) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come for these messages."""
        self._pump(time.monotonic())
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages and returns one reply for each, ordered by node id; who is too late answers with an error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = [self._send(self._by_id[message.metadata.dst_node_id], message, timeout) for message in messages]
        while any(identifier in self._pending for identifier in ids):
            if not self._pump(deadline) and deadline is not None and time.monotonic() >= deadline:
                self._give_up([identifier for identifier in ids if identifier in self._pending], timeout or 0)
        replies = [self._replies.pop(identifier) for identifier in ids]
        return sorted(replies, key=lambda reply: int(reply.metadata.src_node_id))

    def _send(self, node: Node, message: Message, timeout: float | None) -> str:
        identifier = uuid.uuid4().hex
        values = message.metadata.__dict__
        values["_run_id"], values["_message_id"] = 1, identifier
        if timeout is not None:
            values["_ttl"] = timeout
        self._pending[identifier], self._messages[identifier] = node, message
        wire.send_message(self._connection, message)
        return identifier

    def _give_up(self, ids: list[str], timeout: float) -> None:
        """These are too late: their nodes are asked again when they answer again."""
        wire.send_note(self._connection, {"kind": "forget", "ids": ids})
        for identifier in ids:
            node = self._pending[identifier]
            node.ready, node.was_lost = False, True
            self._answer_with(
                identifier,
                Failure(
                    "FL5021",
                    f"The node did not answer within {timeout:g} s.",
                    cure="Raise `training_configuration.round_timeout`, make a round's work smaller, or look after the node.",
                    transient=True,
                ),
            )

    def _answer_with(self, identifier: str, failure: Failure) -> None:
        node = self._pending.pop(identifier)
        message = self._messages.pop(identifier)
        self._failed(node, failure)
        if node.asked == identifier:
            node.asked = ""
            node.refuse(failure)
        else:
            self._replies[identifier] = Message(Error(code=int(failure.code[2:]), reason=failure.cause), reply_to=message)

    def _failed(self, node: Node, failure: Failure) -> None:
        node.failure = failure
        text = f"node {node.name}: {failure.cause}"
        self._tell("learner_failed", text, learner=node.index, node=node.name, failure=failure.to_dict())

    def _pump(self, deadline: float | None) -> bool:
        """Takes in one thing that has arrived, waiting for it until the deadline; False if nothing came."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            received = self._arrivals.get(timeout=left) if left != 0 else self._arrivals.get_nowait()
        except queue.Empty:
            return False
        if received is None:
            raise EOFError("the way to the nodes has ended")
        if isinstance(received, Message):
            self._arrived(received)
        else:
            self._note(received)
        return True

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._arrivals.put(wire.receive(self._connection))
        self._arrivals.put(None)

    def _arrived(self, reply: Message) -> None:
        identifier = reply.metadata.reply_to_message_id
        node = self._pending.pop(identifier, None)
        self._messages.pop(identifier, None)
        if node is None:
            return
        if node.asked != identifier:
            self._replies[identifier] = reply
            return
        node.asked, node.ready, node.failure, node.refusals = "", True, None, 0
        kind = "learner_restarted" if node.was_lost else "node_ready"
        rows = int(reply.content["node"]["rows"])
        self._tell(
            kind, f"node {node.name} is {'back' if node.was_lost else 'ready'} with {rows:,} rows", node=node.name, rows=rows
        )

    def _note(self, note: dict[str, Any]) -> None:
        kind = note.get("kind")
        if kind == "nodes":
            self._listed = True
            for entry in note["nodes"]:
                self._seen(entry)
        elif kind == "failed" and note["id"] in self._pending:
            node = self._pending[note["id"]]
            failure = Failure.from_dict(note["failure"])
            if note["lost"]:
                node.ready, node.was_lost = False, True
            self._answer_with(note["id"], failure)
        elif kind == "event":
            self._tell(note["event"], note["message"], **note["data"])
        elif kind == "fatal":
            raise Failure.from_dict(note["failure"])

    def _seen(self, entry: dict[str, Any]) -> None:
        index = int(entry["index"])
        node = self._by_id.setdefault(index + 1, Node(index, str(entry["name"])))
        if node.connected and not entry["connected"]:
            self._tell("node_left", f"node {node.name} is not connected any more", node=node.name)
            node.ready, node.was_lost = False, True
        node.connected = bool(entry["connected"])
