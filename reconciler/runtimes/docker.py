"""The Docker runtime: services with an image are containers, the others processes as ever, all of them below supervisors.

It is the process runtime with another kind of server: a *front* (`docker_front`) that the supervisor starts, drains and
restarts as it does any server, and that has the container. So a project that changes from a process to a container, from
one version to the next or back again, keeps its port and fails no request. What runs is looked at in the engine by labels.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.digests import digest_of
from reconciler.errors import ServingError
from reconciler.runtimes.model import Service, ServiceSpec, Verify
from reconciler.runtimes.process import ProcessRuntime

if TYPE_CHECKING:
    from reconciler.runtimes.docker_engine import DockerEngine

FRONTS = "fronts"
PATIENCE = 5.0
_CURES = {
    "FL7101": "Start the engine; it is tried again.",
    "FL7103": "Mend what the engine names.",
    "FL7104": "Raise `deployment.resources.memory` (or `resource_constraints.memory`); the version before stays in service.",
}


SERVICES, ACTORS = "services", "actors"
"""Folders of a state directory: the inventory of services, and the locks of training runs in containers."""


def uses_fronts(state: Path) -> bool:
    """Whether a service of a state directory is, or was, a container."""
    return any((state / SERVICES).glob(f"*/{FRONTS}"))


def uses_containers(state: Path) -> bool:
    """Whether anything of a state directory may be in a container engine: else none has to be asked."""
    return (state / ACTORS).is_dir() or uses_fronts(state)


class DockerRuntime:
    """Containers of one engine (`host`, else DOCKER_HOST, else the usual socket) and processes, in one inventory.

    `root` is that inventory, a folder in the state directory.
    """

    def __init__(self, root: Path, host: str | None = None, *, instance: str = "default", ports: range | None = None) -> None:
        self._root = root.absolute()
        self._host = host
        self._instance = instance
        self._processes = ProcessRuntime(root, ports=ports)

    @cached_property
    def _engine(self) -> DockerEngine:
        # The SDK takes a fifth of a second to import: commands that only look need none of it.
        from reconciler.runtimes.docker_engine import DockerEngine

        return DockerEngine(self._host)

    def observe(self) -> list[Service]:
        """Every service, container or not, as its supervisor last saw it."""
        return self._processes.observe()

    def apply(self, spec: ServiceSpec, verify: Verify | None = None) -> Service:
        """Start or roll over, to or from a container. Raises ServingError; then what ran before still runs."""
        if spec.image is None:
            return self._processes.apply(spec, verify)
        from reconciler.runtimes.docker_claim import remove_orphans

        fronted, content = self._fronted(spec, self._engine.image_id(spec.image))
        try:
            return self._processes.apply(fronted, verify)
        except ServingError as error:
            # Its supervisor has killed the front of the version that is refused; the container goes here.
            with suppress(ServingError):
                remove_orphans(self._engine, self._home(spec.name), content, PATIENCE)
            for code, cure in _CURES.items():
                if f"[{code}] " in error.cause:
                    cause = error.cause.partition(f"[{code}] ")[2]
                    raise ServingError(code, f"{cause[:1].upper()}{cause[1:]}", cure=cure, transient=code == "FL7101") from error
            raise

    def remove(self, name: str) -> None:
        """Stop a service and its containers and forget it; nothing when there is none."""
        boxed = (self._root / name / FRONTS).is_dir()
        self._processes.remove(name)
        if not boxed:
            return
        # A front removes its container itself; only one that was killed leaves something, and only an engine that answers has it.
        with suppress(ServingError):
            for container in self._engine.containers(self._home(name)):
                self._engine.remove(container)

    def logs(self, name: str, lines: int = 200) -> Iterator[str]:
        """The last lines of a service's log: what the container wrote, and what became of it."""
        return self._processes.logs(name, lines)

    def _fronted(self, spec: ServiceSpec, image_id: str) -> tuple[ServiceSpec, str]:
        """The front's process, and the digest of what it is to run."""
        from reconciler.runtimes.docker_claim import CONTENT, SECRET
        from reconciler.runtimes.docker_engine import LABEL, OWNER, SOCKET, SOCKETS, owner_of

        folder = self._root / spec.name / FRONTS
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        alone = any("{socket}" in item for item in spec.argv)
        places = {"{socket}": f"{SOCKETS}/{SOCKET}", "{port}": str(spec.container_port)}
        order: dict[str, Any] = {
            "host": self._engine.host,
            "name": f"flops-{self._instance}-{spec.name}",
            "image": image_id,
            "command": [_filled(item, places) for item in spec.argv],
            "env": dict(spec.env),
            "readable": [str(path) for path in spec.readable],
            "port": 0 if alone else spec.container_port,
            "network": f"flops-{self._instance}",
            "memory_mb": spec.memory_mb,
            "vcpus": spec.vcpus,
            "health_path": spec.health_path,
        }
        if spec.secrets:
            order["secrets"] = sorted(spec.secrets)
        content = digest_of([order, dict(spec.labels)])
        order["labels"] = {
            **spec.labels,
            LABEL: self._home(spec.name),
            OWNER: owner_of(self._root.parent),
            "flops.instance": self._instance,
            CONTENT: content,
        }
        fronted = replace(
            spec,
            argv=(sys.executable, "-P", "-m", "reconciler.runtimes.docker_front"),
            env={"FLOPS_CONTAINER": json.dumps(order, sort_keys=True)},
            secrets={SECRET + name: value for name, value in spec.secrets.items()},
            cwd=folder,
            socket="inherited",
            image=None,
            readable=(),
            memory_mb=None,  # the kernel's limit is the container's; the front is small
        )
        return fronted, content

    def _home(self, name: str) -> str:
        return hashlib.sha256(str(self._root / name).encode()).hexdigest()[:24]


def _filled(text: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        text = text.replace(place, value)
    return text
