"""Runs: what is written, once per digest, whatever happens half-way."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import RunStatus, ViewType

from reconciler.errors import TrackingError
from reconciler.tracking import RoundMetrics, RunRecord, Tracking, recording
from tests.tracking.conftest import RecordMaker, Server


def runs_of(client: MlflowClient, record: RunRecord, view: int = ViewType.ACTIVE_ONLY) -> list[str]:
    experiment = client.get_experiment_by_name(f"{record.customer}/{record.project}")
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id], run_view_type=view)]


@pytest.fixture
def client(server: Server) -> MlflowClient:
    return MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)


def test_a_run_has_everything(tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    wanted = record()
    run = client.get_run(tracking.record_run(wanted))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"strategy": "fedavg", "rounds": "3", "learners": "2"}
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.5), (2, 0.9), (3, 0.8)]
    assert run.data.metrics["stage_seconds.train"] == 2.5
    assert run.data.metrics["holdout.accuracy"] == 0.85
    tags = run.data.tags
    assert tags["flops.digest"] == "d1"
    assert tags["flops.project"] == wanted.project
    assert tags["flops.best_round"] == "2"
    assert tags["flops.gate"] == "pending"
    assert tags["flops.sla_digest"] == hashlib.sha256(wanted.sla).hexdigest()
    assert tags["flops.ml_repo_url"] == "https://git.example/repo"
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["sla.yaml"]


def test_the_model_stands_under_its_run_and_round(tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    run = client.get_run(tracking.record_run(record()))
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert output.step == 2
    assert model.status == "READY"
    assert model.source_run_id == run.info.run_id
    assert {item.key: (item.value, item.step) for item in model.metrics}["accuracy"] == (0.9, 2)


def test_the_same_digest_is_written_once(tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    wanted = record()
    first = tracking.record_run(wanted)
    assert tracking.record_run(wanted) == first
    assert runs_of(client, wanted) == [first]
    other = tracking.record_run(replace(wanted, digest="d2"))
    assert other != first
    found = tracking.run_with_digest(wanted.project, "acme", "d1")
    assert found is not None
    assert found.run_id == first
    assert found.metrics["holdout.accuracy"] == 0.85


@pytest.mark.parametrize("step", ["log_batch", "log_text", "create_logged_model", "log_model_artifacts", "finalize_logged_model",
                                  "set_terminated", "set_tag"])  # fmt: skip
def test_a_crash_at_any_step_leaves_no_second_run(step: str, tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    class Killed(BaseException):
        """As `kill -9`: no handler of the code under test sees it."""

    class Crashing(MlflowClient):
        def __getattribute__(self, name: str) -> object:
            if name == step:
                raise Killed
            return super().__getattribute__(name)

    wanted = record(project=f"crash-{step.replace('_', '-')}")
    experiment = recording.experiment(client, f"acme/{wanted.project}")
    with pytest.raises(Killed):
        recording.write(Crashing(tracking_uri=tracking.uri), experiment, wanted, "content")
    assert tracking.run_with_digest(wanted.project, "acme", "d1") is None
    run_id = tracking.record_run(wanted)
    assert runs_of(client, wanted) == [run_id]
    killed = [client.get_run(item) for item in runs_of(client, wanted, ViewType.DELETED_ONLY)]
    assert [RunStatus.from_string(run.info.status) for run in killed] == [RunStatus.KILLED]
    models = client.search_logged_models([experiment])
    assert [model.source_run_id for model in models] == [run_id]


def test_an_unknown_project_has_no_run(tracking: Tracking) -> None:
    assert tracking.run_with_digest("never-seen", "acme", "d1") is None


def test_a_deleted_experiment_counts_as_none_and_comes_back(tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    wanted = record()
    tracking.record_run(wanted)
    client.delete_experiment(client.get_experiment_by_name(f"acme/{wanted.project}").experiment_id)
    assert tracking.run_with_digest(wanted.project, "acme", "d1") is None
    assert tracking.record_run(wanted)
    assert tracking.run_with_digest(wanted.project, "acme", "d1") is not None


def test_many_rounds_many_settings_and_odd_names(tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    rounds = tuple(RoundMetrics(step, {"loss": math.nan, "f1 (macro)/..": 0.5, "accuracy": 0.1}) for step in range(1, 1001))
    wanted = record(rounds=rounds, params={f"setting {number}": "x" * 9000 for number in range(150)})
    run = client.get_run(tracking.record_run(wanted))
    assert len(run.data.params) == 150
    assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1000
    assert run.data.metrics["f1__macro__"] == 0.5
    found = tracking.run_with_digest(wanted.project, "acme", "d1")
    assert found is not None
    assert math.isnan(found.metrics["loss"])


def test_projects_are_recorded_at_the_same_time(tracking: Tracking, record: RecordMaker) -> None:
    wanted = [record(project=f"parallel-{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(tracking.record_run, wanted))) == 4


def test_a_rejected_run_is_kept_and_marked(tracking: Tracking, record: RecordMaker, client: MlflowClient) -> None:
    wanted = record()
    run_id = tracking.record_run(wanted)
    tracking.mark_gate_failed(run_id, "gate-a", "accuracy is too low")
    tracking.mark_gate_failed(run_id, "gate-b", "accuracy is too low")
    tracking.mark_gate_failed(run_id, "gate-b", "accuracy is too low")
    found = tracking.run_with_digest(wanted.project, "acme", "d1")
    assert found is not None
    assert found.rejected_gates == ("gate-a", "gate-b")
    assert client.get_run(run_id).data.tags["flops.gate"] == "failed: accuracy is too low"


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"accuracy": "high"}', "null"])
def test_tags_that_somebody_edited_are_no_end_of_the_look(
    tracking: Tracking, record: RecordMaker, client: MlflowClient, text: str
) -> None:
    """MLflow's pages let everybody write everything: one such tag must not keep a customer's projects from being seen."""
    made = record(f"edited {text}")
    run_id = tracking.record_run(made)
    for tag in ("flops.metrics", "flops.rejected_gates"):
        client.set_tag(run_id, tag, text)
    found = tracking.run_with_digest(made.project, made.customer, made.digest)
    assert found is not None
    assert (dict(found.metrics), found.rejected_gates) == ({}, ())
    tracking.mark_gate_failed(run_id, "a gate", "it is not met")
    again = tracking.run_with_digest(made.project, made.customer, made.digest)
    assert again is not None
    assert again.rejected_gates == ("a gate",)


def test_a_link_in_a_model_directory_is_refused_before_it_is_read(
    tracking: Tracking, record: RecordMaker, tmp_path: object
) -> None:

    folder = Path(str(tmp_path)) / "model"
    folder.mkdir()
    (folder / "MLmodel").symlink_to("/etc/hostname")
    with pytest.raises(TrackingError, match="MLmodel") as caught:
        tracking.record_run(record(model_dir=folder))
    assert caught.value.code == "FL6008"
    assert not caught.value.transient
