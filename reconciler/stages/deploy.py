"""Deploy: the inference service runs with the declared model, verified before it takes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.digests import short
from reconciler.errors import ServingError
from reconciler.images.bytecode import VARIABLE as BYTECODE
from reconciler.plan import DEPLOY_STEP
from reconciler.runtime_version import mlruntime_dir
from reconciler.runtimes.model import ServiceSpec
from reconciler.serving.verify import verify
from reconciler.stages.model import Outcome, Work
from reconciler.stages.package import EXTRA, read_lock

KIND = "inference"
MODEL_IN_IMAGE = "/model"
PROCESS_START, CONTAINER_START = 60.0, 180.0
"""Seconds; a container imports its libraries afresh, on the CPUs that it may have."""
SERVER_MB = 400
"""What interpreter, libraries and web server take: `memory` is what a model may take beside them."""


@dataclass(frozen=True, slots=True)
class Place:
    """What differs between a server that is a process and one that is a container."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    image: str | None = None
    readable: tuple[Path, ...] = ()


def service_name(project: str) -> str:
    """The runtime's name for a project's inference service."""
    return f"{KIND}-{project}"


def run(work: Work) -> Outcome:
    """Start or roll over the service; an old one stays when the new one is not healthy or answers wrongly."""
    name = service_name(work.desired.name)
    if DEPLOY_STEP not in work.desired.steps:
        work.tools.runtime.remove(name)
        return Outcome("done", "the service is removed")
    if work.bundle is None or work.environment is None:
        raise ServingError("FL7092", "There is no bundle to deploy.", cure="Run the stage package first.")
    deployment = work.declared.sla.deployment
    version = str(work.version.version) if work.version else ""
    about = ("--project", work.desired.name, "--version", work.desired.run_digest)
    own = {name: value for name, value in deployment.environment.items() if isinstance(value, str)} if deployment else {}
    # Read here and nowhere else, and handed to the runtime alone.
    named = deployment.secrets() if deployment else {}
    secrets = {variable: work.tools.secret(work.desired.customer, name) for variable, name in named.items()}
    if work.in_containers:
        argv: tuple[str, ...] = ("python", "-m", "flops_runtime.serve", "--model", MODEL_IN_IMAGE, "--socket", "{socket}", *about)
        lock = read_lock(work.bundle)
        folder = work.tools.bytecode(work.environment, lock)
        place = Place(argv, {BYTECODE: str(folder), **own}, work.image("inference"), (folder,))
    else:
        argv = (str(work.environment.python), "-m", "flops_runtime.serve", "--model", str(work.bundle), *about)
        place = Place(argv, {"PYTHONPATH": str(mlruntime_dir()), **own})
    asked = deployment.resources if deployment else None
    limits = asked or work.declared.sla.resource_constraints
    spec = ServiceSpec(
        name=name,
        argv=place.argv,
        env=place.env,
        secrets=secrets,
        image=place.image,
        readable=place.readable,
        memory_mb=limits.memory + SERVER_MB if place.image else asked.memory if asked else None,
        vcpus=float(limits.vcpus) if place.image else None,
        cwd=work.bundle,
        port=deployment.port if deployment else None,
        health_path="/health",
        labels={
            "flops.kind": KIND,
            "flops.project": work.desired.name,
            "flops.digest": work.desired.run_digest,
            "flops.serving": work.desired.serving_digest,
            "flops.instance": work.tools.instance,
            "flops.version": version,
            "flops.image": work.packaged.digest if work.packaged else "",
        },
        socket="inherited",
        start_timeout=CONTAINER_START if place.image else PROCESS_START,
    )

    work.service = work.tools.runtime.apply(spec, verify=lambda address: _verify_before_takeover(work, address))
    return Outcome(
        "done",
        f"version {version or short(work.desired.run_digest)} answers at {work.service.address}",
        {"service": {"address": work.service.address, "digest": work.desired.run_digest}},
    )


def _verify_before_takeover(work: Work, address: str) -> None:
    samples = (work.bundle or work.run_dir) / EXTRA / "samples.npz"
    if not samples.is_file():
        return
    started = work.tools.clock()
    work.verification = verify(address, samples, work.desired.run_digest)
    work.timings["verify"] = work.tools.clock() - started
    if not work.verification.passed:
        raise ServingError(
            "FL7093",
            f"The new version answers wrongly: {work.verification.reason}.",
            cure="The old version stays in service. Compare the model's own predictions with `flops test-inference`.",
        )
