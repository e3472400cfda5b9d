"""Which commit changed which project: as it was merged."""

from __future__ import annotations

import pytest

from reconciler.errors import SourceError
from reconciler.source import GitRepo
from tests.conftest import Repos, commit, git


def test_the_newest_commit_that_touched_a_project(repos: Repos) -> None:
    user = repos.clone("user")
    start = commit(user, {"projects/a/sla.yaml": "1", "README.md": "x"})
    one = commit(user, {"projects/a/sla.yaml": "2", "projects/b/ml_repo/ä b\n.py": "1"})
    two = commit(user, {"projects/a/deep/er/x": "3", "build_plans/server.yaml": "1"})
    commit(user, {"README.md": "y", "projects/README.md": "1"})
    repo = GitRepo(user)
    found = repo.touched(start, repo.resolve("HEAD"))
    assert {name: found[name] for name in "ab"} == {"a": two, "b": one}
    assert repo.touched(two, two) == {}
    assert repo.last("a", repo.resolve("HEAD")) == two
    assert repo.last("a", one) == one
    assert repo.last("nothing", two) == ""


def test_a_merge_is_one_commit(repos: Repos) -> None:
    user = repos.clone("user")
    start = commit(user, {"projects/a/sla.yaml": "1"})
    git(user, "switch", "-q", "-c", "branch")
    commit(user, {"projects/a/sla.yaml": "2"}, push=False)
    commit(user, {"projects/b/sla.yaml": "2"}, push=False)
    git(user, "switch", "-q", "main")
    commit(user, {"projects/c/sla.yaml": "2"}, push=False)
    git(user, "merge", "-q", "--no-ff", "--no-edit", "branch")
    repo = GitRepo(user)
    merge = repo.resolve("HEAD")
    found = repo.touched(start, merge)
    assert (found["a"], found["b"]) == (merge, merge)
    assert found["c"] != merge
    assert repo.last("b", merge) == merge


def test_a_removed_project_was_touched(repos: Repos) -> None:
    user = repos.clone("user")
    start = commit(user, {"projects/a/sla.yaml": "1", "projects/b/sla.yaml": "1"})
    git(user, "rm", "-rq", "projects/a")
    removed = commit(user, {})
    assert GitRepo(user).touched(start, removed) == {"a": removed}


def test_what_is_no_commit_is_refused(repos: Repos) -> None:
    user = repos.clone("user")
    head = commit(user, {"projects/a/sla.yaml": "1"})
    with pytest.raises(SourceError, match="FL2001"):
        GitRepo(user).touched("0" * 40, head)
    with pytest.raises(SourceError, match="FL2003"):
        GitRepo(user).touched("--output=/tmp/x", head)
