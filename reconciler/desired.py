"""Desired state: every SLA at one commit, reduced to the digests that decide about its plan.

Content, not commits: a commit that does not touch a project leaves its digests – the same object – as they are. Whatever moves by
itself – a branch of an ML repo – is resolved once per content of the project's folder and then taken from the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from reconciler import schedule
from reconciler.digests import digest_of, flatten
from reconciler.errors import FlopsError, SourceError, SpecError, SpecErrors, Where
from reconciler.federation.data import DataCatalog
from reconciler.parsing import Parsed, Problems, parse_project, wrong_dependencies
from reconciler.plan import DesiredProject
from reconciler.policy import Asked, secret_refused, violations
from reconciler.runtime_version import TRAINING_VERSION, mlruntime_digest
from reconciler.schedule import Schedules
from reconciler.source import MLRepoRevision, MLRepos, ProjectFiles, Snapshot
from reconciler.spec import (
    BuildPlan,
    OperatorConfig,
    ProjectSLA,
    deployment_spec,
    plans_key,
    project_plans,
    training_spec,
)
from reconciler.spec.policy import Policy
from reconciler.stages.model import Declared

INFERENCE = "inference"


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A valid project about which something outside of this repo is not known yet or cannot be asked for now."""

    name: str
    customer: str
    error: FlopsError


Found = Declared | DesiredProject | Unresolved
Resolve = Callable[[str, str | None, str, bool], MLRepoRevision]
"""URL, ref, folder and whether the ref is followed → the revision. A transient SourceError when it is not known yet."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a project came to last, and what that followed from."""

    key: tuple[object, ...]
    declared: Declared


class DesiredState:
    """Makes `Declared` projects of a snapshot that the operator's policy allows; keeps what it parsed by tree hash.

    `resolve` finds the revisions of ML repos elsewhere; as `MLRepos.resolve` it waits for the network.
    """

    def __init__(
        self,
        repos: MLRepos,
        catalog: DataCatalog,
        resolve: Resolve | None = None,
        clock: Callable[[], float] = time.time,
        config: OperatorConfig | None = None,
    ) -> None:
        self._repos = repos
        self._catalog = catalog
        self._resolve = resolve or (lambda url, ref, subdir, _follow: repos.resolve(url, ref, subdir, Snapshot("", {})))
        config = config or OperatorConfig()
        self._allow_file_urls, self._images = config.allow_file_urls, config.images
        self._placement = config.runtime
        self._secrets, self._secret_policy = config.secrets, config.policy
        self._clock, self._schedules = clock, Schedules()
        self._policy = config.policy if config.policy != Policy() else None
        self._parsed: dict[str, Parsed | Problems] = {}
        self._kept: dict[str, _Kept] = {}
        self._invalid: dict[str, DesiredProject] = {}
        self._inside: tuple[str, dict[str, str | SourceError]] = ("", {})
        self._trees: dict[tuple[str, str], str | SourceError] = {}

    def of(self, snapshot: Snapshot, recorded: Mapping[str, Mapping[str, Any]]) -> list[Found]:
        """Every project of a snapshot, by name; a `DesiredProject` with problems where it cannot be accepted.

        `recorded` are the status documents: the ML repo revisions that were resolved before.
        """
        rejected = {error.where.path.split("/")[1]: error for error in snapshot.rejected if error.where}
        parsed = {name: self._parse(files) for name, files in snapshot.projects.items() if name not in rejected}
        wrong = self._refused(parsed, snapshot, recorded) | wrong_dependencies(parsed, rejected)
        inside = self._trees_inside(snapshot, parsed)
        data: dict[tuple[object, ...], tuple[tuple[str, str], ...] | FlopsError] = {}
        found: list[Found] = []
        for name in sorted(rejected.keys() | parsed.keys()):
            if name in rejected:
                found.append(self._problem(name, (rejected[name].to_dict(),)))
                continue
            item = parsed[name]
            if not isinstance(item, Parsed):
                found.append(self._problem(name, item))
            elif name in wrong:
                found.append(self._problem(name, (wrong[name].to_dict(),), item.sla.customer_id))
            else:
                found.append(self._declare_or_say(snapshot, name, item, recorded.get(name, {}), inside, data))
        self._forget(snapshot, rejected.keys() | parsed.keys())
        return found

    def _refused(
        self, parsed: Mapping[str, Parsed | Problems], snapshot: Snapshot, recorded: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, FlopsError]:
        """The projects that the operator's policy does not allow."""
        if self._policy is None:
            return {}
        asked = [
            Asked(name, snapshot.projects[name].path, item.sla, kept=bool(recorded.get(name, {}).get("inputs")))
            for name, item in parsed.items()
            if isinstance(item, Parsed)
        ]
        return dict(violations(self._policy, asked))

    def _declare_or_say(
        self,
        snapshot: Snapshot,
        name: str,
        parsed: Parsed,
        record: Mapping[str, Any],
        inside: Mapping[str, str | SourceError],
        data: dict[tuple[object, ...], tuple[tuple[str, str], ...] | FlopsError],
    ) -> Found:
        sla = parsed.sla
        try:
            self._check_url(name, sla)
            if refused := secret_refused(self._secret_policy, self._secrets, sla, snapshot.projects[name].path):
                raise refused
            revision = self._revision(snapshot, sla, record.get("ml_repo"), inside)
            versions = self._data(parsed, data)
            plans = self._build_plans(snapshot, snapshot.projects[name])
        except SpecErrors as errors:
            return self._problem(name, tuple(error.to_dict() for error in errors.errors), sla.customer_id)
        except FlopsError as error:
            if error.transient:
                return Unresolved(name, sla.customer_id, error)
            return self._problem(name, (error.to_dict(),), sla.customer_id)
        files = snapshot.projects[name]
        tick = self._tick(sla, record)
        key = (files.tree, snapshot.build_plans, revision.url, revision.tree, revision.subdir, versions, tick)
        kept = self._kept.get(name)
        if kept is None or kept.key != key:
            kept = _Kept(key, self._declare(snapshot, files, parsed, plans, revision, versions, tick))
            self._kept[name] = kept
        # Content that is as it was keeps the commit that it was first seen at.
        return kept.declared

    def _parse(self, files: ProjectFiles) -> Parsed | Problems:
        found = self._parsed.get(files.tree)
        if found is None:
            found = self._parsed[files.tree] = parse_project(files)
        return found

    def _declare(
        self,
        snapshot: Snapshot,
        files: ProjectFiles,
        parsed: Parsed,
        plans: Mapping[str, BuildPlan],
        revision: MLRepoRevision,
        versions: tuple[tuple[str, str], ...],
        tick: str,
    ) -> Declared:
        sla = parsed.sla
        training = dict(flatten(training_spec(sla)))
        training |= {
            "customer": sla.customer_id,
            "ml_repo.tree": revision.tree,
            "runtime": TRAINING_VERSION,
        }
        training |= {f"data.{tag}": digest for tag, digest in versions}
        if tick:
            training[schedule.INPUT] = tick
        image = self._image(sla, plans)
        serving = dict(flatten(deployment_spec(sla))) | {"runtime": mlruntime_digest()}
        used = set(sla.deployment.secrets().values()) if sla.deployment else set()
        serving |= {f"secret.{item}": self._secrets[item].version for item in used if self._secrets[item].version}
        if (sla.runtime or self._placement) == "docker":
            # A container is what its image is; a process is not touched by it.
            serving |= {"placement": "docker", "image": digest_of(image)}
        gate = sla.evaluation_gate
        desired = DesiredProject(
            name=files.name,
            customer=sla.customer_id,
            training=_shared(training),
            gate=_shared(dict(flatten(gate.model_dump(mode="json")))) if gate else {},
            image=_shared(image),
            serving=_shared(serving),
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
            build_plans=plans,
            committed=snapshot.time,
            checkout=self._checkout(revision),
        )

    def _build_plans(self, snapshot: Snapshot, files: ProjectFiles) -> dict[str, BuildPlan]:
        """How the project's images are made, by kind. Raises SourceError, SpecErrors."""
        if snapshot.plans_problem is not None:
            raise snapshot.plans_problem
        return project_plans(snapshot.plans, files.files, self._images, path=files.path)

    @staticmethod
    def _image(sla: ProjectSLA, plans: Mapping[str, BuildPlan]) -> dict[str, str]:
        """What decides about the image beside the model, whose lock is the model's own."""
        inputs = plans_key({INFERENCE: plans[INFERENCE]})
        return inputs | {"platforms": ",".join(sorted(sla.supported_platforms)), "runtime": mlruntime_digest()}

    def _check_url(self, name: str, sla: ProjectSLA) -> None:
        if sla.ml_repo_url.startswith("file:") and not self._allow_file_urls:
            raise SpecError(
                "FL1036",
                "ml_repo_url names a Git repo of the reconciler's machine, which is not allowed here.",
                cure="Use a URL or a path inside this repo; the operator may set `allow_file_urls` in flops.yaml.",
                where=Where(f"projects/{name}"),
            )

    def _tick(self, sla: ProjectSLA, record: Mapping[str, Any]) -> str:
        expression = sla.triggers.schedule if sla.triggers else None
        if not expression:
            return ""
        inputs = record.get("inputs")
        recorded = inputs.get(schedule.INPUT, "") if isinstance(inputs, dict) else ""
        return self._schedules.tick(expression, self._clock(), str(recorded))

    def _revision(
        self, snapshot: Snapshot, sla: ProjectSLA, record: object, inside: Mapping[str, str | SourceError]
    ) -> MLRepoRevision:
        url = sla.ml_repo_url
        if _is_inside(sla):
            tree = inside[_path_inside(sla)]
            if isinstance(tree, SourceError):
                raise tree
            return MLRepoRevision(url if url != "." else "./", snapshot.commit, tree, sla.ml_repo_subdir)
        follows = sla.triggers is not None and sla.triggers.on_ml_repo_push
        if not follows and isinstance(record, dict) and record.get("content") == content_key(sla):
            known = [record.get(key) for key in ("url", "commit", "tree", "subdir")]
            if all(isinstance(value, str) for value in known):
                return MLRepoRevision(*map(str, known))
        return self._resolve(url, sla.ml_repo_ref, sla.ml_repo_subdir, follows)

    def _trees_inside(self, snapshot: Snapshot, parsed: Mapping[str, Parsed | Problems]) -> dict[str, str | SourceError]:
        """The trees of ML repos that are folders of this repo, by path; one question to Git for those that are new."""
        if self._inside[0] == snapshot.commit:
            return self._inside[1]
        slas = (item.sla for item in parsed.values() if isinstance(item, Parsed))
        objects = {path: _object_of(path, snapshot) for path in {_path_inside(sla) for sla in slas if _is_inside(sla)}}
        new = {found: path for path, found in objects.items() if found not in self._trees}
        self._trees |= self._repos.trees_inside(new)
        self._trees = {found: self._trees[found] for found in objects.values()}
        self._inside = (snapshot.commit, {path: self._trees[found] for path, found in objects.items()})
        return self._inside[1]

    def _data(
        self, parsed: Parsed, seen: dict[tuple[object, ...], tuple[tuple[str, str], ...] | FlopsError]
    ) -> tuple[tuple[str, str], ...]:
        """(tag, digest) of the data; each selection is described once a look, as user data are looked at on disk."""
        if parsed.sla.training_configuration.federation is not None:
            return ()  # the data are those of its nodes
        mock = parsed.mock_data
        tags = tuple(parsed.sla.training_configuration.data_tags)
        key = (mock and (mock.dataset_name, mock.data_tag), tags)
        if key not in seen:
            try:
                seen[key] = tuple((item.tag, item.digest) for item in self._catalog.describe(mock, tags))
            except FlopsError as error:
                seen[key] = error
        found = seen[key]
        if isinstance(found, FlopsError):
            raise found
        return found

    def _checkout(self, revision: MLRepoRevision) -> Callable[[], Path]:
        return lambda: self._repos.checkout(revision)

    def _problem(self, name: str, problems: Problems, customer: str = "") -> DesiredProject:
        made = DesiredProject(name, customer, training={}, problems=problems)
        before = self._invalid.get(name)
        if before == made:
            return before
        self._invalid[name] = made
        return made

    def _forget(self, snapshot: Snapshot, names: Set[str]) -> None:
        """Drop what no project of this snapshot needs, when it has become more than what they need."""
        if len(self._parsed) > 2 * len(snapshot.projects) + 100:
            trees = {files.tree for files in snapshot.projects.values()}
            self._parsed = {tree: item for tree, item in self._parsed.items() if tree in trees}
        for kept in (self._kept, self._invalid):
            for name in kept.keys() - names:
                kept.pop(name, None)


def content_key(sla: ProjectSLA) -> str:
    """What a resolved ML repo revision belongs to: the SLA's content, not the commit that it came with."""
    return digest_of([sla.ml_repo_url, sla.ml_repo_ref, sla.ml_repo_subdir, training_spec(sla)])


def _is_inside(sla: ProjectSLA) -> bool:
    return sla.ml_repo_url == "." or sla.ml_repo_url.startswith("./")


def _path_inside(sla: ProjectSLA) -> str:
    return "/".join(part for part in (sla.ml_repo_url[2:].strip("/"), sla.ml_repo_subdir) if part)


def _object_of(path: str, snapshot: Snapshot) -> tuple[str, str]:
    """A path as Git finds it: below a project's tree, which only its own changes change, else below the commit."""
    top, _, rest = path.partition("/")
    name, _, below = rest.partition("/")
    if top == "projects" and name in snapshot.projects:
        return snapshot.projects[name].tree, below
    return snapshot.commit, path


def _shared(inputs: Mapping[str, str]) -> dict[str, str]:
    """The same with each name and value held once: projects differ in few of them."""
    return {intern(name): intern(value) for name, value in inputs.items()}
