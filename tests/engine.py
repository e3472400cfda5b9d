"""A real Docker Engine, real registries and base images for tests; without them tests skip, which CI counts as a failure.

`eval "$(ci/engine.sh start)"` before the tests makes all of it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import docker
import pytest
import requests
from filelock import FileLock

from reconciler.images.layout import Layout
from reconciler.images.model import CONFIG, INDEX, LAYER_GZIP, MANIFEST, Descriptor, Platform

LOGIN = ("somebody", "secret")
_HTPASSWD = "somebody:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
BASE = "base:bookworm"
"""The name of the base image in the base layout and, as `flops-base:bookworm`, in the engine."""


def missing(what: str) -> NoReturn:
    """Skip, or fail where an engine is required, as in CI."""
    if os.environ.get("FLOPS_REQUIRE_ENGINE") == "1":
        pytest.fail(f"{what}; FLOPS_REQUIRE_ENGINE asks for it", pytrace=False)
    pytest.skip(f'{what}; run `eval "$(ci/engine.sh start)"` first')


def tool(name: str) -> str:
    """The path of a program of the machine, or a skip."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or missing(f"{name} is not installed")


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A client of the Docker Engine that answers at DOCKER_HOST."""
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException):
        missing("no Docker Engine answers")
    with closing(client):
        yield client


@pytest.fixture(scope="session")
def base_rootfs() -> Mapping[str, Path]:
    """Tar files of a Debian root with Python 3.11, by platform."""
    folder = Path(os.environ.get("FLOPS_BASE_ROOTFS", "/nonexistent"))
    found = {f"linux/{arch}": folder / f"{arch}.tar" for arch in ("amd64", "arm64")}
    if not all(path.is_file() for path in found.values()):
        missing("there is no base root file system (FLOPS_BASE_ROOTFS)")
    return found


@pytest.fixture(scope="session")
def base_layout(base_rootfs: Mapping[str, Path]) -> Path:
    """An OCI layout on disk with the base image, both platforms, as `base:bookworm`; made once per machine."""
    return layout_of(next(iter(base_rootfs.values())).parent)


def layout_of(rootfs: Path) -> Path:
    """The OCI layout with the base image of a folder of root file systems; made when it is not there."""
    root = rootfs / "layout"
    with FileLock(f"{root}.lock"):
        layout = Layout(root)
        if layout.resolve(BASE) is None:
            found = {f"linux/{architecture}": rootfs / f"{architecture}.tar" for architecture in ("amd64", "arm64")}
            manifests = [_base_manifest(layout, Platform.parse(name), path) for name, path in found.items()]
            content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [item.to_dict() for item in manifests]}
            layout.tag(BASE, layout.add_json(content, INDEX))
    return root


def _base_manifest(layout: Layout, platform: Platform, rootfs: Path) -> Descriptor:
    digest = hashlib.sha256(rootfs.read_bytes()).hexdigest()
    with layout.writer() as writer:
        with gzip.GzipFile("", "wb", 1, writer, mtime=0) as packed, rootfs.open("rb") as file:  # type: ignore[arg-type]
            shutil.copyfileobj(file, packed, 1 << 20)
        layer = writer.commit(LAYER_GZIP)
    config = {
        **platform.to_dict(),
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    described = layout.add_json(config, CONFIG)
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described.to_dict(), "layers": [layer.to_dict()]}
    return layout.add_json(content, MANIFEST, platform=platform)


class RunningRegistry:
    """Debian's docker-registry on a free port of loopback, with its files below `root`."""

    def __init__(
        self, root: Path, *, login: bool = False, extra: str = "", address: str = "127.0.0.1", tls: tuple[Path, Path] | None = None
    ) -> None:  # fmt: skip
        self.root = root
        self.files = root / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.port = free_port(address)
        self.address = address
        self.host = f"{address}:{self.port}"
        secured = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
        auth = f"auth: {{htpasswd: {{realm: test, path: {root / 'htpasswd'}}}}}\n" if login else ""
        (root / "htpasswd").write_text(_HTPASSWD)
        (root / "config.yml").write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.files}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.host}'{secured}}}\n{auth}{extra}"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [tool("docker-registry"), "serve", str(self.root / "config.yml")], stdout=log, stderr=log, cwd=self.root
            )
        until(lambda: _listens(self.address, self.port) or self._process is None or self._process.poll() is not None)
        assert self._process.poll() is None, (self.root / "log").read_text()[-2000:]

    def stop(self) -> None:
        """Stop it; its files stay."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def blob(self, digest: str) -> Path:
        """The file of a blob in its storage."""
        hexes = digest.removeprefix("sha256:")
        return self.files / "docker/registry/v2/blobs/sha256" / hexes[:2] / hexes / "data"


StartRegistry = Callable[..., RunningRegistry]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Starts registries; they end with the test."""
    running: list[RunningRegistry] = []

    def start(name: str = "registry", **options: object) -> RunningRegistry:
        running.append(RunningRegistry(tmp_path / name, **options))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def registry(start_registry: StartRegistry) -> RunningRegistry:
    """A registry that everybody may write to."""
    return start_registry()


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nothing uses now."""
    with socket.create_server((address, 0)) as found:
        return int(found.getsockname()[1])


def until(condition: Callable[[], bool], limit: float = 30.0) -> None:
    """Poll a condition of a real process."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True
