"""A fetch beside our own push of the status: the branch that both move must not cost the commits that were fetched with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.source import GitRepo, command
from tests.conftest import Repos, commit, git


def test_a_ref_that_is_locked_for_a_moment_costs_no_commit(repos: Repos, monkeypatch: pytest.MonkeyPatch) -> None:
    user = repos.clone("user")
    commit(user, {"a": "1"})
    repo = GitRepo(repos.clone("reconciler"))
    pushed = commit(user, {"a": "2"})
    git(user, "push", "-q", "origin", "HEAD:refs/heads/status/default")
    lock = Path(repo.git_dir) / "refs/remotes/origin/status/default.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    attempt, tries = command.attempt, []

    def once(path: Path, *arguments: str, **settings: object) -> command.Completed:
        done = attempt(path, *arguments, **settings)
        tries.append(done.code)
        lock.unlink(missing_ok=True)
        return done

    monkeypatch.setattr(command, "attempt", once)
    repo.fetch()
    assert [bool(code) for code in tries[:2]] == [True, False], "refused once, and tried again"
    assert repo.desired_commit("main") == pushed
