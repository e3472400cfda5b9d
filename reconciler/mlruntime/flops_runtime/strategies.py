"""Flower's strategies by name, made from what an SLA may say; and their state, saved and restored without pickle."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from flops_runtime import privacy
from flops_runtime.failures import Failure

NAMES = {
    "fedavg": "FedAvg", "fedavgm": "FedAvgM", "fedadam": "FedAdam", "fedadagrad": "FedAdagrad", "fedyogi": "FedYogi",
    "fedprox": "FedProx", "fedmedian": "FedMedian", "fedtrimmedavg": "FedTrimmedAvg", "krum": "Krum",
    "multikrum": "MultiKrum", "bulyan": "Bulyan", "qfedavg": "QFedAvg",
}  # fmt: skip
_OURS = {
    "fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes",
    "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn",
    "selection_rule",
}  # fmt: skip
State = dict[str, "np.ndarray[Any, Any]"]


def make_strategy(
    name: str, arguments: Mapping[str, Any], *, fraction_fit: float, min_fit: int, min_evaluate: int, min_available: int
) -> Strategy:
    """One of Flower's strategies. Raises `Failure` for a name or an argument that it does not have."""
    key = name.lower().replace("-", "").replace("_", "")
    kind = getattr(flower, NAMES.get(key, ""), None) if key in NAMES else None
    if kind is None:
        raise Failure(
            "FL5003",
            f"There is no strategy `{name}`.",
            cure=f"Use one of {', '.join(NAMES)}.",
        )
    allowed = {p: v for p, v in inspect.signature(kind).parameters.items() if p not in _OURS}
    if unknown := sorted(set(arguments) - set(allowed)):
        raise Failure(
            "FL5004",
            f"The strategy {key} has no argument {', '.join(f'`{item}`' for item in unknown)}.",
            cure=f"It takes {', '.join(allowed)}." if allowed else "It takes no arguments.",
        )
    needed = [p for p, v in allowed.items() if v.default is inspect.Parameter.empty and p not in arguments]
    if needed:
        raise Failure(
            "FL5004",
            f"The strategy {key} needs {', '.join(f'`{item}`' for item in needed)}.",
            cure="Add it under `training_configuration.strategy.arguments`.",
        )
    try:
        return kind(
            fraction_train=fraction_fit,
            fraction_evaluate=1.0,
            min_train_nodes=min_fit,
            min_evaluate_nodes=min_evaluate,
            min_available_nodes=min_available,
            **arguments,
        )
    except (TypeError, ValueError) as error:
        raise Failure(
            "FL5004", f"The strategy {key} refuses its arguments: {error}.".replace("..", "."), cure="Correct them."
        ) from error


def of_job(job: Mapping[str, Any], learners: int) -> Strategy:
    """The strategy of a job for so many learners, with privacy around it if the job has it."""
    strategy = make_strategy(
        job["strategy_name"],
        job["strategy_arguments"],
        fraction_fit=float(job["fraction_fit"]),
        min_fit=int(job["min_fit"]),
        min_evaluate=int(job["min_evaluate"]),
        min_available=int(job["min_available"]),
    )
    sampled = max(int(learners * float(job["fraction_fit"])), int(job["min_fit"]))
    return privacy.wrap(strategy, job.get("privacy"), sampled)


def of_root(job: Mapping[str, Any]) -> Strategy:
    """The strategy with which the root joins the models of its clusters."""
    return make_strategy(
        job["root_strategy_name"],
        job["root_strategy_arguments"],
        fraction_fit=1.0,
        min_fit=1,
        min_evaluate=1,
        min_available=1,
    )


def train_config(strategy: Strategy) -> dict[str, Any]:
    """What learners have to know beside the round: q-FedAvg wants the training loss back."""
    key = getattr(strategy, "train_loss_key", None)
    return {"train-loss-key": key} if key else {}


def save_state(strategy: Strategy) -> State:
    """The strategy's arrays (moments, momentum, last parameters), flat, as `attribute|form|key`.

    Of a wrapper (privacy) also those of the strategy inside, and its clipping norm, which adapts.
    """
    state: State = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            state.update({f"{name}.{key}": array for key, array in save_state(value).items()})
        elif name == "clipping_norm":
            state[f"{name}|number|"] = np.asarray(float(value))
        elif isinstance(value, ArrayRecord):
            state.update({f"{name}|record|{key}": array.numpy() for key, array in value.items()})
        elif isinstance(value, dict) and value and all(isinstance(item, np.ndarray) for item in value.values()):
            state.update({f"{name}|dict|{key}": array for key, array in value.items()})
        elif isinstance(value, list) and value and all(isinstance(item, np.ndarray | np.generic) for item in value):
            state.update({f"{name}|list|{key}": np.asarray(array) for key, array in enumerate(value)})
    return state


def restore_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Puts back what `save_state` took, into a strategy made from the same arguments."""
    inside = {key.removeprefix("strategy."): array for key, array in state.items() if key.startswith("strategy.")}
    if inside:
        restore_state(strategy.strategy, inside)
    state = {key: array for key, array in state.items() if not key.startswith("strategy.")}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for full, array in state.items():
        name, form, key = full.split("|", 2)
        groups.setdefault((name, form), {})[key] = array
    for (name, form), arrays in groups.items():
        value: Any = arrays
        if form == "record":
            value = ArrayRecord({key: Array(array) for key, array in arrays.items()})
        elif form == "number":
            value = float(arrays[""])
        elif form == "list":
            value = [arrays[str(index)] for index in range(len(arrays))]
        setattr(strategy, name, value)
