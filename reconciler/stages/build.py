"""Build: the environment of the ML repo's dependencies is there, and the repo keeps the contract in it.

With `runtime: docker` the images of learners and aggregator are made first, and the check runs in a container of the learners':
then none of the ML repo's code runs outside of one.
"""

from __future__ import annotations

from pathlib import Path

from reconciler.actors import ActorImages
from reconciler.digests import digest_of, short
from reconciler.environments import Lock
from reconciler.federation.boxed_check import CheckedRepo, check_in_container
from reconciler.federation.contract_check import ContractReport, check_contract, checked_once
from reconciler.images.assemble import FOLDERS, ImageRequest
from reconciler.images.bytecode import VARIABLE as BYTECODE
from reconciler.images.interpreter import host_platform
from reconciler.images.store import image_name
from reconciler.runtime_version import mlruntime_digest
from reconciler.spec import plan_digest
from reconciler.stages.model import Outcome, Work

SAMPLE = "train.arrow"
CODE_IN_IMAGE = Path("/", FOLDERS["learner"])
"""Where the ML repo is in the images of learners and aggregator."""


def run(work: Work) -> Outcome:
    """Lock and build, or reuse; the report says what was translated or dropped."""
    if work.repo_dir is None:
        work.repo_dir = work.declared.checkout()

    def tell(line: str) -> None:
        work.tell("build", line)

    work.lock = work.tools.environments.lock(work.repo_dir, flavor=str(work.declared.sla.ml_model_flavor), on_line=tell)
    for warning in work.lock.report.warnings:
        work.tell("warning", warning)
    work.environment = work.tools.environments.ensure(work.lock, on_line=tell)
    verb = "built" if work.environment.built else "cached"
    if work.in_containers:
        _images(work, work.lock, work.repo_dir)
    checked = _check(work, work.repo_dir)
    return Outcome(
        "done" if work.environment.built else "reused",
        f"environment {short(work.lock.digest)} for Python {work.lock.python} ({verb}){checked}",
        {
            "lock": {
                "digest": work.lock.digest,
                "python": work.lock.python,
                "report": [*work.lock.report.lines, *work.lock.report.warnings],
            }
        },
    )


def _images(work: Work, lock: Lock, repo_dir: Path) -> None:
    """The images of the learners and of the aggregator, in the engine."""
    desired, declared = work.desired, work.declared
    ml_repo = declared.ml_repo
    for kind in ("learner", "aggregator"):
        plan = declared.build_plans[kind]
        digest = digest_of([kind, plan_digest(plan), lock.digest, ml_repo["tree"], mlruntime_digest()])
        request = ImageRequest(
            plan=plan,
            lock=lock,
            platforms=(host_platform(),),
            content=repo_dir,
            created=declared.committed,
            source=ml_repo["url"],
            revision=ml_repo["commit"],
            version=digest,
            title=f"{desired.name} {kind}",
            labels={"dev.flops.project": desired.name, "dev.flops.customer": desired.customer},
            name=image_name(desired.customer, f"{desired.name}-{kind}", digest),
        )
        image = work.tools.images.build(request, tell=lambda line: work.tell("build", line), cancelled=work.cancelled)
        work.images[kind] = work.tools.place(image, work.cancelled)


def actor_images(work: Work) -> ActorImages:
    """What the containers of this project's training are made of; byte code of the same sources spares each its compiling."""
    folder = work.tools.bytecode(work.environment, work.lock) if work.environment and work.lock else None
    return ActorImages(
        learner=work.image("learner"),
        aggregator=work.image("aggregator"),
        binds=(folder,) if folder else (),
        env={BYTECODE: str(folder)} if folder else {},
    )


def _check(work: Work, repo_dir: Path) -> str:
    """Exercise the ML repo once per content; says what that took. Raises TrainingError."""
    sample = work.dataset.directory / SAMPLE if work.dataset else None
    if work.lock is None or work.environment is None or work.dataset is None or sample is None or not sample.is_file():
        return ""
    python, flavor = work.environment.python, str(work.declared.sla.ml_model_flavor)
    started = work.tools.clock()
    inputs = {
        "ml_repo": work.declared.ml_repo["tree"],
        "subdir": work.declared.ml_repo["subdir"],
        "lock": work.lock.digest,
        "data": work.dataset.digest,
        "flavor": flavor,
    }
    limits = work.declared.sla.resource_constraints

    def check() -> ContractReport:
        if not work.in_containers:
            return check_contract(python, repo_dir, sample, flavor, cancelled=work.cancelled)
        asked = CheckedRepo(work.desired.name, CODE_IN_IMAGE, sample, flavor, limits.memory, limits.vcpus)
        return check_in_container(work.tools.actors(), actor_images(work), asked, cancelled=work.cancelled)

    report, known = checked_once(work.tools.checks, inputs, check)
    if known:
        return ""
    work.timings["check"] = work.tools.clock() - started
    return f"; the ML repo keeps the contract ({report.size:,} parameters, {work.timings['check']:.1f} s)"
