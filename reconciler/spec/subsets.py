"""Which part of an SLA decides about what: a key belongs to the training, to the serving, to the gate, or to nothing."""

from __future__ import annotations

from typing import Any

from reconciler.spec.models import ProjectSLA


def training_spec(sla: ProjectSLA) -> dict[str, Any]:
    """The keys that determine the trained model, as JSON values."""
    training = sla.training_configuration.model_dump(mode="json")
    # How long to wait for an answer does not change what a finished run learned.
    del training["round_timeout"]
    # Keys that came later count when they are used only: a release does not train again what it would learn alike.
    for name in ("root_strategy", "early_stop", "update_guard", "privacy", "simulation", "partitioner", "federation"):
        if training[name] is None:
            del training[name]
    for cluster in training["clusters"]:
        if cluster["nodes"] is None:
            del cluster["nodes"]
    if "simulation" in training:
        # Virtual learners learn what as many real ones do, whatever the number of processes.
        training["simulation"] = {"learners": training["simulation"]["learners"]}
    return {"training_configuration": training, "ml_model_flavor": str(sla.ml_model_flavor), "rerun": sla.rerun}


def deployment_spec(sla: ProjectSLA) -> dict[str, Any]:
    """The keys that determine the running service beside its model, as JSON values."""
    deployment = sla.deployment.model_dump(mode="json") if sla.deployment else {}
    return {"deployment": deployment}
