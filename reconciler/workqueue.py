"""The work queue: which project may be worked on now, and when the others may.

Level-triggered: it holds names, never orders. What is to be done with a name is planned anew when its turn comes, so a name that
is put in twice is worked on once. Backoff belongs to a (project, digest): new content starts at once, whatever the old one did.
Pure bookkeeping: time comes in as seconds of a monotonic clock, randomness is passed in, nothing sleeps. Handing out a project
costs what is worked on and what backs off, not what waits: with ten thousand in the queue each turn would cost all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

FIRST_DELAY, LAST_DELAY = 0.75, 900.0
FIGHT_WINDOW = 60.0
FIGHT_MENDS = 4
"""So many successful repairs of one content within the window, and something else undoes them: they are spaced out and told."""


@dataclass(slots=True)
class _Work:
    """What is remembered of one project's current content."""

    digest: str
    failures: int = 0
    due: float = 0.0
    mended: list[float] = field(default_factory=list)
    fights: int = 0


class WorkQueue:
    """One project at a time each, first come first served; at most `parallel` at once."""

    def __init__(self, parallel: int, uniform: Callable[[float, float], float]) -> None:
        self._parallel = parallel
        self._uniform = uniform
        self._ready: dict[str, str] = {}
        self._running: set[str] = set()
        self._work: dict[str, _Work] = {}
        self._backing_off: set[str] = set()
        """The ready ones that had a later time when they were put in."""

    @property
    def running(self) -> frozenset[str]:
        """The projects that are worked on now."""
        return frozenset(self._running)

    @property
    def depth(self) -> int:
        """How many projects have something to be done and are not worked on."""
        return len(self._ready) - sum(name in self._ready for name in self.running)

    @property
    def has_room(self) -> bool:
        """Whether another project may start."""
        return len(self._running) < self._parallel

    def put(self, name: str, digest: str) -> None:
        """There is something to do for a project; a new digest forgets what the old one was waiting for."""
        self._ready.setdefault(name, digest)
        self._ready[name] = digest
        found = self._work.get(name)
        if found is not None and found.digest != digest:
            del self._work[name]
            self._backing_off.discard(name)
        elif found is not None and found.due:
            self._backing_off.add(name)

    def drop(self, name: str) -> None:
        """There is nothing to do for a project now; how often it was mended is remembered."""
        self._out(name)
        found = self._work.get(name)
        if found is not None:
            found.failures, found.due = 0, 0.0

    def forget(self, name: str) -> None:
        """The project is gone."""
        self._out(name)
        self._work.pop(name, None)

    def due(self, now: float) -> Iterator[str]:
        """The projects that may start now, in the order in which they came; the caller asks `has_room` and may `start` them."""
        later = {name for name in self._backing_off if self._due(name) > now}
        return (name for name in self._ready if name not in self._running and name not in later)

    def has_due(self, now: float) -> bool:
        """Whether any project may start now."""
        return next(self.due(now), None) is not None

    def waiting(self) -> list[str]:
        """The projects with something to be done that are not worked on, due or not."""
        return [name for name in self._ready if name not in self._running]

    def next_due(self, now: float) -> float | None:
        """Seconds until a project that backs off may start; None without one."""
        later = [self._due(name) - now for name in self._backing_off if name not in self._running and self._due(name) > now]
        return min(later, default=None)

    def start(self, name: str) -> None:
        """The project is worked on from now on."""
        self._running.add(name)

    def succeeded(self, name: str, digest: str, now: float) -> bool:
        """The work is done. True when it was done so often lately that something must be undoing it."""
        self._leave(name)
        work = self._of(name, digest)
        work.failures, work.due = 0, 0.0
        work.mended = [at for at in work.mended if now - at < FIGHT_WINDOW] + [now]
        # The first time is the work itself, each further one mends what was right before.
        if len(work.mended) <= FIGHT_MENDS:
            work.fights = 0 if len(work.mended) <= 1 else work.fights
            return False
        work.fights += 1
        work.due = now + max(self.delay(work.fights + 4), FIGHT_WINDOW / FIGHT_MENDS)
        return True

    def failed(self, name: str, digest: str, now: float) -> float:
        """The work is to be tried again; seconds until then."""
        self._leave(name)
        work = self._of(name, digest)
        work.failures += 1
        delay = self.delay(work.failures)
        work.due = now + delay
        return delay

    def retry(self, name: str) -> bool:
        """Do not wait for a project's next try any longer; False when none waits.

        May be called in any thread: it makes a time earlier, and nothing else.
        """
        work = self._work.get(name)
        if work is None or name not in self._ready or name in self._running or not (work.failures or work.fights):
            return False
        work.due = 0.0
        return True

    def ended(self, name: str) -> None:
        """The work ended in a way that is not to be tried again, or was superseded."""
        self._leave(name)
        self._work.pop(name, None)

    def failures(self, name: str, digest: str) -> int:
        """How often this content failed in a row."""
        work = self._work.get(name)
        return work.failures if work and work.digest == digest else 0

    def fighting(self, name: str) -> bool:
        """Whether something undoes what is done for a project."""
        work = self._work.get(name)
        return bool(work and work.fights)

    def backs_off(self, name: str, now: float) -> bool:
        """Whether a project waits for its next try."""
        return name in self._ready and self._due(name) > now

    def keep(self, names: Iterable[str]) -> None:
        """Forget every project but these and those that are worked on."""
        kept = {*names, *self._running}
        for name in [name for name in self._work.keys() | self._ready.keys() if name not in kept]:
            self.forget(name)

    def delay(self, attempt: int) -> float:
        """Seconds before retry number `attempt`: 0.75 s doubled each time to 15 min, with full jitter above a half."""
        longest = min(FIRST_DELAY * 2 ** min(attempt - 1, 20), LAST_DELAY)
        return self._uniform(longest / 2, longest)

    def _due(self, name: str) -> float:
        work = self._work.get(name)
        return work.due if work else 0.0

    def _of(self, name: str, digest: str) -> _Work:
        work = self._work.get(name)
        if work is None or work.digest != digest:
            work = self._work[name] = _Work(digest)
        return work

    def _leave(self, name: str) -> None:
        self._running.discard(name)
        self._out(name)

    def _out(self, name: str) -> None:
        self._ready.pop(name, None)
        self._backing_off.discard(name)
