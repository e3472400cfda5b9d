"""The gate as laws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec import EvaluationGate
from reconciler.tracking import evaluate_gate

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
DIRECTIONS = st.sampled_from(["maximize", "minimize"])


def gate(**values: object) -> EvaluationGate:
    return EvaluationGate.model_validate({"metric": "score", **values})


@given(value=FINITE, threshold=FINITE, direction=DIRECTIONS)
def test_the_threshold_itself_is_enough_and_better_too(value: float, threshold: float, direction: str) -> None:
    verdict = evaluate_gate(gate(threshold=threshold, direction=direction), {"score": value}, None)
    assert verdict.passed is (value >= threshold if direction == "maximize" else value <= threshold)
    assert (verdict.metric, verdict.value, verdict.threshold) == ("score", value, threshold)


@given(value=FINITE, production=FINITE, direction=DIRECTIONS)
def test_production_counts_only_when_the_gate_says_so(value: float, production: float, direction: str) -> None:
    assert evaluate_gate(gate(direction=direction), {"score": value}, {"score": production}).passed
    strict = gate(direction=direction, no_worse_than_production=True)
    good = value >= production if direction == "maximize" else value <= production
    assert evaluate_gate(strict, {"score": value}, {"score": production}).passed is good
    assert evaluate_gate(strict, {"score": value}, None).passed
    assert evaluate_gate(strict, {"score": value}, {}).passed


@given(value=st.sampled_from([math.nan, math.inf, -math.inf]), direction=DIRECTIONS)
def test_what_is_not_finite_never_passes(value: float, direction: str) -> None:
    assert not evaluate_gate(gate(direction=direction), {"score": value}, None).passed


@given(value=FINITE, best=st.sampled_from([math.nan, math.inf, -math.inf]), direction=DIRECTIONS)
def test_production_that_is_not_finite_blocks_nothing(value: float, best: float, direction: str) -> None:
    assert evaluate_gate(gate(direction=direction, no_worse_than_production=True), {"score": value}, {"score": best}).passed


@given(metrics=st.dictionaries(st.text(max_size=5).filter(lambda name: name != "score"), FINITE, max_size=3))
def test_a_missing_metric_fails_and_says_what_there_is(metrics: dict[str, float]) -> None:
    verdict = evaluate_gate(gate(threshold=0), metrics, None)
    assert not verdict.passed
    assert verdict.value is None
    assert all(name in verdict.reason for name in metrics)


@pytest.mark.parametrize(("value", "reason"), [
    (0.5, "score is 0.5000, below the gate's 0.8000"),
    (0.79999, "score is 0.79999, below the gate's 0.80000"),
    (0.8 - 1e-16, "below the gate's"),
])  # fmt: skip
def test_the_reason_shows_the_difference(value: float, reason: str) -> None:
    verdict = evaluate_gate(gate(threshold=0.8), {"score": value}, None)
    assert not verdict.passed
    assert reason in verdict.reason
    shown = verdict.reason.split(", ")[0].removeprefix("score is ")
    assert float(shown) < 0.8
