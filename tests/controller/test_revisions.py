"""ML repos elsewhere, asked beside the loop: whoever waits for an answer is told that there is one."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import FlopsError
from reconciler.revisions import Revisions
from reconciler.source import GitRepo, MLRepos
from tests.source.gitkit import commit, init


class AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


def test_an_answer_that_is_as_the_one_before_is_told_too(tmp_path: Path) -> None:
    """`flops reconcile --once` does not end while a repo is being asked: without a word it would wait for ever."""
    repo = init(tmp_path / "repo")
    commit(repo, {"README.md": "x"})
    now, told = [0.0], [0]

    def changed() -> None:
        told[0] += 1

    revisions = Revisions(
        MLRepos(GitRepo(repo), tmp_path / "cache"),
        AtOnce(),
        changed,
        monotonic=lambda: now[0],
        uniform=lambda _, longest: longest,
        refresh=60.0,
    )
    for tries in (1, 2, 3):
        with pytest.raises(FlopsError):
            revisions((tmp_path / "nowhere").as_uri(), None, "", False)
        assert told[0] == tries
        assert revisions.in_flight == 0
        now[0] += 1000.0
