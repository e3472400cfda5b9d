"""Which part of an SLA decides about what: a key belongs to the training, to the serving, to the gate, or to nothing."""

from __future__ import annotations

from typing import Any

from reconciler.spec.models import ProjectSLA


def training_spec(sla: ProjectSLA) -> dict[str, Any]:
    """The keys that determine the trained model, as JSON values."""
    training = sla.training_configuration.model_dump(mode="json")
    # How long to wait for an answer does not change what a finished run learned.
    del training["round_timeout"]
    # Learners that are started here are what there was before federations: their digests stay.
    if training["federation"] is None:
        del training["federation"]
    return {"training_configuration": training, "ml_model_flavor": str(sla.ml_model_flavor), "rerun": sla.rerun}


def deployment_spec(sla: ProjectSLA) -> dict[str, Any]:
    """The keys that determine the running service beside its model, as JSON values."""
    deployment = sla.deployment.model_dump(mode="json") if sla.deployment else {}
    return {"deployment": deployment}
