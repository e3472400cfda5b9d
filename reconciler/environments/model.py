"""What an environment is made from and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reconciler.errors import Where


@dataclass(frozen=True, slots=True)
class DependencyReport:
    """What was translated, dropped or replaced, in words for a data scientist."""

    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One PEP 508 requirement, the place that it stands at, and the hashes that its files may have (none: any)."""

    text: str
    where: Where
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PythonWish:
    """The Python that an ML repo asks for: as it is written there, and as a PEP 440 specifier of `major.minor.micro`."""

    text: str
    specifier: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an ML repo asks for. Constraints limit a version without asking for the package."""

    file: str
    requirements: tuple[Wanted, ...]
    constraints: tuple[Wanted, ...] = ()
    python: PythonWish | None = None
    report: DependencyReport = field(default_factory=DependencyReport)


@dataclass(frozen=True, slots=True)
class Lock:
    """Exact versions with hashes for one Python (`3.11`); `digest` is SHA-256 over the Python version and the text."""

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
