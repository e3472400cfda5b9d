"""`kill -9` of the real controller at every stage's boundaries and in the middle of every stage, as its journal shows them.

The journal is watched from outside: when the intent or the result of a stage appears, or a random part of what the stage usually
takes after its intent, the process gets SIGKILL. Then another one – `serve` and `reconcile --once` in turn – goes on, until the
next kill; in the end of each content what is there is compared with what was told. A client asks the served model all the time.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.plan import Stage
from tests.soak.client import Client, Failure
from tests.soak.site import Controller, Site, until

MOMENTS = ("intent", "middle", "result")
CHAIN = 5
"""Kills within one content: each lets the work come a little further."""
WITHOUT_TRAINING = (Stage.REGISTER, Stage.PACKAGE, Stage.DEPLOY, Stage.VERIFY)
"""What runs when a content comes back."""
SERVER_KILLS = 7
"""Every so often the inference server is killed as well: then a request that it was answering may fail, and no other."""

PATIENCE = 300.0
"""Seconds until something that must happen has not."""

Target = tuple[Stage, str]


@dataclass
class Report:
    """What came of it. `missed` are targets that a process passed before it could be hit; they are aimed at again."""

    kills: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    """Kills that left an intent without a result."""
    server_kills: list[float] = field(default_factory=list)
    missed: int = 0
    contents: int = 0
    reverts: int = 0
    recorded: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    orphans: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    answered: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def doubles(self) -> list[str]:
        """Digests that were trained or recorded more than once."""
        return [digest for counted in (self.recorded, self.trained) for digest, times in counted.items() if times > 1]

    @property
    def unexcused(self) -> list[Failure]:
        """Failed requests that were not in flight in a killed server."""
        return [item for item in self.failures if not any(item.in_flight_at(moment) for moment in self.server_kills)]

    def lines(self) -> Iterator[str]:
        """The summary."""
        kills = self.kills.total()
        each = self.seconds / max(kills, 1)
        yield f"{kills} kills in {self.seconds:.0f} s ({each:.1f} s each), {self.cut} of them within a stage"
        yield f"{self.contents} contents, {self.reverts} of them reverts; {len(self.recorded)} digests trained"
        places = ", ".join(f"{name} {times}" for name, times in sorted(self.kills.items()))
        yield f"at: {places}; missed and aimed at again: {self.missed}"
        yield f"double trainings {len(self.doubles)}, orphans {len(self.orphans)}, lost status {len(self.differences)}"
        failed = f"{len(self.failures)} failed, {len(self.unexcused)} of them without having been in flight in a killed server"
        yield f"{self.answered} requests answered, {failed}; {len(self.server_kills)} servers killed"


class Killing:
    """A number of kills at one site, chosen by a seed."""

    def __init__(self, root: Path, kills: int, *, seed: int = 0, tell: Callable[[str], None] = lambda _: None) -> None:
        self._random = random.Random(seed)
        self._tell = tell
        self._wanted = kills
        self._site = Site(root)
        self._seeds = [0]
        self._controller = Controller(self._site, "serve")
        self._pool: list[Target] = []
        self._usual: dict[str, float] = {}
        self._behind = 0
        """The last row of the journal before the controller that runs had anything to do with the content that is declared."""
        self.report = Report()

    def run(self) -> Report:
        """All of it; services and processes are gone afterwards."""
        site, report = self._site, self.report
        started = time.monotonic()
        with ExitStack() as stack:
            stack.callback(site.end)
            until(lambda: site.is_as_declared(0), "the first model serves")
            client = stack.enter_context(Client(site.service()["address"]))
            started = time.monotonic()
            while report.kills.total() < self._wanted:
                self._content()
                report.seconds, report.answered, report.failures = time.monotonic() - started, client.answered, client.failures
                self._tell(next(report.lines()))
            self._controller.stop()
            report.orphans += site.orphans()
            report.recorded, report.trained = site.recorded(), site.trained()
        return report

    def _content(self) -> None:
        """Declare another content, kill on the way to it, and see what is there in the end."""
        site, report = self._site, self.report
        back = len(self._seeds) > 1 and self._random.random() < 0.3
        seed = self._random.choice(self._seeds[:-1]) if back else max(self._seeds) + 1
        chain = self._chain(WITHOUT_TRAINING if back else tuple(Stage))
        self._behind = site.last_row()
        site.declare(seed)
        self._seeds = [*(item for item in self._seeds if item != seed), seed]
        for target in chain:
            if report.kills.total() < self._wanted:
                self._strike(target, seed)
        if self._controller.kind == "once":
            self._controller.process.wait(PATIENCE)
        if not self._controller.alive:
            self._start("serve")
        until(lambda: site.is_as_declared(seed), f"seed {seed} serves", PATIENCE)
        report.contents += 1
        report.reverts += back
        # What was killed takes a moment to end, and the status may be one push behind what runs.
        pid = self._controller.process.pid
        with suppress(AssertionError):
            until(lambda: not site.orphans(pid) and not site.differences(), "all is as told", 60, every=0.5)
        report.orphans += site.orphans(pid)
        report.differences += site.differences()
        report.recorded, report.trained = site.recorded(), site.trained()

    def _chain(self, stages: tuple[Stage, ...]) -> list[Target]:
        """The next targets that one content can have, in the order of its stages; what is deployed is not verified again."""
        if len(self._pool) < len(Stage) * len(MOMENTS):
            fresh = [(stage, moment) for stage in Stage for moment in MOMENTS]
            self._random.shuffle(fresh)
            self._pool += fresh
        chosen: dict[Stage, Target] = {}
        for target in self._pool:
            other = {Stage.DEPLOY: Stage.VERIFY, Stage.VERIFY: Stage.DEPLOY}.get(target[0])
            if target[0] in stages and target[0] not in chosen and other not in chosen and len(chosen) < CHAIN:
                chosen[target[0]] = target
        for target in chosen.values():
            self._pool.remove(target)
        return [chosen[stage] for stage in Stage if stage in chosen]

    def _start(self, kind: str) -> None:
        self._behind = self._site.last_row()
        self._controller = Controller(self._site, kind)

    def _strike(self, target: Target, seed: int) -> None:
        """Wait for a moment and kill the controller then; one that converged first had no such moment."""
        stage, moment = target
        site, report = self._site, self.report
        if not self._controller.alive:
            self._start(("serve", "once")[report.kills.total() % 2])
        if not self._await(stage, moment, self._behind, seed):
            report.missed += 1
            self._pool.append(target)
            return
        if moment == "middle":
            time.sleep(self._random.random() * self._usual.get(stage, 0.2))
        if report.kills.total() % SERVER_KILLS == SERVER_KILLS - 1:
            self._kill_server()
        self._controller.kill()
        after = site.stages(self._behind)
        self._usual |= {row[2]: row[4] for row in after if row[3] == "done" and row[4]}
        report.cut += bool(after and after[-1][3] is None)
        report.kills[f"{stage}.{moment}"] += 1

    def _await(self, stage: Stage, moment: str, last: int, seed: int) -> bool:
        """Whether the moment came: the intent, or the result, of a stage behind row `last` of the journal."""
        deadline, looked = time.monotonic() + PATIENCE, time.monotonic()
        while self._controller.alive:
            rows = [row for row in self._site.stages(last) if row[2] == stage]
            if rows and (moment != "result" or rows[-1][3] is not None):
                return True
            now = time.monotonic()
            assert now < deadline, f"{stage} {moment} did not come: {self._site.stages(last)}"
            if now - looked > 2:
                looked = now
                if self._site.is_as_declared(seed):
                    return False
            time.sleep(0.002)
        return False

    def _kill_server(self) -> None:
        pid = self._site.service().get("pid")
        if pid:
            self.report.server_kills.append(time.monotonic())
            os.kill(int(pid), signal.SIGKILL)
