"""The base case's inference image: both platforms, pushed to a real registry, pulled and run by a real engine, asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx
import pytest
from docker.models.containers import Container

from reconciler.environments import EnvironmentStore, Lock
from reconciler.images.assemble import BuiltImage, ImageRequest, build_image
from reconciler.images.bases import layer_sources
from reconciler.images.interpreter import host_platform
from reconciler.images.layout import Layout
from reconciler.images.model import Platform
from reconciler.images.push import push
from reconciler.images.records import Records
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.spec import default_plan
from tests.engine import BASE, RunningRegistry, tool, until

ML_REPO = Path(__file__).parents[2] / "projects" / "mnist-classic" / "ml_repo"
SAVE = """
import sys, mlflow.sklearn, numpy as np
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
inputs = np.eye(4, dtype=np.float32)
model = LogisticRegression().fit(inputs, np.arange(4))
signature = infer_signature(inputs, model.predict(inputs))
mlflow.sklearn.save_model(model, sys.argv[1], signature=signature, serialization_format="cloudpickle", pip_requirements=[])
"""
START_SECONDS = 240
"""The longest that a start may take; images have no byte code, and other tests want the cores as well."""
SECURE = {
    "read_only": True, "tmpfs": {"/tmp": "size=64m"}, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "pids_limit": 100,
    "mem_limit": "1g",
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """The image in the machine's own store: the layers of its dependencies are made once for all runs of the tests."""

    image: BuiltImage
    layout: Layout
    request: ImageRequest
    records: Records


@pytest.fixture(scope="module")
def built(base_layout: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    store = EnvironmentStore(shared_cache / "environments")
    lock: Lock = store.lock(ML_REPO, flavor="sklearn")
    model = tmp_path_factory.mktemp("bundle") / "model"
    subprocess.run([store.ensure(lock).python, "-c", SAVE, model], check=True, capture_output=True)
    layout = Layout(shared_cache / "test-images" / "store")
    records = Records(shared_cache / "test-images" / "records", layout)
    plan = default_plan("inference").model_copy(update={"base_image": f"oci:{base_layout}:{BASE}"})
    platforms = (Platform.parse("linux/amd64"), Platform.parse("linux/arm64"))
    request = ImageRequest(plan, lock, platforms, model, 1_700_000_000, "https://example.invalid/x", "c" * 40, "d" * 64, "digits")
    return Built(build_image(request, layout, records, tell=lambda _line: None), layout, request, records)


def pushed(built: Built, image: BuiltImage, registry: RunningRegistry) -> str:
    name = f"{registry.host}/demo/digits:1"
    with Registry(registry.host) as client:
        push(built.layout, image.index, Reference.parse(name), registry=client, sources=layer_sources(list(image.bases.values())))
    return name


@contextmanager
def running(engine: docker.DockerClient, name: str, platform: str, limits: Mapping[str, object]) -> Iterator[Container]:
    engine.images.pull(name, platform=platform)
    container = engine.containers.run(name, detach=True, ports={"8080/tcp": ("127.0.0.1", None)}, platform=platform, **limits)
    try:
        yield container
    finally:
        container.remove(force=True)
        engine.images.remove(name, force=True)


def ask(container: Container, limit: float) -> tuple[dict[str, str], list[int]]:
    """What the server says it is, and its predictions for the four unit vectors."""
    container.reload()
    port = container.attrs["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def answers() -> bool:
        container.reload()
        assert container.status == "running", container.logs().decode()[-3000:]
        try:
            return client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    with client:
        until(answers, limit)
        about = client.get("/version").json()
        rows = [[float(row == column) for column in range(4)] for row in range(4)]
        return about, client.post("/invocations", json={"inputs": rows}).json()["predictions"]


@pytest.mark.timeout(600)
def test_the_engine_pulls_it_runs_it_and_it_predicts(built: Built, registry: RunningRegistry, engine: docker.DockerClient) -> None:
    name = pushed(built, built.image, registry)
    with running(engine, name, "linux/amd64", SECURE) as container:
        about, predictions = ask(container, START_SECONDS)
        assert predictions == [0, 1, 2, 3]
        assert (about["project"], about["digest"]) == ("digits", "d" * 64)
        said = container.exec_run(["python", "-m", "flops_runtime.health", "8080"])
        assert (said.exit_code, said.output) == (0, b"HTTP/1.1 200 OK\n")
        code, output = container.exec_run(["python", "-c", "import os; print(os.getuid()); open('/model/x', 'w')"])
        assert code == 1
        assert output.startswith(b"65532")


@pytest.mark.timeout(600)
def test_an_image_without_a_base_predicts_too(built: Built, registry: RunningRegistry, engine: docker.DockerClient) -> None:
    plan = built.request.plan.model_copy(update={"base_image": "scratch"})
    request = ImageRequest(plan, built.request.lock, (host_platform(),), built.request.content, 0)
    image = build_image(request, built.layout, built.records, tell=lambda _line: None)
    with running(engine, pushed(built, image, registry), str(host_platform()), SECURE) as container:
        assert ask(container, START_SECONDS)[1] == [0, 1, 2, 3]


def test_skopeo_sees_both_platforms(built: Built, registry: RunningRegistry) -> None:
    name = pushed(built, built.image, registry)
    raw = subprocess.run(
        [tool("skopeo"), "inspect", "--raw", "--tls-verify=false", f"docker://{name}"], check=True, capture_output=True
    ).stdout
    platforms = [item["platform"] for item in json.loads(raw)["manifests"]]
    assert [(item["os"], item["architecture"]) for item in platforms] == [("linux", "amd64"), ("linux", "arm64")]
    for architecture in ("amd64", "arm64"):
        command = [tool("skopeo"), f"--override-arch={architecture}", "inspect", "--tls-verify=false", f"docker://{name}"]
        about = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert about["Architecture"] == architecture
        assert about["Labels"]["org.opencontainers.image.version"] == "d" * 64


EMULATED = pytest.mark.skipif(
    not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists(), reason="binfmt_misc has no qemu-aarch64 here"
)


@EMULATED
@pytest.mark.timeout(300)
def test_the_image_for_arm64_runs_under_emulation(built: Built, registry: RunningRegistry, engine: docker.DockerClient) -> None:
    """Its interpreter and its compiled wheels are arm64's; the whole server takes minutes: `make soak`."""
    name = pushed(built, built.image, registry)
    engine.images.pull(name, platform="linux/arm64")
    try:
        code = "import platform, numpy; print(platform.machine(), numpy.linalg.inv(numpy.eye(2) * 2).sum())"
        said = engine.containers.run(
            name, entrypoint=["python", "-c", code], platform="linux/arm64", remove=True, network_disabled=True
        )
        assert said.decode().split() == ["aarch64", "1.0"]
    finally:
        engine.images.remove(name, force=True)


@EMULATED
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_image_for_arm64_predicts_under_emulation(built: Built, registry: RunningRegistry, engine: docker.DockerClient) -> None:
    with running(engine, pushed(built, built.image, registry), "linux/arm64", {}) as container:
        assert ask(container, 800)[1] == [0, 1, 2, 3]
