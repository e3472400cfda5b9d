"""Flower's own SuperLink, as an operator would have it already: `flower-superlink` over TLS with authenticated nodes."""

from __future__ import annotations

import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from reconciler.nodes import keys
from reconciler.nodes.relay import Candidate
from reconciler.nodes.superlink import Access
from tests.nodes.kit import Federation, Process, free_port

EXECUTABLES = Path(sys.executable).parent


@dataclass
class StockFederation(Federation):
    """A federation whose SuperLink is none of ours; `secret_file` has its SuperExec secret, where there is one."""

    with_secret: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.secret_file = self.root / "superexec.secret"
        self.secret_file.write_text(self.secret)
        self.secret_file.chmod(0o600)
        guarded = ["--superexec-auth-secret-file", str(self.secret_file)] if self.with_secret else []
        self.server = Process(
            [
                str(EXECUTABLES / "flower-superlink"), "--host", self.host, "--port", str(self.port), "--isolation", "process",
                "--ssl-ca-certfile", str(self.folder / "ca.pem"), "--ssl-certfile", str(self.folder / "server.pem"),
                "--ssl-keyfile", str(self.folder / "server.key"), "--enable-supernode-auth", *guarded,
            ],
            self.root / "superlink.log", self.folder, {**self._env(), "FLWR_HOME": str(self.root / "flwr")}, self.netns,
        )  # fmt: skip

    def healthy(self) -> bool:
        assert self.server.process is not None
        assert self.server.process.poll() is None, self.server.said()
        trust = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        try:
            return httpx.get(f"https://{self.host}:{self.port}/health", verify=trust).status_code == 200
        except httpx.HTTPError:
            return False

    def access(self) -> Access:
        secret = self.secret_file.read_bytes() if self.with_secret else None
        trusted = (self.folder / "ca.pem").read_bytes()
        return Access(f"{self.host}:{self.port}", root_certificates=trusted, superexec_secret=secret)

    def supernode(self, name: str) -> Process:
        """Flower's own SuperNode with a key of its own, declared and allowed for the tags of the tests."""
        folder = self.root / name
        folder.mkdir()
        public = keys.public_bytes(keys.generate(folder / "node.key"))
        self.allowed[name] = public
        self.superlink().allow(self.allowed)
        self.candidates[name] = Candidate(name, "", public)
        self.nodes[name] = Process(
            [
                str(EXECUTABLES / "flower-supernode"), "--superlink", f"{self.host}:{self.port}", "--root-certificates",
                str(self.folder / "ca.pem"), "--auth-supernode-private-key", str(folder / "node.key"), "--port", str(free_port()),
            ],
            folder / "node.log", folder, {**self._env(), "PATH": f"{EXECUTABLES}:/usr/bin:/bin", "FLWR_HOME": str(folder / "flwr")},
        )  # fmt: skip
        return self.nodes[name]
