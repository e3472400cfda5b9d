"""Where the parts are put together: paths, operator settings, and one instance of each effect.

Nothing else reads the environment or chooses a path.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from reconciler.actors import Actors
from reconciler.budget import Budget
from reconciler.environments import Environment, EnvironmentStore, Lock
from reconciler.errors import SecretError, SpecErrors, TrackingError, TrainingError
from reconciler.federation.data import CatalogApart, DataCatalog
from reconciler.images.store import ImageStore, ProjectImage
from reconciler.journal import Journal
from reconciler.policy import allows
from reconciler.redaction import MIN_LENGTH, learn_environment
from reconciler.runtimes.docker import ACTORS, SERVICES, DockerRuntime, uses_containers
from reconciler.runtimes.model import Runtime, ServiceSpec
from reconciler.secrets import resolve
from reconciler.source import GitRepo, MLRepos
from reconciler.source.nodes import read_nodes
from reconciler.spec import OperatorConfig, load_operator_config
from reconciler.stages.model import Tools
from reconciler.status import StatusBranch
from reconciler.telemetry import Telemetry
from reconciler.tracking import Tracking, tracking_root, tracking_service

if TYPE_CHECKING:
    from reconciler.nodes.federation import Federation
    from reconciler.runtimes.docker_engine import DockerEngine

OPERATOR_FILE = "flops.yaml"
RACY_SECONDS = 2.0
"""A file written so lately may be written again without a newer time: what it says is not trusted to stay (as Git's index)."""


def cache_directory() -> Path:
    """The cache that all states of a user share: environments, datasets, ML repos; `FLOPS_CACHE` moves it."""
    configured = os.environ.get("FLOPS_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "flops-gitops"


def image_layout(state: Path) -> Path:
    """The image store of a state directory."""
    return state / "images"


@dataclass(slots=True)
class Engine:
    """One instance of the reconciler over one GitOps repo."""

    repo: GitRepo
    state: Path
    config: OperatorConfig
    journal: Journal
    runtime: Runtime
    environments: EnvironmentStore
    catalog: DataCatalog
    ml_repos: MLRepos
    status: StatusBranch
    images: ImageStore
    budget: Budget
    clock: Callable[[], float] = time.time
    telemetry: Telemetry = field(default_factory=Telemetry)
    _servers: dict[str, Tracking] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    def tracking(self, customer: str) -> Tracking:
        """The tracking client of a customer; starts the customer's server when it is ours and not running."""
        with self._locks.setdefault(customer, threading.Lock()):
            if customer not in self._servers:
                self._servers[customer] = Tracking(self.tracking_uri(customer))
            return self._servers[customer]

    def forget_tracking(self, customer: str) -> None:
        """The server did not answer: look after it before it is asked again, as it may run elsewhere or not at all."""
        self._servers.pop(customer, None)

    def registry_state(self, customer: str) -> object:
        """What changes whenever a registry of ours does: its files. None where that cannot be known, so that it is asked."""
        if self.external_tracking:
            return None
        root = tracking_root(customer, self.state / "tracking")
        found = []
        for name in ("mlflow.db", "mlflow.db-wal"):
            try:
                stat = (root / name).stat()
            except OSError:
                found.append((0, 0, 0))
                continue
            if self.clock() - stat.st_mtime < RACY_SECONDS:
                return None
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def tracking_if_any(self, customer: str) -> Tracking | None:
        """As `tracking`, but None for a customer of ours that has no registry yet."""
        made = (tracking_root(customer, self.state / "tracking") / "mlflow.db").exists()
        return self.tracking(customer) if self.external_tracking or made else None

    @property
    def external_tracking(self) -> str:
        """The address of a tracking server that is not ours, or nothing."""
        return os.environ.get("MLFLOW_TRACKING_URI", "") or self.config.tracking_uri or ""

    def tracking_uri(self, customer: str) -> str:
        """Where the tracking server of a customer answers."""
        if self.external_tracking:
            return self.external_tracking
        service = self.runtime.apply(self.tracking_spec(customer))
        if not service.healthy:
            raise TrackingError(
                "FL6030",
                f"The tracking server of customer {customer} does not answer: {service.error or 'it gives no reason'}.",
                cure="See its log with `flops logs --service`.",
                transient=True,
            )
        return f"http://{service.address}"

    def tracking_spec(self, customer: str) -> ServiceSpec:
        """The service that is the tracking server of a customer."""
        return tracking_service(customer, self.state / "tracking", instance=self.config.instance)

    def place(self, image: ProjectImage, cancelled: Callable[[], bool]) -> str:
        """An image of ours in the container engine of this machine; its id there."""
        from reconciler.images.engine import into_engine
        from reconciler.images.interpreter import host_platform

        return into_engine(
            self._container_engine().client,
            self.images.layout,
            image.name,
            host_platform(),
            owner=self._owner(),
            tell=lambda _line: None,
            cancelled=cancelled,
        )

    def actors(self) -> Actors:
        """Whoever starts the containers of training runs."""
        from reconciler.runtimes.docker_actors import DockerActors

        return DockerActors(self._container_engine(), self.state / ACTORS, instance=self.config.instance)

    def remove_leftovers(self, *, dry_run: bool = False) -> list[str]:
        """Removes what a killed reconciler or a removed project left in the container engine; its names. Raises ServingError."""
        if not uses_containers(self.state):
            return []
        from reconciler.runtimes.docker_leftovers import leftovers, remove_leftovers

        engine = self._container_engine()
        return leftovers(engine, self.state).names if dry_run else remove_leftovers(engine, self.state)

    def remove_engine_images(self, *, dry_run: bool = False) -> list[str]:
        """Takes from the container engine what the store has no more; its names there. Raises ImageError."""
        if not uses_containers(self.state):
            return []
        from reconciler.images.engine import remove_from_engine

        return remove_from_engine(self._container_engine().client, self._owner(), self.images.names(), dry_run=dry_run)

    def _owner(self) -> str:
        from reconciler.runtimes.docker_engine import owner_of

        return owner_of(self.state)

    def _container_engine(self) -> DockerEngine:
        # The SDK takes a fifth of a second to import: commands that start no container need none of it.
        from reconciler.runtimes.docker_engine import DockerEngine

        return DockerEngine(self.config.docker_host)

    def federation(self, name: str, commit: str) -> Federation:
        """A federation with the nodes that a commit declares. Raises TrainingError for an unknown one, or an invalid file."""
        config = self.config.federations.get(name)
        if config is None:
            known = ", ".join(self.config.federations) or "none"
            raise TrainingError(
                "FL5805", f"There is no federation {name!r}.", cure=f"Name one of flops.yaml's `federations` ({known})."
            )
        # Flower's protocol takes 40 MB: only who trains over nodes needs it.
        from reconciler.nodes.federation import Federation, declared

        try:
            nodes = declared(read_nodes(self.repo.path, commit), name)
        except SpecErrors as refused:
            first = refused.errors[0]
            # Transient: no project's own content changes when the file is mended.
            raise TrainingError(
                "FL5721", f"A file of nodes/ is not valid: {first.cause}", cure=first.cure, where=first.where, transient=True
            ) from refused
        return Federation(name, config, nodes, self.state / "federations" / name, self.runtime, instance=self.config.instance)

    def secret(self, customer: str, name: str) -> str:
        """The value of a secret for a project of a customer, read anew each time.

        Raises SecretError: FL9505 when policy does not allow it, FL9507 when it is too short, FL9506 (transient) when it cannot be
        had.
        """
        known, cure = self.config.secrets.get(name), "Ask the operator: `secrets` and `policy` in flops.yaml decide."
        if known is None or not allows(self.config.policy.secrets, name) or not allows(known.customers, customer):
            raise SecretError("FL9505", f"The secret {name!r} may not be used by {customer}.", cure=cure)
        try:
            value = resolve(known.secret_ref, environ=os.environ).reveal()
        except SecretError as error:
            # Where it is, is the operator's business: `flops doctor` says it.
            cause = f"The secret {name!r} cannot be had ({error.code})."
            raise SecretError(
                "FL9506", cause, cure="Ask the operator to run `flops doctor`; it is tried again.", transient=True
            ) from None
        if len(value) < MIN_LENGTH:
            cause = f"The secret {name!r} has fewer than {MIN_LENGTH} characters: it could be guessed, and not be masked."
            raise SecretError("FL9507", cause, cure="Ask the operator for a longer one.")
        return value

    def tools(self) -> Tools:
        """What the stages may use."""
        return Tools(
            environments=self.environments,
            catalog=self.catalog,
            runtime=self.runtime,
            tracking=self.tracking,
            tracking_if_any=self.tracking_if_any,
            runs=self.state / "runs",
            bundles=self.state / "bundles",
            images=self.images,
            checks=cache_directory() / "checks",
            placement=self.config.runtime,
            actors=self.actors,
            place=self.place,
            bytecode=_bytecode,
            instance=self.config.instance,
            clock=time.monotonic,
            federation=self.federation,
            secret=self.secret,
        )


def _bytecode(environment: Environment, lock: Lock) -> Path:
    from reconciler.images.bytecode import bytecode_folder

    return bytecode_folder(environment.path, lock.digest, cache_directory())


def read_config(repo_dir: Path) -> OperatorConfig:
    """The operator's settings from the work tree, not from a commit: tenants cannot change them by a merge."""
    path = repo_dir / OPERATOR_FILE
    return load_operator_config(path.read_bytes(), OPERATOR_FILE) if path.is_file() else OperatorConfig()


def open_engine(repo_dir: Path, state: Path | None = None) -> Engine:
    """Put an engine together; starts nothing."""
    learn_environment(os.environ)
    repo = GitRepo(repo_dir)
    config = read_config(repo_dir)
    state = (state or repo_dir / ".flops").resolve()
    state.mkdir(parents=True, exist_ok=True)
    cache = cache_directory()
    budget = config.budget
    memory = budget.memory_mb or int(psutil.virtual_memory().total / 1_000_000 * 0.8)
    return Engine(
        repo=repo,
        state=state,
        config=config,
        journal=Journal(state / "journal.db", clock=time.time),
        runtime=DockerRuntime(
            state / SERVICES, config.docker_host, instance=config.instance, ports=config.ports.range() if config.ports else None
        ),
        environments=EnvironmentStore(cache / "environments"),
        catalog=CatalogApart(cache / "data", {tag: Path(path) for tag, path in config.data_directories.items()}),
        ml_repos=MLRepos(repo, cache / "ml-repos"),
        status=StatusBranch(repo, config.instance),
        images=ImageStore(
            image_layout(state),
            cache / "images",
            registry=config.images.registry,
            signing_key=repo_dir / config.images.signing_key if config.images.signing_key else None,
        ),
        budget=Budget(memory, budget.vcpus or os.cpu_count() or 1),
    )
