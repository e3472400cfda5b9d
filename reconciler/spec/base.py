"""What all models of files stand on: strictness, and the words that several of them use."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from reconciler.spec import rules

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


Duration = Annotated[
    float,
    BeforeValidator(rules.duration),
    Field(gt=0, le=7 * 86400, json_schema_extra={"type": ["number", "string"], "pattern": rules.DURATION}),
]
ProjectName = Annotated[str, Field(pattern=NAME)]
Tag = Annotated[str, Field(min_length=1, max_length=100)]
Platform = Literal["linux/amd64", "linux/arm64"]
Runtime = Literal["process", "docker"]


class Strict(BaseModel):
    """A file, or a part of one. A quoted "no" is text and no false, `true` is no 1: the loader takes what the schema takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_max_length=4096, allow_inf_nan=False)


def default_direction(value: Any) -> Any:
    """What is better follows from the metric when nothing is said; for a `model_validator(mode="before")`."""
    if isinstance(value, dict) and "metric" in value:
        return {"direction": rules.better(value["metric"]), **value}
    return value
