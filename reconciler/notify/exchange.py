"""One request to a forge or webhook, and what its answer means.

The other side is trusted with nothing: the whole exchange – name, handshake, headers, body – has one time limit, the answer one of
size, redirects are not followed (they would carry the token elsewhere), and no text of it is shown whole or with our secret in it.
"""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from reconciler.errors import NotifyError
from reconciler.notify.texts import cut, line
from reconciler.secrets import HIDDEN, Secret
from reconciler.tls import trusted_certificates

LIMIT_SECONDS = 15.0
MAX_ANSWER = 4 * 1024 * 1024
LONGEST_PAUSE = 3600.0
"""Seconds of a pause that the other side may ask for; GitHub's windows are an hour long."""
_SAID = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer. `pause`: seconds for which nothing more should be sent, 0 in general."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    pause: float = 0.0

    def json(self) -> Any:
        """The body, parsed. Raises NotifyError FL9409."""
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError:
            cause = "The answer is not JSON."
            raise NotifyError("FL9409", cause, cure="Check the address: is it that of the API?", transient=True) from None


@dataclass(slots=True)
class Exchange:
    """Requests in the name of one target. `clock` is seconds since the epoch, for the times that forges name."""

    name: str
    clock: Callable[[], float] = time.time
    limit: float = LIMIT_SECONDS
    _tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __call__(
        self, method: str, url: str, headers: Mapping[str, str], secret: Secret, *, content: bytes = b"", checked: bool = True
    ) -> Reply:
        """The answer. Raises NotifyError: FL9402 without one, and unless `checked` is False what `check` says of it."""
        try:
            reply = asyncio.run(self._within_limit(method, url, headers, content))
        except TimeoutError:
            raise self._silent(url, f"it did not answer within {self.limit:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # Not chained, and without our secret: some errors quote the header that they do not like.
            raise self._silent(url, _hide(cut(line(error) or type(error).__name__, _SAID), secret)) from None
        if checked:
            check(self.name, reply, secret, now=self.clock())
        return reply

    async def _within_limit(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> Reply:
        return await asyncio.wait_for(self._exchange(method, url, headers, content), self.limit)

    async def _exchange(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> Reply:
        here = urlsplit(url).scheme == "http"
        if not here and self._tls is None:
            self._tls = trusted_certificates()
        async with (
            httpx.AsyncClient(
                verify=self._tls or False, timeout=self.limit, follow_redirects=False, trust_env=not here
            ) as client,
            client.stream(method, url, headers={"User-Agent": "flops-gitops", **headers}, content=content or None) as response,
        ):  # fmt: skip
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_ANSWER:
                    cause = f"{self.name} answers with more than {MAX_ANSWER:,} bytes."
                    raise NotifyError("FL9409", cause, cure="Check the address: is it that of the API?", transient=True)
            pause = _wait(response.headers, self.clock()) if _used_up(response.headers) else 0.0
            return Reply(response.status_code, response.headers, bytes(body), pause)

    def _silent(self, url: str, why: str) -> NotifyError:
        cause = f"{self.name} does not answer at {urlsplit(url).netloc}: {why}."
        return NotifyError("FL9402", cause, cure="It is tried again; nothing else waits for it.", transient=True)


def bearer(secret: Secret) -> str:
    """A token that a header can carry. Raises NotifyError FL9410, which does not quote it."""
    token = secret.reveal()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise NotifyError("FL9410", "The token has characters that no token has.", cure="Put the token there, and nothing else.")
    return token


def check(name: str, reply: Reply, secret: Secret, *, now: float) -> None:
    """Raise NotifyError for an answer that is no success."""
    status = reply.status
    if status < 300:
        return
    said = _said(reply, secret)
    if status < 400:
        cure = (
            "Write the address or the repository's name as it is now; redirects are not followed, as they would carry the secret."
        )
        raise NotifyError("FL9408", f"{name} says that it is elsewhere (status {status}).", cure=cure, transient=True)
    if status == 429 or (status == 403 and (_used_up(reply.headers) or "retry-after" in reply.headers or "rate limit" in said)):
        error = NotifyError("FL9405", f"{name} asks for a pause{said}.", cure="It goes on by itself.", transient=True)
        # GitHub: a minute at least where a limit says nothing else.
        error.pause = _wait(reply.headers, now) or 60.0
        raise error
    if status in {401, 403}:
        cure = "Renew the secret, or give its account the right to write statuses and comments."
        raise NotifyError("FL9403", f"{name} refuses our secret (status {status}){said}.", cure=cure, transient=True)
    if status == 404:
        cure = "Check the repository's name and that the token may see it."
        raise NotifyError("FL9404", f"{name} has no such thing (status 404){said}.", cure=cure, transient=True)
    if status >= 500 or status in {408, 409, 423, 425}:
        failed = NotifyError("FL9407", f"{name} fails (status {status}){said}.", cure="It is tried again.", transient=True)
        failed.pause = _wait(reply.headers, now)
        raise failed
    raise NotifyError("FL9406", f"{name} refuses what it is sent (status {status}){said}.", cure="It is not sent again.")


def _said(reply: Reply, secret: Secret) -> str:
    """The other side's own sentence, short and harmless."""
    try:
        content = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        return ""
    found = content.get("message") or content.get("error") if isinstance(content, dict) else ""
    if not isinstance(found, str):
        found = orjson.dumps(found).decode()
    return f": {_hide(cut(line(found), _SAID), secret)}" if found else ""


def _hide(text: str, secret: Secret) -> str:
    return text.replace(secret.reveal(), HIDDEN)


def _used_up(headers: Mapping[str, str]) -> bool:
    return headers.get("x-ratelimit-remaining", headers.get("ratelimit-remaining", "")).strip() == "0"


def _wait(headers: Mapping[str, str], now: float) -> float:
    """Seconds that the other side asks for; 0 when it does not, an hour at most."""
    dated = _time(headers.get("date", ""))
    asked = headers.get("retry-after", "").strip()
    wait = 0.0
    if asked.isdecimal() and len(asked) < 10:
        wait = float(asked)
    elif asked:
        wait = (_time(asked) or 0.0) - (dated or now)
    else:
        reset = headers.get("x-ratelimit-reset", headers.get("ratelimit-reset", "")).strip()
        if reset.isdecimal() and len(reset) < 12 and _used_up(headers):
            wait = float(reset) - (dated or now)
    return min(max(wait, 0.0), LONGEST_PAUSE)


def _time(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
