"""An idle look at N projects, beside what a user would run instead: `dvc status` over N stages and `terraform plan` over N built-in
`terraform_data` resources, one after the other on the same machine, with nothing changed.

Run: `python -m bench.alternatives [N]`. What differs in the work done: `dvc status` hashes nothing again that its own state
database knows, but loads every stage's YAML and asks the file system for every dependency and output; it sees the work tree, no
registry and no service. `terraform plan` reads its state file, asks the built-in provider for each resource and builds a graph; its
resources have nothing outside to be looked at. The loop fetches a remote, reads the head's tree, and compares each project with
its registered models, images and services, which here are in memory (`bench/null_world.py`). Cold is a new process each time, as
both others always are; warm is what `flops serve` does at a trigger.

DVC comes from PyPI into an environment of its own below the cache. `terraform` or `tofu` must be on the PATH (neither is on PyPI
or npm as a binary, nor in Debian): without one the row says so. Writes `bench/results/alternatives.json`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.controller import prepared, run_child
from bench.site import git, record
from reconciler.engine import cache_directory

DVC = "dvc==3.67.1"
STAGE = "  p{n:05}:\n    cmd: cp in/{n}.yaml out/{n}.txt\n    deps: [in/{n}.yaml]\n    outs: [out/{n}.txt]\n"
RESOURCE = 'resource "terraform_data" "p{n:05}" {{\n  input = {{ rounds = 3, tag = "mnist" }}\n}}\n'
TURNS = 3


def main(count: int = 1000) -> int:
    """Measure all and print a table."""
    rows: dict[str, float | None] = {}
    folder = Path(tempfile.mkdtemp(prefix="flops-bench-"))
    try:
        prepared(folder / "flops", count)
        idle = run_child("idle", folder / "flops", count)
        rows["flops, warm: a look with a fetch"] = idle["warm"]
        rows["flops, cold: a new process, its imports and its first look"] = idle["cold"] + idle["import"]
        rows["dvc status"] = _dvc(folder / "dvc", count)
        for tool in ("terraform", "tofu"):
            if shutil.which(tool):
                rows[f"{tool} plan"] = _terraform(folder / tool, tool, count)
        if not any(shutil.which(tool) for tool in ("terraform", "tofu")):
            rows["terraform plan (no terraform or tofu on the PATH)"] = None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(title=f"Nothing has changed in {count} projects, stages or resources")
    for column in ("what", "seconds (best of 3)", "of flops, warm"):
        table.add_column(column)
    warm = rows["flops, warm: a look with a fetch"] or 1.0
    for what, seconds in rows.items():
        table.add_row(what, *((f"{seconds:.2f} s", f"{seconds / warm:.1f} ×") if seconds is not None else ("not measured", "")))
    record("alternatives", {f"{count}": rows})
    Console(width=130).print(table)
    return 0


def _dvc(folder: Path, count: int) -> float:
    dvc = _installed_dvc()
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    git(folder, "init", "-q")
    for number in range(count):
        (folder / "in" / f"{number}.yaml").write_text(f"rounds: 3\nproject: {number}\n")
        (folder / "out" / f"{number}.txt").write_text(f"rounds: 3\nproject: {number}\n")
    (folder / "dvc.yaml").write_text("stages:\n" + "".join(STAGE.format(n=number) for number in range(count)))
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    _run([dvc, "init", "-q"], folder, environment)
    _run([dvc, "commit", "-q", "-f"], folder, environment)  # what is there is taken for made, so that nothing has to run
    return _best([dvc, "status"], folder, environment, expect="up to date")


def _terraform(folder: Path, tool: str, count: int) -> float:
    folder.mkdir()
    (folder / "main.tf").write_text("".join(RESOURCE.format(n=number) for number in range(count)))
    (folder / "none.rc").touch()
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_CLI_CONFIG_FILE": str(folder / "none.rc")}
    _run([tool, "init", "-no-color"], folder, environment)
    _run([tool, "apply", "-auto-approve", "-no-color"], folder, environment)
    return _best([tool, "plan", "-no-color", "-detailed-exitcode"], folder, environment, expect="No changes")


def _installed_dvc() -> str:
    """DVC in an environment of its own, made once."""
    venv = cache_directory() / "bench" / DVC.replace("==", "-")
    binary = venv / "bin" / "dvc"
    if not binary.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        _run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(venv)], Path.cwd(), dict(os.environ))
        _run([uv, "pip", "install", "-q", DVC], Path.cwd(), {**os.environ, "VIRTUAL_ENV": str(venv)})
    return str(binary)


def _best(command: list[str], folder: Path, environment: dict[str, str], *, expect: str) -> float:
    found = []
    for _ in range(TURNS):
        began = time.perf_counter()
        said = _run(command, folder, environment)
        found.append(time.perf_counter() - began)
        if expect not in said:
            raise RuntimeError(f"{command} says that something changed: {said[-500:]}")
    return min(found)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:2])))
