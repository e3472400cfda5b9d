"""The scribe: the process beside ours that has MLflow's client, and writes with it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from reconciler.aside import Aside
from reconciler.errors import TrackingError
from reconciler.tracking.rest import LOOPBACK

WRITING = "reconciler.tracking.writing"
_AGAIN = "It is started again, and what it was writing is written anew; nothing is recorded twice."
_SETTINGS = {
    # Few, quick retries: the reconciler has its own.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What the user has set stays."""


def gone(reason: str) -> TrackingError:
    """For a scribe that is gone in the middle of a call."""
    return TrackingError("FL6022", f"The process that writes to MLflow is gone: {reason}.", cure=_AGAIN, transient=True)


def environment() -> Mapping[str, str]:
    """Ours, credentials and proxies included, with settings for MLflow; a proxy has no way to this machine's loopback."""
    found = {**_SETTINGS, **os.environ}
    around = found.get("NO_PROXY") or found.get("no_proxy") or ""
    if around != "*":
        hosts = [host for host in around.split(",") if host]
        found["NO_PROXY"] = found["no_proxy"] = ",".join([*hosts, *sorted(LOOPBACK - {*hosts})])
    return found


SCRIBE = Aside(gone, environment)
"""The one of this process: projects that write at the same time share it."""
