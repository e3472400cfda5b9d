"""Package: the registered model is on disk as it was recorded, and the image that serves it is where images belong.

The bundle – model, samples for verification, dependency lock, where it came from – is addressed by the run digest; the image by
the run, the build plan, the platforms and the runtime's code. Both are made once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from reconciler.digests import short
from reconciler.environments import DependencyReport, Lock
from reconciler.errors import TrackingError
from reconciler.images.assemble import ImageRequest
from reconciler.images.model import Platform
from reconciler.images.store import ProjectImage, image_name
from reconciler.plan import BUILD_STEP, DEPLOY_STEP
from reconciler.stages.model import Outcome, Work
from reconciler.tracking import ModelVersion

EXTRA = "flops"
"""Folder inside the model directory for what serving needs beside the model; it is registered with the model."""


def run(work: Work) -> Outcome:
    """Fetch the model unless this digest's bundle is there as recorded, make its image, and its environment ready."""
    destination = work.tools.bundles / work.desired.run_digest[:32]
    before = destination.stat().st_ino if destination.is_dir() else 0
    work.bundle = work.tools.tracking(work.desired.customer).download(registered(work), destination)
    reused = work.bundle.stat().st_ino == before
    lock = read_lock(work.bundle)
    if work.environment is None:
        work.environment = work.tools.environments.ensure(lock, on_line=lambda line: work.tell("build", line))
    if BUILD_STEP not in work.desired.steps:
        return Outcome("reused" if reused else "done", "model bundle with its locked environment")
    image = work.tools.images.build(
        _request(work, lock, work.bundle),
        model=f"{registered(work).name}@{registered(work).version}",
        tell=lambda line: work.tell("build", line),
        cancelled=work.cancelled,
    )
    work.packaged = image
    if work.in_containers and DEPLOY_STEP in work.desired.steps:
        work.images["inference"] = work.tools.place(image, work.cancelled)
    return Outcome("reused" if image.reused else "done", _said(image), {"image": _told(image)})


def _request(work: Work, lock: Lock, bundle: Path) -> ImageRequest:
    desired, declared = work.desired, work.declared
    origin = read_origin(bundle)
    return ImageRequest(
        plan=declared.build_plans["inference"],
        lock=lock,
        platforms=tuple(Platform.parse(text) for text in sorted(declared.sla.supported_platforms)),
        content=bundle,
        created=int(origin.get("time", 0)),
        source=str(origin.get("source", "")),
        revision=str(origin.get("revision", "")),
        version=desired.run_digest,
        title=desired.name,
        labels={"dev.flops.project": desired.name, "dev.flops.customer": desired.customer, "dev.flops.digest": desired.run_digest},
        name=image_name(desired.customer, desired.name, desired.image_digest),
    )


def _said(image: ProjectImage) -> str:
    what = f"image {image.reference or image.name} ({', '.join(image.platforms)})"
    return f"{what} is there" if image.reused else f"{what}, {image.made / 1e6:.1f} MB of it new"


def _told(image: ProjectImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "reference": image.reference,
        "digest": image.digest,
        "platforms": list(image.platforms),
    }


def registered(work: Work) -> ModelVersion:
    """The version of this digest, as registered now or before."""
    if work.version is None:
        versions = work.tools.tracking(work.desired.customer).versions(work.desired.customer)
        wanted = [item for item in versions if item.digest == work.desired.run_digest]
        if not wanted:
            raise TrackingError(
                "FL6020",
                f"The registry has no version with digest {short(work.desired.run_digest)} any more.",
                cure="The next cycle trains it again.",
                transient=True,
            )
        work.version = wanted[0]
    return work.version


def write_extras(model_dir: Path, lock: Lock, samples: Path | None, origin: Mapping[str, Any]) -> None:
    """Put the lock, the samples and where the model came from beside it, before it is recorded.

    `origin`: `source` and `revision` of the ML repo, and `time`, that of the commit (seconds since 1970) that first asked for it.
    An image of the model has that time, so that it is the same whenever it is made.
    """
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
    (extra / "origin.json").write_bytes(orjson.dumps(dict(origin)))


def read_lock(bundle: Path) -> Lock:
    """The lock of a bundle. Raises TrackingError FL6011 when it has none that can be read."""
    try:
        content = orjson.loads((bundle / EXTRA / "lock.json").read_bytes())
        report = DependencyReport(tuple(map(str, content["lines"])), tuple(map(str, content["warnings"])))
        return Lock(str(content["digest"]), str(content["python"]), str(content["requirements"]), report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrackingError(
            "FL6011",
            "The registered model has no lock of its dependencies that can be read.",
            cure="Set `rerun` in the SLA to train it again.",
        ) from error


def read_origin(bundle: Path) -> Mapping[str, Any]:
    """Where a bundle's model came from; empty where that was not written down, or cannot be read."""
    try:
        content = orjson.loads((bundle / EXTRA / "origin.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
