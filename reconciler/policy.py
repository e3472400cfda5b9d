"""Policy: is a declared project allowed? Asked at every look, so it holds on create, update, rollback, resume and schedule.

Texts name the rule that is broken and the operator's file, never what a file holds beyond the value that broke it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from reconciler.errors import SpecError, Where
from reconciler.plan import DEPLOY_STEP
from reconciler.spec import ProjectSLA
from reconciler.spec.operator import ProjectSecret
from reconciler.spec.policy import Limits, Policy

ASK = "Ask the operator: `policy` in flops.yaml decides."


@dataclass(frozen=True, slots=True)
class Asked:
    """What a project asks for. `kept` projects were accepted before; they come first when a customer's limit is reached.

    `amounts` are by the names of `Limits`; `variables` are the names of the server's environment variables.
    """

    name: str
    path: str
    customer: str
    url: str
    tags: tuple[str, ...]
    variables: tuple[str, ...]
    deploys: bool
    suspended: bool
    amounts: Mapping[str, int]
    kept: bool = False

    @classmethod
    def of(cls, name: str, path: str, sla: ProjectSLA, *, kept: bool = False) -> Asked:
        """What an SLA asks for."""
        training, resources, deployment = sla.training_configuration, sla.resource_constraints, sla.deployment
        share = training.min_available_clients
        learners = sum(cluster.learners or share for cluster in training.clusters) or share
        deploys = DEPLOY_STEP in sla.post_training_steps
        amounts = {
            "memory_mb": resources.memory * learners,
            "vcpus": resources.vcpus * learners,
            "learners": learners,
            "replicas": (deployment.replicas if deployment else 1) if deploys else 0,
            "projects": 1,
        }
        variables = tuple(deployment.environment) if deployment else ()
        tags = tuple(training.data_tags)
        return cls(name, path, sla.customer_id, sla.ml_repo_url, tags, variables, deploys, sla.suspend, amounts, kept)


def allows(patterns: Sequence[str] | None, value: str) -> bool:
    """Whether a list of the policy lets a value through."""
    return patterns is None or any(fnmatchcase(value, pattern) for pattern in patterns)


def violations(policy: Policy, asked: Iterable[Asked]) -> dict[str, SpecError]:
    """What is wrong with each project that is not allowed; one reason each."""
    found: dict[str, SpecError] = {}
    used: dict[str, dict[str, int]] = {}
    for item in sorted(asked, key=lambda item: (not item.kept, item.name)):
        error = _alone(policy, item) or _together(policy, item, used.setdefault(item.customer, {}))
        if error is not None:
            found[item.name] = error
    return found


class Verdicts:
    """What policy says of all projects; worked out anew when one of them asks for something else, or was accepted meanwhile."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy if policy != Policy() else None
        self._asked: dict[str, tuple[Asked, object]] = {}
        self._stale = False
        self._found: dict[str, SpecError] = {}

    def ask(self, name: str, path: str, sla: ProjectSLA) -> None:
        """A project asks for this from now on."""
        if self._policy is not None:
            self._asked[name] = (Asked.of(name, path, sla), None)
            self._stale = True

    def forget(self, name: str) -> None:
        """A project asks for nothing any more."""
        self._stale = self._asked.pop(name, None) is not None or self._stale

    def changed(self, recorded: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """The projects of which policy says something else than at the last call; what is left for one depends on the others."""
        if self._policy is None:
            return set()
        for name, (asked, record) in self._asked.items():
            document = recorded.get(name)
            if record is not document:
                kept = bool(document and document.get("inputs"))
                self._stale = self._stale or kept != asked.kept
                self._asked[name] = (replace(asked, kept=kept), document)
        if not self._stale:
            return set()
        before, self._found = self._found, violations(self._policy, [asked for asked, _ in self._asked.values()])
        self._stale = False
        return {name for name in before.keys() | self._found.keys() if str(before.get(name)) != str(self._found.get(name))}

    def error(self, name: str) -> SpecError | None:
        """Why a project is not allowed."""
        return self._found.get(name)


def secret_refused(policy: Policy, secrets: Mapping[str, ProjectSecret], sla: ProjectSLA, path: str) -> SpecError | None:
    """Why a project may not use a secret that it names. It is not told which secrets there are."""
    for variable, name in (sla.deployment.secrets() if sla.deployment else {}).items():
        known = secrets.get(name)
        if known is None or not allows(policy.secrets, name) or not allows(known.customers, sla.customer_id):
            cause = f"{variable} refers to the secret {name!r}, which this project may not use, or which there is not."
            return SpecError("FL9505", cause, cure=ASK, where=Where(path))
    return None


def _alone(policy: Policy, item: Asked) -> SpecError | None:
    customer = item.customer
    if policy.customers is not None and customer not in policy.customers:
        return _refused("FL1701", f"The customer {customer!r} may not have projects here.", item)
    if not allows(policy.ml_repo_urls, item.url):
        return _refused("FL1702", "The ML repo's URL is not one of those allowed.", item)
    for tag in item.tags:
        if not allows(policy.data_tags, tag):
            return _refused("FL1703", f"The data tag {tag!r} is not allowed.", item)
    for name in item.variables:
        if not allows(policy.environment_variables, name):
            return _refused("FL1704", f"The environment variable {name!r} is not allowed.", item)
    if item.deploys and not allows(policy.deployers, customer):
        return _refused("FL1705", f"The customer {customer!r} may not deploy.", item)
    for name, amount in item.amounts.items():
        limit = None if name == "projects" else getattr(policy.project, name)
        if limit is not None and amount > limit:
            return _refused("FL1706", f"The project asks for {amount} {name}; the most for one project is {limit}.", item)
    return None


def _together(policy: Policy, item: Asked, used: dict[str, int]) -> SpecError | None:
    """Whether there is room in the customer's limits; what is refused takes none of it."""
    if item.suspended:
        return None
    limits: Limits = (policy.customers or {}).get(item.customer, policy.customer)
    amounts = item.amounts
    for name, amount in amounts.items():
        limit = getattr(limits, name)
        total = used.get(name, 0) + amount
        if limit is not None and total > limit:
            cause = f"With this project customer {item.customer!r} asks for {total} {name}; the most is {limit}."
            return _refused("FL1707", cause, item)
    for name, amount in amounts.items():
        used[name] = used.get(name, 0) + amount
    return None


def _refused(code: str, cause: str, item: Asked) -> SpecError:
    return SpecError(code, cause, cure=ASK, where=Where(item.path))
