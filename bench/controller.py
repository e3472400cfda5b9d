"""What the loop costs: an idle look, one commit to action, and many projects at once, in a world where training costs nothing.

Run: `python -m bench.controller [N …]`. Real Git, real journal, real status branch; see `bench/null_world.py` for what is not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench.null_world import NullExecutor, World, null_engine
from reconciler.controller import Controller
from reconciler.events import Observer
from reconciler.looking import ProjectView
from reconciler.plan import Stage
from reconciler.spec import OperatorConfig

SIZES = (100, 1000, 10_000)
SLA = """customerID: demo
ml_repo_url: ./projects/{name}/ml_repo
ml_model_flavor: sklearn
training_configuration: {{data_tags: [mnist], training_rounds: {rounds}}}
"""
MOCK = """customerID: demo
mock_data_configuration: {dataset_name: mnist, number_of_partitions: 2, data_tag: mnist}
"""


class Site:
    """A bare origin, the reconciler's clone of it, and a clone to push from, with N projects."""

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count
        _git(root, "init", "-q", "--bare", "-b", "main", "origin.git")
        _git(root, "clone", "-q", "origin.git", "user")
        self.user = root / "user"
        _git(self.user, "symbolic-ref", "HEAD", "refs/heads/main")
        for number in range(count):
            self.write(number, 3)
        self.push("All")
        _git(root, "clone", "-q", "--no-checkout", "origin.git", "clone")
        self.clone = root / "clone"

    def write(self, number: int, rounds: int) -> None:
        """A project's files."""
        name = f"p{number:05}"
        folder = self.user / "projects" / name
        (folder / "ml_repo").mkdir(parents=True, exist_ok=True)
        (folder / "sla.yaml").write_text(SLA.format(name=name, rounds=rounds))
        (folder / "mock_data.yaml").write_text(MOCK)
        (folder / "ml_repo" / "model_manager.py").write_text("class ModelManager: ...\n")

    def push(self, message: str) -> None:
        """Commit all and push it."""
        _git(self.user, "add", "-A")
        _git(self.user, "-c", "user.name=A", "-c", "user.email=a@example.invalid", "commit", "-q", "-m", message)
        _git(self.user, "push", "-q", "origin", "HEAD:main")


def main(sizes: list[int]) -> int:
    """Measure each size and print a table."""
    rows = []
    for count in sizes or list(SIZES):
        folder = Path(tempfile.mkdtemp(prefix="flops-bench-"))
        try:
            rows += measure(folder, count)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    table = Table(title="The loop")
    for column in ("projects", "what", "measured", "target"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    return 0


def measure(folder: Path, count: int) -> list[tuple[str, str, str, str]]:
    """The rows of one size."""
    site, world = Site(folder, count), World()
    started: list[float] = []

    def note(_view: ProjectView, stage: Stage) -> None:
        if stage is Stage.RESOLVE:
            started.append(time.perf_counter())

    def controller() -> Controller:
        engine = null_engine(site.clone, folder / "state", world, OperatorConfig())
        return Controller(engine, Observer(engine.journal), execute=NullExecutor(engine, note))

    first = controller()
    rows = []
    seconds = _timed(first.converge)
    rows.append((f"all of {count} new, to convergence and published", f"{seconds:.2f} s, {count / seconds:.0f}/s", "≥ 200/s"))
    del first
    process = psutil.Process()
    second = controller()
    second.wake()
    rows.append(("idle look, cold (nothing in memory)", f"{_timed(second.step):.3f} s", ""))
    before = _commits(site)
    warm = []
    for _ in range(5):
        second.wake()
        warm.append(_timed(second.step))
    rows.append(("idle look, warm, with fetch", f"{min(warm):.3f} s", {100: "≤ 0.5 s", 1000: "≤ 0.5 s"}.get(count, "≤ 2 s")))
    rows.append(("status commits of 6 idle looks", str(_commits(site) - before), "0"))
    rows.append(("memory (RSS) of the process", f"{process.memory_info().rss / 2**20:.0f} MiB", "≤ 150 MiB"))
    action = []
    thread = threading.Thread(target=second.serve)
    thread.start()
    time.sleep(1)
    for change in range(5):
        site.write(change, 10 + change)
        site.push("One")
        started.clear()
        pushed = time.perf_counter()
        second.wake()
        while not started:
            time.sleep(0.001)
        action.append(started[0] - pushed)
        time.sleep(0.5)
    second.stop()
    thread.join()
    rows.append((f"a trigger after a commit that changes 1 of {count}, to action", f"{sorted(action)[2]:.3f} s", "≤ 0.3 s"))
    return [(str(count), *row) for row in rows]


def _commits(site: Site) -> int:
    return int(_git(site.clone, "rev-list", "--count", "status/default"))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _git(path: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=path, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
