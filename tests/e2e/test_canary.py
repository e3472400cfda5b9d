"""The canary test: every secret that there can be is a canary, a real `flops serve` works and fails with all of them, user code
prints the one it was given – and then nothing that was written, told or served has one of them in it.

Where a canary must be, by its nature, is listed here and not looked for: the environment of the reconciler and of the server that
was given it (`/proc`), the memory of its supervisor; the operator's files that hold it (the secret's file, Docker's config.json,
the clone's `.git/config`); the ML repo that has one in its own code; and, of a container, the engine's own record of it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bench.workbench import Workbench
from tests.e2e.test_bad_input import MODEL, add, make_points

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CANARIES = {
    name: f"canary-{name}-{hashlib.sha256(name.encode()).hexdigest()[:20]}"
    for name in ("webhook", "viewer", "operator", "shared", "git", "registry", "database", "mlrepo", "mlflow", "age")
}
LOUD = MODEL.replace(
    "class ModelManager",
    """import os

class Loud(LogisticRegression):
    def predict(self, x):
        print("the database is", os.environ.get("DATABASE"), flush=True)
        return super().predict(x)

class ModelManager""",
).replace("self.model = LogisticRegression(", "self.model = Loud(")
RAISES = MODEL.replace(
    "self.model.fit(self.x, self.y)",
    f"print('fetching https://me:{CANARIES['mlrepo']}@data.example.invalid/x'); "
    f"raise ValueError('Authorization: Bearer {CANARIES['mlrepo']} was refused')",
)
PLAN = "kind: inference\nbase_image: 127.0.0.1:{port}/base:1\nplatforms: [linux/amd64]\n"


class Gossip(http.server.BaseHTTPRequestHandler):
    """A registry that lets nobody in, and says what it was sent."""

    def do_GET(self) -> None:
        sent = self.headers.get("authorization", "nothing")
        plain = base64.b64decode(sent.partition(" ")[2] or "").decode(errors="replace")
        body = json.dumps({"errors": [{"code": "DENIED", "message": f"{sent} is {plain}"}]}).encode()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="here"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 – the library's name for it

    def log_message(self, *_: object) -> None:
        pass


class Served:
    """`flops serve` with all the canaries in its environment."""

    def __init__(self, bench: Workbench, log: Path, environ: dict[str, str], *options: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reconciler.cli", "serve", "--listen", "127.0.0.1:0", *options],
                cwd=bench.clone, env=environ, stdout=output, stderr=output,
            )  # fmt: skip

    def until(self, what: Callable[[], object], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    @property
    def address(self) -> str:
        self.until(lambda: re.search(r"health at (\S+:\d+)", self.log.read_text()))
        found = re.findall(r"health at (127\.0\.0\.1:\d+)", self.log.read_text())
        return f"http://{found[-1]}"

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@pytest.fixture
def registry() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gossip)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_no_secret_is_written_told_or_served(tmp_path: Path, registry: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_points(tmp_path / "site")
    environ = _secrets(bench, tmp_path, registry)
    monkeypatch.setattr(os, "environ", environ)
    allowed = "deployment: {environment: {DATABASE: {secret_ref: database}}}\n"
    add(bench, "loud", model=LOUD, more=allowed)
    add(bench, "raises", model=RAISES)
    add(bench, "denied", more=allowed.replace("database}", "other}"))
    add(bench, "base")
    (bench.clone / "projects" / "base" / "build_plans").mkdir()
    (bench.clone / "projects" / "base" / "build_plans" / "inference.yaml").write_text(PLAN.format(port=registry))
    add(bench, "elsewhere")
    sla = bench.clone / "projects" / "elsewhere" / "sla.yaml"
    sla.write_text(sla.read_text().replace("./projects/elsewhere/ml_repo", f"http://127.0.0.1:{registry}/repo.git"))
    bench.commit("All at once")
    bench.git("fetch", "-q", "origin")
    # From here on the remote is a server that refuses the credentials in its URL.
    bench.git("remote", "set-url", "origin", f"http://me:{CANARIES['git']}@127.0.0.1:{registry}/site.git")

    told: list[str] = []
    served = Served(bench, tmp_path / "serve.log", environ, "--log", "json", "--verbose")
    try:
        _visit(served, told)
        told += _files(bench.clone / ".flops", without="images")  # while it runs: SQLite's log of writes is there
    finally:
        served.end()
    for command in (
        "status", "status loud -o json", "plan", "logs loud", "logs loud --service", "logs raises",
        "history base -o json", "doctor",
    ):  # fmt: skip
        told.append(bench.flops(*command.split(), check=False))
    service_log = (bench.clone / ".flops" / "services" / "inference-loud" / "service.log").read_text()
    bench.stop()
    told += [served.log.read_text(), *_files(bench.clone / ".flops"), *_objects(bench)]

    assert "the database is ***" in service_log
    assert any("FL6145" in text for text in told), "the registry was asked with its login"
    assert any("was refused" in text for text in told), "the user's code told its error"
    assert any("remote cannot be fetched" in text for text in told), "the remote was asked with its password"
    for text in told:
        for name, canary in CANARIES.items():
            for form in (canary, base64.b64encode(canary.encode()).decode().rstrip("=")):
                at = text.find(form)
                assert at < 0, f"{name}: {text[max(0, at - 300) : at + 100]}"


def _secrets(bench: Workbench, tmp_path: Path, registry: int) -> dict[str, str]:
    """Every secret in its place; the environment of the reconciler."""
    (tmp_path / "database").write_text(CANARIES["database"] + "\n")
    (tmp_path / "docker").mkdir()
    login = base64.b64encode(f"me:{CANARIES['registry']}".encode()).decode()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{registry}": {"auth": login}}}))
    settings = (bench.clone / "flops.yaml").read_text()
    (bench.clone / "flops.yaml").write_text(
        settings
        + f"""poll_interval: 2s
secrets:
  database: {{secret_ref: {{file: {tmp_path / "database"}}}}}
policy: {{secrets: [database]}}
web:
  webhook_secret: {{env: HOOKS}}
  tokens:
    - {{name: grafana, role: viewer, secret_ref: {{env: SEES}}}}
    - {{name: anna, role: operator, secret_ref: {{env: DOES}}}}
"""
    )
    return {
        **os.environ,
        "HOOKS": CANARIES["webhook"],
        "SEES": CANARIES["viewer"],
        "DOES": CANARIES["operator"],
        "FLOPS_WEB_TOKEN": CANARIES["shared"],
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "MLFLOW_TRACKING_PASSWORD": CANARIES["mlflow"],
        "SOPS_AGE_KEY": CANARIES["age"],
    }


def _visit(served: Served, told: list[str]) -> None:
    """Wait until everything has been tried, and ask for all that is served, rightly and wrongly."""
    client = httpx.Client(base_url=served.address, timeout=30, headers={"authorization": f"Bearer {CANARIES['viewer']}"})

    def state(name: str) -> dict[str, str]:
        found = client.get(f"/api/v1/projects/{name}")
        if found.status_code != 200:
            return {}
        return {item["type"]: f"{item['status']} {item['message']}" for item in found.json()["conditions"]}

    served.until(lambda: state("loud").get("Synced", "").startswith("True"))
    served.until(lambda: "Stalled" in state("raises") and "Stalled" in state("denied"))
    served.until(lambda: "FL6145" in " ".join(state("base").values()))
    body = json.dumps({"ref": "refs/heads/main"}).encode()
    signed = "sha256=" + hmac.new(CANARIES["webhook"].encode(), body, hashlib.sha256).hexdigest()
    for signature in (signed, "sha256=" + CANARIES["webhook"]):
        headers = {"x-hub-signature-256": signature, "x-github-event": "push"}
        told.append(client.post("/webhooks/github", content=body, headers=headers).text)
    assert client.post("/api/v1/look", headers={"authorization": f"Bearer {CANARIES['operator']}"}).status_code == 202
    for token in (*CANARIES.values(), ""):
        for path in (
            "/metrics", "/healthz", "/readyz", "/api/v1/projects", "/api/v1/openapi.json", "/api/v1/projects/" + CANARIES["git"],
            *(f"/api/v1/projects/{name}{part}" for name in ("loud", "raises", "denied", "base", "elsewhere")
              for part in ("", "/plan", "/events?limit=500", "/history?limit=500") if token == CANARIES["viewer"]),
        ):  # fmt: skip
            answer = client.get(path, headers={"authorization": f"Bearer {token or 'none'}"})
            told.append(answer.text + str(answer.headers))
    service = client.get("/api/v1/projects/loud").json()["service"]["address"]
    answer = httpx.post(f"http://{service}/invocations", json={"inputs": [[0.0, 1.0]]}, timeout=30)
    assert answer.status_code == 200, answer.text
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=10) as rude:
        rude.sendall(f"GET /{CANARIES['viewer']} HTTP/9.9\r\n\r\n".encode())
        rude.recv(1000)


def _files(folder: Path, *, without: str = "") -> list[str]:
    """Everything in a folder (but for one of its folders), unpacked where it is packed."""
    found = []
    for path in folder.rglob("*"):
        if without and path.is_relative_to(folder / without):
            continue
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            found.append(f"{path}\n{content.decode(errors='replace')}")
    return found


def _objects(bench: Workbench) -> list[str]:
    """Every Git object of the status branch."""
    names = bench.git("rev-list", "--objects", "status/default").split("\n")
    return [bench.git("cat-file", "-p", line.split(" ")[0]) for line in names if line]
