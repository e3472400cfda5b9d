"""A way from this machine's loopback to that of a network namespace, through a Unix socket: `python bridge.py SOCKET PORT`."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def serve_unix(path: Path, port: int) -> None:
    """In the namespace: hands connections of the Unix socket on to a TCP port."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    _accept(listener, lambda: socket.create_connection(("127.0.0.1", port)))


def serve_tcp(path: Path) -> int:
    """Here: hands connections of a free TCP port, which is returned, on to the Unix socket."""
    listener = socket.create_server(("127.0.0.1", 0))

    def connect() -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(path))
        return made

    threading.Thread(target=_accept, args=(listener, connect), daemon=True).start()
    return int(listener.getsockname()[1])


def _accept(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = connect()
        except OSError:
            near.close()
            continue
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=_copy, args=(one, other), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    serve_unix(Path(sys.argv[1]), int(sys.argv[2]))
