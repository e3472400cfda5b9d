"""The SLA as models: FLOps' keys with their names and defaults, and ours. The JSON Schemas are made from these classes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from reconciler.spec import rules
from reconciler.spec.base import NAME, Platform, ProjectName, Runtime, Strict, Tag, default_direction
from reconciler.spec.training import TrainingConfiguration


def _flavor(value: object) -> object:
    return "keras" if value == "tensorflow" else value


class Flavor(StrEnum):
    """MLflow flavours of the models."""

    SKLEARN = "sklearn"
    PYTORCH = "pytorch"
    KERAS = "keras"


class ResourceConstraints(Strict):
    """What one actor may take."""

    memory: int = Field(100, ge=1, le=10_000_000, description="Memory of an actor's own work in MB, beside libraries and data.")
    vcpus: int = Field(1, ge=1, le=1024, description="CPUs of an actor.")
    storage: int = Field(0, ge=0, description="Storage in MB; 0 means no limit.")


class EvaluationGate(Strict):
    """When a model may be registered."""

    metric: str = Field("accuracy", description="A metric of the best round, or holdout.accuracy.")
    threshold: float | None = Field(None, description="The value that it has to reach.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="What is better.")
    no_worse_than_production: bool = Field(False, description="Also no worse than the version with alias production.")

    _default_direction = model_validator(mode="before")(default_direction)


class FromSecret(Strict):
    """A value that the operator keeps."""

    secret_ref: ProjectName = Field(description="Name of one of the operator's `secrets` that policy allows.")


class Deployment(Strict):
    """How the trained model is served."""

    replicas: int = Field(1, ge=1, le=100, description="Servers; the process runtime runs one.")
    port: int | None = Field(None, ge=1024, le=65535, description="Port; a free one is kept when it is left out.")
    resources: ResourceConstraints | None = Field(None, description="What the server may take.")
    strategy: Literal["rolling", "canary"] = Field("rolling", description="How a new version takes over.")
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str | FromSecret] = Field(
        default_factory=dict, description="Environment variables of the server: text, or {secret_ref: NAME}."
    )

    def secrets(self) -> dict[str, str]:
        """The names of secrets by variable."""
        return {name: value.secret_ref for name, value in self.environment.items() if isinstance(value, FromSecret)}


class Triggers(Strict):
    """What starts work beside a commit."""

    schedule: Annotated[str, AfterValidator(rules.cron)] | None = Field(None, description="Cron expression with five fields.")
    on_ml_repo_push: bool = Field(False, description="Follow ml_repo_ref instead of resolving it once per SLA.")
    on_degradation: bool = Field(False, description="Train again when the served model gets worse.")


PostTrainingStep = Literal["build_image_for_trained_model", "deploy_trained_model_image"]


class ProjectSLA(Strict):
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


class MockDataConfiguration(Strict):
    """Which dataset plays the learners' data."""

    dataset_name: str = Field(
        min_length=1, max_length=100, description="Dataset: mnist, or the small digits that scikit-learn ships."
    )
    number_of_partitions: int = Field(1, ge=1, le=10_000, description="Parts that the data is cut into.")
    one_mock_service_per_partition: bool = Field(
        False, description="As in FLOps; here no service is needed, so it changes nothing."
    )
    data_tag: str = Field(min_length=1, max_length=100, description="Tag under which SLAs ask for it.")


class MockData(Strict):
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


class NodeDeclaration(Strict):
    """`nodes/<name>.yaml`: a machine that may be a learner."""

    model_config = ConfigDict(title="Node")

    public_key: Annotated[str, AfterValidator(rules.public_key)] = Field(
        max_length=2000, description="Its public key, as `flops node keygen` printed it."
    )
    tags: list[Tag] = Field(min_length=1, max_length=100, description="Data tags that it may be asked for.")
    cluster: str = Field("", max_length=63, pattern=r"^$|" + NAME, description="Cluster that it belongs to.")
    federation: ProjectName = Field("default", description="Federation of flops.yaml that it may join.")
