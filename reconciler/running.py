"""Carrying out one project's plan with the real stages: what the loop hands to a worker.

The loop knows an executor by its signature alone, so that benchmarks and the state machine of the tests run the same loop.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from reconciler.digests import short
from reconciler.engine import Engine
from reconciler.errors import FlopsError, ServingError
from reconciler.events import Observer
from reconciler.execution import Ending, Execution, execute
from reconciler.looking import ProjectView, View
from reconciler.plan import Change
from reconciler.stages import Work


@dataclass(frozen=True, slots=True)
class Convergence:
    """How `converge` ended; `converged` is False when something would have to be tried again."""

    view: View
    executions: Mapping[str, Execution] = field(default_factory=dict)
    converged: bool = True


@dataclass(slots=True)
class Run:
    """A project that is being worked on: the view it was planned from, and how to call it off. `started` is monotonic seconds."""

    view: ProjectView
    key: str
    commit: str
    started: float
    called_off: threading.Event = field(default_factory=threading.Event)


class Execute(Protocol):
    """Does what a project's plan says; `cancelled` is asked between and within stages. Never raises."""

    def __call__(self, view: ProjectView, cancelled: Callable[[], bool]) -> Execution: ...


def tidy(engine: Engine, observer: Observer) -> None:
    """Remove what nobody looks after in the container engine; one that is away is no reason to do nothing else."""
    try:
        names = engine.remove_leftovers()
    except ServingError as error:
        observer.tell("", "warning", f"what may be left in the container engine stays for now: {error}")
        return
    if names:
        observer.tell("", "pruned", f"nobody looked after {', '.join(names)} in the container engine")


class StagesExecutor:
    """Runs the stages of this engine."""

    def __init__(self, engine: Engine, observer: Observer) -> None:
        self._engine, self._observer = engine, observer
        self._tries: dict[str, tuple[str, int]] = {}

    def __call__(self, view: ProjectView, cancelled: Callable[[], bool]) -> Execution:
        """The whole plan of one project, to its end."""
        item, serving = view.plan, view.desired.serving_digest if view.desired and not view.desired.problems else ""
        content, tries = self._tries.get(item.name, ("", 0))
        attempt = tries + 1 if content == serving else 1
        about: dict[str, str | int] = {"flops.project": item.name, "flops.digest": short(item.run_digest), "flops.attempt": attempt}
        with self._engine.telemetry.span("reconcile", about) as span:
            self._observer.works(item.name, attempt=attempt, trace_id=span.trace_id)
            done = self._carry_out(view, cancelled)
            span.set("flops.ending", str(done.ending))
            if done.ending in {Ending.STALLED, Ending.TRANSIENT}:
                span.fail(done.message)
        self._tries[item.name] = (serving, attempt if done.ending is Ending.TRANSIENT else 0)
        return done

    def _carry_out(self, view: ProjectView, cancelled: Callable[[], bool]) -> Execution:
        item = view.plan

        def tell(kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
            self._observer.tell(item.name, kind, message, digest=item.run_digest, data=data)

        tell("plan", f"{item.change}: {item.reason}")
        if item.change is Change.PRUNE:
            return self._prune(view)
        if item.change is Change.DELETE:
            return self._delete(view, cancelled)
        if view.declared is None:
            return Execution(Ending.STALLED, "the SLA is not valid")
        work = Work(view.declared, self._engine.tools(), tell, cancelled)
        known = {found.digest: found for found in view.versions}
        work.version = known.get(item.run_digest)
        work.adopted = view.adopted
        work.in_service = known.get(view.service.labels.get("flops.digest", "")) if view.service else None
        return execute(item, work, self._engine.journal, self._engine.budget, telemetry=self._engine.telemetry)

    def _prune(self, view: ProjectView) -> Execution:
        intent = self._engine.journal.begin(view.name, "", "prune", "")
        try:
            from reconciler.stages.deploy import service_name

            self._engine.runtime.remove(service_name(view.name))
            tidy(self._engine, self._observer)
        except (FlopsError, OSError) as error:
            self._observer.tell(view.name, "traceback", "".join(traceback.format_exception(error)))
            self._engine.journal.finish(intent, "failed", str(error), 0.0)
            # What could not be removed stays in the inventory, so it is planned again.
            return Execution(Ending.TRANSIENT, str(error), error=error if isinstance(error, FlopsError) else None)
        self._engine.journal.finish(intent, "done", view.plan.reason, 0.0)
        self._observer.tell(view.name, "pruned", view.plan.reason)
        return Execution(Ending.DONE, view.plan.reason)

    def _delete(self, view: ProjectView, cancelled: Callable[[], bool]) -> Execution:
        """Images, models and runs of a project that is gone; what is gone already is no error, so that it can be done again."""
        engine, said = self._engine, []
        try:
            intent = engine.journal.begin(view.name, "", "delete", "")
        except FlopsError as refused:
            return Execution(Ending.CANCELLED if cancelled() else Ending.TRANSIENT, str(refused), error=refused)
        try:
            for what, delete in (("images", engine.images.delete_project), ("versions and runs", self._delete_models)):
                if cancelled():
                    engine.journal.finish(intent, "cancelled", "", 0.0)
                    return Execution(Ending.CANCELLED, f"cancelled before the {what}")
                said.append(f"{delete(view.customer, view.name)} {what}")
        except (FlopsError, OSError) as error:
            self._observer.tell(view.name, "traceback", "".join(traceback.format_exception(error)))
            engine.journal.finish(intent, "failed", str(error), 0.0)
            # The document stays, so it is planned again, with more time in between each time.
            return Execution(Ending.TRANSIENT, str(error), error=error if isinstance(error, FlopsError) else None)
        message = f"deleted {' and '.join(said)}"
        engine.journal.finish(intent, "done", message, 0.0)
        self._observer.tell(view.name, "deleted", message)
        return Execution(Ending.DONE, message)

    def _delete_models(self, customer: str, project: str) -> int:
        tracking = self._engine.tracking_if_any(customer)
        return tracking.delete_project(customer, project) if tracking else 0
