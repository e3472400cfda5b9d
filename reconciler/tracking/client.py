"""Runs and registered models of one tracking server; every write is idempotent by digest.

A run counts as recorded when its last tag is set. One that a crash cut off is marked KILLED and written anew, so that no
digest has two recorded runs. Nothing of a model is ever loaded here: its directory is uploaded as files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from reconciler.errors import TrackingError
from reconciler.tracking.model import ModelVersion, RunInfo, RunRecord, model_name
from reconciler.tracking.rest import Rest, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST, RECORDED, GATE, REJECTED = "flops.digest", "flops.recorded", "flops.gate", "flops.rejected_gates"
METRICS, MODEL_ID, GATE_DIGEST, PROJECT = "flops.metrics", "flops.model_id", "flops.gate_digest", "flops.project"
PARAM_LIMIT = 500
_IMPORT = threading.Lock()


class Tracking:
    """A tracking server and its registry."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._rest = Rest(uri)
        self._made: MlflowClient | None = None

    # --- observation

    def versions(self, customer: str) -> list[ModelVersion]:
        """Every version of a customer's models, newest first; two requests for all projects."""
        parameters = {"filter": f"name LIKE '{model_name(customer, '')}%'", "order_by": "version_number DESC"}
        rows = list(self._rest.pages("model-versions/search", "model_versions", parameters))
        if not rows:
            return []
        names = {"filter": f"name LIKE '{model_name(customer, '')}%'"}
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in self._rest.pages("registered-models/search", "registered_models", names):
            for alias in model.get("aliases", ()):
                aliases.setdefault((model["name"], str(alias["version"])), []).append(alias["alias"])
        return [_version(row, aliases.get((row["name"], str(row["version"])), [])) for row in rows]

    def run_with_digest(self, project: str, customer: str, digest: str) -> RunInfo | None:
        """The recorded run of a digest, or None."""
        experiment = self._experiment(customer, project)
        if experiment is None:
            return None
        found = self._search_runs(experiment, f"tags.`{DIGEST}` = '{digest}' AND tags.`{RECORDED}` = 'true'")
        return _run(found[0]) if found else None

    def metrics_of_alias(self, customer: str, project: str, alias: str) -> dict[str, float] | None:
        """The metrics of the version with an alias, or None."""
        version = next((item for item in self.versions(customer) if item.project == project and alias in item.aliases), None)
        if version is None:
            return None
        return {**version.metrics, **{f"holdout.{name}": value for name, value in version.holdout.items()}}

    # --- writing

    def record_run(self, record: RunRecord) -> str:
        """Write a finished training down, with its model; the id of the run. Again for the same digest: the same id."""
        with self._writing() as client:
            experiment = self._experiment(record.customer, record.project) or _create_experiment(client, record)
            for row in self._search_runs(experiment, f"tags.`{DIGEST}` = '{record.digest}'"):
                if _tags(row).get(RECORDED) == "true":
                    return str(row["info"]["run_id"])
                client.set_terminated(row["info"]["run_id"], "KILLED")
                client.delete_run(row["info"]["run_id"])
            run_id = self._create_run(client, experiment, record)
            model_id = _log_model(client, experiment, run_id, record)
            client.set_tag(run_id, MODEL_ID, model_id)
            client.set_tag(run_id, RECORDED, "true")
            client.set_terminated(run_id, "FINISHED")
            return run_id

    def mark_gate_failed(self, run_id: str, gate_digest: str, reason: str) -> None:
        """Note on a run that it did not meet a gate; it is kept."""
        with self._writing() as client:
            tags = client.get_run(run_id).data.tags
            rejected = sorted({*orjson.loads(tags.get(REJECTED, "[]")), gate_digest})
            client.set_tag(run_id, REJECTED, orjson.dumps(rejected).decode())
            client.set_tag(run_id, GATE, f"failed: {reason}"[:PARAM_LIMIT])

    def register(self, *, customer: str, project: str, digest: str, gate_digest: str, run_id: str, alias: str) -> ModelVersion:
        """The version of a run, registered once, with an alias on it."""
        name = model_name(customer, project)
        with self._writing() as client:
            known = next((item for item in self.versions(customer) if item.name == name and item.digest == digest), None)
            if known is None:
                self._create_version(client, name, project, digest, gate_digest, run_id)
            elif known.gate_digest != gate_digest:
                client.set_model_version_tag(name, known.version, GATE_DIGEST, gate_digest)
            known = next(item for item in self.versions(customer) if item.name == name and item.digest == digest)
            client.set_registered_model_alias(name, alias, known.version)
            client.set_tag(run_id, GATE, "passed")
            return known

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """Put a version's model directory to `destination`, which appears complete or not at all."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        with self._writing() as client, tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as folder:
            from mlflow.artifacts import download_artifacts

            location = client.get_logged_model(version.model_id).artifact_location
            got = download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=self.uri)
            shutil.rmtree(destination, ignore_errors=True)
            Path(got).replace(destination)
        destination.chmod(0o755)
        return destination

    def _create_run(self, client: MlflowClient, experiment: str, record: RunRecord) -> str:
        from mlflow.entities import Metric, Param

        tags = {
            **record.tags,
            DIGEST: record.digest,
            PROJECT: record.project,
            "flops.best_round": str(record.best_round),
            METRICS: orjson.dumps(record.gate_metrics()).decode(),
        }
        run_id = str(client.create_run(experiment, tags=tags, run_name=record.digest[:12]).info.run_id)
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, item.step) for item in record.rounds for name, value in item.metrics.items()]
        metrics += [Metric(f"holdout.{name}", float(value), now, record.best_round) for name, value in record.holdout.items()]
        metrics += [Metric(f"stage_seconds.{stage}", float(value), now, 0) for stage, value in record.timings.items()]
        params = [Param(name, text[:PARAM_LIMIT]) for name, text in record.params.items()]
        for start in range(0, max(len(metrics), 1), 900):
            client.log_batch(run_id, metrics=metrics[start : start + 900], params=params[:90] if start == 0 else [])
        client.log_text(run_id, record.sla.decode(errors="replace"), "sla.yaml")
        return run_id

    def _create_version(self, client: MlflowClient, name: str, project: str, digest: str, gate_digest: str, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):  # it exists already
            client.create_registered_model(name, tags={PROJECT: project})
        tags = client.get_run(run_id).data.tags
        model_id = tags[MODEL_ID]
        client.create_model_version(
            name,
            source=client.get_logged_model(model_id).artifact_location,
            run_id=run_id,
            tags={
                DIGEST: digest,
                PROJECT: project,
                GATE_DIGEST: gate_digest,
                MODEL_ID: model_id,
                METRICS: tags.get(METRICS, "{}"),
            },
            model_id=model_id,
            await_creation_for=0,
        )

    def _experiment(self, customer: str, project: str) -> str | None:
        answer = self._rest.get("experiments/get-by-name", {"experiment_name": f"{customer}/{project}"})
        return str(answer["experiment"]["experiment_id"]) if answer else None

    def _search_runs(self, experiment: str, query: str) -> list[dict[str, Any]]:
        answer = self._rest.post("runs/search", {"experiment_ids": [experiment], "filter": query, "max_results": 50})
        return list((answer or {}).get("runs", ()))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[MlflowClient]:
        """MLflow's own client, and its failures as ours."""
        _configure()
        with _IMPORT:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            if self._made is None:
                self._made = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        try:
            yield self._made
        except MlflowException as error:
            text = str(error).splitlines()[0][:300]
            if error.get_http_status_code() >= 500:
                raise unreachable(self.uri, text) from error
            raise TrackingError("FL6003", f"MLflow refuses to write: {text}.", cure="Check the tracking server.") from error
        except (ConnectionError, TimeoutError) as error:
            raise unreachable(self.uri, type(error).__name__) from error


def _configure() -> None:
    """Few, quick retries: the reconciler has its own. Set before `import mlflow`, which reads them once."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "60"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)


def _create_experiment(client: MlflowClient, record: RunRecord) -> str:
    return str(client.create_experiment(f"{record.customer}/{record.project}"))


def _log_model(client: MlflowClient, experiment: str, run_id: str, record: RunRecord) -> str:
    """The model as a LoggedModel of the run and of the round that produced it."""
    from mlflow.entities import LoggedModelOutput, Metric

    model = client.create_logged_model(
        experiment,
        name=record.project,
        source_run_id=run_id,
        tags={DIGEST: record.digest},
        params={"best_round": str(record.best_round)},
    )
    client.log_model_artifacts(model.model_id, str(record.model_dir))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record.best_round)])
    now = int(time.time() * 1000)
    values = [
        Metric(name, float(value), now, record.best_round, model_id=model.model_id, run_id=run_id)
        for name, value in record.gate_metrics().items()
    ]
    client.log_batch(run_id, metrics=values)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _version(row: Mapping[str, Any], aliases: list[str]) -> ModelVersion:
    tags = {item["key"]: item["value"] for item in row.get("tags", ())}
    metrics: dict[str, float] = orjson.loads(tags.get(METRICS, "{}"))
    return ModelVersion(
        name=row["name"],
        project=tags.get(PROJECT, row["name"].partition(".")[2]),
        version=str(row["version"]),
        digest=tags.get(DIGEST, ""),
        run_id=row.get("run_id", ""),
        model_id=tags.get(MODEL_ID, ""),
        gate_digest=tags.get(GATE_DIGEST, ""),
        aliases=tuple(sorted(aliases)),
        metrics={name: value for name, value in metrics.items() if not name.startswith("holdout.")},
        holdout={name.removeprefix("holdout."): value for name, value in metrics.items() if name.startswith("holdout.")},
    )


def _run(row: Mapping[str, Any]) -> RunInfo:
    tags = _tags(row)
    return RunInfo(
        run_id=row["info"]["run_id"],
        digest=tags.get(DIGEST, ""),
        model_id=tags.get(MODEL_ID, ""),
        metrics=orjson.loads(tags.get(METRICS, "{}")),
        rejected_gates=tuple(orjson.loads(tags.get(REJECTED, "[]"))),
    )


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in row.get("data", {}).get("tags", ())}
