"""Git's command layer: fixed argument lists, no shell, no hooks, and no configuration but the repository's own.

Everything goes through GitPython's `Git.execute`. What comes from users – refs, URLs, paths – is checked here and stands
behind `--end-of-options` or `--`. Output, time and (for packs) file size are bounded, as they come from other people's repos.

Credentials of an operator reach Git through SSH, `GIT_ASKPASS`, the clone's own `.git/config` (`credential.helper`) or
`GIT_CONFIG_COUNT`; every other `GIT_*` variable is dropped, so that a `flops` started inside a Git hook works on its own repo.
"""

from __future__ import annotations

import os
import re
import resource
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import git

from reconciler.errors import SourceError

LIMIT_SECONDS = 120
MAX_OUTPUT = 256 * 1024 * 1024
CREDENTIALS_CURE = (
    "Give credentials by SSH, GIT_ASKPASS or `git config credential.helper` in the clone: the global configuration is not read."
)
_MAX_SAID = 64 * 1024
_INERT = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "protocol.ext.allow=never",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
    "-c", "log.showSignature=false",
    "-c", "http.lowSpeedLimit=1000",
    "-c", "http.lowSpeedTime=30",
)  # fmt: skip
_FIXED = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ADVICE": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}
_OPERATORS = re.compile(r"GIT_(SSH|SSH_COMMAND|ASKPASS|SSL_CAINFO|SSL_CAPATH|PROXY_SSL_CAINFO|CONFIG_(COUNT|KEY_\d+|VALUE_\d+))")
_SECRET = re.compile(r"://[^/@\s]*@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_NOISE = ("warning:", "hint:", "Please make sure", "and the repository exists")
_REF = re.compile(r"[^\s\x00-\x20\x7f~^:?*\[\\+-][^\s\x00-\x20\x7f~^:?*\[\\]*")


@dataclass(frozen=True, slots=True)
class Completed:
    """An ended Git command; `said` is its standard error, without passwords and control characters."""

    code: int
    out: bytes
    said: tuple[str, ...]

    @property
    def reason(self) -> str:
        """What Git said of its failure, on one line of at most 300 characters."""
        told = [line.removeprefix("fatal: ").removeprefix("error: ") for line in self.said if not line.startswith(_NOISE)]
        return "; ".join(dict.fromkeys(told[:2]))[:300].rstrip(".") or f"it ended with {self.code}"


def attempt(
    path: Path,
    *arguments: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    limit: float = LIMIT_SECONDS,
    max_output: int = MAX_OUTPUT,
    max_file: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Completed:
    """Run Git in a folder, whatever it ends with.

    `limit` is in seconds (SourceError FL2002 beyond it), `max_output` in bytes of standard output (FL2009), `max_file` in bytes
    of any file that Git writes (0: no limit; Git then dies of signal 25). Git's own children end with it. What is `cancelled`
    ends within half a second (FL2002).
    """
    settings = {**_FIXED, "GIT_ALLOW_PROTOCOL": "https:ssh:file", **(env or {})}
    dropped = [name for name in os.environ if name.startswith("GIT_") and name not in settings and not _OPERATORS.fullmatch(name)]
    unset = ["env", *(part for name in dropped for part in ("-u", name))] if dropped else []
    with tempfile.TemporaryFile() as feed:
        feed.write(stdin)
        feed.seek(0)
        # `-C`, as GitPython takes the current folder, which may be another repo, for one that does not exist.
        started = git.Git(str(path)).execute(
            [*unset, "git", "-C", str(path), *_INERT, *arguments],
            as_process=True,
            env=settings,
            istream=feed,
            start_new_session=True,
        )
    process: subprocess.Popen[bytes] = started.proc  # type: ignore[assignment]  # there is one, as it was just started
    try:
        if max_file and hasattr(resource, "prlimit"):
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (max_file, max_file))
        out, err = _collect(process, arguments[0], limit, max_output, cancelled)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    said = (_CONTROL.sub(" ", without_password(line)).strip() for line in err.decode(errors="replace").splitlines())
    return Completed(process.returncode, out, tuple(line for line in said if line))


def run(
    path: Path,
    *arguments: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    limit: float = LIMIT_SECONDS,
    max_output: int = MAX_OUTPUT,
) -> bytes:
    """As `attempt`, for commands that must succeed: their standard output, else SourceError FL2001 with what Git said."""
    done = attempt(path, *arguments, stdin=stdin, env=env, limit=limit, max_output=max_output)
    if done.code:
        raise SourceError("FL2001", f"Git could not {arguments[0]}: {done.reason}.", cure="See the message of Git.")
    return done.out


def text(path: Path, *arguments: str) -> str:
    """As `run`, decoded and stripped."""
    return run(path, *arguments).decode(errors="replace").strip()


def checked(value: str, what: str) -> str:
    """A revision, URL or path from a user; refused (FL2003) when Git could take it for an option."""
    if value.startswith("-") or _CONTROL.search(value):
        raise SourceError("FL2003", f"{what} may not begin with '-' or have control characters.", cure="Correct it.")
    return value


def checked_ref(value: str, what: str) -> str:
    """A branch, tag or full commit from a user, and nothing that Git reads as a refspec or an expression (FL2003)."""
    if not _REF.fullmatch(value) or ".." in value or "@{" in value or "//" in value or value.endswith(("/", ".", ".lock")):
        raise SourceError("FL2003", f"{what} is not the name of a branch or tag, nor a commit.", cure="Correct it.")
    return value


def protocols(url: str) -> dict[str, str]:
    """The environment that allows what a URL needs: https, ssh and files; plain http within this machine only."""
    plain = False
    if url.startswith("http://"):
        with suppress(ValueError):
            plain = urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}
    return {"GIT_ALLOW_PROTOCOL": "https:ssh:file:http" if plain else "https:ssh:file"}


def without_password(text: str) -> str:
    """A URL or message without the user and password of URLs."""
    return _SECRET.sub("://", text)


def _collect(
    process: subprocess.Popen[bytes], name: str, limit: float, max_output: int, cancelled: Callable[[], bool]
) -> tuple[bytes, bytes]:
    """Both outputs until the end, the time limit or too much of it; of the messages the end is kept."""
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + limit
    with selectors.DefaultSelector() as ready:
        ready.register(_open(process.stdout), selectors.EVENT_READ, out)
        ready.register(_open(process.stderr), selectors.EVENT_READ, err)
        while ready.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise _too_slow(name, limit)
            if cancelled():
                raise SourceError("FL2002", f"Git's {name} was called off.", cure="It is tried again.", transient=True)
            found = ready.select(min(left, 0.5))
            # A connection that SSH keeps for later holds the pipes open after Git has ended.
            if not found and process.poll() is not None:
                break
            for key, _ in found:
                chunk = os.read(key.fd, 1 << 18)
                if not chunk:
                    ready.unregister(key.fileobj)
                key.data.extend(chunk)
            del err[:-_MAX_SAID]
            if len(out) > max_output:
                cause = f"Git's {name} gave more than {max_output:,} bytes."
                raise SourceError("FL2009", cause, cure="Commit fewer or smaller files.")
    try:
        process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired as error:
        raise _too_slow(name, limit) from error
    return bytes(out), bytes(err)


def _too_slow(name: str, limit: float) -> SourceError:
    return SourceError("FL2002", f"Git's {name} took longer than {limit:g} s.", cure="It is tried again.", transient=True)


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("Git is always started with pipes")
    return stream
