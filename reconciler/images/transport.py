"""HTTP to one registry: credentials, tokens, retries, limits, and errors that say which of them failed.

Invariants: nothing is sent in plain text to another machine, redirects included; credentials go to the registry and to its own
token service only; every wait has a limit, and a transfer that trickles is given up.
"""

from __future__ import annotations

import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import orjson

from reconciler.errors import ImageError
from reconciler.images import registry_errors as errors
from reconciler.images.cancelling import Cancelled, check, never
from reconciler.images.credentials import DockerConfig
from reconciler.images.reference import is_loopback
from reconciler.tls import trusted_certificates

SMALL_LIMIT: Final = 8 << 20
"""Bytes of a manifest, a list of tags or a token: more is refused."""
_REGISTRY_CERTIFICATES: Final = Path("/etc/docker/certs.d")
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

Body = Callable[[], bytes | Iterator[bytes]]
"""What is sent, made anew for each try."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in seconds, and how often and after which pauses something is tried again. `floor` is in bytes a second."""

    connect: float = 10.0
    silence: float = 60.0
    floor: float = 16 * 1024.0
    attempts: int = 4
    first_pause: float = 0.5
    longest_pause: float = 15.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def pause(self, attempt: int, asked: str = "") -> None:
        """Wait after a failed attempt, counted from 0; as long as the registry asked for, within reason."""
        wait = min(self.first_pause * 2**attempt, self.longest_pause) * (0.5 + self.jitter() / 2)
        if asked.isdecimal():
            wait = min(max(wait, float(asked)), 4 * self.longest_pause)
        self.sleep(wait)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete, small answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str


class Session:
    """One registry, for many threads."""

    def __init__(self, host: str, *, config: DockerConfig | None = None, patience: Patience | None = None) -> None:
        self.host = host
        self.patience = patience or Patience()
        self.cancelled: Cancelled = never
        self._config = config or DockerConfig()
        self._granted: dict[str, str] = {}
        self._granting = threading.Lock()
        limits = httpx.Timeout(self.patience.silence, connect=self.patience.connect)
        self._client = httpx.Client(
            base_url=f"{'http' if is_loopback(host) else 'https'}://{host}", timeout=limits, follow_redirects=True,
            verify=_trusted_by(host), event_hooks={"request": [_never_in_plain_text]},
            headers={"User-Agent": "flops-gitops"}, trust_env=not is_loopback(host),
        )  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, method: str, url: str, scope: str, *, headers: Mapping[str, str] | None = None, content: bytes = b"",
        missing_ok: bool = False, retry: bool = True,
    ) -> Answer:  # fmt: skip
        """A small request, tried again after passing failures. 404 is an answer when `missing_ok`. Raises ImageError."""
        for attempt in range(self.patience.attempts if retry else 1):
            last = not retry or attempt + 1 == self.patience.attempts
            try:
                with self.open(method, url, scope, headers=headers, body=(lambda: content) if content else None) as response:
                    answer = Answer(response.status_code, response.headers, self._read_small(response), str(response.url))
            except ImageError as error:
                if last or not error.transient:
                    raise
                self.pause(attempt)
                continue
            if answer.status < 400 or (answer.status == 404 and missing_ok):
                return answer
            failure = errors.refused(self.host, answer.status, answer.content, method)
            if last or answer.status not in _PASSING or failure.code == "FL6147":
                raise failure
            self.pause(attempt, answer.headers.get("Retry-After", ""))
        raise AssertionError("unreachable")

    def pause(self, attempt: int, asked: str = "") -> None:
        """Wait before the next try. Raises ImageError FL6156 when nobody wants one."""
        check(self.cancelled)
        self.patience.pause(attempt, asked)
        check(self.cancelled)

    @contextmanager
    def open(
        self, method: str, url: str, scope: str, *, headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Iterator[httpx.Response]:  # fmt: skip
        """One request, with a token where one is asked for; `body` is called anew for each try. Raises ImageError."""
        with errors.said_clearly(self.host):
            sent = self._granted.get(scope, "")
            response = self._send(method, url, headers, body, sent)
            if response.status_code == 401:
                challenge = response.headers.get_list("WWW-Authenticate")
                response.close()
                header = self._grant(scope, challenge, stale=sent)
                response = self._send(method, url, headers, body, header)
            try:
                yield response
            finally:
                response.close()

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: Body | None, login: str
    ) -> httpx.Response:  # fmt: skip
        request = self._client.build_request(method, url, headers=dict(headers or {}), content=body() if body else None)
        if login and request.url.netloc == self._client.base_url.netloc:
            request.headers["Authorization"] = login
        return self._client.send(request, stream=True)

    def paced(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The parts of a transfer, as long as it is fast enough. Raises ImageError FL6143."""
        begun, done = self.patience.clock(), 0
        for part in parts:
            check(self.cancelled)
            done += len(part)
            if self.patience.clock() - begun > self.patience.silence + done / self.patience.floor:
                raise errors.slow(self.host)
            yield part

    def _read_small(self, response: httpx.Response) -> bytes:
        data = b""
        for part in self.paced(response.iter_bytes()):
            data += part
            if len(data) > SMALL_LIMIT:
                raise errors.too_large(self.host, SMALL_LIMIT)
        return data

    # --- tokens

    def _grant(self, scope: str, challenges: list[str], *, stale: str) -> str:
        """The Authorization header for a scope, asked for once by however many threads. Raises ImageError FL6145."""
        with self._granting:
            known = self._granted.get(scope, "")
            if known and known != stale:
                return known
            login = self._config.login(self.host)
            bearer = next((item for item in challenges if item.lower().startswith("bearer ")), "")
            if bearer:
                self._granted[scope] = "Bearer " + self._fetch_token(scope, _parameters(bearer))
            elif login and login.user and not stale and any(item.lower().startswith("basic") for item in challenges):
                self._granted[scope] = login.basic
            else:
                raise errors.unauthorised(self.host, known=login is not None)
            return self._granted[scope]

    def _fetch_token(self, scope: str, challenge: Mapping[str, str]) -> str:
        login = self._config.login(self.host)
        realm = challenge.get("realm", "")
        wanted = " ".join(dict.fromkeys([*challenge.get("scope", "").split(), *scope.split()]))
        query = {"service": challenge.get("service", "")}
        if login and login.identity_token:
            form = {**query, "grant_type": "refresh_token", "client_id": "flops-gitops", "scope": wanted}
            response = self._client.post(realm, data={**form, "refresh_token": login.identity_token})
        else:
            headers = {"Authorization": login.basic} if login and login.user else {}
            response = self._client.get(realm, params={**query, "scope": wanted.split()}, headers=headers)
        if response.status_code in {400, 401, 403}:
            raise errors.unauthorised(self.host, known=login is not None)
        if response.status_code != 200:
            raise errors.refused(self.host, response.status_code, response.content, "token")
        try:
            content = orjson.loads(response.content)
            return str(content.get("token") or content["access_token"])
        except (orjson.JSONDecodeError, KeyError, AttributeError) as error:
            raise errors.refused(self.host, 502, b"its token service sent no token", "token") from error


def _trusted_by(host: str) -> ssl.SSLContext:
    """This machine's certificates, and what Docker trusts for this registry."""
    context = trusted_certificates()
    if re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host):
        for path in sorted((_REGISTRY_CERTIFICATES / host).glob("*.crt")):
            context.load_verify_locations(path)
    return context


def _never_in_plain_text(request: httpx.Request) -> None:
    if request.url.scheme != "https" and not is_loopback(
        request.url.host if ":" not in request.url.host else f"[{request.url.host}]"
    ):
        raise errors.plain_text(request.url.host)


def _parameters(challenge: str) -> dict[str, str]:
    return {key.lower(): value for key, value in re.findall(r'([A-Za-z_]+)="([^"]*)"', challenge)}
