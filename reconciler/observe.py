"""Observed state: what the registry and the runtime say now, one request per customer and one look at the services.

Nothing is assumed from memory. A registry is asked again whenever it *may* have changed; one whose files are as they were when it
was last asked has nothing new to say. The status documents add only what cannot be observed: which content stalled, and which
inputs were worked on last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from reconciler.errors import ControllerError, FlopsError
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


RegistryIfAny = Callable[[str], Registry | None]
Versions = tuple[ModelVersion, ...]


@dataclass(slots=True)
class _Customer:
    """What a customer's registry said last; `state` is the state of its files then, None when that cannot be known."""

    state: object = None
    registry: Registry | None = None
    error: FlopsError | None = None
    versions: dict[str, Versions] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    projects: dict[str, str] = field(default_factory=dict)
    """Which project registered a digest."""
    runs: dict[tuple[str, str], RunInfo | None] = field(default_factory=dict)
    generation: int = 0


class Registries:
    """The registries of all customers. One that does not answer is an error of its customer, not of the look."""

    def __init__(self, registry: RegistryIfAny, state: Callable[[str], object]) -> None:
        self._registry = registry
        self._state = state
        self._known: dict[str, _Customer] = {}

    def refresh(self, customer: str) -> FlopsError | None:
        """Ask the registry if it may have changed; the reason why it could not be asked.

        A registry that was never made has nothing in it, and no server has to be started to know that.
        """
        known = self._known.setdefault(customer, _Customer())
        state = self._state(customer)
        if state is not None and known.state == state and known.error is None:
            return None
        known.state = state
        known.generation += 1
        known.runs.clear()
        try:
            known.registry = self._registry(customer)
            found = known.registry.versions(customer) if known.registry else []
            known.recorded = known.registry.projects_with_runs(customer) if known.registry else frozenset()
        except FlopsError as error:
            same = known.error is not None and str(known.error) == str(error)
            known.error = known.error if same else error
            return known.error
        except Exception as error:  # whatever is in one customer's registry, the others are looked at
            cause = f"What the registry of {customer} says cannot be read: {type(error).__name__}."
            known.error = ControllerError("FL9013", cause, cure="Please report it; the others go on.", transient=True)
            return known.error
        known.error = None
        by_project: dict[str, list[ModelVersion]] = {}
        for version in found:
            by_project.setdefault(version.project, []).append(version)
        known.projects = {version.digest: version.project for version in found if version.digest}
        # What is equal stays the same object, so that everything that follows from it need not be worked out again.
        before = known.versions
        known.versions = {
            name: before[name] if name in before and before[name] == tuple(items) else tuple(items)
            for name, items in by_project.items()
        }
        return None

    def versions(self, customer: str, project: str) -> Versions:
        """A project's versions as of the last `refresh`."""
        known = self._known.get(customer)
        return known.versions.get(project, ()) if known else ()

    def generation(self, customer: str) -> int:
        """Grows each time the registry is asked."""
        known = self._known.get(customer)
        return known.generation if known else 0

    def run(self, customer: str, project: str, digest: str) -> RunInfo | None:
        """The recorded run of a digest, asked for once per `generation`. Raises FlopsError."""
        known = self._known[customer]
        if known.registry is None or project not in known.recorded:
            return None
        if (project, digest) not in known.runs:
            known.runs[project, digest] = known.registry.run_with_digest(project, customer, digest)
        return known.runs[project, digest]

    def run_elsewhere(self, customer: str, digest: str, declared: frozenset[str]) -> RunInfo | None:
        """The recorded run of a digest that a project of the same customer registered which is not declared any more: its old name.

        Raises FlopsError.
        """
        other = self._known[customer].projects.get(digest)
        return self.run(customer, other, digest) if other is not None and other not in declared else None

    def keep(self, customers: set[str]) -> None:
        """Forget the customers that have no project any more."""
        for customer in self._known.keys() - customers:
            del self._known[customer]


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
