"""The keys of hierarchies, simulation, early stop and guards: what is refused, what it means, what changes a digest."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.errors import SpecErrors
from reconciler.spec import load_sla, training_spec
from reconciler.spec.training import TrainingConfiguration

GOOD = "customerID: me\nml_repo_url: ./projects/a/ml_repo\nml_model_flavor: sklearn\n"
OLD_KEYS = [
    "best_model", "clusters", "data_tags", "fraction_fit", "min_available_clients", "min_evaluate_clients", "min_fit_clients",
    "mode", "seed", "strategy", "training_cycles", "training_rounds",
]  # fmt: skip


def training(text: str) -> TrainingConfiguration:
    return load_sla((GOOD + f"training_configuration: {{{text}}}\n").encode(), "sla.yaml").training_configuration


def spec(text: str = "") -> dict[str, Any]:
    sla = load_sla((GOOD + f"training_configuration: {{{text}}}\n").encode(), "sla.yaml")
    found: dict[str, Any] = training_spec(sla)["training_configuration"]
    return found


def test_keys_that_are_not_used_are_not_part_of_the_digest() -> None:
    """A release with new keys trains nobody's project again."""
    assert sorted(spec()) == OLD_KEYS


@pytest.mark.parametrize(
    "text",
    [
        "early_stop: {target: 0.9}",
        "update_guard: {}",
        "privacy: {}",
        "simulation: {learners: 10}",
        "partitioner: {name: dirichlet}",
        "mode: hierarchical, root_strategy: {name: fedadam}",
        "mode: hierarchical, federation: f, clusters: [{name: a, nodes: [n1]}]",
    ],
)
def test_keys_that_are_used_are(text: str) -> None:
    mode = "mode: hierarchical" if "hierarchical" in text else ""
    assert spec(text) != spec(mode)


def test_a_cluster_that_names_no_nodes_has_the_digest_that_it_always_had() -> None:
    assert spec("mode: hierarchical, clusters: [{name: a}]")["clusters"] == [{"name": "a", "learners": None}]


def test_the_number_of_processes_of_a_simulation_changes_nothing() -> None:
    assert spec("simulation: {learners: 10, processes: 1}") == spec("simulation: {learners: 10, processes: 8}")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("early_stop: {}", "never stop early"),
        ("early_stop: {patience: 0}", "1"),
        ("early_stop: {target: 1, min_delta: -1}", "0"),
        ("update_guard: {max_norm: 0}", "0"),
        ("privacy: {mechanism: magic}", "magic"),
        ("privacy: {delta: 1}", "1"),
        ("root_strategy: {name: fedavg}", "needs mode: hierarchical"),
        ("mode: hierarchical, simulation: {learners: 4}", "needs mode: classic"),
        ("min_available_clients: 5, simulation: {learners: 4}", "fewer learners than min_available_clients"),
        ("simulation: {}", "learners"),
        ("partitioner: {name: dirichlet, alpha: 0}", "0"),
        ("partitioner: {name: zipf}", "zipf"),
        ("mode: hierarchical, clusters: [{name: a, nodes: [n1]}]", "clusters name its nodes"),
        ("mode: hierarchical, federation: f, clusters: [{name: a, nodes: [n1]}, {name: b, nodes: [n1]}]", "names a node twice"),
        ("mode: hierarchical, federation: f, clusters: [{name: a, nodes: [n1, n1]}]", "names a node twice"),
        ("mode: hierarchical, federation: f, clusters: [{name: a, nodes: []}]", "1"),
        ("mode: hierarchical, federation: f, clusters: [{name: a, learners: 2}]", "nodes of its own"),
        ("federation: f, simulation: {learners: 4}", "together with simulation"),
        ("federation: f, partitioner: {}", "together with partitioner"),
    ],
)
def test_what_cannot_be(text: str, cause: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        training(text)
    assert cause in str(caught.value)
    assert caught.value.errors[0].where is not None
    assert caught.value.errors[0].where.line == 4


def test_the_direction_follows_the_metric() -> None:
    assert training("early_stop: {metric: loss, target: 0.1}").early_stop.direction == "minimize"
    assert training("early_stop: {target: 0.9}").early_stop.direction == "maximize"


@pytest.mark.parametrize(
    ("text", "clusters", "learners", "processes"),
    [
        ("min_available_clients: 3", [], 3, 3),
        ("mode: hierarchical, min_available_clients: 3", [("cluster-1", 3), ("cluster-2", 3)], 6, 6),
        ("mode: hierarchical, min_available_clients: 2, clusters: [{name: a}, {name: b, learners: 5}]", [("a", 2), ("b", 5)], 7, 7),
        ("simulation: {learners: 1000}", [], 1000, 2),
        ("simulation: {learners: 1}", [], 1, 1),
    ],
)
def test_learners_and_clusters(text: str, clusters: list[tuple[str, int]], learners: int, processes: int) -> None:
    found = training(text)
    assert (found.cluster_sizes(), found.learner_count(), found.process_count()) == (clusters, learners, processes)
