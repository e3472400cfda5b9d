"""What the embedded engine costs beside the learning itself. Run: `python -m bench.federation [NAME …]`.

* messages: milliseconds a learner message, warm, for a model of 32 KB whose training is nothing
* mnist: 10 learners × 10 rounds of MNIST against the same learning in one plain Python loop
* memory: what one more learner process takes beside its data (private memory: the libraries are shared)
* simulation: 1,000 virtual learners × 3 rounds of MNIST in two processes, seconds and peak memory of all processes

Writes `bench/results/federation.json`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
from rich.console import Console
from rich.table import Table

from reconciler.engine import cache_directory
from reconciler.federation.data import DataCatalog
from reconciler.federation.training import TrainingJob, TrainingResult, run_training
from reconciler.runtime_version import mlruntime_dir
from reconciler.spec import load_mock_data

ROOT = Path(__file__).parents[1]
MNIST_REPO = ROOT / "projects" / "mnist-classic" / "ml_repo"
MOCK = b"customerID: bench\nmock_data_configuration: {dataset_name: mnist, number_of_partitions: 1, data_tag: mnist}\n"
IDLE_MODEL = """
import numpy as np
class ModelManager:
    def __init__(self): self.parameters = [np.zeros(4096)]
    def set_model_data(self): self.x, self.y = np.zeros((10, 2)), np.zeros(10)
    def get_model(self):
        from sklearn.linear_model import LogisticRegression
        model = LogisticRegression()
        model.classes_, model.coef_, model.intercept_ = np.arange(2), np.zeros((1, 2)), np.zeros(1)
        return model
    def get_model_parameters(self): return self.parameters
    def set_model_parameters(self, parameters): self.parameters = parameters
    def fit_model(self): return 10
    def evaluate_model(self): return 0.0, 1.0, 10
"""
Row = tuple[str, str, str, str]


class Watched:
    """Peak memory of all processes below this one while something runs: proportional (PSS), so shared pages count once."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self.private_mb: list[float] = []
        """Private memory of each process of the widest moment, largest first."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.3):
            found = [memory for child in psutil.Process().children(recursive=True) if (memory := _memory(child.pid))]
            if sum(pss for pss, _ in found) / 1024 > self.peak_mb:
                self.peak_mb = sum(pss for pss, _ in found) / 1024
                self.private_mb = sorted((private / 1024 for _, private in found), reverse=True)


def main(names: list[str]) -> int:
    """Measure what was named, or all of it."""
    benches: dict[str, Callable[[Path, list[Row]], dict[str, float]]] = {
        "messages": _messages,
        "mnist": _mnist,
        "memory": _memory_per_learner,
        "simulation": _simulation,
    }
    out = Path(__file__).parent / "results" / "federation.json"
    results: dict[str, float] = orjson.loads(out.read_bytes()) if out.is_file() else {}
    rows: list[Row] = []
    for name in names or list(benches):
        with tempfile.TemporaryDirectory(prefix="flops-bench-") as root:
            results |= benches[name](Path(root), rows)
    table = Table(title="The embedded engine")
    for column in ("what", "measured", "target", "note"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    return 0


def _messages(root: Path, rows: list[Row]) -> dict[str, float]:
    repo = root / "repo"
    repo.mkdir()
    (repo / "model_manager.py").write_text(IDLE_MODEL)
    (repo / "data_manager.py").write_text("")
    result = _train(root, repo, learners=10, rounds=20, shards=_shards(root, 10))
    warm = [item.seconds for item in result.rounds[5:]]
    milliseconds = 1000 * sum(warm) / len(warm) / 20  # a round asks each of ten learners to train and to evaluate
    rows.append(("a learner message, 32 KB, warm", f"{milliseconds:.2f} ms", "≤ 20 ms", "with aggregation and checkpoint"))
    return {"message_ms": milliseconds}


def _mnist(root: Path, rows: list[Row]) -> dict[str, float]:
    result = _train(root, MNIST_REPO, learners=10, rounds=10, shards=_shards(root, 10))
    in_rounds = sum(item.seconds for item in result.rounds)
    environment = {"PYTHONPATH": str(mlruntime_dir()), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    script = Path(__file__).parent / "plain_loop.py"
    arguments = [sys.executable, str(script), str(root / "run" / "job.json")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    loop = float(orjson.loads(done.stdout.splitlines()[-1])["seconds"])
    ratio = f"{result.seconds / loop:.2f}× the loop; accuracy {result.rounds[-1].accuracy:.4f}"
    rows.append(("MNIST, 10 learners × 10 rounds, all", f"{result.seconds:.1f} s", f"≤ {2 * loop:.1f} s", ratio))
    rows.append(("    of it in rounds", f"{in_rounds:.1f} s", "", f"{in_rounds / loop:.2f}× the loop"))
    rows.append(("    plain Python loop", f"{loop:.1f} s", "", "imports and data included"))
    return {"mnist_seconds": result.seconds, "mnist_round_seconds": in_rounds, "mnist_loop_seconds": loop}


def _memory_per_learner(root: Path, rows: list[Row]) -> dict[str, float]:
    with Watched() as watched:
        _train(root, MNIST_REPO, learners=10, rounds=5, shards=_shards(root, 10))
    data = 6000 * 784 / 2**20
    # The aggregator, the nursery and the exporter are larger than any learner here; ten learners are the rest.
    learners = watched.private_mb[-10:] if len(watched.private_mb) > 10 else watched.private_mb
    mean = sum(learners) / len(learners)
    rows.append(("a learner process, private memory", f"{mean:.0f} MB", "", f"of it about {data:.0f} MB of pixels"))
    rows.append(("    10 learners, all processes", f"{watched.peak_mb:.0f} MB", "", "proportional (PSS)"))
    return {"learner_private_mb": mean, "ten_learners_pss_mb": watched.peak_mb}


def _simulation(root: Path, rows: list[Row]) -> dict[str, float]:
    shards = _shards(root, 1000)
    with Watched() as watched:
        result = _train(root, MNIST_REPO, learners=1000, rounds=3, shards=shards, simulation={"processes": 2})
    accuracy = result.holdout["accuracy"]
    seconds = f"{result.seconds:.1f} s"
    rows.append(("1,000 virtual learners × 3 rounds", seconds, "", f"accuracy {accuracy:.4f} on the held-out rows"))
    rows.append(("    peak of all processes", f"{watched.peak_mb:.0f} MB", "≤ 1024 MB", "proportional (PSS)"))
    return {"simulation_seconds": result.seconds, "simulation_pss_mb": watched.peak_mb}


def _shards(root: Path, learners: int) -> list[Path]:
    catalog = DataCatalog(cache_directory() / "data")
    version = catalog.resolve(load_mock_data(MOCK, "mock_data.yaml"), ["mnist"])
    (root / "holdout").symlink_to(version.directory / "holdout.arrow")
    return catalog.shards(version, learners, 0, root / "shards")


def _train(root: Path, repo: Path, *, learners: int, rounds: int, shards: list[Path], **more: Any) -> TrainingResult:
    job = TrainingJob(
        project="bench",
        digest="be" * 32,
        customer="bench",
        repo_dir=repo,
        python=Path(sys.executable),
        shards=tuple(shards),
        holdout=(root / "holdout").resolve() if repo == MNIST_REPO else None,
        run_dir=root / "run",
        flavor="sklearn",
        rounds=rounds,
        seed=0,
        min_available=learners,
        min_fit=learners,
        min_evaluate=learners,
        fraction_fit=1.0,
        strategy_name="fedavg",
        strategy_arguments={},
        round_timeout=600.0,
        memory_mb=500,
        vcpus=1,
        metric="accuracy",
        direction="max",
        **more,
    )
    return run_training(job, on_event=lambda _: None, cancelled=lambda: False)


def _memory(pid: int) -> tuple[int, int] | None:
    """Proportional and private memory of a process in KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    except (OSError, ValueError):
        return None
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return values.get("Pss", 0), values.get("Private_Clean", 0) + values.get("Private_Dirty", 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
