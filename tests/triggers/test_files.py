"""A commit on this machine says "look"; other writes in the same folders do not. Real events of real Git."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.source import GitRepo
from reconciler.triggers.files import RefWatch, folders_to_watch
from tests.conftest import Repos, commit, git


@pytest.fixture
def looked() -> threading.Event:
    return threading.Event()


@pytest.fixture
def clone(repos: Repos) -> Path:
    path = repos.clone()
    commit(path, {"a": "1"})
    return path


@pytest.fixture
def watch(repos: Repos, clone: Path, looked: threading.Event) -> Iterator[RefWatch]:
    made = RefWatch([repos.origin], "main", looked.set)
    yield made
    made.close()


def test_a_push_to_a_remote_on_this_machine(watch: RefWatch, clone: Path, looked: threading.Event) -> None:
    commit(clone, {"a": "2"})
    assert looked.wait(10)


def test_packed_refs_and_deleted_branches(watch: RefWatch, repos: Repos, looked: threading.Event) -> None:
    git(repos.origin, "pack-refs", "--all")
    assert looked.wait(10)


def test_another_branch_is_nothing_to_look_at(watch: RefWatch, clone: Path, looked: threading.Event) -> None:
    git(clone, "push", "-q", "origin", "HEAD:refs/heads/status/default")
    commit(clone, {"a": "3"}, push=False)
    git(clone, "push", "-q", "origin", "HEAD:refs/heads/other")
    assert not looked.is_set()
    git(clone, "push", "-q", "origin", "HEAD:main")
    assert looked.wait(10)


def test_where_to_look(repos: Repos, clone: Path, tmp_path: Path) -> None:
    repo = GitRepo(clone)
    assert folders_to_watch(repo.git_dir, repo.remote_url) == [repos.origin]
    assert folders_to_watch(repo.git_dir, f"file://{repos.origin}") == [repos.origin]
    assert folders_to_watch(repo.git_dir, "") == [clone / ".git"]
    assert folders_to_watch(repo.git_dir, str(clone)) == [clone / ".git"]
    for remote in ("https://git.example.invalid/a.git", "git@git.example.invalid:a.git", "ssh://git@git.example.invalid/a"):
        assert folders_to_watch(repo.git_dir, remote) == []
    assert folders_to_watch(repo.git_dir, str(tmp_path / "gone")) == []


def test_a_folder_that_cannot_be_watched_is_told(tmp_path: Path) -> None:
    made = RefWatch([tmp_path / "gone"], "main", lambda: None)
    assert made.error
    made.close()
