"""Every strategy that an SLA may name really runs: over a tiny model of NumPy and Flower's own messages, in one process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.spec.training import STRATEGIES
from tests.federation.test_runtime_parts import inside

ARGUMENTS: dict[str, dict[str, float]] = {
    "fedprox": {"proximal_mu": 0.1},
    "fedavgm": {"server_momentum": 0.5},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 1},
    "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "bulyan": {"num_malicious_nodes": 0},
    "fedyogi": {"eta": 0.1},  # its own default would take hundreds of rounds
    "qfedavg": {"client_learning_rate": 0.5},
}
CODE = """
import json, random, sys
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flops_runtime.identity import set_identity
from flops_runtime.strategies import make_strategy, restore_state, save_state, train_config

LEARNERS, ROUNDS = 6, 30
set_identity()
optima = [np.array([1.0, -2.0, 3.0]) + 0.1 * np.random.default_rng(index).normal(size=3) for index in range(LEARNERS)]

class Near(Grid):
    def set_run(self, run): pass
    @property
    def run(self): return None
    def create_message(self, *a, **k): raise NotImplementedError
    def push_messages(self, messages): raise NotImplementedError
    def pull_messages(self, ids): raise NotImplementedError
    def get_node_ids(self): return list(range(1, LEARNERS + 1))
    def send_and_receive(self, messages, *, timeout=None):
        return [self.answer(message) for message in messages]
    def answer(self, message):
        message.metadata.__dict__.update(_run_id=1, _message_id="m")
        there = message.content["arrays"].to_numpy_ndarrays()[0]
        gap = optima[message.metadata.dst_node_id - 1] - there
        metrics = {"num-examples": 10, "loss": float(gap @ gap)}
        config = dict(message.content["config"])
        if "train-loss-key" in config:
            metrics[config["train-loss-key"]] = metrics["loss"]
        content = {"metrics": MetricRecord(metrics)}
        if message.metadata.message_type == "train":
            content["arrays"] = ArrayRecord([there + 0.5 * gap])
        return Message(RecordDict(content), reply_to=message)

def run(name, arguments, restart):
    def make():
        return make_strategy(name, arguments, fraction_fit=1.0, min_fit=1, min_evaluate=1, min_available=1)
    strategy, grid = make(), Near()
    arrays = ArrayRecord([np.zeros(3)])
    losses = []
    for number in range(1, ROUNDS + 1):
        if restart:
            state, strategy = save_state(strategy), make()
            restore_state(strategy, state)
        random.seed(number)
        sent = strategy.configure_train(number, arrays, ConfigRecord(train_config(strategy)), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(sent))
        sent = strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
        losses.append(strategy.aggregate_evaluate(number, grid.send_and_receive(sent))["loss"])
    return losses, arrays.to_numpy_ndarrays()[0].tolist()

wanted = json.loads(sys.argv[1]).items()
print(json.dumps({name: [run(name, arguments, restart) for restart in (False, True)] for name, arguments in wanted}))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Losses by round and last parameters of every strategy, run through and with its state saved and restored in between."""
    wanted = {name: ARGUMENTS.get(name, {}) for name in STRATEGIES}
    found: dict[str, Any] = json.loads(inside(CODE, json.dumps(wanted)).splitlines()[-1])
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_comes_nearer_to_what_the_learners_want(outcomes: dict[str, Any], name: str) -> None:
    (losses, _), _ = outcomes[name]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_its_state_can_be_saved_and_restored_in_every_round(outcomes: dict[str, Any], name: str) -> None:
    through, interrupted = outcomes[name]
    assert through == interrupted
