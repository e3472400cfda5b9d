"""When a training ends before its last round: a pure function of its results, so that a resumed run decides alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def value_of(result: Mapping[str, Any], metric: str) -> float:
    """A metric of one round's result. Raises KeyError if it was not reported."""
    return float(result[metric] if metric in ("loss", "accuracy") else result["metrics"][metric])


def stop_reason(results: Sequence[Mapping[str, Any]], rule: Mapping[str, Any] | None) -> str | None:
    """Why no further round is needed, or None.

    The rule has `metric`, `direction` (max or min), and `target` (a value that is reached) or `patience` (so many rounds in
    a row without an improvement of more than `min_delta` over the best before them).
    """
    if rule is None or not results:
        return None
    metric, sign = str(rule["metric"]), 1.0 if rule["direction"] == "max" else -1.0
    values = [sign * value_of(result, metric) for result in results]
    target, patience = rule.get("target"), rule.get("patience")
    if target is not None and values[-1] >= sign * float(target):
        return f"{metric} {sign * values[-1]:.4f} reached its target {float(target):g}"
    if patience is None:
        return None
    best, since = float("-inf"), 0
    for value in values:
        if value > best + float(rule.get("min_delta") or 0.0):
            best, since = value, 0
        else:
            since += 1
    return f"{metric} was not better than {sign * best:.4f} for {since} rounds" if since >= int(patience) else None
