"""Gate: may this model be registered? A run that may not is kept, marked, and nothing else happens."""

from __future__ import annotations

from reconciler.stages.model import Outcome, Work
from reconciler.tracking import evaluate_gate


def run(work: Work) -> Outcome:
    """Compare the best round's metrics with the SLA's gate and with the model in production, if the gate says so."""
    gate = work.declared.sla.evaluation_gate
    if gate is None:
        return Outcome("done", "no gate is declared")
    tracking = work.tools.tracking(work.desired.customer)
    run_info = tracking.run_with_digest(work.desired.name, work.desired.customer, work.desired.run_digest)
    metrics = dict(run_info.metrics) if run_info else {}
    production = tracking.metrics_of_alias(work.desired.customer, work.desired.name, "production")
    verdict = evaluate_gate(gate, metrics, production)
    if verdict.passed:
        return Outcome("done", verdict.reason, {"gate": {"passed": True, "reason": verdict.reason}})
    tracking.mark_gate_failed(work.run_id, work.desired.gate_digest, verdict.reason)
    return Outcome("rejected", verdict.reason, {"gate": {"passed": False, "reason": verdict.reason}})
