"""Whose container is it? A container's front holds a lock on a file named like it; the kernel gives it back when the front dies.

So a front that was killed, with its supervisor or by it, needs no last words: whoever takes the lock may adopt or remove.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

from docker.models.containers import Container

from reconciler.runtimes.docker_engine import DockerEngine

FRONT, CONTENT = "flops.front", "flops.spec"
"""Labels: the name of the lock, and the digest of what was asked for."""
SECRET = "FLOPS_SECRET_"  # noqa: S105 – a prefix
"""Before the names of variables that a front hands on to its container."""
_PAUSE = 0.05


class Claim:
    """The right to be a container's front, or to remove it; held until the process ends."""

    def __init__(self, folder: Path, token: str) -> None:
        self._path = folder / f"{token}.front"
        self._fd: int | None = None

    @property
    def sockets(self) -> Path:
        """Where a container without a network has its socket."""
        return self._path.with_suffix(".d")

    def take(self) -> bool:
        """False when somebody else has it."""
        fd = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def forget(self) -> None:
        """The container has gone."""
        shutil.rmtree(self.sockets, ignore_errors=True)
        self._path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def claim_of(container: Container, folder: Path) -> Claim:
    """The claim on a container of this folder, not taken yet."""
    return Claim(folder, str(container.labels.get(FRONT, container.short_id)))


def remove_orphans(engine: DockerEngine, home: str, folder: Path, content: str, patience: float) -> None:
    """Removes what a front of `content` left; one that is being killed at this moment is waited for, `patience` seconds."""
    deadline = time.monotonic() + patience
    for container in engine.containers(home):
        if container.labels.get(CONTENT) != content:
            continue
        claim = claim_of(container, folder)
        while not (taken := claim.take()) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        if taken:
            engine.remove(container)
            claim.forget()
