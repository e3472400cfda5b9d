"""Texts that end in somebody else's page. What tenants commit stands in names and messages, so none of it may act there.

A description is one plain line. In a comment everything of a tenant's stands in a code span, where no forge sees markup, mentions,
references or HTML; and should one look there, the `@` is followed by a character of no width.
"""

from __future__ import annotations

MAX_DESCRIPTION = 140
"""GitHub's limit, in characters; the other forges take more."""
MAX_CONTEXT = 200
MAX_CELL = 300


def line(text: object) -> str:
    """One line without what cannot be seen: control, direction and invisible characters, halves of surrogate pairs."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def cut(text: str, length: int) -> str:
    """At most `length` characters, with `…` where something is left out."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def description(text: object) -> str:
    """A commit status' description."""
    return cut(line(text), MAX_DESCRIPTION)


def context(instance: str, project: str) -> str:
    """A commit status' context: whose it is."""
    return cut(f"flops/{line(instance)}/{line(project)}", MAX_CONTEXT)


def code(text: object, length: int = MAX_CELL) -> str:
    """A code span for a cell of a Markdown table; nothing for nothing."""
    shown = cut(line(text), length).replace("`", "'").replace("|", "¦").replace("\\", "⧵").replace("@", "@\u200b")
    return f"`{shown}`" if shown else ""
