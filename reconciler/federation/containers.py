"""A training run in containers: one for the aggregator, one for each process that it or one of its cluster aggregators asks for.

An aggregator knows nothing of containers. As in the embedded run it sends an order and one end of a socket pair to whoever
starts processes; here that is the reconciler, and the end goes into a new container through its `door`. So the containers are on
no network, and each actor has one socket to whoever ordered it: a learner reaches its own (cluster) aggregator and nobody else.

Invariants: what runs is what is in the images; no container outlives `end()` nor the aggregator that ordered it, and what a killed
reconciler left is swept by the next run of the same directory; an engine that fails ends the run with an error that may be retried.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.actors import Actor, ActorImages, Actors, ActorSpec, Ending
from reconciler.errors import FlopsError, TrainingError
from reconciler.federation.actor_specs import Rights, actor_spec, out_of_memory, rights_of_cluster, rights_of_run
from reconciler.federation.door import close, open_door
from reconciler.federation.launching import Launch
from reconciler.federation.training import TrainingJob

TICKETS = 1 << 30
"""Actors are numbered from here: above every process id, so that none is taken for a process of this machine."""
END_SECONDS = 30.0
_MESSAGE_LIMIT = 1 << 17
FROM_OUTSIDE = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""Exit codes of a container that somebody else ended."""


def in_containers(actors: Actors, images: ActorImages) -> Launch:
    """What `run_training` takes as `launch` to train in containers. The job's `repo_dir` is the ML repo's place in the images."""
    return lambda job, events, life, output: ContainerRun(actors, images, job, (events, life, output))


class _Desk:
    """Where an aggregator orders: our end of its socket, what it may have, and what it has."""

    def __init__(self, rights: Rights) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = theirs.detach()
        self.rights = rights
        self.tickets: set[int] = set()

    def tell(self, answer: Mapping[str, Any]) -> None:
        """Answers; nothing when the aggregator is gone, since nobody wants to know."""
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(answer).encode())

    def shut(self) -> None:
        """No more orders."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class ContainerRun:
    """The processes of one training run, as containers. It has what `training` wants of a started aggregator."""

    def __init__(self, actors: Actors, images: ActorImages, job: TrainingJob, fds: tuple[int, int, int]) -> None:
        """`fds` are the aggregator's: its events, the life pipe, and where all of them print to; copies are kept."""
        self._actors, self._images, self._job = actors, images, job
        self._home = home_of(job.run_dir)
        self._output = os.dup(fds[2])
        self._doors = Path(tempfile.mkdtemp(prefix="flops-doors-"))
        self._lock = threading.Lock()
        self._running: dict[int, Actor] = {}
        self._killed: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._desks: list[_Desk] = []
        self._over = False
        self._next = TICKETS
        self.fault: TrainingError | None = None
        self.returncode: int | None = None
        desk = self._new_desk(rights_of_run(job))
        given = [os.dup(fds[0]), os.dup(fds[1]), desk.theirs]
        order = {"role": "aggregator", "job": str(job.run_dir.resolve() / "job.json")}
        self._begin(self._live, self._ticket(), order, given, None)
        self._begin(self._serve, desk)

    # --- what `training` asks for ---------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Waits for the aggregator's end."""
        self._threads[0].join(timeout)

    def end(self) -> None:
        """Ends and removes every container of the run."""
        with self._lock:
            self._over = True
        self._end_all()
        deadline = time.monotonic() + END_SECONDS
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        for desk in self._desks:
            desk.socket.close()
        os.close(self._output)
        shutil.rmtree(self._doors, ignore_errors=True)
        with contextlib.suppress(FlopsError):
            self._actors.leave(self._home)

    def _end_all(self) -> None:
        with self._lock:
            running, desks = list(self._running), list(self._desks)
        for ticket in running:
            self._kill(ticket)
        for desk in desks:
            desk.shut()

    # --- the aggregators' orders ----------------------------------------------------------------------------------------

    def _serve(self, desk: _Desk) -> None:
        """Obeys an aggregator until it is gone: as the embedded nursery does, with containers for forks."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(desk.socket, _MESSAGE_LIMIT, 2)
            except OSError:
                break
            if not data:
                break
            if len(fds) == 2:  # a long order comes as a file
                with os.fdopen(fds.pop(), "rb") as file:
                    file.seek(0)
                    data = file.read()
            order: dict[str, Any] = json.loads(data)
            if "kill" in order:
                if (ticket := int(order["kill"])) in desk.tickets:
                    self._kill(ticket)
                continue
            ticket = self._ticket()
            desk.tickets.add(ticket)
            desk.tell({"pid": ticket})
            self._begin(self._live, ticket, order, fds, desk)
        for ticket in desk.tickets:
            self._kill(ticket)

    def _kill(self, ticket: int) -> None:
        with self._lock:
            actor = self._running.get(ticket)
            self._killed.add(ticket)
        if actor is not None:
            with contextlib.suppress(FlopsError):
                actor.kill()

    def _new_desk(self, rights: Rights) -> _Desk:
        desk = _Desk(rights)
        with self._lock:
            self._desks.append(desk)
        return desk

    # --- one actor ------------------------------------------------------------------------------------------------------

    def _live(self, ticket: int, order: dict[str, Any], fds: list[int], desk: _Desk | None) -> None:
        """An actor's whole life, in a thread of its own: started, given its work, waited for, removed."""
        role = str(order["role"])
        ended = Ending(1, out_of_memory=False)
        spec: ActorSpec | None = None
        own: _Desk | None = None
        try:
            with open_door(self._doors / str(ticket)) as door:
                if desk is None:
                    self._actors.enter(self._home)
                rights = desk.rights if desk else None
                number = ticket - TICKETS
                spec = actor_spec(self._job, self._images, order, rights, home=self._home, number=number, door=door.folder)
                if role == "cluster":
                    own = self._new_desk(rights_of_cluster(order))
                    fds.append(own.theirs)
                    self._begin(self._serve, own)
                actor = self._started(ticket, spec)
                try:
                    self._begin(self._follow, actor)
                    end = Awaited(actor)
                    self._begin(end.wait)
                    door.let_in(order, fds, end.known, lambda: self._over)
                    ended = end.result()
                finally:
                    with self._lock:
                        self._running.pop(ticket, None)
                    actor.remove()
        except FlopsError as error:
            self._failed(error)
        finally:
            close(fds)
            if own is not None:
                own.shut()
            if desk is None:
                self.returncode = ended.code
            else:
                answer: dict[str, Any] = {"exited": ticket, "status": _wait_status(ended.code)}
                if ended.out_of_memory and spec is not None:
                    answer["failure"] = out_of_memory(self._job, role, spec.memory_mb).to_dict()
                elif ended.code in FROM_OUTSIDE and ticket not in self._killed:
                    answer["failure"] = ended_from_outside(role, ended.code, spec.memory_mb if spec else 0).to_dict()
                desk.tell(answer)

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

    def _failed(self, error: FlopsError) -> None:
        """The run cannot go on: an engine that fails for one actor is not asked for others."""
        if self._over:
            return
        if self.fault is None:
            code = error.code if isinstance(error, TrainingError) else "FL5510"
            self.fault = TrainingError(code, error.cause, cure=error.cure, transient=error.transient)
        self._end_all()

    def _ticket(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _begin(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def home_of(folder: Path) -> str:
    """What the containers of a run's folder have in common."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]


class Awaited:
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


def ended_from_outside(role: str, code: int, memory_mb: int) -> TrainingError:
    """The error for an actor whose container ended with one of these codes; `memory_mb` is its limit."""
    killed = signal.Signals(code - 128)
    # Podman does not tell that it was the kernel, for want of memory; Docker does, and then nobody gets here.
    memory = f", or that its limit of {memory_mb} MB was not enough, which Podman does not tell" if killed is signal.SIGKILL else ""
    return TrainingError(
        "FL5605",
        f"The {role}'s container was ended from outside ({killed.name}): that is an engine that is restarted{memory}.",
        cure="Nothing is to be done, the run goes on after its last finished round; if it comes again, look who stops containers.",
        transient=True,
    )


def _wait_status(code: int) -> int:
    """An exit code as the kernel tells it: above 128 it was a signal."""
    return code - 128 if 128 < code < 128 + signal.NSIG else code << 8
