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
        shown, limit = _apart(value, gate.threshold)
        return verdict(False, f"{gate.metric} is {shown}, {word} the gate's {limit}")
    best = (production or {}).get(gate.metric)
    # A model in production without a finite value is no measure: nothing could ever replace it.
    if gate.no_worse_than_production and best is not None and math.isfinite(best) and not _as_good(value, best, gate.direction):
        shown, limit = _apart(value, best)
        return verdict(False, f"{gate.metric} is {shown}, worse than {limit} of the model in production")
    return verdict(True, f"{gate.metric} is {value:.4f}")


def _as_good(value: float, limit: float, direction: str) -> bool:
    return value >= limit if direction == "maximize" else value <= limit


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Both with as many digits as it takes to tell one from the other."""
    digits = next((count for count in range(4, 17) if f"{value:.{count}f}" != f"{limit:.{count}f}"), 0)
    return (f"{value:.{digits}f}", f"{limit:.{digits}f}") if digits else (repr(value), repr(limit))
