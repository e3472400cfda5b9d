"""Tables: words stay whole at any width, and lines stay whole where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from reconciler.terminal import Listing, open_console, show

NAME, DIGEST, PROSE = "a-project-with-a-rather-long-name", "274c16fba9a6", "words that may be wrapped where there is little room"


def printed(width: int) -> str:
    table = Listing("project", "digest", "says", "size", prose=("says",), right=("size",))
    table.add_row(NAME, DIGEST, PROSE, "[green]1.5 MB[/]")
    table.add_row("b", "", "", "")
    console = Console(file=io.StringIO(), width=width)
    show(console, table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [1, 20, 60, 80, 200])
def test_every_word_is_whole_at_any_width(width: int) -> None:
    text = printed(width)
    assert {NAME, DIGEST, *PROSE.split()} <= set(text.split())
    assert "1.5 MB" in text
    assert "…" not in text


def test_prose_is_wrapped_only_where_there_is_little_room() -> None:
    assert PROSE in printed(200)
    narrow = printed(80).splitlines()
    assert len(narrow) > 3
    assert max(len(line.rstrip()) for line in narrow) <= 80


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert open_console().width > 1000
    monkeypatch.setenv("COLUMNS", "72")
    assert open_console().width == 72
