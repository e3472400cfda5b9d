"""What `flops serve` holds in memory before, in and after its first training, and what that training's stages take.

MLflow's client is in a process of its own, the scribe's. What the loop would hold with it is measured in the same run: a process
that imports both, beside one that imports the loop alone. Run: `python -m bench.memory`. Writes `bench/results/memory.json`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from bench.base_case import warm_caches
from bench.site import record
from bench.workbench import Workbench, make
from reconciler.aside import PROCESS

PROJECT = "mnist-classic"
LOOP = "import reconciler.commands.serve"
PATIENCE = 300.0


def main() -> int:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory(prefix="flops-bench-") as root:
        warm_caches(Path(root) / "warm")
        bench = make(Path(root) / "base")
        try:
            found = _served(bench)
        finally:
            bench.stop()
    without, together = _imported(LOOP), _imported(f"{LOOP}, reconciler.tracking.writing")
    found |= {"loop_alone": without, "loop_with_mlflow": together, "mlflow": together - without}
    table = Table("what", "measured")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.2f} s" if name.endswith("seconds") else f"{value:.0f} MiB")
    table.add_row(
        "idle, of what it would be with MLflow's client in it", f"{found['idle'] / (found['idle'] + found['mlflow']):.2f}"
    )
    Console(width=130).print(table)
    record("memory", found)
    return 0


def _served(bench: Workbench) -> dict[str, float]:
    """A `flops serve` from its start until it is idle after its first training; MiB, and seconds of stages."""
    bench.edit_sla(PROJECT, "customerID", "suspend: true\ncustomerID")
    bench.commit("Later")
    log = bench.root / "serve.log"
    with log.open("wb") as output:
        serving = psutil.Popen(
            [sys.executable, "-m", "reconciler.cli", "serve", "--log", "json", "--repo", str(bench.clone)],
            cwd=bench.clone, stdout=output, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        _until(lambda: "status/default" in bench.git("branch", "--list", "status/*"))
        found = {"before": _rss(serving)}
        bench.edit_sla(PROJECT, "suspend: true\n", "")
        bench.commit("Now")
        peak = beside = 0.0

        def ended() -> bool:
            nonlocal peak, beside
            peak, beside = max(peak, _rss(serving)), max(beside, sum(map(_rss, _asides(serving))))
            return b'"kind":"ended"' in log.read_bytes()

        _until(ended)
        found |= {"highest": peak, "highest_beside": beside}
        _until(lambda: not _asides(serving))
        time.sleep(2)
        found["idle"] = _rss(serving)
        stages = {f"{item['stage']}_seconds": float(item["seconds"] or 0) for item in bench.history(PROJECT)}
        return found | stages
    finally:
        serving.terminate()
        serving.wait()


def _asides(serving: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in serving.children():
        with suppress(psutil.Error):
            if PROCESS in child.cmdline():
                found.append(child)
    return found


def _imported(code: str) -> float:
    """MiB of a process that has imported something and no more."""
    ask = f"{code}; import psutil; print(psutil.Process().memory_info().rss / 2**20)"
    return float(subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, check=True).stdout)


def _rss(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it did not happen")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
