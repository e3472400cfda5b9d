"""The status branch: one commit a transition, none when idle, never forced, nothing lost when a push is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.source import GitRepo
from reconciler.status import StatusBranch
from tests.conftest import Repos, commit, git

FILES = {"README.md": b"# Status\n", "projects/a.json": b"{}\n"}


def branch(clone: Path, sleeps: list[float] | None = None) -> StatusBranch:
    record = sleeps if sleeps is not None else []
    return StatusBranch(GitRepo(clone), "default", clock=lambda: 1_000_000.0, sleep=record.append, uniform=lambda a, _b: a)


@pytest.fixture
def clone(repos: Repos) -> Path:
    path = repos.clone()
    commit(path, {"README.md": "the user's"})
    return path


def count(repos: Repos) -> int:
    return int(git(repos.origin, "rev-list", "--count", "status/default"))


def test_what_is_published_is_read_and_pushed(repos: Repos, clone: Path) -> None:
    result = branch(clone).publish(FILES, "a: Ready")
    assert result.pushed
    assert branch(clone).read() == FILES
    assert git(repos.origin, "show", "status/default:projects/a.json") == "{}"
    assert git(repos.origin, "log", "--format=%an|%s", "status/default") == "flops-gitops|a: Ready"


def test_the_users_work_tree_index_and_head_are_not_touched(clone: Path) -> None:
    (clone / "README.md").write_text("being edited")
    head = git(clone, "rev-parse", "HEAD")
    branch(clone).publish(FILES, "x")
    assert git(clone, "status", "--porcelain") == "M README.md"
    assert git(clone, "rev-parse", "HEAD") == head


def test_a_hundred_idle_cycles_make_no_commit_and_no_push(repos: Repos, clone: Path) -> None:
    found = branch(clone)
    found.publish(FILES, "x")
    pushes = repos.root / "pushes"
    hook = repos.origin / "hooks" / "update"
    hook.write_text(f"#!/bin/sh\necho push >> {pushes}\n")
    hook.chmod(0o755)
    results = [found.publish(FILES, "x") for _ in range(100)]
    assert all(result.commit is None and result.attempts == 0 for result in results)
    assert count(repos) == 1
    assert not pushes.exists()


def test_another_writer_is_built_upon_and_never_overwritten(repos: Repos, clone: Path) -> None:
    branch(clone).publish(FILES, "first")
    other = repos.clone("other")
    git(other, "fetch", "-q", "origin")
    branch(other).publish({"README.md": b"other\n"}, "other")
    sleeps: list[float] = []
    result = branch(clone, sleeps).publish({"README.md": b"ours\n"}, "ours")
    assert result.pushed
    assert result.attempts == 2
    assert len(sleeps) == 1
    subjects = git(repos.origin, "log", "--format=%s", "status/default").splitlines()
    assert subjects == ["ours", "other", "first"]
    assert branch(clone).read() == {"README.md": b"ours\n"}


def test_a_refused_push_waits_in_the_outbox_and_goes_with_the_next(repos: Repos, clone: Path) -> None:
    hook = repos.origin / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho protected >&2\nexit 1\n")
    hook.chmod(0o755)
    sleeps: list[float] = []
    result = branch(clone, sleeps).publish(FILES, "kept")
    assert not result.pushed
    assert result.error
    assert len(sleeps) == 5
    assert branch(clone).read() == FILES
    hook.unlink()
    again = branch(clone).publish(FILES, "x")
    assert again.pushed
    assert again.commit is None
    assert git(repos.origin, "log", "--format=%s", "status/default") == "kept"


def test_a_remote_that_is_away_loses_nothing(repos: Repos, clone: Path) -> None:
    repos.origin.rename(repos.root / "away.git")
    result = branch(clone).publish(FILES, "kept")
    assert (result.pushed, bool(result.error)) == (False, True)
    (repos.root / "away.git").rename(repos.origin)
    assert branch(clone).publish(FILES, "x").pushed


def test_a_repo_without_a_remote(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    result = branch(tmp_path).publish(FILES, "x")
    assert result.commit
    assert branch(tmp_path).read() == FILES


def test_a_message_cannot_carry_trailers_or_control_characters(clone: Path) -> None:
    branch(clone).publish(FILES, "a\n\nSigned-off-by: evil\x1b[31m")
    assert git(clone, "log", "-1", "--format=%B", "status/default") == "a  Signed-off-by: evil [31m"


def test_a_planted_push_hook_is_inert(repos: Repos, clone: Path) -> None:
    trace = repos.root / "ran"
    hook = clone / ".git" / "hooks" / "pre-push"
    hook.write_text(f"#!/bin/sh\ntouch {trace}\n")
    hook.chmod(0o755)
    assert branch(clone).publish(FILES, "x").pushed
    assert not trace.exists()
