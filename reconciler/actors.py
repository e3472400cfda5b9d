"""The words between training and containers: an actor is one isolated process of a training run – aggregator, learner, exporter.

`federation` says what an actor needs and knows no engine; `runtimes` starts it and knows no learning. Nothing is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

QUIET: Final = {
    "PYTHONHASHSEED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
"""In every process of a training run, and in every image: no hub, no telemetry, and hashes that do not differ from run to run."""


@dataclass(frozen=True, slots=True)
class ActorImages:
    """What actors are made of: an image a role (ids, or references that the engine has or can pull).

    `python` is the interpreter in the image, which finds `flops_runtime`. `binds` are paths of this machine that every actor
    sees read-only at the same place: an environment that is not in the image, for instance.
    """

    learner: str
    aggregator: str
    python: str = "python3"
    binds: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def of(self, role: str) -> str:
        """The image of a role; all that run the ML repo's code have the learner's."""
        return self.aggregator if role in ("aggregator", "cluster") else self.learner


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """One actor: no network, no rights, and of this machine only what is named here.

    `door` is the folder with the socket at which it asks for its work; it appears as `target`. `readable` and `writable` appear
    where they are. `memory_mb` is all that its processes may take together, libraries and data too.
    """

    home: str
    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    labels: Mapping[str, str]
    door: Path
    target: str
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    memory_mb: int
    vcpus: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How an actor ended."""

    code: int
    out_of_memory: bool


class Actor(Protocol):
    """A started actor. Every method raises FlopsError when the engine is gone."""

    def wait(self) -> Ending:
        """Waits until it has ended."""

    def follow(self, fd: int) -> None:
        """Writes what it prints to a file descriptor until it ends."""

    def kill(self) -> None:
        """Ends it now; nothing when it has ended."""

    def remove(self) -> None:
        """Ends it and removes what is left of it."""


class Actors(Protocol):
    """Whoever can start actors."""

    def start(self, spec: ActorSpec) -> Actor:
        """A new actor. Raises FlopsError."""

    def enter(self, home: str) -> None:
        """Takes possession of a home, and removes what an earlier run with it left. Raises FlopsError."""

    def leave(self, home: str) -> None:
        """Gives it back."""
