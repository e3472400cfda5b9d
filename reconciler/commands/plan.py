"""`flops plan`: text for people, JSON for machines, Markdown for the comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import orjson

from reconciler.controller import Controller
from reconciler.desired import DesiredState, Unresolved
from reconciler.digests import short
from reconciler.engine import Engine, open_engine
from reconciler.events import Observer
from reconciler.notify.texts import code
from reconciler.plan import (
    DEVELOPMENT,
    DesiredProject,
    ObservedModel,
    ObservedProject,
    ObservedService,
    Plan,
    ProjectPlan,
    Verb,
    changed_inputs,
    plan,
)
from reconciler.stages import Declared
from reconciler.statusdoc import read_documents

MARK = {Verb.RUN: "+", Verb.REUSE: "=", Verb.SKIP: "-"}


def show_plan(repo: Path, state: Path | None, base: str, head: str, form: str) -> int:
    """Print the plan; the exit code says whether there are changes."""
    engine = open_engine(repo, state)
    planned = _between(engine, base, head) if base or head else _now(engine)
    print(_FORMATS[form](planned))
    if any(item.change == "invalid" for item in planned.projects):
        return 2
    return 0 if planned.is_noop else 1


def _now(engine: Engine) -> Plan:
    return Controller(engine, Observer(engine.journal)).look(fetch=False).plan


def _between(engine: Engine, base: str, head: str) -> Plan:
    """The plan for `head` in a world where `base` is converged: what a merge would do, without asking any service."""
    documents = read_documents(engine.status.read())
    state = DesiredState(engine.ml_repos, engine.catalog, config=engine.config)

    def desired(revision: str) -> list[DesiredProject]:
        snapshot = engine.repo.read_snapshot(engine.repo.resolve(revision))
        found = state.of(snapshot, documents).values()
        for item in found:
            if isinstance(item, Unresolved):
                raise item.error
        return [item.desired if isinstance(item, Declared) else item for item in found if not isinstance(item, Unresolved)]

    before = {item.name: item for item in (desired(base) if base else [])}
    after = desired(head or engine.repo.desired_commit(engine.config.branch))
    observed = [_converged(item) for item in before.values() if not item.problems]
    planned = plan(after, observed)
    wanted = {item.name: item for item in after}
    return Plan(tuple(_with_inputs(item, before.get(item.name), wanted.get(item.name)) for item in planned.projects))


def _converged(project: DesiredProject) -> ObservedProject:
    model = ObservedModel(project.run_digest, "declared", gate_digest=project.gate_digest, aliases=(DEVELOPMENT,))
    service = ObservedService(project.serving_digest, project.run_digest, healthy=True)
    return ObservedProject(
        project.name,
        models={project.run_digest: model},
        trained=frozenset({project.run_digest}),
        images=frozenset({project.image_digest}),
        service=service,
        recorded=project.training,
    )


def _with_inputs(item: ProjectPlan, before: DesiredProject | None, after: DesiredProject | None) -> ProjectPlan:
    if before is None or after is None:
        return item
    return replace(item, inputs=changed_inputs(before.training, after.training))


def as_text(planned: Plan) -> str:
    """The plan for a terminal."""
    lines: list[str] = []
    for item in planned.projects:
        digest = f" ({short(item.run_digest)})" if item.run_digest else ""
        lines.append(f"{item.name}: {item.change}{digest} – {item.reason}")
        if item.is_noop:
            continue
        lines += [f"    {change.name}: {change.before or 'nothing'} → {change.after or 'nothing'}" for change in item.inputs]
        lines += [f"  {MARK[action.verb]} {action.stage:<9} {action.verb:<6} {action.reason}" for action in item.actions]
    lines.append("Nothing to do." if planned.is_noop else _summary(planned.projects))
    return "\n".join(lines)


def as_json(planned: Plan) -> str:
    """The plan for machines."""
    return orjson.dumps({"projects": [asdict(item) for item in planned.projects]}, option=orjson.OPT_INDENT_2).decode()


def as_markdown(planned: Plan) -> str:
    """The plan for a pull request: a table, and the stages behind a fold. Nothing that a tenant wrote acts in it."""
    lines = ["### Plan", "", "| project | what | why |", "| --- | --- | --- |"]
    lines += [f"| {_named(item.name)} | {item.change} | {code(item.reason)} |" for item in planned.projects]
    for item in planned.projects:
        if item.is_noop:
            continue
        # The line of a fold is HTML, where a code span is none.
        lines += ["", f"<details><summary>{escape(code(item.name).strip('`'))}: stages</summary>", ""]
        lines += ["| stage | | why |", "| --- | --- | --- |"]
        lines += [f"| {action.stage} | {action.verb} | {code(action.reason)} |" for action in item.actions]
        if item.inputs:
            lines += ["", "| input | from | to |", "| --- | --- | --- |"]
            lines += [f"| {code(c.name)} | {code(c.before)} | {code(c.after)} |" for c in item.inputs]
        lines += ["", "</details>"]
    lines += ["", "Nothing to do." if planned.is_noop else _summary(planned.projects)]
    return "\n".join(lines)


def _named(name: str) -> str:
    """A project's name; one that could be more than a name is shown as code."""
    return name if re.fullmatch(r"[A-Za-z0-9-]+", name) else code(name)


def _summary(projects: Sequence[ProjectPlan]) -> str:
    counts: dict[str, int] = {}
    for item in projects:
        counts[str(item.change)] = counts.get(str(item.change), 0) + 1
    return "Plan: " + ", ".join(f"{count} {change}" for change, count in sorted(counts.items())) + "."


_FORMATS = {"text": as_text, "json": as_json, "markdown": as_markdown}
