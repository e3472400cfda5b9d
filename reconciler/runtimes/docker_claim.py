"""Whose container is it? Whoever looks after a container holds a lock on a file; the kernel gives it back when that process dies.

So a front or a reconciler that was killed needs no last words: whoever takes the lock may adopt or remove.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

from docker.models.containers import Container

from reconciler.runtimes.docker_engine import DockerEngine

CLAIM, CONTENT = "flops.claim", "flops.spec"
"""Labels: the path of the lock, and the digest of what was asked for."""
SECRET = "FLOPS_SECRET_"  # noqa: S105 – a prefix
"""Before the names of variables that a front hands on to its container."""
_PAUSE = 0.05


class Claim:
    """The right to look after a container, or to remove it; held until the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def sockets(self) -> Path:
        """Where a container without a network has its socket."""
        return self.path.with_suffix(".d")

    def take(self) -> bool:
        """False when somebody else has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if not _lock(fd, fcntl.LOCK_EX):
            os.close(fd)
            return False
        self._fd = fd
        return True

    def is_held(self) -> bool:
        """Whether somebody has it now; nothing is taken or made."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def forget(self) -> None:
        """The container has gone."""
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def claim_of(container: Container) -> Claim:
    """The claim on a container, not taken yet."""
    return Claim(Path(str(container.labels[CLAIM])))


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_orphans(engine: DockerEngine, home: str, content: str, patience: float) -> None:
    """Removes what a front of `content` left; one that is being killed at this moment is waited for, `patience` seconds."""
    deadline = time.monotonic() + patience
    for container in engine.containers(home):
        if container.labels.get(CONTENT) != content:
            continue
        claim = claim_of(container)
        while not (taken := claim.take()) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        if taken:
            engine.remove(container)
            claim.forget()
