"""Clustered training: every cycle from the root's model, joined by samples, evaluated everywhere; clusters fail and return."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import ClusterShare, TrainingEvent, TrainingJob
from tests.federation.processes import aggregator_of, cluster_aggregator_of, learners_of
from tests.federation.test_training import parameters, same

FIT = '        """Mini-batch'


@pytest.fixture
def job(job: TrainingJob, four_shards: tuple[Path, ...]) -> TrainingJob:
    """Two clusters of two learners, two cycles of two rounds."""
    clusters = (ClusterShare("a", 2), ClusterShare("b", 2))
    return replace(job, shards=four_shards, clusters=clusters, cycles=2, rounds=2)


def killing(job: TrainingJob, cluster: str, times: int) -> Callable[[TrainingEvent], None]:
    """Kills a cluster's aggregator after rounds of the first cycle, so many times."""
    killed: set[int] = set()

    def kill(event: TrainingEvent) -> None:
        told = event.kind == "cluster_round" and event.message.startswith(f"cluster {cluster}: cycle 1,")
        if told and len(killed) < times:
            with contextlib.suppress(AssertionError, psutil.Error):  # told before the last kill, read after it
                aggregator = cluster_aggregator_of(job.run_dir, cluster)
                aggregator.kill()
                killed.add(aggregator.pid)

    return kill


def test_it_learns_in_clusters_and_the_roots_model_is_evaluated_on_all_learners(job: TrainingJob, run) -> None:
    result = run(job)
    assert [item.round for item in result.rounds] == [1, 2]
    assert [(item.learners_fit, item.learners_evaluated) for item in result.rounds] == [(4, 4), (4, 4)]
    assert result.rounds[1].loss < result.rounds[0].loss
    assert result.holdout["accuracy"] > 0.7
    assert {name: [item.round for item in rounds] for name, rounds in result.clusters.items()} == {
        "a": [1, 2, 3, 4],
        "b": [1, 2, 3, 4],
    }
    assert all(item.learners_fit == 2 for rounds in result.clusters.values() for item in rounds)
    assert result.rounds_per_cycle == 2


def test_with_one_round_a_cycle_it_is_federated_averaging_over_all_learners(job: TrainingJob, run, tmp_path: Path) -> None:
    """The mean of the clusters' means, weighted by samples, is the mean of all: so the weights are right, the seeds too."""
    clusters, few = (ClusterShare("a", 3), ClusterShare("b", 1)), {"min_available": 1, "min_fit": 1, "min_evaluate": 1}
    clustered = run(job, cycles=3, rounds=1, clusters=clusters, **few)
    flat = run(job, clusters=(), rounds=3, run_dir=tmp_path / "flat")
    for one, other in zip(parameters(job.run_dir, 3), parameters(tmp_path / "flat", 3), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    assert clustered.rounds[-1].loss == pytest.approx(flat.rounds[-1].loss)
    assert clustered.rounds[-1].accuracy == pytest.approx(flat.rounds[-1].accuracy)


def test_every_cycle_starts_from_the_roots_parameters(job: TrainingJob, run) -> None:
    run(job)
    marks = {name: json.loads((job.run_dir / "clusters" / name / "cycle-0002" / "start.json").read_bytes()) for name in "ab"}
    assert marks["a"] == marks["b"]
    assert marks["a"] != json.loads((job.run_dir / "clusters" / "a" / "cycle-0001" / "start.json").read_bytes())


def test_a_killed_cluster_aggregator_goes_on_within_its_cycle(job: TrainingJob, run, tmp_path: Path) -> None:
    run(job, run_dir=tmp_path / "undisturbed")
    result = run(job, on_event=killing(job, "b", times=1))
    assert [item.learners_fit for item in result.rounds] == [4, 4]
    assert any("cluster b" in event.message and "SIGKILL" in event.message for event in run.events)
    assert same(job.run_dir, tmp_path / "undisturbed", 2)


def test_a_cluster_aggregator_that_dies_again_and_again_is_left_out_of_the_cycle(job: TrainingJob, run) -> None:
    result = run(job, rounds=8, on_event=killing(job, "b", times=3))
    assert [item.learners_fit for item in result.rounds] == [2, 4]
    assert any(event.kind == "warning" and "cluster b is left out" in event.message for event in run.events)


def test_a_cluster_that_disappears_is_left_out_and_returns(job: TrainingJob, run, spoil) -> None:
    """All learners of cluster b die in every round of the first cycle; the second cycle finds them well."""
    of_b = "__import__('os').environ['FLOPS_DATA'][-7:-6] in '23'"
    spoil(FIT, f"        if {of_b} and not self.model.coef_.any(): __import__('os').abort()\n" + FIT)
    result = run(job)
    assert [item.learners_fit for item in result.rounds] == [2, 4]
    assert [item.learners_evaluated for item in result.rounds] == [4, 4]
    assert any(event.kind == "warning" and "cluster b is left out" in event.message for event in run.events)
    assert [item.round for item in result.clusters["b"]] == [3, 4]
    assert result.left_out(["a", "b", "c"]) == {"b": [1], "c": [1, 2]}


def test_a_cluster_with_too_few_learners_is_left_out_with_a_warning(job: TrainingJob, run) -> None:
    result = run(job, clusters=(ClusterShare("a", 3), ClusterShare("b", 1)), cycles=1, rounds=1)
    assert result.rounds[0].learners_fit == 3
    assert list(result.clusters) == ["a"]
    warnings = [event.message for event in run.events if event.kind == "warning"]
    assert warnings == ["cluster b has 1 learners of the 2 that it needs: it is left out"]


def test_no_cluster_has_enough_learners(job: TrainingJob, run) -> None:
    with pytest.raises(TrainingError) as caught:
        run(job, min_available=3)
    assert caught.value.code == "FL5601"


def test_code_that_raises_everywhere_is_told_with_its_place(job: TrainingJob, run, spoil) -> None:
    spoil(FIT, "        raise ValueError('no gradient')\n" + FIT)
    with pytest.raises(TrainingError) as caught:
        run(job)
    assert caught.value.code == "FL5015"
    assert caught.value.where is not None
    assert caught.value.where.path == "model_manager.py"
    assert "cluster a" in str(caught.value)
    assert "no gradient" in str(caught.value)


@pytest.mark.parametrize(("kind", "number"), [("round", 1), ("cluster_round", 2)], ids=["between cycles", "within a cycle"])
def test_a_killed_root_resumes_to_the_same_model(job: TrainingJob, run, tmp_path: Path, kind: str, number: int) -> None:
    changes = {"strategy_name": "fedadam", "root_strategy_name": "fedavgm", "root_strategy_arguments": {"server_momentum": 0.5}}
    run(job, run_dir=tmp_path / "undisturbed", **changes)

    def kill(event: TrainingEvent) -> None:
        if event.kind == kind and event.round == number:
            os.kill(aggregator_of(job.run_dir), signal.SIGKILL)

    with pytest.raises(TrainingError) as caught:
        run(job, on_event=kill, **changes)
    assert caught.value.transient
    assert run(job, **changes).resumed_from == (1 if kind == "round" else 0)
    assert same(job.run_dir, tmp_path / "undisturbed", 2)


def test_a_learner_that_is_killed_in_a_cluster_is_back_in_the_next_round(job: TrainingJob, run) -> None:
    def kill(event: TrainingEvent) -> None:
        if event.kind == "cluster_round" and event.message.startswith("cluster a: cycle 1, round 1 "):
            learners_of(job.run_dir)["cluster-a/learner-0"].kill()

    result = run(job, min_fit=1, min_evaluate=1, on_event=kill)
    assert any(event.kind == "learner_failed" and "learner 0" in event.message for event in run.events)
    assert result.rounds[1].learners_fit == 4
