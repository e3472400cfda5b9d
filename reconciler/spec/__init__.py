"""SLAs: models, loader, schemas. Every error has a code, a place, a cause and a cure."""

from reconciler.spec.build_plan import BuildPlan, default_plan, effective_plan, plan_digest, plans_key
from reconciler.spec.loader import known_sla, load_build_plan, load_mock_data, load_operator_config, load_sla
from reconciler.spec.models import EvaluationGate, MockData, ProjectSLA
from reconciler.spec.operator import ImagesConfig, OperatorConfig
from reconciler.spec.plans import project_plans
from reconciler.spec.subsets import deployment_spec, training_spec

__all__ = [
    "BuildPlan",
    "EvaluationGate",
    "ImagesConfig",
    "MockData",
    "OperatorConfig",
    "ProjectSLA",
    "default_plan",
    "deployment_spec",
    "effective_plan",
    "known_sla",
    "load_build_plan",
    "load_mock_data",
    "load_operator_config",
    "load_sla",
    "plan_digest",
    "plans_key",
    "project_plans",
    "training_spec",
]
