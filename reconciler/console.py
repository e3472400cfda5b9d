"""What a person sees while a cycle runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from reconciler.journal import Event
from reconciler.statusdoc import clean

_STYLES = {"error": "bold red", "warning": "yellow", "stage": "cyan", "plan": "bold", "round": "green"}
_QUIET = frozenset({"build", "data", "traceback", "log", "learner", "ended"})
"""Kinds that only `flops logs` shows on a terminal: they come in hundreds."""


class CycleConsole:
    """A listener for the observer; use it as a context manager around a cycle."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("[bold]{task.fields[project]}"),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, event: Event) -> None:
        if self._bars:
            self._advance(event)
        if self._verbose or not (event.kind in _QUIET or event.message.endswith(" …")):
            self._console.print(line(event), highlight=False, soft_wrap=True)

    def _advance(self, event: Event) -> None:
        assert self._bars is not None  # noqa: S101 – the caller looked
        if event.project not in self._tasks:
            self._tasks[event.project] = self._bars.add_task("", total=None, project=escape(event.project or "cycle"))
        task = self._tasks[event.project]
        total = event.data.get("total") or None
        if event.kind == "round" and total:
            self._bars.update(task, description="rounds", total=int(total), completed=int(event.data.get("round", 0)))
        else:
            self._bars.update(task, description=escape(clean(event.message)[:60]))


def line(event: Event) -> str:
    """One event as one line of markup: time, project, message."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    style = _STYLES.get(event.kind, "")
    message = escape(clean(event.message))
    shown = f"[{style}]{message}[/]" if style else message
    return f"[dim]{clock}[/] {escape(event.project or 'flops'):<16} {shown}"
