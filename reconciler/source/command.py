"""Git's command layer: fixed argument lists, no shell, no hooks, no configuration but the repository's own.

Through GitPython's `Git.execute`. Whatever comes from users – refs, URLs, paths – is refused when it starts with `-` and
stands behind `--end-of-options` or `--`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import git

from reconciler.errors import SourceError

LIMIT_SECONDS = 120
_INERT = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "protocol.ext.allow=never",
    "-c", "gc.auto=0",
    "-c", "advice.detachedHead=false",
)  # fmt: skip
_PASSED = ("PATH", "HOME", "SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_ASKPASS", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "TMPDIR")


def run(
    path: Path, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None, limit: float = LIMIT_SECONDS
) -> bytes:
    """Run Git in a folder and return its standard output. Raises SourceError FL2001 with what Git said."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ} | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:file",
        "GIT_ATTR_NOSYSTEM": "1",
        "LC_ALL": "C",
        **(env or {}),
    }
    process = git.Git(str(path)).execute(
        ["git", *_INERT, *arguments],
        as_process=True,
        env=environment,
        istream=subprocess.PIPE if stdin is not None else None,
    )
    raw: subprocess.Popen[bytes] = process.proc  # type: ignore[assignment]  # there is one, as the process was just started
    try:
        out, err = raw.communicate(stdin, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raw.kill()
        raw.communicate()
        raise SourceError(
            "FL2002", f"Git took longer than {limit:.0f} s: {arguments[0]}.", cure="It is tried again.", transient=True
        ) from error
    if raw.returncode:
        said = err.decode(errors="replace").strip().splitlines()
        reason = said[-1].removeprefix("fatal: ")[:300] if said else f"it ended with {raw.returncode}"
        raise SourceError("FL2001", f"Git could not {arguments[0]}: {reason}.", cure="See the message of Git.")
    return bytes(out)


def text(path: Path, *arguments: str) -> str:
    """As `run`, decoded and stripped."""
    return run(path, *arguments).decode().strip()


def checked(value: str, what: str) -> str:
    """A ref, URL or path from a user; refused when Git could take it for an option."""
    if value.startswith("-") or "\x00" in value or "\n" in value:
        raise SourceError("FL2003", f"{what} may not begin with '-' or have line breaks.", cure="Correct it in the SLA.")
    return value
