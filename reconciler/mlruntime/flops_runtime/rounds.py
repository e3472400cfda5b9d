"""The ServerApp: Flower's round loop, as `Strategy.start` runs it, with a quorum and a checkpoint after every round.

`Strategy.start` cannot begin at round k, so its four calls (configure_train, aggregate_train, configure_evaluate,
aggregate_evaluate) are made here in its order and with its arguments. The random numbers with which a strategy samples nodes
depend on (seed, round) alone and its arrays are in the checkpoint, so a resumed run equals an undisturbed one.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from flops_runtime.checkpoints import Arrays, Checkpoints
from flops_runtime.failures import Failure
from flops_runtime.grid import EmbeddedGrid, Tell
from flops_runtime.strategies import restore_state, save_state, train_config


def server_app(job: dict[str, Any], strategy: Strategy, checkpoints: Checkpoints, tell: Tell) -> ServerApp:
    """The Flower ServerApp that trains one job from its last finished round to its end."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: Grid, _: Context) -> None:
        results, parameters, state = checkpoints.load(int(job["rounds"]))
        restore_state(strategy, state)
        arrays = to_record(parameters) if results else _initial(grid, job)
        for number in range(len(results) + 1, int(job["rounds"]) + 1):
            arrays = _round(number, arrays, job, strategy, grid, checkpoints, tell)

    return app


def to_record(parameters: Arrays) -> ArrayRecord:
    """Parameters as Flower sends them."""
    return ArrayRecord({key: Array(array) for key, array in parameters.items()})


def setup_timeout(job: dict[str, Any]) -> float | None:
    """How long a learner may take to load its data: no round's work, so never less than five minutes."""
    return None if job["round_timeout"] is None else max(300.0, float(job["round_timeout"]))


def _initial(grid: EmbeddedGrid, job: dict[str, Any]) -> ArrayRecord:
    ready = grid.await_ready(setup_timeout(job))
    _require(len(ready), int(job["min_available"]), "available", 0, grid)
    message = Message(RecordDict(), ready[0].node_id, "query")
    reply = next(iter(grid.send_and_receive([message], timeout=setup_timeout(job))))
    if reply.has_error():
        _require(0, 1, "able to give initial parameters", 0, grid)
    record: ArrayRecord = reply.content["arrays"]
    return record


def _round(
    number: int,
    arrays: ArrayRecord,
    job: dict[str, Any],
    strategy: Strategy,
    grid: EmbeddedGrid,
    checkpoints: Checkpoints,
    tell: Tell,
) -> ArrayRecord:
    started = time.monotonic()
    timeout = None if job["round_timeout"] is None else float(job["round_timeout"])
    ready = grid.revive(setup_timeout(job))
    _require(len(ready), int(job["min_available"]), "available", number, grid)
    grid.clear_failures()

    random.seed(f"{job['seed']}/{number}/train")
    orders = strategy.configure_train(number, arrays, ConfigRecord(train_config(strategy)), grid)
    trained = list(grid.send_and_receive(list(orders), timeout=timeout))
    fit = sum(not reply.has_error() for reply in trained)
    _require(fit, int(job["min_fit"]), "through with training", number, grid)
    aggregated, train_metrics = _aggregate(lambda: strategy.aggregate_train(number, trained), job)
    if aggregated is None:
        raise Failure(
            "FL5031",
            f"Round {number}: the strategy {job['strategy_name']} made no model out of {fit} answers; it needs more.",
            cure="Raise `min_available_clients` and `min_fit_clients`, or use a strategy that needs fewer learners.",
        )
    parameters = {key: array.numpy() for key, array in aggregated.items()}
    _check_finite(number, parameters)

    random.seed(f"{job['seed']}/{number}/evaluate")
    orders = strategy.configure_evaluate(number, aggregated, ConfigRecord(), grid)
    evaluated = list(grid.send_and_receive(list(orders), timeout=timeout))
    good = sum(not reply.has_error() for reply in evaluated)
    _require(good, int(job["min_evaluate"]), "through with evaluating", number, grid)
    metrics = _aggregate(lambda: strategy.aggregate_evaluate(number, evaluated), job)

    result = _result(number, metrics or MetricRecord(), train_metrics or MetricRecord())
    result |= {"learners_fit": fit, "learners_evaluated": good, "failures": len(grid.failures())}
    result["seconds"] = round(time.monotonic() - started, 4)
    if job["metric"] not in {"loss", "accuracy", *result["metrics"]}:
        raise Failure(
            "FL5033",
            f"The learners report no metric `{job['metric']}`; they report "
            f"{', '.join(sorted({'loss', 'accuracy', *result['metrics']}))}.",
            cure="Choose one of these for the best model, or return it from `evaluate_model`.",
        )
    checkpoints.save(number, parameters, save_state(strategy), result)
    text = f"round {number} of {job['rounds']}: accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f}"
    tell("round", text, round=number, result=result)
    return aggregated


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


def _aggregate(aggregate: Any, job: dict[str, Any]) -> Any:
    try:
        return aggregate()
    except Failure:
        raise
    except Exception as error:
        raise Failure(
            "FL5031",
            f"The strategy {job['strategy_name']} could not aggregate the answers: {error}",
            cure="All learners have to return parameters of the same shapes and metrics of the same names.",
        ) from error


def _check_finite(number: int, parameters: Arrays) -> None:
    for key, array in parameters.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Failure(
                "FL5032",
                f"Round {number}: the aggregated parameters are not finite (array {key}): training has diverged.",
                cure="Lower the learning rate, scale the data, or take a strategy that bounds the updates.",
            )


def _require(have: int, need: int, what: str, number: int, grid: EmbeddedGrid) -> None:
    """The quorum. The error says of every learner that failed why; it has their code if they all failed alike."""
    if have >= need:
        return
    failures = grid.failures()
    when = f"round {number}" if number else "the start"
    reasons = "; ".join(f"learner {index}: {failure.cause.rstrip('.')}" for index, failure in failures)
    causes = {failure.cause for _, failure in failures}
    if len(causes) == 1 and len(failures) > 1:
        reasons = f"{', '.join(f'learner {index}' for index, _ in failures)}: {failures[0][1].cause.rstrip('.')}"
    codes = {failure.code for _, failure in failures}
    first = failures[0][1] if failures else None
    raise Failure(
        codes.pop() if len(codes) == 1 else "FL5030",
        f"In {when} {have} of {len(grid.learners)} learners were {what}, but {need} are needed: {reasons}.",
        cure=first.cure if first else "Lower the `min_*` numbers of the training configuration.",
        path=first.path if first else "",
        line=first.line if first else 0,
    )
