"""Desired state: every SLA at one commit, reduced to the digests that decide about its plan.

Content, not commits: a commit that does not touch a project leaves its digests – the same object – as they are. Whatever moves by
itself – a branch of an ML repo – is resolved once per content of the project's folder and then taken from the record.

Only projects of which something that they follow from has changed are worked out; all others are not even looked at. A look that
fails midway owes what it has not worked out to the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from reconciler import schedule
from reconciler.digests import Inputs, digest_of, shared
from reconciler.errors import FlopsError, SourceError, SpecError, SpecErrors, Where
from reconciler.federation.data import DataCatalog
from reconciler.parsing import Parsed, Problems, parse_project, reduced, wrong_dependencies
from reconciler.plan import DesiredProject
from reconciler.policy import Verdicts, secret_refused
from reconciler.runtime_version import TRAINING_VERSION, mlruntime_digest
from reconciler.schedule import Schedules
from reconciler.selections import Selection, Selections, Versions, selection
from reconciler.source import MLRepoRevision, MLRepos, ProjectFiles, Snapshot
from reconciler.source.snapshot import BUILD_PLANS, PROJECTS
from reconciler.spec import BuildPlan, OperatorConfig, ProjectSLA, plans_key, project_plans
from reconciler.stages.model import Declared

INFERENCE = "inference"
Documents = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A valid project about which something outside of this repo is not known yet or cannot be asked for now."""

    name: str
    customer: str
    error: FlopsError


Found = Declared | DesiredProject | Unresolved
Resolve = Callable[[str, str | None, str, bool], MLRepoRevision]
"""URL, ref, folder and whether the ref is followed → the revision. A transient SourceError when it is not known yet."""


@dataclass(slots=True)
class _Known:
    """A project's files and what they came to. `refused` is what the operator's settings have against them, `record` the document
    that was read for it, where one was."""

    files: ProjectFiles
    parsed: Parsed | Problems
    refused: FlopsError | None = None
    key: tuple[object, ...] = ()
    declared: Declared | None = None
    record: object = None
    tree: str | SourceError | None = None
    """Of an ML repo inside this repo."""
    moves: bool = False
    """What it follows from may change without a commit: it has a schedule, or an ML repo elsewhere."""
    beside: bool = False
    """Any commit may change it: its ML repo is inside this repo and outside of its own folder."""
    selection: Selection | None = None


class DesiredState:
    """Makes `Declared` projects of a snapshot that the operator's policy allows; keeps what it made of each project's folder.

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
        self._resolve = resolve or (lambda url, ref, subdir, _follow: repos.resolve(url, ref, subdir, Snapshot("", {})))
        config = config or OperatorConfig()
        self._allow_file_urls, self._images = config.allow_file_urls, config.images
        self._placement = config.runtime
        self._secrets, self._secret_policy = config.secrets, config.policy
        self._clock, self._schedules = clock, Schedules()
        self._verdicts = Verdicts(config.policy)
        self._data = Selections(catalog)
        self._snapshot = Snapshot("", {})
        self._known: dict[str, _Known] = {}
        self._rejected: dict[str, SourceError] = {}
        self._found: dict[str, Found] = {}
        self._owed: set[str] = set()
        """The projects to be worked out."""
        self._moving: frozenset[str] = frozenset()
        self._beside: frozenset[str] = frozenset()
        self._wrong: dict[str, FlopsError] = {}
        self._plans: Mapping[str, BuildPlan] | FlopsError | SpecErrors = {}

    def of(self, snapshot: Snapshot, recorded: Documents) -> Mapping[str, Found]:
        """Every project of a snapshot, by name and in that order; a `DesiredProject` with problems where it cannot be accepted.

        `recorded` are the status documents: the ML repo revisions that were resolved before. What has not changed is the same
        object as before, and the same mapping when nothing has.
        """
        self._compare(snapshot)
        self._owed |= self._verdicts.changed(recorded)
        if changed := self._data.changed():
            self._owed |= {name for name, item in self._known.items() if item.selection in changed}
        self._owed |= {name for name in self._moving if self._may_move(name, recorded.get(name))}
        self._ask_for_trees(snapshot)
        if not self._owed:
            return self._found
        found = {name: item for name, item in self._found.items() if name in self._known or name in self._rejected}
        for name in sorted(self._owed):
            if (made := self._work_out(snapshot, name, recorded.get(name))) is not None:
                found[name] = made
        if found.keys() != self._found.keys():
            found = dict(sorted(found.items()))
        self._found, self._owed = found, {name for name in self._owed if isinstance(found.get(name), Unresolved)}
        return found

    # --- what has changed

    def _compare(self, snapshot: Snapshot) -> None:
        """Owe the projects whose folders, common build plans or neighbours changed since the last snapshot."""
        before = self._snapshot
        if snapshot is before:
            return
        if snapshot.build_plans != before.build_plans or snapshot.plans_problem is not before.plans_problem or not before.commit:
            self._owed |= snapshot.projects.keys()
            self._plans = self._common_plans(snapshot)
        if snapshot.projects is not before.projects or snapshot.rejected is not before.rejected:
            rejected = {error.where.path.split("/")[1]: error for error in snapshot.rejected if error.where}
            self._owed |= self._rejected.keys() | rejected.keys()
            self._rejected = rejected
            self._owed |= {name for name in self._known if name not in snapshot.projects or name in rejected}
            for name, files in snapshot.projects.items():
                known = self._known.get(name)
                if (known is None or known.files is not files) and name not in rejected:
                    self._owed.add(name)
                    self._known[name] = self._read(name, files)
            for name in self._known.keys() - (snapshot.projects.keys() - rejected.keys()):
                del self._known[name]
                self._verdicts.forget(name)
            wrong = wrong_dependencies({name: item.parsed for name, item in self._known.items()}, rejected)
            self._owed |= {name for name, _ in _texts(wrong) ^ _texts(self._wrong)}
            self._wrong = wrong
            self._moving = frozenset(name for name, item in self._known.items() if item.moves)
            self._beside = frozenset(name for name, item in self._known.items() if item.beside)
            valid = ((item.selection, item.parsed) for item in self._known.values() if isinstance(item.parsed, Parsed))
            self._data.use({chosen: parsed.mock_data for chosen, parsed in valid})
        self._owed |= self._beside
        # Last: a comparison that failed is made again.
        self._snapshot = snapshot

    def _may_move(self, name: str, document: Mapping[str, Any] | None) -> bool:
        """Whether what a project follows from may have changed without a commit."""
        known = self._known.get(name)
        if known is None or not isinstance(known.parsed, Parsed):
            return False
        asked_again = known.parsed.schedule or known.parsed.follows or not isinstance(self._found.get(name), Declared)
        return bool(asked_again) or known.record is not document

    def _ask_for_trees(self, snapshot: Snapshot) -> None:
        """The trees of ML repos that are folders of this repo; one question to Git for all that are not known."""
        asked: dict[tuple[str, str], str] = {}
        items: list[tuple[_Known, tuple[str, str]]] = []
        for name in self._owed:
            known = self._known.get(name)
            if known is None or not isinstance(known.parsed, Parsed) or (path := known.parsed.inside) is None:
                continue
            if not isinstance(known.tree, str) or name in self._beside:
                found = _object_of(path, snapshot)
                asked[found] = path
                items.append((known, found))
        trees = self._repos.trees_inside(asked) if asked else {}
        for known, found in items:
            known.tree = trees[found]

    # --- working out

    def _read(self, name: str, files: ProjectFiles) -> _Known:
        sla, mock_data, problems = parse_project(files)
        if sla is None or problems:
            self._verdicts.forget(name)
            return _Known(files, problems)
        self._verdicts.ask(name, files.path, sla)
        refused = self._check_url(name, sla) or secret_refused(self._secret_policy, self._secrets, sla, files.path)
        parsed = reduced(sla, files, mock_data)
        inside = parsed.inside
        moves, beside = bool(parsed.schedule) or inside is None, inside is not None and not _is_own(name, inside)
        return _Known(files, parsed, refused, moves=moves, beside=beside, selection=shared(selection(parsed)))

    def _work_out(self, snapshot: Snapshot, name: str, record: Mapping[str, Any] | None) -> Found | None:
        if name in self._rejected:
            return self._problem(name, (self._rejected[name].to_dict(),))
        known = self._known.get(name)
        if known is None:
            return None
        parsed = known.parsed
        if not isinstance(parsed, Parsed):
            return self._problem(name, parsed)
        try:
            if error := self._wrong.get(name) or self._verdicts.error(name) or known.refused:
                raise error
            known.record = record
            record = record or {}
            revision = self._revision(snapshot, known, parsed, record.get("ml_repo"))
            versions = self._data.versions(parsed)
            plans = self._build_plans(snapshot, known.files)
        except SpecErrors as errors:
            return self._problem(name, tuple(error.to_dict() for error in errors.errors), parsed.customer)
        except FlopsError as error:
            if error.transient:
                return Unresolved(name, parsed.customer, error)
            return self._problem(name, (error.to_dict(),), parsed.customer)
        tick = self._tick(parsed, record)
        key = (snapshot.build_plans, revision.url, revision.tree, revision.subdir, versions, tick)
        if known.declared is None or known.key != key:
            known.key, known.declared = key, self._declare(snapshot, known.files, parsed, plans, revision, versions, tick)
        # Content that is as it was keeps the commit that it was first seen at.
        return known.declared

    def _declare(
        self,
        snapshot: Snapshot,
        files: ProjectFiles,
        parsed: Parsed,
        plans: Mapping[str, BuildPlan],
        revision: MLRepoRevision,
        versions: Versions,
        tick: str,
    ) -> Declared:
        training = dict(parsed.training) | {
            "customer": parsed.customer,
            "ml_repo.tree": revision.tree,
            "runtime": TRAINING_VERSION,
        }
        training |= {f"data.{tag}": digest for tag, digest in versions}
        if tick:
            training[schedule.INPUT] = tick
        image = self._image(parsed, plans)
        serving = dict(parsed.deployment) | {"runtime": mlruntime_digest()}
        serving |= {f"secret.{item}": self._secrets[item].version for item in parsed.secrets if self._secrets[item].version}
        if (parsed.runtime or self._placement) == "docker":
            # A container is what its image is; a process is not touched by it.
            serving |= {"placement": "docker", "image": digest_of(image)}
        desired = DesiredProject(
            name=files.name,
            customer=parsed.customer,
            training=Inputs(training),
            gate=parsed.gate,
            image=shared(Inputs(image)),
            serving=shared(Inputs(serving)),
            steps=parsed.steps,
            depends_on=parsed.depends_on,
            suspended=parsed.suspended,
        )
        ml_repo = {
            "url": revision.url,
            "commit": revision.commit,
            "tree": revision.tree,
            "subdir": revision.subdir,
            "content": parsed.content,
        }
        return Declared(
            desired=desired,
            sla_text=parsed.sla_text,
            mock_data=parsed.mock_data,
            commit=snapshot.commit,
            ml_repo=Inputs(ml_repo),
            build_plans=plans,
            committed=snapshot.time,
            checkout=partial(self._repos.checkout, revision),
            finishes=parsed.finishes,
            deletes=parsed.deletes,
        )

    def _common_plans(self, snapshot: Snapshot) -> Mapping[str, BuildPlan] | FlopsError | SpecErrors:
        """How the images of projects without build plans of their own are made; or why they cannot be."""
        if snapshot.plans_problem is not None:
            return snapshot.plans_problem
        try:
            return project_plans(snapshot.plans, {}, self._images, path="")
        except SpecErrors as errors:
            return errors

    def _build_plans(self, snapshot: Snapshot, files: ProjectFiles) -> Mapping[str, BuildPlan]:
        """How the project's images are made, by kind. Raises SourceError, SpecErrors."""
        if snapshot.plans_problem is None and any(path.startswith(f"{BUILD_PLANS}/") for path in files.files):
            return project_plans(snapshot.plans, files.files, self._images, path=files.path)
        if isinstance(self._plans, FlopsError | SpecErrors):
            raise self._plans
        return self._plans

    @staticmethod
    def _image(parsed: Parsed, plans: Mapping[str, BuildPlan]) -> dict[str, str]:
        """What decides about the image beside the model, whose lock is the model's own."""
        inputs = plans_key({INFERENCE: plans[INFERENCE]})
        return inputs | {"platforms": parsed.platforms, "runtime": mlruntime_digest()}

    def _check_url(self, name: str, sla: ProjectSLA) -> SpecError | None:
        if not sla.ml_repo_url.startswith("file:") or self._allow_file_urls:
            return None
        return SpecError(
            "FL1036",
            "ml_repo_url names a Git repo of the reconciler's machine, which is not allowed here.",
            cure="Use a URL or a path inside this repo; the operator may set `allow_file_urls` in flops.yaml.",
            where=Where(f"projects/{name}"),
        )

    def _tick(self, parsed: Parsed, record: Mapping[str, Any]) -> str:
        if not parsed.schedule:
            return ""
        inputs = record.get("inputs")
        recorded = inputs.get(schedule.INPUT, "") if isinstance(inputs, dict) else ""
        return self._schedules.tick(parsed.schedule, self._clock(), str(recorded))

    def _revision(self, snapshot: Snapshot, known: _Known, parsed: Parsed, record: object) -> MLRepoRevision:
        url = parsed.url
        if isinstance(known.tree, SourceError):
            raise known.tree
        if known.tree is not None:
            return MLRepoRevision(url if url != "." else "./", snapshot.commit, known.tree, parsed.subdir)
        if not parsed.follows and isinstance(record, dict) and record.get("content") == parsed.content:
            found = [record.get(key) for key in ("url", "commit", "tree", "subdir")]
            if all(isinstance(value, str) for value in found):
                return MLRepoRevision(*map(str, found))
        return self._resolve(url, parsed.ref, parsed.subdir, parsed.follows)

    def _problem(self, name: str, problems: Problems, customer: str = "") -> DesiredProject:
        made = DesiredProject(name, customer, training={}, problems=problems)
        before = self._found.get(name)
        return before if isinstance(before, DesiredProject) and before == made else made


def customer_of(found: Found) -> str:
    """The project's owner; empty when nothing says it."""
    return found.desired.customer if isinstance(found, Declared) else found.customer


def _is_own(name: str, path: str) -> bool:
    """Whether a path is in the project's own folder."""
    return f"{path}/".startswith(f"{PROJECTS}/{name}/")


def _object_of(path: str, snapshot: Snapshot) -> tuple[str, str]:
    """A path as Git finds it: below a project's tree, which only its own changes change, else below the commit."""
    top, _, rest = path.partition("/")
    name, _, below = rest.partition("/")
    if top == PROJECTS and name in snapshot.projects:
        return snapshot.projects[name].tree, below
    return snapshot.commit, path


def _texts(errors: Mapping[str, FlopsError]) -> set[tuple[str, str]]:
    return {(name, str(error)) for name, error in errors.items()}
