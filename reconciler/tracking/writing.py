"""Writing with MLflow's own client, in the scribe's process alone: it takes 150 MiB and more than a second to import.

What is public here is what `Tracking` asks for, and may be asked again after this process was killed in it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import orjson
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from requests import RequestException

from reconciler.tracking import recording
from reconciler.tracking.content import directory_digest
from reconciler.tracking.failures import translated
from reconciler.tracking.model import RunRecord, model_name
from reconciler.tracking.reading import Reading, rejected_gates, tags_of
from reconciler.tracking.tags import CARD, CONTENT, DIGEST, GATE, GATE_DIGEST, METRICS, MODEL_ID, PROJECT, RECORDED, REJECTED

REASON_LIMIT = 500


def record_run(uri: str, record: RunRecord) -> str:
    """See `Tracking.record_run`."""
    content = directory_digest(record.model_dir)
    with _writing(uri) as client:
        experiment = recording.experiment(client, f"{record.customer}/{record.project}")
        for row in _reading(uri).search_runs(experiment, f"tags.`{DIGEST}` = '{record.digest}'"):
            if tags_of(row).get(RECORDED) == "true":
                return str(row["info"]["run_id"])
            recording.discard(client, experiment, row["info"]["run_id"])
        return recording.write(client, experiment, record, content)


def mark_gate_failed(uri: str, run_id: str, gate_digest: str, reason: str) -> None:
    """See `Tracking.mark_gate_failed`."""
    with _writing(uri) as client:
        rejected = sorted({*rejected_gates(client.get_run(run_id).data.tags), gate_digest})
        client.set_tag(run_id, REJECTED, orjson.dumps(rejected).decode())
        client.set_tag(run_id, GATE, f"failed: {reason}"[:REASON_LIMIT])


def register(uri: str, customer: str, project: str, digest: str, gate_digest: str, run_id: str) -> None:
    """The version of a digest is there, and the gate that it met is noted on it."""
    name = model_name(customer, project)
    with _writing(uri) as client:
        known = _reading(uri).registered(customer, name, digest)
        if known is None:
            _create_version(client, name, project, digest, gate_digest, run_id)
        elif known.gate_digest != gate_digest:
            client.set_model_version_tag(name, known.version, GATE_DIGEST, gate_digest)
        client.set_tag(run_id, GATE, "passed")


def delete_project(uri: str, customer: str, project: str) -> int:
    """See `Tracking.delete_project`."""
    reading = _reading(uri)
    known = reading.versions(customer)
    mine = [item for item in known if item.project == project]
    used = {item.run_id for item in known if item.project != project}
    experiment = reading.experiment(customer, project)

    def recorded() -> set[str]:
        return {str(row["info"]["run_id"]) for row in reading.search_runs(experiment, "")} if experiment else set()

    with _writing(uri) as client:
        runs: set[str] = set()
        wave = ({item.run_id for item in mine} | recorded()) - used
        while wave:
            for run in sorted(wave):
                recording.erase(client, uri, run)
            runs |= wave
            wave = recorded() - used - runs
        # The versions come last: they say which runs are the project's.
        for name in sorted({item.name for item in mine}):
            client.delete_registered_model(name)
    return len(mine) + len(runs)


def download(uri: str, model_id: str, into: Path) -> Path:
    """A model's files below `into`; the folder that they are in."""
    with _writing(uri) as client:
        location = client.get_logged_model(model_id).artifact_location
        return Path(download_artifacts(artifact_uri=location, dst_path=str(into), tracking_uri=uri))


@functools.cache
def _reading(uri: str) -> Reading:
    return Reading(uri)


@contextlib.contextmanager
def _writing(uri: str) -> Iterator[MlflowClient]:
    """MLflow's own client, and its failures as ours."""
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, RequestException, OSError) as error:
        raise translated(error, uri) from error


def _create_version(client: MlflowClient, name: str, project: str, digest: str, gate_digest: str, run_id: str) -> None:
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
