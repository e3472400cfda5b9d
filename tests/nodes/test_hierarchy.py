"""Clusters of real nodes: the same model as the embedded hierarchy, and clusters that are small, gone, back or misled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import ClusterShare, TrainingEvent, run_training
from reconciler.nodes.data import NodeData
from reconciler.spec.training import Cluster
from tests.federation.processes import learners_of
from tests.federation.test_training import same
from tests.nodes.kit import REPO, Federation, eventually, slow
from tests.nodes.test_federation import after_round

CLUSTERED = {"cycles": 2, "rounds": 2}


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ML repo whose rounds last long enough to be disturbed."""
    repo = Path(shutil.copytree(REPO, tmp_path_factory.mktemp("slow") / "repo"))
    slow(repo, 0.2)
    return repo


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Clusters east (a, b) and west (c, d), with rows of different numbers so that weights matter; the nodes stay up."""
    made = Federation(tmp_path_factory.mktemp("four"))
    try:
        made.start()
        for number, (name, cluster) in enumerate((("a", "east"), ("b", "east"), ("c", "west"), ("d", "west"))):
            made.node(name, cluster=cluster, rows=100 + 60 * number, test_fraction=0.2).start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def embedded(four: Federation, slowed: Path) -> Path:
    """The run directory of the embedded hierarchy over the same rows, in the same order."""
    shards = []
    for name in four.nodes:
        shard = NodeData(four.root / name / "data").shard(["blobs"], 0, 1)
        shards.append(Path(shutil.copy(shard.path, four.root / f"{name}.arrow")))
    clusters = (ClusterShare("east", 2), ClusterShare("west", 2))
    job = four.job(2, shards=tuple(shards), clusters=clusters, run_dir=four.root / "embedded", repo_dir=slowed, **CLUSTERED)
    run_training(job, on_event=lambda _: None, cancelled=lambda: False)
    return job.run_dir


def about_clusters(federation: Federation) -> list[str]:
    return [event.message for event in federation.events if event.kind == "warning" and "cluster" in event.message]


def test_two_clusters_of_nodes_learn_what_the_embedded_hierarchy_learns(
    four: Federation, slowed: Path, embedded: Path, tmp_path: Path
) -> None:
    four.events.clear()
    relay = four.relay("0a" * 32, repo=slowed, clusters=[])
    result = four.train(2, relay=relay, repo_dir=slowed, run_dir=tmp_path, digest="0a" * 32, **CLUSTERED)
    assert [item.round for item in result.rounds] == [1, 2]
    assert [(item.learners_fit, item.learners_evaluated) for item in result.rounds] == [(4, 4), (4, 4)]
    assert {name: [item.round for item in rounds] for name, rounds in result.clusters.items()} == {
        "east": [1, 2, 3, 4],
        "west": [1, 2, 3, 4],
    }
    assert result.rounds[1].loss < result.rounds[0].loss
    assert (result.model_dir / "MLmodel").is_file()
    assert about_clusters(four) == []
    assert result.holdout["rows"] == sum((100 + 60 * number) // 5 for number in range(4)), "the rows that all clusters kept back"
    assert result.holdout["accuracy"] > 0.8
    assert result.samples is not None
    assert same(tmp_path, embedded, 2), "bit for bit: one loop, the same learners, the same seeds"


def test_a_killed_cluster_aggregator_goes_on_within_its_cycle(
    four: Federation, slowed: Path, embedded: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(event: TrainingEvent) -> None:
        if event.kind == "cluster_round" and event.message.startswith("cluster west: cycle 1, round 1") and not killed:
            aggregator = learners_of(tmp_path)["cluster-west"]
            aggregator.kill()
            killed.append(aggregator.pid)

    four.events.clear()
    relay = four.relay("0b" * 32, repo=slowed, clusters=[])
    result = four.train(2, kill, relay, repo_dir=slowed, run_dir=tmp_path, digest="0b" * 32, **CLUSTERED)
    assert killed
    assert [item.learners_fit for item in result.rounds] == [4, 4]
    assert any("cluster west" in event.message and "SIGKILL" in event.message for event in four.events)
    assert same(tmp_path, embedded, 2)


def test_the_sla_may_make_the_clusters(four: Federation, tmp_path: Path) -> None:
    wanted = [Cluster(name="mixed", nodes=["d", "a"]), Cluster(name="west"), Cluster(name="south")]
    four.events.clear()
    asked = four.nodes["b"].said().count("run: project")
    relay = four.relay("0c" * 32, clusters=wanted)
    result = four.train(1, relay=relay, run_dir=tmp_path, digest="0c" * 32, cycles=1, rounds=1)
    assert {name: rounds[0].learners_fit for name, rounds in result.clusters.items()} == {"mixed": 2, "west": 1}
    assert about_clusters(four) == ["cluster south has 0 learners of the 1 that it needs: it is left out"]
    assert four.nodes["b"].said().count("run: project") == asked, "a node that is in no cluster is not asked"


def test_a_cluster_whose_nodes_are_away_is_left_out_and_let_in_when_they_come(federation: Federation, repo: Path) -> None:
    federation.node("a", cluster="east").start()
    late = federation.node("b", cluster="west")
    slow(repo, 0.2)
    seen: list[int] = []

    def act(event: TrainingEvent) -> None:
        come(event)
        if event.kind == "round":
            seen.append(int(event.data["result"]["learners_fit"]))

    come = after_round(1, lambda: (late.start(), eventually(lambda: "connected" in late.said())))
    relay = federation.relay(repo=repo, clusters=[])
    with pytest.raises(TrainingError) as caught:
        federation.train(1, act, relay, repo_dir=repo, round_timeout=5.0, cancelled=lambda: 2 in seen, cycles=100, rounds=1)
    assert caught.value.code == "FL5001", "cancelled by the test, when both clusters took part"
    assert seen[0] == 1
    assert any("cluster west is left out" in text and "b: It is not connected" in text for text in about_clusters(federation))


def test_a_node_that_says_another_cluster_than_is_declared_is_not_believed(federation: Federation) -> None:
    federation.node("a", cluster="east", says="east").start()
    liar = federation.node("liar", cluster="east", says="west").start()
    result = federation.train(1, relay=federation.relay(clusters=[]), cycles=1, rounds=1)
    assert result.rounds[0].learners_fit == 1
    assert "FL5842" in liar.said()
    told = [event.message for event in federation.events if event.kind == "learner_failed"]
    # By its cluster, and when all nodes are asked for their held-out rows.
    assert len({text.removeprefix("cluster east: ") for text in told}) == 1
    assert "'west', but 'east' is declared" in told[0]


def test_clusters_that_are_all_away_are_worth_another_try(federation: Federation) -> None:
    federation.node("a", cluster="east")
    federation.node("b", cluster="west")
    with pytest.raises(TrainingError) as caught:
        federation.train(1, relay=federation.relay(clusters=[]), round_timeout=1.0, **CLUSTERED)
    assert caught.value.transient
    assert "not connected" in caught.value.cause
