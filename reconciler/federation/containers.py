"""A training run in containers: one for the aggregator, one for each process that it asks for.

The aggregator knows nothing of containers. As in the embedded run it sends an order and one end of a socket pair to whoever
starts processes; here that is the reconciler, and the end goes into a new container *through its door*: a socket in a folder
that is mounted there, over which the kernel passes file descriptors. So the containers are on no network, and aggregator and
learner talk to each other over the very socket pair that they always have.

Invariants: one guest a door, and the door is shut after it; no container outlives `end()`, and what a killed reconciler
left is swept by the next run of the same directory; an engine that fails ends the run with an error that may be retried.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reconciler.actors import Actor, ActorImages, Actors, ActorSpec, Ending
from reconciler.errors import FlopsError, TrainingError
from reconciler.federation.launching import Launch, child_environment
from reconciler.federation.training import TrainingJob

TICKETS = 1 << 30
"""Actors are numbered from here: above every process id, so that none is taken for a process of this machine."""
DOOR = "/run/flops"
ARRIVAL_SECONDS = 60.0
END_SECONDS = 30.0
LIBRARIES_MB = {"sklearn": 400, "pytorch": 700, "keras": 1100}
"""What interpreter and libraries take before the ML repo's own work: `resource_constraints.memory` is beside them."""
_MESSAGE_LIMIT = 1 << 17
_PAUSE = 0.02


def in_containers(actors: Actors, images: ActorImages) -> Launch:
    """What `run_training` takes as `launch` to train in containers."""
    return lambda job, events, life, output: ContainerRun(actors, images, job, (events, life, output))


class ContainerRun:
    """The processes of one training run, as containers. It has what `training` wants of a started aggregator."""

    def __init__(self, actors: Actors, images: ActorImages, job: TrainingJob, fds: tuple[int, int, int]) -> None:
        """`fds` are the aggregator's: its events, the life pipe, and where all of them print to; copies are kept."""
        self._actors, self._images, self._job = actors, images, job
        # PATH, PYTHONPATH and the like are the image's.
        own = ("PATH", "PYTHONPATH", "HOME", "TMPDIR")
        self._env = {name: value for name, value in child_environment(job).items() if name not in own}
        self._home = hashlib.sha256(str(job.run_dir.resolve()).encode()).hexdigest()[:24]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._output = os.dup(fds[2])
        self._doors = Path(tempfile.mkdtemp(prefix="flops-doors-"))
        self._lock = threading.Lock()
        self._running: dict[int, Actor] = {}
        self._threads: list[threading.Thread] = []
        self._over = False
        self._next = TICKETS
        self.fault: TrainingError | None = None
        self.returncode: int | None = None
        given = [os.dup(fds[0]), os.dup(fds[1]), theirs.detach()]
        order = {"role": "aggregator", "job": str(job.run_dir.resolve() / "job.json")}
        self._begin(self._live, self._ticket(), order, given)
        self._begin(self._serve)

    # --- what `training` asks for ---------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Waits for the aggregator's end."""
        self._threads[0].join(timeout)

    def end(self) -> None:
        """Ends and removes every container of the run."""
        with self._lock:
            self._over = True
            running = list(self._running.values())
        for actor in running:
            with contextlib.suppress(FlopsError):
                actor.kill()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + END_SECONDS
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._control.close()
        os.close(self._output)
        shutil.rmtree(self._doors, ignore_errors=True)

    # --- the aggregator's orders ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Obeys the aggregator until it is gone: as the embedded nursery does, with containers for forks."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_LIMIT, 2)
            except OSError:
                return
            if not data:
                return
            if len(fds) == 2:  # a long order comes as a file
                with os.fdopen(fds.pop(), "rb") as file:
                    file.seek(0)
                    data = file.read()
            order: dict[str, Any] = json.loads(data)
            if "kill" in order:
                self._kill(int(order["kill"]))
                continue
            ticket = self._ticket()
            self._tell({"pid": ticket})
            self._begin(self._live, ticket, order, fds)

    def _kill(self, ticket: int) -> None:
        with self._lock:
            actor = self._running.get(ticket)
        if actor is not None:
            with contextlib.suppress(FlopsError):
                actor.kill()

    def _tell(self, answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the aggregator is gone: nobody wants to know
            self._control.send(json.dumps(answer).encode())

    # --- one actor ------------------------------------------------------------------------------------------------------

    def _live(self, ticket: int, order: dict[str, Any], fds: list[int]) -> None:
        """An actor's whole life, in a thread of its own: started, given its work, waited for, removed."""
        role = str(order["role"])
        ended = Ending(1, out_of_memory=False)
        spec = None
        try:
            with self._door(ticket) as (folder, door):
                if role == "aggregator":
                    self._actors.sweep(self._home)
                spec = self._spec(ticket, order, folder)
                actor = self._started(ticket, spec)
                try:
                    self._begin(self._follow, actor)
                    end = _Awaited(actor)
                    self._begin(end.wait)
                    self._let_in(door, order, fds, end.known)
                    ended = end.result()
                finally:
                    with self._lock:
                        self._running.pop(ticket, None)
                    actor.remove()
        except FlopsError as error:
            self._failed(error)
        finally:
            _close(fds)
            if role == "aggregator":
                self.returncode = ended.code
            else:
                answer: dict[str, Any] = {"exited": ticket, "status": _wait_status(ended.code)}
                if ended.out_of_memory and spec is not None:
                    answer["failure"] = self._out_of_memory(role, spec.memory_mb)
                self._tell(answer)

    def _started(self, ticket: int, spec: ActorSpec) -> Actor:
        actor = self._actors.start(spec)
        with self._lock:
            self._running[ticket] = actor
            late = self._over
        if late:
            actor.kill()
        return actor

    def _follow(self, actor: Actor) -> None:
        with contextlib.suppress(FlopsError, OSError):
            actor.follow(self._output)

    @contextlib.contextmanager
    def _door(self, ticket: int) -> Iterator[tuple[Path, socket.socket]]:
        """A folder with a listening socket that one container is to see."""
        folder = self._doors / str(ticket)
        folder.mkdir()
        folder.chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            # Relative to an open folder: paths of Unix sockets end at 108 bytes.
            descriptor = os.open(folder, os.O_PATH)
            try:
                door.bind(f"/proc/self/fd/{descriptor}/door.sock")
            finally:
                os.close(descriptor)
            (folder / "door.sock").chmod(0o666)  # `_doors` lets in only us, and the container in which this is mounted
            door.listen(1)
            door.settimeout(_PAUSE * 5)
            yield folder, door

    def _let_in(self, door: socket.socket, order: Mapping[str, Any], fds: list[int], gone: threading.Event) -> None:
        """Gives the first that knocks its order and its file descriptors. Raises TrainingError when nobody comes."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while time.monotonic() < deadline and not gone.is_set() and not self._over:
            with contextlib.suppress(TimeoutError):
                guest, _ = door.accept()
                with guest:
                    file = os.memfd_create("order")
                    os.write(file, json.dumps(order).encode())
                    socket.send_fds(guest, [b"order"], [file, *fds])
                    os.close(file)
                _close(fds)
                return
        if self._over:
            return
        raise TrainingError(
            "FL5511",
            f"The container of the {order['role']} "
            + ("ended before it asked for its work." if gone.is_set() else f"did not start in {ARRIVAL_SECONDS:g} s."),
            cure="See child.log in the run's directory; the image needs Python and `flops_runtime`.",
            transient=not gone.is_set(),
        )

    def _spec(self, ticket: int, order: Mapping[str, Any], door: Path) -> ActorSpec:
        job, role = self._job, str(order["role"])
        readable = [job.repo_dir.resolve(), *self._images.binds]
        if role == "aggregator":
            run_dir = job.run_dir.resolve()
            writable, memory = [run_dir], job.memory_mb + LIBRARIES_MB[job.flavor]
        else:
            spec = order["spec"]
            data = _values(spec, "data")
            readable += data
            writable = [*_values(spec, "directory"), Path(spec["work_dir"])]
            for path in writable:
                path.mkdir(parents=True, exist_ok=True)
            size = sum(path.stat().st_size for path in data) >> 20
            memory = max(1, len(data)) * job.memory_mb + LIBRARIES_MB[job.flavor] * (2 if role == "export" else 1) + 3 * size
        return ActorSpec(
            home=self._home,
            name=f"{job.project}-{role}-{self._home[:6]}-{ticket - TICKETS}",
            image=self._images.of(role),
            command=(self._images.python, "-m", "flops_runtime.door", f"{DOOR}/door.sock"),
            env={**self._env, **self._images.env},
            labels={"flops.project": job.project, "flops.digest": job.digest, "flops.role": role},
            door=door,
            target=DOOR,
            readable=tuple(dict.fromkeys(readable)),
            writable=tuple(dict.fromkeys(writable)),
            memory_mb=memory,
            vcpus=float(job.vcpus),
        )

    def _out_of_memory(self, role: str, limit: int) -> dict[str, Any]:
        failure = TrainingError(
            "FL5022",
            f"The kernel killed the {role}'s container: it needed more than its limit of {limit} MB "
            f"(`resource_constraints.memory` is {self._job.memory_mb} MB, libraries and data come on top).",
            cure="Raise `resource_constraints.memory`, or let `fit_model` work in smaller batches.",
        )
        return failure.to_dict()

    def _failed(self, error: FlopsError) -> None:
        """The run cannot go on: an engine that fails for one actor is not asked for others."""
        if self._over:
            return
        if self.fault is None:
            code = error.code if isinstance(error, TrainingError) else "FL5510"
            self.fault = TrainingError(code, error.cause, cure=error.cure, transient=error.transient)
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        with self._lock:
            running = list(self._running.values())
        for actor in running:
            with contextlib.suppress(FlopsError):
                actor.kill()

    def _ticket(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _begin(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


class _Awaited:
    """An actor's end, waited for in a thread while its door is still open."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._outcome: Ending | FlopsError = Ending(1, out_of_memory=False)
        self.known = threading.Event()

    def wait(self) -> None:
        """The thread's work."""
        try:
            self._outcome = self._actor.wait()
        except FlopsError as error:
            self._outcome = error
        finally:
            self.known.set()

    def result(self) -> Ending:
        """The end, when it has come. Raises FlopsError when the engine could not tell."""
        self.known.wait()
        if isinstance(self._outcome, FlopsError):
            raise self._outcome
        return self._outcome


def _wait_status(code: int) -> int:
    """An exit code as the kernel tells it: above 128 it was a signal."""
    return code - 128 if 128 < code < 128 + signal.NSIG else code << 8


def _values(spec: Any, name: str) -> list[Path]:
    """The paths under a key, wherever it stands in an order: a cluster's has those of all of its learners."""
    if isinstance(spec, Mapping):
        own = [Path(spec[name])] if isinstance(spec.get(name), str) else []
        return own + [path for key, value in spec.items() if key != name for path in _values(value, name)]
    if isinstance(spec, list):
        return [path for item in spec for path in _values(item, name)]
    return []


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
