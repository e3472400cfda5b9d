"""A world without machine learning: the loop, Git, the journal and the status branch are the real ones, while "training" is an
entry in memory. What the loop itself costs can be measured in it, and what it does can be tested, thousands of projects at a time.

The executor honours the same promises as the stages: idempotent by digest, nothing half done, cancelled between stages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.budget import Budget
from reconciler.engine import Engine
from reconciler.environments import EnvironmentStore
from reconciler.errors import FlopsError
from reconciler.execution import Ending, Execution, StageReport
from reconciler.federation.data import DataCatalog
from reconciler.images.reference import repository_name
from reconciler.images.store import ImageStore, image_name
from reconciler.journal import Journal
from reconciler.looking import ProjectView
from reconciler.observe import Registry
from reconciler.plan import DEPLOY_STEP, DEVELOPMENT, Change, Stage, Verb
from reconciler.runtimes.model import Service, ServiceSpec, Verify
from reconciler.source import GitRepo, MLRepos
from reconciler.spec import OperatorConfig
from reconciler.status import StatusBranch
from reconciler.tracking import ModelVersion
from reconciler.tracking.model import RunInfo

INSTANCE = "default"


@dataclass
class World:
    """What exists: runs and versions by customer, services by name. It outlives every controller."""

    runs: dict[tuple[str, str, str], RunInfo] = field(default_factory=dict)
    models: dict[str, dict[str, tuple[ModelVersion, ...]]] = field(default_factory=dict)
    """By customer and project: a registry has an index too, so a version more does not cost what all others do."""
    services: dict[str, Service] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    trained: list[tuple[str, str]] = field(default_factory=list)
    """Every training that was finished, (project, digest), in order."""
    doubles: int = 0
    """Trainings that were begun although their run was recorded: must stay 0."""
    actions: int = 0
    refuses: str = ""
    """Why nothing can be deleted, if so."""
    generation: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def versions(self, customer: str) -> list[ModelVersion]:
        """As a tracking server."""
        with self.lock:
            return [version for versions in self.models.get(customer, {}).values() for version in versions]

    def projects_with_runs(self, customer: str) -> frozenset[str]:
        """As a tracking server."""
        with self.lock:
            return frozenset(project for owner, project, _ in self.runs if owner == customer)

    def run_with_digest(self, project: str, customer: str, digest: str) -> RunInfo | None:
        """As a tracking server."""
        return self.runs.get((customer, project, digest))

    def observe(self) -> list[Service]:
        """As a runtime."""
        with self.lock:
            return list(self.services.values())

    def apply(self, spec: ServiceSpec, verify: Verify | None = None) -> Service:
        """As a runtime."""
        service = Service(spec.name, "127.0.0.1:1", healthy=True, labels=dict(spec.labels))
        if verify is not None:
            verify(service.address)
        with self.lock:
            self.services[spec.name] = service
        return service

    def remove(self, name: str) -> None:
        """As a runtime."""
        with self.lock:
            self.services.pop(name, None)

    def logs(self, name: str, lines: int = 200) -> Iterator[str]:  # noqa: ARG002 – nothing is written
        """As a runtime."""
        return iter(())

    def train(self, project: str, customer: str, digest: str) -> None:
        """Record a run, once a digest."""
        with self.lock:
            self.doubles += (customer, project, digest) in self.runs
            if (customer, project, digest) not in self.runs:
                self.trained.append((project, digest))
                self.runs[customer, project, digest] = RunInfo(f"run-{len(self.runs)}", digest, "", {"accuracy": 0.9})
                self.generation += 1

    def register(self, project: str, customer: str, digest: str, gate_digest: str) -> None:
        """A version of a run, once a digest; the alias moves to it."""
        with self.lock:
            known = self.models.setdefault(customer, {})
            versions = [item for item in known.get(project, ()) if item.digest != digest or item.gate_digest == gate_digest]
            if not any(item.digest == digest for item in versions):
                name, number = f"{customer}.{project}", str(len(known.get(project, ())) + 1)
                versions.append(ModelVersion(name, project, number, digest, f"run-{digest[:8]}", "", gate_digest))
            known[project] = tuple(replace(item, aliases=(DEVELOPMENT,) if item.digest == digest else ()) for item in versions)
            self.generation += 1

    def delete_project(self, customer: str, project: str) -> int:
        """Models and images of a project; a run that another project's model came of stays."""
        with self.lock:
            gone = self.models.get(customer, {}).pop(project, ())
            runs = {key: run for key, run in self.runs.items() if key[:2] != (customer, project)}
            gone_runs, self.runs = len(self.runs) - len(runs), runs
            self.images = {name for name in self.images if not name.startswith(f"{repository_name(customer, project)}:")}
            self.generation += 1
            return len(gone) + gone_runs


class NullImages(ImageStore):
    """The names of images that a `World` has."""

    def __init__(self, world: World) -> None:
        self._world = world

    def names(self) -> frozenset[str]:
        """What was made."""
        return frozenset(self._world.images)

    def deleted(self, names: Iterable[str]) -> frozenset[str]:  # noqa: ARG002 – there is no registry
        """Nothing."""
        return frozenset()

    def due(self, names: Iterable[str]) -> list[str]:  # noqa: ARG002 – there is no registry
        """Nothing."""
        return []


class NullEngine(Engine):
    """An engine whose registries and runtime are a `World`."""

    world: World

    def tracking_if_any(self, customer: str) -> Registry | None:  # type: ignore[override]  # noqa: ARG002
        """The world is every customer's registry."""
        return self.world

    def registry_state(self, customer: str) -> object:  # noqa: ARG002
        """The world counts its changes."""
        return self.world.generation

    def forget_tracking(self, customer: str) -> None:
        """Nothing is kept."""


def null_engine(repo_dir: Path, state: Path, world: World, config: OperatorConfig | None = None) -> NullEngine:
    """An engine over a real repo; only the world is of memory."""
    repo = GitRepo(repo_dir)
    config = config or OperatorConfig()
    state.mkdir(parents=True, exist_ok=True)
    engine = NullEngine(
        repo=repo,
        state=state,
        config=config,
        journal=Journal(state / "journal.db", clock=lambda: 0.0),
        runtime=world,
        environments=EnvironmentStore(state / "environments"),
        catalog=DataCatalog(state / "data"),
        ml_repos=MLRepos(repo, state / "ml-repos"),
        status=StatusBranch(repo, config.instance, sleep=lambda _: None),
        images=NullImages(world),
        budget=Budget(1_000_000, 1000),
    )
    engine.world = world
    return engine


class NullExecutor:
    """Does in memory what a plan says. `before` and `after` are called around each stage's effect and may raise, wait or kill."""

    def __init__(
        self,
        engine: NullEngine,
        before: Callable[[ProjectView, Stage], None] | None = None,
        after: Callable[[ProjectView, Stage], None] | None = None,
    ) -> None:
        self._engine, self._world = engine, engine.world
        self._before, self._after = before, after

    def __call__(self, view: ProjectView, cancelled: Callable[[], bool]) -> Execution:
        """The whole plan of one project."""
        self._world.actions += 1
        if view.plan.change is Change.PRUNE:
            self._world.remove(f"inference-{view.name}")
            return Execution(Ending.DONE, view.plan.reason)
        if view.plan.change is Change.DELETE:
            if self._world.refuses:
                return Execution(Ending.TRANSIENT, self._world.refuses)
            self._world.delete_project(view.customer, view.name)
            return Execution(Ending.DONE, view.plan.reason)
        reports: list[StageReport] = []
        for action in view.plan.actions:
            if action.verb is not Verb.RUN:
                continue
            if cancelled():
                return Execution(Ending.CANCELLED, f"cancelled before {action.stage}", tuple(reports))
            commit = view.declared.commit if view.declared else ""
            try:
                intent = self._engine.journal.begin(view.name, view.plan.run_digest, action.stage, commit)
            except FlopsError as refused:
                return Execution(Ending.TRANSIENT, str(refused), tuple(reports), error=refused)
            try:
                if self._before is not None:
                    self._before(view, action.stage)
                self._stage(view, action.stage)
                if self._after is not None:
                    self._after(view, action.stage)
            except FlopsError as error:
                self._engine.journal.finish(intent, "failed", str(error), 0.0)
                if cancelled():
                    return Execution(Ending.CANCELLED, "cancelled", tuple(reports))
                ending = Ending.TRANSIENT if error.transient else Ending.STALLED
                return Execution(ending, str(error), tuple(reports), error=error)
            self._engine.journal.finish(intent, "done", "", 0.0)
            reports.append(StageReport(action.stage, "done", 0.0, ""))
        return Execution(Ending.DONE, "done", tuple(reports))

    def _stage(self, view: ProjectView, stage: Stage) -> None:
        desired = view.desired
        if desired is None:
            return
        if stage is Stage.TRAIN:
            self._world.train(view.name, desired.customer, desired.run_digest)
        elif stage is Stage.REGISTER:
            self._world.register(view.name, desired.customer, desired.run_digest, desired.gate_digest)
        elif stage is Stage.PACKAGE:
            self._world.images.add(image_name(desired.customer, view.name, desired.image_digest))
        elif stage is Stage.DEPLOY:
            self._deploy(view)

    def _deploy(self, view: ProjectView) -> None:
        desired, name = view.desired, f"inference-{view.name}"
        if desired is None or DEPLOY_STEP not in desired.steps:
            self._world.remove(name)
            return
        labels = {
            "flops.kind": "inference",
            "flops.project": view.name,
            "flops.digest": desired.run_digest,
            "flops.serving": desired.serving_digest,
            "flops.instance": self._engine.config.instance,
        }
        self._world.apply(ServiceSpec(name, (), self._engine.state, "/", labels=labels))
