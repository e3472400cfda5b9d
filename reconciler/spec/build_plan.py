"""Build plans: how the images of learners, aggregators and inference servers are made.

A plan is `build_plans/<kind>.yaml`; `projects/<name>/build_plans/<kind>.yaml` overrides single keys of it. What the operator does
not allow in `flops.yaml` no project can ask for. Whatever stands in a plan determines the image, so its digest is part of the
project's key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field

from reconciler.digests import digest_of
from reconciler.errors import SpecError, Where
from reconciler.spec import rules
from reconciler.spec.base import Duration, Platform, Strict
from reconciler.spec.operator import ImagesConfig

KINDS: Final = ("learner", "aggregator", "inference")
DEFAULT_BASE: Final = "default"
EMBEDDED: Final = "scratch"
"""No base image: the interpreter of the reconciler's machine, for its platform alone."""
PORT: Final = 8080
_HEALTH: Final = ["python", "-m", "flops_runtime.health", str(PORT)]
_ENTRY: Final[Mapping[str, list[str]]] = {
    "learner": ["python", "-m", "flops_runtime"],
    "aggregator": ["python", "-m", "flops_runtime"],
    "inference": ["python", "-m", "flops_runtime.serve", "--model", "/model", "--host", "0.0.0.0", "--port", str(PORT)],  # noqa: S104
}
_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT")
_PART = r"[A-Za-z0-9._{][A-Za-z0-9._:{}-]*"
_REFERENCE = re.compile(
    rf"(oci:/?{_PART}(/{_PART})*|docker-daemon:{_PART}(/{_PART})*"
    rf"|(docker://)?(localhost|[A-Za-z0-9][A-Za-z0-9-]*[.:][A-Za-z0-9.:-]*)(/{_PART})+)(@sha256:[0-9a-f]{{64}})?"
)


def _base_image(value: str) -> str:
    if value in (DEFAULT_BASE, EMBEDDED) or (_REFERENCE.fullmatch(value) and ".." not in re.split("[/:]", value)):
        if re.sub(r"\{python\}", "", value).count("{"):
            raise rules.broken("has a placeholder that is not known", "Only {python} is: it becomes 3.11 or what the lock says.")
        return value
    raise rules.broken(
        "is not an image",
        "Write `default`, `scratch`, oci:/folder:tag, docker-daemon:name:tag, or registry.example.com/name:tag with its host.",
    )


def _user(value: str) -> str:
    if not re.fullmatch(r"\d{1,9}(:\d{1,9})?", value):
        raise rules.broken(
            "is not a number", "Write a user and a group by number, such as 65532:65532: every runtime can check it."
        )
    if int(value.split(":")[0]) == 0:
        raise rules.broken("is root", "Choose another user, such as 65532:65532.")
    return value


def _debian(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]{1,100}", value):
        raise rules.broken("is not the name of a Debian package", "Write its name alone, such as libgomp1.")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name.startswith(("dev.flops.", "org.opencontainers.image.")):
            raise rules.broken(f"has {name}, which is set by the reconciler", "Use a name of your own, such as com.example.team.")
    return value


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name in _OURS:
            raise rules.broken(f"has {name}, which decides what code runs", "Leave it out; the image sets what it needs.")
    return value


class HealthCheck(Strict):
    """How a container is known to be healthy."""

    command: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=50, description="Run inside; 0 is healthy.")
    interval: Duration = Field(10.0, description="Time between two checks.")
    timeout: Duration = Field(5.0, description="Longest time of one check.")
    start_period: Duration = Field(60.0, description="Time to start in which a failure does not count.")
    retries: int = Field(3, ge=1, le=100, description="Failures in a row that make it unhealthy.")


class BuildPlan(Strict):
    """How one kind of image is made."""

    model_config = ConfigDict(title="Build plan")

    kind: Literal["learner", "aggregator", "inference"] = Field(description="What runs in the image.")
    base_image: Annotated[str, AfterValidator(_base_image)] = Field(
        DEFAULT_BASE, min_length=1, max_length=500,
        description="`default` (flops.yaml decides), `scratch`, or an image by tag or digest; {python} becomes the version.",
    )  # fmt: skip
    python_version: str | None = Field(
        None, pattern=r"^3\.\d{1,2}$", description="Python that the image must have; that of the dependency lock when left out."
    )
    platforms: list[Platform] = Field(
        ["linux/amd64", "linux/arm64"], min_length=1, description="Platforms that the image may be made for."
    )
    debian_packages: list[Annotated[str, AfterValidator(_debian)]] = Field(
        default_factory=list, max_length=200, description="Debian packages that the base image must have."
    )
    entry_point: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, max_length=100, description="What is started; the kind's own when left out."
    )
    user: Annotated[str, AfterValidator(_user)] = Field("65532:65532", description="User and group by number; not root.")
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(default_factory=list, max_length=50, description="Ports, TCP.")
    health_check: HealthCheck | None = Field(None, description="How a container is known to be healthy.")
    labels: Annotated[dict[str, str], AfterValidator(_labels)] = Field(
        default_factory=dict, max_length=100, description="Labels of the image; the reconciler adds its own."
    )
    environment: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str], AfterValidator(_environment)] = (
        Field(default_factory=dict, max_length=200, description="Environment variables, for everybody to read: no secrets.")
    )
    compression: Literal["gzip", "zstd"] = Field(
        "gzip", description="gzip is read everywhere; zstd is smaller, for registries and runtimes that know it."
    )

    @property
    def command(self) -> list[str]:
        """What is started."""
        return self.entry_point or list(_ENTRY[self.kind])


def default_plan(kind: str) -> BuildPlan:
    """The plan of a repo that has none; the same as what `flops init` writes."""
    content: dict[str, Any] = {"kind": kind}
    if kind == "inference":
        content |= {"ports": [PORT], "health_check": {"command": list(_HEALTH)}}
    return BuildPlan.model_validate(content)


def effective_plan(
    kind: str, plan: BuildPlan | None = None, override: BuildPlan | None = None, policy: ImagesConfig | None = None
) -> BuildPlan:
    """The plan that counts for a project: the repo's, with the keys of the project's own over it, under the operator's policy.

    Labels and environment are merged by name. Raises SpecError: FL1041 for a file of another kind, FL1042 for a base image
    that the operator does not allow.
    """
    policy = policy or ImagesConfig()
    for found, folder in ((plan, "build_plans"), (override, "the project's build_plans")):
        if found is not None and found.kind != kind:
            raise wrong_kind(found.kind, Where(f"{folder}/{kind}.yaml"))
    made = plan or default_plan(kind)
    if override is not None:
        given = {name: getattr(override, name) for name in override.model_fields_set}
        for name in ("labels", "environment"):
            given[name] = {**getattr(made, name), **given.get(name, {})}
        made = made.model_copy(update=given)
    if made.base_image == DEFAULT_BASE:
        made = made.model_copy(update={"base_image": policy.default_base})
    elif policy.allowed_bases is not None and not any(fnmatchcase(made.base_image, pattern) for pattern in policy.allowed_bases):
        raise SpecError(
            "FL1042",
            f"The base image {made.base_image} of the {kind} is not among those that the operator allows.",
            cure=f"Allowed: default, {', '.join(policy.allowed_bases)}.",
            where=Where(f"build_plans/{kind}.yaml"),
        )
    return made


def wrong_kind(kind: str, where: Where) -> SpecError:
    """The error for a file whose name and whose `kind` differ."""
    return SpecError(
        "FL1041", f"The file says kind: {kind}.", cure="The kind and the name of the file must be the same.", where=where
    )


def plan_digest(plan: BuildPlan) -> str:
    """SHA-256 over everything that the plan says, as 64 hexadecimal digits."""
    return digest_of(plan.model_dump(mode="json"))


def plans_key(plans: Mapping[str, BuildPlan]) -> dict[str, str]:
    """The named inputs `build_plan.<kind>` that a project's key takes in."""
    return {f"build_plan.{kind}": plan_digest(plan) for kind, plan in sorted(plans.items())}
