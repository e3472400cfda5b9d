"""The journal keeps order, survives damage, and tells what was cut off."""

from __future__ import annotations

import itertools
from pathlib import Path

from reconciler.journal import Journal


def journal(path: Path) -> Journal:
    ticks = itertools.count(1000)
    return Journal(path / "journal.db", clock=lambda: float(next(ticks)))


def test_events_come_back_in_order_and_by_project(tmp_path: Path) -> None:
    book = journal(tmp_path)
    for number in range(5):
        book.append("a" if number % 2 else "b", "stage", str(number), data={"round": number})
    assert [event.message for event in book.events("a")] == ["1", "3"]
    assert [event.data["round"] for event in book.events()] == [0, 1, 2, 3, 4]
    last = book.events()[2].id
    assert [event.message for event in book.events(after=last)] == ["3", "4"]


def test_the_newest_events_are_kept_when_there_are_more_than_asked_for(tmp_path: Path) -> None:
    book = journal(tmp_path)
    for number in range(10):
        book.append("a", "stage", str(number))
    assert [event.message for event in book.events("a", limit=3)] == ["7", "8", "9"]


def test_an_intent_without_a_result_is_seen_after_a_crash(tmp_path: Path) -> None:
    book = journal(tmp_path)
    done = book.begin("a", "d1", "train", "c1")
    book.finish(done, "done", "trained", 2.5)
    book.begin("a", "d1", "gate", "c1")
    book.close()
    again = journal(tmp_path)
    assert [(item.stage, item.result, item.seconds) for item in again.stages("a")] == [
        ("train", "done", 2.5),
        ("gate", None, None),
    ]


def test_a_damaged_journal_is_put_aside(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.append("a", "stage", "before")
    book.close()
    (tmp_path / "journal.db").write_bytes(b"this is no database" * 1000)
    again = journal(tmp_path)
    again.append("a", "stage", "after")
    assert [event.message for event in again.events()] == ["after"]
    assert (tmp_path / "journal.damaged").exists()
