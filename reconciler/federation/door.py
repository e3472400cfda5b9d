"""The door of a container: how it gets its work and its file descriptors from us without a network.

A listening socket in a folder of its own, which one container sees. The first that knocks is given its order, and after it the
door is shut; the kernel passes the descriptors over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.errors import TrainingError

TARGET = "/run/flops"
"""Where the folder is in the container."""
COMMAND = ("-m", "flops_runtime.door", f"{TARGET}/door.sock")
ARRIVAL_SECONDS = 60.0
_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Door:
    """An open door; `folder` is what the container has to see."""

    folder: Path
    _listening: socket.socket

    def let_in(
        self, order: Mapping[str, Any], fds: list[int], gone: threading.Event, over: Callable[[], bool] = lambda: False
    ) -> None:
        """Gives the first that knocks its order and its descriptors, which are closed here; nothing when it is `over` before.

        Raises TrainingError FL5511 when nobody comes, or when the container is `gone` before.
        """
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline and not gone.is_set() and not over():
            with contextlib.suppress(TimeoutError):
                guest, _ = self._listening.accept()
                with guest:
                    file = os.memfd_create("order")  # a message of this socket has a limit
                    os.write(file, json.dumps(order).encode())
                    socket.send_fds(guest, [b"order"], [file, *fds])
                    os.close(file)
                close(fds)
                return
        if over():
            return
        raise TrainingError(
            "FL5511",
            f"The container of the {order['role']} "
            + ("ended before it asked for its work." if gone.is_set() else f"did not start in {ARRIVAL_SECONDS:g} s."),
            cure="See child.log in the run's directory; the image needs Python and `flops_runtime`.",
            transient=not gone.is_set(),
        )


@contextlib.contextmanager
def open_door(folder: Path) -> Iterator[Door]:
    """A door in a folder that is made here; its parent must let in nobody but us."""
    folder.mkdir()
    folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        # Relative to an open folder: paths of Unix sockets end at 108 bytes.
        descriptor = os.open(folder, os.O_PATH)
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/door.sock")
        finally:
            os.close(descriptor)
        (folder / "door.sock").chmod(0o666)  # nobody but us, and the container, gets as far as this
        listening.listen(1)
        listening.settimeout(_PAUSE)
        yield Door(folder, listening)


def close(fds: list[int]) -> None:
    """Closes descriptors and forgets them."""
    while fds:
        os.close(fds.pop())
