"""What an operator needs, looked at one by one: each check is independent, changes nothing, and says cause and cure.

It must work where nothing else does, so it opens no engine: a damaged journal is reported here, while the loop would replace it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import httpx

from reconciler.environments.interpreters import interpreters
from reconciler.errors import FlopsError, SecretError, SpecErrors
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry
from reconciler.lease import holder_is_dead
from reconciler.notify.targets import look_at
from reconciler.redaction import MIN_LENGTH
from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.docker import uses_containers
from reconciler.runtimes.docker_engine import DockerEngine
from reconciler.runtimes.docker_leftovers import leftovers
from reconciler.secrets import resolve
from reconciler.source import GitRepo, command
from reconciler.source.git import REMOTE
from reconciler.spec import OperatorConfig
from reconciler.spec.notify import NotifyTarget

GIGABYTE = 1_000_000_000
LEAST_DISK, GOOD_DISK = 1 * GIGABYTE, 5 * GIGABYTE
FUTURE_SECONDS = 300.0
LIMIT_SECONDS = 15.0
ReadConfig = Callable[[Path], OperatorConfig]


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `code` and `cure` are empty when all is well."""

    check: str
    level: Level
    message: str
    code: str = ""
    cure: str = ""


Check = Callable[[], Finding]


@dataclass(slots=True)
class Doctor:
    """The checks of one clone, its state directory and the cache. `clock` is seconds since the epoch."""

    path: Path
    state: Path
    cache: Path
    read_config: ReadConfig
    clock: Callable[[], float]
    connect: Callable[[str], Registry] = Registry
    is_dead: Callable[[str], bool] = holder_is_dead
    config: OperatorConfig = field(default_factory=OperatorConfig)
    _repo: GitRepo | None = None

    def examine(self) -> Iterator[Finding]:
        """Every finding, in the order in which trouble is best mended. Never raises."""
        for name, check in self._checks():
            yield self._safely(name, check)
        # After the settings were read: one for each.
        for target in self.config.notify:
            yield self._safely(f"notify {target.name}", partial(self._notify, target))

    def _checks(self) -> Sequence[tuple[str, Check]]:
        return (
            ("git", self._git),
            ("settings", self._settings),
            ("remote", self._remote),
            ("status branch", self._status_branch),
            ("clock", self._clock),
            ("state disk", lambda: self._disk("state disk", self.state)),
            ("cache disk", lambda: self._disk("cache disk", self.cache)),
            ("journal", self._journal),
            ("lease", self._lease),
            ("tracking", self._tracking),
            ("python", self._python),
            ("engine", self._engine),
            ("leftovers", self._leftovers),
            ("registry", self._registry),
            ("ports", self._ports),
            ("sandbox", self._sandbox),
            ("secrets", self._secrets),
        )

    def _safely(self, name: str, check: Check) -> Finding:
        try:
            return check()
        except SpecErrors as errors:
            return _failed(name, errors.errors[0])
        except FlopsError as error:
            return _failed(name, error)
        except (OSError, sqlite3.Error, httpx.HTTPError, subprocess.SubprocessError) as error:
            cure = "Mend what it names; the other checks went on."
            return Finding(name, Level.FAIL, f"The check could not be made: {error}.", "FL9201", cure)

    def _git(self) -> Finding:
        self._repo = GitRepo(self.path)
        return Finding("git", Level.OK, command.text(self._repo.path, "version"))

    def _settings(self) -> Finding:
        self.config = self.read_config(self._repo.path if self._repo else self.path)
        return Finding("settings", Level.OK, f"instance {self.config.instance}, branch {self.config.branch}")

    def _remote(self) -> Finding:
        repo = self._repo
        if repo is None:
            return _skipped("remote")
        if not repo.has_remote:
            cure = f"Add a remote called {REMOTE} to share what is declared and its status."
            return Finding("remote", Level.WARN, "The clone has no remote.", "FL9202", cure)
        ref = f"refs/heads/{self.config.branch}"
        done = command.attempt(
            repo.path, "ls-remote", "--end-of-options", REMOTE, ref, env=repo.protocols, limit=LIMIT_SECONDS
        )  # fmt: skip
        if done.code:
            return Finding("remote", Level.FAIL, f"The remote does not answer: {done.reason}.", "FL9203", command.CREDENTIALS_CURE)
        if not done.out.strip():
            cure = "Push it, or set `branch` in flops.yaml."
            return Finding("remote", Level.FAIL, f"The remote has no branch {self.config.branch}.", "FL9204", cure)
        return Finding("remote", Level.OK, f"has {self.config.branch}")

    def _status_branch(self) -> Finding:
        name, repo = f"status/{self.config.instance}", self._repo
        if repo is None or not repo.has_remote:
            return _skipped("status branch")
        command.checked_ref(self.config.instance, "The instance's name")
        told = command.attempt(repo.path, "rev-parse", "--verify", "--quiet", f"refs/remotes/{REMOTE}/{name}")
        source = f"refs/remotes/{REMOTE}/{name}" if not told.code else repo.desired_commit(self.config.branch)
        done = command.attempt(
            repo.path, "push", "--dry-run", "--porcelain", "--no-verify", "--no-signed", "--no-follow-tags",
            "--recurse-submodules=no", "--end-of-options", REMOTE, f"{source}:refs/heads/{name}", env=repo.protocols,
            limit=LIMIT_SECONDS,
        )  # fmt: skip
        if done.code:
            if b"fetch first" in done.out or b"non-fast-forward" in done.out:
                return Finding("status branch", Level.OK, f"{name} can be pushed to; it is ahead of the last fetch")
            cure = f"Give the reconciler's credentials the right to push {name}."
            return Finding("status branch", Level.FAIL, f"{name} cannot be pushed: {done.reason}.", "FL9205", cure)
        return Finding("status branch", Level.OK, f"{name} can be pushed to")

    def _clock(self) -> Finding:
        if self._repo is None:
            return _skipped("clock")
        newest = self._repo.log(self._repo.desired_commit(self.config.branch), limit=1)
        ahead = newest[0].time - self.clock() if newest else 0.0
        if ahead > FUTURE_SECONDS:
            cure = "Set this machine's clock, for instance with NTP; schedules and certificates depend on it."
            return Finding("clock", Level.WARN, f"The newest commit is {ahead:.0f} s in the future.", "FL9206", cure)
        return Finding("clock", Level.OK, "not behind the newest commit")

    def _disk(self, name: str, folder: Path) -> Finding:
        there = next(item for item in (folder, *folder.parents) if item.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            return Finding(name, Level.FAIL, f"{there} cannot be written to.", "FL9207", "Give the reconciler's user the right.")
        free = shutil.disk_usage(there).free
        said = f"{free / GIGABYTE:.1f} GB free"
        if free < GOOD_DISK:
            level = Level.FAIL if free < LEAST_DISK else Level.WARN
            return Finding(name, level, f"Only {said}.", "FL9208", "Free some space, for instance with `flops gc`.")
        return Finding(name, Level.OK, said)

    def _journal(self) -> Finding:
        path = self.state / "journal.db"
        if not path.exists():
            return Finding("journal", Level.OK, "there is none yet")
        if not os.access(path, os.R_OK | os.W_OK):
            cure = "Let the reconciler's user read and write it."
            return Finding("journal", Level.FAIL, "The journal belongs to another user.", "FL9001", cure)
        cure = "Nothing is lost: the next start puts it aside and observes anew."
        if said := _damage(path):
            return Finding("journal", Level.FAIL, f"The journal is damaged: {said}.", "FL9209", cure)
        return Finding("journal", Level.OK, f"{path.stat().st_size / 1e6:.1f} MB, sound")

    def _lease(self) -> Finding:
        holder = ""
        if (path := self.state / "journal.db").exists():
            with suppress(sqlite3.DatabaseError), closing(_read_only(path)) as database:
                row = database.execute("SELECT holder FROM lease").fetchone()
                holder = str(row[0]) if row else ""
        if not holder:
            return Finding("lease", Level.OK, "nobody works on this state directory")
        if self.is_dead(holder):
            return Finding("lease", Level.OK, "its last holder is dead; the next one takes over at once")
        return Finding("lease", Level.OK, f"held by process {holder.split('/')[-2] if '/' in holder else holder}")

    def _tracking(self) -> Finding:
        external = os.environ.get("MLFLOW_TRACKING_URI", "") or self.config.tracking_uri or ""
        if external.startswith(("http://", "https://")):
            answer = httpx.get(f"{external.rstrip('/')}/health", timeout=LIMIT_SECONDS)
            if answer.status_code != 200:
                cure = "Check `tracking_uri` in flops.yaml, the server, and its credentials in the environment."
                return Finding("tracking", Level.FAIL, f"MLflow answers {answer.status_code}.", "FL9210", cure)
            return Finding("tracking", Level.OK, "the external server answers")
        if importlib.util.find_spec("mlflow") is None:
            return Finding("tracking", Level.FAIL, "MLflow is not installed.", "FL9211", "Install flops-gitops again.")
        databases = sorted((self.state / "tracking").glob("*/mlflow.db"))
        for path in databases:
            if said := _damage(path):
                cause = f"MLflow's database of {path.parent.name} is damaged: {said}."
                return Finding("tracking", Level.FAIL, cause, "FL9212", "Restore it from its backup.")
        return Finding("tracking", Level.OK, f"{len(databases)} of our own, sound")

    def _python(self) -> Finding:
        return Finding("python", Level.OK, "uv, and Python " + ", ".join(item.full for item in interpreters()))

    def _engine(self) -> Finding:
        if self.config.runtime != "docker":
            return Finding("engine", Level.OK, "not needed: runtime is process")
        return Finding("engine", Level.OK, f"Docker {DockerEngine(self.config.docker_host).client.version()['Version']}")

    def _leftovers(self) -> Finding:
        if not uses_containers(self.state):
            return Finding("leftovers", Level.OK, "nothing of this state directory is in a container engine")
        names = leftovers(DockerEngine(self.config.docker_host), self.state).names
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            cause = f"{len(names)} containers or networks are left that nobody looks after: {shown}."
            return Finding("leftovers", Level.WARN, cause, "FL7050", "`flops gc` removes them; so does the next start.")
        return Finding("leftovers", Level.OK, "none in the container engine")

    def _registry(self) -> Finding:
        if not self.config.images.registry:
            return Finding("registry", Level.OK, "none is configured; images stay here")
        target = Reference.parse(f"{self.config.images.registry}/flops-doctor:latest")
        with self.connect(target.host) as registry:
            registry.digest_of(target)
        return Finding("registry", Level.OK, f"{target.host} answers and lets us read")

    def _ports(self) -> Finding:
        if self.config.ports is None:
            return Finding("ports", Level.OK, "any free ones")
        ports = self.config.ports.range()
        free = sum(1 for port in ports if _is_free(port))
        if not free:
            cure = "Widen `ports` in flops.yaml, unless all of them are our own services."
            return Finding("ports", Level.WARN, f"None of {ports[0]}–{ports[-1]} is free.", "FL9213", cure)
        return Finding("ports", Level.OK, f"{free} of {len(ports)} are free")

    def _notify(self, target: NotifyTarget) -> Finding:
        told = look_at(target, self._repo.remote_url if self._repo else "", os.environ)
        if told.may_write is False:
            cure = "Give its account the right to write statuses and comments."
            return Finding(f"notify {target.name}", Level.WARN, f"{told.text}; the token may not write.", "FL9403", cure)
        return Finding(f"notify {target.name}", Level.OK, told.text)

    def _secrets(self) -> Finding:
        for name, secret in self.config.secrets.items():
            try:
                value = resolve(secret.secret_ref, environ=os.environ).reveal()
            except SecretError as error:
                return Finding("secrets", Level.FAIL, f"{name}: {error.cause}", error.code, error.cure)
            if len(value) < MIN_LENGTH:
                cause = f"{name} has fewer than {MIN_LENGTH} characters: it could be guessed, and not be masked."
                return Finding("secrets", Level.FAIL, cause, "FL9507", "Make a longer one.")
        return Finding("secrets", Level.OK, f"{len(self.config.secrets)} for projects, all of them there")

    def _sandbox(self) -> Finding:
        # The ML runtime's code never runs in this process.
        done = subprocess.run(
            [sys.executable, "-c", "from flops_runtime.sandbox import abi; print(abi())"],
            env={"PYTHONPATH": str(mlruntime_dir()), "PATH": os.environ.get("PATH", os.defpath)},
            capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True,
        )  # fmt: skip
        level = int(done.stdout)
        if level < 4:
            cure = "Use a kernel of 6.7 or later with Landlock, or `runtime: docker`, where others' code is trained."
            reached = f"Landlock ABI {level} does not fence the network" if level else "The kernel has no Landlock"
            return Finding("sandbox", Level.WARN, f"{reached}.", "FL9214", cure)
        return Finding("sandbox", Level.OK, f"Landlock ABI {level}")


def _failed(name: str, error: FlopsError) -> Finding:
    where = f"{error.where}: " if error.where else ""
    return Finding(name, Level.FAIL, f"{where}{error.cause}", error.code, error.cure)


def _skipped(name: str) -> Finding:
    return Finding(name, Level.OK, "not checked, as there is no repo or remote")


def _damage(path: Path) -> str:
    """What SQLite says is wrong with a database; empty when it is sound."""
    try:
        with closing(_read_only(path)) as database:
            said = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        said = str(error)
    return "" if said == "ok" else said


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
