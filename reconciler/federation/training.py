"""One training run: a child process in the ML environment, from its start to its result, or to an error that says why.

Invariants: the child sees no environment variable of ours; nothing of it is left when `run_training` returns (its whole
process group is killed); it does not outlive the reconciler (the life pipe); a run directory with a `result.json` is never
trained again, and one without goes on after its last finished round.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from reconciler.errors import TrainingError, Where
from reconciler.federation.launching import Launch, Link, LocalProcess
from reconciler.redaction import REDACTION, Stream, mask

_LOG_LIMIT = 4 << 20
_EVENTS_LIMIT = 64 * 1024 * 1024
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that determines a training run. `run_dir` belongs to `digest`; the same digest resumes in it."""

    project: str
    digest: str
    customer: str
    repo_dir: Path
    python: Path
    shards: tuple[Path, ...]
    holdout: Path | None
    run_dir: Path
    flavor: str
    rounds: int
    seed: int | None
    min_available: int
    min_fit: int
    min_evaluate: int
    fraction_fit: float
    strategy_name: str
    strategy_arguments: Mapping[str, Any]
    round_timeout: float | None
    memory_mb: int
    vcpus: int
    metric: str
    direction: Literal["max", "min"]
    clusters: tuple[ClusterShare, ...] = ()
    """Clusters of a hierarchical training, in the order of the shards; without any the training is classic."""
    cycles: int = 1
    """Cycles of a hierarchical training; `rounds` are those of one cycle then."""
    root_strategy_name: str = "fedavg"
    root_strategy_arguments: Mapping[str, Any] = field(default_factory=dict)
    early_stop: Mapping[str, Any] | None = None
    """`metric`, `direction` (max or min), `target`, `patience`, `min_delta`."""
    update_guard: Mapping[str, Any] | None = None
    """`max_norm`."""
    privacy: Mapping[str, Any] | None = None
    """`mechanism`, `clipping_norm`, and `noise_multiplier` or `epsilon` and `delta`."""
    simulation: Mapping[str, Any] | None = None
    """`processes` that play all of the learners."""


@dataclass(frozen=True, slots=True)
class ClusterShare:
    """A cluster and how many of the shards, in order, are those of its learners."""

    name: str
    learners: int


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One finished round, or cycle of a hierarchical training.

    Loss and accuracy are those of the aggregated model, weighted over the learners.
    """

    round: int
    loss: float
    accuracy: float
    metrics: Mapping[str, float]
    learners_fit: int
    learners_evaluated: int
    failures: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run. In a hierarchical one `rounds` are the cycles of the root, and `clusters` has the rounds of every cluster,
    numbered over the whole training: round r of cycle c is (c - 1) * rounds_per_cycle + r.

    `holdout` has `rows` and, for integer labels, `accuracy`; it is empty without a held-out set.

    `samples` is an npz of up to 1,000 `inputs` (n, ...), `predictions` (n, ...) of the saved model, and `labels` (n,) if
    they are known.
    """

    rounds: tuple[RoundResult, ...]
    best_round: int
    model_dir: Path
    holdout: Mapping[str, float]
    samples: Path | None
    seconds: float
    resumed_from: int
    clusters: Mapping[str, tuple[RoundResult, ...]] = field(default_factory=dict)
    rounds_per_cycle: int = 1

    def left_out(self, clusters: Iterable[str]) -> dict[str, list[int]]:
        """The cycles in which each of these clusters did not finish its rounds; without those that were always there."""
        missed = {}
        for name in clusters:
            done = {item.round for item in self.clusters.get(name, ())}
            missed[name] = [item.round for item in self.rounds if item.round * self.rounds_per_cycle not in done]
        return {name: cycles for name, cycles in missed.items() if cycles}


@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """Something that happened in a run: sandbox, started, resumed, round, cluster_round, learner_failed, learner_restarted,
    stopped_early, warning, exporting, finished."""

    kind: str
    message: str
    round: int = 0
    total: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


def run_training(
    job: TrainingJob,
    *,
    on_event: Callable[[TrainingEvent], None],
    cancelled: Callable[[], bool],
    launch: Launch | None = None,
    link: Link | None = None,
) -> TrainingResult:
    """Trains, goes on with, or just returns a run. Raises TrainingError (FL50xx); never leaves a process behind.

    `cancelled` is asked ten times a second; `on_event` is called in this thread, in order. `launch` starts the aggregator
    somewhere else than in a process of the ML environment: see `containers.in_containers`. With a `link` the learners are those
    that it leads to, and the job has no shards.
    """
    _prepare(job)
    if (done := read_result(job.run_dir, job.digest)) is not None:
        return done
    with link.open() if link else contextlib.nullcontext() as pipe:
        with _child(job, launch or partial(LocalProcess, link=pipe)) as child:
            error = child.watch(on_event, cancelled)
        if error is not None:
            raise error
    result = read_result(job.run_dir, job.digest)
    if result is None:
        raise _died(child.returncode, job.run_dir)
    return result


def read_result(run_dir: Path, digest: str) -> TrainingResult | None:
    """The result of a finished run of this digest; None if there is none, or not a whole one."""
    try:
        data = json.loads((run_dir / "result.json").read_bytes())
        if data["digest"] != digest or not (run_dir / "model" / "MLmodel").is_file():
            return None
        return TrainingResult(
            rounds=tuple(RoundResult(**item) for item in data["rounds"]),
            best_round=int(data["best_round"]),
            model_dir=run_dir / "model",
            holdout={str(name): float(value) for name, value in data["holdout"].items()},
            samples=run_dir / "samples.npz" if data["samples"] else None,
            seconds=float(data["seconds"]),
            resumed_from=int(data["resumed_from"]),
            clusters={str(name): tuple(RoundResult(**item) for item in found) for name, found in data.get("clusters", {}).items()},
            rounds_per_cycle=int(data.get("rounds_per_cycle", 1)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _prepare(job: TrainingJob) -> None:
    """Makes the run directory that of this job: what another digest left in it is removed."""
    path = job.run_dir / "job.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads(path.read_bytes())["digest"] != job.digest:
            shutil.rmtree(job.run_dir)
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(_plain(job), indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise TrainingError(
            "FL5042",
            f"The run directory cannot be written: {error.strerror}.",
            cure="Free some space or give the reconciler the right to write there.",
            transient=True,
        ) from error


def _plain(job: TrainingJob) -> dict[str, Any]:
    data = asdict(job)
    for name in ("repo_dir", "run_dir"):
        data[name] = str(data[name].resolve())
    data["python"] = str(job.python.absolute())
    data["shards"] = [str(shard.resolve()) for shard in job.shards]
    data["holdout"] = str(job.holdout.resolve()) if job.holdout else None
    for name in ("strategy_arguments", "root_strategy_arguments", "early_stop", "update_guard", "privacy", "simulation"):
        given = getattr(job, name)
        data[name] = None if given is None else dict(given)
    # A run has to be repeatable after a crash even if nobody cares for the seed: then its digest is the seed.
    data["seed"] = job.seed if job.seed is not None else int(job.digest[:8], 16)
    return data


@contextlib.contextmanager
def _child(job: TrainingJob, launch: Launch) -> Iterator[_Child]:
    child = _Child(job, launch)
    try:
        yield child
    finally:
        child.end()


class _Child:
    """The aggregator, its event pipe, its output, and the pipe whose end tells it that we are gone."""

    def __init__(self, job: TrainingJob, launch: Launch) -> None:
        self._run_dir = job.run_dir
        self._events, events_write = os.pipe()
        life_read, self._life = os.pipe()
        self._output, output_write = os.pipe()
        try:
            self._launched = launch(job, events_write, life_read, output_write)
        except BaseException:
            self._close()
            raise
        finally:
            os.close(events_write)
            os.close(life_read)
            os.close(output_write)

    @property
    def returncode(self) -> int | None:
        """How the child ended."""
        return self._launched.returncode

    def watch(self, on_event: Callable[[TrainingEvent], None], cancelled: Callable[[], bool]) -> TrainingError | None:
        """Passes events on until the child closes its pipe; returns the error that the child told of, if any."""
        told: TrainingError | None = None
        output = self._output
        with (
            selectors.DefaultSelector() as selector,
            _Log(self._run_dir / "events.jsonl", limit=_EVENTS_LIMIT) as record,
            _Log(self._run_dir / "child.log", limit=_LOG_LIMIT) as log,
        ):
            selector.register(self._events, selectors.EVENT_READ)
            selector.register(output, selectors.EVENT_READ)
            buffer = b""
            said = Stream(REDACTION)
            asked = 0.0
            while True:
                if time.monotonic() - asked >= _POLL:
                    asked = time.monotonic()
                    if cancelled():
                        return TrainingError(
                            "FL5001", "The training was cancelled.", cure="Nothing is to be done; it can be resumed."
                        )
                    if self._launched.fault is not None:
                        return self._launched.fault
                for key, _ in selector.select(_POLL):
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    if key.fd != self._events:
                        log.write(said.feed(chunk))
                        continue
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        record.write(mask(line.decode(errors="replace")).encode() + b"\n")
                        told = _tell(line, on_event) or told
                if self._events not in {key.fd for key in selector.get_map().values()}:
                    break
            self._launched.wait(5)
            os.set_blocking(output, False)
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(output, 1 << 16):
                    log.write(said.feed(chunk))
            log.write(said.flush())
            return self._launched.fault or told

    def end(self) -> None:
        """Ends what is left of it and closes the pipes."""
        self._launched.end()
        self._close()

    def _close(self) -> None:
        for fd in (self._events, self._life, self._output):
            os.close(fd)


class _Log:
    """What the child told, to a size: a chatty ML repo must not fill the disk, and a full disk must not end the run.

    The beginning is kept.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._file = path.open("ab", buffering=0)
        self._limit = limit
        self._left = max(0, limit - path.stat().st_size)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Writes what still fits and says once that the rest is dropped."""
        if not self._left:
            return
        with contextlib.suppress(OSError):
            self._file.write(chunk[: self._left])
            self._left = max(0, self._left - len(chunk))
            if not self._left:
                self._file.write(f"\n[longer than {self._limit:,} bytes; the rest is dropped]\n".encode())


def _tell(line: bytes, on_event: Callable[[TrainingEvent], None]) -> TrainingError | None:
    event = json.loads(line)
    if event["kind"] == "error":
        return _error(event["data"]["failure"])
    on_event(
        TrainingEvent(
            kind=event["kind"],
            message=event["message"],
            round=int(event["round"]),
            total=int(event["total"]),
            data=event["data"],
        )
    )
    return None


def _error(failure: Mapping[str, Any]) -> TrainingError:
    where = Where(str(failure["path"]), int(failure["line"])) if failure["path"] else None
    return TrainingError(
        str(failure["code"]),
        str(failure["cause"]),
        cure=str(failure["cure"]),
        where=where,
        transient=bool(failure["transient"]),
    )


def _died(status: int | None, run_dir: Path) -> TrainingError:
    how = f"signal {-status}" if status is not None and status < 0 else f"exit code {status}"
    tail = ""
    with contextlib.suppress(OSError, IndexError):
        lines = (run_dir / "child.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        tail = f" ({lines[-1][:200]})"
    return TrainingError(
        "FL5002",
        f"The training process ended with {how} and without a result{tail}.",
        cure="It is started again and goes on after its last finished round; child.log has its output.",
        transient=True,
    )
