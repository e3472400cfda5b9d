"""The pipe between a node and its learner, wherever that is: what is told over it, and what happens when nothing is."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto

from reconciler.actors import ActorSpec
from reconciler.nodes import packing
from reconciler.nodes.boxes import Share
from reconciler.nodes.host import Host, LearnerError


class Bare(Host):
    """A host of nothing but the pipe."""

    grace = 0.0

    @property
    def alive(self) -> bool:
        return not self._connection.closed

    def close(self) -> None:
        self._connection.close()


@dataclass
class Pipe:
    """Both ends, and what the node was told."""

    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.learner = Connection(theirs.detach())
        self.host = Bare(Connection(ours.detach()), lambda kind, text: self.told.append(f"{kind}: {text}"))

    def note(self, **content: Any) -> None:
        self.learner.send_bytes(packing.FRAME_NOTE + json.dumps(content).encode())

    def answer(self, message: Message) -> None:
        self.learner.send_bytes(packing.FRAME_MESSAGE + message_to_proto(message).SerializeToString())


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.host.close()
    made.learner.close()


def asking(ttl: float = 10.0) -> Message:
    metadata = Metadata(
        run_id=1, message_id="1", src_node_id=1, dst_node_id=1, reply_to_message_id="", group_id="1", created_at=1.0, ttl=ttl,
        message_type="train",
    )  # fmt: skip
    return make_message(metadata, RecordDict({"a": MetricRecord({"b": 1})}))


def ask(pipe: Pipe, message: Message) -> dict[str, Any]:
    with pytest.raises(LearnerError) as caught:
        pipe.host.ask(packing.content_of(message_to_proto(message)), message, lambda: None)
    return caught.value.failure


def test_a_learner_tells_what_it_does_before_it_is_ready(pipe: Pipe) -> None:
    pipe.note(kind="loading", anonymous_kb=1)
    pipe.note(kind="warning", message="FedProx acts as FedAvg.")
    pipe.note(kind="ready", anonymous_kb=1, data_kb=1)
    pipe.host.await_ready(10, lambda: None)
    assert pipe.told == ["learner: warning: FedProx acts as FedAvg."]


def test_the_whole_failure_counts_and_not_what_flower_makes_of_it(pipe: Pipe) -> None:
    failure = {"code": "FL5015", "cause": "`fit_model` raised ValueError: x.", "path": "model_manager.py", "line": 7}
    message = asking()
    pipe.note(kind="failure", learner=0, failure=failure)
    pipe.answer(Message(Error(code=5015, reason="`fit_model` raised"), reply_to=message))
    assert ask(pipe, message) == failure
    pipe.answer(Message(Error(code=5016, reason="another"), reply_to=message))
    assert ask(pipe, message) == {"code": "FL5016", "cause": "another"}, "the one before is not told again"


def test_a_learner_that_is_too_late_is_ended(pipe: Pipe) -> None:
    """Else its answer would be taken for that of the next message."""
    assert ask(pipe, asking(ttl=0.05))["code"] == "FL5021"
    assert not pipe.host.alive


def test_a_learner_that_hangs_up_has_died(pipe: Pipe) -> None:
    pipe.learner.close()
    with pytest.raises(LearnerError) as caught:
        pipe.host.await_ready(10, lambda: None)
    assert caught.value.failure["code"] == "FL5020"


@pytest.mark.parametrize(
    ("share", "memory", "vcpus"), [(Share(None, math.inf), 600, 2.0), (Share(1000, 4.0), 600, 2.0), (Share(450, 0.5), 450, 0.5)]
)
def test_a_container_gets_what_the_run_asks_for_or_what_the_owner_gives(share: Share, memory: int, vcpus: float) -> None:
    wanted = ActorSpec("h", "n", "i", (), {}, {}, Path("d"), "/t", (), (), memory_mb=600, vcpus=2.0)
    given = share.of(wanted)
    assert (given.memory_mb, given.vcpus) == (memory, vcpus)
