"""The root's switch: one way to the nodes of a federation, shared by the aggregators of its clusters.

A cluster aggregator sees the nodes of its own cluster and no others, and speaks with its end as a classic aggregator does with the
reconciler's relay. When it dies its messages are forgotten and its successor gets an end of its own, so half a frame of the dead
one disturbs nobody. What comes from the relay is always taken in at once: neither side can wait for the other.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from flops_runtime import wire

Tell = Callable[..., None]
EVERY = ""
"""In the place of a cluster's name: the nodes of all of them, for whoever measures what they made together."""


class Switch:
    """Hands frames on between one link to the relay and a connection for each cluster aggregator."""

    def __init__(self, link: Connection, tell: Tell) -> None:
        self._link = link
        self._tell = tell
        self._clusters: dict[Connection, str] = {}
        self._under_way: dict[str, Connection] = {}
        self._asking: set[Connection] = set()
        self._fatal: dict[str, Any] | None = None
        self._state, self._up_lock, self._down_lock = threading.Lock(), threading.Lock(), threading.Lock()
        threading.Thread(target=self._down, name="link", daemon=True).start()

    @contextlib.contextmanager
    def port(self, cluster: str) -> Iterator[int]:
        """The file descriptor that a new aggregator of a cluster (or of `EVERY` one) inherits; open within the context only."""
        ours, theirs = socket.socketpair()
        connection = Connection(ours.detach())
        with self._state:
            self._clusters[connection] = cluster
        threading.Thread(target=self._up, args=(connection,), name=f"cluster {cluster}", daemon=True).start()
        with theirs:
            yield theirs.fileno()

    # --- from a cluster aggregator to the relay -------------------------------------------------------------------------

    def _up(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._sent(connection, connection.recv_bytes())
        with self._state:
            gone = [identifier for identifier, owner in self._under_way.items() if owner is connection]
            for identifier in gone:
                del self._under_way[identifier]
            self._asking.discard(connection)
            del self._clusters[connection]
        with self._down_lock:
            connection.close()
        with contextlib.suppress(OSError):
            self._send_up({"kind": "forget", "ids": gone})

    def _sent(self, connection: Connection, frame: bytes) -> None:
        content = wire.unframed(frame)
        if not isinstance(content, dict):
            with self._state:
                self._under_way[content.metadata.message_id] = connection
            with self._up_lock:
                self._link.send_bytes(frame)
            return
        with self._state:
            if content["kind"] == "nodes":
                self._asking.add(connection)
            for identifier in content.get("ids", []):
                self._under_way.pop(identifier, None)
            fatal = self._fatal
        if fatal is not None:
            self._send_down(connection, fatal)
        elif content["kind"] != "done":
            self._send_up(content)

    def _send_up(self, note: dict[str, Any]) -> None:
        with self._up_lock:
            wire.send_note(self._link, note)

    # --- from the relay to the cluster aggregators ----------------------------------------------------------------------

    def _down(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._came(self._link.recv_bytes())

    def _came(self, frame: bytes) -> None:
        content = wire.unframed(frame)
        if not isinstance(content, dict):
            self._hand_on(content.metadata.reply_to_message_id, frame)
        elif content["kind"] == "failed":
            self._hand_on(content["id"], frame)
        elif content["kind"] == "event":
            self._tell(content["event"], content["message"], **content["data"])
        elif content["kind"] == "nodes":
            with self._state:
                asking = {connection: self._clusters[connection] for connection in self._asking}
                self._asking.clear()
            for connection, cluster in asking.items():
                nodes = [node for node in content["nodes"] if cluster in (EVERY, node["cluster"])]
                self._send_down(connection, {"kind": "nodes", "nodes": nodes})
        elif content["kind"] == "fatal":
            with self._state:
                self._fatal = content
                every = list(self._clusters)
            for connection in every:
                self._send_down(connection, content)

    def _hand_on(self, identifier: str, frame: bytes) -> None:
        with self._state:
            connection = self._under_way.pop(identifier, None)
        if connection is not None:
            with contextlib.suppress(OSError), self._down_lock:  # it has died meanwhile: `_up` sees that too
                connection.send_bytes(frame)

    def _send_down(self, connection: Connection, note: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), self._down_lock:
            wire.send_note(connection, note)
