"""The journal keeps order, survives damage, and tells what was cut off."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from reconciler.errors import ControllerError
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


def test_a_journal_that_is_out_of_reach_stays_where_it_is(tmp_path: Path) -> None:
    """Nothing about it is damaged: put aside, it would have cost its history and the lease of whoever works with it."""
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(ControllerError, match=r"FL9001 .*unable to open"):
        journal(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["journal.db"]


def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ControllerError, match=r"FL9001 .*: File exists"):
        journal(tmp_path / "file")


def test_a_damaged_name_of_a_table_puts_the_journal_aside(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book.append("a", "stage", "before")
    book.close()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as vandal, vandal:
        vandal.execute("PRAGMA writable_schema=ON")
        vandal.execute("UPDATE sqlite_master SET name = CAST(x'CF' AS TEXT), sql = 'CREATE' WHERE name = 'events'")
    assert journal(tmp_path).events() == []
    assert (tmp_path / "journal.damaged").exists()


def damaged(path: Path, table: str) -> None:
    """Overwrite the page at which a table begins."""
    with sqlite3.connect(path) as database:
        page = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("table", ["events", "stages", "lease"])
def test_a_damaged_table_costs_its_history_and_not_the_service(tmp_path: Path, table: str) -> None:
    """At the start, whichever it is: a controller that starts has a journal that works."""
    path = tmp_path / "journal.db"
    made = Journal(path, clock=lambda: 1.0)
    made.append("a", "kind", "message")
    made.begin("a", "d", "train", "c")
    made.take_lease("me", None)
    made.close()
    damaged(path, table)
    journal = Journal(path, clock=lambda: 1.0)
    assert journal.lease() is None
    assert journal.take_lease("me", None) == 1
    journal.finish(journal.begin("a", "d", "train", "c"), "done", "", 1.0)
    assert len(journal.stages("a")) == 1
    assert path.with_suffix(".damaged").is_file()


def test_a_journal_that_is_damaged_while_it_is_used_is_replaced_by_the_next_intent(tmp_path: Path) -> None:
    """That intent is refused, and so is everything under the lease that went with the file."""
    path = tmp_path / "journal.db"
    journal = Journal(path, clock=lambda: 1.0)
    journal.begin("a", "d", "train", "c")
    journal.fence = journal.take_lease("me", None)
    damaged(path, "stages")
    with pytest.raises(ControllerError, match="FL9012") as refused:
        journal.begin("a", "d", "train", "c")
    assert refused.value.transient
    with pytest.raises(ControllerError, match="FL9021"):
        journal.begin("a", "d", "train", "c")
    assert not journal.beat_lease(journal.fence or 0)
    journal.fence = journal.take_lease("me", journal.lease())
    assert journal.begin("a", "d", "train", "c")


def test_an_event_whose_data_cannot_be_read_is_told_without_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", clock=lambda: 1.0)
    journal.append("a", "kind", "message", data={"a": 1})
    with sqlite3.connect(tmp_path / "journal.db") as vandal:
        vandal.execute("UPDATE events SET data = 'x'")
    assert [(event.message, event.data) for event in journal.events("a")] == [("message", {})]
