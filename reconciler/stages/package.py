"""Package: the model bundle – model, samples for verification, dependency lock – is on disk, addressed by the run digest.

Until images are assembled the bundle and its locked environment are what is deployed.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from reconciler.environments import DependencyReport, Lock
from reconciler.errors import TrackingError
from reconciler.stages.model import Outcome, Work
from reconciler.tracking import ModelVersion

EXTRA = "flops"
"""Folder inside the model directory for what serving needs beside the model; it is registered with the model."""


def run(work: Work) -> Outcome:
    """Fetch the registered model unless this digest's bundle is there as recorded, and make its environment ready."""
    destination = work.tools.bundles / work.desired.run_digest[:32]
    before = destination.stat().st_ino if destination.is_dir() else 0
    work.bundle = work.tools.tracking(work.desired.customer).download(registered(work), destination)
    reused = work.bundle.stat().st_ino == before
    if work.environment is None:
        lock = read_lock(destination)
        work.environment = work.tools.environments.ensure(lock, on_line=lambda line: work.tell("build", line))
    return Outcome(
        "reused" if reused else "done",
        "model bundle with its locked environment (no image yet: the bundle is what is deployed)",
    )


def registered(work: Work) -> ModelVersion:
    """The version of this digest, as registered now or before."""
    if work.version is None:
        versions = work.tools.tracking(work.desired.customer).versions(work.desired.customer)
        wanted = [item for item in versions if item.digest == work.desired.run_digest]
        if not wanted:
            raise TrackingError(
                "FL6020",
                f"The registry has no version with digest {work.desired.run_digest[:12]} any more.",
                cure="The next cycle trains it again.",
                transient=True,
            )
        work.version = wanted[0]
    return work.version


def write_extras(model_dir: Path, lock: Lock, samples: Path | None) -> None:
    """Put the lock and the samples beside the model, before it is recorded."""
    extra = model_dir / EXTRA
    extra.mkdir(exist_ok=True)
    if samples is not None:
        (extra / "samples.npz").write_bytes(samples.read_bytes())
    content = {
        "digest": lock.digest,
        "python": lock.python,
        "requirements": lock.requirements,
        "lines": lock.report.lines,
        "warnings": lock.report.warnings,
    }
    (extra / "lock.json").write_bytes(orjson.dumps(content))


def read_lock(bundle: Path) -> Lock:
    """The lock of a bundle."""
    content = orjson.loads((bundle / EXTRA / "lock.json").read_bytes())
    report = DependencyReport(tuple(content["lines"]), tuple(content["warnings"]))
    return Lock(content["digest"], content["python"], content["requirements"], report)
