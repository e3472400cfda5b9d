"""Runs and versions against a real MLflow server, started the way users get it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from reconciler.errors import TrackingError
from reconciler.runtimes.process import ProcessRuntime
from reconciler.tracking import RoundMetrics, RunRecord, Tracking, tracking_service
from reconciler.tracking.model import safe_folder

ALIAS = "development"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    root = tmp_path_factory.mktemp("tracking")
    runtime = ProcessRuntime(root / "services")
    service = runtime.apply(tracking_service("demo", root, instance="test"))
    yield Tracking(f"http://{service.address}")
    runtime.remove(service.name)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = np.random.default_rng(0).normal(size=(40, 3))
    model = LogisticRegression().fit(x, x[:, 0] > 0)
    path = tmp_path_factory.mktemp("model") / "model"
    mlflow.sklearn.save_model(
        model, str(path), signature=infer_signature(x, model.predict(x)), serialization_format="cloudpickle", pip_requirements=[]
    )
    return path


def record(model_dir: Path, digest: str, project: str = "mnist", accuracy: float = 0.9) -> RunRecord:
    rounds = tuple(RoundMetrics(step, {"accuracy": accuracy - 0.1 / step, "loss": 1 / step}) for step in (1, 2))
    return RunRecord(
        customer="demo", project=project, digest=digest, params={"rounds": "2"}, rounds=rounds, best_round=2,
        holdout={"accuracy": accuracy, "rows": 10.0}, tags={"flops.commit": "c"}, sla=b"customerID: demo\n",
        timings={"train": 1.5}, model_dir=model_dir,
    )  # fmt: skip


def test_a_run_is_recorded_once_with_its_rounds_and_its_model(tracking: Tracking, model_dir: Path) -> None:
    run_id = tracking.record_run(record(model_dir, "d1"))
    assert tracking.record_run(record(model_dir, "d1")) == run_id
    found = tracking.run_with_digest("mnist", "demo", "d1")
    assert found is not None
    assert found.run_id == run_id
    assert found.metrics["holdout.accuracy"] == 0.9
    client = mlflow.MlflowClient(tracking_uri=tracking.uri)
    assert [(item.step, round(item.value, 3)) for item in client.get_metric_history(run_id, "accuracy")][:2] == [
        (1, 0.8),
        (2, 0.85),
    ]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_logged_model(found.model_id).source_run_id == run_id
    assert {item.path for item in client.list_artifacts(run_id)} >= {"sla.yaml"}


def test_a_run_that_a_crash_cut_off_is_replaced(tracking: Tracking, model_dir: Path) -> None:
    client = mlflow.MlflowClient(tracking_uri=tracking.uri)
    run_id = tracking.record_run(record(model_dir, "d2"))
    client.delete_tag(run_id, "flops.recorded")
    assert tracking.run_with_digest("mnist", "demo", "d2") is None
    assert tracking.record_run(record(model_dir, "d2")) != run_id


def test_a_version_is_registered_once_with_its_alias(tracking: Tracking, model_dir: Path) -> None:
    def register(digest: str, gate: str = "g"):  # type: ignore[no-untyped-def]
        run_id = tracking.record_run(record(model_dir, digest, "alias"))
        return tracking.register(customer="demo", project="alias", digest=digest, gate_digest=gate, run_id=run_id, alias=ALIAS)

    first, again, second = register("a1"), register("a1"), register("a2")
    assert (first.version, again.version, second.version) == ("1", "1", "2")
    aliases = {item.version: item.aliases for item in tracking.versions("demo") if item.project == "alias"}
    assert aliases == {"1": (), "2": (ALIAS,)}
    register("a1", "another gate")
    found = {item.digest: item.gate_digest for item in tracking.versions("demo") if item.project == "alias"}
    assert found == {"a1": "another gate", "a2": "g"}
    assert tracking.metrics_of_alias("demo", "alias", "production") is None
    assert (tracking.metrics_of_alias("demo", "alias", ALIAS) or {})["holdout.accuracy"] == 0.9


def test_a_registered_version_is_loaded_by_mlflow_and_downloaded_whole(tracking: Tracking, model_dir: Path, tmp_path: Path) -> None:
    run_id = tracking.record_run(record(model_dir, "d3", "load"))
    version = tracking.register(customer="demo", project="load", digest="d3", gate_digest="g", run_id=run_id, alias=ALIAS)
    folder = tracking.download(version, tmp_path / "bundle")
    wanted = {path.relative_to(model_dir) for path in model_dir.rglob("*") if path.is_file()}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} >= wanted
    mlflow.set_tracking_uri(tracking.uri)
    model = mlflow.pyfunc.load_model(f"models:/demo.load@{ALIAS}")
    assert len(model.predict(np.zeros((2, 3)))) == 2


def test_a_gate_that_is_not_met_is_noted_on_the_run(tracking: Tracking, model_dir: Path) -> None:
    run_id = tracking.record_run(record(model_dir, "d4", "gate"))
    tracking.mark_gate_failed(run_id, "g1", "too low")
    tracking.mark_gate_failed(run_id, "g2", "still too low")
    found = tracking.run_with_digest("gate", "demo", "d4")
    assert found is not None
    assert found.rejected_gates == ("g1", "g2")
    assert [item for item in tracking.versions("demo") if item.project == "gate"] == []


def test_a_customer_sees_its_own_models_only(tracking: Tracking, model_dir: Path) -> None:
    tracking.register(
        customer="demo", project="own", digest="d5", gate_digest="g",
        run_id=tracking.record_run(record(model_dir, "d5", "own")), alias=ALIAS,
    )  # fmt: skip
    assert tracking.versions("other") == []


def test_a_server_that_does_not_answer_is_transient_and_its_password_is_not_told() -> None:
    with pytest.raises(TrackingError) as caught:
        Tracking("http://me:secret@127.0.0.1:9").versions("demo")
    assert (caught.value.code, caught.value.transient) == ("FL6001", True)
    assert "secret" not in str(caught.value)


def test_no_two_customers_share_a_folder() -> None:
    names = ["demo", "Demo", "de.mo", "de_2e_mo", "a@b", "a_40_b"]
    assert len({safe_folder(name) for name in names}) == len(names)
