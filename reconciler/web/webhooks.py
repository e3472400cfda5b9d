"""Webhooks: is this message really from the forge, and what should be looked at?

The order keeps strangers cheap: the body is capped before anything is computed over it, the signature is checked in constant time
before anything is parsed, and what was parsed is used only to leave out what does not concern us. A webhook carries no content –
it says "look" – so a replayed, doubled, reordered or forged-by-an-insider one does what the poll does anyway.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from reconciler.errors import WebError

MAX_BODY = 1024 * 1024
MIN_SECRET = 16


class Forge(StrEnum):
    """Who sends: the last part of the webhook's address."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class Hook:
    """What a webhook is about. `ref` is a full ref or empty; `urls` are the addresses of the repo that it came from."""

    event: str
    ref: str = ""
    urls: tuple[str, ...] = ()


# Header with the signature, what stands before it, and the header with the event's name.
_SIGNED = {
    Forge.GITHUB: ("x-hub-signature-256", "sha256=", "x-github-event"),
    Forge.GITEA: ("x-gitea-signature", "", "x-gitea-event"),
    Forge.FORGEJO: ("x-forgejo-signature", "", "x-forgejo-event"),
    Forge.GENERIC: ("x-signature-256", "sha256=", "x-event"),
}
PUSHES = frozenset({"push", "push hook", "tag push hook", "system hook", "create", "delete", ""})
"""Events after which there may be something new; of the others (issues, stars, pings) nothing follows."""


def checked_secret(secret: str) -> bytes:
    """A secret that keeps strangers out. Raises WebError FL9301 for one that would not: empty, or short enough to guess."""
    if len(secret.strip()) < MIN_SECRET:
        cause = "The webhook secret is empty." if not secret.strip() else f"The webhook secret has fewer than {MIN_SECRET} letters."
        raise WebError("FL9301", cause, cure="Make one with `openssl rand -hex 32` and give it to the forge and to flops.")
    return secret.strip().encode()


def authenticate(forge: Forge, headers: Mapping[str, str], body: bytes, secret: bytes) -> None:
    """Raise WebError FL9302 unless the message is signed with our secret."""
    if forge is Forge.GITLAB:
        # GitLab does not sign: it sends the secret itself.
        given, wanted = headers.get("x-gitlab-token", "").encode(), secret
    else:
        header, prefix, _ = _SIGNED[forge]
        signature = headers.get(header, "")
        given = signature.removeprefix(prefix).lower().encode() if signature.startswith(prefix) else b""
        wanted = hmac.new(secret, body, hashlib.sha256).hexdigest().encode()
    if not hmac.compare_digest(given, wanted):
        raise WebError("FL9302", "The webhook is not signed with our secret.", cure="Give both sides the same secret.")


def parse(forge: Forge, headers: Mapping[str, str], body: bytes) -> Hook:
    """What an authenticated webhook is about. Raises WebError FL9303 for what is no JSON object."""
    event = headers.get("x-gitlab-event" if forge is Forge.GITLAB else _SIGNED[forge][2], "").lower()
    try:
        content = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        cure = "Set the webhook's content type to application/json."
        raise WebError("FL9303", "The webhook's body is not JSON.", cure=cure) from error
    if not isinstance(content, dict):
        raise WebError("FL9303", "The webhook's body is not a JSON object.", cure="Send an object.")
    found = [content.get("repository"), content.get("project")]
    keys = ("clone_url", "ssh_url", "git_http_url", "git_ssh_url", "html_url", "web_url")
    urls = tuple(_text(repo.get(key)) for repo in found if isinstance(repo, dict) for key in keys if _text(repo.get(key)))
    return Hook(_text(event), _text(content.get("ref")), urls)


def concerns(hook: Hook, branch: str) -> bool:
    """Whether to look: not for events that are no pushes, and not for pushes to other refs than branches and tags that may matter.

    When in doubt, look: it costs a fetch, while a push that is missed waits for the poll.
    """
    if hook.event not in PUSHES:
        return False
    # Our own status commits come back as webhooks; looking at them would make the loop wake itself.
    return not (hook.ref.startswith("refs/heads/status/") and hook.ref != f"refs/heads/{branch}")


def _text(value: Any) -> str:
    return value[:500] if isinstance(value, str) else ""
