"""Podman's service for tests, with settings that need no systemd: who asks for it skips where its programs are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.runtimes.docker_engine import DockerEngine
from tests.engine import until

_ROOT = {"path": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/usr/libexec/podman"}
_SETTINGS = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""


@contextmanager
def podman_engine(root: Path) -> Iterator[DockerEngine]:
    """The engine behind a Podman service of its own."""
    absent = [name for name in ("podman", "runc", "conmon", "catatonit") if shutil.which(name, **_ROOT) is None]
    if os.geteuid() != 0:
        pytest.skip("Podman without root is not tried: its containers have other users than the engine's")
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed (Debian's packages of these names)")
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
