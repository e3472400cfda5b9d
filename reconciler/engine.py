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

import psutil

from reconciler.actors import Actors
from reconciler.budget import Budget
from reconciler.environments import EnvironmentStore
from reconciler.errors import TrackingError
from reconciler.federation.data import DataCatalog
from reconciler.journal import Journal
from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.model import Runtime, ServiceSpec
from reconciler.source import GitRepo, MLRepos
from reconciler.spec import OperatorConfig, load_operator_config
from reconciler.stages.model import Tools
from reconciler.status import StatusBranch
from reconciler.tracking import Tracking, tracking_root, tracking_service

OPERATOR_FILE = "flops.yaml"


def cache_directory() -> Path:
    """The cache that all states of a user share: environments, datasets, ML repos; `FLOPS_CACHE` moves it."""
    configured = os.environ.get("FLOPS_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "flops-gitops"


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
    budget: Budget
    clock: Callable[[], float] = time.time
    _servers: dict[str, Tracking] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tracking(self, customer: str) -> Tracking:
        """The tracking client of a customer; starts the customer's server when it is ours and not running."""
        with self._lock:
            if customer not in self._servers:
                self._servers[customer] = Tracking(self.tracking_uri(customer))
            return self._servers[customer]

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
                f"The tracking server of customer {customer} does not answer.",
                cure="See its log with `flops logs --service`.",
                transient=True,
            )
        return f"http://{service.address}"

    def tracking_spec(self, customer: str) -> ServiceSpec:
        """The service that is the tracking server of a customer."""
        return tracking_service(customer, self.state / "tracking", instance=self.config.instance)

    def actors(self) -> Actors:
        """Whoever starts the containers of training runs."""
        # The SDK takes a fifth of a second to import: commands that start no container need none of it.
        from reconciler.runtimes.docker_actors import DockerActors
        from reconciler.runtimes.docker_engine import DockerEngine

        return DockerActors(DockerEngine(self.config.docker_host), instance=self.config.instance)

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
            checks=cache_directory() / "checks",
            placement=self.config.runtime,
            actors=self.actors,
            instance=self.config.instance,
            clock=time.monotonic,
        )


def read_config(repo_dir: Path) -> OperatorConfig:
    """The operator's settings from the work tree, not from a commit: tenants cannot change them by a merge."""
    path = repo_dir / OPERATOR_FILE
    return load_operator_config(path.read_bytes(), OPERATOR_FILE) if path.is_file() else OperatorConfig()


def open_engine(repo_dir: Path, state: Path | None = None) -> Engine:
    """Put an engine together; starts nothing."""
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
        runtime=DockerRuntime(state / "services", config.docker_host, instance=config.instance),
        environments=EnvironmentStore(cache / "environments"),
        catalog=DataCatalog(cache / "data", {tag: Path(path) for tag, path in config.data_directories.items()}),
        ml_repos=MLRepos(repo, cache / "ml-repos"),
        status=StatusBranch(repo, config.instance),
        budget=Budget(memory, budget.vcpus or os.cpu_count() or 1),
    )
