"""What the loop costs: an idle look, one commit to action, many projects at once, in a world where training costs nothing – and the
curve of both: projects that exist × projects that a commit changes.

Run: `python -m bench.controller [N …]`. Real Git, real journal, real status branch; see `bench/null_world.py` for what is not. The
idle loop is a process of its own that has done nothing but look, as after a restart; the world that it looks at is in its memory
and counts. Writes `bench/results/controller.json`.
"""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import psutil
from rich.console import Console
from rich.table import Table

from bench.null_world import NullEngine, NullExecutor, World, null_engine
from bench.site import Site, git, record
from reconciler.controller import Controller
from reconciler.events import Observer
from reconciler.looking import Looker, ProjectView
from reconciler.plan import Stage
from reconciler.spec import OperatorConfig
from reconciler.statusdoc import read_documents

SIZES = (100, 1000, 10_000)
CHANGED = (0, 1, 10, 100, 1000)
WORLD = "world.pickle"
LOADED = time.time()
Rows = list[tuple[str, str, str, str]]


def main(sizes: list[int]) -> int:
    """Measure each size and print two tables."""
    rows: Rows = []
    curve = Table(title="A look after a commit, seconds from trigger to plan (and of it the loop's own CPU time)")
    for column in ("projects", "memory", *(f"{changed} changed" for changed in CHANGED)):
        curve.add_column(column)
    for count in sizes or list(SIZES):
        folder = Path(tempfile.mkdtemp(prefix="flops-bench-"))
        try:
            curve.add_row(str(count), *measure(folder, count, rows))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    table = Table(title="The loop")
    for column in ("projects", "what", "measured", "target"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console = Console(width=130)
    console.print(table, curve)
    return 0


def measure(folder: Path, count: int, rows: Rows) -> list[str]:
    """The rows of one size; its line of the curve."""
    seconds, busy = prepared(folder, count)
    site = Site(folder)
    before = _commits(site)
    idle = run_child("idle", folder, count)
    made = _commits(site) - before
    action = run_child("action", folder, count)
    found = {
        f"all of {count} new, to convergence and published": (f"{seconds:.2f} s, {count / seconds:.0f}/s", "≥ 200/s"),
        "idle look, cold (nothing in memory)": (f"{idle['cold']:.3f} s", ""),
        "idle look, warm, with fetch": (f"{idle['warm']:.3f} s", "≤ 0.5 s" if count <= 1000 else "≤ 2 s"),
        "status commits of 6 idle looks": (str(made), "0"),
        "memory (RSS) of the idle loop": (f"{idle['memory']:.0f} MiB", "≤ 150 MiB"),
        "memory (RSS) of the loop that has done all": (f"{busy:.0f} MiB", ""),
        f"a trigger after a commit that changes 1 of {count}, to action": (f"{action['action']:.3f} s", "≤ 0.3 s"),
    }
    rows += [(str(count), what, measured, target) for what, (measured, target) in found.items()]
    line = run_child("curve", folder, count)
    results = {"converge_per_second": count / seconds, "busy_memory_mib": busy, "idle_commits": made, **idle, **action}
    record("controller", {f"{count}": {**results, "curve": line}})
    return [f"{idle['memory']:.0f} MiB"] + [
        f"{line[key]:.3f} ({line[f'{key}_cpu']:.3f})" if (key := f"changed_{changed}") in line else "" for changed in CHANGED
    ]


def prepared(folder: Path, count: int) -> tuple[float, float]:
    """A site whose projects are all done, and its world written down: how long that took, and the memory after it in MiB."""
    site, world = Site.made(folder, count), World()
    engine = null_engine(site.clone, folder / "state", world)
    controller = Controller(engine, Observer(engine.journal), execute=NullExecutor(engine))
    seconds = _timed(controller.converge)
    busy = _memory()
    kept = {name: value for name, value in vars(world).items() if name != "lock"}
    (folder / WORLD).write_bytes(pickle.dumps(kept))
    return seconds, busy


def run_child(what: str, folder: Path, count: int) -> dict[str, float]:
    """Figures of a process of its own: memory is what that process needs, and nothing that was there before."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.controller", what, str(folder), str(count)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = orjson.loads(done.stdout.splitlines()[-1])
    return found


def idle(folder: Path, _count: int) -> dict[str, float]:
    """An idle loop: its first look, its later looks, its memory."""
    engine, observer = _found(folder)
    controller = Controller(engine, observer, execute=NullExecutor(engine))
    controller.wake()
    cold = _timed(controller.step)
    warm = []
    for _ in range(5):
        controller.wake()
        warm.append(_timed(controller.step))
    return {"cold": cold, "warm": min(warm), "memory": _memory(), "import": LOADED - psutil.Process().create_time()}


def action(folder: Path, _count: int) -> dict[str, float]:
    """Commits that change one project, each from the trigger to the project's first stage."""
    engine, observer = _found(folder)
    started: list[float] = []

    def note(_view: ProjectView, stage: Stage) -> None:
        if stage is Stage.RESOLVE:
            started.append(time.perf_counter())

    site = Site(folder)
    controller = Controller(engine, observer, execute=NullExecutor(engine, note))
    thread = threading.Thread(target=controller.serve)
    thread.start()
    while controller.view is None:
        time.sleep(0.01)
    found = []
    for change in range(9):
        time.sleep(0.5)
        site.write(change, 10 + change)
        site.push("One")
        started.clear()
        pushed = time.perf_counter()
        controller.wake()
        while not started:
            time.sleep(0.001)
        found.append(started[0] - pushed)
    controller.stop()
    thread.join()
    return {"action": sorted(found)[len(found) // 2]}


def curve(folder: Path, count: int) -> dict[str, float]:
    """Looks after commits that change so many projects, with nothing carried out."""
    engine, _ = _found(folder)
    site, looker = Site(folder), Looker(engine)
    documents = read_documents(engine.status.read())
    looker.fetch(wanted=True)
    looker.look(documents, complain=_raise)
    found: dict[str, float] = {}
    for changed in (changed for changed in CHANGED if changed <= count):
        taken = []
        for turn in range(3):
            for number in range(changed):
                site.write(number, 100 + 10 * turn + len(str(changed)))
            if changed:
                site.push(f"{changed} projects")
            began, cpu = time.perf_counter(), time.process_time()
            looker.fetch(wanted=True)
            view = looker.look(documents, complain=_raise)
            taken.append((time.perf_counter() - began, time.process_time() - cpu))
            if len(view.changed) != changed:
                raise RuntimeError(f"{len(view.changed)} projects changed, not {changed}")
        found[f"changed_{changed}"], found[f"changed_{changed}_cpu"] = min(taken)
    return found


def _raise(error: Exception) -> None:
    raise error


def _found(folder: Path) -> tuple[NullEngine, Observer]:
    """The engine over a world that another process has made."""
    world = World(**pickle.loads((folder / WORLD).read_bytes()))
    engine = null_engine(folder / "clone", folder / "state", world, OperatorConfig())
    return engine, Observer(engine.journal)


def _memory() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def _commits(site: Site) -> int:
    return int(git(site.clone, "rev-list", "--count", "status/default"))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


CHILDREN = {"idle": idle, "action": action, "curve": curve}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CHILDREN:
        print(orjson.dumps(CHILDREN[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))).decode())
        sys.exit(0)
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
