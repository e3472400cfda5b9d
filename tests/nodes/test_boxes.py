"""Nodes whose learners are containers of a real engine: what processes learn, behind a higher fence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from docker.models.containers import Container

from reconciler.runtimes.docker_engine import OWNER, DockerEngine, owner_of
from tests.dockerkit import open_engine
from tests.nodes.boxkit import own_lock
from tests.nodes.kit import Federation
from tests.nodes.test_federation import parameters


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return open_engine()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of the lock are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def boxed(tmp_path: Path, engine: DockerEngine, cache: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, lock=own_lock(), cache=cache)
    try:
        yield made.start()
    finally:
        made.stop()
        left = [item for name in made.nodes for item in containers(engine, made, name)]
        assert left == [], "a node that ends in order leaves no container"


def containers(engine: DockerEngine, federation: Federation, name: str) -> list[Container]:
    """Those of a node."""
    return engine.containers(owner_of(federation.root / name / "data" / "work-0-of-1"), label=OWNER)


DOCKER = ("--runtime", "docker")


def test_containers_of_nodes_learn_what_processes_learn(boxed: Federation, engine: DockerEngine) -> None:
    boxed.node("a", test_fraction=0.2, seed=1, options=DOCKER).start()
    boxed.node("b", test_fraction=0.2, seed=2, options=DOCKER).start()
    result = boxed.train(2)
    assert [item.learners_fit for item in result.rounds] == [2, 2, 2]
    print(boxed.nodes["a"].said())
