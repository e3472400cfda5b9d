"""Who may ask for what: tokens with roles, and what is open on loopback without any.

Invariants: every token is compared with every request in constant time, by digests of one length; whoever may not learns only that.
What changes something always needs an operator's token, as any page in a browser of this machine can send requests to loopback;
what can be read without a token is given to those alone that ask for loopback by its own name, which a page of another site cannot.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.requests import Request

from reconciler.errors import WebError
from reconciler.redaction import learn
from reconciler.secrets import resolve
from reconciler.spec.operator import WebToken

MIN_TOKEN = 16
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Role(StrEnum):
    """What a token is for: looking, or also making the reconciler look and try again."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Token:
    """A token by its digest: what is compared, and what nobody can read out again."""

    name: str
    role: Role
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """The tokens of one server."""

    tokens: Sequence[Token] = ()

    @property
    def closed(self) -> bool:
        """Whether everything needs a token."""
        return bool(self.tokens)

    def check(self, request: Request, needed: Role) -> None:
        """Raise WebError unless the request may: FL9307 without a known token, FL9323 for its role, FL9329 for the host."""
        given = request.headers.get("authorization", "")
        if not self.tokens and needed is Role.VIEWER:
            if _host(request) not in _LOOPBACK:
                cause = "Without tokens this server answers to its own loopback address alone."
                raise WebError("FL9329", cause, cure="Ask for 127.0.0.1 or localhost, or set `web.tokens` in flops.yaml.")
            return
        found = self._role(given)
        if found is None and not self.tokens:
            cause = "This needs the token of an operator, and there are no tokens."
            raise WebError("FL9323", cause, cure="Add one with `role: operator` to `web.tokens` in flops.yaml.")
        if found is None:
            raise WebError("FL9307", "A token is needed.", cure="Send one that is known as `Authorization: Bearer TOKEN`.")
        if needed is Role.OPERATOR and found is not Role.OPERATOR:
            cure = "Use one with `role: operator`; `web.tokens` in flops.yaml has the roles."
            raise WebError("FL9323", "This needs the token of an operator.", cure=cure)

    def _role(self, header: str) -> Role | None:
        scheme, _, given = header.partition(" ")
        wanted = _digest(given.strip() if scheme.lower() == "bearer" else "")
        found = None
        for token in self.tokens:  # all of them, so that the time says nothing of which
            if hmac.compare_digest(token.digest, wanted):
                found = token.role
        return found


def open_access(tokens: Sequence[WebToken], shared: str, *, environ: Mapping[str, str]) -> Access:
    """The tokens of flops.yaml, and `shared` (FLOPS_WEB_TOKEN) as a viewer's: scrapers of metrics have it.

    Raises SecretError for one that cannot be had, WebError FL9327 for one that is too short.
    """
    made = []
    for item in tokens:
        value = resolve(item.secret_ref, environ=environ).reveal()
        if len(value) < MIN_TOKEN:
            cause = f"The web token {item.name!r} has fewer than {MIN_TOKEN} characters."
            raise WebError("FL9327", cause, cure="Make one with `openssl rand -hex 32`.")
        made.append(Token(item.name, Role(item.role), _digest(value)))
    if shared:
        learn(shared)
        made.append(Token("FLOPS_WEB_TOKEN", Role.VIEWER, _digest(shared)))
    return Access(tuple(made))


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()


def _host(request: Request) -> str:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""
