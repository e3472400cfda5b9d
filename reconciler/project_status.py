"""From a view and an execution to the status document of one project.

Two axes: `Synced` is about what is declared, `Ready` about what runs. A project whose new content stalls keeps the model,
the service and the stages of the old one in its document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reconciler import conditions
from reconciler.conditions import Condition, Reason
from reconciler.execution import Ending, Execution
from reconciler.plan import DEPLOY_STEP, Change, DesiredProject, ObservedProject, ProjectPlan
from reconciler.statusdoc import Document

if TYPE_CHECKING:
    from reconciler.controller import View


def progressing(view: View, plan: ProjectPlan) -> Document:
    """The document while a plan is being carried out."""
    document = _base(view, plan.name)
    document["conditions"] = _conditions(
        conditions.synced(Reason.NOT_APPLIED, plan.reason),
        _ready(view, plan.name),
        conditions.reconciling(Reason.PROGRESSING, f"{plan.change}: {plan.reason}"),
    )
    return document


def settled(view: View, project: DesiredProject) -> Document:
    """The document of a project for which nothing is being done."""
    plan = view.plan.by_name()[project.name]
    document = _base(view, project.name)
    ready = _ready(view, project.name)
    found: tuple[Condition, ...]
    if project.problems:
        problem = project.problems[0]
        document["error"] = dict(problem)
        document["problems"] = [dict(item) for item in project.problems]
        message = _problem_text(problem)
        found = (conditions.synced(Reason.INVALID_SLA, message), ready, conditions.stalled(Reason.INVALID_SLA, message))
    elif plan.change is Change.SUSPENDED:
        found = (conditions.synced(Reason.SUSPENDED, plan.reason), ready, conditions.suspended())
    elif plan.change is Change.STALLED:
        previous = view.documents.get(project.name, {})
        document["error"] = previous.get("error")
        document["stalled"] = previous.get("stalled")
        reason = Reason.STAGE_FAILED if document.get("stalled") else Reason.GATE_NOT_MET
        verdict = (document.get("gate") or {}).get("reason")
        message = (document.get("stalled") or {}).get("message") or verdict or plan.reason
        found = (conditions.synced(reason, message), ready, conditions.stalled(reason, message))
    elif project.customer in view.observed.unreachable:
        error = view.observed.unreachable[project.customer]
        document["error"] = error.to_dict()
        retry = conditions.reconciling(Reason.PROGRESSING_WITH_RETRY, str(error))
        found = (conditions.synced(Reason.NOT_APPLIED, str(error)), ready, retry)
    elif plan.change is Change.NONE:
        found = (conditions.synced(Reason.CONVERGED, "what runs is what is declared"), ready)
        _describe(document, view, project)
    else:
        waits = conditions.reconciling(Reason.PROGRESSING, plan.reason)
        found = (conditions.synced(Reason.NOT_APPLIED, plan.reason), ready, waits)
    document["conditions"] = _conditions(*found)
    return {key: value for key, value in document.items() if value is not None}


def finished(after: View, before: View, name: str, execution: Execution) -> Document:
    """The document after a plan was carried out; empty when the project is gone."""
    projects = {project.name: project for project in after.desired}
    if name not in projects:
        return {}
    project = projects[name]
    document = settled(after, project) | dict(execution.data)
    document["stages"] = [report.to_dict() for report in execution.reports]
    document["commit"] = before.commit
    step = before.plan.by_name()[name]
    document["change"] = f"{step.change}: {step.reason}"
    if execution.ending is Ending.DONE:
        document["inputs"] = dict(project.training)
        return _model_from(document, execution)
    ready = _ready(after, name)
    message = execution.message
    if execution.ending is Ending.TRANSIENT:
        document["error"] = execution.error.to_dict() if execution.error else None
        reason = Reason.PROGRESSING_WITH_RETRY if execution.error else Reason.DEPENDENCY_NOT_READY
        found = (conditions.synced(reason, message), ready, conditions.reconciling(reason, message))
    else:
        reason = Reason.GATE_NOT_MET if execution.ending is Ending.REJECTED else Reason.STAGE_FAILED
        document["error"] = execution.error.to_dict() if execution.error else None
        if execution.ending is Ending.STALLED:
            document["stalled"] = {"digest": before_digest(before, name), "message": message}
        found = (conditions.synced(reason, message), ready, conditions.stalled(reason, message))
    document["conditions"] = _conditions(*found)
    return {key: value for key, value in document.items() if value is not None}


def before_digest(view: View, name: str) -> str:
    """The serving digest that a view had for a project: what its stall is about."""
    return next((project.serving_digest for project in view.desired if project.name == name), "")


def _base(view: View, name: str) -> Document:
    """What stays of the last document: the model in service, its stages and what was recorded."""
    previous = view.documents.get(name, {})
    kept = ("inputs", "model", "stages", "training", "verification", "lock", "dataset", "gate", "commit", "change")
    document: Document = {key: previous[key] for key in kept if key in previous}
    project = next((item for item in view.desired if item.name == name), None)
    document |= {"name": name, "customer": project.customer if project else previous.get("customer", "")}
    if project and not project.problems:
        document["digest"] = project.run_digest
        document["serving_digest"] = project.serving_digest
    declared = view.declared.get(name)
    if declared:
        document["ml_repo"] = dict(declared.ml_repo)
    service = view.observed.services.get(name)
    if service:
        document["service"] = {"address": service.address, "digest": service.labels.get("flops.digest", "")}
    return document


def _describe(document: Document, view: View, project: DesiredProject) -> None:
    """The model that a converged project has, from the registry rather than from memory."""
    versions = view.observed.versions.get(project.customer, ())
    found = [item for item in versions if item.project == project.name and item.digest == project.run_digest]
    document["inputs"] = dict(project.training)
    if not found:
        return
    version = found[0]
    model: dict[str, Any] = {"name": version.name, "version": str(version.version), "run_id": version.run_id}
    model |= {"digest": version.digest, "aliases": sorted(version.aliases)}
    previous = document.get("model") or {}
    if previous.get("digest") == version.digest:
        model = {**previous, **model}
    model.setdefault("metrics", dict(version.metrics))
    model.setdefault("holdout", dict(version.holdout))
    document["model"] = model


def _model_from(document: Document, execution: Execution) -> Document:
    training: Mapping[str, Any] = execution.data.get("training") or {}
    if training and document.get("model"):
        document["model"] = {
            **document["model"],
            "metrics": training["metrics"],
            "holdout": training["holdout"],
            "best_round": training["best_round"],
        }
    return document


def _ready(view: View, name: str) -> Condition:
    observed = next((item for item in view.observed.projects if item.name == name), ObservedProject(name))
    project = next((item for item in view.desired if item.name == name), None)
    if observed.service is not None:
        if observed.service.healthy:
            return conditions.ready(Reason.HEALTHY, f"answers at {observed.service.address}")
        service = view.observed.services.get(name)
        return conditions.ready(Reason.UNHEALTHY, (service and service.error) or "the service does not answer its health check")
    if project and DEPLOY_STEP not in project.steps and project.run_digest in observed.models:
        return conditions.ready(Reason.REGISTERED, f"version {observed.models[project.run_digest].version}")
    return conditions.ready(Reason.NOT_DEPLOYED, "no service is running")


def _conditions(*found: Condition) -> list[dict[str, str]]:
    return [item.to_dict() for item in found]


def _problem_text(problem: Mapping[str, Any]) -> str:
    where = f"{problem['path']}:{problem['line']}:{problem['column']}: " if problem.get("line") else ""
    return f"{where}{problem.get('code', '')} {problem.get('cause', '')} {problem.get('cure', '')}"
