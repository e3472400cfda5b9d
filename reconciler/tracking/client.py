"""Runs and registered models of one tracking server; every write is idempotent by digest.

A run counts as recorded when its last tag is set. One that a crash cut off is marked KILLED and written anew, so that no
digest has two recorded runs. Nothing of a model is ever loaded here: its directory is uploaded as files.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from reconciler.errors import TrackingError
from reconciler.tracking.content import directory_digest
from reconciler.tracking.failures import redacted, translated
from reconciler.tracking.model import ModelVersion, RunInfo, RunRecord, model_name
from reconciler.tracking.rest import LOOPBACK, Rest
from reconciler.tracking.tags import CARD, CONTENT, DIGEST, GATE, GATE_DIGEST, METRICS, MODEL_ID, PROJECT, RECORDED, REJECTED

if TYPE_CHECKING:
    from mlflow import MlflowClient

REASON_LIMIT = 500
_IMPORT = threading.Lock()


class Tracking:
    """A tracking server and its registry; safe for threads that work on different projects."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._rest = Rest(uri)
        self._made: MlflowClient | None = None

    # --- observation

    def versions(self, customer: str) -> list[ModelVersion]:
        """Every version of a customer's models, newest first; two requests for all projects."""
        parameters = {"filter": f"name LIKE '{model_name(customer, '')}%'", "order_by": "version_number DESC"}
        found = self._rest.pages("model-versions/search", "model_versions", parameters)
        # LIKE takes more than was asked for: `_` is any letter to it, and `a.` begins the names of customer `a.b` as well.
        rows = [row for row in found if row["name"].rpartition(".")[0] == customer]
        if not rows:
            return []
        names = {"filter": f"name LIKE '{model_name(customer, '')}%'"}
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in self._rest.pages("registered-models/search", "registered_models", names):
            for alias in model.get("aliases", ()):
                aliases.setdefault((model["name"], str(alias["version"])), []).append(alias["alias"])
        return [_version(row, aliases.get((row["name"], str(row["version"])), [])) for row in rows]

    def projects_with_runs(self, customer: str) -> frozenset[str]:
        """The projects of a customer for which anything was ever recorded: one request for all of them."""
        begin = f"{customer}/"
        found = self._rest.pages("experiments/search", "experiments", {"filter": f"name LIKE '{begin}%'"})
        return frozenset(row["name"].removeprefix(begin) for row in found if row["name"].startswith(begin))

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
        return version.gate_metrics() if version else None

    # --- writing

    def record_run(self, record: RunRecord) -> str:
        """Write a finished training down, with its model; the id of the run. Again for the same digest: the same id."""
        content = directory_digest(record.model_dir)
        with self._writing() as client:
            from reconciler.tracking import recording

            experiment = recording.experiment(client, f"{record.customer}/{record.project}")
            for row in self._search_runs(experiment, f"tags.`{DIGEST}` = '{record.digest}'"):
                if _tags(row).get(RECORDED) == "true":
                    return str(row["info"]["run_id"])
                recording.discard(client, experiment, row["info"]["run_id"])
            return recording.write(client, experiment, record, content)

    def mark_gate_failed(self, run_id: str, gate_digest: str, reason: str) -> None:
        """Note on a run that it did not meet a gate; it is kept."""
        with self._writing() as client:
            tags = client.get_run(run_id).data.tags
            rejected = sorted({*_rejected(tags), gate_digest})
            client.set_tag(run_id, REJECTED, orjson.dumps(rejected).decode())
            client.set_tag(run_id, GATE, f"failed: {reason}"[:REASON_LIMIT])

    def register(self, *, customer: str, project: str, digest: str, gate_digest: str, run_id: str, alias: str) -> ModelVersion:
        """The version of a run, registered once, with an alias on it."""
        name = model_name(customer, project)
        known = self._registered(customer, name, digest)
        if known is not None and known.gate_digest == gate_digest:
            # A revert: nothing but the alias moves. MLflow's own client would take a second to import.
            self._rest.post("registered-models/alias", {"name": name, "alias": alias, "version": known.version})
            return next(item for item in self.versions(customer) if item.name == name and item.version == known.version)
        with self._writing() as client:
            if known is None:
                _create_version(client, name, project, digest, gate_digest, run_id)
            elif known.gate_digest != gate_digest:
                client.set_model_version_tag(name, known.version, GATE_DIGEST, gate_digest)
            known = self._registered(customer, name, digest)
            if known is None:
                text = f"MLflow at {redacted(self.uri)} does not show the version of {name} that it has just made."
                raise TrackingError("FL6009", text, cure="It is looked for again.", transient=True)
            client.set_registered_model_alias(name, alias, known.version)
            client.set_tag(run_id, GATE, "passed")
        return next(item for item in self.versions(customer) if item.name == name and item.version == known.version)

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Put an alias on a version; the version that had it loses it."""
        with self._writing() as client:
            client.set_registered_model_alias(version.name, alias, version.version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Take an alias from a registered model; nothing when there is none."""
        with self._writing() as client:
            client.delete_registered_model_alias(name, alias)

    def delete_project(self, customer: str, project: str) -> int:
        """Delete a project's versions, and its runs with their models' files; how many versions and runs there were.

        A run that a version of another project came of stays, as that version's files are the run's. What is gone already is no
        error. Runs go to MLflow's bin, from which `mlflow gc` takes them.
        """
        known = self.versions(customer)
        mine = [item for item in known if item.project == project]
        used = {item.run_id for item in known if item.project != project}
        experiment = self._experiment(customer, project)
        with self._writing() as client:
            from reconciler.tracking import recording

            runs: set[str] = set()
            recorded = self._search_runs(experiment, "") if experiment else []
            wave = ({item.run_id for item in mine} | {str(row["info"]["run_id"]) for row in recorded}) - used
            while wave:
                for run in sorted(wave):
                    recording.erase(client, self.uri, run)
                runs |= wave
                wave = (
                    {str(row["info"]["run_id"]) for row in self._search_runs(experiment, "")} - used - runs if experiment else set()
                )
            # The versions come last: they say which runs are the project's.
            for name in sorted({item.name for item in mine}):
                client.delete_registered_model(name)
        return len(mine) + len(runs)

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """Put a version's model directory to `destination`, which appears complete and as recorded, or not at all.

        A directory that is there with the recorded content stays, and MLflow is not asked.
        """
        if version.content and _content(destination) == version.content:
            return destination
        with self._writing() as client:
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as folder:
                from mlflow.artifacts import download_artifacts

                location = client.get_logged_model(version.model_id).artifact_location
                into = Path(folder) / "new"
                got = Path(download_artifacts(artifact_uri=location, dst_path=str(into), tracking_uri=self.uri))
                if version.content and directory_digest(got) != version.content:
                    text = f"The model of {version.name} version {version.version} is not what was recorded."
                    cure = "Restore the tracking server's artifacts, or set `rerun` in the SLA to train again."
                    raise TrackingError("FL6010", text, cure=cure)
                if destination.exists():
                    destination.rename(Path(folder) / "old")
                got.rename(destination)
        destination.chmod(0o755)
        return destination

    def _registered(self, customer: str, name: str, digest: str) -> ModelVersion | None:
        return next((item for item in self.versions(customer) if item.name == name and item.digest == digest), None)

    def _experiment(self, customer: str, project: str) -> str | None:
        answer = self._rest.get("experiments/get-by-name", {"experiment_name": f"{customer}/{project}"})
        if not answer or answer["experiment"].get("lifecycle_stage") == "deleted":
            return None
        return str(answer["experiment"]["experiment_id"])

    def _search_runs(self, experiment: str, query: str) -> list[dict[str, Any]]:
        answer = self._rest.post("runs/search", {"experiment_ids": [experiment], "filter": query, "max_results": 50})
        return list((answer or {}).get("runs", ()))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[MlflowClient]:
        """MLflow's own client, and its failures as ours."""
        with _IMPORT:
            _configure(self.uri)
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from requests import RequestException

            if self._made is None:
                self._made = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        try:
            yield self._made
        except (MlflowException, RequestException, OSError) as error:
            raise translated(error, self.uri) from error


def _configure(uri: str) -> None:
    """Few, quick retries: the reconciler has its own. Set before `import mlflow`; what the user has set stays."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.2"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)
    host = urlsplit(uri).hostname or ""
    around = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    if host in LOOPBACK and host not in around.split(",") and around != "*":
        # A proxy has no way to this machine's loopback.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{around},{host}".strip(",")


def _create_version(client: MlflowClient, name: str, project: str, digest: str, gate_digest: str, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={PROJECT: project})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = client.get_run(run_id).data.tags
    model_id = tags[MODEL_ID]
    copied = {tag: tags[tag] for tag in (METRICS, CONTENT) if tag in tags}
    client.create_model_version(
        name,
        source=client.get_logged_model(model_id).artifact_location,
        run_id=run_id,
        tags={**copied, DIGEST: digest, PROJECT: project, GATE_DIGEST: gate_digest, MODEL_ID: model_id},
        description=tags.get(CARD, ""),
        model_id=model_id,
        await_creation_for=0,
    )


def _content(directory: Path) -> str:
    try:
        return directory_digest(directory) if directory.is_dir() else ""
    except (TrackingError, OSError):
        return ""


def _version(row: Mapping[str, Any], aliases: list[str]) -> ModelVersion:
    tags = {item["key"]: item["value"] for item in row.get("tags", ())}
    metrics = _metrics(tags)
    return ModelVersion(
        name=row["name"],
        project=tags.get(PROJECT, row["name"].rpartition(".")[2]),
        version=str(row["version"]),
        digest=tags.get(DIGEST, ""),
        run_id=row.get("run_id", ""),
        model_id=tags.get(MODEL_ID, ""),
        gate_digest=tags.get(GATE_DIGEST, ""),
        aliases=tuple(sorted(aliases)),
        metrics={name: value for name, value in metrics.items() if not name.startswith("holdout.")},
        holdout={name.removeprefix("holdout."): value for name, value in metrics.items() if name.startswith("holdout.")},
        content=tags.get(CONTENT, ""),
    )


def _run(row: Mapping[str, Any]) -> RunInfo:
    tags = _tags(row)
    return RunInfo(
        run_id=row["info"]["run_id"],
        digest=tags.get(DIGEST, ""),
        model_id=tags.get(MODEL_ID, ""),
        metrics=_metrics(tags),
        rejected_gates=_rejected(tags),
    )


def _metrics(tags: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a tag; JSON has no word for one that is not finite, and null stands for it."""
    found = _json(tags.get(METRICS, ""))
    numbers = found.items() if isinstance(found, dict) else ()
    return {
        name: math.nan if value is None else float(value) for name, value in numbers if isinstance(value, (int, float, NoneType))
    }


def _rejected(tags: Mapping[str, str]) -> tuple[str, ...]:
    found = _json(tags.get(REJECTED, ""))
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def _json(text: str) -> Any:
    """What a tag says; None for one that somebody wrote something else into: MLflow lets everybody edit tags."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in row.get("data", {}).get("tags", ())}
