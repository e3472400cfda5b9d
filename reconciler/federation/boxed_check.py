"""The check of an ML repo in a container of its learner image: where learners are containers, no tenant's code runs outside of one.

It is the check of `contract_check`, with the fence and the limits that a learner has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reconciler.actors import Actor, ActorImages, Actors, Ending
from reconciler.errors import FlopsError, TrainingError
from reconciler.federation.actor_specs import out_of_memory, own_code_spec
from reconciler.federation.containers import Awaited, home_of
from reconciler.federation.contract_check import LIMIT_SECONDS, ContractReport, await_report, check_spec, last_words
from reconciler.federation.door import open_door

BOXED_LIMIT_SECONDS = 3 * LIMIT_SECONDS
"""A container imports its libraries afresh, on the CPUs that it may have."""
_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class CheckedRepo:
    """What is checked and with which limits: `repo_dir` is the ML repo's place in the image, `memory_mb` what the SLA gives."""

    project: str
    repo_dir: Path
    sample: Path
    flavor: str
    memory_mb: int
    vcpus: int


def check_in_container(
    actors: Actors,
    images: ActorImages,
    repo: CheckedRepo,
    limit: float = BOXED_LIMIT_SECONDS,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> ContractReport:
    """As `check_contract`. Raises TrainingError too when the engine fails (FL5510, FL5511)."""
    folder = Path(tempfile.mkdtemp(prefix="flops-check-"))
    home = home_of(folder)
    ours, theirs = socket.socketpair()
    fds = [theirs.detach()]
    try:
        work = folder / "work"
        work.mkdir()
        order = {"role": "check", "spec": check_spec(repo.repo_dir, work, repo.sample, repo.flavor)}
        with (folder / "log").open("w+b") as log, open_door(folder / "door") as door:
            sample = repo.sample.resolve()
            spec = own_code_spec(repo, images, "check", [sample], [work], home=home, number=0, door=door.folder)
            actors.enter(home)
            actor = actors.start(spec)
            checking = _Container(ours.fileno(), actor, Awaited(actor), log, lambda: out_of_memory(repo, "check", spec.memory_mb))
            try:
                for begun in (checking.end_of.wait, checking.follow):
                    threading.Thread(target=begun, daemon=True).start()
                door.let_in(order, fds, checking.end_of.known, cancelled)
                return await_report(checking, limit, cancelled)
            finally:
                actor.remove()
    except TrainingError:
        raise
    except FlopsError as error:
        raise TrainingError("FL5510", error.cause, cure=error.cure, transient=error.transient) from error
    finally:
        for fd in fds:
            os.close(fd)
        ours.close()
        actors.leave(home)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Container:
    """A check as a container."""

    told: int
    actor: Actor
    end_of: Awaited
    log: IO[bytes]
    too_much: Callable[[], TrainingError]

    def follow(self) -> None:
        with contextlib.suppress(FlopsError, OSError):
            self.actor.follow(self.log.fileno())

    def end(self) -> int:
        if not self.end_of.known.wait(_GRACE):
            self.actor.kill()
        ending: Ending = self.end_of.result()
        if ending.out_of_memory:
            raise self.too_much()
        return ending.code

    def said(self) -> str:
        return last_words(self.log)
