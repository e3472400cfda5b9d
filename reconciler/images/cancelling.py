"""Stopping early: what takes long asks now and then whether its image is still wanted.

A build that is superseded in the middle must not hold its place for minutes; what it finished – layers, blobs that a registry
has – stays and is found by the next one.
"""

from __future__ import annotations

from collections.abc import Callable

from reconciler.errors import ImageError

Cancelled = Callable[[], bool]
"""Whether nobody wants it any more; asked from several threads, some ten times a second."""


def never() -> bool:
    """For work that nobody takes back."""
    return False


def check(cancelled: Cancelled) -> None:
    """Raises ImageError FL6156 when nobody wants it any more."""
    if cancelled():
        raise ImageError("FL6156", "The image is not wanted any more and was not finished.", cure="Nothing is to be done.")
