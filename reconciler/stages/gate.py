"""Gate: may this model be registered? A run that may not is kept, marked, and nothing else happens."""

from __future__ import annotations

from reconciler.digests import short
from reconciler.errors import TrackingError
from reconciler.stages.model import Outcome, Work
from reconciler.tracking import evaluate_gate


def run(work: Work) -> Outcome:
    """Compare the best round's metrics with the SLA's gate and with the model in production, if the gate says so."""
    tracking = work.tools.tracking(work.desired.customer)
    recorded = tracking.run_with_digest(work.desired.name, work.desired.customer, work.desired.run_digest) or work.adopted
    if recorded is None:
        raise TrackingError(
            "FL6021",
            f"MLflow has no finished run with digest {short(work.desired.run_digest)} any more.",
            cure="The next cycle trains it again.",
            transient=True,
        )
    work.run_id, metrics = recorded.run_id, dict(recorded.metrics)
    gate = work.declared.sla.evaluation_gate
    if gate is None:
        return Outcome("done", "no gate is declared")
    # Until somebody sets the alias, production is what serves.
    production = tracking.metrics_of_alias(work.desired.customer, work.desired.name, "production")
    if production is None and work.in_service is not None:
        production = work.in_service.gate_metrics()
    verdict = evaluate_gate(gate, metrics, production)
    if verdict.passed:
        return Outcome("done", verdict.reason, {"gate": {"passed": True, "reason": verdict.reason}})
    tracking.mark_gate_failed(work.run_id, work.desired.gate_digest, verdict.reason)
    return Outcome("rejected", verdict.reason, {"gate": {"passed": False, "reason": verdict.reason}})
