"""Nodes whose learners are containers: a lock that an image can be made of, with the versions that the tests themselves use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).parent.parent.parent / "requirements" / "dev.txt"
NEEDED = ("flwr", "datasets", "numpy", "scikit-learn", "cloudpickle")
"""What a learner of the example imports."""
NOT_NEEDED = frozenset({"alembic", "hf-xet", "pydantic", "pydantic-core", "sqlalchemy", "uv", "uvloop", "watchfiles"})
"""What a learner does not import of what these ask for; 90 MB that an engine would unpack."""


def own_lock(wanted: Sequence[str] = NEEDED) -> tuple[str, str]:
    """Python and pins with hashes of these packages and all that they need, out of those of this repo."""
    pins = {}
    for found in re.finditer(
        r"^([\w.-]+)(==\S+)(?: ; ([^\\]*?))? \\\n((?:    --hash=\S+(?: \\)?\n)+)", PINS.read_text(), re.MULTILINE
    ):
        name, version, marker, hashes = found.groups()
        if marker is None or Requirement(f"{name}{version} ; {marker}").marker.evaluate():  # type: ignore[union-attr]
            pins[canonicalize_name(name)] = f"{name}{version} \\\n{hashes}"
    closed: set[tuple[str, ...]] = set()
    waiting = [Requirement(name) for name in wanted]
    while waiting:
        item = waiting.pop()
        name = canonicalize_name(item.name)
        if (name, *sorted(item.extras)) in closed:
            continue
        closed.add((name, *sorted(item.extras)))
        for text in requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*item.extras, "")):
                waiting.append(needed)
    return "3.11", "".join(pins[name] for name in sorted({name for name, *_ in closed} - NOT_NEEDED))
