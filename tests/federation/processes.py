"""The processes of a run, found from outside, so that tests can kill the one that they mean."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from reconciler.federation.launching import Launch
from reconciler.federation.training import TrainingJob, TrainingResult

_RECONCILER = """
import pickle, sys
from reconciler.federation.training import run_training
job, launch = pickle.load(sys.stdin.buffer)
run_training(job, on_event=lambda e: print(e.kind, flush=True), cancelled=lambda: False, launch=launch and launch())
"""


@contextlib.contextmanager
def reconciler_of(job: TrainingJob, launch: Callable[[], Launch] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains as a reconciler does, and has finished a round of it; `launch` is made over there."""
    with subprocess.Popen(
        [sys.executable, "-c", _RECONCILER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps((job, launch)))
        process.stdin.close()
        while (said := process.stdout.readline()) != b"round\n":
            assert said, "it ended before its first round"
        yield process


def aggregator_of(run_dir: Path) -> int:
    """The process id of the (root) aggregator of a run. Raises AssertionError if there is none."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run_dir / "job.json") in process.cmdline() and "flops_runtime" in process.cmdline():
                return int(process.pid)
    raise AssertionError("no aggregator")


def learners_of(run_dir: Path) -> dict[str, psutil.Process]:
    """Every process that works in a directory of its own below the run's `work`, by that directory's path in it."""
    found = {}
    work = (run_dir / "work").resolve()
    for process in psutil.Process(aggregator_of(run_dir)).children(recursive=True):
        with contextlib.suppress(psutil.Error, ValueError):
            found[str(Path(process.cwd()).relative_to(work))] = process
    return found


def cluster_aggregator_of(run_dir: Path, cluster: str) -> psutil.Process:
    """The aggregator of a cluster: the parent of the nursery of its learners."""
    for directory, process in _alive(learners_of(run_dir)):
        if directory.startswith(f"cluster-{cluster}/"):
            nursery = process.parent()
            assert nursery is not None
            aggregator = nursery.parent()
            assert aggregator is not None
            return aggregator
    raise AssertionError(f"no learner of cluster {cluster}")


def rounds_of(result: TrainingResult) -> list[tuple[int, int]]:
    """How many answered in every round of every cluster, and in every cycle."""
    every = [item for _, rounds in sorted(result.clusters.items()) for item in rounds] + list(result.rounds)
    return [(item.learners_fit, item.learners_evaluated) for item in every]


@contextlib.contextmanager
def later(seconds: float, what: Callable[[], None]) -> Iterator[None]:
    """Does something after a while, unless the context ends before."""
    timer = threading.Timer(seconds, what)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _alive(found: dict[str, psutil.Process]) -> Iterator[tuple[str, psutil.Process]]:
    return ((directory, process) for directory, process in sorted(found.items()) if process.is_running())
