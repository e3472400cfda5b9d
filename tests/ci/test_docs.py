"""What the documentation says is what is there: keys, links, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ci import keys_doc
from reconciler.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", keys_doc.TABLES)
def test_every_key_is_explained(name: str) -> None:
    text = (ROOT / name).read_text()
    assert keys_doc.page(text, keys_doc.TABLES[name]) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == []


def test_commands_that_are_shown_exist() -> None:
    commands = {item.name or item.callback.__name__ for item in app.registered_commands if item.callback}
    commands |= {group.name for group in app.registered_groups if group.name}
    for page in PAGES:
        shown = set(re.findall(r"(?:^|`)flops ([a-z-]+)", page.read_text(), re.M)) - {"serve"}  # named as what is missing
        assert shown <= commands, page


def test_make_targets_that_are_shown_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M)) <= targets, page


def test_ci_runs_the_test_command_of_the_readme_last() -> None:
    command = "make test"
    assert re.search(rf"^{command}\b", (ROOT / "README.md").read_text(), re.M)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command
