"""The process runtime: each service below a supervisor process of its own; nothing has to be set up.

A folder a service: `spec.json` (what was applied), `state.json` (what the supervisor last saw), `port` (kept for good),
`service.log`, `control.sock`. The folder is the inventory; the processes are looked at, never assumed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
from filelock import FileLock

from reconciler.digests import digest_of
from reconciler.errors import ServingError
from reconciler.runtimes import supervisor
from reconciler.runtimes.model import Service, ServiceSpec, Verify

START_LIMIT = 15.0
STOP_LIMIT = 40.0
_PASSED = ("PATH", "LANG", "LC_ALL", "TZ")
_CURES = {
    "FL7001": "Choose another port in `deployment.port`, or stop what uses it.",
    "FL7002": "See `flops logs --service`; the version before stays in service.",
    "FL7003": "See `flops logs --service`; the version before stays in service.",
    "FL7004": "Please report it.",
}


class ProcessRuntime:
    """Services as processes on this machine, listening on loopback."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def observe(self) -> list[Service]:
        """Every service, from its supervisor's last word and whether that supervisor is alive."""
        if not self._root.is_dir():
            return []
        return [self._service(folder) for folder in sorted(self._root.iterdir()) if (folder / "spec.json").is_file()]

    def apply(self, spec: ServiceSpec, verify: Verify | None = None) -> Service:
        """Start or roll over. Raises ServingError; then what ran before still runs."""
        folder = self._root / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        digest = digest_of([spec.argv, dict(spec.env), str(spec.cwd), spec.port, dict(spec.labels), spec.socket])
        with FileLock(self._root / f".{spec.name}.lock"):
            state = self._state(folder)
            if state and state["spec_digest"] == digest and state["healthy"]:
                return self._service(folder)
            port = spec.port or _kept_port(folder) or _free_port()
            content = self._content(spec, digest)
            if not state:
                self._start_supervisor(folder)
            answer = self._ask(folder, {"op": "prepare", "spec": content, "port": port}, spec.start_timeout + START_LIMIT)
            if verify is not None:
                try:
                    verify(str(answer["address"]))
                except BaseException:
                    self._ask(folder, {"op": "discard"}, START_LIMIT)
                    raise
            self._ask(folder, {"op": "promote"}, START_LIMIT)
            (folder / "port").write_text(str(port))
            (folder / "spec.json").write_bytes(orjson.dumps(content))
            return self._service(folder)

    def remove(self, name: str) -> None:
        """Stop and forget a service."""
        folder = self._root / name
        if not folder.is_dir():
            return
        with FileLock(self._root / f".{name}.lock"):
            state = self._state(folder)
            if state:
                self._ask(folder, {"op": "stop"}, START_LIMIT)
                _wait_gone(int(state["supervisor"]))
            shutil.rmtree(folder, ignore_errors=True)

    def logs(self, name: str, lines: int = 200) -> Iterator[str]:
        """The last lines of a service's log."""
        path = self._root / name / "service.log"
        if path.is_file():
            yield from path.read_text(errors="replace").splitlines()[-lines:]

    def _service(self, folder: Path) -> Service:
        state = self._state(folder)
        if state:
            return Service(
                name=folder.name,
                address=state["address"],
                healthy=bool(state["healthy"]),
                labels=state["labels"],
                pid=state["pid"],
                restarts=int(state["restarts"]),
                started_at=float(state["started_at"]),
                error=state["error"],
            )
        spec = orjson.loads((folder / "spec.json").read_bytes())
        address = f"127.0.0.1:{_kept_port(folder) or 0}"
        return Service(folder.name, address, healthy=False, labels=spec["labels"], error="its supervisor is not running")

    @staticmethod
    def _state(folder: Path) -> Mapping[str, Any] | None:
        """What a live supervisor last wrote; None without one. A reused process id is told by its start time."""
        try:
            state: dict[str, Any] = orjson.loads((folder / "state.json").read_bytes())
            started = supervisor.started(int(state["supervisor"]))
        except (OSError, orjson.JSONDecodeError, KeyError, ValueError):
            return None
        return state if started == state["supervisor_started"] else None

    def _start_supervisor(self, folder: Path) -> None:
        (folder / "state.json").unlink(missing_ok=True)
        (folder / "control.sock").unlink(missing_ok=True)
        with (folder / "supervisor.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-E", "-S", supervisor.__file__, str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={name: os.environ[name] for name in _PASSED if name in os.environ},
            )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT
        while not (folder / "control.sock").exists():
            if time.monotonic() > deadline:
                raise ServingError(
                    "FL7005", "The service's supervisor did not start.", cure="See supervisor.log in its folder.", transient=True
                )
            time.sleep(0.01)

    def _ask(self, folder: Path, request: Mapping[str, Any], limit: float) -> dict[str, Any]:
        try:
            with _connect(folder / "control.sock", limit) as channel:
                channel.sendall(orjson.dumps(request) + b"\n")
                data = b""
                while not data.endswith(b"\n"):
                    part = channel.recv(65536)
                    if not part:
                        break
                    data += part
            answer: dict[str, Any] = orjson.loads(data)
        except (OSError, orjson.JSONDecodeError) as error:
            raise ServingError(
                "FL7006", f"The service's supervisor does not answer: {error}.", cure="It is started anew.", transient=True
            ) from error
        if not answer["ok"]:
            code = str(answer["code"])
            tail = [line for line in str(answer.get("log", "")).splitlines() if line.strip()][-3:]
            said = f" It said: {' / '.join(tail)[-400:]}." if tail else ""
            message = str(answer["message"])
            cause = message[:1].upper() + message[1:] + ("" if message.endswith(".") else ".") + said
            raise ServingError(code, cause, cure=_CURES.get(code, "Please report it."), transient=code == "FL7001")
        return answer

    @staticmethod
    def _content(spec: ServiceSpec, digest: str) -> dict[str, Any]:
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ} | dict(spec.env)
        return {
            "name": spec.name,
            "argv": list(spec.argv),
            "env": environment,
            "cwd": str(spec.cwd),
            "health_path": spec.health_path,
            "labels": dict(spec.labels),
            "socket": spec.socket,
            "start_timeout": spec.start_timeout,
            "digest": digest,
        }


def _connect(path: Path, limit: float) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(limit)
    # Paths of Unix sockets end at 108 bytes; one relative to an open folder does not.
    descriptor = os.open(path.parent, os.O_PATH)
    try:
        channel.connect(f"/proc/self/fd/{descriptor}/{path.name}")
    finally:
        os.close(descriptor)
    return channel


def _kept_port(folder: Path) -> int | None:
    try:
        return int((folder / "port").read_text())
    except (OSError, ValueError):
        return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _wait_gone(pid: int) -> None:
    try:
        process = psutil.Process(pid)
        process.wait(STOP_LIMIT)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        process.kill()
