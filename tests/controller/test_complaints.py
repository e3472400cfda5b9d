"""Trouble is told when it begins, and once as long as it lasts, however many looks in between do not ask for it."""

from __future__ import annotations

from pathlib import Path

from reconciler.errors import SourceError
from reconciler.events import Complaints, Observer
from reconciler.journal import Journal


def test_trouble_that_lasts_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    observer = Observer(Journal(tmp_path / "journal.db", clock=lambda: 0.0), (lambda event: told.append(event.message),))
    complain = Complaints(observer)
    error = SourceError("FL2006", "The remote cannot be fetched.", cure="Wait.", transient=True)
    for fetched in (True, False, True, False, False, True, True):
        complain.begin(all_anew=fetched)
        if fetched:
            complain(error)
    assert len(told) == 1
    complain.begin(all_anew=True)
    complain.begin(all_anew=True)
    complain(error)
    assert len(told) == 2
