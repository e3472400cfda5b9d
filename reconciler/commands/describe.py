"""Status documents as a person reads them: a table of all projects, a page for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from reconciler.digests import short
from reconciler.statusdoc import Document, clean, condition
from reconciler.terminal import Listing


def overview(documents: Mapping[str, Document]) -> RenderableType:
    """A row for each project, and below them what is not as it should be."""
    table = Listing("project", "synced", "ready", "model", "accuracy", "serves at", prose=("model",))
    remarks: list[RenderableType] = []
    for name, document in sorted(documents.items()):
        marks = [_mark(condition(document, kind) or {}) for kind in ("Synced", "Ready")]
        table.add_row(name, *marks, _version(document), _accuracy(document), _address(document))
        remarks += [
            Text(f"{name}: {kind}: {clean(item['message'])}")
            for kind in ("Stalled", "Suspended", "Reconciling")
            if (item := condition(document, kind))
        ]
    return Group(table, *([""] if remarks else []), *remarks)


def page(document: Document) -> RenderableType:
    """Everything that the status says of one project."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in _facts(document):
        if value:
            facts.add_row(name, escape(clean(value)))
    parts: list[RenderableType] = [facts, "", _conditions(document)]
    if document.get("stages"):
        parts += ["", stages_table(document["stages"])]
    error = document.get("error")
    if error:
        where = f"{error['path']}:{error['line']}: " if error.get("path") and error.get("line") else ""
        parts.append(Text(clean(f"{where}{error['code']} {error['cause']} {error['cure']}"), style="bold red"))
    return Group(*parts)


def _facts(document: Document) -> list[tuple[str, str]]:
    ml_repo, model, training = (document.get(key) or {} for key in ("ml_repo", "model", "training"))
    dataset = document.get("dataset") or {}
    lock = document.get("lock") or {}
    metrics = {**(model.get("metrics") or {}), **{f"held out {key}": value for key, value in (model.get("holdout") or {}).items()}}
    best = f", best round {model['best_round']}" if model.get("best_round") else ""
    return [
        ("project", f"{document.get('name', '')} of {document.get('customer', '')}"),
        ("commit", str(document.get("commit", ""))[:12]),
        ("last change", str(document.get("change", ""))),
        ("digest", str(document.get("digest", ""))[:32]),
        ("ML repo", f"{ml_repo['url']} at {ml_repo['commit'][:12]}" if ml_repo.get("url") else ""),
        ("dataset", " ".join(str(dataset[key]) for key in ("name", "tag") if key in dataset)),
        ("environment", f"{short(str(lock['digest']))} for Python {lock.get('python', '')}" if lock.get("digest") else ""),
        ("", "\n".join(lock.get("report") or ())),
        ("model", f"{model.get('name', '')} {_version(document)} {', '.join(model.get('aliases', ()))}{best}" if model else ""),
        ("metrics", ", ".join(f"{key} {_number(value)}" for key, value in metrics.items())),
        ("sandbox", str(training.get("sandbox", ""))),
        ("serves at", _address(document)),
    ]


def _conditions(document: Document) -> Table:
    table = Listing("condition", "status", "reason", "says", prose=("says",))
    for item in document.get("conditions", ()):
        good = (item["status"] == "True") == (item["type"] in {"Synced", "Ready", "SourceVerified"})
        table.add_row(
            item["type"], Text(item["status"], "green" if good else "red"), item["reason"], escape(clean(item["message"]))
        )
    return table


def stages_table(stages: Iterable[Mapping[str, Any]]) -> Table:
    """A row for each stage (`stage`, `result`, `seconds`, `message`)."""
    table = Listing("stage", "result", "seconds", "says", prose=("says",), right=("seconds",))
    for item in stages:
        table.add_row(item["stage"], item["result"], f"{item['seconds']:.2f}", escape(clean(item["message"])))
    return table


def _version(document: Document) -> str:
    model = document.get("model") or {}
    return f"v{model['version']} {short(model['digest'])}" if model.get("version") else ""


def _accuracy(document: Document) -> str:
    model = document.get("model") or {}
    metrics = model.get("holdout") or model.get("metrics") or {}
    return _number(metrics["accuracy"]) if isinstance(metrics.get("accuracy"), float) else ""


def _address(document: Document) -> str:
    service, live = document.get("service") or {}, document.get("live")
    return f"{service.get('address', '')}{'' if live and live['healthy'] else ' (down)'}" if service else ""


def _number(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4f}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _mark(found: Mapping[str, Any]) -> str:
    good = found.get("status") == "True"
    return f"[{'green' if good else 'red'}]{'✓' if good else '✗'}[/] {found.get('reason', '')}"
