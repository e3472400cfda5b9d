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

from reconciler.budget import Budget
from reconciler.environments import EnvironmentStore
from reconciler.errors import TrackingError
from reconciler.federation.data import DataCatalog
from reconciler.journal import Journal
from reconciler.runtimes.model import Runtime, ServiceSpec
from reconciler.runtimes.process import ProcessRuntime
from reconciler.source import GitRepo, MLRepos
from reconciler.spec import OperatorConfig, load_operator_config
from reconciler.stages.model import Tools
from reconciler.status import StatusBranch
from reconciler.tracking import Tracking, tracking_root, tracking_service

OPERATOR_FILE = "flops.yaml"
RACY_SECONDS = 2.0
"""A file written so lately may be written again without a newer time: what it says is not trusted to stay (as Git's index)."""


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
        runtime=ProcessRuntime(state / "services", ports=config.ports.range() if config.ports else None),
        environments=EnvironmentStore(cache / "environments"),
        catalog=DataCatalog(cache / "data", {tag: Path(path) for tag, path in config.data_directories.items()}),
        ml_repos=MLRepos(repo, cache / "ml-repos"),
        status=StatusBranch(repo, config.instance),
        budget=Budget(memory, budget.vcpus or os.cpu_count() or 1),
    )
