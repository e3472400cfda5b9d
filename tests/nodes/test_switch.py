"""The root's switch by itself: who gets what, what is left of a dead aggregator, and that no full pipe waits for another."""

from __future__ import annotations

from tests.federation.test_runtime_parts import inside

COMMON = """
import os, socket, threading, time
from multiprocessing.connection import Connection
from flwr.app import ArrayRecord, Message, RecordDict
import numpy as np
from flops_runtime import wire
from flops_runtime.failures import Failure
from flops_runtime.identity import set_identity
from flops_runtime.superlink_grid import SuperLinkGrid
from flops_runtime.switch import Switch

set_identity()
told = []
def tell(kind, message, **data): told.append((kind, message))

near, far = socket.socketpair()
relay, switch = Connection(far.detach()), Switch(Connection(near.detach()), tell)
def port(cluster):
    with switch.port(cluster) as fd:
        return Connection(os.dup(fd))
def note(connection, kind):
    while True:
        if isinstance(found := wire.receive(connection), dict) and found["kind"] == kind:
            return found
def order(identifier, node, size=1):
    message = Message(RecordDict({"a": ArrayRecord([np.zeros(size)])}), node, "train")
    message.metadata.__dict__.update(_run_id=1, _message_id=identifier)
    return message
def answer(message):
    return Message(message.content, reply_to=message)
NODES = [{"index": 0, "name": "a", "cluster": "east", "connected": True},
         {"index": 1, "name": "b", "cluster": "west", "connected": True}]
"""


def test_each_cluster_gets_its_own_nodes_and_answers() -> None:
    code = """
east, west = port("east"), port("west")
for connection in (east, west):
    wire.send_note(connection, {"kind": "nodes"})
for _ in range(2):
    note(relay, "nodes")
wire.send_note(relay, {"kind": "nodes", "nodes": NODES})
print(*(entry["name"] for connection in (east, west) for entry in note(connection, "nodes")["nodes"]))
wire.send_message(west, order("w", 2))
wire.send_message(east, order("e", 1))
orders = sorted((wire.receive(relay) for _ in range(2)), key=lambda message: message.metadata.message_id)
wire.send_message(relay, answer(orders[1]))
wire.send_note(relay, {"kind": "failed", "id": "e", "lost": True, "failure": {}})
wire.send_note(relay, {"kind": "event", "event": "submitted", "message": "run 1", "data": {}})
print(wire.receive(west).metadata.reply_to_message_id, wire.receive(east)["id"])
while not told: time.sleep(0.01)
print(told)
"""
    assert inside(COMMON + code).splitlines() == ["a b", "w e", "[('submitted', 'run 1')]"]


def test_what_a_dead_aggregator_asked_for_is_forgotten_and_a_fatal_end_is_told_to_its_successor() -> None:
    code = """
east = port("east")
wire.send_message(east, order("e", 1))
asked = wire.receive(relay)
os.write(east.fileno(), b"\\x00\\x00\\x10\\x00half")
east.close()
print(note(relay, "forget")["ids"])
again = port("east")
wire.send_message(relay, answer(asked))
wire.send_note(relay, {"kind": "fatal", "failure": Failure("FL5806", "stopped", cure="").to_dict()})
print(wire.receive(again)["kind"])
later = port("east")
wire.send_note(later, {"kind": "nodes"})
print(wire.receive(later)["failure"]["code"])
"""
    assert inside(COMMON + code).splitlines() == ["['e']", "fatal", "FL5806"]


def test_large_models_both_ways_at_once_wait_for_nobody() -> None:
    code = """
SIZE = 1 << 20
def serve():
    while True:
        received = wire.receive(relay)
        if isinstance(received, dict):
            wire.send_note(relay, {"kind": "nodes", "nodes": NODES[:1]})
        elif received.metadata.message_type == "query.prepare":
            from flwr.app import MetricRecord
            wire.send_message(relay, Message(RecordDict({"node": MetricRecord({"rows": 1})}), reply_to=received))
        else:
            # As long as this is being written, nothing is read here.
            wire.send_message(relay, answer(received))
threading.Thread(target=serve, daemon=True).start()
grid = SuperLinkGrid(port("east"), 1, tell, patience=1.0)
print(len(grid.await_ready(30)))
replies = grid.send_and_receive([order("", 1, SIZE) for _ in range(4)], timeout=60)
print(sum(reply.content["a"].to_numpy_ndarrays()[0].size == SIZE for reply in replies))
"""
    assert inside(COMMON + code).splitlines() == ["1", "4"]
