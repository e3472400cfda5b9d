"""Files that SOPS or age encrypted, decrypted by those tools themselves: keys are their business, not ours.

A tool is called with a fixed argument list, with the part of the environment in which keys and key services are named and nothing
else, for a limited time, and for a limited amount of output, which never touches a disk. What a tool says of a failure is not
passed on: it may quote the file.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from reconciler.errors import SecretError

LIMIT_SECONDS = 20.0
_PASSED = re.compile(
    r"PATH|HOME|USER|LANG|TZ|XDG_CONFIG_HOME|GNUPGHOME|SSL_CERT_(FILE|DIR)|(HTTPS?|NO)_PROXY|(SOPS|AWS|AZURE|GOOGLE|VAULT)_[A-Z0-9_]+"
)
_IDENTITIES = "SOPS_AGE_KEY_FILE"


def sops(path: str, key: str, *, environ: Mapping[str, str], most: int) -> bytes:
    """A file that SOPS encrypted, or one value of it (`key`, dotted); at most `most` bytes. Raises SecretError FL9501 to FL9504."""
    extract = ("--extract", "".join(f'["{part}"]' for part in key.split("."))) if key else ()
    return _run("sops", ("--decrypt", *extract, path), path, environ, most)


def age(path: str, *, environ: Mapping[str, str], most: int) -> bytes:
    """A file that age encrypted, by the identities that SOPS would use; at most `most` bytes. Raises as `sops`."""
    identities = environ.get(_IDENTITIES, "")
    if not identities.startswith("/"):
        cause = f"{path} cannot be decrypted: {_IDENTITIES} does not name a file of age identities."
        raise SecretError("FL9502", cause, cure="Set it to the absolute path of that file for the reconciler.")
    return _run("age", ("--decrypt", "--identity", identities, path), path, environ, most)


def _run(tool: str, arguments: Sequence[str], path: str, environ: Mapping[str, str], most: int) -> bytes:
    program = shutil.which(tool, path=environ.get("PATH"))
    if program is None:
        raise SecretError(
            "FL9501", f"{tool} is not installed, and {path} needs it.", cure=f"Install {tool}, in the reconciler's PATH."
        )
    passed = {name: value for name, value in environ.items() if _PASSED.fullmatch(name)}
    process = subprocess.Popen(
        [program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=passed, cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        content = _read(process, most, tool, path)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()
    return content


def _read(process: subprocess.Popen[bytes], most: int, tool: str, path: str) -> bytes:
    """The whole output of a tool that ends well within the time limit."""
    deadline = time.monotonic() + LIMIT_SECONDS
    slow = SecretError(
        "FL9503", f"{tool} took longer than {LIMIT_SECONDS:g} s for {path}.", cure="Check its key service.", transient=True
    )
    found = bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(_pipe(process), selectors.EVENT_READ)
        while True:
            if not ready.select(max(0.0, deadline - time.monotonic())):
                raise slow
            chunk = os.read(_pipe(process), 1 << 16)
            if not chunk:
                break
            found += chunk
            if len(found) > most + 1:
                raise SecretError(
                    "FL9504", f"What {tool} makes of {path} is larger than {most:,} bytes.", cure="Name one `key` of it."
                )
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise slow from None
    if code:
        cure = f"Run {tool} by hand as the reconciler's user: what it says is not repeated here, as it may quote the file."
        raise SecretError("FL9502", f"{tool} cannot decrypt {path}: it ended with {code}.", cure=cure)
    return bytes(found)


def _pipe(process: subprocess.Popen[bytes]) -> int:
    if process.stdout is None:
        raise ValueError("tools are always started with a pipe")
    return process.stdout.fileno()
