"""A host of virtual learners: one process that plays many learners in turn, with the same code and so the same result.

Each has its own `ModelManager`, its own data, its own seeds and its own working directory; modules of the ML repo, and what they
keep outside of their classes, are shared by the learners of a host. A learner is made when its first message comes and is kept
while the host's data fit into its memory; the one that was used longest ago is dropped then, and made again (which gives the
same data, since its seed is the same) when it is asked again.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from flops_runtime import privacy, sandbox, wire
from flops_runtime.contract import ModelContract, enter_directory, prepare_process, seed_everything
from flops_runtime.failures import Failure
from flops_runtime.learner import RUNTIME_DIR, answer, client_app
from flops_runtime.memory import anonymous_kb


def run(connection: Connection, spec: dict[str, Any]) -> None:
    """The host process, from its birth until the aggregator closes the connection."""
    repo, work = Path(spec["repo_dir"]), Path(spec["work_dir"])
    members = {int(member["learner"]): str(member["data"]) for member in spec["members"]}
    own_paths = [path for path in sys.path if path]
    prepare_process(work, repo, "", own_paths)
    # The directories of the shards, as a rule one: a rule for each of thousands of files would cost seconds.
    sandbox.enter([repo, RUNTIME_DIR, *{Path(data).parent for data in members.values()}], [work])
    try:
        # What the ML repo imports is shared by all of its learners, and no work of any of them.
        seed_everything(spec["seed"], 0, min(members), "setup")
        ModelContract(repo, work)
    except Failure as failure:
        wire.send_note(connection, {"kind": "failed", "failure": failure.to_dict()})
        return
    base = anonymous_kb("self")
    budget = int(spec["data_mb"]) << 10
    # What it may take grows by its data: `data_kb` counts twice in the aggregator's allowance, as for a learner of its own.
    wire.send_note(connection, {"kind": "ready", "anonymous_kb": base, "data_kb": budget})
    host = _Host(connection, spec, members, repo, work, base + budget)
    while True:
        message = wire.receive(connection)
        if isinstance(message, Message):
            wire.send_message(connection, host.answer(message))


class _Host:
    """The virtual learners of this process, the one that was used last at the end."""

    def __init__(
        self, connection: Connection, spec: dict[str, Any], members: dict[int, str], repo: Path, work: Path, limit_kb: int
    ) -> None:
        self._connection, self._members, self._repo, self._work = connection, members, repo, work
        self._seed, self._mods, self._limit = int(spec["seed"]), privacy.mods(spec.get("privacy")), limit_kb
        self._alive: OrderedDict[int, tuple[ClientApp, Context]] = OrderedDict()

    def answer(self, message: Message) -> Message:
        """A learner's answer to a Flower message."""
        index = int(message.metadata.dst_node_id) - 1
        work = self._work / f"learner-{index}"
        enter_directory(work, self._repo, self._members[index])
        try:
            app, context = self._learner(index, work)
        except Failure as failure:
            wire.send_note(self._connection, {"kind": "failure", "learner": index, "failure": failure.to_dict()})
            return Message(Error(code=int(failure.code[2:]), reason=failure.cause), reply_to=message)
        answered = answer(app, message, context, self._connection, self._repo, work)
        self._alive.move_to_end(index)
        while len(self._alive) > 1 and anonymous_kb("self") > self._limit:
            self._alive.popitem(last=False)
        return answered

    def _learner(self, index: int, work: Path) -> tuple[ClientApp, Context]:
        if index not in self._alive:
            seed_everything(self._seed, 0, index, "setup")
            contract = ModelContract(self._repo, work)
            contract.set_data()
            app = client_app(contract, self._connection, self._seed, index, self._mods)
            context = Context(run_id=1, node_id=index + 1, node_config={}, state=RecordDict(), run_config={})
            self._alive[index] = app, context
        return self._alive[index]


def host_specs(specs: list[dict[str, Any]], processes: int, work: Path, data_mb: int) -> list[dict[str, Any]]:
    """Learners dealt to host processes in turn: `specs` are those of learners with a process each."""
    count = min(processes, len(specs))
    return [
        {
            **{key: value for key, value in specs[0].items() if key not in ("learner", "data")},
            "work_dir": str(work / f"host-{host}"),
            "data_mb": data_mb,
            "members": [{"learner": spec["learner"], "data": spec["data"]} for spec in specs[host::count]],
        }
        for host in range(count)
    ]
