"""The plan: what leads from what is observed to what is declared.

Pure: no I/O, no clock, no memory. The same desired and observed state give the same plan, and carrying a plan out leads
to a state whose plan is empty. Everything else in the reconciler serves to call this function and to do what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from reconciler.digests import digest_of, short

BUILD_STEP = "build_image_for_trained_model"
DEPLOY_STEP = "deploy_trained_model_image"
DEVELOPMENT = "development"
"""The alias of the version that is declared: it moves with a revert, and back when somebody else moved it."""


class Stage(StrEnum):
    """The stages of a project, in the order in which they run."""

    RESOLVE = "resolve"
    BUILD = "build"
    TRAIN = "train"
    GATE = "gate"
    REGISTER = "register"
    PACKAGE = "package"
    DEPLOY = "deploy"
    VERIFY = "verify"


class Verb(StrEnum):
    """What a plan does with a stage."""

    RUN = "run"
    REUSE = "reuse"
    SKIP = "skip"


class Change(StrEnum):
    """A project's plan in one word."""

    NONE = "none"
    TRAIN = "train"
    GATE = "gate"
    ALIAS = "alias"
    PACKAGE = "package"
    DEPLOY = "deploy"
    WITHDRAW = "withdraw"
    PRUNE = "prune"
    DELETE = "delete"
    INVALID = "invalid"
    SUSPENDED = "suspended"
    STALLED = "stalled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DesiredProject:
    """One declared project, reduced to what decides about its plan. Its digests are worked out once, when they are asked for.

    `training`, `gate`, `image` and `serving` are named inputs (name → canonical text) of the four digests.
    """

    name: str
    customer: str
    training: Mapping[str, str]
    gate: Mapping[str, str] = field(default_factory=dict)
    image: Mapping[str, str] = field(default_factory=dict)
    serving: Mapping[str, str] = field(default_factory=dict)
    steps: frozenset[str] = frozenset()
    depends_on: tuple[str, ...] = ()
    suspended: bool = False
    problems: tuple[Mapping[str, str | int | bool], ...] = ()
    _run: str = field(default="", init=False, repr=False, compare=False)
    _gate: str = field(default="", init=False, repr=False, compare=False)
    _image: str = field(default="", init=False, repr=False, compare=False)
    _serving: str = field(default="", init=False, repr=False, compare=False)

    @property
    def run_digest(self) -> str:
        """Identity of the training run and of the model that comes of it."""
        return self._run or self._known("_run", dict(self.training))

    @property
    def gate_digest(self) -> str:
        """Identity of the gate's verdict on that model."""
        return self._gate or self._known("_gate", {"run": self.run_digest, "gate": dict(self.gate)})

    @property
    def image_digest(self) -> str:
        """Identity of the image that is built for that model."""
        return self._image or self._known("_image", {"run": self.run_digest, "image": dict(self.image)})

    @property
    def serving_digest(self) -> str:
        """Identity of the service that answers with that model."""
        return self._serving or self._known("_serving", {"run": self.run_digest, "serving": dict(self.serving)})

    def _known(self, name: str, inputs: Mapping[str, object]) -> str:
        digest = digest_of(inputs)
        object.__setattr__(self, name, digest)
        return digest


@dataclass(frozen=True, slots=True)
class ObservedModel:
    """A model version in the registry."""

    run_digest: str
    version: str
    run_id: str = ""
    gate_digest: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ObservedService:
    """A running inference service."""

    serving_digest: str
    run_digest: str
    healthy: bool
    address: str = ""


@dataclass(frozen=True, slots=True)
class ObservedProject:
    """What there is of one project. `recorded` are the training inputs of the last digest that was worked on."""

    name: str
    models: Mapping[str, ObservedModel] = field(default_factory=dict)
    rejected: frozenset[str] = frozenset()
    """Gate digests that were not met: the run is kept, nothing is trained again."""
    trained: frozenset[str] = frozenset()
    """Run digests whose training is finished and recorded, registered or not."""
    images: frozenset[str] = frozenset()
    """Image digests whose images are complete where they belong."""
    stalled: Mapping[str, str] = field(default_factory=dict)
    """Serving digests that ended in a terminal error, with the error: they wait for new content."""
    service: ObservedService | None = None
    recorded: Mapping[str, str] = field(default_factory=dict)
    doomed: bool = False
    """Not declared any more, and its SLA said `deletion_policy: delete`: models, runs and images go after the service."""
    unknown: str = ""
    """Why the project could not be observed. Nothing is done then: a registry that does not answer is not an empty one."""


@dataclass(frozen=True, slots=True)
class Action:
    """One stage of a project's plan."""

    stage: Stage
    verb: Verb
    reason: str


@dataclass(frozen=True, slots=True)
class InputChange:
    """An input of the run digest that differs: from `before` to `after` ("" where it is absent)."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ProjectPlan:
    """The ordered actions of one project."""

    name: str
    change: Change
    reason: str
    run_digest: str = ""
    actions: tuple[Action, ...] = ()
    inputs: tuple[InputChange, ...] = ()

    @property
    def is_noop(self) -> bool:
        """True when nothing will be done."""
        return self.change in {Change.NONE, Change.INVALID, Change.SUSPENDED, Change.STALLED, Change.UNKNOWN}

    def runs(self, stage: Stage) -> bool:
        """Whether this plan runs a stage (and does not reuse or skip it)."""
        return any(action.stage is stage and action.verb is Verb.RUN for action in self.actions)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plans of all projects, by name."""

    projects: tuple[ProjectPlan, ...]

    @property
    def is_noop(self) -> bool:
        """True when nothing will be done for any project."""
        return all(project.is_noop for project in self.projects)

    def by_name(self) -> dict[str, ProjectPlan]:
        """The plans keyed by their project."""
        return {project.name: project for project in self.projects}


_WITHDRAWN = Action(Stage.DEPLOY, Verb.RUN, "the SLA does not ask for a deployment any more")


def plan(desired: Sequence[DesiredProject], observed: Iterable[ObservedProject]) -> Plan:
    """What to do so that `observed` becomes `desired`; projects in alphabetical order."""
    seen = {project.name: project for project in observed}
    wanted = {project.name: project for project in desired}
    plans = [plan_project(project, seen.get(name) or ObservedProject(name)) for name, project in wanted.items()]
    plans += [_prune(project) for name, project in seen.items() if name not in wanted and (project.service or project.doomed)]
    return Plan(tuple(sorted(plans, key=lambda item: item.name)))


def plan_project(desired: DesiredProject, observed: ObservedProject) -> ProjectPlan:
    """The plan of one declared project."""
    if desired.problems:
        return ProjectPlan(desired.name, Change.INVALID, str(desired.problems[0].get("cause", "The SLA is not valid.")))
    digest = desired.run_digest
    if desired.suspended:
        return ProjectPlan(desired.name, Change.SUSPENDED, "suspend is true", digest)
    if observed.unknown:
        return ProjectPlan(desired.name, Change.UNKNOWN, observed.unknown, digest)
    if desired.serving_digest in observed.stalled:
        return ProjectPlan(desired.name, Change.STALLED, observed.stalled[desired.serving_digest], digest)
    if desired.gate_digest in observed.rejected:
        return ProjectPlan(desired.name, Change.STALLED, "the gate is not met; the run is kept", digest)
    inputs = changed_inputs(observed.recorded, desired.training)
    model = observed.models.get(digest)
    if model is None or model.gate_digest != desired.gate_digest:
        return _train(desired, observed, inputs)
    return _serve(desired, observed, model, inputs)


def changed_inputs(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[InputChange, ...]:
    """The inputs that differ, by name; none when there is nothing to compare with."""
    if not before:
        return ()
    names = sorted(before.keys() | after.keys())
    return tuple(
        InputChange(name, before.get(name, ""), after.get(name, "")) for name in names if before.get(name) != after.get(name)
    )


def _train(desired: DesiredProject, observed: ObservedProject, inputs: tuple[InputChange, ...]) -> ProjectPlan:
    digest = desired.run_digest
    trained = digest in observed.trained
    if trained:
        why = f"run {short(digest)} is finished and recorded"
        start = [Action(stage, Verb.REUSE, why) for stage in (Stage.RESOLVE, Stage.BUILD, Stage.TRAIN)]
        change, reason = Change.GATE, f"run {short(digest)} is there, its gate is new"
    else:
        change = Change.TRAIN
        reason = _why(inputs) if inputs else f"no model with digest {short(digest)}"
        start = [Action(stage, Verb.RUN, reason) for stage in (Stage.RESOLVE, Stage.BUILD, Stage.TRAIN)]
    actions = [
        *start,
        Action(Stage.GATE, Verb.RUN, "a new verdict is needed"),
        Action(Stage.REGISTER, Verb.RUN, "a version is registered when the gate is met"),
        *_after_registration(desired, observed, "the model is new"),
    ]
    return ProjectPlan(desired.name, change, reason, digest, tuple(actions), inputs)


def _serve(
    desired: DesiredProject, observed: ObservedProject, model: ObservedModel, inputs: tuple[InputChange, ...]
) -> ProjectPlan:
    service = observed.service
    why = f"version {model.version} has digest {short(model.run_digest)}"
    reused = [Action(stage, Verb.REUSE, why) for stage in list(Stage)[: list(Stage).index(Stage.PACKAGE)]]
    moved = DEVELOPMENT not in model.aliases
    change, said = Change.NONE, ""
    if moved:
        change, said = Change.ALIAS, f"the alias {DEVELOPMENT} is not on version {model.version}"
        reused[-1] = Action(Stage.REGISTER, Verb.RUN, said)
    if BUILD_STEP in desired.steps and desired.image_digest not in observed.images:
        change, said = Change.PACKAGE, f"there is no image {short(desired.image_digest)} of version {model.version}"
        reused.append(Action(Stage.PACKAGE, Verb.RUN, said))
    if DEPLOY_STEP not in desired.steps:
        if service is None:
            return ProjectPlan(desired.name, change, said or "the model is registered", model.run_digest, tuple(reused))
        return ProjectPlan(desired.name, Change.WITHDRAW, _WITHDRAWN.reason, model.run_digest, (*reused, _WITHDRAWN), inputs)
    if service and service.healthy and service.serving_digest == desired.serving_digest:
        return ProjectPlan(desired.name, change, said or "what runs is what is declared", model.run_digest, tuple(reused))
    if service is None:
        reason = "no service is running"
    elif service.serving_digest != desired.serving_digest:
        reason = f"the service answers with {short(service.run_digest)}, declared is {short(model.run_digest)}"
        if service.run_digest == model.run_digest:
            reason = "the deployment's settings changed"
    else:
        reason = "the service is not healthy"
    before_package = [action for action in reused if action.stage is not Stage.PACKAGE]
    actions = (*before_package, *_after_registration(desired, observed, reason))
    return ProjectPlan(desired.name, Change.DEPLOY, reason, model.run_digest, actions, inputs)


def _after_registration(desired: DesiredProject, observed: ObservedProject, reason: str) -> list[Action]:
    package = Action(Stage.PACKAGE, Verb.RUN, reason)
    if BUILD_STEP not in desired.steps:
        package = Action(Stage.PACKAGE, Verb.SKIP, f"{BUILD_STEP} is not asked for")
    if DEPLOY_STEP not in desired.steps:
        skipped = Action(Stage.DEPLOY, Verb.SKIP, f"{DEPLOY_STEP} is not asked for")
        return [package, _WITHDRAWN if observed.service else skipped]
    return [package, Action(Stage.DEPLOY, Verb.RUN, reason), Action(Stage.VERIFY, Verb.RUN, "before it takes over")]


def _prune(observed: ObservedProject) -> ProjectPlan:
    if observed.service is None:
        reason = "the project is not declared any more; its models, runs and images are deleted, as its SLA said"
        return ProjectPlan(observed.name, Change.DELETE, reason)
    after = "models and runs follow" if observed.doomed else "models and runs are kept"
    gone = Action(Stage.DEPLOY, Verb.RUN, f"the service is removed; {after}")
    return ProjectPlan(observed.name, Change.PRUNE, "the project is not declared any more", actions=(gone,))


def _why(inputs: Sequence[InputChange]) -> str:
    shown = [f"{item.name}: {_clip(item.before)} → {_clip(item.after)}" for item in inputs[:3]]
    more = f" and {len(inputs) - 3} more" if len(inputs) > 3 else ""
    return ", ".join(shown) + more


def _clip(text: str) -> str:
    return (text[:12] + "…") if len(text) > 40 else (text or "nothing")
