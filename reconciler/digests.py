"""Digests: the identity of a result is everything that determines it, and nothing else.

A digest is made from *named inputs* instead of from one blob, so that a plan can say which input changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson


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
