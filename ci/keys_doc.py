"""Makes the tables of keys in the documentation from the models, so that no key is there and not explained.

Run: `python -m ci.keys_doc` to write them, `--check` to compare (exit 1 when something is out of step).
"""

from __future__ import annotations

import enum
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reconciler.spec import BuildPlan, OperatorConfig, ProjectSLA
from reconciler.spec.models import NodeDeclaration

ROOT = Path(__file__).parent.parent
TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "docs/sla.md": (ProjectSLA, OperatorConfig),
    "docs/nodes.md": (NodeDeclaration,),
    "docs/build-plans.md": (BuildPlan,),
}
HEAD = "| key | default | what it is |\n| --- | --- | --- |\n"
_TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)*")


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A line for each key, with those of the models inside below it."""
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield f"| `{key}` | {_default(field)} | {field.description or ''} |"
        for inner in models_in(field.annotation):
            yield from rows(inner, f"{key}.")


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models inside a type such as `list[Cluster]` or `Deployment | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def page(text: str, models: tuple[type[BaseModel], ...]) -> str:
    """The text with its tables, in their order, made anew."""
    made = iter(models)
    found, count = _TABLE.subn(lambda _: HEAD + "".join(f"{row}\n" for row in rows(next(made))), text)
    if count != len(models):
        raise ValueError(f"{count} tables instead of {len(models)}")
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, list):
        return f"[{', '.join(str(item) for item in value)}]"
    return str(value.value if isinstance(value, enum.Enum) else value)


def main() -> int:
    """Write or check; the exit code says whether all is in step."""
    stale = 0
    for name, models in TABLES.items():
        path = ROOT / name
        made = page(path.read_text(), models)
        if made != path.read_text():
            stale = 1
            if "--check" in sys.argv:
                print(f"{name} is out of date: run `python -m ci.keys_doc`")
            else:
                path.write_text(made)
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
