"""The lease: of all controllers of a state directory one works, and another one takes over when that one is dead or stuck.

No clock is compared with another one. The holder changes a number now and then; who waits takes over when *its own* monotonic clock
has seen that number unchanged for the whole term. So clocks may differ, jump or stop. A holder that was paused and comes back holds
a token that is too old: the journal refuses its intents, so it starts nothing before it has noticed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from reconciler.errors import FlopsError
from reconciler.journal import Journal, LeaseRow

TERM = 15.0


class Lease:
    """One controller's claim. `monotonic` is this machine's alone."""

    def __init__(
        self,
        journal: Journal,
        *,
        monotonic: Callable[[], float],
        holder: str = "",
        is_dead: Callable[[str], bool] | None = None,
    ) -> None:
        self._journal, self._monotonic = journal, monotonic
        self.holder = holder or identity()
        self._is_dead = is_dead or holder_is_dead
        self._seen: LeaseRow | None = None
        self._since = 0.0
        self._token = 0
        self._renewed = 0.0

    @property
    def held(self) -> bool:
        """Whether we may work: the lease is ours, as far as we know, and was renewed within the term."""
        return bool(self._token) and self._monotonic() - self._renewed < TERM

    def try_acquire(self) -> bool:
        """Take the lease if nobody has it, or if who has it is dead or was silent for a term. Raises ControllerError FL9012."""
        row = self._journal.lease()
        now = self._monotonic()
        if row is not None and row.holder and not self._is_dead(row.holder):
            if row != self._seen:
                self._seen, self._since = row, now
            if now - self._since < TERM:
                return False
        token = self._journal.take_lease(self.holder, row)
        if token is None:
            return False
        self._token, self._renewed = token, now
        self._journal.fence = token
        return True

    def acquired(self, complain: Callable[[FlopsError], None]) -> bool:
        """As `try_acquire`, for a loop that goes on: `complain` is told of a journal that cannot be written now."""
        try:
            return self.try_acquire()
        except FlopsError as error:
            complain(error)
            return False

    def renew(self) -> bool:
        """Say that we live; False when somebody else took over. The time counts from before the question."""
        now = self._monotonic()
        if not self._token or not self._journal.beat_lease(self._token):
            self._token = 0
            return False
        self._renewed = now
        return True

    def release(self) -> None:
        """Let the next one in at once."""
        if self._token:
            self._journal.drop_lease(self._token)
            self._token = 0


class Heartbeat:
    """Renews a lease beside the loop, which may be busy with a slow remote; calls `lost` once when it is not ours any more."""

    def __init__(self, lease: Lease, lost: Callable[[], None]) -> None:
        self._lease, self._lost = lease, lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(TERM / 3):
            if not self._lease.renew():
                self._lost()
                return


def identity() -> str:
    """Who we are: machine, boot, space of process ids, process and its start, so that no other process is ever taken for us."""
    return "/".join((_place(), str(os.getpid()), _started(os.getpid())))


def holder_is_dead(holder: str) -> bool:
    """Whether a holder is certainly not alive; False where that cannot be seen from here."""
    place, _, process = holder.rpartition("/")
    place, _, pid = place.rpartition("/")
    if place != _place() or not pid.isdigit():
        return False
    return _started(int(pid)) != process


def _place() -> str:
    found = [socket.gethostname()]
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(str(Path("/proc/self/ns/pid").readlink()))
    return ",".join(found)


def _started(pid: int) -> str:
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return ""
