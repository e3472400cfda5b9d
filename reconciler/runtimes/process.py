"""The process runtime: each service below a supervisor process of its own; nothing has to be set up.

A folder a service: `spec.json` (what was applied), `state.json` (what the supervisor last saw), `port` (kept for good),
`service.log`, `supervisor.log`, `control.sock`, `tmp`. The folder is the inventory; the processes are looked at, never assumed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import orjson
import psutil
from filelock import FileLock

import reconciler
from reconciler.digests import digest_of
from reconciler.errors import ServingError
from reconciler.runtimes.model import Service, ServiceSpec, Verify
from reconciler.runtimes.server_process import started

START_LIMIT = 15.0
STOP_LIMIT = 40.0
STALE_SECONDS = 30.0
"""A supervisor that has not touched its state for so long is stuck."""
_PASSED = ("PATH", "LANG", "LC_ALL", "TZ")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SEE_LOG = "See `flops logs --service`; the version before stays in service."
_CURES = {
    "FL7001": "Choose another port in `deployment.port`, or stop what uses it.",
    "FL7002": _SEE_LOG,
    "FL7003": _SEE_LOG,
    "FL7007": "It is started again. If that happens again and again, see whether the machine has enough memory (`dmesg`).",
}

State = Mapping[str, Any]


class ProcessRuntime:
    """Services as processes on this machine, listening on loopback; new ports are taken from `ports`, or are any free ones."""

    def __init__(self, root: Path, *, ports: range | None = None) -> None:
        self._root = root.absolute()
        self._ports = ports

    def observe(self) -> list[Service]:
        """Every service, from its supervisor's last word and whether that supervisor is alive; no requests are sent."""
        if not self._root.is_dir():
            return []
        return [self._observed(folder) for folder in sorted(self._root.iterdir()) if (folder / "spec.json").is_file()]

    def apply(self, spec: ServiceSpec, verify: Verify | None = None) -> Service:
        """Start or roll over; nothing when the service runs as declared. Raises ServingError; then what ran before still runs."""
        if spec.image is not None:
            raise ServingError(
                "FL7107",
                f"{spec.name} is declared with an image, but services run as processes here.",
                cure="Set `runtime: docker` in flops.yaml.",
            )
        folder = self._folder(spec.name)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root / f".{spec.name}.lock"):
            content = _content(spec)
            state = _state_or_told(folder)
            if state and state["spec_digest"] == content["digest"] and state["healthy"]:
                return self._service(folder)
            port = spec.port or self._kept_or_new_port(folder)
            with self._supervisor(folder) as channel:
                answer = channel.ask(
                    {"op": "prepare", "spec": content, "secrets": dict(spec.secrets), "port": port}, spec.start_timeout + STOP_LIMIT
                )
                if verify is not None:
                    verify(str(answer["address"]))  # when it raises, the connection ends and the supervisor discards
                channel.ask({"op": "promote"}, START_LIMIT)
            (folder / "port").write_text(str(port))
            return self._service(folder)

    def remove(self, name: str) -> None:
        """Let a service finish its requests, stop it and forget it."""
        folder = self._folder(name)
        if not folder.is_dir():
            return
        with FileLock(self._root / f".{name}.lock"):
            state = _state_or_told(folder)
            if state:
                with suppress(OSError, ServingError), _Channel(folder) as channel:
                    channel.ask({"op": "stop"}, START_LIMIT)
                _wait_gone(state)
                _kill(state)
            shutil.rmtree(folder, ignore_errors=True)

    def logs(self, name: str, lines: int = 200) -> Iterator[str]:
        """The last lines of a service's log."""
        folder = self._folder(name)
        found: list[str] = []
        for path in (folder / "service.log", folder / "service.log.1"):
            if len(found) < lines and path.is_file():
                found = path.read_text(errors="replace").splitlines() + found
        yield from found[-lines:] if lines else []

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ServingError(
                "FL7012", f"{name[:80]!r} cannot be a service's name.", cure="Use letters, digits, '-', '_' and '.'."
            )
        return self._root / name

    def _observed(self, folder: Path) -> Service:
        """A service; one whose records are damaged is there and not healthy, so that it is applied anew and harms no other."""
        try:
            return self._service(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Service(folder.name, "127.0.0.1:0", healthy=False, labels={}, error="Its records cannot be read.")

    def _service(self, folder: Path) -> Service:
        state = _state(folder)
        if state is None:
            spec = orjson.loads((folder / "spec.json").read_bytes())
            address = f"127.0.0.1:{_kept_port(folder) or 0}"
            return Service(folder.name, address, healthy=False, labels=_labels(spec), error="Its supervisor is not running.")
        stuck = _stuck(folder)
        return Service(
            name=folder.name,
            address=state["address"],
            healthy=bool(state["healthy"]) and not stuck,
            labels=_labels(state),
            pid=state["pid"],
            restarts=int(state["restarts"]),
            started_at=float(state["started_at"]),
            error="Its supervisor is stuck." if stuck else state["error"],
        )

    def _supervisor(self, folder: Path) -> _Channel:
        """A connection to the folder's supervisor; one that is dead, stuck or deaf is replaced."""
        state = _state(folder)
        if state and not _stuck(folder):
            with suppress(OSError):
                return _Channel(folder)
        if state:
            _kill(state)
        with suppress(FileNotFoundError):
            (folder / "state.json").unlink()
        with suppress(FileNotFoundError):
            (folder / "control.sock").unlink()
        root = Path(reconciler.__file__).parent.parent
        with (folder / "supervisor.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-E", "-s", "-S", "-m", "reconciler.runtimes.supervisor", str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=root,
                env={name: os.environ[name] for name in _PASSED if name in os.environ},
            )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError):
                return _Channel(folder)
            time.sleep(0.005)
        said = (folder / "supervisor.log").read_text(errors="replace")[-300:].strip()
        raise ServingError(
            "FL7005",
            f"The service's supervisor did not start. {said}".strip(),
            cure="See supervisor.log in its folder.",
            transient=True,
        )

    def _kept_or_new_port(self, folder: Path) -> int:
        """This service's port, chosen once; no other service of this runtime has it, running or not."""
        with FileLock(self._root / ".ports.lock"):
            kept = _kept_port(folder)
            if kept is None:
                taken = {_kept_port(other) for other in self._root.iterdir() if other.is_dir()}
                kept = next((port for port in self._candidates() if port not in taken and _is_free(port)), None)
                if kept is None:
                    raise ServingError(
                        "FL7013", f"All ports of {self._ports} are in use.", cure="Give a wider range in `ports` of flops.yaml."
                    )
                (folder / "port").write_text(str(kept))
            return kept

    def _candidates(self) -> Iterator[int]:
        if self._ports is not None:
            yield from self._ports
            return
        while True:
            with socket.create_server(("127.0.0.1", 0)) as found:
                port = int(found.getsockname()[1])
            yield port


class _Channel:
    """A connection to a supervisor. What was prepared over it and not promoted is discarded when it ends. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START_LIMIT)
        # Paths of Unix sockets end at 108 bytes; one relative to an open folder does not.
        descriptor = os.open(folder, os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{descriptor}/control.sock")
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # Wait for the supervisor's end of the connection: then it has discarded, and the one before is in service again.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(START_LIMIT)
            self._socket.recv(1)
        self._socket.close()

    @property
    def peer(self) -> int:
        """The supervisor's process id, as the kernel knows it."""
        pid, _, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)

    def ask(self, request: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The answer within `limit` seconds. Raises ServingError for a refusal or when there is none."""
        try:
            self._socket.settimeout(limit)
            self._socket.sendall(orjson.dumps(request) + b"\n")
            data = b""
            while not data.endswith(b"\n") and (part := self._socket.recv(65536)):
                data += part
            answer: dict[str, Any] = orjson.loads(data)
        except (OSError, orjson.JSONDecodeError) as error:
            raise ServingError(
                "FL7006", f"The service's supervisor does not answer: {error}.", cure="The next try starts it anew.", transient=True
            ) from error
        if not answer["ok"]:
            raise _refusal(answer, request)
        return answer


def _labels(record: Mapping[str, Any]) -> dict[str, str]:
    """A record's labels. Raises ValueError for what cannot be those of a service."""
    found = dict(record["labels"].items())
    if not all(isinstance(text, str) for item in found.items() for text in item):
        raise ValueError("labels")
    return found


def _refusal(answer: Mapping[str, Any], request: Mapping[str, Any]) -> ServingError:
    code = str(answer["code"])
    cause = str(answer["message"]).rstrip(".")
    if code == "FL7001":
        cause += _holder(int(request["port"]))
    said = " / ".join([line.strip() for line in str(answer.get("log", "")).splitlines() if line.strip()][-3:])[-400:]
    text = f"{cause[:1].upper()}{cause[1:]}." + (f" It said: {said}" if said else "")
    return ServingError(code, text, cure=_CURES.get(code, "Please report it."), transient=code in {"FL7001", "FL7007"})


def _holder(port: int) -> str:
    """Who listens on a port, as far as the system shows it."""
    with suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr[1:] == (port,) and found.pid:
                command = " ".join(psutil.Process(found.pid).cmdline())[:100]
                return f"; process {found.pid} listens there: {command}"
    return ""


def _content(spec: ServiceSpec) -> dict[str, Any]:
    content = {field.name: getattr(spec, field.name) for field in fields(spec)}
    # Of secrets the names alone: this is what is written down.
    content |= {"cwd": str(spec.cwd), "env": dict(spec.env), "labels": dict(spec.labels), "secrets": sorted(spec.secrets)}
    if not spec.secrets:
        del content["secrets"]  # what runs without any need not start again for a key that came later
    digest = digest_of(content)
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ} | dict(spec.env)
    return content | {"env": environment, "digest": digest}


def _state(folder: Path) -> State | None:
    """What a live supervisor last wrote; None without one. A reused process id is told by its start time."""
    try:
        state: dict[str, Any] = orjson.loads((folder / "state.json").read_bytes())
        begun = started(int(state["supervisor"]))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return state if begun == state["supervisor_started"] else None


def _state_or_told(folder: Path) -> State | None:
    """The same; a supervisor whose record is gone or damaged is asked to write it anew, and ended if it does not.

    Otherwise it would go on beside its successor, and both would write to one folder.
    """
    state = _state(folder)
    if state is None:
        with suppress(OSError), _Channel(folder) as channel:
            try:
                channel.ask({"op": "tell"}, START_LIMIT)
            except ServingError:
                os.kill(channel.peer, signal.SIGKILL)
        state = _state(folder)
    return state


def _stuck(folder: Path) -> bool:
    with suppress(OSError):
        return time.time() - (folder / "state.json").stat().st_mtime > STALE_SECONDS
    return False


def _kept_port(folder: Path) -> int | None:
    try:
        return int((folder / "port").read_text())
    except (OSError, ValueError):
        return None


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _is_there(state: State) -> bool:
    try:
        return started(int(state["supervisor"])) == str(state["supervisor_started"])
    except (OSError, IndexError):
        return False


def _kill(state: State) -> None:
    if _is_there(state):
        os.kill(int(state["supervisor"]), signal.SIGKILL)
        _wait_gone(state)


def _wait_gone(state: State) -> None:
    deadline = time.monotonic() + STOP_LIMIT
    while _is_there(state) and time.monotonic() < deadline:
        time.sleep(0.01)
