"""Verification: held-out samples go to a service, and its answers have to be the model's own.

The samples and the model's own answers were made in the training's environment from the saved model; here they are data.
A service that does not answer as it should does not pass, whatever the reason; `reason` says which.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from reconciler.errors import ServingError
from reconciler.serving.client import predict, version

BATCH = 200
SINGLES = 20

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """`matched` of `samples` answers were the model's own; latencies are of requests with one sample, in milliseconds.

    `throughput` is samples per second in batches; `accuracy` is None without labels.
    """

    samples: int
    matched: int
    accuracy: float | None
    latency_p50_ms: float
    latency_p95_ms: float
    throughput: float
    passed: bool
    reason: str


def verify(
    address: str, samples: Path, digest: str, *, limit: int | None = None, max_p95_ms: float | None = None
) -> VerificationResult:
    """Send samples in batches and some one by one.

    `samples` is an npz file with `inputs` (n, ...), `predictions` (n, ...) and maybe `labels` (n,). Raises ServingError when
    the service cannot be reached at all.
    """
    with np.load(samples, allow_pickle=False) as content:
        inputs: Array = content["inputs"][:limit]
        expected: Array = content["predictions"][:limit]
        labels: Array | None = content["labels"][:limit] if "labels" in content else None
    if not len(inputs):
        return _failed(0, "there are no samples")
    says = version(address).get("digest", "")
    if says != digest:
        return _failed(len(inputs), f"it serves {says[:12] or 'nothing that has a digest'}, not {digest[:12]}")
    times = []
    with httpx.Client() as client:
        try:
            started = time.monotonic()
            batches = [_ask(address, inputs[at : at + BATCH], client) for at in range(0, len(inputs), BATCH)]
            seconds = time.monotonic() - started
            singles = []
            for index in range(min(SINGLES, len(inputs))):
                begun = time.monotonic()
                singles.append(_ask(address, inputs[index : index + 1], client))
                times.append((time.monotonic() - begun) * 1000)
            answers, alone = np.concatenate(batches), np.concatenate(singles)
        except ServingError as error:
            if error.transient:
                raise
            return _failed(len(inputs), error.cause.rstrip("."))
        except (ValueError, TypeError) as error:
            return _failed(len(inputs), f"its answers cannot be read: {error}")
    matched = int(_same(answers, expected).sum())
    p50, p95 = (float(np.percentile(times, of)) for of in (50, 95))
    reason = ""
    if matched != len(inputs):
        reason = f"{len(inputs) - matched} of {len(inputs)} answers differ from the model's own"
    elif not _same(alone, expected[: len(alone)]).all():
        reason = "a sample that is sent alone is answered otherwise than in a batch"
    elif max_p95_ms is not None and p95 > max_p95_ms:
        reason = f"95 of 100 requests are to be answered in {max_p95_ms:.0f} ms, and it took {p95:.0f} ms"
    return VerificationResult(
        samples=len(inputs),
        matched=matched,
        accuracy=_accuracy(answers, labels),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        throughput=len(inputs) / max(seconds, 1e-9),
        passed=not reason,
        reason=reason,
    )


def _failed(samples: int, reason: str) -> VerificationResult:
    return VerificationResult(samples, 0, None, 0.0, 0.0, 0.0, False, reason)


def _ask(address: str, inputs: Array, client: httpx.Client) -> Array:
    predictions: Any = predict(address, {"inputs": np.ascontiguousarray(inputs)}, client).get("predictions")
    if not isinstance(predictions, list) or len(predictions) != len(inputs):
        raise ValueError(f"{len(inputs)} samples were sent and other than {len(inputs)} predictions came back")
    if isinstance(predictions[0], dict):  # a table: one record for each sample
        predictions = [list(row.values()) for row in predictions]
    return np.asarray(predictions)


def _same(answers: Array, expected: Array) -> npt.NDArray[np.bool_]:
    """Which answers are the expected ones: exactly for classes, to float32's precision for numbers (NaN is NaN)."""
    if len(answers) != len(expected) or answers.size != expected.size:
        return np.zeros(len(expected), dtype=bool)
    answers, expected = answers.reshape(len(expected), -1), expected.reshape(len(expected), -1)
    if np.issubdtype(expected.dtype, np.floating):
        if not np.issubdtype(answers.dtype, np.number):
            return np.zeros(len(expected), dtype=bool)
        close = np.isclose(answers.astype(float), expected.astype(float), rtol=1e-4, atol=1e-5, equal_nan=True)
    else:
        close = np.asarray(answers == expected)
    return np.asarray(close.all(axis=1), dtype=bool)


def _accuracy(answers: Array, labels: Array | None) -> float | None:
    """The share of right classes; None without labels, or when the answers are no classes (a regression)."""
    if labels is None:
        return None
    table = answers.reshape(len(answers), -1)
    classes = table.argmax(axis=1) if table.shape[1] > 1 else table[:, 0]
    if np.issubdtype(classes.dtype, np.floating) and not np.issubdtype(labels.dtype, np.floating) and (classes % 1 != 0).any():
        return None
    return float((classes == labels.reshape(-1)).mean())
