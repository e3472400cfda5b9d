"""Dealing rows by label: every row once, the same for a seed, skewed as asked, nobody without rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import DataError
from reconciler.federation.data import DataCatalog, arrow_files
from reconciler.federation.data.partitioners import deal, dirichlet, iid, label_values, shards
from reconciler.spec.training import Partitioner

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


def entropy(dealt: list[np.ndarray]) -> float:
    """Mean entropy of the learners' labels, in bits: 3.3 when all ten are as frequent, 0 with one label."""
    found = []
    for rows in dealt:
        share = np.bincount(LABELS[rows], minlength=10) / len(rows)
        found.append(float(-(share[share > 0] * np.log2(share[share > 0])).sum()))
    return float(np.mean(found))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(60, 400),
    learners=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    alpha=st.floats(0.01, 100),
    pieces=st.integers(1, 3),
    classes=st.integers(1, 5),
)
def test_every_row_is_dealt_once(rows: int, learners: int, seed: int, alpha: float, pieces: int, classes: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    for dealt in (
        iid(rows, learners, seed),
        dirichlet(labels, learners, seed, alpha, 5),
        shards(labels, learners, seed, pieces, 5),
    ):
        assert len(dealt) == learners
        assert sorted(np.concatenate(dealt).tolist()) == list(range(rows))
        assert min(map(len, dealt)) >= 5


def test_the_seed_decides() -> None:
    for way in (lambda seed: dirichlet(LABELS, 7, seed, 0.5, 10), lambda seed: shards(LABELS, 7, seed, 2)):
        assert all(np.array_equal(one, other) for one, other in zip(way(1), way(1), strict=True))
        assert any(not np.array_equal(one, other) for one, other in zip(way(1), way(2), strict=True))


def test_the_smaller_alpha_the_more_unlike_the_learners_are() -> None:
    found = [entropy(dirichlet(LABELS, 10, 3, alpha, 10)) for alpha in (0.05, 0.5, 1000.0)]
    assert found[0] < found[1] - 0.5 < found[2] - 1.0
    assert found[2] > 3.2


def test_shards_give_each_learner_few_labels() -> None:
    assert max(len(np.unique(LABELS[rows])) for rows in shards(LABELS, 10, 0, 2)) <= 5
    assert entropy(shards(LABELS, 10, 0, 2)) < 2.0


def test_rows_of_a_learner_are_shuffled() -> None:
    """ML repos cut their last fifth off: it must not be all of one label."""
    rows = shards(LABELS, 5, 0, 2)[0]
    assert len(np.unique(LABELS[rows][-len(rows) // 5 :])) > 1


@pytest.mark.parametrize("how", [Partitioner(name="dirichlet", min_rows=201), Partitioner(name="shards", shards_per_learner=300)])
def test_too_few_rows(how: Partitioner) -> None:
    with pytest.raises(DataError) as caught:
        deal(pa.table({"label": LABELS}), 10, 0, how)
    assert caught.value.code == "FL5711"


@pytest.mark.parametrize(
    ("columns", "label"),
    [({"x": [1.0]}, None), ({"label": [0.5]}, None), ({"label": [1]}, "kind"), ({"label": [[1, 2]]}, None)],
)
def test_data_without_labels(columns: dict[str, list[object]], label: str | None) -> None:
    with pytest.raises(DataError) as caught:
        deal(pa.table(columns), 1, 0, Partitioner(name="dirichlet", label=label, min_rows=1))
    assert caught.value.code == "FL5710"


def test_labels_may_be_texts_and_stand_in_any_column() -> None:
    table = pa.table({"label": [5, 5, 5], "kind": ["b", "a", "b"]})
    assert label_values(table, None).tolist() == [0, 0, 0]
    assert label_values(table, "kind").tolist() == [1, 0, 1]


def test_the_catalogue_deals_as_asked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"x": np.arange(2000.0), "label": LABELS}), tmp_path / "data" / "train.parquet")
    catalog = DataCatalog(tmp_path / "cache", {"points": tmp_path / "data"})
    version = catalog.resolve(None, ["points"])
    plain = catalog.shards(version, 4, 1, tmp_path / "shards")
    skewed = catalog.shards(version, 4, 1, tmp_path / "shards", partitioner=Partitioner(name="shards"))
    assert plain[0].parent != skewed[0].parent
    read = [arrow_files.read(path) for path in skewed]
    assert sum(table.num_rows for table in read) == 2000
    assert max(len(table.column("label").unique()) for table in read) <= 6
