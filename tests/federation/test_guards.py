"""Poisoned updates, early stops and privacy: in real federations, and their rules alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingJob
from tests.federation.test_runtime_parts import inside
from tests.federation.test_training import parameters, same

RETURN = "        return len(self.x_train)"
ONLY_FIRST = "__import__('os').environ['FLOPS_DATA'].endswith('shard-0.arrow')"


def norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays)))


# --- the update guard ---------------------------------------------------------------------------------------------------


def test_an_update_that_is_not_finite_is_refused_and_counted(job: TrainingJob, run, spoil) -> None:
    spoil(RETURN, f"        if {ONLY_FIRST}: self.model.coef_ *= np.nan\n" + RETURN)
    result = run(job, min_fit=1, rounds=2)
    assert [item.learners_fit for item in result.rounds] == [1, 1]
    assert [item.failures for item in result.rounds] == [1, 1]
    assert result.rounds[0].metrics["updates_refused"] == 1
    told = [event.data["failure"]["code"] for event in run.events if event.kind == "learner_failed"]
    assert told == ["FL5701", "FL5701"]
    assert all(np.isfinite(array).all() for array in parameters(job.run_dir, 2))


def test_refused_updates_count_against_the_quorum(job: TrainingJob, run, spoil) -> None:
    spoil(RETURN, f"        if {ONLY_FIRST}: self.model.coef_ *= np.nan\n" + RETURN)
    with pytest.raises(TrainingError) as caught:
        run(job, min_fit=2)
    assert caught.value.code == "FL5701"


def test_a_poisoned_update_is_scaled_down_to_the_largest_norm(job: TrainingJob, run, spoil) -> None:
    spoil(RETURN, f"        if {ONLY_FIRST}: self.model.coef_ *= 1e6\n" + RETURN)
    result = run(job, rounds=1, update_guard={"max_norm": 0.5})
    assert result.rounds[0].metrics["updates_clipped"] >= 1
    assert norm(parameters(job.run_dir, 1)) <= 0.5 + 1e-9  # the start is zero, and a mean of short vectors is short


def test_a_guard_that_nothing_exceeds_changes_nothing(job: TrainingJob, run, tmp_path: Path) -> None:
    result = run(job, rounds=2, update_guard={"max_norm": 1e6})
    run(job, rounds=2, run_dir=tmp_path / "free")
    assert same(job.run_dir, tmp_path / "free", 2)
    assert result.rounds[0].metrics == {"updates_refused": 0.0, "updates_clipped": 0.0}


def test_clipping_keeps_the_direction_and_types() -> None:
    code = """
import numpy as np
from flops_runtime.guard import clip
before = {"a": np.array([1.0, 1.0], np.float32), "n": np.array([3])}
after = {"a": np.array([4.0, 5.0], np.float32), "n": np.array([3])}
clipped = clip(before, after, 2.5)
print(clipped["a"].tolist(), clipped["a"].dtype, clipped["n"].tolist(), clip(before, after, 5.0))
"""
    assert inside(code) == "[2.5, 3.0] float32 [3] None"


# --- early stop ---------------------------------------------------------------------------------------------------------


def test_it_stops_at_its_target_and_stays_stopped(job: TrainingJob, run) -> None:
    rule = {"metric": "accuracy", "direction": "max", "target": 0.5, "patience": None, "min_delta": 0.0}
    result = run(job, rounds=50, early_stop=rule)
    assert len(result.rounds) < 50
    assert result.rounds[-1].accuracy >= 0.5
    assert "stopped_early" in run.kinds()
    (job.run_dir / "result.json").unlink()  # as if it had died before it wrote its result
    assert run(job, rounds=50, early_stop=rule).rounds == result.rounds


def test_a_metric_that_nobody_reports_cannot_stop_it(job: TrainingJob, run) -> None:
    with pytest.raises(TrainingError) as caught:
        run(job, early_stop={"metric": "f1", "direction": "max", "target": 0.5, "patience": None, "min_delta": 0.0})
    assert caught.value.code == "FL5033"


@pytest.mark.parametrize(
    ("values", "rule", "stops"),
    [
        ([0.1, 0.9], {"target": 0.9}, True),
        ([0.9, 0.1], {"target": 0.9}, False),  # what counts is the model that there is now
        ([3.0, 0.4], {"target": 0.5, "direction": "min"}, True),
        ([0.5, 0.5, 0.5], {"patience": 2}, True),
        ([0.5, 0.5], {"patience": 2}, False),
        ([0.5, 0.505, 0.509], {"patience": 2, "min_delta": 0.01}, True),
        ([0.5, 0.505, 0.512], {"patience": 2, "min_delta": 0.01}, False),
        ([0.5, float("nan"), float("nan")], {"patience": 2}, True),
        ([], {"patience": 1}, False),
    ],
)
def test_rules_of_the_early_stop(values: list[float], rule: dict[str, float], stops: bool) -> None:
    code = """
import json, sys
from flops_runtime.early_stop import stop_reason
values, rule = json.loads(sys.argv[1])
print(stop_reason([{"loss": 0, "accuracy": value} for value in values], rule) is not None)
"""
    assert inside(code, json.dumps([values, {"metric": "accuracy", "direction": "max", **rule}])) == str(stops)


# --- privacy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mechanism",
    [
        "central-fixed",
        "client-fixed",
        "local",
        *(pytest.param(f"{side}-adaptive", marks=pytest.mark.long) for side in ("central", "client")),
    ],
)
def test_privacy_clips_and_adds_noise_that_the_seed_does_not_tell(job: TrainingJob, run, tmp_path: Path, mechanism: str) -> None:
    """With little noise the updates are short, and the same run again gives other parameters."""
    privacy = {"mechanism": mechanism, "clipping_norm": 0.1, "noise_multiplier": 1e-3, "epsilon": 1e5, "delta": 1e-5}
    assert len(run(job, rounds=2, privacy=privacy).rounds) == 2
    run(job, rounds=2, privacy=privacy, run_dir=tmp_path / "again")
    assert norm(parameters(job.run_dir, 1)) < 0.15
    assert not same(job.run_dir, tmp_path / "again", 1)
    for one, other in zip(parameters(job.run_dir, 1), parameters(tmp_path / "again", 1), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)


def test_a_round_with_privacy_survives_a_learner_that_fails(job: TrainingJob, run, spoil) -> None:
    spoil(RETURN, f"        if {ONLY_FIRST}: raise ValueError('no')\n" + RETURN)
    privacy = {"mechanism": "central-fixed", "clipping_norm": 0.1, "noise_multiplier": 1e-3}
    assert run(job, min_fit=1, rounds=1, privacy=privacy).rounds[0].learners_fit == 1


def test_flower_refuses_a_setting(job: TrainingJob, run) -> None:
    with pytest.raises(TrainingError) as caught:
        run(job, privacy={"mechanism": "central-fixed", "clipping_norm": 1.0, "noise_multiplier": -1.0})
    assert caught.value.code == "FL5703"
