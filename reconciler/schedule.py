"""Schedules: the last tick of a cron expression, in UTC, as an input of the training like any other.

So a scheduled training needs no memory: at each tick the project's digest is another one, and a reconciler that was down, restarted
or lost its state trains once for the last tick that it missed – never twice for one, and never for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

INPUT = "triggers.schedule"
AHEAD = timedelta(days=1)
"""A recorded tick that lies further in the future comes of a clock that was wrong, and is not believed."""


@dataclass(frozen=True, slots=True)
class _Span:
    tick: str
    starts: datetime
    ends: datetime


class Schedules:
    """The current tick of each expression; worked out anew only when the next one has come."""

    def __init__(self) -> None:
        self._spans: dict[str, _Span] = {}

    def tick(self, expression: str, now: float, recorded: str = "") -> str:
        """The tick at or before `now` (seconds since the epoch), such as 2026-11-21T03:00Z; empty when there never is one.

        A clock that went back does not bring an old model back: the `recorded` tick stays until a later one comes.
        """
        moment = datetime.fromtimestamp(now, UTC)
        span = self._spans.get(expression)
        if span is None or not span.starts <= moment < span.ends:
            span = self._spans[expression] = _span(expression, moment)
        limit = _text(moment + AHEAD)
        return recorded if span.tick < recorded <= limit else span.tick


def _span(expression: str, moment: datetime) -> _Span:
    # The iterator gives what lies before: a tick of this very minute is found from the next one on.
    from_here = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    try:
        before = next(CronSim(expression, from_here, reverse=True))
        after = next(CronSim(expression, moment))
    except (CronSimError, StopIteration):
        far = timedelta(days=1)
        return _Span("", moment - far, moment + far)
    return _Span(_text(before), before, after)


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%MZ")
