"""The scribe: MLflow's client is in a process of its own, which may be killed at any time, and which nobody leaves behind."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from reconciler.aside import IDLE, Aside
from reconciler.errors import NotifyError, TrackingError, Where
from reconciler.tracking import RunRecord, Tracking
from reconciler.tracking.scribe import SCRIBE, WRITING, environment, gone
from tests.tracking.conftest import RecordMaker, Server
from tests.tracking.test_failures import answering

RECORD = """
import pickle, sys, threading
from reconciler.tracking import Tracking
from reconciler.tracking.scribe import SCRIBE

record = pickle.load(open(sys.argv[2], "rb"))
tracking = Tracking(sys.argv[1])
tracking.prepare_to_write()
print(SCRIBE.pid, flush=True)
run_id = tracking.record_run(record)
version = tracking.register(
    customer=record.customer, project=record.project, digest=record.digest, gate_digest="g", run_id=run_id, alias="development"
)
tracking.download(version, record.model_dir.parent / "fetched")
tracking.mark_gate_failed(run_id, "h", "too low")
print(*sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
"""


class Clock:
    """Stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scribe(clock: Clock) -> Iterator[Aside]:
    """One of this test alone: its environment is that of the moment in which it is started."""
    made = Aside(gone, environment, monotonic=clock)
    yield made
    clock.now += IDLE
    made.rest()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def begun(tracking: Tracking, record: RunRecord) -> list[str]:
    """The runs of a record, whether they are whole or not."""
    experiment = tracking.experiment(record.customer, record.project)
    return [row["info"]["run_id"] for row in tracking.search_runs(experiment, "")] if experiment else []


@pytest.fixture
def large(record: RecordMaker, tmp_path: Path) -> RunRecord:
    """A training whose model takes a while to send."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    with (folder / "weights").open("wb") as file:
        file.truncate(150_000_000)
    return record(model_dir=folder)


def other_reconciler(server: Server, record: RunRecord, folder: Path) -> subprocess.Popen[str]:
    """A process that has written nothing yet; its first line is the process id of its scribe."""
    (folder / "record.pickle").write_bytes(pickle.dumps(record))
    return subprocess.Popen(
        [sys.executable, "-c", RECORD, server.uri, str(folder / "record.pickle")], stdout=subprocess.PIPE, text=True
    )


def test_the_process_that_asks_never_holds_mlflow(server: Server, record: RecordMaker, tmp_path: Path) -> None:
    process = other_reconciler(server, record(model_dir=_copied(record().model_dir, tmp_path)), tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    pid, modules = output.splitlines()
    assert not {"mlflow", "requests", "pandas", "numpy"} & set(modules.split())
    assert (tmp_path / "fetched" / "MLmodel").is_file()
    until(lambda: ended(int(pid)), 10)


def test_a_scribe_that_is_killed_in_the_middle(server: Server, large: RunRecord, scribe: Aside) -> None:
    tracking = Tracking(server.uri, scribe)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(tracking.record_run, large)
        (cut_off,) = until(lambda: begun(tracking, large))
        first = scribe.pid
        assert first
        os.kill(first, signal.SIGKILL)
        with pytest.raises(TrackingError) as caught:
            writing.result()
    assert (caught.value.code, caught.value.transient) == ("FL6022", True)
    assert "signal 9" in caught.value.cause
    assert tracking.run_with_digest(large.project, "acme", "d1") is None
    run_id = until(lambda: _tried(lambda: tracking.record_run(large)))
    assert begun(tracking, large) == [run_id] != [cut_off]
    assert scribe.pid not in {first, None}
    assert tracking.record_run(large) == run_id


def test_a_reconciler_that_is_killed_leaves_no_scribe(server: Server, large: RunRecord, tracking: Tracking, tmp_path: Path) -> None:
    process = other_reconciler(server, large, tmp_path)
    assert process.stdout
    pid = int(process.stdout.readline())
    until(lambda: begun(tracking, large))
    assert not ended(pid)
    process.kill()
    until(lambda: ended(pid), 5)
    process.communicate()
    assert tracking.run_with_digest(large.project, "acme", "d1") is None
    run_id = tracking.record_run(large)
    assert begun(tracking, large) == [run_id]


def test_projects_write_side_by_side(server: Server, tracking: Tracking, record: RecordMaker) -> None:
    wanted = [record(project=f"side-{number}") for number in range(3)]
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(tracking.record_run, item) for item in wanted]
            # All are on their way before the server answers any of them.
            until(lambda: SCRIBE.calls == len(wanted))
            pid = SCRIBE.pid
            os.kill(server.process.pid, signal.SIGCONT)
            assert len({future.result() for future in futures}) == len(wanted)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert SCRIBE.pid == pid


def test_it_ends_when_nobody_needs_it(server: Server, large: RunRecord, scribe: Aside, clock: Clock) -> None:
    tracking = Tracking(server.uri, scribe)
    scribe.rest()
    assert scribe.pid is None, "nothing is started before it is needed"
    tracking.prepare_to_write()
    pid = scribe.pid
    assert pid
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(tracking.record_run, large)
        until(lambda: begun(tracking, large))
        clock.now += 10 * IDLE
        scribe.rest()
        run_id = writing.result()
    assert scribe.pid == pid, "it does not end in the middle, and what was warmed up is what is used"
    clock.now += IDLE - 1
    scribe.rest()
    assert scribe.pid == pid
    clock.now += 1
    scribe.rest()
    assert scribe.pid is None
    until(lambda: ended(pid), 10)
    assert tracking.record_run(large) == run_id
    assert scribe.pid not in {pid, None}


def test_nobody_has_to_look_after_it(server: Server, record: RecordMaker) -> None:
    """With a real clock it ends by itself."""
    scribe = Aside(gone, environment, idle=0.05)
    assert Tracking(server.uri, scribe).record_run(record())
    until(lambda: scribe.pid is None, 10)


def test_what_is_wrong_with_ourselves_is_no_error_of_the_server(server: Server) -> None:
    with pytest.raises(RuntimeError, match="TypeError"):
        SCRIBE.call(f"{WRITING}:record_run", server.uri)
    with pytest.raises(RuntimeError, match="AttributeError"):
        SCRIBE.call(f"{WRITING}:no_such_call")


def test_a_machine_that_starts_no_process(server: Server, record: RecordMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    scribe = Aside(gone, environment)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    scribe.warm_up(WRITING)
    with pytest.raises(TrackingError) as caught:
        Tracking(server.uri, scribe).record_run(record())
    assert (caught.value.code, caught.value.transient) == ("FL6022", True)


def test_a_module_in_the_working_directory_is_not_taken_for_mlflow(
    server: Server, record: RecordMaker, scribe: Aside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "orjson", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of a tenant')\n")
    monkeypatch.chdir(tmp_path)
    assert Tracking(server.uri, scribe).record_run(record())


def test_credentials_reach_the_server_and_nobody_else(
    scribe: Aside, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "opensesame-opensesame")
    asked: list[str] = []
    refusal = b'{"error_code": "PERMISSION_DENIED", "message": "not opensesame-opensesame"}'
    with answering(403, refusal, asked) as uri, pytest.raises(TrackingError) as caught:
        Tracking(uri, scribe).mark_gate_failed("0" * 32, "g", "too low")
    assert caught.value.code == "FL6003"
    assert asked
    assert all(header.startswith("Basic ") for header in asked)
    assert "opensesame" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("error", [
    TrackingError("FL6003", "Cause.", cure="Cure.", where=Where("a/b.yaml", 3, 4), transient=True),
    NotifyError("FL9401", "Cause.", cure="Cure."),
])  # fmt: skip
def test_errors_cross_whole(error: TrackingError | NotifyError) -> None:
    if isinstance(error, NotifyError):
        error.pause = 7.0
    crossed = pickle.loads(pickle.dumps(error))
    assert type(crossed) is type(error)
    assert vars(crossed) == vars(error)
    assert (str(crossed), crossed.args) == (str(error), error.args)


def _copied(model_dir: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model_dir, folder / "model"))


def _tried(call: Callable[[], str]) -> str:
    """As the loop does it: what is transient is tried again."""
    try:
        return call()
    except TrackingError:
        return ""
