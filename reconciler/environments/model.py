"""What an environment is made from and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DependencyReport:
    """What was translated, dropped or replaced, in words for a data scientist."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an ML repo asks for: PEP 508 requirements with the line that each came from, and a Python version or nothing."""

    file: str
    requirements: tuple[tuple[str, int], ...]
    python: str | None
    report: DependencyReport


@dataclass(frozen=True, slots=True)
class Lock:
    """Exact versions with hashes; `digest` is SHA-256 over the Python version and the text."""

    digest: str
    python: str
    requirements: str
    report: DependencyReport


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment on disk; `built` is False when it was there, `seconds` is what it took now."""

    digest: str
    path: Path
    python: Path
    built: bool
    seconds: float
