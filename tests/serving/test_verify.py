"""Verification passes what answers as the model did, and says what is wrong with everything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reconciler.errors import ServingError
from reconciler.runtimes.model import Service
from reconciler.serving.client import predict
from reconciler.serving.verify import verify
from tests.serving.conftest import Saved

Start = Callable[..., Service]


@pytest.fixture(scope="module")
def service(started: Start, tensor_model: Saved) -> Service:
    return started(tensor_model, "the-digest", "classifier")


def test_the_models_own_answers_pass(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    result = verify(service.address, tensor_model.samples(tmp_path / "s.npz"), "the-digest")
    assert result.passed, result.reason
    assert (result.samples, result.matched) == (150, 150)
    assert result.accuracy == pytest.approx(np.mean(tensor_model.predictions == tensor_model.labels))
    assert 0 < result.latency_p50_ms <= result.latency_p95_ms
    assert result.throughput > 0


def test_numbers_are_compared_to_the_precision_of_float32(started: Start, other_tensor_model: Saved, tmp_path: Path) -> None:
    address = started(other_tensor_model, "r", "regression").address
    near = other_tensor_model.samples(tmp_path / "near.npz", predictions=other_tensor_model.predictions + 1e-6)
    far = other_tensor_model.samples(tmp_path / "far.npz", predictions=other_tensor_model.predictions + 0.1)
    result = verify(address, near, "r", limit=20)
    assert result.passed, result.reason
    assert result.samples == 20
    assert result.accuracy is None
    assert not verify(address, far, "r", limit=20).passed


def test_another_digest_does_not_pass(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    result = verify(service.address, tensor_model.samples(tmp_path / "s.npz"), "other-digest")
    assert not result.passed
    assert result.reason == "it serves the-digest, not other-digest"


def test_wrong_answers_are_counted(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    wrong = tensor_model.predictions.copy()
    wrong[[3, 77, 149]] += 1
    result = verify(service.address, tensor_model.samples(tmp_path / "s.npz", predictions=wrong), "the-digest")
    assert not result.passed
    assert (result.matched, result.reason) == (147, "3 of 150 answers differ from the model's own")


def test_samples_that_do_not_fit_the_signature_do_not_pass(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    samples = tensor_model.samples(tmp_path / "s.npz", inputs=tensor_model.inputs[:, :3])
    result = verify(service.address, samples, "the-digest")
    assert not result.passed
    assert "does not match expected shape" in result.reason


def test_without_labels_there_is_no_accuracy(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, inputs=tensor_model.inputs, predictions=tensor_model.predictions)
    assert verify(service.address, path, "the-digest").accuracy is None


def test_a_latency_over_the_budget_does_not_pass(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    result = verify(service.address, tensor_model.samples(tmp_path / "s.npz"), "the-digest", max_p95_ms=0.0001)
    assert not result.passed
    assert result.matched == 150


def test_no_samples_are_no_verification(service: Service, tensor_model: Saved, tmp_path: Path) -> None:
    assert not verify(service.address, tensor_model.samples(tmp_path / "s.npz"), "the-digest", limit=0).passed


def test_a_service_that_is_not_there(unused_address: str, tensor_model: Saved, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="FL7010"):
        verify(unused_address, tensor_model.samples(tmp_path / "s.npz"), "the-digest")


def test_predict_says_why_a_request_is_refused(service: Service) -> None:
    with pytest.raises(ServingError, match=r"FL7011.*expected shape"):
        predict(service.address, {"inputs": np.zeros((1, 3), dtype=np.float32)})
    assert len(predict(service.address, {"inputs": np.zeros((2, 4), dtype=np.float32)})["predictions"]) == 2
