"""`flops reconcile --once`."""

from __future__ import annotations

import signal
from pathlib import Path

from rich.console import Console

from reconciler.commands.describe import stages_table
from reconciler.console import CycleConsole
from reconciler.controller import Controller
from reconciler.engine import open_engine
from reconciler.events import Observer
from reconciler.execution import Ending
from reconciler.running import Convergence, tidy
from reconciler.statusdoc import clean
from reconciler.terminal import show


def reconcile_once(repo: Path, state: Path | None, console: Console, *, tries: int, verbose: bool) -> int:
    """One cycle to convergence; 0 when everything is as declared, 1 when something stalled or will be retried."""
    engine = open_engine(repo, state)
    with CycleConsole(console, verbose=verbose) as screen:
        observer = Observer(engine.journal, (screen,))
        tidy(engine, observer)
        controller = Controller(engine, observer)
        signal.signal(signal.SIGTERM, lambda *_: controller.stop())
        result = controller.converge(tries)
    _show(console, result)
    problems = any(project.problems for project in result.view.desired)
    bad = any(item.ending is not Ending.DONE for item in result.executions.values())
    return 1 if bad or problems or not result.converged else 0


def _show(console: Console, result: Convergence) -> None:
    if not result.executions:
        console.print("Nothing to do: what runs is what is declared.")
    for name, execution in sorted(result.executions.items()):
        console.print(f"\n{name}: {execution.ending}", style="bold", markup=False, highlight=False)
        if execution.reports:
            show(console, stages_table(report.to_dict() for report in execution.reports))
    for project in result.view.desired:
        for problem in project.problems:
            where = f"{problem['path']}:{problem['line']}:{problem['column']}"
            text = f"{project.name}: {where} {problem['code']} {problem['cause']} {problem['cure']}"
            console.print(clean(text), style="red", markup=False, highlight=False)
