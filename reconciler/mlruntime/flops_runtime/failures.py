"""Failures as they cross process boundaries: a code, a cause, a cure and a place in the ML repo.

The reconciler's error classes are not here (this code runs in the ML environment); the codes are the same, and the
reconciler turns a `Failure` that reaches it into its own `TrainingError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from pathlib import Path
from typing import Any


class Failure(Exception):  # noqa: N818 - it is told, not raised, most of the time
    """Something that a user has to know: with a stable code, one sentence of cause and one of cure."""

    def __init__(self, code: str, cause: str, *, cure: str, path: str = "", line: int = 0, transient: bool = False) -> None:
        super().__init__(cause)
        self.code = code
        self.cause = cause
        self.cure = cure
        self.path = path
        self.line = line
        self.transient = transient

    def to_dict(self) -> dict[str, Any]:
        """The failure as flat JSON."""
        return {
            "code": self.code,
            "cause": self.cause,
            "cure": self.cure,
            "path": self.path,
            "line": self.line,
            "transient": self.transient,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Failure:
        """The failure that `to_dict` gave; unknown or wrong fields are taken as text."""
        return cls(
            str(data.get("code", "FL5020")),
            str(data.get("cause", "")),
            cure=str(data.get("cure", "")),
            path=str(data.get("path", "")),
            line=int(data.get("line", 0)),
            transient=bool(data.get("transient", False)),
        )


def user_place(error: BaseException, repo_dir: Path) -> tuple[str, int]:
    """The innermost line of the ML repo in an exception's traceback, as (path in the repo, line); ("", 0) if none."""
    root = repo_dir.resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(root):
        return str(Path(error.filename).relative_to(root)), error.lineno or 0
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            return str(path.relative_to(root)), frame.lineno or 0
    return "", 0


def user_failure(error: BaseException, code: str, what: str, repo_dir: Path, work_dir: Path) -> Failure:
    """The failure that an exception out of the user's code means; `what` names the step, as in "`fit_model` raised"."""
    if isinstance(error, Failure):
        return error
    path, line = user_place(error, repo_dir)
    if isinstance(error, MemoryError):
        return Failure(
            "FL5022",
            f"The ML repo ran out of memory: {what} MemoryError.",
            cure="Give it more with `resource_constraints.memory`, or load less data at once.",
            path=path,
            line=line,
        )
    if is_disk_full(error, work_dir):
        return no_space(path, line)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EXDEV):
        return _denied(error, what, work_dir, path, line)
    text = " ".join(str(error).split()) or "no message"
    return Failure(
        code,
        f"{what} {type(error).__name__}: {text[:500]}.".replace("..", "."),
        cure="Mend the ML repo's code at this line and commit it." if path else "Mend the ML repo's code and commit it.",
        path=path,
        line=line,
    )


def is_disk_full(error: BaseException, directory: Path) -> bool:
    """Whether there was no space for a file: said by the exception or one that it came from, or by the disk itself.

    The disk is asked since libraries hide the reason: MLflow says of a file that it "cannot be copied", whatever the cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    with contextlib.suppress(OSError):
        return os.statvfs(directory).f_bavail == 0
    return False


def no_space(path: str = "", line: int = 0) -> Failure:
    """What a full disk is told as."""
    return Failure(
        "FL5042",
        "There is no space left on the device for the training's files.",
        cure="Free some space; the run goes on after its last finished round.",
        path=path,
        line=line,
        transient=True,
    )


def _denied(error: OSError, what: str, work_dir: Path, path: str, line: int) -> Failure:
    target = error.filename2 or error.filename
    if target is None:
        return Failure(
            "FL5024",
            f"{what} {type(error).__name__}: {error.strerror or error}; the ML repo's code has no network.",
            cure="Take the data from `load_dataset()` and put everything else into the ML repo.",
            path=path,
            line=line,
        )
    return Failure(
        "FL5023",
        f"The ML repo wrote outside its directory (or read what is not its own): {target}.",
        cure=f"Write below the working directory only (here {work_dir.name}/), or to a temporary file.",
        path=path,
        line=line,
    )
