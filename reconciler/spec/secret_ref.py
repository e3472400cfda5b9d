"""References to secrets: a setting names where a secret is, and never holds it, as settings are committed and shown."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from reconciler.spec import rules
from reconciler.spec.base import Strict

_PATH = r"^/[^\x00-\x1f\x7f]+$"
_CURE = "Write one of them, such as `secret_ref: {env: FLOPS_GITHUB_TOKEN}`."


class SecretRef(Strict):
    """Where a secret is: in a variable of the reconciler's environment, or in a file of its machine, encrypted or not."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")] | None = Field(
        None, description="Name of an environment variable of the reconciler."
    )
    file: Annotated[str, Field(pattern=_PATH, max_length=1000)] | None = Field(
        None, description="Absolute path of a file whose whole content is the secret; a newline at its end is no part of it."
    )

    sops: Annotated[str, Field(pattern=_PATH, max_length=1000)] | None = Field(
        None, description="Absolute path of a file that SOPS encrypted; `sops` decrypts it."
    )
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,9}$", max_length=200)] | None = Field(
        None, description="The value of a SOPS file that is meant, such as web.token; the whole file when it is left out."
    )
    age: Annotated[str, Field(pattern=_PATH, max_length=1000)] | None = Field(
        None, description="Absolute path of a file that age encrypted; `age` decrypts it with the identities of SOPS_AGE_KEY_FILE."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = sum(value is not None for value in (self.env, self.file, self.sops, self.age))
        if named != 1:
            raise rules.broken("names no place of the secret" if not named else "names more than one place of the secret", _CURE)
        if self.key is not None and self.sops is None:
            raise rules.broken("has a key without a SOPS file", "Leave `key` out, or name the file with `sops`.")
        return self

    def __str__(self) -> str:
        """The place, for messages; nothing of the secret."""
        if self.env is not None:
            return f"variable {self.env}"
        return f"{self.key} of {self.sops}" if self.key else f"file {self.file or self.sops or self.age}"
