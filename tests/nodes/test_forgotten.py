"""What a SuperLink that was killed and started again does not know any more holds nobody up."""

from __future__ import annotations

import threading
import time

from flwr.app import Metadata
from flwr.app.message import RecordDict, make_message

from reconciler.environments import EnvironmentStore
from reconciler.nodes import keys, packing
from reconciler.nodes.fleet import Fleet, reply_to
from reconciler.nodes.node import Node, NodeSettings
from reconciler.nodes.processes import Processes
from tests.nodes.kit import Federation, eventually


def test_an_answer_to_a_run_that_the_superlink_forgot_keeps_no_node_from_the_next(federation: Federation) -> None:
    """A SuperLink that was killed and started again fails at such an answer as it fails at what may pass."""
    federation.node("late")
    folder = federation.root / "late"
    pair = keys.read(folder / "node.key")
    settings = NodeSettings(
        f"{federation.host}:{federation.port}",
        folder / "data",
        folder / "work",
        ("blobs",),
        root_certificates=federation.folder / "ca.pem",
    )
    before = Fleet(settings.superlink, pair, settings.root_certificates)
    before.activate()
    asked = Metadata(
        run_id=7, message_id="a" * 64, src_node_id=1, dst_node_id=before.node_id, reply_to_message_id="", group_id="",
        created_at=time.time(), ttl=600.0, message_type="train",
    )  # fmt: skip
    before.close(leave=False)
    told: list[str] = []
    node = Node(
        settings, pair, Processes(EnvironmentStore(folder / "environments")), lambda kind, text: told.append(f"{kind}: {text}")
    )
    node._unsent = (reply_to(make_message(asked, RecordDict()), packing.pack(b"x", {})), 0.1)
    serving = threading.Thread(target=node.run)
    serving.start()
    try:
        eventually(lambda: "run: the run ended before the answer was there" in told, 30)
        assert told[:2] == [told[0], "lost: FL5801 the SuperLink cannot be reached: the SuperLink answers 500"]
    finally:
        node.stop()
        serving.join(30)
