"""Is the ML repo right? Asked once per content, before anything is built or trained from it.

The check itself runs in the ML environment (`flops_runtime.check`), in a process of its own with a time limit; the reconciler
never imports the repo. A repo that passed is remembered by everything that the answer depends on, so it costs a project once.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        spec = {
            "repo_dir": str(repo_dir.resolve()),
            "work_dir": str(folder / "work"),
            "data": str(sample.resolve()),
            "flavor": flavor,
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        with (folder / "log").open("w+b") as log:
            return _run(python, folder, log, limit, environment_of(python, folder, vcpus), cancelled)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(
    python: Path, folder: Path, log: Any, limit: float, environment: Mapping[str, str], cancelled: Callable[[], bool]
) -> ContractReport:
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [str(python.absolute()), "-m", "flops_runtime.check", str(folder / "spec.json"), str(write)],
            cwd=mlruntime_dir(), env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(write,),
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        os.close(read)
        raise no_interpreter(error) from error
    finally:
        os.close(write)
    try:
        told, step, over = _listen(read, time.monotonic() + limit, cancelled)
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    if "report" in told:
        return _report(told["report"])
    if "failure" in told:
        raise _failure(told["failure"])
    if over and cancelled():
        raise TrainingError("FL5001", "The check of the ML repo was cancelled.", cure="Nothing is to be done.")
    log.seek(0)
    said = " ".join(log.read()[-_LAST_WORDS:].decode(errors="replace").split())
    where = Where("model_manager.py")
    if over:
        raise TrainingError(
            "FL5503",
            f"`{step}` did not return within {limit:g} s on a small sample of the data.",
            cure="Look for a loop that does not end, or for a wait for a network that is not there.",
            where=where,
        )
    raise TrainingError(
        "FL5504",
        f"The process ended in `{step}` with status {status}." + (f" It said: {said}" if said else ""),
        cure="Signal 9 means that it took too much memory; else mend what it names.",
        where=where,
    )


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
