"""Observed state: what a tracking server and the runtime say now, as the plan takes it.

Nothing is assumed from memory. The status documents add only what cannot be observed: which content stalled, and which inputs were
worked on last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from reconciler.plan import DesiredProject, ObservedModel, ObservedProject, ObservedService
from reconciler.runtimes.model import Runtime, Service
from reconciler.tracking import ModelVersion
from reconciler.tracking.model import RunInfo


class Registry(Protocol):
    """What the loop asks a tracking server for."""

    def versions(self, customer: str) -> list[ModelVersion]:
        """Every version of a customer's models."""

    def projects_with_runs(self, customer: str) -> frozenset[str]:
        """The projects of a customer for which anything was ever recorded."""

    def run_with_digest(self, project: str, customer: str, digest: str) -> RunInfo | None:
        """The recorded run of a digest, or None."""


Versions = tuple[ModelVersion, ...]


def observe_services(runtime: Runtime, instance: str) -> dict[str, Service]:
    """The inference services of this instance, by project: they are the inventory."""
    return {
        service.labels.get("flops.project", ""): service
        for service in runtime.observe()
        if service.labels.get("flops.kind") == "inference" and service.labels.get("flops.instance") == instance
    }


def needs_run(project: DesiredProject, versions: Versions) -> bool:
    """Whether it takes a look at the runs to know what is there: the declared model is not registered with this gate."""
    if project.problems or project.suspended:
        return False
    digest = project.run_digest
    return not any(item.digest == digest and item.gate_digest == project.gate_digest for item in versions)


def observe_project(
    project: DesiredProject, document: Mapping[str, Any], versions: Versions, service: Service | None, run: RunInfo | None,
    *, imaged: bool,
) -> ObservedProject:  # fmt: skip
    """One declared project from what was asked; `run` is the recorded run of its digest, if there is one, and `imaged` says
    whether its image is there."""
    models = {
        item.digest: ObservedModel(item.digest, str(item.version), item.run_id, item.gate_digest, tuple(item.aliases))
        for item in versions
    }
    trained = frozenset(models) | ({project.run_digest} if run else frozenset())
    return ObservedProject(
        name=project.name,
        models=models,
        rejected=frozenset(run.rejected_gates) if run else frozenset(),
        trained=trained,
        images=frozenset({project.image_digest}) if imaged else frozenset(),
        stalled=_stalled(document),
        service=_service(service),
        recorded=_recorded(document),
    )


def observe_without_registry(name: str, document: Mapping[str, Any], service: Service | None, why: str = "") -> ObservedProject:
    """A project whose registry did not answer."""
    return ObservedProject(name, service=_service(service), recorded=_recorded(document), unknown=why)


def observe_undeclared(name: str, document: Mapping[str, Any], service: Service | None) -> ObservedProject:
    """A project that is not declared any more: its service and its document are the inventory."""
    return ObservedProject(name, service=_service(service), doomed=is_doomed(document))


def is_doomed(document: Mapping[str, Any]) -> bool:
    """Whether the last SLA said that everything of the project goes with it."""
    return document.get("deletion_policy") == "delete" and bool(document.get("customer"))


def _recorded(document: Mapping[str, Any]) -> Mapping[str, str]:
    inputs = document.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _stalled(document: Mapping[str, Any]) -> dict[str, str]:
    stalled = document.get("stalled")
    if not isinstance(stalled, dict) or not stalled.get("digest"):
        return {}
    return {str(stalled["digest"]): str(stalled.get("message", ""))}


def _service(service: Service | None) -> ObservedService | None:
    if service is None:
        return None
    labels = service.labels
    return ObservedService(labels.get("flops.serving", ""), labels.get("flops.digest", ""), service.healthy, service.address)
