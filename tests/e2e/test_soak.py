"""`kill -9` of the whole reconciler at a random time: the next one brings the project to Ready, with one training a digest.

Only in `make soak` (FLOPS_SOAK=1): every kill is a training of its own, from a commit to a served model.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.workbench import Workbench, make
from reconciler.engine import open_engine
from tests.soak.sizes import size

PROJECT = "mnist-classic"

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.long,
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workbench, float]]:
    """A repo whose project serves, and the seconds that a later version of it takes undisturbed."""
    made = make(tmp_path_factory.mktemp("soak"))
    try:
        made.flops("reconcile", "--once")
        change(made, "undisturbed")
        started = time.monotonic()
        made.flops("reconcile", "--once")
        yield made, time.monotonic() - started
    finally:
        made.stop()


def change(bench: Workbench, rerun: str) -> None:
    path = bench.clone / "projects" / PROJECT / "sla.yaml"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("rerun:")]
    path.write_text("\n".join([*kept, f"rerun: {rerun}\n"]))
    bench.commit(rerun)


@pytest.mark.parametrize("seed", range(size("FLOPS_SOAK_TIMES", short=1, long=20)))
def test_a_reconciler_that_is_killed_at_a_random_time(bench: tuple[Workbench, float], seed: int, tmp_path: Path) -> None:
    site, seconds = bench
    change(site, f"killed-{seed}")
    with (tmp_path / "log").open("wb") as log:
        arguments = [sys.executable, "-m", "reconciler.cli", "reconcile", "--once"]
        with subprocess.Popen(arguments, cwd=site.clone, stdout=log, stderr=log) as reconciler:
            try:
                reconciler.wait(random.Random(seed).random() * seconds)
            except subprocess.TimeoutExpired:
                reconciler.kill()
    said = site.flops("reconcile", "--once", check=False)
    document = site.status(PROJECT)
    conditions = {item["type"]: item["status"] for item in document["conditions"]}
    assert conditions == {"Synced": "True", "Ready": "True"}, said
    assert finished_runs(site, document["digest"]) == 1


def finished_runs(bench: Workbench, digest: str) -> int:
    """Runs that MLflow has of a digest."""
    import mlflow

    client = mlflow.MlflowClient(open_engine(bench.clone).tracking("demo").uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    return len(client.search_runs(experiments, f"tags.`flops.digest` = '{digest}'"))
