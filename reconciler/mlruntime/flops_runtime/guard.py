"""The guard against poisoned updates: what no aggregation may see is refused and counted, what is too large is cut.

An update with a number that is not finite would make the whole model useless, so it is refused always. With `max_norm` an
update (answer minus what was sent, all arrays as one vector) is scaled down to that Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message

from flops_runtime.failures import Failure

Refuse = Callable[[int, Failure], None]


@dataclass(frozen=True)
class Guarded:
    """How many updates of a round were refused, and how many were scaled down."""

    refused: int = 0
    clipped: int = 0


def inspect(replies: Iterable[Message], sent: ArrayRecord, max_norm: float | None, refuse: Refuse) -> tuple[list[Message], Guarded]:
    """The replies with those that may not be used turned into errors, and those that are too large scaled down."""
    kept: list[Message] = []
    refused = clipped = 0
    for reply in replies:
        if not reply.has_error():
            failure, cut = _check(reply, sent, max_norm)
            if failure is not None:
                refuse(int(reply.metadata.src_node_id) - 1, failure)
                reply.__dict__["_content"] = None
                reply.__dict__["_error"] = Error(code=int(failure.code[2:]), reason=failure.cause)
                refused += 1
            clipped += cut
        kept.append(reply)
    return kept, Guarded(refused, clipped)


def not_finite(parameters: Mapping[str, Any]) -> str | None:
    """The name of the first array with a number that is not finite."""
    for key, array in parameters.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return str(key)
    return None


def diverged(when: str, key: str = "") -> NoReturn:
    """Raises the failure of a training that has left the finite numbers."""
    what = f"the aggregated parameters are not finite (array {key})" if key else "no update was finite"
    raise Failure(
        "FL5032",
        f"In {when} {what}: training has diverged.",
        cure="Lower the learning rate, scale the data, or take a strategy that bounds the updates.",
    )


def _check(reply: Message, sent: ArrayRecord, max_norm: float | None) -> tuple[Failure | None, bool]:
    for name, record in list(reply.content.array_records.items()):
        arrays = {key: array.numpy() for key, array in record.items()}
        if (key := not_finite(arrays)) is not None:
            return Failure("FL5701", f"Its update is not finite (array {key}).", cure=_CURE), False
        if max_norm is None:
            continue
        before = {key: array.numpy() for key, array in sent.items()}
        if {key: array.shape for key, array in before.items()} != {key: array.shape for key, array in arrays.items()}:
            return Failure("FL5702", "Its update has other shapes than what it was sent.", cure=_CURE), False
        if (scaled := clip(before, arrays, max_norm)) is not None:
            reply.content[name] = ArrayRecord({key: Array(array) for key, array in scaled.items()})
            return None, True
    return None, False


def clip(before: Mapping[str, Any], after: Mapping[str, Any], max_norm: float) -> dict[str, Any] | None:
    """`after`, moved towards `before` until the update's norm is `max_norm`; None if it is not larger."""
    updates = {key: after[key].astype(np.float64) - before[key].astype(np.float64) for key in after}
    norm = float(np.sqrt(sum(float(np.square(update).sum()) for update in updates.values())))
    if norm <= max_norm:
        return None
    return {
        key: (before[key] + update * (max_norm / norm)).astype(after[key].dtype) if after[key].dtype.kind == "f" else after[key]
        for key, update in updates.items()
    }


_CURE = "Look into this learner's data and code; the round goes on without it while the others meet the quorum."
