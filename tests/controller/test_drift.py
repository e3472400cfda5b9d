"""Drift of real services under the loop: seen, said, and mended as soon as it can be."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.null_world import NullExecutor
from reconciler.looking import ProjectView
from reconciler.runtimes.model import ServiceSpec
from reconciler.runtimes.process import ProcessRuntime
from tests.conftest import Repos
from tests.controller.looping import Looping
from tests.runtimes.conftest import SERVER, get, until


class RealServices(NullExecutor):
    """Deploys real processes; everything else is of the world in memory."""

    def __init__(self, loop: Looping, runtime: ProcessRuntime) -> None:
        super().__init__(loop.engine)
        self._runtime, self._cwd = runtime, loop.repos.root

    def _deploy(self, view: ProjectView) -> None:
        assert view.desired is not None
        labels = {
            "flops.kind": "inference", "flops.project": view.name, "flops.digest": view.desired.run_digest,
            "flops.serving": view.desired.serving_digest, "flops.instance": "default",
        }  # fmt: skip
        argv = (sys.executable, str(SERVER), "--say", view.name)
        self._runtime.apply(ServiceSpec(f"inference-{view.name}", argv, self._cwd, "/health", labels=labels, health_interval=0.1))


@pytest.fixture
def loop(repos: Repos, tmp_path: Path) -> Iterator[Looping]:
    made = Looping(repos)
    runtime = ProcessRuntime(tmp_path / "services")
    made.engine.runtime = runtime
    made.controller._execute = RealServices(made, runtime)
    yield made
    for service in runtime.observe():
        runtime.remove(service.name)


def test_a_port_that_a_stranger_took_over(loop: Looping, tmp_path: Path) -> None:
    """The supervisor is killed, and before it is back somebody else listens at its port."""
    loop.edit(loop.project("a") | loop.project("b"))
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    address = loop.status("a")["service"]["address"]
    port = int(address.rpartition(":")[2])
    state = json.loads((tmp_path / "services" / "inference-a" / "state.json").read_bytes())
    os.kill(int(state["supervisor"]), signal.SIGKILL)

    def taken() -> socket.socket | None:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            return None  # the kernel has not ended the server yet

    with until(taken):
        loop.settle()
        status, reason, message = loop.says("a", "Synced")
        assert (status, reason) == ("False", "ProgressingWithRetry")
        assert "FL7001" in message
        assert f"process {os.getpid()}" in message
        assert loop.says("a", "Ready")[0] == "False"
        assert loop.says("b", "Synced")[:2] == ("True", "Converged")
        commits = loop.commits()
        for _ in range(4):
            loop.clock.now += 1000
            loop.settle()
        assert loop.commits() == commits, "that it is tried again is no transition"
    loop.clock.now += 2000
    loop.settle()
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert loop.status("a")["service"]["address"] == address
    assert get(address) == "a"
    assert len(loop.world.trained) == 2


@pytest.mark.parametrize("name", ["spec.json", "state.json", "port"])
def test_a_damaged_record_of_a_service_is_mended_by_the_next_look(loop: Looping, tmp_path: Path, name: str) -> None:
    """The server is one of nobody's for a moment; afterwards there is one of it, and the neighbour was never touched."""
    loop.edit(loop.project("a") | loop.project("b"))
    loop.settle()
    runtime = loop.engine.runtime
    before = {service.name: service.pid for service in runtime.observe()}
    (tmp_path / "services" / "inference-a" / name).write_bytes(b"\x00{")
    for _ in range(3):
        loop.clock.now += 100
        loop.settle()
    after = {service.name: service for service in runtime.observe()}
    assert after.keys() == before.keys()
    assert all(service.healthy for service in after.values())
    assert after["inference-b"].pid == before["inference-b"]
    assert loop.says("a", "Synced")[:2] == ("True", "Converged")
    assert get(after["inference-a"].address) == "a"
    assert len(loop.world.trained) == 2
