"""Build: the ML repo's dependencies are locked, and the environment of that lock is there."""

from __future__ import annotations

from reconciler.digests import short
from reconciler.stages.model import Outcome, Work


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
    return Outcome(
        "done" if work.environment.built else "reused",
        f"environment {short(work.lock.digest)} for Python {work.lock.python} ({verb})",
        {
            "lock": {
                "digest": work.lock.digest,
                "python": work.lock.python,
                "report": [*work.lock.report.lines, *work.lock.report.warnings],
            }
        },
    )
