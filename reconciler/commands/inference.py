"""`flops predict`, `flops test-inference`, `flops tracking`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console

from reconciler.engine import Engine, open_engine
from reconciler.errors import ServingError
from reconciler.runtimes.model import Service
from reconciler.serving.client import predict
from reconciler.serving.verify import verify
from reconciler.stages.deploy import service_name
from reconciler.stages.package import EXTRA
from reconciler.statusdoc import read_documents


def show_prediction(repo: Path, state: Path | None, project: str, data: Path | None) -> None:
    """Print the answer to the user's request, or to one held-out sample."""
    engine = open_engine(repo, state)
    service = _service(engine, project)
    if data is not None:
        payload = sys.stdin.buffer.read() if str(data) == "-" else data.read_bytes()
        print(orjson.dumps(predict(service.address, orjson.loads(payload))).decode())
        return
    with np.load(_samples(engine, service), allow_pickle=False) as samples:
        inputs = samples["inputs"][:1]
        label = samples["labels"][0].item() if "labels" in samples else None
    answer = predict(service.address, {"inputs": inputs.tolist()})
    print(orjson.dumps({**answer, "label": label}).decode())


def test_service(repo: Path, state: Path | None, console: Console, project: str, *, loop: bool, as_json: bool) -> int:
    """Verify a service, once or until interrupted; 0 when every answer was right."""
    engine = open_engine(repo, state)
    while True:
        service = _service(engine, project)
        result = verify(service.address, _samples(engine, service), service.labels["flops.digest"])
        if as_json:
            print(orjson.dumps(asdict(result)).decode())
        else:
            accuracy = f", accuracy {result.accuracy:.4f}" if result.accuracy is not None else ""
            console.print(
                f"{service.address}: {result.matched}/{result.samples} answers as the model's own{accuracy}, "
                f"{result.latency_p50_ms:.1f} ms median, {result.latency_p95_ms:.1f} ms p95, "
                f"{result.throughput:,.0f} samples/s"
            )
        if not loop:
            return 0 if result.passed else 1
        time.sleep(1)


def show_tracking(repo: Path, state: Path | None, customer: str) -> None:
    """Print the address of each customer's tracking server."""
    engine = open_engine(repo, state)
    documents = read_documents(engine.status.read())
    known = sorted({str(document.get("customer", "")) for document in documents.values()} - {""})
    for name in [customer] if customer else known:
        print(f"{name}\t{engine.tracking_uri(name)}")


def _service(engine: Engine, project: str) -> Service:
    found = [item for item in engine.runtime.observe() if item.name == service_name(project)]
    if not found:
        running = [item.labels["flops.project"] for item in engine.runtime.observe() if "flops.project" in item.labels]
        raise ServingError(
            "FL7094",
            f"No inference service of a project {project!r} is running.",
            cure=f"Running are: {', '.join(sorted(running)) or 'none'}.",
        )
    return found[0]


def _samples(engine: Engine, service: Service) -> Path:
    path = engine.state / "bundles" / service.labels["flops.digest"][:32] / EXTRA / "samples.npz"
    if not path.is_file():
        raise ServingError(
            "FL7095", "This model has no held-out samples.", cure="Give your own request with `flops predict --data`."
        )
    return path
