"""`flops serve` and `flops reconcile --once` as processes, and `flops doctor`, with a forge to tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from reconciler.controller import Controller
from reconciler.doctor import Doctor, Finding, Level
from reconciler.engine import open_engine, read_config
from reconciler.errors import NotifyError
from reconciler.events import Observer
from tests.conftest import Repos, commit, git
from tests.notify.forge import TOKEN, Answer, Forge

BAD = "customerID: demo\nunknown: {number}\n"
SETTINGS = """instance: prod
notify:
  - {{name: forge, type: github, api: "{api}", repository: team/models, comments: true, pause: 0.05,
     secret_ref: {{env: FORGE_TOKEN}}}}
  - {{name: chat, type: webhook, url: "http://127.0.0.1:{port}/hook", secret_ref: {{file: "{secret}"}}, pause: 0.05}}
"""


class Place:
    """A clone whose operator wants to be told, and commands over it."""

    def __init__(self, repos: Repos, forge: Forge) -> None:
        self.repos, self.forge = repos, forge
        self.user = repos.clone("user")
        commit(self.user, {"README.md": "A GitOps repo\n"}, "Start")
        self.clone = repos.clone("reconciler")
        self.secret = repos.root / "hook-secret"
        self.secret.write_text(TOKEN + "\n")
        (self.clone / "flops.yaml").write_text(SETTINGS.format(api=forge.api, port=forge.port, secret=self.secret))
        self.log = repos.root / "log"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A `flops` over the clone."""
        with self.log.open("ab") as output:
            place = ["--repo", str(self.clone), "--state", str(self.repos.root / "state")]
            return subprocess.Popen(
                [sys.executable, "-m", "reconciler.cli", *arguments, *place],
                env={**os.environ, "FORGE_TOKEN": TOKEN}, stdout=output, stderr=output,
            )  # fmt: skip

    def examine(self) -> dict[str, Finding]:
        """What the doctor finds, by check."""
        state = self.repos.root / "state"
        return {item.check: item for item in Doctor(self.clone, state, state / "cache", read_config, time.time).examine()}

    def until(self, what: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 250) -> None:
        """Wait for a condition of the real process."""
        deadline = time.monotonic() + seconds
        while not what():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture
def forge() -> Iterator[Forge]:
    with Forge("github").serving() as serving:
        yield serving


@pytest.fixture
def place(repos: Repos, forge: Forge) -> Place:
    return Place(repos, forge)


def test_serve_tells_and_never_says_the_secret(place: Place, forge: Forge) -> None:
    first = commit(place.user, {"projects/a/sla.yaml": BAD.format(number=1)})
    forge.merged[first] = 7
    process = place.start("serve", "--log", "json")
    try:
        place.until(lambda: forge.of(first) and forge.comments and forge.hooks, process)
        assert [state for state, _ in forge.of(first, "a")] == ["failure"]
        forge.down = Answer(500, {"message": f"oops {TOKEN}"})
        second = commit(place.user, {"projects/b/sla.yaml": BAD.format(number=2)})
        place.until(lambda: "FL9407" in place.log.read_text(), process)
        process.kill()
        process.wait()
        forge.down = None
        process = place.start("serve", "--log", "json")
        place.until(lambda: forge.of(second, "b") and len(told(forge)) == 2, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert len(set(forge.of(first))) == len(set(forge.of(second))) == 1
    assert len(forge.comments) == 1
    assert TOKEN not in place.log.read_text()


def told(forge: Forge) -> set[str]:
    """The transitions that the webhook was told. What was on its way when its sender was killed comes again with the same id."""
    return {request.headers["x-event-id"] for request in forge.hooks}


def test_once_delivers_before_it_ends_and_only_transitions(place: Place, forge: Forge) -> None:
    merged = commit(place.user, {"projects/a/sla.yaml": BAD.format(number=1)})
    assert place.start("reconcile", "--once").wait(250) == 1
    assert [state for state, _ in forge.of(merged)] == ["failure"]
    assert len(forge.hooks) == 1
    before = len(forge.requests)
    assert place.start("reconcile", "--once").wait(250) == 1
    assert len(forge.requests) == before


def test_doctor_looks_at_each_target_and_writes_nothing(place: Place, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TOKEN", TOKEN)
    found = place.examine()
    assert (found["notify forge"].level, found["notify chat"].level) == (Level.OK, Level.OK)
    assert "comments as flops-bot" in found["notify forge"].message
    forge.may_push = False
    place.secret.unlink()
    found = place.examine()
    assert (found["notify forge"].level, found["notify forge"].code) == (Level.WARN, "FL9403")
    assert (found["notify chat"].level, found["notify chat"].code) == (Level.FAIL, "FL9602")
    assert not forge.writes()
    assert TOKEN not in str(found)


def test_a_forge_that_nobody_names_is_one_clear_error(place: Place) -> None:
    (place.clone / "flops.yaml").write_text("notify: [{name: forge, type: github, secret_ref: {env: FORGE_TOKEN}}]\n")
    engine = open_engine(place.clone, place.repos.root / "state")
    with pytest.raises(NotifyError, match="FL9401"):
        Controller(engine, Observer(engine.journal))
    assert place.examine()["notify forge"].code == "FL9401"


def test_a_forge_that_hangs_is_not_waited_for_at_the_end(place: Place, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TOKEN", TOKEN)
    commit(place.user, {"projects/a/sla.yaml": BAD.format(number=1)})
    forge.hang = True
    engine = open_engine(place.clone, place.repos.root / "state")
    controller = Controller(engine, Observer(engine.journal))
    flush = controller.notifier.flush
    monkeypatch.setattr(controller.notifier, "flush", lambda: flush(0.5))
    controller.converge()
    assert "InvalidSLA" in git(place.repos.origin, "show", "status/prod:projects/a.json")
    assert sum(controller.notifier.waiting().values()) == 3, "it is told by the next one"
