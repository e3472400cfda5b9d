"""The files of a project, reduced to what is asked for at every look, or all that is wrong with them; and what is wrong between
projects.

Pure: a folder of the same tree hash comes to the same, so `desired` keeps what it came to. The SLA itself is not kept: as a model
it is several times as large as all of this, and hardly one of thousands is asked for at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any

from reconciler.digests import Inputs, digest_of, flatten, shared
from reconciler.errors import FlopsError, SourceError, SpecErrors
from reconciler.source import ProjectFiles
from reconciler.spec import MockData, ProjectSLA, deployment_spec, load_mock_data, load_sla, training_spec
from reconciler.spec.dependencies import circles, missing

SLA_NAMES = ("sla.yaml", "sla.yml", "sla.json")
MOCK_NAMES = ("mock_data.yaml", "mock_data.yml", "mock_data.json")
Problems = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is declared of a project by its own files.

    `training`, `gate` and `deployment` are named inputs as far as the SLA says them; `content` is what a resolved ML repo revision
    belongs to: the SLA's content, not the commit that it came with.
    """

    sla_text: bytes
    mock_data: MockData | None
    customer: str
    url: str
    ref: str | None
    subdir: str
    content: str
    training: Inputs
    gate: Inputs
    deployment: Inputs
    secrets: tuple[str, ...]
    tags: tuple[str, ...]
    steps: frozenset[str]
    depends_on: tuple[str, ...]
    platforms: str
    runtime: str | None
    schedule: str
    follows: bool
    federated: bool
    suspended: bool
    finishes: bool
    deletes: bool

    @property
    def inside(self) -> str | None:
        """The path of an ML repo inside the GitOps repo; None for one elsewhere."""
        if self.url != "." and not self.url.startswith("./"):
            return None
        return "/".join(part for part in (self.url[2:].strip("/"), self.subdir) if part)


def reduced(sla: ProjectSLA, files: ProjectFiles, mock_data: MockData | None) -> Parsed:
    """What is kept of a project's files."""
    training, deployment, triggers, gate = sla.training_configuration, sla.deployment, sla.triggers, sla.evaluation_gate
    spec = training_spec(sla)
    return Parsed(
        sla_text=files.files[_sla_name(files)],
        mock_data=mock_data,
        customer=intern(sla.customer_id),
        url=sla.ml_repo_url,
        ref=sla.ml_repo_ref,
        subdir=intern(sla.ml_repo_subdir),
        content=digest_of([sla.ml_repo_url, sla.ml_repo_ref, sla.ml_repo_subdir, spec]),
        training=Inputs(dict(flatten(spec))),
        gate=shared(Inputs(dict(flatten(gate.model_dump(mode="json"))) if gate else {})),
        deployment=shared(Inputs(dict(flatten(deployment_spec(sla))))),
        secrets=shared(tuple(sorted(set(deployment.secrets().values())))) if deployment else (),
        tags=shared(tuple(training.data_tags)),
        steps=shared(frozenset(str(step) for step in sla.post_training_steps)),
        depends_on=tuple(sla.depends_on),
        platforms=intern(",".join(sorted(sla.supported_platforms))),
        runtime=sla.runtime,
        schedule=(triggers.schedule if triggers else None) or "",
        follows=triggers is not None and triggers.on_ml_repo_push,
        federated=training.federation is not None,
        suspended=sla.suspend,
        finishes=sla.on_change == "finish",
        deletes=sla.deletion_policy == "delete",
    )


def parse_project(files: ProjectFiles) -> tuple[ProjectSLA | None, MockData | None, Problems]:
    """A project's SLA and mock data, and all that is wrong with them."""
    problems: list[Mapping[str, Any]] = []
    sla: ProjectSLA | None = None
    mock_data: MockData | None = None
    sla_name = _sla_name(files)
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
    return sla, mock_data, tuple(problems)


def _sla_name(files: ProjectFiles) -> str:
    return next((name for name in SLA_NAMES if name in files.files), SLA_NAMES[0])


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
    depends = {name: item.depends_on for name, item in parsed.items() if isinstance(item, Parsed) and item.depends_on}
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
