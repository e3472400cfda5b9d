"""Whatever happens, in whatever order, the loop converges – and then does nothing.

Real Git, real journal, real status branch; users edit, revert, rename, remove and push, the controller is killed at every point
of its work, pushes are rejected, the remote goes away, services die, stages fail. CI runs a few fixed examples of it,
`make soak` thousands.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from reconciler.errors import TrainingError
from reconciler.looking import ProjectView
from reconciler.plan import Stage
from reconciler.statusdoc import read_documents
from tests.conftest import Repos, git
from tests.controller.looping import DEPLOY, Looping

SOAK = bool(os.environ.get("FLOPS_SOAK"))
NAMES = ("a", "b", "c", "d")
STAGES = tuple(Stage)


class Killed(BaseException):
    """`kill -9` of the controller: nothing of it runs any further."""


@dataclass(frozen=True)
class Content:
    """What a user declares for a project."""

    rounds: int = 1
    deploy: bool = True
    suspend: bool = False
    finish: bool = False
    invalid: bool = False
    after: str = ""

    def more(self) -> str:
        lines = [DEPLOY.strip()] if self.deploy else []
        lines += ["suspend: true"] if self.suspend else []
        lines += ["on_change: finish"] if self.finish else []
        lines += [f"depends_on: [{self.after}]"] if self.after else []
        return "".join(f"{line}\n" for line in [*lines, *(["nonsense: 1"] if self.invalid else [])])


class Site(RuleBasedStateMachine):
    """Users, a world that goes wrong, and a controller that may be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="machine-"))
        self.loop = Looping(Repos(self.root))
        self.declared: dict[str, Content] = {}
        self.history: list[tuple[str, Content]] = []
        self.bad: set[tuple[str, int]] = set()
        self.flaky = 0
        self.kill_at: tuple[Stage, bool] | None = None
        self.states = 0
        self.loop.before = lambda view, stage: self._point(view, stage, before=True)
        self.loop.after = lambda view, stage: self._point(view, stage, before=False)

    def teardown(self) -> None:
        try:
            self._converges()
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    # --- users

    @initialize()
    def begin(self) -> None:
        self._declare("a", Content())

    @rule(
        name=st.sampled_from(NAMES), rounds=st.integers(1, 3), deploy=st.booleans(), finish=st.booleans(),
        kind=st.sampled_from(["", "", "", "suspend", "invalid", "after"]), other=st.sampled_from(NAMES),
    )  # fmt: skip
    def edit(self, name: str, rounds: int, deploy: bool, finish: bool, kind: str, other: str) -> None:
        content = Content(rounds, deploy, kind == "suspend", finish, kind == "invalid", other if kind == "after" else "")
        self._declare(name, content)

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        self._declare(*data.draw(st.sampled_from(self.history)))

    @precondition(lambda self: self.declared)
    @rule(data=st.data(), to=st.sampled_from(NAMES))
    def rename(self, data: st.DataObject, to: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.declared)))
        if name == to:
            return
        content = self.declared.pop(name)
        git(self.loop.user, "rm", "-rq", f"projects/{name}")
        self._declare(to, content)

    @precondition(lambda self: len(self.declared) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.declared)))
        del self.declared[name]
        git(self.loop.user, "rm", "-rq", f"projects/{name}")
        self._push({"gone": name})

    @rule(number=st.integers(0, 9))
    def push_something_else(self, number: int) -> None:
        self._push({"README.md": f"{number}\n"})

    # --- the controller

    @rule()
    def look(self) -> None:
        self._guarded(lambda: self.loop.step())

    @rule(count=st.integers(1, 3))
    def work(self, count: int) -> None:
        self._guarded(lambda: self.loop.pool.run(count))

    @rule(seconds=st.sampled_from([0.5, 5.0, 100.0, 2000.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.clock.now += seconds
        self._guarded(lambda: self.loop.step())

    # --- what goes wrong

    @rule(stage=st.sampled_from(STAGES), before=st.booleans())
    def kill_in_a_stage(self, stage: Stage, before: bool) -> None:
        self.kill_at = (stage, before)

    @rule()
    def kill_now(self) -> None:
        self._restart()

    @rule()
    def lose_the_state_directory(self) -> None:
        self.states += 1
        self._restart()

    @rule(name=st.sampled_from(NAMES), gone=st.booleans())
    def a_service_dies(self, name: str, gone: bool) -> None:
        world, key = self.loop.world, f"inference-{name}"
        if gone:
            world.remove(key)
        elif key in world.services:
            world.services[key] = replace(world.services[key], healthy=False)

    @rule(rejected=st.booleans())
    def status_pushes_are_rejected(self, rejected: bool) -> None:
        self._hook(rejected)

    @rule(count=st.integers(1, 3))
    def stages_fail_for_a_while(self, count: int) -> None:
        self.flaky = count

    @rule(name=st.sampled_from(NAMES), rounds=st.integers(1, 3))
    def content_is_bad(self, name: str, rounds: int) -> None:
        if (name, rounds) not in {(project, content.rounds) for project, content in self.history}:
            self.bad.add((name, rounds))

    @rule(gone=st.booleans())
    def the_remote_goes_away(self, gone: bool) -> None:
        origin, away = self.loop.repos.origin, self.root / "away.git"
        if gone and origin.exists():
            origin.rename(away)
            self._guarded(lambda: self.loop.step())
            away.rename(origin)

    # --- how

    def _declare(self, name: str, content: Content) -> None:
        self.declared[name] = content
        self.history.append((name, content))
        self._push(self.loop.project(name, content.rounds, content.more()))

    def _push(self, files: dict[str, str]) -> None:
        git(self.loop.user, "add", "-A")
        if git(self.loop.user, "status", "--porcelain") or files:
            git(self.loop.user, "commit", "-q", "--allow-empty", "-m", "Before")
        for path, text in files.items():
            (self.loop.user / path).parent.mkdir(parents=True, exist_ok=True)
            (self.loop.user / path).write_text(text)
        git(self.loop.user, "add", "-A")
        git(self.loop.user, "commit", "-q", "--allow-empty", "-m", "A change")
        git(self.loop.user, "push", "-q", "origin", "HEAD:main")

    def _point(self, view: ProjectView, stage: Stage, *, before: bool) -> None:
        if self.kill_at == (stage, before):
            self.kill_at = None
            raise Killed
        if before and stage is Stage.TRAIN and view.declared is not None:
            rounds = view.declared.sla.training_configuration.training_rounds
            if (view.name, rounds) in self.bad:
                raise TrainingError("FL5015", "fit_model raised.", cure="Mend it.")
        if before and self.flaky:
            self.flaky -= 1
            raise TrainingError("FL5002", "The process died.", cure="It is started again.", transient=True)

    def _guarded(self, act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except Killed:
            self._restart()

    def _restart(self) -> None:
        """A new process: all memory is gone, waiting work too. The lease of the dead one is free at once."""
        self.loop.engine.journal.close()
        self.loop.start(f"state-{self.states}")
        self.loop.controller.lease.try_acquire()

    def _hook(self, rejected: bool) -> None:
        hook = self.loop.repos.origin / "hooks" / "update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\ncase $1 in refs/heads/status/*) exit 1;; esac\n" if rejected else "#!/bin/sh\nexit 0\n")
        hook.chmod(0o755)

    # --- what must be true in the end

    def _converges(self) -> None:
        self._hook(False)
        self.flaky, self.kill_at = 0, None
        for _ in range(4):
            self.loop.clock.now += 2000
            self.loop.controller._publisher.retry()
            self.loop.settle(20)
        loop, world = self.loop, self.loop.world
        commits, actions = loop.commits(), world.actions
        documents = read_documents(loop.engine.status.read())
        assert documents.keys() == self.declared.keys()
        for name, content in self.declared.items():
            self._is_as_declared(name, content)
        kept = {f"inference-{name}" for name, content in self.declared.items() if self._may_serve(name, content)}
        assert world.services.keys() <= kept
        assert world.doubles == 0
        for _ in range(5):
            loop.clock.now += 3000
            loop.settle()
        assert (loop.commits(), world.actions) == (commits, actions), "idle means idle"

    def _may_serve(self, name: str, content: Content) -> bool:
        """What is suspended, invalid, stalled or waiting keeps what it had."""
        return content.deploy or not self._works(name, content)

    def _works(self, name: str, content: Content, seen: tuple[str, ...] = ()) -> bool:
        if content.invalid or (name, content.rounds) in self.bad:
            return False
        if not content.after:
            return True
        other = self.declared.get(content.after)
        if other is None or content.after in (*seen, name):
            return False
        return not other.suspend and self._works(content.after, other, (*seen, name))

    def _is_as_declared(self, name: str, content: Content) -> None:
        synced = self.loop.says(name, "Synced")
        if content.suspend and not content.invalid:
            assert synced[1] in {"Suspended", "InvalidSLA"}, (name, content, synced)
        elif self._works(name, content):
            assert synced[:2] == ("True", "Converged"), (name, content, synced)
            service = self.loop.world.services.get(f"inference-{name}")
            assert bool(service) is content.deploy
            if service:
                assert service.healthy
                assert service.labels["flops.digest"] == self.loop.status(name)["digest"]


Site.TestCase.settings = settings(
    max_examples=400 if SOAK else 8,
    stateful_step_count=40 if SOAK else 20,
    deadline=None,
    derandomize=not SOAK,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestSite = pytest.mark.timeout(7200 if SOAK else 300)(Site.TestCase)
