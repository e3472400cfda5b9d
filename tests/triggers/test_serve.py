"""`flops serve` as a process: it sees a push by file events, answers a webhook, and ends when it is told to."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Repos, commit, git

SECRET = "0123456789abcdef0123456789abcdef"
BAD = "customerID: demo\nunknown: {number}\n"


class Served:
    """A `flops serve` over a clone; what it printed so far."""

    def __init__(self, clone: Path, state: Path, log: Path) -> None:
        environment = {**os.environ, "FLOPS_WEBHOOK_SECRET": SECRET}
        arguments = ["serve", "--repo", str(clone), "--state", str(state), "--log", "json", "--listen", "127.0.0.1:0"]
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reconciler.cli", *arguments], env=environment, stdout=output, stderr=output
            )

    def said(self) -> str:
        return self._log.read_text()

    def until(self, what: Callable[[], object], seconds: float = 60) -> None:
        """Wait for a condition of the real process."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)


@pytest.fixture
def user(repos: Repos) -> Path:
    path = repos.clone("user")
    commit(path, {"projects/a/sla.yaml": BAD.format(number=1)})
    return path


@pytest.fixture
def served(repos: Repos, user: Path, tmp_path: Path) -> Iterator[Served]:
    made = Served(repos.clone("reconciler"), tmp_path / "state", tmp_path / "log")
    yield made
    made.process.kill()
    made.process.wait()


def told(repos: Repos, project: str) -> str:
    try:
        return git(repos.origin, "show", f"status/default:projects/{project}.json")
    except subprocess.CalledProcessError:
        return ""


def test_serve(served: Served, repos: Repos, user: Path) -> None:
    served.until(lambda: "InvalidSLA" in told(repos, "a"))
    commit(user, {"projects/b/sla.yaml": BAD.format(number=2)})
    served.until(lambda: "InvalidSLA" in told(repos, "b"), 20)

    port = re.search(r"health at 127.0.0.1:(\d+)", served.said())
    assert port
    address = f"http://127.0.0.1:{port[1]}"
    assert httpx.get(f"{address}/readyz", timeout=10).status_code == 200
    body = json.dumps({"ref": "refs/heads/main"}).encode()
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"x-hub-signature-256": signature, "x-github-event": "push"}
    assert httpx.post(f"{address}/webhooks/github", content=body, headers=headers, timeout=10).status_code == 202
    assert 'webhooks_total{forge="github",result="accepted"} 1.0' in httpx.get(f"{address}/metrics", timeout=10).text

    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    lines = [json.loads(line) for line in served.said().splitlines()]
    assert lines[-1]["message"] == "stopped; services stay up"


def test_a_second_one_on_the_same_state_says_so(served: Served, repos: Repos, user: Path, tmp_path: Path) -> None:
    served.until(lambda: told(repos, "a"))
    second = subprocess.run(
        [sys.executable, "-m", "reconciler.cli", "reconcile", "--once", "--repo", str(repos.root / "reconciler"),
         "--state", str(tmp_path / "state")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    assert "FL9004" in second.stderr.replace("\n", " ")
