"""What the operating system refuses, as errors that a user can act on: no space, no right, no such folder.

Everything else that it says is an error of ours, and stays one.
"""

from __future__ import annotations

import errno
import os

from reconciler.errors import ControllerError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def disk_is_full(error: OSError) -> bool:
    """Whether there is no space, or no quota, left."""
    return error.errno in _FULL


def refusal(error: OSError) -> ControllerError | None:
    """For work that is tried again: a full disk (FL9002), or a file that this user may not use (FL9007), without its name."""
    if disk_is_full(error):
        return ControllerError(
            "FL9002",
            "The disk is full.",
            cure="Free some space, for instance with `flops stop` and by removing old runs; the work goes on by itself.",
            transient=True,
        )
    if error.errno in _FORBIDDEN and error.filename is not None:
        return ControllerError(
            "FL9007",
            f"A file or folder of the reconciler cannot be used: {os.strerror(error.errno)}.",
            cure="`flops logs` names it in the traceback, `flops doctor` looks for such; let the reconciler's user use it.",
            transient=True,
        )
    return None


def named(error: OSError) -> ControllerError | None:
    """For somebody at a terminal: what of a file cannot be done; None where the error is about no file."""
    if error.filename is None or error.errno is None:
        return refusal(error)
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file that is open"
    cause = f"{path} cannot be used: {os.strerror(error.errno)}."
    return ControllerError("FL9007", cause, cure="Name another one, or let the user that you are use it.")
