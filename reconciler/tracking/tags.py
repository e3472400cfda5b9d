"""The names of what is written beside runs and versions; they are read again by later versions of FLOps GitOps."""

from __future__ import annotations

DIGEST, PROJECT = "flops.digest", "flops.project"
RECORDED = "flops.recorded"
"""Set last: a run without it was cut off."""
GATE, GATE_DIGEST, REJECTED = "flops.gate", "flops.gate_digest", "flops.rejected_gates"
METRICS, MODEL_ID, CONTENT = "flops.metrics", "flops.model_id", "flops.model_sha256"
SLA_DIGEST, BEST_ROUND = "flops.sla_digest", "flops.best_round"
CARD = "mlflow.note.content"
"""MLflow's own: the text on a run's page."""
