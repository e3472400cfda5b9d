"""The budget lets through what fits, and one that is larger than everything alone."""

from __future__ import annotations

import threading

from reconciler.budget import Budget


def test_two_that_fit_run_together_and_a_third_waits() -> None:
    budget = Budget(1000, 2)
    entered = threading.Event()
    third = threading.Thread(target=lambda: _hold(budget, entered))
    with budget.take(400, 1), budget.take(400, 1):
        third.start()
        assert not entered.wait(0.05)
    assert entered.wait(10)
    third.join()


def test_one_that_is_too_large_runs_alone() -> None:
    budget = Budget(100, 1)
    with budget.take(10_000, 64):
        pass
    with budget.take(100, 1):
        pass


def _hold(budget: Budget, entered: threading.Event) -> None:
    with budget.take(400, 1):
        entered.set()
