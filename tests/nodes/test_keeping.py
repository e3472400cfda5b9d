"""The loop's federations: up before anybody trains, with the keys of the commit that is declared, and gone with their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from bench.workbench import Workbench, make
from reconciler.engine import Engine, open_engine
from reconciler.errors import FlopsError
from reconciler.federations import RENEW, Federations
from reconciler.nodes import keys
from tests.nodes.kit import free_port


class Inline(Executor):
    """Work is done when it is given."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*arguments, **named))
        return future


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Kept:
    """Federations of a clone, looked at by hand."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.clock = Clock()
        self.told: list[FlopsError] = []
        self.woken = 0
        self.open()

    def open(self) -> None:
        self.engine: Engine = open_engine(self.bench.clone)
        self.federations = Federations(
            self.engine, Inline(), self._wake, monotonic=self.clock, uniform=lambda low, high: (low + high) / 2
        )

    def _wake(self) -> None:
        self.woken += 1

    def look(self) -> None:
        self.told.clear()
        self.engine.repo.fetch()
        self.federations.look(self.commit, self.told.append)

    def settle(self) -> None:
        """Looks until nothing of a federation fails: a port may be free only in a moment."""
        for _ in range(20):
            self.clock.now += 60
            self.look()
            if not [error for error in self.told if error.where is None]:
                return

    @property
    def commit(self) -> str:
        return self.engine.repo.desired_commit(self.engine.config.branch)

    def names(self) -> set[str]:
        federation = self.federations._kept["hospitals"].federation
        assert federation is not None
        return {member.name for member in federation.superlink().members()}

    def services(self) -> list[str]:
        return [service.name for service in self.engine.runtime.observe()]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    bench = make(tmp_path / "bench")
    (bench.clone / "nodes").mkdir()
    try:
        yield Kept(bench)
    finally:
        bench.stop()


def settings(bench: Workbench, text: str) -> None:
    path = bench.clone / "flops.yaml"
    kept = path.read_text().split("federations:")[0]
    path.write_text(kept + text)


def declare(bench: Workbench, name: str) -> None:
    key = keys.public_bytes(keys.generate(bench.root / f"{name}.key")).decode()
    text = f"federation: hospitals\ntags: [a]\npublic_key: |\n{''.join(f'  {line}' for line in key.splitlines(keepends=True))}"
    (bench.clone / "nodes" / f"{name}.yaml").write_text(text)


@pytest.mark.timeout(300)
def test_a_superlink_follows_what_is_declared_without_any_training(kept: Kept) -> None:
    bench = kept.bench
    settings(bench, f"federations:\n  hospitals:\n    listen: 127.0.0.1:{free_port()}\n")
    for name in ("a", "b"):
        declare(bench, name)
    bench.commit("Two nodes")
    kept.open()
    kept.look()
    assert not kept.told
    assert kept.services() == ["superlink-hospitals"]
    assert kept.names() == {"a", "b"}

    woken = kept.woken
    kept.look()
    assert kept.woken == woken, "a look at what is as it should be does nothing"

    (bench.clone / "nodes" / "b.yaml").unlink()
    declare(bench, "c")
    bench.commit("One goes, one comes")
    kept.look()
    assert kept.names() == {"a", "c"}

    (bench.clone / "nodes" / "d.yaml").write_text("tags: [a]\n")
    bench.commit("A file that is not valid")
    kept.look()
    assert kept.told
    assert kept.told[0].code == "FL5721"
    assert kept.told[0].transient
    assert str(kept.told[0].where).startswith("nodes/d.yaml")
    assert kept.federations.failing
    assert kept.names() == {"a", "c"}, "what was declared last is still allowed"

    kept.engine.runtime.remove("superlink-hospitals")
    kept.settle()
    assert kept.services() == ["superlink-hospitals"], f"what was stopped by hand is started again {kept.told}"

    (bench.clone / "nodes" / "d.yaml").unlink()
    bench.commit("Mended")
    before = kept.engine.runtime.observe()[0].labels["flops.certificate"]
    settings(bench, f"federations:\n  hospitals:\n    hosts: [localhost]\n    listen: 127.0.0.1:{free_port()}\n")
    kept.open()
    kept.settle()
    assert kept.engine.runtime.observe()[0].labels["flops.certificate"] != before, "another certificate is another SuperLink"

    settings(bench, "")
    kept.open()
    kept.settle()
    assert kept.services() == []
    assert not kept.told


def test_a_superlink_that_cannot_be_reached_is_told_of_and_tried_again_later(kept: Kept) -> None:
    settings(kept.bench, f"federations:\n  hospitals:\n    superlink: 127.0.0.1:{free_port()}\n")
    declare(kept.bench, "a")
    kept.bench.commit("A node")
    kept.open()
    kept.look()
    kept.look()
    assert [error.code for error in kept.told] == ["FL5801"]
    assert kept.federations.failing
    assert kept.woken == 1, "not tried again at every look"
    kept.clock.now += RENEW
    kept.look()
    assert kept.woken == 2


def test_another_commit_of_an_older_run_brings_no_key_back(kept: Kept) -> None:
    """A run that was declared before a key was taken out goes by what is allowed now."""
    settings(kept.bench, f"federations:\n  hospitals:\n    listen: 127.0.0.1:{free_port()}\n")
    for name in ("a", "b"):
        declare(kept.bench, name)
    kept.bench.commit("Two nodes")
    kept.open()
    old = kept.engine.federation("hospitals", kept.commit)
    old.declare()
    assert set(old.allowed()) == {"a", "b"}
    (kept.bench.clone / "nodes" / "b.yaml").unlink()
    kept.bench.commit("One goes")
    kept.engine.repo.fetch()
    kept.engine.federation("hospitals", kept.commit).declare()
    assert set(old.allowed()) == {"a"}
