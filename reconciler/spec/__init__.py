"""SLAs: models, loader, schemas. Every error has a code, a place, a cause and a cure."""

from reconciler.spec.loader import load_mock_data, load_operator_config, load_sla
from reconciler.spec.models import EvaluationGate, MockData, OperatorConfig, ProjectSLA
from reconciler.spec.subsets import deployment_spec, training_spec

__all__ = [
    "EvaluationGate",
    "MockData",
    "OperatorConfig",
    "ProjectSLA",
    "deployment_spec",
    "load_mock_data",
    "load_operator_config",
    "load_sla",
    "training_spec",
]
