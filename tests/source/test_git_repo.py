"""The clone: what is tracked, and the one commit that is made for users."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo
from tests.source.gitkit import IDENTITY, commit, git, init

FILE = "projects/a/sla.yaml"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return init(tmp_path / "origin", "--bare")


@pytest.fixture
def clone(tmp_path: Path, origin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    path = init(tmp_path / "clone")
    git(path, "remote", "add", "origin", str(origin))
    return path


def code_of(caught: pytest.ExceptionInfo[SourceError]) -> tuple[str, bool]:
    return caught.value.code, caught.value.transient


def test_an_empty_remote_a_missing_branch_and_a_dead_remote_are_told_apart(clone: Path, origin: Path) -> None:
    repo = GitRepo(clone)
    local = commit(clone, {FILE: "1"})
    repo.fetch()
    with pytest.raises(SourceError) as caught:
        repo.desired_commit("main")
    assert code_of(caught) == ("FL2018", True)
    git(clone, "push", "--quiet", "origin", "main:other")
    repo.fetch()
    with pytest.raises(SourceError) as caught:
        repo.desired_commit("main")
    assert code_of(caught) == ("FL2008", True)
    git(clone, "push", "--quiet", "origin", "main")
    repo.fetch()
    assert repo.desired_commit("main") == local
    commit(clone, {FILE: "not pushed"})
    assert repo.desired_commit("main") == local
    origin.rename(origin.with_name("hidden"))
    with pytest.raises(SourceError) as caught:
        repo.fetch()
    assert code_of(caught) == ("FL2006", True)
    assert repo.desired_commit("main") == local


def test_without_a_remote_the_local_branch_is_tracked(tmp_path: Path) -> None:
    path = init(tmp_path / "alone")
    repo = GitRepo(path)
    repo.fetch()
    with pytest.raises(SourceError, match="FL2018"):
        repo.desired_commit("main")
    head = commit(path, {FILE: "1"})
    assert repo.desired_commit("main") == head


@pytest.mark.parametrize("revision", ["--all", "nowhere", ""])
def test_revisions_that_are_none(clone: Path, revision: str) -> None:
    commit(clone, {FILE: "1"})
    with pytest.raises(SourceError, match=r"FL2003|FL2007"):
        GitRepo(clone).resolve(revision)


def test_a_folder_below_the_top_is_the_same_repo(clone: Path) -> None:
    commit(clone, {FILE: "1"})
    assert GitRepo(clone / "projects").path == clone


def test_log_tells_what_was_merged(clone: Path) -> None:
    commit(clone, {FILE: "1"}, "one")
    git(clone, "switch", "--quiet", "-c", "topic")
    commit(clone, {FILE: "2"}, "step")
    commit(clone, {FILE: "3"}, "another step")
    git(clone, "switch", "--quiet", "main")
    git(clone, "merge", "--quiet", "--no-ff", "-m", "merged", "topic")
    commit(clone, {"other": "x"}, "other")
    assert [(entry.subject, entry.author) for entry in GitRepo(clone).log(path=FILE)] == [("merged", "Ada"), ("one", "Ada")]
    assert [entry.subject for entry in GitRepo(clone).log("HEAD~1..HEAD")] == ["other"]


def test_rollback_goes_back_before_the_last_merge(clone: Path) -> None:
    first = commit(clone, {FILE: "1", "projects/b/sla.yaml": "b"}, "one")
    git(clone, "switch", "--quiet", "-c", "topic")
    commit(clone, {FILE: "2"}, "step")
    commit(clone, {FILE: "3", "projects/a/new": "x"}, "another step")
    git(clone, "switch", "--quiet", "main")
    git(clone, "merge", "--quiet", "--no-ff", "-m", "merged", "topic")
    commit(clone, {"projects/b/sla.yaml": "b2"}, "b")
    made = GitRepo(clone).revert_commit("a")
    assert git(clone, "rev-parse", "HEAD") == made
    assert git(clone, "rev-parse", "HEAD:projects/a") == git(clone, "rev-parse", f"{first}:projects/a")
    assert git(clone, "show", "HEAD:projects/b/sla.yaml") == "b2"
    assert git(clone, "log", "-1", "--format=%s by %an") == f'Revert "a" to {first[:12]} by Ada'
    assert git(clone, "status", "--porcelain") == ""


def test_rollback_to_a_revision_and_of_a_removed_project(clone: Path) -> None:
    first = commit(clone, {FILE: "1"})
    commit(clone, {FILE: "2"})
    commit(clone, {FILE: "3"})
    GitRepo(clone).revert_commit("a", first)
    assert (clone / FILE).read_text() == "1"
    with pytest.raises(SourceError, match="FL2017"):
        GitRepo(clone).revert_commit("a", first)
    (clone / FILE).unlink()
    commit(clone, {})
    GitRepo(clone).revert_commit("a")
    assert (clone / FILE).read_text() == "1"


def test_rollback_leaves_other_work_alone(clone: Path) -> None:
    commit(clone, {FILE: "1", "other": "1"})
    commit(clone, {FILE: "2"})
    (clone / "other").write_text("2")
    git(clone, "add", "other")
    (clone / "loose").write_text("x")
    GitRepo(clone).revert_commit("a")
    assert git(clone, "status", "--porcelain").splitlines() == ["M  other", "?? loose"]


def test_rollback_refuses_what_it_cannot_do(clone: Path) -> None:
    commit(clone, {"README.md": "x"})
    first = commit(clone, {FILE: "1"})
    repo = GitRepo(clone)
    for project in ("nowhere", "../a", "*", "--all", "a/b"):
        with pytest.raises(SourceError, match="FL2014"):
            repo.revert_commit(project)
    with pytest.raises(SourceError, match="FL2016"):
        repo.revert_commit("a")
    commit(clone, {FILE: "2"})
    (clone / "projects/a/loose").write_text("x")
    with pytest.raises(SourceError, match="FL2015"):
        repo.revert_commit("a")
    (clone / "projects/a/loose").unlink()
    git(clone, "switch", "--quiet", "--detach")
    with pytest.raises(SourceError, match="FL2019"):
        repo.revert_commit("a", first)


def test_a_refused_commit_leaves_the_folder_as_it_was(clone: Path) -> None:
    commit(clone, {FILE: "1"})
    head = commit(clone, {FILE: "2"})
    hook = clone / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(SourceError, match="not today"):
        GitRepo(clone).revert_commit("a")
    assert git(clone, "rev-parse", "HEAD") == head
    assert git(clone, "status", "--porcelain") == ""
    assert (clone / FILE).read_text() == "2"
