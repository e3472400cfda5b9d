"""The scribe: a process of our own that has MLflow's client, so that the reconciler's own never holds it.

It is started when it is first needed, or made ready a little before, does what several projects ask at a time, and ends when nobody
has asked for a while. Whoever asks gets what the function in `writing` returns or raises, or a transient error when the process
dies in it: every call may be made again. It lives by a socket to us and ends, in the middle of what it does, when that closes; so
no reconciler that was killed has one that still writes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from reconciler.errors import TrackingError
from reconciler.tracking.rest import LOOPBACK

IDLE = 30.0
"""Seconds without a call after which the process ends. A project's stages that write follow each other more quickly."""
WARM_UP = "warm_up"
"""The call that does nothing but import MLflow's client."""
_END_LIMIT = 5.0
_AGAIN = "It is started again, and what it was writing is written anew; nothing is recorded twice."
_SETTINGS = {
    # Few, quick retries: the reconciler has its own.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What the user has set stays."""


class Scribe:
    """The process, or none. Calls may come from any thread and are carried out side by side."""

    def __init__(self, *, idle: float = IDLE, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._idle, self._monotonic = idle, monotonic
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._used = 0.0

    @property
    def pid(self) -> int | None:
        """The process, as long as there is one."""
        child = self._child
        return child.pid if child else None

    def warm_up(self) -> None:
        """Make it ready beside whatever else is done; that it cannot be is told by the call that needs it."""
        with suppress(TrackingError):
            self._begin(WARM_UP, ())

    def call(self, name: str, *arguments: object) -> Any:
        """What `writing.NAME` makes of the arguments.

        Raises what it raises, and TrackingError FL6022 (transient) when the process cannot be started or dies.
        """
        return self._begin(name, arguments).result()

    def rest(self) -> None:
        """End the process if nobody has needed it for a while."""
        with self._lock:
            child = self._child
            if child is None or child.calls or self._monotonic() - self._used < self._idle:
                return
            self._child = None
            child.kill()  # it holds nothing; whoever listens to it cleans up

    def _begin(self, name: str, arguments: tuple[object, ...]) -> Future[Any]:
        with self._lock:
            self._used = self._monotonic()
            try:
                if self._child is None:
                    self._child = _Child()
                    threading.Thread(target=self._listen, args=(self._child,), name="scribe", daemon=True).start()
                return self._child.send(name, arguments)
            except OSError as error:
                raise _gone(error.strerror or str(error)) from error

    def _listen(self, child: _Child) -> None:
        """Hand answers on until the process ends."""
        with suppress(EOFError, OSError):
            while True:
                if not child.connection.poll(self._idle):
                    self.rest()
                    continue
                number, succeeded, answer = child.connection.recv()
                with self._lock:
                    self._used = self._monotonic()
                    asked = child.calls.pop(number)
                if succeeded:
                    asked.set_result(answer)
                else:
                    asked.set_exception(answer if isinstance(answer, Exception) else RuntimeError(answer))
        with self._lock:
            if self._child is child:
                self._child = None
        error = child.end()
        for asked in child.calls.values():
            asked.set_exception(error)


SCRIBE = Scribe()
"""The one of this process: projects that write at the same time share it."""


class _Child:
    """One process, the socket to it, and the calls that it has not answered. `send` and `calls` are behind the scribe's lock."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                # -P: a module in the working directory, which may be the GitOps repo, is not to be taken for ours.
                [sys.executable, "-P", "-m", "reconciler.tracking.scribe_process", str(theirs.fileno())],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C is for us: what is being written is written to its end
            )
            self.connection = Connection(ours.detach())
        self.pid = self._process.pid
        self.calls: dict[int, Future[Any]] = {}
        self._count = 0

    def send(self, name: str, arguments: tuple[object, ...]) -> Future[Any]:
        """Ask for something. Raises OSError when the process is gone."""
        self._count += 1
        self.connection.send((self._count, name, arguments))
        asked = self.calls[self._count] = Future()
        return asked

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def end(self) -> TrackingError:
        """End the process, if it has not; the error for what it has not answered."""
        self.connection.close()
        try:
            status = self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return _gone(f"it ended with signal {-status}" if status < 0 else f"it ended with exit code {status}")


def _gone(reason: str) -> TrackingError:
    return TrackingError("FL6022", f"The process that writes to MLflow is gone: {reason}.", cure=_AGAIN, transient=True)


def _environment() -> dict[str, str]:
    """Ours, credentials and proxies included, with settings for MLflow; a proxy has no way to this machine's loopback."""
    found = {**_SETTINGS, **os.environ}
    around = found.get("NO_PROXY") or found.get("no_proxy") or ""
    if around != "*":
        hosts = [host for host in around.split(",") if host]
        found["NO_PROXY"] = found["no_proxy"] = ",".join([*hosts, *sorted(LOOPBACK - {*hosts})])
    return found
