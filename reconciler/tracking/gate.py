"""The gate: a pure verdict on a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.spec import EvaluationGate


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict, with its reason in one sentence."""

    passed: bool
    reason: str
    metric: str
    value: float | None
    threshold: float | None


def evaluate_gate(gate: EvaluationGate, metrics: Mapping[str, float], production: Mapping[str, float] | None) -> GateResult:
    """Does a run meet its gate? A missing or non-finite metric does not."""
    value = metrics.get(gate.metric)

    def verdict(passed: bool, reason: str) -> GateResult:
        return GateResult(passed, reason, gate.metric, value, gate.threshold)

    if value is None:
        known = ", ".join(sorted(metrics)) or "none"
        return verdict(False, f"the run has no metric {gate.metric}; it has: {known}")
    if not math.isfinite(value):
        return verdict(False, f"{gate.metric} is {value}")
    if gate.threshold is not None and not _as_good(value, gate.threshold, gate.direction):
        word = "below" if gate.direction == "maximize" else "above"
        return verdict(False, f"{gate.metric} is {value:.4f}, {word} the gate's {gate.threshold:g}")
    if gate.no_worse_than_production and production and gate.metric in production:
        best = production[gate.metric]
        if not _as_good(value, best, gate.direction):
            return verdict(False, f"{gate.metric} is {value:.4f}, worse than {best:.4f} of the model in production")
    return verdict(True, f"{gate.metric} is {value:.4f}")


def _as_good(value: float, limit: float, direction: str) -> bool:
    return value >= limit if direction == "maximize" else value <= limit
