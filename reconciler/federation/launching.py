"""Where the aggregator of a run is started: as a process of the ML environment here, or wherever another `Launch` puts it.

Invariant: what is started sees no environment variable of ours, and nothing of it is left after `end()`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from reconciler.actors import QUIET
from reconciler.errors import TrainingError
from reconciler.runtime_version import mlruntime_dir

if TYPE_CHECKING:
    from reconciler.federation.training import TrainingJob


def child_environment(job: TrainingJob) -> dict[str, str]:
    """The whole environment of a run's processes."""
    return environment_of(job.python, job.run_dir.resolve(), job.vcpus)


def environment_of(python: Path, private: Path, vcpus: int) -> dict[str, str]:
    """The whole environment of a process in the ML environment: nothing of the reconciler's own is passed on."""
    threads = str(max(1, vcpus))
    return {
        "PATH": f"{python.absolute().parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(private),
        "TMPDIR": str(private),
        "PYTHONPATH": str(mlruntime_dir()),
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), threads),
        "TF_NUM_INTRAOP_THREADS": threads,
        **QUIET,
    }


def no_interpreter(error: OSError) -> TrainingError:
    """The error for an ML environment whose interpreter does not start."""
    return TrainingError(
        "FL5002",
        f"The ML environment's interpreter cannot be started: {error.strerror}.",
        cure="Remove the environment from the cache; it is built again.",
        transient=True,
    )


class Link(Protocol):
    """The way to learners that are not beside the aggregator: it inherits the pipe that `open` gives."""

    def open(self) -> contextlib.AbstractContextManager[int]:
        """The pipe's file descriptor, for as long as the run takes. Raises TrainingError."""


class Launched(Protocol):
    """A started aggregator."""

    @property
    def returncode(self) -> int | None:
        """How it ended."""

    @property
    def fault(self) -> TrainingError | None:
        """Why it could not go on, where whoever started it knows better than it does."""

    def wait(self, timeout: float) -> None:
        """Waits for its end for a while."""

    def end(self) -> None:
        """Ends it and all that it started."""


Launch = Callable[["TrainingJob", int, int, int], Launched]
"""Starts an aggregator, given the write end of its events, the read end of its life pipe and the write end of its output; all of
them stay the caller's. Raises TrainingError."""


class LocalProcess:
    """The aggregator as a process of the ML environment, in a process group of its own."""

    fault: TrainingError | None = None

    def __init__(self, job: TrainingJob, events: int, life: int, output: int, *, link: int | None = None) -> None:
        inherited = () if link is None else (link,)
        arguments = [str(job.python), "-m", "flops_runtime", str(job.run_dir.resolve() / "job.json")]
        try:
            self._process = subprocess.Popen(
                [*arguments, str(events), str(life), *(f"link={fd}" for fd in inherited)],
                cwd=mlruntime_dir(),
                env=child_environment(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(events, life, *inherited),
                start_new_session=True,
            )
        except OSError as error:
            raise no_interpreter(error) from error

    @property
    def returncode(self) -> int | None:
        """How it ended."""
        return self._process.returncode

    def wait(self, timeout: float) -> None:
        """Waits for its end for a while."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def end(self) -> None:
        """Kills what is left of the process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
