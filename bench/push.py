"""From a push to the first stage of the project that it changes, through the real `flops serve` and a real bare origin: with file
events, where the origin is a folder of this machine, and with a signed webhook, where it is a Git server (HTTP) and sends one.

Run: `python -m bench.push [PUSHES] [PROJECTS]`. Each time is from the start of `git push` until the stage is in the journal, so
the push itself is in it; it stands beside. The ML repos declare no dependencies: what follows the first stage ends at once, and
nothing is trained. Polls are an hour apart, so none of them helps. Writes `bench/results/push.json`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench.git_server import GitServer
from bench.site import Site, git, record

SECRET = "a secret of the bench alone"
LIMIT = 120.0


def main(pushes: int = 20, projects: int = 100) -> int:
    """Measure both ways and print a table."""
    table = Table(title=f"From git push to the first stage, {pushes} pushes, {projects} projects")
    for column in ("seen by", "p50", "p95", "longest", "of it the push (p50)", "target (p50)"):
        table.add_column(column)
    results = {}
    for way, target in (("file events", 0.3), ("webhook", 1.0)):
        root = Path(tempfile.mkdtemp(prefix="flops-bench-"))
        try:
            times, own = measure(root, way, pushes, projects)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        p50, p95, most, push = (
            statistics.median(times),
            sorted(times)[int(len(times) * 0.95) - 1],
            max(times),
            statistics.median(own),
        )
        table.add_row(way, f"{p50:.3f} s", f"{p95:.3f} s", f"{most:.3f} s", f"{push:.3f} s", f"≤ {target} s")
        results[way.replace(" ", "_")] = {"p50": p50, "p95": p95, "max": most, "push_p50": push, "pushes": pushes}
    record("push", {f"{projects}": results})
    Console(width=130).print(table)
    return 0


def measure(root: Path, way: str, pushes: int, projects: int) -> tuple[list[float], list[float]]:
    """Seconds from push to stage, and those of the pushes themselves."""
    site = Site.made(root, projects)
    with ExitStack() as stack:
        if way == "webhook":
            git(root / "origin.git", "config", "http.receivepack", "true")
            server = stack.enter_context(GitServer(root))
            git(site.clone, "remote", "set-url", "origin", f"{server.url}/origin.git")
        (site.clone / "flops.yaml").write_text("poll_interval: 1h\n")
        log = root / "serve.log"
        process = _serve(site.clone, log)
        stack.callback(_end, process)
        journal = site.clone / ".flops" / "journal.db"
        _until(lambda: "serving main" in log.read_text() and _stages(journal) >= projects, process, log)
        hook = f"http://127.0.0.1:{_port(log)}/webhooks/generic"
        _until(lambda: _quiet(journal), process, log)
        times, own = [], []
        for turn in range(pushes):
            site.write(turn % projects, 10 + turn)
            git(site.user, "add", "-A")
            git(site.user, "-c", "user.name=A", "-c", "user.email=a@example.invalid", "commit", "-q", "-m", "One")
            known, began = _last(journal), time.time()
            git(site.user, "push", "-q", "origin", "HEAD:main")
            own.append(time.time() - began)
            if way == "webhook":
                _send(hook)
            _until(lambda known=known: _last(journal) > known, process, log)  # type: ignore[misc]
            times.append(_started(journal, known) - began)
            _until(lambda: _quiet(journal), process, log)
        return times, own


def _serve(clone: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "FLOPS_WEBHOOK_SECRET": SECRET, "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "reconciler.cli", "serve", "--listen", "127.0.0.1:0"]
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=clone, env=environment, stdout=out, stderr=subprocess.STDOUT)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def _port(log: Path) -> int:
    found = re.search(r"at 127\.0\.0\.1:(\d+)", log.read_text())
    if not found:
        raise RuntimeError("flops serve does not say where it listens")
    return int(found[1])


def _send(address: str) -> None:
    body = b'{"ref": "refs/heads/main"}'
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    answer = httpx.post(address, content=body, headers={"x-signature-256": signature, "x-event": "push"}, trust_env=False)
    answer.raise_for_status()


def _ask(journal: Path, query: str, *values: object) -> float:
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
        (found,) = database.execute(query, values).fetchone()
    return float(found or 0)


def _stages(journal: Path) -> float:
    return _ask(journal, "SELECT COUNT(DISTINCT project) FROM stages") if journal.exists() else 0


def _last(journal: Path) -> int:
    return int(_ask(journal, "SELECT MAX(id) FROM stages"))


def _started(journal: Path, after: int) -> float:
    return _ask(journal, "SELECT MIN(started) FROM stages WHERE id > ?", after)


def _quiet(journal: Path) -> bool:
    """Nothing is being worked on, and the loop has caught its breath."""
    time.sleep(0.3)
    ended = "SELECT COUNT(*) FROM events WHERE kind = 'ended'"
    begun = "SELECT COUNT(*) FROM events WHERE kind = 'plan'"
    return _ask(journal, ended) == _ask(journal, begun)


def _until(there: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + LIMIT
    while not there():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"flops serve: {log.read_text()[-3000:]}")
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:3])))
