"""The Pythons of this machine, and which of them an ML repo gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from packaging.specifiers import SpecifierSet

from reconciler.environments.model import PythonWish
from reconciler.environments.uv_command import UvFailed, run_uv
from reconciler.errors import BuildError

OLDEST_PYTHON = (3, 10)
"""Flower needs it."""
COMMON = "3.11"
"""What an ML repo gets that asks for none: every flavour has wheels for it."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython: its minor version (`3.11`), its full one (`3.11.2`) and its path."""

    version: str
    full: str
    path: str

    @property
    def number(self) -> tuple[int, ...]:
        """For ordering."""
        return tuple(int(part) for part in self.version.split("."))


def interpreters() -> list[Interpreter]:
    """Every CPython that Flower runs on, one of each minor version, oldest first. Raises BuildError."""
    try:
        out = run_uv(["python", "list", "--only-installed", "--output-format", "json"], search=_pyenv())
    except UvFailed as failed:
        raise BuildError("FL3010", f"No Python was found: {failed.said}.", cure="Install one.", transient=True) from failed
    found: dict[str, Interpreter] = {}
    for item in orjson.loads(out):
        parts = item["version_parts"]
        version = f"{parts['major']}.{parts['minor']}"
        released = not any(mark in item["version"] for mark in ("a", "b", "rc"))
        common = item.get("implementation") == "cpython" and item.get("variant", "default") == "default"
        if common and released and (parts["major"], parts["minor"]) >= OLDEST_PYTHON:
            found.setdefault(version, Interpreter(version, item["version"], item["path"]))
    if not found:
        raise BuildError("FL3010", "There is no Python 3.10 or later.", cure="Install one on this machine.", transient=True)
    return sorted(found.values(), key=lambda item: item.number)


def choose(wish: PythonWish | None, found: Sequence[Interpreter]) -> tuple[Interpreter, tuple[str, ...]]:
    """The interpreter for a wish, and what is to be said about it: the nearest one when none meets it."""
    wanted = SpecifierSet(wish.specifier if wish else "")
    meeting = [item for item in found if wanted.contains(item.full) or wanted.contains(item.version)]
    if meeting:
        return next((item for item in meeting if item.version == COMMON), meeting[-1]), ()
    named = [tuple(int(part) for part in item.version.split(".")[:2]) for item in wanted]
    near = named[0] if named else OLDEST_PYTHON
    nearest = min(found, key=lambda item: (abs(item.number[1] - near[-1]), -item.number[1]))
    asked = wish.text if wish else ""
    return nearest, (f"{asked} is not on this machine; Python {nearest.version} is used instead",)


def _pyenv() -> list[Path]:
    """pyenv's shims answer for chosen versions only; the interpreters themselves always do."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return sorted(root.glob("versions/*/bin"))
