"""How much of it: small numbers wherever tests run, large ones in `make soak`, others by environment variables."""

from __future__ import annotations

import os

SOAK = bool(os.environ.get("FLOPS_SOAK"))


def size(name: str, *, short: int, long: int) -> int:
    """A size by its environment variable; without one `long` in a soak and `short` elsewhere."""
    given = os.environ.get(name)
    return int(given) if given else (long if SOAK else short)
