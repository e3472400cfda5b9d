"""The ledger: every project's status document as the loop has decided it, written on transitions only.

It is what the next look reads (which content stalled, what was worked on last), so that deciding never waits for publishing. The
status branch is its copy; it is read once, at the start. Nothing gets into it unmasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler import project_status
from reconciler.conditions import Reason
from reconciler.execution import Ending, Execution
from reconciler.looking import ProjectView
from reconciler.plan import Change, ProjectPlan
from reconciler.redaction import mask_data
from reconciler.statusdoc import Document, Kept, condition, same


@dataclass(frozen=True, slots=True)
class Finished:
    """Work that ended: what it was planned from, for which content and commit, and what came of it."""

    view: ProjectView
    key: str
    commit: str
    execution: Execution

    @property
    def plan(self) -> ProjectPlan:
        """The plan that was carried out."""
        return self.view.plan


@dataclass(slots=True)
class Ledger:
    """The documents by project; `dirty` when they differ from what was offered for publishing last."""

    documents: dict[str, Kept] = field(default_factory=dict)
    dirty: bool = False

    def take_dirty(self) -> dict[str, Kept] | None:
        """The documents, once after each change."""
        if not self.dirty:
            return None
        self.dirty = False
        return dict(self.documents)

    def begun(self, view: ProjectView) -> None:
        """A plan is being carried out."""
        self._set(view.name, project_status.progressing(view))

    def remember(self, done: Finished) -> None:
        """Write down what the next look has to know of finished work; its document follows after that look."""
        desired, name = done.view.desired, done.view.name
        if done.plan.change is Change.DELETE and done.execution.ending is Ending.DONE:
            self.forget(name)  # until here it was the inventory
        if desired is not None and name in self.documents:
            before = self.documents[name]
            made = project_status.facts(before, desired.serving_digest, desired.training, done.execution)
            if made is not before:
                self.documents[name] = Kept(mask_data(made))

    def finished(self, view: ProjectView, key: str, done: Finished) -> None:
        """The document after finished work; `view` is of a look after it, `key` that of what is declared now."""
        execution = done.execution
        if execution.ending in {Ending.CANCELLED, Ending.SUPERSEDED}:
            self.settled(view)
            return
        if key != done.key:
            # What it said of its model and its error is about content that is not declared any more.
            execution = Execution(Ending.DONE, execution.message, execution.reports)
        self._set(view.name, project_status.finished(view, done.commit, done.plan, execution))

    def settled(self, view: ProjectView) -> None:
        """Nothing is being done for the project."""
        self._set(view.name, project_status.settled(view))

    def fought_over(self, view: ProjectView) -> None:
        """Something undoes what is done for the project."""
        self._set(view.name, project_status.fought_over(view))

    def waits(self, view: ProjectView, others: str) -> None:
        """The project's turn comes after others."""
        document = project_status.waiting(view, others)
        before: Document = self.documents.get(view.name, {})
        found = condition(before, "Reconciling") or {}
        if found.get("reason") != Reason.DEPENDENCY_NOT_READY or found != condition(document, "Reconciling"):
            self._set(view.name, document)

    def forget(self, name: str) -> None:
        """The project is not declared any more."""
        self.dirty = self.documents.pop(name, None) is not None or self.dirty

    def load(self, documents: Mapping[str, Kept]) -> None:
        """Start from what was published."""
        self.documents = dict(documents)

    def _set(self, name: str, document: Document) -> None:
        before, made = self.documents.get(name), Kept(mask_data(document))
        if before is None or not same(before, made):
            self.documents[name] = made
            self.dirty = True
