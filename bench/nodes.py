"""What a learner's message costs over a SuperLink: `python -m bench.nodes`.

Nodes as they are in production (TLS, keys, sandboxed learners in processes of their own) on this machine's loopback, with a
model of 32 KB and a learner that does nothing: what is left of a round is overhead. Learners work side by side, so a round of
two messages each takes at least two messages' time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil

from reconciler.federation.training import TrainingEvent, run_training
from reconciler.nodes.data import NodeData
from tests.nodes.kit import Federation, idle_job, write_rows

_IDLE = """import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate


class ModelManager(ModelManagerTemplate):
    def __init__(self):
        self.weights = np.zeros(4096, np.float64)

    def set_model_data(self):
        DataManager()

    def get_model(self):
        return self

    def predict(self, rows):
        return np.zeros(len(rows))

    def get_model_parameters(self):
        return [self.weights]

    def set_model_parameters(self, parameters):
        self.weights = parameters[0] + 0.001

    def fit_model(self):
        return 1

    def evaluate_model(self):
        return 0.5, 0.5, 1
"""


def measure(learners: int, rounds: int) -> dict[str, float]:
    """Seconds of the rounds after the first, and the memory of the processes, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder)).start()
        try:
            repo = _repo(Path(folder))
            for number in range(learners):
                federation.node(f"node-{number}").start()
            memory: dict[str, float] = {}
            used: list[float] = []

            def look(event: TrainingEvent) -> None:
                if event.kind == "round":
                    used.append(_cpu([os.getpid(), federation.server.pid, *(node.pid for node in federation.nodes.values())]))
                if event.kind == "round" and event.round == rounds:
                    memory["superlink"] = _memory([federation.server.pid])
                    memory["node"] = _memory([process.pid for process in federation.nodes.values()]) / learners

            relay = federation.relay(repo=repo)
            result = federation.train(learners, look, relay, rounds=rounds, repo_dir=repo)
            seconds = [item.seconds for item in result.rounds[1:]]
            return {
                "round": statistics.median(seconds),
                "message": statistics.median(seconds) / 2,
                "cpu": (used[-1] - used[0]) / (rounds - 1) / 2 / learners,
                **memory,
            }
        finally:
            federation.stop()


def embedded(learners: int, rounds: int) -> float:
    """Seconds of a message of the same work with learners beside the aggregator."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        repo = _repo(root)
        data = NodeData(root / "data")
        data.add(write_rows(root / "rows.parquet", 200 * learners, 1), name="rows", tags=["blobs"])
        shards = tuple(data.shard(["blobs"], number, learners).path for number in range(learners))
        job = replace(idle_job(root), shards=shards, repo_dir=repo, rounds=rounds, min_available=learners, min_fit=learners)
        result = run_training(job, on_event=lambda _: None, cancelled=lambda: False)
        return statistics.median(item.seconds for item in result.rounds[1:]) / 2


def _repo(root: Path) -> Path:
    repo = root / "repo"
    repo.mkdir()
    (repo / "model_manager.py").write_text(_IDLE)
    source = Path(__file__).parent.parent / "tests" / "federation" / "repos" / "digits" / "data_manager.py"
    (repo / "data_manager.py").write_bytes(source.read_bytes())
    return repo


def _memory(pids: list[int]) -> float:
    processes = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return float(sum(process.memory_full_info().pss for process in processes)) / 1e6


def _cpu(pids: list[int]) -> float:
    """CPU seconds so far; the process that writes the model, at low priority, is counted too."""
    processes = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    unique = {process.pid: process for process in processes}
    times = [process.cpu_times() for process in unique.values()]
    return sum(item.user + item.system for item in times)


def main() -> None:
    """Print one line for each number of learners."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--learners", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    print(
        "learners  round [ms]  per message [ms]  embedded [ms]  ratio  CPU a message [ms]  superlink [MB]  node with learner [MB]"
    )
    for learners in arguments.learners:
        found, beside = measure(learners, arguments.rounds), embedded(learners, arguments.rounds)
        print(
            f"{learners:8}  {found['round'] * 1e3:10.0f}  {found['message'] * 1e3:16.0f}  {beside * 1e3:13.1f}  "
            f"{found['message'] / beside:5.1f}  {found['cpu'] * 1e3:18.0f}  "
            f"{found['superlink']:14.0f}  {found['node']:22.0f}"
        )


if __name__ == "__main__":
    main()
