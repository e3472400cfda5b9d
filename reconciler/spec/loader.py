"""From bytes to models: each of pydantic's errors becomes one with a code, a place in the file, a cause and a cure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reconciler.errors import SpecError, SpecErrors, Where
from reconciler.spec.models import MockData, OperatorConfig, ProjectSLA
from reconciler.spec.yaml_reader import Document, Path, read, shown

Model = TypeVar("Model", bound=BaseModel)


def load_sla(data: bytes, path: str) -> ProjectSLA:
    """A project SLA in YAML or JSON. Raises SpecErrors with all that is wrong with it."""
    return load(ProjectSLA, data, path)


def load_mock_data(data: bytes, path: str) -> MockData:
    """A `mock_data.yaml`. Raises SpecErrors."""
    return load(MockData, data, path)


def load_operator_config(data: bytes, path: str) -> OperatorConfig:
    """A `flops.yaml`. Raises SpecErrors."""
    return load(OperatorConfig, data, path)


def load(model: type[Model], data: bytes, path: str) -> Model:
    """Read one document and validate it."""
    document = read(data, path)
    if not isinstance(document.value, dict):
        cause = f"The file is {_kind(document.value)}, not a mapping of keys to values."
        raise SpecErrors([SpecError("FL1020", cause, cure="Start with `customerID: …`.", where=Where(path, 1, 1))])
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecErrors([_translate(item, model, document, path) for item in details]) from error


def _translate(detail: ErrorDetails, model: type[BaseModel], document: Document, path: str) -> SpecError:
    location = tuple(item for item in detail["loc"] if item != "[key]")
    kind = detail["type"]
    name = ".".join(str(item) for item in location)
    if kind == "extra_forbidden":
        place = document.keys.get(location) or _nearest(document, location)
        known = _keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
        cure = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(known[:30])}."
        return _error("FL1021", f"There is no key {shown(name)}.", cure, path, place)
    if kind == "missing":
        place = _nearest(document, location[:-1])
        return _error("FL1022", f"The key {name!r} is missing.", f"Add `{location[-1]}: …`.", path, place)
    place = document.values.get(location) or _nearest(document, location)
    value = _shown_value(detail.get("input"))
    if kind in {"enum", "literal_error"}:
        expected = str((detail.get("ctx") or {}).get("expected", "")).replace("'", "").replace(" or ", ", ")
        options = [item.strip() for item in expected.split(",")]
        close = difflib.get_close_matches(str(detail.get("input")), options, n=1, cutoff=0.6)
        cure = (f"Did you mean {close[0]!r}? " if close else "") + f"Allowed: {', '.join(options)}."
        return _error("FL1023", f"{name} is {value}, which is not one of the allowed values.", cure, path, place)
    if kind == "value_error":
        subject = f"{name} {value} " if location else "The SLA: "
        reason = str((detail.get("ctx") or {}).get("error", detail["msg"]))
        whole = isinstance(detail.get("input"), Mapping)
        cause = f"{name or 'The SLA'}: {reason}." if whole else f"{subject}{reason}."
        return _error("FL1024", cause, "Change it as the key's description says (docs/sla.md).", path, place)
    if kind.endswith(("_type", "_parsing", "_from_float")):
        return _error("FL1025", f"{name} is {value}: {_sentence(detail['msg'])}", "Give it a value of that type.", path, place)
    return _error("FL1026", f"{name} is {value}: {_sentence(detail['msg'])}", "Choose a value within the limits.", path, place)


def _error(code: str, cause: str, cure: str, path: str, place: tuple[int, int]) -> SpecError:
    return SpecError(code, cause, cure=cure, where=Where(path, *place))


def _nearest(document: Document, location: Path) -> tuple[int, int]:
    """The place of the innermost part of a path that stands in the file."""
    for length in range(len(location), 0, -1):
        found = document.keys.get(location[:length]) or document.values.get(location[:length])
        if found:
            return found
    return document.values.get((), (1, 1))


def _keys(model: type[BaseModel], location: Path) -> list[str]:
    """The keys that are known at a place of a model."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = next((item for key, item in current.model_fields.items() if part in (key, item.alias)), None)
        found = _model_in(field.annotation) if field else None
        if found is None:
            return []
        current = found
    return [item.alias or key for key, item in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list):
        return next((found for item in get_args(annotation) if (found := _model_in(item))), None)
    return None


def _shown_value(value: object) -> str:
    if isinstance(value, Mapping | list) or value is None:
        return _kind(value)
    return shown(value) if isinstance(value, str) else str(value)[:40]


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "text"}
    return names.get(type(value), "a single value")


def _sentence(message: str) -> str:
    text = message.removeprefix("Input ").strip()
    return text[:1].lower() + text[1:].rstrip(".") + "."
