"""Services outlive the runtime that started them, keep their port, and come back when something is killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from reconciler.errors import ServingError
from reconciler.runtimes.model import ServiceSpec
from reconciler.runtimes.process import ProcessRuntime
from tests.runtimes.conftest import get, observed, until

Make = Callable[..., ServiceSpec]


def supervisor_of(tmp_path: Path, name: str = "demo") -> int:
    return int(json.loads((tmp_path / "services" / name / "state.json").read_bytes())["supervisor"])


def marked(folder: Path) -> list[int]:
    """The processes of a folder's servers, as their environment says."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLOPS_SERVICE_DIR") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_service_is_started_once_and_is_seen(runtime: ProcessRuntime, spec: Make) -> None:
    first = runtime.apply(spec())
    again = runtime.apply(spec())
    assert get(first.address) == "one"
    assert first.healthy
    assert first.labels == {"flops.digest": "one"}
    assert (again.pid, again.started_at, again.restarts) == (first.pid, first.started_at, 0)
    assert observed(runtime) == again
    assert "started one" in list(runtime.logs("demo"))


def test_the_environment_is_the_specs_own(runtime: ProcessRuntime, spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    service = runtime.apply(spec(env={"MINE": "1"}))
    shown = json.loads(get(service.address, "/env"))
    assert shown["MINE"] == "1"
    assert "SECRET_TOKEN" not in shown
    assert set(shown) <= {"MINE", "PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR", "FLOPS_SERVICE_DIR", "LC_CTYPE"}


CANARY = "canary-5d1e8b0c44aa"


def written(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_secrets_reach_the_server_and_no_file(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    service = runtime.apply(spec(secrets={"DATABASE": CANARY}))
    assert json.loads(get(service.address, "/env"))["DATABASE"] == CANARY
    get(service.address, "/print")
    until(lambda: '"DATABASE": "***"' in "".join(runtime.logs("demo")))
    with pytest.raises(http.client.RemoteDisconnected):
        get(service.address, "/die")
    until(lambda: observed(runtime).healthy and observed(runtime).restarts == 1)
    assert json.loads(get(service.address, "/env"))["DATABASE"] == CANARY  # the supervisor remembers it
    assert "spec.json" in [path.name for path in tmp_path.rglob("*")]
    assert CANARY not in written(tmp_path)


def test_another_value_alone_renews_nothing(runtime: ProcessRuntime, spec: Make) -> None:
    first = runtime.apply(spec(secrets={"DATABASE": CANARY}))
    assert runtime.apply(spec(secrets={"DATABASE": "another-value"})).pid == first.pid
    assert runtime.apply(spec(secrets={"DATABASE": "another-value"}, labels={"flops.serving": "2"})).pid != first.pid


def test_a_server_that_ends_says_why_without_its_secret(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"No module named 'nothing'") as caught:
        runtime.apply(spec(f"with {CANARY}", "--broken", secrets={"DATABASE": CANARY}))
    assert "started with ***" in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_service_outlives_the_process_that_started_it(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    wanted = spec()
    code = (
        "import sys; from pathlib import Path; from reconciler.runtimes.model import ServiceSpec;"
        "from reconciler.runtimes.process import ProcessRuntime;"
        "runtime = ProcessRuntime(Path(sys.argv[1]));"
        f"runtime.apply(ServiceSpec('demo', {wanted.argv!r}, Path(sys.argv[1]).parent, '/health'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "services")], check=True, timeout=60)
    assert get(observed(runtime).address) == "one"


def test_a_new_version_keeps_the_address(runtime: ProcessRuntime, spec: Make) -> None:
    old = runtime.apply(spec("one"))
    new = runtime.apply(spec("two"))
    assert new.address == old.address
    assert new.pid != old.pid
    assert get(new.address) == "two"
    until(lambda: not psutil.pid_exists(old.pid or 0))


def test_a_request_in_flight_is_finished_by_the_old_version(runtime: ProcessRuntime, spec: Make) -> None:
    service = runtime.apply(spec("one"))
    said: list[str] = []
    waiting = threading.Thread(target=lambda: said.append(get(service.address, "/slow")))
    waiting.start()
    until(lambda: any(found.status == "ESTABLISHED" for found in psutil.Process(service.pid).net_connections("tcp")))
    runtime.apply(spec("two"))
    waiting.join(10)
    assert said == ["one"]


@pytest.mark.parametrize(("flag", "code"), [("--broken", "FL7002"), ("--mute", "FL7003"), ("--killed", "FL7007")])
def test_a_version_that_never_gets_healthy_does_not_take_over(
    runtime: ProcessRuntime, spec: Make, tmp_path: Path, flag: str, code: str
) -> None:
    old = runtime.apply(spec("one"))
    with pytest.raises(ServingError) as raised:
        runtime.apply(spec("two", flag, start_timeout=1.0 if flag == "--mute" else 20.0))
    assert raised.value.code == code
    assert raised.value.transient == (flag == "--killed")  # who kills a server – the kernel, an operator – has said nothing of it
    assert ("No module named 'nothing'" in raised.value.cause) == (flag == "--broken")
    assert get(old.address) == "one"
    assert observed(runtime) == old
    until(lambda: marked(tmp_path / "services" / "demo") == [old.pid])


def test_a_version_that_is_refused_by_verification_does_not_take_over(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    old = runtime.apply(spec("one"))
    seen: list[tuple[str, str]] = []

    def refuse(address: str) -> None:
        seen.append((get(address), get(old.address)))
        raise ServingError("FL7093", "It answers wrongly.", cure="Train it again.")

    with pytest.raises(ServingError, match="answers wrongly"):
        runtime.apply(spec("two"), verify=refuse)
    assert seen == [("two", "one")]
    assert observed(runtime) == old
    until(lambda: marked(tmp_path / "services" / "demo") == [old.pid])


def test_a_runtime_that_is_killed_while_it_verifies_leaves_the_old_version_alone(
    runtime: ProcessRuntime, spec: Make, tmp_path: Path
) -> None:
    old = runtime.apply(spec("one"))
    code = (
        "import os, sys; from pathlib import Path; from reconciler.runtimes.model import ServiceSpec;"
        "from reconciler.runtimes.process import ProcessRuntime;"
        "runtime = ProcessRuntime(Path(sys.argv[1]));"
        f"spec = ServiceSpec('demo', {spec('two').argv!r}, Path(sys.argv[1]).parent, '/health');"
        "runtime.apply(spec, verify=lambda address: os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "services")], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    until(lambda: marked(tmp_path / "services" / "demo") == [old.pid])
    assert get(runtime.apply(spec("three")).address) == "three"


@pytest.mark.parametrize("way", ["killed", "hangs", "grows"])
def test_a_server_comes_back(runtime: ProcessRuntime, spec: Make, way: str) -> None:
    service = runtime.apply(spec(memory_mb=70, health_timeout=0.2))
    if way == "killed":
        os.kill(service.pid or 0, signal.SIGKILL)
    else:
        get(service.address, "/hang" if way == "hangs" else "/grow")
    until(lambda: observed(runtime).restarts == 1 and observed(runtime).healthy)
    assert get(service.address) == "one"
    assert observed(runtime).pid != service.pid


def test_a_crash_loop_is_told_with_the_last_words(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    source = Path(spec().argv[1])
    server = tmp_path / "server.py"
    server.write_text(
        f"import sys, pathlib\nif pathlib.Path({str(flag)!r}).exists(): sys.exit('the disk is gone')\n{source.read_text()}"
    )
    service = runtime.apply(ServiceSpec("demo", (sys.executable, str(server)), tmp_path, "/health", health_interval=0.1))
    flag.touch()
    os.kill(service.pid or 0, signal.SIGKILL)
    told = until(lambda: observed(runtime) if observed(runtime).restarts >= 3 else None)
    assert not told.healthy
    assert "the disk is gone" in told.error


def test_a_killed_supervisor_takes_its_server_along_and_the_port_stays(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    service = runtime.apply(spec())
    os.kill(supervisor_of(tmp_path), signal.SIGKILL)
    until(lambda: not observed(runtime).healthy)
    until(lambda: not marked(tmp_path / "services" / "demo"))
    assert "not running" in observed(runtime).error
    assert observed(runtime).labels == service.labels
    again = runtime.apply(spec())
    assert again.address == service.address
    assert get(again.address) == "one"


def test_a_stopped_supervisor_is_stuck_and_replaced(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    service = runtime.apply(spec())
    pid = supervisor_of(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    long_ago = time.time() - 60
    os.utime(tmp_path / "services" / "demo" / "state.json", (long_ago, long_ago))
    assert not observed(runtime).healthy
    again = runtime.apply(spec("two"))
    assert again.address == service.address
    assert supervisor_of(tmp_path) != pid


def test_a_reused_process_id_is_not_taken_for_the_supervisor(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    runtime.apply(spec())
    folder = tmp_path / "services" / "demo"
    real = supervisor_of(tmp_path)
    state = json.loads((folder / "state.json").read_bytes())
    (folder / "state.json").write_text(json.dumps(state | {"supervisor": os.getpid()}))
    assert not observed(runtime).healthy
    (folder / "state.json").write_text(json.dumps(state))
    assert supervisor_of(tmp_path) == real


@pytest.mark.parametrize("labels", ["a", 1, {"a": True}, None])
def test_a_service_whose_labels_are_none_is_not_healthy(
    runtime: ProcessRuntime, spec: Make, tmp_path: Path, labels: object
) -> None:
    runtime.apply(spec("one"))
    path = tmp_path / "services" / "demo" / "state.json"
    content = path.read_bytes()
    path.write_text(json.dumps(json.loads(content) | {"labels": labels}))
    assert (observed(runtime).labels, observed(runtime).healthy) == ({}, False)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [b"\x00{", b"{}", None], ids=["no JSON", "empty", "gone"])
def test_a_supervisor_whose_record_is_damaged_stays_the_only_one(
    runtime: ProcessRuntime, spec: Make, tmp_path: Path, damage: bytes | None
) -> None:
    """It writes its record anew; the server does not notice, and no second supervisor comes."""
    first = runtime.apply(spec("one"))
    folder = tmp_path / "services" / "demo"
    supervisor = supervisor_of(tmp_path)
    (folder / "state.json").unlink()
    if damage is not None:
        (folder / "state.json").write_bytes(damage)
    assert not observed(runtime).healthy
    again = runtime.apply(spec("one"))
    assert (again.pid, again.healthy) == (first.pid, True)
    assert supervisor_of(tmp_path) == supervisor
    (folder / "state.json").write_bytes(b"")
    runtime.remove("demo")
    assert not psutil.pid_exists(supervisor) or psutil.Process(supervisor).status() == psutil.STATUS_ZOMBIE
    assert not marked(folder)


def test_a_port_in_use_is_named_with_its_holder(runtime: ProcessRuntime, spec: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ServingError) as raised:
            runtime.apply(spec(port=port))
    assert raised.value.code == "FL7001"
    assert str(port) in raised.value.cause
    assert f"process {os.getpid()}" in raised.value.cause
    assert runtime.observe() == []
    assert runtime.apply(spec(port=port)).address == f"127.0.0.1:{port}"


def test_a_port_in_use_leaves_the_old_version_where_it_is(runtime: ProcessRuntime, spec: Make) -> None:
    old = runtime.apply(spec("one"))
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(ServingError, match="FL7001"):
        runtime.apply(spec("two", port=holder.getsockname()[1]))
    assert observed(runtime) == old
    assert get(old.address) == "one"


def test_ports_come_from_the_range_and_end_with_it(tmp_path: Path, spec: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        runtime = ProcessRuntime(tmp_path / "services", ports=range(port, port + 1))
        with pytest.raises(ServingError, match="FL7013"):
            runtime.apply(spec())
    service = runtime.apply(spec())
    assert service.address == f"127.0.0.1:{port}"
    with pytest.raises(ServingError, match="FL7013"):
        runtime.apply(spec(name="other"))
    runtime.remove("demo")


def test_a_removed_service_finishes_its_requests_and_leaves_nothing(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    service = runtime.apply(spec())
    supervisor = supervisor_of(tmp_path)
    said: list[str] = []
    waiting = threading.Thread(target=lambda: said.append(get(service.address, "/slow")))
    waiting.start()
    until(lambda: any(found.status == "ESTABLISHED" for found in psutil.Process(service.pid).net_connections("tcp")))
    runtime.remove("demo")
    waiting.join(10)
    assert said == ["one"]
    assert runtime.observe() == []
    assert not (tmp_path / "services" / "demo").exists()
    assert not marked(tmp_path / "services" / "demo")
    assert not psutil.pid_exists(supervisor) or psutil.Process(supervisor).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(urllib.error.URLError):
        get(service.address)
    runtime.remove("demo")


def test_a_server_with_its_own_socket_changes_versions_and_is_put_back(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    old = runtime.apply(spec("one", "--port", "{port}", socket="own"))
    assert get(old.address) == "one"
    with pytest.raises(ServingError, match="FL7002"):
        runtime.apply(spec("two", "--port", "{port}", "--broken", socket="own"))
    assert get(old.address) == "one"
    assert observed(runtime).healthy
    assert runtime.apply(spec("three", "--port", "{port}", socket="own")).address == old.address
    assert get(old.address) == "three"


def test_children_of_a_killed_supervisors_server_do_not_keep_its_port(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    wanted = spec("one", "--port", "{port}", "--child", socket="own")
    service = runtime.apply(wanted)
    os.kill(supervisor_of(tmp_path), signal.SIGKILL)
    until(lambda: not observed(runtime).healthy)
    again = runtime.apply(wanted)
    assert again.address == service.address
    assert get(again.address) == "one"


def test_two_that_apply_the_same_at_once_start_it_once(runtime: ProcessRuntime, spec: Make) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(runtime.apply(spec()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({service.pid for service in found}) == 1


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b"])
def test_a_name_stays_in_the_folder(runtime: ProcessRuntime, spec: Make, name: str) -> None:
    with pytest.raises(ServingError, match="FL7012"):
        runtime.apply(spec(name=name))


def test_a_supervisor_is_small(runtime: ProcessRuntime, spec: Make, tmp_path: Path) -> None:
    runtime.apply(spec())
    memory = psutil.Process(supervisor_of(tmp_path)).memory_info()
    assert memory.rss - memory.shared < 15_000_000
