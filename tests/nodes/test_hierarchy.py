"""Clusters of real nodes: the same model as the embedded hierarchy, and clusters that are small, gone, back or misled."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import ClusterShare, TrainingEvent, run_training
from reconciler.nodes.data import NodeData
from reconciler.spec.training import Cluster
from tests.federation.processes import learners_of
from tests.nodes.kit import Federation, eventually, slow
from tests.nodes.test_federation import after_round, parameters

CLUSTERED = {"cycles": 2, "rounds": 2}


def two_by_two(federation: Federation, start: bool = True) -> None:
    """Clusters east (a, b) and west (c, d), with rows of different numbers so that weights matter."""
    for number, (name, cluster) in enumerate((("a", "east"), ("b", "east"), ("c", "west"), ("d", "west"))):
        node = federation.node(name, cluster=cluster, rows=100 + 60 * number)
        if start:
            node.start()


def equal(one: Path, other: Path, cycle: int) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(parameters(one, cycle), parameters(other, cycle), strict=True))


def warnings(federation: Federation) -> list[str]:
    return [event.message for event in federation.events if event.kind == "warning"]


def test_two_clusters_of_nodes_learn_what_the_embedded_hierarchy_learns(federation: Federation) -> None:
    two_by_two(federation)
    result = federation.train(2, relay=federation.relay(clusters=[]), **CLUSTERED)
    assert [item.round for item in result.rounds] == [1, 2]
    assert [(item.learners_fit, item.learners_evaluated) for item in result.rounds] == [(4, 4), (4, 4)]
    assert {name: [item.round for item in rounds] for name, rounds in result.clusters.items()} == {
        "east": [1, 2, 3, 4],
        "west": [1, 2, 3, 4],
    }
    assert result.rounds[1].loss < result.rounds[0].loss
    assert (result.model_dir / "MLmodel").is_file()
    assert warnings(federation) == []

    shards = []
    for name in federation.nodes:
        shard = NodeData(federation.root / name / "data").shard(["blobs"], 0, 1)
        shards.append(Path(shutil.copy(shard.path, federation.root / f"{name}.arrow")))
    clusters = (ClusterShare("east", 2), ClusterShare("west", 2))
    embedded = federation.root / "embedded"
    job = federation.job(2, shards=tuple(shards), clusters=clusters, run_dir=embedded, **CLUSTERED)
    run_training(job, on_event=lambda _: None, cancelled=lambda: False)
    assert equal(federation.root / "run", embedded, 2), "bit for bit: one loop, the same learners, the same seeds"


def test_the_sla_may_make_the_clusters(federation: Federation) -> None:
    two_by_two(federation)
    wanted = [Cluster(name="mixed", nodes=["d", "a"]), Cluster(name="west"), Cluster(name="south")]
    result = federation.train(1, relay=federation.relay(clusters=wanted), cycles=1, rounds=1)
    assert {name: rounds[0].learners_fit for name, rounds in result.clusters.items()} == {"mixed": 2, "west": 1}
    assert warnings(federation) == ["cluster south has 0 learners of the 1 that it needs: it is left out"]
    assert "run: project" not in federation.nodes["b"].said(), "a node that is in no cluster is not asked"


def test_a_cluster_with_too_few_nodes_there_is_left_out_and_let_in_when_they_come(federation: Federation, repo: Path) -> None:
    two_by_two(federation, start=False)
    for name in "abc":
        federation.nodes[name].start()
    late = federation.nodes["d"]
    slow(repo, 0.2)
    seen: list[int] = []

    def act(event: TrainingEvent) -> None:
        come(event)
        if event.kind == "round":
            seen.append(int(event.data["result"]["learners_fit"]))

    come = after_round(1, lambda: (late.start(), eventually(lambda: "connected" in late.said())))
    relay = federation.relay(repo=repo, clusters=[])
    with pytest.raises(TrainingError) as caught:
        federation.train(2, act, relay, repo_dir=repo, round_timeout=5.0, cancelled=lambda: 4 in seen, cycles=100, rounds=1)
    assert caught.value.code == "FL5001", "cancelled by the test, when both clusters took part"
    assert seen[0] == 2
    assert any("cluster west is left out" in text and "d: It is not connected" in text for text in warnings(federation))


def test_a_killed_cluster_aggregator_goes_on_within_its_cycle(federation: Federation, repo: Path) -> None:
    two_by_two(federation)
    slow(repo, 0.2)
    whole = federation.root / "whole"
    relay = federation.relay("ef" * 32, repo=repo, clusters=[])
    federation.train(2, relay=relay, repo_dir=repo, run_dir=whole, digest="ef" * 32, cycles=2, rounds=3)
    killed: list[int] = []

    def kill(event: TrainingEvent) -> None:
        if event.kind == "cluster_round" and event.message.startswith("cluster west: cycle 1, round 1") and not killed:
            aggregator = learners_of(federation.root / "run")["cluster-west"]
            aggregator.kill()
            killed.append(aggregator.pid)

    result = federation.train(2, kill, federation.relay(repo=repo, clusters=[]), repo_dir=repo, cycles=2, rounds=3)
    assert killed
    assert [item.learners_fit for item in result.rounds] == [4, 4]
    assert any("cluster west" in event.message and "SIGKILL" in event.message for event in federation.events)
    assert equal(federation.root / "run", whole, 2)


def test_a_node_that_says_another_cluster_than_is_declared_is_not_believed(federation: Federation) -> None:
    two_by_two(federation)
    liar = federation.node("liar", cluster="east", says="west").start()
    result = federation.train(2, relay=federation.relay(clusters=[]), cycles=1, rounds=1)
    assert result.rounds[0].learners_fit == 4
    assert "FL5842" in liar.said()
    told = [event.message for event in federation.events if event.kind == "learner_failed"]
    assert len(told) == 1
    assert "'west', but 'east' is declared" in told[0]


def test_no_node_in_a_cluster_and_a_node_that_is_not_declared(federation: Federation) -> None:
    federation.node("a")
    with pytest.raises(TrainingError) as caught:
        federation.relay(clusters=[])
    assert caught.value.code == "FL5841"
    with pytest.raises(TrainingError) as caught:
        federation.relay(clusters=[Cluster(name="east", nodes=["a", "b"])])
    assert caught.value.code == "FL5840"


def test_clusters_that_are_all_gone_are_worth_another_try(federation: Federation) -> None:
    two_by_two(federation, start=False)
    with pytest.raises(TrainingError) as caught:
        federation.train(2, relay=federation.relay(clusters=[]), round_timeout=1.0, **CLUSTERED)
    assert caught.value.transient
    assert "not connected" in caught.value.cause
