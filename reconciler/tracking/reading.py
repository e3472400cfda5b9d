"""What a tracking server says: versions, runs and aliases, over REST in the reconciler's own process.

What somebody wrote into a tag of MLflow that is not ours to read counts as nothing: its pages let everybody edit everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any

import orjson

from reconciler.tracking.model import ModelVersion, RunInfo, model_name
from reconciler.tracking.rest import Rest
from reconciler.tracking.tags import CONTENT, DIGEST, GATE_DIGEST, METRICS, MODEL_ID, PROJECT, RECORDED, REJECTED


class Reading:
    """A tracking server and its registry as they are; safe for threads. Raises TrackingError FL6007 for what is no address."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.rest = Rest(uri)

    def versions(self, customer: str) -> list[ModelVersion]:
        """Every version of a customer's models, newest first; two requests for all projects."""
        parameters = {"filter": f"name LIKE '{model_name(customer, '')}%'", "order_by": "version_number DESC"}
        found = self.rest.pages("model-versions/search", "model_versions", parameters)
        # LIKE takes more than was asked for: `_` is any letter to it, and `a.` begins the names of customer `a.b` as well.
        rows = [row for row in found if row["name"].rpartition(".")[0] == customer]
        if not rows:
            return []
        names = {"filter": f"name LIKE '{model_name(customer, '')}%'"}
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in self.rest.pages("registered-models/search", "registered_models", names):
            for alias in model.get("aliases", ()):
                aliases.setdefault((model["name"], str(alias["version"])), []).append(alias["alias"])
        return [_version(row, aliases.get((row["name"], str(row["version"])), [])) for row in rows]

    def projects_with_runs(self, customer: str) -> frozenset[str]:
        """The projects of a customer for which anything was ever recorded: one request for all of them."""
        begin = f"{customer}/"
        found = self.rest.pages("experiments/search", "experiments", {"filter": f"name LIKE '{begin}%'"})
        return frozenset(row["name"].removeprefix(begin) for row in found if row["name"].startswith(begin))

    def run_with_digest(self, project: str, customer: str, digest: str) -> RunInfo | None:
        """The recorded run of a digest, or None."""
        experiment = self.experiment(customer, project)
        if experiment is None:
            return None
        found = self.search_runs(experiment, f"tags.`{DIGEST}` = '{digest}' AND tags.`{RECORDED}` = 'true'")
        return _run(found[0]) if found else None

    def metrics_of_alias(self, customer: str, project: str, alias: str) -> dict[str, float] | None:
        """The metrics of the version with an alias, or None."""
        version = next((item for item in self.versions(customer) if item.project == project and alias in item.aliases), None)
        return version.gate_metrics() if version else None

    def registered(self, customer: str, name: str, digest: str) -> ModelVersion | None:
        """The version of a digest, or None."""
        return next((item for item in self.versions(customer) if item.name == name and item.digest == digest), None)

    def experiment(self, customer: str, project: str) -> str | None:
        """The id of a project's experiment; None where there is none, or where it was deleted."""
        answer = self.rest.get("experiments/get-by-name", {"experiment_name": f"{customer}/{project}"})
        if not answer or answer["experiment"].get("lifecycle_stage") == "deleted":
            return None
        return str(answer["experiment"]["experiment_id"])

    def search_runs(self, experiment: str, query: str) -> list[dict[str, Any]]:
        """At most 50 runs of an experiment, as MLflow says them."""
        answer = self.rest.post("runs/search", {"experiment_ids": [experiment], "filter": query, "max_results": 50})
        return list((answer or {}).get("runs", ()))


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
    tags = tags_of(row)
    return RunInfo(
        run_id=row["info"]["run_id"],
        digest=tags.get(DIGEST, ""),
        model_id=tags.get(MODEL_ID, ""),
        metrics=_metrics(tags),
        rejected_gates=rejected_gates(tags),
    )


def _metrics(tags: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a tag; JSON has no word for one that is not finite, and null stands for it."""
    found = _json(tags.get(METRICS, ""))
    numbers = found.items() if isinstance(found, dict) else ()
    return {
        name: math.nan if value is None else float(value) for name, value in numbers if isinstance(value, (int, float, NoneType))
    }


def rejected_gates(tags: Mapping[str, str]) -> tuple[str, ...]:
    """The digests of the gates that a run did not meet."""
    found = _json(tags.get(REJECTED, ""))
    return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list) else ()


def _json(text: str) -> Any:
    """What a tag says; None for one that somebody wrote something else into: MLflow lets everybody edit tags."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def tags_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a run that was found."""
    return {item["key"]: item["value"] for item in row.get("data", {}).get("tags", ())}
