"""Held-out rows that stay where they are: the finished model is measured on every node.

A node counts right answers on rows that are in no training, with the same code that counts on a held-out set of ours, and tells
how many rows it counted and what form the model's inputs have: a dtype and a shape, never a value. The sums over all nodes are
what one test set made of theirs would give. Inputs for signature and samples are made here from that form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from flops_runtime import heldout, saving
from flops_runtime.failures import Failure
from flops_runtime.quorum import require

ACTION, QUERY = "holdout", "query.holdout"
_BATCH = 2000
_SYNTHETIC, _SYNTHETIC_BYTES = 64, 16 << 20
_DIMENSIONS, _VALUES = 8, 50_000_000
"""What a node may say of an input: so many dimensions, and values in all."""


@dataclass(frozen=True)
class Form:
    """What one input of the model is: NumPy's name of its dtype and its shape, without the rows."""

    dtype: str
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Measured:
    """`holdout` has `rows` and, where classes were counted, `accuracy`; it is empty when no node has held-out rows."""

    holdout: dict[str, float]
    form: Form | None


# --- on a node --------------------------------------------------------------------------------------------------------------


def report(flavor: str, contract: Any, counts: bool) -> RecordDict:
    """What a learner answers: how the model that was set does on its rows (if it `counts`), and the form of these."""
    model = contract.model()
    pairs = heldout.accepted(flavor, model, contract.manager)
    pairs = [pair for pair in pairs if pair.inputs.shape[1:] == pairs[0].inputs.shape[1:]]
    if not pairs:
        return RecordDict({"holdout": MetricRecord({"rows": 0})})
    inputs = np.concatenate([pair.inputs for pair in pairs]) if counts else pairs[0].inputs[:1]
    metrics: dict[str, int | float] = {"rows": len(inputs) if counts else 0}
    if counts:
        batches = [saving.predict(flavor, model, inputs[at : at + _BATCH]) for at in range(0, len(inputs), _BATCH)]
        metrics |= heldout.accuracy(np.concatenate(batches), heldout.labels_of(pairs))
    form = ConfigRecord({"dtype": inputs.dtype.str, "shape": [int(size) for size in inputs.shape[1:]]})
    return RecordDict({"holdout": MetricRecord(metrics), "form": form})


# --- at the aggregator ------------------------------------------------------------------------------------------------------


def measure(grid: Any, arrays: Any, timeout: float, needed: int, tell: Any) -> Measured:
    """Asks every node that is there. Raises `Failure` when too few are for now: what is gone for a while is waited for.

    A node that cannot be measured for good – its rows make the ML repo's code fail – is told of and left out.
    """
    ready = grid.revive(timeout)
    require(len(ready), needed, "available", "the measuring on held-out rows", grid)
    grid.clear_failures()
    orders = [Message(RecordDict({"arrays": arrays}), node.node_id, QUERY) for node in ready]
    replies = list(grid.send_and_receive(orders, timeout=timeout))
    told = []
    for reply in replies:
        if not reply.has_error():
            try:
                told.append(_read(reply.content))
            except (KeyError, TypeError, ValueError) as error:
                cure = "Look after the node: it runs another release, or answers what cannot be."
                grid.refuse(int(reply.metadata.src_node_id) - 1, Failure("FL5720", f"It is not counted: {error}.", cure=cure))
    if len(told) < needed and any(failure.transient for _, failure in grid.failures()):
        require(len(told), needed, "through with held-out rows", "the measuring on held-out rows", grid)
    measured = Measured(_sum([metrics for metrics, _ in told]), common_form([form for _, form in told if form is not None]))
    _say(measured, tell)
    return measured


def _read(content: RecordDict) -> tuple[dict[str, float], Form | None]:
    metrics = {name: float(content["holdout"][name]) for name in ("rows", "accuracy") if name in content["holdout"]}
    if not (math.isfinite(metrics["rows"]) and metrics["rows"] >= 0 and 0 <= metrics.get("accuracy", 0.0) <= 1):
        raise ValueError("its numbers of held-out rows cannot be")
    return metrics, form_of(content["form"]) if "form" in content else None


def form_of(said: Mapping[str, Any]) -> Form:
    """What a node said. Raises ValueError for what cannot be the form of an input."""
    shape = tuple(int(size) for size in said["shape"])
    try:
        dtype = np.dtype(str(said["dtype"]))
    except TypeError as error:
        raise ValueError("its inputs have no known type") from error
    if dtype.kind not in "fiub" or not 1 <= len(shape) <= _DIMENSIONS or min(shape) < 1 or math.prod(shape) > _VALUES:
        raise ValueError("its inputs have a form that cannot be")
    return Form(dtype.str, shape)


def common_form(forms: Sequence[Form]) -> Form | None:
    """The form that takes the inputs of all nodes; None when there is none."""
    if not forms or len({form.shape for form in forms}) > 1:
        return None
    return Form(np.result_type(*(form.dtype for form in forms)).str, forms[0].shape)


def _sum(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    rows = sum(metrics["rows"] for metrics in found)
    if not rows:
        return {}
    counted = [metrics for metrics in found if "accuracy" in metrics and metrics["rows"]]
    if not counted:
        return {"rows": rows}
    right = sum(metrics["accuracy"] * metrics["rows"] for metrics in counted)
    return {"rows": rows, "accuracy": right / sum(metrics["rows"] for metrics in counted)}


def _say(measured: Measured, tell: Any) -> None:
    rows, accuracy = measured.holdout.get("rows", 0), measured.holdout.get("accuracy")
    if not rows:
        tell(
            "warning", "no node has held-out rows: nothing is measured as `holdout.*`; "
            "`flops data add --test-fraction` sets rows aside",
        )  # fmt: skip
        return
    text = f"{rows:,.0f} held-out rows on the nodes" + ("" if accuracy is None else f": accuracy {accuracy:.4f}")
    tell("holdout", text, **measured.holdout)


# --- inputs -----------------------------------------------------------------------------------------------------------------


def synthetic(form: Form, seed: int) -> Any:
    """Inputs (n, ...) of a form, the same for the same seed; n is at most 64 and less where an input is large.

    Half of them are between 0 and 1, half are normal around 0: pixels, and what a scaler makes. Whole numbers are 0 or 1,
    since larger ones may be no category of the model's.
    """
    dtype = np.dtype(form.dtype)
    count = max(2, min(_SYNTHETIC, _SYNTHETIC_BYTES // max(1, math.prod(form.shape) * dtype.itemsize)))
    random = np.random.default_rng(seed)
    if dtype.kind != "f":
        return random.integers(0, 2, (count, *form.shape)).astype(dtype)
    rows = np.concatenate([random.random((count // 2, *form.shape)), random.normal(size=(count - count // 2, *form.shape))])
    return rows.astype(dtype)
