"""One tracking server as the stages use it; every write is idempotent by digest.

A run counts as recorded when its last tag is set. One that a crash cut off – of this process, or of the scribe – is marked KILLED
and written anew, so that no digest has two recorded runs. MLflow's own client is never imported here: the scribe has it. Nothing of
a model is ever loaded: its directory is sent and fetched as files.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconciler.aside import Aside
from reconciler.errors import TrackingError
from reconciler.tracking.content import directory_digest
from reconciler.tracking.failures import redacted, translated
from reconciler.tracking.model import ModelVersion, RunRecord, model_name
from reconciler.tracking.reading import Reading
from reconciler.tracking.scribe import SCRIBE, WRITING


class Tracking(Reading):
    """A tracking server and its registry; safe for threads that work on different projects."""

    def __init__(self, uri: str, scribe: Aside = SCRIBE) -> None:
        super().__init__(uri)
        self._scribe = scribe

    def prepare_to_write(self) -> None:
        """Something will be recorded soon: MLflow's client, which takes more than a second to import, is made ready meanwhile."""
        self._scribe.warm_up(WRITING)

    def record_run(self, record: RunRecord) -> str:
        """Write a finished training down, with its model; the id of the run. Again for the same digest: the same id."""
        run_id: str = self._write("record_run", replace(record, model_dir=record.model_dir.absolute()))
        return run_id

    def mark_gate_failed(self, run_id: str, gate_digest: str, reason: str) -> None:
        """Note on a run that it did not meet a gate; it is kept."""
        self._write("mark_gate_failed", run_id, gate_digest, reason)

    def register(self, *, customer: str, project: str, digest: str, gate_digest: str, run_id: str, alias: str) -> ModelVersion:
        """The version of a run, registered once, with an alias on it."""
        name = model_name(customer, project)
        known = self.registered(customer, name, digest)
        # A revert moves nothing but the alias, for which the scribe is not needed.
        if known is None or known.gate_digest != gate_digest:
            self._write("register", customer, project, digest, gate_digest, run_id)
            known = self.registered(customer, name, digest)
        if known is not None:
            self.set_alias(known, alias)
            known = self.registered(customer, name, digest)
        if known is None:
            text = f"MLflow at {redacted(self.uri)} does not show the version of {name} that it has just made."
            raise TrackingError("FL6009", text, cure="It is looked for again.", transient=True)
        return known

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Put an alias on a version; the version that had it loses it."""
        self.rest.post("registered-models/alias", {"name": version.name, "alias": alias, "version": version.version})

    def delete_alias(self, name: str, alias: str) -> None:
        """Take an alias from a registered model; nothing when there is none."""
        self.rest.delete("registered-models/alias", {"name": name, "alias": alias})

    def delete_project(self, customer: str, project: str) -> int:
        """Delete a project's versions, and its runs with their models' files; how many versions and runs there were.

        A run that a version of another project came of stays, as that version's files are the run's. What is gone already is no
        error. Runs go to MLflow's bin, from which `mlflow gc` takes them.
        """
        count: int = self._write("delete_project", customer, project)
        return count

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """Put a version's model directory to `destination`, which appears complete and as recorded, or not at all.

        A directory that is there with the recorded content stays, and MLflow is not asked.
        """
        if version.content and _content(destination) == version.content:
            return destination
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=destination.parent.absolute(), prefix=".download-") as folder:
                got: Path = self._write("download", version.model_id, Path(folder) / "new")
                if version.content and directory_digest(got) != version.content:
                    text = f"The model of {version.name} version {version.version} is not what was recorded."
                    cure = "Restore the tracking server's artifacts, or set `rerun` in the SLA to train again."
                    raise TrackingError("FL6010", text, cure=cure)
                if destination.exists():
                    destination.rename(Path(folder) / "old")
                got.rename(destination)
        except OSError as error:
            raise translated(error, self.uri) from error
        destination.chmod(0o755)
        return destination

    def _write(self, name: str, *arguments: object) -> Any:
        return self._scribe.call(f"{WRITING}:{name}", self.uri, *arguments)


def _content(directory: Path) -> str:
    try:
        return directory_digest(directory) if directory.is_dir() else ""
    except (TrackingError, OSError):
        return ""
