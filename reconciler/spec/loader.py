"""From bytes to models: each of pydantic's errors becomes one with a code, a place in the file, a cause and a cure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reconciler.errors import SpecError, SpecErrors, Where
from reconciler.spec.base import NAME
from reconciler.spec.build_plan import BuildPlan, wrong_kind
from reconciler.spec.models import MockData, NodeDeclaration, ProjectSLA
from reconciler.spec.operator import OperatorConfig
from reconciler.spec.yaml_reader import MAX_ERRORS, Document, Path, read, shown

_TYPES = {
    "string_type": ("text", "Write text."),
    "int_type": ("a whole number", "Write a whole number without quotes."),
    "float_type": ("a number", "Write a number without quotes."),
    "bool_type": ("true or false", "Write true or false without quotes."),
    "list_type": ("a list", "Write a list: [a, b], or a line `- a` for each."),
    "dict_type": ("a mapping", "Write its keys below it, indented."),
    "model_type": ("a mapping", "Write its keys below it, indented."),
}
_KINDS = dict.fromkeys(_TYPES, "type")
_LETTERS = "Use letters, digits, and `.`, `_`, `@`, `-` between them."
_PATTERN_CURES = {NAME: "Use a-z, 0-9 and - between them, at most 63 characters."}
_SECRET = re.compile(r"secret|token|passw|credential|api_?key|private_?key|public_?key", re.IGNORECASE)

Model = TypeVar("Model", bound=BaseModel)


def load_sla(data: bytes, path: str) -> ProjectSLA:
    """A project SLA in YAML or JSON. Raises SpecErrors with all that is wrong with it."""
    return load(ProjectSLA, data, path)


@lru_cache(maxsize=64)
def known_sla(data: bytes) -> ProjectSLA:
    """An SLA that was read before without a mistake, when something is done with it. As a model it takes 6 KB, so none is kept."""
    return load_sla(data, "")


def load_mock_data(data: bytes, path: str) -> MockData:
    """A `mock_data.yaml`. Raises SpecErrors."""
    return load(MockData, data, path)


def load_operator_config(data: bytes, path: str) -> OperatorConfig:
    """A `flops.yaml`. Raises SpecErrors."""
    return load(OperatorConfig, data, path)


def load_build_plan(data: bytes, path: str) -> BuildPlan:
    """A build plan. Raises SpecErrors; FL1041 when the file's name is that of another kind."""
    plan = load(BuildPlan, data, path)
    if plan.kind != PurePosixPath(path).stem:
        raise SpecErrors([wrong_kind(plan.kind, Where(path, 1))])
    return plan


def load_node(data: bytes, path: str) -> NodeDeclaration:
    """A `nodes/<name>.yaml`. Raises SpecErrors."""
    return load(NodeDeclaration, data, path)


def load(model: type[Model], data: bytes, path: str) -> Model:
    """Read one document and validate it."""
    return load_document(model, read(data, path), path)


def load_document(model: type[Model], document: Document, path: str) -> Model:
    """Validate what was read; for callers that need the places of values too."""
    if not isinstance(document.value, dict):
        cause = f"The file is {_kind(document.value)}, not a mapping of keys to values."
        raise SpecErrors([SpecError("FL1020", cause, cure="Start with `customerID: …`.", where=Where(path, 1, 1))])
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        raise SpecErrors(_translated(error.errors(include_url=False), model, document, path)) from error


def _translated(details: Sequence[ErrorDetails], model: type[BaseModel], document: Document, path: str) -> list[SpecError]:
    """One error for each place and mistake, in the order of the file."""
    grouped: dict[tuple[Path, str], list[ErrorDetails]] = {}
    for detail in details:
        location = tuple(item for item in detail["loc"] if item != "[key]")
        kind = _KINDS.get(detail["type"], detail["type"])
        if kind not in {"missing", "extra_forbidden"}:
            # A value that may be of several types has one error of pydantic for each, with the type's name as last part.
            while location and location not in document.values:
                location = location[:-1]
        grouped.setdefault((location, kind), []).append(detail)
    kept = list(grouped.items())[:MAX_ERRORS]
    errors = [_translate(location, kind, found, model, document, path) for (location, kind), found in kept]
    errors.sort(key=lambda error: (error.where.line, error.where.column) if error.where else (0, 0))
    if len(grouped) > len(kept):
        last = errors[-1]
        more = f"{last.cure} The file has {len(grouped) - len(kept):,} more mistakes."
        errors[-1] = SpecError(last.code, last.cause, cure=more, where=last.where)
    return errors


def _translate(
    location: Path, kind: str, details: Sequence[ErrorDetails], model: type[BaseModel], document: Document, path: str
) -> SpecError:
    detail = details[0]
    name = _name(location)
    if kind == "extra_forbidden":
        place = document.keys.get(location) or _nearest(document, location)
        known = _keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1])[:100], known, n=1, cutoff=0.6)
        cure = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(known[:30])}."
        return _error("FL1021", f"There is no key {shown(name)}.", cure, path, place)
    if kind == "missing":
        place = _nearest(document, location[:-1])
        return _error("FL1022", f"The key {name!r} is missing.", f"Add `{location[-1]}: …`.", path, place)
    place = document.values.get(location) or _nearest(document, location)
    given, context = detail.get("input"), detail.get("ctx") or {}
    value = "a value that is not shown" if _secret(location) else _shown_value(_at(document, location, given))
    if kind in {"enum", "literal_error"}:
        options = _options(context)
        close = difflib.get_close_matches(str(given)[:100].lower(), options, n=1, cutoff=0.6)
        cure = (f"Did you mean {close[0]!r}? " if close else "") + f"Allowed: {', '.join(options)}."
        return _error("FL1023", f"{name} is {value}, which is not one of the allowed values.", cure, path, place)
    if kind == "rule":
        if context.get("at") is not None:
            location = (*location, context["at"])
            name, place, value = _name(location), document.values.get(location, place), _shown_value(_at(document, location, None))
        return _error("FL1024", f"{name} {value} {context['cause']}.", context["cure"], path, place)
    if kind == "type":
        wanted = list(dict.fromkeys(_TYPES[item["type"]] for item in details))
        cause = f"{name} is {value}, not {' or '.join(words for words, _ in wanted)}."
        return _error("FL1025", cause, _type_cure(wanted, given, location), path, place)
    if kind == "string_pattern_mismatch":
        cause = f"{name} is {value}, which has characters that are not allowed."
        return _error("FL1026", cause, _PATTERN_CURES.get(str(context.get("pattern")), _LETTERS), path, place)
    return _error("FL1026", f"{name} is {value}: {_sentence(detail['msg'])}", "Choose a value within the limits.", path, place)


def _type_cure(wanted: Sequence[tuple[str, str]], given: object, location: Path) -> str:
    words, cure = wanted[0]
    if given is None:
        return "Give it a value, or remove the key."
    if words == "text" and isinstance(given, bool | int | float) and not _secret(location):
        written = str(given).lower() if isinstance(given, bool) else str(given)
        return f'Put it in quotes: "{written[:40]}".'
    return cure if len(wanted) == 1 else "Write one of these."


def _options(context: Mapping[str, Any]) -> list[str]:
    expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
    return [item.strip() for item in expected.split(",")]


def _name(location: Path) -> str:
    """A path as people write it, without characters that could harm a terminal."""
    text = ".".join(str(item) for item in location)
    return text if text.isprintable() and len(text) <= 200 else shown(text)


def _secret(location: Path) -> bool:
    """Values that no error may repeat: status and pull requests are read by many."""
    return any(item == "environment" or _SECRET.search(str(item)) for item in location)


def _at(document: Document, location: Path, otherwise: object) -> object:
    """The value as it stands in the file, before any normalising."""
    value: Any = document.value
    for part in location:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return value


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
    if isinstance(value, bool):
        return str(value).lower()
    return shown(value) if isinstance(value, str) else str(value)[:40]


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "text"}
    return names.get(type(value), "a single value")


def _sentence(message: str) -> str:
    text = message.removeprefix("Input ").strip()
    return text[:1].lower() + text[1:].rstrip(".") + "."
