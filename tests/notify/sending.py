"""A target in the hands of a test: real outbox, real HTTP, and a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reconciler.journal import Journal
from reconciler.notify.notice import Notice, State
from reconciler.notify.outbox import Outbox, Told
from reconciler.notify.sender import Sender
from reconciler.notify.targets import channels
from reconciler.spec.notify import NotifyTarget
from reconciler.spec.secret_ref import SecretRef
from tests.controller.looping import Clock
from tests.notify.forge import TOKEN, Forge

A, B = "a" * 40, "b" * 40
ENVIRON = {"TOKEN": TOKEN}


def target(forge: Forge, **keys: Any) -> NotifyTarget:
    """A target's settings; without a name of its own it has that of the kind."""
    repository = "team/group/models" if forge.kind == "gitlab" else "team/models"
    given = {"name": forge.kind, "type": forge.kind, "api": forge.api, "repository": repository, "pause": 0.01, **keys}
    return NotifyTarget(secret_ref=SecretRef(env="TOKEN"), **given)


def hook(forge: Forge, **keys: Any) -> NotifyTarget:
    """A webhook's settings."""
    url = f"http://127.0.0.1:{forge.port}/hook"
    return NotifyTarget(
        **{"name": "hook", "type": "webhook", "url": url, "secret_ref": SecretRef(env="TOKEN"), "pause": 0.01, **keys}
    )


def notice(project: str = "digits", commit: str = A, state: State = State.SUCCESS, key: str = "", **keys: Any) -> Notice:
    """A notice; its key is its state unless it is given."""
    given = {"instance": "prod", "reason": "Healthy", "message": "answers", "at": 1.0, **keys}
    return Notice(project=project, commit=commit, state=state, key=key or str(state), **given)


class Sending:
    """A sender of one target, step by step."""

    def __init__(
        self,
        forge: Forge,
        path: Path,
        *targets: NotifyTarget,
        environ: dict[str, str] | None = None,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self.forge, self.path = forge, path
        self.clock, self.wall = Clock(), Clock()
        self.monotonic = monotonic or self.clock
        self.targets = targets or (target(forge),)
        self.environ = ENVIRON if environ is None else environ
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        """As after a restart."""
        self.journal = Journal(self.path / "journal.db", clock=self.wall)
        self.outbox = Outbox(self.journal, self.wall)
        self.senders = [
            Sender(
                item.name, channels(item, "", self.outbox, self.environ), self.outbox, self.said.append, pause=item.pause,
                monotonic=self.monotonic, uniform=lambda _, high: high,
            )
            for item in self.targets
        ]  # fmt: skip
        self.sender = self.senders[0]

    def put(self, *notices: Notice) -> int:
        """The loop says so."""
        told: dict[str, Told | None] = {item.project: Told(item.commit, item.digest, item.key) for item in notices}
        names = [channel.name for sender in self.senders for channel in sender.channels]
        return self.outbox.take("head", told, notices, names)

    def run(self, steps: int = 50) -> None:
        """Send all that can be sent without a long wait."""
        for _ in range(steps):
            pauses = [pause for sender in self.senders if (pause := sender.step()) is not None]
            short = [pause for pause in pauses if pause <= 0.05]
            if not short:
                return
            self.pass_time(min(short) + 0.01)

    def pass_time(self, seconds: float) -> None:
        """Time goes by."""
        self.clock.now += seconds
        self.wall.now += seconds
