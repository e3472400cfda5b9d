"""What options of the command line may be given; apart from it, as it is long."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """Output of `flops validate`."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


class PlanFormat(StrEnum):
    """Output of `flops plan`."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"


class LogFormat(StrEnum):
    """Output of `flops serve`."""

    TEXT = "text"
    JSON = "json"


class Output(StrEnum):
    """Output of the commands that show something."""

    TEXT = "text"
    JSON = "json"
