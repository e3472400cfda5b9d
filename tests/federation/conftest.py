"""Small real federations: real processes, real Flower, an ML repo of 40 lines and 600 rows of synthetic data."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from reconciler.federation.training import TrainingEvent, TrainingJob, TrainingResult, run_training

REPO = Path(__file__).parent / "repos" / "digits"


def write_arrow(path: Path, rows: int, seed: int) -> Path:
    """Three blobs in eight dimensions, as an Arrow stream file."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    centres = np.random.default_rng(0).normal(0, 1.2, (3, 8))
    x = centres[labels] + random.normal(0, 1, (rows, 8))
    table = Dataset.from_dict({"x": x.tolist(), "y": labels.tolist()}).data.table
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three shards and, last, a held-out set."""
    root = tmp_path_factory.mktemp("data")
    return (
        *(write_arrow(root / f"shard-{index}.arrow", 200, index + 1) for index in range(3)),
        write_arrow(root / "holdout.arrow", 300, 99),
    )


@pytest.fixture(scope="session")
def four_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Shards of different sizes, so that weights matter."""
    root = tmp_path_factory.mktemp("four")
    return tuple(write_arrow(root / f"shard-{index}.arrow", 100 + 60 * index, index + 1) for index in range(4))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A copy of the example ML repo, to be spoilt."""
    return Path(shutil.copytree(REPO, tmp_path / "repo"))


@pytest.fixture
def job(tmp_path: Path, repo: Path, shards: tuple[Path, ...]) -> TrainingJob:
    """Two learners, three rounds."""
    return TrainingJob(
        project="digits",
        digest="ab" * 32,
        customer="me",
        repo_dir=repo,
        python=Path(sys.executable),
        shards=shards[:2],
        holdout=shards[3],
        run_dir=tmp_path / "run",
        flavor="sklearn",
        rounds=3,
        seed=1,
        min_available=2,
        min_fit=2,
        min_evaluate=2,
        fraction_fit=1.0,
        strategy_name="fedavg",
        strategy_arguments={},
        round_timeout=None,
        memory_mb=200,
        vcpus=1,
        metric="accuracy",
        direction="max",
    )


class Run:
    """Runs jobs and keeps what they told."""

    def __init__(self) -> None:
        self.events: list[TrainingEvent] = []

    def __call__(
        self,
        job: TrainingJob,
        cancelled: Callable[[], bool] = lambda: False,
        on_event: Callable[[TrainingEvent], None] = lambda _: None,
        **changes: Any,
    ) -> TrainingResult:
        def both(event: TrainingEvent) -> None:
            self.events.append(event)
            on_event(event)

        return run_training(replace(job, **changes), on_event=both, cancelled=cancelled)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def spoil(repo: Path) -> Callable[..., None]:
    """Replaces text in the ML repo's model_manager.py."""

    def replace_text(old: str, new: str, file: str = "model_manager.py") -> None:
        path = repo / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return replace_text
