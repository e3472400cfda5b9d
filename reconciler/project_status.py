"""From a view and an execution to the status document of one project.

Two axes: `Synced` is about what is declared, `Ready` about what runs. A project whose new content stalls keeps the model,
the service and the stages of the old one in its document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reconciler import conditions
from reconciler.conditions import Condition, Reason
from reconciler.execution import Ending, Execution
from reconciler.looking import ProjectView
from reconciler.plan import DEPLOY_STEP, Change, ProjectPlan
from reconciler.statusdoc import Document, Draft, condition


def progressing(view: ProjectView) -> Draft:
    """The document while a plan is being carried out."""
    plan = view.plan
    document = _base(view)
    document["conditions"] = _conditions(
        view,
        conditions.synced(Reason.DRIFTED if _was_converged(view) else Reason.NOT_APPLIED, plan.reason),
        _ready(view),
        conditions.reconciling(Reason.PROGRESSING, f"{plan.change}: {plan.reason}"),
    )
    return document


def fought_over(view: ProjectView) -> Draft:
    """The document of a project whose repairs are undone again and again: they are spaced out until that ends."""
    document = _base(view)
    message = f"mended again and again, and something undoes it: {view.plan.reason}"
    document["conditions"] = _conditions(
        view, conditions.synced(Reason.FOUGHT_OVER, message), _ready(view), conditions.reconciling(Reason.FOUGHT_OVER, message)
    )
    return document


def waiting(view: ProjectView, others: str) -> Draft:
    """The document of a project whose turn comes after others."""
    document = _base(view)
    message = f"waits for {others}"
    document["conditions"] = _conditions(
        view,
        conditions.synced(Reason.DEPENDENCY_NOT_READY, message),
        _ready(view),
        conditions.reconciling(Reason.DEPENDENCY_NOT_READY, message),
    )
    return document


def settled(view: ProjectView) -> Draft:
    """The document of a project for which nothing is being done."""
    plan = view.plan
    document = _base(view)
    ready = _ready(view)
    found: tuple[Condition, ...]
    if view.desired and view.desired.problems:
        problem = view.desired.problems[0]
        document["error"] = dict(problem)
        document["problems"] = [dict(item) for item in view.desired.problems]
        message = _problem_text(problem)
        found = (conditions.synced(Reason.INVALID_SLA, message), ready, conditions.stalled(Reason.INVALID_SLA, message))
    elif plan.change is Change.SUSPENDED:
        found = (conditions.synced(Reason.SUSPENDED, plan.reason), ready, conditions.suspended())
    elif plan.change is Change.STALLED:
        document["error"] = view.document.get("error")
        document["stalled"] = view.document.get("stalled")
        reason = Reason.STAGE_FAILED if document.get("stalled") else Reason.GATE_NOT_MET
        verdict = (document.get("gate") or {}).get("reason")
        message = (document.get("stalled") or {}).get("message") or verdict or plan.reason
        found = (conditions.synced(reason, message), ready, conditions.stalled(reason, message))
    elif view.unreachable is not None:
        error = view.unreachable
        document["error"] = error.to_dict()
        retry = conditions.reconciling(Reason.PROGRESSING_WITH_RETRY, str(error))
        found = (conditions.synced(Reason.NOT_APPLIED, str(error)), ready, retry)
    elif plan.change is Change.NONE:
        found = (conditions.synced(Reason.CONVERGED, "what runs is what is declared"), ready)
        _describe(document, view)
    else:
        waits = conditions.reconciling(Reason.PROGRESSING, plan.reason)
        reason = Reason.DRIFTED if _was_converged(view) else Reason.NOT_APPLIED
        found = (conditions.synced(reason, plan.reason), ready, waits)
    document["conditions"] = _conditions(view, *found)
    return {key: value for key, value in document.items() if value is not None}


def finished(after: ProjectView, commit: str, done: ProjectPlan, execution: Execution) -> Draft:
    """The document after the plan `done` was carried out for a commit; `after` is the look that followed."""
    document = settled(after) | dict(execution.data)
    document["stages"] = [report.to_dict() for report in execution.reports]
    document["commit"] = commit
    document["change"] = f"{done.change}: {done.reason}"
    if execution.ending is Ending.DONE:
        return _model_from(document, execution)
    message = execution.message
    if execution.ending is Ending.TRANSIENT:
        document["error"] = execution.error.to_dict() if execution.error else None
        reason = Reason.PROGRESSING_WITH_RETRY
        found = (conditions.synced(reason, message), _ready(after), conditions.reconciling(reason, message))
        document["conditions"] = _conditions(after, *found)
    return {key: value for key, value in document.items() if value is not None}


def facts(document: Document, digest: str, inputs: Mapping[str, str], execution: Execution) -> Document:
    """The document with what the next plan has to know of an execution: what stalled, and what was worked on."""
    if execution.ending is Ending.DONE:
        return {**document, "inputs": dict(inputs)}
    if execution.ending is Ending.STALLED:
        error = execution.error.to_dict() if execution.error else None
        return {**document, "error": error, "stalled": {"digest": digest, "message": execution.message}}
    if execution.ending is Ending.REJECTED and "gate" in execution.data:
        return {**document, "gate": execution.data["gate"]}
    return document


def _base(view: ProjectView) -> Draft:
    """What stays of the last document: the model in service, its stages and what was recorded."""
    previous = view.document
    kept = ("inputs", "model", "stages", "training", "verification", "lock", "dataset", "gate", "commit", "change")
    document: Draft = {key: previous[key] for key in kept if key in previous}
    project = view.desired
    document |= {"name": view.name, "customer": project.customer if project else previous.get("customer", "")}
    if project and not project.problems:
        document["digest"] = project.run_digest
        document["serving_digest"] = project.serving_digest
    if view.declared is None and "deletion_policy" in previous:
        document["deletion_policy"] = previous["deletion_policy"]
    elif view.declared and view.declared.deletes:
        # What is to be done when the SLA is gone has to be known then.
        document["deletion_policy"] = "delete"
    if view.declared:
        document["ml_repo"] = dict(view.declared.ml_repo)
    if view.service:
        document["service"] = {"address": view.service.address, "digest": view.service.labels.get("flops.digest", "")}
    return document


def _describe(document: Draft, view: ProjectView) -> None:
    """The model that a converged project has, from the registry rather than from memory."""
    if view.desired is None:
        return
    digest = view.desired.run_digest
    document["inputs"] = dict(view.desired.training)
    version = next((item for item in view.versions if item.digest == digest), None)
    if version is None:
        return
    model: dict[str, Any] = {"name": version.name, "version": str(version.version), "run_id": version.run_id}
    model |= {"digest": version.digest, "aliases": sorted(version.aliases)}
    previous = document.get("model") or {}
    if previous.get("digest") == version.digest:
        model = {**previous, **model}
    model.setdefault("metrics", dict(version.metrics))
    model.setdefault("holdout", dict(version.holdout))
    document["model"] = model


def _model_from(document: Draft, execution: Execution) -> Draft:
    training: Mapping[str, Any] = execution.data.get("training") or {}
    if training and document.get("model"):
        document["model"] = {
            **document["model"],
            "metrics": training["metrics"],
            "holdout": training["holdout"],
            "best_round": training["best_round"],
        }
    return document


def _ready(view: ProjectView) -> Condition:
    service, project = view.observed.service, view.desired
    if service is not None:
        if service.healthy:
            return conditions.ready(Reason.HEALTHY, f"answers at {service.address}")
        why = view.service.error if view.service else ""
        return conditions.ready(Reason.UNHEALTHY, why or "the service does not answer its health check")
    if project and not project.problems and DEPLOY_STEP not in project.steps and project.run_digest in view.observed.models:
        return conditions.ready(Reason.REGISTERED, f"version {view.observed.models[project.run_digest].version}")
    return conditions.ready(Reason.NOT_DEPLOYED, "no service is running")


def _was_converged(view: ProjectView) -> bool:
    """Whether the same content was as declared before: then something else than a commit changed it."""
    before = condition(view.document, "Synced") or {}
    told = before.get("status") == "True" or before.get("reason") in {Reason.DRIFTED, Reason.FOUGHT_OVER}
    return view.desired is not None and told and view.document.get("serving_digest") == view.desired.serving_digest


def _conditions(view: ProjectView, *found: Condition) -> list[dict[str, str]]:
    source = () if view.verified is None else (conditions.source_verified(view.verified),)
    return [item.to_dict() for item in (*found, *source)]


def _problem_text(problem: Mapping[str, Any]) -> str:
    where = f"{problem['path']}:{problem['line']}:{problem['column']}: " if problem.get("line") else ""
    return f"{where}{problem.get('code', '')} {problem.get('cause', '')} {problem.get('cure', '')}"
