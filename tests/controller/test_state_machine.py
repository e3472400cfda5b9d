"""Whatever happens, in whatever order, the loop converges – and then does nothing.

Real Git, real journal, real status branch; users edit, revert, rename, remove and push, also while the controller fetches, pushes
or works; it is killed before and after every write to its journal, every effect and every push; pushes are rejected, somebody
else writes the status branch, the remote goes away, services die, stages fail. CI runs a few fixed examples, `make soak` hundreds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from tests.soak.sizes import SOAK, size

NAMES = ("a", "b", "c", "d")
STAGES = tuple(Stage)
JOURNAL = ("append", "begin", "finish", "take_lease", "beat_lease", "drop_lease")
STATUS = ("publish", "_commit", "_move", "_push_once")
"""What the controller writes: the journal, and the steps from documents to a pushed commit."""


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
    delete: bool = False
    after: str = ""

    def more(self) -> str:
        lines = [DEPLOY.strip()] if self.deploy else []
        lines += ["deletion_policy: delete"] if self.delete else []
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
        self.kill_write: tuple[int, bool] | None = None
        self.meanwhile: list[Callable[[], None]] = []
        self.states = self.vandals = 0
        self._watch_writes()
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
        name=st.sampled_from(NAMES), rounds=st.integers(1, 3), deploy=st.booleans(), finish=st.booleans(), delete=st.booleans(),
        kind=st.sampled_from(["", "", "", "suspend", "invalid", "after"]), other=st.sampled_from(NAMES),
    )  # fmt: skip
    def edit(self, name: str, rounds: int, deploy: bool, finish: bool, delete: bool, kind: str, other: str) -> None:
        content = Content(rounds, deploy, kind == "suspend", finish, kind == "invalid", delete, other if kind == "after" else "")
        self._declare(name, content)

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        self._declare(*data.draw(st.sampled_from(self.history)))

    @precondition(lambda self: self.declared)
    @rule(data=st.data(), to=st.sampled_from(NAMES), mistaken=st.booleans())
    def rename(self, data: st.DataObject, to: str, mistaken: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.declared)))
        if name == to:
            return
        content = self.declared.pop(name)
        git(self.loop.user, "rm", "-rq", f"projects/{name}")
        self._declare(to, replace(content, invalid=mistaken or content.invalid))

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

    @rule(name=st.sampled_from(NAMES), rounds=st.integers(1, 3))
    def edit_meanwhile(self, name: str, rounds: int) -> None:
        """Somebody pushes between two writes of the controller: while it looks, works or pushes itself."""
        self.meanwhile.append(partial(self._declare, name, Content(rounds)))

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

    @rule(writes=st.integers(1, 12), before=st.booleans())
    def kill_at_a_write(self, writes: int, before: bool) -> None:
        self.kill_write = (writes, before)

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

    @rule(meanwhile=st.booleans())
    def somebody_writes_the_status_branch(self, meanwhile: bool) -> None:
        if meanwhile:
            self.meanwhile.append(self._vandalise)
        else:
            self._vandalise()

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

    def _watch_writes(self) -> None:
        for owner, names in ((self.loop.engine.journal, JOURNAL), (self.loop.engine.status, STATUS)):
            for name in names:
                setattr(owner, name, partial(self._write, getattr(owner, name)))

    def _write(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A write of the controller: others do something before it, and it is killed before or after it, if that is due."""
        meanwhile, self.meanwhile = self.meanwhile, []
        for act in meanwhile:
            act()
        if self.kill_write is not None:
            left, before = self.kill_write
            self.kill_write = (left - 1, before) if left > 1 else None
            if left == 1 and before:
                raise Killed
            done = write(*args, **kwargs)
            if left == 1:
                raise Killed
            return done
        return write(*args, **kwargs)

    def _vandalise(self) -> None:
        """A commit of somebody else's on the status branch, whatever was there."""
        origin, ref = self.loop.repos.origin, "refs/heads/status/default"
        parent = git(origin, "for-each-ref", "--format=%(objectname)", ref)
        if parent:
            self.vandals += 1
            tree = git(origin, "mktree") if self.vandals % 2 else git(origin, "rev-parse", f"{parent}^{{tree}}")
            git(origin, "update-ref", ref, git(origin, "-c", "user.name=V", "-c", "user.email=v@example.invalid", "commit-tree",
                                               "-p", parent, "-m", f"Mine {self.vandals}", tree))  # fmt: skip

    def _guarded(self, act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except Killed:
            self._restart()

    def _restart(self) -> None:
        """A new process: all memory is gone, waiting work too. The lease of the dead one is free at once."""
        self.loop.engine.journal.close()
        self.kill_at = self.kill_write = None
        self.loop.start(f"state-{self.states}")
        self._watch_writes()
        self.loop.controller.leadership.lease.try_acquire()

    def _hook(self, rejected: bool) -> None:
        hook = self.loop.repos.origin / "hooks" / "update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\ncase $1 in refs/heads/status/*) exit 1;; esac\n" if rejected else "#!/bin/sh\nexit 0\n")
        hook.chmod(0o755)

    # --- what must be true in the end

    def _converges(self) -> None:
        self._hook(False)
        self.flaky, self.kill_at, self.kill_write = 0, None, None
        for act in self.meanwhile:
            act()
        self.meanwhile = []
        for _ in range(4):
            self.loop.clock.now += 2000
            self.loop.controller._publisher.retry()
            self.loop.settle(20)
        loop, world = self.loop, self.loop.world
        commits, actions = loop.commits(), world.actions
        documents = read_documents(loop.engine.status.read())
        # What is to be deleted is in the inventory until no project that might be its heir is left.
        unread = any(content.invalid for content in self.declared.values())
        doomed = {name for name, content in self.history if content.delete} - self.declared.keys()
        waiting = documents.keys() - self.declared.keys()
        assert self.declared.keys() <= documents.keys()
        assert waiting <= doomed
        for name in waiting:
            assert unread or self._is_used(name), (name, self.declared)
        for name, content in self.declared.items():
            self._is_as_declared(name, content)
        kept = {f"inference-{name}" for name, content in self.declared.items() if self._may_serve(name, content)}
        assert world.services.keys() <= kept
        assert world.doubles == 0
        for _ in range(5):
            loop.clock.now += 3000
            loop.settle()
        assert (loop.commits(), world.actions) == (commits, actions), "idle means idle"

    def _is_used(self, name: str) -> bool:
        """Whether a declared project has the content of a model of another name."""
        rounds = {content.rounds for declared, content in self.history if declared == name}
        return any(content.rounds in rounds for content in self.declared.values())

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
    max_examples=size("FLOPS_SOAK_EXAMPLES", short=8, long=400),
    stateful_step_count=40 if SOAK else 20,
    deadline=None,
    derandomize=not SOAK,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestSite = pytest.mark.timeout(6 * 3600 if SOAK else 300)(Site.TestCase)
