"""Every error that a user can meet, in one tree.

    FlopsError                  code, cause, cure, where
    ├── SpecError               FL1xxx  an SLA, mock data or operator file that cannot be accepted
    ├── SourceError             FL2xxx  Git: repositories, refs, ML repos
    ├── BuildError              FL3xxx  environments: dependencies, interpreters, locks
    ├── DataError               FL4xxx  datasets: fetching, checking, sharding
    ├── TrainingError           FL5xxx  federated learning: the ML repo's code, learners, quorum
    ├── TrackingError           FL6xxx  MLflow: server, runs, registry, gate
    ├── ImageError              FL61xx  images: build plans, base images, layers, registries
    ├── ServingError            FL7xxx  runtimes and inference: ports, health, verification
    ├── StatusError             FL8xxx  the status branch
    ├── WebError                FL93xx  webhooks and the web server
    ├── NotifyError             FL94xx  telling people outside of Git: forges, webhooks of ours
    ├── SecretError             FL95xx, FL96xx  secrets that settings and SLAs refer to
    └── ControllerError         FL9xxx  the loop, the journal, the disk

Every code has one line in `error_codes.CODES`. An error says what happened (`cause`), what to do (`cure`) and, where there is a
file behind it, where (`where`). `transient` errors are retried with backoff, the others wait for new content (`Stalled`).
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file of the GitOps repo or an ML repo; line and column count from 1, 0 means unknown."""

    path: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.path
        return f"{self.path}:{self.line}:{self.column}" if self.column else f"{self.path}:{self.line}"


class FlopsError(Exception):
    """An error with a stable code, one sentence of cause and one of cure."""

    def __init__(self, code: str, cause: str, *, cure: str, where: Where | None = None, transient: bool = False) -> None:
        super().__init__(cause)
        self.code = code
        self.cause = cause
        self.cure = cure
        self.where = where
        self.transient = transient

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole, as it crosses from one of our processes to another."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        return f"{prefix}{self.code} {self.cause} {self.cure}"

    def to_dict(self) -> dict[str, str | int | bool]:
        """The error as flat JSON, as it stands in status, events and `--format json`."""
        return {
            "code": self.code,
            "cause": self.cause,
            "cure": self.cure,
            "path": self.where.path if self.where else "",
            "line": self.where.line if self.where else 0,
            "column": self.where.column if self.where else 0,
            "transient": self.transient,
        }


class SpecError(FlopsError):
    """An SLA, mock-data or operator file that cannot be accepted."""


class SpecErrors(Exception):  # noqa: N818 – it is several errors
    """All the errors of one file, so that a user mends them in one go."""

    def __init__(self, errors: Sequence[SpecError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


class SourceError(FlopsError):
    """Git: a repository, a ref or an ML repo that cannot be read."""


class BuildError(FlopsError):
    """An environment that cannot be locked or built."""


class DataError(FlopsError):
    """A dataset that cannot be fetched, checked or sharded."""


class TrainingError(FlopsError):
    """Federated learning that cannot go on: the ML repo's code, the learners or the quorum."""


class TrackingError(FlopsError):
    """MLflow: the tracking server, runs, the registry or the gate."""


class ImageError(FlopsError):
    """An image that cannot be planned, assembled, pushed or served."""


class ServingError(FlopsError):
    """A service that cannot be started, is not healthy, or answers wrongly."""


class StatusError(FlopsError):
    """The status branch cannot be written."""


class WebError(FlopsError):
    """A webhook or request that is refused, or a web server that cannot be."""


class NotifyError(FlopsError):
    """A forge or webhook that people should be told by, and that cannot be reached or refuses."""

    pause: float = 0.0
    """Seconds after which it makes sense to ask again; 0 where nothing was said."""


class SecretError(FlopsError):
    """A secret that settings refer to and that is not there or cannot be used."""


class ControllerError(FlopsError):
    """The loop, the journal or the machine under them."""
