"""The base case's figures, all in one run, as ratios where something can be compared.

* merge → serving with warm caches, against the 769 s that FLOps took on its own hardware
* training wall time against the same learning in one plain Python loop, in the same environment
* revert → the old model answers
* a cycle with nothing to do on 100 projects, after start-up, and the status commits that it made (0)

Run: `make bench`. Writes `bench/results/base_case.json`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from bench.workbench import Workbench, make
from reconciler.controller import Controller
from reconciler.engine import open_engine
from reconciler.events import Observer
from reconciler.runtime_version import mlruntime_dir

PROJECT = "mnist-classic"
FLOPS_SECONDS = 769.0
PROJECTS = 100
Row = tuple[str, str, str, str]


def main() -> int:
    """Measure everything and print one table."""
    results: dict[str, float] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="flops-bench-") as root:
        warm_caches(Path(root) / "warm")
        bench = make(Path(root) / "base")
        try:
            results |= _merge_to_serving(bench, rows)
            results |= _plain_loop(bench, results["train_seconds"], rows)
            results |= _revert(bench, rows)
        finally:
            bench.stop()
        results |= _idle(Path(root) / "idle", rows)
    _show(rows)
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    (out / "base_case.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def warm_caches(root: Path) -> None:
    """Fetch the data and build the environment once, so that the figures are about the work and not the network."""
    bench = make(root)
    bench.edit_sla(PROJECT, "training_rounds: 3", "training_rounds: 1")
    bench.commit("One round")
    try:
        bench.flops("reconcile", "--once")
    finally:
        bench.stop()


def _merge_to_serving(bench: Workbench, rows: list[Row]) -> dict[str, float]:
    seconds = _timed(lambda: bench.flops("reconcile", "--once"))
    stages = {item["stage"]: float(item["seconds"] or 0) for item in bench.history(PROJECT)}
    ratio = f"{FLOPS_SECONDS / seconds:.0f}× less than FLOps' 769 s (its hardware)"
    rows.append(("merge → serving, warm", f"{seconds:.1f} s", "≤ 20 s", ratio))
    rows += [(f"    {stage}", f"{took:.2f} s", "", "") for stage, took in stages.items()]
    return {"merge_to_serving_seconds": seconds, "train_seconds": stages["train"]}


def _plain_loop(bench: Workbench, train: float, rows: list[Row]) -> dict[str, float]:
    run_dir = next((bench.clone / ".flops" / "runs" / PROJECT).iterdir())
    job = run_dir / "job.json"
    content = orjson.loads(job.read_bytes())
    script = Path(__file__).parent / "plain_loop.py"
    environment = {"PYTHONPATH": str(mlruntime_dir()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([content["python"], str(script), str(job)], env=environment, capture_output=True, text=True, check=True)
    loop = orjson.loads(done.stdout.splitlines()[-1])
    limit = 2 * loop["seconds"] + 5
    rows.append(("training, all of the stage", f"{train:.2f} s", f"≤ {limit:.2f} s", f"{train / loop['seconds']:.2f}× the loop"))
    rows.append(("    plain Python loop", f"{loop['seconds']:.2f} s", "", f"accuracy {loop['accuracy']:.4f}"))
    return {"plain_loop_seconds": loop["seconds"]}


def _revert(bench: Workbench, rows: list[Row]) -> dict[str, float]:
    first = bench.status(PROJECT)["digest"]
    bench.edit_sla(PROJECT, "training_rounds: 3", "training_rounds: 4")
    bench.commit("Four rounds")
    bench.flops("reconcile", "--once")
    address = bench.status(PROJECT)["service"]["address"]
    bench.git("revert", "--no-edit", "HEAD")
    bench.git("push", "-q", "origin", "HEAD:main")
    started = time.monotonic()
    reconciler = subprocess.Popen(
        [sys.executable, "-m", "reconciler.cli", "reconcile", "--once"], cwd=bench.clone, stdout=subprocess.DEVNULL
    )
    with httpx.Client() as client:
        while client.get(f"http://{address}/version").json()["digest"] != first:
            if time.monotonic() - started > 60:
                raise RuntimeError("the first model did not come back")
            time.sleep(0.02)
    seconds = time.monotonic() - started
    reconciler.wait()
    rows.append(("revert → old model answers", f"{seconds:.2f} s", "≤ 3 s", "with the start of the command"))
    return {"revert_seconds": seconds}


def _idle(root: Path, rows: list[Row]) -> dict[str, float]:
    """A hundred converged projects: made by rule from the example, suspended so that nothing is trained for the figure."""
    bench = make(root)
    example = bench.clone / "projects" / PROJECT
    for number in range(PROJECTS - 1):
        copy = bench.clone / "projects" / f"p{number:03}"
        copy.mkdir()
        for name in ("sla.yaml", "mock_data.yaml"):
            shutil.copy(example / name, copy / name)
        sla = copy / "sla.yaml"
        sla.write_text(sla.read_text() + "suspend: true\n")
    bench.commit("A hundred projects")
    bench.flops("reconcile", "--once")
    engine = open_engine(bench.clone)
    controller = Controller(engine, Observer(engine.journal))
    before = bench.git("rev-list", "--count", "status/default")
    cold = _timed(lambda: _cycle(controller))
    warm = min(_timed(lambda: _cycle(controller)) for _ in range(5))
    commits = int(bench.git("rev-list", "--count", "status/default")) - int(before)
    bench.stop()
    rows.append((f"idle cycle, {PROJECTS} projects, first", f"{cold:.3f} s", "≤ 0.5 s", f"{commits} commits"))
    rows.append((f"idle cycle, {PROJECTS} projects, warm", f"{warm:.3f} s", "≤ 0.5 s", ""))
    return {"idle_cold_seconds": cold, "idle_warm_seconds": warm, "idle_commits": commits}


def _cycle(controller: Controller) -> None:
    controller.wake()
    controller.step()


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _show(rows: list[Row]) -> None:
    table = Table(title="The base case")
    for column in ("what", "measured", "target", "note"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
