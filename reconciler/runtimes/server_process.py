"""One server process, as its supervisor sees it: started with its sockets, asked for its health, drained, killed.

Standard library only: it is part of the supervisor's small process. A server whose supervisor dies ends, since the kernel
kills it and its control pipe closes; what its children leave behind is found by a mark in their environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

DRAIN_LIMIT = 30.0
LOG_LIMIT = 5_000_000
MARK = "FLOPS_SERVICE_DIR"
"""In the environment of every server: by it the leftovers of a killed supervisor are found."""
_PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGESIZE")

Spec = dict[str, Any]


_KILLED = frozenset(code for number in (signal.SIGKILL, signal.SIGTERM) for code in (-number, 128 + number))
"""Return codes of what did not end by itself; the second is how a container's is told."""


class Refused(Exception):  # noqa: N818 – an answer to the runtime, not a fault
    """A request that cannot be met, with a code for the runtime."""

    def __init__(self, code: str, message: str, log: str = "") -> None:
        super().__init__(message)
        self.answer = {"ok": False, "code": code, "message": message, "log": log}

    def __str__(self) -> str:
        lines = [line.strip() for line in str(self.answer["log"]).splitlines() if line.strip()][-3:]
        return f"{self.answer['message']}. It said: {' / '.join(lines)}" if lines else str(self.answer["message"])


class Server:
    """One server process of a spec, on a shared listening socket and a private one."""

    def __init__(
        self, spec: Spec, folder: Path, shared: socket.socket | None, port: int, secrets: dict[str, str] | None = None
    ) -> None:
        self.spec = spec
        self.secrets = secrets or {}
        self.port = port
        self.started_at = 0.0
        self._folder = folder
        self._shared = shared
        self._process: asyncio.subprocess.Process | None = None
        self._control: int | None = None
        self._private_port = port
        self._log_from = 0
        self._masking: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def private_address(self) -> str:
        """Where this very process answers, whether it accepts from the shared socket or not."""
        return f"127.0.0.1:{self._private_port}"

    async def start(self) -> None:
        """Start the process; it is not asked to accept yet. Raises OSError."""
        arguments = [item.replace("{port}", str(self.port)) for item in self.spec["argv"]]
        scratch = self._folder / "tmp"
        scratch.mkdir(exist_ok=True)
        environment = {"HOME": str(scratch), "TMPDIR": str(scratch)} | self.spec["env"] | self.secrets | {MARK: str(self._folder)}
        log = self._folder / "service.log"
        with contextlib.ExitStack() as given:
            fds: list[int] = []
            if self._shared is not None:
                private = given.enter_context(socket.create_server(("127.0.0.1", 0)))
                self._private_port = private.getsockname()[1]
                control, self._control = os.pipe()
                given.callback(os.close, control)
                fds = [self._shared.fileno(), private.fileno(), control]
                arguments += ["--fd", str(fds[0]), "--private-fd", str(fds[1]), "--control-fd", str(fds[2])]
            out = given.enter_context(log.open("ab"))
            self._log_from = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                *arguments, cwd=self.spec["cwd"], env=environment, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if self.secrets else out, stderr=asyncio.subprocess.STDOUT,
                pass_fds=fds, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self.started_at = time.time()
        if self._process.stdout is not None:
            self._masking = asyncio.create_task(self._mask(self._process.stdout))

    async def wait_healthy(self) -> None:
        """Wait until the server answers its health check. Raises Refused when it ends or takes too long."""
        limit = float(self.spec["start_timeout"])
        deadline = time.monotonic() + limit
        while (left := deadline - time.monotonic()) > 0:
            # The private socket listens already: a check that is sent early is answered the moment the server is ready.
            if await self.healthy(min(left, 2.0)):
                return
            if self._process is not None and self._process.returncode is not None:
                await self.log_written()
                raise self.refusal("before it was ready")
            await asyncio.sleep(0.02)
        await self.log_written(0.0)
        raise Refused("FL7003", f"the server was not ready after {limit:.0f} s", self.log())

    def refusal(self, when: str) -> Refused:
        """Why an ended server cannot take over: somebody else's doing is told apart from its own."""
        code = self._process.returncode if self._process is not None else None
        if code in _KILLED:
            return Refused("FL7007", f"the server was killed {when}", self.log())
        return Refused("FL7002", f"the server ended with {code} {when}", self.log())

    async def healthy(self, limit: float) -> bool:
        """One health check over HTTP, within `limit` seconds."""
        writer = None
        try:
            async with asyncio.timeout(limit):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._private_port)
                path = self.spec["health_path"]
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n".encode())
                line = await reader.readline()
        except (OSError, TimeoutError, ValueError):
            return False
        finally:
            if writer is not None:
                writer.close()
        return line.split()[1:2] == [b"200"]

    async def ended(self) -> int:
        """Wait for the process's end."""
        return await self._process.wait() if self._process else 0

    def memory_mb(self) -> float:
        """Resident memory of the process."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE / 1e6
        except (OSError, IndexError):
            return 0.0

    def accept(self) -> None:
        """Take requests from the shared socket."""
        self._tell(b"accept\n")

    async def retire(self, *, replaced: bool) -> None:
        """Finish what is in flight, then end; killed when that takes too long.

        One that is replaced gives clients with idle connections the time to move over; else there is nowhere to move to.
        """
        if self.alive:
            if self._control is not None and replaced:
                self._tell(b"drain\n")
            elif self._control is not None:
                self._close_control()
            else:
                self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended(), DRAIN_LIMIT)
        self.kill()

    def kill(self) -> None:
        """End the whole process group now."""
        self._signal(signal.SIGKILL)
        self._close_control()

    async def log_written(self, patience: float = 1.0) -> None:
        """Wait until what an ended process wrote is in the log: a child of it may hold its output open."""
        if self._masking is not None:
            await asyncio.wait({self._masking}, timeout=patience)

    async def _mask(self, output: asyncio.StreamReader) -> None:
        """Write the server's output to its log without its secrets."""
        from reconciler.redaction import Redactor, Stream  # most services have none: their supervisors stay small

        redactor = Redactor()
        for value in self.secrets.values():
            redactor.learn(value)
        stream = Stream(redactor)
        with (self._folder / "service.log").open("ab", buffering=0) as log:
            while chunk := await output.read(1 << 16):
                with contextlib.suppress(OSError):  # a full disk ends no server
                    log.write(stream.feed(chunk))
            with contextlib.suppress(OSError):
                log.write(stream.flush())

    def log(self) -> str:
        """The end of what this process wrote."""
        with contextlib.suppress(OSError), (self._folder / "service.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_from, size - 2000) if size >= self._log_from else 0)
            return file.read().decode(errors="replace")
        return ""

    def _close_control(self) -> None:
        if self._control is not None:
            os.close(self._control)
            self._control = None

    def _tell(self, text: bytes) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                os.write(self._control, text)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def listen(port: int) -> socket.socket:
    """A listening socket on loopback. Raises Refused when the port is in use."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=1024)
    except OSError as error:
        raise Refused("FL7001", f"port {port} cannot be had: {error.strerror}") from error


def turn_log_over(log: Path) -> None:
    """Keep one old log. The server goes on writing to the same file, at its new end."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_LIMIT:
            log.with_suffix(".log.1").write_bytes(log.read_bytes())
            os.truncate(log, 0)


def _die_with_parent() -> None:
    import ctypes  # in the child alone: the supervisor stays small

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


async def end_leftovers(folder: Path) -> None:
    """End the processes that a killed supervisor of this folder left: children of its server hold its port."""
    mark = f"{MARK}={folder}".encode()
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    found.append(entry.name)
        if not found:
            return
        await asyncio.sleep(0.02)


def started(pid: int) -> str:
    """Start time of a live process in clock ticks: with the id it names a process for good. Raises OSError when it ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(f"process {pid} has ended")
    return fields[19]
