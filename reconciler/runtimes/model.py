"""What every runtime can do: show, start or roll over, and remove services."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Verify = Callable[[str], None]
"""Called with the private address of a new version before it takes over; raises to keep the old one in service."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service as it should run.

    With `socket="inherited"` the server gets the listening socket (`--fd N`), a private one (`--private-fd N`) and a control
    pipe (`--control-fd N`), so that versions change without a failed request. With "own" it listens by itself, on the port
    that takes the place of `{port}` in `argv`; a version that fails then gives the port back to the one before.

    The server's environment is `env` and PATH, LANG, TZ, HOME, TMPDIR (the last two: a folder of its own), nothing else.
    Health is asked for every `health_interval` seconds, three times in vain within `health_timeout` each mean a restart; so
    does more resident memory than `memory_mb`. Without a `port` one is chosen once and kept for this name.

    With an `image` the server is a container: `argv` is its command (empty: the image's own), `memory_mb` and `vcpus` are
    limits that the kernel enforces, SIGTERM tells it to drain, and `cwd` and `socket` mean nothing. With `{socket}` in `argv` it
    listens on that Unix socket and has no network at all; else on `container_port` (`{port}`) of all addresses of an internal
    network; `readable` are paths of this machine that it sees, read-only and at the same place. A runtime that knows no images
    refuses such a spec.

    `secrets` are variables too, which are written to no file and masked in the server's log. What they are is no part of what is
    compared: a service that runs is not renewed for another value alone.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    health_path: str
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    port: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    socket: Literal["inherited", "own"] = "inherited"
    start_timeout: float = 60.0
    memory_mb: int | None = None
    vcpus: float | None = None
    image: str | None = None
    readable: tuple[Path, ...] = ()
    container_port: int = 8080
    health_interval: float = 2.0
    health_timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """A service as it is; `address` is host:port, `started_at` seconds since the epoch, `error` why it is not healthy."""

    name: str
    address: str
    healthy: bool
    labels: Mapping[str, str]
    pid: int | None = None
    restarts: int = 0
    started_at: float = 0.0
    error: str = ""


class Runtime(Protocol):
    """A place where services run."""

    def observe(self) -> list[Service]:
        """Every service that was applied and not removed, with its health as last seen."""

    def apply(self, spec: ServiceSpec, verify: Verify | None = None) -> Service:
        """Make a service run as declared: nothing when it does, else a rollover. Raises ServingError; the old one stays."""

    def remove(self, name: str) -> None:
        """Stop a service and forget it; nothing when there is none."""

    def logs(self, name: str, lines: int = 200) -> Iterator[str]:
        """The last lines of a service's log."""
