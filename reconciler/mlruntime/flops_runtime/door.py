"""The entry point of a container of a training run: `python -m flops_runtime.door SOCKET`.

It knocks, gets its order and its file descriptors from the reconciler, and becomes a learner, an exporter, a cluster
aggregator or the aggregator. It needs no network, no file of the reconciler's and no secret: the socket is mounted into this
container alone and lets in one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import socket
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

_MOST = 8


def knock(path: str) -> tuple[dict[str, Any], list[int]]:
    """The order, and the file descriptors that belong to it. Raises OSError when there is no door."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.connect(path)
        _, fds, _, _ = socket.recv_fds(door, 16, _MOST)
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        order: dict[str, Any] = json.load(file)
    return order, fds[1:]


def main(arguments: list[str]) -> int:
    """Do what the order says, and end when whoever gave it is gone."""
    order, fds = knock(arguments[0])
    if order["role"] == "aggregator":
        from flops_runtime.aggregator import main as aggregate

        events, life, ordered = fds
        return aggregate([order["job"], str(events), str(life), f"ordered={ordered}"])
    threading.Thread(target=_end_with, args=(fds[0],), name="life", daemon=True).start()
    module = importlib.import_module(f"flops_runtime.{order['role']}")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # then there is nobody left to tell
        module.run(Connection(fds[0]), order["spec"], *fds[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with(fd: int) -> None:
    """A learner in the middle of `fit_model` would notice only afterwards that its aggregator is gone."""
    watch = select.poll()
    watch.register(fd, select.POLLRDHUP)
    watch.poll()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
