"""The web server of `flops serve`: a thread beside the loop, on loopback unless the operator gives a token."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from reconciler.errors import WebError

HEAD_SECONDS = 10.0
"""For the head of a request, from its first byte or from the connection on."""


class PatientOnlyOnce(H11Protocol):
    """uvicorn's protocol, with a limit for connections that say nothing, or say it byte by byte: they would hold all places."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody came."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        super().data_received(data)
        if self._deadline is not None and self.cycle is not None and not self.cycle.response_complete:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)


class WebServer:
    """Serves an application while the body of a `with` runs."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, limit_concurrency=64, timeout_keep_alive=10,
            h11_max_incomplete_event_size=16 * 1024, timeout_graceful_shutdown=2, server_header=False, ws="none",
            http=PatientOnlyOnce,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._started = threading.Event()
        self._where = f"{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._started.wait(0.01)
        if not self._server.started:
            raise WebError("FL9309", f"Nothing can listen at {self._where}.", cure="Choose another port with --listen.")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(5)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def _run(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # uvicorn's word for a port that it cannot have
            return


def checked_address(listen: str, *, closed: bool) -> tuple[str, int]:
    """HOST:PORT. Raises WebError: FL9308 when it is none, FL9310 for an address off loopback unless it is `closed` by tokens."""
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not colon or not port.isdigit() or int(port) > 65535:
        raise WebError("FL9308", f"{listen!r} is not HOST:PORT.", cure="Write for instance 127.0.0.1:8090.")
    if not _is_loopback(host) and not closed:
        cause = f"{host} can be reached from other machines, and there is no token."
        raise WebError("FL9310", cause, cure="Set `web.tokens` in flops.yaml or FLOPS_WEB_TOKEN, or listen on 127.0.0.1.")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
