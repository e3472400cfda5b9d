"""The quorum: whether enough nodes are left to go on, and what to say when they are not."""

from __future__ import annotations

from typing import Protocol

from flops_runtime.failures import Failure


class Node(Protocol):
    """A node of a grid, as far as the quorum cares."""

    @property
    def name(self) -> str:
        """How people call it."""

    @property
    def index(self) -> int:
        """Its number."""


class Failing(Protocol):
    """A grid whose nodes may have failed."""

    @property
    def learners(self) -> list[Node]:
        """All nodes."""

    def failures(self) -> list[tuple[int, Failure]]:
        """The last failure of each node that has one, with its index."""


_SHOWN = 5


def require(have: int, need: int, what: str, when: str, grid: Failing) -> None:
    """Raises a `Failure` when too few are left: it says of every node why, and has their code if they all failed alike."""
    if have >= need:
        return
    failures = grid.failures()
    names = {node.index: node.name for node in grid.learners}
    shown = [f"{names[index]}: {failure.cause.rstrip('.')}" for index, failure in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        shown.append(f"and {len(failures) - _SHOWN} more")
    reasons = "; ".join(shown)
    if len({failure.cause for _, failure in failures}) == 1 and len(failures) > 1:
        reasons = f"{', '.join(names[index] for index, _ in failures[:_SHOWN])}: {failures[0][1].cause.rstrip('.')}"
    codes = {failure.code for _, failure in failures}
    first = failures[0][1] if failures else None
    noun = "clusters" if any(name.startswith("cluster ") for name in names.values()) else "learners"
    raise Failure(
        codes.pop() if len(codes) == 1 else "FL5030",
        f"In {when} {have} of {len(names)} {noun} were {what}, but {need} are needed: {reasons}.",
        cure=first.cure if first else "Lower the `min_*` numbers of the training configuration.",
        path=first.path if first else "",
        line=first.line if first else 0,
        transient=any(failure.transient for _, failure in failures),
    )
