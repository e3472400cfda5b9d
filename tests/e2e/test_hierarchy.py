"""A hierarchical SLA from its merge to a served model: the shipped example, on the real MNIST."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.workbench import Workbench, make
from reconciler.engine import open_engine

PROJECT = "mnist-hierarchical"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    made = make(tmp_path_factory.mktemp("hierarchy"))
    yield made
    made.stop()


def test_the_example_is_trained_in_clusters_and_its_root_model_serves(bench: Workbench) -> None:
    classic = bench.clone / "projects" / "mnist-classic" / "sla.yaml"
    classic.write_text(classic.read_text() + "suspend: true\n")
    bench.edit_sla(PROJECT, "suspend: true\n", "")
    bench.commit("Train the hierarchical example")
    shown = bench.flops("reconcile", "--once")
    document = bench.status(PROJECT)
    assert document["live"]["healthy"], shown
    assert document["verification"]["passed"]
    assert document["model"]["holdout"]["rows"] == 10_000
    assert document["model"]["holdout"]["accuracy"] >= 0.80
    metrics = logged(bench, document["model"]["run_id"])
    assert sorted(metrics["accuracy"]) == [3, 6]  # the root's model, at the last round of each cycle
    assert metrics["accuracy"][6] > metrics["accuracy"][3]
    for cluster in ("north", "south"):
        assert sorted(metrics[f"cluster.{cluster}.accuracy"]) == [1, 2, 3, 4, 5, 6]
    assert set(metrics["learners_evaluated"].values()) == {4.0}


def logged(bench: Workbench, run_id: str) -> dict[str, dict[int, float]]:
    """What MLflow has of a run: values by step, by metric."""
    import mlflow

    client = mlflow.MlflowClient(open_engine(bench.clone).tracking("demo").uri)
    names = client.get_run(run_id).data.metrics
    return {name: {item.step: item.value for item in client.get_metric_history(run_id, name)} for name in names}
