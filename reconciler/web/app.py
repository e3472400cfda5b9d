"""The web application of `flops serve`: `/healthz`, `/readyz`, `/metrics`, `/webhooks/<forge>`.

Webhooks are answered by their signature; everything else off loopback by a token. Webhooks wait in a bounded queue of one slot per
kind of look – they all say the same – and a flood of them is answered 503 before it costs anything.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from reconciler.controller import Controller
from reconciler.errors import WebError
from reconciler.web.metrics import Metrics
from reconciler.web.webhooks import MAX_BODY, Forge, authenticate, concerns, parse

STALE_SECONDS = 300.0
"""A loop that has not looked for so long is not alive, whatever its process says."""
IN_FLIGHT = 16
RATE, BURST = 5.0, 50
_CODES = {"FL9302": 401, "FL9303": 400, "FL9304": 413, "FL9305": 503, "FL9306": 404, "FL9307": 401}


@dataclass(slots=True)
class Gate:
    """How many webhooks are let in: so many at once, and so many a second after a burst. Seconds of a monotonic clock."""

    monotonic: Callable[[], float] = time.monotonic
    in_flight: int = 0
    _tokens: float = BURST
    _at: float = field(default=float("-inf"))

    def enter(self) -> None:
        """Let one in. Raises WebError FL9305 when there are too many."""
        now = self.monotonic()
        self._tokens = min(BURST, self._tokens + max(0.0, now - self._at) * RATE)
        self._at = now
        if self.in_flight >= IN_FLIGHT or self._tokens < 1:
            raise WebError("FL9305", "Too many webhooks.", cure="Send it again later; the poll sees the push anyway.")
        self._tokens -= 1
        self.in_flight += 1

    def leave(self) -> None:
        """One is answered."""
        self.in_flight -= 1


def make_app(
    controller: Controller,
    metrics: Metrics,
    *,
    branch: str,
    secret: bytes | None,
    token: str = "",
    monotonic: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The application. Without `secret` webhooks are refused; with `token` metrics ask for it as a bearer token."""
    gate = Gate(monotonic)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        age = monotonic() - controller.looked_at
        if controller.view is None or age > STALE_SECONDS:
            return PlainTextResponse("the loop has not looked yet\n" if controller.view is None else "the loop is stuck\n", 503)
        return PlainTextResponse("ok\n")

    async def show_metrics(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            raise WebError("FL9307", "A token is needed.", cure="Send it as `Authorization: Bearer …`.")
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def webhook(request: Request) -> Response:
        name = request.path_params["forge"]
        if name not in set(Forge) or secret is None:
            cure = "Set FLOPS_WEBHOOK_SECRET and use github, gitlab, gitea, forgejo or generic."
            raise WebError("FL9306", "There is no such webhook.", cure=cure)
        forge = Forge(name)
        try:
            gate.enter()
        except WebError:
            metrics.webhooks.labels(forge, "busy").inc()
            raise
        try:
            body = await _capped(request)
            authenticate(forge, request.headers, body, secret)
            hook = parse(forge, request.headers, body)
        except WebError as error:
            metrics.webhooks.labels(forge, {401: "unsigned", 413: "too large"}.get(_CODES[error.code], "bad")).inc()
            raise
        finally:
            gate.leave()
        if not concerns(hook, branch):
            metrics.webhooks.labels(forge, "ignored").inc()
            return JSONResponse({"result": "ignored"})
        metrics.webhooks.labels(forge, "accepted").inc()
        for url in hook.urls:
            controller.revisions.refresh(url)
        controller.wake()
        return JSONResponse({"result": "accepted"}, 202)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
            Route("/webhooks/{forge}", webhook, methods=["POST"]),
        ],
        exception_handlers={WebError: _answer},
    )


async def _capped(request: Request) -> bytes:
    """The body, up to its limit; more is refused as soon as it is announced or seen, and never kept."""
    too_large = WebError("FL9304", f"The body has more than {MAX_BODY:,} bytes.", cure="Send push events only.")
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > MAX_BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise too_large
    return bytes(body)


_Handler = Callable[[Request, Exception], Awaitable[Response]]


async def _answer(_request: Request, error: Exception) -> Response:
    if not isinstance(error, WebError):
        raise error
    return JSONResponse(error.to_dict(), _CODES.get(error.code, 500))
