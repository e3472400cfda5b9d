"""The supervisor of one service: a small process of its own that outlives the command that started it.

Standard library only, run as a script: `python -E -S supervisor.py DIR`. It holds the listening socket, so that versions change
and servers die without a connection being refused; starts the server again when it dies or hangs; and answers the runtime
over `DIR/control.sock`, one JSON line each way. A server whose supervisor dies sees its control pipe close and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

HEALTH_EVERY = 2.0
HEALTH_TIMEOUT = 10.0
HEALTH_FAILURES = 3
FIRST_BACKOFF, LAST_BACKOFF = 0.2, 30.0
DRAIN_LIMIT = 30.0
LOG_LIMIT = 5_000_000
_PR_SET_PDEATHSIG = 1

Spec = dict[str, Any]


class Refused(Exception):  # noqa: N818 – an answer to the runtime, not a fault
    """A request that cannot be met, with a code for the runtime."""

    def __init__(self, code: str, message: str, log: str = "") -> None:
        super().__init__(message)
        self.answer = {"ok": False, "code": code, "message": message, "log": log}


class Server:
    """One server process of a spec, on a shared listening socket and a private one."""

    def __init__(self, spec: Spec, folder: Path, shared: socket.socket | None, port: int) -> None:
        self.spec = spec
        self.port = port
        self.accepting = False
        self._folder = folder
        self._shared = shared
        self._process: asyncio.subprocess.Process | None = None
        self._control: int | None = None
        self._private_port = port

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @property
    def private_address(self) -> str:
        """Where this very process answers, whether it accepts from the shared socket or not."""
        return f"127.0.0.1:{self._private_port}"

    async def start(self) -> None:
        """Start the process; it is not asked to accept yet."""
        arguments = [item.replace("{port}", str(self.port)) for item in self.spec["argv"]]
        fds: list[int] = []
        private: socket.socket | None = None
        control_read = None
        if self._shared is not None:
            private = socket.create_server(("127.0.0.1", 0))
            self._private_port = private.getsockname()[1]
            control_read, self._control = os.pipe()
            fds = [self._shared.fileno(), private.fileno(), control_read]
            arguments += ["--fd", str(fds[0]), "--private-fd", str(fds[1]), "--control-fd", str(fds[2])]
        log = self._folder / "service.log"
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(self._folder / "service.log.1")
        with log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *arguments, cwd=self.spec["cwd"], env=self.spec["env"], stdin=asyncio.subprocess.DEVNULL, stdout=out,
                stderr=out, pass_fds=fds, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        if private is not None:
            private.close()
        if control_read is not None:
            os.close(control_read)

    async def wait_healthy(self, limit: float) -> None:
        """Wait until the server answers its health check. Raises Refused when it ends or takes too long."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if await self.healthy():
                return
            if self._process is not None and self._process.returncode is not None:
                raise Refused("FL7002", f"The server ended with {self._process.returncode} before it was ready.", self.log())
            await asyncio.sleep(0.02)
        raise Refused("FL7003", f"The server was not ready after {limit:.0f} s.", self.log())

    async def healthy(self) -> bool:
        """One health check over HTTP."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._private_port)
                path = self.spec["health_path"]
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n".encode())
                line = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return line.split()[1:2] == [b"200"]

    async def ended(self) -> int:
        """Wait for the process's end."""
        return await self._process.wait() if self._process else 0

    def accept(self) -> None:
        """Take requests from the shared socket."""
        self._tell(b"accept\n")
        self.accepting = True

    async def retire(self) -> None:
        """Finish what is in flight, then end; killed when that takes too long."""
        if self._process is None or self._process.returncode is not None:
            return
        if self._control is not None:
            self._tell(b"drain\n")
        else:
            self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), DRAIN_LIMIT)
        self.kill()

    def kill(self) -> None:
        """End the whole process group now."""
        self._signal(signal.SIGKILL)
        if self._control is not None:
            os.close(self._control)
            self._control = None

    def log(self) -> str:
        """The end of the log."""
        with contextlib.suppress(OSError):
            return (self._folder / "service.log").read_bytes()[-2000:].decode(errors="replace")
        return ""

    def _tell(self, text: bytes) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                os.write(self._control, text)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


class Supervisor:
    """One service: the server that is current, and maybe one that is being prepared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current: Server | None = None
        self._next: Server | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._restarts = 0
        self._healthy = False
        self._error = ""
        self._started_at = 0.0
        self._watch: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Answer the runtime until told to stop."""
        path = self._folder / "control.sock"
        path.unlink(missing_ok=True)
        os.chdir(self._folder)  # a Unix socket's path may not be longer than 108 bytes
        server = await asyncio.start_unix_server(self._talk, path=path.name)
        path.chmod(0o600)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._over.set)
        async with server:
            await self._over.wait()
        if self._watch:
            self._watch.cancel()
        for found in (self._current, self._next):
            if found:
                await found.retire()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            answer = await self._answer(request)
        except Refused as refused:
            answer = refused.answer
        except (ValueError, KeyError, OSError) as error:
            answer = Refused("FL7004", f"{type(error).__name__}: {error}").answer
        with contextlib.suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            writer.close()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "prepare":
            return await self._prepare(request["spec"], int(request["port"]))
        if operation == "promote":
            return await self._promote()
        if operation == "discard":
            if self._next:
                self._next.kill()
                self._next = None
            return {"ok": True}
        if operation == "stop":
            self._over.set()
            return {"ok": True}
        raise Refused("FL7004", f"unknown request {operation!r}")

    async def _prepare(self, spec: Spec, port: int) -> dict[str, Any]:
        if self._next:
            self._next.kill()
        if spec["socket"] == "own":
            await self._make_way()
            _check_free(port)
            server = Server(spec, self._folder, None, port)
        else:
            server = Server(spec, self._folder, self._listen(port), port)
        self._next = server
        try:
            await server.start()
            await server.wait_healthy(spec["start_timeout"])
        except (Refused, OSError) as error:
            server.kill()
            self._next = None
            if isinstance(error, OSError):
                raise Refused("FL7002", f"The server cannot be started: {error}.") from error
            raise
        return {"ok": True, "address": server.private_address}

    async def _make_way(self) -> None:
        """A server that listens by itself has to leave its port before the next one can have it."""
        if self._watch:
            self._watch.cancel()
        if self._current:
            await self._current.retire()
            self._current = None

    async def _promote(self) -> dict[str, Any]:
        if self._next is None:
            raise Refused("FL7004", "nothing is prepared")
        old, self._current, self._next = self._current, self._next, None
        self._current.accept()
        self._healthy, self._error, self._started_at = True, "", time.time()
        if self._watch:
            self._watch.cancel()
        self._watch = asyncio.create_task(self._keep_up())
        self._write_state()
        if old:
            task = asyncio.create_task(old.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            if old.port != self._current.port and old.port in self._sockets:
                self._sockets.pop(old.port).close()
        return {"ok": True, "state": self._state()}

    async def _keep_up(self) -> None:
        """Watch the current server; start it again when it ends or stops answering."""
        backoff = FIRST_BACKOFF
        while self._current is not None:
            reason = await self._until_bad(self._current)
            self._current.kill()
            self._restarts += 1
            self._set_health(False, reason)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)
            fresh = Server(self._current.spec, self._folder, self._sockets.get(self._current.port), self._current.port)
            try:
                await fresh.start()
                await fresh.wait_healthy(self._current.spec["start_timeout"])
            except (Refused, OSError) as error:
                fresh.kill()
                self._set_health(False, str(error))
                self._current = fresh
                continue
            fresh.accept()
            self._current = fresh
            self._started_at = time.time()
            self._set_health(True, "")

    async def _until_bad(self, server: Server) -> str:
        """Wait until a server has ended or failed several health checks; says which."""
        end = asyncio.create_task(server.ended())
        failures = 0
        try:
            while True:
                done, _ = await asyncio.wait({end}, timeout=HEALTH_EVERY)
                if done:
                    return f"the server ended with {end.result()}"
                failures = 0 if await server.healthy() else failures + 1
                if failures >= HEALTH_FAILURES:
                    return f"the server did not answer {failures} health checks"
                if failures == 0 and not self._healthy:
                    self._set_health(True, "")
        finally:
            end.cancel()

    def _listen(self, port: int) -> socket.socket:
        if port not in self._sockets:
            try:
                made = socket.create_server(("127.0.0.1", port), backlog=1024)
            except OSError as error:
                raise Refused("FL7001", f"port {port} is in use by another process ({error.strerror})") from error
            self._sockets[port] = made
        return self._sockets[port]

    def _set_health(self, healthy: bool, error: str) -> None:
        self._healthy, self._error = healthy, error
        self._write_state()

    def _state(self) -> dict[str, Any]:
        spec = self._current.spec if self._current else {}
        return {
            "supervisor": os.getpid(),
            "supervisor_started": started(os.getpid()),
            "pid": self._current.pid if self._current else None,
            "address": f"127.0.0.1:{self._current.port}" if self._current else "",
            "healthy": self._healthy,
            "error": self._error,
            "restarts": self._restarts,
            "started_at": self._started_at,
            "labels": spec.get("labels", {}),
            "spec_digest": spec.get("digest", ""),
        }

    def _write_state(self) -> None:
        temporary = self._folder / ".state.json"
        temporary.write_text(json.dumps(self._state()))
        temporary.replace(self._folder / "state.json")


def _check_free(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise Refused("FL7001", f"port {port} is in use by another process ({error.strerror})") from error


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def started(pid: int) -> str:
    """Start time of a process in clock ticks: with the id it names a process for good."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


if __name__ == "__main__":
    asyncio.run(Supervisor(Path(sys.argv[1])).run())
