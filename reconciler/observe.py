"""Observed state: what the registry and the runtime say now, one request per customer and one look at the services.

Nothing is assumed from memory. The status documents add only what cannot be observed: which content stalled, and which
inputs were worked on last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.errors import FlopsError
from reconciler.plan import DesiredProject, ObservedModel, ObservedProject, ObservedService
from reconciler.runtimes.model import Runtime, Service
from reconciler.tracking import ModelVersion, Tracking

TrackingIfAny = Callable[[str], Tracking | None]


@dataclass(frozen=True, slots=True)
class Observed:
    """All projects that are declared or in the inventory; customers whose registry did not answer are in `unreachable`."""

    projects: tuple[ObservedProject, ...]
    services: Mapping[str, Service] = field(default_factory=dict)
    versions: Mapping[str, tuple[ModelVersion, ...]] = field(default_factory=dict)
    unreachable: Mapping[str, FlopsError] = field(default_factory=dict)


def observe(
    desired: Iterable[DesiredProject],
    documents: Mapping[str, Mapping[str, Any]],
    runtime: Runtime,
    tracking: TrackingIfAny,
    instance: str,
) -> Observed:
    """Look at the registry of each customer and at the services of this instance.

    A request about a single project is made only for one that has runs, but no model of its digest and gate.

    `tracking` gives None for a customer whose registry was never made: then nothing is registered, and no server has to be
    started to know that.
    """
    wanted = {project.name: project for project in desired}
    customers = sorted({project.customer for project in wanted.values() if project.customer})
    versions: dict[str, tuple[ModelVersion, ...]] = {}
    clients: dict[str, Tracking | None] = {}
    recorded: dict[str, frozenset[str]] = {}
    unreachable: dict[str, FlopsError] = {}
    for customer in customers:
        try:
            clients[customer] = tracking(customer)
            client = clients[customer]
            versions[customer] = tuple(client.versions(customer)) if client else ()
            recorded[customer] = client.projects_with_runs(customer) if client else frozenset()
        except FlopsError as error:
            unreachable[customer] = error
    services = {
        service.labels.get("flops.project", ""): service
        for service in runtime.observe()
        if service.labels.get("flops.kind") == "inference" and service.labels.get("flops.instance") == instance
    }
    projects = []
    for name in sorted(wanted.keys() | services.keys()):
        project = wanted.get(name)
        document = documents.get(name, {})
        if project is None or project.customer in unreachable:
            why = str(unreachable[project.customer]) if project else ""
            projects.append(_without_registry(name, document, services.get(name), why))
            continue
        found = [item for item in versions.get(project.customer, ()) if item.project == name]
        try:
            client = clients.get(project.customer) if name in recorded.get(project.customer, ()) else None
            projects.append(_project(project, document, found, services.get(name), client))
        except FlopsError as error:
            unreachable[project.customer] = error
            projects.append(_without_registry(name, document, services.get(name), str(error)))
    return Observed(tuple(projects), services, versions, unreachable)


def _project(
    project: DesiredProject,
    document: Mapping[str, Any],
    versions: Iterable[ModelVersion],
    service: Service | None,
    client: Tracking | None,
) -> ObservedProject:
    models = {
        item.digest: ObservedModel(item.digest, str(item.version), item.run_id, item.gate_digest, tuple(item.aliases))
        for item in versions
    }
    trained: frozenset[str] = frozenset(models)
    rejected: frozenset[str] = frozenset()
    digest = project.run_digest
    if (
        client
        and not project.problems
        and not project.suspended
        and (digest not in models or models[digest].gate_digest != project.gate_digest)
    ):
        run = client.run_with_digest(project.name, project.customer, digest)
        if run is not None:
            trained |= {digest}
            rejected = frozenset(run.rejected_gates)
    return ObservedProject(
        name=project.name,
        models=models,
        rejected=rejected,
        trained=trained,
        stalled=_stalled(document),
        service=_service(service),
        recorded=document.get("inputs") or {},
    )


def _without_registry(name: str, document: Mapping[str, Any], service: Service | None, why: str) -> ObservedProject:
    return ObservedProject(name, service=_service(service), recorded=document.get("inputs") or {}, unknown=why)


def _stalled(document: Mapping[str, Any]) -> dict[str, str]:
    stalled = document.get("stalled") or {}
    return {str(stalled["digest"]): str(stalled.get("message", ""))} if stalled.get("digest") else {}


def _service(service: Service | None) -> ObservedService | None:
    if service is None:
        return None
    labels = service.labels
    return ObservedService(labels.get("flops.serving", ""), labels.get("flops.digest", ""), service.healthy, service.address)
