"""The same declaration twice from nothing – data fetched, dealt and trained anew – gives the same parameters, bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reconciler.federation.data import DataCatalog
from reconciler.federation.training import ClusterShare, TrainingJob
from reconciler.spec.training import Partitioner
from tests.federation.test_training import same


@pytest.mark.parametrize(
    ("how", "changes"),
    [
        (None, {}),
        (Partitioner(name="dirichlet", min_rows=20), {"simulation": {"processes": 2}, "fraction_fit": 0.5, "min_fit": 1}),
        (None, {"clusters": (ClusterShare("a", 2), ClusterShare("b", 2)), "cycles": 2, "strategy_name": "fedadam"}),
    ],
    ids=["classic", "simulation, skewed", "hierarchical"],
)
def test_twice_from_nothing(job: TrainingJob, run, tmp_path: Path, how: Partitioner | None, changes) -> None:
    random = np.random.default_rng(5)
    labels = random.integers(0, 3, 800)
    x = np.random.default_rng(0).normal(0, 1.2, (3, 8))[labels] + random.normal(0, 1, (800, 8))
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"x": list(x), "y": labels}), tmp_path / "data" / "train.parquet")
    for name in ("one", "two"):
        catalog = DataCatalog(tmp_path / name / "cache", {"points": tmp_path / "data"})
        version = catalog.resolve(None, ["points"])
        shards = tuple(catalog.shards(version, 4, 9, tmp_path / name / "shards", partitioner=how))
        run(replace(job, shards=shards, run_dir=tmp_path / name / "run", seed=9, rounds=2, **changes))
    assert same(tmp_path / "one" / "run", tmp_path / "two" / "run", 2)
