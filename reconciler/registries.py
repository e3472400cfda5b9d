"""The tracking servers of all customers, asked side by side: one that hangs or fails says nothing about its own customer's projects
and delays nobody else's.

A server is asked again whenever it *may* have changed; one whose files are as they were when it was last asked has nothing new to
say. All that one answer says was asked after whatever `doubt` was last told of, so nothing is planned from what was so before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from reconciler.asking import Asking
from reconciler.errors import ControllerError, FlopsError
from reconciler.observe import Registry, Versions, needs_run
from reconciler.plan import DesiredProject
from reconciler.tracking.model import ModelVersion, RunInfo

Key = TypeVar("Key", bound=Hashable)
RegistryIfAny = Callable[[str], Registry | None]
LIMIT = 30.0
"""Seconds without an answer after which what was said last does not count any more."""
_AGAIN = "It is looked at when it answers; nothing is trained or removed until then."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a customer's tracking server said; `state` is the state of its files before, None when that cannot be known."""

    state: object = None
    wanted: Sequence[DesiredProject] = ()
    """The projects whose runs were asked for, as far as that was necessary."""
    error: FlopsError | None = None
    registry: Registry | None = None
    versions: Mapping[str, Versions] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    projects: Mapping[str, str] = field(default_factory=dict)
    """Which project registered a digest."""
    runs: Mapping[tuple[str, str], RunInfo | None] = field(default_factory=dict)
    """The recorded runs by project and digest."""
    adopted: Mapping[tuple[str, str], RunInfo] = field(default_factory=dict)
    """The same, of projects that are not declared any more, by the new name of their content."""

    def knows(self, desired: DesiredProject) -> bool:
        """Whether the runs of a project were asked for, where that is necessary."""
        return (desired.name, desired.run_digest) in self.runs or not needs_run(desired, self.versions.get(desired.name, ()))

    def differing(self, before: Answer) -> frozenset[str] | None:
        """The projects of which it says something else than an answer before; None where that may be all of them."""
        if self.error is not None or before.error is not None:
            return None
        runs = {name for name, _ in differing(before.runs, self.runs) | differing(before.adopted, self.adopted)}
        return frozenset(differing(before.versions, self.versions) | runs)


def differing(before: Mapping[Key, object], after: Mapping[Key, object]) -> set[Key]:
    """The keys under which another object is, or none any more."""
    return {key for key, item in after.items() if before.get(key) is not item} | (before.keys() - after.keys())


NOTHING = Answer()


class Registries:
    """What every customer's tracking server said last. `forget` is called for one that did not answer."""

    def __init__(
        self,
        registry: RegistryIfAny,
        state: Callable[[str], object],
        forget: Callable[[str], None],
        asking: Asking[Answer],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._state, self._forget = registry, state, forget
        self._asking, self._monotonic = asking, monotonic
        self._known: dict[str, Answer] = {}
        self._late: frozenset[str] = frozenset()

    def ask(self, wanted: Mapping[str, Sequence[DesiredProject]], declared: frozenset[str]) -> None:
        """Ask about these customers' projects, and wait a moment for the answers; `declared` are the names of all projects.

        A server that was never made has nothing in it, and none has to be started to know that.
        """
        fresh = self._asking.answers(wait=False)
        self._take(fresh)
        asked = set()
        for customer, projects in wanted.items():
            known = self._known.get(customer, NOTHING)
            state = self._state(customer)
            told = customer in fresh and known.state == state
            same = known.error is None and state is not None and known.state == state
            if (told or same) and known.wanted == projects:
                continue
            asked.add(customer)
            before = known if same else NOTHING
            self._asking.ask(customer, partial(self._question, customer, state, before, projects, declared))
        answers = self._asking.answers() if asked else {}
        self._take(answers)
        self._late = frozenset(asked - answers.keys())
        self._known = {customer: answer for customer, answer in self._known.items() if customer in wanted}
        self._asking.keep(wanted)

    def answer(self, customer: str) -> Answer:
        """What the customer's server said last; `error` says why nothing is known of it."""
        known = self._known.get(customer)
        if known is None or (customer in self._late and known.error is None and (self._asking.since(customer) or 0.0) > LIMIT):
            return Answer(error=not_answered(customer))
        return known

    @property
    def late(self) -> frozenset[str]:
        """The customers whose servers have not answered yet: what they said last is shown, and nothing is done for them."""
        return self._late

    def doubt(self, customer: str) -> None:
        """Something was done for a customer: what is on its way may have been said before."""
        self._asking.doubt(customer)

    def _take(self, answers: Mapping[str, Answer]) -> None:
        """What is equal stays the same object, so that everything that follows from it need not be worked out again."""
        for customer, answer in answers.items():
            before = self._known.get(customer, NOTHING).error
            same = answer.error is not None and before is not None and str(answer.error) == str(before)
            self._known[customer] = replace(answer, error=before) if same else answer

    def _question(
        self, customer: str, state: object, before: Answer, wanted: Sequence[DesiredProject], declared: frozenset[str]
    ) -> Answer:
        """Ask one server for everything that is to be known of it. `before` is what is still so."""
        until = self._monotonic() + LIMIT if math.isfinite(self._asking.patience) else math.inf
        try:
            said = before if before is not NOTHING else self._said(customer)
            runs, adopted = dict(before.runs), {}

            def run(name: str, digest: str) -> RunInfo | None:
                if (name, digest) not in runs:
                    if self._monotonic() > until:
                        raise not_answered(customer)
                    ask = said.registry if name in said.recorded else None
                    runs[name, digest] = ask.run_with_digest(name, customer, digest) if ask else None
                return runs[name, digest]

            for desired in wanted:
                digest = desired.run_digest
                if needs_run(desired, said.versions.get(desired.name, ())) and run(desired.name, digest) is None:
                    other = said.projects.get(digest)
                    if other is not None and other not in declared and (found := run(other, digest)) is not None:
                        adopted[desired.name, digest] = found
        except FlopsError as error:
            self._forget(customer)
            return Answer(state, wanted, error)
        except Exception as error:
            self._forget(customer)
            cause = f"What the tracking server of customer {customer} says cannot be read: {type(error).__name__}."
            return Answer(
                state, wanted, ControllerError("FL9023", cause, cure="Check its version; it is asked again.", transient=True)
            )
        return Answer(state, wanted, None, said.registry, said.versions, said.recorded, said.projects, runs, adopted)

    def _said(self, customer: str) -> Answer:
        registry = self._registry(customer)
        if registry is None:
            return Answer()
        found = registry.versions(customer)
        by_project: dict[str, list[ModelVersion]] = {}
        for version in found:
            by_project.setdefault(version.project, []).append(version)
        known = self._known.get(customer, NOTHING).versions
        versions = {
            name: known[name] if name in known and known[name] == tuple(items) else tuple(items)
            for name, items in by_project.items()
        }
        projects = {version.digest: version.project for version in found if version.digest}
        return Answer(registry=registry, versions=versions, recorded=registry.projects_with_runs(customer), projects=projects)


def not_answered(customer: str) -> ControllerError:
    """For a customer of whom nothing is known, since the server is silent."""
    return ControllerError(
        "FL9022", f"The tracking server of customer {customer} has not answered yet.", cure=_AGAIN, transient=True
    )
