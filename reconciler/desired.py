"""Desired state: every SLA at one commit, reduced to the digests that decide about its plan.

Content, not commits: a commit that does not touch a project leaves its digests as they are. Whatever moves by itself – a
branch of an ML repo – is resolved once per content of the project's folder and then taken from the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.digests import digest_of, flatten
from reconciler.errors import FlopsError, SpecErrors
from reconciler.federation.data import DataCatalog
from reconciler.federation.runtime_version import TRAINING_VERSION, mlruntime_digest
from reconciler.plan import DesiredProject
from reconciler.source import MLRepoRevision, MLRepos, ProjectFiles, Snapshot
from reconciler.spec import MockData, ProjectSLA, deployment_spec, load_mock_data, load_sla, training_spec
from reconciler.stages.model import Declared

SLA_NAMES = ("sla.yaml", "sla.yml", "sla.json")
MOCK_NAMES = ("mock_data.yaml", "mock_data.yml", "mock_data.json")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A project's files as models; cached by tree hash, so that an unchanged project is never parsed twice."""

    sla: ProjectSLA
    sla_text: bytes
    mock_data: MockData | None


class DesiredState:
    """Makes `Declared` projects of a snapshot; keeps what it parsed by tree hash."""

    def __init__(self, repos: MLRepos, catalog: DataCatalog) -> None:
        self._repos = repos
        self._catalog = catalog
        self._parsed: dict[str, Parsed | tuple[Mapping[str, Any], ...]] = {}

    def of(self, snapshot: Snapshot, recorded: Mapping[str, Mapping[str, Any]]) -> list[Declared | DesiredProject]:
        """Every project of a snapshot: `Declared`, or a `DesiredProject` with problems where it cannot be accepted.

        `recorded` are the status documents: the ML repo revisions that were resolved before.
        """
        found: list[Declared | DesiredProject] = []
        rejected = {error.where.path.split("/")[1]: error for error in snapshot.rejected if error.where}
        for name, error in rejected.items():
            found.append(_invalid(name, (error.to_dict(),)))
        for name, files in sorted(snapshot.projects.items()):
            if name in rejected:
                continue
            parsed = self._parse(files)
            if not isinstance(parsed, Parsed):
                found.append(_invalid(name, parsed))
                continue
            try:
                found.append(self._declare(snapshot, files, parsed, recorded.get(name, {})))
            except FlopsError as error:
                found.append(_invalid(name, (error.to_dict(),), customer=parsed.sla.customer_id))
        return found

    def _parse(self, files: ProjectFiles) -> Parsed | tuple[Mapping[str, Any], ...]:
        if files.tree not in self._parsed:
            self._parsed[files.tree] = parse_project(files)
        return self._parsed[files.tree]

    def _declare(self, snapshot: Snapshot, files: ProjectFiles, parsed: Parsed, record: Mapping[str, Any]) -> Declared:
        sla = parsed.sla
        revision = self._revision(snapshot, sla, record.get("ml_repo") or {})
        training = dict(flatten(training_spec(sla)))
        training |= {
            "customer": sla.customer_id,
            "ml_repo.tree": revision.tree,
            "runtime": TRAINING_VERSION,
        }
        tags = sla.training_configuration.data_tags
        if sla.training_configuration.federation is None:
            for version in self._catalog.describe(parsed.mock_data, tags):
                training[f"data.{version.tag}"] = version.digest
        serving = dict(flatten(deployment_spec(sla))) | {"runtime": mlruntime_digest()}
        gate = sla.evaluation_gate
        desired = DesiredProject(
            name=files.name,
            customer=sla.customer_id,
            training=training,
            gate=dict(flatten(gate.model_dump(mode="json"))) if gate else {},
            serving=serving,
            steps=frozenset(str(step) for step in sla.post_training_steps),
            depends_on=tuple(sla.depends_on),
            suspended=sla.suspend,
        )
        ml_repo = {
            "url": revision.url,
            "commit": revision.commit,
            "tree": revision.tree,
            "subdir": revision.subdir,
            "content": content_key(sla),
        }
        return Declared(
            desired=desired,
            sla=sla,
            sla_text=parsed.sla_text,
            mock_data=parsed.mock_data,
            commit=snapshot.commit,
            ml_repo=ml_repo,
            checkout=self._checkout(revision),
        )

    def _revision(self, snapshot: Snapshot, sla: ProjectSLA, record: Mapping[str, str]) -> MLRepoRevision:
        follows = sla.triggers is not None and sla.triggers.on_ml_repo_push
        if not follows and record.get("content") == content_key(sla) and not sla.ml_repo_url.startswith("."):
            return MLRepoRevision(record["url"], record["commit"], record["tree"], record["subdir"])
        return self._repos.resolve(sla.ml_repo_url, sla.ml_repo_ref, sla.ml_repo_subdir, snapshot)

    def _checkout(self, revision: MLRepoRevision) -> Callable[[], Path]:
        return lambda: self._repos.checkout(revision)


def parse_project(files: ProjectFiles) -> Parsed | tuple[Mapping[str, Any], ...]:
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
            mock_data = load_mock_data(files.files[mock_name], f"{files.path}/{mock_name}")
        except SpecErrors as errors:
            problems += [error.to_dict() for error in errors.errors]
    if sla is None or problems:
        return tuple(problems)
    return Parsed(sla, files.files[sla_name], mock_data)


def content_key(sla: ProjectSLA) -> str:
    """What a resolved ML repo revision belongs to: the SLA's content, not the commit that it came with."""
    return digest_of([sla.ml_repo_url, sla.ml_repo_ref, sla.ml_repo_subdir, training_spec(sla)])


def _invalid(name: str, problems: tuple[Mapping[str, Any], ...], customer: str = "") -> DesiredProject:
    return DesiredProject(name, customer, training={}, problems=problems)
