"""Eight hours of nothing to do, by the injected clock: memory, descriptors and files stay as they are, nothing is told or done.

The loop is that of `flops serve` over real repos, a real registry and a real service; only clock and waiting are the test's.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from reconciler.controller import Controller as Loop
from reconciler.engine import Engine, open_engine
from reconciler.events import Observer
from reconciler.lease import TERM, Lease
from reconciler.publishing import Publisher
from tests.conftest import git
from tests.soak.site import Controller, Site, until
from tests.soak.sizes import SOAK, size

MINUTES = size("FLOPS_SOAK_MINUTES", short=4, long=8 * 60)
WAL_LIMIT = 5_000_000
"""SQLite writes its log back after 1,000 pages of 4 kB: until then it grows, and never further."""


@dataclass(frozen=True)
class Sample:
    """What must not grow. `memory` in bytes."""

    memory: int
    descriptors: int
    files: int
    journal: int

    @classmethod
    def of(cls, engine: Engine) -> Sample:
        """As it is now."""
        process = psutil.Process()
        journal = sum(path.stat().st_size for path in engine.state.glob("journal.db*"))
        return cls(process.memory_info().rss, process.num_fds(), sum(len(names) for *_, names in os.walk(engine.state)), journal)


class Idle:
    """A loop whose waiting makes simulated time pass, and which takes samples of itself."""

    def __init__(self, engine: Engine) -> None:
        self.now, self.looks = 0.0, 0
        self.samples: list[Sample] = []
        self._engine = engine
        self._beaten = 0.0
        self.lease = Lease(engine.journal, monotonic=lambda: self.now)
        observer = Observer(engine.journal)
        self.publisher = Publisher(engine.status, lambda text: observer.tell("", "warning", text))
        self.loop = Loop(
            engine, observer, publisher=self.publisher, lease=self.lease, monotonic=lambda: self.now, wait=self._wait,
            uniform=random.Random(0).uniform,
        )  # fmt: skip

    def _wait(self, _: object, seconds: float | None) -> None:
        assert seconds is not None, "a loop that serves always has something to wait for"
        self.now += seconds
        self.looks += 1
        while self._beaten < self.now:  # the heartbeat has a thread and a time of its own
            self._beaten += TERM / 3
            assert self.lease.renew()
        if self.now >= (len(self.samples) + 1) * MINUTES * 6:
            self.samples.append(Sample.of(self._engine))
        if self.now >= MINUTES * 60:
            self.loop.stop()


@pytest.mark.e2e
@pytest.mark.timeout(3 * 3600 if SOAK else 900)
def test_nothing_grows_and_nothing_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site(tmp_path)
    try:
        controller = Controller(site, "serve")
        until(lambda: site.is_as_declared(0), "the model serves")
        controller.stop()
        engine = open_engine(site.clone, site.state)
        before = (git(site.repos.origin, "for-each-ref"), site.stages(), len(engine.journal.events(limit=10**6)))
        idle = Idle(engine)
        idle.loop.serve()
        after = (git(site.repos.origin, "for-each-ref"), site.stages(), len(engine.journal.events(limit=10**6)))
    finally:
        site.end()
    if SOAK:
        with capsys.disabled():
            print(f"idle: {idle.now / 3600:.1f} simulated hours, {idle.looks:,} waits: {idle.samples[0]} → {idle.samples[-1]}")
    assert before == after
    assert (idle.publisher.commits, idle.publisher.pushes, idle.publisher.failures) == (0, 0, 0)
    first, *later = idle.samples[1:]
    assert max(item.memory for item in later) < first.memory + 8_000_000
    assert {item.descriptors for item in later} == {first.descriptors}
    assert max(item.files for item in later) == first.files
    assert max(item.journal for item in later) < before_size(site) + WAL_LIMIT


def before_size(site: Site) -> int:
    """The journal without its log."""
    return (site.state / "journal.db").stat().st_size
