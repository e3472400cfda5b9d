"""What nobody looks after any more in an engine: actors of a reconciler that was killed, containers of services that are gone.

Found by labels, never by names: what has another owner is another state directory's. Whether somebody looks after a container says
its lock (`docker_claim`), so this may be asked and done beside a reconciler that works. Volumes need no search: none is made, and
those that an image declares go with their container.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docker.models.containers import Container
from docker.models.networks import Network

from reconciler.runtimes.docker import uses_fronts
from reconciler.runtimes.docker_claim import CLAIM, claim_of
from reconciler.runtimes.docker_engine import OWNER, DockerEngine, owner_of


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Containers and networks, to be shown or removed."""

    containers: tuple[Container, ...]
    networks: tuple[Network, ...]

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return [*(str(item.name) for item in self.containers), *(str(item.name) for item in self.networks)]


def leftovers(engine: DockerEngine, state: Path) -> Leftovers:
    """What is left over of a state directory. Raises ServingError when the engine does not answer."""
    owner = owner_of(state)
    containers = tuple(item for item in engine.containers(owner, label=OWNER) if _is_left(item))
    return Leftovers(containers, () if uses_fronts(state) else tuple(_unused_networks(engine, owner)))


def remove_leftovers(engine: DockerEngine, state: Path) -> list[str]:
    """Remove them; their names. Raises ServingError when the engine does not answer."""
    gone = leftovers(engine, state).containers
    for container in gone:
        engine.remove(container)
        claim_of(container).forget()
    networks = leftovers(engine, state).networks  # without the containers that were in them
    for network in networks:
        engine.remove_network(network)
    return Leftovers(gone, networks).names


def _is_left(container: Container) -> bool:
    if CLAIM not in container.labels or (claim := claim_of(container)).is_held():
        return False
    # A server's container without a front waits for the next one, as long as its service is declared.
    service = claim.path.parent.parent
    return container.labels.get("flops.kind") == "actor" or not (service / "spec.json").is_file()


def _unused_networks(engine: DockerEngine, owner: str) -> Iterator[Network]:
    for network in engine.networks(owner):
        if not network.attrs.get("Containers"):
            yield network
