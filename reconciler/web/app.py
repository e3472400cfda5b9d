"""The web application of `flops serve`: `/healthz`, `/readyz`, `/metrics`, `/webhooks/<forge>` and the API below `/api/v1`.

Webhooks are answered by their signature; everything else but health by a token where there are tokens. Webhooks
wait in a bounded queue of one slot per kind of look – they all say the same – and a flood of them is answered 503 before it
costs anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from reconciler.controller import Controller
from reconciler.errors import WebError
from reconciler.journal import Journal
from reconciler.web.access import Access, Role
from reconciler.web.answers import STATUSES, Guarded, Json, capped, on_error
from reconciler.web.api import Api
from reconciler.web.metrics import Metrics
from reconciler.web.webhooks import MAX_BODY, Forge, authenticate, concerns, parse

STALE_SECONDS = 300.0
"""A loop that has not looked for so long is not alive, whatever its process says."""
IN_FLIGHT = 16
RATE, BURST = 5.0, 50


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
    journal: Journal,
    metrics: Metrics,
    *,
    branch: str,
    secret: bytes | None,
    access: Access | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """The application. Without `secret` webhooks are refused; without tokens in `access` it is for loopback alone."""
    gate = Gate(monotonic)
    access = access or Access()

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        age = monotonic() - controller.looked_at
        if controller.view is None or age > STALE_SECONDS:
            return PlainTextResponse("the loop has not looked yet\n" if controller.view is None else "the loop is stuck\n", 503)
        return PlainTextResponse("ok\n")

    async def show_metrics(request: Request) -> Response:
        access.check(request, Role.VIEWER)
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
            body = await capped(request, MAX_BODY)
            authenticate(forge, request.headers, body, secret)
            hook = parse(forge, request.headers, body)
        except WebError as error:
            metrics.webhooks.labels(forge, {401: "unsigned", 413: "too large"}.get(STATUSES[error.code], "bad")).inc()
            raise
        finally:
            gate.leave()
        if not concerns(hook, branch):
            metrics.webhooks.labels(forge, "ignored").inc()
            return Json({"result": "ignored"})
        metrics.webhooks.labels(forge, "accepted").inc()
        for url in hook.urls:
            controller.revisions.refresh(url)
        controller.wake()
        return Json({"result": "accepted"}, 202)

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
            Route("/webhooks/{forge}", webhook, methods=["POST"]),
            *Api(controller, journal, access).routes(),
        ],
        exception_handlers={WebError: on_error, HTTPException: on_error, Exception: on_error},
    )
    return Guarded(app)
