"""The base case with `runtime: docker`: from merge to served prediction, learners and server in containers.

Run: `eval "$(ci/engine.sh start)"; python -m bench.containers`

The first run warms what is shared by all projects – environment, layers, the engine's copies of them – with one round; the second,
of another content, is the measured one: what a user waits for after a merge.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import httpx

from bench.workbench import Workbench, make

PROJECT = "mnist-classic"
TARGET = 30.0


def main() -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory(prefix="flops-bench-") as root:
        bench = make(Path(root) / "base")
        try:
            with (bench.clone / "flops.yaml").open("a") as file:
                file.write(f"runtime: docker\ndocker_host: {os.environ['DOCKER_HOST']}\n")
            bench.edit_sla(PROJECT, "training_rounds: 3", "training_rounds: 1")
            bench.commit("One round")
            _show("merge → prediction, cold engine", bench)
            bench.edit_sla(PROJECT, "training_rounds: 1", "training_rounds: 3")
            bench.commit("Three rounds")
            _show(f"merge → prediction, warm (target {TARGET:.0f} s)", bench)
        finally:
            bench.stop()


def _show(what: str, bench: Workbench) -> None:
    known = len(bench.history(PROJECT)) if (bench.clone / ".flops" / "journal.db").exists() else 0
    began = time.monotonic()
    bench.flops("reconcile", "--once")
    document = bench.status(PROJECT)
    body = {"inputs": [[0.0] * 784]}
    answer = httpx.post(f"http://{document['service']['address']}/invocations", json=body, timeout=60)
    answer.raise_for_status()
    print(f"{what:45} {time.monotonic() - began:6.1f} s   accuracy {document['model']['holdout']['accuracy']:.4f}")
    for item in bench.history(PROJECT)[known:]:
        print(f"    {item['stage']:10} {float(item['seconds'] or 0):6.2f} s   {item['message'][:90]}", flush=True)


if __name__ == "__main__":
    main()
