"""Who a process is to Flower: newer versions ask the process, older ones nobody, which run and node a message comes from."""

from __future__ import annotations

import contextlib


def set_identity() -> None:
    """Says that this process is the aggregator of run 1."""
    with contextlib.suppress(ImportError):
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
