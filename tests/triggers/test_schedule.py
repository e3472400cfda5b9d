"""Ticks: pure of the clock, so nothing has to be remembered, and a clock that goes back brings nothing old back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from reconciler.schedule import Schedules
from tests.conftest import Repos
from tests.controller.looping import Looping


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("expression", "now", "tick"),
    [
        ("0 3 * * *", "2026-11-21T08:00:30", "2026-11-21T03:00Z"),
        ("0 3 * * *", "2026-11-21T03:00:00", "2026-11-21T03:00Z"),
        ("0 3 * * *", "2026-11-21T02:59:59", "2026-11-20T03:00Z"),
        ("*/15 * * * *", "2026-11-21T08:44:59", "2026-11-21T08:30Z"),
        ("0 8 * * 7", "2026-11-21T08:00:00", "2026-11-15T08:00Z"),
        ("0 0 1 jan mon", "2026-11-21T08:00:00", "2026-01-26T00:00Z"),
        ("0 0 30 2 *", "2026-11-21T08:00:00", ""),
    ],
)
def test_the_last_tick(expression: str, now: str, tick: str) -> None:
    assert Schedules().tick(expression, at(now)) == tick


def test_a_tick_is_kept_until_the_next() -> None:
    schedules = Schedules()
    seen = [schedules.tick("*/10 * * * *", at("2026-11-21T08:00:00") + minute * 60) for minute in range(21)]
    assert seen == ["2026-11-21T08:00Z"] * 10 + ["2026-11-21T08:10Z"] * 10 + ["2026-11-21T08:20Z"]


def test_a_clock_that_went_back_keeps_what_was_recorded_and_a_mad_record_is_not_believed() -> None:
    now = at("2026-11-21T08:00:00")
    assert Schedules().tick("0 * * * *", now, "2026-11-21T09:00Z") == "2026-11-21T09:00Z"
    assert Schedules().tick("0 * * * *", now, "2099-01-01T00:00Z") == "2026-11-21T08:00Z"
    assert Schedules().tick("0 * * * *", now, "2026-11-20T09:00Z") == "2026-11-21T08:00Z"


def test_a_project_is_trained_once_a_tick_and_once_for_many_that_were_missed(repos: Repos) -> None:
    loop = Looping(repos)
    now = at("2026-11-21T02:00:00")

    def restart() -> None:
        loop.start(f"state-{len(loop.world.trained)}")
        loop.engine.clock = lambda: now
        loop.controller._looker._desired._clock = lambda: now

    restart()
    loop.edit(loop.project("a", more='triggers: {schedule: "0 3 * * *"}\n'))
    loop.settle()
    loop.settle()
    assert len(loop.world.trained) == 1
    now = at("2026-11-21T03:00:01")
    loop.settle()
    assert len(loop.world.trained) == 2
    restart()
    loop.settle()
    assert len(loop.world.trained) == 2
    now = at("2026-11-27T12:00:00")
    restart()
    loop.settle()
    assert len(loop.world.trained) == 3
