"""`flops status`, `flops logs`, `flops history`: status branch, observer and journal, for people and machines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console, RenderableType
from rich.live import Live

from reconciler.commands.describe import overview, page
from reconciler.console import line
from reconciler.digests import short
from reconciler.engine import Engine, open_engine
from reconciler.errors import ControllerError
from reconciler.stages.deploy import service_name
from reconciler.statusdoc import Document, Draft, clean, condition, read_documents
from reconciler.terminal import Listing, show

REFRESH = 1.0


def show_status(repo: Path, state: Path | None, console: Console, project: str, *, as_json: bool, watch: bool) -> int:
    """Print the status; 0 when everything shown is Ready and Synced, 1 otherwise."""
    engine = open_engine(repo, state)
    documents = _documents(engine, project, engine.status.read())
    if as_json:
        print(orjson.dumps({"projects": list(documents.values())}, option=orjson.OPT_INDENT_2).decode())
    elif not watch:
        show(console, _shown(documents, project))
    if watch:
        _watch(engine, console, project, documents, as_json=as_json)
    return 0 if all(_good(document) for document in documents.values()) else 1


def _watch(engine: Engine, console: Console, project: str, documents: Mapping[str, Document], *, as_json: bool) -> None:
    """Show every change until interrupted: in place on a terminal, one below the other elsewhere, a document each as JSON."""
    with Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else nullcontext() as live:
        shown: Mapping[str, Document] | None = documents if as_json else None
        tip, files = "", dict[str, bytes]()
        while True:
            if documents != shown:
                shown = documents
                if as_json:
                    print(orjson.dumps({"projects": list(documents.values())}).decode(), flush=True)
                elif live:
                    live.update(_shown(documents, project), refresh=True)
                else:
                    show(console, _shown(documents, project))
            time.sleep(REFRESH)
            if (now := engine.status.tip()) != tip:
                tip, files = now, engine.status.read()
            documents = _documents(engine, project, files)


def _shown(documents: Mapping[str, Document], project: str) -> RenderableType:
    return page(documents[project]) if project else overview(documents)


def show_logs(repo: Path, state: Path | None, console: Console, project: str, *, follow: bool, service: bool) -> None:
    """Print a project's events, or its server's own log."""
    engine = open_engine(repo, state)
    if service:
        for text in engine.runtime.logs(service_name(project)):
            console.print(clean(text), markup=False, highlight=False, soft_wrap=True)
        return
    last = 0
    while True:
        for event in engine.journal.events(project, after=last):
            last = event.id
            console.print(line(event), highlight=False, soft_wrap=True)
        if not follow:
            return
        time.sleep(REFRESH / 2)


def show_history(repo: Path, state: Path | None, console: Console, project: str, *, as_json: bool) -> None:
    """Print every run of a stage that the journal has of a project."""
    records = open_engine(repo, state).journal.stages(project)
    if as_json:
        rows = [
            {
                "digest": item.digest, "stage": item.stage, "commit": item.commit, "started": item.started,
                "seconds": item.seconds, "result": item.result, "message": item.message,
            }
            for item in records
        ]  # fmt: skip
        print(orjson.dumps({"stages": rows}, option=orjson.OPT_INDENT_2).decode())
        return
    table = Listing("when", "commit", "digest", "stage", "result", "seconds", "says", prose=("when", "says"), right=("seconds",))
    for item in records:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.started))
        seconds = f"{item.seconds:.2f}" if item.seconds is not None else ""
        result = item.result or "cut off"
        table.add_row(when, item.commit[:8], short(item.digest), item.stage, result, seconds, clean(item.message))
    show(console, table)


def _documents(engine: Engine, project: str, files: Mapping[str, bytes]) -> dict[str, Draft]:
    documents = read_documents(files)
    if project and project not in documents:
        raise ControllerError(
            "FL9006",
            f"There is no status of a project {project!r}.",
            cure=f"Known are: {', '.join(sorted(documents)) or 'none; run `flops reconcile --once` first'}.",
        )
    services = {service.name: service for service in engine.runtime.observe()}
    chosen = {name: document for name, document in documents.items() if not project or name == project}
    for name, document in chosen.items():
        service = services.get(service_name(name))
        document["live"] = {"healthy": service.healthy, "restarts": service.restarts} if service else None
    return chosen


def _good(document: Mapping[str, Any]) -> bool:
    found = [condition(dict(document), kind) or {} for kind in ("Synced", "Ready")]
    return all(item.get("status") == "True" for item in found)
