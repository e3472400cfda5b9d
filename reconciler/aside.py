"""Work in a process beside ours, for what takes much memory to import or to do: MLflow's client, Arrow, a tenant's data.

What is imported stays imported; what ends gives its memory back. Such a process is started when it is first needed, or made ready a
little before, does what several projects ask at a time, and ends when nobody has asked for a while. Whoever asks gets what the
function returns or raises, or a transient error when the process dies in it: every call may be made again. It lives by a socket to
us and ends, in the middle of what it does, when that closes; so no reconciler that was killed has one that still works.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from reconciler.errors import FlopsError

IDLE = 30.0
"""Seconds without a call after which the process ends. The stages of a project follow each other more quickly."""
PROCESS = "reconciler.aside_process"
_END_LIMIT = 5.0
_asked = threading.local()


class Kind(IntEnum):
    """What an answer is; LINE is not the last one of its call."""

    LINE, RESULT, ERROR, BUG = range(4)


Answers = SimpleQueue[tuple[Kind, Any]]


class Aside:
    """The process, or none. Calls may come from any thread and are carried out side by side.

    `gone` makes the error for a process that is gone from the reason; `environment` is asked when one is started.
    """

    def __init__(
        self,
        gone: Callable[[str], FlopsError],
        environment: Callable[[], Mapping[str, str]] = lambda: os.environ,
        *,
        idle: float = IDLE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gone, self._environment = gone, environment
        self._idle, self._monotonic = idle, monotonic
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._used = 0.0

    @property
    def pid(self) -> int | None:
        """The process, as long as there is one."""
        child = self._child
        return child.pid if child else None

    @property
    def calls(self) -> int:
        """How many calls are on their way."""
        child = self._child
        return len(child.calls) if child else 0

    def warm_up(self, module: str) -> None:
        """Have it import a module beside whatever else is done; that it cannot is told by the call that needs it."""
        with suppress(FlopsError):
            self._begin(f"{PROCESS}:prepare", (module,))

    def call(self, name: str, *arguments: object, on_line: Callable[[str], None] = lambda _line: None) -> Any:
        """What the function `module:name` makes of the arguments; `on_line` gets what it says by `tell` meanwhile.

        Raises what it raises, and what `gone` makes (transient) when the process cannot be started or dies.
        """
        answers = self._begin(name, arguments)
        while True:
            kind, answer = answers.get()
            if kind is Kind.RESULT:
                return answer
            if kind is Kind.ERROR:
                raise answer
            if kind is Kind.BUG:
                raise RuntimeError(answer)
            on_line(answer)

    def rest(self) -> None:
        """End the process if nobody has needed it for a while."""
        with self._lock:
            child = self._child
            if child is None or child.calls or self._monotonic() - self._used < self._idle:
                return
            self._child = None
            child.kill()  # it holds nothing; whoever listens to it cleans up

    def _begin(self, name: str, arguments: tuple[object, ...]) -> Answers:
        with self._lock:
            self._used = self._monotonic()
            try:
                if self._child is None:
                    self._child = _Child(self._environment())
                    threading.Thread(target=self._listen, args=(self._child,), name="aside", daemon=True).start()
                return self._child.send(name, arguments)
            except OSError as error:
                raise self._gone(error.strerror or str(error)) from error

    def _listen(self, child: _Child) -> None:
        """Hand answers on until the process ends."""
        with suppress(EOFError, OSError):
            while True:
                if not child.connection.poll(self._idle):
                    self.rest()
                    continue
                number, kind, answer = child.connection.recv()
                with self._lock:
                    self._used = self._monotonic()
                    asked = child.calls[number] if kind is Kind.LINE else child.calls.pop(number)
                asked.put((kind, answer))
        with self._lock:
            if self._child is child:
                self._child = None
        how = child.end()
        for asked in child.calls.values():
            asked.put((Kind.ERROR, self._gone(how)))


class _Child:
    """One process, the socket to it, and the calls that it has not answered. `send` and `calls` are behind the lock."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                # -P: a module in the working directory, which may be the GitOps repo, is not to be taken for ours.
                [sys.executable, "-P", "-m", PROCESS, str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C is for us: what is being written is written to its end
            )
            self.connection = Connection(ours.detach())
        self.pid = self._process.pid
        self.calls: dict[int, Answers] = {}
        self._count = 0

    def send(self, name: str, arguments: tuple[object, ...]) -> Answers:
        """Ask for something. Raises OSError when the process is gone."""
        self._count += 1
        self.connection.send((self._count, name, arguments))
        asked = self.calls[self._count] = SimpleQueue()
        return asked

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def end(self) -> str:
        """End the process, if it has not; how it ended."""
        self.connection.close()
        try:
            status = self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return f"it ended with signal {-status}" if status < 0 else f"it ended with exit code {status}"


def tell(line: str) -> None:
    """In such a process: a line for whoever asked for what this thread does."""
    _asked.tell(line)


def answer_to(asker: Callable[[str], None]) -> None:
    """In such a process: who gets the lines of this thread."""
    _asked.tell = asker
