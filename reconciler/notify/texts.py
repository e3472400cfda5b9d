"""Texts that end in somebody else's page. What tenants commit stands in names and messages, so none of it may act there.

A description is one plain line. In a comment everything of a tenant's stands in a code span, where no forge sees markup, mentions,
references or HTML; and should one look there, the `@` is followed by a character of no width.
"""

from __future__ import annotations

import re

MAX_DESCRIPTION = 140
"""GitHub's limit, in characters; the other forges take more."""
MAX_CONTEXT = 200
MAX_CELL = 400
# Control, direction and invisible characters, and halves of surrogate pairs, which are no UTF-8.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e0fff]+"
)


def line(text: object) -> str:
    """One line without what cannot be seen."""
    return " ".join(_UNSAFE.sub(" ", str(text)).split())


def cut(text: str, length: int) -> str:
    """At most `length` characters, with `…` where something is left out."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def description(text: object) -> str:
    """A commit status' description."""
    return cut(line(text), MAX_DESCRIPTION)


def context(instance: str, project: str) -> str:
    """A commit status' context: whose it is."""
    return cut(f"flops/{line(instance)}/{line(project)}", MAX_CONTEXT)


def code(text: object) -> str:
    """A code span for a cell of a Markdown table; nothing for nothing."""
    shown = cut(line(text), MAX_CELL).replace("`", "'").replace("|", "¦").replace("\\", "⧵").replace("@", "@\u200b")
    return f"`{shown}`" if shown else ""
