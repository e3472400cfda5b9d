"""Register: the model that met its gate is a version in the registry, with the alias `development`."""

from __future__ import annotations

from reconciler.plan import DEVELOPMENT
from reconciler.stages.model import Outcome, Work


def run(work: Work) -> Outcome:
    """Idempotent by digest: a version that is there keeps its number."""
    tracking = work.tools.tracking(work.desired.customer)
    work.version = tracking.register(
        customer=work.desired.customer,
        project=work.desired.name,
        digest=work.desired.run_digest,
        gate_digest=work.desired.gate_digest,
        run_id=work.run_id or (work.version.run_id if work.version else ""),
        alias=DEVELOPMENT,
    )
    return Outcome("done", f"{work.version.name} version {work.version.version}, alias {DEVELOPMENT}")
