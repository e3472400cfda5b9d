"""PyTorch and Keras over nodes: an example learns in containers of the nodes what it learns in their processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.engine import cache_directory
from reconciler.environments import EnvironmentStore
from reconciler.nodes.data import NodeData
from tests.dockerkit import open_engine
from tests.federation.test_training import same
from tests.flavorkit import FLAVORS, digits_of_two, example, python_of
from tests.nodes.kit import Federation
from tests.nodes.test_boxes import DOCKER, again_as

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.mark.parametrize("flavor", FLAVORS)
def test_an_example_learns_in_containers_what_it_learns_in_processes(tmp_path: Path, flavor: str) -> None:
    open_engine()
    python, repo = python_of(example(flavor), flavor), example(flavor)
    lock = EnvironmentStore(cache_directory() / "environments").lock(repo, flavor=flavor)
    nodes = Federation(tmp_path, lock=(lock.python, lock.requirements), flavor=flavor, python=python, memory_mb=500)
    try:
        nodes.start()
        for name, shard in zip(("a", "b"), digits_of_two(tmp_path / "digits")[0], strict=True):
            place = tmp_path / f"data-{name}"
            NodeData(place).add(shard, name="rows", tags=["blobs"])
            nodes.node(name, data=place, options=DOCKER).start()
        first = nodes.train(2, relay=nodes.relay(repo=repo, setup=600.0), repo_dir=repo, round_timeout=300.0)
        assert [item.learners_fit for item in first.rounds] == [2, 2, 2]
        assert first.rounds[-1].accuracy > 0.8
        assert {path.name for path in first.model_dir.rglob("*")} & {"model.pt2", "model.keras"}

        for name in ("a", "b"):
            again_as(nodes.nodes[name])
        digest = "ef" * 32
        relay = nodes.relay(digest, repo, 600.0)
        nodes.train(2, relay=relay, repo_dir=repo, round_timeout=300.0, run_dir=tmp_path / "again", digest=digest)
        assert same(tmp_path / "run", tmp_path / "again", 3)
    finally:
        nodes.stop()
