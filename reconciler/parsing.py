"""The files of a project as models, or all that is wrong with them; and what is wrong between projects.

Pure: a folder of the same tree hash comes to the same, so `desired` keeps what it came to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from reconciler.errors import FlopsError, SourceError, SpecErrors
from reconciler.source import ProjectFiles
from reconciler.spec import MockData, ProjectSLA, load_mock_data, load_sla
from reconciler.spec.dependencies import circles, missing

SLA_NAMES = ("sla.yaml", "sla.yml", "sla.json")
MOCK_NAMES = ("mock_data.yaml", "mock_data.yml", "mock_data.json")
Problems = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A project's files as models; cached by tree hash, so that an unchanged project is never parsed twice."""

    sla: ProjectSLA
    sla_text: bytes
    mock_data: MockData | None


def parse_project(files: ProjectFiles) -> Parsed | Problems:
    """A project's SLA and mock data, or all that is wrong with them."""
    problems: list[Mapping[str, Any]] = []
    sla: ProjectSLA | None = None
    mock_data: MockData | None = None
    sla_name = next((name for name in SLA_NAMES if name in files.files), SLA_NAMES[0])
    mock_name = next((name for name in MOCK_NAMES if name in files.files), None)
    try:
        sla = load_sla(files.files[sla_name], f"{files.path}/{sla_name}")
    except SpecErrors as errors:
        problems += [error.to_dict() for error in errors.errors]
    if mock_name:
        try:
            mock_data = _mock_data(files.files[mock_name], f"{files.path}/{mock_name}")
        except SpecErrors as errors:
            problems += [error.to_dict() for error in errors.errors]
    if sla is None or problems:
        return tuple(problems)
    return Parsed(sla, files.files[sla_name], mock_data)


def _mock_data(content: bytes, path: str) -> MockData:
    """A mock-data file; many projects have the same one, which is parsed and held once."""
    try:
        return _known_mock_data(content)
    except SpecErrors:
        return load_mock_data(content, path)


@lru_cache(maxsize=256)
def _known_mock_data(content: bytes) -> MockData:
    return load_mock_data(content, "")


def wrong_dependencies(parsed: Mapping[str, Parsed | Problems], rejected: Iterable[str]) -> dict[str, FlopsError]:
    """Projects that depend on what is not there, or on themselves: they could never start."""
    depends = {
        name: tuple(item.sla.depends_on) for name, item in parsed.items() if isinstance(item, Parsed) and item.sla.depends_on
    }
    if not depends:
        return {}
    wrong: dict[str, FlopsError] = {}
    for name, _, other in missing(depends, {*parsed, *rejected}):
        cure = "Correct the name, or add that project."
        wrong.setdefault(name, SourceError("FL1031", f"depends_on names {other!r}, which is no project.", cure=cure))
    for circle in circles(depends):
        text = " → ".join(circle)
        for name in circle:
            error = SourceError("FL1032", f"The projects depend on each other in a circle: {text}.", cure="Take one away.")
            wrong.setdefault(name, error)
    return wrong
