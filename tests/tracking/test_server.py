"""The embedded server: one process, this machine only, and databases of older MLflows."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import psutil

from reconciler.tracking import Tracking
from tests.tracking.conftest import RecordMaker, Server, start_server, stop_server


def test_one_process_without_job_runners(server: Server) -> None:
    assert psutil.Process(server.process.pid).children(recursive=True) == []


def test_readers_do_not_wait_for_writers(server: Server) -> None:
    with closing(sqlite3.connect(server.folder / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_only_this_machine_is_let_in(server: Server) -> None:
    address = f"{server.uri}/api/2.0/mlflow/registered-models/search"
    assert httpx.get(address).status_code == 200
    assert httpx.get(address, headers={"host": "evil.example:80"}).status_code == 403
    assert httpx.get(address, headers={"host": "192.168.0.7:5000"}).status_code == 403
    answer = httpx.post(
        f"{server.uri}/api/2.0/mlflow/experiments/create", json={"name": "evil"}, headers={"origin": "https://evil.example"}
    )
    assert answer.status_code == 403
    (listener,) = {item.laddr.ip for item in psutil.Process(server.process.pid).net_connections("inet") if item.status == "LISTEN"}
    assert listener == "127.0.0.1"


def test_a_database_of_an_older_mlflow_is_upgraded_and_kept(tmp_path: Path, record: RecordMaker) -> None:
    server = start_server("acme", tmp_path)
    run_id = Tracking(server.uri).record_run(record())
    stop_server(server)
    downgrade = (
        "from alembic import command; from mlflow.store.db.utils import _get_alembic_config as c;"
        "command.downgrade(c('sqlite:///mlflow.db'), '-1')"
    )
    (server.folder / "mlflow.version").write_text("3.0.0")
    subprocess.run([sys.executable, "-c", downgrade], cwd=server.folder, check=True, capture_output=True)
    server = start_server("acme", tmp_path)
    try:
        assert Tracking(server.uri).record_run(record()) == run_id
        assert list(server.folder.glob("mlflow.db.before-*"))
    finally:
        stop_server(server)
