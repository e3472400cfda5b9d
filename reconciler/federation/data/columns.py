"""Columns: which a learner's `datasets` can hold, and whether those of several files go together.

Checked here, before anything is written, because in a learner the same mistake shows as a traceback from inside a library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.types as kinds

_FEATURES = frozenset(
    {"Value", "ClassLabel", "Image", "Sequence", "LargeList", "Translation", "Array2D", "Array3D", "Array4D", "Array5D"}
)  # fmt: skip
_SIMPLE = (
    kinds.is_null, kinds.is_boolean, kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_string, kinds.is_large_string,
    kinds.is_binary, kinds.is_large_binary, kinds.is_date, kinds.is_time, kinds.is_timestamp, kinds.is_duration,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file, or of one tag. `guessed`: its types were inferred from text (CSV)."""

    label: str
    table: pa.Table
    guessed: bool = False


class MisfitError(Exception):
    """A part with a column that does not fit; `label` names the part."""

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(reason)
        self.label = label
        self.reason = reason


def plain(part: Part) -> Part:
    """The part with columns that `datasets` can hold; raises MisfitError for one that it cannot."""
    schema = part.table.schema
    for name in schema.names:
        if not name or schema.names.count(name) > 1:
            raise MisfitError(
                part.label, f"the column {name!r} stands {schema.names.count(name)} times" if name else "a column has no name"
            )
    types = []
    for field in schema:
        kind = _plain_type(field.type)
        if kind is None:
            raise MisfitError(part.label, f"the column {field.name!r} has the type {field.type}")
        types.append(kind)
    if types == schema.types:
        return part
    wanted = pa.schema([pa.field(name, kind) for name, kind in zip(schema.names, types, strict=True)], schema.metadata)
    return Part(part.label, _cast(part, wanted), part.guessed)


def common_schema(parts: Sequence[Part]) -> pa.Schema:
    """The one schema of all parts, with the Hugging Face features that they declare; raises MisfitError."""
    first = parts[0]
    types: dict[str, tuple[pa.DataType, Part]] = {field.name: (field.type, first) for field in first.table.schema}
    features: dict[str, tuple[Any, Part]] = {}
    for part in parts:
        schema = part.table.schema
        if set(schema.names) != set(types):
            odd = sorted(set(schema.names) ^ set(types))
            raise MisfitError(part.label, f"the columns differ from those of {first.label}: {', '.join(odd[:5])}")
        for field in schema:
            kind, owner = types[field.name]
            common = _common_type(kind, field.type, guessed=part.guessed and owner.guessed)
            if common is None:
                raise MisfitError(part.label, f"the column {field.name!r} is {field.type} here and {kind} in {owner.label}")
            if common != kind:
                types[field.name] = (common, part)
        for name, feature in _features(schema).items():
            known, owner = features.setdefault(name, (feature, part))
            if name in types and known != feature:
                raise MisfitError(
                    part.label, f"the column {name!r} means something else in {owner.label}: its classes or features differ"
                )
    declared = {name: features[name][0] for name in types if name in features}
    metadata = {b"huggingface": orjson.dumps({"info": {"features": declared}})} if declared else None
    return pa.schema([pa.field(name, kind) for name, (kind, _) in types.items()], metadata)


def join(parts: Sequence[Part], schema: pa.Schema) -> pa.Table:
    """The rows of all parts, one after another, under one schema; raises MisfitError for values that do not fit in it."""
    return pa.concat_tables([_cast(part, schema) for part in parts])


def _cast(part: Part, schema: pa.Schema) -> pa.Table:
    try:
        return part.table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise MisfitError(
            part.label, f"its values do not fit the types of the others ({str(error).splitlines()[0][:150]})"
        ) from error


def _plain_type(kind: pa.DataType) -> pa.DataType | None:
    """What a type is stored as, or None when `datasets` has nothing for it."""
    if any(test(kind) for test in _SIMPLE):
        return kind
    if kinds.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if kinds.is_string_view(kind) or kinds.is_binary_view(kind):
        return pa.string() if kinds.is_string_view(kind) else pa.binary()
    if kinds.is_struct(kind):
        inner = [(field.name, _plain_type(field.type)) for field in kind]
        return None if not inner or any(item is None for _, item in inner) else pa.struct(inner)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        item = _plain_type(kind.value_type)
        if item is None:
            return None
        if item == kind.value_type:
            return kind
        size = kind.list_size if kinds.is_fixed_size_list(kind) else -1
        return pa.large_list(item) if kinds.is_large_list(kind) else pa.list_(item, size)
    return None


def _common_type(one: pa.DataType, other: pa.DataType, *, guessed: bool) -> pa.DataType | None:
    """The type that holds both: a column without values fits any, and guessed numbers fit each other."""
    if one == other or kinds.is_null(other):
        return one
    if kinds.is_null(one):
        return other
    numbers = all(kinds.is_integer(kind) or kinds.is_floating(kind) for kind in (one, other))
    return pa.float64() if guessed and numbers else None


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """The features that a file declares and our `datasets` knows; its version of a list is the older one's sequence."""
    try:
        declared = orjson.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        known = {name: _known(feature) for name, feature in declared.items() if name in schema.names}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: feature for name, feature in known.items() if feature is not None}


def _known(feature: Any) -> Any:
    """A feature as datasets 3 writes it, or None when it has a part that datasets 3 does not have."""
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind is None:  # a struct: name -> feature
        inner = {name: _known(item) for name, item in feature.items()}
        return None if None in inner.values() else inner
    kind = "Sequence" if kind == "List" else kind
    if kind not in _FEATURES:
        return None
    if "feature" not in feature:
        return {**feature, "_type": kind}
    item = _known(feature["feature"])
    return None if item is None else {**feature, "_type": kind, "feature": item}
