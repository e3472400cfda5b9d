"""`notify` in `flops.yaml`: whom the reconciler tells of transitions, outside of Git. The operator's choice, never a tenant's."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from reconciler.spec import rules
from reconciler.spec.base import Duration, ProjectName, Strict
from reconciler.spec.secret_ref import SecretRef

ForgeName = Literal["github", "gitlab", "gitea", "forgejo"]
Url = Annotated[str, AfterValidator(rules.http_url), Field(max_length=1000)]


class NotifyTarget(Strict):
    """One place to tell: a forge, or a webhook of the operator's own."""

    name: ProjectName = Field(description="Its name, for logs, metrics and `flops doctor`.")
    type: Literal["github", "gitlab", "gitea", "forgejo", "webhook"] = Field(description="What it is.")
    secret_ref: SecretRef = Field(description="Where the forge's token is, or the secret that the webhook is signed with.")
    url: Url | None = Field(None, description="Webhooks: where to.")
    api: Url | None = Field(
        None, description="Forges: base address of the API [that of the remote's host, such as https://HOST/api/v4]."
    )
    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+$", max_length=300)] | None = Field(
        None, description="Forges: owner/name [that of the remote]."
    )
    statuses: bool = Field(True, description="Forges: a status on the commit that declares a project.")
    comments: bool = Field(
        False, description="Forges: one comment on the pull or merge request that brought the commit, kept up to date."
    )
    author: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]-]+$", max_length=100)] | None = Field(
        None, description="Forges: the account that comments [that of the token], such as github-actions[bot]."
    )
    link: Url | None = Field(None, description="Where a status links to; {project} in it is replaced.")
    pause: Duration = Field(1.0, description="Least time between two requests that write.")

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        if self.type == "webhook":
            given = [key for key in ("api", "repository", "author") if getattr(self, key) is not None]
            if self.url is None:
                raise rules.broken("is a webhook without a url", "Add `url: https://…`.")
            if given or self.comments:
                raise rules.broken(f"is a webhook, which has no {(given or ['comments'])[0]}", "Remove that key.")
        elif self.url is not None:
            raise rules.broken("is a forge, which has no url", "Write `api: https://…`, or remove the key.")
        elif not self.statuses and not self.comments:
            raise rules.broken("says nothing", "Set statuses or comments to true, or remove it.")
        return self
