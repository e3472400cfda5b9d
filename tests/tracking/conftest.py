"""A real MLflow server for the whole session, started with the argv and environment that the runtime gets."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from reconciler.tracking import RoundMetrics, RunRecord, Tracking, tracking_service

RecordMaker = Callable[..., RunRecord]


@dataclass
class Server:
    """A server process; `folder` is where its database and artifacts are."""

    process: subprocess.Popen[bytes]
    uri: str
    folder: Path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start_server(customer: str, root: Path) -> Server:
    spec = tracking_service(customer, root, instance="test")
    port = free_port()
    log = (spec.cwd / "log").open("wb")
    process = subprocess.Popen(
        [word.replace("{port}", str(port)) for word in spec.argv],
        cwd=spec.cwd,
        env={"PATH": os.environ["PATH"], **spec.env},
        stdout=log,
        stderr=log,
    )
    deadline = time.monotonic() + spec.start_timeout
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}{spec.health_path}", timeout=5).status_code == 200:
                return Server(process, f"http://127.0.0.1:{port}", spec.cwd)
        except httpx.HTTPError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError((spec.cwd / "log").read_text())


def stop_server(server: Server) -> None:
    server.process.terminate()
    server.process.wait(20)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = start_server("acme", tmp_path_factory.mktemp("tracking server?#%"))
    yield found
    stop_server(found)


@pytest.fixture
def tracking(server: Server) -> Tracking:
    return Tracking(server.uri)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, as the ML environment writes it."""
    import mlflow.sklearn
    import numpy as np
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    inputs, labels = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    model = LogisticRegression().fit(inputs, labels)
    folder = tmp_path_factory.mktemp("model") / "model"
    mlflow.sklearn.save_model(model, str(folder), signature=infer_signature(inputs, labels), input_example=inputs[:1])
    (folder / "flops").mkdir()
    (folder / "flops" / "lock.json").write_text("{}")
    return folder


@pytest.fixture
def record(model_dir: Path, request: pytest.FixtureRequest) -> RecordMaker:
    """Makes the record of a training; each test has projects of its own, since the server is shared."""

    def make(digest: str = "d1", **changes: object) -> RunRecord:
        values: dict[str, object] = {
            "customer": "acme",
            "project": request.node.name.replace("_", "-").split("[")[0][:60],
            "digest": digest,
            "params": {"strategy": "fedavg", "rounds": "3", "learners": "2"},
            "rounds": tuple(
                RoundMetrics(step, {"accuracy": accuracy, "loss": 1 - accuracy, "learners_fit": 2})
                for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.8))
            ),
            "best_round": 2,
            "holdout": {"accuracy": 0.85, "rows": 100},
            "tags": {"flops.commit": "c0ffee", "flops.ml_repo_url": "https://ann:secret@git.example/repo"},
            "sla": b"customerID: acme\n",
            "timings": {"build": 1.5, "train": 2.5},
            "model_dir": model_dir,
        }
        return RunRecord(**{**values, **changes})  # type: ignore[arg-type]

    return make
