"""When to look: asked for by a trigger, owed after work, or by the clock where no trigger can be relied on.

Looks are spaced while there is work to hand out, so that their cost stays a share of the time; a look that went badly is made
again with backoff; the remote is asked by its own, slower clock. Pure bookkeeping, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RESYNC = 2.0
"""Seconds between two looks at what runs, without asking the remote: so soon is a dead service seen."""
BREATH = 0.05
"""Seconds of work between two looks, at least: a thousand projects that end at once are looked at together."""


@dataclass(slots=True)
class Pace:
    """The times of one loop. `serving` is False for a loop that is to end: nothing is due by the clock then."""

    poll: float
    uniform: Callable[[float, float], float]
    serving: bool = False
    bad_looks: int = 0
    ended: float = float("-inf")
    cost: float = 0.0
    _retry_at: float = 0.0
    _poll_at: float = 0.0
    _resync_at: float = 0.0

    def wants(self, now: float, *, asked: bool, owed: bool, busy: bool) -> bool:
        """Whether to look now; `owed` after work ended, `busy` while work can be handed out without."""
        if not (asked or owed or self._retry_due(now) or self._clock_due(now)):
            return False
        return not busy or now >= self._breath()

    def begins(self, now: float, *, fetch: bool) -> bool:
        """A look begins; whether it asks the remote."""
        fetch = fetch or self.polls(now)
        if fetch:
            self._poll_at = now + self.poll * self.uniform(0.9, 1.1)
        self._resync_at = now + RESYNC
        return fetch

    def ends(self, began: float, now: float, *, trouble: float | None) -> None:
        """A look ended; `trouble` is the delay after which it is made again, None when it went well."""
        self.ended, self.cost = now, now - began
        self.bad_looks = 0 if trouble is None else self.bad_looks + 1
        self._retry_at = now + (trouble or 0.0)

    def polls(self, now: float) -> bool:
        """Whether it is time to ask the remote."""
        return self.serving and now >= self._poll_at

    def pause(self, now: float, *, waiting: bool) -> float | None:
        """Seconds until a look is due; None when only a trigger can ask for one. `waiting`: one is asked for or owed."""
        found = []
        if waiting:
            found.append(self._breath())
        if self.bad_looks:
            found.append(self._retry_at)
        if self.serving:
            found.append(min(self._poll_at, self._resync_at))
        return max(0.0, min(found) - now) if found else None

    def _retry_due(self, now: float) -> bool:
        return bool(self.bad_looks) and now >= self._retry_at

    def _clock_due(self, now: float) -> bool:
        return self.serving and now >= min(self._poll_at, self._resync_at)

    def _breath(self) -> float:
        return self.ended + max(BREATH, 2 * self.cost)
