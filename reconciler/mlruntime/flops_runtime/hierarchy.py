"""The root of a clustered training: its learners are cluster aggregators, its rounds are cycles.

The root runs the same loop as a classic aggregator, over a grid of clusters. Every cycle each cluster trains its rounds from the
root's parameters, the root's strategy joins the clusters' models by the samples behind them, and the joined model is evaluated
on the learners of all clusters. A cluster that fails or has too few learners is left out of a cycle, with a warning, and
asked again in the next; a cluster aggregator that dies is started again within the cycle and goes on after its last round.

Over a federation of nodes only the cluster's learners are elsewhere: its aggregator is the same process beside the root, with a
way to the nodes of its cluster and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flops_runtime.checkpoints import Checkpoints
from flops_runtime.failures import Failure
from flops_runtime.grid import EmbeddedGrid, Host, Tell
from flops_runtime.nursery import Nursery
from flops_runtime.rounds import Loop, loop_of
from flops_runtime.switch import Switch

_RETRIES = 2
"""How often a dead cluster aggregator is started again within one cycle."""


class RootGrid(EmbeddedGrid):
    """The grid of clusters: what leaves a cluster out is a warning, and no more while another one is left."""

    def __init__(self, nursery: Nursery, specs: list[dict[str, Any]], tell: Tell, switch: Switch | None) -> None:
        self._switch = switch
        super().__init__(nursery, specs, None, tell, role="cluster", retries=_RETRIES)

    def _fork(self, host: Host) -> tuple[int, Connection]:
        if self._switch is None:
            return super()._fork(host)
        with self._switch.port(str(host.spec["cluster"])) as link:
            return self._nursery.fork(host.role, host.spec, link)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        """As the embedded grid does; warns of each cluster whose answer is an error."""
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if reply.has_error():
                index = int(reply.metadata.src_node_id) - 1
                name = self._by_id[index + 1].name
                self._tell("warning", f"{name} is left out of this step: {reply.error.reason}", learner=index)
        return replies


def root_loop(job: Mapping[str, Any]) -> Loop:
    """The cycles of the root."""
    loop = loop_of(job)
    rounds = int(job["rounds"])
    train = evaluate = None
    if loop.train_timeout is not None and loop.setup_timeout is not None:
        # The clusters keep the time of every round; this is the net below them.
        train = rounds * 2 * (loop.train_timeout + loop.setup_timeout)
        evaluate = loop.train_timeout + 2 * loop.setup_timeout
    return replace(
        loop,
        rounds=int(job["cycles"]),
        min_available=1,
        min_fit=1,
        min_evaluate=1,
        train_timeout=train,
        evaluate_timeout=evaluate,
        strategy_name=str(job["root_strategy_name"]),
        max_norm=None,
        noun="cycle",
    )


def root_grid(
    job: Mapping[str, Any],
    nursery: Nursery,
    run_dir: Path,
    work: Path,
    specs: list[dict[str, Any]],
    tell: Tell,
    switch: Switch | None = None,
) -> RootGrid:
    """Starts the cluster aggregators of a job. Raises `Failure` when no cluster has enough learners.

    With a `switch` the learners are nodes elsewhere: `specs` has no more than their number then.
    """
    wanted = max(int(job["min_available"]), int(job["min_fit"]), int(job["min_evaluate"]))
    clusters, first = [], 0
    for index, cluster in enumerate(job["clusters"]):
        learners = specs[first : first + int(cluster["learners"])]
        first += len(learners)
        if len(learners) < wanted:
            text = f"cluster {cluster['name']} has {len(learners)} learners of the {wanted} that it needs: it is left out"
            tell("warning", text, cluster=cluster["name"])
            continue
        directory = run_dir / "clusters" / str(cluster["name"])
        directory.mkdir(parents=True, exist_ok=True)
        clusters.append(
            {
                "learner": index,
                "name": f"cluster {cluster['name']}",
                "cluster": str(cluster["name"]),
                "directory": str(directory),
                "work_dir": str(work / f"cluster-{cluster['name']}"),
                "learners": learners,
                "job": {key: value for key, value in job.items() if key not in ("shards", "clusters")},
            }
        )
    if not clusters:
        raise Failure(
            "FL5601",
            f"None of the {len(job['clusters'])} clusters has the {wanted} learners that it needs.",
            cure="Give the clusters more learners, or lower `min_available_clients`, `min_fit_clients` and `min_evaluate_clients`.",
        )
    return RootGrid(nursery, clusters, tell, switch)


def cluster_results(job: Mapping[str, Any], run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The rounds of every cluster, numbered over the whole training: round r of cycle c is (c − 1) · rounds + r."""
    rounds = int(job["rounds"])
    found: dict[str, list[dict[str, Any]]] = {}
    for cluster in job.get("clusters") or []:
        name = str(cluster["name"])
        for cycle in range(1, int(job["cycles"]) + 1):
            directory = run_dir / "clusters" / name / f"cycle-{cycle:04d}"
            if directory.is_dir():
                results, _, _ = Checkpoints(directory).load(rounds)
                done = [{**result, "round": (cycle - 1) * rounds + result["round"]} for result in results]
                found.setdefault(name, []).extend(done)
    return found
