"""Learners as containers of an engine of the node's machine: the same messages, results and failures as of processes, behind a
higher fence.

A container has the run's image (`learner_images`), a work folder and the shard; the learner in it gets one end of a socket pair
through its door, as learners of the embedded runtime do, so it needs no network and has none. Held-out rows are never in the
container that trains: who is asked about them is another one, for one question.

Invariants: no container outlives its host; what a killed node left is removed when the next one starts, and before each run; when
the engine goes away, its learners are given up with an error that may be retried.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Message

from reconciler.actors import Actor, ActorImages, Actors, ActorSpec
from reconciler.errors import FlopsError, ServingError, TrainingError
from reconciler.federation.actor_specs import out_of_memory, own_code_spec
from reconciler.federation.containers import FROM_OUTSIDE, Awaited, ended_from_outside, home_of
from reconciler.federation.door import close, open_door
from reconciler.images.assemble import FOLDERS
from reconciler.nodes.fab import LearnerSpec
from reconciler.nodes.host import GoOn, Host, Place, Tell, gone

CODE_IN_IMAGE = Path("/", FOLDERS["learner"])
"""Where the ML repo is in a run's image."""
HOLDOUT = "query.holdout"
_IMPORT_SECONDS = 120.0
_END_SECONDS = 15.0
"""How long an engine may take to tell of a container that has hung up."""


class MakeImage(Protocol):
    """Whoever makes the image of a run."""

    def __call__(self, spec: LearnerSpec, place: Place, tell: Tell, cancelled: Callable[[], bool]) -> str:
        """The engine's id of it. Raises FlopsError."""


@dataclass(frozen=True, slots=True)
class Share:
    """What the node's owner gives one container: all of its memory in MB (None: what the run asks for), and CPUs."""

    memory_mb: int | None
    vcpus: float

    def of(self, wanted: ActorSpec) -> ActorSpec:
        """The container that is wanted, with no more than that."""
        memory = wanted.memory_mb if self.memory_mb is None else min(wanted.memory_mb, self.memory_mb)
        return replace(wanted, memory_mb=memory, vcpus=min(wanted.vcpus, self.vcpus))


@dataclass(frozen=True, slots=True)
class Boxes:
    """Starts learners as containers. `labels` are on each of them, and say whose they are."""

    actors: Actors
    image: MakeImage
    share: Share
    labels: Mapping[str, str]

    def start(self, spec: LearnerSpec, learner: int, place: Place, tell: Tell, cancelled: Callable[[], bool]) -> Host:
        """A container that loads the run's shard; its image is made first if it is not there. Raises TrainingError."""
        with _told(tell):
            image = self.image(spec, place, tell, cancelled)
            run = _Run(self, image, spec, learner, place, home_of(place.directory), tell, cancelled)
            self.actors.enter(run.home)
        try:
            return BoxHost(run)
        except BaseException:
            self.actors.leave(run.home)
            raise


@dataclass(frozen=True, slots=True)
class _Run:
    """What the containers of a run have in common on this node."""

    boxes: Boxes
    image: str
    spec: LearnerSpec
    learner: int
    place: Place
    home: str
    tell: Tell
    cancelled: Callable[[], bool]

    def wanted(self, number: int, data: Path, work: Path) -> ActorSpec:
        """The container that the run asks for."""
        door = (self.place.directory / f"door-{number}").resolve()
        shutil.rmtree(door, ignore_errors=True)
        images = ActorImages(self.image, self.image)
        found = own_code_spec(
            self.spec, images, "learner", [data], [work], home=self.home, number=number, door=door, digest=self.spec.digest
        )
        return replace(found, labels={**found.labels, **self.boxes.labels})

    def order(self, data: Path, work: Path, *, counts: bool) -> dict[str, Any]:
        """What the learner in a container is to do, as `flops_runtime.learner` has it."""
        spec = {
            "learner": self.learner, "repo_dir": str(CODE_IN_IMAGE), "work_dir": str(work), "data": str(data),
            "seed": self.spec.seed, "privacy": dict(self.spec.privacy) if self.spec.privacy is not None else None,
            "flavor": self.spec.flavor, "counts": counts,
        }  # fmt: skip
        return {"role": "learner", "spec": spec}


class _Box(Host):
    """One container with its learner. Raises TrainingError when it does not come up."""

    grace = 0.0  # here nobody else looks at the clock
    _end: Awaited

    def __init__(self, run: _Run, number: int, data: Path, *, counts: bool) -> None:
        self._run = run
        self._actor: Actor | None = None
        data, work = data.resolve(), (run.place.directory / f"work-{number}").resolve()
        wanted = run.wanted(number, data, work)
        self._limits = run.boxes.share.of(wanted)
        self._capped = self._limits.memory_mb < wanted.memory_mb
        self._socket, theirs = socket.socketpair()
        super().__init__(Connection(os.dup(self._socket.fileno())), run.tell)
        try:
            self._come_up(run.order(data, work, counts=counts), [theirs.detach()])
        except BaseException:
            self.close()
            raise

    def await_ready(self, seconds: float, go_on: GoOn) -> None:
        """Waits until the learner has its data; time to import what processes have from a fork comes on top."""
        super().await_ready(seconds + _IMPORT_SECONDS, go_on)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._connection.closed and not self._end.known.is_set()

    def close(self) -> None:
        """Removes the container. Where the engine is gone its learner ends by itself, and what is left goes later."""
        self._connection.close()
        self._socket.close()
        if self._actor is not None:
            with contextlib.suppress(FlopsError):
                self._actor.remove()

    def _come_up(self, order: Mapping[str, Any], given: list[int]) -> None:
        try:
            with _told(self._run.tell), open_door(self._limits.door) as door:
                self._actor = self._run.boxes.actors.start(self._limits)
                self._end = Awaited(self._actor)
                for work in (self._watch, self._follow):
                    threading.Thread(target=work, daemon=True).start()
                door.let_in(order, given, self._end.known, self._run.cancelled)
        except TrainingError as error:
            if error.code == "FL5511" and self._end.known.is_set() and (known := self._why()) is not None:
                raise known from error
            raise
        finally:
            close(given)

    def _watch(self) -> None:
        self._end.wait()
        try:
            self._end.result()
        except FlopsError:
            # Without the engine nobody would learn of the container's end: whoever waits for an answer is told now.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _follow(self) -> None:
        assert self._actor is not None  # noqa: S101 - set before this thread begins
        with contextlib.suppress(FlopsError, OSError), self._run.place.open_log() as log:
            self._actor.follow(log.fileno())

    def _gone(self) -> dict[str, Any]:
        if not self._end.known.wait(_END_SECONDS):
            return gone()
        known = self._why()
        return dict(known.to_dict()) if known is not None else gone()

    def _why(self) -> TrainingError | None:
        """Why the container has ended, where the engine tells more than that."""
        try:
            ending = self._end.result()
        except FlopsError as error:
            return _engine_fails(error, self._run.tell)
        if ending.out_of_memory:
            return self._too_much()
        return ended_from_outside("learner", ending.code, self._limits.memory_mb) if ending.code in FROM_OUTSIDE else None

    def _too_much(self) -> TrainingError:
        error = out_of_memory(self._run.spec, "learner", self._limits.memory_mb)
        if not self._capped:
            return error
        cure = "Let the node's owner raise --memory, or let `fit_model` work in smaller batches."
        return TrainingError(error.code, f"{error.cause} The node gives a learner no more than that.", cure=cure)


class BoxHost(_Box):
    """The container that trains, and one more for a question about held-out rows."""

    def __init__(self, run: _Run) -> None:
        super().__init__(run, 0, run.place.shard, counts=False)

    def ask(self, content: bytes, message: Message, go_on: GoOn) -> bytes:
        """The content of the learner's reply. Raises LearnerError, TrainingError."""
        held_out = self._run.place.held_out
        if message.metadata.message_type != HOLDOUT or held_out is None:
            return super().ask(content, message, go_on)
        with contextlib.closing(_Box(self._run, 1, held_out, counts=True)) as other:
            other.await_ready(self._run.spec.setup_seconds, go_on)
            return other.ask(content, message, go_on)

    def close(self) -> None:
        """Removes the container, and gives up what kept others from the run's."""
        super().close()
        self._run.boxes.actors.leave(self._run.home)


@contextlib.contextmanager
def _told(tell: Tell) -> Iterator[None]:
    """Errors as they may leave the node: what an engine says names paths of this machine."""
    try:
        yield
    except ServingError as error:
        raise _engine_fails(error, tell) from error
    except TrainingError as error:
        if error.code != "FL5511":
            raise
        cure = "See learner.log on the node."
        raise TrainingError(error.code, error.cause, cure=cure, transient=error.transient) from error


def _engine_fails(error: FlopsError, tell: Tell) -> TrainingError:
    tell("engine", str(error))
    cause = f"The container engine of the node fails ({error.code})."
    cure = "Its owner sees more in what the node prints" + ("; the node goes on when it is back." if error.transient else ".")
    return TrainingError("FL5611", cause, cure=cure, transient=error.transient)
