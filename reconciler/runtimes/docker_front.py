"""The front of a service that is a container: to its supervisor it is the server, and it passes bytes on to the container.

So containers get all that servers get: the stable port that no version gives up, a private port to verify a new version
on, a drain without a failed request, health checks, a restart with backoff, one log. `python -m
reconciler.runtimes.docker_front --fd N --private-fd N --control-fd N`; what to run is JSON in `FLOPS_CONTAINER`.

Invariants: a container has at most one front (a lock that the kernel gives back when the front dies); what has none is
adopted by the next front of the same content if it is healthy, and removed if not; a front whose container ends says why and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from docker.errors import DockerException, NotFound
from docker.models.containers import Container
from requests.exceptions import RequestException

from reconciler.errors import FlopsError
from reconciler.runtimes.docker_claim import CLAIM, CONTENT, SECRET, Claim, claim_of
from reconciler.runtimes.docker_engine import LABEL, OWNER, SOCKET, SOCKETS, Bind, ContainerSpec, DockerEngine, ending

STOP_SECONDS = 15
"""From SIGTERM to SIGKILL: longer than the inference server waits for clients with idle connections."""
CONNECT_SECONDS = 5.0
ADOPT_SECONDS = 3.0
ANSWER_SECONDS = 8.0
"""With STOP_SECONDS less than what the supervisor gives a server that is replaced."""
_CHUNK = 1 << 16

Address = str | tuple[str, int]
"""A Unix socket's path, or host and port."""


def adopt_or_start(engine: DockerEngine, order: dict[str, Any], folder: Path) -> tuple[Container, Claim]:
    """A container of this content without a front, if it is healthy; else a new one. All others without a front go."""
    found: tuple[Container, Claim] | None = None
    for container in engine.containers(order["labels"][LABEL]):
        claim = claim_of(container)
        if not claim.take():
            continue
        same = container.labels.get(CONTENT) == order["labels"][CONTENT] and container.status == "running"
        if found is None and same and _healthy(_address(container, claim, order), order["health_path"]):
            found = container, claim
            print(f"adopted container {container.short_id}", flush=True)
            continue
        engine.remove(container)
        claim.forget()
    return found or _start(engine, order, folder)


def _start(engine: DockerEngine, order: dict[str, Any], folder: Path) -> tuple[Container, Claim]:
    token = uuid.uuid4().hex[:12]
    claim = Claim(folder / f"{token}.front")
    claim.take()
    private = not order["port"]
    if private:
        claim.sockets.mkdir()
        claim.sockets.chmod(0o777)  # the image's user is nobody here; the folder above lets nobody else in
    container = engine.create(
        ContainerSpec(
            name=f"{order['name']}-{token}",
            image=order["image"],
            command=order["command"],
            env={**order["env"], **{name: os.environ[SECRET + name] for name in order.get("secrets", ())}},
            labels={**order["labels"], CLAIM: str(claim.path)},
            memory_mb=order["memory_mb"],
            vcpus=order["vcpus"],
            network=None if private else engine.internal_network(order["network"], {OWNER: order["labels"][OWNER]}),
            binds=[
                *([Bind(str(claim.sockets), SOCKETS, writable=True)] if private else ()),
                *(Bind(path, path) for path in order["readable"]),
            ],
        )
    )
    try:
        with engine.answering():
            container.start()
    except FlopsError:
        with contextlib.suppress(FlopsError):
            engine.remove(container)
        raise
    return container, claim


def _address(container: Container, claim: Claim, order: dict[str, Any]) -> Address:
    if not order["port"]:
        # Relative to the working directory: paths of Unix sockets end at 108 bytes.
        return str((claim.sockets / SOCKET).relative_to(Path.cwd()))
    container.reload()
    networks = container.attrs["NetworkSettings"]["Networks"]
    return str(networks[order["network"]]["IPAddress"]), int(order["port"])


def _healthy(address: Address, path: str) -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=ADOPT_SECONDS)
    try:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as connection.sock:
            connection.sock.settimeout(ADOPT_SECONDS)
            connection.sock.connect(address)
            connection.request("GET", path)
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


class Front:
    """Passes connections on to one container until it ends, or until the supervisor says drain or is gone."""

    def __init__(self, container: Container, address: Address, memory_mb: int | None) -> None:
        self._container = container
        self._address = address
        self._memory_mb = memory_mb
        self._over = asyncio.Event()
        self._stopping = False
        self.left = False
        """True when the container outlives this front."""
        self._status = 0
        self._open: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        """Connections that were taken and that the container has not begun to answer."""

    async def run(self, shared: socket.socket, private: socket.socket, control: int) -> int:
        """The exit status: 0 when told to end, else the container's."""
        loop = asyncio.get_running_loop()
        for watch in (self._follow_log, self._await_end):
            threading.Thread(target=watch, args=(loop,), daemon=True).start()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(control, "rb", 0))
        self._take_from(private)
        obeying = asyncio.create_task(self._obey(reader, shared))
        await self._over.wait()
        obeying.cancel()
        loop.remove_reader(private)
        if self._open:
            await asyncio.wait(self._open, timeout=STOP_SECONDS)
        return self._status

    def _take_from(self, listening: socket.socket) -> None:
        """Take connections off a listening socket until its reader is removed.

        Not `asyncio.start_server`: a server that is closed drops what it has accepted and not begun with, and nobody knows of these
        connections until it has. Here each one counts from the moment in which it is taken.
        """
        listening.setblocking(False)

        def take() -> None:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # another version took it, the client has gone, or there is no descriptor left for it yet
            connection.setblocking(False)
            self._unanswered += 1
            task = asyncio.get_running_loop().create_task(self._pass(connection))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

        asyncio.get_running_loop().add_reader(listening, take)

    async def _obey(self, control: asyncio.StreamReader, shared: socket.socket) -> None:
        while True:
            line = (await control.readline()).strip()
            if line == b"accept":
                self._take_from(shared)
            elif not line:
                # The supervisor is gone, not the service: the container stays for the front of the next one.
                self.left = True
                self._over.set()
                return
            elif line == b"drain":
                asyncio.get_running_loop().remove_reader(shared)
                self._stopping = True
                await self._until_answered()
                # SIGTERM: the server says `Connection: close` from now on; what is under way is passed on until it ends.
                await asyncio.to_thread(self._stop)
                self._over.set()
                return

    async def _until_answered(self) -> None:
        """Wait until the container has begun to answer every connection: one that it has not accepted yet would be lost."""
        steps = 200
        for _ in range(steps):
            if not self._unanswered:
                return
            await asyncio.sleep(ANSWER_SECONDS / steps)

    def _stop(self) -> None:
        with contextlib.suppress(DockerException, RequestException, OSError):
            self._container.stop(timeout=STOP_SECONDS)

    async def _pass(self, connection: socket.socket) -> None:
        counted = True
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            inner_reader, inner_writer = await self._connect()
            counted = False
            try:
                await asyncio.gather(_pump(reader, inner_writer), self._pump_answers(inner_reader, writer))
            finally:
                inner_writer.close()
        except (OSError, asyncio.CancelledError):
            pass  # the container does not listen, one side broke off, or the front ends: the client sees its connection end
        finally:
            self._unanswered -= counted
            if writer is None:
                connection.close()
            else:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()  # what is still in its buffer belongs to an answer

    async def _pump_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(_CHUNK)
        finally:
            self._unanswered -= 1
        writer.write(first)
        await _pump(reader, writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the container; a server that is still starting is waited for."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONNECT_SECONDS
        while True:
            try:
                if isinstance(self._address, str):
                    return await asyncio.open_unix_connection(self._address)
                return await asyncio.wait_for(asyncio.open_connection(*self._address), CONNECT_SECONDS)
            except (ConnectionRefusedError, FileNotFoundError):
                if loop.time() > deadline or self._over.is_set():
                    raise
            await asyncio.sleep(0.02)

    def _follow_log(self, _loop: asyncio.AbstractEventLoop) -> None:
        """What the container prints, until it ends; an engine that was restarted under it is asked for the rest."""
        since: float | None = None
        pause = threading.Event()
        while not self._over.is_set():
            with contextlib.suppress(DockerException, RequestException, OSError):
                for part in self._container.logs(stream=True, follow=True, since=since):
                    sys.stdout.buffer.write(part)
                    sys.stdout.buffer.flush()
                    since = time.time()
            pause.wait(1.0)

    def _await_end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends the front with its container. An engine that goes away is no end: the container may well go on."""
        pause = threading.Event()
        while True:
            try:
                self._container.wait(timeout=None)
                code, out_of_memory = ending(self._container)
                break
            except NotFound:
                code, out_of_memory = 137, False
                break
            except (DockerException, RequestException, OSError):
                pause.wait(1.0)
        if not self._stopping:
            self._status = code or 1
            why = f"the container ended with exit code {code}"
            if out_of_memory:
                why = f"[FL7104] the kernel killed the container: it needed more than its limit of {self._memory_mb} MB"
            # The log's follower may not have written its last lines yet; this one is what has to be the last.
            pause.wait(0.2)
            print(why, file=sys.stderr, flush=True)
        loop.call_soon_threadsafe(self._over.set)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


def main() -> int:
    """Have a container, then be its front."""
    parser = argparse.ArgumentParser()
    for name in ("--fd", "--private-fd", "--control-fd"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    order: dict[str, Any] = json.loads(os.environ["FLOPS_CONTAINER"])
    engine = DockerEngine(order["host"])
    try:
        container, claim = adopt_or_start(engine, order, Path.cwd())
        front = Front(container, _address(container, claim, order), order["memory_mb"])
        shared, private = socket.socket(fileno=options.fd), socket.socket(fileno=options.private_fd)
        status = asyncio.run(front.run(shared, private, options.control_fd))
        if front.left:
            os._exit(0)  # threads still wait for the container
        engine.remove(container)
        claim.forget()
    except FlopsError as error:
        print(f"[{error.code}] {error.cause}", file=sys.stderr, flush=True)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
