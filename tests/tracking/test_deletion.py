"""Deleting what a project recorded: its own, all of it, and nothing that another project's version is made of."""

from __future__ import annotations

from pathlib import Path

from reconciler.tracking import Tracking
from tests.tracking.conftest import RecordMaker, Server
from tests.tracking.test_registry import registered, versions_of


def test_a_deleted_project_leaves_no_version_run_or_file(tracking: Tracking, record: RecordMaker, server: Server) -> None:
    before = set(server.folder.rglob("MLmodel"))
    first, second = record("d1"), record("d2")
    registered(tracking, first)
    tracking.record_run(second)  # did not meet its gate: a run without a version
    other = record("d3", project="another")
    registered(tracking, other)
    assert tracking.delete_project("acme", first.project) == 3
    assert not versions_of(tracking, first)
    assert tracking.run_with_digest(first.project, "acme", "d1") is None
    assert tracking.run_with_digest(first.project, "acme", "d2") is None
    assert len(set(server.folder.rglob("MLmodel")) - before) == 1
    assert len(versions_of(tracking, other)) == 1
    assert tracking.delete_project("acme", first.project) == 0
    registered(tracking, first)
    assert len(versions_of(tracking, first)) == 1
    tracking.delete_project("acme", "another")


def test_a_run_that_another_name_uses_stays(tracking: Tracking, record: RecordMaker, tmp_path: Path) -> None:
    old = record("d1", project="old-name")
    made = registered(tracking, old)
    tracking.register(customer="acme", project="new-name", digest="d1", gate_digest="gate", run_id=made.run_id, alias="development")
    tracking.delete_project("acme", "old-name")
    kept = next(item for item in tracking.versions("acme") if item.project == "new-name")
    assert (tracking.download(kept, tmp_path / "model") / "MLmodel").is_file()
    tracking.delete_project("acme", "new-name")
    assert tracking.run_with_digest("old-name", "acme", "d1") is None
