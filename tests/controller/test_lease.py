"""One controller at a time: dead, silent, paused, with clocks that jump. Two journals on one file, each with a clock of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.errors import ControllerError
from reconciler.journal import Journal
from reconciler.lease import TERM, Lease, holder_is_dead, identity
from tests.conftest import Repos
from tests.controller.looping import Clock, Looping
from tests.controller.test_journal import damaged


class Party:
    """A controller's journal, clock and lease."""

    def __init__(self, folder: Path, name: str, *, dead: tuple[str, ...] = ()) -> None:
        self.clock = Clock()
        self.journal = Journal(folder / "journal.db", clock=self.clock)
        self.lease = Lease(self.journal, monotonic=self.clock, holder=name, is_dead=dead.__contains__)

    def works(self) -> bool:
        """Whether the journal takes an intent of this controller."""
        try:
            self.journal.begin("p", "d", "train", "c")
        except ControllerError:
            return False
        return True


def test_one_holds_it_and_the_other_waits(tmp_path: Path) -> None:
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two")
    assert one.lease.try_acquire()
    for _ in range(100):
        one.clock.now += TERM / 3
        two.clock.now += TERM / 3
        assert one.lease.renew()
        assert not two.lease.try_acquire()
    assert one.works()


def test_one_that_is_silent_for_a_term_is_replaced_and_can_do_nothing_more(tmp_path: Path) -> None:
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two")
    assert one.lease.try_acquire()
    assert not two.lease.try_acquire()
    two.clock.now += TERM - 0.1
    assert not two.lease.try_acquire()
    two.clock.now += 0.2
    assert two.lease.try_acquire()
    # The first one was paused: its own clock did not move, so it believes what it believed.
    assert one.lease.held
    assert not one.works()
    assert not one.lease.renew()
    assert not one.lease.held
    assert two.works()


def test_one_that_wakes_in_time_goes_on(tmp_path: Path) -> None:
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two")
    one.lease.try_acquire()
    two.lease.try_acquire()
    two.clock.now += TERM - 1
    assert one.lease.renew()
    two.clock.now += TERM - 1
    assert not two.lease.try_acquire()
    assert one.works()


def test_both_paused_and_the_first_wakes_first(tmp_path: Path) -> None:
    """Neither clock counts the pause; whoever renews or waits a term after it decides."""
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two")
    one.lease.try_acquire()
    two.lease.try_acquire()
    assert one.lease.renew()
    assert not two.lease.try_acquire()
    assert one.works()


@pytest.mark.parametrize("jump", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_jump_of_either_clock_never_makes_two(tmp_path: Path, jump: float) -> None:
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two")
    one.lease.try_acquire()
    two.lease.try_acquire()
    one.clock.now += jump
    one.lease.renew()
    two.clock.now += jump
    took = two.lease.try_acquire()
    assert not (took and one.works())
    assert took or one.works()


def test_two_that_see_the_same_silence_do_not_both_take_it(tmp_path: Path) -> None:
    one, two, three = (Party(tmp_path, name) for name in ("one", "two", "three"))
    one.lease.try_acquire()
    for party in (two, three):
        party.lease.try_acquire()
        party.clock.now += TERM + 1
    seen = three.lease._seen
    assert two.lease.try_acquire()
    assert not three.lease.try_acquire()
    assert three.journal.take_lease("three", seen) is None


def test_the_dead_and_those_that_left_are_replaced_at_once(tmp_path: Path) -> None:
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two", dead=("one",))
    one.lease.try_acquire()
    assert two.lease.try_acquire()
    two.lease.release()
    assert one.lease.try_acquire()
    assert one.works()
    assert not two.works()


def test_a_state_directory_that_was_replaced_is_not_worked_on(tmp_path: Path) -> None:
    one = Party(tmp_path, "one")
    one.lease.try_acquire()
    for path in tmp_path.iterdir():
        path.unlink()
    two = Party(tmp_path, "two")
    assert two.lease.try_acquire()
    assert not one.lease.renew()
    assert not one.works()
    assert two.works()


def test_processes_are_known_by_more_than_their_number() -> None:
    assert not holder_is_dead(identity())
    place, pid, started = identity().rsplit("/", 2)
    assert holder_is_dead(f"{place}/{pid}/{float(started) - 1}")
    assert not holder_is_dead(f"elsewhere,{place}/{pid}/1.0"), "what cannot be seen from here may be alive"
    assert not holder_is_dead("")
    child = subprocess.Popen(
        [sys.executable, "-c", "from reconciler.lease import identity; print(identity())"], stdout=subprocess.PIPE
    )
    told = child.communicate()[0].decode().strip()
    assert holder_is_dead(told)
    assert os.getpid() != child.pid


def test_a_journal_that_is_damaged_while_a_loop_stands_by_ends_no_loop(tmp_path: Path) -> None:
    """It is complained of, put aside, and the next try has a new one."""
    one, two = Party(tmp_path, "one"), Party(tmp_path, "two")
    assert one.lease.try_acquire()
    one.journal.close()
    damaged(tmp_path / "journal.db", "lease")
    told: list[str] = []
    assert not two.lease.acquired(lambda error: told.append(error.code))
    assert two.lease.acquired(lambda error: told.append(error.code))
    assert told == ["FL9012"]
    assert two.works()


PAUSED = """
import sys, time
from pathlib import Path
from reconciler.errors import ControllerError
from reconciler.journal import Journal
from reconciler.lease import Heartbeat, Lease
journal = Journal(Path(sys.argv[1]), clock=time.time)
lease = Lease(journal, monotonic=time.monotonic)
print(lease.try_acquire(), flush=True)
Heartbeat(lease, lambda: None)
for line in sys.stdin:
    try:
        print(journal.begin("p", "d", "train", "c") and "begun", flush=True)
    except ControllerError as refused:
        print(refused.code, flush=True)
"""


def test_a_holder_that_was_stopped_and_goes_on_starts_nothing(tmp_path: Path) -> None:
    """SIGSTOP, as by a debugger or a frozen machine: alive for everybody who asks, silent for longer than the term."""
    arguments = [sys.executable, "-c", PAUSED, str(tmp_path / "journal.db")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        holder.stdin.write("\n")
        assert holder.stdout.readline() == "begun\n"
        second = Party(tmp_path, "second")
        second.lease._is_dead = holder_is_dead
        holder.send_signal(signal.SIGSTOP)
        holder.stdin.write("\n")
        assert not second.lease.try_acquire(), "it is not dead"
        second.clock.now += TERM + 1
        assert second.lease.try_acquire()
        assert second.works()
        holder.send_signal(signal.SIGCONT)
        assert holder.stdout.readline() == "FL9021\n"
        assert second.lease.renew()
        holder.stdin.close()


def test_a_loop_that_lost_its_lease_calls_off_and_stands_by(repos: Repos) -> None:
    """Another one takes over while a stage runs: that stage ends, no further one begins, and nothing is trained twice."""
    loop = Looping(repos)
    loop.edit(loop.project("a"))
    other = Party(repos.root / "state", "other")
    taken: list[bool] = []

    def take_over(view: object, stage: object) -> None:
        if not taken:
            other.lease.try_acquire()
            other.clock.now += TERM + 1
            taken.append(other.lease.try_acquire())
            assert not loop.controller.leadership.lease.renew()
            loop.controller.leadership.lose()

    loop.before = take_over
    waits = 0
    original = loop.controller._wait

    def wait(changed: object, seconds: float | None) -> None:
        nonlocal waits
        waits += 1
        if loop.controller.leadership.standing_by:
            if waits > 40:
                loop.controller.stop()
            elif waits > 30:
                other.lease.release()
        original(changed, seconds)  # type: ignore[arg-type]
        if loop.world.services and not loop.pool.waiting:
            loop.controller.stop()

    loop.controller._wait = wait
    loop.controller.serve()
    assert taken == [True]
    assert [stage for _, stage in loop.stages].count("train") == 1
    assert any("taken over" in text for text in loop.warnings)
    assert any("stands by" in text for text in loop.warnings)
    assert "inference-a" in loop.world.services
