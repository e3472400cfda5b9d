"""Podman's socket instead of Docker's: images come in without a registry, services run, change and go.

A service of Podman's own for these tests, with settings that need no systemd: they skip where its programs are missing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
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
from tests.engine import until
from tests.images.imagekit import make_image
from tests.runtimes.conftest import SERVER, get, observed

_ROOT = {"path": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/usr/libexec/podman"}
_SETTINGS = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """The engine behind a Podman service of its own."""
    absent = [name for name in ("podman", "runc", "conmon", "catatonit") if shutil.which(name, **_ROOT) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed (Debian's packages of these names)")
    root = tmp_path_factory.mktemp("podman")
    folder = Path(tempfile.mkdtemp(prefix="flops-podman-", dir="/run"))  # short: paths of sockets end at 108 bytes
    (root / "containers.conf").write_text(_SETTINGS)
    storage = f'[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{root}/graph"\n'
    (root / "storage.conf").write_text(storage)
    environment = {
        "PATH": _ROOT["path"], "CONTAINERS_CONF": str(root / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"), "HOME": str(root), "TMPDIR": str(root),
    }  # fmt: skip
    host = f"unix://{folder}/podman.sock"
    with (root / "log").open("wb") as log:
        service = subprocess.Popen(["podman", "system", "service", "--time", "0", host], env=environment, stdout=log, stderr=log)
    try:
        engine = DockerEngine(host)
        until(lambda: engine.answers() or service.poll() is not None, 60)
        if service.poll() is not None:
            pytest.skip(f"Podman does not run here: {(root / 'log').read_text()[-300:]}")
        yield engine
    finally:
        service.terminate()
        service.wait(30)
        subprocess.run(["umount", "--lazy", str(root / "graph" / "overlay")], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(root / "graph", ignore_errors=True)


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
