"""Where the GitOps repo lives, from the address of its remote: the host and the repository's full name there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from reconciler.errors import NotifyError
from reconciler.spec.notify import NotifyTarget

_SCP = re.compile(r"(?:[\w.-]+@)?(?P<host>[A-Za-z0-9.-]+):(?P<path>[^/\s].*)")
_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+")
_API = {"github": "/api/v3", "gitlab": "/api/v4", "gitea": "/api/v1", "forgejo": "/api/v1"}


@dataclass(frozen=True, slots=True)
class Home:
    """A repository of a forge: the API's base address, without a slash at its end, and owner/name."""

    api: str
    repository: str


def home(target: NotifyTarget, remote_url: str) -> Home:
    """Where a forge is told. Raises NotifyError FL9401 when neither the settings nor the remote say it."""
    host, path = _parts(remote_url)
    repository = target.repository or path
    api = target.api or _api(target.type, host)
    if not api or not _NAME.fullmatch(repository):
        what = "repository" if api else "API"
        cause = f"The {what} of {target.name} is not known: the remote's address does not say it."
        cure = "Set `repository: owner/name`." if api else "Set `api: https://…`."
        raise NotifyError("FL9401", cause, cure=f"{cure[:-1]} in flops.yaml.")
    return Home(api.rstrip("/"), repository)


def _api(kind: str, host: str) -> str:
    if not host:
        return ""
    return "https://api.github.com" if (kind, host) == ("github", "github.com") else f"https://{host}{_API[kind]}"


def _parts(url: str) -> tuple[str, str]:
    """Host and path; empty for a folder of this machine."""
    if "://" in url:
        try:
            parts = urlsplit(url)
            host, path = parts.hostname or "", parts.path
            # SSH has a port of its own; that of https is the API's as well.
            port = f":{parts.port}" if parts.port and parts.scheme == "https" else ""
        except ValueError:
            return "", ""
        if parts.scheme not in {"https", "http", "ssh"}:
            return "", ""
        return host + port, path.strip("/").removesuffix(".git")
    found = _SCP.fullmatch(url)
    return (found["host"], found["path"].strip("/").removesuffix(".git")) if found else ("", "")
