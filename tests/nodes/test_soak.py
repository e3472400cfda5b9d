"""Kills at random times in a hierarchical training over real nodes: every run ends, with the undisturbed model where every round
had the same answers, and no cycle is trained twice.

Twenty of every kind in `make soak` (FLOPS_SOAK_TIMES), none elsewhere: test_federation kills a SuperLink too. The nodes stay up
between the runs, and keep the learners of the bundle, so a kill costs the seconds of its rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import ClusterShare, TrainingEvent, TrainingJob, TrainingResult, run_training
from tests.federation.processes import aggregator_of, later, learners_of, rounds_of
from tests.federation.test_training import same
from tests.nodes.kit import Federation, eventually
from tests.soak.sizes import size

TIMES = size("FLOPS_SOAK_TIMES", short=1, long=20)

pytestmark = pytest.mark.long
CYCLES, ROUNDS, TRIES = 3, 3, 10
RECONCILER = """
import pickle, sys
from reconciler.federation.training import run_training
job, relay = pickle.load(sys.stdin.buffer)
run_training(job, on_event=lambda e: print(e.kind, flush=True), cancelled=lambda: False, link=relay())
"""


@dataclass
class Ground:
    """Where the runs take place, with the undisturbed one."""

    federation: Federation
    events: list[TrainingEvent] = field(default_factory=list)
    expected: TrainingResult | None = None
    seconds: float = 0.0

    def job(self, run_dir: Path, needed: int = 1) -> TrainingJob:
        timeout = 60.0 if needed > 1 else 6.0
        clusters = (ClusterShare("east", 2), ClusterShare("west", 2))
        return self.federation.job(needed, run_dir=run_dir, cycles=CYCLES, rounds=ROUNDS, clusters=clusters, round_timeout=timeout)

    def run(
        self, run_dir: Path, on_event: Callable[[TrainingEvent], None] = lambda _: None, needed: int = 1
    ) -> TrainingResult:  # fmt: skip
        """Trains, again after each failure that may pass: as the reconciler does, with a SuperLink that answers for its pauses."""
        for _ in range(TRIES):
            eventually(self.federation.healthy)
            try:
                return run_training(
                    self.job(run_dir, needed), on_event=on_event, cancelled=lambda: False, link=self.federation.relay(clusters=[])
                )
            except TrainingError as error:
                if not error.transient:
                    raise
                self.failed = error
        raise self.failed


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    made = Federation(tmp_path_factory.mktemp("soak"))
    try:
        made.start()
        for number, (name, cluster) in enumerate((("a", "east"), ("b", "east"), ("c", "west"), ("d", "west"))):
            made.node(name, cluster=cluster, rows=100 + 60 * number).start()
        found = Ground(made)
        started: list[float] = []
        # Every learner has its part in every round of it, so equal numbers of answers are equal sets.
        found.expected = found.run(made.root / "undisturbed", lambda e: started.append(time.monotonic()), needed=2)
        found.seconds = time.monotonic() - started[0]
        yield found
    finally:
        made.stop()


def kill_learner(ground: Ground, run_dir: Path, chance: random.Random) -> None:
    node = psutil.Process(chance.choice(list(ground.federation.nodes.values())).pid)
    leaves = [process for process in node.children(recursive=True) if not process.children()]
    chance.choice(leaves).kill()


def kill_node(ground: Ground, run_dir: Path, chance: random.Random) -> None:
    node = chance.choice(list(ground.federation.nodes.values()))
    node.kill()
    node.start()


def kill_cluster_aggregator(ground: Ground, run_dir: Path, chance: random.Random) -> None:
    learners_of(run_dir)[chance.choice(["cluster-east", "cluster-west"])].kill()


def kill_aggregator(ground: Ground, run_dir: Path, chance: random.Random) -> None:
    os.kill(aggregator_of(run_dir), signal.SIGKILL)


def kill_superlink(ground: Ground, run_dir: Path, chance: random.Random) -> None:
    ground.federation.server.kill()
    ground.federation.server.start()


EVERY = [kill_learner, kill_node, kill_cluster_aggregator, kill_aggregator, kill_superlink]


@pytest.mark.parametrize("seed", range(TIMES))
@pytest.mark.parametrize("kill", EVERY, ids=lambda kill: kill.__name__)
def test_a_kill_at_a_random_time(ground: Ground, tmp_path: Path, kill: Callable[..., None], seed: int) -> None:
    chance = random.Random(f"{kill.__name__}/{seed}")
    after = chance.random() * ground.seconds
    armed = contextlib.ExitStack()
    struck: list[float] = []

    def strike() -> None:
        with contextlib.suppress(AssertionError, IndexError, KeyError, psutil.Error, ProcessLookupError):
            kill(ground, tmp_path, chance)

    def arm(event: TrainingEvent) -> None:
        if event.kind == "started" and not struck:
            struck.append(after)
            armed.enter_context(later(after, strike))

    with armed:
        result = ground.run(tmp_path, arm)
    check(ground, tmp_path, result)


@pytest.mark.parametrize("seed", range(TIMES))
def test_a_reconciler_that_is_killed_at_a_random_time(ground: Ground, tmp_path: Path, seed: int) -> None:
    arguments = [sys.executable, "-c", RECONCILER]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reconciler:
        assert reconciler.stdin is not None
        assert reconciler.stdout is not None
        reconciler.stdin.write(pickle.dumps((ground.job(tmp_path), ground.federation.relay_maker(clusters=[]))))
        reconciler.stdin.close()
        while reconciler.stdout.readline() not in (b"started\n", b""):
            pass
        with later(random.Random(seed).random() * ground.seconds, reconciler.kill):
            while reconciler.stdout.readline():
                pass
    check(ground, tmp_path, ground.run(tmp_path))


def check(ground: Ground, run_dir: Path, result: TrainingResult) -> None:
    assert len(result.rounds) == CYCLES
    told = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    cycles = Counter(event["round"] for event in told if event["kind"] == "round")
    assert set(cycles.values()) <= {1}, "a cycle that is finished is not trained again"
    again: list[TrainingEvent] = []
    assert ground.run(run_dir, again.append) == result
    assert not again, "a digest that is trained is not trained again"
    assert ground.expected is not None
    if rounds_of(result) == rounds_of(ground.expected):
        assert same(run_dir, ground.federation.root / "undisturbed", CYCLES)
