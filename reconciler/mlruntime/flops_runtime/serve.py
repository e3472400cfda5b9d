"""The inference server: MLflow's protocol over a model bundle, in the model's own environment.

`python -m flops_runtime.serve --model DIR --project NAME --version DIGEST` with `--port`, or with the three descriptors of a
supervisor: `--fd` (the shared listening socket), `--private-fd` (this process alone) and `--control-fd` (lines: accept, drain;
its end means that the supervisor is gone, and the server ends too).

While it drains every answer says `Connection: close`, so that clients move over between requests and none fails.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flops_runtime import sandbox
from flops_runtime.serve_model import ServedModel, Unacceptable

MAX_BODY = 100 * 1024 * 1024
MAX_WAITING = 64
DRAIN_SECONDS = 5.0
"""How long idle connections of the shared socket are kept while draining: longer than clients pause between requests."""


class Inference:
    """The HTTP side: routes, limits, one thread that predicts."""

    def __init__(self, model: ServedModel, about: dict[str, str]) -> None:
        self._model = model
        self._about = about
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._waiting = 0
        self.draining = False

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/invocations", self._invocations, methods=["POST"]),
                Route("/ping", self._health),
                Route("/health", self._health),
                Route("/version", self._version),
            ]
        )

    async def _health(self, _request: Request) -> Response:
        return self._finish(Response(status_code=200, content=b"\n"))

    async def _version(self, _request: Request) -> Response:
        return self._finish(JSONResponse({**self._about, **self._model.about}))

    async def _invocations(self, request: Request) -> Response:
        if self._waiting >= MAX_WAITING:
            return self._error(503, "RESOURCE_EXHAUSTED", "Too many requests are waiting; try again.")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return self._error(413, "BAD_REQUEST", f"The request has more than {MAX_BODY:,} bytes.")
        kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if kind not in {"application/json", "text/csv"}:
            return self._error(415, "BAD_REQUEST", "Content-Type must be application/json or text/csv.")
        self._waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._model.answer, bytes(body), kind)
        except Unacceptable as refused:
            return self._error(400, "BAD_REQUEST", str(refused))
        except Exception:
            import traceback

            traceback.print_exc()
            return self._error(500, "INTERNAL_ERROR", "The model failed on this input; the traceback is in the service's log.")
        finally:
            self._waiting -= 1
        return self._finish(Response(answer, media_type="application/json"))

    def _error(self, status: int, code: str, message: str) -> Response:
        return self._finish(JSONResponse({"error_code": code, "message": message}, status_code=status))

    def _finish(self, response: Response) -> Response:
        if self.draining:
            response.headers["connection"] = "close"
        return response


class Server(uvicorn.Server):
    """Uvicorn that listens on a private socket first, and on the shared one when the supervisor says so."""

    def __init__(self, inference: Inference, shared: socket.socket | None, control: int | None) -> None:
        config = uvicorn.Config(
            inference.app(), log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75, backlog=1024,
            timeout_graceful_shutdown=20, http="h11",
        )  # fmt: skip
        super().__init__(config)
        self._inference = inference
        self._shared = shared
        self._control = control

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
        listener: asyncio.AbstractServer | None = None
        while True:
            line = (await control.readline()).strip()
            if line == b"accept" and self._shared is not None:
                listener = await asyncio.get_running_loop().create_server(self._protocol, sock=self._shared, backlog=1024)
            elif line == b"drain":
                self._inference.draining = True
                if listener is not None:
                    listener.close()
                await self._until_quiet()
                self.should_exit = True
                return
            elif not line:
                self.should_exit = True
                return

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
            if not self.server_state.connections:
                return
            await asyncio.sleep(DRAIN_SECONDS / steps)


def main() -> None:
    """Load the model, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--project", default="")
    parser.add_argument("--version", default="")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--private-fd", type=int)
    parser.add_argument("--control-fd", type=int)
    options = parser.parse_args()
    runtime = Path(__file__).resolve().parent.parent
    if options.fd is not None:
        # A server of a supervisor has its sockets already; the model's code needs no others.
        level = sandbox.enter([options.model, runtime, Path(sys.prefix), Path(sys.base_prefix)], [])
        print(json.dumps({"sandbox": level}), flush=True)
    model = ServedModel.load(options.model)
    inference = Inference(model, {"project": options.project, "digest": options.version})
    if options.fd is None:
        Server(inference, None, None).run(sockets=[socket.create_server(("127.0.0.1", options.port))])
        return
    shared, private = socket.socket(fileno=options.fd), socket.socket(fileno=options.private_fd)
    Server(inference, shared, options.control_fd).run(sockets=[private])


if __name__ == "__main__":
    main()
