"""Where learner processes are born: one process that has imported the heavy libraries once and forks.

It never imports user code and has one thread, so that a fork is cheap (some milliseconds), safe, and shares the libraries'
memory. It is what `multiprocessing`'s fork server is, without that one's socket file (whose path may not be longer than 108
bytes: a run directory's often is) and without its tracker process. It ends with its parent, and its children end with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from flops_runtime.failures import Failure

_COMMON = ["numpy", "flwr.clientapp", "flwr.common.serde", "datasets", "flops_runtime.learner"]
_MESSAGE_LIMIT = 1 << 12


class Nursery:
    """The aggregator's handle on the process that forks."""

    def __init__(self, flavor: str, preload: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, "-m", "flops_runtime.nursery", str(theirs.fileno()), flavor, *preload],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._own(ours, process.pid)
        self._process: subprocess.Popen[bytes] | None = process

    @classmethod
    def split(cls, *inherited: Connection) -> Nursery:
        """A nursery that is a fork of this process, which was born in one: all is imported already.

        It has to be called while the process has one thread. `inherited` are connections that only this process may keep, since
        their other side waits for their end.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            from flops_runtime import sandbox

            status = 1
            try:
                sandbox.die_with_parent()
                ours.close()
                for connection in inherited:
                    connection.close()
                serve(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        nursery = cls.__new__(cls)
        nursery._own(ours, pid)
        nursery._process = None
        return nursery

    def _own(self, control: socket.socket, pid: int = 0) -> None:
        self._socket = control
        self._statuses: dict[int, int] = {}
        self._told: dict[int, Failure] = {}
        self._pid = pid

    def fork(self, role: str, spec: dict[str, Any], link: int | None = None) -> tuple[int, Connection]:
        """Starts one child in a role; returns its process id and the connection to it. Raises OSError if it cannot.

        The child inherits a second connection as `spec["link"]` when its file descriptor is given.
        """
        ours, theirs = socket.socketpair()
        order = os.memfd_create("order")  # a message of this socket has a limit; the shards of thousands of learners have not
        try:
            with theirs:
                os.write(order, json.dumps({"role": role, "spec": spec}).encode())
                given = [theirs.fileno(), order, *([] if link is None else [link])]
                socket.send_fds(self._socket, [b"fork"], given)
        finally:
            os.close(order)
        while True:
            answer = self._receive()
            if "pid" in answer:
                return int(answer["pid"]), Connection(ours.detach())

    def exit_status(self, pid: int, timeout: float = 2.0) -> int | None:
        """The wait status of a child that has ended; None if it was not told in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while pid not in self._statuses:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                return None
            self._receive()
        return self._statuses[pid]

    def told(self, pid: int) -> Failure | None:
        """Why a child ended, if whoever started it knows; to be asked after `exit_status`."""
        return self._told.get(pid)

    def kill(self, pid: int) -> None:
        """Kills a child; nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the nursery and with it all of its children."""
        self._socket.close()
        if self._process is None:
            os.waitpid(self._pid, 0)  # it ends as soon as the socket does
            return
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> dict[str, Any]:
        data = self._socket.recv(_MESSAGE_LIMIT)
        if not data:
            raise OSError("the process that starts learners has ended")
        answer: dict[str, Any] = json.loads(data)
        if "exited" in answer:
            self._statuses[int(answer["exited"])] = int(answer["status"])
            if "failure" in answer:
                self._told[int(answer["exited"])] = Failure.from_dict(answer["failure"])
        return answer


class OrderedNursery(Nursery):
    """A nursery whose children somebody else starts – the reconciler, as containers – at the other end of a given socket.

    Their ids are tickets above every process id.
    """

    def __init__(self, fd: int) -> None:
        self._own(socket.socket(fileno=fd))

    def exit_status(self, pid: int, timeout: float = 15.0) -> int | None:
        """As ever, but later: an engine tells of a container's end after the container has hung up."""
        return super().exit_status(pid, timeout)

    def kill(self, pid: int) -> None:
        """Lets a container be killed. Raises OSError when whoever started it is gone."""
        self._socket.send(json.dumps({"kill": pid}).encode())

    def close(self) -> None:
        """No more orders; what still runs is removed by whoever started it."""
        self._socket.close()


def main(arguments: list[str]) -> None:
    """The nursery process: import, then fork on request until the aggregator is gone."""
    from flops_runtime import flavors, sandbox

    sandbox.die_with_parent()
    control = socket.socket(fileno=int(arguments[0]))
    flavors.prepare()
    for name in [*_COMMON, *flavors.preload(arguments[1]), *arguments[2:]]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    serve(control)


def serve(control: socket.socket) -> None:
    """Forks on request until the other side is gone."""
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the shared pages
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _report_exits(control)
        if control.fileno() in ready:
            try:
                data, fds, _, _ = socket.recv_fds(control, _MESSAGE_LIMIT, 3)
            except ConnectionResetError:
                return  # the aggregator closed while the end of a child was still unread
            if not data:
                return
            with os.fdopen(fds[1], "rb") as order:
                order.seek(0)
                content = json.load(order)
            if links := fds[2:]:
                content["spec"]["link"] = links[0]
            _give_birth(control, content, fds[0], (wake_read, wake_write))
            for link in links:
                os.close(link)


def _report_exits(control: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError, BrokenPipeError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            control.send(json.dumps({"exited": ended[0], "status": ended[1]}).encode())


def _give_birth(control: socket.socket, order: dict[str, Any], fd: int, wake: tuple[int, int]) -> None:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(fd)
        control.send(json.dumps({"pid": pid}).encode())
        return
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for number in wake:
            os.close(number)
        from flops_runtime import sandbox

        sandbox.die_with_parent()
        module = importlib.import_module(f"flops_runtime.{order['role']}")
        module.run(Connection(fd), order["spec"])
        status = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 0  # the aggregator has gone: there is nobody left to tell
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
