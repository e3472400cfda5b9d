"""`flops.yaml`: the operator's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator

from reconciler.spec import rules
from reconciler.spec.base import Duration, ProjectName, Runtime, Strict
from reconciler.spec.notify import NotifyTarget
from reconciler.spec.policy import Pattern, Policy
from reconciler.spec.secret_ref import SecretRef


class FederationConfig(Strict):
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


class BudgetConfig(Strict):
    """What one machine gives to trainings at the same time."""

    memory_mb: int | None = Field(None, ge=1, description="Memory in MB; 80 % of the machine's when left out.")
    vcpus: int | None = Field(None, ge=1, description="CPUs; all of the machine's when left out.")
    max_parallel: int = Field(4, ge=1, le=256, description="Projects that are worked on at the same time.")


class PortsConfig(Strict):
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


class ImagesConfig(Strict):
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


class WebToken(Strict):
    """A token for the API of `flops serve`."""

    name: ProjectName = Field(description="Whose it is.")
    role: Literal["viewer", "operator"] = Field(description="viewer: reads; operator: may also say look and try again.")
    secret_ref: SecretRef = Field(description="Where it is; at least 16 characters.")


class WebConfig(Strict):
    """What `flops serve --listen` asks of those who come."""

    webhook_secret: SecretRef | None = Field(
        None, description="Secret that forges sign webhooks with; FLOPS_WEBHOOK_SECRET when left out."
    )
    tokens: list[WebToken] = Field(
        default_factory=list, max_length=100, description="Tokens of the API; FLOPS_WEB_TOKEN is a viewer's."
    )

    @field_validator("tokens")
    @classmethod
    def _names(cls, value: list[WebToken]) -> list[WebToken]:
        names = [item.name for item in value]
        if len(set(names)) != len(names):
            raise rules.broken("has two tokens of one name", "Give each a name of its own.")
        return value


class ProjectSecret(Strict):
    """A secret that projects may use by name in deployment.environment, if `policy.secrets` allows it."""

    secret_ref: SecretRef = Field(description="Where it is.")
    customers: list[Pattern] | None = Field(None, max_length=100, description="Customers that may use it; all when left out.")
    version: str = Field("", max_length=100, description="Change it when the secret was changed: servers that use it are renewed.")


class OperatorConfig(Strict):
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
    web: WebConfig = Field(default_factory=WebConfig, description="The web server of `flops serve`.")
    secrets: dict[ProjectName, ProjectSecret] = Field(
        default_factory=dict, max_length=1000, description="Secrets for projects, by name."
    )
    federations: dict[ProjectName, FederationConfig] = Field(
        default_factory=dict, max_length=100, description="Federations of nodes, by name."
    )
    notify: list[NotifyTarget] = Field(
        default_factory=list, max_length=20, description="Whom to tell of transitions, outside of Git."
    )
    poll_interval: Duration = Field(60.0, description="How often a remote is asked for commits.")

    @field_validator("notify")
    @classmethod
    def _names(cls, value: list[NotifyTarget]) -> list[NotifyTarget]:
        names = [item.name for item in value]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise rules.broken("has the name of another one", "Give each its own name.", at=index)
        return value
