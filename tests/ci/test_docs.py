"""What the documentation says is what is there: keys, links, commands."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from reconciler.cli import app
from reconciler.spec import OperatorConfig, ProjectSLA

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ROW = re.compile(r"^\| `([\w.]+)` \|", re.M)


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models inside a type such as `list[Cluster]` or `Deployment | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        found.append(key)
        for inner in models_in(field.annotation):
            found += keys(inner, f"{key}.")
    return found


def test_every_key_is_explained_in_the_order_of_the_model() -> None:
    sla, _, operator = (ROOT / "docs" / "sla.md").read_text().partition("# flops.yaml")
    assert ROW.findall(sla) == keys(ProjectSLA)
    assert ROW.findall(operator) == keys(OperatorConfig)


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
