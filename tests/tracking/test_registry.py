"""The registry: a version per digest, its alias, its card, and its files as they were recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from reconciler.errors import TrackingError
from reconciler.tracking import ModelVersion, RunRecord, Tracking
from reconciler.tracking.content import directory_digest
from tests.tracking.conftest import RecordMaker, Server


def registered(tracking: Tracking, record: RunRecord) -> ModelVersion:
    return tracking.register(
        customer=record.customer,
        project=record.project,
        digest=record.digest,
        gate_digest="gate",
        run_id=tracking.record_run(record),
        alias="development",
    )


def versions_of(tracking: Tracking, record: RunRecord) -> list[ModelVersion]:
    return [item for item in tracking.versions(record.customer) if item.project == record.project]


def test_a_version_can_be_loaded_by_its_alias(
    tracking: Tracking, record: RecordMaker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import numpy as np

    version = registered(tracking, record())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    mlflow.set_tracking_uri(server.uri)
    model = mlflow.pyfunc.load_model(f"models:/{version.name}@development")
    assert list(model.predict(np.array([[0.0], [3.0]]))) == [0, 1]
    assert model.metadata.signature is not None


def test_registering_again_makes_no_second_version(tracking: Tracking, record: RecordMaker) -> None:
    wanted = record()
    first = registered(tracking, wanted)
    assert first.aliases == ("development",)
    assert registered(tracking, wanted) == first
    assert versions_of(tracking, wanted) == [first]
    assert first.metrics["accuracy"] == 0.9
    assert first.holdout == {"accuracy": 0.85, "rows": 100}


def test_the_alias_follows_and_comes_back(tracking: Tracking, record: RecordMaker) -> None:
    first = registered(tracking, record("d1"))
    second = registered(tracking, record("d2"))
    assert [(item.version, item.aliases) for item in versions_of(tracking, record())] == [("2", ("development",)), ("1", ())]
    assert registered(tracking, record("d1")).version == first.version
    assert [(item.version, item.aliases) for item in versions_of(tracking, record())] == [("2", ()), ("1", ("development",))]
    tracking.set_alias(second, "production")
    assert tracking.metrics_of_alias("acme", second.project, "production") == {
        "accuracy": 0.9, "loss": pytest.approx(0.1), "learners_fit": 2, "holdout.accuracy": 0.85, "holdout.rows": 100,
    }  # fmt: skip
    tracking.delete_alias(second.name, "production")
    tracking.delete_alias(second.name, "production")
    assert tracking.metrics_of_alias("acme", second.project, "production") is None


def test_a_crash_between_version_and_alias_is_mended(tracking: Tracking, record: RecordMaker) -> None:
    wanted = record()
    version = registered(tracking, wanted)
    tracking.delete_alias(version.name, "development")
    assert registered(tracking, wanted) == version
    assert len(versions_of(tracking, wanted)) == 1


def test_customers_with_similar_names_are_kept_apart(tracking: Tracking, record: RecordMaker) -> None:
    """On a server that is not ours they share a registry: `_` is any letter to LIKE, and `a.` begins the names of `a.b`."""
    names = ("sim_lar", "simular", "sim_lar.x", "SIM_LAR")
    for customer in names:
        registered(tracking, record(customer=customer))
    for customer in names:
        assert [item.name.rpartition(".")[0] for item in tracking.versions(customer)] == [customer]


def test_a_model_comes_back_as_it_was_recorded(tracking: Tracking, record: RecordMaker, model_dir: Path, tmp_path: Path) -> None:
    version = registered(tracking, record())
    destination = tracking.download(version, tmp_path / "bundles" / "one")
    assert directory_digest(destination) == directory_digest(model_dir) == version.content
    assert (destination / "flops" / "lock.json").is_file()
    assert [path.name for path in destination.parent.iterdir()] == ["one"]
    # A whole one is kept without asking the server, a broken one is replaced.
    assert Tracking("http://127.0.0.1:9").download(version, destination) == destination
    (destination / "MLmodel").write_text("broken")
    tracking.download(version, destination)
    assert directory_digest(destination) == version.content


def test_a_model_that_was_changed_on_the_server_is_refused(
    tracking: Tracking, record: RecordMaker, server: Server, tmp_path: Path
) -> None:
    version = registered(tracking, record())
    location = MlflowClient(tracking_uri=server.uri).get_logged_model(version.model_id).artifact_location
    stored = server.folder / "artifacts" / location.removeprefix("mlflow-artifacts:/")
    (stored / "MLmodel").write_text("something else")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").write_text("in service")
    with pytest.raises(TrackingError, match="not what was recorded") as caught:
        tracking.download(version, tmp_path / "kept")
    assert caught.value.code == "FL6010"
    assert not caught.value.transient
    assert (tmp_path / "kept" / "old").is_file()
    assert not list(tmp_path.glob(".download-*"))


def test_the_card_says_what_the_model_is_made_of(tracking: Tracking, record: RecordMaker, server: Server) -> None:
    version = registered(tracking, record())
    card = (
        MlflowClient(registry_uri=server.uri, tracking_uri=server.uri).get_model_version(version.name, version.version).description
    )
    assert "3 rounds; the model of round 2" in card
    assert "`accuracy`: `0.9`" in card
    assert "Commit of the SLA: `c0ffee`" in card
    assert "secret" not in card


def test_a_card_is_no_way_to_write_markdown(record: RecordMaker) -> None:
    from reconciler.tracking.card import LIMIT, model_card

    wanted = record()
    evil = "`</code><script>x</script>\n# heading\n![](http://x)\u202e"
    card = model_card(replace(wanted, project=evil, params={f"{evil}{number}": evil * 50 for number in range(100)}))
    assert len(card) <= LIMIT
    for line in card.splitlines():
        if "script" in line:
            assert line.count("`") % 2 == 0
            assert "script" not in "".join(line.split("`")[::2])
        assert not line.startswith("# ")
    assert "\u202e" not in card
