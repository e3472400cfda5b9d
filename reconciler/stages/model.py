"""What every stage takes and gives back.

A stage is a function `(Work) -> Outcome`. It is idempotent by digest: run again after a crash at any point it finds what it
did before and goes on. It knows no Git and writes no status; it raises `FlopsError` and the controller maps that to
`Stalled` or to a retry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from reconciler.errors import ServingError
from reconciler.plan import DesiredProject
from reconciler.spec import known_sla

if TYPE_CHECKING:
    from reconciler.actors import Actors
    from reconciler.environments import Environment, EnvironmentStore, Lock
    from reconciler.federation.data import DataCatalog, DatasetVersion
    from reconciler.federation.training import TrainingResult
    from reconciler.images.store import ImageStore, ProjectImage
    from reconciler.nodes.federation import Federation
    from reconciler.runtimes.model import Runtime, Service
    from reconciler.serving.verify import VerificationResult
    from reconciler.spec import BuildPlan, MockData, ProjectSLA
    from reconciler.tracking import ModelVersion, Tracking
    from reconciler.tracking.model import RunInfo


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage ended. `result` is done, reused or rejected (a gate that is not met); `data` goes into status."""

    result: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Tell(Protocol):
    """Where a stage tells what it is doing: one event of the project's observer."""

    def __call__(self, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Declared:
    """One declared project with everything that its stages need from Git, already resolved."""

    desired: DesiredProject
    sla_text: bytes
    mock_data: MockData | None
    commit: str
    ml_repo: Mapping[str, str]
    """url, commit, tree and subdir of the ML repo: what was resolved, for tags and status."""
    build_plans: Mapping[str, BuildPlan]
    """How images are made: of the learner, the aggregator and the inference server."""
    committed: int
    """When `commit` was made, in seconds since 1970."""
    checkout: Callable[[], Path]
    """Puts the ML repo's files on disk (content-addressed) and returns their directory."""
    finishes: bool = False
    """Whether what runs is finished when this content arrives."""
    deletes: bool = False
    """Whether everything of the project goes with its SLA."""

    @property
    def sla(self) -> ProjectSLA:
        """The SLA, for whoever carries it out; read again from its text."""
        return known_sla(self.sla_text)


@dataclass(frozen=True, slots=True)
class Tools:
    """The effects that stages may use; all of them are passed in, none is reached for."""

    environments: EnvironmentStore
    catalog: DataCatalog
    runtime: Runtime
    tracking: Callable[[str], Tracking]
    """The tracking client of a customer; starts the customer's server if it is ours and not running."""
    tracking_if_any: Callable[[str], Tracking | None]
    """The same, but None for a customer of ours that has no registry yet: then there is no run to look for."""
    runs: Path
    bundles: Path
    images: ImageStore
    checks: Path
    """Which ML repos have been checked against the contract: shared by all states of a user."""
    placement: str
    """Where learners and servers of a project run that does not say: process or docker."""
    actors: Callable[[], Actors]
    """Whoever starts the containers of training runs."""
    bytecode: Callable[[Environment, Lock], Path]
    """The byte code of an environment, for containers of this machine."""
    place: Callable[[ProjectImage, Callable[[], bool]], str]
    """Puts an image into the container engine, unless it is cancelled; its id there."""
    instance: str
    clock: Callable[[], float]
    federation: Callable[[str, str], Federation]
    """A federation by name, with the nodes that a commit declares."""
    secret: Callable[[str, str], str]
    """The value of a secret of the operator's, for a customer and by name. Raises SecretError."""


@dataclass(slots=True)
class Work:
    """One project on its way through the stages; each stage fills in what it makes."""

    declared: Declared
    tools: Tools
    tell: Tell
    cancelled: Callable[[], bool]
    timings: dict[str, float] = field(default_factory=dict)
    repo_dir: Path | None = None
    lock: Lock | None = None
    environment: Environment | None = None
    dataset: DatasetVersion | None = None
    shards: tuple[Path, ...] = ()
    training: TrainingResult | None = None
    run_id: str = ""
    adopted: RunInfo | None = None
    """A run of the same digest under another project's name, as after a renaming: it is taken over, not trained again."""
    version: ModelVersion | None = None
    in_service: ModelVersion | None = None
    """The version that serves now; another one than `version` while a new one is on its way."""
    bundle: Path | None = None
    packaged: ProjectImage | None = None
    service: Service | None = None
    verification: VerificationResult | None = None
    images: dict[str, str] = field(default_factory=dict)
    """References of this content's images that an engine has or can pull, by role: learner, aggregator, inference."""

    @property
    def desired(self) -> DesiredProject:
        """The declared project's digests and steps."""
        return self.declared.desired

    @property
    def in_containers(self) -> bool:
        """Whether this project's learners and server are containers."""
        return (self.declared.sla.runtime or self.tools.placement) == "docker"

    def image(self, role: str) -> str:
        """The image of a role. Raises ServingError FL7105 when none was built."""
        if role not in self.images:
            raise ServingError(
                "FL7105",
                f"`runtime: docker` needs the {role} image of {self.desired.name}, and there is none.",
                cure="Let the stage before build it; or set `runtime: process`.",
            )
        return self.images[role]

    @property
    def run_dir(self) -> Path:
        """Where the training run of this digest keeps its rounds, checkpoints and result."""
        return self.tools.runs / self.desired.name / self.desired.run_digest[:16]


StageFunction = Callable[[Work], Outcome]
