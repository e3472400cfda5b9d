"""A cluster aggregator: a learner to the root, an aggregator to the learners of its own cluster.

It is one process with its own nursery, and so with its own learners: when it dies they die with it. (In a container it orders
them from the reconciler, which starts each in a container of its own. Learners that are nodes of a federation stay, and are asked
again by its successor.) Flower's API stands at both
of its sides: a ClientApp answers the root, and each cycle is a ServerApp over the cluster's grid. A cycle starts from the
parameters that the root sends, with a new strategy. Its rounds are checkpoints in a directory of the cycle, which belongs to
these parameters: a cluster aggregator that was killed goes on after its last finished round when it is asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flops_runtime import identity, rounds, sandbox, wire
from flops_runtime.checkpoints import Checkpoints, write_atomically
from flops_runtime.failures import Failure
from flops_runtime.grid import EmbeddedGrid, RunGrid
from flops_runtime.learner import RUNTIME_DIR
from flops_runtime.nursery import Nursery, OrderedNursery
from flops_runtime.strategies import of_job
from flops_runtime.superlink_grid import SuperLinkGrid

_PATIENCE = 30.0
"""Seconds that a cluster waits for nodes that are gone; a SuperLink that was started again has its nodes back by then."""


def run(connection: Connection, spec: dict[str, Any], ordered: int | None = None) -> None:
    """The cluster aggregator process, from its birth until the root closes the connection.

    `ordered` is the descriptor of the socket where learners are ordered that it may not start itself.
    """
    job = spec["job"]
    directory, work = Path(spec["directory"]), Path(spec["work_dir"])
    work.mkdir(parents=True, exist_ok=True)
    given = [Path(learner["data"]) for learner in spec["learners"] if "data" in learner]
    sandbox.enter([RUNTIME_DIR, Path(job["repo_dir"]), *given], [directory, work])
    tell = _Relay(connection)
    grid = _nodes(spec, work, tell) if "link" in spec else _own_learners(spec, connection, ordered, work, tell)
    app = client_app(spec, grid, directory, tell)
    wire.send_note(connection, {"kind": "ready"})
    context = Context(run_id=1, node_id=int(spec["learner"]) + 1, node_config={}, state=RecordDict(), run_config={})
    while True:
        message = wire.receive(connection)
        if isinstance(message, Message):
            wire.send_message(connection, _answer(app, message, context, connection))


def _own_learners(spec: Mapping[str, Any], connection: Connection, ordered: int | None, work: Path, tell: _Relay) -> EmbeddedGrid:
    nursery = Nursery.split(connection) if ordered is None else OrderedNursery(ordered)
    identity.set_identity()
    learners = [{**learner, "work_dir": str(work / f"learner-{learner['learner']}")} for learner in spec["learners"]]
    return EmbeddedGrid(nursery, learners, int(spec["job"]["memory_mb"]), tell)


def _nodes(spec: Mapping[str, Any], work: Path, tell: _Relay) -> SuperLinkGrid:
    os.chdir(work)
    identity.set_identity()
    job = spec["job"]
    patience = _PATIENCE if job["round_timeout"] is None else min(_PATIENCE, float(job["round_timeout"]))
    grid = SuperLinkGrid(Connection(spec["link"]), int(job["min_available"]), tell, patience=patience)
    grid.prepare()  # the root asks one cluster for the parameters to start from; all nodes get ready meanwhile
    return grid


def client_app(spec: Mapping[str, Any], grid: RunGrid, directory: Path, tell: _Relay) -> ClientApp:
    """The Flower ClientApp that stands for a whole cluster."""
    job = spec["job"]
    app = ClientApp()

    @app.query()  # type: ignore[untyped-decorator, unused-ignore]
    def initial(message: Message, _: Context) -> Message:
        return Message(RecordDict({"arrays": rounds.initial(grid, rounds.loop_of(job))}), reply_to=message)

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Message, context: Context) -> Message:
        start = message.content["arrays"]
        cycle = int(dict(message.content["config"])["server-round"])
        checkpoints = Checkpoints(_cycle_directory(directory, cycle, start))
        loop = rounds.cluster_loop(job, str(spec["name"]), cycle)
        rounds.loop_app(loop, of_job(job, len(spec["learners"])), checkpoints, tell, start)(grid, context)
        results, parameters, _ = checkpoints.load(loop.rounds)
        # The weight of a cluster: the samples of all learners that had a part in its model, each counted once.
        samples: dict[str, int] = {}
        for result in results:
            samples |= result["examples"]
        metrics = {"num-examples": sum(samples.values()), **_train_metrics(results[-1])}
        report = {"learners": len(samples)}
        return Message(_content(metrics, report, rounds.to_record(parameters)), reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
    def evaluate(message: Message, _: Context) -> Message:
        cycle = int(dict(message.content["config"])["server-round"])
        loop = rounds.cluster_loop(job, str(spec["name"]), cycle)
        strategy = of_job(job, len(spec["learners"]))
        metrics, samples, learners = rounds.evaluate(message.content["arrays"], loop, strategy, grid)
        return Message(_content({"num-examples": samples, **metrics}, {"learners": learners}), reply_to=message)

    return app


class _Relay:
    """Tells the root what happens in the cluster."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, kind: str, message: str, *, round: int = 0, **data: Any) -> None:
        name = "cluster_round" if kind == "round" else kind
        wire.send_note(self._connection, {"kind": "event", "name": name, "message": message, "round": round, "data": data})


def _answer(app: ClientApp, message: Message, context: Context, connection: Connection) -> Message:
    try:
        return app(message, context)
    except Failure as error:
        failure = error
    except Exception as error:
        traceback.print_exc()
        failure = Failure(
            "FL5603",
            f"The cluster aggregator failed: {type(error).__name__}: {error}.",
            cure="Look into child.log in the run's directory; if the ML repo is not to blame, report it.",
            transient=True,
        )
    finally:
        sys.stdout.flush()
    index = int(message.metadata.dst_node_id) - 1
    wire.send_note(connection, {"kind": "failure", "learner": index, "failure": failure.to_dict()})
    return Message(Error(code=int(failure.code[2:]), reason=failure.cause), reply_to=message)


def _cycle_directory(directory: Path, cycle: int, start: ArrayRecord) -> Path:
    """Where the rounds of a cycle are kept. What was trained from other parameters is removed."""
    path = directory / f"cycle-{cycle:04d}"
    digest = hashlib.sha256()
    for key, array in start.items():
        digest.update(f"{key}\0{array.dtype}\0{array.shape}\0".encode() + array.data)
    text = json.dumps({"start": digest.hexdigest()}).encode()
    mark = path / "start.json"
    if path.is_dir() and (not mark.is_file() or mark.read_bytes() != text):
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, lambda file: file.write(text))
    return path


def _train_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of training in the last round; the guard's counts are the cluster's own."""
    return {key.removeprefix("train_"): float(value) for key, value in result["metrics"].items() if key.startswith("train_")}


def _content(metrics: Mapping[str, Any], report: Mapping[str, int], arrays: ArrayRecord | None = None) -> RecordDict:
    content = RecordDict({"metrics": MetricRecord(dict(metrics)), "report": ConfigRecord(dict(report))})
    if arrays is not None:
        content["arrays"] = arrays
    return content
