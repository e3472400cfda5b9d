"""What is written to MLflow and read from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RoundMetrics:
    """The metrics of one round; `step` is the round."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished training as it is written down. `timings` are seconds by stage."""

    customer: str
    project: str
    digest: str
    params: Mapping[str, str]
    rounds: tuple[RoundMetrics, ...]
    best_round: int
    holdout: Mapping[str, float]
    tags: Mapping[str, str]
    sla: bytes
    timings: Mapping[str, float]
    model_dir: Path

    def best_metrics(self) -> dict[str, float]:
        """The metrics of the round that the model is from."""
        return {name: value for item in self.rounds if item.step == self.best_round for name, value in item.metrics.items()}

    def gate_metrics(self) -> dict[str, float]:
        """What a gate can ask for: the best round's metrics, and the held-out ones as `holdout.<name>`."""
        return {**self.best_metrics(), **{f"holdout.{name}": value for name, value in self.holdout.items()}}


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A recorded run. `rejected_gates` are the digests of the gates that it did not meet."""

    run_id: str
    digest: str
    model_id: str
    metrics: Mapping[str, float]
    rejected_gates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version. `digest` is that of the run it came from, `content` that of its model directory."""

    name: str
    project: str
    version: str
    digest: str
    run_id: str
    model_id: str
    gate_digest: str
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    holdout: Mapping[str, float] = field(default_factory=dict)
    content: str = ""

    def gate_metrics(self) -> dict[str, float]:
        """What a gate can compare with, as `RunRecord.gate_metrics`."""
        return {**self.metrics, **{f"holdout.{name}": value for name, value in self.holdout.items()}}


def model_name(customer: str, project: str) -> str:
    """The registered model of a project. A customer may have dots, a project has none: the last one parts them."""
    return f"{customer}.{project}"


def safe_folder(customer: str) -> str:
    """A folder for a customer: what is not plain is written as its code, so that no two share one on any file system."""
    folder = re.sub(r"[^a-z0-9-]", lambda found: f"_{ord(found[0]):x}_", customer)
    if len(folder) <= 100:
        return folder
    return f"{folder[:60]}.{hashlib.sha256(customer.encode()).hexdigest()[:32]}"
