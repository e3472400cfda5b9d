"""What can go wrong with a registry, each with its own code, and whether trying again may help."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import orjson

from reconciler.errors import ImageError


@contextmanager
def said_clearly(host: str) -> Iterator[None]:
    """Turns the failures of a connection into ImageError."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise slow(host) from error
    except httpx.ConnectError as error:
        raise (untrusted(host, error) if _certificate(error) else down(host, error)) from error
    except (httpx.TransportError, httpx.StreamError) as error:
        raise broken_off(host, error) from error
    except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise refused(host, 502, str(error).encode(), "redirect") from error


def down(host: str, error: Exception) -> ImageError:
    """Nothing listens, or the name is unknown."""
    return ImageError(
        "FL6142",
        f"The registry {host} does not answer: {_words(error)}.",
        cure="Check its name and that it runs; it is tried again.",
        transient=True,
    )


def broken_off(host: str, error: Exception) -> ImageError:
    """The connection ended in the middle."""
    return ImageError(
        "FL6142",
        f"The registry {host} broke the connection off: {_words(error)}.",
        cure="It is tried again; see the registry's log.",
        transient=True,
    )


def slow(host: str) -> ImageError:
    """Silence, or a trickle."""
    return ImageError(
        "FL6143",
        f"The registry {host} is too slow to go on with.",
        cure="It is tried again; check its load and the network.",
        transient=True,
    )


def untrusted(host: str, error: Exception) -> ImageError:
    """TLS failed."""
    return ImageError(
        "FL6144",
        f"The certificate of the registry {host} is not trusted: {_words(error)}.",
        cure=f"Add its authority to this machine's bundle (SSL_CERT_FILE), or put it into Docker's certs.d/{host}/ca.crt.",
    )


def upload_lost(host: str) -> ImageError:
    """404 or 416 in the middle of an upload: the registry forgot it, or has another part of it."""
    return ImageError("FL6148", f"The registry {host} lost an upload.", cure="It is sent anew.", transient=True)


def unauthorised(host: str, *, known: bool) -> ImageError:
    """401, or 403 from the token service."""
    have = "the credentials of Docker's config are not accepted" if known else "Docker's config has no credentials for it"
    return ImageError("FL6145", f"The registry {host} asks for a login; {have}.", cure=f"Run `docker login {host}` as this user.")


def too_large(host: str, limit: int) -> ImageError:
    """More than any manifest has."""
    return ImageError("FL6152", f"The registry {host} sent more than {limit >> 20} MiB for a manifest.", cure="Check what it is.")


def plain_text(host: str) -> ImageError:
    """HTTP to another machine."""
    return ImageError("FL6151", f"{host} would be spoken to without encryption.", cure="Give the registry a certificate.")


def missing(name: str) -> ImageError:
    """404 for a manifest."""
    return ImageError("FL6146", f"There is no image {name}.", cure="Check its name and tag, and that it was pushed for good.")


def differs(name: str, expected: str, found: str) -> ImageError:
    """Content that is not what its digest says."""
    return ImageError(
        "FL6150", f"{name} is {found[:19]}…, not {expected[:19]}… as asked for.",
        cure="It is tried again; if it stays so, the registry or something on the way changes what it serves.", transient=True,
    )  # fmt: skip


def refused(host: str, status: int, content: bytes, what: str) -> ImageError:
    """Any other status, with what the registry says about it."""
    said = _said(content)
    tail = f" It said: {said}" if said else ""
    if status in {413, 507} or re.search(
        r"no space left|disk quota|quota exceeded|\"Err\":\s?(28|122)\b", content.decode(errors="replace"), re.I
    ):
        return ImageError(
            "FL6147", f"The registry {host} has no space left or takes nothing so large ({status}).{tail}",
            cure="Free space there, or raise its limit for uploads; it is tried again.", transient=True,
        )  # fmt: skip
    if status in {401, 403}:
        return ImageError(
            "FL6145", f"The registry {host} does not allow that ({status}, {what}).{tail}",
            cure=f"Run `docker login {host}` as a user who may push there.",
        )  # fmt: skip
    if status >= 500 or status in {408, 429}:
        return ImageError(
            "FL6148", f"The registry {host} fails ({status}, {what}).{tail}", cure="It is tried again.", transient=True
        )
    return ImageError("FL6149", f"The registry {host} rejects that ({status}, {what}).{tail}", cure="See the registry's log.")


def _said(content: bytes) -> str:
    """The registry's own words, made safe and short."""
    try:
        found = orjson.loads(content)["errors"]
        words = "; ".join(f"{item.get('code', '')}: {item.get('message', '')}" for item in found)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        words = re.sub(r"<[^>]*>", " ", content[:2000].decode(errors="replace"))
    return " ".join(re.sub(r"[^ -~]", " ", words).split())[:200]


def _certificate(error: Exception) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")[:200]
