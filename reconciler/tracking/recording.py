"""How a finished training becomes a run with a model. Imported where MLflow is needed anyway: it imports MLflow itself."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import orjson
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.exceptions import MlflowException

from reconciler.tracking.card import model_card
from reconciler.tracking.failures import redacted
from reconciler.tracking.model import RunRecord
from reconciler.tracking.tags import BEST_ROUND, CARD, CONTENT, DIGEST, GATE, METRICS, MODEL_ID, PROJECT, RECORDED, SLA_DIGEST

if TYPE_CHECKING:
    from mlflow import MlflowClient

Item = TypeVar("Item")

METRICS_PER_REQUEST, PARAMS_PER_REQUEST = 900, 90
"""MLflow takes 1,000 and 100."""
VALUE_LIMIT, NAME_LIMIT = 500, 100
GATE_METRICS_LIMIT = 60
"""So many numbers with such names stay below the length of a tag."""


def experiment(client: MlflowClient, name: str) -> str:
    """The experiment of a project, made or taken out of the bin."""
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            known = client.get_experiment_by_name(name)
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)


def discard(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Take back a run that a crash cut off, with the model that it began to write."""
    for model in client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)
    client.set_terminated(run_id, "KILLED")
    client.delete_run(run_id)


def erase(client: MlflowClient, uri: str, run_id: str) -> None:
    """Delete a run and the files of the models that it recorded; nothing when it is gone already."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    for model in client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"):
        get_artifact_repository(model.artifact_location, tracking_uri=uri).delete_artifacts()
        client.delete_logged_model(model.model_id)
    if run.info.lifecycle_stage != "deleted":
        client.delete_run(run_id)


def write(client: MlflowClient, experiment_id: str, record: RunRecord, content: str) -> str:
    """A new run with parameters, metrics by round, SLA, timings and model; the mark of a recorded run comes last."""
    tags = {
        **{name: redacted(text) for name, text in record.tags.items()},
        DIGEST: record.digest,
        PROJECT: record.project,
        SLA_DIGEST: hashlib.sha256(record.sla).hexdigest(),
        BEST_ROUND: str(record.best_round),
        METRICS: orjson.dumps(_gate_metrics(record)).decode(),
        GATE: "pending",
        CONTENT: content,
        CARD: model_card(record),
    }
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=record.digest[:12]).info.run_id)
    for params in _portions(_params(record), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params)
    client.log_text(run_id, record.sla.decode(errors="replace"), "sla.yaml")
    model_id = _log_model(client, experiment_id, run_id, record, content)
    for metrics in _portions(_metrics(record, model_id), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(model_id, "READY")
    client.set_tag(run_id, MODEL_ID, model_id)
    client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, RECORDED, "true")
    return run_id


def _params(record: RunRecord) -> list[Param]:
    return [Param(name, text) for name, text in _named({k: redacted(v)[:VALUE_LIMIT] for k, v in record.params.items()}).items()]


def _metrics(record: RunRecord, model_id: str) -> list[Metric]:
    """Every number once; those of the best round and of the held-out data are the model's as well as the run's."""
    now, best = int(time.time() * 1000), record.best_round
    found = [(name, value, item.step) for item in record.rounds for name, value in _named(item.metrics).items()]
    found += [(f"holdout.{name}", value, best) for name, value in _named(record.holdout).items()]
    metrics = [Metric(name, float(value), now, step, model_id if step == best else None) for name, value, step in found]
    return metrics + [Metric(f"stage_seconds.{name}", float(value), now, 0) for name, value in _named(record.timings).items()]


def _gate_metrics(record: RunRecord) -> dict[str, float]:
    numbers = _named(record.gate_metrics())
    return {name: float(value) for name, value in list(numbers.items())[:GATE_METRICS_LIMIT]}


def _named(values: Mapping[str, Item]) -> dict[str, Item]:
    """With names that MLflow takes: those of metrics come from the ML repo's code."""
    return {re.sub(r"[^\w.-]", "_", name)[:NAME_LIMIT].strip(".") or "_": value for name, value in values.items()}


def _portions(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def _log_model(client: MlflowClient, experiment_id: str, run_id: str, record: RunRecord, content: str) -> str:
    """The model as a LoggedModel of the run and of the round that produced it."""
    model = client.create_logged_model(
        experiment_id,
        name=re.sub(r"[^\w-]", "_", record.project),
        source_run_id=run_id,
        tags={DIGEST: record.digest, CONTENT: content},
        params={"best_round": str(record.best_round)},
    )
    client.log_model_artifacts(model.model_id, str(record.model_dir))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.best_round)])
    return str(model.model_id)
