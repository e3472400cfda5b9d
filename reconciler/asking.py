"""Asking what may not answer – a remote, a customer's tracking server, a registry of images – beside the loop.

Who answers within a moment is waited for, so that a look sees what is so now. Who did not is not waited for next time: the look
goes on without, and a new one is asked for when the answer is there. So whoever hangs costs the others one moment, once, and is
asked one question at a time. At most `THREADS` questions are on their way, and those who were slow have at most half of them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

PATIENCE = 1.0
"""Seconds that a look waits for those who were in time before."""
THREADS = 32
MOST = 512
"""Threads in all, with those that hang."""

Answer = TypeVar("Answer")


class Asking(Generic[Answer]):
    """Questions by whom they are put to. `ended` is called, in another thread, when an answer comes that nobody waited for.

    `patience` is in seconds, infinite for a caller that has nothing else to do.
    """

    def __init__(
        self,
        ended: Callable[[], None] = lambda: None,
        *,
        patience: float = math.inf,
        threads: int = THREADS,
        most: int = MOST,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience = patience
        self._ended, self._threads, self._most, self._monotonic = ended, threads, most, monotonic
        self._changed = threading.Condition()
        self._waiting: dict[bool, deque[tuple[str, Callable[[], Answer]]]] = {False: deque(), True: deque()}
        self._asked: dict[str, float] = {}
        self._busy: dict[str, float] = {}
        self._answers: dict[str, Answer] = {}
        self._bugs: list[Exception] = []
        self._slow: set[str] = set()
        self._doubted: set[str] = set()
        self._awaited: set[str] = set()

    def ask(self, whom: str, question: Callable[[], Answer]) -> None:
        """Put a question, unless one is on its way already."""
        with self._changed:
            if whom in self._asked:
                return
            self._asked[whom] = self._monotonic()
            self._waiting[whom in self._slow].append((whom, question))
            if whom not in self._slow:
                self._awaited.add(whom)
            self._begin()

    def answers(self, *, wait: bool = True) -> dict[str, Answer]:
        """What came in since the last call; waits a moment for those who are waited for.

        Raises what a question raised: questions answer with their errors, so that is a bug.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not self._awaited, None if math.isinf(self.patience) else self.patience)
                self._slow |= self._awaited & self._busy.keys()
                self._awaited.clear()
                self._begin()
            if self._bugs:
                raise self._bugs.pop()
            found, self._answers = self._answers, {}
            return found

    def doubt(self, whom: str) -> None:
        """Something has changed since: an answer that is on its way, or was not looked at yet, does not count."""
        with self._changed:
            self._answers.pop(whom, None)
            if whom in self._asked:
                self._doubted.add(whom)

    def since(self, whom: str) -> float | None:
        """For how many seconds a question has been on its way; None without one."""
        with self._changed:
            return self._monotonic() - self._asked[whom] if whom in self._asked else None

    def keep(self, whom: Collection[str]) -> None:
        """Forget how quick everybody else was."""
        with self._changed:
            self._slow &= set(whom) | self._asked.keys()

    def rest(self, seconds: float) -> None:
        """Wait until nothing is on its way, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked, seconds)

    def _begin(self) -> None:
        """Put every question that may be put now; the lock is held."""
        now = self._monotonic()
        self._slow.update(whom for whom, since in self._busy.items() if now - since > self.patience)
        while (following := self._following()) is not None:
            threading.Thread(target=self._work, args=following, name="asking", daemon=True).start()

    def _following(self) -> tuple[str, Callable[[], Answer]] | None:
        """The next question that may be put now; the lock is held."""
        if len(self._busy) >= self._most:
            return None
        slow = sum(whom in self._slow for whom in self._busy)
        quick = self._waiting[False] if len(self._busy) - slow < self._threads else None
        queue = quick or (self._waiting[True] if slow < self._threads // 2 else None)
        if not queue:
            return None
        whom, question = queue.popleft()
        self._busy[whom] = self._monotonic()
        return whom, question

    def _work(self, whom: str, question: Callable[[], Answer]) -> None:
        following: tuple[str, Callable[[], Answer]] | None = (whom, question)
        while following is not None:
            whom, question = following
            found: list[Answer] = []
            bug: Exception | None = None
            try:
                found.append(question())
            except Exception as raised:
                bug = raised
            with self._changed:
                took = self._monotonic() - self._busy.pop(whom)
                del self._asked[whom]
                (self._slow.discard if took <= self.patience else self._slow.add)(whom)
                late = whom not in self._awaited
                self._awaited.discard(whom)
                if bug is not None:
                    self._bugs.append(bug)
                elif whom not in self._doubted:
                    self._answers[whom] = found[0]
                self._doubted.discard(whom)
                following = self._following()
                self._changed.notify_all()
            if late:
                self._ended()
