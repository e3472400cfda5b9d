"""Carrying out one project's plan: stages in order, intents journalled before effects, errors mapped to what comes next.

The result says what the controller should do: nothing, wait for new content (`Stalled`), or try again (`Transient`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from reconciler.budget import Budget
from reconciler.errors import ControllerError, FlopsError
from reconciler.journal import Journal
from reconciler.plan import ProjectPlan, Stage, Verb
from reconciler.refusals import refusal
from reconciler.stages import Work, function_of
from reconciler.telemetry import Telemetry


class Ending(StrEnum):
    """How the execution of a plan ended."""

    DONE = "done"
    REJECTED = "rejected"
    STALLED = "stalled"
    TRANSIENT = "transient"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class StageReport:
    """One line of the table of stages."""

    stage: str
    result: str
    seconds: float
    message: str

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the status document."""
        return {
            "stage": self.stage,
            "result": self.result,
            "reused": self.result in {"reused", "skipped"},
            "seconds": round(self.seconds, 3),
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of a plan; `data` is what the stages want in the status document."""

    ending: Ending
    message: str
    reports: tuple[StageReport, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    error: FlopsError | None = None


def execute(
    plan: ProjectPlan,
    work: Work,
    journal: Journal,
    budget: Budget,
    monotonic: Callable[[], float] = time.monotonic,
    telemetry: Telemetry | None = None,
) -> Execution:
    """Run the stages that the plan runs; never raises."""
    reports: list[StageReport] = []
    data: dict[str, Any] = {}
    telemetry = telemetry or Telemetry()
    for action in plan.actions:
        if action.verb is not Verb.RUN:
            result = "reused" if action.verb is Verb.REUSE else "skipped"
            reports.append(StageReport(action.stage, result, 0.0, action.reason))
            continue
        if work.cancelled():
            return Execution(Ending.CANCELLED, f"cancelled before {action.stage}", tuple(reports), data)
        try:
            intent = journal.begin(plan.name, plan.run_digest, action.stage, work.declared.commit)
        except FlopsError as refused:
            # Without an intent there is no effect.
            ending = Ending.CANCELLED if work.cancelled() else Ending.TRANSIENT
            return Execution(ending, str(refused), tuple(reports), data, refused)
        work.tell("stage", f"{action.stage} …", {"stage": action.stage})
        started = monotonic()
        error: FlopsError | None = None
        with telemetry.span(f"stage {action.stage}", {"flops.project": plan.name, "flops.stage": action.stage}) as span:
            try:
                with budget.take(*_needs(work, action.stage)):
                    outcome = function_of(action.stage)(work)
                span.set("flops.result", outcome.result)
            except Exception as raised:  # every failure of one project ends here, the others go on
                error = _as_flops_error(raised, work)
                span.fail(str(error))
        seconds = monotonic() - started
        work.timings[action.stage] = seconds
        if error is not None and work.cancelled():
            # Whatever it says, it was told to stop: that is no fault of the content, which must not stall for it.
            journal.finish(intent, "cancelled", error.cause, seconds)
            reports.append(StageReport(action.stage, "cancelled", seconds, error.cause))
            return Execution(Ending.CANCELLED, f"cancelled in {action.stage}", tuple(reports), data)
        if error is not None:
            journal.finish(intent, "failed", str(error), seconds)
            reports.append(StageReport(action.stage, "failed", seconds, error.cause))
            work.tell("error", str(error), error.to_dict())
            ending = Ending.TRANSIENT if error.transient else Ending.STALLED
            return Execution(ending, str(error), tuple(reports), data, error)
        journal.finish(intent, outcome.result, outcome.message, seconds)
        reports.append(StageReport(action.stage, outcome.result, seconds, outcome.message))
        work.tell("stage", f"{action.stage}: {outcome.message} ({seconds:.1f} s)", {"stage": action.stage})
        data |= outcome.data
        if outcome.result == "rejected":
            return Execution(Ending.REJECTED, outcome.message, tuple(reports), data)
    return Execution(Ending.DONE, reports[-1].message if reports else plan.reason, tuple(reports), data)


def _needs(work: Work, stage: Stage) -> tuple[int, int]:
    """Memory (MB) and CPUs that a stage takes; only training is large enough to count."""
    if stage is not Stage.TRAIN:
        return 0, 0
    constraints = work.declared.sla.resource_constraints
    processes = work.declared.sla.training_configuration.process_count()
    return constraints.memory * processes, int(constraints.vcpus) * processes


def _as_flops_error(raised: Exception, work: Work) -> FlopsError:
    if isinstance(raised, FlopsError):
        return raised
    refused = refusal(raised) if isinstance(raised, OSError) else None
    if refused is None or refused.code != "FL9002":
        work.tell("traceback", "".join(traceback.format_exception(raised)))
    return refused or unexpected(raised)


def unexpected(error: BaseException) -> ControllerError:
    """An error of the reconciler itself. Its text stays out: it may quote what it should not."""
    cause = f"An error that should not happen: {type(error).__name__}."
    return ControllerError("FL9003", cause, cure="The traceback is in `flops logs`; please report it.")
