"""Whose turn it is: what is worked on for a project, which others come first, and what calls running work off. Pure."""

from __future__ import annotations

from collections.abc import Container

from reconciler.digests import digest_of
from reconciler.errors import ControllerError
from reconciler.looking import ProjectView, View
from reconciler.plan import Change


def work_key(item: ProjectView) -> str:
    """What is worked on for a project: newer content is content with another key."""
    if item.desired is None or item.desired.problems:
        return ""
    desired = item.desired
    return digest_of([desired.serving_digest, desired.gate_digest, sorted(desired.steps), desired.suspended])


def waits_for(item: ProjectView, view: View, running: Container[str]) -> str:
    """The projects that have to come first and are not there yet, for people."""
    if item.plan.change is Change.DELETE:
        return ", ".join(sorted(_users(item, view)))
    depends = item.desired.depends_on if item.desired else ()
    return ", ".join(name for name in depends if name in running or not is_there(view.projects.get(name)))


def is_there(item: ProjectView | None) -> bool:
    """Whether a project that others depend on has what it declares."""
    if item is None or item.desired is None:
        return False
    if item.plan.change is Change.SUSPENDED:
        return item.desired.run_digest in item.observed.models
    return item.plan.change is Change.NONE


def why_superseded(item: ProjectView | None, key: str) -> str:
    """Why work on the content `key` is called off, or nothing."""
    if item is None or item.desired is None:
        return "" if item is not None and item.unreachable else "the project is not declared any more"
    if item.desired.suspended:
        return "suspend is true"
    if item.desired.problems or work_key(item) == key:
        return ""  # what is not valid supersedes nothing
    if item.declared is not None and item.declared.finishes:
        return ""
    return "newer content was committed"


def declares_nothing(view: View) -> bool:
    """Whether nothing is declared any more while there is something to remove: more likely a mistake than a wish."""
    return bool(view.projects) and view.declared == 0


def nothing_declared() -> ControllerError:
    """What is said then, while nothing is removed."""
    return ControllerError(
        "FL9005",
        "The tracked branch declares no project any more, but there are services, or models to be deleted.",
        cure="If that is meant, set `allow_empty: true` in flops.yaml; otherwise revert the commit.",
    )


def somebody_else() -> ControllerError:
    """For a state directory that another controller works on."""
    return ControllerError(
        "FL9004",
        "Another reconciler works on this state directory.",
        cure="Wait for it or stop it; two never work on one state.",
        transient=True,
    )


def stopped() -> ControllerError:
    """For a loop that was ended before its time."""
    return ControllerError("FL9011", "It was stopped before it was done.", cure="Start it again.", transient=True)


def _users(item: ProjectView, view: View) -> set[str]:
    """The declared projects whose model is one of those to be deleted: new names of the same content. One of which it is not
    known what it declares might be such a one."""
    digests = {version.digest for version in item.versions}
    return {
        other.name
        for other in view.projects.values()
        if other.name != item.name and other.customer in (item.customer, "") and (_may_be_heir(other) or _digest(other) in digests)
    }


def _digest(other: ProjectView) -> str:
    return "" if other.desired is None or other.desired.problems else other.desired.run_digest


def _may_be_heir(other: ProjectView) -> bool:
    """Whether a project might be a new name of something, as nobody can read yet what it is. One that is not valid and has a
    history of its own is itself: it must not keep what others removed for as long as it stays broken (ADR 0019)."""
    if other.desired is None:
        return other.unreachable is not None
    return bool(other.desired.problems) and not other.document.get("inputs")
