"""A federation as the reconciler has it: its SuperLink (a service of ours, or another's by address) and its declared nodes.

Who may take part stands in the GitOps repo: the keys of `nodes/*.yaml` of this federation, and no others, are registered; which
of them a run may ask follows from the declared tags and clusters. What a node says of itself can only make that less.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from reconciler.digests import digest_of
from reconciler.errors import SpecError, SpecErrors, TrainingError
from reconciler.nodes import SUPERLINK, certificates, fab
from reconciler.nodes.clusters import grouped
from reconciler.nodes.keys import fingerprint
from reconciler.nodes.relay import Candidate, Relay
from reconciler.nodes.superlink import Access, SuperLink
from reconciler.nodes.superlink_server import ALLOWED, REFUSED, SECRET
from reconciler.runtimes.model import Runtime, ServiceSpec
from reconciler.spec.loader import load_node
from reconciler.spec.models import NodeDeclaration
from reconciler.spec.operator import FederationConfig
from reconciler.spec.training import Cluster


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One line of `flops nodes`. `rows` is what it had in its last run, 0 if it was in none; `last_seen` 0 for never."""

    name: str
    cluster: str
    tags: tuple[str, ...]
    connected: bool
    last_seen: float
    rows: int
    fingerprint: str


def declared(files: Mapping[str, tuple[str, bytes]], federation: str) -> dict[str, NodeDeclaration]:
    """The nodes of a federation out of (path, content) by name. Raises SpecErrors with all that is wrong."""
    found: dict[str, NodeDeclaration] = {}
    errors: list[SpecError] = []
    for name, (path, content) in sorted(files.items()):
        try:
            node = load_node(content, path)
        except SpecErrors as refused:
            errors += refused.errors
            continue
        if node.federation == federation:
            found[name] = node
    if errors:
        raise SpecErrors(errors)
    keys = [node.public_key for node in found.values()]
    if len(set(keys)) < len(keys):
        raise TrainingError("FL5810", "Two nodes are declared with the same key.", cure="Each node makes a key of its own.")
    return found


class Federation:
    """One federation, with the nodes that a commit declares. Starts nothing before it is asked for something."""

    def __init__(
        self,
        name: str,
        config: FederationConfig,
        nodes: Mapping[str, NodeDeclaration],
        folder: Path,
        runtime: Runtime,
        *,
        instance: str = "default",
    ) -> None:
        self.name = name
        self._config = config
        self._nodes = dict(nodes)
        self._folder = folder.resolve()
        self._runtime = runtime
        self._instance = instance

    @property
    def ours(self) -> bool:
        """Whether the SuperLink is a service of this reconciler."""
        return self._config.superlink is None

    @property
    def authority(self) -> Path | None:
        """The certificate that nodes need to trust the SuperLink; None where the system's do."""
        if not self.ours:
            return Path(self._config.root_certificates) if self._config.root_certificates else None
        return certificates.ensure(self._folder, self._config.hosts, datetime.datetime.now(datetime.UTC))

    def declare(self) -> str:
        """Writes down that the declared keys, and no others, are allowed from now on; what is equal as long as nothing changes."""
        content = json.dumps({name: node.public_key for name, node in sorted(self._nodes.items())})
        with self._lock():
            if self._written() != content:
                self._private(ALLOWED, content)
        return digest_of([content, self._config.model_dump(mode="json")])

    def allowed(self) -> dict[str, bytes]:
        """The keys that are allowed now, by node name: those that were declared last, by whichever commit."""
        content = self._written()
        if content is None:
            self.declare()
            return self.allowed()
        return {str(name): str(key).encode() for name, key in json.loads(content).items()}

    def take_up(self) -> None:
        """Makes the SuperLink run, if it is ours, and the allowed keys those that it knows. Raises TrainingError, ServingError."""
        link = self.superlink()
        try:
            link.allow(self.allowed())
        finally:
            link.close()

    def superlink(self) -> SuperLink:
        """The SuperLink; started if it is ours. Raises TrainingError, ServingError."""
        return SuperLink(self._access())

    def link(self, repo_dir: Path, spec: fab.LearnerSpec, wanted: Sequence[Cluster] | None = None) -> Relay:
        """The way to the learners of a run; of a hierarchical one with the `wanted` clusters, all that are declared if none is."""
        tags = set(spec.data_tags)
        candidates = [
            Candidate(name, node.cluster, node.public_key.encode()) for name, node in self._nodes.items() if tags & set(node.tags)
        ]
        if not candidates:
            raise TrainingError(
                "FL5813",
                f"No node of the federation {self.name!r} is declared for the tags {', '.join(sorted(tags)) or '(none)'}.",
                cure="Add the tag to a file in nodes/, or correct training_configuration.data_tags.",
                transient=True,  # a node that is declared changes no project's content
            )
        clusters = None
        if wanted is not None:
            grouping = {candidate.name: candidate.cluster for candidate in candidates}
            clusters = grouped(grouping, wanted, set(self._nodes), self.name)
        record = self._folder / "runs" / f"{spec.digest}.json"
        bundle, link, on_rows = fab.build(repo_dir, spec), self.superlink(), self._keep_rows
        return Relay(link, candidates, self.allowed, bundle, spec.digest, record, on_rows=on_rows, clusters=clusters)

    def rows(self) -> list[NodeRow]:
        """Every declared node and what is known of it."""
        if not self._nodes:
            return []  # the SuperLink, which may have to be started to be asked, knows nothing of none
        link = self.superlink()
        members = {member.name: member for member in link.members()}
        link.close()
        counted = self._rows()
        found = []
        for name, node in sorted(self._nodes.items()):
            member = members.get(name)
            found.append(
                NodeRow(
                    name, node.cluster, tuple(node.tags), bool(member and member.connected),
                    member.last_seen if member else 0.0, counted.get(name, 0), fingerprint(node.public_key.encode()),
                )
            )  # fmt: skip
        return found

    def refused(self, since: float) -> list[tuple[float, str, str]]:
        """(time, key, address) of nodes that our SuperLink refused after a time."""
        try:
            lines = (self._folder / REFUSED).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was cut off is left out
                entry = json.loads(line)
                found.append((float(entry["at"]), str(entry["key"]), str(entry["from"])))
        return [entry for entry in found if entry[0] >= since]

    def _access(self) -> Access:
        if not self.ours:
            return self._others()
        self.allowed()  # the file is there before the SuperLink reads it
        with self._lock():
            certificates.ensure(self._folder, self._config.hosts, datetime.datetime.now(datetime.UTC))
            if not (self._folder / SECRET).is_file():
                self._private(SECRET, secrets.token_urlsafe(32))
            # It reads its certificate once: another one is another version of the service.
            certificate = sha256((self._folder / certificates.SERVER).read_bytes()).hexdigest()
        spec = superlink_service(self.name, self._folder, self._config.listen, self._instance, certificate)
        service = self._runtime.apply(spec)
        if not service.healthy:
            raise TrainingError(
                "FL5801", f"The SuperLink of federation {self.name!r} does not answer.", cure="It is started again.", transient=True
            )
        return Access(service.address, (self._folder / SECRET).read_text().strip(), insecure=True)

    def _others(self) -> Access:
        config = self._config
        try:
            root = Path(config.root_certificates).read_bytes() if config.root_certificates else None
            # As Flower reads it: a newline at the end is part of the secret.
            secret = Path(config.superexec_secret_file).read_bytes() if config.superexec_secret_file else None
        except OSError as error:
            raise TrainingError(
                "FL5809", f"A file of the federation {self.name!r} cannot be read: {error.strerror}.", cure="Correct flops.yaml."
            ) from error
        return Access(str(config.superlink), root_certificates=root, superexec_secret=secret)

    def _lock(self) -> FileLock:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(self._folder / ".lock")

    def _written(self) -> str | None:
        try:
            return (self._folder / ALLOWED).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _private(self, name: str, content: str) -> None:
        """Writes a file for its owner only; to be called with the lock."""
        temporary = self._folder / f".{name}.partial"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        temporary.replace(self._folder / name)

    def _rows(self) -> dict[str, int]:
        try:
            return {str(name): int(rows) for name, rows in json.loads((self._folder / "rows.json").read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _keep_rows(self, rows: Mapping[str, int]) -> None:
        with self._lock():
            self._private("rows.json", json.dumps(self._rows() | dict(rows)))


def superlink_service(name: str, folder: Path, listen: str, instance: str, certificate: str) -> ServiceSpec:
    """The service that is a federation's SuperLink: Fleet API on `listen`, everything else on a loopback port.

    `certificate` is the digest of the one that it shows.
    """
    return ServiceSpec(
        name=f"{SUPERLINK}-{name}",
        argv=(
            sys.executable, "-P", str(Path(__file__).with_name("superlink_server.py")), "--listen", listen, "--port", "{port}",
        ),
        cwd=folder,
        env={"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(folder / "flwr"), "DO_NOT_TRACK": "true"},
        health_path="/health",
        labels={"flops.kind": SUPERLINK, "flops.federation": name, "flops.instance": instance, "flops.certificate": certificate},
        socket="own",
        start_timeout=120,
    )  # fmt: skip


def ago(seconds: float, now: float | None = None) -> str:
    """A time as people say it."""
    if not seconds:
        return "never"
    passed = max(0.0, (time.time() if now is None else now) - seconds)
    for size, word in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if passed >= size:
            return f"{passed / size:.0f} {word} ago"
    return f"{passed:.0f} s ago"
