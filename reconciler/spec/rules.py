"""Rules for single values: what a type alone cannot say, each with a cause and a cure of its own.

A rule raises `broken(…)`, which pydantic carries to the loader with the place of the value. Causes go on after the key and its
value ("ml_repo_url 'x' leads out …"); they never repeat the value, because a URL may hold a password.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError

DURATION = r"^\d{1,9}(\.\d{1,9})?(s|m|h|d)?$"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SCP = re.compile(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:(?![-/:])[^\s]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_USER = re.compile(r"[A-Za-z0-9_][\w.-]*")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_URL_CURE = "Write an https:// or ssh:// URL, git@host:path, or a path inside this repo such as ./projects/NAME/ml_repo."
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_CRON = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_CRON_PART = re.compile(r"(?P<first>\*|\w+)(-(?P<last>\w+))?(/(?P<step>\d{1,3}))?")


def broken(cause: str, cure: str, at: int | None = None) -> PydanticCustomError:
    """A broken rule; `at` is the index of the item of a list that breaks it."""
    return PydanticCustomError("rule", "{cause}", {"cause": cause, "cure": cure, "at": at})


def duration(value: object) -> object:
    """`90s`, `5m`, `1h`, `1d` in seconds; numbers are seconds already."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not re.fullmatch(DURATION[1:-1], text):
        raise broken("is not a duration", "Write seconds, or a number with a unit such as 90s, 5m or 1h.")
    return float(text.rstrip("smhd")) * _UNITS.get(text[-1], 1.0)


def ml_repo_url(value: str) -> str:
    """A Git URL that Git cannot take for an option, without credentials, or a path inside the GitOps repo."""
    if value.startswith("-"):
        raise broken("starts with `-`, which Git would take for an option", _URL_CURE)
    if re.search(r"[\s\x00-\x1f\x7f\\]", value):
        raise broken("has white space, a control character or a backslash in it", _URL_CURE)
    if ".." in re.split(r"[/:]", value):
        raise broken("has `..` in it, which leads out of the repo", "Write the path without `..`.")
    if value.startswith("./"):
        return _inside_this_repo(value)
    if "://" in value and "::" not in value.split("://")[0]:
        return _url(value)
    if _SCP.fullmatch(value):
        return value
    raise broken("is neither a Git URL nor a path inside the GitOps repo", _URL_CURE)


def _inside_this_repo(value: str) -> str:
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if any(part.lower() == ".git" for part in parts):
        raise broken("leads into Git's own folder", "Name a folder that is committed.")
    return "/".join((".", *parts)) if parts else "."


def _url(value: str) -> str:
    try:
        url = urlsplit(value)
        host, _ = url.hostname or "", url.port
    except ValueError as error:
        raise broken("is not a URL", _URL_CURE) from error
    if url.scheme not in ("https", "http", "ssh", "file"):
        raise broken("uses a transport that is not allowed", _URL_CURE)
    if url.password is not None or (url.username is not None and url.scheme != "ssh"):
        raise broken("has credentials in it", "Take them out, change them, and configure them for Git on the reconciler's machine.")
    if url.scheme == "file":
        if host or not url.path.startswith("/"):
            raise broken("is not a file URL", "Write three slashes: file:///path.")
        return value
    if not _HOST.fullmatch(host) or (url.username is not None and not _USER.fullmatch(url.username)):
        raise broken("has no host name that Git could use", _URL_CURE)
    if url.scheme == "http" and host not in _LOOPBACK:
        raise broken("is not encrypted", "Write https://; http:// is for this machine only.")
    if url.path.strip("/") == "" or url.query or url.fragment:
        raise broken("does not name a repo", "Write host and path only, without ? and #; a branch goes into ml_repo_ref.")
    return value


def inside(value: str) -> str:
    """A relative folder that does not lead out."""
    parts = value.split("/")
    if value.startswith(("/", "-")) or ".." in parts or re.search(r"[\x00-\x1f\x7f\\]", value):
        raise broken("leads out of the ML repo", "Write a folder of the ML repo, such as `models/small`.")
    return "/".join(part for part in parts if part not in ("", "."))


def ref(value: str) -> str:
    """A branch, tag or commit that Git cannot take for an option or an expression."""
    if not value or value.startswith("-") or value.endswith((".", "/")) or re.search(r"[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|@\{", value):
        raise broken("is not a branch, a tag or a commit", "Write its plain name, or a full commit.")
    return value


def cron(value: str) -> str:
    """Five cron fields, each within its range."""
    fields = value.split()
    if len(fields) != 5:
        raise broken("is not a cron expression", "Write five fields: minute, hour, day, month, weekday, such as `0 3 * * *`.")
    for text, (name, low, high, names) in zip(fields, _CRON, strict=True):
        if not all(_cron_part(part, low, high, names) for part in text.split(",")):
            raise broken(
                f"has a {name} that cannot be", f"Write *, or numbers from {low} to {high}, such as {low}, {low}-{high}, */2."
            )
    return " ".join(fields)


def _cron_part(part: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    found = _CRON_PART.fullmatch(part)
    if not found or (found["step"] is not None and not int(found["step"])):
        return False
    if found["first"] == "*":
        return found["last"] is None
    first = _cron_number(found["first"], low, names)
    last = first if found["last"] is None else _cron_number(found["last"], low, names)
    return first is not None and last is not None and low <= first <= last <= high


def _cron_number(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text.lower() in names:
        return names.index(text.lower()) + low
    return int(text) if re.fullmatch(r"[0-9]{1,2}", text) else None


def public_key(value: str) -> str:
    """The public key of a node, in the one form in which Flower compares keys (PEM)."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if "PRIVATE" in value:
        raise broken("is a private key", "Remove it, make a new key, and put the file that ends in .pub here.")
    data = value.strip().encode()
    try:
        load = serialization.load_ssh_public_key if data.startswith(b"ecdsa-") else serialization.load_pem_public_key
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise broken("is not a public key", "Write what `flops node keygen` printed.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
        raise broken("is not a NIST elliptic-curve key", "Make one with `flops node keygen`.")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def host_port(value: str) -> str:
    """An address to connect to or to listen on."""
    host, _, port = value.rpartition(":")
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+", host) or not port.isdigit() or not 0 < int(port) < 65536:
        raise broken("is not HOST:PORT", "Write for example superlink.example.org:9092.")
    return value


def no_credentials(value: str) -> str:
    """A URL of flops.yaml: the file is committed, so a password in it is published."""
    if re.search(r"://[^/\s]*@", value):
        raise broken("has credentials in it", "Take them out, change them, and set MLflow's environment variables instead.")
    return value


def http_url(value: str) -> str:
    """Where something is sent to with a secret: https, or http within this machine; no credentials in the address."""
    cure = "Write https://host/path; http:// is for this machine only."
    if re.search(r"[\s\x00-\x1f\x7f\\]", value):
        raise broken("has white space, a control character or a backslash in it", cure)
    try:
        url = urlsplit(value)
        host, _ = url.hostname or "", url.port
    except ValueError as error:
        raise broken("is not a URL", cure) from error
    if url.scheme not in ("https", "http") or not _HOST.fullmatch(host):
        raise broken("is not an https URL", cure)
    if url.username is not None or url.password is not None:
        raise broken("has credentials in it", "Take them out, change them, and name where they are with secret_ref.")
    if url.scheme == "http" and host not in _LOOPBACK:
        raise broken("is not encrypted", cure)
    return value


def better(metric: object) -> str:
    """Which direction is better, when an SLA does not say: errors and losses fall, the rest rises."""
    last = re.split(r"[._-]", str(metric).lower())[-1]
    falls = last in {"loss", "error", "mse", "mae", "rmse", "mape", "perplexity", "logloss"} or last.endswith("loss")
    return "minimize" if falls else "maximize"
