"""What the web server sends: JSON that is harmless wherever it is shown, problems with our codes (RFC 9457), headers for browsers.

Invariants: no answer has a secret, a control or a direction character, or `<`, `>`, `&` as they are in it; none is kept by a cache
or run by a browser; no request takes longer than `REQUEST_SECONDS` or has a longer target than `MAX_TARGET`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reconciler.error_codes import CODES
from reconciler.errors import FlopsError, WebError
from reconciler.redaction import mask_data

MAX_TARGET = 1000
REQUEST_SECONDS = 30.0
STATUSES = {
    "FL9302": 401, "FL9303": 400, "FL9304": 413, "FL9305": 503, "FL9306": 404, "FL9307": 401,
    "FL9320": 404, "FL9321": 405, "FL9322": 400, "FL9323": 403, "FL9324": 404, "FL9325": 414,
    "FL9326": 409, "FL9328": 503, "FL9329": 421, "FL9330": 500, "FL9331": 408,
}  # fmt: skip
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKUP = {b"<": b"\\u003c", b">": b"\\u003e", b"&": b"\\u0026"}


class Json(Response):
    """A JSON document, without what could do harm; its meaning is unchanged."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        body = orjson.dumps(_neutral(mask_data(content)), default=str)
        for mark, escaped in _MARKUP.items():
            body = body.replace(mark, escaped)
        return body


class Problem(Json):
    """An error as `application/problem+json`."""

    media_type = "application/problem+json"


def problem(error: FlopsError) -> Response:
    """The answer that an error is."""
    status = STATUSES.get(error.code, 500)
    content = {
        "type": f"urn:flops:error:{error.code}",
        "title": CODES.get(error.code, "an error"),
        "status": status,
        "detail": error.cause,
        "code": error.code,
        "cure": error.cure,
    }
    headers = {"www-authenticate": 'Bearer realm="flops"'} if status == 401 else {}
    return Problem(content, status, headers | ({"retry-after": "10"} if status == 503 else {}))


async def on_error(_request: Request, error: Exception) -> Response:
    """For Starlette: our own errors, its own, and those that should not be."""
    if isinstance(error, FlopsError):
        return problem(error)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        return problem(WebError("FL9320", "There is nothing at this address.", cure="See /api/v1/openapi.json."))
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer = problem(WebError("FL9321", "This address does not take that method.", cure="See /api/v1/openapi.json."))
        answer.headers.update(error.headers or {})
        return answer
    # Its text stays out: it may quote what it should not.
    cause = f"An error that should not happen: {type(error).__name__}."
    return problem(WebError("FL9330", cause, cure="Please report it."))


class Guarded:
    """An application with our headers, and with limits for the target and the time of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.encode(): text.encode() for name, text in HEADERS.items()}
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() not in own] + list(own.items())
            await send(message)

        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
            cause = f"The address and its parameters have more than {MAX_TARGET:,} bytes."
            await problem(WebError("FL9325", cause, cure="Ask for less at once."))(scope, receive, guarded)
            return
        # One that does not read its answer is cut off then.
        async with asyncio.timeout(REQUEST_SECONDS):
            await self._app(scope, receive, guarded)


async def capped(request: Request, most: int) -> bytes:
    """A request's body; more than `most` bytes are refused (FL9304) as soon as they are announced or seen, and never kept.

    Raises WebError FL9331 for a body that trickles in.
    """
    too_large = WebError("FL9304", f"The body has more than {most:,} bytes.", cure="Send less; of a webhook, push events only.")
    announced = request.headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()) or len(announced) > 18 or int(announced) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(REQUEST_SECONDS / 3):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise WebError("FL9331", "The body took too long to arrive.", cure="Send it again.") from None
    return bytes(body)


def _neutral(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSAFE.sub(" ", value)
    if isinstance(value, Mapping):
        return {_UNSAFE.sub(" ", str(key)): _neutral(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_neutral(item) for item in value]
    return value
