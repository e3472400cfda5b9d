"""Actors of training runs as containers of a Docker engine: on no network, each with its own limits."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from docker.errors import APIError, NotFound
from docker.models.containers import Container

from reconciler.actors import ActorSpec, Ending
from reconciler.errors import ServingError
from reconciler.runtimes.docker_claim import CLAIM, Claim
from reconciler.runtimes.docker_engine import LABEL, NOBODY, OWNER, Bind, ContainerSpec, DockerEngine, ending, owner_of
from reconciler.runtimes.docker_leftovers import remove_leftovers


class DockerActors:
    """Starts actors in one engine."""

    def __init__(self, engine: DockerEngine, folder: Path, *, instance: str = "default") -> None:
        """`folder` is in the state directory; it has a lock for each run that has containers."""
        self._engine = engine
        self._folder = folder.absolute()
        self._instance = instance
        self._claims: dict[str, Claim] = {}

    def start(self, spec: ActorSpec) -> DockerActor:
        """A container for an actor; it runs as the reconciler's user, or as nobody where that is root. Raises ServingError."""
        user = f"{os.getuid()}:{os.getgid()}" if os.getuid() else NOBODY
        if not os.getuid():
            for path in spec.writable:
                _give(path, *map(int, NOBODY.split(":")))
        container = self._engine.create(
            ContainerSpec(
                name=f"flops-{self._instance}-{spec.name}",
                image=self._engine.image_id(spec.image),
                command=spec.command,
                env=spec.env,
                labels={
                    **spec.labels,
                    LABEL: spec.home,
                    OWNER: owner_of(self._folder.parent),
                    "flops.instance": self._instance,
                    "flops.kind": "actor",
                    CLAIM: str(self._claim(spec.home).path),
                },
                memory_mb=spec.memory_mb,
                vcpus=spec.vcpus,
                binds=(
                    Bind(str(spec.door), spec.target, writable=True),
                    *_passable(spec),
                    *(Bind(str(path), str(path)) for path in spec.readable),
                    *(Bind(str(path), str(path), writable=True) for path in spec.writable),
                ),
                user=user,
            )
        )
        actor = DockerActor(self._engine, container)
        with self._engine.answering():
            container.start()
        return actor

    def enter(self, home: str) -> None:
        """Takes the lock of a home and removes the containers of an earlier run with it. Raises ServingError."""
        claim = self._claims[home] = self._claim(home)
        if not claim.take():
            raise ServingError(
                "FL7051",
                "Another process trains the same run in containers.",
                cure="Let it finish, or end it; this one is tried again.",
                transient=True,
            )
        for container in self._engine.containers(home):
            self._engine.remove(container)
        remove_leftovers(self._engine, self._folder.parent)  # of projects that went while the engine was away

    def leave(self, home: str) -> None:
        """Gives the lock back; containers that are still there then are leftovers."""
        if (claim := self._claims.pop(home, None)) is not None:
            claim.forget()

    def _claim(self, home: str) -> Claim:
        return Claim(self._folder / f"{home}.run")


class DockerActor:
    """One container."""

    def __init__(self, engine: DockerEngine, container: Container) -> None:
        self._engine = engine
        self._container = container

    def wait(self) -> Ending:
        """Waits for its end. Raises ServingError when the engine goes away."""
        with self._engine.answering():
            try:
                self._container.wait(timeout=None)
                return Ending(*ending(self._container))
            except NotFound:
                return Ending(137, out_of_memory=False)

    def follow(self, fd: int) -> None:
        """Copies its output to `fd`; the end of either ends it."""
        with self._engine.answering():
            for part in self._container.logs(stream=True, follow=True):
                os.write(fd, part)

    def kill(self) -> None:
        """SIGKILL."""
        with self._engine.answering():
            try:
                self._container.kill()
            except NotFound:
                return
            except APIError as error:
                if error.status_code != 409:  # it has ended by itself
                    raise

    def remove(self) -> None:
        """Kill and forget."""
        self._engine.remove(self._container)


def _passable(spec: ActorSpec) -> tuple[Bind, ...]:
    """Where the reconciler is root its cache is below `/root`, and images let nobody else in there: another folder covers it.

    It is writable for the mount points in it, which the engine makes; the container's user is not its owner.
    """
    if not any(path.is_relative_to("/root") for path in (*spec.readable, *spec.writable)):
        return ()
    cover = spec.door.with_name(f"{spec.door.name}-root")
    cover.mkdir(mode=0o755, exist_ok=True)
    return (Bind(str(cover), "/root", writable=True),)


def _give(path: Path, uid: int, gid: int) -> None:
    """Makes files and folders those of the containers' user; links are not followed."""
    for place, folders, files in os.walk(path):
        for name in (".", *folders, *files):
            with suppress(FileNotFoundError):  # what an actor of before made may go at this moment
                os.chown(Path(place, name), uid, gid, follow_symlinks=False)
