"""Whose turn it is: once each, newest content at once, failures with backoff, fights spaced out."""

from __future__ import annotations

from reconciler.workqueue import FIGHT_MENDS, LAST_DELAY, WorkQueue


def queue(parallel: int = 2) -> WorkQueue:
    return WorkQueue(parallel, lambda _, high: high)


def test_a_name_put_twice_is_there_once_and_keeps_its_turn() -> None:
    work = queue()
    work.put("a", "1")
    work.put("b", "1")
    work.put("a", "2")
    assert list(work.due(0.0)) == ["a", "b"]


def test_what_is_worked_on_does_not_start_again() -> None:
    work = queue(1)
    work.put("a", "1")
    work.start("a")
    work.put("a", "2")
    assert list(work.due(0.0)) == []
    assert not work.has_room


def test_failures_back_off_by_doubling_up_to_a_quarter_of_an_hour() -> None:
    work = queue()
    delays = [work.failed("a", "1", 0.0) for _ in range(14)]
    assert delays[:4] == [0.75, 1.5, 3.0, 6.0]
    assert delays[-1] == LAST_DELAY
    work.put("a", "1")
    assert list(work.due(899.0)) == []
    assert work.next_due(899.0) == 1.0
    assert list(work.due(900.0)) == ["a"]


def test_jitter_stays_between_half_and_the_whole() -> None:
    seen = []

    def uniform(low: float, high: float) -> float:
        seen.append((low, high))
        return low

    assert WorkQueue(1, uniform).failed("a", "1", 0.0) == 0.375
    assert seen == [(0.375, 0.75)]


def test_new_content_starts_at_once_whatever_the_old_one_did() -> None:
    work = queue()
    work.failed("a", "1", 0.0)
    work.put("a", "1")
    assert list(work.due(0.1)) == []
    work.put("a", "2")
    assert list(work.due(0.1)) == ["a"]
    assert work.failures("a", "2") == 0


def test_one_project_that_backs_off_does_not_hold_another_back() -> None:
    work = queue()
    work.failed("a", "1", 0.0)
    work.put("a", "1")
    work.put("b", "1")
    assert list(work.due(0.1)) == ["b"]


def test_mends_of_one_content_again_and_again_are_a_fight() -> None:
    work = queue()
    told = [work.succeeded("a", "1", float(second)) for second in range(FIGHT_MENDS + 1)]
    assert told == [False] * FIGHT_MENDS + [True]
    work.put("a", "1")
    assert list(work.due(10.0)) == []
    assert work.fighting("a")
    assert not [work.succeeded("b", "1", hour * 3600.0) for hour in range(10)].count(True)


def test_what_is_tried_again_earlier_than_planned_is_due_and_what_left_is_not() -> None:
    work = queue()
    for name in ("a", "b", "c"):
        work.failed(name, "1", 0.0)
        work.put(name, "1")
    assert work.retry("b")
    assert list(work.due(0.1)) == ["b"]
    assert work.has_due(0.1)
    work.drop("a")
    assert work.next_due(0.1) == 0.65
    work.forget("c")
    work.start("b")
    assert work.next_due(0.1) is None
    assert not work.has_due(0.1)
    assert work.depth == 0
