"""Whose turn it is: what is worked on for a project, which others come first, and what calls running work off. Pure."""

from __future__ import annotations

from collections.abc import Container

from reconciler.digests import digest_of
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
    if item.declared is not None and item.declared.sla.on_change == "finish":
        return ""
    return "newer content was committed"


def declares_nothing(view: View) -> bool:
    """Whether services run and nothing is declared any more: more likely a mistake than a wish."""
    return view.services > 0 and all(item.plan.change is Change.PRUNE for item in view.projects.values())
