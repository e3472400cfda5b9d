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
from pathlib import Path

import psutil

from reconciler.federation.training import TrainingEvent
from tests.nodes.kit import Federation

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
            repo = Path(folder) / "repo"
            repo.mkdir()
            (repo / "model_manager.py").write_text(_IDLE)
            source = Path(__file__).parent.parent / "tests" / "federation" / "repos" / "digits" / "data_manager.py"
            (repo / "data_manager.py").write_bytes(source.read_bytes())
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
    print("learners  round [ms]  per message [ms]  CPU a message [ms]  superlink [MB]  node with learner [MB]")
    for learners in arguments.learners:
        found = measure(learners, arguments.rounds)
        print(
            f"{learners:8}  {found['round'] * 1e3:10.0f}  {found['message'] * 1e3:16.0f}  {found['cpu'] * 1e3:18.0f}  "
            f"{found['superlink']:14.0f}  {found['node']:22.0f}"
        )


if __name__ == "__main__":
    main()
