"""Every record that is kept, damaged in turn: the loop starts, nobody else notices, what is lost is observed, not done anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.runtimes.process import ProcessRuntime
from reconciler.statusdoc import Renderer, merge, read_documents, readme, sound, subject
from reconciler.tracking import ModelVersion
from tests.conftest import Repos, commit, git
from tests.controller.looping import Looping

GARBAGE = (b"", b"{", b"\x00" * 5000, b"[]", b"null", b"3", "ü".encode("latin-1"), b'{"name": {"name": []}}', b"[" * 5000)
FIELDS = (
    "name",
    "customer",
    "inputs",
    "model",
    "stages",
    "training",
    "gate",
    "ml_repo",
    "service",
    "conditions",
    "stalled",
    "error",
)
VALUES = (None, 3, "text", [], ["x"], {}, {"digest": 5}, {"x": {"y": []}}, True)


@pytest.fixture
def loop(repos: Repos) -> Looping:
    made = Looping(repos)
    made.edit(made.project("a") | made.project("b"))
    made.settle()
    return made


def rewrite(loop: Looping, files: dict[str, str]) -> None:
    """Somebody writes to the status branch."""
    path = loop.repos.root / "vandal"
    git(loop.repos.root, "clone", "-q", "-b", "status/default", str(loop.repos.origin), str(path))
    git(path, "config", "user.name", "V")
    git(path, "config", "user.email", "v@example.invalid")
    commit(path, files, push=False)
    git(path, "push", "-q", "origin", "HEAD:status/default")
    shutil.rmtree(path)


def converged_without_work(loop: Looping) -> None:
    actions, trained = loop.world.actions, len(loop.world.trained)
    loop.settle()
    loop.settle()
    for name in ("a", "b"):
        assert loop.says(name, "Synced")[:2] == ("True", "Converged")
        assert loop.status(name)["model"]["version"]
    assert (loop.world.actions, len(loop.world.trained)) == (actions, trained)


@pytest.mark.parametrize("content", GARBAGE)
def test_a_damaged_status_document(loop: Looping, content: bytes) -> None:
    rewrite(loop, {"projects/a.json": content.decode("latin-1")})
    loop.start("fresh")
    loop.step()
    converged_without_work(loop)


def test_every_field_of_a_status_document_with_every_wrong_value(loop: Looping) -> None:
    """In one process a value: each is read by a loop that starts from it."""
    good = loop.status("a")
    for value in VALUES:
        rewrite(loop, {"projects/a.json": orjson.dumps({**good, **dict.fromkeys(FIELDS, value)}).decode()})
        loop.start("fresh")
        loop.step()
        converged_without_work(loop)


@pytest.mark.parametrize("damage", ["garbage", "cut off", "empty", "another schema", "gone", "folder of the state gone"])
def test_a_damaged_journal(loop: Looping, damage: str) -> None:
    path = loop.repos.root / "state" / "journal.db"
    loop.engine.journal.close()
    content = path.read_bytes()
    if damage == "folder of the state gone":
        shutil.rmtree(path.parent)
    elif damage == "another schema":
        import sqlite3

        path.unlink()
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE events (x)")
            database.execute("CREATE TABLE stages (y)")
            database.execute("CREATE TABLE lease (z)")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"garbage": b"x" * 9000, "cut off": content[: len(content) // 2], "empty": b""}[damage])
    loop.start()
    assert loop.controller.leadership.lease.try_acquire()
    converged_without_work(loop)
    loop.edit(loop.project("a", 7))
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert loop.engine.journal.stages("a"), "the new journal is written to"


def test_a_status_branch_that_is_gone_or_somebody_elses(loop: Looping) -> None:
    git(loop.repos.origin, "update-ref", "-d", "refs/heads/status/default")
    git(loop.clone, "update-ref", "-d", "refs/heads/status/default")
    git(loop.clone, "update-ref", "-d", "refs/remotes/origin/status/default")
    loop.start("fresh")
    loop.step()
    converged_without_work(loop)
    git(loop.repos.origin, "update-ref", "refs/heads/status/default", "refs/heads/main")
    git(loop.clone, "update-ref", "-d", "refs/heads/status/default")
    loop.start("fresher")
    loop.step()
    converged_without_work(loop)


@pytest.mark.parametrize("content", [*GARBAGE, b'{"labels": 3}', b'{"supervisor": 1}'])
@pytest.mark.parametrize("name", ["spec.json", "state.json", "port"])
def test_a_damaged_service_record_is_no_end_of_the_look(tmp_path: Path, name: str, content: bytes) -> None:
    for service in ("one", "two"):
        (tmp_path / service).mkdir()
        (tmp_path / service / "spec.json").write_text('{"labels": {"flops.kind": "inference"}}')
    (tmp_path / "one" / name).write_bytes(content)
    seen = {service.name: service for service in ProcessRuntime(tmp_path).observe()}
    assert seen.keys() == {"one", "two"}
    assert not seen["one"].healthy
    assert seen["two"].labels == {"flops.kind": "inference"}


def test_a_registry_that_says_nonsense_is_its_customers_alone(loop: Looping, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks in reading one customer's registry: the others are looked at and worked on."""
    loop.edit(loop.project("theirs", customer="another"))
    loop.settle()
    versions = loop.world.versions

    def nonsense(customer: str) -> list[ModelVersion]:
        if customer == "another":
            raise KeyError("project")
        return versions(customer)

    monkeypatch.setattr(loop.world, "versions", nonsense)
    loop.world.generation += 1
    loop.edit(loop.project("a", rounds=9))
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert "FL9023" in loop.says("theirs", "Synced")[2]
    assert "inference-theirs" in loop.world.services
    monkeypatch.undo()
    loop.world.generation += 1
    loop.clock.now += 2000
    loop.settle()
    assert loop.says("theirs", "Synced")[:2] == ("True", "Converged")


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FIELDS, "digest", "type", "holdout"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS), json))
def test_no_document_breaks_what_reads_it(document: dict[str, object]) -> None:
    found = read_documents({"projects/a.json": orjson.dumps(document)})
    assert sound(found["a"]) == found["a"]
    readme(found)
    subject({}, found)
    merge(found, {"a": {"name": "a"}})
    assert read_documents(Renderer(lambda _: "")(found)) == found


@given(st.binary(max_size=200))
def test_no_bytes_do(content: bytes) -> None:
    readme(read_documents({"projects/a.json": content}))
