"""Podman's socket instead of Docker's: images come in without a registry, services run, change and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from reconciler.images.engine import PREFIX, into_engine
from reconciler.images.layout import Layout
from reconciler.images.model import Platform
from reconciler.podman import is_podman
from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.model import ServiceSpec
from tests.dockerkit import base_image, image_with
from tests.images.imagekit import make_image
from tests.podmankit import podman_engine
from tests.runtimes.conftest import SERVER, get, observed


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    with podman_engine(tmp_path_factory.mktemp("podman")) as engine:
        yield engine


def test_an_image_of_the_store_comes_in_without_a_registry(podman: DockerEngine, tmp_path: Path) -> None:
    with closing(docker.DockerClient(base_url=podman.host, version="1.41", timeout=120)) as client:
        assert is_podman(client)
        layout, name, told = Layout(tmp_path / "store"), "acme/into-podman:1", []
        index = make_image(layout, name, content=b"print('into podman')\n")
        made = into_engine(client, layout, name, Platform("linux", "amd64"), owner="podman", tell=told.append)
        manifest = layout.read_json(layout.read_json(index.digest)["manifests"][0]["digest"])
        assert made == manifest["config"]["digest"] == client.images.get(f"{PREFIX}podman/{name}").id
        assert into_engine(client, layout, name, Platform("linux", "amd64"), owner="podman", tell=told.append) == made
        assert len(told) == 1


@pytest.mark.timeout(300)
def test_a_service_runs_changes_and_goes(podman: DockerEngine, tmp_path: Path) -> None:
    image = image_with(podman, "localhost/flops-test-server", {"/srv/server.py": SERVER}, base_image(podman))
    runtime = DockerRuntime(tmp_path / "services", podman.host, instance="podman")

    def spec(say: str) -> ServiceSpec:
        return ServiceSpec(
            "demo", ("python3", "/srv/server.py", "--say", say, "--socket", "{socket}"), tmp_path, image=image, memory_mb=128,
            vcpus=1.0, health_path="/health", labels={"flops.digest": say}, start_timeout=120.0, health_interval=0.2,
        )  # fmt: skip

    try:
        first = runtime.apply(spec("one"))
        assert get(first.address) == "one"
        container = next(iter(podman.containers(runtime._home("demo"))))
        status = container.exec_run(["cat", "/proc/1/status"]).output.decode()
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert "Uid:\t65532" in status
        assert container.exec_run(["touch", "/srv/new"]).exit_code != 0
        assert container.exec_run(["ls", "/sys/class/net"]).output.split() == [b"lo"]
        second = runtime.apply(spec("two"))
        assert (second.address, get(second.address)) == (first.address, "two")
        assert observed(runtime).healthy
    finally:
        runtime.remove("demo")
    assert podman.containers(runtime._home("demo")) == []
