"""One target's sender: a thread of its own, so that a forge that is slow, hangs or refuses delays nobody else.

What could not be sent waits in the outbox and is tried again, later and later, with jitter; what is refused for good is said once
and let go. A forge's own word on when to come back comes first.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from reconciler.errors import FlopsError, NotifyError
from reconciler.execution import unexpected
from reconciler.notify.channels import Channel
from reconciler.notify.outbox import Outbox, Waiting

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 900.0
LOOK_AGAIN = 15.0
"""Seconds after which the outbox is looked at without a word: what flaps waits there for its time."""
# Nobody accepts these the next time either.
_FINAL = frozenset({"FL9406"})


class Sender:
    """Sends what waits for the channels of one target. Clock and randomness are passed in; `step` is one thread's."""

    def __init__(
        self,
        name: str,
        channels: Sequence[Channel],
        outbox: Outbox,
        complain: Callable[[str], None],
        *,
        pause: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name, self.channels = name, channels
        self.results: Counter[str] = Counter()
        self._outbox, self._complain, self._pause = outbox, complain, pause
        self._monotonic, self._uniform = monotonic, uniform
        self._until = 0.0
        self._failures: Counter[str] = Counter()
        self._next: dict[str, float] = {}
        self._errors: dict[str, str] = {}
        self._changed = threading.Condition()
        self._working = self._closing = self._woken = self._busy = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Send from now on."""
        with self._changed:
            self._working = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"notify-{self.name}", daemon=True)
                self._thread.start()
            self._woken = True
            self._changed.notify_all()

    def rest(self) -> None:
        """Send nothing more until `start`: somebody else does."""
        with self._changed:
            self._working = False

    def wake(self) -> None:
        """There is something new in the outbox."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until all that can be sent now is sent, or has been tried once; so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._working and (self._woken or self._busy)), seconds)

    def close(self) -> None:
        """Send nothing more; what is on its way is not waited for."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def step(self) -> float | None:
        """Send one notice if one may be sent now; seconds until there may be another one, None when nothing waits."""
        now = self._monotonic()
        if now < self._until:
            return self._until - now
        waits = []
        for channel in sorted(self.channels, key=lambda item: self._next.get(item.name, 0.0)):
            if now < self._next.get(channel.name, 0.0):
                waits.append(self._next[channel.name] - now)
                continue
            waiting = self._outbox.next(channel.name)
            if waiting is not None:
                self._send(channel, waiting)
                return max(0.0, self._until - self._monotonic())
            if self._outbox.waiting(channel.name):
                waits.append(LOOK_AGAIN)
        return min(waits, default=None)

    def _send(self, channel: Channel, waiting: Waiting) -> None:
        try:
            told = channel.send(waiting)
        except FlopsError as error:
            self._failed(channel, waiting, error)
            return
        except Exception as bug:  # an answer of a form that nobody thought of: this notice waits, others go on
            self._failed(channel, waiting, unexpected(bug))
            return
        self._outbox.sent(told)
        self.results["sent"] += 1
        now = self._monotonic()
        self._failures[channel.name] = 0
        if self._errors.pop(channel.name, ""):
            self._complain(f"{channel.name}: is told again")
        self._until = now + max(self._pause, channel.pause)
        self._next[channel.name] = now

    def _failed(self, channel: Channel, waiting: Waiting, error: FlopsError) -> None:
        now = self._monotonic()
        asked = error.pause if isinstance(error, NotifyError) else 0.0
        if self._errors.get(channel.name) != str(error):
            self._errors[channel.name] = str(error)
            self._complain(f"{channel.name}: {error}")
        if error.code in _FINAL:
            self._outbox.sent([waiting])
            self.results["refused"] += 1
            self._until = now + self._pause
            return
        self._outbox.tried(waiting)
        self.results["paused" if error.code == "FL9405" else "failed"] += 1
        self._failures[channel.name] += 1
        longest = min(FIRST_PAUSE * 2 ** min(self._failures[channel.name] - 1, 20), LONGEST_PAUSE)
        self._next[channel.name] = now + max(asked, self._uniform(longest / 2, longest))
        if asked:
            self._until = now + asked  # one token, one limit: the other channel has to wait too

    def _run(self) -> None:
        while not self._closing:
            with self._changed:
                self._changed.wait_for(lambda: self._working or self._closing)
                if self._closing:
                    return
                self._woken, self._busy = False, True
            pause = self._safe_step()
            with self._changed:
                self._busy = pause is not None and pause <= max(self._pause, FIRST_PAUSE) and not any(self._failures.values())
                self._changed.notify_all()
                if not self._woken and not self._closing and pause != 0.0:
                    self._changed.wait_for(lambda: self._woken or self._closing, pause)

    def _safe_step(self) -> float | None:
        """A step that never ends the thread."""
        try:
            return self.step()
        except FlopsError as error:
            said = str(error)
        except Exception as bug:
            said = str(unexpected(bug))
        if self._errors.get("") != said:
            self._errors[""] = said
            self._complain(f"{self.name}: {said}")
        return LOOK_AGAIN
