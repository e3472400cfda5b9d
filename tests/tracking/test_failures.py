"""A server that is away, full or something else: a clear error, soon, that never shows a password."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reconciler.aside import Aside
from reconciler.errors import TrackingError
from reconciler.tracking import ModelVersion, Tracking
from reconciler.tracking.failures import redacted, translated
from reconciler.tracking.model import safe_folder
from reconciler.tracking.scribe import SCRIBE, WRITING, environment, gone
from tests.tracking.conftest import RecordMaker, free_port, start_server, stop_server

VERSION = ModelVersion("acme.p", "p", "1", "d", "r", "m-1", "g")
CALLS: dict[str, Callable[[Tracking], object]] = {
    "versions": lambda tracking: tracking.versions("acme"),
    "run_with_digest": lambda tracking: tracking.run_with_digest("p", "acme", "d"),
    "mark_gate_failed": lambda tracking: tracking.mark_gate_failed("0" * 32, "g", "because"),
    "set_alias": lambda tracking: tracking.set_alias(VERSION, "development"),
    "download": lambda tracking: tracking.download(VERSION, Path("never-made")),
}


@contextmanager
def answering(status: int, body: bytes, asked: list[str] | None = None) -> Iterator[str]:
    """The address of something that answers everything alike; `asked` takes the credentials that it is shown."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            if asked is not None:
                asked.append(self.headers.get("authorization") or "")
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("call", CALLS)
def test_no_server_is_a_transient_error_without_credentials(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SCRIBE.call("reconciler.aside_process:prepare", WRITING)  # the import of MLflow is not what is timed

    started = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        CALLS[call](Tracking(f"http://ann:secret@127.0.0.1:{free_port()}"))
    assert time.monotonic() - started < 10
    assert caught.value.code == "FL6001"
    assert caught.value.transient
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_hangs_is_given_up(server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracking = Tracking(server.uri)  # type: ignore[attr-defined]
    process = server.process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TrackingError) as caught:
            tracking.versions("acme")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert caught.value.transient


@pytest.mark.parametrize("call", ["versions", "run_with_digest", "mark_gate_failed"])
@pytest.mark.parametrize(("status", "body", "code", "transient"), [
    (500, b'{"error_code": "INTERNAL_ERROR", "message": "boom"}', "FL6004", True),
    (503, b"<html>later</html>", "FL6004", True),
    (500, b'{"error_code": "INTERNAL_ERROR", "message": "(sqlite3.OperationalError) database or disk is full"}', "FL6005", True),
    (401, b"no", "FL6002", False),
    (404, b"<html>no such page</html>", "FL6002", False),
])  # fmt: skip
def test_what_else_can_answer(call: str, status: int, body: bytes, code: str, transient: bool) -> None:
    with answering(status, body) as uri, pytest.raises(TrackingError) as caught:
        CALLS[call](Tracking(uri))
    if call == "mark_gate_failed":  # MLflow's client keeps the body of a refusal, not that of what it tried again
        code = {"FL6002": "FL6003", "FL6005": "FL6004"}.get(code, code)
    assert caught.value.code == code
    assert caught.value.transient is transient


def test_a_page_is_not_an_empty_registry() -> None:
    with answering(200, b"<html>please log in</html>") as uri, pytest.raises(TrackingError):
        Tracking(uri).versions("acme")


@pytest.mark.parametrize("uri", ["file:./mlruns", "sqlite:///x.db", "databricks", "", "http://"])
def test_an_address_that_is_none_is_said_at_once(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        Tracking(uri)
    assert caught.value.code == "FL6007"
    assert not caught.value.transient


def test_a_full_disk_here(tmp_path: Path) -> None:
    error = translated(OSError(errno.ENOSPC, "No space left on device", str(tmp_path)), "http://127.0.0.1:1")
    assert (error.code, error.transient) == ("FL6005", True)


def test_a_proxy_is_not_asked_for_the_loopback(server: object, record: RecordMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    # One of its own, as it has the environment of the moment in which it is started.
    assert Tracking(server.uri, Aside(gone, environment, idle=0.05)).record_run(record())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ["http://a:b@c/d", "failed: https://a:b@c: refused", "x ssh://git@host/y", "postgresql://u:p%40@h/db"]
)
def test_no_credentials_stay(text: str) -> None:
    assert "@" not in redacted(text)


def test_a_server_goes_on_where_it_was_killed(tmp_path: Path, record: RecordMaker) -> None:
    first = start_server("acme", tmp_path)
    run_id = Tracking(first.uri).record_run(record())
    first.process.kill()
    first.process.wait()
    second = start_server("acme", tmp_path)
    try:
        assert Tracking(second.uri).record_run(record()) == run_id
    finally:
        stop_server(second)


def test_folders_of_customers_are_apart_and_plain() -> None:
    names = ["a", "A", "a.b", "a_b", "a-b", "a@b", "..x", "_2e_", "x" * 100, "X" * 100, "X" * 99 + "Y"]
    folders = [safe_folder(name) for name in names]
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all(len(folder) <= 100 and "/" not in folder and not folder.startswith(".") for folder in folders)
