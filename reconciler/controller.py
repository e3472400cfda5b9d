"""The loop: fetch, declare, observe, plan, carry out, tell.

Level-triggered: a cycle looks at everything and remembers nothing that it could observe. One cycle runs a project once; many
projects run side by side within the budget. Status is feedback: no error in writing it stops a cycle.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from reconciler import project_status
from reconciler.desired import DesiredState
from reconciler.engine import Engine
from reconciler.errors import ControllerError, SourceError
from reconciler.events import Observer
from reconciler.execution import Ending, Execution, execute
from reconciler.observe import Observed, observe
from reconciler.plan import Change, DesiredProject, Plan, ProjectPlan, plan
from reconciler.stages import Declared, Work
from reconciler.stages.deploy import service_name
from reconciler.statusdoc import Document, merge, read_documents, render, subject

MAX_TRIES = 6
FIRST_DELAY, LAST_DELAY = 0.75, 900.0


@dataclass(frozen=True, slots=True)
class View:
    """What one look at the world gave."""

    commit: str
    declared: Mapping[str, Declared]
    desired: Sequence[DesiredProject]
    observed: Observed
    plan: Plan
    documents: Mapping[str, Document]


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What a cycle did; `converged` is False when something will be retried, `healthy` when nothing stalled."""

    view: View
    executions: Mapping[str, Execution] = field(default_factory=dict)
    status_commit: str = ""

    @property
    def converged(self) -> bool:
        """True when no project waits for a retry."""
        retrying = any(item.ending is Ending.TRANSIENT for item in self.executions.values())
        return not retrying and not self.view.observed.unreachable


class Controller:
    """Runs cycles over one engine. Clock, sleep and randomness are passed in."""

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        *,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._engine = engine
        self._observer = observer
        self._sleep = sleep
        self._uniform = uniform
        self._desired = DesiredState(engine.ml_repos, engine.catalog, allow_file_urls=engine.config.allow_file_urls)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Cancel what runs; finished rounds are kept."""
        self._stop.set()

    def converge(self, tries: int = MAX_TRIES) -> CycleResult:
        """At most `tries` cycles, until nothing is left to do or what is left will not get better now (`reconcile --once`)."""
        with self._alone():
            result = self.cycle()
            for attempt in range(1, tries):
                if self._stop.is_set() or (result.view.plan.is_noop and result.converged):
                    break
                if not result.converged:
                    self._sleep(self.delay(attempt))
                result = self.cycle(before=result)
            return result

    def delay(self, attempt: int) -> float:
        """Seconds before retry number `attempt`: 0.75 s doubled each time to 15 min, with full jitter above a half."""
        longest = min(FIRST_DELAY * 2 ** (attempt - 1), LAST_DELAY)
        return self._uniform(longest / 2, longest)

    def cycle(self, before: CycleResult | None = None) -> CycleResult:
        """One cycle: look, carry out, tell."""
        view = self.look()
        if view.plan.is_noop and not self._must_write(view):
            return CycleResult(view, before.executions if before and view.plan.is_noop else {})
        self._guard_empty(view)
        running = [item for item in view.plan.projects if not item.is_noop]
        if running:
            started = {item.name: project_status.progressing(view, item) for item in running}
            documents = {**self._settled(view), **started}
            self._publish(view.documents, documents)
        executions = self._carry_out(view, running)
        after = self.look() if executions else view
        documents = {
            **self._settled(after),
            **{name: project_status.finished(after, view, name, done) for name, done in executions.items()},
        }
        documents = {name: document for name, document in documents.items() if document}
        commit = self._publish(after.documents, documents)
        return CycleResult(after, executions, commit)

    def look(self, *, fetch: bool = True) -> View:
        """Fetch, declare, observe and plan; changes nothing."""
        engine = self._engine
        if fetch:
            try:
                engine.repo.fetch()
            except SourceError as error:
                # A remote that cannot be reached is not an empty repo: go on with what was fetched last.
                self._observer.tell("", "warning", str(error))
        commit = engine.repo.desired_commit(engine.config.branch)
        snapshot = engine.repo.read_snapshot(commit)
        documents = read_documents(engine.status.read())
        found = self._desired.of(snapshot, documents)
        declared = {item.desired.name: item for item in found if isinstance(item, Declared)}
        desired = [item.desired if isinstance(item, Declared) else item for item in found]
        seen = observe(desired, documents, engine.runtime, engine.tracking_if_any, engine.config.instance)
        return View(commit, declared, desired, seen, plan(desired, seen.projects), documents)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self._engine.state / "controller.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ControllerError(
                "FL9004",
                "Another reconciler works on this state directory.",
                cure="Wait for it or stop it; two never work on one state.",
                transient=True,
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _must_write(self, view: View) -> bool:
        settled = self._settled(view)
        return merge(view.documents, settled) != dict(view.documents)

    def _settled(self, view: View) -> dict[str, Document]:
        """The documents as they are when nothing is being done."""
        return {project.name: project_status.settled(view, project) for project in view.desired}

    def _guard_empty(self, view: View) -> None:
        if view.desired or not view.observed.services or self._engine.config.allow_empty:
            return
        raise ControllerError(
            "FL9005",
            "The tracked branch declares no project any more, but services are running.",
            cure="If that is meant, set `allow_empty: true` in flops.yaml; otherwise revert the commit.",
        )

    def _carry_out(self, view: View, running: Sequence[ProjectPlan]) -> dict[str, Execution]:
        """Run the plans side by side; a project waits for those it depends on."""
        waiting = {item.name: item for item in running}
        depends = {project.name: project.depends_on for project in view.desired}
        blocked = {project.name for project in view.desired if project.problems}
        executions: dict[str, Execution] = {}
        futures: dict[Future[Execution], str] = {}
        with ThreadPoolExecutor(max_workers=self._engine.config.budget.max_parallel) as pool:
            while waiting or futures:
                for name in [name for name in waiting if not self._waits(name, depends, waiting, futures)]:
                    item = waiting.pop(name)
                    failed = [
                        other
                        for other in depends.get(name, ())
                        if other in blocked or (other in executions and executions[other].ending is not Ending.DONE)
                    ]
                    if failed:
                        executions[name] = Execution(Ending.TRANSIENT, f"waits for {', '.join(failed)}")
                        continue
                    futures[pool.submit(self._run, view, item)] = name
                done, _ = wait(futures, return_when=FIRST_COMPLETED) if futures else (set(), None)
                for future in done:
                    executions[futures.pop(future)] = future.result()
        return executions

    @staticmethod
    def _waits(
        name: str,
        depends: Mapping[str, Sequence[str]],
        waiting: Mapping[str, ProjectPlan],
        futures: Mapping[Future[Execution], str],
    ) -> bool:
        return any(other in waiting or other in futures.values() for other in depends.get(name, ()))

    def _run(self, view: View, item: ProjectPlan) -> Execution:
        if item.change is Change.PRUNE:
            self._engine.runtime.remove(service_name(item.name))
            self._observer.tell(item.name, "pruned", item.reason)
            return Execution(Ending.DONE, item.reason)

        def tell(kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
            self._observer.tell(item.name, kind, message, digest=item.run_digest, data=data)

        work = Work(view.declared[item.name], self._engine.tools(), tell, self._stop.is_set)
        versions = view.observed.versions.get(work.desired.customer, ())
        known = {found.digest: found for found in versions if found.project == item.name}
        service = view.observed.services.get(item.name)
        work.version = known.get(item.run_digest)
        work.in_service = known.get(service.labels.get("flops.digest", "")) if service else None
        tell("plan", f"{item.change}: {item.reason}")
        return execute(item, work, self._engine.journal, self._engine.budget)

    def _publish(self, before: Mapping[str, Document], documents: Mapping[str, Document]) -> str:
        merged = merge(before, documents)
        result = self._engine.status.publish(render(merged), subject(before, merged) or "status")
        if result.error:
            self._observer.tell("", "warning", f"the status branch was not pushed: {result.error}")
        return result.commit or ""
