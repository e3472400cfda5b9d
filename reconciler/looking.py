"""A look: fetch, declare, observe, plan – everything that is known of every project, and nothing changed by it.

A look must cost what *changed*, not what exists: whatever follows from the same objects as last time is last time's object. So
`View.changed` is all that anybody has to think about, and an idle look is a few Git processes and one pass over the names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler.asking import Asking
from reconciler.desired import DesiredState, Found, Resolve, Unresolved, customer_of
from reconciler.engine import Engine
from reconciler.errors import ControllerError, FlopsError, SourceError
from reconciler.noticing import Index, Seen, image_of
from reconciler.observe import (
    Versions,
    is_doomed,
    observe_project,
    observe_services,
    observe_undeclared,
    observe_without_registry,
)
from reconciler.plan import Change, DesiredProject, ObservedProject, Plan, ProjectPlan, plan, plan_project
from reconciler.registries import NOTHING as NOBODY
from reconciler.registries import Answer, Registries, not_answered
from reconciler.runtimes.model import Service
from reconciler.source.signatures import Signatures
from reconciler.stages import Declared
from reconciler.statusdoc import Document
from reconciler.tracking.model import RunInfo

NOTHING: Document = {}
REMOTE = "origin"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetch that has ended, and how."""

    error: FlopsError | None


@dataclass(slots=True, eq=False)
class ProjectView:
    """One project at one look; the same object as long as nothing of it changed but the commit that `declared` was read at.

    `desired` is None when it is not declared any more and only its service is left; `declared` is None when the SLA is not valid.
    `unreachable` says why the project could not be looked at.
    """

    name: str
    desired: DesiredProject | None
    declared: Declared | None
    plan: ProjectPlan
    document: Document
    service: Service | None = None
    versions: Versions = ()
    imaged: bool = False
    unreachable: FlopsError | None = None
    run: RunInfo | None = None
    """The recorded run of its digest, where it had to be looked for."""
    adopted: RunInfo | None = None
    """The run of this content under another name, when there is none under this one."""
    verified: bool | None = None
    """Whether the head of the branch is signed as policy asks; None when it asks for nothing."""

    @property
    def observed(self) -> ObservedProject:
        """What there is, as the plan took it; put together when somebody asks, as it is larger than what it is made of."""
        if self.unreachable is not None:
            return observe_without_registry(self.name, self.document, self.service, str(self.unreachable))
        if self.desired is None:
            return observe_undeclared(self.name, self.document, self.service)
        run = self.run or _ungated(self.adopted)
        return observe_project(self.desired, self.document, self.versions, self.service, run, imaged=self.imaged)

    @property
    def customer(self) -> str:
        """The project's owner; empty when nothing says it."""
        return self.desired.customer if self.desired else str(self.document.get("customer", ""))


@dataclass(frozen=True, slots=True)
class View:
    """What one look at the world gave; `changed` are the projects that differ from the last look or are new or gone."""

    commit: str
    projects: Mapping[str, ProjectView]
    changed: frozenset[str]
    unreachable: Mapping[str, FlopsError] = field(default_factory=dict)
    waiting: int = 0
    """Projects that wait for something outside to be known, such as the revision of an ML repo."""
    declared: int = 0
    """Projects that the commit has, valid or not."""
    held: frozenset[str] = frozenset()
    """Customers whose tracking servers have not answered yet: what they said last is shown, and nothing is started for them."""

    @property
    def desired(self) -> Sequence[DesiredProject]:
        """The declared projects, by name; those of which something is not known yet are left out."""
        return [item.desired for item in self.projects.values() if item.desired is not None]

    @property
    def plan(self) -> Plan:
        """The plans of all projects."""
        return Plan(tuple(item.plan for _, item in sorted(self.projects.items())))


class Looker:
    """Looks at one GitOps repo and what belongs to it; keeps what it saw."""

    def __init__(
        self,
        engine: Engine,
        resolve: Resolve | None = None,
        *,
        changed: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._desired = DesiredState(engine.ml_repos, engine.catalog, resolve, engine.clock, engine.config)
        self._closing = threading.Event()
        self._remote: Asking[FlopsError | None] = Asking(changed, monotonic=monotonic)
        self._fetch_again = False
        self._image_registry: Asking[None] = Asking(changed, monotonic=monotonic)
        self._servers: Asking[Answer] = Asking(changed, monotonic=monotonic)
        self._registries = Registries(
            engine.tracking_if_any, engine.registry_state, engine.forget_tracking, self._servers, monotonic
        )
        self._views: dict[str, ProjectView] = {}
        self._images: frozenset[str] = frozenset()
        self._index = Index({})
        self._seen = Seen(self._index)
        self._unreachable: set[str] = set()
        """The projects that could not be looked at: they are tried again whatever changed."""
        policy = engine.config.policy
        self._signatures = Signatures(
            engine.repo.path,
            policy.signed_commits,
            allowed_signers=policy.allowed_signers,
            gnupg_home=policy.gnupg_home,
            since=policy.signed_since,
        )
        self._signed = policy.signed_commits != "none"
        self._verified: bool | None = None
        self.commit = ""

    def be_patient(self, seconds: float) -> None:
        """Wait at most so long for anybody in one look, and go on without those who were slow before."""
        self._remote.patience = self._image_registry.patience = self._servers.patience = seconds

    def fetch(self, *, wanted: bool) -> Fetched | None:
        """Fetch, and wait a moment; what came of a fetch that has ended, wanted now or before.

        A remote that cannot be reached is not an empty repo: what was fetched last stays.
        """
        found = self._remote.answers(wait=False)
        if wanted or (found and self._fetch_again):
            # What is pushed while a fetch is on its way may have come too late for it.
            self._fetch_again = wanted and self._remote.since(REMOTE) is not None
            self._remote.ask(REMOTE, self._fetched)
            found |= self._remote.answers()
        return Fetched(found[REMOTE]) if found else None

    def doubt(self, customer: str) -> None:
        """Something was done for a customer: what its tracking server is saying just now may have been so before."""
        self._registries.doubt(customer)

    def close(self, seconds: float = 2.0) -> None:
        """End the fetch that is on its way."""
        self._closing.set()
        self._remote.rest(seconds)

    def _fetched(self) -> FlopsError | None:
        try:
            self._engine.repo.fetch(self._closing.is_set)
        except SourceError as error:
            return error
        return None

    def look(self, documents: Mapping[str, Document], *, complain: Callable[[FlopsError], None]) -> View:
        """Look once. `complain` is told of what is wrong with the repo while the look goes on with what is known.

        Raises SourceError when there is nothing to go on with.
        """
        with self._engine.telemetry.span("look") as span:
            view = self._look(documents, complain)
            span.set("flops.projects", len(view.projects))
            span.set("flops.changed", len(view.changed))
        return view

    def _look(self, documents: Mapping[str, Document], complain: Callable[[FlopsError], None]) -> View:
        engine = self._engine
        try:
            head = engine.repo.desired_commit(engine.config.branch)
            self.commit = self._signatures.believed(head)
            self._verified = self.commit == head if self._signed else None
            if self.commit != head:
                cause = f"The branch's head {head[:12]} is not signed by an allowed key; {self.commit[:12]} is still declared."
                complain(SourceError("FL1710", cause, cure="Sign it, or revert it.", transient=True))
        except SourceError as error:
            if not self.commit:
                raise
            self._verified = False if error.code == "FL1710" else self._verified
            # A branch that is gone is no commit that removes every project: what was declared last is still wanted.
            complain(error)
        found = self._desired.of(engine.repo.read_snapshot(self.commit), documents)
        if found is not self._index.found:
            self._index = Index(found)
        index = self._index
        doomed = {name: str(documents[name]["customer"]) for name in documents.keys() - index.names if is_doomed(documents[name])}
        said = self._ask(doomed)
        services = observe_services(engine.runtime, engine.config.instance)
        seen = Seen(index, dict(documents), services, said, self._images, self._verified)
        unreachable = {customer: answer.error for customer, answer in said.items() if answer.error}
        before, views = self._views, dict(self._views)
        undeclared = (services.keys() | doomed.keys()) - index.names
        owed = seen.differing(self._seen) | self._unreachable | undeclared | (before.keys() - index.names)
        for name in sorted(owed):
            document, service = documents.get(name, NOTHING), services.get(name)
            if (item := found.get(name)) is not None:
                made = self._safely(name, item, document, service, unreachable)
            elif name in undeclared:
                made = self._undeclared(name, document, service, unreachable.get(doomed.get(name, "")))
            else:
                views.pop(name, None)
                continue
            views[name] = made if made.verified is self._verified else replace(made, verified=self._verified)
        changed = frozenset(name for name in owed if views.get(name) is not before.get(name))
        self._views, self._seen = (views if changed else before), seen
        self._unreachable = {name for name in owed if name in views and views[name].unreachable is not None}
        late = self._registries.late
        return View(self.commit, self._views, changed, unreachable, index.waiting, len(found), late)

    def _ask(self, doomed: Mapping[str, str]) -> dict[str, Answer]:
        """Ask the tracking servers and the registry of images, side by side; what each customer's server said last."""
        there = self._engine.images.names()
        images = [name for name in self._index.images if name in there]
        if self._engine.images.due(images):
            self._image_registry.ask("images", lambda: self._engine.images.recheck(images))
        wanted = {customer: list[DesiredProject]() for customer in doomed.values() if customer} | self._index.wanted
        self._registries.ask(wanted, self._index.names)
        self._image_registry.answers()
        # Of images that the registry does not tell of in time the last word counts.
        self._images = there - self._engine.images.deleted(images)
        return {customer: self._registries.answer(customer) for customer in wanted}

    def _safely(
        self, name: str, item: Found, document: Document, service: Service | None, unreachable: dict[str, FlopsError]
    ) -> ProjectView:
        """One project's records, whatever is in them, keep no other project from being looked at."""
        try:
            return self._project(name, item, document, service, unreachable)
        except Exception as error:
            cause = f"What is recorded of the project cannot be read: {type(error).__name__}."
            told = ControllerError("FL9013", cause, cure="Please report it; the other projects go on.", transient=True)
            return self._unknown(name, None, None, document, service, told)

    def _project(
        self, name: str, item: Found, document: Document, service: Service | None, unreachable: dict[str, FlopsError]
    ) -> ProjectView:
        before = self._views.get(name)
        customer = customer_of(item)
        if isinstance(item, Unresolved):
            return self._unknown(name, None, None, document, service, item.error)
        declared = item if isinstance(item, Declared) else None
        desired = item.desired if isinstance(item, Declared) else item
        if error := unreachable.get(customer):
            return self._unknown(name, desired, declared, document, service, error)
        said = self._registries.answer(customer) if customer else NOBODY
        versions = said.versions.get(name, ())
        imaged = image_of(item) in self._images
        key = (name, desired.run_digest)
        run, adopted = said.runs.get(key), said.adopted.get(key)
        if (
            before is not None
            and before.desired is desired
            and before.versions is versions
            and before.document is document
            and before.unreachable is None
            and before.service == service
            and before.imaged == imaged
            and before.run == run
            and before.adopted == adopted
            and (not customer or said.knows(desired))
        ):
            before.declared = declared
            return before
        if customer and not said.knows(desired):
            return self._unknown(name, desired, declared, document, service, not_answered(customer))
        planned = plan_project(
            desired, observe_project(desired, document, versions, service, run or _ungated(adopted), imaged=imaged)
        )
        if before is not None and before.plan == planned:
            planned = before.plan
        return ProjectView(name, desired, declared, planned, document, service, versions, imaged, None, run, adopted)

    def _unknown(
        self,
        name: str,
        desired: DesiredProject | None,
        declared: Declared | None,
        document: Document,
        service: Service | None,
        error: FlopsError,
    ) -> ProjectView:
        before = self._views.get(name)
        if (
            before is not None
            and before.desired is desired
            and before.document is document
            and before.service == service
            and before.unreachable is not None
            and str(before.unreachable) == str(error)
        ):
            return before
        observed = observe_without_registry(name, document, service, str(error))
        planned = plan_project(desired, observed) if desired is not None else ProjectPlan(name, Change.UNKNOWN, str(error))
        return ProjectView(name, desired, declared, planned, document, service, unreachable=error)

    def _undeclared(self, name: str, document: Document, service: Service | None, error: FlopsError | None) -> ProjectView:
        before = self._views.get(name)
        if error is not None and service is None:
            return self._unknown(name, None, None, document, service, error)
        versions = self._registries.answer(str(document["customer"])).versions.get(name, ()) if is_doomed(document) else ()
        if (
            before is not None
            and before.desired is None
            and before.unreachable is None
            and before.service == service
            and before.document is document
            and before.versions == versions
        ):
            return before
        observed = observe_undeclared(name, document, service)
        planned = plan([], [observed]).projects[0]
        return ProjectView(name, None, None, planned, document, service, versions)


def _ungated(run: RunInfo | None) -> RunInfo | None:
    """Another project's run without the gates that it did not meet there."""
    return replace(run, rejected_gates=()) if run else None
