"""Policy: what the operator lets tenants do, in the operator's `flops.yaml` and never in what tenants commit.

A list that is left out allows everything (but `secrets`: nothing); one that is there allows what it names and nothing else: an
empty one allows nothing. Patterns are those of a shell (`*`, `?`, `[…]`), over the whole text.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reconciler.spec.base import Strict

Pattern = Annotated[str, Field(min_length=1, max_length=300)]


class Limits(Strict):
    """The most that one project, or all projects of a customer together, may ask for."""

    memory_mb: int | None = Field(None, ge=0, description="Memory of all learners together, in MB.")
    vcpus: int | None = Field(None, ge=0, description="CPUs of all learners together.")
    learners: int | None = Field(None, ge=0, description="Learners.")
    replicas: int | None = Field(None, ge=0, description="Servers of deployed models.")
    projects: int | None = Field(None, ge=0, description="Projects of a customer; for a single project it means nothing.")


class Policy(Strict):
    """What tenants may do; checked at every look, whatever made the project what it is."""

    ml_repo_urls: list[Pattern] | None = Field(
        None, description="Allowed ML repos, such as https://git.example.com/team/*, or ./*."
    )
    data_tags: list[Pattern] | None = Field(None, description="Allowed data tags.")
    environment_variables: list[Pattern] | None = Field(None, description="Allowed names in deployment.environment.")
    secrets: list[Pattern] = Field(
        default_factory=list, description="Names of `secrets` that projects may use; none when left out."
    )
    deployers: list[Pattern] | None = Field(None, description="Customers that may deploy what they trained.")
    project: Limits = Field(default_factory=Limits, description="Limits of every project.")
    customer: Limits = Field(default_factory=Limits, description="Limits of every customer that has none of its own.")
    customers: dict[str, Limits] | None = Field(None, description="Limits by customer; no other customer may have projects then.")
    signed_commits: Literal["none", "head", "strict"] = Field(
        "none", description="head: the branch's last commit is signed; strict: each one of its first-parent history."
    )
    signed_since: Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")] | None = Field(
        None, description="The commit after which strict begins; the whole history when it is left out."
    )
    allowed_signers: str | None = Field(None, description="File of SSH keys that may sign, as in ssh-keygen(1).")
    gnupg_home: str | None = Field(None, description="GnuPG folder with the keys that may sign.")
