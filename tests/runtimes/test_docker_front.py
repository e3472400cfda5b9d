"""A front by itself, stopped and woken, so that things happen at the same moment for it that are never seen together otherwise."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.model import ServiceSpec
from tests.dockerkit import base_image, image_with, open_engine
from tests.runtimes.conftest import SERVER, get, until


class Front:
    """What a supervisor holds of a server: its sockets and its control pipe."""

    def __init__(self, runtime: DockerRuntime, spec: ServiceSpec, image: str) -> None:
        fronted, _ = runtime._fronted(spec, image)
        self.shared = socket.create_server(("127.0.0.1", 0))
        private = socket.create_server(("127.0.0.1", 0))
        control, self.control = os.pipe()
        fds = (self.shared.fileno(), private.fileno(), control)
        arguments = [item for pair in zip(("--fd", "--private-fd", "--control-fd"), map(str, fds), strict=True) for item in pair]
        self.private = "{}:{}".format(*private.getsockname())
        self.process = subprocess.Popen(
            [*fronted.argv, *arguments], cwd=fronted.cwd, env=dict(fronted.env), pass_fds=fds, stdout=subprocess.DEVNULL
        )
        private.close()
        os.close(control)

    def tell(self, word: bytes) -> None:
        os.write(self.control, word + b"\n")

    def stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(30)
        os.close(self.control)
        self.shared.close()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    engine: DockerEngine = open_engine()
    image = image_with(engine, "flops-test-server", {"/srv/server.py": SERVER}, base_image(engine))
    argv = ("python3", "/srv/server.py", "--say", "one", "--socket", "{socket}")
    runtime = DockerRuntime(tmp_path / "services", instance="test")
    made = Front(runtime, ServiceSpec("demo", argv, tmp_path, health_path="/health", image=image, memory_mb=128), image)
    yield made
    made.end()
    for container in engine.containers(runtime._home("demo")):
        engine.remove(container)


@pytest.mark.parametrize("order", ["drain first", "request first"])
def test_a_request_that_comes_with_the_word_to_drain_is_answered(front: Front, order: str) -> None:
    """Both are there when the front looks: what it has taken off the shared socket it has to see through."""
    assert get(front.private) == "one"
    front.tell(b"accept")
    address = "{}:{}".format(*front.shared.getsockname())
    assert get(address) == "one"
    front.process.send_signal(signal.SIGSTOP)
    until(front.stopped)
    client = socket.socket()
    client.settimeout(20)
    host, _, port = address.partition(":")

    def request() -> None:
        client.connect((host, int(port)))
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")

    steps: list[Callable[[], None]] = [lambda: front.tell(b"drain"), request]
    for step in steps if order == "drain first" else reversed(steps):
        step()
    front.process.send_signal(signal.SIGCONT)
    with client:
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert answer.endswith(b"one")
    assert front.process.wait(30) == 0
