"""The learner of one run on a node: `python -m flops_runtime.node_host JOB FD`.

It is to a node what the aggregator is to its embedded learners: it enters the sandbox before it loads anything, has the same
fork server, the same memory limit and the same way to start a dead learner again, and ends with the node. Messages come over
one pipe from the node, which alone has the network and the key.
"""

from __future__ import annotations

import json
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flops_runtime import sandbox

_OWN_DIR = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Serves messages until the node closes the pipe."""
    job: dict[str, Any] = json.loads(Path(arguments[0]).read_bytes())
    connection = Connection(int(arguments[1]))
    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends us in order
    rows = [Path(job[name]) for name in ("data", "held_out") if job[name]]
    level = sandbox.enter([_OWN_DIR, Path(job["repo_dir"]), *rows], [Path(job["work_dir"])])

    from flops_runtime import wire
    from flops_runtime.nursery import Nursery

    nursery = Nursery(job["flavor"])

    def tell(kind: str, message: str, **data: Any) -> None:
        wire.send_note(connection, {"kind": "event", "event": kind, "message": message, "data": data})

    tell("sandbox", level)
    try:
        _serve(connection, nursery, job, tell)
    except (EOFError, OSError):
        return 0  # the node has gone
    finally:
        nursery.close()
    return 0


def _serve(connection: Connection, nursery: Any, job: dict[str, Any], tell: Any) -> None:
    from flwr.app import Message

    from flops_runtime import wire
    from flops_runtime.failures import Failure
    from flops_runtime.federated_holdout import QUERY
    from flops_runtime.grid import EmbeddedGrid

    spec = {key: job[key] for key in ("learner", "repo_dir", "work_dir", "data", "seed", "privacy", "flavor")}
    spec["counts"] = False
    grid = EmbeddedGrid(nursery, [spec], int(job["memory_mb"]), tell)
    patience = float(job["setup_seconds"])

    def failure(asked: EmbeddedGrid) -> dict[str, Any]:
        known = [found for _, found in asked.failures()]
        return (known[-1] if known else Failure("FL5020", "The learner is not running.", cure="See the node's log.")).to_dict()

    ready = bool(grid.await_ready(patience))
    wire.send_note(connection, {"kind": "ready"} if ready else {"kind": "failed", "failure": failure(grid)})
    while True:
        message = wire.receive(connection)
        if not isinstance(message, Message):
            continue
        # What the SuperLink calls this node is nothing to the grid, which has one learner.
        message.metadata.__dict__["_dst_node_id"] = grid.learners[0].node_id
        asked = grid
        if message.metadata.message_type == QUERY and job["held_out"]:
            # The ML repo's code knows one data set a process; that of the held-out rows lives for one question.
            held_out = {**spec, "data": job["held_out"], "work_dir": f"{job['work_dir']}/held-out", "counts": True}
            asked = EmbeddedGrid(nursery, [held_out], int(job["memory_mb"]), tell)
        asked.revive(patience)
        asked.clear_failures()
        reply = next(iter(asked.send_and_receive([message], timeout=message.metadata.ttl)))
        if reply.has_error():
            wire.send_note(connection, {"kind": "failed", "failure": failure(asked)})
        else:
            wire.send_message(connection, reply)
        if asked is not grid:
            asked.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
