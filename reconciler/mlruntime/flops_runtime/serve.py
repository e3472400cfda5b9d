"""The inference server: MLflow's protocol over a model bundle, in the model's own environment.

`python -m flops_runtime.serve --model DIR --project NAME --version DIGEST` with `--port`, or with the three descriptors of a
supervisor: `--fd` (the shared listening socket), `--private-fd` (this process alone) and `--control-fd` (lines: accept, drain;
its end means that the supervisor is gone or removes the service, and the server ends too). SIGTERM means drain as well: the
server goes on accepting, since whoever sends it may still route to it, and ends when its clients have gone.

While it drains every answer says `Connection: close`, so that clients move over between requests and none fails.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flops_runtime import sandbox
from flops_runtime.serve_model import JSON, Answer, ServedModel, failure

MAX_BODY = 100 * 1024 * 1024
MAX_WAITING = 64
STUCK_SECONDS = 120.0
"""A prediction that takes longer is taken for stuck: the health check fails, and the supervisor starts the server again."""
DRAIN_SECONDS = 5.0
"""How long idle connections of the shared socket are kept while draining: longer than clients pause between requests."""


class Inference:
    """The HTTP side: routes, limits, one thread that predicts."""

    def __init__(self, model: ServedModel, about: dict[str, str], max_body: int = MAX_BODY) -> None:
        self._model = model
        self._about = about
        self._max_body = max_body
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._waiting = 0
        self._began: Optional[float] = None
        self.draining = False

    def app(self) -> Callable[..., Any]:
        """The ASGI application."""
        routes = Starlette(
            routes=[
                Route("/invocations", self._invocations, methods=["POST"]),
                Route("/ping", self._health),
                Route("/health", self._health),
                Route("/version", self._version),
            ]
        )

        async def closing_while_draining(scope: Any, receive: Any, send: Any) -> None:
            async def finish(message: Any) -> None:
                if self.draining and message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
                await send(message)

            await routes(scope, receive, finish)

        return closing_while_draining

    async def _health(self, _request: Request) -> Response:
        began = self._began
        stuck = began is not None and time.monotonic() - began > STUCK_SECONDS
        return Response(b"\n", 503 if stuck else 200, media_type=JSON)

    async def _version(self, _request: Request) -> Response:
        return JSONResponse({**self._about, **self._model.about})

    async def _invocations(self, request: Request) -> Response:
        if self._waiting >= MAX_WAITING:
            return _response(failure(503, "RESOURCE_EXHAUSTED", "Too many requests are waiting; try again."))
        self._waiting += 1
        try:
            body = await self._body(request)
            if body is None:
                return _response(failure(413, "BAD_REQUEST", f"The request has more than {self._max_body:,} bytes."))
            kind = request.headers.get("content-type", JSON)
            return _response(await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, body, kind))
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            self._waiting -= 1

    async def _body(self, request: Request) -> Optional[bytes]:
        """The body, or None when it is too large; then the rest is read and dropped, so that the client hears the answer."""
        body, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= self._max_body:
                body += part
            elif size <= 4 * self._max_body:
                body.clear()
            else:
                break
        return bytes(body) if size <= self._max_body else None

    def _answer(self, body: bytes, kind: str) -> Answer:
        self._began = time.monotonic()
        try:
            return self._model.answer(body, kind)
        except Exception:
            traceback.print_exc()
            return failure(500, "INTERNAL_ERROR", "The server failed on this input; the traceback is in the service's log.")
        finally:
            self._began = None


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type=JSON)


class Server(uvicorn.Server):
    """Uvicorn that listens on a private socket first, and on the shared one when the supervisor says so."""

    def __init__(self, inference: Inference, shared: Optional[socket.socket], control: Optional[int]) -> None:
        config = uvicorn.Config(
            inference.app(), log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75, backlog=1024,
            timeout_graceful_shutdown=20, http="h11",
        )  # fmt: skip
        super().__init__(config)
        self._inference = inference
        self._shared = shared
        self._control = control
        self._beginning: set[asyncio.Task[None]] = set()
        """Connections that were taken off the shared socket and that uvicorn does not count yet."""

    async def startup(self, sockets: Any = None) -> None:
        """Listen, then obey the supervisor."""
        await super().startup(sockets=sockets)
        if self._control is not None:
            reader = asyncio.StreamReader()
            loop = asyncio.get_running_loop()
            protocol = asyncio.StreamReaderProtocol(reader)
            await loop.connect_read_pipe(lambda: protocol, os.fdopen(self._control, "rb", 0))
            self._obeying = asyncio.create_task(self._obey(reader))

    async def _obey(self, control: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        while True:
            line = (await control.readline()).strip()
            if line == b"accept" and self._shared is not None:
                self._shared.setblocking(False)
                loop.add_reader(self._shared, self._take, self._shared)
            elif line == b"drain":
                self._inference.draining = True
                if self._shared is not None:
                    loop.remove_reader(self._shared)
                await self._until_quiet()
                self.should_exit = True
                return
            elif not line:
                self.should_exit = True
                return

    def _take(self, shared: socket.socket) -> None:
        """Take one connection; a server of asyncio's that is closed drops what it has accepted and not begun with."""
        try:
            connection, _ = shared.accept()
        except OSError:
            return  # another version took it, the client has gone, or there is no descriptor left for it yet
        task = asyncio.get_running_loop().create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM drains as the supervisor's word does: a container's runtime and Kubernetes have no other way to say it."""
        if sig != signal.SIGTERM or self._inference.draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._inference.draining = True
        asyncio.get_event_loop().create_task(self._end_when_quiet())

    async def _end_when_quiet(self) -> None:
        await self._until_quiet()
        self.should_exit = True

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=getattr(self.lifespan, "state", {})
        )
        return made

    async def _until_quiet(self) -> None:
        """Give clients that keep connections open the time to meet a `Connection: close`."""
        steps = 50
        for _ in range(steps):
            if not self.server_state.connections and not self._beginning:
                return
            await asyncio.sleep(DRAIN_SECONDS / steps)


def listen(host: str, port: int, path: Optional[str]) -> socket.socket:
    """A listening socket: the Unix socket of a path, or a port."""
    if path is None:
        return socket.create_server((host, port), backlog=1024)
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    Path(path).chmod(0o666)  # whoever may enter its folder may connect
    made.listen(1024)
    return made


def main() -> None:
    """Load the model, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    # An image knows what it is; a server of the process runtime is told.
    parser.add_argument("--project", default=os.environ.get("FLOPS_PROJECT", ""))
    parser.add_argument("--version", default=os.environ.get("FLOPS_DIGEST", ""))
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container with a network")
    parser.add_argument("--socket", help="path of a Unix socket to listen on instead: for a container without a network")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--max-body", type=int, default=MAX_BODY, help="bytes")
    parser.add_argument("--fd", type=int)
    parser.add_argument("--private-fd", type=int)
    parser.add_argument("--control-fd", type=int)
    options = parser.parse_args()
    runtime = Path(__file__).resolve().parent.parent
    if options.fd is not None:
        # A server of a supervisor has its sockets already; the model's code needs no others.
        scratch = [Path(os.environ["TMPDIR"])] if "TMPDIR" in os.environ else []
        level = sandbox.enter([options.model, runtime, Path(sys.prefix), Path(sys.base_prefix)], scratch)
        print(json.dumps({"sandbox": level}), flush=True)
    model = ServedModel.load(options.model)
    inference = Inference(model, {"project": options.project, "digest": options.version}, options.max_body)
    if options.fd is None:
        Server(inference, None, None).run(sockets=[listen(options.host, options.port, options.socket)])
        return
    shared, private = socket.socket(fileno=options.fd), socket.socket(fileno=options.private_fd)
    Server(inference, shared, options.control_fd).run(sockets=[private])


if __name__ == "__main__":
    main()
