"""A real engine for tests, and images made from the base root file system of `ci/engine.sh`.

`eval "$(ci/engine.sh start)"` sets DOCKER_HOST and FLOPS_BASE_ROOTFS. Without an engine tests are skipped and say so; with
FLOPS_REQUIRE_ENGINE=1, as CI sets it, that is a failure.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import sys
import tarfile
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from docker.errors import ImageNotFound

from reconciler.runtimes.docker_engine import DockerEngine
from tests.engine import missing

PACKAGES = (
    "numpy", "numpy.libs", "scipy", "scipy.libs", "sklearn", "scikit_learn.libs", "joblib", "threadpoolctl.py", "cloudpickle",
    "uvicorn", "starlette", "anyio", "click", "h11", "idna", "yaml", "_yaml", "orjson", "typing_extensions.py", "narwhals",
)  # fmt: skip
"""What the inference server needs for a scikit-learn model."""
BASE = "localhost/flops-test-base"
"""With a host, as Podman would put one before it and then look for it at another; Podman drops the tag of what it imports."""


def open_engine() -> DockerEngine:
    """The engine of DOCKER_HOST or of the default socket."""
    engine = DockerEngine()
    if not engine.host.startswith("unix://") or not engine.answers():
        missing(f"no Docker engine answers at {engine.host}")
    return engine


def base_image(engine: DockerEngine) -> str:
    """Debian with Python 3.11, imported once per engine."""
    folder = os.environ.get("FLOPS_BASE_ROOTFS", "")
    rootfs = Path(folder) / "amd64.tar"
    if not folder or not rootfs.is_file():
        missing("FLOPS_BASE_ROOTFS names no base root")
    name = f"{BASE}-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
    try:
        return str(engine.client.images.get(name).id)
    except ImageNotFound:
        engine.client.api.import_image_from_file(str(rootfs), repository=name, tag="latest")
        return str(engine.client.images.get(name).id)


def image_with(engine: DockerEngine, name: str, files: Mapping[str, Path], base: str, lines: str = "") -> str:
    """An image of a base and some files and folders, as {place in the image: path here}; kept for the next run."""
    digest = hashlib.sha256(f"{base}\n{lines}".encode())
    found = []
    for place, path in sorted(files.items()):
        for item in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if item.is_file():
                inside = f"{place}/{item.relative_to(path)}" if path.is_dir() else place
                found.append((inside.lstrip("/"), item))
                digest.update(f"{inside}\0{item.stat().st_size}\0".encode() + (item.read_bytes() if item.suffix == ".py" else b""))
    tag = f"{name}:{digest.hexdigest()[:12]}"
    try:
        return str(engine.client.images.get(tag).id)
    except ImageNotFound:
        pass
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for inside, item in found:
            tar.add(item, f"root/{inside}")
        dockerfile = f"FROM {base}\nCOPY root /\n{lines}\n".encode()
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        tar.addfile(entry, io.BytesIO(dockerfile))
    context.seek(0)
    image, _ = engine.client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    return str(image.id)


def site_packages() -> Path:
    """Where this Python's packages are: the base image has the same Python."""
    return next(Path(item) for item in sys.path if item.endswith("site-packages"))


class Cable:
    """A second socket of the engine, which can be pulled: what an engine that goes away in the middle looks like."""

    def __init__(self, engine: DockerEngine) -> None:
        self._behind = engine.host.removeprefix("unix://")
        self._folder = Path(tempfile.mkdtemp(prefix="flops-cable-", dir="/tmp"))  # short: such paths end at 108 bytes
        self._path = self._folder / "docker.sock"
        self._open: list[socket.socket] = []
        self._listening: socket.socket | None = None
        self.plug()

    @property
    def host(self) -> str:
        return f"unix://{self._path}"

    def plug(self) -> None:
        """Let requests through."""
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._path))
        self._listening.listen(50)
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def pull(self) -> None:
        """End all connections, and refuse new ones."""
        if self._listening is not None:
            self._path.unlink()
            for each in (self._listening, *self._open):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._listening, self._open = None, []

    def throw_away(self) -> None:
        self.pull()
        shutil.rmtree(self._folder)

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                ours, _ = listening.accept()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(self._behind)
                self._open += [ours, theirs]
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
