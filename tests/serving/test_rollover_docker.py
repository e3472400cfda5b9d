"""The inference server in a container: its answers, and a rollover under load without one failed request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from reconciler.errors import ServingError
from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.model import ServiceSpec
from reconciler.serving.client import version
from reconciler.serving.verify import verify
from tests.dockerkit import PACKAGES, base_image, image_with, open_engine, site_packages
from tests.serving.conftest import Saved, serving
from tests.serving.test_rollover import Load

Boxed = Callable[[Saved, str], ServiceSpec]


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return open_engine()


@pytest.fixture(scope="module")
def packages(engine: DockerEngine) -> str:
    found = {f"/opt/flops/site/{name}": site_packages() / name for name in PACKAGES if (site_packages() / name).exists()}
    lines = "ENV PYTHONPATH=/opt/flops/runtime:/opt/flops/site PYTHONDONTWRITEBYTECODE=1"
    return image_with(engine, "flops-test-packages", found, base_image(engine), lines)


@pytest.fixture
def runtime(engine: DockerEngine, tmp_path: Path) -> Iterator[DockerRuntime]:
    made = DockerRuntime(tmp_path / "services", instance="test")
    yield made
    for service in made.observe():
        made.remove(service.name)


@pytest.fixture
def boxed(engine: DockerEngine, packages: str) -> Boxed:
    def make(saved: Saved, digest: str) -> ServiceSpec:
        files = {"/opt/flops/runtime": mlruntime_dir(), "/model": saved.folder}
        return ServiceSpec(
            "model",
            ("python3", "-m", "flops_runtime.serve", "--model", "/model", "--socket", "{socket}", "--version", digest),
            saved.folder,
            "/health",
            labels={"flops.digest": digest},
            image=image_with(engine, "flops-test-model", files, packages),
            memory_mb=512,
            vcpus=1.0,
        )

    return make


def test_no_request_fails_while_versions_change(
    runtime: DockerRuntime, boxed: Boxed, tensor_model: Saved, other_tensor_model: Saved
) -> None:
    """Half of the clients keep their connections; versions change between containers, to a process and back."""
    service = runtime.apply(boxed(tensor_model, "one"))
    with Load(service.address, tensor_model) as load:
        load.wait_for(50)
        for spec in (
            boxed(other_tensor_model, "two"),
            serving(tensor_model, "three"),
            boxed(other_tensor_model, "four"),
        ):
            assert runtime.apply(spec).address == service.address
            load.wait_for(100)
    assert load.faults == []
    assert version(service.address)["digest"] == "four"
    possible = [saved.predictions[:3] for saved in (tensor_model, other_tensor_model)]
    kinds = {next(at for at, wanted in enumerate(possible) if np.allclose(wanted, answer, rtol=1e-4)) for answer in load.answers}
    assert kinds == {0, 1}


def test_a_version_that_answers_wrongly_does_not_take_over(
    runtime: DockerRuntime, boxed: Boxed, tensor_model: Saved, other_tensor_model: Saved, tmp_path: Path
) -> None:
    samples = tensor_model.samples(tmp_path / "samples.npz")
    service = runtime.apply(boxed(tensor_model, "one"))

    def check(address: str) -> None:
        result = verify(address, samples, "two")
        if not result.passed:
            raise ServingError("FL7093", result.reason, cure="Look at the model.")

    with pytest.raises(ServingError, match="differ from the model's own"):
        runtime.apply(boxed(other_tensor_model, "two"), verify=check)
    assert version(service.address)["digest"] == "one"
    runtime.apply(boxed(tensor_model, "two"), verify=check)
    assert version(service.address)["digest"] == "two"


def test_the_container_finds_no_network(runtime: DockerRuntime, boxed: Boxed, tensor_model: Saved) -> None:
    service = runtime.apply(boxed(tensor_model, "one"))
    answer = httpx.post(f"http://{service.address}/invocations", json={"inputs": tensor_model.inputs[:2].tolist()}, timeout=30)
    assert answer.json()["predictions"] == tensor_model.predictions[:2].tolist()
    assert service.healthy
