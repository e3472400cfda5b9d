"""Small real models in MLflow's format, and the inference server as the process runtime starts it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.model import Service, ServiceSpec
from reconciler.runtimes.process import ProcessRuntime


@dataclass(frozen=True)
class Saved:
    """A saved model with samples of it."""

    folder: Path
    inputs: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray

    def samples(self, path: Path, **changes: np.ndarray) -> Path:
        """The file that verification reads."""
        np.savez(path, **({"inputs": self.inputs, "labels": self.labels, "predictions": self.predictions} | changes))
        return path


def _save(folder: Path, model: Any, inputs: Any, **options: Any) -> None:
    signature = infer_signature(inputs, model.predict(inputs))
    mlflow.sklearn.save_model(
        model, str(folder), signature=signature, serialization_format="cloudpickle", pip_requirements=[], **options
    )


@pytest.fixture(scope="session")
def tensor_model(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A classifier that takes a float32 tensor: the fast path."""
    inputs, labels = load_iris(return_X_y=True)
    inputs = inputs.astype(np.float32)
    model = LogisticRegression(max_iter=300).fit(inputs, labels)
    folder = tmp_path_factory.mktemp("models") / "tensor"
    _save(folder, model, inputs)
    return Saved(folder, inputs, labels, model.predict(inputs))


@pytest.fixture(scope="session")
def other_tensor_model(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A second version: a regression with float answers."""
    inputs, labels = load_iris(return_X_y=True)
    inputs = inputs.astype(np.float32)
    model = LinearRegression().fit(inputs, labels)
    folder = tmp_path_factory.mktemp("models") / "other"
    _save(folder, model, inputs)
    return Saved(folder, inputs, labels, model.predict(inputs))


@pytest.fixture(scope="session")
def table_model(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A classifier that takes a table with named columns: MLflow's own way."""
    frame, labels = load_iris(return_X_y=True, as_frame=True)
    frame = pd.DataFrame(frame.to_numpy(), columns=list("abcd"))
    model = LogisticRegression(max_iter=300).fit(frame, labels)
    folder = tmp_path_factory.mktemp("models") / "table"
    _save(folder, model, frame)
    return Saved(folder, frame.to_numpy(), labels.to_numpy(), model.predict(frame))


def serving(saved: Saved, version: str, name: str = "model", *options: str) -> ServiceSpec:
    """The service that the stage `deploy` starts."""
    argv = (sys.executable, "-m", "flops_runtime.serve", "--model", str(saved.folder), "--project", name, "--version", version)
    return ServiceSpec(
        name, argv + options, saved.folder, "/health", {"PYTHONPATH": str(mlruntime_dir())}, labels={"flops.digest": version}
    )


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Start a service for the tests of one module."""
    runtime = ProcessRuntime(tmp_path_factory.mktemp("state") / "services")

    def start(saved: Saved, version: str, name: str, *options: str) -> Service:
        return runtime.apply(serving(saved, version, name, *options))

    yield start
    for service in runtime.observe():
        runtime.remove(service.name)


@pytest.fixture
def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"
