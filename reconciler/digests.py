"""Digests: the identity of a result is everything that determines it, and nothing else.

A digest is made from *named inputs* instead of from one blob, so that a plan can say which input changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from sys import intern
from typing import Any, TypeVar

import orjson

Value = TypeVar("Value")


def canonical(value: Any) -> bytes:
    """The one JSON form of a value: sorted keys, no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings as (dotted name, JSON text); lists are leaves."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, canonical(value).decode()


def short(digest: str) -> str:
    """The first 12 digits: what people read and what is unique enough in a list."""
    return digest[:12]


class Inputs(Mapping[str, str]):
    """Named inputs that never change. Thousands of projects have the same names and many of the same values: they are held once."""

    __slots__ = ("_places", "_values")

    def __init__(self, inputs: Mapping[str, str]) -> None:
        self._places = _places(tuple(sorted(inputs)))
        self._values = tuple(intern(inputs[name]) for name in self._places)

    def __getitem__(self, name: str) -> str:
        return self._values[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Inputs):
            return self._places == other._places and self._values == other._values
        return Mapping.__eq__(self, other)

    def __hash__(self) -> int:
        return hash((tuple(self._places), self._values))


@lru_cache(maxsize=1024)
def _places(names: tuple[str, ...]) -> Mapping[str, int]:
    return {intern(name): place for place, name in enumerate(names)}


def shared(value: Value) -> Value:
    """One object for all who have the same; of what is the same for many."""
    found: Value = _first(value)
    return found


@lru_cache(maxsize=4096)
def _first(value: Any) -> Any:
    return value
