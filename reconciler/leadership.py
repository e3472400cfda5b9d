"""Leading or standing by: of all controllers of a state directory one works, and each knows whether it is that one.

Who leads says so all the time, beside its loop. Who loses the lead learns it before it starts anything else, calls off what runs
and stands by; standing by is told once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reconciler.errors import FlopsError
from reconciler.lease import Heartbeat, Lease


class Leadership:
    """One controller's part. `tell` gets a kind and a message; `on_loss` is called, in another thread, when the lead is lost."""

    def __init__(self, lease: Lease, tell: Callable[[str, str], None], on_loss: Callable[[], None]) -> None:
        self.lease = lease
        self._tell, self._on_loss = tell, on_loss
        self._lost = threading.Event()
        self.standing_by = False

    @property
    def lost(self) -> bool:
        """Whether the lead was ours and is somebody else's: nothing is started or told any more."""
        return self._lost.is_set()

    def gained(self, complain: Callable[[FlopsError], None]) -> bool:
        """Whether it is our turn now, for a loop that waits for it; `complain` is told of a journal that cannot be written."""
        if self.lease.acquired(complain):
            self.standing_by = False
            return True
        if not self.standing_by:
            self._tell("serve", "another reconciler works on this state directory; this one stands by")
            self.standing_by = True
        return False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say that we lead, for as long as this lasts; then let the next one in."""
        beats = Heartbeat(self.lease, self.lose)
        try:
            yield
        finally:
            beats.close()
            self.lease.release()

    def lose(self) -> None:
        """The lead is somebody else's."""
        self._lost.set()
        self._on_loss()

    def given_up(self) -> bool:
        """Whether the lead was lost and everything of it has ended; from now on it may be gained again."""
        if not self.lost:
            return False
        self._tell("warning", "another reconciler has taken over; this one waits for its turn")
        self._lost.clear()
        return True
