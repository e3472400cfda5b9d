"""`--help` says all that was written for it: neither markup nor a version of click may swallow a part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer.main
from typer.testing import CliRunner

from reconciler.cli import app


def commands() -> Iterator[tuple[str, ...]]:
    def below(group: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in getattr(group, "commands", {}).items():
            yield (*path, name)
            yield from below(command, (*path, name))

    yield from below(typer.main.get_command(app), ())


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_word_of_help_is_shown(path: tuple[str, ...]) -> None:
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    shown = words(CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "400", "TERM": "dumb"}).output)
    for parameter in command.params:
        written = getattr(parameter, "help", None)
        assert written or parameter.param_type_name == "option", f"{' '.join(path)}: nothing says what {parameter.name} is"
        assert written is None or words(written) in shown, f"{' '.join(path)}: {parameter.name}"
