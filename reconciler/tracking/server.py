"""The embedded tracking server: one per customer, SQLite and local artifacts, on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

from reconciler.runtimes.model import ServiceSpec
from reconciler.tracking.model import safe_folder

KIND = "tracking"


def tracking_root(customer: str, root: Path) -> Path:
    """Where a customer's database and artifacts are."""
    return root.resolve() / safe_folder(customer)


def tracking_service(customer: str, root: Path, *, instance: str) -> ServiceSpec:
    """The service that is a customer's tracking server."""
    folder = tracking_root(customer, root)
    folder.mkdir(parents=True, exist_ok=True)
    return ServiceSpec(
        name=f"{KIND}-{safe_folder(customer)}",
        # -P: the modules beside that file are not to be taken for others of the same names.
        argv=(sys.executable, "-P", str(Path(__file__).with_name("mlflow_server.py")), "--port", "{port}"),
        cwd=folder,
        env={
            "HOME": str(folder),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # Only this machine: a page of another name that leads here (DNS rebinding), or of another origin, is refused.
            "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*,localhost:*",
            "GIT_PYTHON_REFRESH": "quiet",
        },
        health_path="/health",
        labels={"flops.kind": KIND, "flops.customer": customer, "flops.instance": instance},
        socket="own",
        start_timeout=120,
    )
