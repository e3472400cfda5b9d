"""Credentials for registries, from where `docker login` puts them; nothing of them is ever printed or stored again."""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from reconciler.errors import ImageError
from reconciler.redaction import learn

HELPER_LIMIT = 30.0
_TOKEN_USER = "<token>"  # noqa: S105 – a name
"""What a credential helper answers as user when the secret is an identity token."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user and a password, or an identity token; never shown."""

    user: str = field(repr=False)
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The header of HTTP Basic."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class DockerConfig:
    """`config.json` of Docker: `auths`, `credHelpers`, `credsStore`."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or _default_path()

    def login(self, host: str) -> Login | None:
        """The login for a registry's host, or None. Raises ImageError FL6141 when a helper fails or the file is damaged."""
        found = self._find(host)
        if found is not None:
            for value in (found.password, found.identity_token, found.basic.removeprefix("Basic ")):
                learn(value)
        return found

    def _find(self, host: str) -> Login | None:
        content = self._read()
        helper = _mapping(content.get("credHelpers")).get(host) or content.get("credsStore")
        if helper:
            found = self._ask_helper(str(helper), host)
            if found:
                return found
        auths = _mapping(content.get("auths"))
        keys = (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/")
        entry = next((_mapping(auths[key]) for key in keys if key in auths), None)
        return self._from_entry(entry, host) if entry else None

    def _from_entry(self, entry: Mapping[str, Any], host: str) -> Login | None:
        token = str(entry.get("identitytoken") or "")
        if entry.get("auth"):
            try:
                user, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError) as error:
                raise self._damaged(f"the entry of {host} cannot be decoded") from error
            if not colon:
                raise self._damaged(f"the entry of {host} has no password")
            return Login(user, password.rstrip("\0"), token)
        if entry.get("username") or token:
            return Login(str(entry.get("username") or ""), str(entry.get("password") or ""), token)
        return None

    def _ask_helper(self, helper: str, host: str) -> Login | None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):
            raise self._damaged(f"{helper[:40]!r} cannot be the name of a credential helper")
        program = f"docker-credential-{helper}"
        try:
            done = subprocess.run(
                [program, "get"], input=host, capture_output=True, text=True, timeout=HELPER_LIMIT, check=False
            )  # fmt: skip
        except FileNotFoundError as error:
            raise _helper_failed(program, "it is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise _helper_failed(program, f"it did not answer within {HELPER_LIMIT:.0f} s") from error
        if done.returncode:
            if "credentials not found" in (done.stdout + done.stderr).lower():
                return None
            raise _helper_failed(program, f"it ended with exit code {done.returncode}")
        try:
            content = orjson.loads(done.stdout)
            user, secret = str(content["Username"]), str(content["Secret"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise _helper_failed(program, "its answer has no Username and Secret") from error
        return Login("", "", secret) if user == _TOKEN_USER else Login(user, secret)

    def _read(self) -> Mapping[str, Any]:
        try:
            content = orjson.loads(self._path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, orjson.JSONDecodeError) as error:
            raise self._damaged("it is not readable JSON") from error
        return _mapping(content)

    def _damaged(self, why: str) -> ImageError:
        return ImageError("FL6141", f"Docker's {self._path.name} cannot be used: {why}.", cure="Run `docker login` again.")


def _default_path() -> Path:
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _helper_failed(program: str, why: str) -> ImageError:
    return ImageError(
        "FL6141", f"The credential helper {program} failed: {why}.", cure="Run it by hand with `get`, or `docker login` again."
    )
