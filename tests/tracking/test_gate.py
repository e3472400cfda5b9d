"""The gate's verdict."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec import EvaluationGate
from reconciler.tracking import evaluate_gate


@pytest.mark.parametrize(
    ("gate", "metrics", "production", "passed"),
    [
        ({"threshold": 0.8}, {"accuracy": 0.8}, None, True),
        ({"threshold": 0.8}, {"accuracy": 0.79}, None, False),
        ({"metric": "loss", "threshold": 0.5}, {"loss": 0.4}, None, True),
        ({"metric": "loss", "threshold": 0.5}, {"loss": 0.6}, None, False),
        ({"threshold": 0.8}, {"loss": 0.1}, None, False),
        ({"threshold": 0.8}, {"accuracy": math.nan}, None, False),
        ({"metric": "loss", "threshold": 0.5}, {"loss": -math.inf}, None, False),
        ({"no_worse_than_production": True}, {"accuracy": 0.8}, {"accuracy": 0.9}, False),
        ({"no_worse_than_production": True}, {"accuracy": 0.9}, {"accuracy": 0.9}, True),
        ({"no_worse_than_production": True}, {"accuracy": 0.1}, None, True),
    ],
)
def test_verdicts(gate: dict[str, object], metrics: dict[str, float], production: dict[str, float] | None, passed: bool) -> None:
    result = evaluate_gate(EvaluationGate.model_validate(gate), metrics, production)
    assert result.passed is passed
    assert result.reason


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_what_maximising_passes_minimising_refuses_unless_equal(value: float, threshold: float) -> None:
    up = evaluate_gate(EvaluationGate(threshold=threshold), {"accuracy": value}, None)
    down = evaluate_gate(EvaluationGate(threshold=threshold, direction="minimize"), {"accuracy": value}, None)
    assert (up.passed and down.passed) is (value == threshold)
    assert up.passed or down.passed
