"""How rows are dealt to learners: by chance, or skewed by their labels, as real learners' data are.

Pure functions of the labels, the number of learners and the seed: the same on every machine. Every row goes to exactly one
learner. The rows of a learner are shuffled at the end, because ML repos cut their last fifth off to evaluate with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reconciler.errors import DataError
from reconciler.spec.training import Partitioner

Rows = npt.NDArray[np.int64]
LABELS = ("label", "labels", "y", "target", "class")
"""Names of label columns, the likeliest first."""
_TRIES = 100


def iid(count: int, learners: int, seed: int, parts: int | None = None) -> list[Rows]:
    """Rows by chance, in `parts` (learners when left out) of the same size that are dealt in turn."""
    dealt = np.array_split(np.random.default_rng(seed).permutation(count), parts or learners)
    return [np.concatenate(dealt[learner::learners]) for learner in range(learners)]


def dirichlet(labels: npt.NDArray[np.int64], learners: int, seed: int, alpha: float, min_rows: int = 1) -> list[Rows]:
    """Each label's rows in shares that are drawn from a Dirichlet distribution; drawn again until everybody has `min_rows`.

    A few draws leave somebody without enough rows when alpha is small and learners are many: then rows are moved from those who
    have the most. Raises DataError when there are not enough rows at all.
    """
    _enough(len(labels), learners, min_rows)
    random = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == value) for value in np.unique(labels)]
    dealt: list[list[Rows]] = []
    for _ in range(_TRIES if learners <= _TRIES else 1):
        dealt = [[] for _ in range(learners)]
        for rows in classes:
            cuts = (np.cumsum(random.dirichlet(np.full(learners, alpha)))[:-1] * len(rows)).astype(np.int64)
            for learner, share in enumerate(np.split(random.permutation(rows), cuts)):
                dealt[learner].append(share)
        if min(sum(map(len, shares)) for shares in dealt) >= min_rows:
            break
    return _shuffled(_levelled([np.concatenate(shares) for shares in dealt], min_rows), random)


def shards(labels: npt.NDArray[np.int64], learners: int, seed: int, shards_per_learner: int, min_rows: int = 1) -> list[Rows]:
    """The rows sorted by label and cut into equal pieces, of which each learner gets so many by chance: few labels each."""
    pieces = learners * shards_per_learner
    _enough(len(labels), learners, min_rows)
    _enough(len(labels), pieces, 1)
    random = np.random.default_rng(seed)
    # Within a label by chance, so that pieces of one label are alike.
    order = random.permutation(len(labels))
    cut = np.array_split(order[np.argsort(labels[order], kind="stable")], pieces)
    dealt = random.permutation(pieces).reshape(learners, shards_per_learner)
    return _shuffled(_levelled([np.concatenate([cut[piece] for piece in mine]) for mine in dealt], min_rows), random)


def deal(table: pa.Table, learners: int, seed: int, how: Partitioner) -> list[Rows]:
    """The rows of each learner. Raises DataError for data without labels, or without enough rows."""
    if how.name == "iid":
        return iid(table.num_rows, learners, seed)
    labels = label_values(table, how.label)
    if how.name == "dirichlet":
        return dirichlet(labels, learners, seed, how.alpha, how.min_rows)
    return shards(labels, learners, seed, how.shards_per_learner, how.min_rows)


def label_values(table: pa.Table, column: str | None) -> npt.NDArray[np.int64]:
    """The labels of all rows as numbers from 0 on (n,), in the order of the sorted values."""
    names: Sequence[str] = (column,) if column is not None else LABELS
    name = next((item for item in names if item in table.column_names), None)
    if name is None:
        raise DataError(
            "FL5710",
            f"The data have no column {' or '.join(names)}; they have {', '.join(table.column_names)}.",
            cure="Name the column of the labels in training_configuration.partitioner.label, or use the partitioner iid.",
        )
    kind = table.schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            "FL5710",
            f"The column {name} cannot be labels: it holds {kind}.",
            cure="Name a column of whole numbers or texts in training_configuration.partitioner.label.",
        )
    values = table.column(name).to_numpy(zero_copy_only=False)
    return np.unique(values.astype(str) if values.dtype == object else values, return_inverse=True)[1].astype(np.int64)


def _enough(rows: int, learners: int, min_rows: int) -> None:
    if rows < learners * min_rows:
        raise DataError(
            "FL5711",
            f"{rows} rows are too few for {learners} parts of at least {min_rows}.",
            cure="Add data, or lower the number of learners, shards_per_learner or partitioner.min_rows.",
        )


def _levelled(dealt: list[Rows], min_rows: int) -> list[Rows]:
    """Rows moved from the richest to those that have too few, in the order of the learners."""
    for poor in range(len(dealt)):
        while len(dealt[poor]) < min_rows:
            rich = max(range(len(dealt)), key=lambda learner: len(dealt[learner]))
            take = min(min_rows - len(dealt[poor]), len(dealt[rich]) - min_rows)
            dealt[poor] = np.concatenate([dealt[poor], dealt[rich][-take:]])
            dealt[rich] = dealt[rich][:-take]
    return dealt


def _shuffled(dealt: list[Rows], random: np.random.Generator) -> list[Rows]:
    return [random.permutation(rows) for rows in dealt]
