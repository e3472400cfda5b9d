"""Is the ML repo right? Asked once per content, before anything is built or trained from it.

The check itself runs in the ML environment (`flops_runtime.check`), in a process of its own with a time limit, or in a container
(`boxed_check`); the reconciler never imports the repo. A repo that passed is remembered by everything that the answer depends on,
so it costs a project once.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from reconciler.digests import digest_of
from reconciler.errors import TrainingError, Where
from reconciler.federation.launching import environment_of, no_interpreter
from reconciler.runtime_version import mlruntime_digest, mlruntime_dir

LIMIT_SECONDS = 120.0
_LAST_WORDS = 300


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What the check saw: rows of the sample, seconds by method, (dtype, shape) of each parameter, names of the metrics."""

    rows: int
    seconds: Mapping[str, float]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    metrics: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many numbers the parameters are."""
        total = 0
        for _, shape in self.parameters:
            count = 1
            for length in shape:
                count *= length
            total += count
        return total


def checked_once(cache: Path, inputs: Mapping[str, str], check: Callable[[], ContractReport]) -> tuple[ContractReport, bool]:
    """The report of these inputs and whether it was there already; only what passed is remembered. Raises as `check` does."""
    path = cache / f"{digest_of([mlruntime_digest(), dict(inputs)])[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _report(json.loads(path.read_bytes())), True
    report = check()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no result
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        content = {"rows": report.rows, "seconds": dict(report.seconds), "parameters": report.parameters, "metrics": report.metrics}
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
    return report, False


def check_contract(
    python: Path,
    repo_dir: Path,
    sample: Path,
    flavor: str,
    limit: float = LIMIT_SECONDS,
    *,
    vcpus: int = 1,
    cancelled: Callable[[], bool] = lambda: False,
) -> ContractReport:
    """Exercises an ML repo on some rows of `sample`, an Arrow stream. Raises TrainingError with file, line and method.

    The codes are those that a run would give (FL5010–FL5018, FL5022–FL5024), and FL5501–FL5504.
    """
    folder = Path(tempfile.mkdtemp(prefix="flops-check-"))
    try:
        (folder / "work").mkdir()
        (folder / "spec.json").write_text(json.dumps(check_spec(repo_dir.resolve(), folder / "work", sample, flavor)))
        with (folder / "log").open("w+b") as log, _process(python, folder, log, environment_of(python, folder, vcpus)) as process:
            return await_report(process, limit, cancelled)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_spec(repo_dir: Path, work_dir: Path, sample: Path, flavor: str) -> dict[str, str]:
    """What `flops_runtime.check` is to do."""
    return {"repo_dir": str(repo_dir), "work_dir": str(work_dir), "data": str(sample.resolve()), "flavor": flavor}


class Checking(Protocol):
    """A check that was started."""

    @property
    def told(self) -> int:
        """The descriptor on which it tells what it does."""

    def end(self) -> int:
        """Ends it; its status. Raises TrainingError where that says why it could not be."""

    def said(self) -> str:
        """The end of what it printed."""


def await_report(checking: Checking, limit: float, cancelled: Callable[[], bool]) -> ContractReport:
    """The report of a started check, which has ended then. Raises TrainingError."""
    try:
        told, step, over = _listen(checking.told, time.monotonic() + limit, cancelled)
    finally:
        status = checking.end()
    if "report" in told:
        return _report(told["report"])
    if "failure" in told:
        raise _failure(told["failure"])
    if over and cancelled():
        raise TrainingError("FL5001", "The check of the ML repo was cancelled.", cure="Nothing is to be done.")
    where = Where("model_manager.py")
    if over:
        raise TrainingError(
            "FL5503",
            f"`{step}` did not return within {limit:g} s on a small sample of the data.",
            cure="Look for a loop that does not end, or for a wait for a network that is not there.",
            where=where,
        )
    said = checking.said()
    raise TrainingError(
        "FL5504",
        f"The process ended in `{step}` with status {status}." + (f" It said: {said}" if said else ""),
        cure="Signal 9 means that it took too much memory; else mend what it names.",
        where=where,
    )


def last_words(log: IO[bytes]) -> str:
    """The end of a log, on one line."""
    log.seek(0)
    return " ".join(log.read()[-_LAST_WORDS:].decode(errors="replace").split())


@contextlib.contextmanager
def _process(python: Path, folder: Path, log: IO[bytes], environment: Mapping[str, str]) -> Iterator[_Process]:
    told, write = os.pipe()
    try:
        process = subprocess.Popen(
            [str(python.absolute()), "-m", "flops_runtime.check", str(folder / "spec.json"), str(write)],
            cwd=mlruntime_dir(), env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write,),
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        os.close(told)
        raise no_interpreter(error) from error
    finally:
        os.close(write)
    try:
        yield _Process(told, process, log)
    finally:
        os.close(told)


@dataclass(frozen=True, slots=True)
class _Process:
    """A check as a process of the ML environment, in a group of its own."""

    told: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def end(self) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def said(self) -> str:
        return last_words(self.log)


def _listen(read: int, deadline: float, cancelled: Callable[[], bool]) -> tuple[dict[str, Any], str, bool]:
    """The last that was told, the step that was begun last, and whether there was no end in time."""
    buffer, step = b"", "start"
    while (left := deadline - time.monotonic()) > 0 and not cancelled():
        if not select.select([read], [], [], min(left, 0.1))[0]:
            continue
        chunk = os.read(read, 1 << 16)
        if not chunk:
            return {}, step, False
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            told: dict[str, Any] = json.loads(line)
            if "step" not in told:
                return told, step, False
            step = str(told["step"])
    return {}, step, True


def _report(content: Mapping[str, Any]) -> ContractReport:
    return ContractReport(
        rows=int(content["rows"]),
        seconds={str(name): float(value) for name, value in content["seconds"].items()},
        parameters=tuple((str(dtype), tuple(int(length) for length in shape)) for dtype, shape in content["parameters"]),
        metrics=tuple(str(name) for name in content["metrics"]),
    )


def _failure(failure: Mapping[str, Any]) -> TrainingError:
    where = Where(str(failure["path"]), int(failure["line"])) if failure["path"] else None
    return TrainingError(
        str(failure["code"]),
        f"The ML repo does not keep the contract: {failure['cause']}",
        cure=str(failure["cure"]),
        where=where,
        transient=bool(failure["transient"]),
    )
