"""The ServerApp: Flower's round loop, as `Strategy.start` runs it, with a quorum and a checkpoint after every round.

`Strategy.start` cannot begin at round k, so its four calls (configure_train, aggregate_train, configure_evaluate,
aggregate_evaluate) are made here in its order and with its arguments. The random numbers with which a strategy samples nodes
depend on (seed, round) alone and its arrays are in the checkpoint, so a resumed run equals an undisturbed one.

The same loop runs the rounds of a classic training, the rounds of a cluster within a cycle, and the cycles of the root, whose
learners are the cluster aggregators: a `Loop` says which.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy

from flops_runtime import guard, privacy
from flops_runtime.checkpoints import Arrays, Checkpoints
from flops_runtime.early_stop import stop_reason
from flops_runtime.failures import Failure
from flops_runtime.grid import RunGrid, Tell
from flops_runtime.quorum import require
from flops_runtime.strategies import restore_state, save_state, train_config


@dataclass(frozen=True)
class Loop:
    """What one loop of rounds needs to know. Times are seconds; None waits for ever."""

    rounds: int
    seed: object
    min_available: int
    min_fit: int
    min_evaluate: int
    train_timeout: float | None
    evaluate_timeout: float | None
    setup_timeout: float | None
    strategy_name: str
    metrics: tuple[str, ...]
    """Metrics that somebody relies on: the best model's and the early stop's. A loop without any does not look."""
    early_stop: Mapping[str, Any] | None = None
    max_norm: float | None = None
    guarded: bool = False
    offset: int = 0
    """Rounds before the first of this loop: learners are seeded by the number in the whole training."""
    noun: str = "round"


def loop_of(job: Mapping[str, Any]) -> Loop:
    """The loop of a classic training."""
    timeout = None if job["round_timeout"] is None else float(job["round_timeout"])
    stop = job.get("early_stop")
    return Loop(
        rounds=int(job["rounds"]),
        seed=job["seed"],
        min_available=int(job["min_available"]),
        min_fit=int(job["min_fit"]),
        min_evaluate=int(job["min_evaluate"]),
        train_timeout=timeout,
        evaluate_timeout=timeout,
        setup_timeout=setup_timeout(job),
        strategy_name=str(job["strategy_name"]),
        metrics=tuple(dict.fromkeys((str(job["metric"]), *([str(stop["metric"])] if stop else [])))),
        early_stop=stop,
        max_norm=(job.get("update_guard") or {}).get("max_norm"),
        guarded=job.get("update_guard") is not None,
    )


def cluster_loop(job: Mapping[str, Any], name: str, cycle: int) -> Loop:
    """The rounds of one cluster in one cycle."""
    rounds = int(job["rounds"])
    return replace(
        loop_of(job), seed=f"{job['seed']}/{name}", offset=(cycle - 1) * rounds, early_stop=None, noun=f"cycle {cycle}, round"
    )


def server_app(job: Mapping[str, Any], strategy: Strategy, checkpoints: Checkpoints, tell: Tell) -> ServerApp:
    """The Flower ServerApp that trains one classic job from its last finished round to its end."""
    return loop_app(loop_of(job), strategy, checkpoints, tell)


def loop_app(loop: Loop, strategy: Strategy, checkpoints: Checkpoints, tell: Tell, start: ArrayRecord | None = None) -> ServerApp:
    """The Flower ServerApp of one loop. Without `start` a node is asked for the parameters to start from."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: RunGrid, _: Context) -> None:
        results, parameters, state = checkpoints.load(loop.rounds)
        restore_state(strategy, state)
        arrays = to_record(parameters) if results else start
        if arrays is None:
            arrays = initial(grid, loop)
        while len(results) < loop.rounds:
            if (why := stop_reason(results, loop.early_stop)) is not None:
                tell("stopped_early", f"{why} after {loop.noun} {len(results)}", round=len(results))
                break
            arrays, result = _round(len(results) + 1, arrays, loop, strategy, grid, checkpoints, tell)
            results.append(result)

    return app


def finished(results: list[dict[str, Any]], rounds: int, early_stop: Mapping[str, Any] | None) -> bool:
    """Whether these are all the rounds that there will be."""
    return len(results) >= rounds or stop_reason(results, early_stop) is not None


def to_record(parameters: Arrays) -> ArrayRecord:
    """Parameters as Flower sends them."""
    return ArrayRecord({key: Array(array) for key, array in parameters.items()})


def setup_timeout(job: Mapping[str, Any]) -> float | None:
    """How long a learner may take to load its data: no round's work, so never less than five minutes."""
    return None if job["round_timeout"] is None else max(300.0, float(job["round_timeout"]))


def initial(grid: RunGrid, loop: Loop) -> ArrayRecord:
    """The parameters to start from, of the first node that has some."""
    ready = grid.await_ready(loop.setup_timeout)
    require(len(ready), max(1, loop.min_available), "available", "the start", grid)
    for node in ready:
        message = Message(RecordDict(), node.node_id, "query")
        reply = next(iter(grid.send_and_receive([message], timeout=loop.setup_timeout)))
        if not reply.has_error():
            record: ArrayRecord = reply.content["arrays"]
            return record
    require(0, 1, "able to give initial parameters", "the start", grid)
    raise AssertionError("require(0, 1) raises")


def _round(
    number: int, arrays: ArrayRecord, loop: Loop, strategy: Strategy, grid: RunGrid, checkpoints: Checkpoints, tell: Tell
) -> tuple[ArrayRecord, dict[str, Any]]:
    started = time.monotonic()
    when, whole = f"{loop.noun} {number}", loop.offset + number
    ready = grid.revive(loop.setup_timeout)
    require(len(ready), loop.min_available, "available", when, grid)
    grid.clear_failures()

    random.seed(f"{loop.seed}/{whole}/train")
    config = ConfigRecord(train_config(strategy))
    orders = _renumber(strategy.configure_train(number, arrays, config, grid), whole)
    trained = list(grid.send_and_receive(orders, timeout=loop.train_timeout))
    answered = sum(not reply.has_error() for reply in trained)
    trained, guarded = guard.inspect(trained, arrays, loop.max_norm, lambda index, failure: grid.refuse(index, failure))
    fit = sum(not reply.has_error() for reply in trained)
    if answered and not fit:
        guard.diverged(when)
    require(fit, loop.min_fit, "through with training", when, grid)
    learners = _learners(trained)
    aggregated, train_metrics = _aggregate(lambda: privacy.aggregate_train(strategy, number, trained), loop)
    if aggregated is None:
        raise Failure(
            "FL5031",
            f"In {when} the strategy {loop.strategy_name} made no model out of {fit} answers; it needs more.",
            cure="Raise `min_available_clients` and `min_fit_clients`, or use a strategy that needs fewer learners.",
        )
    parameters = {key: array.numpy() for key, array in aggregated.items()}
    if (key := guard.not_finite(parameters)) is not None:
        guard.diverged(when, key)

    evaluated, metrics = _evaluate(number, aggregated, loop, strategy, grid)

    result = _result(number, metrics, train_metrics or MetricRecord())
    result["learners_fit"], result["learners_evaluated"] = learners, _learners(evaluated)
    result["failures"] = len(grid.failures())
    if loop.guarded or guarded.refused or guarded.clipped:
        result["metrics"] |= {"updates_refused": float(guarded.refused), "updates_clipped": float(guarded.clipped)}
    result["seconds"] = round(time.monotonic() - started, 4)
    _check_metrics(loop, result)
    checkpoints.save(number, parameters, save_state(strategy), {**result, "examples": _examples(trained)})
    text = f"{when} of {loop.rounds}: accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f}"
    tell("round", text, round=number, result=result)
    return aggregated, result


def evaluate(arrays: ArrayRecord, loop: Loop, strategy: Strategy, grid: RunGrid) -> tuple[dict[str, Any], int, int]:
    """Parameters from above, evaluated on the nodes: their metrics, weighted, and how many samples and nodes stand behind them."""
    ready = grid.revive(loop.setup_timeout)
    require(len(ready), loop.min_available, "available", "the evaluation", grid)
    grid.clear_failures()
    evaluated, metrics = _evaluate(loop.rounds, arrays, loop, strategy, grid)
    return dict(metrics), sum(_examples(evaluated).values()), _learners(evaluated)


def _evaluate(
    number: int, arrays: ArrayRecord, loop: Loop, strategy: Strategy, grid: RunGrid
) -> tuple[list[Message], MetricRecord]:
    whole = loop.offset + number
    random.seed(f"{loop.seed}/{whole}/evaluate")
    orders = _renumber(strategy.configure_evaluate(number, arrays, ConfigRecord(), grid), whole)
    evaluated = list(grid.send_and_receive(orders, timeout=loop.evaluate_timeout))
    good = sum(not reply.has_error() for reply in evaluated)
    require(good, loop.min_evaluate, "through with evaluating", f"{loop.noun} {number}", grid)
    return evaluated, _aggregate(lambda: strategy.aggregate_evaluate(number, evaluated), loop) or MetricRecord()


def _renumber(orders: Any, whole: int) -> list[Message]:
    """Strategies count the rounds of their loop; learners are told the round of the whole training."""
    messages: list[Message] = list(orders)
    for message in messages:
        for record in message.content.config_records.values():
            record["server-round"] = whole
    return messages


def _learners(replies: list[Message]) -> int:
    """Learners behind the answers: a cluster aggregator says how many its answer stands for."""
    return sum(_report(reply).get("learners", 1) for reply in replies if not reply.has_error())


def _examples(replies: list[Message]) -> dict[str, int]:
    """Samples behind each answer, by the index of its node."""
    found = {}
    for reply in replies:
        if not reply.has_error():
            metrics = next(iter(reply.content.metric_records.values()))
            found[str(int(reply.metadata.src_node_id) - 1)] = int(metrics["num-examples"])
    return found


def _report(reply: Message) -> Mapping[str, Any]:
    found: Mapping[str, Any] = reply.content.config_records.get("report", {})
    return found


def _result(number: int, evaluated: MetricRecord, trained: MetricRecord) -> dict[str, Any]:
    values = {key: float(value) for key, value in evaluated.items() if not isinstance(value, list)}
    metrics = {key: value for key, value in values.items() if key not in ("loss", "accuracy")}
    metrics |= {f"train_{key}": float(value) for key, value in trained.items() if not isinstance(value, list)}
    nan = float("nan")
    return {
        "round": number,
        "loss": values.get("loss", nan),
        "accuracy": values.get("accuracy", nan),
        "metrics": metrics,
    }


def _check_metrics(loop: Loop, result: Mapping[str, Any]) -> None:
    known = {"loss", "accuracy", *result["metrics"]}
    for metric in loop.metrics:
        if metric not in known:
            raise Failure(
                "FL5033",
                f"The learners report no metric `{metric}`; they report {', '.join(sorted(known))}.",
                cure="Choose one of these for the best model and the early stop, or return it from `evaluate_model`.",
            )


def _aggregate(aggregate: Callable[[], Any], loop: Loop) -> Any:
    try:
        return aggregate()
    except Failure:
        raise
    except Exception as error:
        raise Failure(
            "FL5031",
            f"The strategy {loop.strategy_name} could not aggregate the answers: {error}",
            cure="All learners have to return parameters of the same shapes and metrics of the same names.",
        ) from error
