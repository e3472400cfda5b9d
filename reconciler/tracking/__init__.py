"""MLflow: one tracking server per customer, runs, the registry, the gate."""

from reconciler.tracking.client import Tracking
from reconciler.tracking.gate import GateResult, evaluate_gate
from reconciler.tracking.model import ModelVersion, RoundMetrics, RunInfo, RunRecord
from reconciler.tracking.server import tracking_root, tracking_service

__all__ = [
    "GateResult",
    "ModelVersion",
    "RoundMetrics",
    "RunInfo",
    "RunRecord",
    "Tracking",
    "evaluate_gate",
    "tracking_root",
    "tracking_service",
]
