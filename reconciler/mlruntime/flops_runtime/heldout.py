"""Inputs and labels, found in whatever an ML repo keeps its data in.

The contract says nothing about the form of the data: repos keep tuples of arrays, dictionaries, tensors, PyTorch's
DataLoaders and Datasets, or Hugging Face's, split into training and test parts of their own. What belongs together is found
by length and order: the n-th input takes the first label array of its length that is not taken. All pairs together are the
whole data set, whatever the repo's split is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flops_runtime import saving

NDArray = Any
_DEPTH = 4


@dataclass(frozen=True)
class Pair:
    """Inputs of shape (n, ...) and their labels of shape (n,), or None if there are no labels."""

    inputs: NDArray
    labels: NDArray | None
    name: str


def find_pairs(manager: Any, accepts: Callable[[NDArray], bool]) -> list[Pair]:
    """The pairs of inputs and labels that a ModelManager holds and its model accepts, in order.

    The `DataManager`s that the manager holds are asked first (`get_data()`), its own attributes are what is left.
    """
    for source in _sources(manager):
        leaves = list(_leaves(source, "", 0))
        # Datasets come second: repos keep them beside the loaders or arrays that they made of them, with the same rows.
        for find in (_pair, _read_datasets):
            pairs = [pair for pair in find(leaves) if accepts(pair.inputs[:2])]
            if pairs:
                return pairs
    return []


def _sources(manager: Any) -> Iterator[Any]:
    held = vars(manager) if hasattr(manager, "__dict__") else {}
    for value in list(held.values()):
        if callable(getattr(value, "get_data", None)):
            with contextlib.suppress(Exception):
                yield value.get_data()
    yield {name: value for name, value in held.items() if not callable(getattr(value, "get_data", None))}
    module = sys.modules.get("data_manager")
    if module is not None and hasattr(module, "DataManager"):
        with contextlib.suppress(Exception):
            yield module.DataManager().get_data()


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Arrays and (inputs, labels) pairs in the order in which they stand."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif hasattr(value, "detach") and hasattr(value, "cpu"):
        yield name, value.detach().cpu().numpy()
    elif type(value).__name__ in ("DataFrame", "Series") and hasattr(value, "to_numpy"):
        yield name, value.to_numpy()
    elif type(value).__name__ == "DataLoader" and hasattr(value, "dataset"):
        inputs, labels = _loaded(value)
        if inputs is not None:
            yield name, Pair(inputs, labels, name)
    elif _is_dataset(value):
        yield name, value
    elif isinstance(value, dict) and depth < _DEPTH:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}", depth + 1)
    elif isinstance(value, list | tuple) and depth < _DEPTH:
        if isinstance(value, list) and value and np.isscalar(value[0]):
            yield name, np.asarray(value)
        elif len(value) <= 16:
            for position, item in enumerate(value):
                yield from _leaves(item, f"{name}.{position}", depth + 1)


def _is_dataset(value: Any) -> bool:
    """A map-style dataset of PyTorch's or Hugging Face's."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}
    return bool(names & {"torch.Dataset", "datasets.Dataset"}) and hasattr(value, "__len__")


def _read_datasets(leaves: list[tuple[str, Any]]) -> list[Pair]:
    """The pairs of map-style datasets, row by row."""
    pairs = []
    for name, value in leaves:
        if _is_dataset(value):
            with contextlib.suppress(Exception):  # rows that are no inputs with a label are none of ours
                inputs, labels = _loaded([value[index]] for index in range(len(value)))
                pairs += [Pair(inputs, labels, name)] if inputs is not None else []
    return pairs


def _loaded(loader: Iterable[Any]) -> tuple[NDArray | None, NDArray | None]:
    """Inputs and labels of batches, or of lists with one row each."""
    inputs, labels = [], []
    for batch in loader:
        is_row = isinstance(batch, list) and len(batch) == 1 and isinstance(batch[0], dict | list | tuple)
        items = batch[0] if is_row else batch
        values = list(items.values()) if isinstance(items, dict) else list(items)
        arrays = [np.asarray(item)[np.newaxis] if is_row else np.asarray(item) for item in values]
        arrays.sort(key=lambda array: -array.ndim)
        inputs.append(arrays[0])
        labels.append(arrays[-1])
    if not inputs:
        return None, None
    return np.concatenate(inputs), np.concatenate(labels) if labels[0].ndim == 1 else None


def _pair(leaves: list[tuple[str, Any]]) -> list[Pair]:
    pairs = [leaf for _, leaf in leaves if isinstance(leaf, Pair)]
    arrays = [(name, leaf) for name, leaf in leaves if isinstance(leaf, np.ndarray) and leaf.ndim and len(leaf)]
    labels = [(name, leaf) for name, leaf in arrays if leaf.ndim == 1 or (leaf.ndim == 2 and leaf.shape[1] == 1)]
    for name, inputs in arrays:
        if inputs.ndim < 2 or inputs.dtype.kind not in "fiub" or any(inputs is label for _, label in labels):
            continue
        found = next((index for index, (_, label) in enumerate(labels) if len(label) == len(inputs)), None)
        label = labels.pop(found)[1].reshape(-1) if found is not None else None
        pairs.append(Pair(inputs, label, name))
    return pairs


def test_part(pairs: list[Pair]) -> list[Pair]:
    """The pair that an ML repo tests with: the one named so, or the last one."""
    named = [pair for pair in pairs if any(word in pair.name.lower() for word in ("test", "val", "eval"))]
    return named[:1] or pairs[-1:]


def accepted(flavor: str, model: Any, manager: Any) -> list[Pair]:
    """What the model accepts as it is; else, since code often converts as it feeds a network, what it accepts as float32."""
    pairs = find_pairs(manager, lambda inputs: accepts(flavor, model, inputs))
    if pairs or flavor == "sklearn":
        return pairs
    pairs = find_pairs(manager, lambda inputs: accepts(flavor, model, inputs.astype(np.float32)))
    return [replace(pair, inputs=pair.inputs.astype(np.float32)) for pair in pairs]


def accepts(flavor: str, model: Any, inputs: Any) -> bool:
    """Whether the model gives an answer for each input."""
    try:
        return len(saving.predict(flavor, model, inputs)) == len(inputs)
    except Exception:
        return False


def labels_of(pairs: list[Pair]) -> Any:
    """The labels of all pairs in a row; None when some have none."""
    labels = [pair.labels for pair in pairs if pair.labels is not None]
    return np.concatenate(labels) if len(labels) == len(pairs) else None


def accuracy(predictions: Any, labels: Any) -> dict[str, float]:
    """`accuracy` of answers that are classes, or a score for each class; empty where the labels are no classes."""
    if labels is None or labels.dtype.kind not in "iub":
        return {}
    if predictions.ndim == 2 and predictions.shape[1] > 1:
        predictions = predictions.argmax(axis=1)
    predictions = predictions.reshape(-1)
    if len(predictions) != len(labels) or predictions.dtype.kind not in "iubf":
        return {}
    return {"accuracy": float((predictions == labels).mean())}
