"""The SLA as models: FLOps' keys with their names and defaults, and ours. The JSON Schemas are made from these classes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from reconciler.spec import rules
from reconciler.spec.policy import Policy

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
STRATEGIES = (
    "bulyan", "fedadagrad", "fedadam", "fedavg", "fedavgm", "fedmedian", "fedprox", "fedtrimmedavg", "fedyogi",
    "krum", "multikrum", "qfedavg",
)  # fmt: skip

DEFAULT_CLUSTERS = 2
"""Clusters that a hierarchical training has when it declares none."""


def _strategy(value: object) -> object:
    return value.lower().replace("-", "").replace("_", "") if isinstance(value, str) else value


def _flavor(value: object) -> object:
    return "keras" if value == "tensorflow" else value


def _one_or_many(value: object) -> object:
    """FLOps' own SLAs write a single tag without a list."""
    return [value] if isinstance(value, str) else value


def _schema_one_or_many(made: dict[str, Any]) -> None:
    many = {key: made.pop(key) for key in ("type", "items", "maxItems")}
    made["anyOf"] = [many, many["items"]]


def _direction(value: Any) -> Any:
    if isinstance(value, dict) and "metric" in value:
        return {"direction": rules.better(value["metric"]), **value}
    return value


Duration = Annotated[
    float,
    BeforeValidator(rules.duration),
    Field(gt=0, le=7 * 86400, json_schema_extra={"type": ["number", "string"], "pattern": rules.DURATION}),
]
ProjectName = Annotated[str, Field(pattern=NAME)]


class _Model(BaseModel):
    # Strict: a quoted "no" is text and no false, `true` is no 1. So the loader takes what the schema takes.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_max_length=4096, allow_inf_nan=False)


class Flavor(StrEnum):
    """MLflow flavours of the models."""

    SKLEARN = "sklearn"
    PYTORCH = "pytorch"
    KERAS = "keras"


class Mode(StrEnum):
    """Kinds of federated learning."""

    CLASSIC = "classic"
    HIERARCHICAL = "hierarchical"


class Strategy(_Model):
    """Flower's strategy by name, with its arguments."""

    name: Annotated[Literal[STRATEGIES], BeforeValidator(_strategy)] = Field("fedavg", description="Flower's strategy, by name.")  # type: ignore[valid-type]
    arguments: dict[str, bool | int | float | str] = Field(default_factory=dict, description="Its arguments, as Flower names them.")


class BestModel(_Model):
    """Which round's model is kept."""

    metric: str = Field("accuracy", description="A metric of the learners' evaluation.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="What is better.")

    _default_direction = model_validator(mode="before")(_direction)


class Cluster(_Model):
    """A group of learners below one cluster aggregator."""

    name: ProjectName = Field(description="Name of the cluster.")
    learners: int | None = Field(None, ge=1, le=1000, description="Learners in the cluster; min_available_clients when left out.")


class EarlyStop(_Model):
    """When a training ends before its last round (or cycle)."""

    metric: str = Field("accuracy", description="A metric of the aggregated model.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="What is better.")
    target: float | None = Field(None, description="The value that is enough.")
    patience: int | None = Field(
        None, ge=1, le=10_000, validate_default=True, description="Rounds in a row without an improvement that are enough."
    )
    min_delta: float = Field(0.0, ge=0, description="What is less than this is no improvement.")

    _default_direction = model_validator(mode="before")(_direction)

    @field_validator("patience")
    @classmethod
    def _one_of_both(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and "target" in info.data and info.data["target"] is None:
            raise rules.broken("is missing, and so is target: the training would never stop early", "Give one of them.")
        return value


class UpdateGuard(_Model):
    """What is done about updates that could spoil the model. Those that are not finite are refused always."""

    max_norm: float | None = Field(None, gt=0, description="Larger updates (Euclidean norm over all arrays) are scaled down to it.")


class Privacy(_Model):
    """Differential privacy, as Flower has it. Its noise does not come from the seed."""

    mechanism: Literal["central-fixed", "central-adaptive", "client-fixed", "client-adaptive", "local"] = Field(
        "central-fixed", description="Where updates are clipped, and where the noise is added (local: by each learner)."
    )
    clipping_norm: float = Field(1.0, gt=0, description="Norm that updates are clipped to; of adaptive ones, the first.")
    noise_multiplier: float = Field(1.0, ge=0, le=1e6, description="Noise by clipping norm; all but local.")
    epsilon: float = Field(1.0, gt=0, le=1e6, description="Privacy budget of one answer; local only.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Chance that the budget does not hold; local only.")


class Simulation(_Model):
    """Many learners in few processes, with the same result."""

    learners: int = Field(ge=1, le=10_000, description="Virtual learners, instead of min_available_clients.")
    processes: int = Field(2, ge=1, le=1024, description="Processes that play them.")


class Partitioner(_Model):
    """How rows are dealt to learners."""

    name: Literal["iid", "dirichlet", "shards"] = Field("iid", description="iid: by chance; the others skew by label.")
    alpha: float = Field(0.5, gt=0, le=1e6, description="dirichlet: the smaller, the more unlike the learners are.")
    shards_per_learner: int = Field(2, ge=1, le=1000, description="shards: pieces of the rows sorted by label for each learner.")
    min_rows: int = Field(10, ge=1, description="Rows that each learner gets at least.")
    label: str | None = Field(None, description="Column of the labels; label, labels, y, target or class when left out.")


class TrainingConfiguration(_Model):
    """How the model is trained."""

    mode: Mode = Field(
        Mode.CLASSIC, strict=False, description="classic: one aggregator; hierarchical: clusters below a root aggregator."
    )
    data_tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], BeforeValidator(_one_or_many)] = Field(
        default_factory=list, max_length=50, json_schema_extra=_schema_one_or_many,
        description="Only data with one of these tags is used.",
    )  # fmt: skip
    training_rounds: int = Field(3, ge=1, le=10_000, description="Rounds (of each cycle in hierarchical mode).")
    training_cycles: int = Field(1, ge=1, le=10_000, description="Cycles; hierarchical mode only.")
    min_available_clients: int = Field(1, ge=1, le=1000, description="Learners that are started, and needed to begin.")
    min_fit_clients: int = Field(1, ge=1, le=1000, description="Learners whose training a round needs.")
    min_evaluate_clients: int = Field(1, ge=1, le=1000, description="Learners whose evaluation a round needs.")
    strategy: Strategy = Field(default_factory=Strategy, description="Flower's strategy.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of shards and learners.")
    round_timeout: Duration = Field(600.0, description="Longest time for the answers of a round, such as 90s or 5m.")
    fraction_fit: float = Field(1.0, gt=0, le=1, description="Share of the learners that train in a round.")
    clusters: list[Cluster] = Field(default_factory=list, max_length=100, description="Clusters; hierarchical mode only.")
    best_model: BestModel = Field(default_factory=BestModel, description="Which round's model is kept.")
    root_strategy: Strategy | None = Field(
        None, description="How the root joins the clusters' models; fedavg when left out. Hierarchical mode only."
    )
    early_stop: EarlyStop | None = Field(None, description="When to end before the last round (or cycle).")
    update_guard: UpdateGuard | None = Field(None, description="Bounds for the learners' updates.")
    privacy: Privacy | None = Field(None, description="Differential privacy.")
    simulation: Simulation | None = Field(None, description="Virtual learners; classic mode only.")
    partitioner: Partitioner | None = Field(None, description="How rows are dealt to learners; by chance when left out.")
    federation: ProjectName | None = Field(
        None, description="A federation of flops.yaml whose nodes are the learners; without it learners are started here."
    )

    # Rules on single keys, not on the whole: so each is told at its own place, beside all other mistakes.
    @field_validator("min_fit_clients", "min_evaluate_clients")
    @classmethod
    def _quorum(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("min_available_clients", value):
            raise rules.broken(
                "is larger than min_available_clients, so no round could ever end",
                "Raise min_available_clients, or lower it.",
            )
        return value

    @field_validator("clusters")
    @classmethod
    def _only_hierarchical(cls, value: list[Cluster], info: ValidationInfo) -> list[Cluster]:
        if value and info.data.get("mode") is Mode.CLASSIC:
            raise rules.broken("needs mode: hierarchical", "Set `mode: hierarchical`, or remove the clusters.")
        names = [cluster.name for cluster in value]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise rules.broken("names a cluster twice", "Give each cluster its own name.", at=index)
        return value

    @field_validator("root_strategy")
    @classmethod
    def _root_only_hierarchical(cls, value: Strategy | None, info: ValidationInfo) -> Strategy | None:
        if value and info.data.get("mode") is Mode.CLASSIC:
            raise rules.broken("needs mode: hierarchical", "Set `mode: hierarchical`, or remove it.")
        return value

    @field_validator("simulation")
    @classmethod
    def _simulation(cls, value: Simulation | None, info: ValidationInfo) -> Simulation | None:
        if value and info.data.get("mode") is Mode.HIERARCHICAL:
            raise rules.broken("needs mode: classic", "Set `mode: classic`, or remove it.")
        if value and value.learners < info.data.get("min_available_clients", 0):
            raise rules.broken(
                "has fewer learners than min_available_clients", "Raise its learners, or lower min_available_clients."
            )
        return value

    def cluster_sizes(self) -> list[tuple[str, int]]:
        """The clusters of a hierarchical training and their learners: those that are declared, or two of min_available_clients."""
        if self.mode is Mode.CLASSIC:
            return []
        if not self.clusters:
            return [(f"cluster-{number}", self.min_available_clients) for number in range(1, DEFAULT_CLUSTERS + 1)]
        return [(cluster.name, cluster.learners or self.min_available_clients) for cluster in self.clusters]

    def learner_count(self) -> int:
        """Learners in all: those of all clusters, the virtual ones, or min_available_clients."""
        if self.simulation is not None:
            return self.simulation.learners
        return sum(learners for _, learners in self.cluster_sizes()) or self.min_available_clients

    def process_count(self) -> int:
        """Processes in which learners work at the same time."""
        return min(self.simulation.processes, self.simulation.learners) if self.simulation is not None else self.learner_count()


class ResourceConstraints(_Model):
    """What one actor may take."""

    memory: int = Field(100, ge=1, le=10_000_000, description="Memory of an actor's own work in MB, beside libraries and data.")
    vcpus: int = Field(1, ge=1, le=1024, description="CPUs of an actor.")
    storage: int = Field(0, ge=0, description="Storage in MB; 0 means no limit.")


class EvaluationGate(_Model):
    """When a model may be registered."""

    metric: str = Field("accuracy", description="A metric of the best round, or holdout.accuracy.")
    threshold: float | None = Field(None, description="The value that it has to reach.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="What is better.")
    no_worse_than_production: bool = Field(False, description="Also no worse than the version with alias production.")

    _default_direction = model_validator(mode="before")(_direction)


class Deployment(_Model):
    """How the trained model is served."""

    replicas: int = Field(1, ge=1, le=100, description="Servers; the process runtime runs one.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port; a free one is kept when it is left out.")
    resources: ResourceConstraints | None = Field(None, description="What the server may take.")
    strategy: Literal["rolling", "canary"] = Field("rolling", description="How a new version takes over.")
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=dict, description="Environment variables of the server."
    )


class Triggers(_Model):
    """What starts work beside a commit."""

    schedule: Annotated[str, AfterValidator(rules.cron)] | None = Field(None, description="Cron expression with five fields.")
    on_ml_repo_push: bool = Field(False, description="Follow ml_repo_ref instead of resolving it once per SLA.")
    on_degradation: bool = Field(False, description="Train again when the served model gets worse.")


PostTrainingStep = Literal["build_image_for_trained_model", "deploy_trained_model_image"]
Platform = Literal["linux/amd64", "linux/arm64"]
Runtime = Literal["process", "docker"]


class ProjectSLA(_Model):
    """One federated-learning project, declared."""

    model_config = ConfigDict(populate_by_name=True, title="Project SLA")

    customer_id: str = Field(
        alias="customerID", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$",
        description="Owner; one tracking server each.",
    )  # fmt: skip
    ml_repo_url: Annotated[str, AfterValidator(rules.ml_repo_url)] = Field(description="Git URL, or a path inside this repo.")
    ml_repo_ref: Annotated[str, AfterValidator(rules.ref)] | None = Field(None, description="Branch, tag or commit.")
    ml_repo_subdir: Annotated[str, AfterValidator(rules.inside)] = Field("", description="Folder inside the ML repo.")
    ml_model_flavor: Annotated[Flavor, Field(strict=False), BeforeValidator(_flavor)] = Field(
        description="sklearn, pytorch or keras (tensorflow)."
    )
    supported_platforms: list[Platform] = Field(["linux/amd64"], min_length=1, description="Platforms of the images.")
    use_devel_base_images: bool = Field(False, description="As in FLOps.")
    verbose: bool = Field(False, description="As in FLOps.")
    training_configuration: TrainingConfiguration = Field(default_factory=TrainingConfiguration, description="The training.")
    resource_constraints: ResourceConstraints = Field(default_factory=ResourceConstraints, description="Limits of an actor.")
    evaluation_gate: EvaluationGate | None = Field(None, description="When a model may be registered.")
    post_training_steps: list[PostTrainingStep] = Field(default_factory=list, description="What follows the training.")
    deployment: Deployment | None = Field(None, description="How the model is served.")
    runtime: Runtime | None = Field(None, description="Where learners and server run: process or docker; flops.yaml decides.")
    triggers: Triggers | None = Field(None, description="What starts work beside a commit.")
    depends_on: list[ProjectName] = Field(default_factory=list, max_length=100, description="Projects that come first.")
    suspend: bool = Field(False, description="Do nothing for this project.")
    on_change: Literal["supersede", "finish"] = Field("supersede", description="What a newer SLA does to running work.")
    deletion_policy: Literal["keep", "delete"] = Field(
        "keep", description="Whether models, runs and images stay when the SLA goes."
    )
    rerun: str | int | None = Field(None, description="Change it to train again with the same content.")

    @field_validator("post_training_steps")
    @classmethod
    def _steps(cls, value: list[PostTrainingStep]) -> list[PostTrainingStep]:
        build, deploy = "build_image_for_trained_model", "deploy_trained_model_image"
        if deploy in value and build not in value:
            raise rules.broken(f"needs {build} beside it", f"Add {build} before it.", at=value.index(deploy))
        return value


class MockDataConfiguration(_Model):
    """Which dataset plays the learners' data."""

    dataset_name: str = Field(min_length=1, max_length=100, description="Dataset, such as mnist.")
    number_of_partitions: int = Field(1, ge=1, le=10_000, description="Parts that the data is cut into.")
    one_mock_service_per_partition: bool = Field(
        False, description="As in FLOps; here no service is needed, so it changes nothing."
    )
    data_tag: str = Field(min_length=1, max_length=100, description="Tag under which SLAs ask for it.")


class MockData(_Model):
    """`mock_data.yaml`, as in FLOps."""

    model_config = ConfigDict(populate_by_name=True, title="Mock data")

    customer_id: str = Field(alias="customerID", min_length=1, max_length=100, description="Owner.")
    mock_data_configuration: MockDataConfiguration = Field(description="The dataset.")

    @property
    def dataset_name(self) -> str:
        """The dataset's name."""
        return self.mock_data_configuration.dataset_name

    @property
    def number_of_partitions(self) -> int:
        """Parts that the data is cut into."""
        return self.mock_data_configuration.number_of_partitions

    @property
    def data_tag(self) -> str:
        """The tag of the data."""
        return self.mock_data_configuration.data_tag


Tag = Annotated[str, Field(min_length=1, max_length=100)]


class NodeDeclaration(_Model):
    """`nodes/<name>.yaml`: a machine that may be a learner."""

    model_config = ConfigDict(title="Node")

    public_key: Annotated[str, AfterValidator(rules.public_key)] = Field(
        max_length=2000, description="Its public key, as `flops node keygen` printed it."
    )
    tags: list[Tag] = Field(min_length=1, max_length=100, description="Data tags that it may be asked for.")
    cluster: str = Field("", max_length=63, pattern=r"^$|" + NAME, description="Cluster that it belongs to.")
    federation: ProjectName = Field("default", description="Federation of flops.yaml that it may join.")


class FederationConfig(_Model):
    """A SuperLink and where it is: one of ours, unless `superlink` names another."""

    superlink: Annotated[str, AfterValidator(rules.host_port)] | None = Field(
        None, description="HOST:PORT of a SuperLink that exists already."
    )
    root_certificates: str | None = Field(None, description="PEM file with which that one is verified [the system's].")
    superexec_secret_file: str | None = Field(None, description="File with its SuperExec secret.")
    listen: Annotated[str, AfterValidator(rules.host_port)] = Field(
        "127.0.0.1:9092", description="Where ours listens for nodes; 0.0.0.0:9092 for all networks."
    )
    hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]+$", max_length=253)]] = Field(
        default_factory=lambda: ["localhost", "127.0.0.1"], min_length=1, max_length=50,
        description="Names and addresses by which nodes reach ours; they stand in its certificate.",
    )  # fmt: skip


class BudgetConfig(_Model):
    """What one machine gives to trainings at the same time."""

    memory_mb: int | None = Field(None, ge=1, description="Memory in MB; 80 % of the machine's when left out.")
    vcpus: int | None = Field(None, ge=1, description="CPUs; all of the machine's when left out.")
    max_parallel: int = Field(4, ge=1, le=256, description="Projects that are worked on at the same time.")


class PortsConfig(_Model):
    """Which ports services get that ask for none."""

    first: int = Field(ge=1024, le=65535, description="First port.")
    last: int = Field(ge=1024, le=65535, description="Last port, included.")

    @field_validator("last")
    @classmethod
    def _order(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("first", value):
            raise rules.broken("is smaller than first", "Swap them.")
        return value

    def range(self) -> range:
        """The ports."""
        return range(self.first, self.last + 1)


class ImagesConfig(_Model):
    """What the operator says about images; no build plan can go beyond it."""

    default_base: str = Field(
        "scratch", min_length=1, max_length=500, pattern=r"^[A-Za-z0-9._/:@{}-]+$",
        description="Base image of plans that say `default`, such as registry.example.com/python:{python}-slim.",
    )  # fmt: skip
    allowed_bases: list[Annotated[str, Field(min_length=1, max_length=500)]] | None = Field(
        None,
        max_length=100,
        description="Patterns such as registry.example.com/* that other base images must match; any without it.",
    )
    registry: str = Field(
        "", max_length=300, pattern=r"^([A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?(/[a-z0-9][a-z0-9._/-]*)?)?$",
        description="Where images are pushed to, such as registry.example.com/team; empty: they stay in this machine's store.",
    )  # fmt: skip
    signing_key: str = Field(
        "", max_length=500, description="File with a private key in cosign's format; images are signed with it."
    )


class OperatorConfig(_Model):
    """`flops.yaml`: the operator's settings."""

    model_config = ConfigDict(title="Operator settings")

    instance: ProjectName = Field("default", description="Name of this reconciler; its status branch is status/<instance>.")
    branch: Annotated[str, AfterValidator(rules.ref)] = Field("main", description="The branch that declares what is wanted.")
    tracking_uri: Annotated[str, AfterValidator(rules.no_credentials)] | None = Field(
        None, description="An MLflow server to use instead of one per customer."
    )
    budget: BudgetConfig = Field(default_factory=BudgetConfig, description="What trainings may take together.")
    ports: PortsConfig | None = Field(None, description="Ports of services; any free ones when left out.")
    allow_file_urls: bool = Field(
        False, description="Allow file:// in ml_repo_url: any Git repo that the reconciler may read can then be named by an SLA."
    )
    images: ImagesConfig = Field(default_factory=ImagesConfig, description="How images are made.")
    runtime: Runtime = Field("process", description="Where learners and servers run, for projects that do not say.")
    docker_host: Annotated[str, Field(pattern=r"^unix:///.+")] | None = Field(
        None, description="The Docker or Podman socket, unix:///…; DOCKER_HOST or the usual one when it is left out."
    )
    allow_empty: bool = Field(False, description="Allow a commit that removes every project.")
    data_directories: dict[str, str] = Field(default_factory=dict, description="Directories of data files by tag.")
    policy: Policy = Field(default_factory=Policy, description="What tenants may do.")
    federations: dict[ProjectName, FederationConfig] = Field(
        default_factory=dict, max_length=100, description="Federations of nodes, by name."
    )
    poll_interval: Duration = Field(60.0, description="How often a remote is asked for commits.")
