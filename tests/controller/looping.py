"""A loop in the hands of a test: real Git, a world in memory, a clock and workers that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from bench.null_world import NullExecutor, World, null_engine
from reconciler.controller import Controller
from reconciler.events import Observer
from reconciler.lease import Lease
from reconciler.looking import ProjectView
from reconciler.plan import Stage
from reconciler.publishing import Publisher
from reconciler.spec import OperatorConfig
from reconciler.statusdoc import condition, read_documents
from tests.conftest import Repos, commit, git

SLA = """customerID: {customer}
ml_repo_url: ./projects/{name}/ml_repo
ml_model_flavor: sklearn
training_configuration: {{data_tags: [mnist], training_rounds: {rounds}}}
"""
DEPLOY = "post_training_steps: [build_image_for_trained_model, deploy_trained_model_image]\n"
MOCK = "customerID: demo\nmock_data_configuration: {dataset_name: mnist, number_of_partitions: 2, data_tag: mnist}\n"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ManualPool(Executor):
    """Workers that do their work in `run`; what was submitted waits until then."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def run(self, count: int = 1_000_000) -> int:
        """Do at most so much of the waiting work; how much it was."""
        done = 0
        while self.waiting and done < count:
            self.waiting.pop(0)()
            done += 1
        return done


class Looping:
    """A site and a controller over it. `edit` commits as a user; `settle` lets loop and workers go on until all is quiet."""

    def __init__(self, repos: Repos, config: OperatorConfig | None = None) -> None:
        self.repos = repos
        self.user = repos.clone("user")
        commit(self.user, {"README.md": "A GitOps repo\n"}, "Start")
        self.clone = repos.clone("reconciler")
        self.world = World()
        self.clock = Clock()
        self.config = config or OperatorConfig(allow_file_urls=True)
        self.before: Callable[[ProjectView, Stage], None] | None = None
        self.after: Callable[[ProjectView, Stage], None] | None = None
        self.stages: list[tuple[str, str]] = []
        self.start()

    def start(self, state: str = "state") -> None:
        """A new controller, as after a restart; `state` names its state directory."""
        self.engine = null_engine(self.clone, self.repos.root / state, self.world, self.config)
        self.pool = ManualPool()
        self.warnings: list[str] = []
        observer = Observer(
            self.engine.journal, (lambda event: self.warnings.append(event.message) if not event.project else None,)
        )
        self.controller = Controller(
            self.engine,
            observer,
            execute=NullExecutor(self.engine, self._before, self._after),
            pool=self.pool,
            publisher=Publisher(self.engine.status, self.warnings.append, background=False),
            monotonic=self.clock,
            wait=self._wait,
            uniform=lambda _, high: high,
            lease=Lease(self.engine.journal, monotonic=self.clock, holder=f"controller {state}", is_dead=lambda _: False),
        )
        self.controller._pace.serving = True

    def _before(self, view: ProjectView, stage: Stage) -> None:
        self.stages.append((view.name, str(stage)))
        if self.before is not None:
            self.before(view, stage)

    def _after(self, view: ProjectView, stage: Stage) -> None:
        if self.after is not None:
            self.after(view, stage)

    def _wait(self, _changed: object, seconds: float | None) -> None:
        """Waiting in `converge`: let a worker work, or time pass."""
        if not self.pool.run(1):
            assert seconds is not None, "the loop would wait for ever"
            self.clock.now += seconds

    def edit(self, files: dict[str, str], message: str = "A change") -> str:
        """Commit and push as a user."""
        return commit(self.user, files, message)

    def project(self, name: str, rounds: int = 3, more: str = DEPLOY, customer: str = "demo") -> dict[str, str]:
        """The files of a project."""
        folder = f"projects/{name}"
        return {
            f"{folder}/sla.yaml": SLA.format(name=name, rounds=rounds, customer=customer) + more,
            f"{folder}/mock_data.yaml": MOCK,
            f"{folder}/ml_repo/model_manager.py": "class ModelManager: ...\n",
        }

    def remove(self, *names: str) -> None:
        """Remove projects as a user."""
        for name in names:
            git(self.user, "rm", "-rq", f"projects/{name}")
        commit(self.user, {}, "Remove")

    def step(self) -> float | None:
        """One step of the loop, after a trigger."""
        self.clock.now += 1.0
        self.controller.wake()
        return self.controller.step()

    def settle(self, rounds: int = 12) -> None:
        """Steps and work until both are quiet; no retry comes due meanwhile unless it is short."""
        for _ in range(rounds):
            self.step()
            if not self.pool.run() and not self.controller._finished and not self.controller.queue.has_due(self.clock.now):
                self.step()
                if not self.pool.waiting:
                    return

    def status(self, name: str) -> dict[str, Any]:
        """The published document."""
        return read_documents(self.engine.status.read())[name]

    def says(self, name: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a published condition; empty without it."""
        found = condition(self.status(name), kind) or {}
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def commits(self) -> int:
        """Status commits that reached the origin."""
        refs = git(self.repos.origin, "for-each-ref", "--format=%(refname)", "refs/heads/status/")
        return int(git(self.repos.origin, "rev-list", "--count", refs)) if refs else 0
