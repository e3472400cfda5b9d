"""A learner: one process with its own shard, its own sandbox and a Flower ClientApp, up over all the rounds.

`ModelManager()` is made once and `set_model_data()` is called once; every Flower message then costs a call, not a new
interpreter. Random generators are seeded from (seed, round, learner, step) before every call into the ML repo, so that a run
which was interrupted and resumed sees the same numbers as one which was not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flops_runtime import federated_holdout, privacy, sandbox, wire
from flops_runtime.contract import ModelContract, prepare_process, seed_everything
from flops_runtime.failures import Failure, user_failure
from flops_runtime.memory import anonymous_kb

RUNTIME_DIR = Path(__file__).resolve().parent.parent


def run(connection: Connection, spec: dict[str, Any]) -> None:
    """The learner process, from its birth until the aggregator closes the connection."""
    repo, work = Path(spec["repo_dir"]), Path(spec["work_dir"])
    seed, index = int(spec["seed"]), int(spec["learner"])
    own_paths = [path for path in sys.path if path]
    prepare_process(work, repo, spec["data"], own_paths)
    sandbox.enter([repo, RUNTIME_DIR, Path(spec["data"])], [work])
    try:
        seed_everything(seed, 0, index, "setup")
        contract = ModelContract(repo, work)
        before = anonymous_kb("self")
        wire.send_note(connection, {"kind": "loading", "anonymous_kb": before})
        contract.set_data()
    except Failure as failure:
        wire.send_note(connection, {"kind": "failed", "failure": failure.to_dict()})
        return
    after = anonymous_kb("self")
    wire.send_note(connection, {"kind": "ready", "anonymous_kb": after, "data_kb": max(0, after - before)})
    app = client_app(contract, connection, seed, index, privacy.mods(spec.get("privacy")), spec)
    context = Context(run_id=1, node_id=index + 1, node_config={}, state=RecordDict(), run_config={})
    while True:
        message = wire.receive(connection)
        if isinstance(message, Message):
            wire.send_message(connection, answer(app, message, context, connection, repo, work))


def answer(app: ClientApp, message: Message, context: Context, connection: Connection, repo: Path, work: Path) -> Message:
    """The app's answer; an error message, after a note with the whole failure, when the ML repo's code raises."""
    try:
        return app(message, context)
    except BaseException as error:
        failure = user_failure(error, "FL5015", "The ML repo raised", repo, work)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    index = int(message.metadata.dst_node_id) - 1
    wire.send_note(connection, {"kind": "failure", "learner": index, "failure": failure.to_dict()})
    return Message(Error(code=int(failure.code[2:]), reason=failure.cause), reply_to=message)


def client_app(
    contract: ModelContract,
    connection: Connection,
    seed: int,
    index: int,
    mods: Sequence[Any] = (),
    spec: Mapping[str, Any] = MappingProxyType({}),
) -> ClientApp:
    """The Flower ClientApp that wraps the ML repo contract, with Flower's mods around it.

    On a node `spec` has the `flavor`, and says in `counts` whether the rows of this process are held out.
    """
    app = ClientApp(mods=list(mods))
    warned = False

    @app.query()  # type: ignore[untyped-decorator, unused-ignore]
    def initial(message: Message, _: Context) -> Message:
        seed_everything(seed, 0, "initial")
        return Message(RecordDict({"arrays": ArrayRecord(contract.initial_parameters())}), reply_to=message)

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Message, _: Context) -> Message:
        nonlocal warned
        config = dict(message.content["config"])
        number = int(config.get("server-round", 0))
        seed_everything(seed, number, index, "train")
        if not contract.configure(config) and "proximal-mu" in config and not warned:
            warned = True
            text = "FedProx sends `proximal-mu`, but ModelManager has no `set_config(config)`: it acts as FedAvg."
            wire.send_note(connection, {"kind": "warning", "learner": index, "message": text})
        contract.set_parameters(message.content["arrays"].to_numpy_ndarrays())
        metrics: dict[str, float] = {}
        if (key := config.get("train-loss-key")) is not None:
            metrics[str(key)] = contract.evaluate()["loss"]  # q-FedAvg weighs by the loss of the *global* model
            seed_everything(seed, number, index, "train")
        metrics.update(contract.fit())
        content = {"arrays": ArrayRecord(contract.parameters()), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
    def evaluate(message: Message, _: Context) -> Message:
        number = int(dict(message.content["config"]).get("server-round", 0))
        seed_everything(seed, number, index, "evaluate")
        contract.set_parameters(message.content["arrays"].to_numpy_ndarrays())
        return Message(RecordDict({"metrics": MetricRecord(contract.evaluate())}), reply_to=message)

    @app.query(federated_holdout.ACTION)  # type: ignore[untyped-decorator, unused-ignore]
    def holdout(message: Message, _: Context) -> Message:
        seed_everything(seed, 0, index, "holdout")
        contract.set_parameters(message.content["arrays"].to_numpy_ndarrays())
        content = federated_holdout.report(str(spec["flavor"]), contract, bool(spec["counts"]))
        return Message(content, reply_to=message)

    return app
