"""What somebody sees who has just begun."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reconciler.cli import app
from reconciler.scaffold import init_repository
from tests.conftest import Repos, commit

ROOT = Path(__file__).parents[2]


def test_the_version_is_that_of_the_package() -> None:
    said = CliRunner().invoke(app, ["--version"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (said.exit_code, said.output) == (0, f"flops {version}\n")


@pytest.mark.parametrize(("settings", "name", "wanted"), [
    ("", [], ("No federation is declared", "flops.yaml", "docs/nodes.md")),
    ("federations: {hospitals: {listen: 127.0.0.1:1}}\n", [], ("No node of hospitals is declared", "nodes/NAME.yaml")),
    ("federations: {hospitals: {listen: 127.0.0.1:1}}\n", ["hospitals"], ("No node of hospitals", "flops node keygen")),
])  # fmt: skip
def test_without_nodes_it_is_said_what_to_do(repos: Repos, settings: str, name: list[str], wanted: tuple[str, ...]) -> None:
    clone = repos.clone()
    init_repository(clone, force=True)
    commit(clone, {"flops.yaml": settings} if settings else {"x": ""})
    said = CliRunner().invoke(app, ["nodes", *name, "--repo", str(clone)])
    assert said.exit_code == 0, said.output
    assert all(text in said.output for text in wanted)
    assert "─" not in said.output, "there is no table"
