"""Which node of a federation is in which cluster of a hierarchical run: what the SLA says, else what the nodes' files say.

A node is in one cluster at most, and clusters and their nodes have an order that does not depend on who is connected: learners
are seeded by their number in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from reconciler.errors import TrainingError
from reconciler.spec.training import Cluster


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters with the names of their nodes, in order, and the nodes `without` one."""

    members: tuple[tuple[str, tuple[str, ...]], ...]
    without: tuple[str, ...] = ()

    def sizes(self) -> list[tuple[str, int]]:
        """The clusters and how many nodes may serve in each."""
        return [(name, len(nodes)) for name, nodes in self.members]

    def of_nodes(self) -> dict[str, str]:
        """The cluster of each node."""
        return {node: name for name, nodes in self.members for node in nodes}


def grouped(candidates: Mapping[str, str], wanted: Sequence[Cluster], known: Collection[str], federation: str) -> Clusters:
    """The clusters of a run out of its candidates, which are given with the cluster that each is declared for ("" for none).

    Without `wanted` clusters there are those that are declared, by name. `known` are all nodes of the federation: one that is named
    and known, but is no candidate, has other data, and leaves its cluster smaller. Raises TrainingError (FL5840, FL5841).
    """
    if wanted:
        named = {node for cluster in wanted for node in cluster.nodes or ()}
        if unknown := sorted(named - set(known)):
            raise TrainingError(
                "FL5840",
                f"The clusters name nodes that the federation {federation!r} does not have: {', '.join(unknown)}.",
                cure="Declare them in nodes/, or correct training_configuration.clusters.",
            )
        members = [(cluster.name, _members(cluster, candidates, named)) for cluster in wanted]
    else:
        names = sorted({name for name in candidates.values() if name})
        members = [(name, tuple(sorted(node for node, cluster in candidates.items() if cluster == name))) for name in names]
    taken = {node for _, nodes in members for node in nodes}
    if not taken:
        raise TrainingError(
            "FL5841",
            f"No node of the federation {federation!r} with data for this project belongs to a cluster of it.",
            cure="Set `cluster` in the files in nodes/, or name nodes in training_configuration.clusters.",
        )
    without = () if wanted else tuple(sorted(set(candidates) - taken))
    return Clusters(tuple(members), without)


def _members(cluster: Cluster, candidates: Mapping[str, str], named: Collection[str]) -> tuple[str, ...]:
    """Of a cluster without `nodes` those that are declared for it, but for those that the SLA puts into a cluster by name."""
    if cluster.nodes is not None:
        return tuple(sorted(node for node in cluster.nodes if node in candidates))
    return tuple(sorted(node for node, declared in candidates.items() if declared == cluster.name and node not in named))
