"""Build: the environment of the ML repo's dependencies is there, and the repo keeps the contract in it."""

from __future__ import annotations

from pathlib import Path

from reconciler.digests import digest_of, short
from reconciler.environments import Lock
from reconciler.federation.contract_check import check_contract, checked_once
from reconciler.images.assemble import ImageRequest
from reconciler.images.interpreter import host_platform
from reconciler.images.store import image_name
from reconciler.runtime_version import mlruntime_digest
from reconciler.spec import plan_digest
from reconciler.stages.model import Outcome, Work

SAMPLE = "train.arrow"


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
    checked = _check(work, work.repo_dir)
    if work.in_containers:
        _images(work, work.lock, work.repo_dir)
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
    report, known = checked_once(
        work.tools.checks, inputs, lambda: check_contract(python, repo_dir, sample, flavor, cancelled=work.cancelled)
    )
    if known:
        return ""
    work.timings["check"] = work.tools.clock() - started
    return f"; the ML repo keeps the contract ({report.size:,} parameters, {work.timings['check']:.1f} s)"
