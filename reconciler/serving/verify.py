"""Verification: held-out samples go to a service, and its answers have to be the model's own.

The samples and the model's own answers were made in the training's environment from the saved model; here they are data.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt

from reconciler.serving.client import predict, version

BATCH = 200
SINGLES = 20


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """`matched` of `samples` answers were the model's own; latencies are of requests with one sample, in milliseconds."""

    samples: int
    matched: int
    accuracy: float | None
    latency_p50_ms: float
    latency_p95_ms: float
    throughput: float
    passed: bool
    reason: str


def verify(address: str, samples: Path, digest: str, *, limit: int | None = None) -> VerificationResult:
    """Send samples in batches and some one by one. Raises ServingError when the service does not answer."""
    with np.load(samples, allow_pickle=False) as content:
        inputs = content["inputs"][:limit]
        expected = content["predictions"][:limit]
        labels = content["labels"][:limit] if "labels" in content else None
    says = version(address).get("digest", "")
    if says != digest:
        return VerificationResult(len(inputs), 0, None, 0.0, 0.0, 0.0, False, f"it serves {says[:12]}, not {digest[:12]}")
    with httpx.Client() as client:
        started = time.monotonic()
        batches = [
            np.asarray(predict(address, {"inputs": inputs[at : at + BATCH]}, client)["predictions"])
            for at in range(0, len(inputs), BATCH)
        ]
        seconds = time.monotonic() - started
        times = []
        for index in range(min(SINGLES, len(inputs))):
            begun = time.monotonic()
            predict(address, {"inputs": inputs[index : index + 1]}, client)
            times.append((time.monotonic() - begun) * 1000)
    answers = np.concatenate(batches)
    same = _same(answers, expected)
    matched = int(same.sum())
    accuracy = float((_classes(answers) == labels).mean()) if labels is not None else None
    reason = "" if matched == len(inputs) else f"{len(inputs) - matched} of {len(inputs)} answers differ from the model's own"
    return VerificationResult(
        samples=len(inputs),
        matched=matched,
        accuracy=accuracy,
        latency_p50_ms=float(np.percentile(times, 50)),
        latency_p95_ms=float(np.percentile(times, 95)),
        throughput=len(inputs) / seconds,
        passed=not reason,
        reason=reason,
    )


def _same(answers: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Which answers are the expected ones: exactly for classes, to float32's precision for numbers."""
    if answers.shape != expected.shape:
        return np.zeros(len(expected), dtype=bool)
    if np.issubdtype(expected.dtype, np.floating):
        close = np.isclose(answers.astype(float), expected.astype(float), rtol=1e-4, atol=1e-5)
    else:
        close = np.asarray(answers == expected)
    return np.asarray(close.reshape(len(expected), -1).all(axis=1), dtype=bool)


def _classes(answers: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return answers.argmax(axis=1) if answers.ndim > 1 else answers
