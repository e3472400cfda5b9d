"""A node: a machine with data that stays in a federation for ever and trains when it is asked.

One thread takes one message at a time, as Flower's SuperNode does. Whatever happens – the SuperLink is gone, the network is
cut, the key is not allowed yet, a run's code fails – the node stays and tries again, with growing, jittered pauses. An answer
that is ready when the connection breaks is sent when it is back.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from flwr.app import MetricRecord, RecordDict
from flwr.app.message import Message
from flwr.common.serde import recorddict_to_proto

from reconciler.errors import DataError, FlopsError, TrainingError
from reconciler.nodes import fab, packing
from reconciler.nodes.data import NodeData, Shard
from reconciler.nodes.fleet import Fleet, KeyRefusedError, RunOverError, reply_to
from reconciler.nodes.host import Host, LearnerError, Learners, Place, Tell
from reconciler.nodes.keys import KeyPair

PREPARE = "query.prepare"
_FASTEST, _SLOWEST, _SHARE = 0.01, 1.0, 0.05
"""A node asks for messages at these intervals, in seconds: a share of the time since the last one."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_KEPT_RUNS = 3
_LOOK_SECONDS, _KEEP_SECONDS = 5.0, 20.0


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How a node takes part. Of several learners on the same data this is number `partition` of `partitions`."""

    superlink: str
    data_dir: Path
    work_dir: Path
    tags: tuple[str, ...]
    cluster: str = ""
    root_certificates: Path | None = None
    partition: int = 0
    partitions: int = 1


@dataclass
class _Learner:
    """A run that this node has prepared."""

    run_id: int
    spec: fab.LearnerSpec
    directory: Path
    shard: Shard
    host: Host
    index: int
    used: float = field(default_factory=time.monotonic)
    over_since: float = 0.0


class Node:
    """The long-lived node. `run` returns when `stop` was called.

    `tell` is told of: connected, lost, refused, run, environment, image, learner, failed.
    """

    def __init__(
        self,
        settings: NodeSettings,
        keys: KeyPair,
        learners: Learners,
        tell: Tell,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._starts = learners
        self._data = NodeData(settings.data_dir)
        self._tell = tell
        self._clock = clock
        self._jitter = jitter
        self._stop = threading.Event()
        self._learners: dict[str, _Learner] = {}
        self._unsent: tuple[Message, float] | None = None
        self._tried = False
        self._looked = 0.0

    def stop(self) -> None:
        """Lets `run` return soon. May be called from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> None:
        """Takes part until `stop`; raises only what is wrong with the node itself (its key, its certificates)."""
        pause = _FIRST_PAUSE
        told = ""
        shutil.rmtree(self._runs, ignore_errors=True)  # of a node that was killed; learners are made anew
        try:
            while not self._stop.is_set():
                connected = self._clock()
                try:
                    self._take_part()
                except KeyRefusedError as error:
                    kind, text = "refused", str(error)
                except (httpx.HTTPError, OSError, ValueError) as error:
                    kind, text = "lost", f"FL5801 the SuperLink cannot be reached: {error}"
                else:
                    return
                if self._clock() - connected > _LONGEST_PAUSE:
                    pause, told = _FIRST_PAUSE, ""
                if text != told:
                    self._tell(kind, text)
                    told = text
                self._stop.wait(pause * self._jitter(0.5, 1.5))
                pause = min(_LONGEST_PAUSE, pause * 1.7)
        finally:
            for learner in self._learners.values():
                learner.host.close()

    @property
    def _runs(self) -> Path:
        return self._settings.work_dir / "runs"

    def _take_part(self) -> None:
        """One connection, from its beginning to `stop`, or to the error that ends it."""
        fleet = Fleet(self._settings.superlink, self._keys, self._settings.root_certificates)
        leave = False
        try:
            fleet.activate()
            fleet.start_heartbeat()
            self._tell("connected", f"node {fleet.node_id} of the federation at {self._settings.superlink}")
            self._serve(fleet)
            leave = True
        finally:
            fleet.close(leave=leave)

    def _serve(self, fleet: Fleet) -> None:
        last = self._clock()
        while not self._stop.is_set():
            self._send(fleet)
            try:
                message = fleet.receive()
            except RunOverError:
                continue
            if message is None:
                idle = self._clock() - last
                if self._clock() - max(last, self._looked) > _LOOK_SECONDS:
                    self._let_go(fleet)
                self._stop.wait(min(_SLOWEST, max(_FASTEST, _SHARE * idle)) * self._jitter(0.8, 1.2))
                continue
            started = self._clock()
            answer = self._answer(fleet, message)
            last = self._clock()
            if answer is not None:
                self._unsent = (reply_to(message, answer), last - started)

    def _send(self, fleet: Fleet) -> None:
        """Sends what a learner answered, over as many connections as it takes, as long as its run is there.

        A SuperLink that was started anew knows nothing of the run, and fails at an answer to it as it fails at what may pass. So it
        is asked for the run first when a try has failed; else the node would try for ever and answer nobody else.
        """
        if self._unsent is None:
            return
        reply, seconds = self._unsent
        try:
            if self._tried:
                fleet.bundle_hash(reply.metadata.run_id)
            self._tried = True
            fleet.send(reply, seconds)
        except RunOverError:
            self._tell("run", "the run ended before the answer was there")
        self._unsent, self._tried = None, False

    def _let_go(self, fleet: Fleet) -> None:
        """Ends the learners of runs that are over: Flower tells a node nothing about the end of a run."""
        self._looked = self._clock()
        for run_id in {learner.run_id for learner in self._learners.values()}:
            learners = [learner for learner in self._learners.values() if learner.run_id == run_id]
            try:
                fleet.bundle_hash(run_id)
            except RunOverError:
                # A SuperLink that was started again does not know the run: it is submitted again, and its learners are kept.
                ended = [learner.over_since or self._looked for learner in learners]
                if min(ended) < self._looked - _KEEP_SECONDS:
                    self._tell("run", "the run has ended")
                    self._forget(run_id)
            else:
                ended = [0.0 for _ in learners]
            for learner, since in zip(learners, ended, strict=True):
                learner.over_since = since

    # --- messages -------------------------------------------------------------------------------------------------------

    def _answer(self, fleet: Fleet, message: Message) -> RecordDict | None:
        """The records of the reply; None when the run is over."""
        run_id = message.metadata.run_id
        try:
            content, head = packing.unpack(message.content)
            self._check_cluster(str(head.get("cluster", "")))
            learner = self._learner(fleet, run_id, int(head.get("learner", 0)))
            learner.used = self._clock()
            if message.metadata.message_type == PREPARE:
                records = RecordDict({"node": MetricRecord({"rows": learner.shard.rows})})
                return packing.pack(recorddict_to_proto(records).SerializeToString(), {"rows": learner.shard.rows})
            return packing.pack(learner.host.ask(content, message, lambda: self._go_on(fleet, run_id)), {})
        except RunOverError:
            self._tell("run", "the run has ended")
            self._forget(run_id)
            return None
        except LearnerError as error:
            self._tell("failed", f"{error.failure.get('code')} {error}")
            return _failure(_withheld(error.failure))
        except FlopsError as error:
            self._tell("failed", str(error))
            return _failure({**error.to_dict(), "path": ""})
        except ValueError as error:
            return _failure({"code": "FL5807", "cause": f"The node does not understand: {error}.", "cure": "Use the same release."})

    def _check_cluster(self, declared: str) -> None:
        """A node that says where it belongs does not work where somebody else thinks that it does."""
        said = self._settings.cluster
        if said and said != declared:
            raise TrainingError(
                "FL5842",
                f"This node says that its cluster is {said!r}, but {repr(declared) if declared else 'none'} is declared for it.",
                cure="Join with the declared --cluster, or without; or correct its file in nodes/ of the GitOps repo.",
            )

    def _go_on(self, fleet: Fleet, run_id: int) -> None:
        """Raises RunOverError when nobody waits for a learner's work any more, or the node is to stop."""
        if self._stop.is_set():
            raise RunOverError("the node stops")
        try:
            fleet.bundle_hash(run_id)
        except (httpx.HTTPError, KeyRefusedError):
            return  # no connection: the work may still be wanted

    def _learner(self, fleet: Fleet, run_id: int, index: int) -> _Learner:
        """The run's learner with its data, made unless it is there; by bundle, so that a run that is submitted again finds it."""
        fab_hash = next((key for key, known in self._learners.items() if known.run_id == run_id), None)
        fab_hash = fab_hash or fleet.bundle_hash(run_id)
        learner = self._learners.get(fab_hash)
        if learner is not None and learner.host.alive and learner.index == index:
            learner.run_id = run_id
            return learner
        if learner is not None:
            learner.host.close()
            del self._learners[fab_hash]
        self._make_room()
        directory = self._runs / fab_hash[:32]
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, mode=0o700)
        spec = fab.unpack(fleet.bundle(run_id, fab_hash), fab_hash, directory)
        self._tell("run", f"project {spec.project}, digest {spec.digest[:12]}")
        wanted = [tag for tag in spec.data_tags if tag in self._settings.tags]
        if not wanted:
            raise DataError(
                "FL4501",
                f"This node does not serve the tags {', '.join(spec.data_tags)}.",
                cure="Join with --tags that include one.",
            )
        mine = self._settings.partition, self._settings.partitions
        shard, held_out = self._data.shard(wanted, *mine), self._data.held_out(wanted, *mine)
        log = self._settings.work_dir / "learner.log"
        place = Place(directory, fab_hash, shard.path, log, held_out.path if held_out else None)
        host = self._starts.start(spec, index, place, self._tell, self._stop.is_set)
        learner = _Learner(run_id, spec, directory, shard, host, index)
        self._learners[fab_hash] = learner
        try:
            host.await_ready(spec.setup_seconds, lambda: self._go_on(fleet, run_id))
        except (LearnerError, RunOverError):
            host.close()
            del self._learners[fab_hash]
            raise
        return learner

    def _make_room(self) -> None:
        """Ends the learners of the run that was not asked for the longest time: a machine has memory for so many."""
        while len(self._learners) >= _KEPT_RUNS:
            oldest = min(self._learners, key=lambda key: self._learners[key].used)
            self._learners.pop(oldest).host.close()

    def _forget(self, run_id: int) -> None:
        for key in [key for key, known in self._learners.items() if known.run_id == run_id]:
            learner = self._learners.pop(key)
            learner.host.close()
            shutil.rmtree(learner.directory, ignore_errors=True)


def _failure(failure: dict[str, Any]) -> RecordDict:
    return packing.pack(b"", {"failure": json.dumps(failure)})


def _withheld(failure: dict[str, Any]) -> dict[str, Any]:
    """A failure of the ML repo's code as it may leave the node: what an exception says can be data, so its text stays here."""
    cause = str(failure.get("cause", ""))
    if " raised " in cause and ": " in cause:
        cause = f"{cause.split(': ', 1)[0]}; what it says stays on the node."
    return {**failure, "cause": cause}
