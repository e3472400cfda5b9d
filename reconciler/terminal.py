"""How wide a line is, and what a table looks like: for people at terminals of any width, and for `grep`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

_ENDLESS = 10_000
"""Columns of what is no terminal: a file or a pipe has lines, and `grep` finds whole ones."""


def open_console() -> Console:
    """Standard output; nothing is wrapped where it is no terminal, unless COLUMNS says how wide it is."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _ENDLESS)


class Listing(Table):
    """A table without lines, as other command lines print theirs.

    Every word stays whole, so that it can be copied: in a narrow terminal columns of `prose` are wrapped between words, and what is
    wider still is left to the terminal.
    """

    def __init__(self, *columns: str, prose: Collection[str] = (), right: Collection[str] = ()) -> None:
        super().__init__(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in columns:
            self.add_column(name.upper(), no_wrap=name not in prose, justify="right" if name in right else "left")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The rows, at least as wide as their words."""
        for column in self.columns:
            if column.no_wrap:
                column.min_width = max(console.render_str(str(cell)).cell_len for cell in (column.header, *column.cells))
        least = Measurement.get(console, options.update(width=_ENDLESS), self).minimum
        yield from super().__rich_console__(console, options.update(width=max(options.max_width, least)))


def show(console: Console, what: RenderableType) -> None:
    """Print what may be wider than the terminal, whole."""
    console.print(what, crop=False, highlight=False)
