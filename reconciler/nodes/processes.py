"""Learners as child processes of the node, each in the environment that the node builds from its run's lock.

The child gets no environment variable of the node, no network and no file but its code, its shard and its work directory;
what it prints stays in a file of the node. It is a small tree: a host, a fork server and the learner (`flops_runtime.node_host`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from reconciler.environments import EnvironmentStore
from reconciler.federation.launching import environment_of
from reconciler.nodes.fab import LearnerSpec
from reconciler.nodes.host import Host, Place, Tell
from reconciler.runtime_version import mlruntime_dir


class Processes:
    """Starts learners as processes."""

    def __init__(self, environments: EnvironmentStore) -> None:
        self._environments = environments

    def start(self, spec: LearnerSpec, learner: int, place: Place, tell: Tell, cancelled: Callable[[], bool]) -> Host:  # noqa: ARG002
        """A child process. Call from the thread that asks it: the child ends with that thread. Raises BuildError."""
        environment = self._environments.ensure(spec.lock, on_line=lambda line: tell("environment", line))
        return ProcessHost(spec, learner, place, environment.python, tell)


class ProcessHost(Host):
    """One child process."""

    def __init__(self, spec: LearnerSpec, learner: int, place: Place, python: Path, tell: Tell) -> None:
        work = place.directory / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        job = {
            "learner": learner,
            "repo_dir": str(place.code),
            "work_dir": str(work.resolve()),
            "data": str(place.shard.resolve()),
            "seed": spec.seed,
            "flavor": spec.flavor,
            "privacy": dict(spec.privacy) if spec.privacy is not None else None,
            "held_out": str(place.held_out.resolve()) if place.held_out is not None else "",
            "memory_mb": spec.memory_mb,
            "setup_seconds": spec.setup_seconds,
        }
        job_file = place.directory / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        ours, theirs = socket.socketpair()
        with theirs, place.open_log() as output:
            self._process = subprocess.Popen(
                [str(python), "-m", "flops_runtime.node_host", str(job_file.resolve()), str(theirs.fileno())],
                cwd=mlruntime_dir(),
                env=environment_of(python, work.resolve(), spec.vcpus),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        super().__init__(Connection(ours.detach()), tell)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None and not self._connection.closed

    def close(self) -> None:
        """Kills the child and all of its children."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
