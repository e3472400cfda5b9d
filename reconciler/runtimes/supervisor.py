"""The supervisor of one service: a small process of its own that outlives the command that started it.

Standard library only: `python -E -s -S -m reconciler.runtimes.supervisor DIR`. It holds the listening socket, so that versions
change and servers die without a connection being refused; starts the server again when it dies, hangs or grows over its
memory; and answers the runtime over `DIR/control.sock`, one JSON line each way.

Invariants: what is current is in `spec.json` and `state.json` before anybody is told; a version that is prepared but not
promoted when its connection closes is discarded, so a runtime that is killed leaves nothing behind; a server whose supervisor
dies ends (its control pipe closes, the kernel kills it), and what is left of one is ended before the next is started. Secrets are
in this process's memory and in its server's environment, and in no file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.modules["ssl"] = None  # type: ignore[assignment]  # loopback needs no TLS; asyncio without it is 5 MB smaller

import asyncio
import json
from pathlib import Path
from typing import Any

from reconciler.runtimes.server_process import Refused, Server, Spec, end_leftovers, listen, started, turn_log_over

FIRST_BACKOFF, LAST_BACKOFF = 0.1, 30.0
STEADY_SECONDS = 60.0
"""A server that lasted this long starts again at once when it ends; one that did not waits longer each time."""
HEALTH_FAILURES = 3
BEAT_SECONDS = 5.0
UNUSED_SECONDS = 60.0


class Supervisor:
    """One service: the server that is current, and maybe one that is being prepared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current: Server | None = None
        self._next: Server | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._restarts = 0
        self._backoff = FIRST_BACKOFF
        self._healthy = False
        self._error = ""
        self._watch: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Answer the runtime until told to stop."""
        await end_leftovers(self._folder)
        os.chdir(self._folder)  # a Unix socket's path may not be longer than 108 bytes
        path = Path("control.sock")
        path.unlink(missing_ok=True)
        os.umask(0o077)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        loop.call_later(UNUSED_SECONDS, self._end_if_unused)
        beat = asyncio.create_task(self._beat())
        async with await asyncio.start_unix_server(self._talk, path=str(path), limit=2**24):
            await self._over.wait()
        beat.cancel()
        self._stop_watching()
        for made in self._sockets.values():
            made.close()
        if self._next:
            self._next.kill()
        if self._current:
            await self._current.retire(replaced=False)
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self._over.is_set() and (line := await reader.readline()):
                try:
                    answer = await self._answer(json.loads(line))
                except Refused as refused:
                    answer = refused.answer
                except (ValueError, KeyError, OSError) as error:
                    answer = Refused("FL7004", f"{type(error).__name__}: {error}").answer
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            pass  # the runtime was killed, or talks nonsense
        finally:
            await self._discard()
            writer.close()
            self._end_if_unused()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "prepare":
            return await self._prepare(request["spec"], int(request["port"]), request["secrets"])
        if operation == "promote":
            return await self._promote()
        if operation == "tell":
            self._set_health(self._healthy, self._error)
            return {"ok": True}
        if operation == "stop":
            self._over.set()
            return {"ok": True}
        raise Refused("FL7004", f"unknown request {operation!r}")

    async def _prepare(self, spec: Spec, port: int, secrets: dict[str, str]) -> dict[str, Any]:
        await self._discard()
        if spec["socket"] == "own" or (self._current and self._current.spec["socket"] == "own"):
            # A server that listens by itself has to leave its port before the next one can have it.
            self._stop_watching()
            if self._current:
                self._set_health(False, "a new version takes its place")
                await self._current.retire(replaced=False)
        try:
            self._next = self._server(spec, port, secrets)
            await self._next.start()
            await self._next.wait_healthy()
        except BaseException as error:
            await self._discard()
            if isinstance(error, OSError):
                raise Refused("FL7002", f"the server cannot be started: {error}") from error
            raise
        return {"ok": True, "address": self._next.private_address}

    async def _promote(self) -> dict[str, Any]:
        if self._next is None or not self._next.alive:
            raise self._next.refusal("before it took over") if self._next else Refused("FL7004", "there is nothing to promote")
        old, self._current, self._next = self._current, self._next, None
        self._stop_watching()
        _replace(self._folder / "spec.json", self._current.spec)
        self._set_health(True, "")
        self._current.accept()
        self._watch = asyncio.create_task(self._keep_up())
        self._close_unused()
        if old:
            task = asyncio.create_task(old.retire(replaced=True))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return {"ok": True}

    async def _discard(self) -> None:
        """Forget what was prepared and not promoted; what was current goes on."""
        if self._next:
            self._next.kill()
            self._next = None
        self._close_unused()
        if self._current and self._watch is None and not self._over.is_set():
            with contextlib.suppress(Refused, OSError):  # then the watch goes on trying
                await self._start_again(self._current)
            self._watch = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        """Watch the current server; start it again when it ends, stops answering or grows too large."""
        while self._current is not None:
            reason = await self._until_bad(self._current)
            if time.time() - self._current.started_at > STEADY_SECONDS:
                self._backoff = FIRST_BACKOFF
            self._current.kill()
            self._restarts += 1
            self._set_health(False, reason)
            await asyncio.sleep(self._backoff)
            self._backoff = min(self._backoff * 2, LAST_BACKOFF)
            with contextlib.suppress(Refused, OSError):
                await self._start_again(self._current)

    async def _start_again(self, old: Server) -> None:
        """One attempt; the shared socket keeps the clients waiting meanwhile."""
        fresh = None
        try:
            fresh = self._server(old.spec, old.port, old.secrets)
            await fresh.start()
            await fresh.wait_healthy()
        except BaseException as error:
            if fresh:
                fresh.kill()
            if isinstance(error, (Refused, OSError)):
                self._set_health(False, f"It does not start ({self._restarts} restarts): {error}")
            raise
        fresh.accept()
        self._current = fresh
        self._set_health(True, "")

    async def _until_bad(self, server: Server) -> str:
        """Wait until a server has ended or failed several health checks; says which."""
        if not server.alive:
            return self._error or "the server ended"
        end = asyncio.create_task(server.ended())
        limit = server.spec.get("memory_mb")
        failures = 0
        try:
            while True:
                done, _ = await asyncio.wait({end}, timeout=server.spec["health_interval"])
                if done:
                    await server.log_written()
                    return str(Refused("", f"the server ended with {end.result()}", server.log()))
                if limit and server.memory_mb() > limit:
                    return f"the server took {server.memory_mb():.0f} MB, more than its {limit} MB"
                turn_log_over(self._folder / "service.log")
                failures = 0 if await server.healthy(server.spec["health_timeout"]) else failures + 1
                if failures >= HEALTH_FAILURES:
                    return f"the server did not answer {failures} health checks"
                if failures == 0 and not self._healthy:
                    self._set_health(True, "")
        finally:
            end.cancel()

    def _server(self, spec: Spec, port: int, secrets: dict[str, str]) -> Server:
        if spec["socket"] == "own":
            listen(port).close()
            return Server(spec, self._folder, None, port, secrets)
        if port not in self._sockets:
            self._sockets[port] = listen(port)
        return Server(spec, self._folder, self._sockets[port], port, secrets)

    def _close_unused(self) -> None:
        used = self._current.port if self._current and self._current.spec["socket"] == "inherited" else None
        for port in [port for port in self._sockets if port != used]:
            self._sockets.pop(port).close()

    def _stop_watching(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None

    def _end_if_unused(self) -> None:
        if self._current is None and self._next is None:
            self._over.set()

    async def _beat(self) -> None:
        """The age of `state.json` says that the supervisor is not only there, but at work."""
        while True:
            with contextlib.suppress(OSError):
                os.utime("state.json")
            await asyncio.sleep(BEAT_SECONDS)

    def _set_health(self, healthy: bool, error: str) -> None:
        self._healthy, self._error = healthy, error
        current = self._current
        spec = current.spec if current else {}
        state = {
            "supervisor": os.getpid(),
            "supervisor_started": started(os.getpid()),
            "pid": current.pid if current else None,
            "address": f"127.0.0.1:{current.port}" if current else "",
            "healthy": healthy,
            "error": error,
            "restarts": self._restarts,
            "started_at": current.started_at if current else 0.0,
            "labels": spec.get("labels", {}),
            "spec_digest": spec.get("digest", ""),
        }
        _replace(self._folder / "state.json", state)


def _replace(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


if __name__ == "__main__":
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())  # the default starts a thread for every child
    asyncio.run(Supervisor(Path(sys.argv[1])).run())
