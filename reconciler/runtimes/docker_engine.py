"""The Docker engine (or Podman's, which speaks the same): connecting, images, and the fence around every container.

Every container that the reconciler starts is made here, so that none has more than the others: no capability, no new
privileges, not root, a read-only root with a small `/tmp`, limits of memory, CPU and processes, and no way to the outside.
Only engines of this machine can be used: containers are reached over a bridge or a mounted socket.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import LogConfig, Mount
from requests.exceptions import RequestException

from reconciler.errors import ServingError
from reconciler.podman import is_podman

DEFAULT_HOST = "unix:///var/run/docker.sock"
NOBODY = "65532:65532"
"""Who containers run as when their image would be root."""
PIDS_LIMIT = 512
SCRATCH_MB = 256
SOCKETS, SOCKET = "/run/flops", "http.sock"
"""Where a container without a network finds the folder for its socket, and that socket's name."""
LABEL = "flops.home"
"""On every container: which service or training run it belongs to."""
OWNER = "flops.owner"
"""On everything that is made in an engine: which state directory it belongs to, so that nobody removes another's."""
_TIMEOUT = 60
_SOME_VERSION = "1.41"
"""For a ping, which has none in its address."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A path of this machine that a container sees, at `target`."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container as it should be made; `image` is an id or a reference that the engine has.

    `network` is the name of an internal network, or None for none at all.
    """

    name: str
    image: str
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_mb: int | None = None
    vcpus: float | None = None
    network: str | None = None
    binds: Sequence[Bind] = ()
    user: str | None = None
    workdir: str | None = None


def owner_of(state: Path) -> str:
    """The owner of what is made for a state directory."""
    return hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:24]


class DockerEngine:
    """One engine, connected to when it is first needed."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._client: docker.DockerClient | None = None

    @property
    def client(self) -> docker.DockerClient:
        """The SDK's client. Raises ServingError FL7101 when the engine does not answer."""
        if not self.host.startswith("unix://"):
            raise ServingError(
                "FL7106",
                f"The engine at {self.host} is not on this machine.",
                cure="Name a socket, `docker_host: unix:///…` in flops.yaml or DOCKER_HOST.",
            )
        if self._client is None:
            with self.answering():
                client = docker.DockerClient(base_url=self.host, timeout=_TIMEOUT)
                client.ping()
                self._client = client
        return self._client

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Maps the SDK's errors: an engine that is gone is transient (FL7101), one that refuses is not (FL7103)."""
        try:
            yield
        except APIError as error:
            # A daemon that is going down answers some requests with 5xx before its socket is gone.
            if error.is_server_error() and not self.answers():
                raise self._gone(error) from error
            raise ServingError(
                "FL7103",
                f"The Docker engine refuses: {_said(error)}.",
                cure="Mend what it names; `docker info` shows what the engine can.",
                transient=bool(error.is_server_error()),
            ) from error
        except (DockerException, RequestException, OSError) as error:
            raise self._gone(error) from error

    def answers(self) -> bool:
        """Whether the engine answers a ping now."""
        with suppress(DockerException, RequestException, OSError):
            # With a version, or the SDK asks for the engine's first, which takes Podman seconds on a busy machine.
            client = docker.APIClient(base_url=self.host, version=_SOME_VERSION, timeout=2)
            try:
                return bool(client.get(f"{client.base_url}/_ping").ok)
            finally:
                client.close()
        return False

    def image_id(self, reference: str) -> str:
        """The id of an image that the engine has, or can pull. Raises ServingError FL7102."""
        images = self.client.images
        with self.answering():
            try:
                return str(images.get(reference).id)
            except ImageNotFound:
                pass
            try:
                return str(images.pull(reference).id)
            except (APIError, ImageNotFound) as error:
                raise ServingError(
                    "FL7102",
                    f"The Docker engine has no image {reference} and cannot pull it: {_said(error)}.",
                    cure="Build it again (`flops images`), or let the engine reach the registry.",
                    transient="not found" not in _said(error).lower(),
                ) from error

    def internal_network(self, name: str, labels: Mapping[str, str]) -> str:
        """A network without a way out whose containers do not see each other; made when it is not there."""
        client = self.client
        with self.answering():
            if not client.networks.list(names=[f"^{name}$"]):
                options = {"isolate": "true"} if is_podman(client) else {"com.docker.network.bridge.enable_icc": "false"}
                with suppress_conflict():
                    client.networks.create(name, driver="bridge", internal=True, options=options, labels=dict(labels))
        return name

    def create(self, spec: ContainerSpec) -> Container:
        """A container, made and not started."""
        client = self.client
        with self.answering():
            user = spec.user or str(client.images.get(spec.image).attrs["Config"].get("User") or "")
            return client.containers.create(
                spec.image,
                # As the entry point, not as arguments of the image's own: `command` is the whole command line.
                entrypoint=list(spec.command) or None,
                name=spec.name,
                environment={"HOME": "/tmp", "TMPDIR": "/tmp", **spec.env},  # noqa: S108 – the container's own
                labels=dict(spec.labels),
                user=NOBODY if user.split(":")[0] in ("", "0", "root") else user,
                working_dir=spec.workdir,
                read_only=True,
                tmpfs={"/tmp": f"size={SCRATCH_MB}m,mode=1777,nosuid,nodev"},  # noqa: S108
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                pids_limit=PIDS_LIMIT,
                mem_limit=f"{spec.memory_mb}m" if spec.memory_mb else None,
                memswap_limit=f"{spec.memory_mb}m" if spec.memory_mb else None,
                nano_cpus=int(spec.vcpus * 1e9) if spec.vcpus else None,
                init=True,
                network=spec.network,
                network_mode=None if spec.network else "none",
                mounts=[Mount(bind.target, bind.source, "bind", read_only=not bind.writable) for bind in spec.binds],
                # The supervisor asks for the health itself; an image's own check would start a process for each question.
                healthcheck={"test": ["NONE"]},
                log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "5m", "max-file": "1"}),
                detach=True,
            )

    def containers(self, home: str, *, label: str = LABEL) -> list[Container]:
        """The containers with a label, by default those of a service or run, running or not."""
        client = self.client
        with self.answering():
            return list(client.containers.list(all=True, filters={"label": f"{label}={home}"}, ignore_removed=True))

    def networks(self, owner: str) -> list[Network]:
        """The networks of an owner, with what is in them."""
        client = self.client
        with self.answering():
            return list(client.networks.list(filters={"label": f"{OWNER}={owner}"}, greedy=True))

    def remove_network(self, network: Network) -> None:
        """Remove a network; nothing when it has gone or is in use again."""
        with self.answering(), suppress(NotFound):
            try:
                network.remove()
            except APIError as error:
                if error.status_code != 403:  # it has endpoints
                    raise

    def remove(self, container: Container) -> None:
        """Kill and remove a container; nothing when it has gone."""
        with self.answering():
            try:
                container.remove(force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != 409:  # somebody else removes it at this moment
                    raise

    def _gone(self, error: Exception) -> ServingError:
        self._client = None
        return ServingError(
            "FL7101",
            f"The Docker engine at {self.host} does not answer: {_said(error)}.",
            cure="Start it, or name its socket in `docker_host` of flops.yaml or in DOCKER_HOST.",
            transient=True,
        )


@contextmanager
def suppress_conflict() -> Iterator[None]:
    """What somebody else made at the same moment is there, and that is all that was wanted."""
    try:
        yield
    except APIError as error:
        if error.status_code != 409:
            raise


def ending(container: Container) -> tuple[int, bool]:
    """Exit code of a container that has ended, and whether the kernel killed it for its memory."""
    container.reload()
    state: Mapping[str, Any] = container.attrs["State"]
    return int(state["ExitCode"]), bool(state.get("OOMKilled"))


def _said(error: Exception) -> str:
    text = str(error.explanation or error) if isinstance(error, APIError) else str(error)
    return " ".join(text.split())[:300].rstrip(".")
