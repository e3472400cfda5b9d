"""The aggregator: the parent of learners and exporter, and the only one that writes results.

It never imports user code. It enters its sandbox before it loads anything, tells the reconciler what happens as JSON lines
on a pipe of their own, and kills its whole process group when the reconciler is gone (the life pipe ends): a run can be
resumed, so dying is right. A run directory that has a `result.json` is finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flops_runtime import sandbox
from flops_runtime.failures import Failure, is_disk_full, no_space

_OWN_DIR = Path(__file__).resolve().parent.parent
SETUP_SECONDS = 300.0
"""How long a node may take to load its held-out rows where rounds have no limit."""


def main(arguments: list[str]) -> int:
    """Trains the job of `run_dir/job.json`. Exit code 0: result.json is there; 3: the last event says what failed."""
    job_path, events_fd, life_fd = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    # `ordered`: where processes are ordered that we may not start ourselves; `link`: the way to nodes elsewhere.
    given_fds = {name: int(fd) for name, _, fd in (argument.partition("=") for argument in arguments[3:])}
    job: dict[str, Any] = json.loads(job_path.read_bytes())
    run_dir = job_path.parent
    given = [*job["shards"], *([job["holdout"]] if job["holdout"] else [])]
    level = sandbox.enter([_OWN_DIR, Path(job["repo_dir"]), *map(Path, given)], [run_dir])
    threading.Thread(target=_die_with_reconciler, args=(life_fd,), name="life", daemon=True).start()
    events = Events(events_fd, int(job["cycles"] if job.get("clusters") else job["rounds"]))
    try:
        _train(job, run_dir, events, level, given_fds)
    except Failure as failure:
        events.tell("error", failure.cause, failure=failure.to_dict())
        return 3
    except Exception as error:
        traceback.print_exc()
        events.tell("error", str(error), failure=_internal(error, run_dir).to_dict())
        return 3
    return 0


class Events:
    """The way to the reconciler: one JSON object a line."""

    def __init__(self, fd: int, total: int) -> None:
        self._fd = fd
        self._total = total
        self._lock = threading.Lock()

    def tell(self, kind: str, message: str, *, round: int = 0, **data: Any) -> None:
        """Tells one event; a reconciler that is gone is none of our business here."""
        event = {"kind": kind, "message": message, "round": round, "total": self._total, "data": data}
        line = json.dumps(event).encode() + b"\n"
        with self._lock, contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._fd, line) :]


def _train(job: dict[str, Any], run_dir: Path, events: Events, level: str, given_fds: dict[str, int]) -> None:
    started = time.monotonic()
    events.tell("sandbox", level)
    work = run_dir / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    from flops_runtime.nursery import Nursery, OrderedNursery  # from here on heavy: the nursery imports beside us, on another core

    hierarchical, simulated = bool(job.get("clusters")), job.get("simulation")
    preload = ["flops_runtime.cluster"] if hierarchical else []
    nursery = OrderedNursery(given_fds["ordered"]) if "ordered" in given_fds else Nursery(job["flavor"], preload)
    from flwr.app import Context, RecordDict

    from flops_runtime import federated_holdout, hierarchy, rounds, strategies, virtual
    from flops_runtime.checkpoints import Checkpoints, write_atomically
    from flops_runtime.exporting import Exporter
    from flops_runtime.grid import EmbeddedGrid, RunGrid
    from flops_runtime.identity import set_identity
    from flops_runtime.superlink_grid import SuperLinkGrid
    from flops_runtime.switch import EVERY, Switch

    set_identity()
    link = given_fds.get("link")
    if link is None:
        _check_numbers(job)
    loop = hierarchy.root_loop(job) if hierarchical else rounds.loop_of(job)
    # Of clusters too: wrong arguments are told before any process starts.
    strategy = strategies.of_job(job, len(job["shards"]) or int(job["min_available"]))
    checkpoints = Checkpoints(run_dir / "rounds")
    resumed, _, _ = checkpoints.load(loop.rounds)
    if resumed:
        events.tell("resumed", f"goes on after {loop.noun} {len(resumed)}", round=len(resumed))
    grid: RunGrid | None = None
    switch = Switch(Connection(link), events.tell) if hierarchical and link is not None else None
    specs = _specs(job, work)
    trained = rounds.finished(resumed, loop.rounds, loop.early_stop)
    if not trained or (link is not None and switch is None):  # nodes are asked once more when all rounds are over
        nodes = f"{len(specs)} learners"
        if hierarchical:
            strategy = strategies.of_root(job)
            grid = hierarchy.root_grid(job, nursery, run_dir, work, specs, events.tell, switch)
            nodes = f"{len(grid.learners)} clusters"
        elif simulated:
            hosts = virtual.host_specs(specs, int(simulated["processes"]), work, int(job["memory_mb"]))
            grid = EmbeddedGrid(nursery, hosts, int(job["memory_mb"]), events.tell, role="virtual")
        elif link is not None:
            grid = SuperLinkGrid(Connection(link), int(job["min_available"]), events.tell)
            nodes = "the nodes of a federation"
        else:
            grid = EmbeddedGrid(nursery, specs, int(job["memory_mb"]), events.tell)
        events.tell("started", f"{nodes}, strategy {job['strategy_name']}")
    exporter = Exporter(nursery, job, work)
    if grid is not None:
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
        if not trained:
            rounds.loop_app(loop, strategy, checkpoints, events.tell)(grid, context)
    results, _, _ = checkpoints.load(loop.rounds)
    best = best_round(results, job["metric"], job["direction"])
    measured = None
    nodes_grid = grid if isinstance(grid, SuperLinkGrid) else None
    if switch is not None:
        with switch.port(EVERY) as port:
            nodes_grid = SuperLinkGrid(Connection(os.dup(port)), int(job["min_available"]), events.tell)
    if nodes_grid is not None:
        timeout = rounds.setup_timeout(job) or SETUP_SECONDS
        arrays = rounds.to_record(checkpoints.parameters(best))
        measured = federated_holdout.measure(nodes_grid, arrays, timeout, int(job["min_evaluate"]), events.tell)
    if grid is not None:
        grid.close()
    events.tell("exporting", f"the best model is that of {loop.noun} {best}", round=best)
    exported = exporter.export(checkpoints.parameters(best), run_dir, measured.form if measured else None)
    if measured is not None:
        exported["holdout"] = measured.holdout
    for warning in exported.pop("warnings"):
        events.tell("warning", warning)
    result = {
        "digest": job["digest"],
        "rounds": [_told(result) for result in results],
        "clusters": {name: [_told(result) for result in found] for name, found in hierarchy.cluster_results(job, run_dir).items()},
        "rounds_per_cycle": int(job["rounds"]) if hierarchical else 1,
        "best_round": best,
        "seconds": round(time.monotonic() - started, 3),
        "resumed_from": len(resumed),
        **exported,
    }
    text = json.dumps(result, indent=1).encode()
    write_atomically(run_dir / "result.json", lambda file: file.write(text))
    nursery.close()
    shutil.rmtree(work, ignore_errors=True)
    events.tell("finished", f"{len(results)} {loop.noun}s in {result['seconds']:.1f} s, best is {loop.noun} {best}", round=best)


def _told(result: dict[str, Any]) -> dict[str, Any]:
    """A round's result as others read it: without what only a cluster aggregator needs."""
    return {key: value for key, value in result.items() if key != "examples"}


def best_round(results: list[dict[str, Any]], metric: str, direction: str) -> int:
    """The number of the best round by a metric, `max` or `min`; of equals the earliest; NaN is worse than anything."""

    def value(result: dict[str, Any]) -> float:
        found = float(result[metric] if metric in ("loss", "accuracy") else result["metrics"][metric])
        signed = found if direction == "max" else -found
        return signed if signed == signed else float("-inf")

    return int(max(results, key=value)["round"])


def _specs(job: dict[str, Any], work: Path) -> list[dict[str, Any]]:
    """One entry a learner; of learners that are nodes elsewhere, which have their data there, only the number is known."""
    if not job["shards"]:
        return [{"learner": index} for index in range(sum(int(cluster["learners"]) for cluster in job.get("clusters") or []))]
    return [
        {
            "learner": index,
            "repo_dir": job["repo_dir"],
            "work_dir": str(work / f"learner-{index}"),
            "data": shard,
            "seed": job["seed"],
            "privacy": job.get("privacy"),
        }
        for index, shard in enumerate(job["shards"])
    ]


def _check_numbers(job: dict[str, Any]) -> None:
    needed = max(int(job["min_available"]), int(job["min_fit"]), int(job["min_evaluate"]), 1)
    if not job.get("clusters") and len(job["shards"]) < needed:
        raise Failure(
            "FL5034",
            f"There are {len(job['shards'])} learners, but the training configuration asks for {needed}.",
            cure="Lower `min_available_clients`, `min_fit_clients` and `min_evaluate_clients`, or give it more data.",
        )


def _die_with_reconciler(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1):
            pass
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)  # the first process of a container cannot be killed from inside


def _internal(error: Exception, run_dir: Path) -> Failure:
    if is_disk_full(error, run_dir):
        return no_space()
    place = traceback.extract_tb(sys.exc_info()[2])[-1]
    return Failure(
        "FL5002",
        f"The aggregator failed: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno}).",
        cure="Look into child.log in the run's directory; if the ML repo is not to blame, report it.",
        transient=True,
    )
