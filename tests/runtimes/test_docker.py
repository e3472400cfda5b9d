"""Services as containers: everything that the process runtime promises, and the fence around them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container

from reconciler.errors import ServingError
from reconciler.runtimes.docker import DockerRuntime
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.model import ServiceSpec
from reconciler.runtimes.process import ProcessRuntime
from tests.dockerkit import Cable, base_image, image_with, open_engine
from tests.runtimes.conftest import SERVER, get, observed, until

Make = Callable[..., ServiceSpec]


@pytest.fixture(scope="module")
def engine() -> DockerEngine:
    return open_engine()


@pytest.fixture(scope="module")
def image(engine: DockerEngine) -> str:
    return image_with(engine, "flops-test-server", {"/srv/server.py": SERVER}, base_image(engine))


@pytest.fixture
def docker_runtime(engine: DockerEngine, tmp_path: Path) -> Iterator[DockerRuntime]:
    made = DockerRuntime(tmp_path / "services", instance="test")
    yield made
    for service in made.observe():
        made.remove(service.name)
    assert containers(engine, tmp_path) == []


@pytest.fixture
def boxed(image: str, tmp_path: Path) -> Make:
    def make(say: str = "one", *flags: str, name: str = "demo", on_network: bool = False, **changes: Any) -> ServiceSpec:
        settings: dict[str, Any] = {
            "health_path": "/health", "labels": {"flops.digest": say, "flops.project": name}, "start_timeout": 30.0,
            "health_interval": 0.2, "image": image, "memory_mb": 128, "vcpus": 1.0,
        }  # fmt: skip
        listen = ("--host", "0.0.0.0", "--port", "{port}") if on_network else ("--socket", "{socket}")
        argv = ("python3", "/srv/server.py", "--say", say, *listen, *flags)
        return ServiceSpec(name, argv, tmp_path, **(settings | changes))

    return make


def containers(engine: DockerEngine, tmp_path: Path) -> list[Container]:
    """The containers of the services below a folder."""
    runtime = DockerRuntime(tmp_path / "services")
    return [found for name in ("demo", "other") for found in engine.containers(runtime._home(name))]


def the_container(engine: DockerEngine, tmp_path: Path) -> Container:
    return next(found for found in containers(engine, tmp_path) if found.status == "running")


def test_a_container_is_started_once_and_is_seen(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    first = docker_runtime.apply(boxed())
    again = docker_runtime.apply(boxed())
    assert get(first.address) == "one"
    assert first.healthy
    assert again == first == observed(docker_runtime)
    assert len(containers(engine, tmp_path)) == 1
    assert "started one" in until(lambda: list(docker_runtime.logs("demo")))
    labels = the_container(engine, tmp_path).labels
    assert (labels["flops.project"], labels["flops.digest"], labels["flops.instance"]) == ("demo", "one", "test")


def test_the_fence(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    docker_runtime.apply(boxed(env={"MINE": "1"}))
    container = the_container(engine, tmp_path)
    host = container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == host["MemorySwap"] == 128 << 20
    assert host["NanoCpus"] == 10**9
    assert 0 < host["PidsLimit"] <= 1024
    assert not host["Privileged"]
    status = container.exec_run(["cat", "/proc/1/status"]).output.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t65532" in status
    assert container.exec_run(["touch", "/srv/new"]).exit_code != 0
    assert container.exec_run(["touch", "/tmp/new"]).exit_code == 0
    assert container.exec_run(["ls", "/sys/class/net"]).output.split() == [b"lo"]


def test_the_environment_is_the_specs_own(docker_runtime, boxed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    shown = json.loads(get(docker_runtime.apply(boxed(env={"MINE": "1"})).address, "/env"))
    assert shown["MINE"] == "1"
    assert "SECRET_TOKEN" not in shown
    assert "FLOPS_CONTAINER" not in shown


def test_containers_do_not_reach_each_other(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    docker_runtime.apply(boxed(on_network=True))
    docker_runtime.apply(boxed(name="other", on_network=True))
    one, other = (found for found in containers(engine, tmp_path))
    other.reload()
    ip = other.attrs["NetworkSettings"]["Networks"]["flops-test"]["IPAddress"]
    code = f"import socket; socket.create_connection(({ip!r}, 8080), 2)"
    assert b"imeout" in one.exec_run(["python3", "-c", code]).output


def test_no_request_fails_while_versions_change(docker_runtime, spec: Make, boxed: Make) -> None:
    """Between containers, to a process and back: the address stays and every request is answered."""
    service = docker_runtime.apply(boxed("one"))
    answers: list[str] = []
    faults: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.002):
            try:
                answers.append(get(service.address))
            except (OSError, urllib.error.URLError) as error:
                faults.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for wanted in (boxed("two"), boxed("three", on_network=True), spec("process"), boxed("four")):
            assert docker_runtime.apply(wanted).address == service.address
            until(lambda wanted=wanted: answers and answers[-1] == wanted.labels["flops.digest"])
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert faults == []
    assert set(answers) == {"one", "two", "three", "process", "four"}


def test_a_request_in_flight_is_finished_by_the_old_version(docker_runtime, boxed: Make) -> None:
    service = docker_runtime.apply(boxed("one"))
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(get(service.address, "/slow")))
    thread.start()
    time.sleep(0.2)  # the request has to be on its way; nothing says when it is
    docker_runtime.apply(boxed("two"))
    thread.join(30)
    assert answers == ["one"]


def test_a_version_that_does_not_start_does_not_take_over(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    service = docker_runtime.apply(boxed("one"))
    with pytest.raises(ServingError, match="No module named 'nothing'") as caught:
        docker_runtime.apply(boxed("two", "--broken", on_network=True))
    assert caught.value.code == "FL7002"
    with pytest.raises(ServingError) as caught:
        docker_runtime.apply(boxed("three", "--mute", start_timeout=2.0))
    assert caught.value.code == "FL7003"
    with pytest.raises(ServingError) as caught:
        docker_runtime.apply(boxed("four", "--killed"))
    assert (caught.value.code, caught.value.transient) == ("FL7007", True)
    assert get(service.address) == "one"
    assert until(lambda: len(containers(engine, tmp_path)) == 1)


def test_a_version_that_is_refused_by_verification_does_not_take_over(docker_runtime, boxed: Make) -> None:
    service = docker_runtime.apply(boxed("one"))

    def refuse(address: str) -> None:
        assert get(address) == "two"
        raise ServingError("FL7093", "It answers wrongly.", cure="Look at it.")

    with pytest.raises(ServingError, match="answers wrongly"):
        docker_runtime.apply(boxed("two"), verify=refuse)
    assert get(service.address) == "one"


@pytest.mark.parametrize("way", ["/die", "/hang", "killed"])
def test_a_container_comes_back(docker_runtime, engine, boxed: Make, tmp_path: Path, way: str) -> None:
    service = docker_runtime.apply(boxed(health_timeout=0.5))
    if way == "killed":
        the_container(engine, tmp_path).kill()
    else:
        with suppress(OSError):
            get(service.address, way)
    until(lambda: observed(docker_runtime).restarts >= 1)
    assert until(lambda: observed(docker_runtime).healthy)
    assert get(service.address) == "one"


def test_a_container_that_needs_too_much_memory_is_told_with_its_limit(docker_runtime, engine, boxed: Make) -> None:
    service = docker_runtime.apply(boxed(memory_mb=96))
    with suppress(OSError):
        for _ in range(3):
            get(service.address, "/grow")
    said = until(lambda: [line for line in docker_runtime.logs("demo") if "FL7104" in line])
    assert "96 MB" in said[0]
    until(lambda: observed(docker_runtime).restarts == 1 and observed(docker_runtime).healthy)


def test_a_new_version_that_needs_too_much_memory_says_so(docker_runtime, boxed: Make) -> None:
    argv = ("python3", "-c", "x = bytearray(b'x' * 300_000_000)")
    with pytest.raises(ServingError) as caught:
        docker_runtime.apply(replace(boxed(memory_mb=64), argv=argv))
    assert caught.value.code == "FL7104"
    assert "64 MB" in caught.value.cause


def test_a_killed_supervisor_leaves_the_container_to_be_adopted(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    service = docker_runtime.apply(boxed())
    before = the_container(engine, tmp_path).id
    state = json.loads((tmp_path / "services" / "demo" / "state.json").read_bytes())
    os.kill(int(state["supervisor"]), signal.SIGKILL)
    until(lambda: not observed(docker_runtime).healthy)
    after = docker_runtime.apply(boxed())
    assert after.address == service.address
    assert the_container(engine, tmp_path).id == before
    assert any("adopted" in line for line in docker_runtime.logs("demo"))
    assert len(containers(engine, tmp_path)) == 1


def test_what_a_killed_supervisor_left_of_another_version_is_removed(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    docker_runtime.apply(boxed())
    before = the_container(engine, tmp_path).id
    state = json.loads((tmp_path / "services" / "demo" / "state.json").read_bytes())
    os.kill(int(state["supervisor"]), signal.SIGKILL)
    until(lambda: not observed(docker_runtime).healthy)
    assert get(docker_runtime.apply(boxed("two")).address) == "two"
    assert [found.id for found in containers(engine, tmp_path)] != [before]
    assert len(containers(engine, tmp_path)) == 1


def test_removing_leaves_nothing(docker_runtime, engine, boxed: Make, tmp_path: Path) -> None:
    service = docker_runtime.apply(boxed())
    docker_runtime.remove("demo")
    assert containers(engine, tmp_path) == []
    assert docker_runtime.observe() == []
    with pytest.raises(urllib.error.URLError):
        get(service.address)


def test_an_image_that_nobody_has(docker_runtime, boxed: Make) -> None:
    with pytest.raises(ServingError) as caught:
        docker_runtime.apply(boxed(image="127.0.0.1:1/nobody/nothing:1"))
    assert caught.value.code == "FL7102"
    assert "nobody/nothing" in caught.value.cause


def test_an_engine_that_is_not_there(tmp_path: Path, boxed: Make) -> None:
    runtime = DockerRuntime(tmp_path / "elsewhere", f"unix://{tmp_path}/no.sock")
    with pytest.raises(ServingError) as caught:
        runtime.apply(boxed())
    assert caught.value.code == "FL7101"
    assert caught.value.transient
    assert runtime.observe() == []
    with pytest.raises(ServingError) as caught:
        DockerRuntime(tmp_path / "elsewhere", "tcp://example.invalid:2375").apply(boxed())
    assert caught.value.code == "FL7106"


def test_an_engine_that_goes_away_in_the_middle(engine, boxed: Make, tmp_path: Path) -> None:
    cable = Cable(engine)
    runtime = DockerRuntime(tmp_path / "services", cable.host, instance="test")
    try:
        service = runtime.apply(boxed())
        cable.pull()
        assert get(service.address) == "one"  # what serves goes on
        with pytest.raises(ServingError) as caught:
            runtime.apply(boxed("two"))
        assert caught.value.code == "FL7101"
        assert caught.value.transient
        assert get(service.address) == "one"
        cable.plug()
        assert get(runtime.apply(boxed("two")).address) == "two"
    finally:
        runtime.remove("demo")
        cable.throw_away()
    assert containers(engine, tmp_path) == []


def test_the_process_runtime_refuses_images(tmp_path: Path, boxed: Make) -> None:
    with pytest.raises(ServingError) as caught:
        ProcessRuntime(tmp_path / "processes").apply(boxed())
    assert caught.value.code == "FL7107"


def test_secrets_reach_the_container_and_no_file(docker_runtime: DockerRuntime, boxed: Make, tmp_path: Path) -> None:
    canary = "canary-9b2f61c07d"
    service = docker_runtime.apply(boxed(secrets={"DATABASE": canary}))
    assert json.loads(get(service.address, "/env"))["DATABASE"] == canary
    get(service.address, "/print")
    until(lambda: '"DATABASE": "***"' in "".join(docker_runtime.logs("demo")))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"started one" in written
    assert canary.encode() not in written
