"""The base case of federated learning: it learns, it is repeatable, it resumes, it writes a model that serves."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingEvent, TrainingJob, read_result
from tests.federation.processes import aggregator_of, reconciler_of


def parameters(run_dir: Path, number: int) -> list[np.ndarray]:
    with np.load(run_dir / "rounds" / f"{number:04d}.npz") as archive:
        return [archive[name] for name in archive.files]


def same(one: Path, other: Path, number: int) -> bool:
    pairs = zip(parameters(one, number), parameters(other, number), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("damage", [b"0", b"[]", b'{"digest": "D", "rounds": 1, "holdout": 0}', b"\xff"])
def test_a_damaged_result_is_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").touch()
    (tmp_path / "result.json").write_bytes(damage)
    assert read_result(tmp_path, "D") is None


def test_it_learns_and_writes_a_model(job: TrainingJob, run) -> None:
    result = run(job)
    assert [item.round for item in result.rounds] == [1, 2, 3]
    assert result.rounds[-1].loss < result.rounds[0].loss
    assert result.rounds[-1].learners_fit == 2
    assert result.holdout["rows"] == 300
    assert result.holdout["accuracy"] > 0.7
    names = {path.name for path in result.model_dir.iterdir()}
    assert {"MLmodel", "model.pkl", "requirements.txt", "python_env.yaml", "input_example.json"} <= names
    with np.load(result.samples) as samples:
        assert samples["inputs"].shape == (300, 8)
        accuracy = float((samples["predictions"] == samples["labels"]).mean())
    assert accuracy == pytest.approx(result.holdout["accuracy"])
    assert run.kinds().count("round") == 3
    assert not (job.run_dir / "work").exists()


def test_it_trains_for_an_operator_who_has_it_run_at_the_lowest_priority(job: TrainingJob) -> None:
    code = "import pickle, sys; from reconciler.federation.training import run_training; "
    code += "run_training(pickle.load(sys.stdin.buffer), on_event=lambda e: None, cancelled=lambda: False)"
    arguments = ["nice", "-n", "19", sys.executable, "-c", code]
    subprocess.run(arguments, input=pickle.dumps(replace(job, rounds=1)), check=True, timeout=120)
    assert (job.run_dir / "model" / "MLmodel").is_file()


def test_a_finished_run_is_not_trained_again(job: TrainingJob, run) -> None:
    first = run(job, rounds=1)
    told = len(run.events)
    assert run(job, rounds=1) == first
    assert len(run.events) == told


def test_the_seed_decides(job: TrainingJob, run, tmp_path: Path) -> None:
    run(job, rounds=2)
    run(job, rounds=2, run_dir=tmp_path / "again")
    run(job, rounds=2, run_dir=tmp_path / "other", seed=2)
    assert same(job.run_dir, tmp_path / "again", 2)
    assert not same(job.run_dir, tmp_path / "other", 2)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", pytest.param("fedavgm", marks=pytest.mark.long)])
def test_a_killed_aggregator_resumes_to_the_same_model(job: TrainingJob, run, tmp_path: Path, strategy: str) -> None:
    arguments = {"server_momentum": 0.9} if strategy == "fedavgm" else {}
    changes = {"strategy_name": strategy, "strategy_arguments": arguments, "rounds": 5}
    run(job, run_dir=tmp_path / "undisturbed", **changes)

    def kill(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == 2:
            os.kill(aggregator_of(job.run_dir), signal.SIGKILL)

    with pytest.raises(TrainingError) as caught:
        run(job, on_event=kill, **changes)
    assert caught.value.code == "FL5002"
    assert caught.value.transient
    result = run(job, **changes)
    assert result.resumed_from >= 2
    assert len(result.rounds) == 5
    assert same(job.run_dir, tmp_path / "undisturbed", 5)


def test_cancelling_leaves_no_process(job: TrainingJob, run) -> None:
    with pytest.raises(TrainingError) as caught:
        run(job, cancelled=lambda: "started" in run.kinds(), rounds=1000)
    assert caught.value.code == "FL5001"
    with pytest.raises(AssertionError, match="no aggregator"):
        aggregator_of(job.run_dir)


def test_a_killed_reconciler_takes_its_children_with_it(job: TrainingJob) -> None:
    with reconciler_of(replace(job, rounds=100_000)) as reconciler:
        group = os.getpgid(aggregator_of(job.run_dir))
        reconciler.kill()
    deadline = time.monotonic() + 20
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(group)


def alive(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("name", "arguments", "learners"),
    [
        ("fedprox", {"proximal_mu": 0.1}, 2),
        ("fedmedian", {}, 2),
        ("fedtrimmedavg", {"beta": 0.2}, 2),
        ("fedadagrad", {}, 2),
        ("fedyogi", {"eta": 0.05}, 2),
        ("krum", {"num_malicious_nodes": 0}, 3),
        ("multikrum", {"num_nodes_to_select": 2}, 3),
        ("bulyan", {"num_malicious_nodes": 0}, 3),
        ("qfedavg", {"client_learning_rate": 0.1}, 2),
    ],
)
def test_strategies(job: TrainingJob, run, shards, name: str, arguments: dict[str, float], learners: int) -> None:
    result = run(job, strategy_name=name, strategy_arguments=arguments, shards=shards[:learners], rounds=2)
    assert len(result.rounds) == 2
    assert ("warning" in run.kinds()) == (name == "fedprox")


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"strategy_name": "fedwrong"}, "FL5003", "fedavg"),
        ({"strategy_name": "fedadam", "strategy_arguments": {"etta": 1}}, "FL5004", "beta_1"),
        ({"strategy_name": "fedtrimmedavg", "strategy_arguments": {"beta": 0.7}}, "FL5004", "0.5"),
        ({"strategy_name": "bulyan", "strategy_arguments": {"num_malicious_nodes": 3}}, "FL5031", "bulyan"),
        ({"min_available": 5}, "FL5034", "5"),
        ({"metric": "f1"}, "FL5033", "accuracy"),
    ],
)
def test_training_configurations_that_cannot_be_met(job: TrainingJob, run, changes, code: str, text: str) -> None:
    with pytest.raises(TrainingError) as caught:
        run(job, **changes)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_without_a_holdout_there_are_samples_of_the_first_learner(job: TrainingJob, run) -> None:
    result = run(job, holdout=None, rounds=1)
    assert result.holdout == {}
    with np.load(result.samples) as samples:
        assert len(samples["inputs"]) == 40
