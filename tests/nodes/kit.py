"""Real federations on this machine: Flower's SuperLink over TLS, nodes as the processes that `flops node join` starts."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from reconciler.digests import digest_of
from reconciler.federation.training import ClusterShare, TrainingEvent, TrainingJob, TrainingResult, run_training
from reconciler.nodes import certificates, fab, keys, superlink_server
from reconciler.nodes.clusters import grouped
from reconciler.nodes.data import NodeData
from reconciler.nodes.relay import Candidate, Relay
from reconciler.nodes.superlink import Access, SuperLink
from reconciler.spec.training import Cluster

REPO = Path(__file__).parent.parent / "federation" / "repos" / "digits"
_KEPT = ("PATH", "LANG", "HOME", "TMPDIR", "DOCKER_HOST", "SSL_CERT_FILE", "UV_FIND_LINKS")
LOCK = ("3.11", "numpy==0 # the environment of the tests\n")


def eventually(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.05) -> Any:
    """What the condition gives once it holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(every)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def write_rows(path: Path, rows: int, seed: int) -> Path:
    """Three blobs in eight dimensions, as Parquet."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    x = np.random.default_rng(0).normal(0, 1.2, (3, 8))[labels] + random.normal(0, 1, (rows, 8))
    pa.parquet.write_table(pa.table({"x": x.tolist(), "y": labels}), path)
    return path


def make_relay(access: Access, *arguments: Any, **more: Any) -> Relay:
    return Relay(SuperLink(access), *arguments, **more)


@dataclass
class Seen:
    """How many learners trained in each round."""

    learners: list[int] = field(default_factory=list)

    def __call__(self, event: TrainingEvent) -> None:
        if event.kind == "round":
            self.learners.append(int(event.data["result"]["learners_fit"]))


def slow(repo: Path, seconds: float) -> None:
    """Lets a learner's training take its time, so that there is a round to disturb."""
    path = repo / "model_manager.py"
    path.write_text(
        path.read_text().replace("for _ in range(10):", f"__import__('time').sleep({seconds})\n        for _ in range(10):")
    )


@dataclass
class Process:
    """A process of the test, in a network namespace or not, with its log."""

    command: list[str]
    log: Path
    cwd: Path
    env: dict[str, str]
    netns: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        prefix = ["ip", "netns", "exec", self.netns] if self.netns else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *self.command], cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            self.process.wait(30)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


def idle_job(root: Path) -> TrainingJob:
    """A training of three rounds that nobody takes part in yet."""
    values: dict[str, Any] = {
        "project": "digits", "digest": "cd" * 32, "customer": "me", "repo_dir": REPO, "python": Path(sys.executable),
        "shards": (), "holdout": None, "run_dir": root / "run", "flavor": "sklearn", "rounds": 3, "seed": 1,
        "min_available": 1, "min_fit": 1, "min_evaluate": 1, "fraction_fit": 1.0, "strategy_name": "fedavg",
        "strategy_arguments": {}, "round_timeout": 60.0, "memory_mb": 200, "vcpus": 1, "metric": "accuracy",
        "direction": "max",
    }  # fmt: skip
    return TrainingJob(**values)


@dataclass
class Federation:
    """A SuperLink and its nodes. `listen` is what nodes connect to."""

    root: Path
    host: str = "127.0.0.1"
    netns: str = ""
    port: int = field(default_factory=free_port)
    operator_port: int = field(default_factory=free_port)
    nodes: dict[str, Process] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    allowed: dict[str, bytes] = field(default_factory=dict)
    events: list[TrainingEvent] = field(default_factory=list)
    lock: tuple[str, str] = LOCK
    cache: Path | None = None
    """Where nodes keep environments and layers; below `root` unless several federations share it."""
    flavor: str = "sklearn"
    python: Path = Path(sys.executable)
    """Of the environment that the lock is said to give."""
    memory_mb: int = 200

    def __post_init__(self) -> None:
        self.folder = self.root / "superlink"
        certificates.ensure(self.folder, [self.host, "localhost"], datetime.datetime.now(datetime.UTC))
        self.secret = secrets.token_urlsafe(32)
        (self.folder / "operator.secret").write_text(self.secret)
        script = str(Path(superlink_server.__file__))
        (self.folder / superlink_server.ALLOWED).write_text("{}")
        self.server = Process(
            [sys.executable, "-P", script, "--listen", f"{self.host}:{self.port}", "--port", str(self.operator_port)],
            self.root / "superlink.log", self.folder, self._env(), self.netns,
        )  # fmt: skip
        self.bridge: Process | None = None
        self.cache = self.cache or self.root / "cache"
        environment = self.cache / "environments" / "envs" / digest_of(list(self.lock))[:32]
        (environment / "bin").mkdir(parents=True, exist_ok=True)
        (environment / ".complete").write_text("")
        # The environment of the tests' lock is the one that the tests run in, unless they say another one.
        (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec {self.python} "$@"\n')
        (environment / "bin" / "python").chmod(0o755)

    def _env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return {**kept, "FLWR_TELEMETRY_ENABLED": "0", "FLOPS_CACHE": str(self.cache), "PYTHONUNBUFFERED": "1"}

    def start(self) -> Federation:
        self.server.start()
        eventually(self.healthy)
        return self

    def bridge_operator(self) -> int:
        """For a SuperLink in a namespace: its operator's port, reached from here through a Unix socket.

        Sockets of the file system know no network namespaces; `socat` is not needed for two loops of a few lines.
        """
        path = self.root / "operator.sock"
        self.bridge = Process(
            [sys.executable, str(Path(__file__).with_name("bridge.py")), str(path), str(self.operator_port)],
            self.root / "bridge.log", self.root, self._env(), self.netns,
        ).start()  # fmt: skip
        eventually(path.exists)
        from tests.nodes.bridge import serve_tcp

        return serve_tcp(path)

    def healthy(self) -> bool:
        assert self.server.process is not None
        assert self.server.process.poll() is None, self.server.said()
        try:
            return httpx.get(f"http://127.0.0.1:{self.operator_port}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def access(self) -> Access:
        return Access(f"127.0.0.1:{self.operator_port}", self.secret, insecure=True)

    def superlink(self) -> SuperLink:
        return SuperLink(self.access())

    def node(
        self, name: str, *, tags: str = "blobs", rows: int = 200, allow: bool = True, seed: int | None = None, netns: str = "",
        declared_tags: Sequence[str] | None = None, data: Path | None = None, partition: tuple[int, int] = (0, 1),
        test_fraction: float = 0.0,
        cluster: str = "", says: str = "", options: Sequence[str] = (),
    ) -> Process:  # fmt: skip
        """A node with its own key and data; allowed and declared for its tags unless it is not to be."""
        folder = self.root / name
        folder.mkdir()
        public = keys.public_bytes(keys.generate(folder / "node.key"))
        place = data or folder / "data"
        if data is None:
            source = write_rows(folder / "rows.parquet", rows, seed if seed is not None else len(self.nodes) + 1)
            NodeData(place).add(source, name="rows", tags=tags.split(","), test_fraction=test_fraction)
        if allow:
            self.allowed[name] = public
            (self.folder / superlink_server.ALLOWED).write_text(
                json.dumps({known: key.decode() for known, key in self.allowed.items()})
            )
            self.superlink().allow(self.allowed)
            if set(declared_tags if declared_tags is not None else tags.split(",")) & {"blobs"}:
                self.candidates[name] = Candidate(name, cluster, public)
        self.nodes[name] = Process(
            [
                sys.executable, "-m", "reconciler.cli", "node", "join", "--superlink", f"{self.host}:{self.port}",
                "--data", str(place), "--tags", tags, "--root-certificates", str(self.folder / "ca.pem"),
                "--key", str(folder / "node.key"), "--partition-id", str(partition[0]), "--num-partitions", str(partition[1]),
                "--cluster", says, *options,
            ],
            folder / "node.log", folder, self._env(), netns,
        )  # fmt: skip
        return self.nodes[name]

    def relay(
        self, digest: str = "cd" * 32, repo: Path = REPO, setup: float = 120.0, clusters: Sequence[Cluster] | None = None,
        privacy: Mapping[str, Any] | None = None,
    ) -> Relay:  # fmt: skip
        """The way to the nodes; with (any number of) clusters that of a hierarchical run."""
        return self.relay_maker(digest, repo, setup, clusters, privacy)()

    def relay_maker(
        self, digest: str = "cd" * 32, repo: Path = REPO, setup: float = 120.0, clusters: Sequence[Cluster] | None = None,
        privacy: Mapping[str, Any] | None = None,
    ) -> Callable[[], Relay]:  # fmt: skip
        """The same for another process."""
        spec = fab.LearnerSpec(
            digest, "digits", self.flavor, 1, ("blobs",), self.memory_mb, 1, setup, *self.lock, privacy
        )  # fmt: skip
        declared = {name: candidate.cluster for name, candidate in self.candidates.items()}
        found = None if clusters is None else grouped(declared, clusters, self.allowed, "tests")
        candidates = list(self.candidates.values())
        record = self.root / "runs" / f"{digest}.json"
        keys = partial(dict, self.allowed)  # unlike a lambda it goes to the other process
        return partial(make_relay, self.access(), candidates, keys, fab.build(repo, spec), digest, record, clusters=found)

    def job(self, nodes: int, **changes: Any) -> TrainingJob:
        numbers = {"min_available": nodes, "min_fit": nodes, "min_evaluate": nodes}
        kind = {"flavor": self.flavor, "python": self.python, "memory_mb": self.memory_mb}
        return replace(idle_job(self.root), **{**numbers, **kind, **changes})

    def train(
        self, nodes: int, on_event: Callable[[TrainingEvent], None] = lambda _: None, relay: Relay | None = None,
        cancelled: Callable[[], bool] = lambda: False, **changes: Any,
    ) -> TrainingResult:  # fmt: skip
        def both(event: TrainingEvent) -> None:
            self.events.append(event)
            on_event(event)

        relay = relay or self.relay()
        if relay.clusters is not None:
            changes = {"clusters": tuple(ClusterShare(name, count) for name, count in relay.clusters.sizes()), **changes}
        return run_training(self.job(nodes, **changes), on_event=both, cancelled=cancelled, link=relay)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def stop(self) -> None:
        for process in [*self.nodes.values(), self.server, *([self.bridge] if self.bridge else [])]:
            process.kill(signal.SIGTERM if process is not self.server else signal.SIGKILL)
