"""How a model is trained: `training_configuration` of an SLA."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from reconciler.spec import rules
from reconciler.spec.base import Duration, ProjectName, Strict, default_direction

STRATEGIES = (
    "bulyan", "fedadagrad", "fedadam", "fedavg", "fedavgm", "fedmedian", "fedprox", "fedtrimmedavg", "fedyogi",
    "krum", "multikrum", "qfedavg",
)  # fmt: skip

DEFAULT_CLUSTERS = 2
"""Clusters that a hierarchical training has when it declares none."""


def _strategy(value: object) -> object:
    return value.lower().replace("-", "").replace("_", "") if isinstance(value, str) else value


def _one_or_many(value: object) -> object:
    """FLOps' own SLAs write a single tag without a list."""
    return [value] if isinstance(value, str) else value


def _schema_one_or_many(made: dict[str, Any]) -> None:
    many = {key: made.pop(key) for key in ("type", "items", "maxItems")}
    made["anyOf"] = [many, many["items"]]


class Mode(StrEnum):
    """Kinds of federated learning."""

    CLASSIC = "classic"
    HIERARCHICAL = "hierarchical"


class Strategy(Strict):
    """Flower's strategy by name, with its arguments."""

    name: Annotated[Literal[STRATEGIES], BeforeValidator(_strategy)] = Field("fedavg", description="Flower's strategy, by name.")  # type: ignore[valid-type]
    arguments: dict[str, bool | int | float | str] = Field(default_factory=dict, description="Its arguments, as Flower names them.")


class BestModel(Strict):
    """Which round's model is kept."""

    metric: str = Field("accuracy", description="A metric of the learners' evaluation.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="What is better.")

    _default_direction = model_validator(mode="before")(default_direction)


class Cluster(Strict):
    """A group of learners below one cluster aggregator."""

    name: ProjectName = Field(description="Name of the cluster.")
    learners: int | None = Field(None, ge=1, le=1000, description="Learners in the cluster; min_available_clients when left out.")
    nodes: list[Annotated[str, Field(min_length=1, max_length=253)]] | None = Field(
        None, min_length=1, max_length=1000,
        description="With a federation: its nodes by name; those that are declared for a cluster of this name when left out.",
    )  # fmt: skip


class EarlyStop(Strict):
    """When a training ends before its last round (or cycle)."""

    metric: str = Field("accuracy", description="A metric of the aggregated model.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="What is better.")
    target: float | None = Field(None, description="The value that is enough.")
    patience: int | None = Field(
        None, ge=1, le=10_000, validate_default=True, description="Rounds in a row without an improvement that are enough."
    )
    min_delta: float = Field(0.0, ge=0, description="What is less than this is no improvement.")

    _default_direction = model_validator(mode="before")(default_direction)

    @field_validator("patience")
    @classmethod
    def _one_of_both(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and "target" in info.data and info.data["target"] is None:
            raise rules.broken("is missing, and so is target: the training would never stop early", "Give one of them.")
        return value


class UpdateGuard(Strict):
    """What is done about updates that could spoil the model. Those that are not finite are refused always."""

    max_norm: float | None = Field(None, gt=0, description="Larger updates (Euclidean norm over all arrays) are scaled down to it.")


class Privacy(Strict):
    """Differential privacy, as Flower has it. Its noise does not come from the seed."""

    mechanism: Literal["central-fixed", "central-adaptive", "client-fixed", "client-adaptive", "local"] = Field(
        "central-fixed", description="Where updates are clipped, and where the noise is added (local: by each learner)."
    )
    clipping_norm: float = Field(1.0, gt=0, description="Norm that updates are clipped to; of adaptive ones, the first.")
    noise_multiplier: float = Field(1.0, ge=0, le=1e6, description="Noise by clipping norm; all but local.")
    epsilon: float = Field(1.0, gt=0, le=1e6, description="Privacy budget of one answer; local only.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Chance that the budget does not hold; local only.")


class Simulation(Strict):
    """Many learners in few processes, with the same result."""

    learners: int = Field(ge=1, le=10_000, description="Virtual learners, instead of min_available_clients.")
    processes: int = Field(2, ge=1, le=1024, description="Processes that play them.")


class Partitioner(Strict):
    """How rows are dealt to learners."""

    name: Literal["iid", "dirichlet", "shards"] = Field("iid", description="iid: by chance; the others skew by label.")
    alpha: float = Field(0.5, gt=0, le=1e6, description="dirichlet: the smaller, the more unlike the learners are.")
    shards_per_learner: int = Field(2, ge=1, le=1000, description="shards: pieces of the rows sorted by label for each learner.")
    min_rows: int = Field(10, ge=1, description="Rows that each learner gets at least.")
    label: str | None = Field(None, description="Column of the labels; label, labels, y, target or class when left out.")


class TrainingConfiguration(Strict):
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
        None,
        validate_default=True,
        description="A federation of flops.yaml whose nodes are the learners; without it learners are started here.",
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
        seen: set[str] = set()
        for index, cluster in enumerate(value):
            nodes = cluster.nodes or []
            if len({*nodes} - seen) < len(nodes):
                raise rules.broken("names a node twice", "Put each node into one cluster, once.", at=index)
            seen.update(nodes)
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

    @field_validator("federation")
    @classmethod
    def _learners_are_nodes(cls, value: str | None, info: ValidationInfo) -> str | None:
        clusters: list[Cluster] = info.data.get("clusters", [])
        if value is None:
            if any(cluster.nodes for cluster in clusters):
                raise rules.broken("is missing, but clusters name its nodes", "Name the federation, or remove the nodes.")
            return value
        if any(cluster.learners for cluster in clusters):
            raise rules.broken(
                "has nodes of its own, so a cluster cannot say how many learners it has",
                "Remove `learners`; `nodes` says which, and min_available_clients how many are needed.",
            )
        for key in ("simulation", "partitioner"):
            if info.data.get(key) is not None:
                raise rules.broken(
                    f"cannot be together with {key}: the data are where the nodes are", f"Remove one of them, federation or {key}."
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
