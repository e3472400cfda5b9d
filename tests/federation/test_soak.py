"""Kills at random times: every run ends, and with the undisturbed model where every round had the same answers.

In `make soak` only, twenty times of each kind (FLOPS_SOAK_TIMES).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import ClusterShare, TrainingJob, TrainingResult, read_result
from tests.federation.processes import aggregator_of, cluster_aggregator_of, later, learners_of, rounds_of
from tests.federation.test_training import same
from tests.soak.sizes import size

TIMES = size("FLOPS_SOAK_TIMES", short=1, long=20)
pytestmark = pytest.mark.long  # `test_failures` and `test_hierarchy` kill each of them at a moment that they choose
CYCLES, ROUNDS = 4, 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the run that nobody killed is, once there is one."""
    return {}


@pytest.fixture
def job(job: TrainingJob, shards: tuple[Path, ...]) -> TrainingJob:
    """Two clusters, three learners; a round or a cycle goes on with what is left."""
    clusters = (ClusterShare("a", 2), ClusterShare("b", 1))
    few = {"min_available": 1, "min_fit": 1, "min_evaluate": 1}
    return replace(job, shards=shards[:3], clusters=clusters, cycles=CYCLES, rounds=ROUNDS, **few)


def kill_learner(run_dir: Path, chance: random.Random) -> None:
    found = [process for name, process in sorted(learners_of(run_dir).items()) if name.startswith("cluster-")]
    chance.choice(found).kill()


def kill_cluster_aggregator(run_dir: Path, chance: random.Random) -> None:
    cluster_aggregator_of(run_dir, chance.choice("ab")).kill()


def kill_aggregator(run_dir: Path, chance: random.Random) -> None:
    os.kill(aggregator_of(run_dir), signal.SIGKILL)


KILLS = [kill_learner, kill_cluster_aggregator, kill_aggregator]


@pytest.mark.parametrize("seed", range(TIMES))
@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.__name__)
def test_a_kill_at_a_random_time(job: TrainingJob, run, undisturbed, tmp_path: Path, kill, seed: int) -> None:
    if "run" not in undisturbed:
        undisturbed["run"] = tmp_path / "undisturbed"
        run(job, run_dir=undisturbed["run"])
    chance = random.Random(f"{kill.__name__}/{seed}")
    killed: list[str] = []

    def strike() -> None:
        with contextlib.suppress(AssertionError, IndexError, psutil.Error, ProcessLookupError):
            kill(job.run_dir, chance)
            killed.append(kill.__name__)

    armed = contextlib.ExitStack()

    def arm(event) -> None:
        if event.kind == "started" and not killed:
            armed.enter_context(later(chance.random() * 1.5, strike))

    with armed:
        try:
            result = run(job, on_event=arm)
        except TrainingError as error:
            if not error.transient:
                raise
            result = run(job)
    check(job, result, undisturbed["run"])


@pytest.mark.parametrize("seed", range(TIMES))
def test_a_reconciler_that_is_killed_at_a_random_time(job: TrainingJob, run, undisturbed, tmp_path: Path, seed: int) -> None:
    if "run" not in undisturbed:
        undisturbed["run"] = tmp_path / "undisturbed"
        run(job, run_dir=undisturbed["run"])
    code = "import pickle, sys; from reconciler.federation.training import run_training; "
    code += "run_training(pickle.load(sys.stdin.buffer), on_event=lambda e: print(e.kind, flush=True), cancelled=lambda: False)"
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reconciler:
        assert reconciler.stdin is not None
        assert reconciler.stdout is not None
        reconciler.stdin.write(pickle.dumps(job))
        reconciler.stdin.close()
        while reconciler.stdout.readline() not in (b"started\n", b""):
            pass
        with later(random.Random(seed).random() * 1.5, reconciler.kill):
            while reconciler.stdout.readline():
                pass
    check(job, run(job), undisturbed["run"])


def check(job: TrainingJob, result: TrainingResult, undisturbed: Path) -> None:
    expected = read_result(undisturbed, job.digest)
    assert expected is not None
    assert len(result.rounds) == CYCLES
    if rounds_of(result) == rounds_of(expected):
        assert same(job.run_dir, undisturbed, CYCLES)
